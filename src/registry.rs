//! What an anchor of the log carries besides the members: the catalogue, which generation of its files each database
//! has on this node, and what the last snapshot has left to be done.
//!
//! ```text
//! offset size  field (little-endian)
//!      0    4  magic "SHrg"
//!      4    2  format version: 1, 2 if files may be ahead, 3 if the end of a snapshot is still to be told, 4 if something
//!              else about it is
//!      6    2  0
//!      8    4  length of the catalogue, then the catalogue (catalogue.rs)
//!          4  number of generations; then for each, ids ascending: 8 id of the database, 8 generation
//!          8  from version 2 on: the last entry that a database may show already, or 0
//!          2  from version 3 on: the node that the snapshot came from, then 8: the entry that it is of
//!          1  in version 4: what is still to be told, added up: 1 that it was installed, 2 its end, 4 its source of the install;
//!             then 8: the bytes that came for it, or 0, and 8: the view that its source lent, or 0
//!          4  CRC32C of everything before
//! ```
//!
//! Only generations behind the first are listed. A node begins with the first and gets further ones by installing
//! snapshots, so the catalogue is the same on all nodes and the generations are each node's own. An anchor that is a catalogue
//! and nothing else is one of a node that knew no generations: all are the first.
//!
//! A main file is never ahead of the log on the same disk, with one exception: a snapshot may have pages that are later than where
//! its log begins (`snapshot/install.rs`). Until the log has come to where they are, the anchor says how far that is, and so a start
//! can tell such files from a log that lost its end.
//!
//! Three things are told of a snapshot behind the record that makes it count, and a crash may come before each of them: to those
//! who listen on this node, that it was *installed*; to its source, that it was; and that it is *finished*, when the log goes on
//! behind it. Until then every anchor says what is still to be told (INV-42).
//!
//! Deliberately absent: positions, which are in the databases' files.

use std::collections::BTreeMap;

use crate::catalogue::{Catalogue, CatalogueError, DatabaseId};
use crate::fields::{Damaged, Reader, put_checksum, put_count, verified};
use crate::types::{LogIndex, NodeId};

const MAGIC: [u8; 4] = *b"SHrg";
/// What is written is of the oldest version that can say it, so that an older program reads it.
const PLAIN: u16 = 1;
const WITH_REACH: u16 = 2;
const WITH_FINISHING: u16 = 3;
const WITH_MORE: u16 = 4;
const TELL_INSTALL: u8 = 1;
const TELL_END: u8 = 2;
const TELL_SOURCE: u8 = 4;
const GENERATION_BYTES: usize = 16;

/// The generation of a database's files that has seen no snapshot.
pub const FIRST_GENERATION: u64 = 1;

/// In the place of a generation: there are no files. The snapshot that this log begins with lacks the database, since an entry
/// that the log is still to get drops it.
pub const GONE: u64 = 0;

/// See the module's text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registry {
    /// Databases and members.
    pub catalogue: Catalogue,
    /// Generations that are not the first.
    pub generations: BTreeMap<DatabaseId, u64>,
    /// What the last snapshot has left to be done.
    pub aftermath: Aftermath,
}

/// What a snapshot that was installed leaves to be done.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Aftermath {
    /// The last entry that a database may show although the log has not got there; 0 if there is none.
    pub reach: LogIndex,
    /// Of which something is still to be told.
    pub finishing: Option<Finishing>,
}

/// A snapshot that was installed, and of which something is still to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finishing {
    /// Where it came from.
    pub source: NodeId,
    /// The entry that it is of.
    pub index: LogIndex,
    /// What.
    pub left: Left,
}

/// What is still to be told of a snapshot that was installed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Left {
    /// That it was installed, for which so many bytes came.
    pub install: Option<u64>,
    /// That it is over.
    pub end: bool,
    /// That it was installed, to its source, which lent this view.
    pub source: Option<u64>,
}

impl Left {
    /// Only its end.
    pub const END: Left = Left { install: None, end: true, source: None };
}

impl Finishing {
    /// The same, of which this is left; `None` if nothing is.
    pub fn with(self, left: Left) -> Option<Finishing> {
        (left != Left::default()).then_some(Finishing { left, ..self })
    }
}

/// Why bytes are no registry.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegistryError {
    /// A later version wrote them.
    #[error("registry of version {0}; this program reads version {WITH_MORE}")]
    UnknownVersion(u16),
    /// They are not what was written.
    #[error("registry: {0}")]
    Damaged(#[from] Damaged),
    /// The catalogue in them is not.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

/// The bytes of a registry.
pub fn encode(catalogue: &Catalogue, generations: &BTreeMap<DatabaseId, u64>, aftermath: Aftermath) -> Vec<u8> {
    let catalogue = catalogue.encode();
    let listed: Vec<_> = generations.iter().filter(|(_, generation)| **generation != FIRST_GENERATION).collect();
    let mut out = Vec::with_capacity(24 + catalogue.len() + listed.len() * GENERATION_BYTES);
    out.extend_from_slice(&MAGIC);
    let version = match (aftermath.finishing, aftermath.reach) {
        (Some(Finishing { left: Left::END, .. }), _) => WITH_FINISHING,
        (Some(_), _) => WITH_MORE,
        (None, LogIndex(0)) => PLAIN,
        (None, _) => WITH_REACH,
    };
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    put_count(&mut out, catalogue.len());
    out.extend_from_slice(&catalogue);
    put_count(&mut out, listed.len());
    for (id, generation) in listed {
        out.extend_from_slice(&id.0.to_le_bytes());
        out.extend_from_slice(&generation.to_le_bytes());
    }
    if version >= WITH_REACH {
        out.extend_from_slice(&aftermath.reach.0.to_le_bytes());
    }
    if let Some(Finishing { source, index, left }) = aftermath.finishing {
        out.extend_from_slice(&source.0.to_le_bytes());
        out.extend_from_slice(&index.0.to_le_bytes());
        if version == WITH_MORE {
            let Left { install, end, source } = left;
            let told = |tell: bool, what: u8| if tell { what } else { 0 };
            out.push(told(install.is_some(), TELL_INSTALL) | told(end, TELL_END) | told(source.is_some(), TELL_SOURCE));
            out.extend_from_slice(&install.unwrap_or(0).to_le_bytes());
            out.extend_from_slice(&source.unwrap_or(0).to_le_bytes());
        }
    }
    put_checksum(&mut out);
    out
}

/// Reads what [`encode`] wrote, or a catalogue alone.
pub fn decode(bytes: &[u8]) -> Result<Registry, RegistryError> {
    let mut fields = Reader::new(bytes);
    if fields.bytes(4, "magic")? != MAGIC {
        let catalogue = Catalogue::decode(bytes)?;
        return Ok(Registry { catalogue, generations: BTreeMap::new(), aftermath: Aftermath::default() });
    }
    let version = fields.u16("version")?;
    if !(PLAIN..=WITH_MORE).contains(&version) {
        return Err(RegistryError::UnknownVersion(version));
    }
    let mut fields = Reader::new(verified(bytes)?);
    fields.bytes(8, "head")?;
    let len = fields.count(1, "length of the catalogue")?;
    let catalogue = Catalogue::decode(fields.bytes(len, "catalogue")?)?;
    let mut generations = BTreeMap::new();
    for _ in 0..fields.count(GENERATION_BYTES, "number of generations")? {
        let (id, generation) = (DatabaseId(fields.u64("id")?), fields.u64("generation")?);
        if generations.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err(fields.damaged(format!("generation of {id}: ids must ascend")).into());
        }
        generations.insert(id, generation);
    }
    let reach = LogIndex(if version >= WITH_REACH { fields.u64("reach")? } else { 0 });
    let finishing = if version >= WITH_FINISHING {
        let (source, index) = (NodeId(fields.u16("source")?), LogIndex(fields.u64("index")?));
        let left = if version == WITH_MORE { left(&mut fields)? } else { Left::END };
        Some(Finishing { source, index, left })
    } else {
        None
    };
    fields.end()?;
    Ok(Registry { catalogue, generations, aftermath: Aftermath { reach, finishing } })
}

fn left(fields: &mut Reader<'_>) -> Result<Left, Damaged> {
    let what = fields.u8("what is to be told")?;
    let (bytes, view) = (fields.u64("bytes")?, fields.u64("view")?);
    let install = (what & TELL_INSTALL != 0).then_some(bytes);
    let source = (what & TELL_SOURCE != 0).then_some(view);
    let left = Left { install, end: what & TELL_END != 0, source };
    let known = what & !(TELL_INSTALL | TELL_END | TELL_SOURCE) == 0;
    if !known || left == Left::default() || (install.unwrap_or(0), source.unwrap_or(0)) != (bytes, view) {
        return Err(fields.damaged(format!("to be told {what}, {bytes} bytes, view {view}")));
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ClusterId;

    fn registry() -> Registry {
        let generations = [(DatabaseId(3), 2), (DatabaseId(9), 7)].into_iter().collect();
        Registry { catalogue: Catalogue::new(ClusterId(0x0102_0304)), generations, aftermath: Aftermath::default() }
    }

    #[test]
    fn what_was_encoded_is_decoded_and_the_first_generation_goes_without_saying() {
        let wanted = registry();
        let mut generations = wanted.generations.clone();
        generations.insert(DatabaseId(5), FIRST_GENERATION);
        for reach in [0, 1, u64::MAX].map(LogIndex) {
            let it = Finishing { source: NodeId(2), index: LogIndex(9), left: Left::default() };
            let (installs, ends, sources) = ([None, Some(0), Some(u64::MAX)], [false, true], [None, Some(0), Some(7)]);
            let all = installs.into_iter().flat_map(|install| {
                let of = move |end| sources.map(|source| it.with(Left { install, end, source }));
                ends.into_iter().flat_map(of)
            });
            for finishing in all {
                let wanted = Registry { aftermath: Aftermath { reach, finishing }, ..wanted.clone() };
                assert_eq!(decode(&encode(&wanted.catalogue, &generations, wanted.aftermath)), Ok(wanted));
            }
        }
    }

    #[test]
    fn version_1_looks_like_this() {
        let wanted = registry();
        let bytes = encode(&wanted.catalogue, &wanted.generations, wanted.aftermath);
        let catalogue = wanted.catalogue.encode();
        assert_eq!(bytes[..8], *b"SHrg\x01\0\0\0");
        assert_eq!(bytes[8..12], (catalogue.len() as u32).to_le_bytes());
        assert_eq!(bytes[12..12 + catalogue.len()], catalogue);
        let mut rest = vec![2, 0, 0, 0];
        for number in [3u64, 2, 9, 7] {
            rest.extend_from_slice(&number.to_le_bytes());
        }
        assert_eq!(bytes[12 + catalogue.len()..bytes.len() - 4], rest);
        // And version 2 besides how far files may be ahead.
        let reach = Aftermath { reach: LogIndex(0x0506), finishing: None };
        let ahead = encode(&wanted.catalogue, &wanted.generations, reach);
        assert_eq!(ahead[4..8], [2, 0, 0, 0]);
        assert_eq!(ahead[8..ahead.len() - 12], bytes[8..bytes.len() - 4]);
        assert_eq!(ahead[ahead.len() - 12..ahead.len() - 4], 0x0506u64.to_le_bytes());
        // And version 3 whose end is to be told.
        let source = NodeId(0x0708);
        let finishing = Some(Finishing { source, index: LogIndex(0x090a), left: Left::END });
        let telling = encode(&wanted.catalogue, &wanted.generations, Aftermath { finishing, ..reach });
        assert_eq!(telling[4..8], [3, 0, 0, 0]);
        assert_eq!(telling[8..telling.len() - 14], ahead[8..ahead.len() - 4]);
        assert_eq!(telling[telling.len() - 14..telling.len() - 4], [8, 7, 10, 9, 0, 0, 0, 0, 0, 0]);
        // And version 4 what else is.
        let left = Left { install: Some(0x0b0c), end: false, source: Some(0x0d0e) };
        let finishing = Some(Finishing { source, index: LogIndex(0x090a), left });
        let more = encode(&wanted.catalogue, &wanted.generations, Aftermath { finishing, ..reach });
        assert_eq!(more[4..8], [4, 0, 0, 0]);
        assert_eq!(more[8..more.len() - 21], telling[8..telling.len() - 4]);
        let rest = [&[5][..], &0x0b0cu64.to_le_bytes(), &0x0d0eu64.to_le_bytes()].concat();
        assert_eq!(more[more.len() - 21..more.len() - 4], rest);
        // Nothing left, or something that no flag stands for, is not written and not read.
        for byte in [0, 8, 1, 4, 2] {
            let mut other = more[..more.len() - 4].to_vec();
            let start = other.len() - 17;
            other[start] = byte;
            put_checksum(&mut other);
            assert!(decode(&other).is_err(), "{byte}");
        }
        // What was there before it: a catalogue alone.
        let alone = decode(&catalogue).unwrap();
        assert_eq!((alone.catalogue, alone.generations.len()), (wanted.catalogue, 0));
    }

    #[test]
    fn a_flipped_bit_or_a_missing_byte_is_an_error_and_never_a_panic() {
        let wanted = registry();
        let bytes = encode(&wanted.catalogue, &wanted.generations, wanted.aftermath);
        for at in 0..bytes.len() {
            assert!(decode(&bytes[..at]).is_err(), "{at} bytes");
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(decode(&flipped).is_err(), "byte {at}, bit {bit}");
            }
        }
        let mut later = bytes;
        later[4] = 5;
        assert_eq!(decode(&later), Err(RegistryError::UnknownVersion(5)));
    }
}
