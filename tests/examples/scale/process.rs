//! The proxy in its own process, and the resources that it uses.

use std::path::PathBuf;
use std::time::Duration;

use xmsg_core::ProxyAddress;
use xmsg_tests::process::Daemon;

/// The unit of times in `/proc`, on every Linux.
const TICKS_A_SECOND: u64 = 100;

#[derive(Debug)]
pub(crate) struct ProxyProcess {
    pub(crate) daemon: Daemon,
    pub(crate) address: ProxyAddress,
}

impl ProxyProcess {
    pub(crate) async fn start(port: &str) -> Self {
        let folder = PathBuf::from(std::env::var_os("XMSG_BIN_DIR").expect("XMSG_BIN_DIR is set"));
        // With this policy nothing is lost, so deliveries can be counted in bytes.
        let arguments = ["--port", port, "--slow-subscriber", "block"];
        let mut daemon = Daemon::start(folder.join("xmsg-proxy"), &arguments);
        let line = daemon.line().await;
        let address = line.split_whitespace().nth(3).expect("an address").trim_end_matches(':');
        Self { daemon, address: address.parse().expect("an address") }
    }

    /// Returns the resident memory in bytes.
    pub(crate) fn resident(&self) -> usize {
        let status = self.read("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux");
        let kib: usize = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
        kib * 1024
    }

    /// Returns the processor time so far.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = self.read("stat");
        // The name is in parentheses and may contain spaces.
        let fields = stat.rsplit_once(')').expect("Linux").1.split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 1000 / TICKS_A_SECOND)
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.daemon.pid())).expect("it runs")
    }
}

/// Returns how many descriptors this process and its children may have.
pub(crate) fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("Linux");
    // The soft limit is the fourth word, which may be `unlimited`.
    line.split_whitespace().nth(3).and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX)
}
