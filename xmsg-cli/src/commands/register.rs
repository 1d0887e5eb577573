//! `xmsg registrar register` and `xmsg registrar deregister`: make and remove registrations by hand, as
//! actors do by themselves.

use anyhow::bail;
use clap::Args;
use xmsg_core::{OwnerType, ProxyAddress, Registration, Topic};

use crate::args::RegistrarOptions;
use crate::exit::{AtRegistrar, Exit, Usage};
use crate::output::note;
use crate::settings;
use crate::signals::Interrupt;

const EXAMPLES: &str = "\
Examples:
  xmsg registrar register report:sports --name reporter --publisher
  xmsg registrar register report --name archive --subscriber --proxy 10.0.0.7 --description 'all'
  xmsg registrar register report --name archive --subscriber --keep";

const REMOVAL_EXAMPLES: &str = "\
Examples:
  xmsg registrar deregister report:sports --name reporter --publisher
  xmsg registrar deregister --all-of 10.0.0.7        everything of a host that is gone";

/// Whether an actor publishes or subscribes.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Owner {
    /// The actor publishes to the topic
    #[arg(long)]
    publisher: bool,

    /// The actor subscribes to the topic
    #[arg(long)]
    subscriber: bool,
}

impl Owner {
    fn owner(&self) -> OwnerType {
        if self.publisher { OwnerType::Publisher } else { OwnerType::Subscriber }
    }
}

/// Register an actor that publishes or subscribes to a topic
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The topic: domain[:subject[:type...]]
    topic: Topic,

    /// The name of the actor
    #[arg(long)]
    name: String,

    #[command(flatten)]
    owner: Owner,

    /// What the actor does
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,

    /// The proxy that the actor uses [default: the one that commands connect to]
    #[arg(long, value_name = "HOST[:PORT]")]
    proxy: Option<String>,

    /// Keep running, renew the registration regularly, and remove it on Ctrl-C
    #[arg(long)]
    keep: bool,

    #[command(flatten)]
    registrar: RegistrarOptions,
}

/// Remove the registration of an actor, or all registrations of a host
#[derive(Debug, Args)]
#[command(after_help = REMOVAL_EXAMPLES)]
pub(crate) struct RemovalArguments {
    /// The topic: domain[:subject[:type...]]
    #[arg(required_unless_present = "all_of", conflicts_with = "all_of", requires = "name")]
    topic: Option<Topic>,

    /// The name of the actor
    #[arg(long, requires = "topic")]
    name: Option<String>,

    /// The actor publishes to the topic
    #[arg(long, conflicts_with_all = ["subscriber", "all_of"])]
    publisher: bool,

    /// The actor subscribes to the topic
    #[arg(long, conflicts_with = "all_of")]
    subscriber: bool,

    /// The proxy that the actor uses; its port does not matter [default: the one that commands connect to]
    #[arg(long, value_name = "HOST[:PORT]")]
    proxy: Option<String>,

    /// Remove all registrations of this host
    #[arg(long, value_name = "HOST")]
    all_of: Option<String>,

    #[command(flatten)]
    registrar: RegistrarOptions,
}

pub(crate) async fn register(arguments: Arguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let registrar = arguments.registrar.client()?;
    let owner = arguments.owner.owner();
    let proxy: ProxyAddress = settings::PROXY.parsed(arguments.proxy.as_deref())?;
    let mut registration = Registration::new(owner, arguments.name, &arguments.topic, &proxy);
    registration.description = arguments.description;
    let work = async {
        arguments.registrar.find(&registrar).await?;
        registrar.register(&registration).await.map_err(AtRegistrar)
    };
    tokio::select! {
        result = work => result?,
        exit = interrupt.wait() => return Ok(exit),
    }
    if verbose || arguments.keep {
        note(format_args!("registered {owner} {} of {}", registration.name, arguments.topic));
    }
    if !arguments.keep {
        return Ok(Exit::Done);
    }
    let exit = interrupt.wait().await;
    registrar.deregister(&registration).await.map_err(AtRegistrar)?;
    Ok(exit)
}

pub(crate) async fn deregister(arguments: RemovalArguments, verbose: bool) -> anyhow::Result<Exit> {
    let mut interrupt = Interrupt::new()?;
    let registrar = arguments.registrar.client()?;
    let owner = match (arguments.publisher, arguments.subscriber) {
        (true, _) => OwnerType::Publisher,
        (_, true) => OwnerType::Subscriber,
        _ if arguments.all_of.is_some() => OwnerType::Publisher,
        _ => bail!(Usage("say which one: --publisher or --subscriber".to_owned())),
    };
    let proxy: ProxyAddress = settings::PROXY.parsed(arguments.proxy.as_deref())?;
    let work = async {
        arguments.registrar.find(&registrar).await?;
        let done = match (arguments.all_of, arguments.topic, arguments.name) {
            (Some(host), ..) => registrar.remove_all(&host).await,
            (None, Some(topic), Some(name)) => {
                registrar.deregister(&Registration::new(owner, name, &topic, &proxy)).await
            }
            // The command line guarantees a topic and a name, or a host.
            _ => Ok(()),
        };
        done.map_err(AtRegistrar)
    };
    tokio::select! {
        result = work => result?,
        exit = interrupt.wait() => return Ok(exit),
    }
    if verbose {
        note("taken back");
    }
    Ok(Exit::Done)
}
