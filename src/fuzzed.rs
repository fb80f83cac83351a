//! Decoders that nobody outside needs, for the fuzz targets: bytes in, the same bytes again or nothing.
//!
//! A target decodes, encodes, and does it once more: the second time must give what the first one gave. What a decoder
//! accepts in several forms (JSON) has one form after the first round.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::admin;
use crate::history::History;
use crate::members::Context;
use crate::session::words;
use crate::snapshot::object;

/// Bytes that an admin frame has at most here.
const FRAME_BYTES: usize = 1 << 16;

/// Which decoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// What one node asks of another about snapshots.
    SnapshotAsk,
    /// The answer to that.
    SnapshotAnswer,
    /// The first object of a snapshot.
    Manifest,
    /// The hashes in an object.
    Numbers,
    /// Receipts, in front of a registry.
    History,
    /// What goes with a membership change.
    Context,
    /// A frame of the admin socket.
    AdminFrame,
    /// What is asked of a node.
    AdminRequest,
    /// The answer to that.
    AdminReply,
    /// What the caller of a SQL session says.
    SessionAsk,
    /// What the node says to it.
    SessionTell,
}

impl Kind {
    /// All of them; a target's first byte chooses.
    pub const ALL: [Kind; 11] = [
        Kind::SnapshotAsk,
        Kind::SnapshotAnswer,
        Kind::Manifest,
        Kind::Numbers,
        Kind::History,
        Kind::Context,
        Kind::AdminFrame,
        Kind::AdminRequest,
        Kind::AdminReply,
        Kind::SessionAsk,
        Kind::SessionTell,
    ];
}

fn json<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<Vec<u8>> {
    serde_json::to_vec(&serde_json::from_slice::<T>(bytes).ok()?).ok()
}

/// What was decoded, encoded. `None`: it is refused.
pub fn again(kind: Kind, bytes: &[u8]) -> Option<Vec<u8>> {
    match kind {
        Kind::SnapshotAsk => Some(object::Ask::decode(bytes).ok()?.encode()),
        Kind::SnapshotAnswer => Some(object::Answer::decode(bytes.to_vec()).ok()?.encode()),
        Kind::Manifest => Some(object::Manifest::decode(bytes).ok()?.encode()),
        Kind::Numbers => Some(object::numbers(bytes)?.iter().flat_map(|number| number.to_le_bytes()).collect()),
        Kind::History => {
            let (history, rest) = History::split(bytes).ok()?;
            Some(history.map_or(rest.to_vec(), |history| history.encode(rest)))
        }
        Kind::Context => Some(Context::decode(bytes).ok()?.encode().to_vec()),
        Kind::AdminFrame => {
            let (mut from, mut out) = (bytes, Vec::new());
            admin::frame::write(&mut out, &admin::frame::read(&mut from, FRAME_BYTES).ok()?).ok()?;
            Some(out)
        }
        Kind::AdminRequest => json::<admin::Request>(bytes),
        Kind::AdminReply => json::<admin::Reply>(bytes),
        Kind::SessionAsk => json::<words::Ask>(bytes),
        Kind::SessionTell => json::<words::Tell>(bytes),
    }
}
