use super::*;
use crate::catalogue::{AutoVacuum, DatabaseName};
use crate::types::{ClusterId, Incarnation};

fn manifest() -> Manifest {
    let mut catalogue = Catalogue::new(ClusterId(7));
    catalogue.put_member(NodeId(1), Some(Incarnation(11)), "127.0.0.1:4001").unwrap();
    let mut databases = Vec::new();
    for (id, name, page_size) in [(5, "app", 4096), (9, "other", 512)] {
        let page_size = PageSize::new(page_size).unwrap();
        catalogue.apply_create(LogIndex(id), DatabaseName::new(name).unwrap(), page_size, AutoVacuum::None).unwrap();
        let at = Checkpointed { position: Position(id + 1), size: PageCount(130), checksum: PageHash(3 << 90) };
        databases.push(Listed { id: DatabaseId(id), page_size, at });
    }
    let membership = Membership { voters: vec![NodeId(1)], learners: vec![NodeId(4)], ..Membership::default() };
    let at = EntryId { index: LogIndex(20), term: Term(3) };
    Manifest { at, reach: at.index, membership, catalogue, databases }
}

fn asks() -> Vec<Ask> {
    let (view, database) = (ViewId(u64::MAX - 1), DatabaseId(5));
    let page = |number| PageNo::new(number).unwrap();
    let objects = [
        Object::Manifest,
        Object::Ranges { database, first: 3, count: 4 },
        Object::Hashes { database, ranges: vec![0, 7, u32::MAX] },
        Object::Pages { database, runs: vec![(page(1), 64), (page(u32::MAX), 1)] },
    ];
    let mut asks = vec![
        Ask::Offer { term: Term(9), start: LogIndex(70) },
        Ask::Open { have: LogIndex(3), shown: LogIndex(3) },
        Ask::Open { have: LogIndex(3), shown: LogIndex(4) },
        Ask::Progress { view, phase: Phase::Verify, done: 5, total: u64::MAX },
        Ask::Done { view, outcome: Outcome::GivenUp, index: LogIndex(8) },
        Ask::OpenOne { database, beyond: LogIndex(12) },
        Ask::Sum { database, at: Position(13) },
    ];
    asks.extend(objects.map(|object| Ask::Fetch { view, object }));
    asks
}

#[test]
fn what_is_written_is_read_and_nothing_shorter_is() {
    for ask in asks() {
        let bytes = ask.encode();
        assert_eq!(Ask::decode(&bytes).unwrap(), ask);
        for len in 0..bytes.len() {
            assert!(Ask::decode(&bytes[..len]).is_err(), "{ask:?} cut to {len}");
        }
        assert!(Ask::decode(&[&bytes[..], &[0]].concat()).is_err(), "{ask:?} and one byte more");
    }
    let at = EntryId { index: LogIndex(20), term: Term(3) };
    let answers = [
        Answer::Yes,
        Answer::Opened { view: ViewId(1), at },
        Answer::Object { bytes: vec![1, 2, 3] },
        Answer::Object { bytes: Vec::new() },
        Answer::Busy { millis: 20 },
        Answer::NotNeeded,
        Answer::Gone,
        Answer::No("because".to_string()),
        Answer::OpenedOne { view: ViewId(2), at, listed: manifest().databases[0].clone() },
        Answer::Sum { position: Position(5), checksum: PageHash(7 << 99) },
        Answer::OnItsWay { index: LogIndex(u64::MAX - 2) },
    ];
    for answer in answers {
        let bytes = answer.clone().encode();
        assert_eq!(Answer::decode(bytes.clone()).unwrap(), answer);
        for len in 0..bytes.len() {
            assert!(Answer::decode(bytes[..len].to_vec()).is_err(), "{answer:?} cut to {len}");
        }
    }
    let manifest = manifest();
    let bytes = manifest.encode();
    assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
    for len in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..len]).is_err(), "cut to {len}");
    }
}

/// What other nodes understand: a change of these bytes is a change of the protocol.
#[test]
fn version_1_looks_like_this() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let u32s = |values: &[u32]| values.iter().map(|value| hex(&value.to_le_bytes())).collect::<String>();
    let u64s = |values: &[u64]| values.iter().map(|value| hex(&value.to_le_bytes())).collect::<String>();
    let view = u64::MAX - 1;
    let golden = [
        "b50101".to_string() + &u64s(&[9, 70]),
        "b50102".to_string() + &u64s(&[3]),
        "b50108".to_string() + &u64s(&[3, 4]),
        "b50104".to_string() + &u64s(&[view]) + "02" + &u64s(&[5, u64::MAX]),
        "b50105".to_string() + &u64s(&[view]) + "02" + &u64s(&[8]),
        "b50106".to_string() + &u64s(&[5, 12]),
        "b50107".to_string() + &u64s(&[5, 13]),
        "b50103".to_string() + &u64s(&[view]) + "00",
        "b50103".to_string() + &u64s(&[view]) + "01" + &u64s(&[5]) + &u32s(&[3, 4]),
        "b50103".to_string() + &u64s(&[view]) + "02" + &u64s(&[5]) + &u32s(&[3, 0, 7, u32::MAX]),
        "b50103".to_string() + &u64s(&[view]) + "03" + &u64s(&[5]) + &u32s(&[2, 1, 64, u32::MAX, 1]),
    ];
    for (ask, golden) in asks().iter().zip(golden) {
        assert_eq!(hex(&ask.encode()), golden, "{ask:?}");
    }
    let listed = u64s(&[5]) + &u32s(&[4096, 130]) + &u64s(&[6]) + &u64s(&[0, 3 << 26]);
    let manifest = manifest();
    let one = manifest.databases[0].clone();
    let (at, view) = (manifest.at, ViewId(2));
    let answers = [
        (Answer::Yes, "00".to_string()),
        (Answer::Opened { view, at }, "01".to_string() + &u64s(&[2, 20, 3])),
        (Answer::Object { bytes: vec![1, 2, 3] }, "023b73ae32769bceebd4b8c4cb88eb77ac010203".to_string()),
        (Answer::Busy { millis: 20 }, "0314000000".to_string()),
        (Answer::NotNeeded, "04".to_string()),
        (Answer::Gone, "05".to_string()),
        (Answer::No("why".to_string()), "060300776879".to_string()),
        (
            Answer::OpenedOne { view, at, listed: one },
            "0791f0984aa1e7bca1091eb05889f96fc0".to_string() + &u64s(&[2, 20, 3]) + &listed,
        ),
        (
            Answer::Sum { position: Position(5), checksum: PageHash(7) },
            "081deae545d125b124bfc02e3336f58170".to_string() + &u64s(&[5, 7, 0]),
        ),
        (Answer::OnItsWay { index: LogIndex(5) }, "09346bbe8fb2c1b5648bb3d0ab6175cebe".to_string() + &u64s(&[5])),
    ];
    for (answer, golden) in answers {
        assert_eq!(hex(&answer.clone().encode()), golden, "{answer:?}");
    }
    let catalogue = manifest.catalogue.encode();
    let golden = "02".to_string()
        + &u64s(&[20, 3, 20])
        + "0100000001000100000004000000000000000000"
        + "00"
        + &u32s(&[catalogue.len() as u32])
        + &hex(&catalogue)
        + &u32s(&[2])
        + &listed
        + &u64s(&[9])
        + &u32s(&[512, 130])
        + &u64s(&[10, 0, 3 << 26]);
    assert_eq!(hex(&manifest.encode()), golden);
}

/// Shows INV-32.
#[test]
fn an_object_with_one_bit_changed_is_no_object() {
    let (at, listed) = (EntryId { index: LogIndex(20), term: Term(3) }, manifest().databases[0].clone());
    for answer in [
        Answer::Object { bytes: b"a page or so".to_vec() },
        Answer::OpenedOne { view: ViewId(2), at, listed },
        Answer::Sum { position: Position(5), checksum: PageHash(7) },
        Answer::OnItsWay { index: LogIndex(5) },
    ] {
        let bytes = answer.clone().encode();
        for at in 1..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(Answer::decode(damaged.clone()).is_err(), "{answer:?}: byte {at}, bit {bit}");
            }
        }
    }
}

#[test]
fn a_manifest_whose_databases_are_not_those_of_its_catalogue_is_none() {
    type Change = fn(&mut Manifest);
    let changes: [(&str, Change); 7] = [
        ("one less", |m| m.databases.truncate(1)),
        ("another id", |m| m.databases[0].id = DatabaseId(6)),
        ("another page size", |m| m.databases[0].page_size = PageSize::new(8192).unwrap()),
        ("a position behind the entry", |m| m.databases[1].at.position = Position(21)),
        ("no pages", |m| m.databases[1].at.size = PageCount(0)),
        ("pages of before the log", |m| m.reach = LogIndex(19)),
        ("one that is not in the catalogue, of pages ahead of the log", |m| {
            m.reach = LogIndex(30);
            m.databases[1].id = DatabaseId(10);
        }),
    ];
    for (what, change) in changes {
        let mut manifest = manifest();
        change(&mut manifest);
        assert!(Manifest::decode(&manifest.encode()).is_err(), "{what}");
    }
}

/// Between the beginning of the log and the pages databases may have been dropped, and others written.
#[test]
fn a_manifest_whose_pages_are_ahead_of_its_log_may_lack_what_is_dropped_by_then() {
    let mut ahead = Manifest { reach: LogIndex(30), ..manifest() };
    ahead.databases[1].at.position = Position(30);
    assert_eq!(Manifest::decode(&ahead.encode()).unwrap(), ahead);
    assert!(ahead.gone().is_empty());
    ahead.databases.remove(0);
    assert_eq!(Manifest::decode(&ahead.encode()).unwrap(), ahead);
    assert_eq!(ahead.gone(), [DatabaseId(5)]);
    ahead.databases[0].at.position = Position(31);
    assert!(Manifest::decode(&ahead.encode()).is_err());
}

#[test]
fn ranges_cover_every_page_once() {
    for size in [1, 63, 64, 65, 128, 1000, u32::MAX] {
        let size = PageCount(size);
        let ranges = ranges_of(size);
        for range in (0..ranges.min(20)).chain(ranges.saturating_sub(2)..ranges) {
            let (first, count) = pages_of(range, size).unwrap();
            assert_eq!(u64::from(first.get()), u64::from(range) * 64 + 1);
            let end = u64::from(first.get()) + u64::from(count) - 1;
            assert_eq!(end, u64::from(size.0).min(u64::from(range) * 64 + 64), "{size:?} {range}");
        }
        assert_eq!(pages_of(ranges, size), None);
    }
}

#[test]
fn what_begins_an_ask_begins_no_request_of_administration() {
    assert!(serde_json::from_slice::<serde_json::Value>(&asks()[0].encode()).is_err());
    assert_ne!(MAGIC, b'{');
}
