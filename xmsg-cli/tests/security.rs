//! Keys and passwords that `xmsg` makes and uses.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{Running, xmsg};
use xmsg_core::security::read_key_file;
use xmsg_proxy::Proxy;
use xmsg_proxy::security::settings::{Client, MechanismName, Settings};

/// Starts a proxy with this section in its configuration.
async fn proxy(folder: &std::path::Path, settings: &Settings) -> (Proxy, String) {
    let (mechanism, rules) = settings.load(folder).expect("good settings");
    let proxy = Proxy::bind("127.0.0.1:0").security(mechanism, rules).start().await.expect("free ports");
    let address = proxy.address().to_string();
    (proxy, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_and_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut public = Vec::new();
    for name in ["proxy.key", "client.key"] {
        let made = xmsg(&["keygen", &path(name)]).await.text();
        let permissions = std::fs::metadata(path(name)).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, 0o600);
        let key = made.trim().to_owned();
        assert_eq!(read_key_file(path(name).as_ref()).unwrap().public().to_string(), key);
        assert_eq!(xmsg(&["keygen", "--show", &path(name)]).await.text(), made);
        public.push(key);
    }
    xmsg(&["keygen", &path("proxy.key")]).await.failed(1, "exists");

    let client = Client { key: Some(public[1].clone()), ..Client::default() };
    let key_file = Some("proxy.key".into());
    let settings =
        Settings { mechanism: MechanismName::Curve, key_file, clients: vec![client], ..Settings::default() };
    let (_proxy, address) = proxy(folder.path(), &settings).await;
    let key_file = path("client.key");
    let security = ["--proxy", &address, "--connect-timeout", "60s", "--server-key", &public[0]];
    let known = [&security[..], &["--key-file", &key_file]].concat();
    let mut subscriber = Running::start(&[&["sub", "a", "-n", "1", "-v"], &known[..]].concat());
    subscriber.said("subscribed").await;
    xmsg(&[&["pub", "a", "hello"], &known[..]].concat()).await.done();
    assert!(subscriber.end().await.text().contains("hello"));
    for mode in [&["throughput", "-n", "100"][..], &["latency", "-d", "100ms"], &["sync", "-n", "10"]] {
        let words = [&["bench"], mode, &["--warmup", "0", "--patience", "50s", "--fail-on-loss"], &known[..]];
        xmsg(&words.concat()).await.done();
    }

    xmsg(&[&["pub", "a", "hello"], &security[..]].concat()).await.failed(4, "does not let us in");
    xmsg(&["pub", "a", "hello", "--proxy", &address]).await.failed(4, "CURVE");
    std::fs::set_permissions(path("client.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
    xmsg(&[&["pub", "a", "hello"], &known[..]].concat()).await.failed(2, "chmod 600");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_set_and_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let set = async |user: &str, password: &str| {
        let mut running = Running::start(&["passwd", &path("passwords"), user]);
        running.type_in(password.as_bytes()).await;
        running.end().await
    };
    set("alice", "open sesame\n").await.done();
    set("bob", "secret").await.done();
    set("alice", "sesame").await.done();
    set("carol", "").await.failed(2, "no password");
    xmsg(&["passwd", &path("passwords"), "bob", "--delete"]).await.done();
    xmsg(&["passwd", &path("passwords"), "bob", "--delete"]).await.failed(1, "no user \"bob\"");
    let text = std::fs::read_to_string(path("passwords")).unwrap();
    assert!(text.starts_with("alice:$argon2id$") && text.lines().count() == 1, "{text}");

    let settings = Settings {
        mechanism: MechanismName::Plain,
        password_file: Some("passwords".into()),
        clients: vec![Client::default()],
        ..Settings::default()
    };
    let (_proxy, address) = proxy(folder.path(), &settings).await;
    std::fs::write(path("password"), "sesame\n").unwrap();
    std::fs::set_permissions(path("password"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let password_file = path("password");
    let publish = ["pub", "a", "1", "--proxy", &address, "--connect-timeout", "60s"];
    let as_user =
        |user: &'static str| [&publish[..], &["--user", user, "--password-file", &password_file]].concat();
    xmsg(&as_user("alice")).await.done();
    xmsg(&as_user("bob")).await.failed(4, "does not let us in");
    xmsg(&[&publish[..], &["--user", "alice"]].concat()).await.failed(2, "--password-file");
}

/// Missing rights are reported to subscribers and also to publishers, whose messages a proxy drops.
#[tokio::test(flavor = "multi_thread")]
async fn forbidden_topics_are_told_to_whoever_publishes_and_subscribes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let server = xmsg(&["keygen", &path("proxy.key")]).await.text();
    let ours = xmsg(&["keygen", &path("our.key")]).await.text();
    let client = Client {
        key: Some(ours.trim().to_owned()),
        publish: vec!["ok:".to_owned(), "half:".to_owned()],
        subscribe: vec!["ok:".to_owned()],
        ..Client::default()
    };
    let key_file = Some("proxy.key".into());
    let settings =
        Settings { mechanism: MechanismName::Curve, key_file, clients: vec![client], ..Settings::default() };
    let (_proxy, address) = proxy(folder.path(), &settings).await;
    let (server_key, key_file, recording) =
        (format!("--server-key={}", server.trim()), path("our.key"), path("a.xmr"));
    let run = async |arguments: &[&str], timeout: &str| {
        let connect =
            ["--proxy", &address, &server_key, "--key-file", &key_file, "--connect-timeout", timeout];
        let running = Running::start(&[arguments, &connect[..]].concat());
        running.end().await
    };
    // The missing right is reported during publishing, not only at the end.
    for arguments in [
        &["pub", "bad:a", "1"][..],
        &["pub", "bad:a", "1", "-n", "1e12", "--rate", "10"],
        &["pub", "bad:a", "1", "--wait-sub"],
        &["req", "bad:a", "1", "--timeout", "50s"],
    ] {
        let said = format!("not allowed to publish to bad:a: the proxy at {address} gives us no right to");
        run(arguments, "50s").await.failed(4, &said);
    }
    for (arguments, topic) in [
        (&["sub", "ok:a", "bad:a"][..], "bad:a"),
        (&["sub", ""], "everything"),
        (&["reply", "bad:a", "1"], "bad:a"),
        (&["record", &recording, "bad:"], "bad:"),
        (&["ping", "-n", "1"], "xmsg:ping:"),
        (&["req", "ok:a", "1", "--timeout", "3s"], "ret:"),
    ] {
        run(arguments, "3s").await.failed(4, &format!("not allowed to subscribe to {topic}"));
    }
    // A bench needs both rights. It reports a missing one before it measures, and not as lost messages.
    let bench = async |arguments: &[&str], verb: &str, topic: &str| {
        let ended = run(&[&["bench"], arguments].concat(), "50s").await;
        assert!(ended.stdout.is_empty(), "{arguments:?}");
        ended.failed(4, &format!("not allowed to {verb} to {topic}: "));
    };
    bench(&["-n", "10", "--topic", "bad"], "publish", "bad:").await;
    bench(&["-n", "10", "--topic", "half"], "subscribe", "half:").await;
    bench(&["latency", "--topic", "half"], "subscribe", "half:").await;
    bench(&["subscribe", "--topic", "half"], "subscribe", "half:").await;
    bench(&["subscribe", "--topic", "bad", "--on-one-connection", "10"], "publish", "bad:").await;
    bench(&["sync", "-n", "10", "--topic", "ok"], "publish", "ret:").await;
    let throughput =
        ["bench", "-n", "10", "--warmup", "0", "--topic", "ok", "--fail-on-loss", "--patience=50s"];
    run(&throughput, "50s").await.done();
    run(&["bench", "connect", "-n", "2"], "50s").await.done();

    run(&["pub", "ok:a", "1"], "50s").await.done();
    run(&["sub", "ok:a", "--timeout", "50ms"], "50s").await.done();
}

/// The error names the options for the mechanism that the proxy requires.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_wants_is_told_as_options() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let server = xmsg(&["keygen", &path("proxy.key")]).await.text();
    let mut passwd = Running::start(&["passwd", &path("users"), "me"]);
    passwd.type_in(b"open sesame\n").await;
    passwd.end().await.done();
    let curve = Settings {
        mechanism: MechanismName::Curve,
        key_file: Some("proxy.key".into()),
        clients: vec![Client::default()],
        ..Settings::default()
    };
    let plain = Settings {
        mechanism: MechanismName::Plain,
        password_file: Some("users".into()),
        clients: vec![Client::default()],
        ..Settings::default()
    };
    let (_curve, curve) = proxy(folder.path(), &curve).await;
    let (_plain, plain) = proxy(folder.path(), &plain).await;
    let (_open, open) = common::proxy().await;
    let server_key = format!("--server-key={}", server.trim());
    for (address, options, wants, add) in [
        (
            &curve,
            &[][..],
            "it wants security CURVE, not NULL",
            "Add --server-key KEY, its public key, and --key-file FILE",
        ),
        (&plain, &[], "it wants security PLAIN, not NULL", "Add --user NAME and --password-file FILE"),
        (&plain, &[&*server_key], "it wants security PLAIN, not CURVE", "Add --user NAME"),
        (&open, &[&*server_key], "it wants security NULL, not CURVE", "leave out keys and users"),
    ] {
        for command in [&["pub", "a", "1"][..], &["sub", "a"], &["ping", "-n", "1"]] {
            let ended = xmsg(&[command, &["--proxy", address], options].concat()).await;
            assert!(ended.stderr.contains(add), "{}", ended.stderr);
            ended.failed(4, &format!("the proxy at {address} does not let us in: {wants}"));
        }
    }
    // The error names a variable that selects the wrong mechanism.
    let variable = [("XMSG_SERVER_KEY", server.trim())];
    let ended = Running::start_with(&variable, &["ping", "-n", "1", "--proxy", &open]).end().await;
    ended.failed(4, "Taken from: XMSG_SERVER_KEY in the environment.");
}
