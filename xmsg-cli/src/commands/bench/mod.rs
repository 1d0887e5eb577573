//! `xmsg bench`: measures how fast a proxy is, and whether it loses messages.
//!
//! | file | answers |
//! |---|---|
//! | `throughput.rs` | `xmsg bench throughput`: options, measurement, report |
//! | `latency.rs` | `xmsg bench latency` |
//! | `connect.rs` | `xmsg bench connect` |
//! | `subscribe.rs` | `xmsg bench subscribe` |
//! | `sync.rs` | `xmsg bench sync` |
//! | `options.rs` | Which options do several modes share? |
//! | `target.rs` | Which proxy is measured? |
//! | `client.rs` | How are messages published and received? No other file of the bench does that. |
//! | `phase.rs` | How do publishers and subscribers work together until everything has arrived? |
//! | `setup.rs` | How long does it take to set something up? |
//! | `pacer.rs` | When is each message of a fixed timetable due? |
//! | `check.rs` | Which messages are missing, late or there twice? |
//! | `histogram.rs` | Which percentiles have the measured times? |
//! | `timeline.rs` | Which rates were there over time? |
//! | `report.rs` | How are results written? |
//! | `plot.rs` | How are results drawn? |
//! | `live.rs` | What does a terminal show meanwhile? |

mod check;
mod client;
mod connect;
mod histogram;
mod latency;
mod live;
mod options;
mod pacer;
mod phase;
mod plot;
mod report;
mod setup;
mod subscribe;
mod sync;
mod target;
mod throughput;
mod timeline;

use std::fmt;
use std::fs::Permissions;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use xmsg_core::Topic;
use xmsg_core::control::Right;

use crate::exit::Exit;
use crate::output::{Output, check_folder, counted};
use crate::rights;
use crate::signals::Interrupt;

use client::{Receiver, Sender, Topics};
use options::CommonOptions;
use report::Report;
use target::Target;

/// How long publishers may go on sending at the end. Usually everything was sent, or given up, before.
const LINGER: Duration = Duration::from_millis(100);

/// The prefix of the topics of replies.
const REPLIES: &str = "ret:";

const EXAMPLES: &str = "\
Examples:
  xmsg bench --embedded                                  one to one, with its own proxy
  xmsg bench -p 8 -s 8 --size 1KiB                       eight publishers, eight subscribers
  xmsg bench latency --rate 1000,10000,100000            percentiles at fixed rates
  xmsg bench latency --rate 10000 --json --plot latency.svg
  xmsg bench connect --count 1000 --concurrency 16       connections, each with its check
  xmsg bench subscribe --on-one-connection 1000,100000   many on one connection
  xmsg bench sync --in-flight 8                          synchronous publishing

Lost messages are reported; they are a failure (exit code 1) only with --fail-on-loss. Ctrl-C ends a
bench early: the results so far are written, and the exit code is 130.";

/// Measure a proxy: throughput, latency, how fast connections and subscriptions are made
///
/// Without a mode, it measures throughput, and takes the options of that mode. Clients are tasks of this
/// process. Results go to standard output, as a table or, with --json, as one JSON document.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
// A group has the name of its struct, and the flattened mode has a struct of the same name.
#[group(skip)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    mode: Option<Mode>,

    #[command(flatten)]
    throughput: throughput::Arguments,
}

#[derive(Debug, Subcommand)]
enum Mode {
    Throughput(Box<throughput::Arguments>),
    Latency(Box<latency::Arguments>),
    Connect(Box<connect::Arguments>),
    Subscribe(Box<subscribe::Arguments>),
    Sync(Box<sync::Arguments>),
}

impl Arguments {
    /// Returns the number of threads of the runtime, if it was given.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        self.common().target.threads
    }

    fn common(&self) -> &CommonOptions {
        match &self.mode {
            None => &self.throughput.common,
            Some(Mode::Throughput(arguments)) => &arguments.common,
            Some(Mode::Latency(arguments)) => &arguments.common,
            Some(Mode::Connect(arguments)) => &arguments.common,
            Some(Mode::Subscribe(arguments)) => &arguments.common,
            Some(Mode::Sync(arguments)) => &arguments.common,
        }
    }

    fn title(&self) -> String {
        match &self.mode {
            None => self.throughput.title(),
            Some(Mode::Throughput(arguments)) => arguments.title(),
            Some(Mode::Latency(arguments)) => arguments.title(),
            Some(Mode::Connect(arguments)) => arguments.title(),
            Some(Mode::Subscribe(arguments)) => arguments.title(),
            Some(Mode::Sync(arguments)) => arguments.title(),
        }
    }

    /// Returns the rights that the mode needs for its topics, and for the topics of replies. Without them,
    /// messages would be lost silently.
    fn rights(&self) -> (&[Right], &[Right]) {
        const BOTH: &[Right] = &[Right::Publish, Right::Subscribe];
        match &self.mode {
            None | Some(Mode::Throughput(_) | Mode::Latency(_)) => (BOTH, &[]),
            Some(Mode::Sync(_)) => (BOTH, BOTH),
            Some(Mode::Subscribe(arguments)) if arguments.publishes() => (BOTH, &[]),
            Some(Mode::Subscribe(_)) => (&[Right::Subscribe], &[]),
            Some(Mode::Connect(_)) => (&[], &[]),
        }
    }

    /// Fails if the proxy does not grant a right that the mode needs.
    async fn check_rights(&self) -> anyhow::Result<()> {
        let common = self.common();
        let (rights, rights_of_replies) = self.rights();
        for (topic, rights) in
            [(Topics::below(&common.target.topic), rights), (Topic::wrap(REPLIES), rights_of_replies)]
        {
            for right in rights {
                rights::check(&common.connect, *right, &topic).await?;
            }
        }
        Ok(())
    }

    async fn measure(&self, target: &Target, interrupt: &mut Interrupt) -> anyhow::Result<Report> {
        match &self.mode {
            None => throughput::run(&self.throughput, target, interrupt).await,
            Some(Mode::Throughput(arguments)) => throughput::run(arguments, target, interrupt).await,
            Some(Mode::Latency(arguments)) => latency::run(arguments, target, interrupt).await,
            Some(Mode::Connect(arguments)) => connect::run(arguments, target, interrupt).await,
            Some(Mode::Subscribe(arguments)) => subscribe::run(arguments, target, interrupt).await,
            Some(Mode::Sync(arguments)) => sync::run(arguments, target, interrupt).await,
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let options = &arguments.common().report;
    // The file is created before the measurement, so that an error is reported at once.
    let plot_file = options.plot.as_deref().map(PlotFile::create).transpose()?;
    let target = Target::open(arguments.common()).await?;
    let allowed = unless_interrupted(&mut interrupt, arguments.check_rights()).await;
    let report = match allowed {
        Ok(()) => arguments.measure(&target, &mut interrupt).await,
        Err(error) => Err(error),
    };
    let report = match report {
        Err(error) if error.is::<Interrupted>() => return Ok(interrupt.exit()),
        report => report?,
    };

    let mut output = Output::stdout()?;
    let written = if options.json {
        writeln!(output.buffer(), "{:#}", document(&report, &target))
    } else {
        let embedded = if target.is_embedded() { "an embedded proxy" } else { "the proxy" };
        let (mode, title, address) = (report.mode, arguments.title(), target.address());
        let stopped = if report.interrupted { "stopped early\n" } else { "" };
        let text = &report.text;
        writeln!(output.buffer(), "{mode}: {title}, through {embedded} at {address}\n\n{text}{stopped}")
    };
    // Writing to memory cannot fail.
    drop(written);
    if let (Some(file), Some(svg)) = (plot_file, &report.plot) {
        file.write(svg)?;
    }
    output.flush()?;
    target.close().await;

    if report.interrupted {
        return Ok(interrupt.exit());
    }
    if let Some(failed) = report.failed {
        bail!(failed);
    }
    if options.fail_on_loss && report.lost > 0 {
        bail!(
            "{} lost: the proxy drops for slow subscribers unless its policy is `block`, and its log says for whom",
            counted(report.lost, "message")
        );
    }
    Ok(Exit::Done)
}

/// Makes the document that `--json` writes. Fields may be added but are never renamed; docs/measuring.md
/// lists them.
fn document(report: &Report, target: &Target) -> Value {
    json!({
        "mode": report.mode,
        "version": env!("CARGO_PKG_VERSION"),
        "proxy": target.address().to_string(),
        "embedded": target.is_embedded(),
        "threads": tokio::runtime::Handle::current().metrics().num_workers(),
        "interrupted": report.interrupted,
        "settings": report.settings,
        "result": report.result,
    })
}

/// Closes the clients of a bench at the end.
async fn close(senders: Vec<Sender>, receivers: Vec<Receiver>) {
    futures::future::join_all(senders.into_iter().map(|sender| sender.close(LINGER))).await;
    futures::future::join_all(receivers.into_iter().map(Receiver::close)).await;
}

/// Ctrl-C before there was anything to report.
#[derive(Debug)]
struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Runs the preparation of a measurement, until it is interrupted.
async fn unless_interrupted<T>(
    interrupt: &mut Interrupt,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        result = work => result,
        _ = interrupt.wait() => Err(Interrupted.into()),
    }
}

/// A file that is created or replaced only when its content is complete.
#[derive(Debug)]
struct PlotFile {
    path: PathBuf,
    file: NamedTempFile,
}

impl PlotFile {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let what = || format!("cannot write {}", path.display());
        check_folder(path)?;
        // These are the permissions of any new file. Temporary files would be readable by the user alone.
        let permissions = Permissions::from_mode(0o666);
        let file = tempfile::Builder::new()
            .prefix(".xmsg-bench-")
            .permissions(permissions)
            .tempfile_in(folder)
            .with_context(what)?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(mut self, svg: &str) -> anyhow::Result<()> {
        let what = || format!("cannot write {}", self.path.display());
        self.file.write_all(svg.as_bytes()).with_context(what)?;
        self.file.persist(&self.path).map_err(|error| error.error).with_context(what)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses the arguments of a mode.
    pub(super) fn parse<A: Args>(words: &[&str]) -> A {
        let command = A::augment_args(clap::Command::new("bench"));
        A::from_arg_matches(&command.get_matches_from(words)).unwrap()
    }

    #[test]
    fn without_a_mode_it_is_throughput() {
        let arguments = parse::<Arguments>(&["bench", "--size", "1KiB", "--threads", "3"]);
        assert!(arguments.mode.is_none());
        assert_eq!(arguments.threads(), NonZeroUsize::new(3));
        assert!(arguments.title().contains("1,024 bytes"), "{}", arguments.title());
        let arguments = parse::<Arguments>(&["bench", "latency", "--threads", "2"]);
        assert!(matches!(arguments.mode, Some(Mode::Latency(_))));
        assert_eq!(arguments.threads(), NonZeroUsize::new(2));
    }

    #[test]
    fn a_plot_replaces_the_one_before_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.svg");
        std::fs::write(&path, "old").unwrap();
        let file = PlotFile::create(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        file.write("new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        drop(PlotFile::create(&path).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(PlotFile::create(&folder.path().join("none/a.svg")).is_err());
        assert!(PlotFile::create(folder.path()).is_err());
    }
}
