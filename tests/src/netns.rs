//! Two hosts with a link between them, as network namespaces.
//!
//! The hosts are [`PROXY`] and [`CLIENT`]. Neither of them reaches anything but the other. The link is a pair
//! of virtual interfaces. To delay and lose packets, it is instead a program that forwards frames between two
//! such pairs: `tests/peers/cable.py`. (The kernel's own tool, netem, is missing in many kernels.)
//!
//! All this needs root. So tests with it run only if `XMSG_TEST_NETNS=1` is set, as `tests/run` does for
//! root.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::within;

/// The address of the proxy's host.
pub const PROXY: &str = "10.77.0.1";
/// The address of the publishers' and subscribers' host.
pub const CLIENT: &str = "10.77.0.2";

/// Returns whether tests with namespaces are to run.
#[must_use]
pub fn wanted() -> bool {
    let wanted = std::env::var_os("XMSG_TEST_NETNS").is_some_and(|value| value == "1");
    if !wanted {
        eprintln!("left out: XMSG_TEST_NETNS=1 runs the tests with network namespaces, as root");
    }
    wanted
}

/// A network namespace. It is deleted when this is dropped.
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

    /// Runs `ip` with these arguments in the namespace.
    pub fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.name], arguments].concat());
    }

    /// Connects the interface to the link, or disconnects it.
    pub fn plug(&self, plugged: bool) {
        self.ip(&["link", "set", "eth0", if plugged { "up" } else { "down" }]);
    }

    /// Sets the host names of this namespace. Programs that are started later see them. After the first call,
    /// running programs see further changes, too.
    pub fn set_hosts(&self, text: &str) {
        std::fs::create_dir_all(self.etc()).expect("root may write below /etc/netns");
        // The file is overwritten in place, because programs see this very file as a mount.
        std::fs::write(self.etc().join("hosts"), text).expect("the file of hosts");
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }

    /// Starts a program in the namespace.
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

    /// Starts the example `station` in the namespace.
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
        // Most namespaces have no such folder.
        let _ = std::fs::remove_dir_all(self.etc());
    }
}

/// Two hosts with a link between them.
#[derive(Debug)]
pub struct Network {
    /// The host with the address [`PROXY`].
    pub proxy: Host,
    /// The host with the address [`CLIENT`].
    pub client: Host,
}

impl Network {
    /// Creates both hosts, and links them by a pair of virtual interfaces.
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

/// Two hosts with an unreliable link between them.
#[derive(Debug)]
pub struct LossyLink {
    program: Process,
    _middle: Host,
    /// Both hosts.
    pub network: Network,
}

impl LossyLink {
    /// Creates both hosts, and a third one with the link program. At first the link loses and delays nothing.
    pub async fn new() -> Self {
        let network = Network { proxy: Host::new(), client: Host::new() };
        let middle = Host::new();
        for (host, end) in [(&network.proxy, "left"), (&network.client, "right")] {
            // Each packet is one frame, so that segments that a driver would split off are not lost together.
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

    /// Delays each packet from now on, and loses some. A loss of 100 % is a cut about which neither host is
    /// informed. Returns how many packets were lost so far.
    pub async fn set(&mut self, delay_ms: u32, loss_percent: u32) -> u32 {
        self.program.say(&format!("{delay_ms} {loss_percent}")).await;
        let answer = self.program.expect("set ").await;
        answer["set ".len()..].parse().expect("a number")
    }
}

/// A program in a namespace. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    name: String,
}

impl Process {
    /// Writes a line to the standard input of the program.
    pub async fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("standard input is piped");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
    }

    /// Waits for the next line of the program's standard output.
    pub async fn line(&mut self) -> String {
        let what = format!("a line of {}", self.name);
        let line = within(&what, self.lines.next_line()).await.expect("UTF-8");
        line.unwrap_or_else(|| panic!("{what}: it ended instead"))
    }

    /// Skips lines until one contains all of these words, and returns it.
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

    /// Waits for the next line, which must start with this text, and returns it.
    pub async fn expect(&mut self, start: &str) -> String {
        let line = self.line().await;
        assert!(line.starts_with(start), "{start:?} was expected of {}, which said {line:?}", self.name);
        line
    }

    /// Sends a signal to the program, such as `STOP`.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let kill = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(within("kill", kill).await.expect("kill starts").success());
    }

    /// Kills the program, and waits for its end.
    pub async fn kill(mut self) {
        within("its end", self.child.kill()).await.expect("it ran");
    }
}

/// Returns the folder with the built programs.
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
