//! Receipts: what became of a transaction, asked later, of any node.

use std::time::{Duration, Instant};

use shoaldb::{Error, ErrorKind, Node, Outcome, Receipt, ReceiptOutcome, Unsettled, outcome, rusqlite};

use crate::cluster::{Cluster, Impatient, LONG, count, insert, table};
use crate::outcomes::new_leader;

const UNDECIDED: ReceiptOutcome = ReceiptOutcome::Unknown(Unsettled::Undecided);

/// What `node` says once it can say anything.
fn settled(node: &Node, receipt: &Receipt) -> ReceiptOutcome {
    let started = Instant::now();
    loop {
        match node.outcome_of(receipt).unwrap() {
            UNDECIDED => assert!(started.elapsed() < LONG, "node {} cannot say: {receipt}", node.id()),
            outcome => return outcome,
        }
        std::thread::yield_now();
    }
}

fn committed(receipt: &Receipt) -> ReceiptOutcome {
    ReceiptOutcome::Committed(receipt.index())
}

/// Shows INV-29.
#[test]
fn a_receipt_of_a_committed_transaction_is_settled_by_every_node() {
    let cluster = Cluster::start_calm(3, |builder| builder);
    table(&cluster);
    let leader = cluster.leader();
    let mut db = leader.connect("app").unwrap();
    assert_eq!(db.last_receipt(), None, "nothing was written yet");
    db.execute("INSERT INTO t VALUES (1)", []).unwrap();
    let receipt = db.last_receipt().unwrap();
    assert_eq!(receipt.node(), leader.id());
    assert_eq!(leader.outcome_of(receipt).unwrap(), committed(&receipt), "at once, on the node that acknowledged it");
    for node in cluster.running() {
        assert_eq!(settled(node, &receipt), committed(&receipt));
        assert_eq!(count(&node.connect("app").unwrap()), 1, "a node that says so shows it");
    }
    // As text, for clients that do not know us.
    let text: String = db.query_row("PRAGMA shoal_last_receipt", [], |row| row.get(0)).unwrap();
    assert_eq!(text.parse::<Receipt>().unwrap(), receipt);
    let by_uri = format!("file:app?vfs={}", leader.vfs_name());
    let plain = rusqlite::Connection::open(by_uri).unwrap();
    let pragma = |plain: &rusqlite::Connection| -> String {
        plain.query_row("PRAGMA shoal_last_receipt", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(pragma(&plain), "");
    plain.execute("INSERT INTO t VALUES (2)", []).unwrap();
    let other: Receipt = pragma(&plain).parse().unwrap();
    assert!(other.index() > receipt.index());
    assert_eq!(db.last_receipt(), Some(receipt), "each connection has its own");

    // Whatever does not come to the log must not be taken for the one before.
    db.execute("DELETE FROM t WHERE x = 7", []).unwrap();
    assert_eq!(db.last_receipt(), None, "nothing changed");
    db.execute("INSERT INTO t VALUES (3)", []).unwrap();
    assert!(db.last_receipt().is_some());
    let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    tx.execute("INSERT INTO t VALUES (4)", []).unwrap();
    tx.rollback().unwrap();
    assert_eq!(db.last_receipt(), None, "rolled back");
    let follower = cluster.follower().connect("app").unwrap();
    follower.execute("INSERT INTO t VALUES (5)", []).unwrap_err();
    assert_eq!(follower.last_receipt(), None, "refused before");
}

/// Shows INV-29.
#[test]
fn a_transaction_that_another_leader_replaced_is_not_committed_and_until_then_nobody_says_so() {
    let cluster = Cluster::start(3);
    table(&cluster);
    let started = Instant::now();
    let (old, receipt) = loop {
        let old = cluster.leader();
        let db = old.connect("app").unwrap();
        old.set_commit_timeout(Duration::from_millis(100));
        cluster.cut(old.id(), true);
        let late = db.execute("INSERT INTO t VALUES (1)", []).unwrap_err();
        if outcome(&late) == Some(Outcome::Unknown) {
            break (old, db.last_receipt().expect("it is in the log of this node"));
        }
        // On a busy machine it notices first that it is alone.
        cluster.cut(old.id(), false);
        assert!(started.elapsed() < LONG, "{late}");
    };
    assert_eq!(old.outcome_of(receipt).unwrap(), UNDECIDED, "cut off, it can prove nothing");
    let new = new_leader(&cluster, old.id());
    for node in cluster.running().filter(|node| node.id() != old.id()) {
        assert_eq!(settled(node, &receipt), ReceiptOutcome::NotCommitted);
    }
    assert_eq!(old.outcome_of(receipt).unwrap(), UNDECIDED, "it has not heard of that");
    cluster.cut(old.id(), false);
    assert_eq!(settled(old, &receipt), ReceiptOutcome::NotCommitted);
    assert_eq!(count(&new.connect("app").unwrap()), 0);
}

/// Shows INV-29.
#[test]
fn a_late_commit_is_settled_once_the_majority_is_back() {
    let cluster = Cluster::start_calm(3, |builder| builder);
    table(&cluster);
    let leader = cluster.leader();
    cluster.cut(leader.id(), true);
    let impatient = Impatient::on(leader);
    let late = leader.write("app", |tx| Ok(tx.execute_batch("INSERT INTO t VALUES (1)")?)).unwrap_err();
    drop(impatient);
    assert_eq!(late.outcome(), Some(Outcome::Unknown), "{late}");
    let receipt = late.receipt().expect("it is in the log");
    for node in cluster.running() {
        assert_eq!(node.outcome_of(receipt).unwrap(), UNDECIDED);
    }
    cluster.cut(leader.id(), false);
    for node in cluster.running() {
        assert_eq!(settled(node, &receipt), committed(&receipt));
        assert_eq!(count(&node.connect("app").unwrap()), 1);
    }
}

/// The entry is in one log only when all nodes stop. The next leader is the node that has it.
#[test]
fn a_transaction_that_the_next_leader_commits_is_committed_although_all_nodes_were_restarted() {
    let mut cluster = Cluster::start_calm(3, |builder| builder);
    table(&cluster);
    cluster.assert_equal("app");
    let old = cluster.leader().id();
    let receipt = {
        let db = cluster.node(old).connect("app").unwrap();
        cluster.cut(old, true);
        let _impatient = Impatient::on(cluster.node(old));
        let late = db.execute("INSERT INTO t VALUES (1)", []).unwrap_err();
        assert_eq!(outcome(&late), Some(Outcome::Unknown), "{late}");
        db.last_receipt().unwrap().to_string()
    };
    // Without a handover, in which the other two would find a leader of their own.
    cluster.stop_all();
    let other = old % 3 + 1;
    cluster.calm = false;
    cluster.start_node(other);
    let receipt: Receipt = receipt.parse().unwrap();
    assert_eq!(cluster.node(other).outcome_of(receipt).unwrap(), UNDECIDED);
    cluster.start_node(old);
    assert_eq!(cluster.leader().id(), old, "it has what the other one lacks");
    for node in cluster.running() {
        assert_eq!(settled(node, &receipt), committed(&receipt));
        assert_eq!(count(&node.connect("app").unwrap()), 1);
    }
}

/// Shows INV-29.
#[test]
fn receipts_outlive_the_process_and_the_log() {
    let mut cluster = Cluster::start_with(3, |builder| {
        builder
            .checkpoint_bytes(64 << 10)
            .checkpoint_age(Duration::from_millis(100))
            .segment_bytes(64 << 10)
            .log_limit(512 << 10)
            .part_bytes(64 << 10)
            .election_timeout(Duration::from_secs(2))
    });
    table(&cluster);
    let one = |sql: &str| {
        let db = cluster.leader().connect("app").unwrap();
        db.execute_batch(sql).unwrap();
        db.last_receipt().unwrap()
    };
    one("CREATE TABLE b(v)");
    let small = one("INSERT INTO t VALUES (1)");
    let large = one("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
                     INSERT INTO b SELECT randomblob(4000) FROM n");
    assert!(large.index() > small.index() + 3, "it went in parts, and the receipt names the last");
    let mut round = 1;
    while cluster.running().any(|node| node.status().first.0 <= large.index()) {
        round += 1;
        insert(&cluster, round).unwrap();
        one("DELETE FROM b");
        one("INSERT INTO b VALUES (randomblob(100000))");
    }
    let last = one("INSERT INTO t VALUES (0)");
    for id in 1..=3 {
        cluster.nodes[id as usize - 1] = None;
    }
    for id in 1..=3 {
        cluster.start_node(id);
    }
    cluster.assert_equal("app");
    for node in cluster.running() {
        for receipt in [&small, &large, &last] {
            assert_eq!(settled(node, receipt), committed(receipt), "node {}: {receipt}", node.id());
        }
        // What another leader might have proposed in that place.
        let text = small.to_string();
        let (head, term) = text.rsplit_once('-').unwrap();
        let never: Receipt = format!("{head}-{}", term.parse::<u64>().unwrap() + 1).parse().unwrap();
        assert_eq!(settled(node, &never), ReceiptOutcome::NotCommitted);
    }
}

#[test]
fn what_is_no_receipt_of_this_cluster_is_refused_in_words() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [here, there] = [0, 1].map(|at| Node::open(dirs[at].path()).unwrap());
    let db = there.connect("app").unwrap();
    db.execute("CREATE TABLE t(x)", []).unwrap();
    let receipt = db.last_receipt().unwrap();
    let refused = here.outcome_of(receipt).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BadInput);
    let words = ["is of cluster", "one that shoal recover made anew does not know"];
    assert!(words.iter().all(|word| refused.to_string().contains(word)), "{refused}");
    for garbage in ["", "r1", "nonsense", "r9-00c0ffee00c0ffee-2-5-1047-3"] {
        let error = Error::from(garbage.parse::<Receipt>().unwrap_err());
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.to_string().contains("is no receipt"), "{error}");
    }
    there.shutdown().unwrap();
    assert_eq!(there.outcome_of(receipt).unwrap_err().kind(), ErrorKind::Stopped);
}
