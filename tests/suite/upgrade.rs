//! A process that takes another's place under load, and what a service manager hands over and is told.

use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Origin, Process, soon, until};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::tungstenite::Message;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");
const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// A program at a path of its own, so that another can be put there, and a configuration.
struct Place {
    folder: TempDir,
    program: PathBuf,
    config: PathBuf,
}

impl Place {
    fn new(config: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let program = folder.path().join("selvedge");
        std::fs::hard_link(PROGRAM, &program).or_else(|_| std::fs::copy(PROGRAM, &program).map(drop)).unwrap();
        let place = Self { config: folder.path().join("config.yaml"), program, folder };
        place.write(config);
        place
    }

    fn write(&self, config: &str) {
        std::fs::write(&self.config, config.replace("${FOLDER}", self.folder.path().to_str().unwrap())).unwrap();
    }

    async fn run(&self, listeners: usize) -> Process {
        Process::run(self.program.to_str().unwrap(), self.folder.path(), &self.config, listeners).await
    }
}

/// The process that says it has taken over; ended when dropped.
struct Successor(u32);

impl Successor {
    async fn of(process: &Process) -> Self {
        let mut found = None;
        until("another process has taken over", || {
            let log = process.log();
            let line = log.iter().find(|line| line.contains("another process has taken over"));
            found = line.and_then(|line| line.split("process=").nth(1)?.trim().parse().ok());
            found.is_some()
        })
        .await;
        Self(found.expect("told"))
    }

    fn is_alive(&self) -> bool {
        Path::new(&format!("/proc/{}/exe", self.0)).read_link().is_ok()
    }

    async fn end(self) {
        assert!(Command::new("kill").args(["-s", "TERM", &self.0.to_string()]).status().unwrap().success());
        until("it has ended", || !self.is_alive()).await;
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if self.is_alive() {
            let _ = Command::new("kill").args(["-s", "KILL", &self.0.to_string()]).status();
        }
    }
}

fn config(word: &str, origin: SocketAddr) -> String {
    format!(
        "version: 1
node: {{ name: edge, workers: 2, shutdown_grace: 30s }}
admin: {{ bind: \"unix:${{FOLDER}}/admin.sock\" }}
telemetry: {{ access_log: {{ output: off }}, metrics: {{ bind: \"127.0.0.1:0\" }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\" }}
  secure: {{ bind: \"127.0.0.1:0\", tls: {{ certificates: development }} }}
  local: {{ bind: \"unix:${{FOLDER}}/local.sock\" }}
upstreams:
  app: {{ endpoints: [\"{origin}\"] }}
  demo: {{ builtin: demo }}
filters: {{ noop: {{ wasm: \"file:{guests}/noop.wasm\", limits: {{ deadline: 20s }} }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: word, match: {{ path: /word }}, respond: {{ status: 200, body: {word} }} }}
      - {{ name: socket, match: {{ path: /ws }}, to: demo }}
      - {{ name: all, filters: [noop], to: app }}
",
        guests = env!("SELVEDGE_TEST_GUESTS")
    )
}

/// Clients that ask at the same time.
const ASKING: u64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_one_process_takes_anothers_place() {
    let (hand_over, mut downloads) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::start(move |request| {
        if request.target != "/download" {
            return Origin::reply(200, &[], "fine");
        }
        let (sender, served) = Origin::streaming(200, &[]);
        hand_over.send(sender).unwrap();
        served
    })
    .await;
    let place = Place::new(&config("one", origin.address()));
    let mut old = place.run(2).await;
    let web = old.addresses()["web"];
    assert_eq!(Client::get(web, "/word").await.text(), "one");

    let mut slow = Client::connect(web).await;
    slow.send(b"GET /download HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let download = soon("the download begins", downloads.recv()).await.unwrap();
    let stream = TcpStream::connect(web).await.unwrap();
    let (mut socket, _) = soon("the upgrade", tokio_tungstenite::client_async("ws://test/ws", stream)).await.unwrap();

    let (stop, asked, closed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..ASKING {
        let (stop, asked, closed) = (Arc::clone(&stop), Arc::clone(&asked), Arc::clone(&closed));
        asking.spawn(async move {
            let mut client = Client::connect(web).await;
            while !stop.load(Relaxed) {
                if number % 4 == 0 {
                    client = Client::connect(web).await;
                }
                let answer = client.request(GET).await;
                assert_eq!((answer.status, answer.text().as_str()), (200, "fine"));
                asked.fetch_add(1, Relaxed);
                if answer.header("connection") == Some("close") {
                    closed.fetch_add(1, Relaxed);
                    client = Client::connect(web).await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await; // An even load, not as much as goes.
            }
        });
    }
    until("requests are under way", || asked.load(Relaxed) > 500).await;

    // The new one has another configuration: it begins with what is written then.
    place.write(&config("two", origin.address()));
    until("the new word is said", || old.log().iter().any(|line| line.contains("configuration reloaded"))).await;
    old.signal("USR2");
    let new = Successor::of(&old).await;
    let seen = asked.load(Relaxed);
    until("requests go on", || asked.load(Relaxed) > seen + 2000).await;
    assert!(closed.load(Relaxed) > 0, "kept connections to the old process were told to end");

    for turn in 0..5 {
        download.send(format!("{turn};").into()).unwrap();
        socket.send(Message::text(turn.to_string())).await.unwrap();
        let echo = soon("an echo", socket.next()).await.unwrap().unwrap();
        assert_eq!(echo, Message::text(turn.to_string()), "what the old process has, it finishes");
    }
    drop(download);
    assert_eq!(slow.response("GET").await.text(), "0;1;2;3;4;");
    drop(socket);
    assert!(soon("the old process ends", old.ended()).await.success(), "{}", old.log().join("\n"));

    assert_eq!(Client::get(web, "/word").await.text(), "two");
    let seen = asked.load(Relaxed);
    until("requests go on", || asked.load(Relaxed) > seen + 500).await;
    stop.store(true, Relaxed);
    while let Some(ended) = asking.join_next().await {
        ended.expect("no request failed");
    }
    println!("{} requests, of them {} told to connect anew", asked.load(Relaxed), closed.load(Relaxed));
    new.end().await;
    soon("nobody listens any more", async { while TcpStream::connect(web).await.is_ok() {} }).await;
}

async fn status_of(address: SocketAddr, path: &str) -> u16 {
    Client::get(address, path).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn all_sockets_go_over_and_files_of_sockets_stay() {
    let origin = Origin::start(|_| Origin::reply(200, &[], "fine")).await;
    let place = Place::new(&config("one", origin.address()));
    let mut old = place.run(2).await;
    let (web, secure) = (old.addresses()["web"], old.addresses()["secure"]);
    until("metrics are told", || old.log().iter().any(|line| line.contains(" metrics "))).await;
    let line = old.log().into_iter().find(|line| line.contains(" metrics ")).expect("told");
    let metrics: SocketAddr = line.split("address=").nth(1).unwrap().trim().parse().unwrap();

    // An HTTP/2 connection of before is told to go, and finishes what it has.
    let h2 = H2Client::connect(web).await;
    assert_eq!(h2.request("GET", "/", &[], b"").await.unwrap().status, 200);
    old.signal("USR2");
    let new = Successor::of(&old).await;
    assert!(soon("the old process ends", old.ended()).await.success());

    assert_eq!(status_of(web, "/").await, 200);
    assert_eq!(status_of(metrics, "/metrics").await, 200);
    let mut over_tls = Client::connect_tls(secure, "localhost", &["http/1.1"]).await;
    assert_eq!(over_tls.request(GET).await.status, 200);
    let mut admin = UnixStream::connect(place.folder.path().join("admin.sock")).await.expect("the file is there");
    admin.write_all(b"GET /v1/ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon("an answer", admin.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let local = UnixStream::connect(place.folder.path().join("local.sock")).await.expect("the file is there");
    assert_eq!(Client::over(local).request(GET).await.status, 200);
    new.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_does_not_start_takes_nothing() {
    let origin = Origin::start(|_| Origin::reply(200, &[], "fine")).await;
    let place = Place::new(&config("one", origin.address()));
    let old = place.run(2).await;
    let web = old.addresses()["web"];
    let failures = || old.log().iter().filter(|line| line.contains("no other process takes over")).count();

    // Its configuration is at fault.
    place.write("version: 1\nlisteners: {}\nsites: 7\n");
    until("the fault is told", || old.log().iter().any(|line| line.contains("was not reloaded"))).await;
    old.signal("USR2");
    until("the old process goes on", || failures() == 1).await;
    assert_eq!(status_of(web, "/").await, 200);

    // It is no program.
    let other = place.folder.path().join("other");
    std::fs::write(&other, "nonsense").unwrap();
    std::fs::rename(&other, &place.program).unwrap();
    old.signal("USR2");
    until("the old process goes on", || failures() == 2).await;
    assert_eq!(status_of(web, "/").await, 200);
    assert!(old.log().iter().any(|line| line.contains("does not start")), "{}", old.log().join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_is_told_what_happens() {
    let origin = Origin::start(|_| Origin::reply(200, &[], "fine")).await;
    let place = Place::new(&config("one", origin.address()));
    let path = place.folder.path().join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let next = || {
        let mut message = [0; 512];
        let length = manager.recv(&mut message).expect("the service manager is told");
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let mut child = Command::new(&place.program)
        .args(["run", "--config"])
        .arg(&place.config)
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let signal = |process: u32, name: &str| {
        assert!(Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap().success());
    };
    assert_eq!(next(), "READY=1\n");
    signal(child.id(), "HUP");
    let reloading = next();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(next(), "READY=1\n");

    signal(child.id(), "USR2");
    let (one, other) = (next(), next());
    let (ready, main) = if one.starts_with("MAINPID") { (other, one) } else { (one, other) };
    assert_eq!(ready, "READY=1\n");
    let process: u32 = main.trim().strip_prefix("MAINPID=").expect("the new process").parse().unwrap();
    let new = Successor(process);
    assert!(child.wait().unwrap().success());
    signal(process, "TERM");
    assert_eq!(next(), "STOPPING=1\n");
    new.end().await;
}

/// Starts the program with a socket that listens already, as systemd does: as descriptor 3, with the process's own number.
fn activate(place: &Place, socket: OwnedFd, name: &str) -> std::process::Child {
    Command::new("sh")
        .args(["-c", "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$0\" run --config \"$1\""])
        .arg(&place.program)
        .arg(&place.config)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", name)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_of_the_service_manager_is_listened_at() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let place = Place::new(&format!(
        "version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s }}
telemetry: {{ access_log: {{ output: off }} }}
listeners: {{ web: {{ bind: \"{address}\" }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ respond: {{ status: 200, body: activated }} }}] }}]
"
    ));
    // Who comes before the program is there waits in the socket's queue.
    let mut early = Client::connect(address).await;
    early.send(GET.as_bytes()).await;
    let mut child = activate(&place, socket.into(), "web");
    let answer = soon("an answer", early.response("GET")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "activated"));
    drop(early);
    assert!(Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap().success());
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(child.wait().unwrap().success(), "{log}");
    assert!(!log.contains("nothing in the configuration"), "{log}");
}
