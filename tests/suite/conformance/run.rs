//! Runs cases on a host and says what was seen.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use selvedge_tests::{Client, Origin, Request, Response, h2::H2Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::case::{Case, Expectation, Message, Subject};
use super::hosts::{Host, Running, Upstreams};
use super::record::{self, Event, Record, Records};

/// How many cases run at a time.
const AT_ONCE: usize = 12;

/// How long what a case expects may take to come about after its exchanges: on a busy machine, where it will come; where nobody knows.
const PATIENCE: Duration = Duration::from_secs(60);
const IMPATIENCE: Duration = Duration::from_secs(4);

/// How long one exchange may take.
const EXCHANGE: Duration = Duration::from_secs(12);

/// How long a further piece of a body waits for the callback of the piece before it.
const PIECE: Duration = Duration::from_secs(3);

/// What became of a case.
pub(crate) struct Verdict {
    pub(crate) case: Case,
    /// What was seen, for each expectation.
    pub(crate) seen: Vec<String>,
    /// A callback ran while another was running, or the script is not understood.
    pub(crate) fault: Option<String>,
}

impl Verdict {
    /// The expectations that do not hold, given what is expected of a host, and what was seen instead.
    pub(crate) fn failures<'a>(
        &'a self,
        expected: impl Fn(&'a Expectation) -> &'a str,
    ) -> Vec<(&'a Expectation, &'a str, &'a str)> {
        let pairs = self.case.expectations.iter().zip(&self.seen);
        pairs
            .map(|(expectation, seen)| (expectation, expected(expectation), seen.as_str()))
            .filter(|(_, pattern, seen)| !record::matches(pattern, seen))
            .collect()
    }
}

/// The origin and the server of the callouts, and what they have received.
struct Servers {
    origin: Origin,
    side: Origin,
    echo: (SocketAddr, JoinHandle<()>),
    refused: TcpSocket,
    records: Arc<Records>,
}

/// Runs all cases on one host.
pub(crate) async fn run(host: &Host, cases: Vec<Case>) -> Result<Vec<Verdict>, String> {
    let servers = Servers::start(&cases).await;
    // Cases that end the process, or keep it from starting, have one of their own.
    let crashes = |case: &Case| matches!(host, Host::Envoy(_)) && case.option("crashes_envoy").is_some();
    let (alone, together): (Vec<&Case>, Vec<&Case>) =
        cases.iter().partition(|case| case.option("alone").is_some() || crashes(case));

    let mut verdicts = Vec::new();
    if !together.is_empty() {
        let running = host.start(&together, servers.upstreams(), &servers.records).await?;
        let attempts = together.iter().map(|case| attempt(host, &servers, Some(&running), case));
        verdicts = futures::stream::iter(attempts).buffer_unordered(AT_ONCE).collect().await;
        if std::env::var_os("CONFORMANCE_LOG").is_some() {
            println!("{}", running.log());
        }
        if running.has_ended() {
            return Err(format!("it ended before the cases did:\n{}", running.log()));
        }
    }
    for case in alone {
        let started = host.start(&[case], servers.upstreams(), &servers.records).await;
        verdicts.push(attempt(host, &servers, started.as_ref().ok(), case).await);
    }

    let place = |id: &str| cases.iter().position(|case| case.id == id);
    verdicts.sort_by_key(|verdict| place(&verdict.case.id));
    Ok(verdicts)
}

/// Sends what the case sends, and looks until all is as expected or patience ends.
async fn attempt(host: &Host, servers: &Servers, running: Option<&Running>, case: &Case) -> Verdict {
    let mut answers = Vec::new();
    if let Some(running) = running
        && case.option("no_request").is_none()
    {
        let default = [Message { start: "GET /".into(), ..Message::default() }];
        let sends = if case.sends.is_empty() { default.as_slice() } else { &case.sends };
        for message in sends {
            let sent = send(&servers.records, running.address(case), case, message);
            let answer = tokio::time::timeout(EXCHANGE, sent).await;
            answers.push(answer.unwrap_or_else(|_| Err("no answer in time".into())));
        }
    }

    let seen = Seen { case, servers, running, answers: &answers };
    let expected = matches!(host, Host::Selvedge) && case.pending.is_none();
    let deadline = Instant::now() + if expected { PATIENCE } else { IMPATIENCE };
    loop {
        let looks: Vec<String> =
            case.expectations.iter().map(|expectation| seen.look(&expectation.subject, expectation.line)).collect();
        let pattern = |expectation| match host {
            Host::Selvedge => here(expectation),
            Host::Envoy(_) => on_envoy(expectation),
        };
        let holds =
            case.expectations.iter().zip(&looks).all(|(expectation, look)| record::matches(pattern(expectation), look));
        let ended = case.option("no_end").is_some() || record::ended(&servers.records.of(&case.id, 1));
        if holds && ended || Instant::now() > deadline {
            let records: Vec<Record> =
                (1..=case.scripts.len()).flat_map(|filter| servers.records.of(&case.id, filter)).collect();
            return Verdict { case: case.clone(), seen: looks, fault: fault(&records) };
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What is expected here.
pub(crate) fn here(expectation: &Expectation) -> &str {
    &expectation.pattern
}

/// What is expected of Envoy.
pub(crate) fn on_envoy(expectation: &Expectation) -> &str {
    expectation.envoy.as_ref().unwrap_or(&expectation.pattern)
}

fn fault(records: &[Record]) -> Option<String> {
    if let Some(nested) = records.iter().find(|record| record.nested()) {
        return Some(format!("{:?} was called while another callback was running", nested.callback()));
    }
    let error = records.iter().find_map(|record| match &record.event {
        Event::Step { line, result } if result == "script-error" => Some(line),
        _ => None,
    });
    error.map(|line| format!("line {line}: no hostcall of this name has so many arguments"))
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.echo.1.abort();
    }
}

impl Servers {
    async fn start(cases: &[Case]) -> Self {
        let records = Arc::<Records>::default();
        let serves: Vec<(String, Message)> = cases.iter().map(|case| (case.id.clone(), case.serve.clone())).collect();
        let (serves, recorded) = (Arc::new(serves), Arc::clone(&records));
        let origin = Origin::start_async(move |request| {
            let id = request.target.split('/').nth(1).unwrap_or_default().to_owned();
            let serve = serves.iter().find(|(case, _)| *case == id).map(|(_, serve)| serve.clone());
            answer(Arc::clone(&recorded), id, serve.unwrap_or_default()).boxed()
        })
        .await;
        let side = Origin::start_async(|request| side(request).boxed()).await;

        // Bound and not listening: nobody else can get the port.
        let refused = TcpSocket::new_v4().expect("a socket");
        refused.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let echo = Origin::raw(|mut stream| async move {
            let (mut from, mut to) = stream.split();
            // A client that breaks off is part of some cases.
            let _ = tokio::io::copy(&mut from, &mut to).await;
        })
        .await;
        Self { origin, side, echo, refused, records }
    }

    fn upstreams(&self) -> Upstreams {
        let refused = self.refused.local_addr().expect("bound");
        Upstreams { origin: self.origin.address(), side: self.side.address(), echo: self.echo.0, refused }
    }
}

/// The origin's answer; each further piece of a body waits until the filter has seen the one before.
async fn answer(records: Arc<Records>, id: String, serve: Message) -> selvedge_tests::Served {
    let status = serve.start.parse().unwrap_or(200);
    let headers: Vec<(&str, &str)> =
        serve.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    if serve.body.len() > 1 {
        let (pieces, served) = Origin::streaming(status, &headers);
        tokio::spawn(async move {
            for (count, piece) in serve.body.into_iter().enumerate() {
                piece_was_seen(&records, &id, "response_body", count).await;
                let _ = pieces.send(Bytes::from(piece));
            }
        });
        return served;
    }
    let body = serve.body.into_iter().next().unwrap_or_else(|| b"origin".to_vec());
    let body = if status == 204 || status == 304 { Vec::new() } else { body };
    let trailers: Vec<(&str, &str)> =
        serve.trailers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    match trailers.is_empty() {
        true => Origin::reply(status, &headers, body),
        false => Origin::with_trailers(status, &headers, body, &trailers),
    }
}

async fn piece_was_seen(records: &Records, id: &str, callback: &str, count: usize) {
    let deadline = Instant::now() + PIECE;
    let seen = || {
        let of_it = |record: &Record| record.callback().is_some_and(|(name, _)| name == callback);
        records.of(id, 1).iter().filter(|record| of_it(record)).count()
    };
    while seen() < count && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What filters call: `/CASE/status/404`, `/CASE/echo`, `/CASE/empty`, `/CASE/never`, `/CASE/trailers`; anything else is gRPC.
async fn side(request: Request) -> selvedge_tests::Served {
    let mut words = request.target.split('/').skip(2);
    match (words.next(), words.next()) {
        (Some("status"), Some(status)) => Origin::reply(
            status.parse().unwrap_or(500),
            &[("x-side", "yes"), ("x-twice", "1"), ("x-twice", "2")],
            "side",
        ),
        (Some("echo"), _) => {
            let body = [request.method.as_bytes(), b" ", &request.body].concat();
            Origin::reply(200, &[], body)
        }
        (Some("empty"), _) => Origin::reply(200, &[], ""),
        (Some("never"), _) => std::future::pending().await,
        (Some("trailers"), _) => Origin::with_trailers(200, &[], "side", &[("x-side-trailer", "yes")]),
        _ if request.target.ends_with("/Never") => std::future::pending().await,
        _ => grpc(&request),
    }
}

/// The service `CASE.Service`: `Echo` gives the request's messages back, `Fail` ends with status 5, `Count` sends two messages.
fn grpc(request: &Request) -> selvedge_tests::Served {
    let method = request.target.rsplit('/').next().unwrap_or_default();
    let headers = [("content-type", "application/grpc"), ("x-initial", "yes")];
    match method {
        "Fail" => {
            let trailers = [("grpc-status", "5"), ("grpc-message", "no such thing"), ("x-trailing", "yes")];
            Origin::with_trailers(200, &headers, "", &trailers)
        }
        "Count" => {
            let body = b"\x00\x00\x00\x00\x03one\x00\x00\x00\x00\x03two".as_slice();
            Origin::with_trailers(200, &headers, body, &[("grpc-status", "0"), ("x-trailing", "yes")])
        }
        _ => Origin::with_trailers(200, &headers, request.body.clone(), &[("grpc-status", "0"), ("x-trailing", "yes")]),
    }
}

async fn send(records: &Records, address: SocketAddr, case: &Case, message: &Message) -> Result<Response, String> {
    if case.is_tcp() {
        return over_tcp(records, address, case, message).await;
    }
    // The clients below take it for granted that somebody listens.
    drop(TcpStream::connect(address).await.map_err(|error| format!("the host is gone: {error}"))?);
    let (method, path) = message.start.split_once(' ').unwrap_or(("GET", "/"));
    let path = format!("/{}{path}", case.id);
    if message.h2 {
        over_h2(records, address, case, method, &path, message).await
    } else {
        over_h1(records, address, case, method, &path, message).await
    }
}

/// Sends bytes and their end, and reads to the end.
async fn over_tcp(records: &Records, address: SocketAddr, case: &Case, message: &Message) -> Result<Response, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).await.map_err(text)?;
    for (count, piece) in message.body.iter().enumerate() {
        piece_was_seen(records, &case.id, "downstream_data", count).await;
        stream.write_all(piece).await.map_err(text)?;
    }
    // What comes back is awaited before the end is sent: some hosts take the end for the end of both directions.
    let mut body = Vec::new();
    let wanted = message.body.iter().map(Vec::len).sum();
    while body.len() < wanted && stream.read_buf(&mut body).await.map_err(text)? > 0 {}
    stream.shutdown().await.map_err(text)?;
    stream.read_to_end(&mut body).await.map_err(text)?;
    Ok(Response { status: 0, headers: Vec::new(), body, trailers: Vec::new() })
}

async fn over_h1(
    records: &Records,
    address: SocketAddr,
    case: &Case,
    method: &str,
    path: &str,
    message: &Message,
) -> Result<Response, String> {
    let mut client = Client::connect(address).await;
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if !message.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str("host: test\r\n");
    }
    for (name, value) in &message.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match message.body.as_slice() {
        [] => client.send(format!("{head}\r\n").as_bytes()).await,
        [whole] => {
            client.send(format!("{head}content-length: {}\r\n\r\n", whole.len()).as_bytes()).await;
            client.send(whole).await;
        }
        pieces => {
            client.send(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await;
            for (count, piece) in pieces.iter().enumerate() {
                piece_was_seen(records, &case.id, "request_body", count).await;
                let piece = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
                client.send(&piece).await;
            }
            client.send(b"0\r\n\r\n").await;
        }
    }
    loop {
        let response = client.try_response(method).await?;
        if response.status >= 200 {
            return Ok(response);
        }
    }
}

async fn over_h2(
    records: &Records,
    address: SocketAddr,
    case: &Case,
    method: &str,
    path: &str,
    message: &Message,
) -> Result<Response, String> {
    let text = |error: h2::Error| error.to_string();
    let client = H2Client::connect(address).await;
    let headers: Vec<(&str, &str)> =
        message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let bare = message.body.is_empty() && message.trailers.is_empty();
    let (response, mut upload) = client.open(method, path, &headers, bare).await.map_err(text)?;
    if !bare {
        let last = message.body.len().saturating_sub(1);
        for (count, piece) in message.body.iter().enumerate() {
            piece_was_seen(records, &case.id, "request_body", count).await;
            // A stream that was answered meanwhile takes no more: its response says what there is to say.
            let end = count == last && message.trailers.is_empty();
            let _ = upload.send_data(Bytes::copy_from_slice(piece), end);
        }
        if !message.trailers.is_empty() {
            let field = |(name, value): &(String, String)| {
                let name: http::HeaderName = name.parse().expect("a name");
                (name, value.parse().expect("a value"))
            };
            let _ = upload.send_trailers(message.trailers.iter().map(field).collect());
        }
    }
    H2Client::collect(response.await.map_err(text)?).await.map_err(text)
}

/// Everything there is to see of a case.
struct Seen<'a> {
    case: &'a Case,
    servers: &'a Servers,
    running: Option<&'a Running>,
    answers: &'a [Result<Response, String>],
}

impl Seen<'_> {
    fn look(&self, subject: &Subject, line: usize) -> String {
        match subject {
            Subject::Step { filter, wasi, outs } => {
                let records = self.servers.records.of(&self.case.id, *filter);
                let result = records.iter().find_map(|record| match &record.event {
                    Event::Step { line: of, result } if *of == line => Some(result),
                    _ => None,
                });
                result.map_or_else(|| "never".into(), |result| record::show(result, *wasi, outs))
            }
            Subject::Seen(words) => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                self.seen(&words)
            }
        }
    }

    fn seen(&self, words: &[&str]) -> String {
        match words {
            ["starts"] => if self.running.is_some() { "yes" } else { "no" }.into(),
            ["survives"] => if self.running.is_some_and(|running| !running.has_ended()) { "yes" } else { "no" }.into(),
            ["order"] => self.order(&[1]),
            ["order", "all"] => self.order(&(1..=self.case.scripts.len()).collect::<Vec<_>>()),
            ["order", filter] => self.order(&[filter.parse().unwrap_or(1)]),
            ["start"] => self.start(),
            ["contexts"] => self.contexts(),
            ["callback", name] => {
                let records = self.servers.records.of(&self.case.id, 1);
                let found = records.iter().find_map(|record| record.callback().filter(|(known, _)| known == name));
                let numbers = |arguments: &[u32]| arguments.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
                found.map_or_else(|| "never".into(), |(_, arguments)| numbers(arguments))
            }
            ["callbacks", name] => {
                let records = self.servers.records.of(&self.case.id, 1);
                let of_it = |record: &&Record| record.callback().is_some_and(|(known, _)| known == *name);
                records.iter().filter(of_it).count().to_string()
            }
            ["origin", rest @ ..] => received(&self.case.id, &self.servers.origin, rest),
            ["side", rest @ ..] => received(&self.case.id, &self.servers.side, rest),
            [first, rest @ ..] => {
                let (number, first) = first.split_once('.').unwrap_or(("1", first));
                let index = number.parse::<usize>().unwrap_or(1) - 1;
                answered(self.answers.get(index), &[&[first], rest].concat())
            }
            [] => "nothing named".into(),
        }
    }

    /// The callbacks of these filters' streams in order, repeated ones once; with several filters each with its number.
    fn order(&self, filters: &[usize]) -> String {
        let mut found: Vec<(usize, String)> = Vec::new();
        for filter in filters {
            let prefix = if filters.len() > 1 { format!("{filter}.") } else { String::new() };
            for record in self.servers.records.of(&self.case.id, *filter) {
                match record.callback() {
                    Some(("vm_start" | "configure" | "tick", _) | ("context_create", [0])) | None => {}
                    Some((name, _)) => found.push((record.place, format!("{prefix}{name}"))),
                }
            }
        }
        found.sort();
        let mut names: Vec<String> = found.into_iter().map(|(_, name)| name).collect();
        names.dedup();
        names.join(" ")
    }

    fn start(&self) -> String {
        let records = self.servers.records.of(&self.case.id, 1);
        let names = records.iter().filter_map(|record| Some(record.callback()?.0));
        names
            .take_while(|name| ["context_create", "vm_start", "configure"].contains(name))
            .take(3)
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// How many streams were opened, each with an id of its own.
    fn contexts(&self) -> String {
        let records = self.servers.records.of(&self.case.id, 1);
        let opened: Vec<u32> =
            records.iter().filter(|record| record.opens_stream()).map(|record| record.context).collect();
        let mut distinct = opened.clone();
        distinct.sort_unstable();
        distinct.dedup();
        format!("{} of {}", distinct.len(), opened.len())
    }
}

fn answered(answer: Option<&Result<Response, String>>, words: &[&str]) -> String {
    let response = match answer {
        Some(Ok(response)) => response,
        Some(Err(_)) => return "reset".into(),
        None => return "not asked".into(),
    };
    match words {
        ["status"] => response.status.to_string(),
        ["header", name] => fields(&response.headers, name),
        ["trailer", name] => fields(&response.trailers, name),
        ["body"] => text(&response.body),
        _ => format!("{words:?} cannot be seen"),
    }
}

fn received(id: &str, server: &Origin, words: &[&str]) -> String {
    // Paths of calls begin with the case, services of gRPC too: `/CASE/...`, `/CASE.Service/Method`.
    let prefixes = [format!("/{id}/"), format!("/{id}.")];
    let all = server.received();
    let of_case: Vec<&Request> =
        all.iter().filter(|request| prefixes.iter().any(|prefix| request.target.starts_with(prefix))).collect();
    let Some(last) = of_case.last() else { return if words == ["count"] { "0" } else { "nothing" }.into() };
    match words {
        ["count"] => of_case.len().to_string(),
        ["method"] => last.method.clone(),
        ["path"] => last.target[id.len() + 1..].to_owned(),
        ["header", name] => fields(&last.headers, name),
        ["trailer", name] => fields(&last.trailers, name),
        ["body"] => text(&last.body),
        _ => format!("{words:?} cannot be seen"),
    }
}

fn fields(fields: &[(String, String)], name: &str) -> String {
    let values: Vec<&str> = fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect();
    let values: Vec<&str> = values.into_iter().map(|value| if value.is_empty() { "empty" } else { value }).collect();
    if values.is_empty() { "none".into() } else { values.join(" | ") }
}

fn text(bytes: &[u8]) -> String {
    if bytes.len() > 200 { format!("{} bytes", bytes.len()) } else { record::quoted(bytes) }
}
