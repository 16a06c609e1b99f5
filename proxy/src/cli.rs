//! The command line.

mod cache;
mod config;
mod filter;
mod route;
mod schema;
mod test;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use selvedge_config::{Report, parse_duration};
use serde_json::{Map, Value, json};

use crate::listening;
use crate::node::{self, StartError};
use crate::offline::OfflineError;
use crate::plan::{self, Resources};
use crate::process::{self, RunError};
use crate::telemetry;

/// An edge proxy: runs chains of proxy-wasm filters per route, in front of a cache, in front of origins.
#[derive(Parser)]
#[command(name = "selvedge", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node until SIGTERM or SIGINT. SIGHUP, and a change of any of its files, reloads the configuration; SIGUSR2 starts the program
    /// anew, which takes over.
    Run(ConfigArgs),
    /// Say everything that is wrong with a configuration, as starting a node with it would; exit code 2 if anything is.
    Check(ConfigArgs),
    /// Ask the router about a request, without a node.
    #[command(subcommand)]
    Route(route::RouteCommand),
    /// Look at a configuration as a whole.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Ask and tell a running node about its cache.
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Run the `tests` of a configuration, on its routes and filters, without sockets; exit code 1 if one fails.
    Test(test::TestArgs),
    /// Write filters: make a crate, build, check, run and measure it.
    #[command(subcommand)]
    Filter(filter::FilterCommand),
    /// Print the JSON Schema of the configuration, for editors.
    Schema(schema::SchemaArgs),
    /// Mint a JSON Web Token (HS256) that a `jwt-auth` filter of a configuration accepts, to try things out.
    Token(TokenArgs),
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration file.
    #[arg(short, long, default_value = "config.yaml")]
    config: PathBuf,
}

#[derive(Args)]
struct TokenArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The filter whose `secret`, `issuer` and `audience` are used.
    #[arg(long, default_value = "jwt-auth")]
    filter: String,
    /// Who the token is about.
    #[arg(long, default_value = "demo")]
    sub: String,
    /// How long it is valid.
    #[arg(long, default_value = "1h")]
    ttl: String,
    /// Further claims, `name=value`; the value is JSON if it parses as such, else text. May be repeated.
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    claims: Vec<String>,
}

/// Exit code for faults in a configuration.
const EXIT_FAULTY: u8 = 2;

/// Runs the command the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(args) => run(&args.config),
        Command::Check(args) => check(&args.config),
        Command::Config(command) => config::run(command),
        Command::Route(command) => route::run(command),
        Command::Cache(command) => cache::run(command),
        Command::Test(args) => test::run(&args),
        Command::Filter(command) => filter::run(command),
        Command::Schema(args) => schema::run(&args),
        Command::Token(args) => match token(&args) {
            Ok(token) => print(format_args!("{token}\n")),
            Err(error) => complain(format_args!("{error:#}\n"), ExitCode::FAILURE),
        },
    }
}

fn run(path: &Path) -> ExitCode {
    telemetry::init();
    match process::run(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Start(StartError::Config(report))) => faulty(&report),
        Err(error) => complain(format_args!("{}\n", crate::error_chain(&error)), ExitCode::FAILURE),
    }
}

/// The loader, the planner and what listeners read, without sockets.
fn check(path: &Path) -> ExitCode {
    let loaded = match node::loader().load(path) {
        Ok(loaded) => loaded,
        Err(report) => return faulty(&report),
    };
    let module_cache = loaded.config.node.module_cache.clone();
    let resources = match Resources::new(1, &module_cache) {
        Ok(resources) => resources,
        Err(error) => return complain(format_args!("{}\n", crate::error_chain(&error)), ExitCode::FAILURE),
    };
    let checked = listening::check(&loaded.config);
    let built = plan::build(&resources, loaded);
    let (built, oddities) = match (built, checked) {
        (Ok(built), Ok(oddities)) => (built, oddities),
        (built, checked) => {
            let faults = built.err().into_iter().chain(checked.err()).flatten().collect();
            return faulty(&Report::new(path, faults));
        }
    };
    for (listener, odd) in oddities {
        let _ = writeln!(io::stderr(), "warning: listener {listener}: {odd}");
    }
    let routes = built.plan.router.routes().count();
    print(format_args!("{}: in order ({routes} routes)\n", path.display()))
}

fn token(args: &TokenArgs) -> anyhow::Result<String> {
    let loaded = node::loader().load(&args.config.config).map_err(|report| anyhow::anyhow!("{report}"))?;
    let filter =
        loaded.config.filters.get(&args.filter).with_context(|| format!("no filter is called {}", args.filter))?;
    let Some(secret) = filter.config.get("secret").and_then(Value::as_str) else {
        bail!("filter {} has no `secret`: only HS256 tokens can be minted", args.filter);
    };

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let ttl = parse_duration(&args.ttl).with_context(|| format!("--ttl {}", args.ttl))?.as_secs();
    let mut claims = Map::new();
    claims.insert("sub".into(), json!(args.sub));
    claims.insert("iat".into(), json!(now));
    claims.insert("exp".into(), json!(now + ttl));
    if let Some(issuer) = filter.config.get("issuer") {
        claims.insert("iss".into(), issuer.clone());
    }
    if let Some(audience) = filter.config.get("audience") {
        claims.insert("aud".into(), audience.clone());
    }
    for claim in &args.claims {
        let (name, value) = claim.split_once('=').with_context(|| format!("--claim {claim}: expected NAME=VALUE"))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        claims.insert(name.to_owned(), value);
    }
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).context("the token cannot be signed")
}

fn offline_failed(error: &OfflineError) -> ExitCode {
    match error {
        OfflineError::Config(report) => faulty(report),
        OfflineError::Engine(_) => complain(format_args!("{}\n", crate::error_chain(error)), ExitCode::FAILURE),
    }
}

fn faulty(report: &Report) -> ExitCode {
    complain(format_args!("{report}\n"), ExitCode::from(EXIT_FAULTY))
}

fn print(text: impl Display) -> ExitCode {
    // A reader that has gone away (`| head`) is no failure.
    let _ = write!(io::stdout(), "{text}");
    ExitCode::SUCCESS
}

fn complain(text: impl Display, code: ExitCode) -> ExitCode {
    let _ = write!(io::stderr(), "{text}");
    code
}
