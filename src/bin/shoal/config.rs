//! The file of settings, `--config shoal.toml`.
//!
//! A setting is looked for in the flags, then in the `SHOAL_*` variables, then here. A variable that is empty says nothing. The keys are the names of the flags, with
//! underscores; `contrib/shoal.toml` has all of them. A key that is not known is an error, since it is a setting that its
//! author believes in; so is a value that the flag would not take. Errors name file, line and key.
//!
//! What the file says becomes the *default* of the flag of that name, which is what clap looks at last. Where a node is
//! (`data`, `endpoints`) is asked for by hand, see [`defaults`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::start::MemberArg;
use crate::{Failed, LogFormat, units};

/// What a file may say. Times, sizes and members are checked here and kept as they are written.
#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    id: Option<std::num::NonZeroU16>,
    pub(crate) data: Option<PathBuf>,
    listen: Option<String>,
    advertise: Option<String>,
    #[serde(deserialize_with = "members")]
    bootstrap: Option<Vec<String>>,
    join: Option<Vec<String>>,
    allow_plaintext_remote: Option<bool>,
    pub(crate) endpoints: Option<Vec<String>>,
    #[serde(deserialize_with = "levels")]
    log: Option<String>,
    log_format: Option<LogFormat>,
    #[serde(deserialize_with = "time")]
    heartbeat: Option<String>,
    #[serde(deserialize_with = "time")]
    election_timeout: Option<String>,
    #[serde(deserialize_with = "time")]
    commit_timeout: Option<String>,
    #[serde(deserialize_with = "time")]
    busy_timeout: Option<String>,
    #[serde(deserialize_with = "time")]
    session_idle: Option<String>,
    #[serde(deserialize_with = "size")]
    wal_limit: Option<String>,
    #[serde(deserialize_with = "size")]
    log_limit: Option<String>,
    #[serde(deserialize_with = "size")]
    segment_bytes: Option<String>,
    #[serde(deserialize_with = "size")]
    tail_cache_limit: Option<String>,
    #[serde(deserialize_with = "size")]
    uncommitted_limit: Option<String>,
    #[serde(deserialize_with = "size")]
    inflight_limit: Option<String>,
    #[serde(deserialize_with = "size")]
    apply_limit: Option<String>,
    #[serde(deserialize_with = "size")]
    inbox_limit: Option<String>,
    #[serde(deserialize_with = "size")]
    checkpoint_bytes: Option<String>,
    #[serde(deserialize_with = "size")]
    doublewrite_bytes: Option<String>,
    #[serde(deserialize_with = "time")]
    checkpoint_age: Option<String>,
    #[serde(deserialize_with = "size")]
    scrub_bytes: Option<String>,
    #[serde(deserialize_with = "size")]
    snapshot_rate: Option<String>,
    #[serde(deserialize_with = "time")]
    snapshot_read_view_close_timeout: Option<String>,
    #[serde(deserialize_with = "size")]
    snapshot_wal_pin_max: Option<String>,
    #[serde(deserialize_with = "size")]
    snapshot_chunk_max_size: Option<String>,
    #[serde(deserialize_with = "time")]
    reader_patience: Option<String>,
    #[serde(deserialize_with = "size")]
    reader_wal_pin_max: Option<String>,
    #[serde(deserialize_with = "size")]
    transaction_limit: Option<String>,
    #[serde(deserialize_with = "size")]
    part_bytes: Option<String>,
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(from)?;
    units::time(&text).map_err(D::Error::custom)?;
    Ok(Some(text))
}

fn levels<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    units::levels(&String::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

/// A number, or a text with a unit.
fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a size: a number of bytes, or a text such as \"64KiB\", \"16MiB\" or \"4GiB\"")]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    let text = match Size::deserialize(from)? {
        Size::Bytes(bytes) => bytes.to_string(),
        Size::Text(text) => text,
    };
    units::size(&text).map_err(D::Error::custom)?;
    Ok(Some(text))
}

fn members<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    let list = Vec::<String>::deserialize(from)?;
    for member in &list {
        MemberArg::from_str(member).map_err(D::Error::custom)?;
    }
    Ok(Some(list))
}

static DEFAULTS: OnceLock<Settings> = OnceLock::new();

/// The settings of the file, once it was read; those of none before.
pub(crate) fn defaults() -> &'static Settings {
    DEFAULTS.get_or_init(Settings::default)
}

/// What the command line, or else the variable, says of an option. The line is looked at by hand: which file of settings there is,
/// and how errors are told, must be known before it is taken apart.
fn given(flag: &str, variable: &str) -> Option<OsString> {
    let variable = || std::env::var_os(variable).filter(|value| !value.is_empty());
    in_line(flag, std::env::args_os().skip(1)).or_else(variable)
}

fn in_line(flag: &str, mut args: impl Iterator<Item = OsString>) -> Option<OsString> {
    while let Some(arg) = args.next() {
        if arg == "--" {
            break;
        }
        if arg == flag {
            return args.next();
        }
        let value = arg.to_str().and_then(|arg| arg.strip_prefix(flag)?.strip_prefix('='));
        if let Some(value) = value {
            return Some(value.into());
        }
    }
    None
}

/// Whether messages are to be objects, as far as that is known when the command line is not read yet; the file has the last word.
pub(crate) fn wants_json() -> bool {
    // Not `defaults()`, which would be those of no file from now on.
    let of_file = || DEFAULTS.get()?.log_format.map(|format| format.word().into());
    given("--log-format", "SHOAL_LOG_FORMAT").or_else(of_file).is_some_and(|format| format == LogFormat::Json.word())
}

/// A variable that is set to nothing is as good as not set: a script or a unit clears one that way.
pub(crate) fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if is_empty(&arg) { arg.env(clap::builder::Resettable::Reset) } else { arg })
        .mut_subcommands(without_empty_variables)
}

/// Reads the file that is named, if one is, and gives the command line its defaults.
pub(crate) fn apply(command: clap::Command) -> Result<clap::Command, Failed> {
    let Some(path) = given("--config", "SHOAL_CONFIG").map(PathBuf::from) else { return Ok(command) };
    let usage = |text: String| Failed { code: Failed::USAGE, text };
    let text = std::fs::read_to_string(&path).map_err(|error| usage(format!("{}: {error}", path.display())))?;
    let settings = parse(&path, &text).map_err(usage)?;
    let settings = DEFAULTS.get_or_init(|| settings);
    Ok(settings.apply(command))
}

/// What a file says, or why not: `shoal.toml:3: listn: unknown field ...`.
fn parse(path: &Path, text: &str) -> Result<Settings, String> {
    toml::from_str(text).map_err(|error| {
        let message = error.message().trim().replace('\n', ", ");
        let Some(span) = error.span() else { return format!("{}: {message}", path.display()) };
        let before = &text[..span.start.min(text.len())];
        let number = before.matches('\n').count() + 1;
        // The key of a value on lines of its own stands further up.
        let key = text.lines().take(number).filter_map(|line| line.split_once('=')).last();
        let key = key.map_or_else(String::new, |(key, _)| format!(" {}:", key.trim()));
        format!("{}:{number}:{key} {message}", path.display())
    })
}

impl Settings {
    /// Values by the names of the arguments that they are for: of the whole program, and of `start`.
    fn arguments(&self) -> [Vec<(&'static str, Vec<String>)>; 2] {
        let one = |name, value: Option<String>| value.map(|value| (name, vec![value]));
        let own = |text: &Option<String>| text.clone();
        let program =
            [one("log", own(&self.log)), one("log_format", self.log_format.map(|format| format.word().to_string()))];
        let start = [
            one("id", self.id.map(|id| id.to_string())),
            one("data", self.data.as_ref().map(|dir| dir.display().to_string())),
            one("listen", own(&self.listen)),
            one("advertise", own(&self.advertise)),
            self.bootstrap.clone().map(|list| ("bootstrap", list)),
            self.join.clone().map(|doors| ("join", doors)),
            one("allow_plaintext_remote", self.allow_plaintext_remote.map(|allow| allow.to_string())),
            one("heartbeat", own(&self.heartbeat)),
            one("election_timeout", own(&self.election_timeout)),
            one("commit_timeout", own(&self.commit_timeout)),
            one("busy_timeout", own(&self.busy_timeout)),
            one("session_idle", own(&self.session_idle)),
            one("wal_limit", own(&self.wal_limit)),
            one("log_limit", own(&self.log_limit)),
            one("segment_bytes", own(&self.segment_bytes)),
            one("tail_cache_limit", own(&self.tail_cache_limit)),
            one("uncommitted_limit", own(&self.uncommitted_limit)),
            one("inflight_limit", own(&self.inflight_limit)),
            one("apply_limit", own(&self.apply_limit)),
            one("inbox_limit", own(&self.inbox_limit)),
            one("checkpoint_bytes", own(&self.checkpoint_bytes)),
            one("doublewrite_bytes", own(&self.doublewrite_bytes)),
            one("checkpoint_age", own(&self.checkpoint_age)),
            one("scrub_bytes", own(&self.scrub_bytes)),
            one("snapshot_rate", own(&self.snapshot_rate)),
            one("snapshot_read_view_close_timeout", own(&self.snapshot_read_view_close_timeout)),
            one("snapshot_wal_pin_max", own(&self.snapshot_wal_pin_max)),
            one("snapshot_chunk_max_size", own(&self.snapshot_chunk_max_size)),
            one("reader_patience", own(&self.reader_patience)),
            one("reader_wal_pin_max", own(&self.reader_wal_pin_max)),
            one("transaction_limit", own(&self.transaction_limit)),
            one("part_bytes", own(&self.part_bytes)),
        ];
        [program.into_iter().flatten().collect(), start.into_iter().flatten().collect()]
    }

    fn apply(&self, command: clap::Command) -> clap::Command {
        let [program, start] = self.arguments();
        let set = |command: clap::Command, values: Vec<(&'static str, Vec<String>)>| {
            values.into_iter().fold(command, |command, (name, values)| {
                command.mut_arg(name, |arg| arg.required(false).default_values(values))
            })
        };
        set(command, program).mut_subcommand("start", |command| set(command, start))
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::Cli;

    fn parsed(text: &str) -> Result<Settings, String> {
        parse(Path::new("shoal.toml"), text)
    }

    #[test]
    fn errors_name_file_line_and_key() {
        for (text, begins, contains) in [
            ("id = 1\n\nlistn = \"x\"\n", "shoal.toml:3: listn: ", "unknown field `listn`"),
            ("id = 0\n", "shoal.toml:1: id: ", "nonzero"),
            ("id = 65536\n", "shoal.toml:1: id: ", "65536"),
            ("heartbeat = 5\n", "shoal.toml:1: heartbeat: ", "expected a string"),
            ("id = 1\nheartbeat = \"5\"\n", "shoal.toml:2: heartbeat: ", "'5': write a time"),
            ("wal_limit = \"5 MB\"\n", "shoal.toml:1: wal_limit: ", "'5 MB': write a size"),
            ("log = \"warning\"\n", "shoal.toml:1: log: ", "'warning' is no level: write off, error"),
            ("wal_limit = -1\n", "shoal.toml:1: wal_limit: ", "a size"),
            ("bootstrap = [\n  \"127.0.0.1:4001\",\n]\n", "shoal.toml:1: bootstrap: ", "write ID=ADDRESS"),
            ("log_format = \"xml\"\n", "shoal.toml:1: log_format: ", "xml"),
            ("id = 1\nid = 2\n", "shoal.toml:2: id: ", "duplicate key"),
            ("id = \n", "shoal.toml:1: id: ", ""),
            ("[node]\nid = 1\n", "shoal.toml:1:", "unknown field `node`"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.starts_with(begins) && error.contains(contains), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    /// The sample, with what is not in force in it.
    fn whole_sample() -> Settings {
        let sample = include_str!("../../../contrib/shoal.toml");
        parsed(sample).unwrap();
        let all: String = sample.lines().map(|line| format!("{}\n", line.strip_prefix('#').unwrap_or(line))).collect();
        // Prose is behind "# ", settings that are not in force behind "#".
        let all: String = all.lines().filter(|line| !line.starts_with(' ')).map(|line| format!("{line}\n")).collect();
        parsed(&all).unwrap()
    }

    /// The settings that the library has, with their values, when `start` is given these flags.
    fn library_with(flags: &[String]) -> std::collections::BTreeMap<String, String> {
        let line = ["shoal", "start", "--id=1", "--data=d", "--listen=127.0.0.1:0"].map(str::to_string);
        let cli = Cli::try_parse_from(line.iter().chain(flags)).unwrap();
        let crate::Command::Start(args) = cli.command else { panic!("{cli:?}") };
        // As they are derived, so that one that is new is among them.
        let debug = format!("{:#?}", args.builder());
        let (_, config) = debug.split_once("\n    config: Config {\n").unwrap();
        let (config, _) = config.split_once("\n    },").unwrap();
        let own = config.lines().filter(|line| line.starts_with("        ") && !line.starts_with("         "));
        own.filter_map(|line| line.trim().split_once(": ")).map(|(name, value)| (name.into(), value.into())).collect()
    }

    /// Each setting of the library is a flag, a variable and a key, which sets that one and no other; and the default that the
    /// sample and the help tell of is the default. Five of them were for programs alone once.
    #[test]
    fn every_setting_of_the_library_is_one_of_the_program_and_has_the_default_that_it_says() {
        let default = library_with(&[]);
        let [_, sample] = whole_sample().arguments();
        let command = Cli::command();
        let start = command.find_subcommand("start").unwrap();
        // For tests of upgrades.
        for name in default.keys().filter(|name| *name != "speaks") {
            let flag = name.replace('_', "-");
            let argument = start.get_arguments().find(|arg| arg.get_id().as_str() == name);
            let argument = argument.unwrap_or_else(|| panic!("{name} is no flag"));
            assert_eq!(argument.get_long(), Some(flag.as_str()));
            let variable = argument.get_env().and_then(|name| name.to_str()).unwrap_or_default();
            assert_eq!(variable, format!("SHOAL_{}", name.to_uppercase()));
            let said = sample.iter().find(|(key, _)| key == name).unwrap_or_else(|| panic!("{name} is no key"));
            let said = said.1.first().unwrap();
            let (given, other) = match said.as_str() {
                "false" => (None, format!("--{flag}")),
                time if units::time(time).is_ok() => (Some(format!("--{flag}={said}")), format!("--{flag}=1234ms")),
                _ => (Some(format!("--{flag}={said}")), format!("--{flag}=123KiB")),
            };
            assert_eq!(library_with(given.as_slice()), default, "{name} is not {said} by default");
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(given.is_none() || help.ends_with(&format!("[default: {said}]")), "{name}: {said}, {help}");
            let mut changed = library_with(&[other]);
            assert_ne!(changed.insert(name.clone(), default[name].clone()), Some(default[name].clone()), "{name}");
            assert_eq!(changed, default, "--{flag} sets something else");
        }
    }

    /// The sample has every key, each with a value that is taken.
    #[test]
    fn the_sample_is_good_and_has_every_setting() {
        let settings = whole_sample();
        assert!(settings.data.is_some() && settings.endpoints.is_some());
        let [program, start] = settings.arguments();
        let is_given = |names: &[(&str, Vec<String>)], id: &str| names.iter().any(|(name, _)| *name == id);
        let command = Cli::command();
        for arg in command.get_arguments().filter(|arg| !["help", "version", "config"].contains(&arg.get_id().as_str()))
        {
            assert!(is_given(&program, arg.get_id().as_str()), "{arg:?}");
        }
        let start_command = command.find_subcommand("start").unwrap();
        for arg in start_command.get_arguments().filter(|arg| arg.get_id() != "help") {
            assert!(is_given(&start, arg.get_id().as_str()), "{arg:?}");
        }
        settings.apply(Cli::command()).debug_assert();
    }

    /// The two exclude each other: a file of settings for the one was in the way of the flag for the other.
    #[test]
    fn a_flag_for_one_way_into_a_cluster_wins_over_the_file_s_other_way() {
        let chosen = |file: &str, flags: &[&str]| {
            let line = ["shoal", "start", "--id=1", "--data=d", "--listen=127.0.0.1:0"];
            let matches =
                parsed(file).unwrap().apply(Cli::command()).try_get_matches_from(line.iter().chain(flags)).unwrap();
            crate::taken(&matches).map(|cli| {
                let crate::Command::Start(args) = cli.command else { panic!("{cli:?}") };
                args.ways()
            })
        };
        let (bootstrap, join) = ("bootstrap = [\"1=127.0.0.1:1\"]\n", "join = [\"127.0.0.1:2\"]\n");
        let (list, door) = ("--bootstrap=1=127.0.0.1:3", "--join=127.0.0.1:4");
        assert_eq!(chosen(bootstrap, &[door]).unwrap(), (0, 1));
        assert_eq!(chosen(join, &[list]).unwrap(), (1, 0));
        assert_eq!(chosen(bootstrap, &[list]).unwrap(), (1, 0));
        assert_eq!(chosen(bootstrap, &[]).unwrap(), (1, 0));
        for both in [chosen("", &[list, door]), chosen(&format!("{bootstrap}{join}"), &[])] {
            let failed = both.unwrap_err();
            assert_eq!(failed.code, Failed::USAGE);
            assert_eq!(failed.text, "--bootstrap founds a cluster, --join enters one; give one of the two");
        }
    }

    #[test]
    fn the_file_is_found_wherever_it_is_named() {
        let named = |line: &str| super::in_line("--config", line.split(' ').map(Into::into));
        assert_eq!(named("start --config a.toml"), Some("a.toml".into()));
        assert_eq!(named("--config=b.toml status"), Some("b.toml".into()));
        assert_eq!(named("sql db -- --config"), None);
    }
}
