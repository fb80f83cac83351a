//! Who may go on alone when a replacement was under way.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use shoaldb_vfs::page::PageSize;
use tempfile::TempDir;

use super::*;
use crate::Node;
use crate::catalogue::{AutoVacuum, DatabaseName};
use crate::entry::{Origin, Payload};
use crate::found::format::GenesisMember;
use crate::registry::Aftermath;
use crate::types::{GENESIS, Incarnation, Membership};

mod crashes;

const LONG: Duration = Duration::from_secs(60);

/// The directory of node `id` of a cluster of nodes 1 to 3 with learner 4. Its log has a database and the entry that replaces
/// node 3 by node 4, and not the end of that.
fn replacing(id: u16) -> TempDir {
    let replace = MembershipChange {
        transition: Transition::JointThenLeave,
        changes: vec![(ChangeKind::Voter, NodeId(4)), (ChangeKind::Removed, NodeId(3))],
        context: Bytes::new(),
    };
    founded(id, 4, Some(replace))
}

/// The same of a cluster of nodes 1 to 3 and learners up to `members`, with this change.
fn founded(id: u16, members: u16, change: Option<MembershipChange>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    founded_in(&Env::os(), dir.path(), id, members, change);
    dir
}

fn founded_in(env: &Env, dir: &Path, id: u16, members: u16, change: Option<MembershipChange>) {
    let incarnation = |id: u16| Incarnation(100 + u64::from(id));
    let learners = (4..=members).map(NodeId).collect();
    let members = (1..=members).map(|id| GenesisMember {
        node: NodeId(id),
        address: format!("127.0.0.1:{id}"),
        incarnation: Some(incarnation(id)),
    });
    let genesis = Genesis { cluster: ClusterId(77), founder: NodeId(1), members: members.collect() };
    let registry = registry::encode(&genesis.catalogue(), &BTreeMap::new(), Aftermath::default());
    let voters = [1, 2, 3].map(NodeId).to_vec();
    let membership = Membership { voters, learners, ..Membership::default() };
    let anchor = Anchor { applied: GENESIS.index, membership, registry: registry.into() };
    let begin = HardState { term: GENESIS.term, vote: None, commit: GENESIS.index };
    let (path, options) = (dir.join("log"), LogOptions::default());
    let log = Log::create(env.fs.clone(), &path, genesis.cluster, options, GENESIS, anchor, begin).unwrap();
    let mut entries = vec![creates("app", 2)];
    let id_of_change = EntryId { index: LogIndex(3), term: Term(2) };
    let change = change.map(|change| change.encode());
    entries.extend(change.map(|data| LogEntry { id: id_of_change, class: EntryClass::Membership, data }));
    let commit = LogIndex(1 + entries.len() as u64);
    let hard_state = Some(HardState { term: Term(2), vote: None, commit });
    log.append(&Batch { entries, hard_state, anchor: None }).unwrap();
    let belongs = Belongs::Joined(genesis);
    let identity = Identity { belongs, ..Identity::new(NodeId(id), incarnation(id)) };
    identity::store(&*env.fs, dir, &identity).unwrap();
}

/// The entry that creates this database.
fn creates(name: &str, index: u64) -> LogEntry {
    let body = Body::CreateDatabase {
        name: DatabaseName::new(name).unwrap(),
        page_size: PageSize::DEFAULT,
        auto_vacuum: AutoVacuum::None,
    };
    let origin = Origin { node: NodeId(1), session: 1, number: index - 1 };
    let data = entry::encode(&Payload { origin, body }).unwrap().into();
    LogEntry { id: EntryId { index: LogIndex(index), term: Term(2) }, class: EntryClass::Normal, data }
}

/// All files below a directory.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        match path.is_dir() {
            true => all.extend(content(&path)),
            false => _ = all.insert(path.clone(), fs::read(&path).unwrap()),
        }
    }
    all
}

fn start(id: u16, dir: &TempDir) -> Node {
    Node::builder(u64::from(id), dir.path()).listen("127.0.0.1:0").start().unwrap()
}

/// The end of the joint configuration, which comes first, took it out, and so the change that makes it the only member was refused:
/// it was left as a removed node of a cluster of three that there is not, and its old cluster was gone.
#[test]
fn a_node_that_is_being_replaced_does_not_go_on_alone() {
    let dir = replacing(3);
    refused(3, &dir, &["takes node 3 out", "nodes [1, 2, 4]", "`shoal backup`"]);
}

/// The change that makes it the only member was refused, since its log has no such member: the log was exchanged all the same, for one
/// of a cluster in which nobody can be elected.
#[test]
fn a_joiner_whose_log_does_not_make_it_a_member_yet_does_not_go_on_alone() {
    let dir = founded(4, 3, None);
    refused(4, &dir, &["ends before node 4 became a member", "nodes [1, 2, 3]", "`shoal backup`"]);
}

/// It is told so, with these words, before anything is changed, and can do what it is told to do instead.
fn refused(id: u16, dir: &TempDir, words: &[&str]) {
    // The first one locks the directory, which leaves a file.
    let mut before = None;
    for carry_out in [false, true] {
        let error = only_member(dir.path(), u64::from(id), carry_out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        for words in words {
            assert!(error.to_string().contains(words), "{error}");
        }
        let now = content(dir.path());
        assert!(*before.get_or_insert_with(|| now.clone()) == now, "{:?}", now.keys());
    }
    let before = before.unwrap();
    let names: Vec<_> = before.keys().map(|path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
    assert!(names.iter().all(|name| !name.contains("recovered") && !name.contains("before")), "{names:?}");
    let node = start(id, dir);
    let until = std::time::Instant::now() + LONG;
    while node.status().databases.is_empty() {
        assert!(std::time::Instant::now() < until, "{:?}", node.status());
        std::thread::yield_now();
    }
    let file = dir.path().join("app.saved");
    node.backup("app", &file).unwrap();
    assert_eq!((node.status().leader, node.status().cluster), (None, Some(ClusterId(77))));
    assert!(file.is_file());
    node.shutdown().unwrap();
}

/// Both who was a voter before and who becomes one.
/// Shows INV-38.
#[test]
fn a_node_that_stays_goes_on_alone_from_a_joint_configuration() {
    for (id, others) in [(1, [2, 4]), (4, [1, 2])] {
        let dir = replacing(id);
        let done = only_member(dir.path(), u64::from(id), true).unwrap();
        assert_eq!(done.others, others.map(NodeId));
        let node = start(id, &dir);
        assert_eq!(node.wait_leader(LONG).unwrap(), u64::from(id));
        node.write("app", |tx| Ok(tx.execute_batch("CREATE TABLE t(x)")?)).unwrap();
        let status = node.status();
        let members: Vec<_> = status.members.iter().map(|member| member.node).collect();
        assert_eq!(
            (status.cluster, status.voters, members),
            (Some(done.new_cluster), vec![NodeId(id)], vec![NodeId(id)])
        );
        node.shutdown().unwrap();
    }
}
