//! The cases that are measured: sizes, numbers of clients, topics and rates.

use crate::plan::Interest;

/// A case. The counts are chosen so that libzmq takes about a second on two cores.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The name by which the command line chooses the case.
    pub name: &'static str,
    /// The size of the payload in bytes.
    pub size: usize,
    pub publishers: usize,
    pub subscribers: usize,
    pub topics: usize,
    /// Message number i has topic number i × stride modulo `topics`.
    pub stride: usize,
    pub interest: Interest,
    pub load: Load,
}

/// How messages are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// All publishers together publish this many messages, as fast as the stack accepts them.
    Flood(u64),
    /// This many messages per second are published at fixed times. The latency of each is recorded.
    Rate(u64),
}

impl Case {
    pub fn is_latency(&self) -> bool {
        matches!(self.load, Load::Rate(_))
    }

    /// Returns the number of measured messages of each publisher in a run of this many seconds.
    pub fn count_per_publisher(&self, seconds: f64) -> u64 {
        let total = match self.load {
            Load::Flood(count) => count as f64 * seconds,
            // The run takes twice as long, because percentiles of a thousand messages per second need it.
            Load::Rate(rate) => rate as f64 * seconds * 2.0,
        };
        ((total / self.publishers as f64) as u64).max(16)
    }

    /// Returns the number of subscribers that receive each message.
    pub fn copies(&self) -> u64 {
        if self.interest == Interest::Own { 1 } else { self.subscribers as u64 }
    }

    /// Returns whether the stack without a protocol can run this case.
    pub fn is_one_to_one(&self) -> bool {
        self.publishers == 1 && self.subscribers == 1 && self.interest == Interest::All
    }
}

const BASE: Case = Case {
    name: "",
    size: 100,
    publishers: 1,
    subscribers: 1,
    topics: 1,
    stride: 1,
    interest: Interest::All,
    load: Load::Flood(0),
};

const fn sized(name: &'static str, size: usize, count: u64) -> Case {
    Case { name, size, load: Load::Flood(count), ..BASE }
}

const fn clients(name: &'static str, publishers: usize, subscribers: usize, count: u64) -> Case {
    Case { name, publishers, subscribers, load: Load::Flood(count), ..BASE }
}

const fn latency(name: &'static str, rate: u64) -> Case {
    Case { name, load: Load::Rate(rate), ..BASE }
}

/// All cases, in the order of the table.
pub const CASES: &[Case] = &[
    sized("16B", 16, 1_200_000),
    sized("100B", 100, 1_000_000),
    sized("1KiB", 1 << 10, 350_000),
    sized("64KiB", 64 << 10, 14_000),
    sized("1MiB", 1 << 20, 700),
    clients("8:1", 8, 1, 1_000_000),
    clients("1:8", 1, 8, 250_000),
    clients("8:8", 8, 8, 200_000),
    clients("1:64", 1, 64, 40_000),
    Case { name: "1000-topics", topics: 1000, load: Load::Flood(800_000), ..BASE },
    Case {
        name: "alternating",
        subscribers: 2,
        topics: 2,
        interest: Interest::Own,
        load: Load::Flood(700_000),
        ..BASE
    },
    Case {
        name: "100k-subscriptions",
        topics: 100_000,
        stride: 7919, // a prime, so that every topic gets its turn and consecutive topics are not adjacent
        interest: Interest::Every,
        load: Load::Flood(400_000),
        ..BASE
    },
    latency("latency-1k", 1_000),
    latency("latency-10k", 10_000),
    latency("latency-100k", 100_000),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_shared_by_the_publishers_and_never_nothing() {
        let case = clients("8:1", 8, 1, 1_000_000);
        assert_eq!(case.count_per_publisher(1.0), 125_000);
        assert_eq!(case.count_per_publisher(0.000_001), 16);
        assert_eq!(latency("l", 1000).count_per_publisher(1.0), 2000);
    }

    #[test]
    fn names_are_different() {
        let mut names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
    }
}
