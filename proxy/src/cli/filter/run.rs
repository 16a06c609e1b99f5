//! `selvedge filter run`: one request through one filter.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use selvedge_config::TestOrigin;
use selvedge_wasm::{TraceEvent, is_secret};
use serde_json::{Value, json};

use super::super::{complain, print};
use super::module::Wasm;
use super::{Done, Trouble, read_argument, settings};
use crate::error_chain;
use crate::offline::Question;
use crate::offline::single::{Message, ORIGIN, SingleError, Told, Trial};

#[derive(Args)]
pub(in crate::cli) struct RunArgs {
    /// The module.
    #[arg(default_value = ".")]
    module: String,
    /// Its settings: JSON or YAML, or @FILE.
    #[arg(long, value_name = "SETTINGS")]
    config: Option<String>,
    /// The request: `METHOD URL`, or a URL or path alone.
    #[arg(long, value_name = "REQUEST", default_value = "GET /")]
    request: String,
    /// A header field of it. May be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = super::super::route::header)]
    headers: Vec<(String, String)>,
    /// Its body, or @FILE.
    #[arg(short, long, value_name = "BODY")]
    data: Option<String>,
    /// Where it comes from; 127.0.0.1 if nothing is said.
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
    /// What the origin answers: STATUS, STATUS:BODY, STATUS:@FILE, or `down`.
    #[arg(long, value_name = "ANSWER", default_value = "200")]
    origin: String,
    /// A header field of the origin's answer. May be repeated.
    #[arg(long = "origin-header", value_name = "NAME: VALUE", value_parser = super::super::route::header)]
    origin_headers: Vec<(String, String)>,
    /// An upstream the filter may call, and what it answers (as --origin). May be repeated.
    #[arg(long = "upstream", value_name = "NAME=ANSWER")]
    upstreams: Vec<String>,
    /// How the filter is declared, beside its settings: keys of `filters:` such as `root_id`, as JSON or YAML.
    #[arg(long, value_name = "KEYS")]
    declare: Option<String>,
    /// For machines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RunArgs) -> Done {
    let wasm = Wasm::find(&args.module)?;
    // What is no module is told before the proxy is asked to load it.
    wasm.anatomy()?;
    let trial = trial(args, &wasm)?;
    // As a worker of a node is: its thread can hand its tasks over when a filter's call takes long.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Trouble::new(format!("no runtime: {error}")))?;
    let told = runtime.block_on(trial.run()).map_err(|error| match error {
        SingleError::Refused(_) => Trouble::new(format!("{}: {error}", wasm.place())),
        _ => Trouble::new(error_chain(&error)),
    })?;

    if args.json {
        print(format_args!("{:#}\n", as_json(&trial, &told)));
    } else {
        print(text(&trial, &told));
    }
    Ok(match told.events.iter().find(|event| event.failed) {
        Some(failed) if !args.json => complain(failure(&failed.ended), ExitCode::FAILURE),
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    })
}

fn trial(args: &RunArgs, wasm: &Wasm) -> Result<Trial, Trouble> {
    let mut declared = match &args.declare {
        Some(text) => settings("--declare", text)?,
        None => json!({}),
    };
    if !declared.is_object() {
        return Err(Trouble::new("--declare: expected keys and values, such as {root_id: auth}"));
    }
    if let Some(text) = &args.config {
        declared["config"] = settings("--config", text)?;
    }
    let (method, url) = args.request.trim().split_once(' ').unwrap_or(("GET", args.request.trim()));
    let mut upstreams = BTreeMap::new();
    for upstream in &args.upstreams {
        let (name, says) = upstream
            .split_once('=')
            .ok_or_else(|| Trouble::new(format!("--upstream {upstream}: expected NAME=ANSWER, such as authz=200")))?;
        upstreams.insert(name.to_owned(), answer("--upstream", says)?);
    }
    let mut origin = answer("--origin", &args.origin)?;
    origin.headers.extend(args.origin_headers.iter().cloned());
    upstreams.insert(ORIGIN.to_owned(), origin);
    let body = args.data.as_deref().map(|data| read_argument("--data", data)).transpose()?.unwrap_or_default();
    let mut headers = args.headers.clone();
    if url.starts_with('/') && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        headers.insert(0, ("host".into(), "example.test".into()));
    }
    Ok(Trial {
        name: name_of(&wasm.name),
        module: match &wasm.path {
            Some(path) => format!("file:{}", std::path::absolute(path).unwrap_or_else(|_| path.clone()).display()),
            None => wasm.place(),
        },
        declared,
        request: Question {
            url: url.trim().to_owned(),
            method: method.to_owned(),
            headers,
            body,
            client: args.client,
            ..Question::default()
        },
        upstreams,
    })
}

/// A name that a filter can have in a configuration.
fn name_of(module: &str) -> String {
    module.chars().map(|letter| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '-' }).collect()
}

fn answer(argument: &str, says: &str) -> Result<TestOrigin, Trouble> {
    if says == "down" {
        return Ok(TestOrigin { down: true, ..TestOrigin::default() });
    }
    let (status, body) = says.split_once(':').unwrap_or((says, ""));
    let status = status.parse().ok().filter(|status| (200..=599).contains(status));
    let status = status.ok_or_else(|| {
        Trouble::new(format!(
            "{argument} {says}: expected a status from 200 to 599, with a body after a colon if there is one, or `down`"
        ))
    })?;
    let body = read_argument(argument, body)?;
    let json = body.starts_with(['{', '[']) && serde_json::from_str::<Value>(&body).is_ok();
    let headers = if json { vec![("content-type".to_owned(), "application/json".to_owned())] } else { Vec::new() };
    Ok(TestOrigin { status, body, headers, ..TestOrigin::default() })
}

fn text(trial: &Trial, told: &Told) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{} {} through {}\n", trial.request.method, trial.request.url, trial.name);

    if !told.start.is_empty() {
        text.push_str("start\n");
        lines(&mut text, &told.start);
        text.push('\n');
    }
    text.push_str("exchange\n");
    lines(&mut text, &told.events);
    if told.left_out > 0 {
        let _ = writeln!(text, "  ... and {} more", told.left_out);
    }

    if !told.callouts.is_empty() {
        text.push_str("\ncallouts\n");
        for one in &told.callouts {
            let _ = writeln!(text, "  {} {} {} -> {}", one.upstream, one.method, one.target, one.status);
        }
    }

    text.push_str("\nrequest, to the origin\n");
    match &told.forwarded {
        (Some(with), Some(without)) => difference(&mut text, without, with),
        (None, _) => text.push_str("  was not sent: answered before\n"),
        (Some(with), None) => difference(&mut text, &Message::default(), with),
    }
    let (with, without) = &told.response;
    let _ = writeln!(text, "\nresponse, to the client: {}", with.field(":status").unwrap_or("?"));
    difference(&mut text, without, with);

    let total: Duration = told.events.iter().filter(|event| event.callback_of.is_some()).map(|event| event.took).sum();
    let calls = told.events.iter().filter(|event| event.callback_of.is_some()).count();
    let _ = writeln!(
        text,
        "\n{calls} callbacks, {} us in all, as traced: tracing takes part of it (`selvedge filter bench` measures)",
        micros(total)
    );
    text
}

/// Times are since the first of them.
fn lines(text: &mut String, events: &[TraceEvent]) {
    let began = events.first().map_or(Duration::ZERO, |event| event.at);
    events.iter().for_each(|event| line(text, event, event.at.saturating_sub(began)));
}

fn line(text: &mut String, event: &TraceEvent, at: Duration) {
    let (at, took) = (micros(at), micros(event.took));
    let gap = if event.arguments.is_empty() { "" } else { " " };
    let ended = if event.failed { "FAILED, see below" } else { &event.ended };
    let _ = match &event.callback_of {
        Some((_, context)) => writeln!(text, "  {at:>9} {took:>8} us  {} #{context} -> {ended}", event.name),
        None => writeln!(text, "  {at:>9} {took:>8} us    {}{gap}{} -> {ended}", event.name, event.arguments),
    };
}

/// A trap with a line for each frame.
fn failure(ended: &str) -> String {
    let (what, words) = ended.split_once("; it had logged: ").unwrap_or((ended, ""));
    let frames = what.replacen(", in ", "\n  in ", 1).replace(" < ", "\n  <- ");
    let mut text = format!("\nthe filter failed: {frames}\n");
    if !words.is_empty() {
        let _ = writeln!(text, "it had logged: {}", words.trim());
    }
    text
}

fn micros(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1e6)
}

fn difference(text: &mut String, before: &Message, after: &Message) {
    let (gone, new) = (before.without(after), after.without(before));
    for (sign, fields) in [('-', &gone), ('+', &new)] {
        for (name, value) in fields {
            let _ = writeln!(text, "  {sign} {name}: {}", redacted(name, value));
        }
    }
    if before.body != after.body {
        let _ = writeln!(text, "  - body of {} bytes: {}", before.body.len(), shown(&before.body));
        let _ = writeln!(text, "  + body of {} bytes: {}", after.body.len(), shown(&after.body));
    }
    if gone.is_empty() && new.is_empty() && before.body == after.body {
        text.push_str("  as without the filter\n");
    }
}

fn redacted<'v>(name: &str, value: &'v str) -> &'v str {
    if is_secret(name) { "<redacted>" } else { value }
}

/// The beginning of a body.
fn shown(body: &[u8]) -> String {
    const SHOWN: usize = 200;
    let cut = if body.len() > SHOWN { "..." } else { "" };
    format!("\"{}\"{cut}", String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).escape_debug())
}

fn as_json(trial: &Trial, told: &Told) -> Value {
    let events = |events: &[TraceEvent]| -> Vec<Value> {
        let one = |event: &TraceEvent| {
            json!({
                "kind": if event.callback_of.is_some() { "callback" } else { "hostcall" },
                "name": event.name,
                "context": event.callback_of.as_ref().map(|(_, context)| context),
                "arguments": event.arguments,
                "ended": event.ended,
                "failed": event.failed,
                "at_us": event.at.as_secs_f64() * 1e6,
                "took_us": event.took.as_secs_f64() * 1e6,
            })
        };
        events.iter().map(one).collect()
    };
    let message = |message: &Message| {
        let fields: Vec<Value> =
            message.fields.iter().map(|(name, value)| json!([name, redacted(name, value)])).collect();
        json!({ "fields": fields, "body": String::from_utf8_lossy(&message.body) })
    };
    let difference = |before: &Message, after: &Message| {
        let fields = |fields: Vec<(String, String)>| -> Vec<Value> {
            fields.iter().map(|(name, value)| json!([name, redacted(name, value)])).collect()
        };
        json!({
            "removed": fields(before.without(after)), "added": fields(after.without(before)), "body": before.body != after.body,
        })
    };
    let nothing = Message::default();
    let (with, without) = &told.response;
    let (sent, unfiltered) = (told.forwarded.0.as_ref(), told.forwarded.1.as_ref());
    json!({
        "filter": trial.name,
        "start": events(&told.start),
        "events": events(&told.events),
        "events_left_out": told.left_out,
        "callouts": told.callouts.iter().map(|one| json!({
            "upstream": one.upstream, "method": one.method, "path": one.target, "status": one.status,
        })).collect::<Vec<_>>(),
        "request": sent.map(message),
        "request_difference": sent.map(|sent| difference(unfiltered.unwrap_or(&nothing), sent)),
        "response": message(with),
        "response_difference": difference(without, with),
        "failure": told.events.iter().find(|event| event.failed).map(|event| &event.ended),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_a_status_with_a_body_if_there_is_one() {
        let plain = answer("--origin", "404").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (404, ""));
        let json = answer("--origin", "200:{\"a\": 1}").unwrap();
        assert_eq!((json.body.as_str(), json.headers.len()), ("{\"a\": 1}", 1));
        assert!(answer("--origin", "down").unwrap().down);
        for odd in ["", "99", "600", "ok", "200;x"] {
            let error = answer("--origin", odd).unwrap_err().to_string();
            assert!(error.contains("--origin") && error.contains("200 to 599"), "{error}");
        }
    }
}
