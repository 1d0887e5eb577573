//! Statistics of this process from the system. What the system does not say is left out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Clock ticks a second in `/proc/self/stat`: fixed for programs, whatever the kernel uses (proc(5),
/// `USER_HZ`).
const TICKS: f64 = 100.0;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    pub(super) cpu_s: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
}

impl Process {
    /// Returns the processor time so far, in seconds.
    pub(super) fn cpu() -> Option<f64> {
        std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu_s)
    }

    /// Returns the memory that the process occupies now, in bytes. It is cheap, because it is read once a
    /// second.
    pub(super) fn resident() -> Option<u64> {
        std::fs::read_to_string("/proc/self/status").ok().as_deref().and_then(|text| kib(text, "VmRSS:"))
    }

    /// Reads everything. That takes the longer the more connections there are, whose descriptors are counted.
    pub(super) fn read_all() -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).ok();
        let status = read("status");
        Self {
            cpu_s: read("stat").as_deref().and_then(cpu_s),
            resident_bytes: status.as_deref().and_then(|text| kib(text, "VmRSS:")),
            virtual_bytes: status.as_deref().and_then(|text| kib(text, "VmSize:")),
            // One of the descriptors is that with which the folder is read.
            open_fds: std::fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64 - 1),
            max_fds: read("limits").as_deref().and_then(max_fds),
        }
    }
}

/// Returns the seconds since 1970.
pub(super) fn unix_s(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// Returns user and system time. The name of the program, in brackets, may hold anything.
fn cpu_s(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) as f64 / TICKS)
}

fn kib(status: &str, name: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

fn max_fds(limits: &str) -> Option<u64> {
    let rest = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 1000 1 1 1";
        assert_eq!(cpu_s(stat), Some(2.0));
        assert_eq!(kib("Name:\tx\nVmRSS:\t    2048 kB\n", "VmRSS:"), Some(2 << 20));
        assert_eq!(
            max_fds("Max open files            1024                 4096                 files"),
            Some(1024)
        );
        assert_eq!(max_fds("Max open files            unlimited"), None);
        assert_eq!((cpu_s(""), kib("", "VmRSS:")), (None, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn finds_itself() {
        let me = Process::read_all();
        assert!(me.resident_bytes > Some(100 << 10) && me.virtual_bytes >= me.resident_bytes, "{me:?}");
        assert!(Process::resident() > Some(100 << 10) && Process::cpu().is_some());
        assert!(me.open_fds >= Some(3) && me.max_fds >= me.open_fds && me.cpu_s.is_some(), "{me:?}");
    }
}
