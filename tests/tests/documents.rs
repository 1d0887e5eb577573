//! Tests that run the commands in the documents exactly as they are written there.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use xmsg_tests::document::{blocks, run, section, three_spare_ports, until, with};
use xmsg_tests::process::built;
use xmsg_tests::rabbitmq::Broker;
use xmsg_tests::{proxy, within};

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

/// The document promises a proxy with keys in five minutes.
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

/// These are the commands of the README: one program answers in the background, and another one sends
/// requests.
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

/// The README has a proxy with keys for a network. It lets in everybody who knows its key, and nobody without
/// encryption.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readme_encrypts_what_crosses_a_network() {
    let [server, client] = &section(include_str!("../../README.md"), "Use it over a network")[..] else {
        panic!("another number of blocks")
    };
    let folder = tempfile::tempdir().unwrap();
    let port = three_spare_ports().to_string();
    let address = format!("127.0.0.1:{port}");
    let client = with(client, &[("10.0.0.7", &address)]);
    let [subscribe, publish] = &client.lines().collect::<Vec<_>>()[..] else { panic!("{client}") };
    let answers = until(&format!("xmsg ping -n 1 --proxy {address} --server-key \"$(cat proxy.public)\""));
    let stranger = format!("! xmsg ping -n 1 --proxy {address} --connect-timeout 2s");
    let script = format!(
        "{server} &\n{answers}{subscribe} -n 1 > heard &\n{publish} --wait-sub\nwait $!\n\
         grep -q 'weather:oslo 4 °C' heard\n{stranger}"
    );
    run(&script, folder.path(), &[("XMSG_PROXY_PORT", &*port)]).await;
}

/// The proxy has keys, because a context has keys, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contexts_are_kept_as_the_document_says() {
    let [block] = &section(include_str!("../../docs/command-line.md"), "Contexts")[..] else {
        panic!("another number of blocks")
    };
    let folder = tempfile::tempdir().unwrap();
    let port = three_spare_ports().to_string();
    let address = format!("127.0.0.1:{port}");
    let block =
        with(block, &[("10.0.0.7", &address), ("KEY", "$(cat proxy.public)"), ("lab ping", "lab ping -n 1")]);
    let server = "xmsg keygen proxy.key > proxy.public\nxmsg keygen me.key\n\
                  printf '[security]\nmechanism = \"curve\"\nkey_file = \"proxy.key\"\n[[security.client]]\n' > proxy.toml\n\
                  xmsg-proxy --config proxy.toml &\n";
    let answers = until(
        "xmsg ping -n 1 --server-key \"$(cat proxy.public)\" --key-file me.key --proxy 127.0.0.1:$XMSG_PROXY_PORT",
    );
    let rest = "test \"$(xmsg context list | cut -f 2)\" = home";
    let environment = [("XMSG_PROXY_PORT", &*port)];
    run(&format!("{server}{answers}{block}\n{rest}"), folder.path(), &environment).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_and_manual_pages_go_where_they_are_looked_for() {
    let [block] = &section(include_str!("../../docs/command-line.md"), "Completions and manual pages")[..]
    else {
        panic!("another number of blocks")
    };
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().display().to_string();
    run(block, folder.path(), &[("HOME", &home)]).await;
    for file in ["bash-completion/completions/xmsg", "man/man1/xmsg.1", "man/man1/xmsg-connection.1"] {
        assert!(folder.path().join(".local/share").join(file).exists(), "{file}");
    }
}

/// A settings file is checked and printed. A user with the token queries the HTTP server, and ends a
/// connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_operated_as_the_document_says() {
    let documents = [
        include_str!("../../docs/operations.md"),
        include_str!("../../docs/http.md"),
        include_str!("../../docs/slow-subscribers.md"),
    ];
    let found: Vec<_> = documents.into_iter().flat_map(blocks).collect();
    let of = |command: &str| {
        let block = found.iter().find(|block| block.contains(command));
        block.unwrap_or_else(|| panic!("no {command:?}")).clone()
    };
    let folder = tempfile::tempdir().unwrap();
    let (port, admin) = (three_spare_ports().to_string(), three_spare_ports());
    let (proxy, http) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{admin}"));
    let settings = format!("xmsg-proxy --print-config > FILE\n{}\n", of("--check-config"));
    let token = "/etc/xmsg/admin-token";
    let start = [(token, "admin-token"), ("0.0.0.0:7775", &*http), ("HOST:7775", &*http)];
    let start = with(&of("--admin 0.0.0.0:7775"), &start);
    let [make, daemon, ask] = &start.lines().collect::<Vec<_>>()[..] else { panic!("{start}") };
    let ask = ask.replace("curl ", "curl --fail --silent ");
    // Each line of this block ends a different connection.
    let end = with(
        &of("connections end 12"),
        &[(token, "admin-token"), ("127.0.0.1:7775", &*http), (" end 12", " end $ID"), ("/12/", "/$ID/")],
    );
    let each = |line: &str| {
        let line = line.replace("curl ", "curl --fail --silent ");
        let id = "ID=$(xmsg connections --json | grep subscriber | sed 's/.*\"id\":\\([0-9]*\\).*/\\1/')";
        let ended = until("! xmsg connections --json | grep -q \"\\\"id\\\":$ID,\"");
        let again = until("xmsg connections --json | grep -q subscriber");
        format!("{id}\n{line}\n{ended}{again}")
    };
    let ends: String = end.lines().map(each).collect();
    let script = format!(
        "{settings}{make}\n{daemon} &\n{}xmsg sub a &\n{}{ask}\n{ends}",
        until(&ask),
        until("xmsg connections --json | grep -q subscriber"),
    );
    let environment = [
        ("XMSG_PROXY_PORT", &*port),
        ("XMSG_PROXY", &*proxy),
        ("XMSG_ADMIN", &*http),
        ("XMSG_ADMIN_TOKEN_FILE", "admin-token"),
    ];
    run(&script, folder.path(), &environment).await;
}

/// Two proxies, one of which has the other as its upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_are_chained_as_the_document_says() {
    let [block] = &section(include_str!("../../docs/chains.md"), "Two proxies")[..] else {
        panic!("another number of blocks")
    };
    let (above, below) = (three_spare_ports().to_string(), three_spare_ports().to_string());
    let block = with(block, &[("7771", &above), ("7781", &below), ("-n 1 ", "-n 1 > heard ")]);
    let (daemons, rest): (Vec<_>, Vec<_>) = block.lines().partition(|line| line.starts_with("xmsg-proxy"));
    assert_eq!((daemons.len(), rest.len()), (2, 3), "{block}");
    let answers = until(&format!("xmsg ping -n 1 --proxy 127.0.0.1:{below}"));
    let heard = until("grep -q 'weather:oslo 4 °C' heard");
    let shown = format!(
        "xmsg info --proxy 127.0.0.1:{below} | grep 'upstream tcp://127.0.0.1:' | grep -q '1 message'"
    );
    let script = format!("{}\n{answers}{}\n{heard}{shown}", daemons.join("\n"), rest.join("\n"));
    let folder = tempfile::tempdir().unwrap();
    run(&script, folder.path(), &[]).await;
}

/// The document promises a message through RabbitMQ in five minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_goes_through_a_queue_in_five_minutes() {
    let [daemon, questions] = &section(include_str!("../../docs/connect.md"), "In five minutes")[..] else {
        panic!("another number of blocks")
    };
    let broker = Broker::shared().await;
    let folder = tempfile::tempdir().unwrap();
    let (port, admin) = (three_spare_ports().to_string(), three_spare_ports());
    let (proxy, http) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{admin}"));
    let daemon = with(daemon, &[("127.0.0.1:7775", &*http)]);
    let heard = "xmsg sub from-rabbit -n 1 > heard &";
    // The subscription must be active before the message comes back.
    let subscribed = format!("{heard}\n{}", until("xmsg connections --json | grep -q subscriber").trim_end());
    let broker = format!("127.0.0.1:{}", broker.port());
    let questions =
        with(questions, &[("127.0.0.1:5672", &*broker), ("xmsg sub from-rabbit -n 1 &", &*subscribed)]);
    let rest = "grep -q '{\"pieces\": 17}' heard\n\
                until xmsg connect list --json | grep -q '\"delivered\":1'; do sleep 0.1; done";
    let script = format!("{daemon} &\n{}{questions}\n{rest}", until("xmsg ping -n 1"));
    let environment = [("XMSG_PROXY_PORT", &*port), ("XMSG_PROXY", &*proxy), ("XMSG_ADMIN", &*http)];
    run(&script, folder.path(), &environment).await;
}

/// Two proxies are joined over RabbitMQ.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_proxies_share_a_topic_as_the_document_says() {
    let [start, questions] = &section(include_str!("../../docs/connect.md"), "Federation")[..] else {
        panic!("another number of blocks")
    };
    let broker = Broker::shared().await;
    let folder = tempfile::tempdir().unwrap();
    let [a, b, admin_a, admin_b] = std::array::from_fn(|_| three_spare_ports().to_string());
    let broker = format!("127.0.0.1:{}", broker.port());
    let start = with(
        start,
        &[
            ("127.0.0.1:5672", &*broker),
            ("7771", &*a),
            ("7781", &*b),
            ("7775", &*admin_a),
            ("7785", &*admin_b),
        ],
    );
    let questions =
        with(questions, &[("7771", &*a), ("7781", &*b), ("7775", &*admin_a), ("7785", &*admin_b)]);
    // The subscription is there before the message comes.
    let heard = "xmsg sub orders -n 1 --proxy";
    let questions: String = questions
        .lines()
        .map(|line| match line {
            list if list.starts_with("xmsg connect list") => {
                until(&format!("[ $({list} --json | grep -c '\"state\":\"connected\"') = 3 ]"))
            }
            sub if sub.starts_with(heard) => {
                let sub = sub.replace(" &", " > heard &");
                let there =
                    format!("xmsg connections --admin 127.0.0.1:{admin_b} --json | grep -c subscriber");
                format!("{sub}\n{}", until(&format!("[ $({there}) = 2 ]")))
            }
            other => format!("{other}\n"),
        })
        .collect();
    let script = format!("{start}\n{questions}grep -q '17 pieces' heard");
    run(&script, folder.path(), &[]).await;
}

/// Each way to run a registrar is tested with the same queries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registrar_is_run_and_asked_as_the_document_says() {
    let block = &blocks(include_str!("../../docs/registrar.md"))[0];
    let (daemons, questions): (Vec<_>, Vec<_>) =
        block.lines().partition(|line| !line.starts_with("xmsg registrar ") || line.contains(" run"));
    assert_eq!((daemons.len(), questions.len()), (4, 4), "{block}");
    for daemon in daemons {
        let folder = tempfile::tempdir().unwrap();
        let (port, proxy) = (three_spare_ports().to_string(), three_spare_ports().to_string());
        let daemon = daemon.split('#').next().unwrap_or_default().replace("/var/lib/xmsg/", "./");
        let daemon = match daemon.trim() {
            run if run.starts_with("xmsg registrar") => format!("{run} --port {port}"),
            both if both.starts_with("xmsg-proxy") => format!("{both} {port}"),
            alone => alone.to_owned(),
        };
        let answers = until("xmsg registrar list");
        let questions = questions.join("\n");
        let script = format!("{daemon} &\n{answers}{questions}\ntest -z \"$(xmsg registrar list)\"");
        let address = format!("127.0.0.1:{port}");
        let environment =
            [("XMSG_REGISTRAR_PORT", &*port), ("XMSG_PROXY_PORT", &*proxy), ("XMSG_REGISTRAR", &*address)];
        run(&script, folder.path(), &environment).await;
    }
}

/// These are the other commands of the README. Commands that would run for ever get an option that ends them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readme_publishes_records_measures_and_looks() {
    let found = commands(include_str!("../../README.md"));
    let all = |start: &str| {
        let commands: Vec<_> = found.iter().filter(|command| command.starts_with(start)).collect();
        assert!(!commands.is_empty(), "no {start}");
        commands
    };
    let one = |start: &str| all(start)[0].as_str();
    let folder = tempfile::tempdir().unwrap();
    let port = three_spare_ports().to_string();
    let address = format!("127.0.0.1:{port}");
    let publish = format!("{} --wait-sub\nwait $!\n", one("xmsg pub weather"));
    let mut script = vec![
        format!("{} &\n{}", one("xmsg-proxy"), until("xmsg ping -n 1")),
        format!("{} -n 1 > heard &\n{publish}", one("xmsg sub weather")),
        "test \"$(cat heard)\" = 'weather:oslo 4 °C'".to_owned(),
        format!("{} -n 1 &\n{publish}", one("xmsg record")),
        one("xmsg replay").to_owned(),
        format!("{} --once", one("xmsg top")),
        one("xmsg topics").to_owned(),
        one("xmsg info").to_owned(),
    ];
    // One of the commands has a mode, and options may follow it in any order.
    let without_comment = |command: &str| command.split('#').next().unwrap_or_default().trim().to_owned();
    script.extend(
        all("xmsg bench").into_iter().map(|bench| without_comment(bench) + " --duration 200ms --warmup 0"),
    );
    let script = script.join("\n");
    run(&script, folder.path(), &[("XMSG_PROXY_PORT", &*port), ("XMSG_PROXY", &*address)]).await;
}

/// Scripts that take long, and so run seldom, take their commands from blocks of the README, each below a
/// line that they name: `words LANGUAGE 'START'`, in packaging/parts.sh.
#[test]
fn the_blocks_that_scripts_take_from_the_readme_are_there() {
    let readme = include_str!("../../README.md");
    for script in [include_str!("../../docker/smoke"), include_str!("../../packaging/release")] {
        let calls = ["words sh '", "words console '"].map(|call| script.split(call).skip(1));
        let starts: Vec<_> = calls.into_iter().flatten().filter_map(|rest| rest.split('\'').next()).collect();
        assert!(!starts.is_empty(), "no block is taken: {script}");
        for start in starts {
            let mut below = readme.lines().skip_while(|line| !line.starts_with(start)).skip(1);
            let block = below.find(|line| !line.is_empty());
            assert!(block.is_some_and(|line| line.starts_with("```")), "{start:?} is followed by {block:?}");
        }
    }
}

/// Returns the commands of this project in the blocks of a document.
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
        ["xmsg", "xmsg-proxy", "xmsg-registrar", "xmsg-connect"].contains(&name)
    });
    commands.into_iter().map(str::to_owned).collect()
}

/// This also checks commands that no test runs, because they do not end or need something that is not here:
/// their options must exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_in_the_documents_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let bin = built("xmsg").parent().expect("a file is in a folder").to_owned();
    let failed = folder.path().join("failed");
    // These scripts replace the programs: with `--help` behind its arguments, a program parses them and does
    // nothing.
    for name in ["xmsg", "xmsg-proxy", "xmsg-registrar", "xmsg-connect"] {
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
            // Each command runs in its own subshell, whatever becomes of the others. It may end in a comment.
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

/// Returns all pages of Markdown in the repository, without what is installed or built.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in the workspace");
    let root = root.canonicalize().unwrap();
    let (mut folders, mut pages) = (vec![root], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules" {
                folders.push(path);
            } else if name.ends_with(".md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

/// Returns the lines of a page that are not in blocks of code.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// Returns the anchors of a page: one for each heading, as forges and mdBook make them.
fn anchors(page: &str) -> Vec<String> {
    let mut anchors = Vec::<String>::new();
    for line in prose(page) {
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        let Some(title) = line.get(level..).and_then(|title| title.strip_prefix(' ')).filter(|_| level > 0)
        else {
            continue;
        };
        let is_kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        let slug: String = title.trim().to_lowercase().chars().filter(is_kept).collect();
        let slug = slug.replace(' ', "-");
        let before = anchors
            .iter()
            .filter(|other| {
                let rest = other.strip_prefix(&*slug);
                rest.is_some_and(|rest| {
                    rest.is_empty() || rest.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok())
                })
            })
            .count();
        anchors.push(if before == 0 { slug } else { format!("{slug}-{before}") });
    }
    anchors
}

/// Returns the targets of all links and pictures of a page.
fn links(page: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(page) {
        // Every second part is between backticks, where no link is one.
        let text: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        links.extend(targets.map(str::to_owned));
    }
    links
}

#[test]
fn anchors_and_links_are_found_in_a_page() {
    let page = "# A b: `c-d`\n\n[x](y.md#z) and `[no](link)`, ![p](q.svg)\n```sh\n# no heading\n```\n## Files\n## Files\n";
    assert_eq!(anchors(page), ["a-b-c-d", "files", "files-1"]);
    assert_eq!(links(page), ["y.md#z", "q.svg"]);
}

/// Every link in every page leads to a file that is there, and to a heading of it.
#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    let mut lost = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let folder = page.parent().expect("a file is in a folder");
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (file, anchor) =
                link.split_once('#').map_or((&*link, None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { page.clone() } else { folder.join(file) };
            if !target.exists() {
                lost.push(format!("{}: {link}: there is no such file", page.display()));
            } else if let Some(anchor) = anchor {
                let there = std::fs::read_to_string(&target).unwrap();
                if !anchors(&there).iter().any(|there| there == anchor) {
                    lost.push(format!("{}: {link}: there is no such heading", page.display()));
                }
            }
        }
    }
    assert_eq!(lost, Vec::<String>::new());
    assert!(count > 200, "{count} links");
}

/// Every page of the documentation is a chapter of the book, once.
#[test]
fn every_page_is_in_the_book() {
    let mut chapters = links(include_str!("../../docs/SUMMARY.md"));
    chapters.retain(|chapter| !chapter.starts_with("../"));
    chapters.sort();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").canonicalize().unwrap();
    let is_page = |path: &PathBuf| path.parent() == Some(&docs) && !path.ends_with("SUMMARY.md");
    let name = |path: PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let there: Vec<_> = pages().into_iter().filter(is_page).map(name).collect();
    assert_eq!(chapters, there);
}

/// The first page has a first message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_message_arrives_as_the_first_page_says() {
    let [block] = &section(include_str!("../../docs/README.md"), "The first message")[..] else {
        panic!("another number of blocks")
    };
    let folder = tempfile::tempdir().unwrap();
    let port = three_spare_ports().to_string();
    let address = format!("127.0.0.1:{port}");
    run(block, folder.path(), &[("XMSG_PROXY_PORT", &*port), ("XMSG_PROXY", &*address)]).await;
    let written = std::fs::read_to_string(folder.path().join("stdout")).unwrap();
    assert!(written.contains("weather:oslo 4 °C"), "{written}");
}
