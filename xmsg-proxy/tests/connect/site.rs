//! A daemon with outgoing connections and channels, and what tests ask of it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use xmsg_core::{Actor, Message, ProxyAddress};
use xmsg_tests::http::{Response, samples, send};
use xmsg_tests::process::Daemon;
use xmsg_tests::{patient, within};
use xmsg_zmq::{Pull, SocketOptions};

pub(crate) const PROXY: &str = env!("CARGO_BIN_EXE_xmsg-proxy");
pub(crate) const TOKEN: &str = "token-0123456789abcdef";

/// A daemon with outgoing connections and channels, its HTTP server, and the folder with its files.
pub(crate) struct Site {
    pub(crate) daemon: Daemon,
    pub(crate) proxy: ProxyAddress,
    pub(crate) admin: String,
    pub(crate) folder: TempDir,
}

pub(crate) fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
    std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
}

pub(crate) fn start_logged(program: &str, folder: &Path, settings: &str, arguments: &[&str]) -> Daemon {
    write(folder, "token", TOKEN);
    write(folder, "settings.toml", settings);
    let mut command = Command::new(program);
    command.arg("--config").arg(folder.join("settings.toml"));
    command.args(["--admin", "127.0.0.1:0"]).args(arguments).env_remove("RUST_LOG");
    Daemon::start_logged(command)
}

pub(crate) async fn served(daemon: &mut Daemon) -> String {
    daemon.line().await.strip_prefix("HTTP at http://").unwrap().to_owned()
}

impl Site {
    /// A proxy with these settings more, and with `[connect]`.
    pub(crate) async fn new(more: &str) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), more).await
    }

    pub(crate) async fn in_folder(folder: TempDir, more: &str) -> Self {
        let settings = format!(
            "port = 0\n[admin]\ntoken_file = \"token\"\n[connect]\nenabled = true\nstate_dir = \"state\"\n{more}"
        );
        let mut daemon = start_logged(PROXY, folder.path(), &settings, &[]);
        let line = daemon.line().await;
        let proxy = line.split_whitespace().nth(3).unwrap().trim_end_matches(':').parse().unwrap();
        assert!(daemon.line().await.starts_with("xmsg-connect with "));
        let admin = served(&mut daemon).await;
        Self { daemon, proxy, admin, folder }
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let response = request(&self.admin, Some(TOKEN), method, path, body).await;
        (response.status, serde_json::from_str(&response.body).unwrap_or(Value::String(response.body)))
    }

    /// The answer to what is to be done.
    #[track_caller]
    pub(crate) fn done(&self, method: &str, path: &str, body: &Value) -> impl Future<Output = Value> {
        let (text, asked) =
            (if body.is_null() { String::new() } else { body.to_string() }, format!("{method} {path}"));
        async move {
            let (status, answer) = self.ask(method, path, &text).await;
            assert!((200..300).contains(&status), "{asked}: {status} {answer}");
            answer
        }
    }

    pub(crate) async fn until(&self, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        within(what, async {
            loop {
                let (_, found) = self.ask("GET", path, "").await;
                if holds(&found) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    pub(crate) async fn metrics(&self) -> BTreeMap<String, f64> {
        let response = request(&self.admin, Some(TOKEN), "GET", "/metrics", "").await;
        assert_eq!(response.status, 200);
        let found = samples(&response.body);
        let documented = include_str!("../../../docs/metrics.md");
        for series in found.keys() {
            let name = series.split('{').next().unwrap();
            assert!(documented.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
        }
        found
    }

    pub(crate) fn actor(&self) -> Actor {
        Actor::builder("test").proxy(self.proxy.clone()).options(patient()).build().unwrap()
    }

    pub(crate) async fn stop(mut self) -> TempDir {
        self.daemon.signal("TERM").await;
        assert!(self.daemon.end().await.success());
        self.folder
    }
}

pub(crate) async fn request(
    admin: &str,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: &str,
) -> Response {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    send(admin, method, path, &token, body).await
}

/// A PULL socket that is bound, and where.
pub(crate) async fn pull() -> (Pull, String) {
    let pull = Pull::new(SocketOptions::default());
    let endpoint = pull.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    (pull, endpoint.to_string())
}

pub(crate) async fn received(pull: &Pull) -> Message {
    let [topic, meta, data] =
        <[_; 3]>::try_from(within("a message", pull.recv()).await.unwrap().frames().to_vec()).unwrap();
    Message::from_frames(topic, meta, data)
}

pub(crate) fn push_to(name: &str, address: &str) -> Value {
    json!({ "name": name, "kind": "zmq", "socket_type": "PUSH", "address": address })
}
