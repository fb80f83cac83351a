//! The program as a user meets it at a shell: output, one-line errors, exit codes.

mod nodes;
mod sql;
mod user;
