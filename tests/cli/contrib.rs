//! What `contrib/` has for those who install a node: a unit for systemd, an image. They name flags, variables, paths and exit codes of
//! this program, and nothing else would notice when these change. Where systemd is, it looks at the unit, too.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::user::{Started, run, shoal, text, works, works_in_time};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// Lines with something in them, and those that go on put together.
fn lines(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let said = joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    said.map(str::to_string).collect()
}

/// Variables that the C library of a node reads, and nothing else here.
const OF_THE_C_LIBRARY: [&str; 2] = ["MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX"];

/// `NAME=value`, where `shoal start` or the C library knows the name.
fn is_known_variable(setting: &str) {
    let name = setting.split('=').next().unwrap();
    let help = works(&["start", "--help"]);
    assert!(OF_THE_C_LIBRARY.contains(&name) || help.contains(&format!("[env: {name}=")), "{setting}");
    if OF_THE_C_LIBRARY.contains(&name) {
        assert!(setting.split('=').nth(1).unwrap().parse::<u32>().is_ok(), "{setting}");
        assert!(read("README.md").contains(&format!("`{setting}`")), "{setting}: README has another one");
    }
}

fn unit() -> Vec<(String, String)> {
    let mut section = String::new();
    let mut settings = Vec::new();
    for line in lines(&read("contrib/shoal.service")) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(name) => section = name.to_string(),
            None => {
                let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
                settings.push((format!("{section}.{key}"), value.to_string()));
            }
        }
    }
    settings
}

#[test]
fn the_unit_says_what_the_program_knows() {
    let unit = unit();
    let all =
        |key: &str| unit.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_str()).collect::<Vec<_>>();
    let one = |key: &str| match all(key)[..] {
        [value] => value.to_string(),
        ref values => panic!("{key}: {values:?}"),
    };
    let start = one("Service.ExecStart");
    let words: Vec<&str> = start.split_whitespace().collect();
    let [program, "start", "--config", config] = words[..] else { panic!("{start}") };
    // Where the words on top say that they are put.
    let header = read("contrib/shoal.service");
    assert!(
        header.contains(&format!("install -m 755 shoal {}/", Path::new(program).parent().unwrap().display())),
        "{header}"
    );
    assert!(header.contains(&format!("contrib/shoal.toml {config}")), "{header}");
    assert!(works(&["start", "--help"]).contains("--config <FILE>"));
    all("Service.Environment").into_iter().for_each(is_known_variable);
    // The directory that systemd makes is the one of the settings, and the node may write to no other.
    let settings = read("contrib/shoal.toml");
    assert!(settings.contains(&format!("data = \"/var/lib/{}\"", one("Service.StateDirectory"))), "{settings}");
    assert_eq!((one("Service.Type"), one("Service.KillSignal")), ("notify".to_string(), "SIGTERM".to_string()));
    // Wrong usage, and what `start` alone says: README has them, too.
    assert_eq!(one("Service.RestartPreventExitStatus"), "2 5");
    assert!(
        works(&["--help"])
            .contains("2 wrong usage, 3 outcome unknown, 4 no leader; 5 a node that must not be started again")
    );
    let limit: u64 = one("Service.LimitNOFILE").parse().unwrap();
    assert!(limit >= 4096 * 4, "{limit}: not for as many databases as there may be");
}

/// Keys that are misspelt are no error for systemd, but a warning.
#[test]
fn systemd_has_nothing_to_say_about_the_unit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shoal.service");
    let program = unit().into_iter().find(|(key, _)| key == "Service.ExecStart").unwrap().1;
    let program = program.split_whitespace().next().unwrap().to_string();
    let verify = |unit: &str| {
        std::fs::write(&path, unit).unwrap();
        let said = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().ok()?;
        Some((said.status.success(), String::from_utf8_lossy(&said.stderr).into_owned()))
    };
    // It wants to find the program.
    let unit = read("contrib/shoal.service").replace(&program, env!("CARGO_BIN_EXE_shoal"));
    let Some((good, said)) = verify(&unit) else {
        let _ = writeln!(std::io::stderr(), "skipped: the unit as systemd sees it: there is no `systemd-analyze`");
        return;
    };
    // About this unit: others on the machine may be whatever they are.
    let ours = |said: &str| said.lines().filter(|line| line.contains("shoal")).map(str::to_string).collect::<Vec<_>>();
    assert!(good && ours(&said).is_empty(), "{said}");
    // And it would have.
    let (_, said) = verify(&unit.replace("NoNewPrivileges", "NoNewPrivilege")).unwrap();
    assert!(!ours(&said).is_empty(), "{said}");
}

/// The words of a JSON array, as in `CMD ["shoal", "health"]`.
fn words(line: &str) -> Vec<String> {
    serde_json::from_str(&line[line.find('[').unwrap_or_else(|| panic!("{line}"))..]).unwrap()
}

#[test]
fn the_image_is_built_of_what_there_is_and_runs_what_the_program_knows() {
    let lines = lines(&read("contrib/Dockerfile"));
    let all = |key: &str| {
        let said = lines.iter().filter_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        said.map(str::to_string).collect::<Vec<_>>()
    };
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();

    // It is built with the oldest compiler that is promised, for the C library that it runs with.
    let [build, image] = &all("FROM")[..] else { panic!("{lines:?}") };
    let version = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    let suite = image.strip_prefix("debian:").and_then(|image| image.strip_suffix("-slim")).unwrap();
    assert_eq!(*build, format!("rust:{version}-{suite} AS build"));
    let command = all("RUN").into_iter().find(|line| line.starts_with("cargo ")).unwrap();
    assert_eq!(command, "cargo build --release --locked --bin shoal");
    assert!(root().join("Cargo.lock").exists(), "--locked needs it");
    let programs = manifest["bin"].as_array().unwrap();
    let program = programs.iter().find(|program| program["name"].as_str() == Some("shoal")).unwrap();
    let defaults = manifest["features"]["default"].as_array().unwrap();
    assert!(program["required-features"].as_array().unwrap().iter().all(|feature| defaults.contains(feature)));

    // What is copied: all but what the build makes, and from there the program.
    let copied = all("COPY");
    let workdir = all("WORKDIR");
    assert_eq!(
        copied,
        [". .".to_string(), format!("--from=build {}/target/release/shoal /usr/local/bin/shoal", workdir[0])]
    );
    let ignored: Vec<String> = read(".dockerignore").lines().map(str::to_string).collect();
    for name in &ignored {
        assert!(!Path::new(name).is_absolute() && !is_needed(name), "{name} is needed for the build");
    }
    assert!(ignored.contains(&"target".to_string()));

    let (mut variables, settings) = (Vec::new(), all("ENV"));
    for setting in settings.iter().flat_map(|line| line.split_whitespace()) {
        is_known_variable(setting);
        variables.extend(setting.split_once('='));
    }
    let data = variables.iter().find(|(name, _)| *name == "SHOAL_DATA").unwrap().1;
    assert_eq!(all("VOLUME"), [data]);
    assert!(
        all("RUN").iter().any(|line| line.contains(&format!("install -d -o {} -m 700 {data}", all("USER")[0]))),
        "{lines:?}"
    );
    assert_eq!(all("STOPSIGNAL"), ["SIGTERM"]);

    // And it runs, with a directory and a port of ours.
    let dir = tempfile::tempdir().unwrap();
    let data = text(&dir.path().join("data"));
    let (entry, arguments) = (words(&all("ENTRYPOINT")[0]), words(&all("CMD")[0]));
    assert_eq!(entry, ["shoal"]);
    let port = &all("EXPOSE")[0];
    assert!(arguments.iter().any(|word| word.ends_with(&format!(":{port}"))), "{arguments:?}");
    let arguments: Vec<String> = arguments.iter().map(|word| word.replace(&format!(":{port}"), ":0")).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let node = Started::new(shoal(&arguments).env("SHOAL_DATA", &data));
    node.wait_line("ready");
    works_in_time(&["health", "--data", &data]);
    let check = words(&all("HEALTHCHECK")[0]);
    assert_eq!(check[0], "shoal");
    let check: Vec<&str> = check[1..].iter().map(String::as_str).collect();
    let health = || shoal(&check).env("SHOAL_DATA", &data).output().unwrap();
    assert!(health().status.success(), "{:?}", health());
    assert_eq!(node.terminate(), 0);
    assert!(!health().status.success());
    // Without a directory nobody is asked.
    assert_eq!(run(&check).status.code(), Some(2));
}

/// Whether the build reads it: it is under one of the folders that have source text, or a manifest.
fn is_needed(name: &str) -> bool {
    let needed =
        ["Cargo.toml", "Cargo.lock", "src", "vfs", "clients", "benches", "examples", "tests", "README.md", "DESIGN.md"];
    needed.iter().any(|needed| PathBuf::from(name).starts_with(needed) || *needed == name)
}
