//! A description of the machine on which the figures were measured.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

/// Returns one line with the processor, the system, and the versions of libzmq, of these servers and of the
/// compiler.
pub fn describe(servers: &[&str]) -> String {
    let cores = available_parallelism().map_or(1, usize::from);
    let cpu = value_in("/proc/cpuinfo", "model name").unwrap_or_else(|| "an unknown processor".into());
    let system = value_in("/etc/os-release", "PRETTY_NAME").unwrap_or_else(|| "an unknown system".into());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let libzmq = output("dpkg-query", &["-W", "-f", "${Version}", "libzmq5"]);
    let servers: String = servers.iter().map(|server| output(server, &["--version"]) + ", ").collect();
    let rustc = output("rustc", &["--version"]);
    let rustc = rustc.split(" (").next().unwrap_or_default();
    format!("{cores} cores of {cpu}, Linux {}, {system}, libzmq {libzmq}, {servers}{rustc}", kernel.trim())
}

/// Returns what follows the name in the first line that starts with it.
fn value_in(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    let (_, value) = line.split_once([':', '='])?;
    Some(value.trim().trim_matches('"').to_owned())
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text =
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if text.is_empty() { format!("({program}: unknown)") } else { text }
}
