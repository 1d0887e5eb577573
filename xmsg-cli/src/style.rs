//! How messages are written to standard output: the options, and their implementation.

use jiff::Timestamp;
use xmsg_core::Message;

use crate::format::Format;
use crate::output::Output;
use crate::render;

/// The options for writing messages. Other styles that a command has belong to the group `how`, too.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag on the command line")]
pub(crate) struct StyleOptions {
    /// Write each message like this: %t topic, %m mime type, %v value as text, %p data byte for byte, %l
    /// length, %x data as hex, %j JSON, %T time of arrival, %%; \n \t \r \0 \\. No newline is added. In all
    /// but %p, line ends and what could harm a terminal are escaped
    #[arg(long, value_name = "FORMAT", group = "how")]
    format: Option<Format>,

    /// Write each message as an object of JSON on one line: topic, mime, time, length, data, encoding (of
    /// data: utf-8 or base64), value (of xMsg's own types), meta
    #[arg(long, group = "how")]
    json: bool,

    /// Write the data byte for byte, with nothing in between
    #[arg(long, group = "how")]
    raw: bool,

    /// With --raw: a newline after each message
    #[arg(short, long, requires = "raw")]
    lines: bool,

    /// With --raw: a NUL byte after each message
    #[arg(short = '0', long, requires = "raw", conflicts_with = "lines")]
    null: bool,
}

impl StyleOptions {
    /// Returns whether JSON was requested.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Returns the requested style, or else `usual`.
    pub(crate) fn style(&self, usual: Style) -> Style {
        if let Some(format) = &self.format {
            Style::Format(format.clone())
        } else if self.json {
            Style::Json
        } else if self.raw {
            Style::Raw {
                after: match (self.lines, self.null) {
                    (true, _) => b"\n",
                    (_, true) => b"\0",
                    _ => b"",
                },
            }
        } else {
            usual
        }
    }
}

/// A way to write messages.
#[derive(Debug)]
pub(crate) enum Style {
    /// Topic and data on one line.
    Line,
    /// Data on one line.
    Data,
    Format(Format),
    /// A JSON object on one line.
    Json,
    /// Data byte for byte, followed by these bytes.
    Raw {
        after: &'static [u8],
    },
}

impl Style {
    /// Writes a message that has just arrived.
    pub(crate) fn write(&self, output: &mut Output, message: &Message) -> anyhow::Result<()> {
        let out = output.buffer();
        match self {
            Self::Line => render::line(out, message),
            Self::Data => render::data_line(out, message),
            Self::Format(format) => format.write(out, message, Timestamp::now()),
            Self::Json => {
                output.write_with(|out| render::json(out, message, Timestamp::now()))?;
                output.buffer().push(b'\n');
            }
            Self::Raw { after } => {
                output.write(message.data())?;
                output.buffer().extend_from_slice(after);
            }
        }
        output.written()
    }
}
