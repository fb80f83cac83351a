//! From SQLite's writes on the WAL to the moment of the commit.
//!
//! SQLite writes a transaction as frames behind the last published one. Each frame is two writes: 24 bytes of header at
//! the frame's offset, then the page. A header with a database size other than zero announces the *commit frame*; the
//! page that follows it is the commit, once in a write session:
//!
//! ```text
//! Open --header of frame n, size > 0--> Open, armed(n) --page of frame n--> Fired
//!   \--anything else--> Open                                                  \--anything--> Fired
//! ```
//!
//! What comes after it is no second commit: padding frames repeat the commit mark when SQLite fills a sector, and
//! headers of earlier frames are written once more when a spilled page was rewritten in place (their checksums changed).
//!
//! The transaction is every frame from the first of the session to the commit frame. A page may be among them twice (a
//! page spilled early is written again at the commit; the last one wins), and pages beyond the new size are left over
//! from spills before a shrink (dropped).
//!
//! Deliberately absent: the bytes. They are in the virtual WAL; this file only says which frames count.

use crate::page::{PageCount, PageNo};
use crate::wal::frame::FrameNo;

/// The frame that ends a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommitFrame {
    /// Which frame.
    pub frame: FrameNo,
    /// Size of the database after the transaction.
    pub size: PageCount,
}

/// Follows the writes of one write session.
#[derive(Default, Debug)]
pub struct Capture {
    armed: Option<CommitFrame>,
    fired: bool,
}

impl Capture {
    /// A session that has written nothing.
    pub fn new() -> Capture {
        Capture::default()
    }

    /// SQLite wrote the header of `frame`, with `size` in its size field.
    pub fn on_header(&mut self, frame: FrameNo, size: u32) {
        if !self.fired {
            self.armed = (size != 0).then_some(CommitFrame { frame, size: PageCount(size) });
        }
    }

    /// Whether the commit was reached: what is written now, no transaction depends on.
    pub fn has_fired(&self) -> bool {
        self.fired
    }

    /// SQLite wrote the whole page of `frame`. `Some` exactly once: this write is the commit.
    pub fn on_page(&mut self, frame: FrameNo) -> Option<CommitFrame> {
        if self.fired {
            return None;
        }
        // A page of another frame does not disarm: a commit must never pass unseen.
        let commit = self.armed.filter(|armed| armed.frame == frame)?;
        self.fired = true;
        Some(commit)
    }
}

/// Which frame holds the final version of each page: ascending by page, without pages beyond `size`. `frames` are the
/// session's frames in order.
pub fn final_frames(frames: impl Iterator<Item = (FrameNo, PageNo)>, size: PageCount) -> Vec<(PageNo, FrameNo)> {
    let mut last: Vec<(PageNo, FrameNo)> =
        frames.filter(|(_, page)| size.contains(*page)).map(|(frame, page)| (page, frame)).collect();
    last.sort_unstable();
    // Of several frames of one page the highest is the last of its run.
    let mut kept: Vec<(PageNo, FrameNo)> = Vec::with_capacity(last.len());
    for entry in last {
        match kept.last_mut() {
            Some(previous) if previous.0 == entry.0 => *previous = entry,
            _ => kept.push(entry),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(n: u32) -> FrameNo {
        FrameNo::new(n).unwrap()
    }

    fn page(n: u32) -> PageNo {
        PageNo::new(n).unwrap()
    }

    #[test]
    fn the_page_after_a_commit_header_fires_once() {
        let mut capture = Capture::new();
        capture.on_header(frame(1), 0);
        assert_eq!(capture.on_page(frame(1)), None);
        capture.on_header(frame(2), 7);
        assert_eq!(capture.on_page(frame(2)), Some(CommitFrame { frame: frame(2), size: PageCount(7) }));
        // A padding frame carries the mark again.
        capture.on_header(frame(3), 7);
        assert_eq!(capture.on_page(frame(3)), None);
    }

    #[test]
    fn a_page_rewritten_in_place_is_no_commit() {
        let mut capture = Capture::new();
        capture.on_header(frame(5), 0);
        assert_eq!(capture.on_page(frame(5)), None);
        assert_eq!(capture.on_page(frame(4)), None);
        capture.on_header(frame(6), 3);
        assert_eq!(capture.on_page(frame(4)), None, "not the armed frame");
        assert!(capture.on_page(frame(6)).is_some(), "still armed: a commit never passes unseen");
    }

    #[test]
    fn the_last_frame_of_a_page_wins_and_pages_beyond_the_size_are_dropped() {
        let frames = [(1, 3), (2, 9), (3, 2), (4, 3), (5, 1)].map(|(f, p)| (frame(f), page(p)));
        assert_eq!(
            final_frames(frames.into_iter(), PageCount(3)),
            [(page(1), frame(5)), (page(2), frame(3)), (page(3), frame(4))]
        );
    }
}
