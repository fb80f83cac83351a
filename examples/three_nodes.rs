//! Three nodes in one process, which is all it takes to look around: a write on the leader, a read on every node, another
//! leader. In earnest each node is a process on its own machine, started in the same way. `cargo run --example three_nodes`

use std::time::Duration;

use shoaldb::{Member, Node, ReadLevel};

const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let list: Vec<Member> = (1..=3).map(|id| Member::new(id, format!("127.0.0.1:{}", 4000 + id))).collect();
    let mut nodes = Vec::new();
    for member in &list {
        let node = Node::builder(member.id, dir.path().join(member.id.to_string()))
            .listen(member.address.clone())
            .bootstrap(list.clone())
            .start()?;
        nodes.push(node);
    }
    let leader = nodes[0].wait_leader(PATIENCE)?;
    println!("node {leader} leads");

    let node = &nodes[leader as usize - 1];
    node.write("app", |tx| {
        tx.execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES ('on a majority of disks')")?;
        Ok(())
    })?;

    // A follower refuses writes and names the leader; it reads as everybody does.
    let follower = nodes.iter().find(|node| node.id() != leader).ok_or("three nodes have a follower")?;
    let db = follower.connect("app")?;
    db.set_read_level(ReadLevel::Linearizable);
    let value: String = db.query_row("SELECT v FROM t", [], |row| row.get(0))?;
    println!("node {} reads: {value}", follower.id());
    if let Err(error) = follower.write("app", |tx| Ok(tx.execute("DELETE FROM t", [])?)) {
        println!("node {} does not write: {error}", follower.id());
    }

    node.transfer_leadership(follower.id())?;
    println!("node {} leads now", follower.wait_leader(PATIENCE)?);
    for node in &nodes {
        let (index, checksum) = node.checksum("app")?;
        println!("node {} shows entry {index}, checksum {checksum:032x}", node.id());
    }
    drop(db);
    nodes.iter().try_for_each(Node::shutdown)?;
    Ok(())
}
