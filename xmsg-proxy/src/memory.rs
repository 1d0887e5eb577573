//! How much memory a proxy may take when nobody says so: half of what the process can have.

use std::fs;

/// What is assumed where the system does not say.
const UNKNOWN: usize = 1 << 30;

/// Half of the least of: the memory of the machine, the limits of the process' control groups, the limit of its address space
/// (`ulimit -v`).
#[must_use]
pub fn default_limit() -> usize {
    let read = |path: &str| fs::read_to_string(path).ok();
    let limits = [
        read("/proc/meminfo").and_then(|text| machine(&text)),
        read("/proc/self/limits").and_then(|text| address_space(&text)),
        read("/proc/self/cgroup").and_then(|text| control_groups(&text, read)),
    ];
    limits.into_iter().flatten().min().unwrap_or(UNKNOWN) / 2
}

/// `MemTotal:  16318428 kB`
fn machine(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()?.saturating_mul(1024))
}

/// `Max address space         1073741824           unlimited            bytes`
fn address_space(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Lines like `0::/system.slice/xmsg.service` (version 2) or `4:memory:/docker/…` (version 1): the limits of each group and those around it.
fn control_groups(groups: &str, read: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let ancestors = std::path::Path::new(path.trim_start_matches('/')).ancestors();
        // In a container its own group is at the root, whatever the path says. "max" is no number.
        ancestors
            .filter_map(|group| read(&format!("{root}/{}/{file}", group.display()))?.trim().parse().ok())
            .min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read() {
        assert_eq!(machine("MemTotal:       16318428 kB\nMemFree: 1 kB\n"), Some(16_318_428 << 10));
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max address space         1073741824           unlimited            bytes     \n";
        assert_eq!(address_space(limits), Some(1 << 30));
        assert_eq!(address_space(&limits.replace("1073741824", "unlimited ")), None);
        let files = |path: &str| match path {
            "/sys/fs/cgroup/a/b/memory.max" => Some("max\n".to_owned()),
            "/sys/fs/cgroup/a/memory.max" => Some("500\n".to_owned()),
            "/sys/fs/cgroup/memory/c/memory.limit_in_bytes" => Some("400\n".to_owned()),
            _ => None,
        };
        assert_eq!(control_groups("0::/a/b\n", files), Some(500));
        assert_eq!(control_groups("5:cpu,memory:/c\n0::/x\n", files), Some(400));
        assert_eq!(control_groups("0::/\n", files), None);
    }

    #[test]
    fn there_is_a_limit() {
        assert!((1 << 20..1 << 48).contains(&default_limit()));
    }
}
