//! `shoal sql`: statements for a node, from the command line, a script or a person.
//!
//! The session runs on the node, over its admin socket: a connection of its own, with the node's own read levels, write lock
//! and outcomes. It is not sent over a port: whoever is on the machine could read everything through one. With `--endpoints` the
//! node is found by its address, and its socket in the directory that it tells.

mod dot;
mod import;
mod prompt;
mod shell;
mod show;
mod split;

use std::io::{self, IsTerminal};
use std::process::exit;

use shoaldb::ReadLevel;
use shoaldb::client::{Client, Doors};

use crate::ask::Where;
use crate::{Failed, say};
use shell::{After, Current, Met, Shell, Target};
use show::{Mode, Printer};

/// Run SQL on a node: at a prompt, from the command line, or from standard input.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  shoal sql app --data data-1
  shoal sql app \"SELECT * FROM users WHERE id = 7\" --data data-1 --json
  shoal sql app --endpoints 127.0.0.1:4001,127.0.0.1:4002,127.0.0.1:4003
  shoal sql app --data data-1 < schema.sql

At the prompt .help lists the commands. Without a statement, and if standard input is no terminal, it is run as a
script, up to the first error. .exit CODE ends with that code. A blob is printed as x'00ff'; in JSON as a string of hexadecimal digits.

Any node reads; the leader writes: with --endpoints it is taken if it is among them, and waited for during an election, for 5
seconds. The node is then found by its address and asked over the admin socket in its directory.

A transaction that is open at the end is rolled back: that is told, and without a prompt the exit code is 1. The rows of
INSERT ... RETURNING are printed before SQLite commits: if that fails, it is said on standard error and by the exit code.
If standard output cannot be written, what runs is interrupted and the rest is not run. That is a failure; but if its reader is gone
(| head), and only statements that read were interrupted or left, it is none.

Exit code: 3 if it is not known whether a statement was committed, 4 if there is no leader.")]
pub(crate) struct SqlArgs {
    /// The database. One that does not exist is created by the first write to it.
    database: String,
    /// Statements to run, instead of a prompt.
    sql: Option<String>,
    #[command(flatten)]
    at: Where,
    /// How results look [default: column at a prompt, else list].
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Print the names of columns [default: at a prompt].
    #[arg(long)]
    headers: bool,
    /// Print JSON: an array of objects per statement that has a result.
    #[arg(long, conflicts_with = "mode")]
    json: bool,
    /// What reads see.
    #[arg(long, value_enum, default_value_t = Level::Local)]
    read: Level,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Level {
    /// What the node shows: some committed state.
    Local,
    /// At least all that was acknowledged anywhere; needs a majority.
    Linearizable,
}

/// Runs it.
pub(crate) fn run(args: SqlArgs) -> Result<(), Failed> {
    let prompt = args.sql.is_none() && io::stdin().is_terminal();
    let for_person = prompt && io::stdout().is_terminal();
    let mode = match (args.mode, args.json) {
        (Some(mode), _) => mode,
        (None, true) => Mode::Json,
        (None, false) if for_person => Mode::Column,
        (None, false) => Mode::List,
    };
    let level = match args.read {
        Level::Local => ReadLevel::Local,
        Level::Linearizable => ReadLevel::Linearizable,
    };
    let target = Target { client: args.at.client()?, database: args.database.clone(), level };
    let current = Current::default();
    interrupt_on_signals(current.clone())?;
    let mut shell = Shell::open(target, Printer::new(mode, args.headers || for_person), current)?;
    if let Some(why) = &shell.seat().leaderless {
        say::note(&format!("{why}; node {} reads what it has", shell.seat().node));
    }
    note_of_a_new_name(&shell, &args.database);
    let result = match &args.sql {
        Some(sql) => shell.script("", sql.as_bytes()),
        None if prompt => prompt::run(&mut shell, &args.database),
        None => shell.script("stdin", io::stdin()),
    };
    match result {
        Ok(after) => {
            let code = if let After::Quit(code) = after { code } else { 0 };
            match shell.end() {
                // The person sees it, and meant to leave; or the script has a code for it.
                Err(open) if prompt || code != 0 => say::note(&open.text),
                ended => ended?,
            }
            if code == 0 { Ok(()) } else { Err(Failed::quietly(code)) }
        }
        Err(failed) if failed.is_reader_gone() => shell.end(),
        Err(failed) => Err(failed),
    }
}

/// A name that was typed wrong looks like an empty database.
fn note_of_a_new_name(shell: &Shell, name: &str) {
    let known = Client::new(Doors::Directory(shell.seat().directory.clone())).databases();
    // Whoever cannot tell says more when a statement runs.
    if known.is_ok_and(|status| status.databases.iter().all(|database| database.name != name)) {
        say::note(&format!("there is no database {name} yet; the first write creates it"));
    }
}

/// A first signal interrupts what is being done. If nothing is, the program ends; or if neither the node nor what is read reacts
/// to three of them.
fn interrupt_on_signals(current: Current) -> Result<(), Failed> {
    ctrlc::set_handler(move || match current.interrupt() {
        (Met::Idle, _) => exit(1),
        (Met::Run, 3..) => {
            say::failed("the node does not answer; what became of the statement is not known");
            exit(i32::from(Failed::UNKNOWN));
        }
        (Met::Between, 3..) => exit(1),
        (Met::Run | Met::Between, _) => {}
    })
    .map_err(|error| Failed { code: 1, text: format!("signal handler: {error}") })
}
