//! The replicated catalogue: which cluster this is, which databases it has, who its members are.
//!
//! Every node derives the same catalogue from the same entries, so each decision here depends on the catalogue and the
//! entry alone, and a refusal is as deterministic as a success. A database is known by the index of the entry that
//! created it: dropped and created again under the same name it is another database, with other files.
//!
//! The catalogue travels as opaque bytes in the heads of log segments and in snapshots:
//!
//! ```text
//! offset size  field (little-endian)
//!      0    4  magic "SHct"
//!      4    2  format version, 1
//!      6    2  0
//!      8    8  cluster id
//!     16    4  number of databases; then for each, ids ascending:
//!              8 id, 4 page size, 1 auto_vacuum (0 none, 1 full, 2 incremental), 2 length of name, name
//!          4  number of members; then for each, ids ascending:
//!              2 id, 1 flags (1 bound, 2 leaving, 4 rises), 8 incarnation (0 if not bound), 2 length of address,
//!              address
//!          4  number of removed members; then for each, ids ascending: 2 id
//!          4  CRC32C of everything before
//! ```
//!
//! A member's id is bound to the *incarnation* of one data directory. A listed node that did not answer when the cluster
//! was founded is not bound yet; until an entry binds it, its votes and acknowledgements do not count. An id that was
//! removed never comes back: a wiped disk under an old id could vote a second time in a term of its former self. A member
//! is *leaving* while a joint configuration takes it out, and *rises* if it becomes a voter by itself (`members.rs`).
//!
//! Deliberately absent: positions and checksums of databases (each node's own), and voters (Raft's own configuration).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use shoaldb_vfs::page::PageSize;

use crate::fields::{Damaged, Reader, put_checksum, put_count, put_text, verified};
use crate::types::{ClusterId, Incarnation, LogIndex, NodeId};

/// Longest name of a database, in bytes.
pub const MAX_NAME: usize = 128;
/// Longest address of a member, in bytes: a host name has at most 253, then a colon and a port.
pub const MAX_ADDRESS: usize = 260;
/// Most databases of a cluster. Each segment of the log carries the catalogue in its head: this keeps it under 1 MiB.
pub const MAX_DATABASES: usize = 4096;

const MAGIC: [u8; 4] = *b"SHct";
const VERSION: u16 = 1;

/// Id of a database: the index of the log entry that created it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct DatabaseId(pub u64);

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name of a database: 1 to 128 of `A-Z a-z 0-9 _ . -`, not starting with a dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DatabaseName(String);

impl DatabaseName {
    /// Checks a name.
    pub fn new(name: &str) -> Result<DatabaseName, BadName> {
        let bad = |why: BadNameReason| Err(BadName { name: name.chars().take(MAX_NAME).collect(), why });
        if name.is_empty() {
            return bad(BadNameReason::Empty);
        }
        if name.contains(['/', '\\']) {
            return bad(BadNameReason::Path);
        }
        if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))) {
            return bad(BadNameReason::Character(c));
        }
        if name.starts_with('.') {
            return bad(BadNameReason::Dot);
        }
        if name.len() > MAX_NAME {
            return bad(BadNameReason::Long(name.len()));
        }
        Ok(DatabaseName(name.to_string()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DatabaseName {
    type Err = BadName;
    fn from_str(name: &str) -> Result<DatabaseName, BadName> {
        DatabaseName::new(name)
    }
}

/// A name that no database can have.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("database name {name:?}: {why}")]
pub struct BadName {
    name: String,
    why: BadNameReason,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
enum BadNameReason {
    #[error("a name needs at least one character")]
    Empty,
    #[error("this is a path; give a plain name such as \"app\" (for an ordinary file use file:/path?vfs=unix)")]
    Path,
    #[error("it contains {0:?}; use letters A-Z a-z, digits, '_', '.' and '-'")]
    Character(char),
    #[error("it starts with a dot; start it with a letter, a digit, '_' or '-'")]
    Dot,
    #[error("it has {0} characters; use at most {MAX_NAME}")]
    Long(usize),
}

/// SQLite's `auto_vacuum`, which is fixed once a database has pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoVacuum {
    /// Free pages stay in the file.
    #[default]
    None,
    /// Every SQLite commit moves free pages to the end and cuts them off.
    Full,
    /// `PRAGMA incremental_vacuum` does.
    Incremental,
}

impl AutoVacuum {
    /// The number that SQLite's pragma uses: 0, 1 or 2.
    pub fn number(self) -> u8 {
        match self {
            AutoVacuum::None => 0,
            AutoVacuum::Full => 1,
            AutoVacuum::Incremental => 2,
        }
    }

    /// `None` unless `number` is 0, 1 or 2.
    pub fn from_number(number: u8) -> Option<AutoVacuum> {
        match number {
            0 => Some(AutoVacuum::None),
            1 => Some(AutoVacuum::Full),
            2 => Some(AutoVacuum::Incremental),
            _ => None,
        }
    }
}

/// What the catalogue knows of a database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatabaseInfo {
    /// Its name; no other database of the cluster has it.
    pub name: DatabaseName,
    /// Size of its pages, for ever.
    pub page_size: PageSize,
    /// Its `auto_vacuum`.
    pub auto_vacuum: AutoVacuum,
}

/// What the catalogue knows of a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberInfo {
    /// Where the others reach it; empty if it has no socket (a cluster of one).
    pub address: String,
    /// Its data directory; `None` until an entry binds it.
    pub incarnation: Option<Incarnation>,
    /// It is taken out when the joint configuration is left.
    pub leaving: bool,
    /// It becomes a voter by itself, once it has caught up.
    pub rises: bool,
}

/// Why an entry changes nothing. The same on every node.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The name is taken.
    #[error("database {name} exists already, as id {id}; drop it first or use another name")]
    Exists {
        /// The name.
        name: DatabaseName,
        /// Who has it.
        id: DatabaseId,
    },
    /// No database has this id.
    #[error("no database has id {0}; it may have been dropped already")]
    NoSuchDatabase(DatabaseId),
    /// [`MAX_DATABASES`] is reached.
    #[error("the cluster has {MAX_DATABASES} databases, the limit; drop one first")]
    TooManyDatabases,
    /// The node is no member.
    #[error("node {0} is no member of this cluster: `shoal member list` shows who is")]
    NoSuchMember(NodeId),
    /// The id was removed earlier.
    #[error("node id {0} was removed from this cluster and is never used again; join under a new id")]
    RemovedMember(NodeId),
    /// A newcomer has the id of a member.
    #[error("node {0} is a member already")]
    MemberAlready(NodeId),
    /// The id is bound to another data directory.
    #[error(
        "node {node} is bound to incarnation {bound}, this data directory has {offered}: start this directory with another id; only if the directory of node {node} is gone, remove node {node} and join it again under a new id"
    )]
    OtherIncarnation {
        /// Whose.
        node: NodeId,
        /// What the cluster knows.
        bound: Incarnation,
        /// What was offered.
        offered: Incarnation,
    },
    /// The address is longer than [`MAX_ADDRESS`].
    #[error("the address of node {node} has {len} bytes; the limit is {MAX_ADDRESS}")]
    LongAddress {
        /// Whose.
        node: NodeId,
        /// Its length.
        len: usize,
    },
}

/// See the module's text.
///
/// Invariant: names are unique; no id is both a member and removed; addresses are at most [`MAX_ADDRESS`] long.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Catalogue {
    cluster: ClusterId,
    databases: BTreeMap<DatabaseId, DatabaseInfo>,
    members: BTreeMap<NodeId, MemberInfo>,
    removed: BTreeSet<NodeId>,
}

impl Catalogue {
    /// The catalogue of a cluster without databases and members.
    pub fn new(cluster: ClusterId) -> Catalogue {
        Catalogue { cluster, databases: BTreeMap::new(), members: BTreeMap::new(), removed: BTreeSet::new() }
    }

    /// The same, as another cluster's.
    pub fn of_cluster(self, cluster: ClusterId) -> Catalogue {
        Catalogue { cluster, ..self }
    }

    /// Which cluster this is.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// One database.
    pub fn database(&self, id: DatabaseId) -> Option<&DatabaseInfo> {
        self.databases.get(&id)
    }

    /// The database that has this name.
    pub fn find(&self, name: &DatabaseName) -> Option<(DatabaseId, &DatabaseInfo)> {
        self.databases.iter().find(|(_, info)| info.name == *name).map(|(id, info)| (*id, info))
    }

    /// All databases, ids ascending.
    pub fn databases(&self) -> impl Iterator<Item = (DatabaseId, &DatabaseInfo)> {
        self.databases.iter().map(|(id, info)| (*id, info))
    }

    /// One member.
    pub fn member(&self, node: NodeId) -> Option<&MemberInfo> {
        self.members.get(&node)
    }

    /// Whether an entry has bound this id to this data directory.
    pub fn binds(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.members.get(&node).is_some_and(|member| member.incarnation == Some(incarnation))
    }

    /// All members, ids ascending.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &MemberInfo)> {
        self.members.iter().map(|(id, info)| (*id, info))
    }

    /// Whether this id was a member once and may never be one again.
    pub fn was_removed(&self, node: NodeId) -> bool {
        self.removed.contains(&node)
    }

    /// The ids that were members once, ascending.
    pub fn removed(&self) -> impl Iterator<Item = NodeId> {
        self.removed.iter().copied()
    }

    /// Refused unless this node is a member.
    pub fn require(&self, node: NodeId) -> Result<(), Refused> {
        match self.members.contains_key(&node) {
            true => Ok(()),
            false if self.removed.contains(&node) => Err(Refused::RemovedMember(node)),
            false => Err(Refused::NoSuchMember(node)),
        }
    }

    /// Whether an entry may create a database of this name.
    pub fn may_create(&self, name: &DatabaseName) -> Result<(), Refused> {
        if let Some((id, _)) = self.find(name) {
            return Err(Refused::Exists { name: name.clone(), id });
        }
        if self.databases.len() >= MAX_DATABASES {
            return Err(Refused::TooManyDatabases);
        }
        Ok(())
    }

    /// The entry at `index` creates a database.
    pub fn apply_create(
        &mut self,
        index: LogIndex,
        name: DatabaseName,
        page_size: PageSize,
        auto_vacuum: AutoVacuum,
    ) -> Result<DatabaseId, Refused> {
        self.may_create(&name)?;
        let id = DatabaseId(index.0);
        self.databases.insert(id, DatabaseInfo { name, page_size, auto_vacuum });
        Ok(id)
    }

    /// An entry drops a database; tells what it was.
    pub fn apply_drop(&mut self, id: DatabaseId) -> Result<DatabaseInfo, Refused> {
        self.databases.remove(&id).ok_or(Refused::NoSuchDatabase(id))
    }

    /// An entry binds a member's id to a data directory, or tells a bound member's new address.
    pub fn bind_incarnation(&mut self, node: NodeId, incarnation: Incarnation, address: &str) -> Result<(), Refused> {
        self.require(node)?;
        self.put_member(node, Some(incarnation), address)
    }

    /// A change of the members brings one in (or tells its address anew). A bound incarnation stays what it is.
    pub fn put_member(&mut self, node: NodeId, incarnation: Option<Incarnation>, address: &str) -> Result<(), Refused> {
        if self.removed.contains(&node) {
            return Err(Refused::RemovedMember(node));
        }
        if address.len() > MAX_ADDRESS {
            return Err(Refused::LongAddress { node, len: address.len() });
        }
        let known = self.members.get(&node);
        let bound = known.and_then(|member| member.incarnation);
        let (leaving, rises) = known.map_or((false, false), |member| (member.leaving, member.rises));
        if let (Some(bound), Some(offered)) = (bound, incarnation)
            && bound != offered
        {
            return Err(Refused::OtherIncarnation { node, bound, offered });
        }
        let incarnation = bound.or(incarnation);
        self.members.insert(node, MemberInfo { address: address.to_string(), incarnation, leaving, rises });
        Ok(())
    }

    /// Whether a member becomes a voter by itself.
    pub fn set_rises(&mut self, node: NodeId, rises: bool) -> Result<(), Refused> {
        self.require(node)?;
        self.members.entry(node).and_modify(|member| member.rises = rises);
        Ok(())
    }

    /// A joint configuration takes this member out.
    pub fn set_leaving(&mut self, node: NodeId) -> Result<(), Refused> {
        self.require(node)?;
        self.members.entry(node).and_modify(|member| member.leaving = true);
        Ok(())
    }

    /// The joint configuration is left: who was leaving is gone.
    pub fn end_leaving(&mut self) {
        let gone: Vec<NodeId> = self.members.iter().filter(|(_, member)| member.leaving).map(|(id, _)| *id).collect();
        for node in gone {
            self.members.remove(&node);
            self.removed.insert(node);
        }
    }

    /// A change of the members takes one out; its id never comes back.
    pub fn remove_member(&mut self, node: NodeId) -> Result<MemberInfo, Refused> {
        let member = self.members.remove(&node).ok_or(Refused::NoSuchMember(node))?;
        self.removed.insert(node);
        Ok(member)
    }

    /// As bytes; the module's text has the layout.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.databases.len() * 48 + self.members.len() * 48);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.cluster.0.to_le_bytes());
        put_count(&mut out, self.databases.len());
        for (id, info) in &self.databases {
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&info.page_size.bytes().to_le_bytes());
            out.push(info.auto_vacuum.number());
            put_text(&mut out, info.name.as_str(), MAX_NAME);
        }
        put_count(&mut out, self.members.len());
        for (id, member) in &self.members {
            out.extend_from_slice(&id.0.to_le_bytes());
            let flags = [member.incarnation.is_some(), member.leaving, member.rises];
            out.push(flags.iter().rev().fold(0, |byte, flag| byte << 1 | u8::from(*flag)));
            out.extend_from_slice(&member.incarnation.map_or(0, |i| i.0).to_le_bytes());
            put_text(&mut out, &member.address, MAX_ADDRESS);
        }
        put_count(&mut out, self.removed.len());
        for id in &self.removed {
            out.extend_from_slice(&id.0.to_le_bytes());
        }
        put_checksum(&mut out);
        out
    }

    /// Reads what [`Catalogue::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Catalogue, CatalogueError> {
        let mut head = Reader::new(bytes);
        let magic = head.bytes(4, "magic")?;
        if magic != MAGIC {
            return Err(Damaged { at: 0, what: format!("magic {magic:02x?}, expected {MAGIC:02x?}") }.into());
        }
        let version = head.u16("version")?;
        if version != VERSION {
            return Err(CatalogueError::UnknownVersion(version));
        }
        let mut fields = Reader::new(verified(bytes)?);
        fields.bytes(8, "head")?;
        Ok(Catalogue::read(&mut fields)?)
    }

    fn read(fields: &mut Reader<'_>) -> Result<Catalogue, Damaged> {
        let mut catalogue = Catalogue::new(ClusterId(fields.u64("cluster id")?));
        let ascending = |fields: &Reader<'_>, what: &str, last: Option<u64>, id: u64| match last {
            Some(last) if last >= id => Err(fields.damaged(format!("{what} {id} after {last}: ids must ascend"))),
            _ => Ok(()),
        };
        let mut last = None;
        for _ in 0..fields.count(15, "number of databases")? {
            let id = fields.u64("database id")?;
            ascending(fields, "database", last.replace(id), id)?;
            let bytes = fields.u32("page size")?;
            let page_size = PageSize::new(bytes).ok_or_else(|| fields.damaged(format!("page size {bytes}")))?;
            let auto_vacuum = fields.u8("auto_vacuum")?;
            let auto_vacuum = AutoVacuum::from_number(auto_vacuum)
                .ok_or_else(|| fields.damaged(format!("auto_vacuum {auto_vacuum}")))?;
            let name = fields.text(MAX_NAME, "database name")?;
            let name = DatabaseName::new(name).map_err(|bad| fields.damaged(bad.to_string()))?;
            catalogue
                .apply_create(LogIndex(id), name, page_size, auto_vacuum)
                .map_err(|refused| fields.damaged(refused.to_string()))?;
        }
        last = None;
        for _ in 0..fields.count(13, "number of members")? {
            let node = fields.node("member id")?;
            ascending(fields, "member", last.replace(node.0.into()), node.0.into())?;
            let flags = fields.u8("member flags")?;
            if flags > 7 {
                return Err(fields.damaged(format!("member flags {flags}, known are 0 to 7")));
            }
            let [bound, leaving, rises] = [1, 2, 4].map(|flag| flags & flag != 0);
            let incarnation = fields.u64("incarnation")?;
            if !bound && incarnation != 0 {
                return Err(fields.damaged(format!("member {node} is not bound, but has incarnation {incarnation:x}")));
            }
            let address = fields.text(MAX_ADDRESS, "address")?;
            catalogue
                .put_member(node, bound.then_some(Incarnation(incarnation)), address)
                .map_err(|refused| fields.damaged(refused.to_string()))?;
            catalogue.members.entry(node).and_modify(|member| (member.leaving, member.rises) = (leaving, rises));
        }
        last = None;
        for _ in 0..fields.count(2, "number of removed members")? {
            let node = fields.node("removed id")?;
            ascending(fields, "removed member", last.replace(node.0.into()), node.0.into())?;
            if catalogue.members.contains_key(&node) {
                return Err(fields.damaged(format!("node {node} is both a member and removed")));
            }
            catalogue.removed.insert(node);
        }
        fields.end()?;
        Ok(catalogue)
    }
}

/// Bytes that are no catalogue of ours.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CatalogueError {
    /// A later format.
    #[error("catalogue of format version {0}, this program knows version {VERSION}; use the newer program")]
    UnknownVersion(u16),
    /// Not what was written.
    #[error("catalogue damaged: {0}")]
    Damaged(#[from] Damaged),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> DatabaseName {
        DatabaseName::new(text).unwrap()
    }

    fn sample() -> Catalogue {
        let mut catalogue = Catalogue::new(ClusterId(0x1122_3344_5566_7788));
        catalogue.apply_create(LogIndex(2), name("app"), PageSize::DEFAULT, AutoVacuum::None).unwrap();
        catalogue
            .apply_create(LogIndex(9), name("b.c"), PageSize::new(65536).unwrap(), AutoVacuum::Incremental)
            .unwrap();
        catalogue.put_member(NodeId(1), Some(Incarnation(0xaabb)), "a:1").unwrap();
        catalogue.put_member(NodeId(3), None, "b:2").unwrap();
        catalogue.put_member(NodeId(7), None, "").unwrap();
        catalogue.remove_member(NodeId(7)).unwrap();
        catalogue
    }

    #[test]
    fn names_follow_the_rule() {
        let long = |n| "x".repeat(n);
        for ok in ["a", "A-Z_0.9", "-", "x.", &long(127), &long(128)] {
            assert_eq!(DatabaseName::new(ok).unwrap().as_str(), ok);
        }
        let letters = "use letters A-Z a-z, digits, '_', '.' and '-'";
        for (bad, what_to_do) in [
            ("", "at least one character"),
            (".", "start it with a letter"),
            (".a", "start it with a letter"),
            ("a/b", "give a plain name"),
            ("a b", letters),
            ("ä", letters),
            ("a\0", letters),
            ("a?b", letters),
            (&long(129), "use at most 128"),
        ] {
            let text = DatabaseName::new(bad).unwrap_err().to_string();
            // Of one that is too long only the beginning is repeated.
            let named = &bad[..bad.len().min(MAX_NAME)];
            assert!(text.starts_with(&format!("database name {named:?}: ")) && text.contains(what_to_do), "{text}");
        }
        let message = DatabaseName::new("/tmp/x.db").unwrap_err().to_string();
        assert!(message.contains("vfs=unix"), "{message}");
    }

    #[test]
    fn a_name_is_taken_until_its_database_is_dropped_and_then_it_is_another_one() {
        let mut catalogue = sample();
        let refused = catalogue.apply_create(LogIndex(12), name("app"), PageSize::DEFAULT, AutoVacuum::Full);
        assert_eq!(refused, Err(Refused::Exists { name: name("app"), id: DatabaseId(2) }));
        assert_eq!(catalogue, sample(), "a refusal changes nothing");
        assert_eq!(catalogue.apply_drop(DatabaseId(2)).unwrap().name, name("app"));
        assert_eq!(catalogue.apply_drop(DatabaseId(2)), Err(Refused::NoSuchDatabase(DatabaseId(2))));
        let id = catalogue.apply_create(LogIndex(14), name("app"), PageSize::DEFAULT, AutoVacuum::Full);
        assert_eq!(id, Ok(DatabaseId(14)));
    }

    #[test]
    fn the_number_of_databases_is_bounded() {
        let mut catalogue = Catalogue::new(ClusterId(1));
        let mut create = |i: usize| {
            catalogue.apply_create(LogIndex(i as u64), name(&format!("d{i}")), PageSize::DEFAULT, AutoVacuum::None)
        };
        for i in 1..=MAX_DATABASES {
            create(i).unwrap();
        }
        assert_eq!(create(MAX_DATABASES + 1), Err(Refused::TooManyDatabases));
    }

    /// Shows INV-13.
    #[test]
    fn an_incarnation_is_bound_once() {
        let mut catalogue = sample();
        catalogue.bind_incarnation(NodeId(3), Incarnation(5), "c:3").unwrap();
        catalogue.bind_incarnation(NodeId(3), Incarnation(5), "d:4").unwrap();
        let refused = catalogue.bind_incarnation(NodeId(3), Incarnation(6), "e:5").unwrap_err();
        assert!(refused.to_string().contains("remove node 3 and join it again under a new id"), "{refused}");
        let member = catalogue.member(NodeId(3)).unwrap();
        assert_eq!((member.address.as_str(), member.incarnation), ("d:4", Some(Incarnation(5))));
        // A new address alone leaves the binding alone.
        catalogue.put_member(NodeId(3), None, "f:6").unwrap();
        assert_eq!(catalogue.member(NodeId(3)).unwrap().incarnation, Some(Incarnation(5)));
        assert_eq!(catalogue.bind_incarnation(NodeId(4), Incarnation(1), ""), Err(Refused::NoSuchMember(NodeId(4))));
    }

    #[test]
    fn a_removed_id_never_comes_back() {
        let mut catalogue = sample();
        assert!(catalogue.was_removed(NodeId(7)));
        assert_eq!(catalogue.put_member(NodeId(7), None, "x:1"), Err(Refused::RemovedMember(NodeId(7))));
        assert_eq!(
            catalogue.bind_incarnation(NodeId(7), Incarnation(1), "x:1"),
            Err(Refused::RemovedMember(NodeId(7)))
        );
    }

    #[test]
    fn format_version_1_stays_readable() {
        let golden = [
            "53486374 0100 0000 8877665544332211",
            "02000000",
            "0200000000000000 00100000 00 0300 617070",
            "0900000000000000 00000100 02 0300 622e63",
            "02000000",
            "0100 01 bbaa000000000000 0300 613a31",
            "0300 00 0000000000000000 0300 623a32",
            "01000000",
            "0700",
        ];
        let golden = golden.concat().replace(' ', "");
        let mut bytes: Vec<u8> =
            (0..golden.len()).step_by(2).map(|i| u8::from_str_radix(&golden[i..i + 2], 16).unwrap()).collect();
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        assert_eq!(sample().encode(), bytes);
        assert_eq!(Catalogue::decode(&bytes), Ok(sample()));
    }

    #[test]
    fn a_later_version_is_named() {
        let mut bytes = sample().encode();
        bytes[4] = 2;
        assert_eq!(Catalogue::decode(&bytes), Err(CatalogueError::UnknownVersion(2)));
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_found() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(Catalogue::decode(&bytes[..len]).is_err(), "{len}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Catalogue::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    proptest! {
        /// Behind a valid checksum too: nothing panics, and what is accepted is written back the same.
        #[test]
        fn random_changes_never_panic(changes in prop::collection::vec((8usize..100, any::<u8>()), 1..4)) {
            let mut bytes = sample().encode();
            let end = bytes.len() - 4;
            for (at, value) in changes {
                bytes[at % end] = value;
            }
            let crc = crc32c::crc32c(&bytes[..end]).to_le_bytes();
            bytes[end..].copy_from_slice(&crc);
            if let Ok(catalogue) = Catalogue::decode(&bytes) {
                let again = catalogue.encode();
                prop_assert_eq!(&again[8..], &bytes[8..]);
            }
        }
    }
}
