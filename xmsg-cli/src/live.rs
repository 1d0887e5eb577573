//! The common parts of live views: the loop that takes samples, draws and reads keys; the filter, the pause
//! and the scrolling.

use std::time::Duration;

use anyhow::bail;
use crossterm::event::KeyCode;
use ratatui::Frame;
use ratatui::text::{Line, Span};
use tokio::sync::watch;
use xmsg_core::text::escaped;

use crate::exit::{Exit, Usage};
use crate::output::{Output, note};
use crate::screen::{Input, Screen, Theme};

/// A source of samples, which are taken repeatedly.
pub(crate) trait LiveSource {
    type Sample: Clone;

    /// Takes a sample.
    async fn sample(&mut self) -> anyhow::Result<Self::Sample>;

    /// Returns whether a later sample may succeed, because the source is not reachable for now.
    fn may_come_back(error: &anyhow::Error) -> bool;

    /// Returns the address of the source.
    fn address(&self) -> String;
}

/// A view of the samples.
pub(crate) trait LiveView {
    type Sample;

    fn controls(&self) -> &Controls;
    fn show(&mut self, found: Result<Self::Sample, String>);
    fn press(&mut self, key: KeyCode);
    fn draw(&self, frame: &mut Frame<'_>, look: Theme);
}

/// Returns an error if the interval is too short to ask in.
pub(crate) fn check_interval(interval: Duration) -> anyhow::Result<()> {
    if interval < Duration::from_millis(100) {
        bail!(Usage("--interval is 100ms at least".to_owned()));
    }
    Ok(())
}

/// Writes a sample after each interval: once, or repeatedly.
pub(crate) async fn write<A: LiveSource>(
    source: &mut A,
    interval: Duration,
    is_repeated: bool,
    mut put: impl FnMut(&A, A::Sample, &mut Output) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut output = Output::stdout()?;
    loop {
        tokio::time::sleep(interval).await;
        let found = match source.sample().await {
            Err(error) if is_repeated && A::may_come_back(&error) => {
                note(format_args!("{error:#}: trying again"));
                continue;
            }
            found => found?,
        };
        put(source, found, &mut output)?;
        output.flush()?;
        if !is_repeated {
            return Ok(());
        }
    }
}

/// Shows the samples until a key ends the view, or until no later sample can succeed.
pub(crate) async fn watch<A: LiveSource>(
    source: A,
    interval: Duration,
    mut view: impl LiveView<Sample = A::Sample>,
) -> anyhow::Result<Exit> {
    let (sender, mut found) = watch::channel(None);
    // Keys are read while this waits for an answer.
    let mut looking = std::pin::pin!(look_again_and_again(source, interval, sender));
    let mut screen = Screen::open()?;
    let style = Theme::of_environment();
    screen.draw(|frame| view.draw(frame, style))?;
    loop {
        tokio::select! {
            biased;
            input = screen.input() => match input {
                Input::Interrupt => return Ok(Exit::Interrupted),
                Input::Gone => return Ok(Exit::Done),
                Input::Key(KeyCode::Char('q' | 'Q')) if !view.controls().is_typing => return Ok(Exit::Done),
                Input::Key(key) => view.press(key),
                Input::Resized => {}
            },
            Ok(()) = found.changed() => {
                let latest = found.borrow_and_update().clone();
                if let Some(latest) = latest {
                    view.show(latest);
                }
            }
            error = &mut looking => {
                drop(screen);
                return Err(error);
            }
        }
        screen.draw(|frame| view.draw(frame, style))?;
    }
}

/// Takes samples repeatedly. Returns when no later sample can succeed.
async fn look_again_and_again<A: LiveSource>(
    mut source: A,
    interval: Duration,
    found: watch::Sender<Option<Result<A::Sample, String>>>,
) -> anyhow::Error {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let latest = match source.sample().await {
            Ok(latest) => Ok(latest),
            Err(error) if A::may_come_back(&error) => {
                Err(format!("{} does not answer: trying again", source.address()))
            }
            Err(error) => return error,
        };
        drop(found.send(Some(latest)));
    }
}

/// The state that keys change in every view.
#[derive(Debug)]
pub(crate) struct Controls {
    pub(crate) filter: String,
    /// Whether keys are letters of the filter.
    pub(crate) is_typing: bool,
    pub(crate) is_paused: bool,
    /// The number of rows that are scrolled away at the top.
    pub(crate) skipped: usize,
}

impl Controls {
    pub(crate) fn new(filter: String) -> Self {
        Self { filter, is_typing: false, is_paused: false, skipped: 0 }
    }

    /// Handles a key. Returns the key if it has a meaning in the view alone.
    pub(crate) fn press(&mut self, key: KeyCode) -> Option<KeyCode> {
        if self.is_typing {
            match key {
                KeyCode::Char(letter) => self.filter.push(letter),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Esc => {
                    self.filter.clear();
                    self.is_typing = false;
                }
                KeyCode::Enter => self.is_typing = false,
                _ => {}
            }
            self.skipped = 0;
            return None;
        }
        match key {
            KeyCode::Char('/') => {
                self.filter.clear();
                self.is_typing = true;
            }
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Down => self.skipped += 1,
            KeyCode::Up => self.skipped = self.skipped.saturating_sub(1),
            KeyCode::PageDown => self.skipped += 20,
            KeyCode::PageUp => self.skipped = self.skipped.saturating_sub(20),
            KeyCode::Home => self.skipped = 0,
            other => return Some(other),
        }
        None
    }

    /// Returns the lowest line: the filter while it is typed, otherwise the keys. `own` are further keys of
    /// the view, each with what it does; `sort_keys` choose the order, which is `order` now.
    pub(crate) fn line(
        &self,
        own: &[(&'static str, &'static str)],
        sort_keys: &'static str,
        order: &str,
        look: Theme,
    ) -> Line<'static> {
        if self.is_typing {
            return Line::from(vec![
                Span::styled("filter: ", look.command()),
                Span::raw(escaped(&self.filter).into_owned()),
                Span::styled("_  Enter keeps it, Esc takes it away", look.aside()),
            ]);
        }
        let filter = if self.filter.is_empty() {
            String::new()
        } else {
            format!("  filter: {}", escaped(&self.filter))
        };
        let common = [("q", " quits  "), ("p", " pauses  "), ("/", " filters  ")];
        let keys = common
            .iter()
            .chain(own)
            .flat_map(|(key, does)| [Span::styled(*key, look.command()), Span::styled(*does, look.aside())]);
        let sort = [
            Span::styled("sort: ", look.aside()),
            Span::styled(sort_keys, look.command()),
            Span::styled(format!(" ({order}){filter}").to_lowercase(), look.aside()),
        ];
        Line::from(keys.chain(sort).collect::<Vec<_>>())
    }
}
