//! The command line: commands, and options that several of them share.

mod command;
mod help;
mod values;

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Parser, Subcommand};
use xmsg_core::options::{CHECK_TIMEOUT, HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT};
use xmsg_core::{Connection, Error, ErrorKind, ProxyAddress, Registrar, RegistrarAddress, Security};
use xmsg_zmq::SocketOptions;

#[cfg(feature = "bench")]
use crate::commands::bench;
use crate::commands::{
    completions, connect, connections, context, demo, device, discover, doctor, info, keys, ping, publish,
    record, register, registrar, replay, reply, request, subscribe, top, topics, zmq,
};
use crate::exit::AtRegistrar;
use crate::settings;

pub(crate) use command::{command, parse, visible};
pub(crate) use help::{Help, PAGES, help, page_as_command};
pub(crate) use values::{
    TopicOptions, parse_bytes, parse_count_from_1, parse_duration, parse_number, parse_rate, parse_size,
};

/// The display order of options that all commands have: after those of the command.
const COMMON_DISPLAY_ORDER: usize = 900;
/// How long the check whether anything listens at the address of the registrar may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Publish and subscribe through an xMsg proxy
#[derive(Debug, Parser)]
#[command(name = "xmsg", version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Report on standard error what is done; twice (-vv): debug messages of the library, too
    #[arg(short, long, global = true, display_order = COMMON_DISPLAY_ORDER, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Write nothing to standard error but errors and losses
    #[arg(short, long, global = true, display_order = COMMON_DISPLAY_ORDER, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Pub(Box<publish::Arguments>),
    Sub(Box<subscribe::Arguments>),
    Req(Box<request::Arguments>),
    Reply(Box<reply::Arguments>),
    Record(Box<record::Arguments>),
    Replay(Box<replay::Arguments>),
    Ping(ping::Arguments),
    #[cfg(feature = "bench")]
    Bench(Box<bench::Arguments>),
    Demo(demo::Arguments),
    Registrar(registrar::Arguments),
    #[command(hide = true)]
    Register(Box<register::Arguments>),
    #[command(hide = true)]
    Deregister(Box<register::RemovalArguments>),
    #[command(hide = true)]
    Find(Box<discover::FindArguments>),
    #[command(hide = true)]
    List(discover::ListArguments),
    Top(top::Arguments),
    Info(info::Arguments),
    Connections(connections::Arguments),
    Topics(topics::Arguments),
    Doctor(Box<doctor::Arguments>),
    Connect(Box<connect::Arguments>),
    Zmq(zmq::Arguments),
    Device(Box<device::Arguments>),
    Keygen(keys::Keygen),
    Passwd(keys::Passwd),
    Context(context::Arguments),
    Completions(completions::Completions),
    Man(completions::Man),
    Help(Help),
}

impl Command {
    /// Returns the number of worker threads that the command needs, if it differs from the number of cores.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        match self {
            #[cfg(feature = "bench")]
            Self::Bench(arguments) => arguments.threads(),
            _ => None,
        }
    }
}

/// The options that select the proxy and the time to connect.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectOptions {
    /// The proxy: its host and the first of its three ports
    #[arg(long, value_name = "HOST[:PORT]", hide = true)]
    proxy: Option<String>,

    /// How long the proxy may take to answer, such as 500ms or 10s [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, hide = true)]
    connect_timeout: Option<Duration>,
}

impl ConnectOptions {
    /// Returns the address of the proxy.
    pub(crate) fn proxy(&self) -> xmsg_core::Result<ProxyAddress> {
        settings::PROXY.parsed(self.proxy.as_deref())
    }

    /// Makes a connection without opening it.
    pub(crate) fn connection(&self) -> xmsg_core::Result<Connection> {
        Connection::with_options(self.proxy()?, self.options()?)
    }

    /// Returns the options of a connection, which the caller may complete.
    pub(crate) fn options(&self) -> xmsg_core::Result<xmsg_core::ConnectOptions> {
        let options = xmsg_core::ConnectOptions::new().security(SecurityOptions::security()?);
        Ok(match self.connect_timeout {
            Some(time) => options.connection_timeout(time).subscription_timeout(time),
            None => options,
        })
    }

    /// Returns how long the proxy may take to answer.
    pub(crate) fn timeout(&self) -> Duration {
        self.connect_timeout.unwrap_or(CHECK_TIMEOUT)
    }
}

/// The credentials, which are the same for everything that a command connects to. [`command()`] adds these
/// options to all commands that connect, and [`settings`] keeps their values.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Security")]
pub(crate) struct SecurityOptions {
    /// CURVE: the public key of the proxy, or of the registrar
    // A key may begin with a hyphen.
    #[arg(
        id = "shared_server_key",
        long = "server-key",
        value_name = "KEY",
        global = true,
        allow_hyphen_values = true,
        hide = true
    )]
    server_key: Option<String>,

    /// CURVE: the file with our keys, from `xmsg keygen` [default: new keys for each run]
    #[arg(id = "shared_key_file", long = "key-file", value_name = "FILE", global = true, hide = true)]
    key_file: Option<String>,

    /// PLAIN: our name
    #[arg(id = "shared_user", long = "user", value_name = "NAME", global = true, hide = true)]
    user: Option<String>,

    /// PLAIN: the file with our password, in its first line
    #[arg(
        id = "shared_password_file",
        long = "password-file",
        value_name = "FILE",
        global = true,
        hide = true
    )]
    password_file: Option<String>,
}

/// The context. All commands that connect have this option; [`settings`] keeps its value.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Context")]
pub(crate) struct ContextOption {
    /// The context that gives the values which neither an option nor the environment gives; '' means no
    /// context [default: the one that `xmsg context select` chose]
    #[arg(id = "shared_context", long = "context", value_name = "NAME", global = true, hide = true)]
    context: Option<String>,
}

impl SecurityOptions {
    /// Returns the mechanism that options, environment and context choose.
    pub(crate) fn security() -> xmsg_core::Result<Security> {
        settings::security()
    }

    /// Returns the options of plain sockets that connect to a proxy.
    pub(crate) fn socket_options() -> xmsg_core::Result<SocketOptions> {
        Ok(Self::socket_options_with(Self::security()?))
    }

    /// Returns the options of plain sockets with this mechanism.
    pub(crate) fn socket_options_with(security: Security) -> SocketOptions {
        SocketOptions::default()
            .security(security)
            .heartbeat_interval(HEARTBEAT_INTERVAL)
            .heartbeat_timeout(HEARTBEAT_TIMEOUT)
    }
}

/// The options that select the registrar and the time for its answers.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Registrar")]
pub(crate) struct RegistrarOptions {
    /// The registrar
    #[arg(long, value_name = "HOST[:PORT]", hide = true)]
    registrar: Option<String>,

    /// How long the registrar may take to answer, such as 500ms or 10s
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = parse_duration, hide = true)]
    registrar_timeout: Duration,
}

impl RegistrarOptions {
    /// Returns whether the address was given by an option, the environment or the context.
    pub(crate) fn is_given(&self) -> bool {
        let found = settings::REGISTRAR.current(self.registrar.as_deref()).ok().flatten();
        found.is_some_and(|found| !matches!(found.source, settings::Source::Default(_)))
    }

    /// Makes a client without connecting it.
    pub(crate) fn client(&self) -> xmsg_core::Result<Registrar> {
        let address: RegistrarAddress = settings::REGISTRAR.parsed(self.registrar.as_deref())?;
        Registrar::builder(address)
            .security(SecurityOptions::security()?)
            .registration_timeout(self.registrar_timeout)
            .discovery_timeout(self.registrar_timeout)
            .build()
    }

    /// Returns an error at once if there is no registrar. The client itself would wait for one to be started.
    pub(crate) async fn find(&self, registrar: &Registrar) -> Result<(), AtRegistrar> {
        let address = registrar.address();
        let failed =
            |kind, why: &str| AtRegistrar(Error::new(kind, format!("no registrar at {address}: {why}")));
        let connecting = async {
            let mut found = tokio::net::lookup_host((address.host(), address.port()))
                .await
                .map_err(|error| {
                    let why = "this host is not known: is its name right?";
                    AtRegistrar(failed(ErrorKind::UnknownHost, why).0.with_source(error))
                })?
                .peekable();
            let mut refused = found.peek().is_some();
            for address in found {
                match tokio::net::TcpStream::connect(address).await {
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                    _ => refused = false,
                }
            }
            if refused { Err(failed(ErrorKind::Refused, "nobody listens there")) } else { Ok(()) }
        };
        // If nothing answers in time, the client continues, which has the same time limit.
        tokio::time::timeout(PROBE_TIMEOUT, connecting).await.unwrap_or(Ok(()))
    }
}
