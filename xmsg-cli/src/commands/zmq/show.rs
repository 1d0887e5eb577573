//! How received messages are written.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use xmsg_proxy::shown::bytes as bytes_json;
use xmsg_zmq::Multipart;

use super::socket::Received;
use crate::output::Output;
use crate::render::bytes_text;

/// The options for writing messages.
#[derive(Clone, Copy, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag on the command line")]
pub(super) struct ShowOptions {
    /// Write each message as an object of JSON on one line: time, length, frames, encodings (of each frame:
    /// utf-8 or base64)
    #[arg(long, conflicts_with = "raw")]
    pub(super) json: bool,

    /// Write the frames byte for byte, with nothing in between
    #[arg(long)]
    pub(super) raw: bool,

    /// With --raw: a newline after each message
    #[arg(id = "raw_lines", short = 'l', long = "lines", requires = "raw")]
    pub(super) lines: bool,

    /// With --raw: a NUL byte after each message
    #[arg(id = "raw_null", short = '0', long = "null", requires = "raw", conflicts_with = "raw_lines")]
    pub(super) null: bool,
}

impl ShowOptions {
    /// Writes a message or a subscription that has just arrived.
    pub(super) fn write(self, output: &mut Output, received: &Received) -> anyhow::Result<()> {
        match received {
            Received::Message(message) => self.message(output, message),
            Received::Subscribed(prefix) => self.subscription(output, "subscribe", 1, prefix),
            Received::Unsubscribed(prefix) => self.subscription(output, "unsubscribe", 0, prefix),
        }
    }

    /// Writes the frames of a message: on one line with tabs between them, as JSON, or unchanged.
    pub(super) fn message(self, output: &mut Output, message: &Multipart) -> anyhow::Result<()> {
        if self.json {
            return output.json(&object(message.frames(), Timestamp::now()));
        }
        if self.raw {
            message.frames().iter().try_for_each(|frame| output.write(frame))?;
            return self.end(output);
        }
        line(output.buffer(), message.frames());
        output.written()
    }

    /// Writes a subscription that an XPUB has received. With `--raw`, it is written as on the wire.
    fn subscription(self, output: &mut Output, what: &str, byte: u8, prefix: &Bytes) -> anyhow::Result<()> {
        if self.json {
            let (text, encoding) = bytes_json(prefix);
            return output.json(&json!({ what: text, "encoding": encoding }));
        }
        if self.raw {
            output.write(&[byte])?;
            output.write(prefix)?;
            return self.end(output);
        }
        let text = format!("<{what}>\t{}\n", frame_text(prefix));
        output.buffer().extend_from_slice(text.as_bytes());
        output.written()
    }

    fn end(self, output: &mut Output) -> anyhow::Result<()> {
        output.buffer().extend_from_slice(match (self.lines, self.null) {
            (true, _) => b"\n",
            (_, true) => b"\0",
            _ => b"",
        });
        output.written()
    }
}

/// Appends the frames, with tabs between them, and a newline. Tabs within frames are escaped.
fn line(out: &mut Vec<u8>, frames: &[Bytes]) {
    for (number, frame) in frames.iter().enumerate() {
        if number > 0 {
            out.push(b'\t');
        }
        out.extend_from_slice(frame_text(frame).as_bytes());
    }
    out.push(b'\n');
}

fn frame_text(frame: &[u8]) -> String {
    bytes_text(frame).replace('\t', "\\t")
}

fn object(frames: &[Bytes], time: Timestamp) -> Value {
    let (texts, encodings): (Vec<_>, Vec<_>) = frames.iter().map(|frame| bytes_json(frame)).unzip();
    json!({
        "time": format!("{time:.6}"),
        "length": frames.iter().map(Bytes::len).sum::<usize>(),
        "frames": texts,
        "encodings": encodings,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(frames: &[&[u8]]) -> String {
        let frames: Vec<_> = frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
        let mut out = Vec::new();
        line(&mut out, &frames);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn frames_stand_between_tabs() {
        assert_eq!(shown(&[b"topic", b"two words"]), "topic\ttwo words\n");
        assert_eq!(shown(&[b"", b"a\tb\nc"]), "\ta\\tb\\nc\n");
        assert_eq!(shown(&[b"\0\xff", b""]), "<2 bytes: 00 ff>\t\n");
        assert_eq!(shown(&[b"\x1b[2J"]), "<4 bytes: 1b 5b 32 4a>\n");
    }

    #[test]
    fn json_tells_how_each_frame_is_written() {
        let value = object(&["a\n".into(), Bytes::from_static(b"\xff")], Timestamp::UNIX_EPOCH);
        let expected = json!({
            "time": "1970-01-01T00:00:00.000000Z", "length": 3,
            "frames": ["a\n", "/w=="], "encodings": ["utf-8", "base64"],
        });
        assert_eq!(value, expected);
    }

    proptest! {
        #[test]
        fn frames_can_be_counted(frames in prop::collection::vec(any::<Vec<u8>>(), 1..5)) {
            let text = shown(&frames.iter().map(|frame| &frame[..]).collect::<Vec<_>>());
            prop_assert_eq!(text.matches('\t').count(), frames.len() - 1);
            prop_assert_eq!(text.find('\n'), Some(text.len() - 1));
        }
    }
}
