//! `xmsg`: publish and subscribe through an xMsg proxy from a terminal.
//!
//! | file | answers |
//! |---|---|
//! | `args/mod.rs` | Which commands are there, and which options do several of them share? |
//! | `args/command.rs` | How is the command line declared, and what do all commands that connect have? |
//! | `args/values.rs` | How are the values of options read? |
//! | `args/help.rs` | What do the pages of help say, and in which groups are the commands? |
//! | `commands/` | What does each command do? |
//! | `settings.rs` | Where does an address or a credential come from? |
//! | `contexts.rs` | Which sets of addresses and credentials has the user named, and in which file? |
//! | `exit.rs` | Which exit code does an error have, and how is it reported? |
//! | `source.rs` | Where does one message of the input end and the next one begin? |
//! | `message_builder.rs` | How does input become messages? |
//! | `template.rs` | What is filled in for `{{Count}}` and the like? |
//! | `value.rs` | How does a text become a value of a MIME type, and a value text? |
//! | `metadata.rs` | What can `--meta` set? |
//! | `receiving.rs` | When does receiving end? |
//! | `style.rs` | In which form are messages written? |
//! | `render.rs` | How does a message look as a line, or as JSON? |
//! | `format.rs` | What do the places of `--format` mean? |
//! | `output.rs` | How are standard output and standard error written? |
//! | `table.rs` | How are columns aligned? |
//! | `report.rs` | What has arrived of each topic in the last second? |
//! | `screen.rs` | How is a terminal set up, drawn to, read and given back? |
//! | `live.rs` | How do views that are redrawn take samples, filter, pause and scroll? |
//! | `traffic.rs` | What is shown of the traffic by topic? |
//! | `control.rs` | How is a proxy asked, and how do its answers arrive? |
//! | `stats.rs` | What does a proxy say of its connections and its traffic? |
//! | `sampling.rs` | Which rates are between two samples? |
//! | `subscriber_watch.rs` | Do published messages reach a subscriber? |
//! | `rights.rs` | What may we publish and subscribe to at a proxy? |
//! | `recording/` | What is in a recording, and how is it written and read? |
//! | `raw_subscription.rs` | How are frames received as they were on the wire? |
//! | `received_json.rs` | How much memory may JSON of others take? |
//! | `admin.rs` | How is the HTTP server of a daemon asked? |
//! | `patterns.rs` | Does the user mean a wildcard of another system? |
//! | `pace.rs` | When is the next message due? |
//! | `signals.rs` | Has somebody pressed `Ctrl-C`? |

mod admin;
mod args;
mod commands;
mod contexts;
mod control;
mod exit;
mod format;
mod live;
mod message_builder;
mod metadata;
mod output;
mod pace;
mod patterns;
mod raw_subscription;
mod received_json;
mod receiving;
mod recording;
mod render;
mod report;
mod rights;
mod sampling;
mod screen;
mod settings;
mod signals;
mod source;
mod stats;
mod style;
mod subscriber_watch;
mod table;
mod template;
mod traffic;
mod value;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use xmsg_core::text::{LogLine, LogWriter};

use args::{Cli, Command};
use exit::Exit;

/// The largest number of threads for blocking work, which is files and the decryption of long frames. Each
/// thread takes address space, which may be limited.
const BLOCKING_THREADS: usize = 32;

fn main() -> ExitCode {
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error).into(),
    };
    start_tracing(cli.verbose);
    if cli.quiet {
        output::silence_notes();
    }
    run(cli).unwrap_or_else(|error| exit::report(&error)).into()
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = cli.command.threads() {
        runtime.worker_threads(threads.get());
    }
    let blocking = xmsg_proxy::default_memory_limit::blocking_threads(BLOCKING_THREADS);
    let runtime = runtime
        .enable_all()
        .max_blocking_threads(blocking)
        .build()
        .context("cannot start: the system gives no threads")?;
    let verbose = cli.verbose > 0;
    let exit = runtime.block_on(async {
        match cli.command {
            Command::Pub(arguments) => commands::publish::run(*arguments, verbose).await,
            Command::Sub(arguments) => commands::subscribe::run(*arguments, verbose).await,
            Command::Req(arguments) => commands::request::run(*arguments, verbose).await,
            Command::Reply(arguments) => commands::reply::run(*arguments, verbose).await,
            Command::Record(arguments) => commands::record::run(*arguments, verbose).await,
            Command::Replay(arguments) => commands::replay::run(*arguments, verbose).await,
            Command::Ping(arguments) => commands::ping::run(arguments).await,
            #[cfg(feature = "bench")]
            Command::Bench(arguments) => commands::bench::run(*arguments).await,
            Command::Demo(arguments) => commands::demo::run(arguments).await,
            Command::Registrar(arguments) => commands::registrar::run(arguments, verbose).await,
            Command::Register(arguments) => commands::register::register(*arguments, verbose).await,
            Command::Deregister(arguments) => commands::register::deregister(*arguments, verbose).await,
            Command::Find(arguments) => commands::discover::find(*arguments).await,
            Command::List(arguments) => commands::discover::list(arguments).await,
            Command::Info(arguments) => commands::info::run(arguments).await,
            Command::Topics(arguments) => commands::topics::run(arguments).await,
            Command::Doctor(arguments) => commands::doctor::run(*arguments).await,
            Command::Top(arguments) => commands::top::run(arguments).await,
            Command::Connections(arguments) => commands::connections::run(arguments).await,
            Command::Connect(arguments) => commands::connect::run(*arguments).await,
            Command::Zmq(arguments) => commands::zmq::run(arguments, verbose).await,
            Command::Device(arguments) => commands::device::run(*arguments, verbose).await,
            Command::Keygen(arguments) => commands::keys::keygen(&arguments),
            Command::Passwd(arguments) => commands::keys::passwd(&arguments),
            Command::Context(arguments) => commands::context::run(arguments),
            Command::Completions(arguments) => commands::completions::completions(&arguments),
            Command::Man(arguments) => commands::completions::man(&arguments),
            Command::Help(arguments) => args::help(&arguments),
        }
    });
    // Commands have closed what matters; tasks that still run must not delay the exit.
    runtime.shutdown_background();
    exit
}

/// Sends logs of the library to standard error, if `-v`, `-vv` or `RUST_LOG` asks for them.
fn start_tracing(verbose: u8) {
    let environment = std::env::var("RUST_LOG").ok();
    let level = match verbose {
        0 if environment.is_none() => return,
        0 | 1 => "info",
        2 => "debug",
        _ => "trace",
    };
    // tracing-subscriber would treat spaces as a part of the name of a module.
    let directives = environment.map(|filter| filter.split(',').map(str::trim).collect::<Vec<_>>().join(","));
    let filter = directives.as_deref().unwrap_or(level).parse::<Targets>().unwrap_or_else(|error| {
        output::note(format_args!("RUST_LOG can't be read, so only errors are logged: {error}"));
        Targets::new().with_default(LevelFilter::ERROR)
    });
    let is_coloured = std::io::stderr().is_terminal() && output::colour_wanted();
    // Any line may contain text from peers, which has to be escaped.
    let line = if is_coloured { LogLine::Coloured } else { LogLine::Plain };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(move || LogWriter::new(std::io::stderr(), line))
        .with_ansi(is_coloured);
    tracing_subscriber::registry().with(filter).with(lines).init();
}
