//! The program `shoal`: a node to run, questions to nodes, and a demonstration.
//!
//! Results go to standard output, everything else to standard error. Exit codes, the same for all commands:
//!
//! ```text
//! 0  done
//! 1  failed, with the reason: what was asked for could be done in another state of the cluster, or on another node
//! 2  wrong usage: what was asked for can never be done
//! 3  it is not known whether it was done
//! 4  no leader: none of the nodes that were asked is reached and knows one. Of what any node can do, that none is reached is 1
//! 5  of `start` alone: starting this directory again does not help. Its node was removed, or it is damaged
//! ```
#![deny(unsafe_code)]

mod ask;
mod backup;
mod config;
mod demo;
#[allow(dead_code, reason = "the crash tests use the rest")]
mod harness;
mod load;
mod log;
mod manager;
mod member;
mod phases;
mod progress;
mod recover;
mod say;
mod sql;
mod start;
mod table;
mod units;
mod worker;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use shoaldb::{Error, ErrorKind};
use start::StartArgs;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// SQLite in your process, replicated: a transaction counts once a majority has it on disk.
#[derive(Parser, Debug)]
#[command(
    name = "shoal",
    version,
    max_term_width = 100,
    after_help = "Examples:
  shoal demo
  shoal start --id 1 --data data --listen 127.0.0.1:4001
  shoal status --data data
  shoal sql app --data data

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 outcome unknown, 4 no leader; 5 a node that must not be started again as it is.
Options that name a variable in their help, such as SHOAL_DATA, may be set by it, or in the file that --config names. The flag
wins over the variable, and the variable over the file. A variable that is empty counts as none."
)]
struct Cli {
    /// A file of settings, such as contrib/shoal.toml. Flags win over variables, variables over the file.
    #[arg(long, global = true, value_name = "FILE", env = "SHOAL_CONFIG")]
    config: Option<std::path::PathBuf>,
    #[command(flatten)]
    messages: Messages,
    #[command(subcommand)]
    command: Command,
}

/// A worker, which another process of this program starts: no command for a person, so no list and no hint names it.
#[derive(Parser, Debug)]
#[command(name = "shoal worker")]
struct WorkerCli {
    #[command(flatten)]
    messages: Messages,
    #[command(flatten)]
    args: worker::WorkerArgs,
}

#[derive(Args, Debug)]
struct Messages {
    /// How messages on standard error look; those about wrong usage, too.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "SHOAL_LOG_FORMAT")]
    log_format: LogFormat,
    /// Which messages: off, error, warn, info, debug, trace, or PART=LEVEL as in RUST_LOG, several by commas.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info", env = "SHOAL_LOG", value_parser = units::levels)]
    log: String,
}

#[derive(ValueEnum, serde::Deserialize, Clone, Copy, Debug)]
#[serde(rename_all = "lowercase")]
enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    fn word(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    Demo(demo::DemoArgs),
    Start(Box<start::StartArgs>),
    Sql(sql::SqlArgs),
    Status(ask::StatusArgs),
    Health(ask::HealthArgs),
    Transfer(ask::TransferArgs),
    Outcome(ask::OutcomeArgs),
    Db(ask::DbArgs),
    Log(log::LogArgs),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    Verify(backup::VerifyArgs),
    Member(member::MemberArgs),
    Recover(recover::RecoverArgs),
}

/// Why the program did not do what it was asked, in one line, and its exit code. Without words it is a code that a script asked for.
#[derive(Debug)]
struct Failed {
    code: u8,
    text: String,
}

impl Failed {
    const USAGE: u8 = 2;
    const UNKNOWN: u8 = 3;
    const NO_LEADER: u8 = 4;
    const NOT_AGAIN: u8 = 5;
    /// No exit code: whoever reads our output has gone (`| head`), and wants no more.
    const READER_GONE: u8 = u8::MAX;

    fn reader_gone() -> Failed {
        Failed { code: Failed::READER_GONE, text: "standard output is closed".to_string() }
    }

    /// A script ends with a code of its own.
    fn quietly(code: u8) -> Failed {
        Failed { code, text: String::new() }
    }

    fn is_reader_gone(&self) -> bool {
        self.code == Failed::READER_GONE
    }

    /// The exit code of a command that fails with this.
    fn code_of(error: &Error) -> u8 {
        match error.kind() {
            ErrorKind::BadInput => Failed::USAGE,
            ErrorKind::Unknown => Failed::UNKNOWN,
            // The words say where to ask.
            ErrorKind::NotLeader if error.leader().is_some() => 1,
            ErrorKind::NotLeader => Failed::NO_LEADER,
            _ => 1,
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        let code = Failed::code_of(&error);
        let text = error.to_string();
        Failed { code, text: if code == Failed::USAGE { in_flags(&text) } else { text } }
    }
}

/// Settings of a node by the names that they have as flags: the library knows them by those of its functions.
fn in_flags(text: &str) -> String {
    let command = StartArgs::augment_args(clap::Command::new("start"));
    let is_setting = |word: &str| word.contains('_') && command.get_arguments().any(|arg| arg.get_id() == word);
    let wordy = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut flags = String::new();
    let mut rest = text;
    while let Some(begin) = rest.find(wordy) {
        let end = rest[begin..].find(|c| !wordy(c)).map_or(rest.len(), |length| begin + length);
        let word = &rest[begin..end];
        flags += &rest[..begin];
        match is_setting(word) {
            true => flags += &format!("--{}", word.replace('_', "-")),
            false => flags += word,
        }
        rest = &rest[end..];
    }
    flags + rest
}

fn main() -> ExitCode {
    shoaldb::give_back_freed_memory();
    say::set_json(config::wants_json());
    let result = if worker::is_meant() { work() } else { command_line().and_then(carry_out) };
    let failures = [result.err(), table::written().err()];
    // The command's own failure says more than that nobody can read it, and both are told.
    let code = failures.iter().flatten().map(|failed| failed.code).next();
    for Failed { text, .. } in failures.iter().flatten().filter(|failed| !failed.text.is_empty()) {
        say::failed(text);
    }
    code.map_or(ExitCode::SUCCESS, ExitCode::from)
}

fn carry_out(cli: Cli) -> Result<(), Failed> {
    set_up_log(&cli.messages)?;
    match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Start(args) => start::run(*args),
        Command::Sql(args) => sql::run(args),
        Command::Status(args) => ask::status(args),
        Command::Health(args) => ask::health(args),
        Command::Transfer(args) => ask::or_error(args.question.json, ask::transfer(args)),
        Command::Outcome(args) => ask::or_error(args.question.json, ask::outcome(args)),
        Command::Db(args) => ask::or_error(args.json(), ask::db(args)),
        Command::Log(args) => log::run(&args),
        Command::Backup(args) => ask::or_error(args.question.json, backup::backup(args)),
        Command::Restore(args) => ask::or_error(args.question.json, backup::restore(args)),
        Command::Verify(args) => backup::verify(args),
        Command::Member(args) => ask::or_error(args.json(), member::run(args)),
        Command::Recover(args) => recover::run(&args),
    }
}

/// What a worker does until its parent is gone.
fn work() -> Result<(), Failed> {
    let command = config::without_empty_variables(WorkerCli::command());
    let matches = command.try_get_matches_from(std::env::args_os().skip(1)).map_err(wrong_usage)?;
    let WorkerCli { messages, args } = WorkerCli::from_arg_matches(&matches).map_err(wrong_usage)?;
    set_up_log(&messages)?;
    Ok(worker::run(&args)?)
}

/// Flags, variables and the file of settings, in this order.
fn command_line() -> Result<Cli, Failed> {
    let command = config::apply(config::without_empty_variables(Cli::command()))?;
    // The file is known now.
    say::set_json(config::wants_json());
    taken(&command.try_get_matches().map_err(wrong_usage)?)
}

/// `--help` ends the program here; so does wrong usage, with colours and all, unless messages are for a program.
fn wrong_usage(error: clap::Error) -> Failed {
    if !error.use_stderr() || !say::is_json() {
        error.exit();
    }
    let text = error.render().to_string();
    Failed { code: Failed::USAGE, text: text.trim().trim_start_matches("error: ").to_string() }
}

/// What the line says, where a place that counts for more has the last word.
fn taken(matches: &clap::ArgMatches) -> Result<Cli, Failed> {
    let mut cli = Cli::from_arg_matches(matches).map_err(wrong_usage)?;
    if let (Command::Start(args), Some(matches)) = (&mut cli.command, matches.subcommand_matches("start")) {
        args.choose(matches.value_source("bootstrap"), matches.value_source("join"))?;
    }
    Ok(cli)
}

fn set_up_log(messages: &Messages) -> Result<(), Failed> {
    say::set_json(matches!(messages.log_format, LogFormat::Json));
    let filter = tracing_subscriber::EnvFilter::builder()
        .parse(&messages.log)
        .map_err(|error| Failed { code: Failed::USAGE, text: format!("--log {}: {error}", messages.log) })?;
    // What cannot be written is lost; to complain of it on standard error, which is what failed, would be the end of the program.
    let text = tracing_subscriber::fmt::layer()
        .with_writer(|| progress::Messages)
        .with_target(false)
        .log_internal_errors(false);
    let log = match messages.log_format {
        LogFormat::Json => text.json().boxed(),
        LogFormat::Text => text.with_ansi(io::stderr().is_terminal()).boxed(),
    };
    // However little is logged, the service manager hears that a start goes on.
    let manager =
        std::env::var_os("NOTIFY_SOCKET").map(|_| manager::MoreTime(manager::notify).with_filter(LevelFilter::INFO));
    tracing_subscriber::registry().with(log.with_filter(filter)).with(manager).init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_called_as_their_flags_are() {
        let text = "a, 3ms: at least 300ms, three heartbeats (election_timeout); wal_limits, é, allow_plaintext_remote";
        let told =
            "a, 3ms: at least 300ms, three heartbeats (--election-timeout); wal_limits, é, --allow-plaintext-remote";
        assert_eq!(in_flags(text), told);
        assert_eq!(in_flags(""), "");
    }
}
