//! The medians of the runs, and the tables that are printed.

use std::fmt::Write;

use serde::Serialize;

use crate::run::{Latency, Run};
use crate::stats::{median, range, ratio};

/// The stack of which all other figures are multiples.
pub const REFERENCE: &str = "libzmq";
/// The stack that is compared with each of the others.
pub const OURS: &str = "xmsg";

/// The medians of the runs of one stack in one case.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub case: String,
    pub stack: String,
    pub runs: usize,
    pub rate: f64,
    /// The rates of the slowest and of the fastest run.
    pub rate_range: (f64, f64),
    /// The loss as a percentage of what should have been delivered.
    pub lost_percent: f64,
    pub lost: f64,
    pub disorder: f64,
    pub cpu_us: f64,
    pub server_cpu_us: f64,
    pub server_mib: f64,
    pub latency: Option<Latency>,
    /// The failures of runs that failed completely or in part.
    pub failures: Vec<String>,
}

/// Returns the medians, in the order in which cases and stacks first occur.
pub fn summarize(runs: &[Run]) -> Vec<Summary> {
    let mut keys: Vec<(&str, &str)> = Vec::new();
    for case in distinct(runs.iter().map(|run| run.case.as_str())) {
        let stacks = distinct(runs.iter().filter(|run| run.case == case).map(|run| run.stack.as_str()));
        keys.extend(stacks.into_iter().map(|stack| (case, stack)));
    }
    keys.into_iter()
        .map(|(case, stack)| {
            let all = || runs.iter().filter(move |run| run.case == case && run.stack == stack);
            let good: Vec<&Run> = all().filter(|run| run.rate > 0.0).collect();
            let of = |field: fn(&Run) -> f64| median(good.iter().map(|run| field(run)));
            let latencies: Vec<&Latency> = good.iter().filter_map(|run| run.latency.as_ref()).collect();
            let latency = |field: fn(&Latency) -> f64| median(latencies.iter().map(|latency| field(latency)));
            Summary {
                case: case.into(),
                stack: stack.into(),
                runs: good.len(),
                rate: of(|run| run.rate),
                rate_range: range(good.iter().map(|run| run.rate)).unwrap_or((f64::NAN, f64::NAN)),
                lost_percent: of(|run| {
                    ratio(run.lost as f64 * 100.0, run.expected as f64).unwrap_or(f64::NAN)
                }),
                lost: of(|run| run.lost as f64),
                disorder: of(|run| run.disorder as f64),
                // If the server was gone at the end, there are no figures for processor time and memory.
                cpu_us: median(good.iter().map(|run| run.cpu_us).filter(|cpu| *cpu > 0.0)),
                server_cpu_us: median(
                    good.iter().filter(|run| run.cpu_us > 0.0).map(|run| run.server_cpu_us),
                ),
                server_mib: median(good.iter().map(|run| run.server_mib).filter(|mib| *mib > 0.0)),
                latency: (!latencies.is_empty()).then(|| Latency {
                    p50: latency(|latency| latency.p50),
                    p99: latency(|latency| latency.p99),
                    p999: latency(|latency| latency.p999),
                    max: latency(|latency| latency.max),
                }),
                failures: all().filter_map(|run| run.failure.clone()).collect(),
            }
        })
        .collect()
}

/// Returns each value once, in order of first occurrence.
pub fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// Returns the summary of another stack in the same case.
pub fn find<'a>(summaries: &'a [Summary], case: &str, stack: &str) -> Option<&'a Summary> {
    summaries.iter().find(|other| other.case == case && other.stack == stack)
}

/// Returns all tables as Markdown.
pub fn tables(summaries: &[Summary]) -> String {
    let mut text = String::new();
    let (latency, flood): (Vec<_>, Vec<_>) = summaries.iter().partition(|summary| is_latency(summary));
    if !flood.is_empty() {
        throughput(&mut text, summaries, &flood);
        against_each(&mut text, summaries, &flood);
    }
    if !latency.is_empty() {
        latencies(&mut text, summaries, &latency);
    }
    failures(&mut text, summaries);
    text
}

fn is_latency(summary: &Summary) -> bool {
    summary.case.starts_with("latency")
}

fn throughput(text: &mut String, all: &[Summary], shown: &[&Summary]) {
    let header = [
        "case",
        "stack",
        "delivered/s",
        "×libzmq",
        "slowest to fastest",
        "lost",
        "CPU, µs",
        "×libzmq",
        "server CPU, µs",
        "×libzmq",
        "server MiB",
    ];
    let mut rows = Vec::new();
    let mut previous = "";
    for s in shown {
        let reference = find(all, &s.case, REFERENCE);
        let times = |field: fn(&Summary) -> f64| {
            times(reference.and_then(|reference| ratio(field(s), field(reference))))
        };
        let (slowest, fastest) = s.rate_range;
        rows.push(vec![
            if s.case == previous { String::new() } else { s.case.clone() },
            s.stack.clone(),
            count(s.rate),
            times(|s| s.rate),
            format!("{} to {}", count(slowest), count(fastest)),
            lost(s),
            micros(s.cpu_us),
            times(|s| s.cpu_us),
            micros(s.server_cpu_us),
            times(|s| s.server_cpu_us),
            if s.server_mib.is_finite() { format!("{:.1}", s.server_mib) } else { "–".into() },
        ]);
        previous = &s.case;
    }
    text.push_str("Delivered rate; processor time for a published message, of all processes and of the server alone\n\n");
    table(text, &header, 2, &rows);
}

fn against_each(text: &mut String, all: &[Summary], shown: &[&Summary]) {
    let others = distinct(shown.iter().map(|s| s.stack.as_str()).filter(|stack| *stack != OURS));
    let ours: Vec<_> = shown.iter().filter(|s| s.stack == OURS).collect();
    if ours.is_empty() || others.is_empty() {
        return;
    }
    let mut header = vec!["case"];
    let rate_titles: Vec<String> = others.iter().map(|other| format!("rate ×{other}")).collect();
    let cpu_titles: Vec<String> = others.iter().map(|other| format!("CPU ×{other}")).collect();
    header.extend(rate_titles.iter().chain(&cpu_titles).map(String::as_str));
    let rows: Vec<Vec<String>> = ours
        .iter()
        .map(|s| {
            let column = |field: fn(&Summary) -> f64| {
                let other = move |other: &&str| find(all, &s.case, other);
                others.iter().map(move |o| times(other(o).and_then(|other| ratio(field(s), field(other)))))
            };
            let name = std::iter::once(s.case.clone());
            name.chain(column(|s| s.rate)).chain(column(|s| s.cpu_us)).collect()
        })
        .collect();
    text.push_str(
        "\nxmsg as a multiple of each: delivered rate, and processor time of all processes for a message\n\n",
    );
    table(text, &header, 1, &rows);
}

fn latencies(text: &mut String, all: &[Summary], shown: &[&Summary]) {
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
    ];
    let mut rows = Vec::new();
    let mut previous = "";
    for s in shown {
        let reference = find(all, &s.case, REFERENCE);
        let latency = |field: fn(&Latency) -> f64| s.latency.as_ref().map_or(f64::NAN, field);
        let times_latency = |field: fn(&Latency) -> f64| {
            let base = reference.and_then(|reference| reference.latency.as_ref());
            times(base.and_then(|base| ratio(latency(field), field(base))))
        };
        rows.push(vec![
            if s.case == previous { String::new() } else { s.case.clone() },
            s.stack.clone(),
            micros(latency(|l| l.p50)),
            times_latency(|l| l.p50),
            micros(latency(|l| l.p99)),
            times_latency(|l| l.p99),
            micros(latency(|l| l.p999)),
            micros(latency(|l| l.max)),
            lost(s),
            micros(s.cpu_us),
            times(reference.and_then(|reference| ratio(s.cpu_us, reference.cpu_us))),
        ]);
        previous = &s.case;
    }
    let gap = if text.is_empty() { "" } else { "\n" };
    let _ = writeln!(
        text,
        "{gap}Latency at a fixed rate, from the time at which a message should have been sent\n"
    );
    table(text, &header, 2, &rows);
}

pub fn failures(text: &mut String, summaries: &[Summary]) {
    let mut first = true;
    for s in summaries {
        for why in distinct(s.failures.iter().map(String::as_str)) {
            if std::mem::take(&mut first) {
                text.push('\n');
            }
            let times = s.failures.iter().filter(|failure| *failure == why).count();
            let _ = writeln!(
                text,
                "- {}, {}: {why} ({times} of {} runs)",
                s.case,
                s.stack,
                s.runs.max(s.failures.len())
            );
        }
        if s.disorder > 0.0 {
            let _ = writeln!(text, "- {}, {}: {:.0} messages came out of order", s.case, s.stack, s.disorder);
        }
    }
}

/// Appends a Markdown table with aligned columns. The first `left` columns are left-aligned, and the others,
/// which contain numbers, are right-aligned.
pub fn table(text: &mut String, header: &[&str], left: usize, rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count(), 3]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        for (column, (cell, width)) in cells.zip(&widths).enumerate() {
            let _ = if column < left {
                write!(text, "| {cell:<width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text.push_str("|\n");
    };
    line(&mut header.iter().copied());
    let rules: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(column, width)| if column < left { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" })
        .collect();
    line(&mut rules.iter().map(String::as_str));
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

pub fn lost(s: &Summary) -> String {
    match s.lost {
        lost if lost > 0.0 => format!("{} ({:.1} %)", count(lost), s.lost_percent),
        lost if lost.is_finite() => "0".into(),
        _ => "–".into(),
    }
}

pub fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"))
}

pub fn micros(value: f64) -> String {
    match value {
        value if !value.is_finite() => "–".into(),
        value if value < 100.0 => format!("{value:.2}"),
        value => count(value),
    }
}

/// Formats a number with commas between thousands.
pub fn count(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stack: &str, rate: f64, lost: u64) -> Run {
        let (case, stack) = ("100B".to_owned(), stack.to_owned());
        Run {
            case,
            stack,
            rate,
            lost,
            expected: 1000,
            cpu_us: 1e6 / rate,
            server_cpu_us: 0.5,
            server_mib: 8.0,
            ..Run::default()
        }
    }

    #[test]
    fn ratios_are_of_medians() {
        let runs = [1.0, 3.0, 2.0].map(|times| run("libzmq", times * 1e6, 0));
        let ours = [5.0, 4.0, 90.0].map(|times| run("xmsg", times * 1e6, 0));
        let summaries = summarize(&[runs, ours].concat());
        let text = tables(&summaries);
        let row = text.lines().find(|line| line.contains("| xmsg ")).unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[1..5], ["", "xmsg", "5,000,000", "2.50"], "{text}");
        assert_eq!(cells[5], "4,000,000 to 90,000,000");
        assert!(text.contains("rate ×libzmq"), "{text}");
    }

    #[test]
    fn losses_and_failures_are_shown() {
        let mut failed = run("zeromq", 0.0, 0);
        failed.failure = Some("the server has ended".into());
        let summaries = summarize(&[run("zeromq", 1e5, 250), failed]);
        assert_eq!(summaries[0].runs, 1);
        let text = tables(&summaries);
        assert!(text.contains("| 250 (25.0 %) |"), "{text}");
        assert!(text.contains("- 100B, zeromq: the server has ended (1 of 1 runs)"), "{text}");
    }

    #[test]
    fn a_stack_that_never_succeeded_has_a_row_without_figures() {
        let mut failed = run("omq-tokio", 0.0, 0);
        failed.failure = Some("stuck".into());
        let text = tables(&summarize(&[failed]));
        assert!(text.lines().any(|line| line.contains("omq-tokio") && line.contains("–")), "{text}");
    }

    #[test]
    fn latencies_have_a_table_of_their_own() {
        let latency = |p50| Some(Latency { p50, p99: 2.0 * p50, p999: 3.0 * p50, max: 4.0 * p50 });
        let runs = [("libzmq", 100.0), ("xmsg", 50.0)].map(|(stack, p50)| Run {
            case: "latency-1k".into(),
            latency: latency(p50),
            ..run(stack, 1000.0, 0)
        });
        let text = tables(&summarize(&runs));
        assert!(!text.contains("delivered/s"), "{text}");
        let row = text.lines().find(|line| line.contains("| xmsg ")).unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[2..8], ["xmsg", "50.00", "0.50", "100", "0.50", "150"], "{text}");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([999.0, 1000.0, 1_234_567.0, f64::NAN].map(count), ["999", "1,000", "1,234,567", "–"]);
    }
}
