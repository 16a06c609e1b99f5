//! `selvedge config`: what a configuration is, all in all.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{ConfigArgs, complain, faulty, print};
use crate::node;

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Print the effective configuration: all files in one, `like` followed, settings merged, defaults filled in; without secrets.
    Show(ShowArgs),
}

#[derive(Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON, for machines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: ConfigCommand) -> ExitCode {
    match command {
        ConfigCommand::Show(args) => show(&args),
    }
}

fn show(args: &ShowArgs) -> ExitCode {
    let effective = match node::loader().load(&args.config.config) {
        Ok(loaded) => loaded.effective(),
        Err(report) => return faulty(&report),
    };
    if !args.json {
        return print(&effective);
    }
    match serde_json::to_string_pretty(&effective.to_json()) {
        Ok(text) => print(format_args!("{text}\n")),
        Err(error) => complain(format_args!("{error}\n"), ExitCode::FAILURE),
    }
}
