//! The files of a database, damaged.
//!
//! ```text
//! selector  the bytes are
//! 0, 1      a map file; 1: its head and both records have their hashes put right
//! 2, 3      a double-write; 3: head and list have their hashes put right
//! 4         edits of the three files of a database, behind or in the middle of a checkpoint
//! ```

use std::path::Path;
use std::sync::Arc;

use shoaldb_vfs::doublewrite::{self, Found, Plan};
use shoaldb_vfs::env::sim::{Aim, Failure, Lasts, SimFs};
use shoaldb_vfs::env::{File, Fs, Open};
use shoaldb_vfs::files::{self, DatabaseFiles};
use shoaldb_vfs::genesis::{AutoVacuum, Geometry};
use shoaldb_vfs::mapfile::{Checkpointed, MapFile, Owner};
use shoaldb_vfs::page::{PageCount, PageHash, PageNo, PageSize};
use shoaldb_vfs::transaction::Position;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const DIR: &str = "/db";
const SIZE: PageSize = PageSize::new(512).expect("a page size");
const OWNER: Owner = Owner { database: 7, generation: 1, page_size: SIZE };
/// The write that makes a checkpoint count.
const RECORD: &str = "ckpt.record";

fn file_of(bytes: &[u8]) -> (SimFs, Arc<dyn File>) {
    let fs = SimFs::new(1);
    fs.create_dir_all(Path::new(DIR), "fuzz.dir").expect("a simulated folder");
    let file = fs.open(&Path::new(DIR).join("file"), Open::CreateNew, "fuzz.open").expect("a simulated file");
    file.write_at(bytes, 0, "fuzz.write").expect("a simulated write");
    (fs, file)
}

/// Writes `sum` over the eight bytes at `at`, if they are there.
fn put_sum(bytes: &mut [u8], at: usize, sum: impl Fn(&[u8]) -> u64) {
    if let Some((head, rest)) = bytes.split_at_mut_checked(at)
        && let Some(place) = rest.first_chunk_mut()
    {
        *place = sum(head).to_le_bytes();
    }
}

/// See the module's text.
pub fn disk(data: &[u8]) -> bool {
    let Some((selector, body)) = data.split_first() else { return false };
    match selector % 5 {
        0 => map(body),
        1 => {
            let mut body = body.to_vec();
            put_sum(&mut body, 32, xxh3_64);
            for slot in [512, 1024] {
                if let Some(slot) = body.get_mut(slot..) {
                    put_sum(slot, 40, |bytes| xxh3_64_with_seed(bytes, OWNER.database));
                }
            }
            map(&body)
        }
        2 => double_write(body),
        3 => {
            let mut body = body.to_vec();
            let listed = body.get(52..56).map_or(0, |bytes| usize::from(bytes[0]));
            let list = body.get(88..88 + 24 * listed).map(xxh3_64);
            if let (Some(list), Some(place)) = (list, body.get_mut(72..80)) {
                place.copy_from_slice(&list.to_le_bytes());
            }
            put_sum(&mut body, 80, xxh3_64);
            double_write(&body)
        }
        _ => whole(body),
    }
}

fn map(bytes: &[u8]) -> bool {
    let (_fs, file) = file_of(bytes);
    let Ok((map, sequence, at)) = MapFile::open(file, OWNER) else { return false };
    assert!(sequence > 0 && at.size.0 > 0);
    for number in [1, 2, at.size.0, u32::MAX] {
        let page = PageNo::new(number).expect("not 0");
        let _ = map.hash(page);
        let _ = map.hashes(page, 3);
    }
    true
}

fn double_write(bytes: &[u8]) -> bool {
    let (_fs, file) = file_of(bytes);
    let Ok(Found { complete: Some(complete), .. }) = doublewrite::read(file, OWNER, Position(0)) else { return false };
    let Plan { to, pages, .. } = &complete.plan;
    for (place, (page, hash)) in pages.iter().enumerate() {
        let content = complete.page(place).expect("it was read before");
        assert!(to.size.contains(*page) && PageHash::of(*page, &content) == *hash);
    }
    true
}

fn content(page: PageNo, version: u8) -> Vec<u8> {
    vec![page.get() as u8 ^ version; SIZE.len()]
}

/// A new database, at position 4.
fn created() -> (SimFs, DatabaseFiles) {
    let fs = SimFs::new(1);
    fs.create_dir_all(Path::new(DIR), "fuzz.dir").expect("a simulated folder");
    let geometry = Geometry { page_size: SIZE, auto_vacuum: AutoVacuum::None };
    let door: Arc<dyn Fs> = Arc::new(fs.clone());
    let files = DatabaseFiles::create(door, Path::new(DIR), OWNER, geometry, Position(4)).expect("files of a database");
    (fs, files)
}

/// A database of four pages at position 9, once checkpointed from position 4. The disk as it is just before the position
/// record of that checkpoint is written, or behind it.
fn database(in_the_middle: bool) -> SimFs {
    let (fs, mut files) = created();
    let pages: Vec<PageNo> = (1..=4).map(|number| PageNo::new(number).expect("not 0")).collect();
    let pages: Vec<_> = pages.into_iter().map(|page| (page, PageHash::of(page, &content(page, 1)))).collect();
    let checksum = PageHash(pages.iter().fold(0, |sum, (_, hash)| sum ^ hash.0));
    let to = Checkpointed { position: Position(9), size: PageCount(4), checksum };
    let plan = Plan { from: Position(4), to, pages };
    if in_the_middle {
        fs.fail_at(Aim::At(RECORD), 1, Lasts::Once, Failure::EIO);
    }
    let _ = files.checkpoint(&plan, &mut |page, out| {
        out.extend(content(page, 1));
        Ok(())
    });
    fs.clear_faults();
    fs
}

/// The files as they are at a position, 4 or 9, of which nobody touched any.
fn written(position: Position) -> SimFs {
    if position == Position(9) { database(false) } else { created().0 }
}

/// The main file, as long as a database of so many pages is.
fn main_file(fs: &SimFs, size: PageCount) -> Vec<u8> {
    let [main, ..] = files::names(OWNER.database, OWNER.generation);
    let mut bytes = fs.peek(&Path::new(DIR).join(main)).expect("a database has a main file");
    bytes.resize(size.0 as usize * SIZE.len(), 0);
    bytes
}

/// The bytes of a good file, as a seed: 0 main file, 1 map, 2 double-write.
pub fn file_of_a_database(which: usize) -> Vec<u8> {
    let name = &files::names(OWNER.database, OWNER.generation)[which];
    database(true).peek(&Path::new(DIR).join(name)).expect("a database has this file")
}

/// Edits: which file, offset (2), kind (0 cut, 1 zeros, else xor), value.
fn whole(script: &[u8]) -> bool {
    let Some((selector, edits)) = script.split_first() else { return false };
    let fs = database(selector % 2 == 1);
    for edit in edits.chunks_exact(5).take(32) {
        let name = &files::names(OWNER.database, OWNER.generation)[usize::from(edit[0]) % 3];
        fs.edit(&Path::new(DIR).join(name), |bytes| {
            crate::edit_bytes(bytes, edit);
        });
    }
    let door: Arc<dyn Fs> = Arc::new(fs.clone());
    let Ok(opened) = DatabaseFiles::open(door.clone(), Path::new(DIR), OWNER) else { return false };
    let at = opened.at();
    // Only what was once written: an edit of a record is found by its hash.
    assert!([4, 9].contains(&at.position.0), "opened at {at:?}, which nobody wrote");
    // Rot in a page is told, not served, and so are pages of two positions: what nothing is told of is what was written.
    let (rotten, fit) = (opened.verify(PageNo::FIRST, at.size.0), opened.books_fit());
    drop(opened);
    if matches!((&rotten, &fit), (Ok(None), Ok(true))) {
        assert_eq!(
            main_file(&fs, at.size),
            main_file(&written(at.position), at.size),
            "at {at:?} and told to be whole"
        );
    } else {
        assert!(edits.len() >= 5, "{rotten:?}, {fit:?}: told of what nobody touched");
    }
    let again = DatabaseFiles::open(door, Path::new(DIR), OWNER).expect("what opened opens again");
    assert_eq!(again.at(), at);
    assert_eq!(again.verify(PageNo::FIRST, at.size.0).ok(), rotten.ok());
    assert_eq!(again.books_fit().ok(), fit.ok());
    true
}
