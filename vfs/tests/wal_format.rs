//! Our WAL and wal-index formats against the files that stock SQLite writes and reads.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use shoaldb_vfs::page::{PageCount, PageNo, PageSize};
use shoaldb_vfs::shm::{ShmFile, ShmView};
use shoaldb_vfs::wal::checksum::{ByteOrder, Checksum};
use shoaldb_vfs::wal::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameNo, frame_bytes, seal};
use shoaldb_vfs::wal::header::{WAL_HEADER_BYTES, WalHeader};
use shoaldb_vfs::wal::index::{self, INDEX_HEADER_BYTES, IndexHeader, IndexMemory, REGION_BYTES};
use shoaldb_vfs::wal::store::VirtualWal;

struct Stock {
    dir: tempfile::TempDir,
    connection: Connection,
}

impl Stock {
    /// A database in WAL mode that never checkpoints.
    fn new(page_size: u32) -> Stock {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join("db")).unwrap();
        connection.pragma_update(None, "page_size", page_size).unwrap();
        let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal");
        connection
            .execute_batch(
                "PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(a INTEGER PRIMARY KEY, b);",
            )
            .unwrap();
        Stock { dir, connection }
    }

    fn read(&self, suffix: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(format!("db{suffix}"))).unwrap()
    }

    /// Inserts until the WAL has at least so many frames.
    fn fill_to(&self, frames: u32, page_size: u32) {
        let bytes = WAL_HEADER_BYTES as u64 + u64::from(frames) * u64::from(page_size + 24);
        let wal = self.dir.path().join("db-wal");
        while std::fs::metadata(&wal).unwrap().len() < bytes {
            self.connection.execute("INSERT INTO t(b) VALUES(randomblob(300))", []).unwrap();
        }
    }
}

/// Header and frames of a WAL file, every one of them checked and encoded again.
fn parse(wal: &[u8]) -> (WalHeader, Vec<(FrameHeader, Vec<u8>)>) {
    let header = WalHeader::decode(wal).unwrap();
    assert_eq!(header.encode(), wal[..WAL_HEADER_BYTES]);
    assert_eq!(header.order, ByteOrder::NATIVE);
    let mut checksum = header.checksum();
    let mut frames = Vec::new();
    for bytes in wal[WAL_HEADER_BYTES..].chunks_exact(frame_bytes(header.page_size) as usize) {
        let (head, image) = bytes.split_at(FRAME_HEADER_BYTES);
        let frame = FrameHeader::decode(head).unwrap();
        assert_eq!(frame.encode(), head);
        let sealed = seal(frame.page, frame.commit_size, image, header.salts, checksum);
        checksum = frame.verify(image, header.salts, header.order, checksum).unwrap();
        assert_eq!(sealed, (head.try_into().unwrap(), checksum));
        frames.push((frame, image.to_vec()));
    }
    (header, frames)
}

/// A wal-index that holds the bytes of a `-shm` file.
fn load_index(bytes: &[u8]) -> ShmView {
    let mut view = ShmView::new(Arc::new(ShmFile::new().unwrap())).unwrap();
    view.extend_to(bytes.len().div_ceil(REGION_BYTES)).unwrap();
    for (i, word) in bytes.chunks_exact(4).enumerate() {
        view.store_u32(i * 4 / REGION_BYTES, i * 4 % REGION_BYTES, u32::from_ne_bytes(word.try_into().unwrap()));
    }
    view
}

fn page_sizes() -> impl Iterator<Item = u32> {
    [512, 1024, 4096, 65536].into_iter()
}

#[test]
fn every_frame_of_a_stock_wal_is_understood() {
    for page_size in page_sizes() {
        let stock = Stock::new(page_size);
        stock.fill_to(40, page_size);
        let (header, frames) = parse(&stock.read("-wal"));
        assert_eq!(header.page_size.bytes(), page_size);
        assert!(frames.len() >= 40);
        assert!(frames.last().unwrap().0.commit_size.is_some());
    }
}

#[test]
fn the_wal_index_is_the_one_that_stock_sqlite_makes() {
    // Past the first two region boundaries, 4062 and 8158.
    for (page_size, frames) in [(512, 4061), (512, 8300), (65536, 30)] {
        let stock = Stock::new(page_size);
        stock.fill_to(frames, page_size);
        let (header, frames) = parse(&stock.read("-wal"));
        let shm = stock.read("-shm");
        let theirs = load_index(&shm);
        let published = index::read_header(&theirs).unwrap();
        let (last, _) = frames.last().unwrap();
        assert_eq!(
            published,
            IndexHeader {
                change_counter: published.change_counter,
                order: ByteOrder::NATIVE,
                page_size: Some(header.page_size),
                max_frame: frames.len() as u32,
                page_count: last.commit_size.unwrap(),
                frame_checksum: last.checksum,
                salts: header.salts,
            }
        );
        assert_eq!(published.encode(), shm[..INDEX_HEADER_BYTES]);
        assert_eq!(index::backfill(&theirs), 0);
        assert_eq!(index::read_mark(&theirs, 0), Some(0));

        let mut ours = ShmView::new(Arc::new(ShmFile::new().unwrap())).unwrap();
        index::init(&mut ours, &published).unwrap();
        let mut newest = std::collections::BTreeMap::new();
        for (number, (frame, _)) in (1..).zip(&frames) {
            let number = FrameNo::new(number).unwrap();
            index::append(&mut ours, number, frame.page).unwrap();
            newest.insert(frame.page, number);
        }
        for (&page, &frame) in &newest {
            assert_eq!(index::find(&theirs, page, published.max_frame), Some(frame));
        }
        assert_eq!(index::find(&theirs, PageNo::new(u32::MAX).unwrap(), published.max_frame), None);
        // Lists and hash tables, byte for byte; before them are read marks and headers.
        for (i, word) in shm.chunks_exact(4).enumerate().skip(136 / 4) {
            let at = i * 4;
            let ours = ours.load_u32(at / REGION_BYTES, at % REGION_BYTES);
            assert_eq!(ours.to_ne_bytes(), word, "byte {at} of the wal-index");
        }
    }
}

/// Puts one more transaction behind a stock WAL and lets stock SQLite recover it: a changed copy of page 1.
fn stock_reads_our_frame(order: ByteOrder) {
    let stock = Stock::new(4096);
    stock.connection.pragma_update(None, "user_version", 5).unwrap();
    let (header, frames) = parse(&stock.read("-wal"));
    let main = stock.read("");
    let header = WalHeader { order, ..header };

    // The whole WAL anew in the wanted byte order, then our transaction.
    let mut all: Vec<(PageNo, Option<PageCount>, Vec<u8>)> =
        frames.iter().map(|(frame, image)| (frame.page, frame.commit_size, image.clone())).collect();
    let mut first = all.iter().rev().find(|(page, ..)| *page == PageNo::FIRST).unwrap().2.clone();
    first[60..64].copy_from_slice(&77u32.to_be_bytes());
    let size = all.last().unwrap().1;
    all.push((PageNo::FIRST, size, first));

    let mut wal = VirtualWal::new(PageSize::new(4096).unwrap());
    wal.set_header(header.encode());
    let mut checksum = header.checksum();
    for (number, (page, commit_size, image)) in (1..).zip(all) {
        let number = FrameNo::new(number).unwrap();
        let bytes = if order == ByteOrder::NATIVE {
            let (bytes, next) = seal(page, commit_size, &image, header.salts, checksum);
            checksum = next;
            bytes
        } else {
            let (unsummed, _) = seal(page, commit_size, &image, header.salts, Checksum::default());
            checksum = checksum.update(&unsummed[..8], order).update(&image, order);
            FrameHeader { page, commit_size, salts: header.salts, checksum }.encode()
        };
        wal.put_header(number, bytes);
        wal.put_image(number, image.into());
    }
    let mut bytes = vec![0; wal.size() as usize];
    assert_eq!(wal.read(&mut bytes, 0), bytes.len());

    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("db");
    std::fs::write(path, main).unwrap();
    std::fs::write(dir.path().join("db-wal"), bytes).unwrap();
    let connection = Connection::open(path).unwrap();
    let version: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 77, "{order:?}");
}

#[test]
fn stock_sqlite_recovers_our_frames_in_both_byte_orders() {
    stock_reads_our_frame(ByteOrder::Little);
    stock_reads_our_frame(ByteOrder::Big);
}
