//! Escaping of text from others before it is shown to people, and where long text may be cut.
//!
//! Text from a peer or a registrar may contain characters that move the cursor of a terminal, change its
//! colours, forge a line of a log, or change the direction in which the text is read. This is the only module
//! that escapes them.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Returns whether a character does something other than being shown. Such characters are control characters
/// (U+0000 to U+001F, DEL, U+0080 to U+009F), those that change the direction of text, and those that end a
/// line or a paragraph.
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    matches!(
        c,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

/// Escapes unsafe characters as Rust writes them: `\n`, `\u{202e}`. A text without any is not copied.
///
/// ```
/// use xmsg_core::text::escaped;
/// assert_eq!(escaped("zoë"), "zoë");
/// assert_eq!(escaped("a\u{9b}2J\n\u{202e}b"), "a\\u{9b}2J\\n\\u{202e}b");
/// ```
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    replaced(text, |out, c| {
        // Writing to a string cannot fail.
        let _ = match c {
            '\n' | '\r' | '\t' => write!(out, "{}", c.escape_default()),
            _ => write!(out, "{}", c.escape_unicode()),
        };
    })
}

/// Escapes unsafe characters in a text that is valid JSON on one line. Such characters occur only within its
/// strings, and are written as JSON escapes.
///
/// ```
/// use xmsg_core::text::json_escaped;
/// assert_eq!(json_escaped("{\"a\":\"\u{7f}\u{202e}\"}"), r#"{"a":"\u007f\u202e"}"#);
/// ```
#[must_use]
pub fn json_escaped(json: &str) -> Cow<'_, str> {
    replaced(json, |out, c| {
        let _ = write!(out, "\\u{:04x}", u32::from(c));
    })
}

/// Returns the largest boundary between characters that is at most `most` bytes from the beginning of a text.
/// From Rust 1.91 on, `str` has this itself.
#[doc(hidden)]
#[must_use]
pub fn floor_char_boundary(text: &str, most: usize) -> usize {
    // There is always a boundary, since 0 is one.
    (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default()
}

fn replaced(text: &str, write: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            write(&mut out, c);
        } else {
            out.push(c);
        }
    }
    out.into()
}

/// The format of the lines of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLine {
    /// Text for people.
    Plain,
    /// Text for people, with colours. Their sequences (`ESC [ … m`) are left unchanged.
    Coloured,
    /// JSON.
    Json,
}

/// Writes the lines of a log. Each write must be one whole line. Unsafe characters are escaped, except the
/// newline at the end.
#[derive(Debug)]
pub struct LogWriter<W> {
    inner: W,
    line: LogLine,
}

impl<W: Write> LogWriter<W> {
    /// Makes a writer that writes to `inner`.
    pub fn new(inner: W, line: LogLine) -> Self {
        Self { inner, line }
    }
}

impl<W: Write> Write for LogWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line)?;
        Ok(line.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(line);
        let (text, end) = text.strip_suffix('\n').map_or((&*text, ""), |text| (text, "\n"));
        let safe = match self.line {
            LogLine::Plain => escaped(text),
            LogLine::Json => json_escaped(text),
            LogLine::Coloured => coloured(text),
        };
        // Each line is written with one call, so that lines of several threads do not mix.
        self.inner.write_all(format!("{safe}{end}").as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Escapes unsafe characters, except the sequences that set colours.
fn coloured(text: &str) -> Cow<'_, str> {
    let mut out = String::with_capacity(text.len());
    let mut parts = text.split("\x1b[");
    out.push_str(&escaped(parts.next().unwrap_or_default()));
    for part in parts {
        let digits = part.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(part.len());
        if part[digits..].starts_with('m') {
            out.push_str("\x1b[");
        } else {
            out.push_str("\\u{1b}[");
        }
        out.push_str(&escaped(part));
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        let at = |text: &str, most| floor_char_boundary(text, most);
        assert_eq!([at("stock", 5), at("stock", 64), at("stock", 0)], [5, 5, 0]);
        assert_eq!([at("stöck", 3), at("stöck", 4), at("ä", 1)], [2, 4, 0]);
        assert_eq!([at(&"ä".repeat(1_000), 64), at("", 3)], [64, 0]);
    }

    const BAD: &str = "a\x1b[2Jb\u{7f}\u{9b}31m\u{202e}\u{2066}\r\nc\u{2028}";

    fn logged(line: LogLine, text: &str) -> String {
        let mut out = Vec::new();
        LogWriter::new(&mut out, line).write_all(text.as_bytes()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_of_a_log_is_one_line_and_harmless() {
        let expected = r"a\u{1b}[2Jb\u{7f}\u{9b}31m\u{202e}\u{2066}\r\nc\u{2028}";
        assert_eq!(escaped(BAD), expected);
        for line in [LogLine::Plain, LogLine::Coloured] {
            assert_eq!(logged(line, &format!("{BAD}\n")), format!("{expected}\n"));
        }
        assert_eq!(
            logged(LogLine::Coloured, "\x1b[1;31mred\x1b[0m\x1b[x\n"),
            "\x1b[1;31mred\x1b[0m\\u{1b}[x\n"
        );
        assert_eq!(logged(LogLine::Plain, "\x1b[1mx\n"), "\\u{1b}[1mx\n");
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_left(text: String) {
            let text = format!("{text}{BAD}{text}");
            prop_assert!(!escaped(&text).chars().any(is_unsafe));
            prop_assert!(!json_escaped(&text).chars().any(is_unsafe));
        }
    }
}
