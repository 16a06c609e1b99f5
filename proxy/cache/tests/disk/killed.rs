//! kill -9 at random moments, while objects are written and removed.
//!
//! The child is this program again, told by an environment variable where to work. It says on its standard output what it does, in lines:
//! `put N V` before version V of object N is written, `synced` after everything said so far is durable, `removing N` before and `removed N`
//! after a removal. The parent reads all that the child could say, and then looks at what is on disk.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use selvedge_cache::disk::{Removal, StoreOptions};

use crate::support::*;

const INSIDE: &str = "SELVEDGE_TEST_KILLED_IN";
/// How often the child is killed: 20 times, if this does not say otherwise (`make faults`: 200).
const ROUNDS: &str = "SELVEDGE_TEST_KILLS";
const ROUND: &str = "SELVEDGE_TEST_ROUND";
const OBJECTS: u64 = 100;

/// An object's body says which version it is; sizes are of all kinds.
fn body(number: u64, version: u64) -> Vec<u8> {
    let length = match number % 5 {
        0 => 200_000,
        1 => 400_000,
        _ => 100 + usize::try_from(number).expect("small") * 37,
    };
    body_of(number << 32 | version, length)
}

fn meta_of(number: u64, version: u64) -> Bytes {
    Bytes::from(format!("{number} {version}"))
}

#[tokio::test]
async fn killed_at_any_moment_nothing_wrong_comes_back() {
    if let Some(folder) = std::env::var_os(INSIDE) {
        work(Path::new(&folder)).await;
    }
    let rounds: u32 = std::env::var(ROUNDS).ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20);
    let folder = tempfile::tempdir().expect("a folder");
    let mut said = Said::default();
    let (mut expected, mut back) = (0, 0);
    for round in 0..rounds {
        let after = Duration::from_millis(fastrand::u64(1..400));
        said.read(&run_and_kill(folder.path(), round.into(), after).await);

        let store = opened(spacious(folder.path()));
        for (number, known) in &said.objects {
            let found = store.find(key(*number), key(*number)).await;
            let version = match found {
                None => None,
                Some(mut found) => {
                    let text = String::from_utf8(found.meta.to_vec()).expect("text");
                    let version: u64 = text.split(' ').nth(1).expect("a version").parse().expect("a number");
                    assert_eq!(found.meta, meta_of(*number, version), "round {round}");
                    let whole = drain(&mut found).await.expect("what is committed can be read");
                    assert!(whole == body(*number, version), "round {round}: {number} is corrupt");
                    Some(version)
                }
            };
            if let (Some(version), Some(removed)) = (version, known.removed_up_to) {
                assert!(version > removed, "round {round}: {number} is back after its removal, in version {version}");
            }
            if let Some(durable) = known.durable {
                expected += 1;
                back += u32::from(version.is_some_and(|version| version >= durable));
            }
        }
        let counts = store.counts();
        assert_eq!(counts.corrupt, 0, "round {round}: {counts:?}");
        // What is there now is what the next round begins with.
        for (number, known) in &mut said.objects {
            if !store.has(key(*number), key(*number)) {
                known.durable = None;
            }
        }
        store.close().await;
    }
    println!("killed {rounds} times: {back} of {expected} durable objects were back");
    assert!(expected > rounds * 10, "the child did too little: {expected}");
    assert!(f64::from(back) >= 0.99 * f64::from(expected), "{back} of {expected}");
}

/// What the child has said of one object.
#[derive(Debug, Default)]
struct Known {
    /// The version that is on the disk for sure, unless its segment was reclaimed.
    durable: Option<u64>,
    newest: Option<u64>,
    removed_up_to: Option<u64>,
}

#[derive(Debug, Default)]
struct Said {
    objects: HashMap<u64, Known>,
}

impl Said {
    fn read(&mut self, text: &str) {
        let mut unsynced = Vec::new();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _torn)| whole);
        for line in whole.lines() {
            let mut words = line.split(' ');
            let verb = words.next().expect("a word");
            // The test harness speaks too.
            let Ok(numbers) = words.map(str::parse).collect::<Result<Vec<u64>, _>>() else { continue };
            match (verb, &numbers[..]) {
                ("put", [number, version]) => {
                    let known = self.objects.entry(*number).or_default();
                    known.newest = Some(*version);
                    // It takes the older one's place as soon as it is there.
                    unsynced.push((*number, *version));
                }
                ("synced", []) => {
                    for (number, version) in unsynced.drain(..) {
                        self.objects.entry(number).or_default().durable = Some(version);
                    }
                }
                ("removing", [number]) => {
                    unsynced.retain(|(other, _)| other != number);
                    self.objects.entry(*number).or_default().durable = None;
                }
                ("removed", [number]) => {
                    let known = self.objects.entry(*number).or_default();
                    known.removed_up_to = known.newest;
                }
                _ => {}
            }
        }
    }
}

/// Starts the child, kills it `after` its first word, or every other time after what it wrote first is durable, which may be much later on a
/// machine that is busy; and gives what it said.
async fn run_and_kill(folder: &Path, round: u64, after: Duration) -> String {
    let said = folder.with_extension("said");
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "killed::killed_at_any_moment_nothing_wrong_comes_back", "--nocapture"])
        .env(INSIDE, folder)
        .env(ROUND, round.to_string())
        .stdin(Stdio::piped())
        .stdout(File::create(&said).expect("a file"))
        .spawn()
        .expect("a child");
    let deadline = Instant::now() + Duration::from_secs(60);
    let awaited = if round.is_multiple_of(2) { "ready\n" } else { "synced\n" };
    while !std::fs::read_to_string(&said).is_ok_and(|text| text.contains(awaited)) {
        assert!(Instant::now() < deadline && child.try_wait().expect("a child").is_none(), "the child does not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(after).await;
    child.kill().expect("it ran until now");
    child.wait().expect("it ended");
    std::fs::read_to_string(&said).expect("what it said")
}

fn spacious(folder: &Path) -> StoreOptions {
    // So large that nothing is reclaimed that was not written anew long since.
    let mut options = options(folder);
    options.disks[0].size = 256 << 20;
    options
}

/// The child: writes and removes, until it is killed.
async fn work(folder: &Path) -> ! {
    // The other end of its standard input is the parent's: when that is gone, nobody would end this.
    std::thread::spawn(|| {
        let _ended = std::io::stdin().read(&mut [0]);
        std::process::exit(1)
    });
    let round: u64 = std::env::var(ROUND).expect("the parent says").parse().expect("a number");
    let store = opened(spacious(folder));
    let say = |line: String| std::io::stdout().write_all(line.as_bytes()).expect("the parent keeps it");
    say("\nready\n".to_owned());
    let mut version = round << 32;
    loop {
        for _ in 0..fastrand::u32(1..30) {
            let number = fastrand::u64(..OBJECTS);
            version += 1;
            say(format!("put {number} {version}\n"));
            let Some(mut writing) = store.begin(key(number), key(number)) else { continue };
            writing.push(body(number, version).into());
            writing.commit(meta_of(number, version), FAR);
        }
        if fastrand::bool() {
            let number = fastrand::u64(..OBJECTS);
            say(format!("removing {number}\n"));
            store.remove(Removal::Key { key: key(number), family: key(number) }).await.expect("durable");
            say(format!("removed {number}\n"));
        }
        if store.sync().await {
            say("synced\n".to_owned());
        }
    }
}
