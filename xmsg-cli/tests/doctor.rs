//! `xmsg doctor`: what it finds, what it says to do, and its exit code.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{Running, proxy, xmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xmsg_proxy::Proxy;
use xmsg_proxy::admin::{Admin, Sources, Token};
use xmsg_proxy::registrar::Registrar;
use xmsg_proxy::security::settings::{Client, MechanismName, Settings};

/// Returns the checks with this name, each with its level, what was found, and the advice.
fn checks<'a>(document: &'a Value, name: &str) -> Vec<(&'a str, &'a str, &'a str)> {
    let all = document["checks"].as_array().unwrap().iter().filter(|check| check["check"] == name);
    let text = |check: &'a Value, key: &str| check[key].as_str().unwrap_or_default();
    all.map(|check| (text(check, "level"), text(check, "found"), text(check, "advice"))).collect()
}

/// Returns the only check with this name.
#[track_caller]
fn check<'a>(document: &'a Value, name: &str) -> (&'a str, &'a str, &'a str) {
    let all = checks(document, name);
    let [one] = &all[..] else { panic!("{name}: {all:?} in {document}") };
    *one
}

/// Runs the command with these arguments and variables. Returns its document, and its exit code.
async fn doctor(variables: &[(&str, &str)], arguments: &[&str]) -> (Value, Option<i32>) {
    let arguments = [&["doctor", "--json", "--connect-timeout", "30s"], arguments].concat();
    let ended = Running::start_with(variables, &arguments).end().await;
    let text = String::from_utf8(ended.stdout).unwrap();
    let document =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{}", ended.stderr));
    (document, ended.code)
}

/// Returns an address at which nobody listens.
fn nobody() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_well_has_no_problem() {
    let (_proxy, address) = proxy().await;
    let registrar = Registrar::bind("127.0.0.1:0").start().await.unwrap();
    let at = registrar.address().to_string();
    let (document, code) = doctor(&[], &["--proxy", &address, "--registrar", &at]).await;
    assert_eq!((code, &document["problems"]), (Some(0), &json!(0)), "{document}");
    for name in ["version", "name", "publishers", "subscribers", "control", "proxy", "proxy version", "clock"]
    {
        assert_eq!(check(&document, name).0, "ok", "{name}: {document}");
    }
    assert!(check(&document, "proxy").1.starts_with(&address), "{document}");
    assert!(check(&document, "proxy version").1.contains(env!("CARGO_PKG_VERSION")), "{document}");
    assert!(check(&document, "registrar").1.starts_with(&at), "{document}");
    assert_eq!(check(&document, "registrar").0, "ok", "{document}");
    assert!(check(&document, "security").1.starts_with("NULL"), "{document}");
    assert!(check(&document, "descriptors").1.contains("for each process"), "{document}");

    let text = xmsg(&["doctor", "--proxy", &address, "--registrar", &at]).await.text();
    assert!(text.lines().all(|line| line.starts_with("OK ") || line.starts_with("WARNING ")), "{text}");
    assert!(text.contains(&format!("{address} answers")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_a_port_is_a_problem_and_what_is_optional_is_none() {
    let gone = nobody();
    let (document, code) = doctor(&[], &["--proxy", &gone]).await;
    assert_eq!(code, Some(1), "{document}");
    for name in ["publishers", "subscribers", "control"] {
        let (level, found, advice) = check(&document, name);
        assert_eq!(level, "problem", "{document}");
        assert!(found.contains("tcp://127.0.0.1:") && advice.contains("xmsg-proxy"), "{document}");
    }
    assert!(checks(&document, "proxy").is_empty(), "{document}");

    // What was asked for has to be there.
    let (_proxy, address) = proxy().await;
    let arguments = ["--proxy", &address, "--registrar", &gone, "--admin", &gone];
    let (document, code) = doctor(&[], &arguments).await;
    assert_eq!((code, &document["problems"]), (Some(1), &json!(2)), "{document}");
    assert_eq!(check(&document, "registrar").0, "problem", "{document}");
    assert_eq!(check(&document, "http").0, "problem", "{document}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_port_is_called_by_what_it_is() {
    let (proxy, _) = proxy().await;
    let wrong = format!("127.0.0.1:{}", proxy.address().publish_port() + 1);
    let (document, code) = doctor(&[], &["--proxy", &wrong]).await;
    assert_eq!(code, Some(1), "{document}");
    let (level, found, advice) = check(&document, "publishers");
    assert_eq!(level, "problem", "{document}");
    assert!(found.contains("that is a port for subscribers"), "{document}");
    assert!(advice.contains("the first of the three ports"), "{document}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_name_is_a_problem() {
    let (document, code) = doctor(&[], &["--proxy", "no-such-host.invalid"]).await;
    assert_eq!(code, Some(1), "{document}");
    let (level, found, _) = check(&document, "name");
    assert!(level == "problem" && found.contains("no-such-host.invalid is not known"), "{document}");
    assert!(checks(&document, "publishers").is_empty(), "nothing to connect to: {document}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_checked_with_their_permissions() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let server = xmsg(&["keygen", &path("proxy.key")]).await.text();
    let client = xmsg(&["keygen", &path("me.key")]).await.text();
    let settings = Settings {
        mechanism: MechanismName::Curve,
        key_file: Some("proxy.key".into()),
        clients: vec![Client { key: Some(client.trim().to_owned()), ..Client::default() }],
        ..Settings::default()
    };
    let (mechanism, rules) = settings.load(folder.path()).unwrap();
    let proxy = Proxy::bind("127.0.0.1:0").security(mechanism, rules).start().await.unwrap();
    let address = proxy.address().to_string();
    let (key_file, server) = (path("me.key"), server.trim());
    let with_keys = ["--proxy", &address, "--server-key", server, "--key-file", &key_file];

    let (document, code) = doctor(&[], &with_keys).await;
    assert_eq!(code, Some(0), "{document}");
    let (_, found, _) = check(&document, "security");
    assert!(found.starts_with("CURVE") && found.contains(client.trim()), "{document}");
    // Without the right `inspect`, the version is not known.
    assert_eq!(check(&document, "proxy version").0, "warning", "{document}");
    assert!(check(&document, "proxy version").2.contains("inspect"), "{document}");

    // A proxy with keys refuses whoever has none.
    let (document, code) = doctor(&[], &["--proxy", &address]).await;
    assert_eq!((code, check(&document, "publishers").0), (Some(1), "problem"), "{document}");
    assert!(check(&document, "publishers").2.contains("keys"), "{document}");

    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (document, code) = doctor(&[], &with_keys).await;
    assert_eq!(code, Some(1), "{document}");
    let (level, found, _) = check(&document, "security");
    assert!(level == "problem" && found.contains("chmod 600"), "{document}");
    assert!(checks(&document, "publishers").is_empty(), "nothing is tried without keys: {document}");
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_are_checked_with_the_files_that_they_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("contexts.toml");
    let config = [("XMSG_CONFIG", file.to_str().unwrap())];
    let (_proxy, address) = proxy().await;
    let good = format!(
        "selected = \"lab\"\n[contexts.lab]\nproxy = \"{address}\"\n\
         [contexts.old]\nserver-key = \"x\"\nkey-file = \"gone.key\"\n"
    );
    std::fs::write(&file, good).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (document, code) = doctor(&config, &[]).await;
    assert_eq!(code, Some(0), "{document}");
    let found = checks(&document, "contexts");
    assert!(found[0].0 == "ok" && found[0].1.contains("2 contexts") && found[0].1.contains("in use: lab"));
    assert!(found[1].0 == "warning" && found[1].2.contains("chmod 600"), "{document}");
    assert!(found[2].0 == "warning" && found[2].1.contains("gone.key"), "{document}");
    assert!(check(&document, "name").1.contains("the context lab"), "{document}");

    std::fs::write(&file, "[contexts.lab]\nproxi = \"a\"\n").unwrap();
    let (document, code) = doctor(&config, &[]).await;
    assert_eq!(code, Some(1), "{document}");
    assert!(checks(&document, "contexts")[0].1.contains("proxi"), "{document}");
}

/// The HTTP server tells whether it is ready, whether the token is right, and what time it is.
#[tokio::test(flavor = "multi_thread")]
async fn the_http_server_tells_the_time_and_wants_its_token() {
    let file = |text: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        file
    };
    let (token, wrong) = (file("token-0123456789abcdef\n"), file("token-fedcba9876543210\n"));
    let (proxy, address) = proxy().await;
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sources = Sources { proxy: Some(proxy.monitor()), ..Sources::default() };
    let wanted = Some(Token::new("token-0123456789abcdef").unwrap());
    let server = Admin::start(socket, "xmsg-proxy", sources, wanted, Value::Null).unwrap();
    let http = server.address().to_string();
    let given = ["--proxy", &address, "--admin", &http, "--admin-token-file"];
    let (document, code) = doctor(&[], &[&given[..], &[token.path().to_str().unwrap()]].concat()).await;
    assert_eq!(code, Some(0), "{document}");
    assert!(check(&document, "http").1.ends_with("is ready"), "{document}");
    assert!(check(&document, "clock").1.ends_with("agree"), "{document}");

    let (document, code) = doctor(&[], &[&given[..], &[wrong.path().to_str().unwrap()]].concat()).await;
    assert_eq!((code, check(&document, "token").0), (Some(1), "problem"), "{document}");
}

/// A server whose clock is years behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_is_told() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let answer =
                "HTTP/1.1 200 OK\r\nDate: Wed, 01 Jan 2020 00:00:00 GMT\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let (_proxy, address) = proxy().await;
    let (document, code) = doctor(&[], &["--proxy", &address, "--admin", &http]).await;
    assert_eq!(code, Some(0), "{document}");
    let (level, found, advice) = check(&document, "clock");
    assert!(level == "warning" && found.ends_with("s apart") && advice.contains("time server"), "{document}");
    server.abort();
}
