//! A file system that really is full: a tmpfs of its own, in a child process that may mount one.

use std::process::Command;

use crate::support::*;
use selvedge_cache::disk::State;

const INSIDE: &str = "SELVEDGE_TEST_ON_TMPFS";

#[tokio::test]
async fn a_real_full_file_system_costs_objects_and_nothing_else() {
    if let Some(folder) = std::env::var_os(INSIDE) {
        return fill(std::path::Path::new(&folder)).await;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mount = |then: &str| {
        let script = format!("mount -t tmpfs -o size=24m tmpfs \"$1\" && {then}");
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", &script, "sh"]).arg(folder.path());
        command
    };
    if !mount("true").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no tmpfs can be mounted here without root");
        return;
    }
    let program = std::env::current_exe().expect("this program");
    let mut run =
        mount("exec \"$2\" --exact space::a_real_full_file_system_costs_objects_and_nothing_else --nocapture");
    let output = run.arg(program).env(INSIDE, folder.path()).output().expect("it ran");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// 40 MiB are allowed, 24 MiB are there.
async fn fill(folder: &std::path::Path) {
    let store = open(folder);
    let mut kept = 0;
    for number in 0..300 {
        if let Some(mut writing) = store.begin(key(number), key(number)) {
            writing.push(body_of(number, 300_000).into());
            writing.commit(meta(number), FAR);
        }
        store.sync().await;
        kept += u32::from(get(&store, number).await.is_some_and(|body| body == body_of(number, 300_000)));
    }
    let usage = &store.usage()[0];
    assert_eq!(usage.state, State::On, "{usage:?}");
    assert!(usage.counts.full > 0, "{usage:?}");
    assert!(usage.counts.corrupt == 0, "{usage:?}");
    assert!(kept >= 200, "only {kept} of 300 could be read back at once: {usage:?}");
    store.close().await;
    let store = open(folder);
    assert!(store.usage()[0].objects > 20, "after a restart");
}
