//! Format strings of `xmsg sub --format`.

use std::io::Write;
use std::str::FromStr;

use jiff::Timestamp;
use xmsg_core::Message;
use xmsg_core::text::escaped;

use crate::render;

/// A parsed format string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Format(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Topic,
    Mime,
    Data,
    Value,
    Length,
    Hex,
    Json,
    Time,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let piece = match c {
                '%' => match chars.next() {
                    Some('%') => {
                        plain.push('%');
                        continue;
                    }
                    Some('t') => Piece::Topic,
                    Some('m') => Piece::Mime,
                    Some('p') => Piece::Data,
                    Some('v') => Piece::Value,
                    Some('l') => Piece::Length,
                    Some('x') => Piece::Hex,
                    Some('j') => Piece::Json,
                    Some('T') => Piece::Time,
                    Some(other) => {
                        return Err(format!("`%{other}` is not known: %t %m %p %v %l %x %j %T %%"));
                    }
                    None => return Err("a `%` at the end: write `%%` for a percent sign".to_owned()),
                },
                '\\' => {
                    plain.push(match chars.next() {
                        Some('n') => '\n',
                        Some('t') => '\t',
                        Some('r') => '\r',
                        Some('0') => '\0',
                        Some('\\') => '\\',
                        Some(other) => return Err(format!("`\\{other}` is not known: \\n \\t \\r \\0 \\\\")),
                        None => return Err("a `\\` at the end: write `\\\\` for a backslash".to_owned()),
                    });
                    continue;
                }
                c => {
                    plain.push(c);
                    continue;
                }
            };
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain).into()));
            }
            pieces.push(piece);
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain.into()));
        }
        Ok(Self(pieces))
    }
}

impl Format {
    /// Appends the message. Topic and MIME type are escaped, so that no message looks like two in what reads
    /// line by line. `%p` asks for the data unchanged; `%v` is on one line.
    pub(crate) fn write(&self, out: &mut Vec<u8>, message: &Message, time: Timestamp) {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Topic => out.extend_from_slice(render::topic_text(message.topic()).as_bytes()),
                Piece::Mime => {
                    out.extend_from_slice(escaped(message.mime_type().unwrap_or_default()).as_bytes());
                }
                Piece::Data => out.extend_from_slice(message.data()),
                Piece::Value => out.extend_from_slice(render::data_text(message).as_bytes()),
                // Writing to memory cannot fail.
                Piece::Length => drop(write!(out, "{}", message.data().len())),
                Piece::Hex => out.extend_from_slice(hex::encode(message.data()).as_bytes()),
                Piece::Json => drop(render::json(out, message, time)),
                Piece::Time => drop(write!(out, "{time:.6}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xmsg_core::Topic;

    use super::*;

    fn write(format: &str, message: &Message) -> Vec<u8> {
        let mut out = Vec::new();
        format.parse::<Format>().unwrap().write(&mut out, message, Timestamp::UNIX_EPOCH);
        out
    }

    #[test]
    fn a_message_is_written_as_asked() {
        let message = Message::of(Topic::wrap("a:b"), b"x\0".to_vec()).unwrap();
        let cases: [(&str, &[u8]); 9] = [
            ("%t|%m|%l|%x", b"a:b|binary/bytes|2|7800"),
            ("%p", b"x\0"),
            ("%v", b"<2 bytes: 78 00>"),
            ("%T", b"1970-01-01T00:00:00.000000Z"),
            (r"100%% \n\t\r\0\\", b"100% \n\t\r\0\\"),
            ("zoë%%t", "zoë%t".as_bytes()),
            ("", b""),
            ("%l%l", b"22"),
            ("%t %t", b"a:b a:b"),
        ];
        for (format, expected) in cases {
            assert_eq!(write(format, &message), expected, "{format}");
        }
        let json: serde_json::Value = serde_json::from_slice(&write("%j", &message)).unwrap();
        assert_eq!(json["topic"], "a:b");
    }

    /// A line of another message can't be forged with a topic, a MIME type or a value.
    #[test]
    fn topic_and_mime_type_are_escaped() {
        let topic = Topic::wrap("a\nb:c\t\u{1b}\u{2028}");
        let message = Message::with_mime(topic, "text/x\r\ny", "one\ntwo\r\n");
        let cases: [(&str, &str); 4] = [
            ("%t", "a\\nb:c\\t\\u{1b}\\u{2028}"),
            ("%m", "text/x\\r\\ny"),
            ("%v", "one\\ntwo"),
            ("%p", "one\ntwo\r\n"),
        ];
        for (format, expected) in cases {
            assert_eq!(String::from_utf8(write(format, &message)).unwrap(), expected, "{format}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        for (format, advice) in [
            ("%z", "`%z` is not known"),
            ("100%", "`%%`"),
            (r"\q", r"`\q` is not known"),
            ("\\", "backslash"),
        ] {
            let error = format.parse::<Format>().unwrap_err();
            assert!(error.contains(advice), "{format}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = text.parse::<Format>();
        }

        #[test]
        fn escaped_text_is_written_as_it_was(text: String) {
            let escaped = text.replace('\\', r"\\").replace('%', "%%");
            prop_assert_eq!(write(&escaped, &Message::of(Topic::wrap(""), 1).unwrap()), text.into_bytes());
        }
    }
}
