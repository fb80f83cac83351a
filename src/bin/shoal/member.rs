//! `shoal member`: who belongs to the cluster, and changes of that.

use serde_json::json;
use shoaldb::MemberStatus;

use crate::ask::{Question, done, of_cluster};
use crate::table::{plain, print};
use crate::{Failed, units};

/// List the members, bring one in, let it vote, take one out.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  shoal member list --data data-1
  A fourth node comes in by itself and votes once it has caught up:
    shoal start --id 4 --data data-4 --listen 127.0.0.1:4004 --join 127.0.0.1:4001
  A node that is dead is replaced by one that listens already:
    shoal member add 5=127.0.0.1:4005 --data data-1
    shoal start --id 5 --data data-5 --listen 127.0.0.1:4005 --join 127.0.0.1:4001
    shoal member replace 3 5 --data data-1

One change at a time: while one is under way, a second is refused.")]
pub(crate) struct MemberArgs {
    #[command(subcommand)]
    act: MemberAct,
}

#[derive(clap::Subcommand, Debug)]
enum MemberAct {
    /// List the members with their addresses.
    #[command(after_help = "Example:\n  shoal member list --data data-1 --json

In JSON \"role\" is voter, learner or leaving, as in `status --json`; \"leader\" is true for the voter that leads.")]
    List {
        #[command(flatten)]
        question: Question,
    },
    /// Bring in a member that listens and does not vote; start its node with --join.
    #[command(after_help = "Example:\n  shoal member add 4=127.0.0.1:4004 --data data-1")]
    Add {
        /// Its id, which no member has or ever had, and its address.
        #[arg(value_name = "ID=ADDR")]
        member: crate::start::MemberArg,
        #[command(flatten)]
        question: Question,
    },
    /// Let a member vote; refused until it has caught up.
    #[command(after_help = "Example:\n  shoal member promote 4 --data data-1")]
    Promote {
        /// Its id.
        #[arg(value_parser = units::node_id)]
        id: u16,
        #[command(flatten)]
        question: Question,
    },
    /// Take a member out, for ever: its id is never used again. Done at once, without being asked about.
    #[command(after_help = "Example:\n  shoal member remove 3 --data data-1")]
    Remove {
        /// Its id.
        #[arg(value_parser = units::node_id)]
        id: u16,
        #[command(flatten)]
        question: Question,
    },
    /// Let a member that listens take the place of one that votes, in one step. The id of who goes is never used again.
    #[command(after_help = "Example:\n  shoal member replace 3 5 --data data-1")]
    Replace {
        /// Who goes.
        #[arg(value_parser = units::node_id)]
        old: u16,
        /// Who votes instead.
        #[arg(value_parser = units::node_id)]
        new: u16,
        #[command(flatten)]
        question: Question,
    },
}

impl MemberArgs {
    /// Whether the answer is JSON.
    pub(crate) fn json(&self) -> bool {
        let (MemberAct::List { question }
        | MemberAct::Add { question, .. }
        | MemberAct::Promote { question, .. }
        | MemberAct::Remove { question, .. }
        | MemberAct::Replace { question, .. }) = &self.act;
        question.json
    }
}

/// `shoal member`.
pub(crate) fn run(args: MemberArgs) -> Result<(), Failed> {
    match args.act {
        MemberAct::List { question } => {
            let status = of_cluster(&question)?;
            if question.json {
                let member = |member: &MemberStatus| {
                    let mut told = json!(member);
                    told["leader"] = (status.leader == Some(member.node)).into();
                    told
                };
                print(&format!("{:#}", json!(status.members.iter().map(member).collect::<Vec<_>>())));
                return Ok(());
            }
            let mut table = plain(&["node", "role", "address"]);
            for member in &status.members {
                let role = if status.leader == Some(member.node) { "leader" } else { &member.role };
                table.add_row([member.node.to_string(), role.to_string(), member.address.clone()]);
            }
            print(&table.to_string());
        }
        MemberAct::Add { member, question } => {
            // The argument was parsed as an id of 16 bits.
            let id = u16::try_from(member.id).unwrap_or(u16::MAX);
            question.client()?.add_learner(id, &member.address)?;
            done(question.json, json!({ "added": id }), &format!("node {id} is a member and listens"));
        }
        MemberAct::Promote { id, question } => {
            question.client()?.promote(id)?;
            done(question.json, json!({ "promoted": id }), &format!("node {id} votes"));
        }
        MemberAct::Remove { id, question } => {
            question.client()?.remove(id)?;
            done(question.json, json!({ "removed": id }), &format!("node {id} is no member any more"));
        }
        MemberAct::Replace { old, new, question } => {
            question.client()?.replace(old, new)?;
            let text = format!("node {new} votes, node {old} is no member any more");
            done(question.json, json!({ "removed": old, "promoted": new }), &text);
        }
    }
    Ok(())
}
