//! Runs the deterministic simulations with many seeds: see `xmsg_tests::simulation`.

use xmsg_tests::simulation::net::TraceEntry;
use xmsg_tests::simulation::{self, clients, engines, patterns, seeds};

/// Runs one seed of the complete simulation with publishers, switch and subscribers.
fn network(seed: u64) -> (Vec<TraceEntry>, Result<(), String>) {
    seeds::catching(|| runtime().block_on(simulation::run(seed)))
}

/// Runs one seed of a connection and an actor that are closed and drained.
fn closing(seed: u64) -> (Vec<TraceEntry>, Result<(), String>) {
    seeds::catching(|| runtime().block_on(clients::run(seed)))
}

/// Runs one seed of a ZeroMQ pattern.
fn pattern(seed: u64) -> (Vec<TraceEntry>, Result<(), String>) {
    seeds::catching(|| runtime().block_on(patterns::run(seed)))
}

fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime")
}

/// Runs all seeds of a test. If it is only one, it prints the trace.
fn all(test: &str, run: impl Fn(u64) -> (Vec<TraceEntry>, Result<(), String>) + Sync) {
    if seeds::only().is_some() {
        xmsg_tests::start_tracing();
    }
    seeds::all(test, |seed| {
        let (trace, result) = run(seed);
        print(trace);
        result
    });
}

fn print(trace: Vec<TraceEntry>) {
    if seeds::only().is_some() {
        for (at, what, a, b) in trace {
            println!("{:>14.6} {what} {a} {b}", at.as_secs_f64());
        }
    }
}

#[test]
fn clients_and_switch_keep_their_promises() {
    all("clients_and_switch_keep_their_promises", network);
}

#[test]
fn what_is_closed_or_drained_loses_nothing_in_silence() {
    all("what_is_closed_or_drained_loses_nothing_in_silence", closing);
}

#[test]
fn engines_keep_their_promises() {
    seeds::all("engines_keep_their_promises", |seed| seeds::catching(|| engines::run(seed)).1);
}

#[test]
fn patterns_keep_their_promises() {
    all("patterns_keep_their_promises", pattern);
}

/// A seed must give the same run every time, or it is of no use.
#[test]
fn a_seed_repeats_itself() {
    for seed in 0..200 {
        for run in [network, closing, pattern, |seed| engines::run(seed)] {
            let (first, _) = run(seed);
            let (second, _) = run(seed);
            let differs = first.iter().zip(&second).position(|(a, b)| a != b);
            if let Some(at) = differs {
                panic!("seed {seed}, event {at}: {:?} became {:?}", first[at], second[at]);
            }
            assert_eq!(first.len(), second.len(), "seed {seed} went on for longer once");
            assert!(first.len() > 5, "seed {seed} does next to nothing");
        }
    }
}
