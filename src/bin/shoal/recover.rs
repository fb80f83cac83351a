//! `shoal recover`: a majority is lost for good, and one node goes on alone.

use std::io::IsTerminal;
use std::path::PathBuf;

use shoaldb::{Error, recover};

use crate::ask::existing;
use crate::table::print;
use crate::{Failed, say, units};

/// When a majority of the nodes is lost for good: let one node, which is stopped, go on alone.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  What it would mean; nothing is changed:
    shoal recover --data data-1 --only-member 1
  Do it:
    shoal recover --data data-1 --only-member 1 --yes

Ask every node that is left, and take the one with the highest term, then the highest entry. The cluster gets a new id,
and the ids of all other nodes are gone: start it, then join new nodes with empty directories.")]
pub(crate) struct RecoverArgs {
    /// Directory of the node's data; the node must be stopped.
    #[arg(long, env = "SHOAL_DATA", value_name = "DIR")]
    data: PathBuf,
    /// Id of the node, which will be the only member.
    #[arg(long, value_name = "ID", value_parser = units::node_id)]
    only_member: u16,
    /// Do it, and do not ask.
    #[arg(long)]
    yes: bool,
}

/// `shoal recover`.
pub(crate) fn run(args: &RecoverArgs) -> Result<(), Failed> {
    existing(&args.data)?;
    let only = u64::from(args.only_member);
    let report = recover::only_member(&args.data, only, false)?;
    print(&report.to_string());
    let mut carry_out = args.yes;
    if !carry_out && std::io::stdin().is_terminal() {
        say::part("Go on? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(Error::from)?;
        carry_out = answer.trim().eq_ignore_ascii_case("y");
    }
    if !carry_out {
        return Err(Failed { code: 1, text: "nothing was changed; with --yes it is done".to_string() });
    }
    let report = recover::only_member(&args.data, only, true)?;
    print(&format!("done: node {only} is cluster {}; start it", report.new_cluster));
    Ok(())
}
