//! Two hosts and the link between them, as network namespaces.
//!
//! The hosts are [`PROXY`] and [`CLIENT`]; neither reaches anything but the other. The link is a pair of virtual interfaces,
//! or, to delay and lose packets, a program that carries frames between two such pairs: `tests/peers/cable.py`. (The
//! kernel's own means, netem, is missing from many kernels.)
//!
//! All this takes root, so tests with it run only where `XMSG_TEST_NETNS=1` asks for it, as `tests/run` does for root.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::within;

/// Address of the host of the proxy.
pub const PROXY: &str = "10.77.0.1";
/// Address of the host of publishers and subscribers.
pub const CLIENT: &str = "10.77.0.2";

/// Whether tests with namespaces are asked for.
#[must_use]
pub fn wanted() -> bool {
    let wanted = std::env::var_os("XMSG_TEST_NETNS").is_some_and(|value| value == "1");
    if !wanted {
        eprintln!("left out: XMSG_TEST_NETNS=1 runs the tests with network namespaces, as root");
    }
    wanted
}

/// A network namespace. It is deleted when dropped.
#[derive(Debug)]
pub struct Host {
    name: String,
}

impl Host {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("xmsg-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let host = Self { name };
        host.ip(&["link", "set", "lo", "up"]);
        host
    }

    /// Runs `ip` with these arguments in it.
    pub fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.name], arguments].concat());
    }

    /// Takes its interface away from the link, or puts it back.
    pub fn plug(&self, plugged: bool) {
        self.ip(&["link", "set", "eth0", if plugged { "up" } else { "down" }]);
    }

    /// What names mean on it, for programs started from now on and, after the first call, for those that run.
    pub fn set_hosts(&self, text: &str) {
        std::fs::create_dir_all(self.etc()).expect("root may write below /etc/netns");
        // In place: what programs see is this file, mounted.
        std::fs::write(self.etc().join("hosts"), text).expect("the file of hosts");
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }

    /// Starts a program on it.
    #[must_use]
    pub fn start(&self, program: impl Into<PathBuf>, arguments: &[&str]) -> Process {
        let program = program.into();
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .arg(&program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("ip starts");
        let stdout = child.stdout.take().expect("standard output is piped");
        let name = format!("{} {}", program.display(), arguments.join(" "));
        Process { child, lines: BufReader::new(stdout).lines(), name }
    }

    /// Starts the example `station` on it.
    #[must_use]
    pub fn station(&self, arguments: &[&str]) -> Process {
        self.start(binaries().join("examples/station"), arguments)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let deleted = std::process::Command::new("ip").args(["netns", "del", &self.name]).status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("the namespace {} is still there", self.name);
        }
        // Most hosts have none.
        let _ = std::fs::remove_dir_all(self.etc());
    }
}

/// Two hosts with a link between them.
#[derive(Debug)]
pub struct Network {
    /// The host [`PROXY`].
    pub proxy: Host,
    /// The host [`CLIENT`].
    pub client: Host,
}

impl Network {
    /// Makes both hosts and links them by a pair of virtual interfaces.
    #[must_use]
    pub fn new() -> Self {
        let network = Self { proxy: Host::new(), client: Host::new() };
        let Self { proxy, client } = &network;
        proxy.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &client.name]);
        network.up();
        network
    }

    fn up(&self) {
        for (host, address) in [(&self.proxy, PROXY), (&self.client, CLIENT)] {
            host.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"]);
            host.plug(true);
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

/// Two hosts with a bad cable between them.
#[derive(Debug)]
pub struct Cable {
    program: Process,
    _middle: Host,
    /// Both hosts.
    pub network: Network,
}

impl Cable {
    /// Makes both hosts, and a third one with the cable, which is perfect at first.
    pub async fn new() -> Self {
        let network = Network { proxy: Host::new(), client: Host::new() };
        let middle = Host::new();
        for (host, end) in [(&network.proxy, "left"), (&network.client, "right")] {
            // One packet is one frame: segments that a driver would cut are not lost together.
            host.ip(&[
                "link",
                "add",
                "eth0",
                "gso_max_segs",
                "1",
                "type",
                "veth",
                "peer",
                "name",
                end,
                "netns",
                &middle.name,
            ]);
            middle.ip(&["link", "set", end, "up"]);
        }
        network.up();
        let python = crate::peer::python();
        let script = crate::peer::script("cable.py");
        let script = script.to_str().expect("a path in UTF-8");
        let mut program = middle.start(python, &[script, "left", "right"]);
        program.expect("ready").await;
        Self { program, _middle: middle, network }
    }

    /// From now on delays each packet, and loses some; all of them is a cut that neither host is told of. Returns how many
    /// packets were lost so far.
    pub async fn set(&mut self, delay_ms: u32, loss_percent: u32) -> u32 {
        self.program.say(&format!("{delay_ms} {loss_percent}")).await;
        let answer = self.program.expect("set ").await;
        answer["set ".len()..].parse().expect("a number")
    }
}

/// A program on a host. It is killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    name: String,
}

impl Process {
    /// Writes a line to its standard input.
    pub async fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("standard input is piped");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
    }

    /// The next line of its standard output.
    pub async fn line(&mut self) -> String {
        let what = format!("a line of {}", self.name);
        let line = within(&what, self.lines.next_line()).await.expect("UTF-8");
        line.unwrap_or_else(|| panic!("{what}: it ended instead"))
    }

    /// Passes over lines up to one that contains all of these words, and returns it.
    pub async fn find(&mut self, words: &[&str]) -> String {
        let what = format!("{words:?} from {}", self.name);
        within(&what, async {
            loop {
                let line = self.line().await;
                if words.iter().all(|word| line.contains(word)) {
                    return line;
                }
            }
        })
        .await
    }

    /// The next line, which must start with this.
    pub async fn expect(&mut self, start: &str) -> String {
        let line = self.line().await;
        assert!(line.starts_with(start), "{start:?} was expected of {}, which said {line:?}", self.name);
        line
    }

    /// Sends it a signal, such as `STOP`.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let kill = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(within("kill", kill).await.expect("kill starts").success());
    }

    /// Kills it, and waits for its end.
    pub async fn kill(mut self) {
        within("its end", self.child.kill()).await.expect("it ran");
    }
}

/// The folder with the binaries.
#[must_use]
pub fn binaries() -> PathBuf {
    std::env::var_os("XMSG_BIN_DIR").expect("XMSG_BIN_DIR is set, as ./tests/run does").into()
}

fn ip(arguments: &[&str]) {
    let output = std::process::Command::new("ip").args(arguments).output();
    let output = output.expect("there is `ip`: ./tests/run installs it (Debian: apt-get install iproute2)");
    assert!(
        output.status.success(),
        "ip {}: {}\nnetwork namespaces take root, with CAP_SYS_ADMIN and CAP_NET_ADMIN; XMSG_TEST_NETNS=0 leaves these tests out",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim(),
    );
}
