//! `shoal backup`, `restore` and `verify`: a database into a file, a file into a database, and whether all nodes have the same.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use shoaldb::client::Verified;
use shoaldb::{Phase, Progress};

use crate::Failed;
use crate::ask::{Question, confirm, of_any_node, or_error};
use crate::table::{plain, print};
use crate::units::bytes;

/// Write a database to a plain SQLite file, while writes go on.
///
/// The file is one state of the database, as the node shows it. The node writes it, on its machine, for the user that runs it.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  shoal backup app /backups/app-monday.db --data data-1
  shoal backup app app.db --endpoints 127.0.0.1:4001

An existing file is never overwritten. There is a file of that name only once it is whole and on disk.
With --endpoints the node is found by its address and asked over the admin socket in its directory.")]
pub(crate) struct BackupArgs {
    /// The database.
    #[arg(value_name = "DB")]
    database: String,
    /// The file; must not exist.
    file: PathBuf,
    #[command(flatten)]
    pub(crate) question: Question,
}

/// Replace a database by the content of a SQLite file, in one transaction.
///
/// The file may have any page size, encoding and auto_vacuum, and a -wal beside it. It is checked first. Readers see the old
/// database until the new one is committed.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  shoal restore app /backups/app-monday.db --data data-1
  shoal restore app app.db --yes --endpoints 127.0.0.1:4001,127.0.0.1:4002,127.0.0.1:4003

The leader does it: with --endpoints it is looked for among them. It reads the file on its machine.
It asks first at a terminal; where there is none, --yes is needed.
If this command is interrupted, the node goes on. Exit code 3: whether it is restored is not known; look.")]
pub(crate) struct RestoreArgs {
    /// The database; created if it does not exist.
    #[arg(value_name = "DB")]
    database: String,
    /// The file.
    file: PathBuf,
    /// Do not ask. Needed where there is no terminal.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    pub(crate) question: Question,
}

/// Compare what all nodes have, at one index, while writes go on.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  shoal verify --data data-1
  shoal verify app --deep --endpoints 127.0.0.1:4001,127.0.0.1:4002 || alert

Exit code: 0 if all nodes have the same, 1 if one differs, has a damaged page, or does not answer.")]
pub(crate) struct VerifyArgs {
    /// The database; all of them if none is named.
    #[arg(value_name = "DB")]
    database: Option<String>,
    /// Have each node read all its pages from its disk and compare them with their hashes.
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    question: Question,
}

/// A bar on standard error, if that is a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Bar {
        let bar = ProgressBar::no_length();
        let style = ProgressStyle::with_template("{spinner} {msg:10} {bar:30} {bytes}/{total_bytes} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(100));
        Bar(bar)
    }

    fn show(&self, progress: Progress) {
        self.0.set_message(match progress.phase {
            Phase::Checking => "checking",
            Phase::Copying => "copying",
            _ => "committing",
        });
        if progress.total > 0 {
            self.0.set_length(progress.total);
            self.0.set_position(progress.done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn done(json: bool, value: &serde_json::Value, text: &str) {
    print(&if json { format!("{value:#}") } else { text.to_string() });
}

/// `shoal backup`.
pub(crate) fn backup(args: BackupArgs) -> Result<(), Failed> {
    let json = args.question.json;
    let client = args.question.client()?;
    let bar = Bar::new();
    let written = client.backup(&args.database, &args.file, |progress| bar.show(progress));
    drop(bar);
    written.map_err(|error| of_any_node(&client, error))?;
    let file = args.file.display();
    done(json, &json!({ "backup": args.database, "file": args.file }), &format!("wrote {} to {file}", args.database));
    Ok(())
}

/// `shoal restore`.
pub(crate) fn restore(args: RestoreArgs) -> Result<(), Failed> {
    let json = args.question.json;
    let client = args.question.client()?;
    let (name, file) = (&args.database, args.file.display());
    let is_there = |status: shoaldb::Status| status.databases.iter().any(|database| database.name == *name);
    // Whoever cannot tell says more when it is done.
    let (ask, otherwise) = match args.yes || client.databases().map_or(true, is_there) {
        true => (format!("Replace what is in {name} by {file}?"), format!("{name} was left as it is")),
        false => (format!("Make {name}, which does not exist yet, from {file}?"), format!("{name} was not made")),
    };
    confirm(args.yes, &ask, &otherwise)?;
    let bar = Bar::new();
    let restored = client.restore(&args.database, &args.file, |progress| bar.show(progress));
    drop(bar);
    let file = args.file.display();
    restored.map_err(|error| match (error.leader(), client.seat()) {
        (Some(leader), Ok(here)) => {
            let (name, node, dir) = (&args.database, here.node, here.directory.display());
            let text = format!(
                "{error}; nothing was changed. Node {leader} does it: shoal restore {name} {file} --data DIR, with the directory \
                 of node {leader}, on its machine; or make this node the leader: shoal transfer {node} --data {dir}"
            );
            Failed { code: 1, text }
        }
        _ => error.into(),
    })?;
    done(
        json,
        &json!({ "restored": args.database, "file": args.file }),
        &format!("restored {} from {file}", args.database),
    );
    Ok(())
}

/// `shoal verify`.
pub(crate) fn verify(args: VerifyArgs) -> Result<(), Failed> {
    let json = args.question.json;
    let verified = args.question.client().and_then(|client| {
        client.verify(args.database.as_deref(), args.deep).map_err(|error| of_any_node(&client, error))
    });
    let all = or_error(json, verified)?;
    if json {
        print(&format!("{:#}", json!(all)));
    } else {
        show(&all, args.deep);
    }
    let names = |those: &[&Verified]| those.iter().map(|one| one.database.as_str()).collect::<Vec<_>>().join(", ");
    let (silent, different): (Vec<&Verified>, Vec<&Verified>) =
        all.iter().filter(|one| !one.same).partition(|one| one.those_that_answered_agree());
    let text = match (different.is_empty(), silent.is_empty()) {
        (true, true) => return Ok(()),
        (true, false) => format!("the same on all nodes that answered, but not all did: {}", names(&silent)),
        (false, _) => format!("not the same on all nodes: {}", names(&different)),
    };
    Err(Failed { code: 1, text })
}

fn show(all: &[Verified], deep: bool) {
    let mut table =
        plain(&["database", "position", "node", "checksum", if deep { "read back" } else { "" }, "verdict"]);
    for one in all {
        for node in &one.nodes {
            let verdict = match &node.problem {
                Some(problem) => problem.clone(),
                None if !node.damaged.is_empty() => format!("damaged pages: {:?}", node.damaged),
                None if one.those_that_answered_agree() => "same".to_string(),
                None => "see the others".to_string(),
            };
            table.add_row([
                one.database.clone(),
                one.position.to_string(),
                node.node.to_string(),
                node.checksum.clone().unwrap_or_else(|| "-".to_string()),
                node.read.map_or_else(String::new, bytes),
                verdict,
            ]);
        }
    }
    if !all.is_empty() {
        print(&table.to_string());
    }
}
