//! `sdk/README.md`, followed as somebody new would: its commands are run, its files are written, its answers come.

use std::fs;
use std::path::Path;

use selvedge_tests::Client;
use tempfile::TempDir;

use crate::filter_new::{Dev, checkout, tool};
use crate::filter_tools::{contains, printed};

/// A block of code.
pub(crate) struct Block<'r> {
    pub(crate) line: usize,
    pub(crate) language: &'r str,
    /// The file that the line before names.
    pub(crate) file: Option<&'r str>,
    pub(crate) text: String,
}

pub(crate) fn blocks(readme: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut open: Option<Block<'_>> = None;
    let mut before = "";
    for (index, line) in readme.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                let file = before.strip_suffix("`:").and_then(|words| words.rsplit('`').next());
                open = Some(Block { line: index + 2, language, file, text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
        if !line.is_empty() {
            before = line;
        }
    }
    blocks
}

/// Writes the settings of the block into the node's configuration, in place of the template's.
fn configure(krate: &Path, block: &str) {
    let path = krate.join("selvedge.yaml");
    let node = fs::read_to_string(&path).expect("there");
    let (head, settings) = block.split_once("    config:\n").expect("settings of the filter");
    assert!(node.contains(head), "the template's node has no\n{head}");
    let old = node.split_once("    config:\n").expect("settings").1.split("\n\n").next().expect("a block");
    let old = old.split("\nsites:").next().expect("a block").trim_end();
    fs::write(&path, node.replace(old, settings.trim_end()).replace("127.0.0.1:8080", "127.0.0.1:0")).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_new_gets_to_a_tested_filter_in_a_running_node() {
    let readme = fs::read_to_string(checkout().join("sdk/README.md")).expect("sdk/README.md");
    let folder = TempDir::new().expect("a folder");
    let mut here = folder.path().to_owned();
    let mut dev: Option<Dev> = None;
    let (mut files, mut commands) = (0, 0);
    for block in blocks(&readme) {
        match (block.language, block.file) {
            ("rust", Some(file)) => {
                fs::write(here.join(file), &block.text).expect("written");
                files += 1;
            }
            ("yaml", _) => configure(&here, &block.text),
            ("sh", _) => {
                for line in block.text.lines() {
                    commands += 1;
                    let words: Vec<&str> = line.split_whitespace().collect();
                    match words[..] {
                        ["rustup", "target", "add", "wasm32-wasip1"] => {}
                        ["cd", name] => here = here.join(name),
                        ["selvedge", "filter", "new", ref arguments @ ..] => {
                            let checkout = checkout().display().to_string();
                            let arguments = arguments.iter().map(|word| word.replace("path/to/selvedge", &checkout));
                            let arguments: Vec<String> = ["new".into()].into_iter().chain(arguments).collect();
                            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                            printed(&tool(&here, &arguments).output().expect("runs"), 0);
                            // The versions of dependencies that are here already.
                            fs::copy(checkout_lock(), here.join("office/Cargo.lock")).expect("copied");
                        }
                        // The compiled module is tried below, by the node.
                        ["selvedge", "filter", "test"] => {
                            let tested = tool(&here, &["test", "--native", "--offline"]).output().expect("runs");
                            contains(&printed(&tested, 0), &["strangers_are_kept_out::native ... ok", "3 passed"]);
                        }
                        ["selvedge", "filter", "dev"] => {
                            let mut started = Dev::start(&here);
                            started.says("save a file", 1).await;
                            dev = Some(started);
                        }
                        ["selvedge", "filter", "build"] => {
                            printed(&tool(&here, &["build", "--offline"]).output().expect("runs"), 0);
                        }
                        ["selvedge", "filter", "check", "--portable"] => {
                            let checked = tool(&here, &["check", "--portable"]).output().expect("runs");
                            contains(&printed(&checked, 0), &["ok    loads on Envoy"]);
                        }
                        ["curl", "-i", url] => {
                            let path = url.strip_prefix("http://127.0.0.1:8080").expect("the node");
                            let dev = dev.as_mut().expect("the node runs");
                            let web = dev.address();
                            let let_in = Client::get(web, path).await;
                            assert_eq!(let_in.status, 200);
                            contains(&let_in.text(), &["x-office"]);

                            // What the page says one may do next.
                            let node = here.join("selvedge.yaml");
                            let text = fs::read_to_string(&node).expect("there");
                            fs::write(&node, text.replace("[\"127.0.0.1\"]", "[\"192.0.2.1\"]")).expect("written");
                            dev.says("swapped in", 1).await;
                            let denied = Client::get(web, path).await;
                            assert_eq!((denied.status, denied.text().as_str()), (403, "for the office only\n"));
                            fs::write(&node, text.replace("office: [", "offices: [")).expect("written");
                            dev.says("what runs goes on", 1).await;
                            contains(&dev.text(), &["selvedge.yaml:", "offices"]);
                        }
                        _ => panic!("sdk/README.md:{}: nobody knows how to run {line:?}", block.line),
                    }
                }
            }
            (language, _) => panic!("sdk/README.md:{}: a block of {language:?}, which nobody runs", block.line),
        }
    }
    assert!(files == 2 && commands >= 8, "{files} files, {commands} commands");
}

fn checkout_lock() -> std::path::PathBuf {
    checkout().join("Cargo.lock")
}
