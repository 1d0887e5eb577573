//! Tests of the alert rules and the dashboard in `packaging/monitoring`. A real Prometheus reads a real
//! proxy.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use xmsg_core::{Connection, Message, ProxyAddress};
use xmsg_tests::http::{ask, get};
use xmsg_tests::process::{Daemon, built, run};
use xmsg_tests::{next, patient, within};
use xmsg_zmq::{Pull, SocketOptions};

/// A file of the kit.
fn kit(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/monitoring")).join(name)
}

/// A Prometheus of our own. It is killed when dropped.
struct Prometheus {
    _process: Child,
    address: String,
}

impl Prometheus {
    /// Starts one that reads this target every second, with its files in this folder.
    async fn reading(target: &str, folder: &std::path::Path) -> Self {
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{}]\n\
             scrape_configs: [{{ job_name: xmsg, static_configs: [{{ targets: [\"{target}\"] }}] }}]\n",
            kit("alerts.yml").display()
        );
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, config).expect("the folder can be written");
        let mut process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus is installed: run the tests with ./tests/run");
        let mut lines = BufReader::new(process.stderr.take().expect("standard error is piped")).lines();
        let address = within("Prometheus listens", async {
            loop {
                let line = lines.next_line().await.expect("UTF-8").expect("Prometheus runs");
                if let Some((_, address)) = line.split_once("msg=\"Listening on\" address=") {
                    return address.to_owned();
                }
            }
        })
        .await;
        // Its log is read to the end, so that it never waits for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        // It listens before it answers queries.
        within("Prometheus is ready", async {
            while get(&address, "/-/ready").await.status != 200 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        Self { _process: process, address }
    }

    /// The series that answer this query.
    async fn query(&self, query: &str) -> Vec<Value> {
        let mut encoded = String::new();
        for byte in query.bytes() {
            write!(encoded, "%{byte:02X}").expect("a string takes all");
        }
        // In the version of the protocol that has no answers in chunks.
        let request = format!("GET /api/v1/query?query={encoded} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        let response = ask(&self.address, request.as_bytes()).await.expect("an answer");
        let answer: Value = serde_json::from_str(&response.body).expect("JSON");
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().expect("a vector").clone()
    }

    /// Waits until this query is answered by at least one series.
    async fn until_found(&self, query: &str) -> Vec<Value> {
        within(&format!("a series for {query}"), async {
            loop {
                let found = self.query(query).await;
                if !found.is_empty() {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
        .await
    }
}

#[tokio::test]
async fn the_alert_rules_pass_their_own_tests() {
    for arguments in [["check", "rules"], ["test", "rules"]] {
        let file = if arguments[0] == "check" { kit("alerts.yml") } else { kit("alerts_test.yml") };
        let [first, second] = arguments;
        let output = run("promtool", &[first, second, file.to_str().expect("UTF-8")]).await;
        assert!(output.status.success(), "{output:?}");
    }
}

/// All queries of the dashboard, each with the title of its panel.
fn queries() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(kit("grafana-dashboard.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let mut ids = std::collections::BTreeSet::new();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64()), "each panel has a number of its own: {panel}");
        let (x, w) = (panel["gridPos"]["x"].as_u64(), panel["gridPos"]["w"].as_u64());
        assert!(x.zip(w).is_some_and(|(x, w)| x + w <= 24), "the grid has 24 columns: {panel}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = text(&target["expr"])
                .replace("$job", "xmsg")
                .replace("$instance", ".*")
                .replace("$__rate_interval", "5s");
            assert!(!query.contains('$'), "a variable that Grafana does not know: {query}");
            queries.push((text(&panel["title"]), query));
        }
    }
    assert!(queries.len() > 30);
    queries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_query_of_the_dashboard_finds_its_series() {
    let folder = tempfile::tempdir().expect("a folder");
    let pull = Pull::new(SocketOptions::default());
    let reached = pull.bind(&"tcp://127.0.0.1:0".parse().expect("an endpoint")).await.expect("a port");
    let definitions = format!(
        "[[outgoing]]\nname = \"feed\"\nkind = \"zmq\"\nsocket_type = \"PUSH\"\n\
         address = \"{reached}\"\n\
         [[outgoing]]\nname = \"waits\"\nkind = \"zmq\"\nsocket_type = \"PUSH\"\n\
         address = \"tcp://127.0.0.1:1\"\nsubscribe = [\"a\"]\n\
         [[channel]]\nname = \"in\"\nkind = \"zmq\"\nsocket_type = \"PULL\"\nsocket_method = \"bind\"\n\
         address = \"tcp://127.0.0.1:0\"\ntarget = \"topic:b\"\n"
    );
    std::fs::write(folder.path().join("connect.toml"), definitions).expect("a file");
    let settings = "port = 0\n[registrar]\nenabled = true\nport = 0\n\
                    [connect]\nenabled = true\nstate_dir = \"state\"\ndefinitions = \"connect.toml\"\n";
    std::fs::write(folder.path().join("proxy.toml"), settings).expect("a file");
    let file = folder.path().join("proxy.toml");
    let arguments = ["--config", file.to_str().expect("UTF-8"), "--admin", "127.0.0.1:0"];
    let mut daemon = Daemon::start_logging(built("xmsg-proxy"), &arguments, Stdio::null());
    let line = daemon.line().await;
    let address: ProxyAddress =
        line.split_whitespace().nth(3).expect(&line).trim_end_matches(':').parse().expect("an address");
    let admin = loop {
        if let Some(admin) = daemon.line().await.strip_prefix("HTTP at http://") {
            break admin.to_owned();
        }
    };
    let prometheus = Prometheus::reading(&admin, folder.path()).await;

    let connection = Connection::with_options(address, patient()).expect("options");
    let mut subscription = connection.subscribe("a").await.expect("a subscription");
    connection.publish(&Message::of("a:b", "waits").expect("a message")).await.expect("it is sent");
    next(&mut subscription).await;
    prometheus.until_found("xmsg_spool_oldest_seconds").await;
    for (title, query) in queries() {
        let found = prometheus.until_found(&query).await;
        assert!(found.len() <= 100, "{title}: {query} finds {} series", found.len());
    }
    // The link that can't be made is about to raise the alarm.
    let pending = prometheus.until_found("ALERTS{alertname=\"XmsgLinkDown\",name=\"waits\"}").await;
    assert_eq!(pending[0]["metric"]["sort"], "outgoing connection");
}
