//! The view of `xmsg connect top`.

use std::fmt::Write;

use crossterm::event::KeyCode;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use xmsg_core::text::escaped;

use super::Order;
use super::rates::LinkRates;
use crate::live::{Controls, LiveView};
use crate::output::{grouped, rounded};
use crate::screen::{Theme, draw_table};
use crate::table::{self, size, time};

const COLUMNS: [&str; 9] = ["NAME", "STATE", "FOR", "IN/S", "OUT/S", "WAITING", "BYTES", "OLDEST", "DEAD"];
// Together with the gaps they are as wide as the narrowest usual terminal.
const WIDTHS: [Constraint; 9] = [
    Constraint::Min(10),
    Constraint::Length(12),
    Constraint::Length(7),
    Constraint::Length(7),
    Constraint::Length(7),
    Constraint::Length(7),
    Constraint::Length(9),
    Constraint::Length(7),
    Constraint::Length(5),
];
const INCIDENT_COLUMNS: [&str; 3] = ["AT", "NAME", "WHAT"];
const INCIDENT_WIDTHS: [Constraint; 3] = [Constraint::Length(8), Constraint::Length(12), Constraint::Min(20)];

/// Returns the links that pass the filter, in this order.
pub(super) fn arranged<'a>(links: &'a [LinkRates], by: Order, filter: &str) -> Vec<&'a LinkRates> {
    let filter = filter.to_lowercase();
    let wanted = |link: &&LinkRates| {
        let texts = [Some(&link.name), Some(&link.state), Some(&link.sort), link.peer.as_ref()];
        texts.into_iter().flatten().any(|text| text.to_lowercase().contains(&filter))
    };
    let mut links: Vec<_> = links.iter().filter(wanted).collect();
    let entries = |link: &LinkRates| link.spool.map_or(0, |spool| spool.entries);
    let oldest = |link: &LinkRates| link.spool.and_then(|spool| spool.oldest_s).unwrap_or(0.0);
    links.sort_by(|a, b| {
        let first = match by {
            Order::Rate => b.delivered_per_s.total_cmp(&a.delivered_per_s),
            Order::Waiting => entries(b).cmp(&entries(a)),
            Order::Oldest => oldest(b).total_cmp(&oldest(a)),
            Order::Dead => b.dead.cmp(&a.dead),
            Order::State => b.severity().cmp(&a.severity()),
            Order::Name => std::cmp::Ordering::Equal,
        };
        first.then_with(|| (&a.name, &b.sort).cmp(&(&b.name, &a.sort)))
    });
    links
}

/// Returns the tables as text, for scripts and for terminals that can't be drawn on.
pub(super) fn text(address: &str, links: &[&LinkRates]) -> String {
    let mut text = String::new();
    // Writing to memory cannot fail.
    let _ = writeln!(text, "{address}\n{}\n", summary(links.iter().copied()));
    let incidents = links.iter().filter_map(|link| incident_cells(link, false)).collect();
    let rows = table::lines(COLUMNS, links.iter().map(|link| cells(link)).collect(), true);
    let below = table::lines(INCIDENT_COLUMNS, incidents, true);
    for line in rows.into_iter().chain([String::new()]).chain(below) {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn summary<'a>(links: impl Iterator<Item = &'a LinkRates>) -> String {
    let (mut count, mut trouble, mut entries, mut bytes, mut dead) = (0_u64, 0_u64, 0, 0, 0);
    let (mut accepted, mut delivered) = (0.0, 0.0);
    for link in links {
        count += 1;
        trouble += u64::from(link.severity() > 2);
        entries += link.spool.map_or(0, |spool| spool.entries);
        bytes += link.spool.map_or(0, |spool| spool.bytes);
        dead += link.dead;
        accepted += link.accepted_per_s;
        delivered += link.delivered_per_s;
    }
    format!(
        "{} links, {} in trouble; in {}/s, out {}/s; {} waiting ({}), {} dead",
        grouped(count),
        grouped(trouble),
        rounded(accepted),
        rounded(delivered),
        grouped(entries),
        size(bytes),
        grouped(dead)
    )
}

fn cells(link: &LinkRates) -> [String; 9] {
    let none = || "-".to_owned();
    let arrow = if link.sort == "channel" { "<" } else { ">" };
    [
        format!("{arrow} {}", escaped(&link.name)),
        link.state.clone(),
        time(link.state_s),
        rounded(link.accepted_per_s),
        rounded(link.delivered_per_s),
        link.spool.map_or_else(none, |spool| grouped(spool.entries)),
        link.spool.map_or_else(none, |spool| size(spool.bytes)),
        link.spool.and_then(|spool| spool.oldest_s).map_or_else(none, time),
        grouped(link.dead),
    ]
}

/// Returns the cells of the last incident. On a screen, the time of day is enough.
fn incident_cells(link: &LinkRates, is_short: bool) -> Option<[String; 3]> {
    let (at, what) = link.incident.as_ref()?;
    let of_day = at.get(11..19).filter(|_| is_short).unwrap_or(at);
    Some([of_day.to_owned(), escaped(&link.name).into_owned(), escaped(what).into_owned()])
}

/// The live view.
#[derive(Debug)]
pub(super) struct View {
    address: String,
    by: Order,
    controls: Controls,
    links: Option<Vec<LinkRates>>,
    error: Option<String>,
}

impl View {
    pub(super) fn new(address: String, by: Order, filter: String) -> Self {
        Self { address, by, controls: Controls::new(filter), links: None, error: None }
    }
}

impl LiveView for View {
    type Sample = Vec<LinkRates>;

    fn controls(&self) -> &Controls {
        &self.controls
    }

    fn show(&mut self, found: Result<Vec<LinkRates>, String>) {
        match found {
            Ok(_) if self.controls.is_paused => {}
            Ok(links) => (self.links, self.error) = (Some(links), None),
            Err(error) => self.error = Some(error),
        }
    }

    fn press(&mut self, key: KeyCode) {
        match self.controls.press(key) {
            Some(KeyCode::Char('r')) => self.by = Order::Rate,
            Some(KeyCode::Char('w')) => self.by = Order::Waiting,
            Some(KeyCode::Char('o')) => self.by = Order::Oldest,
            Some(KeyCode::Char('d')) => self.by = Order::Dead,
            Some(KeyCode::Char('s')) => self.by = Order::State,
            Some(KeyCode::Char('n')) => self.by = Order::Name,
            _ => {}
        }
    }

    fn draw(&self, frame: &mut Frame<'_>, look: Theme) {
        let links = self.links.as_deref().unwrap_or_default();
        let arranged = arranged(links, self.by, &self.controls.filter);
        let incidents: Vec<_> = arranged.iter().filter_map(|link| incident_cells(link, true)).collect();
        let lower = if incidents.is_empty() { 0 } else { (incidents.len() as u16 + 2).min(8) };
        let [title, second, upper, below, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(lower.min(frame.area().height / 2)),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let mut head = vec![
            Span::styled("xmsg connect top", look.title()),
            Span::raw(format!("  {}", escaped(&self.address))),
        ];
        if self.controls.is_paused {
            head.push(Span::styled("  paused", look.warning()));
        }
        frame.render_widget(Line::from(head), title);
        let line = match (&self.error, &self.links) {
            (Some(error), _) => Line::styled(escaped(error).into_owned(), look.warning()),
            (None, Some(links)) => {
                let style =
                    if links.iter().any(|link| link.severity() > 2) { look.warning() } else { Style::new() };
                Line::styled(summary(links.iter()), style)
            }
            (None, None) => Line::styled("looking …", look.aside()),
        };
        frame.render_widget(line, second);
        let count = grouped(arranged.len() as u64);
        let shown = if self.controls.filter.is_empty() {
            format!(" Links: {count} ")
        } else {
            format!(" Links: {count} of {} match ", grouped(links.len() as u64))
        };
        let skipped = self.controls.skipped.min(arranged.len().saturating_sub(1));
        let rows = arranged.iter().skip(skipped).map(|link| {
            let style = if link.severity() > 2 { look.warning() } else { Style::new() };
            (cells(link), style)
        });
        draw_table(frame, upper, &shown, COLUMNS, WIDTHS, (2, 9), rows, look);
        if lower > 0 {
            let rows = incidents.into_iter().map(|cells| (cells, Style::new()));
            draw_table(frame, below, " Incidents ", INCIDENT_COLUMNS, INCIDENT_WIDTHS, (0, 0), rows, look);
        }
        let line = self.controls.line(&[], "r w o d s n", &format!("{:?}", self.by), look);
        frame.render_widget(line, keys);
    }
}
