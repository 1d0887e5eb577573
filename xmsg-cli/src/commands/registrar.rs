//! `xmsg registrar`: queries a registrar, or runs one in this terminal.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use xmsg_core::address::bracketed;
use xmsg_core::{ErrorKind, RegistrarAddress};
use xmsg_proxy::registrar::{Config, Registrar};

use crate::args::{parse_duration, parse_number};
use crate::commands::{discover, register};
use crate::exit::{Exit, Usage};
use crate::output::{check_folder, counted, note};
use crate::signals::Interrupt;

/// How long replies are still sent after Ctrl-C.
const LINGER: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  xmsg registrar run                                 one in this terminal, until Ctrl-C
  xmsg registrar list
  xmsg registrar find report:sports                  who publishes it
  xmsg registrar register report:sports --name reporter --publisher --proxy 10.0.0.7
  xmsg registrar deregister report:sports --name reporter --publisher --proxy 10.0.0.7";

const RUN_EXAMPLES: &str = "\
Examples:
  xmsg registrar run
  xmsg registrar run --host 0.0.0.0 --snapshot registrations --ttl 60s";

/// Find who publishes and who subscribes, or run a registrar
///
/// Without a command, and with the options of `run`, it runs one.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
#[group(skip)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) action: Option<Action>,

    #[command(flatten)]
    run: RunArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    Run(RunArguments),
    List(discover::ListArguments),
    Find(Box<discover::FindArguments>),
    Register(Box<register::Arguments>),
    Deregister(Box<register::RemovalArguments>),
}

pub(crate) async fn run(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    match arguments.action {
        None => serve(arguments.run).await,
        Some(Action::Run(arguments)) => serve(arguments).await,
        Some(Action::List(arguments)) => discover::list(arguments).await,
        Some(Action::Find(arguments)) => discover::find(*arguments).await,
        Some(Action::Register(arguments)) => register::register(*arguments, verbose).await,
        Some(Action::Deregister(arguments)) => register::deregister(*arguments, verbose).await,
    }
}

/// Run a registrar: it keeps who publishes and who subscribes, and where
///
/// It runs until Ctrl-C. The program `xmsg-registrar` does the same as a daemon.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArguments {
    /// Address or name of the interface to listen on; 0.0.0.0 for all of them
    #[arg(long, default_value = "127.0.0.1")]
    host: String,

    /// The port; 0: any free one
    #[arg(long, default_value_t = xmsg_core::address::DEFAULT_REGISTRAR_PORT, value_parser = parse_number::<u16>(0..=65_535))]
    port: u16,

    /// Keep registrations in this file, so that a restart loses none; FILE.journal and FILE.lock are created
    /// beside it
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,

    /// Remove registrations that were not renewed for this time, such as 60s; 0: never [default: 0]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ttl: Option<Duration>,
}

async fn serve(arguments: RunArguments) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    arguments.snapshot.as_deref().map(check_folder).transpose()?;
    // Only the host is checked: port 0 is not valid in an address, but can be bound.
    let checked = RegistrarAddress::new(&arguments.host, 1)?;
    let host = bracketed(checked.host());
    let config = Config {
        snapshot: arguments.snapshot,
        ttl: arguments.ttl.filter(|ttl| !ttl.is_zero()),
        ..Config::default()
    };
    let registrar = Registrar::bind(format!("{host}:{}", arguments.port)).config(config).start().await;
    // An unknown host here is not a missing registrar, but an invalid address to bind to.
    let registrar = registrar.map_err(|error| match error.kind() {
        ErrorKind::UnknownHost => anyhow!(Usage(format!("--host: {}", error.with_causes()))),
        _ => error.into(),
    })?;
    let found = registrar.counts();
    note(format_args!(
        "registrar at {} with {}; Ctrl-C ends it",
        registrar.address(),
        counted(found.publishers + found.subscribers, "registration"),
    ));
    let exit = tokio::select! {
        exit = interrupt.wait() => exit,
        () = registrar.ended() => bail!("the journal of the registrar can't be used any more: run with -v for the reason"),
    };
    let counts = registrar.stop(LINGER).await;
    note(format_args!("stopped after {}, {} refused", counted(counts.requests, "request"), counts.refused));
    Ok(exit)
}
