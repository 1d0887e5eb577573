//! The limits of this machine for processes: open descriptors, memory and threads.

use std::fs;

use super::finding::Findings;
use crate::output::grouped;
use crate::table::size;

/// The number of descriptors below which a proxy with a usual number of clients runs out of them. It is the
/// default of many systems.
const FEW_DESCRIPTORS: u64 = 1024;
/// The bytes of memory for all peers of a proxy below which its queues are short.
const LITTLE_MEMORY: u64 = 128 << 20;

/// The limits of open descriptors: the one in force, and the one up to which this user may raise it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptors {
    soft: u64,
    hard: u64,
}

/// Parses the line `Max open files 1024 1048576 files` of `/proc/self/limits`.
fn descriptors(limits: &str) -> Option<Descriptors> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_whitespace();
    let mut number = || match words.next()? {
        "unlimited" => Some(u64::MAX),
        word => word.parse().ok(),
    };
    Some(Descriptors { soft: number()?, hard: number()? })
}

pub(super) fn check(findings: &mut Findings) {
    match fs::read_to_string("/proc/self/limits").ok().and_then(|text| descriptors(&text)) {
        None => findings.ok("descriptors", "this system does not say how many there may be"),
        Some(limits) => check_descriptors(limits, findings),
    }
    let memory = xmsg_proxy::default_memory_limit::default_limit() as u64;
    let found = format!("a proxy here would hold {} for all its peers", size(memory));
    if memory < LITTLE_MEMORY {
        let advice = "give the machine, its control group or its address space (ulimit -v) more memory, or set \
                      memory_limit_mib of the proxy";
        findings.warning("memory", found, advice);
    } else {
        findings.ok("memory", found);
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if xmsg_proxy::default_memory_limit::is_crowded_by(cores) {
        let found = format!("{cores} threads take most of the address space that processes may have");
        findings.warning("threads", found, "raise the limit (ulimit -v), or set fewer threads of the proxy");
    } else {
        findings.ok("threads", format!("{cores} at a time"));
    }
}

fn check_descriptors(Descriptors { soft, hard }: Descriptors, findings: &mut Findings) {
    let shown = |number: u64| if number == u64::MAX { "no limit".to_owned() } else { grouped(number) };
    let found = format!("{} for each process, which may raise it to {}", shown(soft), shown(hard));
    if hard <= FEW_DESCRIPTORS {
        let advice = "a proxy here would take few connections: raise the limit (ulimit -Hn, limits.conf, or \
                      LimitNOFILE= of a unit)";
        findings.warning("descriptors", found, advice);
    } else {
        findings.ok("descriptors", found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max open files            1024                 1048576              files\n";
        assert_eq!(descriptors(text), Some(Descriptors { soft: 1024, hard: 1_048_576 }));
        let text = "Max open files            1024                 unlimited            files";
        assert_eq!(descriptors(text), Some(Descriptors { soft: 1024, hard: u64::MAX }));
        for text in ["", "Max open files", "Max open files x y"] {
            assert_eq!(descriptors(text), None, "{text}");
        }
    }
}
