//! The messages to be sent: frames from arguments, a file or standard input.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use xmsg_zmq::{Error, ErrorKind, Multipart};
use xmsg_zmtp::{Limits, MessageLimits, encoded_len};

use super::endpoints::is_endpoint;
use crate::exit::Usage;
use crate::message_builder::{Coding, decode};
use crate::output::note;
use crate::source::{InputLimit, Source, Split};
use crate::template::Template;

/// The options for the source of frames and their conversion.
#[derive(Debug, clap::Args)]
pub(super) struct FrameOptions {
    /// The last frame is the content of this file; `-` is standard input. DATA are the frames before it
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,

    /// Data is hexadecimal digits; white space between them does not matter
    #[arg(long, conflicts_with = "base64")]
    pub(super) hex: bool,

    /// Data is base64; white space in it does not matter
    #[arg(long)]
    pub(super) base64: bool,

    /// Fill in {{Count}}, {{Time}} and the others of `xmsg pub --template`, again for each message
    #[arg(long, conflicts_with_all = ["hex", "base64"])]
    pub(super) template: bool,
}

/// A frame with fixed content, or with placeholders.
#[derive(Debug)]
enum Frame {
    Bytes(Bytes),
    Template(Template),
}

/// A sequence of messages. Each has the same first frames, and a last frame from some input.
#[derive(Debug)]
pub(super) struct Input {
    front: Vec<Frame>,
    source: Source,
    builder: MessageBuilder,
}

/// The conversion of data to a frame.
#[derive(Clone, Copy, Debug)]
struct MessageBuilder {
    coding: Option<Coding>,
    template: bool,
    limits: MessageLimits,
}

/// A message to be sent once or several times.
#[derive(Debug)]
pub(super) struct PreparedMessage<'a> {
    front: &'a [Frame],
    last: Frame,
    limits: MessageLimits,
}

impl FrameOptions {
    /// Makes the messages of these words. The last frame is read from a file or standard input if there are
    /// no words, if the last word is `-`, or if the input is split. No message may exceed these limits.
    pub(super) fn input(&self, words: &[OsString], split: Split, limits: &Limits) -> anyhow::Result<Input> {
        let coding = match (self.hex, self.base64) {
            (true, _) => Some(Coding::Hex),
            (_, true) => Some(Coding::Base64),
            _ => None,
        };
        let builder = MessageBuilder { coding, template: self.template, limits: limits.into() };
        if let Some(word) = words.first().and_then(|word| word.to_str()).filter(|word| is_endpoint(word)) {
            note(format_args!(
                "{word} is sent as data: several endpoints are one word, with commas between them"
            ));
        }
        let is_read = self.file.is_some() || split != Split::Whole;
        let (front, last) = match words {
            [front @ .., last] if last == "-" && self.file.is_none() => (front, None),
            front if is_read => (front, None),
            [front @ .., last] => (front, Some(last)),
            [] => (words, None),
        };
        let bytes = |word: &OsString| Bytes::copy_from_slice(word.as_encoded_bytes());
        // Errors in an argument are found before anything is sent.
        let frame = |word: &OsString| builder.frame(bytes(word)).map_err(|error| Usage(format!("{error:#}")));
        let front = front.iter().map(frame).collect::<Result<Vec<_>, _>>()?;
        let source = match (last, self.file.as_deref().filter(|file| *file != Path::new("-"))) {
            (Some(last), _) => {
                frame(last)?;
                Source::memory(bytes(last), Split::Whole)
            }
            (None, Some(file)) => Source::file(file, split, builder.portion())?,
            (None, None) => {
                if io::stdin().is_terminal() {
                    note("reading from the terminal: Ctrl-D on an empty line is the end");
                }
                Source::stdin(split, builder.portion())?
            }
        };
        Ok(Input { front, source, builder })
    }
}

impl MessageBuilder {
    /// Returns how much of the input can become one frame.
    fn portion(self) -> InputLimit {
        let size = self.limits.size;
        let what =
            format!("the data is longer than a message may be, {size} bytes: --max-message-size raises that");
        InputLimit {
            verb: "send",
            limit: if self.coding.is_some() { size.saturating_mul(4) } else { size },
            too_long: Error::new(ErrorKind::TooLarge, what),
        }
    }

    fn frame(self, data: Bytes) -> anyhow::Result<Frame> {
        Ok(match self.coding {
            Some(coding) => Frame::Bytes(decode(coding, &data)?),
            None if self.template => Frame::Template(Template::parse(&data)?),
            None => Frame::Bytes(data),
        })
    }
}

impl Input {
    /// Returns the next message; `None` at the end of the input.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<PreparedMessage<'_>>> {
        let Some(data) = self.source.next().await? else { return Ok(None) };
        Ok(Some(PreparedMessage {
            front: &self.front,
            last: self.builder.frame(data)?,
            limits: self.builder.limits,
        }))
    }

    /// Returns the only message.
    pub(super) async fn only(&mut self) -> anyhow::Result<PreparedMessage<'_>> {
        let next = self.next().await.context("the data")?;
        match next {
            Some(dish) => Ok(dish),
            None => bail!("there is no data"),
        }
    }
}

impl PreparedMessage<'_> {
    /// Makes message number `count`. An error of kind [`TooLarge`](ErrorKind::TooLarge) means that it exceeds
    /// a limit.
    pub(super) fn message(&self, count: u64) -> xmsg_zmq::Result<Multipart> {
        let frames = self.front.iter().chain([&self.last]).map(|frame| match frame {
            Frame::Bytes(bytes) => bytes.clone(),
            Frame::Template(template) => template.fill(count),
        });
        let message: Multipart = frames.collect();
        let (size, frames) = (encoded_len(message.frames()), message.frames().len());
        let what = match self.limits {
            limits if limits.allow(size, frames) => return Ok(message),
            limits if size > limits.size => {
                format!(
                    "a message of {size} bytes is above the limit of {} bytes: --max-message-size raises it",
                    limits.size
                )
            }
            limits => format!("a message of {frames} frames is above the limit of {} frames", limits.frames),
        };
        Err(Error::new(ErrorKind::TooLarge, what))
    }
}
