//! The tables that `compare patterns` prints.

use std::fmt::Write;

use clap::ValueEnum;

use super::cases::{self, Case, Pattern};
use super::stacks::{Stack, value_name};
use crate::peer::Threads;
use crate::report::{OURS, REFERENCE, Summary, count, failures, find, lost, micros, table, times};
use crate::run::Latency;
use crate::stats::ratio;

/// The runtime on which each stack ran each case.
#[derive(Debug, Default)]
pub struct Runtimes(Vec<(&'static str, &'static str, Threads)>);

impl Runtimes {
    pub fn set(&mut self, case: &Case, stack: Stack, threads: Threads) {
        self.0.push((case.name, stack.name(), threads));
    }

    pub fn of(&self, case: &str, stack: &str) -> Option<Threads> {
        self.0
            .iter()
            .find(|(of_case, of_stack, _)| (*of_case, *of_stack) == (case, stack))
            .map(|found| found.2)
    }

    pub fn to_json(&self) -> serde_json::Value {
        let entries = self.0.iter().map(|(case, stack, threads)| {
            serde_json::json!({ "case": case, "stack": stack, "threads": value_name(threads) })
        });
        entries.collect()
    }

    fn cell(&self, s: &Summary) -> String {
        self.of(&s.case, &s.stack).map_or_else(|| "–".into(), |threads| value_name(&threads))
    }
}

/// Returns all tables as Markdown, followed by what is missing from them.
pub fn tables(summaries: &[Summary], cases: &[Case], stacks: &[Stack], runtimes: &Runtimes) -> String {
    let of = |wanted: fn(&Case) -> bool| -> Vec<&Summary> {
        summaries.iter().filter(|s| cases::find(&s.case).is_some_and(wanted)).collect()
    };
    let mut text = String::new();
    let parts = [
        one_way(summaries, &of(|case| !case.is_exchange() && !case.is_latency()), runtimes),
        round_trips(summaries, &of(Case::is_exchange), runtimes),
        latencies(summaries, &of(Case::is_latency), runtimes),
        against(summaries, cases),
    ];
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&part);
    }
    failures(&mut text, summaries);
    missing(&mut text, cases, stacks);
    text
}

/// Returns the first cells of a row: the case, unless the row before has the same one, and the stack.
fn names(rows: &[Vec<String>], previous: &mut String, s: &Summary) -> Vec<String> {
    let case = if !rows.is_empty() && *previous == s.case { String::new() } else { s.case.clone() };
    previous.clone_from(&s.case);
    vec![case, s.stack.clone()]
}

/// Returns a figure as a multiple of another stack's figure in the same case.
fn against_stack(all: &[Summary], s: &Summary, stack: &str, field: impl Fn(&Summary) -> f64) -> String {
    times(find(all, &s.case, stack).and_then(|other| ratio(field(s), field(other))))
}

fn latency(s: &Summary, field: fn(&Latency) -> f64) -> f64 {
    s.latency.as_ref().map_or(f64::NAN, field)
}

fn p50(s: &Summary) -> f64 {
    latency(s, |latency| latency.p50)
}

fn p99(s: &Summary) -> f64 {
    latency(s, |latency| latency.p99)
}

fn span(s: &Summary) -> String {
    let (slowest, fastest) = s.rate_range;
    format!("{} to {}", count(slowest), count(fastest))
}

fn one_way(all: &[Summary], shown: &[&Summary], runtimes: &Runtimes) -> String {
    let header = [
        "case",
        "stack",
        "messages/s",
        "×libzmq",
        "slowest to fastest",
        "lost",
        "out of order",
        "CPU, µs",
        "×libzmq",
        "runtime",
    ];
    table_of(
        "Messages that go one way; CPU is the processor time of all processes for a message",
        &header,
        shown,
        |s| {
            vec![
                count(s.rate),
                against_stack(all, s, REFERENCE, |s| s.rate),
                span(s),
                lost(s),
                count(s.disorder),
                micros(s.cpu_us),
                against_stack(all, s, REFERENCE, |s| s.cpu_us),
                runtimes.cell(s),
            ]
        },
    )
}

/// Returns a table with a row for each case and stack, which has these cells behind their names.
fn table_of(
    title: &str,
    header: &[&str],
    shown: &[&Summary],
    cells: impl Fn(&Summary) -> Vec<String>,
) -> String {
    let (mut rows, mut previous) = (Vec::new(), String::new());
    for s in shown {
        let mut row = names(&rows, &mut previous, s);
        row.extend(cells(s));
        rows.push(row);
    }
    titled(title, header, &rows)
}

fn round_trips(all: &[Summary], shown: &[&Summary], runtimes: &Runtimes) -> String {
    let header = [
        "case",
        "stack",
        "round trips/s",
        "×libzmq",
        "slowest to fastest",
        "p50, µs",
        "p99, µs",
        "p99.9, µs",
        "CPU, µs",
        "×libzmq",
        "runtime",
    ];
    table_of(
        "Round trips: one after another in req-rep, 100 under way in dealer-router; CPU is the processor time of both processes for a round trip",
        &header,
        shown,
        |s| {
            vec![
                count(s.rate),
                against_stack(all, s, REFERENCE, |s| s.rate),
                span(s),
                micros(p50(s)),
                micros(p99(s)),
                micros(latency(s, |latency| latency.p999)),
                micros(s.cpu_us),
                against_stack(all, s, REFERENCE, |s| s.cpu_us),
                runtimes.cell(s),
            ]
        },
    )
}

fn latencies(all: &[Summary], shown: &[&Summary], runtimes: &Runtimes) -> String {
    let header = [
        "case",
        "stack",
        "p50, µs",
        "×libzmq",
        "p99, µs",
        "×libzmq",
        "p99.9, µs",
        "max, µs",
        "lost",
        "CPU, µs",
        "×libzmq",
        "runtime",
    ];
    table_of(
        "Latency over PUSH and PULL at a fixed rate, which counts from the time at which a message should have been sent",
        &header,
        shown,
        |s| {
            vec![
                micros(p50(s)),
                against_stack(all, s, REFERENCE, p50),
                micros(p99(s)),
                against_stack(all, s, REFERENCE, p99),
                micros(latency(s, |latency| latency.p999)),
                micros(latency(s, |latency| latency.max)),
                lost(s),
                micros(s.cpu_us),
                against_stack(all, s, REFERENCE, |s| s.cpu_us),
                runtimes.cell(s),
            ]
        },
    )
}

/// Returns a table that compares our figures with those of libzmq, the best other crate, and tokio's channel.
fn against(all: &[Summary], cases: &[Case]) -> String {
    let header = [
        "case",
        "figure",
        "best other crate",
        "×libzmq",
        "×that crate",
        "×tokio channel",
        "CPU ×libzmq",
        "CPU ×that crate",
    ];
    let mut rows: Vec<Vec<String>> = Vec::new();
    for case in cases {
        let Some(ours) = find(all, case.name, OURS) else { continue };
        for (place, figure) in figures(case).into_iter().enumerate() {
            let best = best_other(all, case, &figure);
            let of_best = |field: &dyn Fn(&Summary) -> f64| {
                best.map_or_else(|| "–".into(), |best| against_stack(all, ours, &best.stack, field))
            };
            rows.push(vec![
                if place > 0 { String::new() } else { case.name.into() },
                figure.name.into(),
                best.map_or_else(|| "–".into(), |best| best.stack.clone()),
                against_stack(all, ours, REFERENCE, figure.value),
                of_best(&figure.value),
                against_stack(all, ours, Stack::Channel.name(), figure.value),
                against_stack(all, ours, REFERENCE, |s| s.cpu_us),
                of_best(&|s| s.cpu_us),
            ]);
        }
    }
    let mut text = String::new();
    if !rows.is_empty() {
        text.push_str("xmsg as a multiple of the others; more is better for a rate, and less for a time\n\n");
        table(&mut text, &header, 3, &rows);
    }
    text
}

/// A figure that matters in a case.
struct Figure {
    name: &'static str,
    value: fn(&Summary) -> f64,
    less_is_better: bool,
}

fn figures(case: &Case) -> Vec<Figure> {
    let rate = Figure { name: "rate", value: |s| s.rate, less_is_better: false };
    let median = Figure { name: "p50", value: p50, less_is_better: true };
    let tail = Figure { name: "p99", value: p99, less_is_better: true };
    match case.pattern {
        _ if case.is_latency() => vec![median, tail],
        Pattern::ReqRep => vec![rate, median, tail],
        _ => vec![rate],
    }
}

/// Finds the other crate with the best value of this figure.
fn best_other<'a>(all: &'a [Summary], case: &Case, figure: &Figure) -> Option<&'a Summary> {
    let others = Stack::value_variants().iter().filter(|stack| stack.is_other_crate());
    let with_figures = others
        .filter_map(|stack| find(all, case.name, stack.name()).filter(|s| (figure.value)(s).is_finite()));
    let value = |s: &&Summary| (figure.value)(s) * if figure.less_is_better { -1.0 } else { 1.0 };
    with_figures.max_by(|one, other| value(one).total_cmp(&value(other)))
}

/// Appends which stacks do not take part in a case, and why.
fn missing(text: &mut String, cases: &[Case], stacks: &[Stack]) {
    let mut is_in_list = text.lines().last().is_some_and(|line| line.starts_with("- "));
    for stack in stacks.iter().filter(|stack| **stack != Stack::Channel) {
        for case in cases {
            if let Some(why) = stack.lacks(case) {
                if !std::mem::replace(&mut is_in_list, true) {
                    text.push('\n');
                }
                let _ = writeln!(text, "- {}, {}: not measured, {why}", case.name, stack.name());
            }
        }
    }
}

fn titled(title: &str, header: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    if !rows.is_empty() {
        let _ = writeln!(text, "{title}\n");
        table(&mut text, header, 2, rows);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patterns::cases::CASES;
    use crate::report::summarize;
    use crate::run::Run;

    fn run(case: &str, stack: Stack, rate: f64) -> Run {
        let (case, stack) = (case.to_owned(), stack.name().to_owned());
        Run { case, stack, rate, expected: 1000, delivered: 1000, cpu_us: 1e6 / rate, ..Run::default() }
    }

    fn cells<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
        let row = text.lines().rfind(|line| line.starts_with(start)).unwrap_or_default();
        row.split('|').map(str::trim).collect()
    }

    #[test]
    fn ours_is_set_against_libzmq_the_best_other_crate_and_the_channel() {
        let runs = [(Stack::Libzmq, 1e6), (Stack::Omq, 4e6), (Stack::Xmsg, 6e6), (Stack::Channel, 12e6)]
            .map(|(stack, rate)| run("inproc-pair", stack, rate));
        let text = tables(&summarize(&runs), CASES, Stack::value_variants(), &Runtimes::default());
        assert_eq!(
            cells(&text, "| inproc-pair | rate")[1..7],
            ["inproc-pair", "rate", "omq-tokio", "6.00", "1.50", "0.50"],
            "{text}"
        );
        assert!(text.contains("- pair, zeromq: not measured, it has no PAIR"), "{text}");
    }

    #[test]
    fn the_best_latency_is_the_smallest() {
        let runs =
            [(Stack::Zeromq, 90.0), (Stack::Rzmq, 60.0), (Stack::Xmsg, 30.0)].map(|(stack, p50)| Run {
                latency: Some(Latency { p50, p99: 2.0 * p50, p999: 3.0 * p50, max: 4.0 * p50 }),
                ..run("latency-1k", stack, 1000.0)
            });
        let text = tables(&summarize(&runs), CASES, &[Stack::Xmsg], &Runtimes::default());
        assert_eq!(cells(&text, "| latency-1k | p50")[3..6], ["rzmq", "–", "0.50"], "{text}");
    }

    #[test]
    fn the_runtime_of_each_stack_is_shown() {
        let mut runtimes = Runtimes::default();
        runtimes.set(cases::find("pair").unwrap(), Stack::Xmsg, Threads::Tasks);
        let text = tables(&summarize(&[run("pair", Stack::Xmsg, 1e6)]), CASES, &[Stack::Xmsg], &runtimes);
        assert_eq!(cells(&text, "| pair | xmsg")[10], "tasks", "{text}");
    }
}
