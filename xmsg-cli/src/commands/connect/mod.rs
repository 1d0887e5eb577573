//! `xmsg connect`: outgoing connections and channels of a proxy, or of `xmsg-connect`.
//!
//! | file | answers |
//! |---|---|
//! | `ask.rs` | How is the daemon asked, and what if it refuses? |
//! | `entries.rs` | How are entries listed, shown, added, changed and deleted? |
//! | `messages.rs` | How are messages sent, and dead letters handled? |
//! | `rows.rs` | Which fields of an entry are shown? |
//! | `durable.rs` | How is a durable subscription made when a client subscribes? |
//! | `top/mod.rs` | `xmsg connect top` |
//! | `top/rates.rs` | What are the rates between two samples? |
//! | `top/view.rs` | What does `xmsg connect top` show? |

mod ask;
mod durable;
mod entries;
mod messages;
mod rows;
mod top;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::admin::AdminOptions;
use crate::args::parse_duration;
use crate::exit::Exit;
use crate::message_builder::InputOptions;
use crate::signals::Interrupt;
use ask::{AdminTarget, Sort};
use messages::Pair;

const EXAMPLES: &str = "\
Examples:
  xmsg connect list                                  what there is, and how it is
  xmsg connect show CRM1
  xmsg connect top                                   a live view
  xmsg connect add crm.toml --admin-token-file admin-token
  xmsg connect send CRM1 '17 pieces' --topic orders:new --confirm
  xmsg connect dead CRM1                             what could not be delivered
  xmsg connect export > connect.toml";
const LIST_EXAMPLES: &str = "\
Examples:
  xmsg connect list
  xmsg connect list --sort outgoing --json | jq .link.state";
const SHOW_EXAMPLES: &str = "\
Examples:
  xmsg connect show CRM1
  xmsg connect show crm --sort connection --json";
const ADD_EXAMPLES: &str = "\
Examples:
  xmsg connect add crm.toml
  printf '[[outgoing]]\\nname = \"feed\"\\nkind = \"zmq\"\\nsocket_type = \"PUSH\"\\naddress = \"tcp://10.0.0.9:5557\"\\n' | xmsg connect add -";
const EDIT_EXAMPLES: &str = "\
Examples:
  xmsg connect edit CRM1 crm.toml                    with another `name` in the file, it is renamed";
const RM_EXAMPLES: &str = "\
Examples:
  xmsg connect rm CRM1                               refused while messages wait
  xmsg connect rm CRM1 --drain 1m                    once all are delivered
  xmsg connect rm CRM1 --purge                       its messages are deleted, too";
const ENABLE_EXAMPLES: &str = "\
Examples:
  xmsg connect enable CRM1";
const DISABLE_EXAMPLES: &str = "\
Examples:
  xmsg connect disable CRM1                          what is sent meanwhile waits, or is refused: `when_inactive`";
const RENAME_EXAMPLES: &str = "\
Examples:
  xmsg connect rename CRM1 CRM2                      its messages stay, and what refers to it follows";
const PING_EXAMPLES: &str = "\
Examples:
  xmsg connect ping CRM1 --timeout 2s";
const SEND_EXAMPLES: &str = "\
Examples:
  xmsg connect send CRM1 '17 pieces' --topic orders:new
  xmsg connect send CRM1 -f order.json --mime application/json --confirm
  xmsg connect send CRM1 urgent --exchange orders --routing-key now --property priority=9 --header X-Retries:=3";
const DEAD_EXAMPLES: &str = "\
Examples:
  xmsg connect dead CRM1
  xmsg connect dead CRM1 --revive 17                 send it again
  xmsg connect dead CRM1 --discard-all";
const EXPORT_EXAMPLES: &str = "\
Examples:
  xmsg connect export > connect.toml";
const IMPORT_EXAMPLES: &str = "\
Examples:
  xmsg connect import connect.toml                   what is not in it is deleted";

/// Manage outgoing connections and channels: ways to ZeroMQ sockets and RabbitMQ, and back
///
/// A proxy with `[connect]` in its settings has them, and so has `xmsg-connect`. They are asked over HTTP
/// (--admin); what changes or sends something needs the token (--admin-token-file). A name belongs to one
/// sort of entries: where several sorts have it, --sort chooses.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,

    /// The sort of entries that is meant: outgoing, channel, connection, federation or durable
    #[arg(long, global = true, value_name = "SORT", value_enum, hide_possible_values = true)]
    sort: Option<Sort>,

    /// JSON: one object on each line
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List entries and their state
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Show an entry: its state, counts, what went wrong last, and its definition
    #[command(after_help = SHOW_EXAMPLES)]
    Show {
        name: String,
    },
    Top(top::Top),
    /// Add the entries of a TOML file: all of them, or none
    #[command(after_help = ADD_EXAMPLES)]
    Add {
        /// The file with `[[connection]]`, `[[outgoing]]`, `[[channel]]`, `[[durable]]` and `[federation]`;
        /// `-`: standard input
        file: PathBuf,
    },
    /// Put the entry of a TOML file in the place of another
    #[command(after_help = EDIT_EXAMPLES)]
    Edit {
        name: String,
        /// The file with one entry; `-`: standard input
        file: PathBuf,
    },
    /// Delete an entry
    #[command(after_help = RM_EXAMPLES)]
    Rm {
        name: String,

        /// Wait until all messages of an outgoing connection are delivered, for so long at most
        #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "purge")]
        drain: Option<Duration>,

        /// Delete the messages of an outgoing connection with it
        #[arg(long)]
        purge: bool,
    },
    /// Set an outgoing connection, a channel, a federation or a durable subscription to work
    #[command(after_help = ENABLE_EXAMPLES)]
    Enable {
        name: String,
    },
    /// Let an outgoing connection, a channel, a federation or a durable subscription rest
    #[command(after_help = DISABLE_EXAMPLES)]
    Disable {
        name: String,
    },
    /// Give an entry another name
    #[command(after_help = RENAME_EXAMPLES)]
    Rename {
        name: String,
        new: String,
    },
    /// Check that the peer of an entry can be reached, and is as declared
    #[command(after_help = PING_EXAMPLES)]
    Ping {
        name: String,

        /// How long that may take
        #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10s")]
        timeout: Duration,
    },
    #[command(after_help = SEND_EXAMPLES)]
    Send(Box<Send>),
    #[command(after_help = DEAD_EXAMPLES)]
    Dead(Dead),
    /// Write all definitions as TOML
    #[command(after_help = EXPORT_EXAMPLES)]
    Export,
    /// Put the definitions of a TOML file in the place of all
    #[command(after_help = IMPORT_EXAMPLES)]
    Import {
        /// The file, as `export` writes it; `-`: standard input
        file: PathBuf,
    },
}

/// Send a message by an outgoing connection
///
/// The command ends once the message is on disk there; with --confirm, once the peer has it. Data is sent as
/// it is given; with --mime and one of xMsg's own types of values, it is a value written as text, as with
/// `xmsg pub`.
#[derive(Debug, Args)]
struct Send {
    name: String,

    #[command(flatten)]
    input: InputOptions,

    /// The topic that the message has in xMsg [default: the name of the outgoing connection]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,

    /// Mime type of the data
    #[arg(long, value_name = "TYPE", default_value = "binary/bytes")]
    mime: String,

    /// AMQP: the exchange, instead of that of the definition
    #[arg(long, value_name = "NAME")]
    exchange: Option<String>,

    /// AMQP: the routing key, instead of that of the definition
    #[arg(long, value_name = "KEY")]
    routing_key: Option<String>,

    /// AMQP: a property, such as priority=9 or type=order; can be given more than once
    #[arg(long, value_name = "KEY=VALUE")]
    property: Vec<Pair>,

    /// AMQP: a header, such as X-Env=test; KEY:=VALUE is a number, true or false; can be given more than once
    #[arg(long, value_name = "KEY=VALUE")]
    header: Vec<Pair>,

    /// Wait until the peer has it: until the broker has confirmed it, or it was written to the ZeroMQ peer
    #[arg(long)]
    confirm: bool,

    /// With --confirm: how long that may take
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    timeout: Duration,
}

/// List the dead letters of an outgoing connection, send them again, or delete them
#[derive(Debug, Args)]
struct Dead {
    name: String,

    #[command(flatten)]
    change: Change,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Change {
    /// Send this one again
    #[arg(long, value_name = "SEQUENCE")]
    revive: Option<u64>,

    /// Send all of them again
    #[arg(long)]
    revive_all: bool,

    /// Delete this one
    #[arg(long, value_name = "SEQUENCE")]
    discard: Option<u64>,

    /// Delete all of them
    #[arg(long)]
    discard_all: bool,
}

/// Makes the durable subscription of this name, unless it exists.
pub(crate) async fn ensure_durable(
    admin: AdminOptions,
    name: &str,
    connection: Option<&str>,
    topics: &[String],
) -> anyhow::Result<()> {
    let target = AdminTarget { admin: admin.admin()?, sort: None, json: false };
    durable::ensure(&target, name, connection, topics).await
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let Arguments { action, sort, json, admin } = arguments;
    let mut interrupt = Interrupt::new()?;
    let target = AdminTarget { admin: admin.admin()?, sort, json };
    let work = async move {
        match action {
            Action::List => entries::list(&target).await,
            Action::Show { name } => entries::show(&target, &name).await,
            Action::Top(arguments) => top::run(target, arguments).await,
            Action::Add { file } => entries::add(&target, &file).await,
            Action::Edit { name, file } => entries::edit(&target, &name, &file).await,
            Action::Rm { name, drain, purge } => entries::remove(&target, &name, drain, purge).await,
            Action::Enable { name } => entries::set_active(&target, &name, true).await,
            Action::Disable { name } => entries::set_active(&target, &name, false).await,
            Action::Rename { name, new } => entries::rename(&target, &name, &new).await,
            Action::Ping { name, timeout } => entries::ping(&target, &name, timeout).await,
            Action::Send(send) => messages::send(&target, *send).await,
            Action::Dead(dead) => messages::dead(&target, dead).await,
            Action::Export => entries::export(&target).await,
            Action::Import { file } => entries::import(&target, &file).await,
        }
    };
    tokio::select! {
        exit = work => exit,
        exit = interrupt.wait() => Ok(exit),
    }
}
