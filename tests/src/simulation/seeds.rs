//! The runner for many seeds. It prints how to run a failed seed again.
//!
//! | variable | |
//! |---|---|
//! | `XMSG_SIM_SEED` | run this seed only, and print what happens in it |
//! | `XMSG_SIM_SEEDS` | how many seeds to run; default 10,000 |
//! | `XMSG_SIM_FIRST` | the first of them; default 0 |

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// The number of seeds that are run by default.
pub const SEEDS: u64 = 10_000;
/// After this many failures, no more seeds are started.
const FAILURES: usize = 5;
/// The limit of the real time of one seed, after which it counts as spinning. A seed never waits in real
/// time.
const SPINNING: Duration = Duration::from_secs(120);

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `run`, and turns any panic of this thread meanwhile into an error. A runtime would otherwise keep the
/// panic in the task.
pub fn catching<T>(run: impl FnOnce() -> (T, Result<(), String>)) -> (T, Result<(), String>) {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANIC.with_borrow_mut(|panic| *panic = Some(info.to_string()));
            before(info);
        }));
    });
    PANIC.with_borrow_mut(Option::take);
    let (value, result) = run();
    let panicked = PANIC.with_borrow_mut(Option::take);
    (value, panicked.map_or(result, |panic| Err(format!("a task panicked: {panic}"))))
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

/// Returns the only seed to run, if one is set.
#[must_use]
pub fn only() -> Option<u64> {
    variable("XMSG_SIM_SEED")
}

/// Runs all seeds of this test on all processors. Prints every failure, and stops after `FAILURES` of them.
///
/// # Panics
///
/// If a seed has failed.
pub fn all(test: &str, run: impl Fn(u64) -> Result<(), String> + Sync) {
    let first = variable("XMSG_SIM_FIRST").unwrap_or(0);
    let count = variable("XMSG_SIM_SEEDS").unwrap_or(SEEDS);
    let (first, count) = only().map_or((first, count), |seed| (seed, 1));
    let end = first + count;
    let next = AtomicU64::new(first);
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count as usize).max(1);
    let (sender, receiver) = sync_channel(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next, run) = (sender.clone(), &next, &run);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || sender.send((seed, run(seed))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut failed = Vec::new();
        let mut done = std::collections::BTreeSet::new();
        loop {
            match receiver.recv_timeout(SPINNING) {
                Ok((seed, Ok(()))) => drop(done.insert(seed)),
                Ok((seed, Err(what))) => {
                    println!(
                        "seed {seed}: {what}\nrun it again:  XMSG_SIM_SEED={seed} cargo test -p xmsg-tests --test simulation {test} -- --nocapture\n"
                    );
                    failed.push(seed);
                    if failed.len() == FAILURES {
                        next.store(end, Ordering::Relaxed);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let busy: Vec<u64> =
                        (first..next.load(Ordering::Relaxed)).filter(|seed| !done.contains(seed)).collect();
                    // The spinning threads can't be ended, so the whole process exits.
                    eprintln!(
                        "{test}: no end after {SPINNING:?} of real time in one of the seeds {busy:?}: XMSG_SIM_SEED=…"
                    );
                    std::process::exit(1);
                }
            }
        }
        assert!(failed.is_empty(), "these seeds failed: {failed:?}");
        assert_eq!(done.len() as u64, count, "every seed was run");
    });
    println!("{test}: {count} seeds in {:?}", started.elapsed());
}
