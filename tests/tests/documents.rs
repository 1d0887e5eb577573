//! The commands in the documents do what they say, as they stand there.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use xmsg_tests::process::built;
use xmsg_tests::{PATIENCE, proxy, within};

/// The blocks of shell commands in a document, in their order.
fn blocks(document: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while lines.by_ref().any(|line| line == "```sh") {
        let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push(block.join("\n"));
    }
    blocks
}

/// Runs shell commands up to the first that fails. When they end, the shell kills the background processes that they have
/// started; when they do not end in time, the whole process group is killed.
async fn run(commands: &str, folder: &Path, environment: &[(&str, &str)]) {
    let bin = built("xmsg");
    let bin = bin.parent().expect("a file is in a folder").display();
    let path = std::env::var("PATH").expect("there is a path");
    let script = format!("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{commands}\n");
    let file = |name: &str| std::fs::File::create(folder.join(name)).expect("a folder to write to");
    let mut shell = tokio::process::Command::new("bash");
    shell.args(["-e", "-c", &script]).current_dir(folder).process_group(0);
    shell.env("PATH", format!("{bin}:{path}")).env("XMSG_CONFIG", folder.join("contexts.toml"));
    shell.envs(environment.iter().copied()).stdin(Stdio::null());
    let mut shell = shell.stdout(file("stdout")).stderr(file("stderr")).spawn().expect("there is a shell");
    let group = shell.id().expect("it runs");
    let status = tokio::time::timeout(PATIENCE, shell.wait()).await.map(|status| status.expect("it ends"));
    if status.is_err() {
        // It has no time left to end those that it started.
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

/// The first of three ports in a row that nobody uses. The ports are outside the range from which the system gives ports to
/// connections, so that no connection of another test takes one of them before it is used.
fn three_spare_ports() -> u16 {
    let given = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux has it");
    let first_given =
        given.split_whitespace().next().and_then(|port| port.parse::<u16>().ok()).expect("a port");
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut candidates = std::iter::repeat_with(|| fastrand::u16(10_000..first_given - 3));
    candidates.find(|first| (0..3).all(|next| is_free(first + next))).expect("it goes on for ever")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_task_of_those_who_come_from_elsewhere_is_done() {
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().to_string();
    let found = blocks(include_str!("../../docs/coming-from-mosquitto-nats-kcat.md"));
    assert!(found.len() >= 12, "{} blocks", found.len());
    for block in found {
        let folder = tempfile::tempdir().unwrap();
        run(&block, folder.path(), &[("XMSG_PROXY", &address)]).await;
    }
}

/// Five minutes are enough for a proxy with keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_closed_to_strangers_in_five_minutes() {
    let document = include_str!("../../docs/security.md");
    let section = document.split("## In five minutes").nth(1).unwrap().split("\n## ").next().unwrap();
    let [server, client] = &blocks(section)[..] else { panic!("{section}") };
    let folder = tempfile::tempdir().unwrap();
    let spare = three_spare_ports();
    let environment =
        [("XMSG_PROXY_PORT", &*spare.to_string()), ("XMSG_PROXY", &*format!("127.0.0.1:{spare}"))];
    let answers = "until xmsg pub daq:ready 1 --server-key \"$(cat proxy.public)\" --key-file daq.key; do sleep 0.1; done";
    let stranger = "! xmsg pub daq:run 18 --server-key '' --key-file '' --connect-timeout 2s";
    run(&format!("{server}\n{answers}\n{client}\n{stranger}"), folder.path(), &environment).await;
}

/// The README's own: one answers in the background, the other asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readme_asks_and_is_answered() {
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().to_string();
    let document = include_str!("../../README.md");
    let ask = document.split("Ask and answer").nth(1).unwrap().split("```").nth(1).unwrap();
    let commands: Vec<_> = ask.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(commands.len() >= 3, "{ask}");
    let commands = commands.join("\n").replace("xmsg ping", "xmsg ping -n 1");
    for _ in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        within("asking", run(&commands, folder.path(), &[("XMSG_PROXY", &address)])).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The commands of ours in the blocks of a document.
fn commands(document: &str) -> Vec<String> {
    let (mut commands, mut kind) = (Vec::new(), None);
    for line in document.lines() {
        match (line.strip_prefix("```"), kind) {
            (Some(""), _) => kind = None,
            (Some(language), _) => kind = Some(language),
            (None, Some("sh")) => commands.push(line),
            (None, Some("console")) => commands.extend(line.strip_prefix("$ ")),
            (None, _) => {}
        }
    }
    commands.retain(|command| {
        let name = command.split(' ').next().unwrap_or_default();
        ["xmsg", "xmsg-proxy", "xmsg-registrar"].contains(&name)
    });
    commands.into_iter().map(str::to_owned).collect()
}

/// Also what no test runs, because it does not end or needs what is not here, has options that there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_in_the_documents_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let bin = built("xmsg").parent().expect("a file is in a folder").to_owned();
    let failed = folder.path().join("failed");
    // In place of the program: with --help behind its arguments, it reads them and does nothing.
    for name in ["xmsg", "xmsg-proxy", "xmsg-registrar"] {
        let script = format!(
            "#!/bin/sh\necho >> called\n{}/{name} \"$@\" --help > answer 2>&1 || {{ echo {name} \"$@\"; cat answer; }} >> failed\n",
            bin.display()
        );
        let path = folder.path().join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in the workspace");
    let mut documents = vec![root.join("README.md")];
    for entry in std::fs::read_dir(root.join("docs")).unwrap() {
        documents.extend(
            Some(entry.unwrap().path()).filter(|path| path.extension().is_some_and(|kind| kind == "md")),
        );
    }
    let (mut count, mut script) = (0, String::new());
    for document in documents {
        for command in commands(&std::fs::read_to_string(document).unwrap()) {
            count += 1;
            // Each by itself, whatever becomes of the others. It may end in a comment.
            script.push_str("(\n");
            script.push_str(&command);
            script.push_str("\nwait\n) < /dev/null > /dev/null 2>&1\n");
        }
    }
    assert!(count > 60, "{count} commands");
    let path = std::env::var("PATH").expect("there is a path");
    let mut shell = tokio::process::Command::new("bash");
    shell.args(["-c", &script]).current_dir(folder.path()).kill_on_drop(true).stdin(Stdio::null());
    shell.env("PATH", format!("{}:{path}", folder.path().display())).env("HOME", folder.path());
    assert!(within("all commands", shell.status()).await.unwrap().code().is_some());
    assert_eq!(std::fs::read_to_string(&failed).unwrap_or_default(), "");
    let called = std::fs::read_to_string(folder.path().join("called")).unwrap().lines().count();
    assert!(called * 10 >= count * 8, "{called} of {count} were called");
}
