//! The cases of the patterns besides publish and subscribe: sizes, numbers of connections and rates.

/// The sockets of a case, which decide which way messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Messages go one way.
    PushPull,
    /// Messages go one way.
    Pair,
    /// Each request waits for the reply to the one before.
    ReqRep,
    /// Many requests are in progress at the same time, and each of them comes back.
    DealerRouter,
    /// Messages go one way, within a process.
    InprocPair,
}

/// A case, which is measured once in each round.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The name by which the command line chooses the case.
    pub name: &'static str,
    pub pattern: Pattern,
    /// The size of a message, in bytes. It has one frame.
    pub size: usize,
    /// The number of sockets that receive. One socket sends in each case.
    pub receivers: usize,
    /// The number of requests that are in progress at the same time.
    pub window: u64,
    /// The number of messages that are sent per second at fixed times, or 0 for as fast as the stack accepts
    /// them.
    pub rate: u64,
    /// The number of messages that are sent first, and do not count.
    pub warm_up: u64,
    /// The number of messages after which a sender stops, even if the time is not up.
    pub most: u64,
}

/// More messages than any stack sends in a run, so that the time ends the run.
const WITHOUT_END: u64 = 1 << 39;
/// The limit for messages of 64 KiB. This many take about 2 GiB in a queue without a limit.
const MOST_OF_64_KIB: u64 = 30_000;

impl Case {
    /// Returns whether messages are sent at fixed times, so that their latency is what counts.
    pub fn is_latency(&self) -> bool {
        self.rate > 0
    }

    /// Returns whether there are replies, so that round trips are what counts.
    pub fn is_exchange(&self) -> bool {
        matches!(self.pattern, Pattern::ReqRep | Pattern::DealerRouter)
    }

    /// Returns whether the time of each message or round trip is recorded.
    pub fn has_latencies(&self) -> bool {
        self.is_latency() || self.pattern == Pattern::ReqRep
    }
}

const BASE: Case = Case {
    name: "",
    pattern: Pattern::PushPull,
    size: 100,
    receivers: 1,
    window: 1,
    rate: 0,
    warm_up: 10_000,
    most: WITHOUT_END,
};

const fn sized(name: &'static str, size: usize, warm_up: u64) -> Case {
    Case { name, size, warm_up, ..BASE }
}

const fn latency(name: &'static str, rate: u64) -> Case {
    Case { name, rate, warm_up: rate / 10, ..BASE }
}

/// All cases, in the order of the tables.
pub const CASES: &[Case] = &[
    sized("push-pull-16B", 16, 10_000),
    sized("push-pull-100B", 100, 10_000),
    sized("push-pull-1KiB", 1 << 10, 5_000),
    Case { most: MOST_OF_64_KIB, ..sized("push-pull-64KiB", 64 << 10, 500) },
    Case { name: "push-pull-1:4", receivers: 4, ..BASE },
    Case { name: "pair", pattern: Pattern::Pair, ..BASE },
    Case { name: "inproc-pair", pattern: Pattern::InprocPair, ..BASE },
    Case { name: "req-rep", pattern: Pattern::ReqRep, warm_up: 500, ..BASE },
    Case { name: "dealer-router", pattern: Pattern::DealerRouter, window: 100, warm_up: 5_000, ..BASE },
    latency("latency-1k", 1_000),
    latency("latency-10k", 10_000),
];

/// Finds the case of this name.
pub fn find(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}
