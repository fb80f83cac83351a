//! The program as a user meets it at a shell: output, one-line errors, exit codes.

mod alarms;
mod away;
mod big;
mod codes;
mod coming;
mod contrib;
mod files;
mod log;
mod memory;
mod nodes;
mod output;
#[path = "../it/ports.rs"]
mod ports;
mod prompt;
mod recover;
mod settings;
mod sql;
mod user;
