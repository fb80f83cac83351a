//! The folder tree is the architecture: arrows point down, and `unsafe` stays in its rooms.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Every module with its layer, bottom first. A file may use those above it in this list. What stands in one line forms a
/// unit whose files may use each other: a module and its parts.
const LAYERS: &[&[&str]] = &[
    // Words.
    &["planted"],
    &["page"],
    &["error"],
    &["transaction"],
    &["genesis"],
    // Pure.
    &["wal", "wal::checksum", "wal::header", "wal::frame", "wal::index", "wal::store"],
    &["capture"],
    &["lock"],
    // Doors, and the calls of the system behind them.
    &["ext", "ext::heap", "ext::ofd", "ext::writeback"],
    &["buffer"],
    &["map"],
    &["env", "env::os", "env::sim", "env::watch"],
    // Shared state. The trait of the replicator names the database that it is about, and the database calls the trait.
    &["shm"],
    &["spill"],
    &["mapfile"],
    &["hashmap"],
    &["doublewrite"],
    &["files"],
    &["staging"],
    &["view"],
    &[
        "replicator",
        "database",
        "database::session",
        "database::apply",
        "database::checkpoint",
        "database::replace",
        "database::view",
    ],
    // SQLite's side.
    &["conn"],
    &["pragma"],
    &["ffi"],
];

/// Files in which `unsafe` may stand.
const UNSAFE_ROOMS: &[&str] = &["ffi", "shm", "map", "ext::heap", "ext::ofd", "ext::writeback"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Module path and text, without comments and unit tests, of each file but `lib.rs`.
fn modules() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    sources(&root, &mut files);
    files
        .into_iter()
        .filter(|path| !path.ends_with("lib.rs"))
        .map(|path| {
            let module = path.strip_prefix(&root).unwrap().with_extension("");
            let module =
                module.components().map(|part| part.as_os_str().to_str().unwrap()).collect::<Vec<_>>().join("::");
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests").next().unwrap().lines();
            let text: Vec<_> = text.map(|line| line.split("//").next().unwrap()).collect();
            (module, text.join("\n"))
        })
        .collect()
}

fn layer(module: &str) -> usize {
    // A name behind the module's is one of its items.
    let mut name = module;
    loop {
        if let Some(layer) = LAYERS.iter().position(|unit| unit.contains(&name)) {
            return layer;
        }
        match name.rsplit_once("::") {
            Some((parent, _)) => name = parent,
            None => panic!("{module} is in no layer: enter it in this test, where it belongs"),
        }
    }
}

/// Everything that a text names behind `crate::`, with one level of braces taken apart.
fn used(text: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
        let head = rest[..end].trim_end_matches(':');
        match rest[end..].strip_prefix('{').and_then(|list| list.split_once('}')) {
            Some((list, _)) if head.is_empty() => used.extend(list.split(',').map(|name| name.trim().to_string())),
            Some((list, _)) => used.extend(list.split(',').map(|name| format!("{head}::{}", name.trim()))),
            None => _ = used.insert(head.to_string()),
        }
    }
    used
}

/// Shows INV-22.
#[test]
fn no_arrow_points_up() {
    let modules = modules();
    assert!(modules.len() > 15);
    let mut wrong = vec![];
    for (module, text) in &modules {
        for target in used(text) {
            if layer(&target) > layer(module) {
                wrong.push(format!("{module} uses {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Shows INV-22.
#[test]
fn unsafe_stays_in_its_rooms() {
    for (module, text) in modules() {
        let has = text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe");
        assert!(!has || UNSAFE_ROOMS.contains(&module.as_str()), "{module} contains unsafe");
    }
}

#[test]
fn nothing_here_knows_of_consensus_or_the_network() {
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    for (module, text) in modules() {
        for name in ["raft::", "std::net", "shoaldb::"] {
            assert!(!text.contains(name), "{module} names {name}");
        }
    }
    assert!(!dependencies.contains("raft") && !dependencies.contains("rusqlite"), "{dependencies}");
}
