//! Nodes as child processes: started, spoken to, killed. The demo uses it, and the crash tests include it by path.
//!
//! ```text
//! parent                                     child: `shoal worker`
//! cluster.rs   who leads, restart, kill      worker.rs   a node; threads that carry out requests
//! child.rs     one process, calls  ── stdin: requests ──►
//!                                  ◄─ stdout: replies ──
//! ledger.rs    what was acknowledged, and the verdict
//! wire.rs      the lines between them
//! ```
//!
//! The parent notes an acknowledgement the moment it has read its line; the child writes that line after the commit
//! returned. So whatever the ledger counts was promised by the node, and a killed child can only have promised *more*
//! than the ledger knows, which the ledger calls unknown.

pub(crate) mod child;
pub(crate) mod cluster;
pub(crate) mod ledger;
pub(crate) mod wire;
