//! The daemon as its user starts it: lines, signals, exit codes, and what a kill leaves behind.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use xmsg_core::security::{Password, Security};
use xmsg_core::{Connection, Message, ProxyAddress};
use xmsg_tests::process::{Daemon, finish, run};
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{http, next, patient, topic, within};

const PROXY: &str = env!("CARGO_BIN_EXE_xmsg-proxy");
const LINGER: Duration = Duration::from_secs(30);

/// Starts a proxy and reads its address from its first line: `xmsg-proxy VERSION at ADDRESS: …`.
async fn start(port: &str) -> (Daemon, ProxyAddress) {
    let mut daemon = Daemon::start(PROXY, &["--port", port, "--slow-subscriber", "block", "--linger", "2"]);
    let line = daemon.line().await;
    let address = line.split_whitespace().nth(3).unwrap().trim_end_matches(':');
    (daemon, address.parse().unwrap())
}

fn connect(address: &ProxyAddress) -> Connection {
    Connection::with_options(address.clone(), patient()).unwrap()
}

/// A file for the users' passwords, of whom there are none, and settings that name it.
fn plain_settings(folder: &Path) -> (PathBuf, PathBuf) {
    let (users, config) = (folder.join("users"), folder.join("proxy.toml"));
    std::fs::write(&users, "").unwrap();
    std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600)).unwrap();
    let name = users.to_str().unwrap();
    let text = format!("[security]\nmechanism = \"plain\"\npassword_file = {name:?}\n");
    std::fs::write(&config, text).unwrap();
    (users, config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_where_it_listens_and_what_it_did() {
    let (mut daemon, address) = start("0").await;
    let (publisher, subscriber) = (connect(&address), connect(&address));
    let mut messages = subscriber.subscribe([topic("a")]).await.unwrap();
    publisher.publish(&Message::of(topic("a"), 1).unwrap()).await.unwrap();
    next(&mut messages).await;
    daemon.signal("TERM").await;
    let totals = daemon.line().await;
    assert!(
        totals.starts_with("xmsg-proxy stopped: received ") && totals.ends_with("undelivered 0"),
        "{totals}"
    );
    assert!(daemon.end().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_takes_a_policy_for_each_prefix_and_says_so() {
    let arguments = ["--port", "0", "--slow-subscriber", "drop-oldest"];
    let own = ["--slow-subscriber-for", "level:=conflate", "--slow-subscriber-for", "a=b=disconnect"];
    let mut daemon = Daemon::start(PROXY, &[&arguments[..], &own].concat());
    let line = daemon.line().await;
    assert!(line.contains("slow subscribers: drop-oldest, level:=conflate, a=b=disconnect;"), "{line}");
    for own in ["level:=drop", "level:", "=="] {
        let output = run(PROXY, &["--port", "0", "--slow-subscriber-for", own]).await;
        assert_eq!(output.status.code(), Some(2), "{own}");
    }
}

/// Whoever reads the log is to find the peer, and what is wrong with it, in one line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_log_says_who_came_to_a_wrong_port_and_who_is_not_let_in() {
    let start = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(PROXY);
        command.args(["--port", "0"]).args(arguments);
        let mut daemon = Daemon::start_logged(command);
        let line = daemon.line().await;
        let address = line.split_whitespace().nth(3).unwrap().trim_end_matches(':').to_owned();
        (daemon, address.parse::<ProxyAddress>().unwrap())
    };
    let (open, address) = start(&[]).await;
    let [publishers, subscribers, control] =
        [address.publish_port(), address.subscribe_port(), address.control_port()];
    for (socket_type, came_to, port, wanted) in [
        ("SUB", publishers, "publishers", format!("{subscribers} (subscribers)")),
        ("PUB", subscribers, "subscribers", format!("{publishers} (publishers)")),
        ("DEALER", publishers, "publishers", format!("{control} (control)")),
    ] {
        let mut peer = Raw::connect(came_to).await;
        peer.send(&raw::greeting(3, 1)).await;
        peer.send(&raw::ready(socket_type, b"")).await;
        let words = ["peer=\"127.0.0.", &format!("port={port}"), &format!("wanted={wanted:?}")];
        open.logged(&words).await;
    }

    // A socket of libzmq finds out by itself, and closes before it has said what it is.
    let mut peer = Raw::connect(publishers).await;
    peer.send(&raw::greeting(3, 1)).await;
    peer.skip(64).await;
    drop(peer);
    let hint = format!("publishers connect to {publishers}, subscribers to {subscribers}");
    open.logged(&["connection refused", "peer=\"127.0.0.", &hint]).await;

    let folder = tempfile::tempdir().unwrap();
    let (_, config) = plain_settings(folder.path());
    let (closed, address) = start(&["--config", config.to_str().unwrap()]).await;
    let security = Security::PlainClient { user: "bob".into(), password: Password::new("guess").unwrap() };
    let stranger = Connection::with_options(address, patient().security(security)).unwrap();
    within("a refusal", stranger.connect()).await.unwrap_err();
    closed
        .logged(&["peer=\"127.0.0.1:", "not let in: user \"bob\" is unknown, or the password is wrong"])
        .await;
}

/// Whoever has to decide whether a limit is to be raised finds it in the line that says who was cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_log_says_which_limit_was_broken() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("proxy.toml");
    std::fs::write(&config, "[limits]\nsubscription_bytes = 100\nmessage_frames = 8\n").unwrap();
    let arguments = ["--port", "0", "--max-message-size", "1", "--config", config.to_str().unwrap()];
    let mut command = tokio::process::Command::new(PROXY);
    command.args(arguments);
    let mut daemon = Daemon::start_logged(command);
    let line = daemon.line().await;
    let address: ProxyAddress =
        line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
    let long_frame = [&[2][..], &((1_u64 << 20) + 1).to_be_bytes()].concat();
    let subscription = raw::message(&[&[&[1][..], &[b'x'; 101]].concat()]);
    let ports = (address.publish_port(), address.subscribe_port());
    for (port, socket_type, sent, name, reason, limit) in [
        (ports.0, "PUB", long_frame, "publishers", "message_too_large", 1 << 20),
        (ports.0, "PUB", raw::message(&[b"x"; 9]), "publishers", "too_many_frames", 8),
        (ports.1, "SUB", subscription, "subscribers", "subscription_too_long", 100),
    ] {
        let mut peer = Raw::handshake(port, socket_type).await;
        let own = peer.stream.local_addr().unwrap();
        peer.send(&sent).await;
        peer.closed().await;
        let line = daemon.logged(&["connection ended", &format!("reason=\"{reason}\"")]).await;
        for word in [
            " WARN ",
            &format!("peer=\"{own}\""),
            &format!("port={name}"),
            &format!("limit={limit}"),
            "unlogged=0",
        ] {
            assert!(format!("{line} ").contains(word), "{word} in {line}");
        }
    }
}

/// A command that starts the proxy with at most so many descriptors.
fn with_descriptors(limit: u32, arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\""), PROXY, "--port", "0"]);
    command.args(arguments);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_few_descriptors_it_says_for_how_many_connections_there_is_room() {
    let mut daemon = Daemon::start_logged(with_descriptors(64, &[]));
    let line = daemon.line().await;
    let address: ProxyAddress =
        line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
    daemon.logged(&["room for 32 connections only", "descriptors=64"]).await;
    // There is: three of a publisher with its control socket and a subscriber, and these.
    let mut others = Vec::new();
    for _ in 0..28 {
        others.push(Raw::handshake(address.subscribe_port(), "SUB").await);
    }
    let connection = connect(&address);
    let mut messages = within("a subscription", connection.subscribe([topic("a")])).await.unwrap();
    connection.publish(&Message::of(topic("a"), 1).unwrap()).await.unwrap();
    next(&mut messages).await;
    drop(others);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_too_few_descriptors_it_does_not_start() {
    for (limit, arguments, enough) in [(40, &[][..], "48"), (64, &["--admin", "127.0.0.1:0"], "112")] {
        let output = finish(with_descriptors(limit, arguments)).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(&format!("the limit of open descriptors is {limit}")), "{error}");
        assert!(error.contains(&format!("Raise it to {enough} or more")), "{error}");
    }
}

/// A command that starts the proxy as it is by default, with its web page.
fn with_page(arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(PROXY);
    command.args(["--port", "0"]).args(arguments).env_remove("XMSG_PROXY_ADMIN").env_remove("RUST_LOG");
    command
}

/// Nobody has to ask for the page, and two proxies on one machine both have one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_has_a_web_page_unless_told_otherwise() {
    // If this fails, somebody else has the port.
    let taken = std::net::TcpListener::bind("127.0.0.1:7775");
    let mut daemon = Daemon::start_logged(with_page(&[]));
    daemon.line().await;
    let admin = daemon.line().await.strip_prefix("HTTP at http://").unwrap().to_owned();
    if taken.is_ok() {
        assert!(admin.starts_with("127.0.0.1:") && admin != "127.0.0.1:7775", "{admin}");
        daemon
            .logged(&["WARN", &format!("http://{admin}"), "127.0.0.1:7775 can't be used", "--admin off"])
            .await;
    }
    let page = http::get_with(&admin, "/", "Accept: text/html\r\n").await;
    assert!(page.status == 200 && page.body.contains("<html"), "{}", page.head);
    assert_eq!(http::get(&admin, "/api/v1/overview").await.status, 200);
    assert_eq!(http::post(&admin, "/api/v1/connections/1/end", "").await.status, 403, "nobody has a token");
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());

    let mut without = Daemon::start_logged(with_page(&["--admin", "off"]));
    without.line().await;
    without.signal("TERM").await;
    assert!(without.line().await.starts_with("xmsg-proxy stopped"), "it has said nothing of HTTP");
}

/// What somebody has asked for is there, or the proxy does not start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_for_http_that_was_asked_for_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("proxy.toml");
    std::fs::write(&config, format!("[admin]\nlisten = \"{at}\"\n")).unwrap();
    for arguments in [["--admin", &at], ["--config", config.to_str().unwrap()]] {
        let output = finish(with_page(&arguments)).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(&format!("cannot bind {at} for HTTP")) && error.contains("in use"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_nobody_asked_for_takes_no_descriptors_from_clients() {
    let mut command = with_descriptors(64, &[]);
    command.env_remove("XMSG_PROXY_ADMIN").env_remove("RUST_LOG");
    let mut daemon = Daemon::start_logged(command);
    daemon.line().await;
    daemon.logged(&["there is no web page, because descriptors are few", "descriptors=64"]).await;
    daemon.logged(&["room for 32 connections only"]).await;
    daemon.signal("TERM").await;
    assert!(daemon.line().await.starts_with("xmsg-proxy stopped"), "it has said nothing of HTTP");
}

/// A file that is read again may be one that nobody writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stops_while_a_reload_waits_for_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (users, config) = plain_settings(folder.path());
    let mut daemon = Daemon::start(PROXY, &["--port", "0", "--config", config.to_str().unwrap()]);
    daemon.line().await;
    std::fs::remove_file(&users).unwrap();
    let mut mkfifo = tokio::process::Command::new("mkfifo");
    mkfifo.args(["-m", "600"]).arg(&users);
    assert!(finish(mkfifo).await.status.success());
    daemon.signal("HUP").await;
    // It opens when it is opened for reading, and then says nothing.
    let opening = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(users));
    let silent = within("the reload", opening).await.unwrap().unwrap();
    daemon.signal("TERM").await;
    assert!(daemon.line().await.starts_with("xmsg-proxy stopped: "));
    assert!(daemon.end().await.success());
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_is_to_print_is_written_or_it_says_so() {
    for option in ["--print-config", "--check-config"] {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" > /dev/full", PROXY, option]);
        let output = finish(command).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{option}: {error}");
        assert!(error.contains("cannot write to standard output"), "{option}: {error}");
    }
}

/// Who signals a process and its group signals it twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_signals_at_once_count_as_one() {
    let (mut daemon, address) = start("0").await;
    // Somebody who does not take leave, so that stopping takes a while.
    let _silent = Raw::handshake(address.publish_port(), "PUB").await;
    daemon.signal("TERM").await;
    daemon.signal("INT").await;
    let totals = daemon.line().await;
    assert!(totals.starts_with("xmsg-proxy stopped"), "{totals}");
    assert!(daemon.end().await.success());
}

/// Section 6 of the protocol: `XMSG_PROXY_DEBUG`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_logged_if_the_environment_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    for (variable, expected) in [("XMSG_PROXY_DEBUG=1", true), ("OTHER=1", false)] {
        let script = format!("unset RUST_LOG; export {variable}; exec \"$0\" --port 0 2>\"$1\"");
        let mut daemon = Daemon::start("sh", &["-c", &script, PROXY, log.to_str().unwrap()]);
        let line = daemon.line().await;
        let address = line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
        connect(&address).connect().await.unwrap();
        daemon.signal("TERM").await;
        assert!(daemon.end().await.success());
        let log = std::fs::read_to_string(&log).unwrap();
        let is_logged = log.lines().any(|line| {
            line.contains(" xmsg_proxy::switch") && line.contains(": connected peer=\"127.0.0.1:")
        });
        assert_eq!(is_logged, expected, "{variable}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_delivers_what_is_queued() {
    const MESSAGES: i32 = 20_000;
    let (mut daemon, address) = start("0").await;
    let (publisher, subscriber) = (connect(&address), connect(&address));
    let mut messages = subscriber.subscribe([topic("a")]).await.unwrap();
    for number in 0..MESSAGES {
        publisher.publish(&Message::of(topic("a"), number).unwrap()).await.unwrap();
    }
    assert!(publisher.close(LINGER).await.is_nothing());
    daemon.signal("TERM").await;
    for number in 0..MESSAGES {
        assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), number);
    }
    assert!(daemon.end().await.success());
}

/// After `kill -9` only what the dead proxy had already been given can be missing; all that the publisher
/// still holds arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_clients_go_on_and_the_publisher_sends_what_it_holds() {
    let (mut daemon, address) = start("0").await;
    let (publisher, subscriber) = (Arc::new(connect(&address)), connect(&address));
    let mut messages = subscriber.subscribe([topic("a")]).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let sending = {
        let (publisher, stop) = (publisher.clone(), stop.clone());
        tokio::spawn(async move {
            let mut number = 0_i64;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..500 {
                    number += 1;
                    publisher.publish(&Message::of(topic("a"), number).unwrap()).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // The old proxy is dead by now: this one is for the new one.
            number += 1;
            publisher.publish(&Message::of(topic("a"), number).unwrap()).await.unwrap();
            number
        })
    };
    for _ in 0..1000 {
        next(&mut messages).await;
    }
    daemon.signal("KILL").await;
    daemon.end().await;
    let (_daemon, _) = start(&address.publish_port().to_string()).await;
    stop.store(true, Ordering::Relaxed);
    let sent = within("the publisher", sending).await.unwrap();
    let left = publisher.close(LINGER).await;
    assert_eq!(left.unsent, 0);
    let (mut last, mut gaps, mut missing) = (1000, 0, 0);
    while last < sent {
        let number: i64 = next(&mut messages).await.value().unwrap();
        assert!(number > last, "in order, none twice: {number} after {last}");
        gaps += i64::from(number != last + 1);
        missing += u64::try_from(number - last - 1).unwrap();
        last = number;
    }
    assert!(gaps <= 1, "one gap, where the proxy died, and not {gaps}");
    assert!(missing <= left.unconfirmed, "{missing} are missing, and {left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_named() {
    let (_daemon, address) = start("0").await;
    for port in [address.publish_port(), address.publish_port() - 1] {
        let output = run(PROXY, &["--port", &port.to_string()]).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("cannot bind tcp://127.0.0.1:") && error.contains("in use"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_arguments_say_what_is_wrong() {
    for (arguments, word) in [
        (&["--port", "70000"][..], "65533"),
        (&["--port", "65535"], "65533"),
        (&["--port", "65534"], "three ports"),
        (&["--port", "x"], "port"),
        (&["--host", ""], "host"),
        (&["--host", "tcp://here"], "host"),
        (&["--slow-subscriber", "fast"], "drop-newest"),
        (&["--linger=-1"], "seconds"),
        (&["--linger", "5 parsecs"], "10s or 2m"),
        (&["--what"], "--what"),
    ] {
        let output = run(PROXY, arguments).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(word), "{arguments:?}: {error}");
        assert!(error.starts_with("xmsg-proxy: "), "{arguments:?}: {error}");
    }
    let taken = run(PROXY, &["--linger", "1m", "--print-config"]).await;
    assert!(String::from_utf8(taken.stdout).unwrap().contains("linger_s = 60"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_not_here_is_named() {
    let output = run(PROXY, &["--host", "192.0.2.1", "--port", "0"]).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("192.0.2.1") && error.contains("no interface"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_permission_to_bind_is_said() {
    // A copy where an unprivileged user may run it; root may bind anything.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("xmsg-proxy");
    std::fs::copy(PROXY, &program).unwrap();
    let mut command = tokio::process::Command::new(&program);
    command.args(["--port", "80"]).kill_on_drop(true);
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    if root {
        command.uid(65534).gid(65534);
    }
    let output = within("the refusal", command.output()).await.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("no permission") && error.contains(":80"), "{error}");
}

/// A peer chooses the name that it gives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_says_of_itself_forges_no_line_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let mode = PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).unwrap();
        path
    };
    file("passwords", &format!("alice:{}\n", *xmsg_proxy::security::hash_password("sesame").unwrap()));
    let text =
        "port = 0\n[security]\nmechanism = \"plain\"\npassword_file = \"passwords\"\n[[security.client]]\n";
    let config = file("proxy.toml", text);
    for (format, shown) in
        [("text", r"eve\n\u{202e}\u{9b}\u{7f}forged"), ("json", r"eve\\n\\u{202e}\\u{9b}\\u{7f}forged")]
    {
        let mut command = tokio::process::Command::new(PROXY);
        command.arg("--config").arg(&config).args(["--log-format", format]).env_remove("RUST_LOG");
        let mut daemon = Daemon::start_logged(command);
        let line = daemon.line().await;
        let proxy: ProxyAddress =
            line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
        let password = Password::new("guess").unwrap();
        let user = "eve\n\u{202e}\u{9b}\u{7f}forged".to_owned();
        let security = Security::PlainClient { user, password };
        let options = patient().security(security);
        let connection = Connection::with_options(proxy, options).unwrap();
        within("an answer", connection.connect()).await.unwrap_err();
        let line = daemon.logged(&["not let in"]).await;
        assert!(line.contains(shown), "{line:?}");
        for line in daemon.log_lines() {
            assert!(!line.chars().any(xmsg_core::text::is_unsafe) && !line.starts_with("forged"), "{line:?}");
        }
    }
}

/// Such as a terminal that was stopped with Ctrl-S.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_read_its_log_stops_nothing() {
    let (mut log, standard_error) = UnixStream::pair().unwrap();
    let mut full = standard_error.try_clone().unwrap();
    let arguments = ["--port", "0", "--admin", "127.0.0.1:0", "--log-filter", "debug"];
    let standard_error = Stdio::from(OwnedFd::from(standard_error));
    let mut daemon = Daemon::start_logging(PROXY, &arguments, standard_error);
    let line = daemon.line().await;
    let address: ProxyAddress =
        line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
    let admin = daemon.line().await.strip_prefix("HTTP at http://").unwrap().to_owned();

    // Until there is no room for another byte.
    full.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    for len in [4096, 1] {
        while full.write(&vec![b'#'; len]).is_ok() {}
    }
    full.set_write_timeout(None).unwrap();
    // Each of these is logged, more than once.
    let exchange = async |text: &str| {
        let (publisher, subscriber) = (connect(&address), connect(&address));
        let mut messages = subscriber.subscribe([topic(text)]).await.unwrap();
        publisher.publish(&Message::of(topic(text), 1).unwrap()).await.unwrap();
        next(&mut messages).await;
        publisher.close(LINGER).await;
    };
    for _ in 0..3 {
        exchange("unread").await;
    }
    let lost =
        async || http::samples(&http::get(&admin, "/metrics").await.body)["xmsg_proxy_log_lines_lost_total"];
    assert!(lost().await.abs() < f64::EPSILON, "there is room for all of them");

    // Whoever reads at last misses nothing.
    let reading = std::thread::spawn(move || {
        let (mut text, mut bytes) = (String::new(), [0; 4096]);
        while text.matches("connected").count() < 6 {
            let count = log.read(&mut bytes).unwrap();
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        log
    });
    exchange("read").await;
    let _log = within("its log", tokio::task::spawn_blocking(|| reading.join().unwrap())).await.unwrap();

    // Nobody reads any more, and it ends all the same.
    full.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    while full.write(&[b'#'; 1]).is_ok() {}
    full.set_write_timeout(None).unwrap();
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
}

/// Each thread takes address space, little as its memory is: what is left for peers is less.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_and_peers_share_a_limited_address_space() {
    const MIB: usize = 1 << 20;
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", r#"ulimit -v 1048576; exec "$0" "$@""#, PROXY, "--port", "0"]);
    command.args(["--threads", "8", "--registrar", "0", "--admin", "127.0.0.1:0"]);
    let mut daemon = Daemon::start_logged(command);
    let line = daemon.line().await;
    let address: ProxyAddress =
        line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let port = address.publish_port();
        senders.spawn(async move {
            let mut peer = Raw::handshake(port, "PUB").await;
            // The second frame never ends.
            let start = [&b"\x01\x01x\x02"[..], &(60 * MIB as u64).to_be_bytes()].concat();
            let mut goes_on = peer.try_send(&start).await;
            for _ in 0..59 {
                // It may be one of those that are ended.
                goes_on = goes_on && peer.try_send(&vec![b'x'; MIB]).await;
            }
            peer
        });
    }
    daemon.logged(&["the limit of the address space", "memory_limit_mib=64"]).await;
    let peers = senders.join_all().await;
    daemon.logged(&["no memory is left"]).await;
    let (publisher, subscriber) = (connect(&address), connect(&address));
    let mut messages = subscriber.subscribe([topic("a")]).await.unwrap();
    publisher.publish(&Message::of(topic("a"), 1).unwrap()).await.unwrap();
    next(&mut messages).await;
    drop((publisher, subscriber, peers));
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
}
