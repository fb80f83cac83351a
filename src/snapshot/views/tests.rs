use super::*;
use crate::types::Term;

const LIMITS: Limits = Limits { age: Duration::from_secs(3600), pinned_bytes: 0 };

fn cut(index: u64) -> Cut {
    let at = EntryId { index: LogIndex(index), term: Term(1) };
    Cut {
        at,
        members: vec![NodeId(1), NodeId(2), NodeId(3)],
        manifest: Vec::new(),
        databases: BTreeMap::new(),
        only: None,
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

#[test]
fn a_view_is_lent_again_to_whom_it_suits() {
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    let reuse = |to, have, start| views.reuse(to, LogIndex(have), LogIndex(start), at(1)).map(|(id, ..)| id);
    assert_eq!(reuse(B, 10, 100), Some(id));
    assert_eq!(reuse(B, 10, 101), None, "the log would begin behind it");
    assert_eq!(reuse(B, 100, 50), None, "it has as much");
    assert_eq!(reuse(NodeId(4), 10, 50), None, "it is no member as of that entry");
    assert_eq!(views.counts(), (1, 2));
    let newer = views.lend(7, cut(200), A, at(2));
    assert_ne!(newer, id);
    assert_eq!(reuse(B, 10, 50), Some(newer), "the newest of those that fit");
}

#[test]
fn a_lease_is_kept_by_asking_and_ends_by_silence() {
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    let everybody = |_| true;
    for second in [20, 40, 60] {
        assert!(views.renew(id, A, at(second)).is_some());
        assert_eq!(views.sweep(at(second), LIMITS, everybody), 0);
        assert_eq!(views.floor(), Some(LogIndex(100)));
    }
    assert!(views.renew(id, B, at(60)).is_none(), "it was lent to another node");
    assert_eq!(views.sweep(at(91), LIMITS, everybody), 0, "nobody uses it, but somebody may soon");
    assert_eq!((views.counts(), views.floor()), ((1, 0), None));
    assert!(views.renew(id, A, at(92)).is_none());
    assert_eq!(views.reuse(A, LogIndex(1), LogIndex(100), at(92)).map(|(again, ..)| again), Some(id));
    assert_eq!(views.sweep(at(92 + 61), LIMITS, everybody), 1);
    assert_eq!(views.counts(), (0, 0));
}

#[test]
fn what_nobody_uses_goes_when_there_is_a_newer_one() {
    let views = Views::default();
    let first = views.lend(7, cut(100), A, at(0));
    views.lend(7, cut(200), B, at(1));
    assert_eq!(views.counts(), (2, 2));
    assert_eq!(views.give_back(first, A, true, at(2)).map(|at| at.index), Some(LogIndex(100)));
    assert_eq!(views.give_back(first, A, true, at(2)), None, "once");
    assert_eq!(views.counts(), (1, 1));
}

/// Who was silent for too long, or whose view was closed, may have installed it all the same, and says so as soon as it can.
#[test]
fn who_lost_its_lease_may_still_say_that_it_has_installed() {
    for how in ["silence", "age", "passed", "given back"] {
        let views = Views::default();
        let id = views.lend(7, cut(100), A, at(0));
        match how {
            "silence" => _ = views.sweep(at(30), LIMITS, |_| true),
            "age" => _ = views.sweep(at(1), Limits { age: at(1), ..LIMITS }, |_| true),
            "passed" => views.close_before(LogIndex(101)),
            _ => _ = views.give_back(id, A, true, at(1)),
        }
        assert_eq!(views.counts().1, 0, "{how}");
        let once = Some(LogIndex(100)).filter(|_| how != "given back");
        let said = |peer| views.give_back(id, peer, true, at(31)).map(|at| at.index);
        assert_eq!((said(B), said(A), said(A)), (None, once, None), "{how}");
        // And the log is kept for it, if that has not passed it.
        assert_eq!(views.floor(), Some(LogIndex(100)).filter(|_| how != "passed"), "{how}");
    }
    // Not one of who is no member any more, nor a view of one database.
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    views.sweep(at(1), LIMITS, |node| node != A);
    assert_eq!(views.give_back(id, A, true, at(1)), None);
}

#[test]
fn how_far_a_node_is_is_known_as_long_as_it_fetches() {
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    assert_eq!(views.progress(A), None);
    views.note_progress(id, A, (5, 10));
    assert_eq!((views.progress(A), views.progress(B)), (Some((5, 10)), None));
    views.give_back(id, A, false, at(1));
    assert_eq!(views.progress(A), None);
}

#[test]
fn age_and_removal_end_a_view_that_is_used() {
    let views = Views::default();
    let id = views.lend(7, cut(100), A, at(0));
    assert_eq!(views.sweep(at(1), LIMITS, |node| node != A), 0);
    assert_eq!(views.counts(), (1, 0), "a lease of who is no member any more is none");
    views.reuse(B, LogIndex(1), LogIndex(1), at(2));
    let young = Limits { age: at(10), ..LIMITS };
    for second in 3..10 {
        views.renew(id, B, at(second));
        assert_eq!(views.sweep(at(second), young, |_| true), 0);
    }
    assert_eq!(views.sweep(at(10), young, |_| true), 1);
}

#[test]
fn only_so_many_objects_are_made_at_a_time() {
    let views = Views::default();
    let mut sending: Vec<_> = (0..SENDERS).map(|_| views.begin_sending().unwrap()).collect();
    assert!(views.begin_sending().is_none());
    sending.pop();
    assert!(views.begin_sending().is_some());
}
