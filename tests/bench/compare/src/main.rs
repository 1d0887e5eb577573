//! Measures xmsg and its competitors side by side. It starts processes, prints tables and draws an SVG. It
//! builds nothing: see `run`.
//!
//! `cases.rs` says what is measured, and `run.rs` how. `peer/mod.rs` has what the stacks have in common, and
//! the other files beside it have what differs. `report.rs` and `plot.rs` present the results. The folder
//! `patterns` has the patterns besides publish and subscribe.

mod cases;
mod machine;
mod patterns;
mod peer;
mod plan;
mod plot;
mod process;
mod report;
mod run;
mod stacks;
mod stats;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cases::CASES;
use crate::peer::patterns::Part;
use crate::peer::{PeerKind, Role, Threads};
use crate::report::Summary;
use crate::run::Run;
use crate::stacks::{Programs, Stack};

/// Measures xmsg and its peers side by side.
#[derive(Debug, Parser)]
#[command(max_term_width = 110, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures the other patterns: PUSH and PULL, PAIR, REQ and REP, DEALER and ROUTER.
    Patterns(patterns::Options),
    /// A process of a stack; started by the comparison.
    #[command(hide = true)]
    Peer {
        #[arg(long, value_enum)]
        threads: Option<Threads>,
        kind: PeerKind,
        #[command(subcommand)]
        role: Role,
    },
    /// One side of a pattern; started by `patterns`.
    #[command(hide = true)]
    PatternPeer {
        #[arg(long, value_enum)]
        threads: Threads,
        stack: patterns::stacks::Stack,
        #[command(subcommand)]
        part: Part,
    },
}

#[derive(Args, Debug)]
struct Options {
    /// Cases, separated by commas; a name that ends in `*` stands for all that start like it. Default: all
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Stacks, separated by commas. Default: all
    #[arg(long, value_enum, value_delimiter = ',')]
    stacks: Vec<Stack>,
    /// How many times each stack runs each case
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// About how many seconds libzmq takes for a run: multiplies the counts and time limits
    #[arg(long, alias = "scale", default_value_t = 1.0)]
    seconds: f64,
    /// One round of 0.2 s, to check that everything works
    #[arg(long)]
    smoke: bool,
    /// Write all runs and medians to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the chart to this file
    #[arg(long, value_name = "FILE", default_value = "compare.svg")]
    svg: PathBuf,
    /// List the cases and stacks, and end
    #[arg(long)]
    list: bool,
    /// Show what servers and clients write to stderr
    #[arg(long)]
    verbose: bool,
    /// Run all tokio clients on this runtime instead of the one on which each does best
    #[arg(long, value_enum)]
    threads: Option<Threads>,
    /// Run the proxies of zeromq, omq-tokio and raw TCP on this runtime instead of the one on which each does
    /// best
    #[arg(long, value_enum)]
    proxy_threads: Option<Threads>,
    #[arg(long, value_name = "FILE", hide = true, default_value = "target/libzmq-peer")]
    libzmq_peer: PathBuf,
    #[arg(long, value_name = "FILE", hide = true, default_value = "nats-server")]
    nats_server: PathBuf,
    #[arg(long, value_name = "FILE", hide = true, default_value = "../../../target/release/xmsg-proxy")]
    xmsg_proxy: PathBuf,
}

fn main() -> Result<()> {
    let Cli { command, options } = Cli::parse();
    match command {
        Some(Command::Patterns(options)) => patterns::compare(&options),
        Some(Command::Peer { threads, kind, role }) => peer::run(kind, role, threads),
        Some(Command::PatternPeer { threads, stack, part }) => peer::patterns::run(stack, part, threads),
        None if options.list => {
            list();
            Ok(())
        }
        None => compare(&options),
    }
}

fn list() {
    for case in CASES {
        println!("{:20} {:?}", case.name, case.load);
    }
    let names: Vec<&str> = Stack::value_variants().iter().map(|stack| stack.name()).collect();
    println!("stacks: {}", names.join(", "));
}

fn compare(options: &Options) -> Result<()> {
    let cases = chosen(&options.cases, CASES, |case| case.name)?;
    let stacks = if options.stacks.is_empty() { Stack::value_variants() } else { &options.stacks };
    let (rounds, seconds) = if options.smoke { (1, 0.2) } else { (options.rounds, options.seconds) };
    ensure!(rounds > 0 && seconds > 0.0, "there must be a round, and it must take some time");
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let programs = Programs {
        compare: std::env::current_exe()?,
        libzmq_peer: options.libzmq_peer.clone(),
        nats_server: options.nats_server.clone(),
        xmsg_proxy: options.xmsg_proxy.clone(),
        folder: folder.path().to_owned(),
        threads: options.threads,
        proxy_threads: options.proxy_threads,
    };

    let (started, mut runs, mut given_up) = (Instant::now(), Vec::new(), Vec::new());
    for round in 0..rounds {
        for case in &cases {
            let taking_part: Vec<Stack> =
                stacks.iter().copied().filter(|stack| stack.takes_part_in(case)).collect();
            for place in 0..taking_part.len() {
                // The stacks take turns, so that none is always the first, or always after the same one.
                let stack = taking_part[(place + round) % taking_part.len()];
                if given_up.contains(&(case.name, stack)) {
                    continue;
                }
                let mut run = run::run(&programs, case, stack, seconds, round + 1, options.verbose);
                if let Some(failure) = run.failure.as_mut().filter(|_| run.delivered == 0) {
                    // The next run would not be better, and the time limits are long.
                    failure.push_str("; not tried again");
                    given_up.push((case.name, stack));
                }
                progress(&run);
                runs.push(run);
            }
        }
    }
    // The rows are in the order of the stacks, whichever began.
    runs.sort_by_key(|run| {
        let case = cases.iter().position(|case| case.name == run.case);
        (case, stacks.iter().position(|stack| stack.name() == run.stack), run.round)
    });

    let machine = machine::describe(&["nats-server"]);
    let summaries = report::summarize(&runs);
    println!(
        "{machine}\nRounds: {rounds}; counts for about {seconds} s of libzmq; medians. Taken in {:.0} s.\n",
        started.elapsed().as_secs_f64()
    );
    println!("{}", report::tables(&summaries));
    if let Some(file) = &options.json {
        let all = serde_json::json!({
            "machine": machine, "rounds": rounds, "seconds": seconds, "medians": summaries, "runs": runs,
        });
        fs::write(file, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    plot::draw(&options.svg, &summaries, &machine)?;
    println!("The chart is in {}.", options.svg.display());
    if options.smoke {
        check_smoke(&summaries)?;
    }
    Ok(())
}

/// Checks that xmsg and the reference have figures in all cases, and every other stack in at least one.
fn check_smoke(summaries: &[Summary]) -> Result<()> {
    let has_figures = |summary: &&Summary| summary.runs > 0;
    for stack in report::distinct(summaries.iter().map(|summary| summary.stack.as_str())) {
        let mut of_stack = summaries.iter().filter(|summary| summary.stack == stack);
        let works = match stack {
            "xmsg" | "libzmq" => of_stack.all(|summary| has_figures(&summary)),
            _ => of_stack.any(|summary| has_figures(&summary)),
        };
        ensure!(works, "no figures of {stack}: see above, and try --verbose");
    }
    Ok(())
}

/// Returns the cases that the command line asks for.
fn chosen<C: Copy>(names: &[String], all: &[C], name_of: fn(&C) -> &str) -> Result<Vec<C>> {
    let matches = |name: &str, case: &C| match name.strip_suffix('*') {
        Some(start) => name_of(case).starts_with(start),
        None => name_of(case).eq_ignore_ascii_case(name),
    };
    for name in names {
        ensure!(all.iter().any(|case| matches(name, case)), "there is no case `{name}`; --list shows them");
    }
    let wanted = |case: &&C| names.is_empty() || names.iter().any(|name| matches(name, case));
    Ok(all.iter().filter(wanted).copied().collect())
}

fn progress(run: &Run) {
    let figures = match &run.latency {
        Some(latency) => format!("p50 {:.0} µs, p99 {:.0} µs", latency.p50, latency.p99),
        None => {
            format!("{:.0}/s, {:.3} µs CPU, {:.3} µs of the server", run.rate, run.cpu_us, run.server_cpu_us)
        }
    };
    let failure = run.failure.as_ref().map(|failure| format!("; {failure}")).unwrap_or_default();
    eprintln!("{}, {}, {}: {figures}, lost {}{failure}", run.round, run.case, run.stack, run.lost);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_chosen_by_name_and_by_what_they_start_with() {
        let names = |wanted: &[&str]| -> Vec<&str> {
            let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
            chosen(&wanted, CASES, |case| case.name).unwrap().into_iter().map(|case| case.name).collect()
        };
        assert_eq!(names(&["1mib", "16B"]), ["16B", "1MiB"]);
        assert_eq!(names(&["latency*"]).len(), 3);
        assert_eq!(names(&[]).len(), CASES.len());
        assert!(chosen(&["17B".to_owned()], CASES, |case| case.name).is_err());
    }
}
