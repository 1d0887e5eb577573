//! Tests of the examples as processes: they do what their first lines say, with addresses from the
//! environment.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use xmsg_proxy::Proxy;
use xmsg_proxy::registrar::Registrar;
use xmsg_tests::{proxy, within};

/// A running example. It is killed when this is dropped.
struct Example {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Example {
    fn start(name: &str, proxy: &Proxy, registrar: Option<&Registrar>) -> Self {
        let folder = std::env::var_os("XMSG_BIN_DIR").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debug")),
            PathBuf::from,
        );
        let path = folder.join("examples").join(name);
        assert!(
            path.exists(),
            "there is no {}: run the tests with ./tests/run, which builds it",
            path.display()
        );
        let mut command = Command::new(path);
        command.env("XMSG_PROXY", proxy.address().to_string());
        for variable in ["XMSG_CONNECTION_TIMEOUT", "XMSG_SUBSCRIPTION_TIMEOUT"] {
            command.env(variable, "60000");
        }
        if let Some(registrar) = registrar {
            command.env("XMSG_REGISTRAR", registrar.address().to_string());
        }
        let mut child =
            command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("the example starts");
        let stdout = child.stdout.take().expect("standard output is piped");
        Self { child, lines: BufReader::new(stdout).lines() }
    }

    async fn line(&mut self) -> Option<String> {
        within("a line", self.lines.next_line()).await.expect("UTF-8")
    }

    /// Returns all further output lines. The example must exit with success.
    async fn finish(mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            lines.push(line);
        }
        assert!(within("its end", self.child.wait()).await.expect("it ran").success(), "{lines:?}");
        lines
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn report_receives_what_it_published() {
    let proxy = proxy().start().await.unwrap();
    assert_eq!(Example::start("report", &proxy, None).finish().await, ["3:1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriber_prints_what_publisher_publishes() {
    let proxy = proxy().start().await.unwrap();
    let mut subscriber = Example::start("subscriber", &proxy, None);
    assert_eq!(subscriber.line().await.unwrap(), "subscribed to weather; Ctrl-C ends it");
    let published = Example::start("publisher", &proxy, None).finish().await;
    assert_eq!((published.len(), published[10].as_str()), (11, "nothing is left"));
    for line in &published[..10] {
        assert_eq!(subscriber.line().await.as_deref(), line.strip_prefix("published "));
    }
    let pid = subscriber.child.id().expect("it runs").to_string();
    let kill = Command::new("kill").args(["-s", "INT", &pid]).status();
    assert!(within("kill", kill).await.unwrap().success());
    assert_eq!(subscriber.finish().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sync_publisher_gets_roots_and_one_refusal() {
    let proxy = proxy().start().await.unwrap();
    let lines = Example::start("sync_publisher", &proxy, None).finish().await;
    assert_eq!(
        lines,
        ["2: 1.4142135623730951", "9: 3", "-1: the service at math:root failed: the number is negative"]
    );
}

/// OpenTelemetry itself tells what is whose child.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_go_on_in_headers() {
    let proxy = proxy().start().await.unwrap();
    let lines = Example::start("traces", &proxy, None).finish().await;
    assert!(lines.contains(&"left: 16".to_owned()) && lines.contains(&"not answered: true".to_owned()));
    let spans: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let named = |name: &str| {
        // The name has the domain only, and an attribute the topic.
        let (operation, topic) = name.split_once(' ').unwrap_or((name, ""));
        let domain = topic.split(':').next().unwrap_or_default();
        let name = format!("{operation} {domain}");
        let found = spans.iter().find(|span| {
            let destination = span["attributes"]["messaging.destination.name"].as_str().unwrap_or_default();
            span["name"] == name.trim_end() && destination.starts_with(topic)
        });
        found.unwrap_or_else(|| panic!("no {name}: {lines:#?}"))
    };
    // A service and a client, each with the parent in the other one.
    let family = [
        ("order", "Internal", ""),
        ("request stock:take", "Client", "order"),
        ("publish stock:take", "Producer", "request stock:take"),
        ("process stock:take", "Consumer", "publish stock:take"),
        ("publish ret:", "Producer", "process stock:take"),
        ("receive ret:", "Consumer", "publish ret:"),
    ];
    for (name, kind, parent) in family {
        let span = named(name);
        assert_eq!(span["kind"], kind, "{span}");
        assert_eq!(span["trace"], named("order")["trace"], "{span}");
        let expected =
            if parent.is_empty() { json!("0000000000000000") } else { named(parent)["span"].clone() };
        assert_eq!(span["parent"], expected, "{name}: {lines:#?}");
    }
    for (name, attribute, value) in [
        ("publish stock:take", "messaging.system", "xmsg".to_owned()),
        ("publish stock:take", "messaging.operation.name", "publish".to_owned()),
        ("publish stock:take", "messaging.operation.type", "send".to_owned()),
        ("publish stock:take", "messaging.destination.name", "stock:take".to_owned()),
        ("publish stock:take", "server.address", "127.0.0.1".to_owned()),
        ("publish stock:take", "server.port", proxy.address().publish_port().to_string()),
        ("process stock:take", "messaging.operation.type", "process".to_owned()),
        ("receive ret:", "messaging.operation.type", "receive".to_owned()),
        ("request stock:return", "error.type", "Timeout".to_owned()),
    ] {
        assert_eq!(named(name)["attributes"][attribute], value, "{name}: {}", named(name));
    }
    assert!(named("request stock:return")["status"].as_str().unwrap().starts_with("Error"));
    assert_ne!(named("request stock:return")["trace"], named("order")["trace"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipeline_doubles_numbers_in_order() {
    let proxy = proxy().start().await.unwrap();
    let lines = Example::start("pipeline", &proxy, None).finish().await;
    let of = |name: &str| -> Vec<_> { lines.iter().filter_map(|line| line.strip_prefix(name)).collect() };
    assert_eq!(of("source: "), ["1", "2", "3", "4", "5", "nothing is left"]);
    assert_eq!(of("double: "), ["nothing is left"]);
    assert_eq!(of("sink: "), ["2", "4", "6", "8", "10", "nothing is left"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_registers_finds_and_takes_back() {
    let proxy = proxy().start().await.unwrap();
    let registrar = Registrar::bind("127.0.0.1:0").start().await.unwrap();
    let lines = Example::start("discovery", &proxy, Some(&registrar)).finish().await;
    assert_eq!(
        lines,
        [
            format!("registered thermometer at {}", registrar.address()),
            format!(
                "thermometer publishes weather:oslo:temperature through {}: degrees Celsius",
                proxy.address()
            ),
            "publishers in all: 1".to_owned(),
            "left after that: 0".to_owned(),
        ]
    );
}
