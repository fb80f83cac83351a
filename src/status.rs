//! What a node reports of itself.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::catalogue::DatabaseId;
use crate::config::{MAX_CALLERS, MAX_SESSIONS};
use crate::databases::Help;
use crate::error::{DAMAGED, Error, ErrorKind};
use crate::net::Unreached;
use crate::raft::{CoreStatus, PeerStatus as Peer, Role};
use crate::shared::Hub;
use crate::types::{ClusterId, Incarnation, LogIndex, Membership, NodeId, Term, Usage};
use crate::{apply, engine};

/// A node as it stands. All of it is this node's own view; only the leader has `peers`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// Random name of its data directory.
    pub incarnation: Incarnation,
    /// Its cluster; `None` while the cluster is being founded.
    pub cluster: Option<ClusterId>,
    /// `leader`, `follower`, `candidate` or `pre-candidate`.
    pub role: String,
    /// Its term.
    pub term: Term,
    /// The leader, as far as known.
    pub leader: Option<NodeId>,
    /// Voting members.
    pub voters: Vec<NodeId>,
    /// Members that listen only.
    pub learners: Vec<NodeId>,
    /// All members, with their addresses.
    pub members: Vec<MemberStatus>,
    /// First entry that the log still has.
    pub first: LogIndex,
    /// Last entry of the log.
    pub last: LogIndex,
    /// Last entry known to be on a majority of disks.
    pub committed: LogIndex,
    /// Last entry that this node shows.
    pub applied: LogIndex,
    /// Bytes of log that count towards `log_limit`. Its files take up to three segments more: two spare ones, and what is not used
    /// yet of the last one.
    pub log_bytes: u64,
    /// Bytes of log beyond which it is compacted.
    pub log_limit: u64,
    /// A start of this node applies the entries behind this one again.
    pub anchored: LogIndex,
    /// Bytes of pages that the virtual WALs of all databases have in memory.
    pub wal_memory: u64,
    /// How many they may have there: the setting `wal_limit`.
    pub wal_limit: u64,
    /// Connections that nodes and programs have opened to this node's port; none on a node without one.
    #[serde(default)]
    pub connections: Option<Bounded>,
    /// SQL sessions over the admin socket.
    #[serde(default)]
    pub sessions: Bounded,
    /// Bytes of messages of other nodes that wait for the engine. Where there is no room left, they are not read.
    #[serde(default)]
    pub inbox: Bounded,
    /// Bytes of the newest entries of the log that are in memory: more than the limit (`tail_cache_limit`) only as long as the disk
    /// does not have them.
    #[serde(default)]
    pub tail_cache: Bounded,
    /// Bytes of entries that no majority has yet; on the leader. The limit is `uncommitted_limit`, or what a large transaction needs.
    #[serde(default)]
    pub uncommitted: Bounded,
    /// Bytes of committed entries that wait to be applied. One may be larger than the limit, `apply_limit`.
    #[serde(default)]
    pub to_apply: Bounded,
    /// Connections and calls to this node's port and admin socket in which something came that is none of its words: another program,
    /// or a line that damages what it carries. Who that was is in the log.
    #[serde(default)]
    pub malformed: u64,
    /// Large transactions of which some parts are applied here, and not the last: one of each database at most.
    #[serde(default)]
    pub open_splits: Bounded,
    /// What else has a bound, which no setting changes.
    #[serde(default)]
    pub bounds: Vec<Usage>,
    /// Databases, by name.
    pub databases: Vec<DatabaseStatus>,
    /// Views of its databases that this node lends to others, and to how many of them.
    #[serde(default)]
    pub lent: (usize, usize),
    /// What of snapshots this node has sent.
    #[serde(default)]
    pub lending: Lending,
    /// A snapshot that is on its way to this node.
    #[serde(default)]
    pub snapshot: Option<SnapshotStatus>,
    /// The other members as the leader knows them.
    pub peers: Vec<PeerStatus>,
    /// What needs a person's attention, in words.
    pub alarms: Vec<String>,
}

/// Something of which there may be only so much.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Bounded {
    /// How much there is.
    pub now: u64,
    /// How much there may be.
    pub limit: u64,
}

impl Bounded {
    fn of<N: TryInto<u64>>((now, limit): (N, N)) -> Bounded {
        let wide = |number: N| number.try_into().unwrap_or(u64::MAX);
        Bounded { now: wide(now), limit: wide(limit) }
    }
}

/// One database.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DatabaseStatus {
    /// Index of the entry that created it.
    pub id: DatabaseId,
    /// Its name.
    pub name: String,
    /// Size in pages.
    pub pages: u32,
    /// Bytes of one page.
    pub page_size: u32,
    /// Frames in its WAL.
    pub wal_frames: u32,
    /// Bytes of pages in its WAL, and beyond how many the oldest readers that keep it are ended: `reader_wal_pin_max`.
    #[serde(default)]
    pub wal: Bounded,
    /// Bytes of its WAL's pages that are outside of memory, because of `wal_limit`.
    pub wal_spilled: u64,
    /// Bytes of its double-write file. One that is larger than the limit, `doublewrite_bytes`, gives its room back when its checkpoint
    /// is done.
    #[serde(default)]
    pub doublewrite: Bounded,
    /// Position of its main file: entries behind it are in the WAL only.
    pub checkpointed: LogIndex,
    /// Index of the last entry that it shows.
    pub position: LogIndex,
    /// Checksum of its content at that position, in hexadecimal.
    pub checksum: String,
    /// Connections of this node that wait for their turn to write.
    #[serde(default)]
    pub writers_waiting: u64,
    /// Milliseconds since the oldest read transaction on this node began, if there is one.
    #[serde(default)]
    pub oldest_reader_ms: Option<u64>,
    /// Read transactions that this node ended, since they kept too much of the WAL (`reader_wal_pin_max`).
    #[serde(default)]
    pub readers_ended: u64,
    /// Read views that keep its WAL from being checkpointed.
    #[serde(default)]
    pub views: u64,
}

/// What a node has sent of snapshots, and of copies for repairs, since it started. Those who fetch from one view at about the
/// same time share what is read for them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Lending {
    /// Bytes that were read from the databases for it.
    pub read: u64,
    /// Bytes that were sent.
    pub sent: u64,
}

/// A snapshot on its way to a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SnapshotStatus {
    /// Where it comes from.
    pub source: NodeId,
    /// The entry that it is of.
    pub index: LogIndex,
    /// `compare`, `fetch`, `verify` or `install`.
    pub phase: String,
    /// Bytes of pages that are in place, and how many there are in all.
    pub done: u64,
    /// All bytes.
    pub total: u64,
    /// Milliseconds since it began.
    #[serde(default)]
    pub elapsed_ms: u64,
}

/// One member, as this node's catalogue has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemberStatus {
    /// The member.
    pub node: NodeId,
    /// Where the others reach it.
    pub address: String,
    /// Random name of its data directory; `None` until it came for the first time.
    pub incarnation: Option<Incarnation>,
    /// `voter`, `learner`, or `leaving` while a replacement takes it out.
    pub role: String,
}

/// One other member.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The member.
    pub node: NodeId,
    /// Last entry that it acknowledged.
    pub acknowledged: LogIndex,
    /// The entry that it is sent next.
    #[serde(default)]
    pub next: LogIndex,
    /// `replicate`: entries follow each other; `probe`: the leader finds out where the two logs agree; `snapshot`: it needs
    /// entries that the log does not have any more.
    #[serde(default)]
    pub state: String,
    /// Bytes of a snapshot that it has in place, and how many there are in all, while it fetches one from this node.
    #[serde(default)]
    pub snapshot: Option<(u64, u64)>,
    /// Bytes of entries on their way to it that it has not acknowledged. One message may go beyond the limit, `inflight_limit`.
    #[serde(default)]
    pub in_flight: Bounded,
    /// Whether it was heard of lately.
    pub active: bool,
}

/// What every member of the cluster has, as its leader knows; `None` on others.
pub(crate) fn floor_of_members(hub: &Hub) -> Option<LogIndex> {
    hub.findings.lock().members_floor
}

pub(crate) fn word_of(role: Role) -> &'static str {
    match role {
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

pub(crate) fn of(hub: &Hub) -> Status {
    let leadership = hub.leadership();
    let core = hub.core_status.lock().clone();
    let cluster = hub.catalogue.lock().as_ref().map(|catalogue| catalogue.cluster());
    let mut databases: Vec<DatabaseStatus> = hub
        .databases
        .all()
        .into_iter()
        .map(|(id, db)| {
            let status = db.status();
            DatabaseStatus {
                id,
                name: db.name().to_string(),
                pages: status.pages.0,
                page_size: db.geometry().page_size.bytes(),
                wal_frames: status.wal_frames,
                wal: Bounded::of((
                    u64::from(status.wal_frames) * u64::from(db.geometry().page_size.bytes()),
                    hub.config.reader_wal_pin_max,
                )),
                wal_spilled: status.wal_spilled,
                doublewrite: Bounded::of(status.doublewrite),
                writers_waiting: status.writers_waiting as u64,
                checkpointed: LogIndex(status.checkpointed.0),
                position: LogIndex(status.position.0),
                checksum: status.checksum.to_string(),
                oldest_reader_ms: status.oldest_reader.map(millis),
                readers_ended: status.readers_ended,
                views: status.views as u64,
            }
        })
        .collect();
    databases.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let members = members(hub, core.as_ref().map(|core| &core.membership));
    let (first, log_bytes) = hub.log_extent();
    let anchored = hub.findings.lock().anchored;
    let (read, sent) = hub.snapshots.views.bytes();
    let lending = Lending { read, sent };
    Status {
        node: hub.id,
        incarnation: hub.incarnation,
        cluster,
        role: word_of(leadership.role).to_string(),
        term: leadership.term,
        leader: leadership.leader,
        voters: core.as_ref().map_or_else(Vec::new, |core| core.membership.voters.clone()),
        learners: core.as_ref().map_or_else(Vec::new, |core| core.membership.learners.clone()),
        members,
        first,
        last: core.as_ref().map_or(LogIndex(0), |core| core.last),
        committed: core.as_ref().map_or(LogIndex(0), |core| core.committed),
        applied: hub.applied().index,
        log_bytes,
        log_limit: hub.config.log_limit,
        anchored,
        wal_memory: hub.databases.memory().used(),
        wal_limit: hub.databases.memory().limit(),
        connections: hub.transport().and_then(|transport| transport.connections()).map(Bounded::of),
        sessions: Bounded::of((hub.sessions.load(Ordering::Relaxed), MAX_SESSIONS as u64)),
        inbox: Bounded::of(hub.inbox.usage()),
        tail_cache: of_core(core.as_ref(), |core| core.tail),
        uncommitted: of_core(core.as_ref(), |core| core.uncommitted),
        to_apply: of_core(core.as_ref(), |core| core.handed_out),
        malformed: hub.malformed(),
        open_splits: Bounded::of((hub.open_splits.load(Ordering::Relaxed), databases.len() as u64)),
        bounds: bounds(hub),
        databases,
        lent: hub.snapshots.views.counts(),
        lending,
        snapshot: hub.snapshots.transfer.lock().map(|transfer| SnapshotStatus {
            source: transfer.source,
            index: transfer.index,
            phase: transfer.phase.word().to_string(),
            done: transfer.done,
            total: transfer.total,
            elapsed_ms: millis(hub.waiting.clock.now().saturating_sub(transfer.began)),
        }),
        peers: core.map_or_else(Vec::new, |core| {
            core.peers
                .into_iter()
                .map(|peer| PeerStatus {
                    node: peer.id,
                    acknowledged: peer.acknowledged,
                    next: peer.next,
                    state: state_of(&peer, hub.core_start()).to_string(),
                    snapshot: hub.snapshots.views.progress(peer.id),
                    in_flight: Bounded::of(peer.in_flight),
                    active: peer.active,
                })
                .collect()
        }),
        alarms: alarms(hub),
    }
}

fn of_core(core: Option<&CoreStatus>, what: impl FnOnce(&CoreStatus) -> (u64, u64)) -> Bounded {
    core.map_or_else(Bounded::default, |core| Bounded::of(what(core)))
}

/// The bounds that are constants, each with its reason where it stands.
fn bounds(hub: &Hub) -> Vec<Usage> {
    let mut bounds = hub.transport().map_or_else(Vec::new, |transport| transport.bounds());
    let [dialed, versions] = hub.strangers();
    bounds.push(Usage::count("nodes that are dialed and no members", dialed));
    bounds.push(Usage::count("nodes that are no members and whose version is known", versions));
    let callers = hub.callers.load(Ordering::Relaxed);
    bounds.push(Usage::count("callers of the admin socket", (callers, MAX_CALLERS)));
    bounds.push(Usage::count("events that the slowest listener has not taken", hub.events.usage()));
    bounds.push(Usage::count("objects of snapshots that are kept for several nodes", hub.snapshots.views.shelved()));
    bounds.extend(hub.kept().map(|kept| Usage::count("connections of write that are kept, of one database", kept)));
    bounds
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn members(hub: &Hub, membership: Option<&Membership>) -> Vec<MemberStatus> {
    let votes = |id: NodeId| membership.is_some_and(|membership| membership.voters.contains(&id));
    let all = hub.with_catalogue(|catalogue| {
        let all = catalogue.members().map(|(node, member)| MemberStatus {
            node,
            address: member.address.clone(),
            incarnation: member.incarnation,
            role: if member.leaving {
                "leaving"
            } else if votes(node) {
                "voter"
            } else {
                "learner"
            }
            .to_string(),
        });
        all.collect()
    });
    all.unwrap_or_default()
}

fn state_of(peer: &Peer, log_start: LogIndex) -> &'static str {
    match peer.streams {
        true => "replicate",
        false if peer.acknowledged < log_start && peer.next <= log_start => "snapshot",
        false => "probe",
    }
}

/// What needs a person's attention, the gravest first.
pub(crate) fn alarms(hub: &Hub) -> Vec<String> {
    let mut alarms = own_alarms(hub);
    if other_leader(hub).is_none() {
        alarms.extend(unreached(hub, |_| true));
    }
    alarms
}

/// The same, but for members that a leader does not reach: it is as well as it was, and whoever starts a node again that is not
/// must not do so because another one is away.
pub(crate) fn own_alarms(hub: &Hub) -> Vec<String> {
    let mut alarms: Vec<String> = health(hub).err().into_iter().collect();
    alarms.extend(hub.databases.damaged(&hub.help()));
    alarms.extend(hub.findings.lock().alarms.values().cloned());
    let memory = hub.databases.memory();
    if memory.failures() > 0 && memory.used() > memory.limit() {
        alarms.push(format!(
            "pages of the wal are in memory past wal_limit, {} of {} bytes, because the disk did not take them; make room on it",
            memory.used(),
            memory.limit()
        ));
    }
    alarms.extend(hub.transport().map_or_else(Vec::new, |transport| transport.refusals()));
    if let Some(leader) = other_leader(hub) {
        alarms.extend(unreached(hub, |node| node == leader));
    }
    alarms
}

fn other_leader(hub: &Hub) -> Option<NodeId> {
    hub.leadership().leader.filter(|leader| *leader != hub.id)
}

/// A member that is not reached for longer is an alarm: whoever restarts one needs less.
const UNREACHED_AFTER: Duration = Duration::from_secs(10);

/// Members that this node does not reach and should. A leader should reach all. A follower should reach its leader, who gets no
/// acknowledgement from it otherwise; who else is away its leader says. Without a leader nobody does but itself.
fn unreached(hub: &Hub, which: impl Fn(NodeId) -> bool) -> Vec<String> {
    let Some(transport) = hub.transport() else { return Vec::new() };
    let unreached = transport.unreached().into_iter();
    let unreached = unreached.filter(|one| one.age >= UNREACHED_AFTER && which(one.node) && hub.is_member(one.node));
    let words = unreached.map(|Unreached { node, address, age, why }| {
        format!("node {node} at {address} has not been reached for {} s: {why}", age.as_secs())
    });
    words.collect()
}

/// What keeps this node from deciding what is proposed to it, as people were told: a disk that has no room, or does not answer.
pub(crate) fn held_up(hub: &Hub) -> Option<String> {
    let findings = hub.findings.lock();
    let about = [engine::NO_ROOM, engine::STALLED, apply::NO_ROOM];
    about.iter().find_map(|about| findings.alarms.get(*about).cloned())
}

/// What a writer is told who waited in vain, where more is known than SQLite's word for it: that the database is locked.
pub(crate) fn why_busy(hub: &Hub) -> Option<String> {
    held_up(hub).map(|what| format!("nothing was written: {what}"))
}

/// Why a database is not served on this node although the cluster has it, and what helps: its copy here is damaged as a whole.
pub(crate) fn unserved(hub: &Hub, name: &str) -> Option<Error> {
    let id = hub.with_catalogue(|catalogue| {
        catalogue.databases().find(|(_, info)| info.name.as_str() == name).map(|(id, _)| id)
    });
    hub.databases.damage(id.ok().flatten()?)?;
    let help = hub.help();
    let about = format!("database {name}");
    let about = |words: &String| words.strip_prefix(&about).is_some_and(|rest| rest.starts_with([' ', ':']));
    let words = hub.databases.damaged(&help).into_iter().find(about);
    let words =
        words.unwrap_or_else(|| format!("database {name} is damaged and not served on this node; see its alarms"));
    let advice = if help == Help::Voters { "; use another node until then" } else { "" };
    let code = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(DAMAGED), None);
    Some(Error::caused(ErrorKind::Corrupt, format!("{words}{advice}"), code))
}

/// Whether the node can do its part: it belongs to a cluster, has applied the first entry of a leader that it knows (before
/// that it may not show what was acknowledged before a restart), and has no trouble.
pub(crate) fn health(hub: &Hub) -> Result<(), String> {
    if let Some(trouble) = hub.trouble() {
        return Err(trouble);
    }
    if hub.catalogue.lock().is_none() {
        let mut what = match hub.doors.get() {
            Some(doors) => format!("no cluster yet: asking {} to be let in", doors.join(", ")),
            None => "no cluster yet: waiting for a majority of the bootstrap list".to_string(),
        };
        for obstacle in hub.obstacles() {
            what = format!("{what}; {obstacle}");
        }
        return Err(what);
    }
    let leadership = hub.leadership();
    match leadership.leader {
        None => Err("no leader known".to_string()),
        Some(leader) if hub.applied().term != leadership.term => Err(format!(
            "no leader known that has begun its work: the first entry of node {leader} has not arrived here"
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shoaldb_vfs::env::sim::SimFs;

    use super::*;
    use crate::found::format::FoundMessage;
    use crate::net::{RequestError, Transport};
    use crate::shared::Leadership;
    use crate::types::Message;
    use crate::upkeep::tests::upkeep;

    /// Reaches nobody: two members for too long, one not yet, and one that is no member.
    struct Cut;

    impl Transport for Cut {
        fn send(&self, _: Message) {}
        fn send_found(&self, _: NodeId, _: FoundMessage) {}
        fn request(&self, _: NodeId, _: Vec<u8>, _: Duration) -> Result<Vec<u8>, RequestError> {
            Err(RequestError::NotSent(String::new()))
        }
        fn set_peer(&self, _: NodeId, _: &str) {}
        fn remove_peer(&self, _: NodeId) {}
        fn recheck(&self) {}
        fn unreached(&self) -> Vec<Unreached> {
            let all = [(2, UNREACHED_AFTER), (3, 2 * UNREACHED_AFTER), (4, UNREACHED_AFTER / 2), (9, UNREACHED_AFTER)];
            let one =
                |(id, age)| Unreached { node: NodeId(id), address: format!("a:{id}"), age, why: "why".to_string() };
            all.into_iter().map(one).collect()
        }
    }

    #[test]
    fn whom_a_node_should_reach_depends_on_who_leads() {
        let (upkeep, _) = upkeep(&SimFs::new(1));
        let hub = upkeep.hub();
        let put =
            |id: u16| hub.with_catalogue(|catalogue| catalogue.put_member(NodeId(id), None, "").unwrap()).unwrap();
        (1..=4).for_each(put);
        let transport: Arc<dyn Transport> = Arc::new(Cut);
        hub.set_transport(&transport);
        let told = |leader: Option<u16>| {
            let role = if leader == Some(1) { Role::Leader } else { Role::Follower };
            hub.set_leadership(Leadership { role, term: Term(1), leader: leader.map(NodeId) });
            let alarms = alarms(hub).into_iter().filter(|alarm| alarm.contains("has not been reached"));
            alarms.map(|alarm| alarm.split(" for ").next().unwrap().to_string()).collect::<Vec<_>>()
        };
        let (two, three) = ("node 2 at a:2 has not been reached", "node 3 at a:3 has not been reached");
        assert_eq!(told(Some(1)), [two, three], "the leader, everybody");
        assert_eq!(told(None), [two, three], "without a leader, too");
        assert_eq!(told(Some(3)), [three], "a follower, its leader");
        assert_eq!(told(Some(4)), [""; 0], "which was reached lately");
        assert!(alarms(hub).iter().all(|alarm| !alarm.contains("node 9")), "no member");
        // Only a follower that does not reach its leader cannot do its part.
        for (leader, own) in [(1, 0), (3, 1)] {
            told(Some(leader));
            let own_alarms = own_alarms(hub).into_iter().filter(|alarm| alarm.contains("has not been reached"));
            assert_eq!(own_alarms.count(), own, "with leader {leader}");
        }
    }
}
