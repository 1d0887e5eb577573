//! Building an actor.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Actor, Inner};
use crate::connection::invalid_address;
use crate::pool::Pool;
use crate::{ActorId, ConnectOptions, Connection, ProxyAddress, Registrar, RegistrarAddress, Result};
use xmsg_zmq::EventChannel;

/// Builds an [`Actor`].
///
/// ```
/// use xmsg_core::{Actor, ConnectOptions};
/// let actor = Actor::builder("daq")
///     .proxy("10.0.0.7")
///     .registrar("10.0.0.8")
///     .options(ConnectOptions::new().high_water_mark(16 << 20))
///     .build()?;
/// assert_eq!(actor.proxy().to_string(), "10.0.0.7:7771");
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is made before `build` or `connect`"]
pub struct ActorBuilder {
    name: String,
    proxy: Option<Result<ProxyAddress>>,
    registrar: Option<Result<RegistrarAddress>>,
    options: Option<ConnectOptions>,
}

impl ActorBuilder {
    pub(super) fn new(name: String) -> Self {
        Self { name, proxy: None, registrar: None, options: None }
    }

    /// Sets the default proxy: an address, or text such as `"10.0.0.7"`. The default is that of `XMSG_PROXY`,
    /// or localhost.
    pub fn proxy<A: TryInto<ProxyAddress, Error: fmt::Display>>(mut self, address: A) -> Self {
        self.proxy = Some(address.try_into().map_err(invalid_address));
        self
    }

    /// Sets the default registrar: an address, or text such as `"10.0.0.8"`. The default is that of
    /// `XMSG_REGISTRAR`, or localhost.
    pub fn registrar<A: TryInto<RegistrarAddress, Error: fmt::Display>>(mut self, address: A) -> Self {
        self.registrar = Some(address.try_into().map_err(invalid_address));
        self
    }

    /// Sets the options of the actor's connections. The default is [`ConnectOptions::new`].
    pub fn options(mut self, options: ConnectOptions) -> Self {
        self.options = Some(options);
        self
    }

    /// Makes the actor, without connecting it: it connects when it first publishes or subscribes.
    ///
    /// # Errors
    /// An address that cannot be parsed, or [`InvalidOption`](crate::ErrorKind::InvalidOption).
    pub fn build(self) -> Result<Actor> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let proxy = match (self.proxy, variable("XMSG_PROXY")) {
            (Some(address), _) => address?,
            (None, Some(text)) => text.parse()?,
            (None, None) => ProxyAddress::default(),
        };
        let registrar = match (self.registrar, variable("XMSG_REGISTRAR")) {
            (Some(address), _) => address?,
            (None, Some(text)) => text.parse()?,
            (None, None) => RegistrarAddress::default(),
        };
        let options = self.options.unwrap_or_default();
        options.check()?;
        let events = EventChannel::new();
        let inner = Inner {
            registrations: Registrar::builder(registrar.clone())
                .sender(&self.name)
                .security(options.mechanism().clone())
                .build()?,
            name: self.name,
            id: ActorId::random(),
            registrar,
            pool: Pool::with_checked(options.clone()),
            connection: Connection::with_events(proxy, options.clone(), events.clone()),
            options,
            connections: Mutex::new(HashMap::new()),
            replies: Mutex::default(),
            subscriptions: Mutex::default(),
            services: Mutex::default(),
            events,
            closed: AtomicBool::new(false),
            stop_services: CancellationToken::new(),
            stop_replies: CancellationToken::new(),
            handlers: TaskTracker::new(),
            listeners: TaskTracker::new(),
        };
        Ok(Actor { inner: Arc::new(inner) })
    }

    /// Makes the actor and connects it to its default proxy.
    ///
    /// # Errors
    /// The errors of [`build`](Self::build), or an error that says why no proxy answers. See
    /// [`Connection::connect`].
    pub async fn connect(self) -> Result<Actor> {
        let actor = self.build()?;
        actor.inner.connection.connect().await?;
        Ok(actor)
    }
}
