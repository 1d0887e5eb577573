//! `xmsg registrar`, and the commands that use one: `register`, `deregister`, `find`, `list`.

mod common;

use std::time::Duration;

use common::{Running, within, xmsg};
use serde_json::json;

/// Starts `xmsg registrar` at a free port and waits until it is ready. Returns its address and its first
/// line.
async fn registrar(arguments: &[&str]) -> (Running, String, String) {
    let mut running = Running::start(&[&["registrar", "--port", "0"], arguments].concat());
    let line = running.said("Ctrl-C ends it").await;
    let address = line.split_whitespace().nth(3).expect("`xmsg: registrar at HOST:PORT`").to_owned();
    (running, address, line)
}

/// Returns the output of a command that uses the registrar at this address. The command must succeed.
async fn ask(address: &str, arguments: &[&str]) -> String {
    xmsg(&[arguments, &["--registrar", address, "--registrar-timeout", "30s"]].concat()).await.text()
}

/// Returns the lines of this output, sorted.
async fn lines(address: &str, arguments: &[&str]) -> Vec<String> {
    let mut lines: Vec<_> = ask(address, arguments).await.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

async fn register(address: &str, topic: &str, name: &str, owner: &str, proxy: &str) {
    let arguments = ["register", topic, "--name", name, owner, "--proxy", proxy];
    assert_eq!(ask(address, &arguments).await, "", "standard output is for data");
}

/// Interrupts a registrar, as a user does.
async fn interrupt(running: Running) -> String {
    running.signal("INT");
    let ended = running.end().await;
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    assert!(ended.stdout.is_empty());
    ended.stderr
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_is_listed_and_found() {
    let (running, address, line) = registrar(&[]).await;
    assert!(line.contains("with 0 registrations"), "{line}");
    assert_eq!(ask(&address, &["list"]).await, "");
    for (topic, name, owner) in [
        ("rock", "drums", "--publisher"),
        ("rock:metal", "bass", "--publisher"),
        ("rock:metal:loud", "guitar", "--publisher"),
        ("rock:metal", "fan", "--subscriber"),
    ] {
        register(&address, topic, name, owner, "10.0.0.7").await;
        register(&address, topic, name, owner, "10.0.0.7").await;
    }
    let row = |owner: &str, topic: &str, name: &str| format!("{owner}\t{topic}\t{name}\t10.0.0.7:7771\t");
    let (drums, bass, guitar, fan) = (
        row("publisher", "rock", "drums"),
        row("publisher", "rock:metal", "bass"),
        row("publisher", "rock:metal:loud", "guitar"),
        row("subscriber", "rock:metal", "fan"),
    );
    let cases: [(&[&str], &[&String]); 12] = [
        (&["list"], &[&drums, &bass, &guitar, &fan]),
        (&["list", "--publishers"], &[&drums, &bass, &guitar]),
        (&["list", "--subscribers"], &[&fan]),
        (&["find", "rock:metal"], &[&bass, &guitar]),
        (&["find", "rock:metal", "--exact"], &[&bass]),
        (&["find", "*:metal", "--filter"], &[&bass, &guitar]),
        (&["find", "*:*:loud", "--filter", "--host", "10.0.0.7", "--port", "7771"], &[&guitar]),
        (&["find", "rock", "--filter", "--host", "10.0.0.8"], &[]),
        (&["find", "rock", "--filter", "--port", "7772"], &[]),
        (&["find", "rock:metal:loud", "--subscribers"], &[&fan]),
        (&["find", "rock", "--subscribers"], &[]),
        (&["find", "jazz"], &[]),
    ];
    for (arguments, expected) in cases {
        assert_eq!(lines(&address, arguments).await.iter().collect::<Vec<_>>(), expected, "{arguments:?}");
    }
    let said = interrupt(running).await;
    assert!(said.contains("stopped after ") && said.contains(" requests, 0 refused"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_has_one_object_on_each_line() {
    let (_running, address, _) = registrar(&[]).await;
    let described = ["--description", "plays\tlow", "--proxy", "10.0.0.7:9000"];
    ask(&address, &[&["register", "rock:metal", "--name", "bass", "--publisher"], &described[..]].concat())
        .await;
    register(&address, "rock", "fan", "--subscriber", "10.0.0.8").await;
    let objects = async |arguments: &[&str]| -> Vec<serde_json::Value> {
        lines(&address, arguments).await.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let bass = json!({
        "role": "publisher", "topic": "rock:metal", "name": "bass", "host": "10.0.0.7", "port": 9000,
        "description": "plays\tlow",
    });
    let fan = json!({
        "role": "subscriber", "topic": "rock", "name": "fan", "host": "10.0.0.8", "port": 7771,
        "description": null,
    });
    assert_eq!(objects(&["find", "rock", "--json"]).await, std::slice::from_ref(&bass));
    let mut all = objects(&["list", "--json"]).await;
    all.sort_by_key(|object| object["role"].to_string());
    assert_eq!(all, [bass, fan]);
    // A tab in a description does not separate columns.
    assert_eq!(ask(&address, &["find", "rock"]).await.matches('\t').count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn registrations_are_taken_back() {
    let (_running, address, _) = registrar(&[]).await;
    for (name, proxy) in [("a", "10.0.0.7"), ("a", "10.0.0.8"), ("b", "10.0.0.7"), ("c", "10.0.0.8")] {
        register(&address, "x:y", name, "--publisher", proxy).await;
        register(&address, "x:y", name, "--subscriber", proxy).await;
    }
    let count = async |arguments: &[&str]| lines(&address, arguments).await.len();
    assert_eq!(count(&["list"]).await, 8);
    // The port does not matter, but the host does.
    let removal = ["deregister", "x:y", "--name", "a", "--publisher", "--proxy", "10.0.0.7:9000"];
    assert_eq!(ask(&address, &removal).await, "");
    assert_eq!((count(&["list", "-p"]).await, count(&["list", "-s"]).await), (3, 4));
    // Removing a registration that does not exist succeeds.
    ask(&address, &removal).await;
    assert_eq!(count(&["list"]).await, 7);
    ask(&address, &["deregister", "--all-of", "10.0.0.8"]).await;
    assert_eq!((count(&["list", "-p"]).await, count(&["list", "-s"]).await), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_registration_ends_with_its_command() {
    let (_running, address, _) = registrar(&[]).await;
    let arguments = ["register", "x:y", "--name", "a", "--subscriber", "--keep", "--registrar", &address];
    let mut keeper = Running::start(&arguments);
    keeper.said("registered subscriber a of x:y").await;
    assert_eq!(lines(&address, &["list"]).await, ["subscriber\tx:y\ta\t127.0.0.1:7771\t"]);
    interrupt(keeper).await;
    assert_eq!(ask(&address, &["list"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registrar_that_was_killed_knows_everything_again() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("registrations");
    let snapshot = ["--snapshot", snapshot.to_str().unwrap()];
    let (running, address, _) = registrar(&snapshot).await;
    for name in ["a", "b", "c"] {
        register(&address, "x:y", name, "--publisher", "10.0.0.7").await;
    }
    ask(&address, &["deregister", "x:y", "--name", "b", "--publisher", "--proxy", "10.0.0.7"]).await;
    let before = lines(&address, &["list"]).await;
    assert_eq!(before.len(), 2);

    // Two registrars cannot use the same file.
    let second = xmsg(&[&["registrar", "--port", "0"], &snapshot[..]].concat()).await;
    second.failed(1, "another registrar");

    running.signal("KILL");
    assert_eq!(running.end().await.code, None, "it was killed");
    let (running, address, line) = registrar(&snapshot).await;
    assert!(line.contains("with 2 registrations"), "{line}");
    assert_eq!(lines(&address, &["list"]).await, before);

    // The registrations also survive a graceful shutdown.
    interrupt(running).await;
    let (_running, _, line) = registrar(&snapshot).await;
    assert!(line.contains("with 2 registrations"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_registered_again_in_time_is_forgotten() {
    let (_running, address, _) = registrar(&["--ttl", "200ms"]).await;
    register(&address, "x:y", "a", "--publisher", "10.0.0.7").await;
    within("the end of the registration", async { while !ask(&address, &["list"]).await.is_empty() {} })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_registrar_the_address_is_named() {
    let registrar = xmsg_proxy::registrar::Registrar::bind("127.0.0.1:0").start().await.unwrap();
    let address = registrar.address().to_string();
    within("the end of the registrar", registrar.stop(Duration::from_secs(5))).await;
    let cases: [&[&str]; 5] = [
        &["register", "x:y", "--name", "a", "--publisher"],
        &["deregister", "x:y", "--name", "a", "--publisher"],
        &["deregister", "--all-of", "10.0.0.7"],
        &["find", "x"],
        &["list", "--json"],
    ];
    for command in cases {
        let options = ["--registrar", &address, "--registrar-timeout", "300ms"];
        let ended = xmsg(&[command, &options].concat()).await;
        assert!(ended.stdout.is_empty(), "{command:?}");
        assert!(ended.stderr.contains("xmsg registrar"), "it says what to do: {}", ended.stderr);
        ended.failed(3, &address);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named() {
    let (_running, address, _) = registrar(&[]).await;
    let port = address.rsplit_once(':').unwrap().1;
    xmsg(&["registrar", "--port", port]).await.failed(1, port);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_errors_say_what_is_wrong() {
    let cases: &[(&[&str], &str)] = &[
        (&["register"], "TOPIC"),
        (&["register", "x:y", "--publisher"], "--name"),
        (&["register", "x:y", "--name", "a"], "--publisher"),
        (&["register", "x:y", "--name", "a", "--publisher", "--subscriber"], "cannot be used with"),
        (&["register", "*:y", "--name", "a", "--publisher"], "domain of a topic can't be `*`"),
        (&["register", "x", "--name", "a", "--publisher", "--proxy", "h:65535"], "three ports"),
        (&["register", "x", "--name", "a", "--publisher", "--registrar", "a b"], "not a host"),
        (&["deregister"], "TOPIC"),
        (&["deregister", "x:y"], "--name"),
        (&["deregister", "x:y", "--name", "a"], "--publisher or --subscriber"),
        (&["deregister", "x:y", "--name", "a", "--all-of", "h"], "cannot be used with"),
        (&["find"], "TOPIC"),
        (&["find", "*"], "domain of a topic can't be `*`"),
        (&["find", "x", "--exact", "--filter"], "cannot be used with"),
        (&["find", "x", "--host", "h"], "--filter"),
        (&["find", "x", "--filter", "--port", "0"], "0"),
        (&["find", "x", "--registrar-timeout", "soon"], "the unit `soon`"),
        (&["list", "--publishers", "--subscribers"], "cannot be used with"),
        (&["list", "--registrar", "host:0"], "can't be 0"),
        (&["list", "x"], "unexpected argument"),
        (&["registrar", "--host", "a b"], "not a host"),
        (&["registrar", "--port", "70000"], "70000"),
    ];
    for (arguments, says) in cases {
        let ended = xmsg(arguments).await;
        assert!(ended.stdout.is_empty() && ended.code == Some(2), "{arguments:?}: {}", ended.stderr);
        ended.failed(2, says);
    }
}

/// A client that registers chooses text that others see on a terminal.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_registered_does_no_harm_to_a_terminal() {
    let (running, address, _) = registrar(&[]).await;
    let bad = "x\x1b[2J\u{7f}\u{9b}\u{202e}\t\ny";
    let arguments = ["register", "a:b", "--name", bad, "--publisher", "--description", bad];
    assert_eq!(ask(&address, &arguments).await, "");
    let table = ask(&address, &["list"]).await;
    let shown = r"x\u{1b}[2J\u{7f}\u{9b}\u{202e}\t\ny";
    assert_eq!(table.matches(shown).count(), 2, "{table}");
    assert!(!table.chars().any(|c| c != '\t' && c != '\n' && xmsg_core::text::is_unsafe(c)), "{table:?}");
    let json = ask(&address, &["list", "--json"]).await;
    assert!(!json.trim_end().chars().any(xmsg_core::text::is_unsafe), "{json:?}");
    let read: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&read["name"], &read["description"]), (&bad.into(), &bad.into()));
    interrupt(running).await;

    // A registrar also chooses the text of its replies.
    let replier = xmsg_zmq::Replier::new(xmsg_zmq::SocketOptions::default());
    let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = endpoint.to_string().strip_prefix("tcp://").unwrap().to_owned();
    tokio::spawn(async move {
        while let Some((path, request)) = replier.recv().await {
            let action = request.frames()[0].clone();
            let reply = [action, "r:registrar".into(), format!("no{bad}").into()];
            let _ = replier.try_reply(&path, reply.into_iter().collect::<xmsg_zmq::Multipart>());
        }
    });
    let ended = xmsg(&["list", "--registrar", &address, "--registrar-timeout", "30s"]).await;
    assert!(ended.stderr.contains(shown) && !ended.stderr.trim_end().contains('\n'), "{}", ended.stderr);
}
