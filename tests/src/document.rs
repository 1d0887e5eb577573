//! The commands and programs of the documents, run exactly as they are written there.

use std::path::Path;
use std::process::Stdio;

use crate::PATIENCE;
use crate::process::built;

/// Returns the blocks of shell commands in a document, in their order.
#[must_use]
pub fn blocks(document: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while lines.by_ref().any(|line| line == "```sh") {
        let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push(block.join("\n"));
    }
    blocks
}

/// Runs shell commands up to the first that fails. At the end, the shell kills the background processes that
/// it has started. If the commands do not end in time, the whole process group is killed.
///
/// # Panics
///
/// If a command fails, or they do not end in time. The message has what they have written.
pub async fn run(commands: &str, folder: &Path, environment: &[(&str, &str)]) {
    let bin = built("xmsg");
    let bin = bin.parent().expect("a file is in a folder").display();
    let path = std::env::var("PATH").expect("there is a path");
    let script = format!("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{commands}\n");
    let file = |name: &str| std::fs::File::create(folder.join(name)).expect("a folder to write to");
    let mut shell = tokio::process::Command::new("bash");
    shell.args(["-e", "-c", &script]).current_dir(folder).process_group(0);
    shell.env("PATH", format!("{bin}:{path}")).env("XMSG_CONFIG", folder.join("contexts.toml"));
    // The machine may be so loaded that an answer takes longer than commands wait for it.
    for time in ["XMSG_CONNECTION_TIMEOUT", "XMSG_SUBSCRIPTION_TIMEOUT"] {
        shell.env(time, "30000");
    }
    shell.envs(environment.iter().copied()).stdin(Stdio::null());
    let mut shell = shell.stdout(file("stdout")).stderr(file("stderr")).spawn().expect("there is a shell");
    let group = shell.id().expect("it runs");
    let status = tokio::time::timeout(PATIENCE, shell.wait()).await.map(|status| status.expect("it ends"));
    if status.is_err() {
        // The shell has no time left to end the processes that it has started.
        let end =
            std::process::Command::new("kill").args(["-s", "KILL", "--", &format!("-{group}")]).status();
        assert!(end.expect("there is kill").success(), "the process group {group} is there");
    }
    let written = |name: &str| std::fs::read_to_string(folder.join(name)).expect("it was written");
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "{}:\n{commands}\n{}{}",
        status.as_ref().map_or_else(|_| "no end in time".to_owned(), ToString::to_string),
        written("stdout"),
        written("stderr")
    );
}

/// Returns the first of three consecutive free ports. They are outside the range from which the system gives
/// ports to connections, so that no connection of another test takes one of them before it is used.
///
/// # Panics
///
/// If the system does not say which ports it gives to connections.
#[must_use]
pub fn three_spare_ports() -> u16 {
    let given = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux has it");
    let first_given =
        given.split_whitespace().next().and_then(|port| port.parse::<u16>().ok()).expect("a port");
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut candidates = std::iter::repeat_with(|| fastrand::u16(10_000..first_given - 3));
    candidates.find(|first| (0..3).all(|next| is_free(first + next))).expect("it goes on for ever")
}

/// Returns the blocks of shell commands in a section of a document.
#[must_use]
pub fn section(document: &str, title: &str) -> Vec<String> {
    blocks(section_text(document, title))
}

/// Returns the text of a section of a document.
///
/// # Panics
///
/// If the document has no section with this title.
#[must_use]
pub fn section_text<'a>(document: &'a str, title: &str) -> &'a str {
    let rest = document.split(&format!("\n## {title}\n")).nth(1).unwrap_or_else(|| panic!("no {title}"));
    rest.split("\n## ").next().unwrap_or_default()
}

/// Writes the programs of a document into a folder, each into the file that its first line names, as in
/// `# publish.py: publishes readings`. Returns the names of the files. `kind` is the language of the blocks.
///
/// # Panics
///
/// If the first line of a program names no file, or the file can't be written.
#[must_use]
pub fn write_programs(document: &str, kind: &str, folder: &Path) -> Vec<String> {
    let (mut names, mut lines) = (Vec::new(), document.lines());
    while lines.by_ref().any(|line| line.strip_prefix("```") == Some(kind)) {
        let program: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        let first = program.first().copied().unwrap_or_default();
        let name = first.trim_start_matches(['#', '/', '*', ' ']).split(':').next().unwrap_or_default();
        let is_name = |name: &str| name.contains('.') && !name.contains(['/', ' ']);
        assert!(is_name(name), "the first line of a program is to name its file: {first}");
        std::fs::write(folder.join(name), program.join("\n") + "\n").expect("a folder to write to");
        names.push(name.to_owned());
    }
    names
}

/// Replaces words in a block that name things that do not exist here.
///
/// # Panics
///
/// If the block does not have one of the words.
#[must_use]
pub fn with(block: &str, words: &[(&str, &str)]) -> String {
    words.iter().fold(block.to_owned(), |block, (word, instead)| {
        assert!(block.contains(word), "no {word:?} in: {block}");
        block.replace(word, instead)
    })
}

/// Returns shell commands that wait until this command succeeds.
#[must_use]
pub fn until(command: &str) -> String {
    format!("until {command}; do sleep 0.1; done\n")
}
