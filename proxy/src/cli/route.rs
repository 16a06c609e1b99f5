//! `selvedge route`: what the router makes of a request.

use std::net::IpAddr;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{ConfigArgs, EXIT_FAULTY, complain, offline_failed, print};
use crate::offline::{Offline, Question};

#[derive(Subcommand)]
pub(super) enum RouteCommand {
    /// Say which route a request takes and why, what its filters, cache key and upstream are. Nothing is sent and no filter runs.
    /// Exit code 1 when the node would refuse it or no route matches.
    Explain(ExplainArgs),
}

#[derive(Args)]
pub(super) struct ExplainArgs {
    /// The URL as a client would ask for it: `https://example.com/a?b=c`, or a path alone. It is not normalised before it is sent.
    url: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// The method.
    #[arg(short = 'X', long = "method", default_value = "GET")]
    method: String,
    /// A header field, `name: value`. May be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The address the connection comes from; 127.0.0.1 if nothing is said.
    #[arg(long, value_name = "IP", conflicts_with = "country")]
    client: Option<IpAddr>,
    /// Come from this country instead (ISO 3166-1 alpha-2): from the first address of it in the geo database.
    #[arg(long, value_name = "CODE")]
    country: Option<String>,
    /// The listener it arrives on. Default: the one with the URL's port, else the first with its scheme.
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// As JSON, for machines.
    #[arg(long)]
    json: bool,
}

pub(super) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("expected `name: value`")?;
    Ok((name.to_owned(), value.trim().to_owned()))
}

pub(super) fn run(command: RouteCommand) -> ExitCode {
    let RouteCommand::Explain(args) = command;
    let offline = match Offline::load(&args.config.config) {
        Ok(offline) => offline,
        Err(error) => return offline_failed(&error),
    };
    let question = Question {
        url: args.url,
        method: args.method,
        headers: args.headers,
        body: String::new(),
        client: args.client,
        country: args.country,
        listener: args.listener,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(format_args!("no runtime: {error}\n"), ExitCode::FAILURE),
    };
    let told = match runtime.block_on(offline.explain(&question)) {
        Ok(told) => told,
        Err(error) => return complain(format_args!("{error}\n"), ExitCode::from(EXIT_FAULTY)),
    };
    if args.json {
        match serde_json::to_string_pretty(&told) {
            Ok(text) => print(format_args!("{text}\n")),
            Err(error) => return complain(format_args!("{error}\n"), ExitCode::FAILURE),
        };
    } else {
        print(&told);
    }
    if told.is_refused() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
