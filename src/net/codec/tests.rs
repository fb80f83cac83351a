//! What `codec.rs` promises: the same message back, protocol 1 as it was, and no bytes do harm.

use proptest::prelude::*;

use super::*;

fn blank(kind: MessageKind) -> Message {
    Message {
        term: Term(5),
        log_term: Term(4),
        index: LogIndex(10),
        commit: LogIndex(9),
        commit_term: Term(4),
        ..Message::blank(kind, NodeId(1), NodeId(2))
    }
}

fn entry(index: u64, term: u64, class: EntryClass, data: &'static [u8]) -> LogEntry {
    LogEntry { id: EntryId { index: LogIndex(index), term: Term(term) }, class, data: Bytes::from_static(data) }
}

fn append() -> Message {
    Message {
        entries: vec![entry(11, 4, EntryClass::Normal, b"abc"), entry(12, 5, EntryClass::Membership, b"")],
        ..blank(MessageKind::Append)
    }
}

fn snapshot() -> Message {
    let membership = Membership {
        voters: vec![NodeId(1), NodeId(2)],
        learners: vec![NodeId(9)],
        voters_outgoing: vec![NodeId(3)],
        learners_next: vec![],
        auto_leave: true,
    };
    let id = EntryId { index: LogIndex(7), term: Term(3) };
    let data = Bytes::from_static(b"ticket");
    Message { snapshot: Some(SnapshotTicket { id, membership, data }), ..blank(MessageKind::Snapshot) }
}

fn samples() -> Vec<Message> {
    let mut all: Vec<Message> =
        (1..=13).filter_map(kind_of).filter(|kind| *kind != MessageKind::Snapshot).map(blank).collect();
    all.push(append());
    all.push(snapshot());
    all.push(Message {
        reject: true,
        reject_hint: LogIndex(8),
        request_snapshot: LogIndex(6),
        priority: -3,
        context: Bytes::from_static(b"ctx"),
        ..blank(MessageKind::AppendReply)
    });
    all.push(Message { entries: vec![entry(0, 0, EntryClass::Normal, b"read")], ..blank(MessageKind::ReadIndex) });
    all
}

fn bytes_of(message: &Message) -> Bytes {
    let mut out = Vec::new();
    encode(message, &mut out);
    assert!(out.len() <= size(message), "{} > {}", out.len(), size(message));
    Bytes::from(out)
}

#[test]
fn every_kind_comes_back_the_same() {
    let samples = samples();
    for message in &samples {
        assert_eq!(decode(&bytes_of(message)).as_ref(), Ok(message));
    }
    let kinds: std::collections::BTreeSet<u8> = samples.iter().map(|m| kind_number(m.kind)).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), (1..=13).collect::<Vec<_>>());
}

#[test]
fn protocol_1_messages_look_like_this() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let u64s = |values: &[u64]| values.iter().map(|value| hex(&value.to_le_bytes())).collect::<String>();
    let fields = u64s(&[5, 4, 10, 9, 4, 0, 0, 0]);
    let golden = "010001000200".to_string()
        + &fields
        + "00000000"
        + "02000000"
        + &u64s(&[4, 11])
        + "00"
        + "03000000616263"
        + &u64s(&[5, 12])
        + "01"
        + "00000000";
    assert_eq!(hex(&bytes_of(&append())), golden);
    let golden = "090201000200".to_string()
        + &fields
        + "00000000"
        + "00000000"
        + &u64s(&[3, 7])
        + "0200000001000200"
        + "010000000900"
        + "010000000300"
        + "00000000"
        + "01"
        + "060000007469636b6574";
    assert_eq!(hex(&bytes_of(&snapshot())), golden);
}

#[test]
fn entry_data_is_not_copied() {
    let bytes = bytes_of(&append());
    let message = decode(&bytes).unwrap();
    assert!(bytes.as_ptr_range().contains(&message.entries[0].data.as_ptr()));
}

#[test]
fn what_would_break_the_receivers_raft_is_refused() {
    let refused = |message: Message, word: &str| {
        let error = decode(&bytes_of(&message)).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    let with = |entries: Vec<LogEntry>| Message { entries, ..blank(MessageKind::Append) };
    for (index, ok) in [(10, false), (11, true), (12, false)] {
        let message = with(vec![entry(index, 5, EntryClass::Normal, b"")]);
        assert_eq!(decode(&bytes_of(&message)).is_ok(), ok, "index {index}");
    }
    for (term, ok) in [(3, false), (4, true), (5, true), (6, false)] {
        let message = with(vec![entry(11, term, EntryClass::Normal, b"")]);
        assert_eq!(decode(&bytes_of(&message)).is_ok(), ok, "term {term} between 4 and 5");
    }
    refused(Message { entries: append().entries, ..blank(MessageKind::Vote) }, "entries");
    refused(Message { snapshot: snapshot().snapshot, ..blank(MessageKind::Vote) }, "ticket");
    refused(blank(MessageKind::Snapshot), "ticket");
    refused(Message { from: NodeId(0), ..append() }, "from is 0");
    for (index, ok) in [(MAX_INDEX - 1, true), (MAX_INDEX, true), (MAX_INDEX + 1, false)] {
        let message = Message { index: LogIndex(index), ..blank(MessageKind::Vote) };
        assert_eq!(decode(&bytes_of(&message)).is_ok(), ok);
    }
    let mut message = snapshot();
    if let Some(ticket) = &mut message.snapshot {
        ticket.membership.voters.reverse();
    }
    refused(message, "ascend");
}

#[test]
fn every_truncation_is_found() {
    for message in samples() {
        let bytes = bytes_of(&message);
        for len in 0..bytes.len() {
            assert!(decode(&bytes.slice(..len)).is_err(), "{:?} cut to {len}", message.kind);
        }
    }
}

#[test]
fn a_flipped_bit_is_an_error_or_another_message() {
    for message in samples() {
        let bytes = bytes_of(&message);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let changed = Bytes::from(changed);
            if let Ok(other) = decode(&changed) {
                // One message, one form: what is accepted is written back the same.
                assert_eq!(bytes_of(&other), changed);
            }
        }
    }
}

proptest! {
    /// Shows INV-15.
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&Bytes::from(bytes));
    }

    #[test]
    fn random_changes_never_panic(
        which in 0usize..16,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = bytes_of(&samples()[which]).to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = decode(&Bytes::from(bytes));
    }
}
