//! Statistics of messages and bytes for each topic, once a second: `xmsg sub --report`.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::{Value, json};
use xmsg_core::text::json_escaped;
use xmsg_core::{Message, Topic};

use crate::output::{counted, grouped, rounded};
use crate::render::topic_text;

/// The largest number of topics with their own counts. All other topics are counted together.
const TOPICS_MAX: usize = 1000;
/// The largest number of topics with their own row in one report, so that it fits on a screen.
const ROWS_MAX: usize = 20;
/// The number of lines after which the header is repeated.
const HEADER_EVERY: usize = 24;
const INTERVAL: Duration = Duration::from_secs(1);

/// Counts messages and bytes of each topic since the last report.
#[derive(Debug)]
pub(crate) struct Report {
    topics: HashMap<Topic, Count>,
    others: Count,
    start: Instant,
    last: Instant,
    due: Instant,
    is_json: bool,
    /// The number of lines since the header.
    lines: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    messages: u64,
    bytes: u64,
    total: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.messages += 1;
        self.total += 1;
        self.bytes += bytes;
    }

    fn sum<'a>(counts: impl Iterator<Item = &'a Self>) -> Self {
        counts.fold(Self::default(), |sum, count| Self {
            messages: sum.messages + count.messages,
            bytes: sum.bytes + count.bytes,
            total: sum.total + count.total,
        })
    }
}

impl Report {
    pub(crate) fn new(is_json: bool) -> Self {
        let now = Instant::now();
        Self {
            topics: HashMap::new(),
            others: Count::default(),
            start: now,
            last: now,
            due: now + INTERVAL,
            is_json,
            lines: None,
        }
    }

    pub(crate) fn count(&mut self, message: &Message) {
        let bytes = message.data().len() as u64;
        if let Some(count) = self.topics.get_mut(message.topic()) {
            count.add(bytes);
        } else if self.topics.len() < TOPICS_MAX {
            // The topic is copied, so that it does not keep the memory of its message alive.
            let topic = Topic::wrap(message.topic().as_bytes().to_vec());
            self.topics.entry(topic).or_default().add(bytes);
        } else {
            self.others.add(bytes);
        }
    }

    /// Returns when the next report is to be written.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    pub(crate) fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// Appends a report of what arrived since the last one.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>) {
        let now = Instant::now();
        if self.is_json {
            self.write_json(out, now);
        } else {
            self.write_rows(out, now);
        }
        for count in self.topics.values_mut().chain([&mut self.others]) {
            (count.messages, count.bytes) = (0, 0);
        }
        self.last = now;
        while self.due <= now {
            self.due += INTERVAL;
        }
    }

    fn write_rows(&mut self, out: &mut Vec<u8>, now: Instant) {
        let time = now - self.last;
        if self.lines.is_none_or(|lines| lines >= HEADER_EVERY) {
            self.lines = Some(0);
            // Writing to memory cannot fail.
            let _ = writeln!(out, "{:>12} {:>12} {:>16}  TOPIC", "MESSAGES/S", "KB/S", "TOTAL");
        }
        let mut lines = 0;
        let mut row = |count: &Count, name: &str| {
            let (rate, bytes) = (rate(count.messages as f64, time), rate(count.bytes as f64 / 1e3, time));
            lines += 1;
            let _ = writeln!(out, "{rate:>12} {bytes:>12} {:>16}  {name}", grouped(count.total));
        };
        let all = Count::sum(self.topics.values().chain([&self.others]));
        row(&all, &format!("all, after {:.0} s", (now - self.start).as_secs_f64()));
        // The busiest topics come first. Topics without new messages are sorted by their totals.
        let mut topics: Vec<_> = self.topics.iter().collect();
        topics.sort_unstable_by_key(|(topic, count)| (Reverse(count.messages), Reverse(count.total), *topic));
        let (shown, more) = topics.split_at(topics.len().min(ROWS_MAX));
        for (topic, count) in shown {
            row(count, &topic_text(topic));
        }
        let are_bounded = self.others.total > 0;
        if !more.is_empty() || are_bounded {
            let rest = Count::sum(more.iter().map(|(_, count)| *count).chain([&self.others]));
            let more = counted(more.len() as u64, "more topic");
            let name = if are_bounded { format!("{more}, and others that are not told apart") } else { more };
            row(&rest, &name);
        }
        self.lines = self.lines.map(|before| before + lines);
    }

    fn write_json(&self, out: &mut Vec<u8>, now: Instant) {
        let time = format!("{:.6}", Timestamp::now());
        let seconds = (now - self.last).as_secs_f64();
        let mut object = |topic: Option<&Topic>, count: &Count| {
            let mut object = json!({
                "topic": topic.map(|topic| String::from_utf8_lossy(topic.as_bytes())),
                "time": time,
                "seconds": seconds,
                "messages": count.messages,
                "bytes": count.bytes,
                "total_messages": count.total,
            });
            if let Some(topic) = topic.filter(|topic| topic.to_str().is_err()) {
                object["topic_base64"] = Value::from(BASE64.encode(topic.as_bytes()));
            }
            out.extend_from_slice(json_escaped(&object.to_string()).as_bytes());
            out.push(b'\n');
        };
        let mut topics: Vec<_> = self.topics.iter().collect();
        topics.sort_unstable_by_key(|(topic, _)| *topic);
        for (topic, count) in topics {
            object(Some(topic), count);
        }
        if self.others.total > 0 {
            object(None, &self.others);
        }
    }
}

/// Formats a rate per second. Rates below 10 have decimals.
fn rate(count: f64, time: Duration) -> String {
    let rate = count / time.as_secs_f64().max(1e-9);
    match rate {
        0.0 => "0".to_owned(),
        ..0.1 => format!("{rate:.3}"),
        ..10.0 => format!("{rate:.2}"),
        _ => rounded(rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(report: &mut Report) -> Vec<String> {
        let mut out = Vec::new();
        report.write(&mut out);
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    fn message(topic: impl Into<String>) -> Message {
        Message::of(Topic::wrap(topic.into()), vec![0_u8; 10]).unwrap()
    }

    #[test]
    fn a_report_has_the_busiest_topics_and_says_how_many_more_there_are() {
        let mut report = Report::new(false);
        for n in 0..ROWS_MAX + 5 {
            report.count(&message(format!("t:{n:04}")));
        }
        report.count(&message("t:0024"));
        let rows = written(&mut report);
        assert_eq!(rows.len(), 1 + 1 + ROWS_MAX + 1);
        assert!(rows[0].ends_with("TOTAL  TOPIC"), "{}", rows[0]);
        assert!(rows[1].contains(" 26  all, after 0 s"), "{}", rows[1]);
        assert!(rows[2].ends_with(" 2  t:0024"), "{}", rows[2]);
        assert!(rows[3].ends_with(" 1  t:0000"), "{}", rows[3]);
        assert!(rows[22].ends_with(" 5  5 more topics"), "{}", rows[22]);
        // The header is repeated when it has scrolled away, and not before.
        assert!(!written(&mut report)[0].contains("TOPIC"));
        assert!(written(&mut report)[0].contains("TOPIC"));
    }

    #[test]
    fn what_is_remembered_of_topics_is_bounded() {
        for is_json in [false, true] {
            let mut report = Report::new(is_json);
            for n in 0..TOPICS_MAX + 5 {
                report.count(&message(format!("t:{n:04}")));
            }
            let rows = written(&mut report);
            let last = rows.last().unwrap();
            if is_json {
                assert_eq!(rows.len(), TOPICS_MAX + 1);
                let last: Value = serde_json::from_str(last).unwrap();
                assert_eq!((&last["topic"], &last["messages"]), (&Value::Null, &json!(5)));
            } else {
                assert!(
                    last.ends_with(" 985  980 more topics, and others that are not told apart"),
                    "{last}"
                );
            }
        }
    }

    #[test]
    fn rates_below_ten_have_decimals() {
        let time = Duration::from_secs(4);
        let rates =
            [(0.0, "0"), (0.02, "0.005"), (1.0, "0.25"), (30.0, "7.50"), (40.0, "10"), (8e3, "2,000")];
        for (count, text) in rates {
            assert_eq!(rate(count, time), text);
        }
    }
}
