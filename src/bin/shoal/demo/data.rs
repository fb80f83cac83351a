//! What the demo's database holds besides what its writers append.

use std::path::Path;

use serde_json::Value;

use super::show::Show;
use super::{PATIENCE, failed};
use crate::Failed;
use crate::harness::cluster::Cluster;
use crate::harness::wire::Act;
use crate::load::{self, Contents};

/// Rows of one transaction while loading: a few hundred kilobytes with usual rows.
const ROWS: u32 = 2000;
/// Generated rows.
const GENERATED: u64 = 40_000;

/// Where data comes from.
pub(crate) enum Source {
    Generated,
    File { path: String, contents: Contents },
}

impl Source {
    /// Looks into a file, before anything is started for it.
    pub(crate) fn file(path: &Path) -> Result<Source, Failed> {
        let text = path.to_str().ok_or_else(|| failed(format!("{}: the name is not UTF-8", path.display())))?;
        let contents = load::contents(text).map_err(|error| failed(format!("{text}: {error}")))?;
        if contents.tables.iter().any(|(table, _)| table == "shoal_demo") {
            return Err(failed(format!("{text}: has a table shoal_demo, which the demo makes itself")));
        }
        Ok(Source::File { path: text.to_string(), contents })
    }

    /// Loads it through the leader.
    pub(crate) fn load(&self, cluster: &Cluster, show: &Show) -> Result<Loaded, Failed> {
        let tables = match self {
            Source::Generated => generate(cluster, show)?,
            Source::File { path, contents } => copy(path, contents, cluster, show)?,
        };
        show.end();
        Ok(Loaded { tables })
    }
}

/// The tables that were loaded, with rows and digest: of the file, if they came from one.
pub(crate) struct Loaded {
    tables: Vec<(String, Value)>,
}

impl Loaded {
    pub(crate) fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Whether a node has all of them as they were.
    pub(crate) fn compare(&self, cluster: &Cluster, id: u64) -> Result<(), Failed> {
        for (table, expected) in &self.tables {
            let found = cluster.digest(id, table)?;
            if found != *expected {
                return Err(failed(format!("node {id}: table {table} was loaded as {expected}, and is {found} now")));
            }
        }
        Ok(())
    }
}

fn generate(cluster: &Cluster, show: &Show) -> Result<Vec<(String, Value)>, Failed> {
    let sql = "CREATE TABLE IF NOT EXISTS catch(id INTEGER PRIMARY KEY, species TEXT, length_mm INT, depth_m REAL);
               CREATE INDEX IF NOT EXISTS catch_species ON catch(species, length_mm)";
    cluster.on_leader(&Act::Batch { sql: sql.to_string() }, PATIENCE)?;
    show.say(&format!("loading {GENERATED} generated rows (--file loads a database of yours)"));
    show.begin("loading", GENERATED);
    for first in (1..=GENERATED).step_by(ROWS as usize) {
        let last = (first + u64::from(ROWS) - 1).min(GENERATED);
        // By id and OR IGNORE, so that a batch may be repeated.
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last})
             INSERT OR IGNORE INTO catch
             SELECT i, substr('herring sprat   anchovy sardine mackerel', 1 + i * 7919 % 5 * 8, 8),
                    50 + i * 104729 % 400, (i * 1299709 % 3000) / 10.0 FROM n"
        );
        cluster.on_leader(&Act::Batch { sql }, PATIENCE)?;
        show.progress(last, &format!("{last} rows"));
    }
    let leader = cluster.wait_leader(PATIENCE).ok_or_else(|| failed("no leader after the rows were loaded"))?;
    Ok(vec![("catch".to_string(), cluster.digest(leader, "catch")?)])
}

fn copy(path: &str, contents: &Contents, cluster: &Cluster, show: &Show) -> Result<Vec<(String, Value)>, Failed> {
    let rows: u64 = contents.tables.iter().map(|(_, rows)| rows).sum();
    show.say(&format!("loading {path}: {} tables, {rows} rows", contents.tables.len()));
    for table in &contents.left_out {
        show.say(&format!("{table} is a virtual table: left out"));
    }
    let batch = |statements: &[String]| Act::Batch { sql: statements.join(";\n") };
    cluster.on_leader(&batch(&contents.create), PATIENCE).map_err(|error| failed(format!("{path}: {}", error.text)))?;
    show.begin("loading", rows);
    let mut done = 0;
    for (table, expected) in &contents.tables {
        let mut from = None;
        loop {
            let act = Act::Load { file: path.to_string(), table: table.clone(), from, limit: ROWS };
            let answer = cluster
                .on_leader(&act, PATIENCE)
                .map_err(|error| failed(format!("{path}: table {table}: {}", error.text)))?;
            done += answer["rows"].as_u64().unwrap_or(0);
            show.progress(done, table);
            from = answer["next"].as_i64();
            if from.is_none() {
                break;
            }
        }
        let sql = format!("SELECT count(*) FROM {}", load::quoted(table));
        let loaded = cluster.on_leader(&Act::Read { sql, linearizable: true }, PATIENCE)?;
        if loaded.pointer("/0/0").and_then(Value::as_u64) != Some(*expected) {
            return Err(failed(format!("{path}: table {table} has {expected} rows, the copy has {loaded}")));
        }
    }
    for statement in &contents.afterwards {
        cluster
            .on_leader(&batch(std::slice::from_ref(statement)), PATIENCE)
            .map_err(|error| failed(format!("{path}: {}: {statement}", error.text)))?;
    }
    show.say(&format!("{rows} rows are loaded"));
    load::digests(path, contents).map_err(|error| failed(format!("{path}: {error}")))
}
