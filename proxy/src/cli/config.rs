//! `selvedge config`: what a configuration is, all in all.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{ConfigArgs, complain, faulty, offline_failed, print};
use crate::node;
use crate::offline::compare::Comparison;

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Print the effective configuration: all files in one, `like` followed, settings merged, defaults filled in; without secrets.
    Show(ShowArgs),
    /// Say what would change between two configurations, and what a reload would do with listeners and filters. Exit code 0 if they are
    /// the same, 1 if not.
    Diff(DiffArgs),
}

#[derive(Args)]
pub(super) struct DiffArgs {
    /// The one that is in force, say.
    old: PathBuf,
    /// The one that is to be.
    new: PathBuf,
    /// As JSON, for machines.
    #[arg(long)]
    json: bool,
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
        ConfigCommand::Diff(args) => diff(&args),
    }
}

fn show(args: &ShowArgs) -> ExitCode {
    let effective = match node::loader().load(&args.config.config) {
        Ok(loaded) => loaded.effective(),
        Err(report) => return faulty(&report),
    };
    if args.json { print_json(&effective.to_json()) } else { print(&effective) }
}

fn diff(args: &DiffArgs) -> ExitCode {
    let found = match Comparison::of(&args.old, &args.new) {
        Ok(found) => found,
        Err(error) => return offline_failed(&error),
    };
    let told = if args.json { print_json(&found.to_json()) } else { print(&found) };
    if found.is_same() { told } else { ExitCode::FAILURE }
}

fn print_json(value: &serde_json::Value) -> ExitCode {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(format_args!("{text}\n")),
        Err(error) => complain(format_args!("{error}\n"), ExitCode::FAILURE),
    }
}
