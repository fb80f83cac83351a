//! `shoal status`, `health`, `transfer` and `db`: questions to running nodes, and their answers as text or JSON.

use std::fmt::Display;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use serde_json::json;
use shoaldb::client::{Client, Doors};
use shoaldb::{AutoVacuum, CreateOptions, Error, ErrorKind, Receipt, ReceiptOutcome, Status};

use crate::progress::{of_snapshot, share};
use crate::table::{plain, print};
use crate::units::bytes;
use crate::{Failed, config, say, units};

/// Where the nodes are. Variables and the file of settings are looked at by hand: a flag must win over the other one's
/// variable, and a variable over what the file says of the other one.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Where {
    /// Addresses of nodes on this machine, best of all members: what the leader does is asked of the leader among them, the rest of
    /// the first one that can; `status` and `health` ask each of these and no other [env: SHOAL_ENDPOINTS].
    #[arg(long, value_name = "ADDR,...", value_delimiter = ',', conflicts_with = "data")]
    endpoints: Vec<String>,
    /// Data directory of a node that runs on this machine; asks it over its admin socket [env: SHOAL_DATA].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// What one place says of where the nodes are: a directory, and addresses.
type Said = (Option<PathBuf>, Vec<String>);

impl Where {
    pub(crate) fn client(self) -> Result<Client, Failed> {
        Ok(Client::new(match self.said()? {
            (Some(dir), addresses) if addresses.is_empty() => Doors::Directory(dir),
            (_, addresses) => Doors::Endpoints(addresses),
        }))
    }

    /// What the first place says that says anything.
    fn said(self) -> Result<Said, Failed> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let split = |list: String| list.split(',').map(str::to_string).collect();
        let flags = || (self.data, self.endpoints);
        let variables =
            || (variable("SHOAL_DATA").map(PathBuf::from), variable("SHOAL_ENDPOINTS").map_or_else(Vec::new, split));
        let file = || (config::defaults().data.clone(), config::defaults().endpoints.clone().unwrap_or_default());
        let any = |(dir, addresses): &Said| dir.is_some() || !addresses.is_empty();
        let said = [flags(), variables(), file()].into_iter().find(any);
        let usage = |text: String| Failed { code: Failed::USAGE, text };
        match said {
            Some(said) => {
                // Beside addresses it is not asked, and need not be on this machine.
                said.0.as_deref().filter(|_| said.1.is_empty()).map_or(Ok(()), existing)?;
                said.1.iter().try_for_each(|address| endpoint(address)).map_err(usage)?;
                Ok(said)
            }
            None => Err(usage("which node? use --data DIR or --endpoints ADDR,ADDR".to_string())),
        }
    }
}

/// Whether there can be a node: what is no address is no fault of a leader.
fn endpoint(address: &str) -> Result<(), String> {
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(()),
        _ => Err(format!("--endpoints: '{address}' is no address: write HOST:PORT, such as 127.0.0.1:4001")),
    }
}

/// Of what any node can do: that none was reached says nothing of a leader.
pub(crate) fn of_any_node(client: &Client, error: Error) -> Failed {
    let failed = Failed::from(error);
    match failed.code {
        Failed::NO_LEADER if client.status().iter().all(|(_, answer)| answer.is_err()) => Failed { code: 1, ..failed },
        _ => failed,
    }
}

/// What the first node says that can, the leader before all others.
pub(crate) fn of_cluster(question: &Question) -> Result<Status, Failed> {
    let client = question.client()?;
    client.databases().map_err(|error| of_any_node(&client, error))
}

/// What cannot be undone is asked for at a terminal, and said with `--yes` where there is none.
pub(crate) fn confirm(yes: bool, question: &str, otherwise: &str) -> Result<(), Failed> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let text = format!("{otherwise}; there is no terminal to ask at: say --yes");
        return Err(Failed { code: Failed::USAGE, text });
    }
    say::part(&format!("{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(Error::from)?;
    match answer.trim().eq_ignore_ascii_case("y") {
        true => Ok(()),
        false => Err(Failed { code: 1, text: otherwise.to_string() }),
    }
}

/// What came of a command, or of a part that prints nothing by itself: with `--json` there is an answer on standard output also if it
/// failed.
pub(crate) fn or_error<T>(json: bool, result: Result<T, Failed>) -> Result<T, Failed> {
    if let Err(Failed { code, text }) = &result
        && json
    {
        print(&format!("{:#}", json!({ "error": text, "exit_code": code })));
    }
    result
}

/// A data directory that is not there is told in the same way by all that want one.
pub(crate) fn existing(dir: &Path) -> Result<(), Failed> {
    if dir.is_dir() {
        return Ok(());
    }
    let text = format!("{}: there is no such directory; --data is the data directory of a node", dir.display());
    Err(Failed { code: Failed::USAGE, text })
}

/// Where, and how the answer looks.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Question {
    #[command(flatten)]
    at: Where,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl DbArgs {
    /// Whether the answer is JSON.
    pub(crate) fn json(&self) -> bool {
        let (DbAct::List { question } | DbAct::Create { question, .. } | DbAct::Drop { question, .. }) = &self.act;
        question.json
    }
}

impl Question {
    pub(crate) fn client(&self) -> Result<Client, Failed> {
        self.at.clone().client()
    }
}

/// Show what nodes say of themselves and their cluster.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  shoal status --data data-1
  shoal status --endpoints 127.0.0.1:4001,127.0.0.1:4002,127.0.0.1:4003
  shoal status --data data-1 --json | jq .[0].status.leader

Exit code: 0 if every node answered, 1 if some did not, 4 if none of those that did knows a leader.")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    question: Question,
}

/// Check that nodes are well: in a cluster, with a leader, without trouble.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  shoal health --data data-1
  shoal health --endpoints 127.0.0.1:4001,127.0.0.1:4002 || alert

A node is well when it follows a leader or leads, shows all that was committed when it was asked, and has no alarm but
that it leads and does not reach another one.

Exit code: 0 if all are well, 1 if one is not or was not reached, 4 if nobody knows of a leader.")]
pub(crate) struct HealthArgs {
    #[command(flatten)]
    question: Question,
}

/// Hand leadership to another node.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:
  shoal transfer 2 --endpoints 127.0.0.1:4001,127.0.0.1:4002")]
pub(crate) struct TransferArgs {
    /// Id of the node that shall lead.
    #[arg(value_parser = units::node_id)]
    id: u16,
    #[command(flatten)]
    pub(crate) question: Question,
}

/// Say what became of a transaction whose outcome was not known.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:
  shoal outcome r1-00c0ffee00c0ffee-2-5-1047-3 --endpoints 127.0.0.1:4001,127.0.0.1:4002

The receipt is what the failed statement said, or PRAGMA shoal_last_receipt. Any node of the cluster can be asked, and never says
more than it can prove: one that got a snapshot since does not know what was before, so name all of them. A cluster that
shoal recover made does not know what was before that.

Exit code: 0 if it is known now, committed or not, 3 if nobody who was asked can prove either.")]
pub(crate) struct OutcomeArgs {
    /// Which transaction.
    receipt: Receipt,
    #[command(flatten)]
    pub(crate) question: Question,
}

/// List, create and drop databases.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  shoal db list --data data-1
  shoal db create app --endpoints 127.0.0.1:4001,127.0.0.1:4002")]
pub(crate) struct DbArgs {
    #[command(subcommand)]
    act: DbAct,
}

#[derive(clap::Subcommand, Debug)]
enum DbAct {
    /// List databases with their size.
    #[command(after_help = "Example:\n  shoal db list --data data-1 --json")]
    List {
        #[command(flatten)]
        question: Question,
    },
    /// Create a database. (The first write to a name does so by itself, with the defaults.)
    #[command(after_help = "Example:\n  shoal db create app --page-size 8192 --data data-1")]
    Create {
        /// Its name: letters, digits, `_`, `.` and `-`, at most 128, not starting with a dot.
        name: String,
        /// Bytes of one page: a power of two from 512 to 65536.
        #[arg(long, default_value_t = CreateOptions::default().page_size, value_parser = page_size)]
        page_size: u32,
        /// How free pages are given back.
        #[arg(long, value_enum, default_value_t = Vacuum::None)]
        auto_vacuum: Vacuum,
        #[command(flatten)]
        question: Question,
    },
    /// Drop a database, on all nodes, with everything in it.
    #[command(
        after_help = "Examples:\n  shoal db drop app --data data-1\n  shoal db drop app --yes --data data-1 < /dev/null"
    )]
    Drop {
        /// Its name.
        name: String,
        /// Do not ask. Needed where there is no terminal.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        question: Question,
    },
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Vacuum {
    None,
    Full,
    Incremental,
}

/// Whether it is one that there is, the node says.
fn page_size(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "write a power of two from 512 to 65536".to_string())
}

fn named(door: &str, error: &Error) -> String {
    let text = error.to_string();
    if text.contains(door) { text } else { format!("{door}: {text}") }
}

fn id(id: Option<impl Display>) -> String {
    id.map_or_else(|| "-".to_string(), |id| id.to_string())
}

fn list(ids: &[impl Display]) -> String {
    if ids.is_empty() { "-".to_string() } else { ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",") }
}

/// `shoal status`.
pub(crate) fn status(args: StatusArgs) -> Result<(), Failed> {
    let answers = or_error(args.question.json, args.question.client())?.status();
    if args.question.json {
        let answers: Vec<_> = answers
            .iter()
            .map(|(door, answer)| match answer {
                Ok(status) => json!({ "at": door, "status": status }),
                Err(error) => json!({ "at": door, "error": error.to_string(), "exit_code": Failed::code_of(error) }),
            })
            .collect();
        print(&format!("{:#}", json!(answers)));
    } else {
        let known: Vec<&Status> = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).collect();
        print_status(&known);
    }
    let failed: Vec<(&str, &Error)> =
        answers.iter().filter_map(|(door, answer)| Some((door.as_str(), answer.as_ref().err()?))).collect();
    let knows =
        |(_, answer): &(String, Result<Status, Error>)| answer.as_ref().is_ok_and(|status| status.leader.is_some());
    judge(&failed, answers.iter().any(knows))
}

fn print_status(known: &[&Status]) {
    let Some(first) = known.first() else { return };
    print(&format!(
        "cluster {}  voters {}  learners {}",
        id(first.cluster),
        list(&first.voters),
        list(&first.learners)
    ));
    let mut nodes = plain(&["node", "role", "term", "leader", "first", "last", "committed", "applied"]);
    for status in known {
        nodes.add_row([
            status.node.to_string(),
            status.role.clone(),
            status.term.to_string(),
            id(status.leader),
            status.first.to_string(),
            status.last.to_string(),
            status.committed.to_string(),
            status.applied.to_string(),
        ]);
    }
    print(&format!("\n{nodes}"));
    let mut bounds = plain(&["node", "log", "wal in memory", "connections", "sessions", "views lent"]);
    for status in known {
        let connections =
            status.connections.as_ref().map_or_else(|| "-".to_string(), |in_use| of(in_use.now, in_use.limit));
        bounds.add_row([
            status.node.to_string(),
            of(bytes(status.log_bytes), bytes(status.log_limit)),
            of(bytes(status.wal_memory), bytes(status.wal_limit)),
            connections,
            of(status.sessions.now, status.sessions.limit),
            status.lent.0.to_string(),
        ]);
    }
    print(&format!("\nin use, of the limit\n{bounds}"));
    let mut queues = plain(&["node", "newest entries", "uncommitted", "to apply", "messages"]);
    for status in known {
        let bounded = [&status.tail_cache, &status.uncommitted, &status.to_apply, &status.inbox];
        queues.add_row(
            std::iter::once(status.node.to_string())
                .chain(bounded.into_iter().map(|bounded| of(bytes(bounded.now), bytes(bounded.limit)))),
        );
    }
    print(&format!("\nqueues in memory, of the limit\n{queues}"));
    print(&format!("\nwhat else has a bound, of the limit\n{}", bounds_of(known)));
    if known.iter().any(|status| !status.databases.is_empty()) {
        let mut databases = plain(&["database", "node", "pages", "page size", "position", "double-write", "checksum"]);
        for status in known {
            for database in &status.databases {
                databases.add_row([
                    database.name.clone(),
                    status.node.to_string(),
                    database.pages.to_string(),
                    database.page_size.to_string(),
                    database.position.to_string(),
                    of(bytes(database.doublewrite.now), bytes(database.doublewrite.limit)),
                    database.checksum.clone(),
                ]);
            }
        }
        print(&format!("\n{databases}"));
        print(&format!("\nand their write-ahead logs\n{}", wals(known)));
    }
    for status in known {
        if let Some(snapshot) = &status.snapshot {
            print(&format!(
                "\nnode {} gets a snapshot of entry {} from node {}: {}",
                status.node,
                snapshot.index,
                snapshot.source,
                of_snapshot(snapshot)
            ));
        }
    }
    for status in known.iter().filter(|status| !status.peers.is_empty()) {
        let mut peers = plain(&["peer", "acknowledged", "next", "state", "snapshot", "heard of lately"]);
        for peer in &status.peers {
            let active = if peer.active { "yes" } else { "no" };
            let snapshot = peer.snapshot.map_or(String::new(), |(done, total)| share(done, total));
            let (node, acknowledged, next) =
                (peer.node.to_string(), peer.acknowledged.to_string(), peer.next.to_string());
            peers.add_row([node, acknowledged, next, peer.state.clone(), snapshot, active.to_string()]);
        }
        print(&format!("\nas leader {} knows them\n{peers}", status.node));
    }
    for status in known {
        for alarm in &status.alarms {
            print(&format!("\nnode {}: {alarm}", status.node));
        }
    }
}

/// What is in use of what there may be.
fn of(now: impl Display, limit: impl Display) -> String {
    format!("{now}/{limit}")
}

/// What else has a bound: a row for each, since their names are long.
fn bounds_of(known: &[&Status]) -> comfy_table::Table {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (column, status) in known.iter().enumerate() {
        let others = status.bounds.iter().map(|bound| (bound.name.clone(), bound.now, bound.limit, bound.bytes));
        let splits =
            ("large transactions that are coming".to_string(), status.open_splits.now, status.open_splits.limit, false);
        let peers = status.peers.iter().map(|peer| {
            (format!("entries on their way to node {}", peer.node), peer.in_flight.now, peer.in_flight.limit, true)
        });
        for (name, now, limit, in_bytes) in others.chain([splits]).chain(peers) {
            let at = rows.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
                rows.push((name, vec!["-".to_string(); known.len()]));
                rows.len() - 1
            });
            rows[at].1[column] = if in_bytes { of(bytes(now), bytes(limit)) } else { of(now, limit) };
        }
    }
    let nodes: Vec<String> = known.iter().map(|status| format!("node {}", status.node)).collect();
    let mut table = plain(&std::iter::once("what").chain(nodes.iter().map(String::as_str)).collect::<Vec<_>>());
    for (name, row) in rows {
        table.add_row(std::iter::once(name).chain(row));
    }
    table
}

/// What the write-ahead log of each database has, and who keeps it.
fn wals(known: &[&Status]) -> comfy_table::Table {
    let mut wals = plain(&[
        "database",
        "node",
        "frames",
        "size",
        "spilled",
        "checkpointed",
        "oldest reader",
        "ended",
        "views",
        "writers waiting",
    ]);
    for status in known {
        for database in &status.databases {
            let seconds = |ms: u64| format!("{}.{}s", ms / 1000, ms % 1000 / 100);
            wals.add_row([
                database.name.clone(),
                status.node.to_string(),
                database.wal_frames.to_string(),
                of(bytes(database.wal.now), bytes(database.wal.limit)),
                bytes(database.wal_spilled),
                database.checkpointed.to_string(),
                database.oldest_reader_ms.map_or_else(|| "-".to_string(), seconds),
                database.readers_ended.to_string(),
                database.views.to_string(),
                database.writers_waiting.to_string(),
            ]);
        }
    }
    wals
}

/// The exit code of several answers, of which some are no good; the last reason is told last.
fn judge(failed: &[(&str, &Error)], somebody_knows_a_leader: bool) -> Result<(), Failed> {
    let Some((door, error)) = failed.last() else {
        let text = "nobody who answered knows a leader; a majority of the voters elects one when it runs and is connected, and \
                    `shoal health` says what is in the way"
            .to_string();
        return if somebody_knows_a_leader { Ok(()) } else { Err(Failed { code: Failed::NO_LEADER, text }) };
    };
    for (door, error) in &failed[..failed.len() - 1] {
        say::failed(&named(door, error));
    }
    let code = if somebody_knows_a_leader { 1 } else { Failed::NO_LEADER };
    Err(Failed { code, text: named(door, error) })
}

/// `shoal health`.
pub(crate) fn health(args: HealthArgs) -> Result<(), Failed> {
    let answers = or_error(args.question.json, args.question.client())?.health();
    if args.question.json {
        let answers: Vec<_> = answers
            .iter()
            .map(|(door, answer)| match answer {
                Ok(()) => json!({ "at": door, "healthy": true }),
                Err(error) => {
                    let code = Failed::code_of(error);
                    json!({ "at": door, "healthy": false, "error": error.to_string(), "exit_code": code })
                }
            })
            .collect();
        print(&format!("{:#}", json!(answers)));
    } else {
        answers.iter().filter(|(_, answer)| answer.is_ok()).for_each(|(door, _)| print(&format!("{door}: healthy")));
    }
    let mut failed: Vec<(&str, &Error)> =
        answers.iter().filter_map(|(door, answer)| Some((door.as_str(), answer.as_ref().err()?))).collect();
    // A node in trouble is the gravest, and told last.
    failed.sort_by_key(|(_, error)| error.kind() != ErrorKind::NotLeader);
    let knows = |(_, answer): &(String, Result<(), Error>)| {
        answer.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::NotLeader)
    };
    judge(&failed, answers.iter().any(knows))
}

/// `shoal transfer`.
pub(crate) fn transfer(args: TransferArgs) -> Result<(), Failed> {
    args.question.client()?.transfer(args.id)?;
    done(args.question.json, json!({ "leader": args.id }), &format!("node {} leads", args.id));
    Ok(())
}

/// `shoal outcome`.
pub(crate) fn outcome(args: OutcomeArgs) -> Result<(), Failed> {
    let client = args.question.client()?;
    let outcome = client.outcome_of(&args.receipt).map_err(|error| of_any_node(&client, error))?;
    let text = match outcome {
        ReceiptOutcome::Committed(index) => format!("committed, by entry {index}"),
        ReceiptOutcome::NotCommitted => {
            "not committed, and no node will ever apply it; it is safe to run again".to_string()
        }
        ReceiptOutcome::Unknown(why) => {
            return Err(Failed { code: Failed::UNKNOWN, text: format!("{}: {why}", args.receipt) });
        }
    };
    done(args.question.json, json!({ "receipt": args.receipt, "outcome": outcome }), &text);
    Ok(())
}

pub(crate) fn done(json: bool, value: serde_json::Value, text: &str) {
    print(&if json { format!("{value:#}") } else { text.to_string() });
}

/// `shoal db`.
pub(crate) fn db(args: DbArgs) -> Result<(), Failed> {
    match args.act {
        DbAct::List { question } => {
            let status = of_cluster(&question)?;
            if question.json {
                print(&format!("{:#}", json!(status.databases)));
                return Ok(());
            }
            let mut table = plain(&["name", "pages", "page size", "position"]);
            for database in &status.databases {
                table.add_row([
                    database.name.clone(),
                    database.pages.to_string(),
                    database.page_size.to_string(),
                    database.position.to_string(),
                ]);
            }
            print(&table.to_string());
        }
        DbAct::Create { name, page_size, auto_vacuum, question } => {
            let auto_vacuum = match auto_vacuum {
                Vacuum::None => AutoVacuum::None,
                Vacuum::Full => AutoVacuum::Full,
                Vacuum::Incremental => AutoVacuum::Incremental,
            };
            question.at.client()?.create(&name, CreateOptions { page_size, auto_vacuum })?;
            done(question.json, json!({ "created": name }), &format!("created {name}"));
        }
        DbAct::Drop { name, yes, question } => {
            let client = question.client()?;
            let ask = format!("Drop {name} on all nodes, with everything in it?");
            confirm(yes, &ask, &format!("{name} was not dropped"))?;
            client.drop_database(&name)?;
            done(question.json, json!({ "dropped": name }), &format!("dropped {name}"));
        }
    }
    Ok(())
}
