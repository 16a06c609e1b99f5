//! The README's tour, run line by line: every command is carried out against the example configuration, and prints what it says.
//!
//! In the README, a block that begins with ```` ```console ```` holds commands (`$ ..`) and what they print. `…` stands for any text.

use std::path::Path;
use std::process::Command;

use selvedge_tests::Process;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

struct Step {
    line: usize,
    command: String,
    prints: Vec<String>,
}

/// The commands of the README's console blocks, with what they print.
fn steps(readme: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for (index, line) in readme.lines().enumerate() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { line: index + 1, command: command.to_owned(), prints: Vec::new() });
        } else if inside && let Some(step) = steps.last_mut() {
            step.prints.push(line.trim_end().to_owned());
        }
    }
    steps
}

/// Whether `pattern`, in which `…` stands for any text, is `line`.
fn fits(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        last = Some(part);
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    match last {
        None => rest.is_empty(),
        Some(last) => rest.is_empty() || last.is_empty() || line.ends_with(last),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_tour_prints_what_it_says() {
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: curl not installed");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = std::fs::read_to_string(root.join("README.md")).expect("README.md");
    let steps = steps(&readme);
    assert!(steps.len() >= 10, "the tour has {} commands", steps.len());

    let folder = TempDir::new().expect("a folder");
    let config = std::fs::read_to_string(root.join("config.yaml")).expect("config.yaml");
    let config = config.replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:8443", "127.0.0.1:0");
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, config).expect("written");
    let process = Process::run(PROGRAM, folder.path(), &path, 2).await;
    let addresses = process.addresses();

    // Commands share variables ($TOKEN), so they run in one shell; a line of its own marks the end of each.
    let mut script = String::from("set -u\n");
    for step in &steps {
        script.push_str(&step.command);
        script.push_str("\nprintf '\\n--- end of step ---\\n'\n");
    }
    let script = script
        .replace("127.0.0.1:8080", &addresses["web"].to_string())
        .replace("127.0.0.1:8443", &addresses["secure"].to_string())
        .replace("localhost:8443", &format!("localhost:{}", addresses["secure"].port()))
        .replace("target/release/selvedge", PROGRAM);
    let output = Command::new("bash").arg("-c").arg(&script).current_dir(folder.path()).output().expect("bash");
    let printed = String::from_utf8_lossy(&output.stdout)
        .replace(&addresses["web"].to_string(), "127.0.0.1:8080")
        .replace(&addresses["secure"].to_string(), "127.0.0.1:8443")
        .replace('\r', "");

    let mut wrong = String::new();
    for (step, printed) in steps.iter().zip(printed.split("\n--- end of step ---\n")) {
        let printed: Vec<&str> = printed.trim_end().lines().collect();
        let expected: Vec<&str> = step.prints.iter().map(String::as_str).collect();
        let expected = &expected[..expected.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1)];
        let same = expected.len() == printed.len()
            && expected.iter().zip(&printed).all(|(want, got)| fits(want, got.trim_end()));
        if !same {
            wrong.push_str(&format!(
                "README.md:{}: $ {}\nprints:\n{}\n\n",
                step.line,
                step.command,
                printed.join("\n")
            ));
        }
    }
    assert!(wrong.is_empty(), "the README says otherwise:\n\n{wrong}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn patterns_stand_for_any_text() {
    for (pattern, line, expected) in [
        ("a…c", "abc", true),
        ("a…c", "abcd", false),
        ("…", "anything", true),
        ("date: …", "date: today", true),
        ("exact", "exact", true),
        ("exact", "exact!", false),
        ("x; …; y", "x; 1; y", true),
    ] {
        assert_eq!(fits(pattern, line), expected, "{pattern} / {line}");
    }
}
