//! The view of `xmsg top`.

use std::cmp::Ordering;
use std::fmt::Write;

use crossterm::event::KeyCode;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use xmsg_core::text::escaped;

use super::Sort;
use crate::live::{Controls, LiveView};
use crate::output::{counted, grouped, rounded};
use crate::sampling::{ConnectionRates, Rates, TopicRates};
use crate::screen::{Theme, draw_table};
use crate::table::{self, size, time};

const CONNECTION_COLUMNS: [&str; 8] =
    ["SIDE", "ID", "PEER", "PER S", "BYTES/S", "QUEUE", "DROPPED", "SLOW FOR"];
// Together with the gaps they are as wide as the narrowest usual terminal.
const CONNECTION_WIDTHS: [Constraint; 8] = [
    Constraint::Length(10),
    Constraint::Length(5),
    Constraint::Min(15),
    Constraint::Length(8),
    Constraint::Length(9),
    Constraint::Length(9),
    Constraint::Length(9),
    Constraint::Length(8),
];
const TOPIC_COLUMNS: [&str; 3] = ["PER S", "BYTES/S", "TOPIC"];
const TOPIC_WIDTHS: [Constraint; 3] = [Constraint::Length(9), Constraint::Length(10), Constraint::Min(12)];

/// The rates of a sample, sorted and filtered.
#[derive(Debug)]
pub(super) struct VisibleRates<'a> {
    pub(super) connections: Vec<&'a ConnectionRates>,
    pub(super) topics: Vec<&'a TopicRates>,
}

impl<'a> VisibleRates<'a> {
    pub(super) fn of(rates: &'a Rates, sort: Sort, filter: &str) -> Self {
        let wanted = |name: &str| name.to_lowercase().contains(&filter.to_lowercase());
        let mut connections: Vec<_> = rates
            .connections
            .iter()
            .filter(|one| wanted(&one.connection.who()) || wanted(&one.connection.kind))
            .collect();
        let queue = |one: &ConnectionRates| one.connection.queued.map_or(0, |queued| queued.bytes);
        connections.sort_by(|a, b| {
            let first = match sort {
                Sort::Rate => b.rate.total_cmp(&a.rate),
                Sort::Bytes => b.byte_rate.total_cmp(&a.byte_rate),
                Sort::Queue => queue(b).cmp(&queue(a)),
                Sort::Drops => b.connection.dropped_messages().cmp(&a.connection.dropped_messages()),
                Sort::Name => a.connection.peer.cmp(&b.connection.peer),
            };
            first.then_with(|| a.connection.id.cmp(&b.connection.id))
        });
        let mut topics: Vec<_> = rates.topics.iter().filter(|one| wanted(&one.name)).collect();
        topics.sort_by(|a, b| {
            let first = match sort {
                Sort::Rate => b.rate.total_cmp(&a.rate),
                Sort::Bytes => b.byte_rate.total_cmp(&a.byte_rate),
                _ => Ordering::Equal,
            };
            first.then_with(|| a.name.cmp(&b.name))
        });
        Self { connections, topics }
    }

    /// Returns the tables as text, for scripts and for terminals that can't be drawn on.
    pub(super) fn text(&self, address: &str, rates: &Rates) -> String {
        let mut text = String::new();
        // Writing to memory cannot fail.
        let _ = writeln!(text, "{address}\n{}\n", summary(rates, usize::MAX));
        let connections = self.connections.iter().map(|one| connection_cells(one)).collect();
        let topics = self.topics.iter().map(|one| topic_cells(one)).collect();
        let connections = table::lines(CONNECTION_COLUMNS, connections, true);
        for line in
            connections.into_iter().chain([String::new()]).chain(table::lines(TOPIC_COLUMNS, topics, true))
        {
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

/// Returns the totals as one line, with the losses first. Where not all of it fits into this number of
/// columns, the numbers of clients are left out.
fn summary(rates: &Rates, columns: usize) -> String {
    let stats = &rates.stats;
    let traffic = format!(
        "dropped {}/s, {} in all; in {}/s, out {}/s",
        rounded(rates.dropped),
        grouped(stats.dropped.messages),
        rounded(rates.received),
        rounded(rates.delivered),
    );
    let (publishers, subscribers) =
        (counted(stats.publishers, "publisher"), counted(stats.subscribers, "subscriber"));
    let all = format!("{traffic}; {publishers}, {subscribers}");
    if all.len() <= columns { all } else { traffic }
}

fn bytes(rate: f64) -> String {
    #[allow(clippy::cast_sign_loss, reason = "rates are not negative")]
    size(rate.round() as u64)
}

fn connection_cells(one: &ConnectionRates) -> [String; 8] {
    let connection = &one.connection;
    let or_none = |shown: Option<String>| shown.unwrap_or_else(|| "-".to_owned());
    [
        connection.kind.clone(),
        connection.id.to_string(),
        escaped(&connection.who()).into_owned(),
        rounded(one.rate),
        bytes(one.byte_rate),
        or_none(connection.queued.map(|queued| size(queued.bytes))),
        or_none(connection.dropped.map(|dropped| grouped(dropped.messages))),
        or_none(connection.slow_s.map(time)),
    ]
}

fn topic_cells(one: &TopicRates) -> [String; 3] {
    let rate = if one.rate < 10.0 { format!("{:.1}", one.rate) } else { rounded(one.rate) };
    [rate, bytes(one.byte_rate), escaped(&one.name).into_owned()]
}

/// Which tables are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VisibleTables {
    Both,
    Connections,
    Topics,
}

/// The live view.
#[derive(Debug)]
pub(super) struct View {
    address: String,
    unseen: Option<&'static str>,
    sort: Sort,
    controls: Controls,
    shown: VisibleTables,
    rates: Rates,
    /// Whether there was a sample yet.
    has_looked: bool,
    error: Option<String>,
}

impl View {
    pub(super) fn new(address: String, unseen: Option<&'static str>, sort: Sort, filter: String) -> Self {
        let shown = if unseen.is_some() { VisibleTables::Topics } else { VisibleTables::Both };
        Self {
            address,
            unseen,
            sort,
            controls: Controls::new(filter),
            shown,
            rates: Rates::default(),
            has_looked: false,
            error: None,
        }
    }
}

impl LiveView for View {
    type Sample = Rates;

    fn controls(&self) -> &Controls {
        &self.controls
    }

    fn show(&mut self, found: Result<Rates, String>) {
        match found {
            Ok(_) if self.controls.is_paused => {}
            Ok(rates) => {
                (self.rates, self.error, self.has_looked) = (rates, None, true);
            }
            Err(error) => self.error = Some(error),
        }
    }

    fn press(&mut self, key: KeyCode) {
        match self.controls.press(key) {
            Some(KeyCode::Char('t')) if self.unseen.is_none() => {
                self.shown = match self.shown {
                    VisibleTables::Both => VisibleTables::Connections,
                    VisibleTables::Connections => VisibleTables::Topics,
                    VisibleTables::Topics => VisibleTables::Both,
                };
                self.controls.skipped = 0;
            }
            Some(KeyCode::Char('r')) => self.sort = Sort::Rate,
            Some(KeyCode::Char('b')) => self.sort = Sort::Bytes,
            Some(KeyCode::Char('u')) => self.sort = Sort::Queue,
            Some(KeyCode::Char('d')) => self.sort = Sort::Drops,
            Some(KeyCode::Char('n')) => self.sort = Sort::Name,
            _ => {}
        }
    }

    fn draw(&self, frame: &mut Frame<'_>, look: Theme) {
        let area = frame.area();
        let [title, second, tables, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(2),
            Constraint::Length(1),
        ])
        .areas(area);
        let mut head =
            vec![Span::styled("xmsg top", look.title()), Span::raw(format!("  {}", escaped(&self.address)))];
        if self.has_looked && self.unseen.is_none() {
            head.push(Span::styled(
                format!(
                    "  {} {}, up for {}",
                    self.rates.stats.name,
                    self.rates.stats.version,
                    time(self.rates.stats.uptime_s)
                ),
                look.aside(),
            ));
        }
        if self.controls.is_paused {
            head.push(Span::styled("  paused", look.warning()));
        }
        frame.render_widget(Line::from(head), title);
        let line = match (&self.error, self.unseen) {
            (Some(error), _) => Line::styled(escaped(error).into_owned(), look.warning()),
            (None, Some(unseen)) => Line::styled(unseen, look.aside()),
            (None, None) if self.has_looked => {
                let style = if self.rates.dropped > 0.0 { look.warning() } else { Style::new() };
                Line::styled(summary(&self.rates, usize::from(second.width)), style)
            }
            (None, None) => Line::styled("looking …", look.aside()),
        };
        frame.render_widget(line, second);
        let visible = VisibleRates::of(&self.rates, self.sort, &self.controls.filter);
        match self.shown {
            VisibleTables::Both => {
                let wanted = visible.connections.len() as u16 + 2;
                let [upper, lower] = Layout::vertical([
                    Constraint::Max(wanted.max(4).min(tables.height / 2 + 1)),
                    Constraint::Min(3),
                ])
                .areas(tables);
                self.draw_connections(frame, upper, &visible, look);
                self.draw_topics(frame, lower, &visible, look);
            }
            VisibleTables::Connections => self.draw_connections(frame, tables, &visible, look),
            VisibleTables::Topics => self.draw_topics(frame, tables, &visible, look),
        }
        let own = [("t", " tables  ")];
        let line = self.controls.line(&own, "r b u d n", &format!("{:?}", self.sort), look);
        frame.render_widget(line, keys);
    }
}

impl View {
    /// Returns the title of a table. It says how many rows there are, and how many the proxy has left out.
    fn title(&self, what: &str, count: usize, shown: usize, left_out: u64) -> String {
        let [count, shown, all] = [count as u64, shown as u64, shown as u64 + left_out].map(grouped);
        match (self.controls.filter.is_empty(), left_out) {
            (true, 0) => format!(" {what}: {count} "),
            (true, _) => format!(" {what}: the first {count} of {all} "),
            (false, 0) => format!(" {what}: {count} of {all} match "),
            (false, _) => format!(" {what}: {count} of the first {shown} of {all} match "),
        }
    }

    fn draw_connections(&self, frame: &mut Frame<'_>, area: Rect, visible: &VisibleRates<'_>, look: Theme) {
        // Scrolling moves the topics if both tables are shown.
        let skipped = if self.shown == VisibleTables::Connections { self.controls.skipped } else { 0 };
        let rows = visible.connections.iter().map(|one| {
            let style = if one.connection.slow_s.is_some() { look.warning() } else { Style::new() };
            (connection_cells(one), style)
        });
        let title = self.title(
            "Connections",
            visible.connections.len(),
            self.rates.connections.len(),
            self.rates.stats.connections_left_out,
        );
        draw_table(
            frame,
            area,
            &title,
            CONNECTION_COLUMNS,
            CONNECTION_WIDTHS,
            (3, 8),
            rows.skip(skipped),
            look,
        );
    }

    fn draw_topics(&self, frame: &mut Frame<'_>, area: Rect, visible: &VisibleRates<'_>, look: Theme) {
        let skipped = self.controls.skipped.min(visible.topics.len().saturating_sub(1));
        let rows = visible.topics.iter().map(|one| (topic_cells(one), Style::new()));
        let title =
            self.title("Topics", visible.topics.len(), self.rates.topics.len(), self.rates.topics_left_out);
        draw_table(frame, area, &title, TOPIC_COLUMNS, TOPIC_WIDTHS, (0, 2), rows.skip(skipped), look);
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Cell;

    use super::*;
    use crate::stats::{Connection, Stats, Sum};

    /// Returns rates of four subscribers and three topics, which each key sorts into another order.
    fn rates() -> Rates {
        let connections = [
            (1, "d:1", [40, 10, 20, 30]),
            (2, "c:1", [30, 40, 10, 20]),
            (3, "b:1", [20, 30, 40, 10]),
            (4, "a:1", [10, 20, 30, 40]),
        ];
        let connections = connections.map(|(id, peer, [rate, byte_rate, queued, dropped])| ConnectionRates {
            connection: Connection {
                kind: "subscriber".to_owned(),
                id,
                peer: peer.to_owned(),
                queued: Some(Sum { messages: 1, bytes: queued }),
                dropped: Some(Sum { messages: dropped, bytes: 0 }),
                ..Connection::default()
            },
            rate: rate as f64,
            byte_rate: byte_rate as f64,
            drop_rate: 0.0,
        });
        let topics = [("a", 1.0, 3.0), ("b", 3.0, 2.0), ("c", 2.0, 9.0)];
        let topics =
            topics.map(|(name, rate, byte_rate)| TopicRates { name: name.to_owned(), rate, byte_rate });
        Rates { connections: connections.into(), topics: topics.into(), ..Rates::default() }
    }

    fn view() -> View {
        View::new("here".to_owned(), None, Sort::Rate, String::new())
    }

    /// Returns the lines that the view draws on a terminal of 80 columns.
    fn drawn(view: &View) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| view.draw(frame, Theme::of_environment())).unwrap();
        let cells = terminal.backend().buffer().content();
        let line = |cells: &[Cell]| cells.iter().map(Cell::symbol).collect::<String>().trim_end().to_owned();
        cells.chunks(80).map(line).collect()
    }

    #[test]
    fn each_key_sorts_by_its_column() {
        let mut view = view();
        view.show(Ok(rates()));
        for (key, connections, topics) in [
            ('b', [2, 3, 4, 1], ["c", "a", "b"]),
            ('u', [3, 4, 1, 2], ["a", "b", "c"]),
            ('d', [4, 1, 2, 3], ["a", "b", "c"]),
            ('n', [4, 3, 2, 1], ["a", "b", "c"]),
            ('r', [1, 2, 3, 4], ["b", "c", "a"]),
        ] {
            view.press(KeyCode::Char(key));
            let visible = VisibleRates::of(&view.rates, view.sort, "");
            let ids: Vec<u64> = visible.connections.iter().map(|one| one.connection.id).collect();
            let names: Vec<&str> = visible.topics.iter().map(|one| one.name.as_str()).collect();
            assert_eq!((&ids[..], &names[..]), (&connections[..], &topics[..]), "{key}");
            let lines = drawn(&view);
            let rows = lines.iter().filter_map(|line| line.strip_prefix("subscriber ")?.split(' ').next());
            let shown: Vec<u64> = rows.map(|id| id.parse().unwrap()).collect();
            assert_eq!(shown, connections, "{key}: {lines:#?}");
        }
    }

    #[test]
    fn the_picture_stands_still_while_it_is_paused() {
        let mut view = view();
        view.show(Ok(rates()));
        view.press(KeyCode::Char('p'));
        let paused = drawn(&view);
        assert!(paused[0].ends_with("  paused"), "{paused:#?}");
        let mut later = Rates { dropped: 7.0, ..rates() };
        later.connections.truncate(1);
        later.topics.clear();
        view.show(Ok(later.clone()));
        assert_eq!(drawn(&view), paused);
        view.press(KeyCode::Char('p'));
        view.show(Ok(later));
        let lines = drawn(&view);
        assert!(lines[1].starts_with("dropped 7/s, ") && !lines[0].contains("paused"), "{lines:#?}");
        assert_eq!(lines.iter().filter(|line| line.starts_with("subscriber ")).count(), 1, "{lines:#?}");
    }

    #[test]
    fn a_slow_subscriber_has_what_it_lost_beside_it() {
        let mut view = view();
        let mut slow = rates();
        let connection = &mut slow.connections[1].connection;
        (connection.dropped, connection.slow_s) = (Some(Sum { messages: 3096, bytes: 0 }), Some(72.0));
        view.show(Ok(slow));
        let lines = drawn(&view);
        let row = |peer: &str| {
            let line = lines.iter().find(|line| line.contains(peer)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(row("c:1").ends_with(&["3,096", "1m", "12s"].map(str::to_owned)), "{lines:#?}");
        assert!(row("d:1").ends_with(&["30", "-"].map(str::to_owned)), "{lines:#?}");
    }

    #[test]
    fn the_totals_fit_a_terminal_of_80_columns() {
        let rates = |clients: u64, lost: u64, rate: f64| Rates {
            stats: Stats {
                publishers: clients,
                subscribers: clients,
                dropped: Sum { messages: lost, bytes: 0 },
                ..Stats::default()
            },
            received: rate,
            delivered: rate,
            dropped: rate,
            ..Rates::default()
        };
        for (rates, line) in [
            (rates(1, 0, 0.0), "dropped 0/s, 0 in all; in 0/s, out 0/s; 1 publisher, 1 subscriber"),
            (
                rates(2, 3096, 611.0),
                "dropped 611/s, 3,096 in all; in 611/s, out 611/s; 2 publishers, 2 subscribers",
            ),
            (
                rates(10_000, 1_234_567_890, 4_400_000.0),
                "dropped 4,400,000/s, 1,234,567,890 in all; in 4,400,000/s, out 4,400,000/s",
            ),
        ] {
            assert_eq!(summary(&rates, 80), line);
            assert!(line.len() <= 80, "{line}");
        }
        let whole = summary(&rates(10_000, 1_234_567_890, 4_400_000.0), usize::MAX);
        assert!(whole.ends_with("; 10,000 publishers, 10,000 subscribers"), "{whole}");
    }
}
