//! The picture of the experiment: its topics, publishers and subscribers, and the messages that were dropped.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use crossterm::event::KeyCode;
use futures::FutureExt;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table};
use tokio::time::Instant;
use xmsg_proxy::{Monitor, Policy, Proxy};
use xmsg_zmq::HighWaterMark;

use super::experiment::{Experiment, Member};
use super::page::{self, Page};
use super::program;
use crate::exit::Exit;
use crate::output::{grouped, rounded};
use crate::screen::{Input, Screen, Theme, sparkline};
use crate::signals::Interrupt;
use crate::table::size;
use crate::traffic::Traffic;

/// The number of bytes that may wait for a subscriber.
const HIGH_WATER_MARK: usize = 2 << 20;
/// The interval between two pictures.
const INTERVAL: Duration = Duration::from_secs(1);
/// The time until the first picture, which comes sooner.
const FIRST_INTERVAL: Duration = Duration::from_millis(300);
/// The time that the proxy may take to stop.
const LINGER: Duration = Duration::from_secs(1);
/// The number of messages that are taken before anything else gets its turn.
const YIELD_AFTER: usize = 1024;

pub(super) async fn run() -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let proxy = Proxy::bind("127.0.0.1:0")
        .slow_subscriber(Policy::DropNewest)
        .high_water_mark(HighWaterMark::bytes(HIGH_WATER_MARK))
        .start()
        .await
        .context("cannot start a proxy")?;
    let mut page = page::open(&proxy)?;
    let monitor = proxy.monitor();
    let (mut experiment, mut shown) = Experiment::start(proxy.address(), &monitor).await?;
    let mut view = View {
        page: page.as_mut().map(|page| page.link().to_owned()),
        ..View::new(proxy.address().to_string(), program(), experiment.members.clone())
    };
    let mut screen = Screen::open()?;
    let look = Theme::of_environment();
    let mut ticks = tokio::time::interval_at(Instant::now() + FIRST_INTERVAL, INTERVAL);
    screen.draw(|frame| view.draw(frame, look))?;
    let exit = loop {
        tokio::select! {
            biased;
            exit = interrupt.wait() => break exit,
            input = screen.input() => match input {
                Input::Key(KeyCode::Char('q' | 'Q') | KeyCode::Esc) | Input::Gone => break Exit::Done,
                Input::Interrupt => break Exit::Interrupted,
                Input::Resized => screen.draw(|frame| view.draw(frame, look))?,
                Input::Key(_) => {}
            },
            _ = ticks.tick() => {
                view.look(&monitor);
                // Once it was used, another one is shown.
                view.page = page.as_mut().map(|page| page.link().to_owned());
                screen.draw(|frame| view.draw(frame, look))?;
            }
            Some(message) = shown.recv() => {
                view.traffic.take(message);
                for _ in 0..YIELD_AFTER {
                    let Some(Some(message)) = shown.recv().now_or_never() else { break };
                    view.traffic.take(message);
                }
            }
            error = experiment.failure() => return Err(error),
        }
    };
    drop(screen);
    drop(experiment);
    drop::<Option<Page>>(page);
    proxy.stop(LINGER).await;
    view.say_goodbye()?;
    Ok(exit)
}

/// The messages that came from a publisher, or went to a subscriber.
#[derive(Debug, Default)]
struct Client {
    peer: String,
    is_publisher: bool,
    messages: u64,
    rate: f64,
    /// The bytes in the queue of a subscriber.
    queued_bytes: u64,
    dropped: u64,
}

/// The contents of the picture.
#[derive(Debug)]
struct View {
    address: String,
    /// The link to the web page.
    page: Option<String>,
    program: String,
    members: Vec<Member>,
    started: Instant,
    looked: Instant,
    traffic: Traffic,
    clients: BTreeMap<u32, Client>,
    /// The numbers of messages received from publishers, delivered, and dropped.
    totals: [u64; 3],
    rates: [f64; 3],
}

impl View {
    fn new(address: String, program: String, members: Vec<Member>) -> Self {
        let now = Instant::now();
        Self {
            address,
            page: None,
            program,
            members,
            started: now,
            looked: now,
            traffic: Traffic::default(),
            clients: BTreeMap::new(),
            totals: [0; 3],
            rates: [0.0; 3],
        }
    }

    /// Takes the statistics of the proxy, and computes the rates since the last time.
    fn look(&mut self, proxy: &Monitor) {
        let time = std::mem::replace(&mut self.looked, Instant::now()).elapsed();
        let seconds = time.as_secs_f64().max(1e-3);
        self.traffic.tick(time);
        let mut last = std::mem::take(&mut self.clients);
        let mut add = |id, mut client: Client| {
            let before = last.remove(&id).map_or(0, |client| client.messages);
            client.rate = client.messages.saturating_sub(before) as f64 / seconds;
            self.clients.insert(id, client);
        };
        for found in proxy.publishers() {
            let messages = found.received.messages;
            add(found.id, Client { peer: found.peer, is_publisher: true, messages, ..Client::default() });
        }
        for found in proxy.subscribers() {
            let client = Client {
                peer: found.peer,
                is_publisher: false,
                messages: found.delivered.messages,
                rate: 0.0,
                queued_bytes: found.queued.bytes,
                dropped: found.dropped.messages,
            };
            add(found.id, client);
        }
        let totals = proxy.totals();
        let now = [totals.received.messages, totals.delivered.messages, totals.dropped.messages];
        for ((rate, total), now) in self.rates.iter_mut().zip(&mut self.totals).zip(now) {
            *rate = now.saturating_sub(*total) as f64 / seconds;
            *total = now;
        }
    }

    fn draw(&self, frame: &mut Frame<'_>, look: Theme) {
        let members = self.rows().count() as u16;
        let commands = self.commands(usize::from(frame.area().width));
        let [title, topics, clients, totals, join] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(4),
            Constraint::Length(members + 2),
            Constraint::Length(1),
            Constraint::Length(commands.len() as u16 + 2 + u16::from(self.page.is_some())),
        ])
        .areas(frame.area());
        let seconds = self.started.elapsed().as_secs();
        let head = Line::from(vec![
            Span::styled("xmsg demo", look.title()),
            Span::styled(format!("  {}:{:02}  ", seconds / 60, seconds % 60), look.aside()),
            Span::raw(format!("an experiment that talks through a proxy at {}", self.address)),
        ]);
        frame.render_widget(head, title);
        self.draw_topics(frame, topics, look);
        self.draw_clients(frame, clients, look);
        let [received, delivered, dropped] = self.totals.map(grouped);
        let [received_rate, delivered_rate, dropped_rate] = self.rates.map(rounded);
        let line = Line::from(vec![
            Span::raw(format!(
                "published {received} ({received_rate}/s)  delivered {delivered} ({delivered_rate}/s)  "
            )),
            Span::styled(
                format!("dropped {dropped} ({dropped_rate}/s)"),
                if self.totals[2] > 0 { look.warning() } else { look.aside() },
            ),
        ]);
        frame.render_widget(line, totals);
        let mut lines = vec![Line::raw("Join in from another terminal; what you publish appears above:")];
        lines.extend(commands.into_iter().map(|command| Line::styled(command, look.command())));
        if let Some(link) = &self.page {
            lines.push(Line::from(vec![
                Span::raw("In a browser: "),
                Span::styled(link.clone(), look.command()),
            ]));
        }
        lines.push(Line::from(vec![
            Span::styled("q", look.command()),
            Span::styled(" ends the demo", look.aside()),
        ]));
        frame.render_widget(Paragraph::new(lines), join);
    }

    /// Returns the commands that join in, as lines that fit and can be pasted.
    fn commands(&self, width: usize) -> Vec<String> {
        let Self { program, address, .. } = self;
        ["sub beam:", "pub beam:note 'hello'"]
            .iter()
            .flat_map(|command| continued(&format!("  {program} {command} --proxy {address}"), width))
            .collect()
    }

    fn draw_topics(&self, frame: &mut Frame<'_>, area: Rect, look: Theme) {
        let room = usize::from(area.height).saturating_sub(2);
        let count = self.traffic.topics().len();
        // The last line is for the topics without room.
        let shown = if count > room { room.saturating_sub(1) } else { count };
        let chart = match area.width {
            0..100 => 20,
            100..130 => 40,
            _ => 60,
        };
        let mut rows: Vec<Row<'_>> = self
            .traffic
            .topics()
            .take(shown)
            .map(|(name, topic)| {
                Row::new([
                    Line::raw(name.to_owned()),
                    Line::raw(rounded(topic.rate)).right_aligned(),
                    Line::styled(sparkline(topic.history.iter().copied(), chart), look.curve()),
                    Line::raw(topic.latest.clone()),
                ])
            })
            .collect();
        if count > shown {
            rows.push(Row::new([Line::styled(
                format!("… {} more", grouped((count - shown) as u64)),
                look.aside(),
            )]));
        }
        let widths = [
            Constraint::Length(24),
            Constraint::Length(7),
            Constraint::Length(chart as u16),
            Constraint::Min(10),
        ];
        let minute = if chart < 60 { format!("LAST {chart} SECONDS") } else { "LAST MINUTE".to_owned() };
        let header = Row::new([
            Line::raw("TOPIC"),
            Line::raw("PER S").right_aligned(),
            Line::raw(minute),
            Line::raw("LATEST"),
        ])
        .style(look.title());
        frame.render_widget(Table::new(rows, widths).header(header).block(part("Topics", look)), area);
    }

    /// Returns the rows of the members that are connected, followed by all other clients.
    fn rows(&self) -> impl Iterator<Item = (&str, &str, Option<&Client>)> {
        let known =
            self.members.iter().map(|member| (member.name, member.does, self.clients.get(&member.id)));
        let is_member = |id| self.members.iter().any(|member| member.id == id);
        let others = self
            .clients
            .iter()
            .filter(move |(id, client)| {
                // Subscribers also have a connection for publishing, which has their subscriptions confirmed.
                !is_member(**id) && (!client.is_publisher || client.messages > 0)
            })
            .map(|(_, client)| {
                let does = if client.is_publisher {
                    "publishes, from another terminal"
                } else {
                    "subscribes, from another terminal"
                };
                (&*client.peer, does, Some(client))
            });
        known.chain(others.take(3))
    }

    fn draw_clients(&self, frame: &mut Frame<'_>, area: Rect, look: Theme) {
        let rows = self.rows().map(|(name, does, client)| {
            let style = match client {
                Some(client) if client.dropped > 0 => look.warning(),
                _ => ratatui::style::Style::new(),
            };
            let of_subscriber = |show: fn(&Client) -> String| match client {
                Some(client) if !client.is_publisher => show(client),
                _ => String::new(),
            };
            Row::new([
                Line::raw(name.to_owned()),
                Line::raw(does.to_owned()),
                Line::raw(client.map_or_else(String::new, |client| rounded(client.rate))).right_aligned(),
                Line::raw(of_subscriber(|client| size(client.queued_bytes))).right_aligned(),
                Line::raw(of_subscriber(|client| grouped(client.dropped))).right_aligned(),
            ])
            .style(style)
        });
        let header = Row::new([
            Line::raw("CLIENT"),
            Line::raw(""),
            Line::raw("PER S").right_aligned(),
            Line::raw("QUEUE").right_aligned(),
            Line::raw("DROPPED").right_aligned(),
        ])
        .style(look.title());
        let widths = [
            Constraint::Length(16),
            Constraint::Length(33),
            Constraint::Length(7),
            Constraint::Length(9),
            Constraint::Length(9),
        ];
        frame.render_widget(
            Table::new(rows, widths).header(header).block(part("Publishers and subscribers", look)),
            area,
        );
    }

    /// Writes the lines that stay on the terminal at the end.
    fn say_goodbye(&self) -> anyhow::Result<()> {
        let [received, delivered, dropped] = self.totals.map(grouped);
        super::print(format_args!(
            "published {received} messages, delivered {delivered}, dropped {dropped} for the subscriber that was slow on purpose.\n\
             How fast is it here? {} demo --for 5s",
            self.program
        ))
    }
}

fn part(title: &str, look: Theme) -> Block<'_> {
    Block::new()
        .borders(Borders::TOP)
        .border_style(look.aside())
        .title(Span::styled(format!(" {title} "), look.aside()))
}

/// Breaks a command into lines of at most `width` characters that a shell joins again: a line that is
/// continued ends with a backslash. A break is after a space if there is one, and otherwise within a word.
fn continued(command: &str, width: usize) -> Vec<String> {
    let room = width.max(2);
    let mut lines = Vec::new();
    let mut rest = command;
    while rest.chars().count() > room {
        let longest = rest.char_indices().nth(room - 1).map_or(rest.len(), |(at, _)| at);
        // Spaces at the beginning are an indent. A break after them would leave an empty line.
        let indent = rest.len() - rest.trim_start().len();
        let cut = rest[..longest].rfind(' ').map(|at| at + 1).filter(|at| *at > indent).unwrap_or(longest);
        let (line, behind) = rest.split_at(cut);
        lines.push(format!("{line}\\"));
        rest = behind;
    }
    lines.push(rest.to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::continued;

    #[test]
    fn a_command_that_does_not_fit_goes_on_in_the_next_line() {
        let command = "  /a/long/way/to/xmsg sub beam: --proxy 127.0.0.1:40000";
        assert_eq!(continued(command, 80), [command]);
        assert_eq!(continued(command, 40), ["  /a/long/way/to/xmsg sub beam: \\", "--proxy 127.0.0.1:40000"],);
        for width in 2..=command.len() {
            let lines = continued(command, width);
            assert!(lines.iter().all(|line| line.len() <= width), "{width}: {lines:?}");
            assert_eq!(lines.join("\n").replace("\\\n", ""), command, "{width}");
        }
    }
}
