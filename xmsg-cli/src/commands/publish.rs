//! `xmsg pub`: publishes data from an argument, a file or standard input.

use std::ffi::OsString;
use std::future::Future;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use xmsg_core::zmtp::{Limits, encoded_len};
use xmsg_core::{Connection, Message, Meta, Topic};

use crate::args::{ConnectOptions, parse_duration, parse_rate};
use crate::exit::{Exit, Usage};
use crate::metadata::Field;
use crate::output::{counted, grouped, note, note_connection, per_second};
use crate::pace::Pace;
use crate::signals::Interrupt;
use crate::source::{Source, Split, too_long};
use crate::template::Template;
use crate::value;

/// Messages that are published before others get their turn, and signals are looked for.
const TURN: u64 = 256;
/// A run that takes no longer needs no progress bar.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  xmsg pub report:sports '3:1'                       one message
  xmsg pub report:log -l < app.log                   each line is a message
  tail -f app.log | xmsg pub report:log -l           the same, as lines come
  xmsg pub camera:front -f front.png --mime image/png
  xmsg pub daq:temperature 21.5 --mime binary/double
  xmsg pub test '{{Count}} at {{Time}}' --template --count 100 --rate 10
  xmsg pub report:sports '3:1' --meta author=me --meta status=warning";

/// Publish messages
///
/// Data is published byte for byte as it is given, as `binary/bytes`. Of a file or of standard input, all is one message;
/// with -l each line is one, with its newline, so that `xmsg sub --raw` writes the very same file again.
///
/// With --mime and one of xMsg's own types of values (text/string, binary/sint32, binary/sint64, binary/sfixed32,
/// binary/sfixed64, binary/float, binary/double, and binary/array-... of them), data is text that is turned into the
/// value, as actors in all languages read it: a number, a text, or numbers between commas; for binary/array-string a JSON
/// array. With any other mime type, and with --hex or --base64, it is bytes that are sent as they are.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag on the command line")]
pub(crate) struct Arguments {
    /// Topic: domain[:subject[:type...]]
    topic: Topic,

    /// Data; `-` or nothing: standard input. Write `--` before data that starts with `-`
    data: Option<OsString>,

    /// Publish this file; `-` is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "data")]
    file: Option<PathBuf>,

    /// Each line is a message. Its newline is part of it, and so is a carriage return
    #[arg(short, long)]
    lines: bool,

    /// With -l: leave the newline at the end of each line out (always so for values of --mime)
    #[arg(long, requires = "lines")]
    chomp: bool,

    /// NUL bytes separate messages, and are not part of them
    #[arg(short = '0', long, conflicts_with = "lines")]
    null: bool,

    /// Data is hexadecimal digits; white space between them does not matter
    #[arg(long, conflicts_with = "base64")]
    hex: bool,

    /// Data is base64; white space in it does not matter
    #[arg(long)]
    base64: bool,

    /// Fill in {{Count}}, {{Time}}, {{Unix}} (nanoseconds), {{ID}}, {{Random N}} and {{Random MIN MAX}}, anew for each
    /// message
    #[arg(long, conflicts_with_all = ["hex", "base64"])]
    template: bool,

    /// Mime type of the data
    #[arg(long, value_name = "TYPE", default_value = "binary/bytes")]
    mime: String,

    /// Metadata, such as author=me; can be given more than once
    #[arg(long, value_name = "KEY=VALUE")]
    meta: Vec<Field>,

    /// Publish the message so many times
    #[arg(short = 'n', long, value_name = "COUNT", conflicts_with_all = ["lines", "null"])]
    count: Option<u64>,

    /// Messages per second at most, evenly spaced
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    rate: Option<f64>,

    /// Wait until somebody has subscribed to the topic
    #[arg(long)]
    wait_sub: bool,

    /// How long to go on sending at the end, while the proxy is slow or away
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_duration)]
    linger: Duration,

    #[command(flatten)]
    connect: ConnectOptions,
}

pub(crate) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let mut job = Job::new(&arguments)?;
    let proxy = &arguments.connect.proxy;
    let connection = arguments.connect.connection()?;

    let publishing = async {
        connection.connect().await?;
        let events = connection.events().await?;
        let publishing = async {
            if arguments.wait_sub {
                if verbose {
                    note(format_args!("waiting for a subscriber of {}", arguments.topic));
                }
                connection.wait_for_subscriber(&arguments.topic).await?;
            }
            job.publish(&connection).await
        };
        or_noting(publishing, note_connection(events, proxy)).await
    };
    let result = tokio::select! {
        result = publishing => result.map(|()| Exit::Done),
        () = interrupt.wait() => Ok(Exit::Interrupted),
    };
    job.progress.clear();

    // What was accepted is sent, also after an error or an interrupt; a second interrupt ends that, too.
    let unsent = tokio::select! {
        unsent = connection.close(arguments.linger) => unsent as u64,
        () = interrupt.wait() => {
            note(format_args!("interrupted: {} not sent", counted(connection.queued().messages, "message")));
            return Ok(Exit::Interrupted);
        }
    };
    let exit = result?;
    if unsent > 0 {
        bail!(
            "{} of {} could not be sent to {proxy} within {} s: see whether the proxy runs, or give it more time with \
             --linger",
            unsent,
            counted(job.sent, "message"),
            arguments.linger.as_secs_f64(),
        );
    }
    if verbose {
        let messages = counted(job.sent, "message");
        note(format_args!("published {messages} ({}) to {}", counted(job.bytes, "byte"), arguments.topic));
    }
    Ok(exit)
}

/// The result of `work`; meanwhile `notes` is run, which never ends.
async fn or_noting<T>(work: impl Future<Output = T>, notes: impl Future<Output = ()>) -> T {
    tokio::select! {
        result = work => result,
        () = notes => std::future::pending().await,
    }
}

/// What is to be published, and how far that has come.
#[derive(Debug)]
struct Job {
    source: Source,
    recipe: Recipe,
    count: u64,
    pace: Option<Pace>,
    progress: Progress,
    sent: u64,
    bytes: u64,
}

impl Job {
    fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        let typed = value::is_typed(&arguments.mime) && !arguments.hex && !arguments.base64;
        let split = match (arguments.lines, arguments.null) {
            (true, _) => Split::Lines { chomp: arguments.chomp || typed },
            (_, true) => Split::Null,
            _ => Split::Whole,
        };
        let mut meta = Meta::new(&arguments.mime);
        for field in arguments.meta.iter().cloned() {
            field.apply(&mut meta);
        }
        let coding = match (arguments.hex, arguments.base64) {
            (true, _) => Some(Coding::Hex),
            (_, true) => Some(Coding::Base64),
            _ => None,
        };
        let recipe = Recipe::new(&arguments.topic, &meta, coding, typed, arguments.template);

        let data = arguments.data.as_ref().filter(|data| *data != "-");
        let file = arguments.file.as_ref().filter(|file| file.as_os_str() != "-");
        let limit = recipe.input_limit();
        let source = match (data, file) {
            (Some(data), _) => {
                let data = Bytes::copy_from_slice(data.as_encoded_bytes());
                // What is wrong with an argument is found before anything is sent.
                let mut rest = Source::memory(data.clone(), split);
                recipe.check(&mut rest).map_err(|error| Usage(format!("{error:#}")))?;
                Source::memory(data, split)
            }
            (None, Some(file)) => Source::file(file, split, limit)?,
            (None, None) => {
                if io::stdin().is_terminal() {
                    note("reading from the terminal: Ctrl-D on an empty line is the end");
                }
                Source::stdin(split, limit)?
            }
        };
        Ok(Self {
            source,
            recipe,
            count: arguments.count.unwrap_or(1),
            pace: None,
            progress: Progress::new(arguments),
            sent: 0,
            bytes: 0,
        }
        .paced(arguments.rate))
    }

    fn paced(self, rate: Option<f64>) -> Self {
        Self { pace: rate.map(Pace::new), ..self }
    }

    async fn publish(&mut self, connection: &Connection) -> anyhow::Result<()> {
        while let Some(data) = self.source.next().await? {
            let mut dish = self.recipe.prepare(data).with_context(|| format!("message {}", self.sent + 1))?;
            for _ in 0..self.count {
                if let Some(pace) = &mut self.pace {
                    pace.wait().await;
                }
                let message = dish.message(&self.recipe, self.sent + 1)?;
                self.bytes += message.data().len() as u64;
                connection.publish(message).await?;
                self.sent += 1;
                self.progress.update(self.sent, self.bytes);
                if self.sent.is_multiple_of(TURN) {
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Coding {
    Hex,
    Base64,
}

/// How input becomes a message.
#[derive(Debug)]
struct Recipe {
    topic: Bytes,
    meta: Bytes,
    mime: String,
    coding: Option<Coding>,
    typed: bool,
    template: bool,
    /// Bytes of data that fit into a message.
    limit: usize,
}

/// Input, ready to be published once or many times.
#[derive(Debug)]
enum Dish {
    Ready(Message),
    Template(Template, Option<Message>),
}

impl Recipe {
    fn new(topic: &Topic, meta: &Meta, coding: Option<Coding>, typed: bool, template: bool) -> Self {
        let (topic, frame) = (topic.clone().into_bytes(), meta.encode());
        // The header of a long frame, as the data may be, has 9 bytes.
        let limit = Limits::default().message_size.saturating_sub(encoded_len(&[&topic, &frame]) + 9);
        Self { topic, meta: frame, mime: meta.data_type.clone(), coding, typed, template, limit }
    }

    /// Bytes of input that can become one message.
    fn input_limit(&self) -> usize {
        // One more for a newline that is stripped.
        match self.coding {
            Some(Coding::Hex | Coding::Base64) => 4 * self.limit,
            None => self.limit + 1,
        }
    }

    fn prepare(&self, data: Bytes) -> anyhow::Result<Dish> {
        if self.template {
            return Ok(Dish::Template(Template::parse(&data)?, None));
        }
        Ok(Dish::Ready(self.message(data)?))
    }

    fn message(&self, data: Bytes) -> anyhow::Result<Message> {
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

    /// Whether everything in this source, which is in memory, can become a message.
    fn check(&self, source: &mut Source) -> anyhow::Result<()> {
        use futures::FutureExt;
        while let Some(data) = source.next().now_or_never().transpose()?.flatten() {
            self.prepare(data)?.message(self, 1)?;
        }
        Ok(())
    }
}

impl Dish {
    fn message(&mut self, recipe: &Recipe, count: u64) -> anyhow::Result<&Message> {
        match self {
            Self::Ready(message) => Ok(message),
            Self::Template(template, message) => Ok(message.insert(recipe.message(template.fill(count))?)),
        }
    }
}

fn decode(coding: Coding, data: &[u8]) -> anyhow::Result<Bytes> {
    let digits: Vec<u8> = data.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let data = match coding {
        Coding::Hex => hex::decode(digits).context("the data is not hexadecimal, as --hex says")?,
        Coding::Base64 => BASE64.decode(digits).context("the data is not base64, as --base64 says")?,
    };
    Ok(data.into())
}

/// A progress bar on a terminal, once it turns out that the run is long.
#[derive(Debug)]
struct Progress {
    started: Instant,
    wanted: bool,
    /// Look at the clock at each message; else only now and then.
    slow: bool,
    total: Option<u64>,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(arguments: &Arguments) -> Self {
        Self {
            started: Instant::now(),
            // Whoever types the messages has the terminal.
            wanted: io::stderr().is_terminal()
                && (arguments.data.is_some() || arguments.file.is_some() || !io::stdin().is_terminal()),
            slow: arguments.rate.is_some_and(|rate| rate < 1000.0),
            total: arguments.count,
            bar: None,
        }
    }

    fn update(&mut self, sent: u64, bytes: u64) {
        if !self.wanted || !self.slow && !sent.is_multiple_of(TURN) {
            return;
        }
        if self.bar.is_none() && self.started.elapsed() >= PROGRESS_AFTER {
            self.bar = Some(self.start());
        }
        if let Some(bar) = &self.bar {
            // Of the whole run: the bar itself knows only what came after it was there.
            let rate = grouped(per_second(sent, self.started.elapsed()));
            bar.set_message(format!("{rate} messages/s, {:.1} MB", bytes as f64 / 1e6));
            bar.set_position(sent);
        }
    }

    fn start(&self) -> ProgressBar {
        let target = ProgressDrawTarget::stderr_with_hz(8);
        let bar = ProgressBar::with_draw_target(self.total, target).with_elapsed(self.started.elapsed());
        let template = if self.total.is_some() {
            "{bar:30} {human_pos} of {human_len}, {msg}"
        } else {
            "{elapsed} {human_pos} messages, {msg}"
        };
        // A template that is wrong is no reason not to publish.
        bar.with_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        )
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(coding: Option<Coding>, mime: &str) -> Recipe {
        let typed = coding.is_none() && value::is_typed(mime);
        Recipe::new(&Topic::wrap("a"), &Meta::new(mime), coding, typed, false)
    }

    #[test]
    fn a_message_of_the_greatest_length_fits_exactly() {
        let recipe = recipe(None, "binary/bytes");
        let message = recipe.message(vec![0; recipe.limit].into()).unwrap();
        assert_eq!(encoded_len(&message.into_frames()), Limits::default().message_size);
        let error = recipe.message(vec![0; recipe.limit + 1].into()).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }

    #[test]
    fn data_is_decoded_as_told() {
        let hex = recipe(Some(Coding::Hex), "binary/bytes").message("00 fF\n".into()).unwrap();
        assert_eq!(hex.data(), "\u{0}\u{ff}".chars().map(|c| c as u8).collect::<Vec<_>>().as_slice());
        let base64 = recipe(Some(Coding::Base64), "binary/bytes").message("AAH/\n".into()).unwrap();
        assert_eq!(&base64.data()[..], [0, 1, 255]);
        for (coding, data) in [(Coding::Hex, "0"), (Coding::Hex, "xy"), (Coding::Base64, "*")] {
            assert!(recipe(Some(coding), "a/b").message(data.into()).is_err());
        }
    }

    #[test]
    fn values_are_for_all_languages_unless_they_are_encoded_already() {
        let message = recipe(None, "binary/double").message("1.5".into()).unwrap();
        assert_eq!(message.value::<f64>().unwrap().to_bits(), 1.5_f64.to_bits());
        let message = recipe(Some(Coding::Hex), "binary/double").message("00".into()).unwrap();
        assert_eq!(&message.data()[..], [0]);
        assert!(recipe(None, "binary/double").message("x".into()).is_err());
    }
}
