#!/usr/bin/env bash
# rusqlite's own tests, on our VFS. Nothing of them is in this repository: the source comes from cargo's folder, where it
# is because we depend on it, is copied below target/, changed there, and removed at the end.
#
# What is changed: `Connection::open_in_memory*` opens a database of its own on a node of one member. The same tests run
# first with files and SQLite's own VFS in WAL mode, so that what fails there already (tests that want a database in memory,
# or its journal) is no fault of ours. Whatever passes there must pass here, but for the list below. Features that would
# need another build of SQLite, or crates that nobody else needs here, are left out: `unlock_notify`, `session`,
# `preupdate_hook`, `column_metadata`, `loadable_extension`; and types of chrono, jiff, time, url, uuid and serde_json.
#
#   tests/conformance/rusqlite.sh [filter]
#
# Needs what `cargo test` needs, python3, and the crates that rusqlite's tests use. Ends with 0 only if all is as it should be.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
command -v python3 >/dev/null || { echo "it needs python3, which changes the copy of rusqlite" >&2; exit 1; }

# Tests that pass on files and cannot pass here, with the reason.
refused="a replicated database is always in WAL mode and never locked by one connection: such pragmas are errors"
excluded=(
    "pragma::test::locking_mode $refused"
    "pragma::test::pragma_update_and_check $refused"
    "test::test_execute_batch $refused"
)

manifest=$(cargo metadata --format-version 1 --locked | grep -o '"manifest_path":"[^"]*/rusqlite-[0-9.]*/Cargo.toml"' | head -1)
source=$(dirname "${manifest#\"manifest_path\":\"}")
[ -f "$source/src/lib.rs" ] || { echo "no source of rusqlite: $source" >&2; exit 1; }
work=$root/target/rusqlite-suite
rm -rf "$work"
mkdir -p "$work/data"
trap 'rm -rf "$work"' EXIT
cp -r "$source/src" "$source/test.csv" "$source/Cargo.toml" "$source/README.md" "$work"
cp Cargo.lock "$work"
cd "$work"

# No examples, no benches, none of the tests beside the library; and a workspace of its own, built as ours is.
python3 - "$root" <<'PYTHON'
import re, sys
text = open("Cargo.toml").read()
text = re.sub(r"\[\[(example|test|bench)\]\]\n(?:[^\[]|\[(?!\[|[a-z]))*", "", text)
text += f'''
[dev-dependencies.shoaldb]
path = "{sys.argv[1]}"
default-features = false
features = ["bundled"]

[workspace]

[profile.dev]
opt-level = 1

[profile.dev.package."*"]
opt-level = 2
'''
open("Cargo.toml", "w").write(text)

lib = open("src/lib.rs").read()
before = '''        Self::open_with_flags(":memory:", flags)
'''
assert lib.count(before) == 1, "open_in_memory_with_flags looks different in this version"
lib = lib.replace(before, '''        #[cfg(test)]
        return on_files::open(flags);
        #[cfg(not(test))]
        Self::open_with_flags(":memory:", flags)
''')
lib += '''
#[cfg(test)]
mod on_files {
    use super::{Connection, OpenFlags, Result};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static NODE: OnceLock<Option<shoaldb::Node>> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);

    pub(crate) fn open(flags: OpenFlags) -> Result<Connection> {
        let dir = std::env::var("SUITE_DIR").expect("SUITE_DIR");
        let node = NODE.get_or_init(|| match std::env::var("SUITE_VFS").expect("SUITE_VFS").as_str() {
            "shoal" => Some(shoaldb::Node::open(&dir).expect("a node of one member")),
            "unix" => None,
            other => panic!("SUITE_VFS={other}"),
        });
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let flags = flags | OpenFlags::SQLITE_OPEN_URI;
        match node {
            Some(_) => Connection::open_with_flags(format!("file:m{number}?vfs=shoal"), flags),
            None => {
                let db = Connection::open_with_flags(format!("file:{dir}/m{number}"), flags)?;
                if !flags.contains(OpenFlags::SQLITE_OPEN_READ_ONLY) {
                    db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
                }
                Ok(db)
            }
        }
    }
}
'''
open("src/lib.rs", "w").write(lib)
PYTHON

features="array backup blob collation column_decltype csvtab extra_check functions hooks i128_blob limits load_extension \
modern_sqlite series serialize trace vtab window"
export CARGO_TARGET_DIR=$root/target
run() { # VFS, filter
    mkdir -p "$work/data/$1"
    SUITE_VFS=$1 SUITE_DIR=$work/data/$1 cargo test --lib --features "$features" -- ${2:-} >"$1.log" 2>&1 || true
    grep -q '^test result:' "$1.log" || { tail -40 "$1.log" >&2; exit 1; }
    sed -n 's/^test \(.*\) \.\.\. ok$/\1/p' "$1.log" | sort >"$1.passed"
    grep '^test result:' "$1.log" | sed "s/^/$1: /"
}
run unix "${1:-}"
run shoal "${1:-}"

status=0
[ -s unix.passed ] || { echo "no test passed on files" >&2; status=1; }
while read -r test; do
    reason=
    for line in "${excluded[@]}"; do [ "${line%% *}" = "$test" ] && reason=${line#* }; done
    if [ -n "$reason" ]; then
        echo "excluded: $test: $reason"
    else
        echo "fails on Shoal and passes on files: $test" >&2
        status=1
    fi
done < <(comm -23 unix.passed shoal.passed)
for line in "${excluded[@]}"; do
    if grep -qx "${line%% *}" shoal.passed; then
        echo "passes, although it is excluded: ${line%% *}" >&2
        status=1
    fi
done
[ $status = 0 ] || sed -n '/^failures:/,$p' shoal.log >&2
exit $status
