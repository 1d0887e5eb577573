//! Keys and passwords: made by `xmsg`, used by `xmsg`.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{Running, xmsg};
use xmsg_core::security::read_key_file;
use xmsg_proxy::Proxy;
use xmsg_proxy::security::settings::{Client, MechanismName, Settings};

/// A proxy with this section in its configuration.
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
