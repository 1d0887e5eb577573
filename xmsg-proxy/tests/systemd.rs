//! The daemons under systemd, whose part the test plays: it hears what they notify, and hands sockets over.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

use std::path::Path;

use tokio::net::UnixDatagram;
use tokio::process::Command;
use xmsg_core::{Connection, Message, OwnerType, ProxyAddress, Registrar, RegistrarAddress};
use xmsg_tests::process::{Daemon, finish};
use xmsg_tests::{PATIENCE, http, next, patient, peer, topic, within};

const PROXY: &str = env!("CARGO_BIN_EXE_xmsg-proxy");
const REGISTRAR: &str = env!("CARGO_BIN_EXE_xmsg-registrar");

/// The socket that systemd listens at.
struct Manager(UnixDatagram);

impl Manager {
    fn new(path: &Path) -> Self {
        Self(UnixDatagram::bind(path).unwrap())
    }

    /// The next notification that is not a sign of life.
    async fn told(&self) -> String {
        loop {
            let text = self.told_anything().await;
            if text != "WATCHDOG=1\n" {
                return text;
            }
        }
    }

    async fn told_anything(&self) -> String {
        let mut buffer = [0; 4096];
        let len = within("a notification", self.0.recv(&mut buffer)).await.unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_is_told_what_happens() {
    for (program, working) in [(PROXY, "forwarding at"), (REGISTRAR, "answering at")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = Manager::new(&path);
        let mut command = Command::new(program);
        command.args(["--port", "0"]).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "50000");
        let mut daemon = Daemon::start_logged(command);

        let ready = manager.told().await;
        assert!(ready.starts_with("READY=1\nSTATUS=") && ready.contains(working), "{ready}");
        assert!(daemon.line().await.contains(" at 127.0.0.1:"), "it listens by then");
        for _ in 0..3 {
            assert_eq!(manager.told_anything().await, "WATCHDOG=1\n", "again and again");
        }

        daemon.signal("HUP").await;
        let reloading = manager.told().await;
        let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
        assert!(usec.parse::<u64>().unwrap() > 0);
        assert_eq!(manager.told().await, "READY=1\n");

        daemon.signal("TERM").await;
        assert!(manager.told().await.starts_with("STOPPING=1\nSTATUS="));
        assert!(daemon.end().await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_told_when_it_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = Manager::new(&path);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(REGISTRAR);
    command.args(["--port", &taken.local_addr().unwrap().port().to_string()]).env("NOTIFY_SOCKET", &path);
    assert_eq!(finish(command).await.status.code(), Some(1));
    assert_eq!(manager.0.try_recv(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// Asks a registrar that nobody has registered with.
async fn ask(address: &RegistrarAddress) {
    let client = Registrar::builder(address.clone()).discovery_timeout(PATIENCE).build().unwrap();
    assert_eq!(client.all(OwnerType::Publisher).await.unwrap().len(), 0);
}

/// The word behind the last `at ` of a line.
fn address(line: &str) -> &str {
    line.split(" at ").nth(1).unwrap().split_whitespace().next().unwrap().trim_end_matches(':')
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_takes_sockets_that_listen_already() {
    // The port says where it would listen by itself: nowhere that this user may.
    let arguments = ["--host", "192.0.2.1", "--port", "1"];
    let command = peer::socket_activated("admin:proxy:proxy:registrar:proxy", PROXY, &arguments);
    let mut daemon = Daemon::start_logged(command);
    let proxy: ProxyAddress = address(&daemon.line().await).parse().unwrap();
    let registrar: RegistrarAddress = address(&daemon.line().await).parse().unwrap();
    let admin = address(&daemon.line().await).strip_prefix("http://").unwrap().to_owned();

    let connect = || Connection::with_options(proxy.clone(), patient()).unwrap();
    let (publisher, subscriber) = (connect(), connect());
    let mut messages = subscriber.subscribe([topic("a")]).await.unwrap();
    publisher.publish(&Message::of(topic("a"), 7).unwrap()).await.unwrap();
    assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), 7);
    ask(&registrar).await;
    assert_eq!(http::get(&admin, "/readyz").await.status, 200);
    daemon.signal("TERM").await;
    assert!(daemon.line().await.starts_with("xmsg-proxy stopped: received "));
    assert!(daemon.end().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registrar_takes_a_socket_that_listens_already() {
    let command = peer::socket_activated("registrar", REGISTRAR, &["--host", "192.0.2.1"]);
    let mut daemon = Daemon::start_logged(command);
    let registrar: RegistrarAddress = address(&daemon.line().await).parse().unwrap();
    ask(&registrar).await;
    daemon.signal("TERM").await;
    assert!(daemon.end().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_do_not_fit_are_refused() {
    for (names, code, says) in [
        ("proxy:proxy", 2, "2 sockets named \"proxy\""),
        ("proxy:proxy:proxy:web", 2, "\"web\""),
        ("admin:admin", 2, "2 sockets named \"admin\""),
    ] {
        let output = finish(peer::socket_activated(names, PROXY, &["--port", "0"])).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{names}: {error}");
        assert!(error.contains(says), "{names}: {error}");
    }
}

/// The units that come with the daemons name sockets as they know them.
#[test]
fn the_units_fit_the_daemons() {
    let unit = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    for (file, name, ports) in [
        ("xmsg-proxy.socket", "proxy", &["7771", "7772", "7773"][..]),
        ("xmsg-proxy-admin.socket", "admin", &["7775"]),
        ("xmsg-registrar.socket", "registrar", &["8888"]),
    ] {
        let text = unit(file);
        let values = |key: &str| -> Vec<String> {
            text.lines()
                .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(values("FileDescriptorName"), [name], "{file}");
        let addresses: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        assert_eq!(values("ListenStream"), addresses, "{file}");
    }
    for daemon in ["xmsg-proxy", "xmsg-registrar"] {
        let text = unit(&format!("{daemon}.service"));
        assert!(
            text.contains(&format!("\nExecStart=/usr/local/bin/{daemon} --config /etc/xmsg/{daemon}.toml\n"))
        );
        assert!(text.contains("\nType=notify\n") && text.contains("\nRestartPreventExitStatus=2\n"));
    }
}
