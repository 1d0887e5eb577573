//! How a message is shown: as a line of text, or as a JSON object.

use std::borrow::Cow;
use std::fmt::Write;
use std::io::{self, BufWriter};

use jiff::Timestamp;
use xmsg_core::text::{escaped, is_unsafe, json_escaped};
use xmsg_core::{Message, Topic};
use xmsg_proxy::shown::{self, typed};

use crate::value;

/// The number of bytes of binary data that are shown.
const PREVIEW_LEN: usize = 16;
/// The number of bytes of a topic that are shown. A message may consist of little but its topic, and escaping
/// makes that many times as long.
const TOPIC_BYTES_SHOWN: usize = 64 << 10;
/// The number of bytes of JSON that are escaped together.
const PIECE_LEN: usize = 4096;

/// Appends `topic data` and a newline; see [`data_text`].
pub(crate) fn line(out: &mut Vec<u8>, message: &Message) {
    out.extend_from_slice(topic_text(message.topic()).as_bytes());
    let data = message.data();
    if typed(message).is_none() && is_text(data) && !has_line_ends(strip_newline(data)) {
        // The usual case needs no copy.
        let data = strip_newline(data);
        if !data.is_empty() {
            out.push(b' ');
            out.extend_from_slice(data);
        }
    } else {
        out.push(b' ');
        out.extend_from_slice(data_text(message).as_bytes());
    }
    out.push(b'\n');
}

/// Appends the data and a newline; see [`data_text`].
pub(crate) fn data_line(out: &mut Vec<u8>, message: &Message) {
    out.extend_from_slice(data_text(message).as_bytes());
    out.push(b'\n');
}

/// Returns the data as text for people. It is the value if the MIME type is one of xMsg's. Otherwise it is
/// the text if the data is text, without its final newline and with other line ends escaped. Otherwise it is
/// the length and the first bytes.
///
/// The result is safe for terminals, and for programs that read line by line: no message looks like two.
pub(crate) fn data_text(message: &Message) -> String {
    if let Some(value) = typed(message) {
        let text = value::text(&value);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        return if is_text(text.as_bytes()) { escape_line_ends(text) } else { escaped(text).into_owned() };
    }
    bytes_text(message.data())
}

/// Returns bytes of no known type as text for people; see [`data_text`].
pub(crate) fn bytes_text(data: &[u8]) -> String {
    match str::from_utf8(strip_newline(data)) {
        Ok(text) if is_text(data) => escape_line_ends(text),
        // The text has characters that change the order in which it is read.
        Ok(text) if !text.chars().any(|c| c.is_control() && !"\t\n\r".contains(c)) => {
            escape_line_ends(&escaped(text))
        }
        _ => preview(data),
    }
}

/// Writes the message as one line of JSON, without a newline.
pub(crate) fn json(out: &mut impl io::Write, message: &Message, time: Timestamp) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(PIECE_LEN, Escaping(out));
    shown::write_message(&mut out, message, &format!("{time:.6}").into())?;
    io::Write::flush(&mut out)
}

/// Escapes what could do harm to a terminal in JSON that is written to it, piece by piece. The line of a long
/// message may be six times as long.
struct Escaping<'a, W>(&'a mut W);

impl<W: io::Write> io::Write for Escaping<'_, W> {
    fn write(&mut self, json: &[u8]) -> io::Result<usize> {
        let piece = &json[..json.len().min(PIECE_LEN)];
        let text = match str::from_utf8(piece) {
            Ok(text) => text,
            // A character that is cut in two comes with the next piece.
            Err(cut) => str::from_utf8(&piece[..cut.valid_up_to()]).unwrap_or_default(),
        };
        if text.is_empty() && !json.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "JSON has to be UTF-8"));
        }
        self.0.write_all(json_escaped(text).as_bytes())?;
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns a topic as text for people. Characters that could harm a terminal, or that end a line, are
/// escaped. Of a topic of more than 64 KiB, only the beginning is shown, with `…` behind it.
pub(crate) fn topic_text(topic: &Topic) -> Cow<'_, str> {
    let bytes = topic.as_bytes();
    let shown = &bytes[..bytes.len().min(TOPIC_BYTES_SHOWN)];
    let mut text = match String::from_utf8_lossy(shown) {
        Cow::Borrowed(text) => escaped(text),
        Cow::Owned(text) => escaped(&text).into_owned().into(),
    };
    if shown.len() < bytes.len() {
        text.to_mut().push('\u{2026}');
    }
    text
}

/// Returns a list of topics to subscribe to, as text for people.
pub(crate) fn topics_text(topics: &[Topic]) -> String {
    let name = |topic| match topic_text(topic) {
        name if name.is_empty() => "everything".into(),
        name => name,
    };
    topics.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Returns whether the data is UTF-8 without characters that could harm a terminal, other than those of plain
/// text.
fn is_text(data: &[u8]) -> bool {
    let control = |byte: &u8| *byte < b' ' && !b"\t\n\r".contains(byte) || *byte == 0x7f;
    let is_safe = |text: &str| !text.chars().any(|c| !c.is_ascii() && is_unsafe(c));
    !data.iter().any(control) && str::from_utf8(data).is_ok_and(|text| text.is_ascii() || is_safe(text))
}

/// Returns whether a character ends a line in some programs. Those of Unicode are included.
fn ends_line(character: char) -> bool {
    matches!(character, '\n' | '\r' | '\u{2028}' | '\u{2029}')
}

fn has_line_ends(data: &[u8]) -> bool {
    data.iter().any(|byte| b"\n\r".contains(byte))
        || !data.is_ascii() && str::from_utf8(data).is_ok_and(|text| text.contains(ends_line))
}

fn escape_line_ends(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if ends_line(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

fn strip_newline(data: &[u8]) -> &[u8] {
    data.strip_suffix(b"\r\n").or_else(|| data.strip_suffix(b"\n")).unwrap_or(data)
}

fn preview(data: &[u8]) -> String {
    let mut text = format!("<{} bytes:", data.len());
    for byte in data.iter().take(PREVIEW_LEN) {
        // Writing to a string cannot fail.
        let _ = write!(text, " {byte:02x}");
    }
    text.push_str(if data.len() > PREVIEW_LEN { " …>" } else { ">" });
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;
    use xmsg_core::data::mime;

    use super::*;

    fn topic() -> Topic {
        Topic::wrap("a:b")
    }

    fn shown(message: &Message) -> String {
        let mut out = Vec::new();
        line(&mut out, message);
        String::from_utf8(out).unwrap()
    }

    fn bytes(data: &[u8]) -> Message {
        Message::of(topic(), data.to_vec()).unwrap()
    }

    fn in_json(message: &Message) -> Value {
        let mut out = Vec::new();
        json(&mut out, message, Timestamp::UNIX_EPOCH).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn of_a_very_long_topic_the_beginning_is_shown() {
        let long = Topic::wrap("\u{1}".repeat(TOPIC_BYTES_SHOWN + 1));
        let text = topic_text(&long);
        assert_eq!(text.len(), 5 * TOPIC_BYTES_SHOWN + '\u{2026}'.len_utf8());
        assert!(text.ends_with("\\u{1}\u{2026}"), "{}", &text[text.len() - 20..]);
        let whole = "a".repeat(TOPIC_BYTES_SHOWN);
        assert_eq!(topic_text(&Topic::wrap(whole.clone())), whole);
    }

    #[test]
    fn text_is_shown_with_one_newline() {
        for (data, expected) in [
            ("x", "a:b x\n"),
            ("x\n", "a:b x\n"),
            ("x\r\n", "a:b x\n"),
            ("x\n\n", "a:b x\\n\n"),
            ("x\nb:c y", "a:b x\\nb:c y\n"),
            ("x\rb:c y\r\n", "a:b x\\rb:c y\n"),
            ("x\u{2028}y\u{2029}z", "a:b x\\u{2028}y\\u{2029}z\n"),
            ("zoë", "a:b zoë\n"),
            ("", "a:b\n"),
            ("\n", "a:b\n"),
        ] {
            assert_eq!(shown(&bytes(data.as_bytes())), expected);
        }
    }

    /// Characters of every length lie across the ends of the pieces.
    #[test]
    fn long_messages_are_escaped_piece_by_piece() {
        for text in ["\u{202e}", "\u{9b}x", "\u{10ffff}\u{7f}", "é\u{1}"] {
            let text = text.repeat(PIECE_LEN);
            let mut out = Vec::new();
            json(&mut out, &bytes(text.as_bytes()), Timestamp::UNIX_EPOCH).unwrap();
            let line = String::from_utf8(out).unwrap();
            assert!(!line.chars().any(is_unsafe));
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["data"], *text);
        }
    }

    #[test]
    fn binary_data_is_shown_by_its_first_bytes() {
        assert_eq!(shown(&bytes(b"a\0\xff")), "a:b <3 bytes: 61 00 ff>\n");
        assert_eq!(shown(&bytes(b"\x1b[2J")), "a:b <4 bytes: 1b 5b 32 4a>\n");
        assert_eq!(shown(&bytes("\u{9b}2J".as_bytes())), "a:b <4 bytes: c2 9b 32 4a>\n");
        assert!(shown(&bytes(&[0; 100])).ends_with("00 00 …>\n"));
    }

    #[test]
    fn values_are_shown_as_such() {
        assert_eq!(shown(&Message::of(topic(), 2.5).unwrap()), "a:b 2.5\n");
        assert_eq!(shown(&Message::of(topic(), "zoë").unwrap()), "a:b zoë\n");
        assert_eq!(shown(&Message::of(topic(), "\u{1b}[2J").unwrap()), "a:b \\u{1b}[2J\n");
        assert_eq!(shown(&Message::of(topic(), vec![1, 2]).unwrap()), "a:b [1, 2]\n");
        assert_eq!(shown(&Message::of(topic(), "x\nb:c y").unwrap()), "a:b x\\nb:c y\n");
        // Data that does not fit the MIME type is shown as it is.
        assert_eq!(shown(&Message::with_mime(topic(), mime::DOUBLE, "hello")), "a:b hello\n");
    }

    #[test]
    fn a_topic_does_no_harm_to_a_terminal() {
        assert_eq!(shown(&Message::of(Topic::wrap("a\u{1b}"), 1).unwrap()), "a\\u{1b} 1\n");
    }

    #[test]
    fn nothing_of_a_message_does_harm_to_a_terminal() {
        let bad = "\u{202e}x\u{2067}";
        assert_eq!(shown(&bytes(bad.as_bytes())), "a:b \\u{202e}x\\u{2067}\n");
        assert_eq!(shown(&Message::of(topic(), bad).unwrap()), "a:b \\u{202e}x\\u{2067}\n");
        assert_eq!(shown(&Message::of(Topic::wrap(bad), 1).unwrap()), "\\u{202e}x\\u{2067} 1\n");
        let bad = "\u{202e}\u{9b}\u{7f}\x1b";
        let mut message = Message::of(Topic::wrap(bad), bad).unwrap();
        message.edit_meta(|meta| meta.author = Some(bad.into())).unwrap();
        let mut out = Vec::new();
        json(&mut out, &message, Timestamp::UNIX_EPOCH).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.chars().any(is_unsafe), "{text}");
        let read = in_json(&message);
        assert_eq!(
            (&read["topic"], &read["value"], &read["meta"]["author"]),
            (&bad.into(), &bad.into(), &bad.into())
        );
    }

    #[test]
    fn json_says_how_the_data_is_written() {
        let mut message = bytes(b"x\n");
        message.edit_meta(|meta| meta.author = Some("me".into())).unwrap();
        let expected = serde_json::json!({
            "topic": "a:b", "mime": "binary/bytes", "time": "1970-01-01T00:00:00.000000Z", "length": 2,
            "data": "x\n", "encoding": "utf-8", "meta": {"author": "me"},
        });
        assert_eq!(in_json(&message), expected);

        let binary = in_json(&bytes(b"\xff"));
        assert_eq!((&binary["data"], &binary["encoding"]), (&"/w==".into(), &"base64".into()));
        assert_eq!(in_json(&Message::of(topic(), vec![1.5]).unwrap())["value"], serde_json::json!([1.5]));
    }

    proptest! {
        #[test]
        fn any_message_is_shown(topic: Vec<u8>, meta: Vec<u8>, data: Vec<u8>) {
            let message = Message::from_frames(topic.into(), meta.into(), data.into());
            let text = shown(&message);
            prop_assert!(!text.chars().any(|c| is_unsafe(c) && !"\t\n".contains(c)), "{}", text);
            prop_assert_eq!(text.find('\n'), Some(text.len() - 1), "one line");
            in_json(&message);
        }
    }
}
