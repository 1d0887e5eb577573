//! How input becomes messages: the options, and their implementation.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use xmsg_core::{Message, Meta, Topic};
use xmsg_zmtp::{Limits, encoded_len};

use crate::exit::Usage;
use crate::metadata::Field;
use crate::output::note;
use crate::source::{InputLimit, Source, Split, too_long};
use crate::template::Template;
use crate::value;

/// The largest number of edits between a mistyped name and the suggested one.
const EDITS_MAX: usize = 2;

/// The options for the source of the data.
#[derive(Debug, clap::Args)]
pub(crate) struct InputOptions {
    /// Data; `-` or nothing: standard input. Write `--` before data that starts with `-`
    pub(crate) data: Option<OsString>,

    /// Read the data from this file; `-` is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "data")]
    pub(crate) file: Option<PathBuf>,
}

/// The options for the conversion of the data.
#[derive(Debug, clap::Args)]
pub(crate) struct DataOptions {
    /// Data is hexadecimal digits; white space between them does not matter
    #[arg(long, conflicts_with = "base64")]
    hex: bool,

    /// Data is base64; white space in it does not matter
    #[arg(long)]
    base64: bool,

    /// Fill in {{Count}}, {{Time}}, {{Unix}} (nanoseconds), {{ID}}, {{Random N}} and {{Random MIN MAX}}
    /// (letters and digits), {{Int MIN MAX}}, {{Float MIN MAX}} and {{Sine PERIOD [MIN MAX]}}, again for each
    /// message
    #[arg(long, conflicts_with_all = ["hex", "base64"])]
    template: bool,

    /// Mime type of the data
    #[arg(long, value_name = "TYPE", default_value = "binary/bytes")]
    mime: String,

    /// Metadata, such as author=me; can be given more than once
    #[arg(long, value_name = "KEY=VALUE")]
    meta: Vec<Field>,
}

impl DataOptions {
    /// Makes the recipe for messages to this topic.
    pub(crate) fn builder(&self, topic: &Topic) -> anyhow::Result<MessageBuilder> {
        // Bytes that are given in hexadecimal or base64 may have any type.
        if !self.hex && !self.base64 {
            check_mime(&self.mime)?;
        }
        let mut meta = Meta::new(&self.mime);
        for field in self.meta.iter().cloned() {
            field.apply(&mut meta);
        }
        let coding = match (self.hex, self.base64) {
            (true, _) => Some(Coding::Hex),
            (_, true) => Some(Coding::Base64),
            _ => None,
        };
        Ok(MessageBuilder::new(topic, &meta, coding, self.template))
    }
}

/// Refuses a text that is not a MIME type, or that looks like a mistyped type of xMsg. Otherwise its data
/// would be sent as bytes, as for any other type, and no actor could decode it.
fn check_mime(mime: &str) -> anyhow::Result<()> {
    let has_two_parts = mime.split_once('/').is_some_and(|(kind, name)| !kind.is_empty() && !name.is_empty());
    let is_plain = mime.chars().all(|c| c.is_ascii_graphic() || (has_two_parts && c == ' '));
    let distance = |known: &str| {
        // Users often omit the first part.
        let name = known.split_once('/').map_or(known, |(_, name)| name);
        let meant = if mime.contains('/') { known } else { name };
        strsim::osa_distance(&mime.to_ascii_lowercase(), meant)
    };
    let nearest = value::known().map(|known| (distance(known), known)).min();
    let near = nearest.filter(|(distance, _)| *distance <= EDITS_MAX).map(|(_, known)| known);
    if value::known().any(|known| known == mime) || (has_two_parts && is_plain && near.is_none()) {
        return Ok(());
    }
    let what = if has_two_parts { "is not known here" } else { "is no mime type, such as text/string" };
    let hint = match near {
        Some(known) => format!("is `{known}` meant?"),
        None => "give two parts with a `/` between them".to_owned(),
    };
    let otherwise = if near.is_some() && has_two_parts {
        " Data of a type with this very name is given with --hex or --base64."
    } else {
        ""
    };
    bail!(Usage(format!("--mime: `{mime}` {what}: {hint}{otherwise}")))
}

/// A text encoding of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Coding {
    Hex,
    Base64,
}

/// The conversion of input to messages.
#[derive(Debug)]
pub(crate) struct MessageBuilder {
    topic: Bytes,
    meta: Bytes,
    mime: String,
    coding: Option<Coding>,
    typed: bool,
    template: bool,
    /// The largest number of bytes of data that fit into a message.
    limit: usize,
}

/// Prepared input, which can be published once or many times.
#[derive(Debug)]
pub(crate) enum PreparedMessage {
    Ready(Message),
    Template(Template, Option<Message>),
}

impl MessageBuilder {
    /// Makes the recipe for messages to this topic with this MIME type, whose data is used as it is given.
    pub(crate) fn of_mime(topic: &Topic, mime: &str) -> anyhow::Result<Self> {
        check_mime(mime)?;
        Ok(Self::new(topic, &Meta::new(mime), None, false))
    }

    fn new(topic: &Topic, meta: &Meta, coding: Option<Coding>, template: bool) -> Self {
        let typed = coding.is_none() && value::is_typed(&meta.data_type);
        let (topic, frame) = (topic.clone().into_bytes(), meta.encode());
        // The frame of the data may be long, and the header of a long frame has 9 bytes.
        let limit = Limits::default().message_size.saturating_sub(encoded_len(&[&topic, &frame]) + 9);
        Self { topic, meta: frame, mime: meta.data_type.clone(), coding, typed, template, limit }
    }

    /// Returns whether the input is text that is encoded as a value.
    pub(crate) fn is_typed(&self) -> bool {
        self.typed
    }

    /// Opens the input: an argument, a file, or standard input.
    pub(crate) fn source(
        &self,
        data: Option<&OsStr>,
        file: Option<&Path>,
        split: Split,
    ) -> anyhow::Result<Source> {
        let data = data.filter(|data| *data != "-");
        let file = file.filter(|file| file.as_os_str() != "-");
        match (data, file) {
            (Some(data), _) => {
                let data = Bytes::copy_from_slice(data.as_encoded_bytes());
                // Errors in an argument are found before anything is sent.
                let mut rest = Source::memory(data.clone(), split);
                self.check(&mut rest).map_err(|error| Usage(format!("{error:#}")))?;
                Ok(Source::memory(data, split))
            }
            (None, Some(file)) => Source::file(file, split, self.portion()),
            (None, None) => {
                if io::stdin().is_terminal() {
                    note("reading from the terminal: Ctrl-D on an empty line is the end");
                }
                Source::stdin(split, self.portion())
            }
        }
    }

    fn portion(&self) -> InputLimit {
        InputLimit { verb: "publish", limit: self.input_limit(), too_long: too_long(self.input_limit()) }
    }

    /// Returns the largest number of bytes of input that can become one message.
    pub(crate) fn input_limit(&self) -> usize {
        // One more byte is allowed for a newline that is stripped.
        match self.coding {
            Some(Coding::Hex | Coding::Base64) => 4 * self.limit,
            None => self.limit + 1,
        }
    }

    /// Prepares this input for one message or many.
    pub(crate) fn prepare(&self, data: Bytes) -> anyhow::Result<PreparedMessage> {
        if self.template {
            return Ok(PreparedMessage::Template(Template::parse(&data)?, None));
        }
        Ok(PreparedMessage::Ready(self.message(data)?))
    }

    /// Makes the message with this input.
    pub(crate) fn message(&self, data: Bytes) -> anyhow::Result<Message> {
        let data = match self.coding {
            Some(coding) => decode(coding, &data)?,
            None if self.typed => value::encode(&self.mime, &data)?,
            None => data,
        };
        if data.len() > self.limit {
            bail!(too_long(self.limit));
        }
        Ok(Message::from_frames(self.topic.clone(), self.meta.clone(), data))
    }

    /// Checks that everything in this source, which is in memory, can become a message.
    fn check(&self, source: &mut Source) -> anyhow::Result<()> {
        use futures::FutureExt;
        while let Some(data) = source.next().now_or_never().transpose()?.flatten() {
            self.prepare(data)?.message(self, 1)?;
        }
        Ok(())
    }
}

impl PreparedMessage {
    /// Returns message number `count`.
    pub(crate) fn message(&mut self, builder: &MessageBuilder, count: u64) -> anyhow::Result<&Message> {
        match self {
            Self::Ready(message) => Ok(message),
            Self::Template(template, message) => Ok(message.insert(builder.message(template.fill(count))?)),
        }
    }
}

/// Decodes the bytes that this text represents.
pub(crate) fn decode(coding: Coding, data: &[u8]) -> anyhow::Result<Bytes> {
    let digits: Vec<u8> = data.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let data = match coding {
        Coding::Hex => hex::decode(digits).context("the data is not hexadecimal, as --hex says")?,
        Coding::Base64 => BASE64.decode(digits).context("the data is not base64, as --base64 says")?,
    };
    Ok(data.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder(coding: Option<Coding>, mime: &str) -> MessageBuilder {
        MessageBuilder::new(&Topic::wrap("a"), &Meta::new(mime), coding, false)
    }

    #[test]
    fn a_message_of_the_greatest_length_fits_exactly() {
        let builder = builder(None, "binary/bytes");
        let message = builder.message(vec![0; builder.limit].into()).unwrap();
        assert_eq!(encoded_len(&message.into_frames()), Limits::default().message_size);
        let error = builder.message(vec![0; builder.limit + 1].into()).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }

    #[test]
    fn data_is_decoded_as_told() {
        let hex = builder(Some(Coding::Hex), "binary/bytes").message("00 fF\n".into()).unwrap();
        assert_eq!(hex.data(), "\u{0}\u{ff}".chars().map(|c| c as u8).collect::<Vec<_>>().as_slice());
        let base64 = builder(Some(Coding::Base64), "binary/bytes").message("AAH/\n".into()).unwrap();
        assert_eq!(&base64.data()[..], [0, 1, 255]);
        for (coding, data) in [(Coding::Hex, "0"), (Coding::Hex, "xy"), (Coding::Base64, "*")] {
            assert!(builder(Some(coding), "a/b").message(data.into()).is_err());
        }
    }

    #[test]
    fn slips_in_mime_types_are_told() {
        for mime in [
            "text/string",
            "binary/bytes",
            "application/json",
            "image/png",
            "text/plain; charset=utf-8",
            "x/y",
        ] {
            check_mime(mime).unwrap_or_else(|error| panic!("{mime}: {error}"));
        }
        for (mime, meant) in [
            ("text/sting", "text/string"),
            ("binary/dobule", "binary/double"),
            ("binary/sint23", "binary/sint32"),
            ("Text/String", "text/string"),
            ("double", "binary/double"),
            ("json", "application/json"),
        ] {
            let error = check_mime(mime).unwrap_err();
            assert!(
                error.is::<Usage>() && error.to_string().contains(&format!("is `{meant}` meant?")),
                "{error}"
            );
        }
        for mime in ["", "/", "a/", "/b", "whatever", "a/\n"] {
            assert!(check_mime(mime).unwrap_err().is::<Usage>(), "{mime:?}");
        }
    }

    #[test]
    fn values_are_for_all_languages_unless_they_are_encoded_already() {
        let message = builder(None, "binary/double").message("1.5".into()).unwrap();
        assert_eq!(message.value::<f64>().unwrap().to_bits(), 1.5_f64.to_bits());
        let message = builder(Some(Coding::Hex), "binary/double").message("00".into()).unwrap();
        assert_eq!(&message.data()[..], [0]);
        assert!(builder(None, "binary/double").message("x".into()).is_err());
    }
}
