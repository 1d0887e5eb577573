//! Tests of `xmsg sub --durable` in which the command, the proxy and RabbitMQ are killed.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use xmsg_core::{Connection, Message, ProxyAddress};
use xmsg_tests::http::ask;
use xmsg_tests::process::{Daemon, built, finish};
use xmsg_tests::rabbitmq::Broker;
use xmsg_tests::{patient, topic, within};

const TOKEN: &str = "token-0123456789abcdef";

/// A proxy with a connection to a broker, in a process of its own.
struct Site {
    daemon: Daemon,
    proxy: ProxyAddress,
    admin: String,
    connection: Connection,
}

impl Site {
    /// Starts it with its files in this folder, and on the port that it had before.
    async fn start(folder: &Path, rabbit: u16) -> Self {
        let port = std::fs::read_to_string(folder.join("port")).unwrap_or_else(|_| "0".to_owned());
        let settings = format!(
            "port = {port}\nslow_subscriber = \"block\"\n[admin]\nenabled = true\nlisten = \"127.0.0.1:0\"\ntoken_file = \"token\"\n\
             [connect]\nenabled = true\nstate_dir = \"state\"\ndefinitions = \"definitions.toml\"\n"
        );
        let definitions = format!(
            "[[connection]]\nname = \"rabbit\"\nuris = [\"amqp://127.0.0.1:{rabbit}\"]\nreconnect = {{ min = \"20ms\", max = \"200ms\" }}\n"
        );
        for (name, text) in
            [("token", TOKEN), ("settings.toml", &settings), ("definitions.toml", &definitions)]
        {
            std::fs::write(folder.join(name), text).unwrap();
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(folder.join(name), permissions).unwrap();
        }
        let settings = folder.join("settings.toml");
        let mut daemon = Daemon::start(built("xmsg-proxy"), &["--config", settings.to_str().unwrap()]);
        let line = daemon.line().await;
        let proxy: ProxyAddress =
            line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
        std::fs::write(folder.join("port"), proxy.publish_port().to_string()).unwrap();
        assert!(daemon.line().await.starts_with("xmsg-connect with "));
        let admin = daemon.line().await.strip_prefix("HTTP at http://").unwrap().to_owned();
        let connection = Connection::with_options(proxy.clone(), patient()).unwrap();
        Self { daemon, proxy, admin, connection }
    }

    /// `xmsg sub --durable` with these arguments.
    fn subscribe(&self, folder: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(built("xmsg"));
        command
            .args(["sub", "--raw", "--lines", "--proxy", &self.proxy.to_string(), "--durable"])
            .args(arguments);
        command.env("XMSG_ADMIN", &self.admin).env("XMSG_CONFIG", folder.join("contexts.toml"));
        command
    }

    /// Publishes these numbers once the durable subscription has subscribed.
    async fn publish(&self, numbers: std::ops::RangeInclusive<u32>) {
        let orders = topic("orders:new");
        within("the subscription of the queue", self.connection.wait_for_subscriber(&orders)).await.unwrap();
        for number in numbers {
            let message = Message::with_mime(orders.clone(), "text/plain", number.to_string());
            self.connection.publish(&message).await.unwrap();
        }
        self.connection.flush(xmsg_tests::PATIENCE).await.unwrap();
    }

    /// Waits until so many messages have got to the queue since the proxy was started.
    async fn queued(&self, count: u64) {
        let request = format!(
            "GET /connect/durable/billing HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\r\n",
            self.admin
        );
        within("all in the queue", async {
            loop {
                let answer = ask(&self.admin, request.as_bytes()).await.expect("an answer");
                let report: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
                if report["link"]["counts"]["delivered"].as_u64() == Some(count) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// What a command of `xmsg sub --durable billing` writes for so many messages.
    async fn receive(&self, folder: &Path, count: u32) -> Vec<u32> {
        let output = finish(self.subscribe(folder, &["billing", "-n", &count.to_string()])).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect()
    }
}

/// A command that is running, and what it writes.
fn running(mut command: Command) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> u32 {
    within("a line", lines.next_line()).await.unwrap().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_nobody_is_there_is_written_later_whoever_is_killed() {
    let mut rabbit = Broker::start().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut site = Site::start(folder, rabbit.port()).await;

    // Without a token it is not made, and what to do is said.
    let refused = finish(site.subscribe(folder, &["billing", "orders"])).await;
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success()
            && errors.contains("nobody answers")
            && errors.contains("--admin-token-file"),
        "{errors}"
    );

    let mut first = site.subscribe(folder, &["billing", "orders", "-n", "3"]);
    first.env("XMSG_ADMIN_TOKEN_FILE", folder.join("token"));
    let (mut child, mut lines) = running(first);
    site.publish(1..=10).await;
    for number in 1..=3 {
        assert_eq!(line(&mut lines).await, number);
    }
    assert!(within("its end", child.wait()).await.unwrap().success());
    assert_eq!(site.receive(folder, 2).await, [4, 5]);

    // Other topics under the same name are an error.
    let other = finish(site.subscribe(folder, &["billing", "weather"])).await;
    let errors = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(
        other.status.code() == Some(2) && errors.contains("subscribes to \"orders\", and not to \"weather\""),
        "{errors}"
    );

    // Ctrl-C leaves the rest where it is: all that was written is acknowledged, and nothing else.
    let (mut child, mut lines) = running(site.subscribe(folder, &["billing"]));
    for number in 6..=10 {
        assert_eq!(line(&mut lines).await, number);
    }
    let pid = child.id().unwrap().to_string();
    let kill = Command::new("kill").args(["-s", "INT", &pid]).status();
    assert!(within("kill", kill).await.unwrap().success());
    within("its end", child.wait()).await.unwrap();
    site.publish(11..=20).await;
    assert_eq!(site.receive(folder, 2).await, [11, 12]);

    // One that is killed has what it wrote last repeated, and nothing lost.
    let (mut child, mut lines) = running(site.subscribe(folder, &["billing"]));
    for number in 13..=15 {
        assert_eq!(line(&mut lines).await, number);
    }
    within("the kill", child.kill()).await.unwrap();
    // It may have written more, and acknowledged that, before it was killed.
    let mut written = std::collections::BTreeSet::new();
    while let Some(line) = within("the rest", lines.next_line()).await.unwrap() {
        written.insert(line.parse::<u32>().unwrap());
    }
    site.publish(21..=30).await;
    site.queued(30).await;

    // So have the proxy and the broker, one after the other.
    site.daemon.signal("KILL").await;
    site.daemon.end().await;
    rabbit.eval("[dets:sync(Table) || Table <- dets:all()]").await;
    rabbit.kill().await;
    rabbit.start_again().await;
    let site = Site::start(folder, rabbit.port()).await;
    site.publish(31..=31).await;
    let (mut child, mut lines) = running(site.subscribe(folder, &["billing"]));
    while !(16..=31).all(|number| written.contains(&number)) {
        let number = line(&mut lines).await;
        assert!(number >= 13, "{number} was acknowledged before");
        written.insert(number);
    }
    child.kill().await.unwrap();
}
