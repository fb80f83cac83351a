//! What `format.rs` promises: the same value back, version 1 as it was, and no bytes do harm.

use proptest::prelude::*;

use super::*;

fn genesis() -> Genesis {
    let member = |node, address: &str, incarnation: Option<u64>| GenesisMember {
        node: NodeId(node),
        address: address.to_string(),
        incarnation: incarnation.map(Incarnation),
    };
    Genesis {
        cluster: ClusterId(0xc0ffee),
        founder: NodeId(1),
        members: vec![member(1, "a:1", Some(0x11)), member(3, "b:2", None)],
    }
}

fn identities() -> Vec<Identity> {
    let new = Identity::new(NodeId(1), Incarnation(0x11));
    let promised = Some(Promise { founder: NodeId(2), incarnation: Incarnation(0x22) });
    vec![
        new.clone(),
        Identity { promised, ..new.clone() },
        Identity { promised, belongs: Belongs::Founded(genesis()), ..new.clone() },
        Identity { belongs: Belongs::Joined(genesis()), ..new },
    ]
}

fn messages() -> Vec<FoundMessage> {
    let to = Promise { founder: NodeId(2), incarnation: Incarnation(3) };
    vec![
        FoundMessage::Ask { list: 1, incarnation: Incarnation(2) },
        FoundMessage::Promise { list: 1, incarnation: Incarnation(2), to },
        FoundMessage::Refuse(RefuseReason::Promised(NodeId(4))),
        FoundMessage::Refuse(RefuseReason::OtherList),
        FoundMessage::Refuse(RefuseReason::Joined(ClusterId(5))),
        FoundMessage::Release { incarnation: Incarnation(2) },
        FoundMessage::Genesis { list: 1, genesis: genesis() },
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn everything_comes_back_the_same() {
    for identity in identities() {
        assert_eq!(Identity::decode(&identity.encode()), Ok(identity));
    }
    for message in messages() {
        assert_eq!(FoundMessage::decode(&message.encode()), Ok(message));
    }
}

#[test]
fn version_1_stays_readable() {
    let genesis = "eeffc00000000000 0100 02000000 \
                   0100 01 1100000000000000 0300 613a31 \
                   0300 00 0000000000000000 0300 623a32";
    let identity = format!("53486964 0100 0100 1100000000000000 0200 2200000000000000 01 {genesis}");
    let encoded = identities()[2].encode();
    let (body, crc) = encoded.split_last_chunk::<4>().unwrap();
    assert_eq!(hex(body), identity.replace(' ', ""));
    assert_eq!(*crc, crc32c::crc32c(body).to_le_bytes());
    let golden = [
        "01 0100000000000000 0200000000000000",
        "02 0100000000000000 0200000000000000 0200 0300000000000000",
        "03 01 0400 0000000000000000",
        "03 02 0000 0000000000000000",
        "03 03 0000 0500000000000000",
        "04 0200000000000000",
        &format!("05 0100000000000000 {genesis}"),
    ];
    for (message, golden) in messages().iter().zip(golden) {
        assert_eq!(hex(&message.encode()), golden.replace(' ', ""));
    }
}

#[test]
fn the_longest_genesis_fits_its_frame() {
    let member = |node| GenesisMember { node: NodeId(node), address: "x".repeat(MAX_ADDRESS), incarnation: None };
    let genesis = |nodes: u16| Genesis { members: (1..=nodes).map(member).collect(), ..genesis() };
    for (nodes, ok) in [(254, true), (255, true), (256, false)] {
        let bytes = FoundMessage::Genesis { list: 1, genesis: genesis(nodes) }.encode();
        assert_eq!(FoundMessage::decode(&bytes).is_ok(), ok, "{nodes}");
        assert!(bytes.len() <= crate::net::frame::FrameKind::Found.limit());
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_of_an_identity_is_found() {
    for identity in identities() {
        let bytes = identity.encode();
        for len in 0..bytes.len() {
            assert!(Identity::decode(&bytes[..len]).is_err(), "{len}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Identity::decode(&bytes).is_err(), "bit {bit}");
        }
    }
}

proptest! {
    /// Shows INV-15.
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = FoundMessage::decode(&bytes);
        let _ = Identity::decode(&bytes);
    }

    #[test]
    fn random_changes_never_panic(
        which in 0usize..7,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = messages()[which].encode();
        for (at, value) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        let _ = FoundMessage::decode(&bytes);
        // Behind a valid checksum too.
        let mut bytes = identities()[which % 4].encode();
        let end = bytes.len() - 4;
        for (at, value) in &changes {
            bytes[at.index(end)] = *value;
        }
        let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&crc);
        if let Ok(identity) = Identity::decode(&bytes) {
            let _ = identity.encode();
        }
    }
}
