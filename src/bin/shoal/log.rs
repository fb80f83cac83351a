//! `shoal log`: what the log in a data directory holds, without a node and without changing anything.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Value, json};
use shoaldb::catalogue::DatabaseId;
use shoaldb::entry::{self, Body};
use shoaldb::found::format::Identity;
use shoaldb::identity;
use shoaldb::log::LogError;
use shoaldb::log::inspect::{Inspection, LogView};
use shoaldb::recover::registry_of;
use shoaldb::types::{EntryClass, LogEntry, LogIndex, NodeId};
use shoaldb_vfs::env::Env;

use crate::ask::existing;
use crate::table::{is_lost, note, plain, print};
use crate::{Failed, units};

/// Print what the log in a data directory holds: offline, and without changing anything.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  shoal log --data data-1
  shoal log --data data-1 --from 1200
  shoal log --data data-1 --json | jq '.entries[] | select(.kind == \"transaction\")'

Of a log that is damaged, what stands before the damage is printed; the exit code is 1 then. A node may run in the
directory meanwhile; then its newest entries may look as if they were torn.")]
pub(crate) struct LogArgs {
    /// The data directory.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print the entries from this index on.
    #[arg(long, value_name = "INDEX", default_value_t = 0, value_parser = units::number)]
    from: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn failed(error: &LogError) -> Failed {
    Failed { code: 1, text: error.to_string() }
}

/// Prints it.
pub(crate) fn run(args: &LogArgs) -> Result<(), Failed> {
    let variable = || std::env::var_os("SHOAL_DATA").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let dir = args.data.clone().or_else(variable).or_else(|| crate::config::defaults().data.clone());
    let dir = dir.ok_or_else(|| Failed { code: Failed::USAGE, text: "which directory? use --data DIR".to_string() })?;
    existing(&dir)?;
    let inspection = Inspection::new(Env::os().fs, &dir.join("log")).map_err(|error| match error {
        LogError::Io { error, .. } if error.kind() == io::ErrorKind::NotFound => {
            Failed { code: 1, text: format!("{}: no data directory of a node in a cluster", dir.display()) }
        }
        error => failed(&error),
    })?;
    let view = &inspection.view;
    let owner = std::fs::read(dir.join(identity::FILE)).ok().and_then(|bytes| Identity::decode(&bytes).ok());
    let mut names = Names::default();
    // Without it the rest is printed all the same.
    let unnamed = match registry_of(&view.anchor) {
        Ok(registry) => {
            let databases = registry.catalogue.databases();
            names.0.extend(databases.map(|(id, info)| (id, info.name.as_str().to_string())));
            None
        }
        Err(error) => Some(error.to_string()),
    };
    if args.json {
        print_json(args, &inspection, owner.as_ref(), &mut names)?;
    } else {
        print_text(args, &inspection, owner.as_ref(), &mut names)?;
    }
    match view.damage.as_ref().map(ToString::to_string).or(unnamed) {
        Some(damage) => Err(Failed { code: 1, text: format!("{damage}; a node does not start with this log") }),
        None => Ok(()),
    }
}

fn ids(ids: &[NodeId]) -> String {
    if ids.is_empty() { "-".to_string() } else { ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",") }
}

fn print_text(
    args: &LogArgs,
    inspection: &Inspection,
    owner: Option<&Identity>,
    names: &mut Names,
) -> Result<(), Failed> {
    let view = &inspection.view;
    let members = &view.anchor.membership;
    let node = owner.map_or_else(|| "?".to_string(), |owner| format!("{} ({})", owner.node, owner.incarnation));
    print(&format!("cluster {}  node {node}", view.cluster));
    let vote = view.hard_state.vote.map_or_else(|| "-".to_string(), |node| node.to_string());
    print(&format!("term {}  vote {vote}  known to be committed {}", view.hard_state.term, view.hard_state.commit));
    print(&format!(
        "entries {}  anchor {}  voters {}  learners {}  spare files {}",
        range_of(view.start.index.next(), view.last.index),
        view.anchor.applied,
        ids(&members.voters),
        ids(&members.learners),
        view.spares
    ));
    if let Some(cut) = &view.cut {
        print(&format!("a start would cut {} at {}: {}", cut.file, cut.offset, cut.why));
    }
    let mut table = plain(&["segment", "bytes", "used", "entries", "anchor"]);
    for (at, segment) in view.segments.iter().enumerate() {
        table.add_row([
            segment.file.clone(),
            segment.bytes.to_string(),
            segment.end.to_string(),
            range_of(segment.before.index.next(), last_of(view, at)),
            segment.anchored.to_string(),
        ]);
    }
    print(&format!("\n{table}\n"));
    print(&format!("{:>10} {:>6} {:<12} {:>9}  {}", "index", "term", "kind", "bytes", "what"));
    each(args, inspection, names, &mut |entry| {
        print(&format!(
            "{:>10} {:>6} {:<12} {:>9}  {}",
            entry.index,
            entry.term,
            entry.kind,
            entry.bytes,
            entry.words()
        ));
        !is_lost()
    })
}

/// Entries from the first to the last.
fn range_of(first: LogIndex, last: LogIndex) -> String {
    if last < first { "none".to_string() } else { format!("{first} to {last}") }
}

/// The last entry of a segment, or the last before it.
fn last_of(view: &LogView, at: usize) -> LogIndex {
    view.segments.get(at + 1).map_or(view.last.index, |next| next.before.index)
}

fn print_json(
    args: &LogArgs,
    inspection: &Inspection,
    owner: Option<&Identity>,
    names: &mut Names,
) -> Result<(), Failed> {
    let view = &inspection.view;
    let segments: Vec<Value> = view
        .segments
        .iter()
        .enumerate()
        .map(|(at, segment)| {
            json!({
                "file": segment.file, "bytes": segment.bytes, "used": segment.end, "anchor": segment.anchored,
                "first": segment.before.index.next(), "last": last_of(view, at),
            })
        })
        .collect();
    let head = json!({
        "cluster": view.cluster,
        "node": owner.map(|owner| owner.node), "incarnation": owner.map(|owner| owner.incarnation),
        "term": view.hard_state.term, "vote": view.hard_state.vote, "committed": view.hard_state.commit,
        "first": view.start.index.next(), "last": view.last.index, "anchor": view.anchor.applied,
        "voters": view.anchor.membership.voters, "learners": view.anchor.membership.learners,
        "spares": view.spares, "segments": segments,
        "cut": view.cut.as_ref().map(|cut| json!({ "file": cut.file, "offset": cut.offset, "why": cut.why })),
        "damage": view.damage.as_ref().map(ToString::to_string),
    });
    // The entries go out one by one: a log is larger than what one wants in memory twice.
    let head = head.to_string();
    let mut out = io::BufWriter::new(io::stdout());
    let mut written = write!(out, "{},\"entries\":[", head.trim_end_matches('}'));
    let mut first = true;
    let read = each(args, inspection, names, &mut |entry| {
        let comma = if std::mem::take(&mut first) { "\n" } else { ",\n" };
        if written.is_ok() {
            written = write!(out, "{comma}{}", entry.json());
        }
        written.is_ok()
    });
    if read.is_ok() {
        written = written.and_then(|()| writeln!(out, "]}}"));
    }
    note(written.and_then(|()| out.flush()));
    read
}

/// Names of databases by their ids, as far as the anchor or an entry tells.
#[derive(Default)]
struct Names(HashMap<DatabaseId, String>);

/// One entry, in words.
struct Line {
    index: LogIndex,
    term: u64,
    kind: &'static str,
    bytes: usize,
    database: Option<(DatabaseId, Option<String>)>,
    /// What else is known, by name.
    facts: Vec<(&'static str, Value)>,
}

impl Line {
    fn words(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        if let Some((id, name)) = &self.database {
            words.push(name.clone().unwrap_or_else(|| format!("database {id}")));
        }
        for (name, value) in &self.facts {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            words.push(format!("{} {value}", name.replace('_', " ")));
        }
        words.join("  ")
    }

    fn json(&self) -> Value {
        let mut line = json!({ "index": self.index, "term": self.term, "kind": self.kind, "bytes": self.bytes });
        if let Some((id, name)) = &self.database {
            line["database"] = json!({ "id": id, "name": name });
        }
        for (name, value) in &self.facts {
            line[*name] = value.clone();
        }
        line
    }
}

/// Gives the entries to `on`, one after another, until it wants no more.
fn each(
    args: &LogArgs,
    inspection: &Inspection,
    names: &mut Names,
    on: &mut dyn FnMut(Line) -> bool,
) -> Result<(), Failed> {
    let mut wanted = true;
    // From the first one on: that is where the names of databases come from.
    let read = inspection.entries(LogIndex(0), &mut |entry| {
        let line = describe(&entry, names);
        if line.index.0 >= args.from {
            wanted = on(line);
        }
        wanted
    });
    read.map_err(|error| failed(&error))
}

fn describe(entry: &LogEntry, names: &mut Names) -> Line {
    let mut line = Line {
        index: entry.id.index,
        term: entry.id.term.0,
        kind: "",
        bytes: entry.data.len(),
        database: None,
        facts: Vec::new(),
    };
    if entry.class == EntryClass::Membership {
        line.kind = "membership";
        return line;
    }
    if entry.data.is_empty() {
        line.kind = "new term";
        return line;
    }
    let body = match entry::decode(&entry.data) {
        Ok(payload) => payload.body,
        Err(error) => {
            line.kind = "unreadable";
            line.facts.push(("why", error.to_string().into()));
            return line;
        }
    };
    let named = |names: &Names, id: DatabaseId| Some((id, names.0.get(&id).cloned()));
    match body {
        Body::Transaction { database, transaction } => {
            line.kind = "transaction";
            line.database = named(names, database);
            line.facts.push(("pages", transaction.pages.len().into()));
            line.facts.push(("base", transaction.base.0.into()));
            line.facts.push(("size_after", transaction.size_after.0.into()));
        }
        Body::Part(part) => {
            line.kind = if part.head.last { "last part" } else { "part" };
            line.database = named(names, part.head.database);
            line.facts.push(("number", part.head.number.into()));
            line.facts.push(("pages", part.pages.len().into()));
        }
        Body::GivenUp { database, .. } => {
            line.kind = "given up";
            line.database = named(names, database);
        }
        Body::CreateDatabase { name, page_size, .. } => {
            let id = DatabaseId(entry.id.index.0);
            names.0.insert(id, name.as_str().to_string());
            line.kind = "create";
            line.database = named(names, id);
            line.facts.push(("page_size", page_size.bytes().into()));
        }
        Body::DropDatabase { database } => {
            line.kind = "drop";
            line.database = named(names, database);
        }
        Body::Checkpoint => line.kind = "checkpoint",
        Body::BindIncarnation { node, incarnation, address } => {
            line.kind = "bind";
            line.facts.push(("node", node.0.into()));
            line.facts.push(("incarnation", incarnation.to_string().into()));
            line.facts.push(("address", address.into()));
        }
    }
    line
}
