//! `shoal start`: one node in the foreground.
//!
//! Ready is said once the node takes part: its directory is opened and checked, its socket listens. That is before
//! there is a leader, because a service manager that waits for one node's readiness before it starts the next one would
//! wait for ever. `shoal health` tells whether there is a leader.

mod coming;
mod tuning;

use std::cmp::Ordering;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::parser::ValueSource;
use crossbeam_channel::{never, tick};
use shoaldb::{Builder, Error, ErrorKind, Event, Member, Node, Status};

use crate::manager::{Shown, notify};
use crate::{Failed, units};
use coming::Coming;
use tuning::Tuning;

/// How often a node that has trouble is asked whether it still has.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// `ID=ADDRESS`.
#[derive(Clone, Debug)]
pub(crate) struct MemberArg {
    pub(crate) id: u64,
    pub(crate) address: String,
}

impl FromStr for MemberArg {
    type Err = String;

    fn from_str(text: &str) -> Result<MemberArg, String> {
        let (id, address) =
            text.split_once('=').ok_or_else(|| format!("'{text}': write ID=ADDRESS, such as 1=127.0.0.1:4001"))?;
        let id = id.trim().parse::<u16>().ok().filter(|id| *id > 0);
        let id = id.ok_or_else(|| format!("'{text}': the id is a number from 1 to 65535"))?;
        if !address.contains(':') {
            return Err(format!("'{text}': the address needs a port, such as 127.0.0.1:4001"));
        }
        Ok(MemberArg { id: u64::from(id), address: address.trim().to_string() })
    }
}

/// Run one node in the foreground.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  A cluster of one, in the directory `data`:
    shoal start --id 1 --data data --listen 127.0.0.1:4001
  The first of three; the others alike with their own --id, --data and --listen:
    shoal start --id 1 --data data-1 --listen 127.0.0.1:4001 \\
      --bootstrap 1=127.0.0.1:4001,2=127.0.0.1:4002,3=127.0.0.1:4003
  A fourth one, in a cluster that runs:
    shoal start --id 4 --data data-4 --listen 127.0.0.1:4004 --join 127.0.0.1:4001

  With its settings in a file:
    shoal start --config contrib/shoal.toml

The node runs until SIGTERM or ctrl-c; then it hands leadership over and ends with 0. It ends with 5 where starting it again
does not help: it was removed from its cluster, or its directory is damaged.
Under systemd use Type=notify: contrib/shoal.service.")]
pub(crate) struct StartArgs {
    /// Id of this node, 1 to 65535. It belongs to the directory for good.
    #[arg(long, env = "SHOAL_ID", value_parser = units::node_id)]
    id: u16,
    /// Directory of this node's data, and of nothing else; created if it does not exist.
    #[arg(long, env = "SHOAL_DATA", value_name = "DIR")]
    data: PathBuf,
    /// Address to listen on for other nodes. Loopback only: traffic is not encrypted.
    #[arg(long, env = "SHOAL_LISTEN", value_name = "ADDR")]
    listen: String,
    /// Address under which others reach this node, if it is not the one it listens on.
    #[arg(long, env = "SHOAL_ADVERTISE", value_name = "ADDR")]
    advertise: Option<String>,
    /// Members of a new cluster, this node among them; the same list on each. Once the directory is in a
    /// cluster, only a hint where its members may be now; a list whose other nodes that cluster has never heard of is ignored
    /// with a warning. Without it, a new directory becomes a cluster of one.
    #[arg(long, env = "SHOAL_BOOTSTRAP", value_name = "ID=ADDR,...", value_delimiter = ',')]
    bootstrap: Vec<MemberArg>,
    /// Addresses of nodes of a running cluster, any of its members: the new node asks one after another to be let in, with its
    /// --id, which no member has or ever had, and the address that it listens on. It votes once it has caught up. In place of
    /// --bootstrap; ignored once the directory is in a cluster.
    #[arg(long, env = "SHOAL_JOIN", value_name = "ADDR,...", value_delimiter = ',')]
    join: Vec<String>,
    /// Allow addresses beyond this machine although nothing is encrypted. On a network that you trust.
    #[arg(long, env = "SHOAL_ALLOW_PLAINTEXT_REMOTE")]
    allow_plaintext_remote: bool,
    #[command(flatten)]
    tuning: Tuning,
}

impl StartArgs {
    /// Takes the one of two ways into a cluster that was said in the place that counts for more: a flag, a variable, the file.
    pub(crate) fn choose(&mut self, bootstrap: Option<ValueSource>, join: Option<ValueSource>) -> Result<(), Failed> {
        if self.bootstrap.is_empty() || self.join.is_empty() {
            return Ok(());
        }
        match bootstrap.cmp(&join) {
            Ordering::Less => self.bootstrap.clear(),
            Ordering::Greater => self.join.clear(),
            Ordering::Equal => {
                let text = "--bootstrap founds a cluster, --join enters one; give one of the two".to_string();
                return Err(Failed { code: Failed::USAGE, text });
            }
        }
        Ok(())
    }

    /// How many members found a cluster, and how many nodes are asked to be let in.
    #[cfg(test)]
    pub(crate) fn ways(&self) -> (usize, usize) {
        (self.bootstrap.len(), self.join.len())
    }

    /// The node that they describe.
    pub(crate) fn builder(&self) -> Builder {
        let mut builder = Node::builder(u64::from(self.id), &self.data)
            .listen(&self.listen)
            .allow_plaintext_remote(self.allow_plaintext_remote);
        builder = self.tuning.apply(builder);
        if let Some(advertise) = &self.advertise {
            builder = builder.advertise(advertise);
        }
        if !self.bootstrap.is_empty() {
            builder = builder.bootstrap(self.bootstrap.iter().map(|member| Member::new(member.id, &member.address)));
        }
        if !self.join.is_empty() {
            builder = builder.join(&self.join);
        }
        builder
    }
}

/// Runs until a signal, or until the node had to stop.
pub(crate) fn run(args: StartArgs) -> Result<(), Failed> {
    // Before anything takes time: a signal during the start ends it in order, too.
    let (to, signals) = crossbeam_channel::unbounded();
    ctrlc::set_handler(move || {
        let _ = to.send(());
    })
    .map_err(|error| Error::from(io::Error::other(format!("signal handler: {error}"))))?;

    let builder = args.builder();
    builder.check().map_err(|(setting, what)| Failed {
        code: Failed::USAGE,
        text: crate::in_flags(&format!("--{}: {what}", setting.replace('_', "-"))),
    })?;
    let node = builder.start().map_err(|error| match error.kind() {
        ErrorKind::Corrupt => Failed { code: Failed::NOT_AGAIN, text: error.to_string() },
        _ => error.into(),
    })?;
    let events = node.events();
    // What was decided before anybody listened is no event any more.
    let Status { leader, term, .. } = node.status();
    let leads = |leader, term| format!("node {leader} leads in term {term}");
    let listen = node.listen_addr().unwrap_or(args.listen);
    tracing::info!(node = args.id, listen, data = %args.data.display(), "ready");
    if let Some(leader) = leader {
        tracing::info!(node = args.id, leader = leader.0, term = term.0, "node {leader} leads");
    }
    let nobody = || "no leader at the moment".to_string();
    let mut shown = Shown::begin(notify, leader.map_or_else(nobody, |leader| leads(leader, term)));
    let (mut removed, mut coming) = (None, Coming::new());
    coming.look(&node);
    let (seldom, never) = (tick(LOOK_EVERY), never());
    loop {
        crossbeam_channel::select! {
            recv(signals) -> _ => break,
            recv(coming.looks()) -> _ => coming.look(&node),
            recv(if shown.is_troubled() { &seldom } else { &never }) -> _ => shown.on_alarms(&node.status().alarms),
            recv(events) -> event => match event {
                Ok(Event::LeaderChanged { term, leader: Some(leader) }) => {
                    shown.on_leader(leads(leader, term));
                    tracing::info!(node = args.id, leader = leader.0, term = term.0, "node {leader} leads");
                }
                Ok(Event::LeaderChanged { term, leader: None }) => {
                    shown.on_leader(nobody());
                    tracing::info!(node = args.id, term = term.0, "no leader at the moment");
                }
                Ok(Event::MemberChanged { voters, learners, .. }) => {
                    let list = |ids: &[shoaldb::types::NodeId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    let (voters, learners) = (list(&voters), list(&learners));
                    tracing::info!(node = args.id, voters, learners, "the members changed");
                }
                Ok(Event::Removed { what }) => {
                    removed = Some(what);
                    break;
                }
                Ok(Event::DiskTrouble { what }) => {
                    // It serves reads, but cannot be relied on: whoever supervises it should know.
                    // The log has it already.
                    shown.on_trouble(&what);
                }
                Ok(Event::DivergenceFound { database, what }) => {
                    tracing::error!(node = args.id, database, "{what}; it is not served here until it is repaired");
                }
                Ok(Event::DivergenceRepaired { database, source, .. }) => {
                    tracing::info!(node = args.id, database, "repaired from node {source}, and served again");
                }
                Ok(Event::SnapshotStarted { peer, index, receiving: true }) => {
                    tracing::info!(node = args.id, "a snapshot of entry {index} comes from node {peer}");
                    coming.look(&node);
                }
                Ok(Event::SnapshotProgress { receiving: true, .. }) => coming.look(&node),
                Ok(Event::SnapshotInstalled { index, bytes }) => {
                    let bytes = units::bytes(bytes);
                    tracing::info!(node = args.id, "the snapshot of entry {index} is installed; {bytes} came for it");
                    coming.look(&node);
                }
                // Checkpoints, compactions, snapshots for others: what a healthy node does.
                Ok(event) => tracing::debug!(node = args.id, "{event:?}"),
                Err(_) => break,
            },
        }
    }
    notify("STOPPING=1\nSTATUS=handing over");
    tracing::info!(node = args.id, "handing over");
    node.shutdown()?;
    tracing::info!(node = args.id, "stopped");
    match removed {
        Some(what) => Err(Failed { code: Failed::NOT_AGAIN, text: what }),
        None => Ok(()),
    }
}
