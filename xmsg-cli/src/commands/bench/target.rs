//! The proxy that is measured, and connections to it.

use std::time::Duration;

use anyhow::Context;
use futures::stream::{self, StreamExt, TryStreamExt};
use xmsg_core::{ConnectOptions, Connection, ProxyAddress, Security};
use xmsg_proxy::Proxy;
use xmsg_zmq::HighWaterMark;

use super::client::{Receiver, Topics};
use super::options::CommonOptions;
use crate::args::SecurityOptions;
use crate::exit::Usage;

/// The high-water mark of a publisher's connection. It is small, so that published messages are soon on their
/// way.
const SEND_HIGH_WATER_MARK: usize = 4 << 20;
/// The high-water mark of the queue for each subscriber in an embedded proxy.
const PROXY_HIGH_WATER_MARK: usize = 4 << 20;
/// The number of connections that are made at the same time, where making them is not measured.
const CONNECTING: usize = 16;

#[derive(Debug)]
pub(super) struct Target {
    address: ProxyAddress,
    options: ConnectOptions,
    /// The options for subscriptions that are not confirmed one by one.
    unchecked: ConnectOptions,
    timeout: Duration,
    embedded: Option<Proxy>,
}

impl Target {
    pub(super) async fn open(options: &CommonOptions) -> anyhow::Result<Self> {
        // The measurements need confirmations, so the environment must not disable them.
        let connecting =
            options.connect.options()?.check_connection(true).high_water_mark(SEND_HIGH_WATER_MARK);
        let mut target = Self {
            address: options.connect.proxy()?,
            unchecked: connecting.clone().check_subscription(false),
            options: connecting.check_subscription(true),
            timeout: options.connect.timeout(),
            embedded: None,
        };
        if options.target.embedded {
            if !matches!(SecurityOptions::security()?, Security::Null) {
                let what =
                    "an embedded proxy has no security: leave out the keys, or the name, or --embedded";
                return Err(Usage(what.to_owned()).into());
            }
            let proxy = Proxy::bind("127.0.0.1:0")
                .slow_subscriber(options.target.slow_subscriber)
                .high_water_mark(HighWaterMark::bytes(PROXY_HIGH_WATER_MARK))
                .start()
                .await
                .context("cannot start a proxy")?;
            target.address = proxy.address().clone();
            target.embedded = Some(proxy);
        }
        Ok(target)
    }

    pub(super) fn address(&self) -> &ProxyAddress {
        &self.address
    }

    pub(super) fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    pub(super) fn options(&self) -> &ConnectOptions {
        &self.options
    }

    /// Returns how long the proxy may take to answer.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Makes a connection without opening it.
    pub(super) fn connection(&self) -> xmsg_core::Result<Connection> {
        Connection::with_options(self.address.clone(), self.options.clone())
    }

    /// Makes a connection whose subscriptions are not confirmed.
    pub(super) fn unchecked_connection(&self) -> xmsg_core::Result<Connection> {
        Connection::with_options(self.address.clone(), self.unchecked.clone())
    }

    /// Makes `count` open connections.
    pub(super) async fn connections(&self, count: usize) -> anyhow::Result<Vec<Connection>> {
        let connect = |_| async {
            let connection = self.connection()?;
            connection.connect().await?;
            anyhow::Ok(connection)
        };
        stream::iter(0..count).map(connect).buffer_unordered(CONNECTING).try_collect().await
    }

    /// Makes `count` subscribers, each with its own connection. Their subscriptions to all topics are
    /// confirmed.
    pub(super) async fn receivers(&self, count: usize, topics: &Topics) -> anyhow::Result<Vec<Receiver>> {
        // The subscribers share the connection for confirmations.
        let connection = self.connection()?;
        connection.connect().await?;
        let subscribe = |_| async { anyhow::Ok(Receiver::new(connection.subscribe(topics.all()).await?)) };
        let receivers =
            stream::iter(0..count).map(subscribe).buffer_unordered(CONNECTING).try_collect().await?;
        // Nothing was published through this connection.
        let _ = connection.close(Duration::ZERO).await;
        Ok(receivers)
    }

    pub(super) async fn close(self) {
        if let Some(proxy) = self.embedded {
            proxy.stop(Duration::from_secs(1)).await;
        }
    }
}
