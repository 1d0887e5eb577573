//! `xmsg connections`: lists the connections of a proxy, and ends one of them.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod common;

use common::{Running, proxy, publish, within, xmsg};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xmsg_proxy::Proxy;
use xmsg_proxy::admin::{Admin, Sources, Token};

const TOKEN: &str = "token-0123456789abcdef";

/// Serves HTTP for this proxy, and returns the address.
fn serve(proxy: &Proxy, token: Option<&str>) -> (Admin, String) {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sources = Sources { proxy: Some(proxy.monitor()), ..Sources::default() };
    let token = token.map(|token| Token::new(token).unwrap());
    let admin = Admin::start(socket, "xmsg-proxy", sources, token, Value::Null).unwrap();
    let address = admin.address().to_string();
    (admin, address)
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

/// Whoever answers in place of a proxy can't make a command use more memory than it has: each of these
/// answers would take gigabytes as values.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_many_small_values_ends_no_command() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let many = |begin: &str, element: &str| format!("{{{begin}:[{}0]}}", element.repeat(3 << 20));
    let answers = [many("\"x\"", "{\"\":0},"), many("\"connections\"", "{},")];
    // The address space is limited to 800 MiB.
    let limited = r#"ulimit -v 819200; exec "$0" "$@""#;
    for (status, answer, command, code, says) in [
        ("200 OK", 0, &["info"][..], 0, ""),
        ("200 OK", 0, &["info", "--json"], 0, ""),
        ("200 OK", 0, &["connections"], 1, "does not answer as a proxy does"),
        ("200 OK", 1, &["connections"], 1, "does not answer as a proxy does"),
        ("200 OK", 0, &["connect", "list"], 1, "does not answer as it should"),
        ("403 Forbidden", 0, &["info"], 4, "refuses it"),
        ("500 Internal Server Error", 1, &["connections"], 1, "500"),
    ] {
        let mut asking = tokio::process::Command::new("sh");
        asking.args(["-c", limited, env!("CARGO_BIN_EXE_xmsg")]).args(command).args(["--admin", &address]);
        asking.env("XMSG_CONFIG", "/dev/null").kill_on_drop(true);
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            let (body, head) = (&answers[answer], format!("HTTP/1.1 {status}\r\nContent-Length"));
            stream.write_all(format!("{head}: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
        };
        let (ended, ()) = within("the command", async { tokio::join!(asking.output(), answering) }).await;
        let ended = ended.unwrap();
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{command:?}: {told}");
        assert!(told.contains(says), "{command:?}: {told}");
        if command.contains(&"--json") {
            assert_eq!(ended.stdout.strip_suffix(b"\n"), Some(answers[answer].as_bytes()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_found_in_the_list_and_ended() {
    let (proxy, address) = proxy().await;
    let (_admin, admin) = serve(&proxy, Some(TOKEN));
    let good = file(&format!("{TOKEN}\n"));
    let variables = [("XMSG_ADMIN", &*admin), ("XMSG_ADMIN_TOKEN_FILE", good.path().to_str().unwrap())];
    let ask = async |arguments: &[&str]| {
        let arguments = [&["connections"], arguments].concat();
        Running::start_with(&variables, &arguments).end().await
    };
    assert_eq!(ask(&[]).await.text(), "");

    let mut subscriber = Running::subscribe(&address, &["a"]).await;
    let witness = Running::subscribe(&address, &["a", "-n", "2"]).await;
    publish(&address, &["a", "x"], b"").await;
    let listed = ask(&["--json", "--sort", "connected"]).await.text();
    let rows: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let subscribers: Vec<_> = rows.iter().filter(|row| row["side"] == "subscriber").collect();
    assert_eq!(subscribers.len(), 2, "{listed}");
    // The first subscriber has been connected longest.
    let (first, id) = (subscribers[0], subscribers[0]["id"].to_string());
    assert!(first["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{listed}");
    assert!(first["connected_s"].as_f64() > Some(0.0) && first["messages"].is_u64(), "{listed}");
    assert_eq!((&first["queued_messages"], &first["dropped_messages"]), (&0.into(), &0.into()));
    let lines = ask(&[]).await.text();
    let line = lines.lines().find(|line| line.split('\t').nth(1) == Some(&id)).unwrap();
    assert!(line.starts_with("subscriber\t") && line.contains(first["peer"].as_str().unwrap()), "{lines}");

    let ended = ask(&["end", &id]).await;
    assert!(
        ended.stderr.contains(&format!("connection {id} of the subscriber 127.0.0.1:")),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.done(), b"");
    // The client reconnects, as another connection. All other connections stay.
    subscriber.said("connected to").await;
    ask(&["end", &id]).await.failed(1, "no publisher or subscriber has this number");
    publish(&address, &["a", "y"], b"").await;
    assert_eq!(witness.end().await.text(), "a x\na y\n");
    let left = ask(&["--json"]).await.text();
    let other = left.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let other = other.into_iter().find(|row| row["side"] == "subscriber").unwrap()["id"].to_string();
    let told: Value = serde_json::from_str(&ask(&["end", &other, "--json"]).await.text()).unwrap();
    assert_eq!((&told["id"], &told["side"]), (&other.parse::<u64>().unwrap().into(), &"subscriber".into()));
    subscriber.signal("INT");
    assert_eq!(subscriber.end().await.code, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do() {
    let (proxy, _) = proxy().await;
    let (_admin, admin) = serve(&proxy, Some(TOKEN));
    let (wrong, bad) = (file("another-0123456789abcdef"), file("two words\n"));
    let path = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
    for command in [&["connections"][..], &["connections", "end", "1"]] {
        let ask = async |more: &[&str]| xmsg(&[command, &["--admin", &admin], more].concat()).await;
        ask(&[]).await.failed(4, "--admin-token-file");
        ask(&["--admin-token-file", &path(&wrong)]).await.failed(4, &path(&wrong));
        ask(&["--admin-token-file", &path(&bad)]).await.failed(2, "visible ASCII");
        ask(&["--admin-token-file", "/does/not/exist"]).await.failed(1, "/does/not/exist");
    }
    // Without a token, everybody on this machine may list connections, and nobody may end one.
    let (open, address) = serve(&proxy, None);
    assert_eq!(xmsg(&["connections", "--admin", &format!("http://{address}/")]).await.done(), b"");
    let good = file(TOKEN);
    let end = ["connections", "end", "1", "--admin", &address, "--admin-token-file", &path(&good)];
    xmsg(&end).await.failed(4, "--admin-token-file, XMSG_PROXY_ADMIN_TOKEN_FILE");
    within("the end of the server", open.stop()).await;
    xmsg(&["connections", "--admin", &address]).await.failed(3, "xmsg-proxy --admin");
    xmsg(&["connections", "--admin", "https://a:1"]).await.failed(2, "no TLS");
    xmsg(&["connections", "--admin", "a:70000"]).await.failed(2, "HOST:PORT");
    xmsg(&["connections", "end", "x"]).await.failed(2, "not the number of a connection");
    xmsg(&["connections", "--sort", "peer", "end", "1"]).await.failed(2, "--sort");
}

/// An answer can neither send control sequences to the terminal nor block the command.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_answer_does_no_harm() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let row =
        r#"{"kind":"publisher","id":1,"peer":"\u001b[2J\tx","connected_s":1,"messages":2,"principal":null}"#;
    let list = format!(r#"{{"connections":[{row}]}}"#);
    let mut given = Vec::new();
    // Upstreams, publishers and subscribers are asked for one after another.
    let none = r#"{"connections":[]}"#;
    for body in [none, &*list, none, "\x1b[2J", "{}", r#"{"connections":[{}]}"#] {
        given.push(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }
    given.push("HTTP/1.1 500 Oh\r\nContent-Length: 5\r\n\r\na\x1b[2J".to_owned());
    given.push("SSH-2.0-x\r\n".to_owned());
    given.push("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{".to_owned());
    let server = tokio::spawn(async move {
        for answer in given {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let ask = async || xmsg(&["connections", "--admin", &address]).await;
    let shown = ask().await.text();
    assert!(shown.starts_with("publisher\t1\t\\u{1b}[2J\\tx\t1.0s\t2\t"), "{shown:?}");
    for says in
        ["something else", "something else", "something else", "500", "gives no answer", "gives no answer"]
    {
        ask().await.failed(1, says);
    }
    server.await.unwrap();
}

/// If the control requests of the proxy cannot be used, its HTTP server returns the same information.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_looked_at_over_http() {
    let (proxy, address) = proxy().await;
    let (_admin, admin) = serve(&proxy, Some(TOKEN));
    let good = file(&format!("{TOKEN}\n"));
    let variables = [("XMSG_ADMIN", &*admin), ("XMSG_ADMIN_TOKEN_FILE", good.path().to_str().unwrap())];
    let _subscriber = Running::subscribe(&address, &["a"]).await;
    let info = Running::start_with(&variables, &["info"]).end().await.text();
    assert!(info.contains(&format!("at http://{admin}")) && info.contains("subscribers\t1, "), "{info}");
    let once = Running::start_with(&variables, &["top", "--once"]).end().await.text();
    assert!(once.starts_with(&format!("http://{admin}\n")) && once.contains("subscriber"), "{once}");
    let without = Running::start_with(&[("XMSG_ADMIN", &admin)], &["info"]).end().await;
    without.failed(4, "wants its token");
}
