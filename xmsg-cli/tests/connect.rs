//! `xmsg connect`: manages the outgoing connections and channels of a proxy through its HTTP server.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod common;

use common::terminal::{Terminal, keep};
use common::{Ended, Running, proxy, within, xmsg};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use xmsg_connect::{Registry, RegistryOptions};
use xmsg_core::Message;
use xmsg_proxy::Proxy;
use xmsg_proxy::admin::{Admin, Connect, Sources, Token};
use xmsg_zmq::{Pull, SocketOptions};

const TOKEN: &str = "token-0123456789abcdef";

/// A proxy with a registry, an HTTP server, and a folder for files.
struct Site {
    _proxy: Proxy,
    registry: Registry,
    _admin: Admin,
    address: String,
    folder: TempDir,
}

impl Site {
    async fn new() -> Self {
        let (proxy, _) = proxy().await;
        let folder = tempfile::tempdir().unwrap();
        let options = RegistryOptions::new(folder.path().join("state"), proxy.address().clone());
        let registry = Registry::open(options).await.unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = Connect::new(registry.clone(), Handle::current());
        let sources = Sources { proxy: Some(proxy.monitor()), connect: Some(connect), ..Sources::default() };
        let token = Some(Token::new(TOKEN).unwrap());
        let admin = Admin::start(socket, "xmsg-proxy", sources, token, Value::Null).unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, TOKEN).unwrap();
        std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let address = admin.address().to_string();
        Self { _proxy: proxy, registry, _admin: admin, address, folder }
    }

    fn start(&self, arguments: &[&str]) -> Running {
        let token = self.path("token");
        let variables = [("XMSG_ADMIN", &*self.address), ("XMSG_ADMIN_TOKEN_FILE", &*token)];
        Running::start_with(&variables, &[&["connect"], arguments].concat())
    }

    async fn ask(&self, arguments: &[&str]) -> Ended {
        self.start(arguments).end().await
    }

    /// Runs a command and returns its JSON output, one object per line.
    async fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.ask(&[arguments, &["--json"]].concat()).await.text();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Runs a command that must succeed and say this.
    async fn said(&self, arguments: &[&str], says: &str) {
        let ended = self.ask(arguments).await;
        assert!(ended.stderr.contains(says), "{arguments:?}: {}", ended.stderr);
        ended.done();
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn file(&self, text: &str) -> String {
        let path = self.path("definitions.toml");
        std::fs::write(&path, text).unwrap();
        path
    }
}

async fn pull() -> (Pull, String) {
    let pull = Pull::new(SocketOptions::default());
    let endpoint = pull.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    (pull, endpoint.to_string())
}

async fn received(pull: &Pull) -> Message {
    let message = within("a message", pull.recv()).await.unwrap();
    let [topic, meta, data] = <[_; 3]>::try_from(message.frames().to_vec()).unwrap();
    Message::from_frames(topic, meta, data)
}

fn push_to(name: &str, address: &str) -> String {
    format!(
        "[[outgoing]]\nname = \"{name}\"\nkind = \"zmq\"\nsocket_type = \"PUSH\"\naddress = \"{address}\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_added_shown_changed_and_deleted() {
    let site = Site::new().await;
    let (pull, address) = pull().await;
    assert_eq!(site.ask(&["list"]).await.text(), "");
    let both = format!(
        "[[channel]]\nname = \"feed\"\nkind = \"zmq\"\nsocket_type = \"PULL\"\nsocket_method = \"bind\"\naddress = \"ipc://{}\"\n\
         target = \"outgoing:feed\"\n{}",
        site.path("in"),
        push_to("feed", &address)
    );
    site.said(&["add", &site.file(&both)], "outgoing \"feed\" was added\nxmsg: channel \"feed\" was added")
        .await;
    let listed = site.json(&["list"]).await;
    let sorts: Vec<_> = listed
        .iter()
        .map(|entry| (entry["sort"].as_str().unwrap(), entry["name"].as_str().unwrap()))
        .collect();
    assert_eq!(sorts, [("outgoing", "feed"), ("channel", "feed")]);
    let text = site.ask(&["list", "--sort", "channel"]).await.text();
    assert!(text.starts_with("channel\tfeed\t") && text.lines().count() == 1, "{text}");

    // The name alone is ambiguous.
    site.ask(&["show", "feed"]).await.failed(2, "choose one with --sort: outgoing, channel");
    let text = site.ask(&["show", "feed", "--sort", "outgoing"]).await.text();
    assert!(text.contains("definition.address") && text.contains(&address), "{text}");
    let shown = site.json(&["show", "feed", "--sort", "channel"]).await;
    assert_eq!(shown[0]["definition"]["target"], "outgoing:feed");
    site.said(&["rename", "feed", "in", "--sort", "channel"], "channel \"feed\" is \"in\" now").await;

    site.said(&["send", "feed", "17 pieces", "--confirm", "--timeout", "1m"], "the peer has it").await;
    let message = received(&pull).await;
    assert_eq!((message.topic().to_string(), &message.data()[..]), ("feed".into(), &b"17 pieces"[..]));
    assert_eq!(message.mime_type().unwrap(), "binary/bytes");
    let told = site.json(&["send", "feed", "1.5", "--topic", "daq:t", "--mime", "binary/double"]).await;
    assert!(told[0]["id"].is_string() && told[0]["confirmed"] == false, "{told:?}");
    let message = received(&pull).await;
    assert_eq!((message.topic().to_string(), message.value::<f64>().unwrap()), ("daq:t".into(), 1.5));
    let mut sending = site.start(&["send", "feed", "--mime", "text/plain"]);
    sending.stdin.take().unwrap().write_all(b"from a pipe\n").await.unwrap();
    sending.end().await.done();
    assert_eq!(&received(&pull).await.data()[..], b"from a pipe\n");
    let text = site.ask(&["ping", "feed"]).await.text();
    assert!(text.starts_with("outgoing feed is reached in "), "{text}");

    site.said(&["disable", "feed"], "outgoing \"feed\" rests now").await;
    site.said(&["send", "feed", "later"], "was accepted").await;
    let edited = push_to("feed", &address) + "is_active = false\nlazy = true\n";
    site.said(&["edit", "feed", &site.file(&edited)], "outgoing \"feed\" was changed").await;
    site.ask(&["rm", "feed"]).await.failed(1, "outgoing \"feed\" is used by channel \"in\"");
    site.said(&["rm", "in"], "channel \"in\" was deleted").await;
    site.ask(&["rm", "feed"]).await.failed(1, "still has 1 messages");
    site.said(&["enable", "feed"], "is at work now").await;
    site.said(&["rm", "feed", "--drain", "1m"], "outgoing \"feed\" was deleted").await;
    assert_eq!(&received(&pull).await.data()[..], b"later");
    site.registry.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_go_out_and_come_in_again() {
    let site = Site::new().await;
    let (_pull, address) = pull().await;
    let text = push_to("a", &address) + "lazy = true\n";
    site.ask(&["add", &site.file(&text)]).await.done();
    let exported = site.ask(&["export"]).await.text();
    assert!(exported.contains("name = \"a\"") && exported.contains("[spool]"), "{exported}");
    assert_eq!(site.json(&["export"]).await[0]["outgoing"][0]["lazy"], true);
    let other = exported.replace("\"a\"", "\"b\"");
    site.said(
        &["import", &site.file(&other)],
        "imported: 0 connections, 1 outgoing connection, 0 channels, 0 durable subscriptions, 0 federations",
    )
    .await;
    assert_eq!(site.json(&["list"]).await[0]["name"], "b");
    // The definitions may come from a pipe.
    let mut importing = site.start(&["import", "-", "--json"]);
    importing.stdin.take().unwrap().write_all(exported.as_bytes()).await.unwrap();
    assert_eq!(
        importing.end().await.text(),
        "{\"channels\":0,\"connections\":0,\"durables\":0,\"federations\":0,\"outgoing\":1}\n"
    );
    assert_eq!(site.json(&["list"]).await[0]["name"], "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_where_and_what_to_do() {
    let site = Site::new().await;
    let (_pull, address) = pull().await;
    // All or none.
    let two = push_to("a", &address) + &push_to("b", "udp://x");
    site.ask(&["add", &site.file(&two)]).await.failed(1, "nothing of ");
    assert_eq!(site.ask(&["list"]).await.text(), "");
    site.ask(&["add", &site.file(&push_to("a", &address))]).await.done();
    site.ask(&["add", &site.file(&push_to("a", &address))])
        .await
        .failed(1, "outgoing \"a\" is there already");
    site.ask(&["add", &site.file("[[outgoing]]\nnam = 1\n")]).await.failed(1, "unknown field `nam`");
    site.ask(&["add", &site.file("a = \n")]).await.failed(1, "definitions.toml, line 1: ");
    site.ask(&["edit", "a", &site.file(&two)]).await.failed(1, "has 2 entries: give one");
    site.ask(&["import", &site.file("[[outgoing]]\n")]).await.failed(1, "all is as it was");
    site.ask(&["show", "none"]).await.failed(1, "`xmsg connect list`");
    site.ask(&["send", "none", "x"]).await.failed(1, "there is no outgoing \"none\"");
    site.ask(&["send", "a", "x", "--routing-key", "k"]).await.failed(1, "no exchange, routing key");
    // The port is bound, but nothing accepts connections.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("tcp://{}", silent.local_addr().unwrap());
    site.ask(&["add", &site.file(&push_to("stuck", &nobody))]).await.done();
    site.ask(&["ping", "stuck", "--timeout", "100ms"]).await.failed(27, "has not answered within");
    site.ask(&["send", "stuck", "x", "--confirm", "--timeout", "100ms"])
        .await
        .failed(27, "has not confirmed");
    site.said(&["rm", "stuck", "--purge"], "was deleted").await;
    let bound = push_to("bound", &format!("ipc://{}", site.path("bound"))) + "socket_method = \"bind\"\n";
    site.ask(&["add", &site.file(&bound)]).await.done();
    site.ask(&["ping", "bound"]).await.failed(3, "it is ");

    // Requests without a valid token fail.
    let wrong = site.file("another-0123456789abcdef");
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for arguments in [&["list"][..], &["rm", "a", "--purge"], &["send", "a", "x"], &["export"]] {
        let ask = async |more: &[&str]| {
            xmsg(&[&["connect"], arguments, &["--admin", &*site.address], more].concat()).await
        };
        ask(&[]).await.failed(4, "--admin-token-file");
        ask(&["--admin-token-file", &wrong]).await.failed(4, "does not take the token");
    }
    // The HTTP server of this proxy has no registry.
    let (proxy, _) = proxy().await;
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sources = Sources { proxy: Some(proxy.monitor()), ..Sources::default() };
    let admin = Admin::start(socket, "xmsg-proxy", sources, None, Value::Null).unwrap();
    let without = admin.address().to_string();
    xmsg(&["connect", "list", "--admin", &without]).await.failed(1, "enable them in the settings");
}

/// Starts a server that answers one request after another with these answers. Returns its address and the
/// requests.
async fn scripted(answers: Vec<String>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0, "the request is cut off");
            }
            let request = String::from_utf8(request).unwrap();
            asked.push(request.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned());
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
        asked
    });
    (address, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_sent_again_and_deleted() {
    let letters = r#"{"dead":[{"sequence":7,"reason":"no\u001b[2J queue","headers":{}},{"sequence":9,"reason":"old","headers":
        {"x-death":"[{\"queue\":\"work\",\"reason\":\"rejected\",\"count\":2},{\"queue\":\"wait\",\"reason\":\"expired\",\"count\":1}]"}}]}"#;
    let one = r#"{"revived":1}"#;
    for (arguments, answers, asked, writes) in [
        (
            &["dead", "a"][..],
            &[letters][..],
            &["GET /connect/outgoing/a/dead?after=0&limit=1000"][..],
            "7\tno\\u{1b}[2J queue\t-\n9\told\trejected in work (2 times), then expired in wait (1 time)\n",
        ),
        (
            &["dead", "a", "--revive", "7", "--json"],
            &[one],
            &["POST /connect/outgoing/a/dead/7/revive"],
            "{\"revived\":1}\n",
        ),
        (
            &["dead", "a", "--revive-all", "--json"],
            &[letters, one, one],
            &[
                "GET /connect/outgoing/a/dead?after=0&limit=1000",
                "POST /connect/outgoing/a/dead/7/revive",
                "POST /connect/outgoing/a/dead/9/revive",
            ],
            "{\"revived\":2}\n",
        ),
        (
            &["dead", "a", "--discard", "7", "--json"],
            &[r#"{"discarded":1}"#],
            &["DELETE /connect/outgoing/a/dead?sequence=7"],
            "{\"discarded\":1}\n",
        ),
        (
            &["dead", "a", "--discard-all", "--json"],
            &[r#"{"discarded":2}"#],
            &["DELETE /connect/outgoing/a/dead"],
            "{\"discarded\":2}\n",
        ),
    ] {
        let (address, serving) = scripted(answers.iter().map(|answer| (*answer).to_owned()).collect()).await;
        let ended = xmsg(&[&["connect"], arguments, &["--admin", &*address]].concat()).await;
        assert_eq!(ended.text(), writes, "{arguments:?}");
        assert_eq!(within("what was asked", serving).await.unwrap(), asked);
    }
}

/// A table is drawn once all of its rows are there, so it has a limit. JSON is written page by page.
#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_dead_letters_is_listed_in_bounded_memory() {
    let page = |first: usize| {
        let letters: Vec<_> = (first..first + 1000)
            .map(|sequence| json!({ "sequence": sequence, "reason": "r", "headers": {} }))
            .collect();
        json!({ "dead": letters }).to_string()
    };
    let pages = || (0..11).map(|number| page(1 + 1000 * number)).collect::<Vec<_>>();
    let (address, serving) = scripted(pages()).await;
    let ended = xmsg(&["connect", "dead", "a", "--admin", &address]).await;
    assert!(ended.stderr.contains("only the oldest 10000 are shown"), "{}", ended.stderr);
    assert_eq!(ended.text().lines().count(), 10_000);
    assert_eq!(within("what was asked", serving).await.unwrap().len(), 11);

    // A server that repeats its last page is asked no more.
    let (address, serving) = scripted([pages(), vec![page(10_001)]].concat()).await;
    let ended = xmsg(&["connect", "dead", "a", "--json", "--admin", &address]).await;
    assert_eq!(ended.text().lines().count(), 12_000);
    let asked = within("what was asked", serving).await.unwrap();
    assert_eq!(asked.last().unwrap(), "GET /connect/outgoing/a/dead?after=11000&limit=1000");
}

/// An answer can neither send control sequences to the terminal nor block the command.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_answer_does_no_harm() {
    let entry =
        r#"{"definition":{"name":"a\u001b[2J","address":"\u009b"},"link":{"state":"\u001b]0;x"},"spool":{}}"#;
    for (arguments, answers) in [
        (&["list"][..], vec![format!(r#"{{"outgoing":[{entry}],"orphans":["\u001b[2J"]}}"#)]),
        (&["list", "--json"], vec![format!(r#"{{"outgoing":[{entry}]}}"#)]),
        (&["show", "a", "--sort", "outgoing"], vec![entry.to_owned()]),
        (&["export"], vec!["a = '\u{9b}\u{202e}'".to_owned()]),
        (&["export"], vec!["\x1b[2J".to_owned()]),
        (&["list"], vec!["\x1b[2J".to_owned()]),
        (&["send", "a", "x", "--sort", "outgoing"], vec![r#"{"id":"\u001b[2J"}"#.to_owned()]),
    ] {
        let (address, _serving) = scripted(answers).await;
        let ended = xmsg(&[&["connect"], arguments, &["--admin", &*address]].concat()).await;
        let all = String::from_utf8(ended.stdout).unwrap() + &ended.stderr;
        assert!(!all.contains(['\x1b', '\u{9b}', '\u{202e}']), "{arguments:?}: {all:?}");
    }
}

/// A site with a link that delivers, and one whose peer is not there and that has dead letters of a broker.
async fn site_to_watch() -> (Site, Pull) {
    let site = Site::new().await;
    let (pull, address) = pull().await;
    site.ask(&["add", &site.file(&(push_to("busy", &address) + &push_to("away", "tcp://127.0.0.1:9")))])
        .await
        .done();
    site.registry.send("away", Message::of("a", "waits").unwrap()).await.unwrap();
    (site, pull)
}

#[tokio::test(flavor = "multi_thread")]
async fn top_tells_state_rates_spools_and_incidents() {
    let (site, pull) = site_to_watch().await;
    let registry = site.registry.clone();
    let sending = tokio::spawn(async move {
        loop {
            registry.send("busy", Message::of("a", "b").unwrap()).await.unwrap();
        }
    });
    let taking = tokio::spawn(async move { while pull.recv().await.is_some() {} });
    let one = |links: &[Value], name: &str| links.iter().find(|link| link["name"] == name).unwrap().clone();
    let links = within("rates", async {
        loop {
            let links = site.json(&["top", "--once", "--interval", "300ms", "--by", "waiting"]).await;
            let is_away = one(&links, "away")["state"] == "disconnected";
            if is_away && one(&links, "busy")["delivered_per_s"].as_f64().unwrap() > 0.0 {
                return links;
            }
        }
    })
    .await;
    let (busy, away) = (one(&links, "busy"), one(&links, "away"));
    assert_eq!((&busy["state"], &busy["sort"]), (&"connected".into(), &"outgoing".into()), "{busy}");
    assert_eq!((&away["spool_entries"], &away["delivered_per_s"]), (&1.into(), &0.0.into()), "{away}");
    assert!(away["oldest_s"].as_f64().unwrap() > 0.0 && away["incident"].as_str().is_some(), "{away}");
    let text = site.ask(&["top", "--once", "--interval", "100ms", "--filter", "away"]).await.text();
    assert!(
        text.contains("1 links, 1 in trouble") && text.contains("> away") && !text.contains("busy"),
        "{text}"
    );
    let table = text.lines().find(|line| line.starts_with("NAME")).unwrap();
    assert!(table.contains("OLDEST") && table.contains("DEAD"), "{text}");
    site.ask(&["top", "--interval", "1ms"]).await.failed(2, "--interval is 100ms at least");
    sending.abort();
    taking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn top_is_a_live_view_that_keys_change() {
    let (site, _pull) = site_to_watch().await;
    let token = site.path("token");
    let variables = [("XMSG_ADMIN", &*site.address), ("XMSG_ADMIN_TOKEN_FILE", &*token)];
    for (columns, rows) in [(80, 24), (160, 40)] {
        let mut top = Terminal::start(columns, rows, &variables, &["connect", "top", "--interval", "200ms"]);
        let both =
            |text: &str| text.contains("> away") && text.contains("> busy") && text.contains("disconnected");
        let text = top.shows("both links", both).await;
        keep(&format!("connect-top-{columns}x{rows}"), &text);
        assert!(
            text.contains("Links: 2") && text.contains("Incidents") && text.contains("q quits"),
            "{text}"
        );
        let place = |text: &str, name: &str| text.find(name).unwrap();
        assert!(place(&text, "> away") < place(&text, "> busy"), "what is in trouble comes first: {text}");
        top.press("/busy\r");
        top.shows("one of them", |text| text.contains("Links: 1 of 2 match") && !text.contains("> away"))
            .await;
        top.press("/\rn");
        top.shows("them by name", |text| text.contains("(name)") && text.contains("Links: 2")).await;
        top.press("p");
        top.shows("that it is paused", |text| text.contains("paused")).await;
        top.press("q");
        assert_eq!(top.end().await, Some(0));
        assert!(top.written().contains("\x1b[?1049l"), "the terminal is as it was");
    }
}
