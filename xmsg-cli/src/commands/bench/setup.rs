//! Sets something up repeatedly, and measures the time.

use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use serde_json::{Value, json};

use super::histogram::Times;
use super::live::Live;
use super::plot::{self, Curve};
use super::report::{Report, Table, per_second, rate, time};
use crate::output::{counted, grouped};
use crate::signals::Interrupt;

/// The results of the setups.
#[derive(Debug)]
pub(super) struct SetUp {
    /// The time of each setup.
    times: Times,
    /// The time of all of them together.
    time: Duration,
    interrupted: bool,
    failed: u64,
    /// The error of the last setup that failed.
    reason: Option<xmsg_core::Error>,
}

/// Sets up `count` things, `concurrency` of them at the same time, and takes each down again. If the very
/// first one fails, the bench fails.
pub(super) async fn set_up<T>(
    name: &str,
    count: u64,
    concurrency: u16,
    interrupt: &mut Interrupt,
    up: impl AsyncFn(u64) -> xmsg_core::Result<T>,
    down: impl AsyncFn(T),
) -> anyhow::Result<SetUp> {
    let (up, down) = (&up, &down);
    let one = |number| async move {
        let started = Instant::now();
        let made = up(number).await;
        let time = started.elapsed();
        match made {
            Ok(made) => down(made).await,
            Err(error) => return Err(error),
        }
        Ok(time)
    };
    let mut made =
        SetUp { times: Times::fine(), time: Duration::ZERO, interrupted: false, failed: 0, reason: None };
    let live = Live::new(name);
    let started = Instant::now();
    let mut all = std::pin::pin!(stream::iter(0..count).map(one).buffer_unordered(concurrency.into()));
    loop {
        let result = tokio::select! {
            result = all.next() => result,
            _ = interrupt.wait() => {
                made.interrupted = true;
                break;
            }
        };
        match result {
            None => break,
            Some(Ok(time)) => made.times.record(time),
            Some(Err(error)) if made.times.count() == 0 => return Err(error.into()),
            Some(Err(error)) => {
                made.failed += 1;
                made.reason = Some(error);
            }
        }
        live.done(made.times.count() + made.failed, Some(count));
    }
    made.time = started.elapsed();
    Ok(made)
}

impl SetUp {
    fn rate(&self) -> f64 {
        per_second(self.times.count(), self.time)
    }

    /// Makes the report of a mode. `plot` has the title of the chart and the name of the times, if a chart
    /// was requested.
    pub(super) fn report(
        &self,
        mode: &'static str,
        noun: &str,
        settings: Value,
        plot: Option<[&str; 2]>,
    ) -> anyhow::Result<Report> {
        let name = format!("{noun}s");
        let plot = plot.map(|[title, what]| {
            plot::percentiles(title, what, &[Curve { name: name.clone(), times: &self.times }])
        });
        Ok(Report {
            mode,
            settings,
            result: self.json(&name),
            text: self.text(&name),
            plot: plot.transpose()?,
            interrupted: self.interrupted,
            lost: 0,
            failed: self.failure(noun),
        })
    }

    /// Makes the text for people; `name` is the plural.
    fn text(&self, name: &str) -> String {
        let columns = self.times.columns();
        let mut headings = vec!["", "made", "per second"];
        headings.extend(columns.iter().map(|(heading, _)| *heading));
        let mut table = Table::new(&headings);
        let mut cells = vec![name.to_owned(), grouped(self.times.count()), rate(self.rate())];
        cells.extend(columns.iter().map(|(_, value)| time(*value)));
        table.row(cells);
        format!("{}failed {}\n", table.text(), grouped(self.failed))
    }

    /// Makes the result for programs.
    fn json(&self, name: &str) -> Value {
        json!({
            name: self.times.count(),
            "failed": self.failed,
            "seconds": self.time.as_secs_f64(),
            format!("{name}_per_second"): self.rate(),
            "time": self.times.json(),
        })
    }

    /// Returns the error message if some setups failed.
    fn failure(&self, noun: &str) -> Option<String> {
        let reason = self.reason.as_ref()?;
        Some(format!("{} failed, the last one because: {reason}", counted(self.failed, noun)))
    }
}

#[cfg(test)]
mod tests {
    use xmsg_core::{Error, ErrorKind};

    use super::*;

    async fn made(bad: impl Fn(u64) -> bool) -> anyhow::Result<SetUp> {
        let mut interrupt = Interrupt::new()?;
        let up = async |number| {
            if bad(number) {
                return Err(Error::new(ErrorKind::Timeout, format!("number {number}")));
            }
            Ok(number)
        };
        set_up("things", 10, 3, &mut interrupt, up, async |_| {}).await
    }

    #[tokio::test]
    async fn what_fails_is_counted_and_told() {
        let all = made(|_| false).await.unwrap();
        assert_eq!((all.times.count(), all.failed, all.failure("thing")), (10, 0, None));
        let some = made(|number| number > 7).await.unwrap();
        assert_eq!((some.times.count(), some.failed), (8, 2));
        assert_eq!(some.failure("thing").unwrap(), "2 things failed, the last one because: number 9");
        assert_eq!(some.json("things")["things"], 8);
        assert!(some.text("things").contains("failed 2"));
        let error = made(|_| true).await.unwrap_err();
        assert_eq!(error.to_string(), "number 0");
    }
}
