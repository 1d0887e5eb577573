//! `xmsg`: publish and subscribe through an xMsg proxy from a terminal.
//!
//! | module | content |
//! |---|---|
//! | [`args`] | the command line: commands, options that several commands share, and the parsing of their values |
//! | [`commands`] | one module for each command, with its options |
//! | [`settings`], [`contexts`] | addresses and credentials: where each value comes from; named sets of them in a file |
//! | [`exit`] | exit codes, and the reporting of errors |
//! | [`source`] | input: a whole file, or its lines, in bounded memory |
//! | [`message_builder`], [`template`], [`value`], [`metadata`] | how input becomes messages |
//! | [`receiving`] | receiving messages and writing them, and how that ends |
//! | [`style`], [`render`], [`mod@format`] | how messages are shown |
//! | [`output`], [`table`] | standard output and standard error; columns |
//! | [`report`] | statistics for each topic, in rows or as JSON |
//! | [`screen`], [`traffic`] | views that are redrawn; traffic by topic |
//! | [`control`] | control requests to a proxy, and their answers |
//! | [`stats`], [`sampling`] | connections and traffic of a proxy; their rates between two samples |
//! | [`subscriber_watch`] | whether published messages reach a subscriber |
//! | [`rights`] | what the proxy allows us to publish and subscribe to |
//! | [`recording`], [`raw_subscription`] | files of messages; a subscription that keeps each byte |
//! | [`admin`] | requests to the HTTP server of a daemon |
//! | [`patterns`] | notes about wildcards of other systems |
//! | [`pace`], [`signals`] | an even rate; `Ctrl-C` |

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
