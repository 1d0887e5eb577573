//! `xmsg registrar`: a registrar in this terminal.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use xmsg_core::RegistrarAddress;
use xmsg_proxy::registrar::{Config, Registrar};

use crate::args::parse_duration;
use crate::exit::{Exit, Usage};
use crate::output::{counted, note};
use crate::signals::Interrupt;

/// How long replies are still sent after Ctrl-C.
const LINGER: Duration = Duration::from_secs(2);

/// Run a registrar: it keeps who publishes and who subscribes, and where
///
/// It runs until Ctrl-C. The daemon `xmsg-registrar` does the same with the manners of a daemon.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Address or name of the interface to listen on; 0.0.0.0 for all of them
    #[arg(long, default_value = "127.0.0.1")]
    host: String,

    /// Port; 0: any free one
    #[arg(long, default_value_t = xmsg_core::address::DEFAULT_REGISTRAR_PORT)]
    port: u16,

    /// Keep registrations in this file, so that a restart loses none; FILE.journal and FILE.lock lie beside it
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,

    /// Forget what was not registered again for so long, such as 60s [default: never]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ttl: Option<Duration>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    if arguments.ttl.is_some_and(|ttl| ttl.is_zero()) {
        bail!(Usage("--ttl can't be 0: everything would be forgotten at once".to_owned()));
    }
    // Only the host is checked: port 0 is no address, but can be bound.
    let host = RegistrarAddress::new(&arguments.host, 1)?.host().to_owned();
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let config = Config { snapshot: arguments.snapshot, ttl: arguments.ttl, ..Config::default() };
    let registrar = Registrar::bind(format!("{host}:{}", arguments.port)).config(config).start().await?;
    let found = registrar.counts();
    note(format_args!(
        "registrar at {} with {}; Ctrl-C ends it",
        registrar.address(),
        counted(found.publishers + found.subscribers, "registration"),
    ));
    let exit = tokio::select! {
        exit = interrupt.wait() => exit,
        () = registrar.ended() => bail!("the registrar has lost its journal: see -v"),
    };
    let counts = registrar.stop(LINGER).await;
    note(format_args!("stopped after {}, {} refused", counted(counts.requests, "request"), counts.refused));
    Ok(exit)
}
