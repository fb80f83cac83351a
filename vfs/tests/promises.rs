//! What was found out about SQLite before this VFS was written, and the test that holds each of it.
//!
//! The rules that follow from it are in DESIGN.md ("VFS rules"); here is every single fact, in the order in which it was
//! found. The test below reads this table: a test that is named and does not exist fails it.
//!
//! | promise | test |
//! |---|---|
//! | **A commit is one call** | |
//! | every `synchronous`, with and without `psow`: one transaction, one proposal; padding frames are none | `each_transaction_is_captured_once_whatever_is_synced_and_padded` |
//! | spilled pages, rewritten frames, a page twice in one transaction | `spilled_and_rewritten_pages_are_captured_in_their_last_version` |
//! | savepoints; a spilled transaction that is rolled back | `savepoints_that_were_rolled_back_leave_nothing_in_the_transaction`, `a_spilled_transaction_that_is_rolled_back_leaves_nothing` |
//! | spilled pages beyond the committed size | `spilled_pages_beyond_the_committed_size_are_left_out` |
//! | VACUUM, both kinds of auto_vacuum | `vacuum_is_one_transaction_and_turns_auto_vacuum_on_and_off`, `auto_vacuum_gives_pages_back_in_the_same_transaction` |
//! | ALTER, CREATE, DROP, ANALYZE, triggers | `schema_changes_are_ordinary_transactions` |
//! | page sizes 512 to 65536, fixed at creation | `every_page_size_works` |
//! | UTF-8 and both UTF-16, chosen by the first writer | `the_encoding_is_chosen_by_the_first_writer` |
//! | FTS5, R-tree | `full_text_search_and_r_trees_are_tables_like_others` |
//! | incremental blob I/O; a value of 20 MB | `blobs_are_written_in_place_and_may_be_large` |
//! | backup in, one transaction; another page size is refused; backup out, VACUUM INTO | `a_backup_comes_in_as_one_transaction`, `a_backup_goes_out_while_writes_go_on` |
//! | shared cache; `mode=ro` | `connections_may_share_a_cache`, `a_connection_may_be_read_only` |
//! | temporary tables, sorters, `:memory:`, `file:?vfs=` | `temporary_tables_and_sorters_are_none_of_our_business` |
//! | a transaction without a change is none | `transactions_that_change_nothing_are_none` |
//! | two replicated databases in one transaction | `one_transaction_writes_to_one_replicated_database` |
//! | pages grown over without being written | `pages_that_were_never_in_use_are_the_same_everywhere`, `pages_grown_over_again_do_not_show_their_former_life` |
//! | the first page says WAL before the first write | `a_database_is_in_wal_mode_before_its_first_write` |
//! | **What would go past the WAL** | |
//! | `journal_mode`, `locking_mode`, qualified or not, before ATTACH or after | `other_journal_modes_and_exclusive_locking_are_refused_with_words`, `an_unqualified_pragma_cannot_reach_an_attached_database_either`, `exclusive_locking_cannot_be_smuggled_in_before_attach` |
//! | `immutable`, `nolock` | `parameters_that_go_past_the_wal_are_refused` |
//! | checkpoints by users: the pragma, the function, `wal_autocheckpoint` | `users_cannot_checkpoint`, `the_checkpoint_function_is_busy_in_every_mode` |
//! | writes to the main file, cutting it; the answers by which SQLite syncs and pads | `nobody_writes_to_the_main_file_through_sqlite_or_cuts_it`, `the_main_file_says_that_writes_stay_in_order_and_touch_nothing_else` |
//! | the checkpoint of the last close | `closing_the_last_connection_writes_nothing` |
//! | **After the commit frame** | |
//! | a sync, padding or a rewritten checksum fails: the VFS publishes | `a_commit_that_sqlite_fails_to_finish_is_published_all_the_same`, `each_write_behind_the_commit_frame_may_fail`, `a_statement_that_is_open_during_a_heal_keeps_its_snapshot` |
//! | an allocation fails there | `memory_that_ends_behind_the_commit_frame_loses_nothing` |
//! | **A commit that is refused** | |
//! | every code, autocommit, explicit, spilled, padded, the first of a WAL: nothing visible, nothing comes back by recovery, never plain busy | `a_refused_commit_is_gone_and_the_connection_goes_on` |
//! | schema changes and VACUUM; an open SELECT; closing a blob; RELEASE | `a_failed_schema_change_leaves_the_old_schema`, `an_open_select_runs_on_after_a_failed_commit`, `a_blob_reports_a_commit_that_failed_when_it_is_closed`, `a_release_that_fails_keeps_the_transaction_until_it_is_rolled_back`, `savepoints_and_transactions_of_rusqlite_leave_nothing_open_behind_a_refused_commit` |
//! | **What other nodes committed** | |
//! | writer and applier take turns; readers see whole transactions | `two_nodes_that_swap_their_roles_stay_the_same`, `many_readers_see_a_constant_sum_while_applies_go_on` |
//! | no hook fires where pages are applied | `hooks_fire_where_the_sql_runs_and_nowhere_else` |
//! | recovery of the wal-index finds the same rows; CKPT with RECOVER is not refused | `a_recovered_index_shows_the_same_rows`, `an_empty_wal_may_be_recovered_before_the_first_transaction` |
//! | the change counter moves, page caches are dropped | `the_page_cache_is_dropped_after_an_apply` |
//! | the index is SQLite's, over many regions | `the_wal_index_is_the_one_that_stock_sqlite_makes`, `a_wal_of_many_index_regions_is_captured_and_applied` |
//! | a transaction is applied on its base only | `an_entry_that_is_refused_fences_nobody` |
//! | **Waiting** | |
//! | readers go on while a commit waits | `readers_go_on_while_a_commit_is_blocked` |
//! | the second writer waits as long as its busy timeout says | `a_busy_timeout_ends_while_another_connection_writes` |
//! | an interrupt: of a commit, of the request for the write lock, in the queue of writers, in a read barrier | `an_interrupt_does_not_end_a_commit_that_waits`, `a_write_that_waits_for_permission_can_be_interrupted`, `a_writer_in_the_queue_can_be_interrupted`, `a_read_that_waits_for_its_barrier_can_be_interrupted` |
//! | writers get their share; the lock of nobody is free | `every_writer_gets_its_share`, `a_waiting_writer_is_woken_when_the_lock_is_free`, `a_lock_that_nobody_holds_or_waits_for_is_free` |
//! | an idle BEGIN IMMEDIATE does not stop the applier | `an_idle_write_transaction_does_not_stop_the_applier` |
//! | a fenced writer's rollback touches nothing shared | `the_rollback_of_a_fenced_writer_damages_nothing`, `a_rollback_in_the_middle_of_an_apply_damages_nothing` |
//! | a fenced or detached connection has its wal-index to itself: without `ShmView::detach` these are red | `a_rollback_between_the_entries_of_an_apply_and_its_header_damages_nothing`, `a_fenced_transaction_reads_its_snapshot_and_writes_nothing`, `a_detached_proposal_that_is_committed_is_published_by_the_applier`, `a_statement_that_is_still_open_reads_its_own_snapshot_after_a_detached_commit` |
//! | a proposed transaction is detached, and reports | `a_detached_proposal_that_is_committed_is_published_by_the_applier`, `a_detached_proposal_that_lost_reports_what_it_is_told` |
//! | a fence never lands between "accepted" and published | `fences_race_with_commits`, `a_proposal_that_was_given_up_may_be_fenced_and_still_be_committed` |
//! | **The read barrier** | |
//! | one for each read transaction, on an empty WAL too | `each_read_transaction_passes_one_barrier_and_local_ones_none`, `a_barrier_that_is_refused_fails_the_read_at_once` |
//! | not a second one for SQLite's retry | `a_read_sees_what_was_applied_during_its_barrier_and_asks_only_once` |
//! | that mark is not inherited by a later read | `a_read_that_was_given_up_hands_its_barrier_to_no_later_read` |
//! | never busy; never under the write lock | `a_barrier_that_is_refused_fails_the_read_at_once`, `no_barrier_is_passed_under_the_write_lock` |
//! | **The write lock** | |
//! | which refusals call the busy handler | `a_write_lock_that_is_refused_asks_the_busy_handler_only_when_waiting_may_help` |
//! | a snapshot that is too old | `a_snapshot_that_is_too_old_to_write_says_so` |
//! | a reader that repairs a torn header asks nobody | `a_reader_that_repairs_does_not_ask_the_replicator` |
//!
//! Other processes are kept out of the main file by whoever opens it, which is the node: `tests/it/one_node.rs`.

use std::collections::BTreeSet;
use std::path::Path;

/// Names of the tests below `dir`.
fn tests_below(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let mut marked = false;
        for line in text.lines().map(str::trim_start) {
            marked |= line == "#[test]";
            if let Some(name) = line.strip_prefix("fn ").filter(|_| marked) {
                found.insert(name.split('(').next().unwrap().to_string());
                marked = false;
            }
        }
    }
}

#[test]
fn every_promise_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    tests_below(&root.join("tests"), &mut tests);
    tests_below(&root.join("src"), &mut tests);
    let table: Vec<_> = include_str!("promises.rs").lines().filter_map(|line| line.strip_prefix("//! | ")).collect();
    assert!(table.len() > 40, "{}", table.len());
    let mut wrong = Vec::new();
    for line in &table[1..] {
        let (promise, witnesses) = line.split_once(" | ").unwrap();
        let names: Vec<_> = witnesses.split('`').skip(1).step_by(2).collect();
        if names.is_empty() && !promise.starts_with("**") {
            wrong.push(format!("{promise}: no test"));
        }
        wrong.extend(names.iter().filter(|name| !tests.contains(**name)).map(|name| format!("{promise}: {name}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
