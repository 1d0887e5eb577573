//! The subcommand `compare patterns`, which measures the other patterns side by side, without a server
//! between the sockets.
//!
//! The cases are in `cases.rs`, `run.rs` runs them, the stacks are in `peer/patterns/`, and `report.rs`
//! writes the tables.

pub mod cases;
mod report;
mod run;
pub mod stacks;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use self::cases::{CASES, Case};
use self::report::Runtimes;
use self::stacks::{Programs, Stack, value_name};
use crate::peer::Threads;
use crate::run::Run;
use crate::stats::median;
use crate::{check_smoke, chosen, machine};

/// The number of short runs on each runtime, which find the best runtime of a stack in a case.
const TRIALS: usize = 2;
/// The length of a short run as a part of the usual time.
const TRIAL_PART: f64 = 0.3;

#[derive(Args, Debug)]
pub struct Options {
    /// Cases, separated by commas; a name that ends in `*` stands for all that start like it. Default: all
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Stacks, separated by commas. Default: all
    #[arg(long, value_enum, value_delimiter = ',')]
    stacks: Vec<Stack>,
    /// How many times each stack runs each case
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long messages are sent in a run, in seconds; twice as long at a fixed rate
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// One round of 0.2 s, to check that everything works
    #[arg(long)]
    smoke: bool,
    /// Write all runs and medians to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// List the cases and stacks, and end
    #[arg(long)]
    list: bool,
    /// Show what the processes write to stderr
    #[arg(long)]
    verbose: bool,
    /// Run all tokio clients on this runtime, instead of the one on which each does best in short runs
    #[arg(long, value_enum)]
    threads: Option<Threads>,
    /// High-water marks in messages, instead of the defaults of each stack (`zeromq` has none to set)
    #[arg(long, value_name = "MESSAGES")]
    hwm: Option<u32>,
    #[arg(long, value_name = "FILE", hide = true, default_value = "target/patterns-peer")]
    libzmq_peer: PathBuf,
}

pub fn compare(options: &Options) -> Result<()> {
    if options.list {
        list();
        return Ok(());
    }
    let cases = chosen(&options.cases, CASES, |case| case.name)?;
    let stacks = if options.stacks.is_empty() { Stack::value_variants() } else { &options.stacks };
    let (rounds, seconds) = if options.smoke { (1, 0.2) } else { (options.rounds, options.seconds) };
    ensure!(rounds > 0 && seconds > 0.0, "there must be a round, and it must take some time");
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let programs = Programs {
        compare: std::env::current_exe()?,
        libzmq_peer: options.libzmq_peer.clone(),
        folder: folder.path().to_owned(),
        hwm: options.hwm,
        show_errors: options.verbose,
    };

    let started = Instant::now();
    let mut runtimes = Runtimes::default();
    for case in &cases {
        for stack in taking_part(stacks, case).filter(|stack| stack.has_threads()) {
            let threads = match options.threads {
                Some(threads) => threads,
                None if options.smoke => Threads::Many,
                None => best_threads(&programs, case, stack, seconds * TRIAL_PART),
            };
            runtimes.set(case, stack, threads);
        }
    }
    let mut runs = measure(&programs, &cases, stacks, &runtimes, (rounds, seconds));
    // The rows are in the order of the stacks, whichever began.
    runs.sort_by_key(|run| {
        let case = cases.iter().position(|case| case.name == run.case);
        (case, stacks.iter().position(|stack| stack.name() == run.stack), run.round)
    });

    let machine = machine::describe(&[]);
    let summaries = crate::report::summarize(&runs);
    println!(
        "{machine}\nRounds: {rounds}, of {seconds} s; medians. Taken in {:.0} s.\n",
        started.elapsed().as_secs_f64()
    );
    println!("{}", report::tables(&summaries, &cases, stacks, &runtimes));
    if let Some(file) = &options.json {
        let all = serde_json::json!({
            "machine": machine, "rounds": rounds, "seconds": seconds, "hwm": options.hwm,
            "runtimes": runtimes.to_json(), "medians": summaries, "runs": runs,
        });
        fs::write(file, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if options.smoke { check_smoke(&summaries) } else { Ok(()) }
}

fn list() {
    for case in CASES {
        println!("{:16} {:?}, {} B", case.name, case.pattern, case.size);
    }
    let names: Vec<String> = Stack::value_variants().iter().map(value_name).collect();
    println!("stacks: {}", names.join(", "));
}

fn taking_part<'a>(stacks: &'a [Stack], case: &'a Case) -> impl Iterator<Item = Stack> + 'a {
    stacks.iter().copied().filter(|stack| stack.lacks(case).is_none())
}

/// Runs all rounds of all cases.
fn measure(
    programs: &Programs,
    cases: &[Case],
    stacks: &[Stack],
    runtimes: &Runtimes,
    (rounds, seconds): (usize, f64),
) -> Vec<Run> {
    let (mut runs, mut given_up) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for case in cases {
            let taking_part: Vec<Stack> = taking_part(stacks, case).collect();
            for place in 0..taking_part.len() {
                // The stacks take turns: none is always the first.
                let stack = taking_part[(place + round) % taking_part.len()];
                if given_up.contains(&(case.name, stack)) {
                    continue;
                }
                let threads = runtimes.of(case.name, stack.name()).unwrap_or(Threads::Many);
                let mut run = run::run(programs, case, stack, threads, seconds, round + 1);
                if let Some(failure) = run.failure.as_mut().filter(|_| run.delivered == 0) {
                    // The next run would not be better, and the time limits are long.
                    failure.push_str("; not tried again");
                    given_up.push((case.name, stack));
                }
                progress(&(round + 1).to_string(), &run);
                runs.push(run);
            }
        }
    }
    runs
}

/// Finds the runtime on which a stack does best in a case.
fn best_threads(programs: &Programs, case: &Case, stack: Stack, seconds: f64) -> Threads {
    let mut scores = Vec::new();
    for threads in Threads::value_variants() {
        let mut of_runs = Vec::new();
        for _ in 0..TRIALS {
            let run = run::run(programs, case, stack, *threads, seconds, 0);
            progress(&format!("trial, {}", value_name(threads)), &run);
            of_runs.push(score(case, &run));
            if run.delivered == 0 {
                break;
            }
        }
        scores.push((*threads, median(of_runs)));
    }
    let best = scores.into_iter().max_by(|(_, one), (_, other)| one.total_cmp(other));
    best.map_or(Threads::Many, |(threads, _)| threads)
}

/// Returns a figure that is larger if the run was better.
fn score(case: &Case, run: &Run) -> f64 {
    match &run.latency {
        _ if run.failure.is_some() => f64::MIN,
        Some(latency) if case.is_latency() => -latency.p50,
        _ => run.rate,
    }
}

fn progress(which: &str, run: &Run) {
    let latency = run.latency.as_ref().map(|latency| {
        format!("p50 {:.1} µs, p99 {:.1} µs, p99.9 {:.1} µs, ", latency.p50, latency.p99, latency.p999)
    });
    let failure = run.failure.as_ref().map(|failure| format!("; {failure}")).unwrap_or_default();
    eprintln!(
        "{which}, {}, {}: {}{:.0}/s, {:.3} µs CPU, lost {}, out of order {}{failure}",
        run.case,
        run.stack,
        latency.unwrap_or_default(),
        run.rate,
        run.cpu_us,
        run.lost,
        run.disorder
    );
}
