//! The findings of the checks, and their output.

use std::error::Error;
use std::io::{self, IsTerminal, Write as _};

use serde::Serialize;
use serde_json::{Value, json};
use xmsg_core::text::escaped;

use crate::exit::Exit;
use crate::output::{self, Output, counted};

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    Warning,
    Problem,
}

impl Level {
    /// Returns the word on a line, and its colour on a terminal.
    fn shown(self) -> (&'static str, &'static str) {
        match self {
            Self::Ok => ("OK", "\x1b[32m"),
            Self::Warning => ("WARNING", "\x1b[33m"),
            Self::Problem => ("PROBLEM", "\x1b[1;31m"),
        }
    }
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    /// The name of the check, the same in every run.
    check: &'static str,
    found: String,
    /// The advice. There is none if all is well.
    advice: Option<String>,
}

/// The results of all checks, in their order.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.0.push(Finding { level: Level::Ok, check, found: found.into(), advice: None });
    }

    pub(super) fn warning(
        &mut self,
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.wrong(Level::Warning, check, found, advice);
    }

    pub(super) fn problem(
        &mut self,
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.wrong(Level::Problem, check, found, advice);
    }

    /// Adds a finding of this level about something that is wrong.
    pub(super) fn wrong(
        &mut self,
        level: Level,
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.0.push(Finding { level, check, found: found.into(), advice: Some(advice.into()) });
    }

    fn count(&self, level: Level) -> u64 {
        self.0.iter().filter(|finding| finding.level == level).count() as u64
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "problems": self.count(Level::Problem),
            "warnings": self.count(Level::Warning),
            "checks": self.0,
        })
    }

    /// Returns the lines for people. Anything may come from a peer, so it is escaped.
    fn lines(&self, is_coloured: bool) -> Vec<String> {
        let width = self.0.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
        let line = |Finding { level, check, found, advice }: &Finding| {
            let (word, colour) = level.shown();
            let (on, off) = if is_coloured { (colour, "\x1b[0m") } else { ("", "") };
            let advice = advice.as_ref().map(|advice| format!(" → {}", escaped(advice))).unwrap_or_default();
            format!("{on}{word:<7}{off}  {check:width$}  {}{advice}", escaped(found))
        };
        self.0.iter().map(line).collect()
    }

    /// Writes all results. Returns the exit code.
    pub(super) fn write(&self, as_json: bool) -> anyhow::Result<Exit> {
        let mut output = Output::stdout()?;
        if as_json {
            output.json(&self.json())?;
        } else {
            let is_coloured = io::stdout().is_terminal() && output::colour_wanted();
            for line in self.lines(is_coloured) {
                writeln!(output.buffer(), "{line}")?;
            }
        }
        output.flush()?;
        let (problems, warnings) = (self.count(Level::Problem), self.count(Level::Warning));
        if problems + warnings > 0 && !as_json {
            output::note(format_args!("{}, {}", counted(problems, "problem"), counted(warnings, "warning")));
        }
        Ok(if problems > 0 { Exit::Failed } else { Exit::Done })
    }
}

/// Returns an error with all its causes, each of them once.
pub(super) fn error_text(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        let words = one.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = one.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_columns_and_no_control_characters() {
        let mut findings = Findings::default();
        findings.ok("version", "xmsg 1");
        findings.problem("proxy", "nobody\x1b[2J", "start one");
        assert_eq!(
            findings.lines(false),
            ["OK       version  xmsg 1", r"PROBLEM  proxy    nobody\u{1b}[2J → start one"]
        );
        assert!(findings.lines(true)[1].starts_with("\x1b[1;31mPROBLEM\x1b[0m"));
        let json = findings.json();
        assert_eq!((&json["problems"], &json["warnings"]), (&json!(1), &json!(0)));
        assert_eq!(json["checks"][1]["advice"], "start one");
    }

    #[test]
    fn a_cause_is_told_once() {
        let inner = io::Error::other("disk");
        let error = xmsg_core::Error::new(xmsg_core::ErrorKind::Io, "cannot read a: disk").with_source(inner);
        assert_eq!(error_text(&error), "cannot read a: disk");
        let error = xmsg_core::Error::new(xmsg_core::ErrorKind::Io, "cannot read a").with_source("disk");
        assert_eq!(error_text(&error), "cannot read a: disk");
    }
}
