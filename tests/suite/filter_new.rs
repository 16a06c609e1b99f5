//! `selvedge filter new`, `test` and `dev`, as a process: crates that are made are built, tested and run, and what is edited while a node
//! runs is in it a moment later.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use selvedge_tests::Client;
use tempfile::TempDir;

use crate::filter_tools::{contains, filter, printed};

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

pub(crate) fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the checkout")
}

/// What the crates of all templates are built into, so that their dependencies are built once.
fn target() -> PathBuf {
    let debug = Path::new(PROGRAM).parent().expect("a folder");
    debug.parent().unwrap_or(debug).join("templates")
}

/// Makes a crate that uses this checkout, and the versions of dependencies it has.
fn make(folder: &Path, name: &str, template: &str) -> PathBuf {
    let checkout = checkout();
    let sdk = checkout.display().to_string();
    printed(&filter(&["new", name, "--template", template, "--sdk", &sdk], folder), 0);
    let krate = folder.join(name);
    fs::copy(checkout.join("Cargo.lock"), krate.join("Cargo.lock")).expect("copied");
    krate
}

/// A command in a crate, with the shared target folder.
pub(crate) fn tool(krate: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("filter").args(arguments).current_dir(krate);
    command.env("CARGO_TARGET_DIR", target()).env_remove("RUSTFLAGS").env_remove("SELVEDGE_LOG");
    // Who tests this wants no records of coverage from inside; who builds it no debug information.
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_TEST_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
    command
}

#[test]
fn every_template_builds_passes_its_tests_and_does_what_it_says() {
    let folder = TempDir::new().expect("a folder");
    // What is asked of the module, and what it is to say.
    let asked: [(&str, &[&str], &[&str]); 7] = [
        ("blank", &["--config", "greeting: moin"], &["+ x-hello: moin"]),
        ("auth", &["--config", "users: { ada: ada-has-this-key }"], &["to the client: 401", "answered before"]),
        ("body-transform", &["--origin", "200:{\"a\":1}"], &["served_by"]),
        (
            "callout",
            &["--config", "authz: who", "--upstream", "who=200", "-H", "authorization: me"],
            &["who GET /check -> 200", "to the client: 200"],
        ),
        ("kv", &[], &["+ x-visit: 1"]),
        ("ab", &["--config", "variants: [a, b]"], &["+ set-cookie: <redacted>", "+ x-variant: "]),
        ("streaming", &["--request", "POST /", "-d", "just some text that is no image"], &["to the client: 415"]),
    ];
    for (template, arguments, expected) in asked {
        let name = format!("my-{template}");
        let krate = make(folder.path(), &name, template);
        let formatted = Command::new("rustfmt")
            .args(["--check", "--edition", "2024", "src/lib.rs", "tests/filter.rs"])
            .current_dir(&krate)
            .output();
        if let Ok(formatted) = formatted {
            assert!(formatted.status.success(), "{template}: {}", String::from_utf8_lossy(&formatted.stdout));
        }
        // Natively: the compiled module is tried out below, by the host itself.
        let tested = tool(&krate, &["test", "--native", "--offline"]).output().expect("runs");
        contains(&printed(&tested, 0), &["test result: ok"]);
        let built = tool(&krate, &["build", "--offline"]).output().expect("runs");
        let built = printed(&built, 0);
        assert!(!built.contains("lacks"), "{built}");
        let checked = tool(&krate, &["check", "--portable"]).output().expect("runs");
        contains(
            &printed(&checked, 0),
            &["ok    loads here", "ok    loads on Envoy", "brings the schema of its settings"],
        );
        let ran = tool(&krate, &[&["run"], arguments].concat()).output().expect("runs");
        contains(&printed(&ran, 0), expected);
        // The node it comes with takes it.
        let mut check = Command::new(PROGRAM);
        check.args(["check", "--config", "selvedge.yaml"]).current_dir(&krate);
        let module = target().join("wasm32-wasip1/release").join(format!("{}.wasm", name.replace('-', "_")));
        let checked = check.env("FILTER_WASM", &module).output().expect("runs");
        contains(&printed(&checked, 0), &["in order"]);
    }
}

#[test]
fn what_is_there_stays_as_it_is_and_names_are_names() {
    let folder = TempDir::new().expect("a folder");
    let new = |arguments: &[&str]| filter(&[&["new"], arguments].concat(), folder.path());
    fs::create_dir(folder.path().join("mine")).expect("made");
    fs::write(folder.path().join("mine/notes"), "dear").expect("written");
    contains(&printed(&new(&["mine"]), 2), &["mine: is there already"]);
    assert_eq!(fs::read_dir(folder.path().join("mine")).expect("there").count(), 1);
    for bad in ["../up", "Mine", "fn", "2fast"] {
        contains(&printed(&new(&[bad]), 2), &["cannot be the name of a crate"]);
    }
    contains(&printed(&new(&["a", "--template", "bllank"]), 2), &["bllank", "body-transform"]);
    contains(&printed(&new(&["a", "--sdk", "nowhere"]), 2), &["--sdk nowhere"]);
    contains(&printed(&new(&["a", "--sdk", "."]), 2), &["no checkout of Selvedge"]);

    // Without a checkout the SDK is that of this version.
    printed(&new(&["a", "--path", "deep/er"]), 0);
    let manifest = fs::read_to_string(folder.path().join("deep/er/a/Cargo.toml")).expect("made");
    contains(&manifest, &[&format!("selvedge-sdk = \"{}\"", env!("CARGO_PKG_VERSION")), "panic = \"abort\""]);
}

/// `selvedge filter dev` at work; ended when dropped.
pub(crate) struct Dev {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Dev {
    pub(crate) fn start(krate: &Path) -> Self {
        let mut command = tool(krate, &["dev", "--offline"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let said = Arc::<Mutex<Vec<String>>>::default();
        let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let keep = |lines: Box<dyn BufRead + Send>| {
            let said = Arc::clone(&said);
            std::thread::spawn(move || lines.lines().map_while(Result::ok).for_each(|line| said.lock().push(line)));
        };
        keep(Box::new(BufReader::new(stdout)));
        keep(Box::new(BufReader::new(stderr)));
        Self { child, said }
    }

    pub(crate) fn text(&self) -> String {
        self.said.lock().join("\n")
    }

    fn times(&self, part: &str) -> usize {
        self.said.lock().iter().filter(|line| line.contains(part)).count()
    }

    /// Waits until it has said something so many times: a compiler is at work, on a machine that has other things to do.
    pub(crate) async fn says(&mut self, part: &str, times: usize) {
        let began = Instant::now();
        while self.times(part) < times {
            assert!(self.child.try_wait().ok().flatten().is_none(), "it ended:\n{}", self.text());
            assert!(
                began.elapsed() < Duration::from_secs(300),
                "{part:?} was not said {times} times:\n{}",
                self.text()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        let said = self.said.lock();
        let line = said.iter().find_map(|line| line.strip_prefix("listener web: http://")).expect("a listener");
        line.parse().expect("an address")
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_is_built_and_swapped_into_the_running_node() {
    let folder = TempDir::new().expect("a folder");
    let krate = make(folder.path(), "my-dev", "blank");
    let edit = |name: &str, from: &str, to: &str| {
        let path = krate.join(name);
        let text = fs::read_to_string(&path).expect("there");
        assert!(text.contains(from), "{from:?} is not in {text}");
        fs::write(&path, text.replace(from, to)).expect("written");
    };
    edit("selvedge.yaml", "127.0.0.1:8080", "127.0.0.1:0");
    edit("selvedge.yaml", "version: 1\n", "version: 1\nnode: { workers: 1, shutdown_grace: 1s }\n");

    let mut dev = Dev::start(&krate);
    dev.says("save a file", 1).await;
    let web = dev.address();
    let hello = async || Client::get(web, "/").await.header("x-hello").map(str::to_owned);
    assert_eq!(hello().await.as_deref(), Some("hello from my-dev"));

    edit(
        "src/lib.rs",
        "response.set_header(\"x-hello\", &self.settings.greeting)",
        "response.set_header(\"x-hello\", \"edited\")",
    );
    dev.says("swapped in", 1).await;
    assert_eq!(hello().await.as_deref(), Some("edited"));

    // What does not build is told, and what runs goes on.
    edit("src/lib.rs", "\"edited\")", "\"edited\"");
    dev.says("does not build", 1).await;
    contains(&dev.text(), &["src/lib.rs:", "the filter that was built before goes on"]);
    assert_eq!(hello().await.as_deref(), Some("edited"));
    edit("src/lib.rs", "\"edited\"", "\"mended\")");
    dev.says("swapped in", 2).await;
    assert_eq!(hello().await.as_deref(), Some("mended"));

    // The configuration alone needs no build; a fault in it changes nothing.
    let builds = dev.times("building my-dev");
    edit("selvedge.yaml", "greeting:", "greetink:");
    dev.says("what runs goes on", 1).await;
    contains(&dev.text(), &["greetink"]);
    assert_eq!(hello().await.as_deref(), Some("mended"));
    edit("selvedge.yaml", "greetink:", "greeting:");
    dev.says("swapped in", 3).await;
    assert_eq!(dev.times("building my-dev"), builds, "{}", dev.text());

    let ended = Command::new("kill").args(["-s", "INT", &dev.child.id().to_string()]).status().expect("kill");
    assert!(ended.success());
    let began = Instant::now();
    let status = loop {
        if let Some(status) = dev.child.try_wait().expect("a child") {
            break status;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "it does not end:\n{}", dev.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status.success(), "{}", dev.text());
}
