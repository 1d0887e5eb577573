//! What is to be sent: frames from arguments, a file or standard input.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use xmsg_zmq::Multipart;
use xmsg_zmtp::Limits;

use super::endpoints::is_endpoint;
use crate::exit::Usage;
use crate::output::note;
use crate::recipe::{Coding, decode};
use crate::source::{Source, Split};
use crate::template::Template;

/// Where frames come from, and what they become.
#[derive(Debug, clap::Args)]
pub(super) struct FrameOptions {
    /// The last frame is what is in this file; `-` is standard input. DATA are the frames before it
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,

    /// Data is hexadecimal digits; white space between them does not matter
    #[arg(long, conflicts_with = "base64")]
    pub(super) hex: bool,

    /// Data is base64; white space in it does not matter
    #[arg(long)]
    pub(super) base64: bool,

    /// Fill in {{Count}}, {{Time}} and the others of `xmsg pub --template`, anew for each message
    #[arg(long, conflicts_with_all = ["hex", "base64"])]
    pub(super) template: bool,
}

/// Frames as they are, or with places to fill in.
#[derive(Debug)]
enum Frame {
    Bytes(Bytes),
    Template(Template),
}

/// Messages, one after another: the same frames in front of each, and one of some input behind them.
#[derive(Debug)]
pub(super) struct Input {
    front: Vec<Frame>,
    source: Source,
    recipe: Recipe,
}

/// What becomes of data.
#[derive(Clone, Copy, Debug)]
struct Recipe {
    coding: Option<Coding>,
    template: bool,
}

/// A message, to be sent once or several times.
#[derive(Debug)]
pub(super) struct Dish<'a> {
    front: &'a [Frame],
    last: Frame,
}

impl FrameOptions {
    /// Messages of these words; of what is read instead of the last one, if there is none, if it is `-`, or if input is
    /// split.
    pub(super) fn input(&self, words: &[OsString], split: Split) -> anyhow::Result<Input> {
        let coding = match (self.hex, self.base64) {
            (true, _) => Some(Coding::Hex),
            (_, true) => Some(Coding::Base64),
            _ => None,
        };
        let recipe = Recipe { coding, template: self.template };
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
        // What is wrong with an argument is found before anything is sent.
        let frame = |word: &OsString| recipe.frame(bytes(word)).map_err(|error| Usage(format!("{error:#}")));
        let front = front.iter().map(frame).collect::<Result<Vec<_>, _>>()?;
        let source = match (last, self.file.as_deref().filter(|file| *file != Path::new("-"))) {
            (Some(last), _) => {
                frame(last)?;
                Source::memory(bytes(last), Split::Whole)
            }
            (None, Some(file)) => Source::file(file, split, recipe.limit())?,
            (None, None) => {
                if io::stdin().is_terminal() {
                    note("reading from the terminal: Ctrl-D on an empty line is the end");
                }
                Source::stdin(split, recipe.limit())?
            }
        };
        Ok(Input { front, source, recipe })
    }
}

impl Recipe {
    /// Bytes of input that can become one frame.
    fn limit(self) -> usize {
        let limit = Limits::default().message_size;
        if self.coding.is_some() { 4 * limit } else { limit }
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
    /// The next message; `None` at the end of the input.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Dish<'_>>> {
        let Some(data) = self.source.next().await? else { return Ok(None) };
        Ok(Some(Dish { front: &self.front, last: self.recipe.frame(data)? }))
    }

    /// The only one.
    pub(super) async fn only(&mut self) -> anyhow::Result<Dish<'_>> {
        let next = self.next().await.context("the data")?;
        match next {
            Some(dish) => Ok(dish),
            None => bail!("there is no data"),
        }
    }
}

impl Dish<'_> {
    /// Message number `count`.
    pub(super) fn message(&self, count: u64) -> Multipart {
        let frames = self.front.iter().chain([&self.last]).map(|frame| match frame {
            Frame::Bytes(bytes) => bytes.clone(),
            Frame::Template(template) => template.fill(count),
        });
        frames.collect()
    }
}
