# Each routine task is one command. `just` lists them.

default:
    @just --list

# Everything that must hold before a change lands.
ci:
    .ci/run

# All tests of the workspace.
test *args:
    cargo test --workspace {{args}}

# Three nodes and a killed leader; --file loads a database of yours.
demo *args:
    cargo run --release -- demo {{args}}

# Three nodes under a mixed load, killed all the time; is anything lost, does anything grow?
soak minutes="60" *args:
    cargo run --release --example soak -- --minutes {{minutes}} {{args}}

# The documentation of both crates, with the README and DESIGN.md in it.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# The simulation: each seed is a cluster in a world of its own. One that fails says how it is replayed.
sim seeds="1..301" *args:
    cargo run --release --features sim --example sim -- --seeds {{seeds}} {{args}}

# Every planted mistake: does the simulation notice it, and how soon?
planted seeds="1..151":
    RUSTC_WORKSPACE_WRAPPER=$PWD/.ci/planted cargo run --features sim --example sim -- --planted --seeds {{seeds}}

# The VFS tests in a build of SQLite that checks the wal-index at every step.
assert *args:
    LIBSQLITE3_FLAGS="-DSQLITE_DEBUG -DSQLITE_ENABLE_EXPENSIVE_ASSERT" CARGO_TARGET_DIR=target/assert cargo test -p shoaldb-vfs {{args}}

# Known advisories, licences, sources and banned crates among all dependencies (needs cargo-deny, and the network for the advisories).
deny:
    cargo deny check advisories bans licenses sources

# All of sqllogictest through three nodes (SHOAL_TESTDATA: see tests/conformance/main.rs), and rusqlite's own tests on our VFS.
conformance:
    SHOAL_CONFORMANCE=all cargo test --test conformance -- --nocapture
    tests/conformance/rusqlite.sh

# Power cuts, stopped processes and partitions for longer, and full disks once (as root: loop devices and network namespaces).
power rounds="200" seed="1":
    SHOAL_POWER=required SHOAL_ROUNDS={{rounds}} SHOAL_SEED={{seed}} cargo test --test power -- --nocapture

# Each fuzz target for a minute, also after one that crashed, with AddressSanitizer, on the stable toolchain (needs cargo-fuzz).
fuzz seconds="60":
    #!/usr/bin/env bash
    set -euo pipefail
    cd fuzz
    crashed=()
    for target in entry wire messages log files disk wal sql cluster; do
        mkdir -p "corpus/$target"
        dict=(); if [ -f "dicts/$target.dict" ]; then dict=("-dict=dicts/$target.dict"); fi
        RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir . "$target" "corpus/$target" "seeds/$target" -- \
            -max_total_time={{seconds}} "${dict[@]}" || crashed+=("$target")
    done
    if [ "${#crashed[@]}" -gt 0 ]; then echo "not passed: ${crashed[*]}" >&2; exit 1; fi

# Every fuzz target once over its seeds, without a fuzzer: builds and runs on plain stable.
fuzz-seeds:
    cd fuzz && cargo test
