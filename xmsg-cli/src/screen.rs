//! The terminal for views that are redrawn: setup, drawing, keys, and restoring the previous state.

use std::io::{self, IsTerminal, Stdout, stdout};

use anyhow::Context;
use crossterm::cursor::{Hide, Show};
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode,
};
use crossterm::{execute, queue};
use futures::StreamExt;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Row, Table};
use ratatui::{Frame, Terminal};

use crate::output::colour_wanted;

/// A terminal that shows a view. Dropping it restores the previous state.
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    events: EventStream,
    _raw: Raw,
}

/// An input of the user, or a change of the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Key(KeyCode),
    /// Ctrl-C, which is an ordinary key in raw mode.
    Interrupt,
    /// The size has changed, and the view has to be redrawn.
    Resized,
    /// The terminal is gone.
    Gone,
}

impl Screen {
    /// Returns whether there is a terminal to draw on and to read keys from.
    pub(crate) fn is_possible() -> bool {
        stdout().is_terminal()
            && io::stdin().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
    }

    pub(crate) fn open() -> anyhow::Result<Self> {
        let raw = Raw::enter().context("cannot draw on this terminal")?;
        let terminal =
            Terminal::new(CrosstermBackend::new(stdout())).context("cannot draw on this terminal")?;
        Ok(Self { terminal, events: EventStream::new(), _raw: raw })
    }

    /// Draws the whole view. Only cells that have changed are written. A terminal that supports synchronized
    /// output (DEC private mode 2026) shows all changes at once, so that nobody sees half of a number.
    pub(crate) fn draw(&mut self, view: impl FnOnce(&mut Frame<'_>)) -> anyhow::Result<()> {
        let terminal = &mut self.terminal;
        let draw = || {
            queue!(terminal.backend_mut(), BeginSynchronizedUpdate)?;
            terminal.draw(view)?;
            execute!(terminal.backend_mut(), EndSynchronizedUpdate)
        };
        tokio::task::block_in_place(draw).context("cannot draw on the terminal")
    }

    /// Waits for the next relevant input.
    pub(crate) async fn input(&mut self) -> Input {
        loop {
            let Some(Ok(event)) = self.events.next().await else { return Input::Gone };
            match event {
                Event::Key(KeyEvent { code: KeyCode::Char('c'), modifiers, .. })
                    if modifiers.contains(KeyModifiers::CONTROL) =>
                {
                    return Input::Interrupt;
                }
                Event::Key(KeyEvent { code, kind: KeyEventKind::Press | KeyEventKind::Repeat, .. }) => {
                    return Input::Key(code);
                }
                Event::Resize(..) => return Input::Resized,
                _ => {}
            }
        }
    }
}

/// The terminal in raw mode, with its alternate screen.
#[derive(Debug)]
struct Raw;

impl Raw {
    fn enter() -> io::Result<Self> {
        enable_raw_mode()?;
        let raw = Self;
        execute!(stdout(), EnterAlternateScreen, Hide)?;
        Ok(raw)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Errors are ignored, because the terminal may be gone. An earlier error may have interrupted a
        // synchronized update.
        let _ = execute!(stdout(), EndSynchronizedUpdate, LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

/// The styles of the view, with colours unless `NO_COLOR` disables them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Theme {
    is_coloured: bool,
}

impl Theme {
    pub(crate) fn of_environment() -> Self {
        Self { is_coloured: colour_wanted() }
    }

    fn coloured(self, color: Color) -> Style {
        if self.is_coloured { Style::new().fg(color) } else { Style::new() }
    }

    /// The style of titles of parts and columns.
    pub(crate) fn title(self) -> Style {
        self.coloured(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    /// The style of commands to copy and keys to press.
    pub(crate) fn command(self) -> Style {
        self.coloured(Color::Green).add_modifier(Modifier::BOLD)
    }

    /// The style of losses and their causes.
    pub(crate) fn warning(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// The style of lines in small charts.
    pub(crate) fn curve(self) -> Style {
        self.coloured(Color::Yellow)
    }

    /// The style of less important text.
    #[allow(clippy::unused_self, reason = "how things look is asked of the look")]
    pub(crate) fn aside(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}

/// Draws the last of these values as bars of eight heights, one character each. The lowest value has the
/// lowest bar.
pub(crate) fn sparkline(values: impl ExactSizeIterator<Item = f64> + Clone, width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let skipped = values.len().saturating_sub(width);
    let shown = values.skip(skipped);
    let (low, high) = shown
        .clone()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    shown
        .map(|value| {
            let part = if high > low { (value - low) / (high - low) } else { 0.0 };
            // A value that is not a number gets the lowest bar.
            #[allow(clippy::cast_sign_loss, reason = "the part is between 0 and 1")]
            let height = (part * 7.0).round() as usize;
            BARS[height.min(7)]
        })
        .collect()
}

/// Draws a table under a title. The columns from the first of `right` up to, but not including, the second
/// have numbers.
#[allow(clippy::too_many_arguments, reason = "they are what a table is")]
pub(crate) fn draw_table<const N: usize>(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    columns: [&str; N],
    widths: [Constraint; N],
    right: (usize, usize),
    rows: impl Iterator<Item = ([String; N], Style)>,
    look: Theme,
) {
    let line = |(column, text): (usize, String)| {
        let line = Line::raw(text);
        if (right.0..right.1).contains(&column) { line.right_aligned() } else { line }
    };
    let header = Row::new(columns.map(str::to_owned).into_iter().enumerate().map(line)).style(look.title());
    let rows = rows
        .take(usize::from(area.height))
        .map(|(cells, style)| Row::new(cells.into_iter().enumerate().map(line)).style(style));
    let block = Block::new()
        .borders(Borders::TOP)
        .border_style(look.aside())
        .title(Span::styled(title.to_owned(), look.aside()));
    frame.render_widget(Table::new(rows, widths).header(header).block(block), area);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_shows_the_last_values_between_their_extremes() {
        let line = |values: &[f64], width| sparkline(values.iter().copied(), width);
        assert_eq!(line(&[0.0, 1.0, 7.0], 5), "▁▂█");
        assert_eq!(line(&[100.0, 1.0, 2.0], 2), "▁█");
        assert_eq!(line(&[5.0, 5.0], 5), "▁▁");
        assert_eq!(line(&[], 5), "");
        assert_eq!(line(&[f64::NAN, 1.0], 5).chars().count(), 2);
    }
}
