//! Tests of the invariants of ARCHITECTURE.md that can be checked in the sources.

#[path = "tidy/map.rs"]
mod map;

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Returns every Rust file below a folder, or the file itself, with its text.
fn sources(path: &str) -> Vec<(String, String)> {
    fn collect(path: &Path, found: &mut Vec<PathBuf>) {
        // What cargo has built, such as in the workspace of tests/bench/compare.
        if path.ends_with("target") {
            return;
        }
        if path.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                collect(&entry.unwrap().path(), found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path.to_owned());
        }
    }
    let mut found = Vec::new();
    collect(&root().join(path), &mut found);
    assert!(!found.is_empty(), "{path} has Rust sources");
    found
        .into_iter()
        .map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap()))
        .collect()
}

/// Returns the lines without comments, and without the items that are there for tests only. `rustfmt` ends an
/// item of several lines with a bracket that stands as far to the right as its first line.
fn code(text: &str) -> Vec<&str> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut kept = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        if line.trim() != "#[cfg(test)]" {
            kept.push(line);
            continue;
        }
        let is_before_item =
            |line: &str| line.trim_start().starts_with("#[") || line.trim_start().starts_with("//");
        let Some(first) = lines.find(|line| !is_before_item(line)) else { break };
        let is_whole = first.ends_with(';') || first.ends_with(',') || first.ends_with('}');
        if !is_whole {
            lines
                .find(|line| indent(line) == indent(first) && line.trim_start().starts_with(['}', ')', ']']));
        }
    }
    kept
}

#[test]
fn code_is_all_that_is_not_for_tests() {
    let text = "use a;\n#[cfg(test)]\nuse b;\n// No code.\nfn c() {\n    #[cfg(test)]\n    {\n        d();\n    }\n    e();\n}\n\
                #[cfg(test)]\n#[allow(f)]\nmod g {\n    fn h() {\n    }\n}\nfn i() {}\n#[cfg(test)]\nfn j() {}\nuse k;";
    assert_eq!(code(text), ["use a;", "fn c() {", "    e();", "}", "fn i() {}", "use k;"]);
}

/// Returns the lines of code, without comments and tests, that contain one of these words.
fn lines_with(text: &str, words: &[&str]) -> Vec<String> {
    let lines = code(text).into_iter();
    lines.filter(|line| words.iter().any(|word| line.contains(word))).map(str::to_owned).collect()
}

fn nowhere(paths: &[&str], words: &[&str]) {
    for path in paths {
        for (file, text) in sources(path) {
            if file.ends_with("_tests.rs") {
                continue;
            }
            assert_eq!(lines_with(&text, words), Vec::<String>::new(), "in {file}");
        }
    }
}

#[test]
fn the_pure_modules_know_no_runtime_no_clock_and_no_io() {
    let pure = ["topic.rs", "meta", "meta.rs", "data", "data.rs", "message.rs", "registration.rs"]
        .map(|m| format!("xmsg-core/src/{m}"));
    let more = ["xmsg-core/zmtp/src", "xmsg-proxy/src/prefixes", "xmsg-proxy/src/registrar/store.rs"];
    let pure: Vec<&str> = pure.iter().map(String::as_str).chain(more).collect();
    nowhere(
        &pure,
        &["tokio", "std::net", "std::fs", "Instant::now", "SystemTime", "std::thread", "async fn"],
    );
}

/// Returns the names of all packages with which this one is built, including itself.
fn packages_of(package: &str) -> Vec<String> {
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal", "--all-features", "--prefix", "none"])
        .args(["--format", "{lib}", "--package", package])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    String::from_utf8(tree.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_lower_package_cannot_name_an_upper_one_and_the_wire_protocol_no_runtime() {
    let order = ["xmsg_zmtp", "xmsg_zmq", "xmsg_core", "xmsg_connect", "xmsg_proxy", "xmsg_cli"];
    // The command line is a program: nobody can name it.
    for (at, lower) in order[..order.len() - 1].iter().enumerate() {
        let known = packages_of(&lower.replace('_', "-"));
        assert!(known.iter().any(|name| name == lower), "{known:?}");
        let upper = known.iter().find(|name| order[at + 1..].contains(&&***name));
        assert_eq!(upper, None, "{lower} knows it");
        let runtime = known.iter().find(|name| *name == "tokio" || *name == "futures");
        assert!(*lower != "xmsg_zmtp" || runtime.is_none(), "{runtime:?}");
    }
    // The lower packages must not mention names that belong to xMsg.
    nowhere(&["xmsg-core/zmtp/src", "xmsg-core/zmq/src"], &["xmsg:", "XMSG_"]);
}

#[test]
fn the_switch_knows_no_controller() {
    nowhere(
        &["xmsg-proxy/src/switch"],
        &[
            "crate::control",
            "crate::proxy",
            "crate::registrar",
            "crate::admin",
            "crate::settings",
            "crate::{",
        ],
    );
}

#[test]
fn settings_know_neither_the_environment_nor_the_runtime() {
    nowhere(&["xmsg-proxy/src/settings"], &["tokio", "std::env", "std::process", "clap"]);
}

#[test]
fn only_binaries_exit_or_set_up_tracing() {
    let libraries = [
        "xmsg-core/src",
        "xmsg-core/zmq/src",
        "xmsg-core/zmtp/src",
        "xmsg-connect/src",
        "xmsg-proxy/src/switch",
        "xmsg-proxy/src/prefixes",
        "xmsg-proxy/src/proxy.rs",
        "xmsg-proxy/src/control.rs",
        "xmsg-proxy/src/registrar",
        "xmsg-proxy/src/security",
        "xmsg-proxy/src/admin",
    ];
    nowhere(
        &libraries,
        &["process::exit", "tracing_subscriber", "std::env::args", "tokio::signal", "println!", "eprintln!"],
    );
}

#[test]
fn channels_are_bounded() {
    let all = ["xmsg-core", "xmsg-connect/src", "xmsg-proxy/src", "xmsg-cli/src"];
    nowhere(&all, &["unbounded", "mpsc::channel()", "mpsc::{self, channel}"]);
}

#[test]
fn deadlines_come_from_the_helper_that_saturates() {
    // A configured duration may be `Duration::MAX`, which can't be added to any time. Only a sum with a
    // constant is safe.
    let times = ["now()", "now", "deadline", "started", "since", "begun", "sent", "last_heard"];
    let is_constant = |term: &str| {
        let name: String = term.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        term.starts_with("Duration::from_") || (!name.is_empty() && name == name.to_uppercase())
    };
    for path in ["xmsg-core", "xmsg-connect/src", "xmsg-proxy/src", "xmsg-cli/src"] {
        for (file, text) in sources(path) {
            let has_times = text.contains("Instant") || text.contains("Duration");
            if !has_times || file.ends_with("_tests.rs") || file.ends_with("zmtp/src/later.rs") {
                continue;
            }
            for line in lines_with(&text, &[" + "]) {
                for (at, _) in line.match_indices(" + ") {
                    let (left, right) = (&line[..at], &line[at + 3..]);
                    let is_time = times.iter().any(|time| {
                        left.strip_suffix(time).is_some_and(|before| {
                            !before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
                        })
                    });
                    assert!(!is_time || is_constant(right), "in {file}: {line}: use `xmsg_zmq::deadline`");
                }
            }
        }
    }
}

#[test]
fn protobuf_stays_out_of_public_signatures() {
    for path in ["xmsg-core", "xmsg-connect/src", "xmsg-proxy/src", "xmsg-cli/src"] {
        for (file, text) in sources(path) {
            let lines = code(&text);
            let is_public = |line: &&str| line.trim_start().starts_with("pub ");
            let signatures =
                lines.iter().filter(|line| line.contains("prost")).filter(|line| is_public(line));
            assert_eq!(signatures.collect::<Vec<_>>(), Vec::<&&str>::new(), "in {file}");
            // What is derived from a type may be some lines above it.
            for (at, _) in lines
                .iter()
                .enumerate()
                .filter(|(_, line)| line.contains("derive(") && line.contains("prost"))
            {
                let item = lines[at..].iter().find(|line| !line.trim_start().starts_with("#["));
                assert!(!item.is_some_and(is_public), "in {file}: {item:?}");
            }
        }
    }
}

#[test]
fn every_allowed_lint_has_its_reason() {
    for path in ["xmsg-core", "xmsg-proxy", "xmsg-cli", "tests"] {
        for (file, text) in sources(path) {
            for line in text
                .lines()
                .filter(|line| line.trim_start().starts_with("#[allow(") || line.starts_with("#![allow("))
            {
                assert!(line.contains("reason"), "in {file}: {line}");
            }
        }
    }
}

/// Compiler flags of the workspace would not apply to crates that depend on this project. These would then
/// have slower ciphers than what is measured here (`tests/bench/dependent.py`).
#[test]
fn no_flags_of_the_workspace_choose_code() {
    let settings = std::fs::read_to_string(root().join(".cargo/config.toml")).unwrap_or_default();
    assert!(!settings.contains("rustflags"), "{settings}");
}

/// A file with more than 500 lines says at its top why it holds one idea and not two. Tests beside the code
/// do not count, nor does the table of files in the head of a module.
#[test]
fn files_stay_readable() {
    const REASON: &str = "// Longer than 500 lines: ";
    /// Files that have their reason here.
    const ELSEWHERE: [&str; 2] = [
        // One table of paths, with who may ask for each.
        "xmsg-proxy/src/admin/routes.rs",
        // The public interface of the registry, most of it documentation.
        "xmsg-connect/src/registry/mod.rs",
    ];
    let mut unexplained = Vec::new();
    let root = format!("{}/", root().display());
    for path in ["xmsg-core", "xmsg-proxy/src", "xmsg-connect", "xmsg-cli/src", "tests/src"] {
        for (file, text) in sources(path) {
            let file = file.trim_start_matches(&root);
            let lines = text.lines().count();
            assert!(lines <= 750, "{file} has {lines} lines: split it");
            if file.ends_with("tests.rs") || !file.contains("/src/") || ELSEWHERE.contains(&file) {
                continue;
            }
            let is_of_table = |line: &&str| line.starts_with("// |") || line.starts_with("//! |");
            let code = text.lines().take_while(|line| *line != "mod tests {");
            let code = code.filter(|line| !is_of_table(line)).count();
            let has_reason = text
                .lines()
                .take_while(|line| line.is_empty() || line.starts_with("//"))
                .any(|line| line.starts_with(REASON));
            if (code > 500) != has_reason {
                unexplained.push(format!("{file}: {code} lines, and a reason at the top: {has_reason}"));
            }
        }
    }
    assert!(unexplained.is_empty(), "split these, or say why not:\n{}", unexplained.join("\n"));
}

/// Words that had a meaning in this project only. What has replaced them is in the glossary of
/// ARCHITECTURE.md, or is a word of ZeroMQ, of NATS or of tokio.
#[test]
fn names_are_words_of_the_field() {
    const REFUSED: [&str; 30] = [
        "Seat",
        "seat",
        "Grant",
        "grant",
        "News",
        "news",
        "Tidings",
        "tidings",
        "Recipe",
        "recipe",
        "Ledger",
        "ledger",
        "Told",
        "told",
        "untold",
        "owe",
        "owed",
        "owing",
        "inlet",
        "inlets",
        "toll",
        "farewell",
        "Asked",
        "ASKED",
        "judge",
        "settle",
        "unsettled",
        "Unsettled",
        "bury",
        "Buried",
    ];
    let mut found = Vec::new();
    for path in ["xmsg-core", "xmsg-connect/src", "xmsg-proxy/src", "xmsg-cli/src", "tests/src"] {
        for (file, text) in sources(path) {
            if ["/admin/tap.rs", "/admin/api/messages.rs"].iter().any(|other| file.ends_with(other)) {
                continue;
            }
            for (number, line) in text.lines().enumerate() {
                let line = line.trim_start();
                // Names stand outside of comments and texts.
                let code = line.split("//").next().unwrap_or_default().split('"').step_by(2);
                for word in code.flat_map(|part| part.split(|c: char| !c.is_alphanumeric() && c != '_')) {
                    if REFUSED.contains(&word) {
                        found.push(format!("{file}:{}: {word}", number + 1));
                    }
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A page that names tests is useless when the tests have been renamed.
#[test]
fn the_tests_that_the_documents_name_are_there() {
    let pages = [("docs/zeromq-conformance.md", 150), ("docs/libzmq-tests.md", 50), ("docs/stability.md", 7)];
    for (page, least) in pages {
        let words = std::fs::read_to_string(root().join(page)).unwrap();
        let named: Vec<_> = words.split('`').filter(|word| word.contains(".rs::")).collect();
        assert!(named.len() >= least, "{page} names {} tests", named.len());
        for name in named {
            let (file, test) = name.split_once("::").unwrap();
            let source = std::fs::read_to_string(root().join(file));
            let source = source.unwrap_or_else(|error| panic!("{page} names {name}: {error}"));
            let at = source.find(&format!("fn {test}(")).unwrap_or_else(|| panic!("{page} names {name}"));
            let is_test =
                |line: &str| ["#[test]", "#[tokio::test"].iter().any(|a| line.trim().starts_with(a));
            assert!(source[..at].lines().rev().take(3).any(is_test), "{page} names {name}, which is no test");
        }
    }
}

/// Each rule has a test or a reason for having none, and the page counts them.
#[test]
fn every_rule_of_zeromq_is_decided_or_given_up() {
    let page = std::fs::read_to_string(root().join("docs/zeromq-conformance.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
    let mut counts = [0; 4];
    for (rule, decided) in rows.filter(|(rule, _)| *rule != "the rule") {
        let ways = ["`", "no test: ", "not followed", "not offered"];
        let way = ways.iter().position(|way| decided.starts_with(way));
        counts[way.unwrap_or_else(|| panic!("{rule}: {decided}"))] += 1;
    }
    let [tests, none, not_followed, not_offered] = counts;
    for said in [
        format!("Of {} rules,", counts.iter().sum::<usize>()),
        format!("- {tests} have a test,"),
        format!("- {none} have none:"),
        format!("- {not_followed} are not followed,"),
        format!("- {not_offered} are about what is not offered."),
    ] {
        assert!(page.contains(&said), "the page is to say: {said}");
    }
}

/// A comment that is read line by line ends where the eye can find the next line. The formatter breaks code,
/// and no comments. Tables, diagrams and examples can't be broken.
#[test]
fn no_comment_goes_beyond_the_width() {
    const WIDTH: usize = 110;
    let mut beyond = Vec::new();
    for folder in ["xmsg-core", "xmsg-proxy", "xmsg-cli", "xmsg-connect", "tests", "fuzz/src"] {
        for (file, text) in sources(folder) {
            let mut is_example = false;
            for (number, line) in text.lines().enumerate() {
                let Some(comment) = line.trim_start().strip_prefix("//") else { continue };
                let comment = comment.trim_start_matches(['/', '!']).trim_start();
                is_example ^= comment.starts_with("```");
                let is_whole = comment.starts_with(['|', '#', '<']) || comment.contains(['─', '►', '◄']);
                if !is_example && !is_whole && line.chars().count() > WIDTH {
                    beyond.push(format!("{file}:{}: {line}", number + 1));
                }
            }
        }
    }
    assert!(beyond.is_empty(), "{}", beyond.join("\n"));
}

/// Each package names what its sources use, and nothing else.
#[test]
fn every_dependency_is_used() {
    let packages =
        ["xmsg-core/zmtp", "xmsg-core/zmq", "xmsg-core", "xmsg-connect", "xmsg-proxy", "xmsg-cli", "tests"];
    for package in packages {
        let manifest = std::fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        let folders = ["src", "tests", "examples"].map(|folder| format!("{package}/{folder}"));
        let there = folders.iter().filter(|folder| root().join(folder).is_dir());
        let mut text: String = there.flat_map(|folder| sources(folder)).map(|(_, text)| text).collect();
        if package == "tests" {
            // It runs the programs on this page.
            text += &std::fs::read_to_string(root().join("docs/guide.md")).unwrap();
        }
        let mut is_dependency = false;
        for line in manifest.lines() {
            if line.starts_with('[') {
                is_dependency = line.ends_with("dependencies]");
                continue;
            }
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default().replace('-', "_");
            if !is_dependency || name.is_empty() || name.starts_with('#') {
                continue;
            }
            let is_part = |c: char| c.is_alphanumeric() || c == '_';
            let is_used = text.match_indices(&name).any(|(at, _)| {
                !text[..at].ends_with(is_part) && !text[at + name.len()..].starts_with(is_part)
            });
            assert!(is_used, "{package} does not use {name}");
        }
    }
}
