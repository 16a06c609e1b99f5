//! `selvedge cache`: asks and tells a running node about its cache, over its admin API; and fetches URLs through it.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use clap::{Args, Subcommand};
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use selvedge_config::{Bind, Config};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::{ConfigArgs, complain, print};
use crate::node;
use crate::purge::{Order, Wait};

/// How long the admin API may take.
const ANSWER: Duration = Duration::from_secs(60);
/// How long one URL may take to warm.
const FETCH: Duration = Duration::from_secs(300);

#[derive(Subcommand)]
pub(super) enum CacheCommand {
    /// Purge what is stored: URLs, prefixes, hosts, tags, or everything.
    Purge(PurgeArgs),
    /// Say what the cache holds.
    Stats(ApiArgs),
    /// Say what is stored for a URL.
    Get(GetArgs),
    /// Fetch URLs through the node, so that they are stored. Exit code 1 if one of them fails.
    Warm(WarmArgs),
}

#[derive(Args)]
pub(super) struct ApiArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where the admin API is: `127.0.0.1:9901` or `unix:/run/selvedge/admin.sock`. Default: as the configuration says.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// The file that holds the API's token. Default: as the configuration says.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct PurgeArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// A URL with all its variants. Neither the scheme nor the port counts. May be repeated, as may those below.
    #[arg(long = "url", value_name = "URL")]
    urls: Vec<String>,
    /// A path and everything below it: `www.example.com/images`.
    #[arg(long = "prefix", value_name = "PREFIX")]
    prefixes: Vec<String>,
    /// A host.
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// A tag, as responses carry them.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Everything.
    #[arg(long)]
    all: bool,
    /// Make it stale instead: the next request validates it.
    #[arg(long)]
    soft: bool,
    /// Wait for all nodes of the cluster, not only for the one that is asked. Exit code 1 if one of them does not have it in time.
    #[arg(long)]
    wait_cluster: bool,
}

#[derive(Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The URL: `https://www.example.com/a?b=c`.
    url: String,
}

#[derive(Args)]
pub(super) struct WarmArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// A file with one URL in each line; lines that begin with `#` are left out. `-` is the standard input.
    #[arg(default_value = "-")]
    file: PathBuf,
    /// The listener to ask, `ADDRESS:PORT`. Default: the first one of the configuration that serves the URL's scheme, on this machine.
    #[arg(long, value_name = "ADDRESS")]
    to: Option<SocketAddr>,
    /// A field of each request, `NAME: VALUE`, for what is stored by more than the URL: `Accept-Encoding: gzip, br`. May be repeated.
    #[arg(long = "header", value_name = "FIELD", value_parser = field)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// How many URLs are fetched at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
}

pub(super) fn run(command: CacheCommand) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(format_args!("no runtime: {error}\n"), ExitCode::FAILURE),
    };
    let done = runtime.block_on(async {
        match command {
            CacheCommand::Purge(args) => {
                let (urls, prefixes, hosts, tags) = (args.urls, args.prefixes, args.hosts, args.tags);
                let wait = if args.wait_cluster { Wait::Cluster } else { Wait::Node };
                let order =
                    Order { urls, prefixes, hosts, tags, all: args.all, soft: args.soft, wait, ..Order::default() };
                let body = serde_json::to_vec(&order)?;
                show(&Api::of(&args.api)?.ask(Method::POST, "/v1/cache/purge", Some(body)).await?)
            }
            CacheCommand::Stats(args) => show(&Api::of(&args)?.ask(Method::GET, "/v1/cache/stats", None).await?),
            CacheCommand::Get(args) => {
                let path = format!("/v1/cache/object?url={}", utf8_percent_encode(&args.url, NON_ALPHANUMERIC));
                show(&Api::of(&args.api)?.ask(Method::GET, &path, None).await?)
            }
            CacheCommand::Warm(args) => warm(args).await,
        }
    });
    done.unwrap_or_else(|error| complain(format_args!("{error:#}\n"), ExitCode::FAILURE))
}

fn show(answer: &Value) -> Result<ExitCode> {
    Ok(print(format_args!("{answer:#}\n")))
}

/// The admin API of a running node.
struct Api {
    at: Bind,
    token: Option<String>,
}

impl Api {
    fn of(args: &ApiArgs) -> Result<Self> {
        let token = args.token_file.as_ref().map(|path| {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            anyhow::Ok(text.trim_end().to_owned())
        });
        let mut token = token.transpose()?;
        let at = match &args.admin {
            Some(text) => match text.strip_prefix("unix:") {
                Some(path) => Bind::Unix(path.into()),
                None => Bind::Tcp(text.parse().with_context(|| format!("{text} is no address and port"))?),
            },
            None => {
                let config = load(&args.config)?;
                let admin = config.admin.with_context(|| {
                    format!("{} has no `admin`: say where it is, with --admin", args.config.config.display())
                })?;
                token = token.or(admin.token);
                admin.bind
            }
        };
        if let Bind::Tcp(address) = &at {
            ensure!(address.port() != 0, "the admin API is on any free port: say on which, with --admin");
        }
        Ok(Self { at, token })
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Value> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())))?;
        let exchange = async {
            match &self.at {
                Bind::Tcp(address) => exchange(TcpStream::connect(here(*address)).await?, request, true).await,
                Bind::Unix(path) => exchange(UnixStream::connect(path).await?, request, true).await,
            }
        };
        let answered = tokio::time::timeout(ANSWER, exchange).await;
        let answered = answered.with_context(|| format!("no answer in {ANSWER:?}")).and_then(|answer| answer);
        let (status, body) = answered.with_context(|| format!("the admin API at {}", self.at))?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        if let Some(nodes) = answer["nodes"].as_array() {
            let late: Vec<&str> =
                nodes.iter().filter(|n| n["done"] != true).filter_map(|n| n["node"].as_str()).collect();
            bail!("{status}: not confirmed by {}", late.join(", "));
        }
        let words: Vec<&str> = ["title", "detail"].iter().filter_map(|key| answer[*key].as_str()).collect();
        bail!("{status}: {}", words.join(": "))
    }
}

/// Status and body of the answer to one request, over a connection of its own. A body that is not to be kept is read to its end all the same.
async fn exchange<S>(stream: S, request: Request<Full<Bytes>>, keep: bool) -> Result<(StatusCode, BytesMut)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driven = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let (mut coming, mut body) = (response.into_body(), BytesMut::new());
    while let Some(frame) = coming.frame().await {
        if let Ok(data) = frame?.into_data()
            && keep
        {
            body.extend_from_slice(&data);
        }
    }
    driven.abort();
    Ok((status, body))
}

fn load(args: &ConfigArgs) -> Result<Config> {
    let loaded = node::loader().load(&args.config).map_err(|report| anyhow::anyhow!("{report}"))?;
    Ok(loaded.config)
}

/// As this machine reaches a socket that is bound to this address.
fn here(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// `NAME: VALUE`. What says how a message is framed, or for whom it is, is up to the request.
fn field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write `NAME: VALUE`")?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|error| error.to_string())?;
    if [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING].contains(&name) {
        return Err(format!("`{name}` is up to the request"));
    }
    Ok((name, HeaderValue::from_str(value.trim()).map_err(|error| error.to_string())?))
}

async fn warm(args: WarmArgs) -> Result<ExitCode> {
    let urls = if args.file.as_os_str() == "-" {
        lines(io::stdin().lock())?
    } else {
        let file = fs::File::open(&args.file).with_context(|| args.file.display().to_string())?;
        lines(io::BufReader::new(file))?
    };
    let config = if args.to.is_none() { Some(load(&args.config)?) } else { None };
    let tls = TlsConnector::from(Arc::new(trusting()?));
    let door = Arc::new(Door { config, to: args.to, headers: args.headers, tls });
    let all = urls.len();
    let urls = Arc::new(Mutex::new(VecDeque::from(urls)));
    let fetchers = (0..args.concurrency).map(|_| {
        let (urls, door) = (Arc::clone(&urls), Arc::clone(&door));
        tokio::spawn(async move {
            let mut failed = 0;
            loop {
                let Some(url) = urls.lock().pop_front() else { return failed };
                let fetched = tokio::time::timeout(FETCH, door.fetch(&url)).await;
                let fetched = fetched.with_context(|| format!("not whole after {FETCH:?}")).and_then(|status| status);
                let why = match fetched {
                    Ok(status) if status.is_success() || status.is_redirection() => continue,
                    Ok(status) => status.to_string(),
                    Err(error) => format!("{error:#}"),
                };
                failed += 1;
                complain(format_args!("{url}: {why}\n"), ExitCode::FAILURE);
            }
        })
    });
    let failed: usize = futures::future::try_join_all(fetchers).await?.into_iter().sum();
    print(format_args!("{} fetched, {failed} failed\n", all - failed));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn lines(read: impl BufRead) -> Result<Vec<String>> {
    let mut urls = Vec::new();
    for line in read.lines() {
        let line = line?;
        let url = line.trim();
        if !url.is_empty() && !url.starts_with('#') {
            urls.push(url.to_owned());
        }
    }
    Ok(urls)
}

/// The node's listeners.
struct Door {
    config: Option<Config>,
    to: Option<SocketAddr>,
    headers: Vec<(HeaderName, HeaderValue)>,
    tls: TlsConnector,
}

impl Door {
    /// Fetches a URL, to the last byte.
    async fn fetch(&self, url: &str) -> Result<StatusCode> {
        let uri: Uri = url.parse()?;
        let authority = uri.authority().context("it has no host")?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => bail!("its scheme is neither http nor https"),
        };
        let stream = TcpStream::connect(self.listener(is_tls)?).await?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let mut request = Request::builder().uri(target).header(HOST, authority.as_str()).body(Full::default())?;
        for (name, value) in &self.headers {
            request.headers_mut().append(name, value.clone());
        }
        let answer = if is_tls {
            let name = ServerName::try_from(authority.host().trim_matches(['[', ']']).to_owned())?;
            exchange(self.tls.connect(name, stream).await?, request, false).await
        } else {
            exchange(stream, request, false).await
        };
        answer.map(|(status, _)| status)
    }

    fn listener(&self, is_tls: bool) -> Result<SocketAddr> {
        if let Some(to) = self.to {
            return Ok(to);
        }
        let listeners = self.config.iter().flat_map(|config| config.listeners.values());
        let mut serving =
            listeners.filter(|one| one.tcp.is_none() && one.redirect_to_https.is_none() && one.tls.is_some() == is_tls);
        let found = serving.next().context("no listener of the configuration serves this scheme")?;
        let bind = found.bind.tcp().context("the listener is on a Unix socket: name another one, with --to")?;
        ensure!(bind.port() != 0, "the listener is on any free port: say on which, with --to");
        Ok(here(bind))
    }
}

/// TLS towards our own node, at an address that its operator has named: what is fetched is thrown away, and nothing secret is sent, so
/// it does not matter whose certificate is shown.
fn trusting() -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))).with_no_client_auth())
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
