//! diesel. `cargo run -p shoaldb-clients --example diesel`
//!
//! diesel shows SQLite's text and no code, so an application cannot tell from the error whether a commit counts. It asks
//! for the receipt instead.

#![allow(missing_docs, reason = "diesel's macro makes public items")]

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use shoaldb::{Node, Receipt};

diesel::table! {
    visits (id) {
        id -> BigInt,
        who -> Text,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let node = Node::open(dir.path())?;
    let mut db = SqliteConnection::establish(&format!("file:app?vfs={}", node.vfs_name()))?;
    // diesel does not wait for another writer, or for an election, unless it is told to.
    db.batch_execute("PRAGMA busy_timeout = 5000; CREATE TABLE visits(id INTEGER PRIMARY KEY, who TEXT NOT NULL)")?;
    let done = db.immediate_transaction(|db| {
        diesel::insert_into(visits::table).values(visits::who.eq("Ada")).execute(db)?;
        diesel::insert_into(visits::table).values(visits::who.eq("Grace")).execute(db)
    });
    let text: String = diesel::dsl::sql::<Text>("PRAGMA shoal_last_receipt").get_result(&mut db)?;
    match text.parse::<Receipt>() {
        Ok(receipt) => println!("{done:?}; any node says of {receipt}: {:?}", node.outcome_of(receipt)?),
        Err(_) => println!("{done:?}; it never came to the log"),
    }
    let who: Vec<String> = visits::table.select(visits::who).load(&mut db)?;
    println!("{who:?}");
    assert_eq!((done, who.len()), (Ok(1), 2));
    drop(db);
    node.shutdown()?;
    Ok(())
}

#[cfg(test)]
#[test]
fn it_runs() {
    main().unwrap();
}
