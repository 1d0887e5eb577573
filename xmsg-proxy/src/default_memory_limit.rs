//! The memory limit of a proxy for which none is configured: half of what the process can have. Threads take
//! address space, which may be limited.

use std::fs;
use std::num::NonZero;

/// The limit that is assumed where the system provides none, in bytes.
const UNKNOWN: usize = 1 << 30;

/// The address space of a thread, in bytes, however little memory it uses. It consists of the stack and of
/// what glibc's allocator reserves for each thread that allocates (`HEAP_MAX_SIZE`). It counts only against
/// `ulimit -v`.
const THREAD_SPACE: usize = (2 + 64) << 20;

/// One part in this many of a limited address space is always left to peers and to everything but threads,
/// however many threads there are. Not all threads allocate at the same time.
const PART_LEFT: usize = 8;

/// Threads for blocking work get no more than one part in this many of a limited address space.
const PART_BLOCKING: usize = 8;

/// The number of threads for blocking work in a runtime about which nothing else is known.
const BLOCKING_THREADS: usize = 8;

/// Returns the [limit](limit_beside) for a process whose tokio runtime has a thread for each core and a few
/// for blocking work, in bytes.
#[must_use]
pub fn default_limit() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    limit_beside(cores + blocking_threads(BLOCKING_THREADS))
}

/// Returns half of the smallest of these values, in bytes: the memory of the machine, the limits of the
/// process's control groups, and what this number of additional threads leaves of the address space (`ulimit
/// -v`), but at least an eighth of that space.
#[must_use]
pub fn limit_beside(threads: usize) -> usize {
    let limits = [
        read("/proc/meminfo").and_then(|text| machine(&text)),
        limited_space().map(|space| left_by(threads, space)),
        read("/proc/self/cgroup").and_then(|text| control_groups(&text, read)),
    ];
    limits.into_iter().flatten().min().unwrap_or(UNKNOWN) / 2
}

/// Returns how many of the `wanted` threads for blocking work a runtime may have. With a limited address
/// space it is fewer, but two if so many are wanted, so that one thread that waits for a disk does not block
/// everything.
#[must_use]
pub fn blocking_threads(wanted: usize) -> usize {
    limited_space().map_or(wanted, |space| blocking_within(space, wanted))
}

/// Returns whether this number of additional threads leaves so little of the address space that its limit
/// should be raised.
#[must_use]
pub fn is_crowded_by(threads: usize) -> bool {
    limited_space().is_some_and(|space| space.saturating_sub(space_of(threads)) < space / PART_LEFT)
}

/// Returns what a thread takes of the address space, in bytes, if that is limited, and else 0.
#[must_use]
pub fn thread_space() -> usize {
    limited_space().map_or(0, |_| THREAD_SPACE)
}

fn blocking_within(space: usize, wanted: usize) -> usize {
    (space / PART_BLOCKING / THREAD_SPACE).max(2).min(wanted)
}

fn left_by(threads: usize, space: usize) -> usize {
    space.saturating_sub(space_of(threads)).max(space / PART_LEFT)
}

fn space_of(threads: usize) -> usize {
    threads.saturating_mul(THREAD_SPACE)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Returns the limit of the address space in bytes, if there is one.
fn limited_space() -> Option<usize> {
    read("/proc/self/limits").and_then(|text| address_space(&text))
}

/// Parses a line such as `MemTotal: 16318428 kB`. Returns bytes.
fn machine(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()?.saturating_mul(1024))
}

/// Parses a line such as `Max address space 1073741824 unlimited bytes`.
fn address_space(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Parses lines such as `0::/system.slice/xmsg.service` (version 2) or `4:memory:/docker/…` (version 1).
/// Returns the smallest limit of these groups and of those that contain them.
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
        // In a container, its own group is at the root, whatever the path says. The value "max" is not a
        // number, and is skipped.
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
        assert!(limit_beside(1000) <= limit_beside(0));
    }

    #[test]
    fn threads_take_address_space_from_peers() {
        const MIB: usize = 1 << 20;
        assert_eq!(left_by(0, 1024 * MIB), 1024 * MIB);
        assert_eq!(left_by(5, 1024 * MIB), 694 * MIB);
        assert_eq!(left_by(usize::MAX, 1024 * MIB), 128 * MIB, "or nobody could connect");
        for (space, threads) in [(256, 2), (1024, 2), (4096, 7), (1 << 20, 32)] {
            assert_eq!(blocking_within(space * MIB, 32), threads, "{space} MiB");
        }
        assert_eq!(blocking_within(1024 * MIB, 1), 1);
    }
}
