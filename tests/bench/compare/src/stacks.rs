//! The programs of each stack: its server and its clients.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::cases::Case;
use crate::peer::{PeerKind, Threads};
use crate::plan::Plan;

/// The settings of NATS: no limits where the others have none, and room for the largest message with its
/// metadata.
const NATS_SETTINGS: &str = "max_payload: 8MB\nmax_pending: 4GB\nwrite_deadline: \"60s\"\n";

/// A stack that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stack {
    Libzmq,
    Zeromq,
    Omq,
    Nats,
    Zenoh,
    Xmsg,
    Raw,
}

/// The paths of the programs, and their options.
#[derive(Debug)]
pub struct Programs {
    /// This program, which has the clients of most stacks.
    pub compare: PathBuf,
    pub libzmq_peer: PathBuf,
    pub nats_server: PathBuf,
    pub xmsg_proxy: PathBuf,
    /// The folder for settings files.
    pub folder: PathBuf,
    /// The runtime for all clients, instead of the one on which the clients of each stack do best.
    pub threads: Option<Threads>,
    /// The runtime for all proxies, instead of the one on which each does best.
    pub proxy_threads: Option<Threads>,
}

/// How a server shows that it accepts connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// The server prints `ready`.
    Line,
    /// The ports of the server accept connections.
    Ports,
}

impl Stack {
    pub fn name(self) -> &'static str {
        match self {
            Self::Libzmq => "libzmq",
            Self::Zeromq => "zeromq",
            Self::Omq => "omq-tokio",
            Self::Nats => "NATS",
            Self::Zenoh => "zenoh",
            Self::Xmsg => "xmsg",
            Self::Raw => "raw TCP",
        }
    }

    pub fn takes_part_in(self, case: &Case) -> bool {
        // For small messages, a stack without batching does not show the lowest possible cost.
        self != Self::Raw || (case.is_one_to_one() && case.size >= 64 << 10)
    }

    /// Returns the command of the server. Publishers connect to `port`, and subscribers to the next one.
    pub fn server(self, programs: &Programs, port: u16) -> Result<(Command, Ready)> {
        let port = port.to_string();
        Ok(match self {
            Self::Libzmq => (command(&programs.libzmq_peer, &["proxy", "--port", &port]), Ready::Line),
            Self::Zeromq | Self::Omq | Self::Zenoh | Self::Raw => {
                let mut command = self.peer(programs, programs.proxy_threads);
                command.args(["proxy", "--port", &port]);
                (command, Ready::Line)
            }
            Self::Nats => {
                let settings = programs.folder.join("nats.conf");
                std::fs::write(&settings, NATS_SETTINGS)
                    .with_context(|| format!("cannot write {}", settings.display()))?;
                let mut command = command(&programs.nats_server, &["--addr", "127.0.0.1", "--port", &port]);
                command.arg("--config").arg(settings);
                (command, Ready::Ports)
            }
            Self::Xmsg => {
                let options = ["--port", &port, "--slow-subscriber", "block", "--registrar", "off"];
                (command(&programs.xmsg_proxy, &options), Ready::Ports)
            }
        })
    }

    /// Returns the number of consecutive ports on which the server listens.
    pub fn ports(self) -> u16 {
        if matches!(self, Self::Nats | Self::Zenoh) { 1 } else { 2 }
    }

    /// Returns the command of the process with publishers (`pub`) or subscribers (`sub`).
    pub fn clients(self, programs: &Programs, role: &str, plan: &Plan) -> Command {
        let mut command = match self {
            Self::Libzmq => Command::new(&programs.libzmq_peer),
            _ => self.peer(programs, programs.threads),
        };
        command.arg(role);
        command.args(plan.to_args());
        command
    }

    /// Returns the command of this program as a process of this stack.
    fn peer(self, programs: &Programs, threads: Option<Threads>) -> Command {
        let mut command = command(&programs.compare, &["peer"]);
        if let Some(threads) = threads {
            command.arg("--threads").arg(format!("{threads:?}").to_lowercase());
        }
        command.arg(self.peer_name());
        command
    }

    fn peer_name(self) -> &'static str {
        match self {
            Self::Libzmq => unreachable!("its peer is a program of its own"),
            Self::Zeromq => name_of(PeerKind::Zeromq),
            Self::Omq => name_of(PeerKind::Omq),
            Self::Nats => name_of(PeerKind::Nats),
            Self::Zenoh => name_of(PeerKind::Zenoh),
            Self::Xmsg => name_of(PeerKind::Xmsg),
            Self::Raw => name_of(PeerKind::Raw),
        }
    }
}

fn name_of(kind: PeerKind) -> &'static str {
    match kind {
        PeerKind::Zeromq => "zeromq",
        PeerKind::Omq => "omq",
        PeerKind::Nats => "nats",
        PeerKind::Zenoh => "zenoh",
        PeerKind::Xmsg => "xmsg",
        PeerKind::Raw => "raw",
    }
}

fn command(program: &PathBuf, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}
