//! A proxy, a registry beside it, and what tests ask of them.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use xmsg_connect::definition::{ConnectionDefinition, Definitions, OutgoingDefinition, Reconnect, Span};
use xmsg_connect::{LinkState, OutgoingReport, Registry, RegistryOptions, Sort};
use xmsg_core::durable::protocol::{Reply, Request, TOPIC};
use xmsg_core::{Actor, Message};
use xmsg_proxy::Proxy;
use xmsg_tests::{patient, proxy, within};
use xmsg_zmq::memory_budget::MemoryBudget;

/// A proxy, and a registry with its state in a folder that goes with it.
pub(crate) struct Site {
    pub(crate) proxy: Proxy,
    pub(crate) registry: Registry,
    pub(crate) actor: Actor,
    pub(crate) folder: TempDir,
}

impl Site {
    /// Makes a site with nothing declared.
    pub(crate) async fn new() -> Self {
        Self::with(Definitions::default()).await
    }

    pub(crate) async fn with(initial: Definitions) -> Self {
        Self::at(proxy().start().await.unwrap(), initial).await
    }

    /// Makes a site beside this proxy.
    pub(crate) async fn at(proxy: Proxy, initial: Definitions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = open(&proxy, folder.path(), initial).await;
        Self::of(proxy, registry, folder)
    }

    /// Makes a site with a registry that has this much memory.
    pub(crate) async fn within(memory: MemoryBudget, initial: Definitions) -> Self {
        let proxy = proxy().start().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let options = RegistryOptions { memory, ..options(&proxy, folder.path(), initial) };
        let registry = within("a registry", Registry::open(options)).await.unwrap();
        Self::of(proxy, registry, folder)
    }

    fn of(proxy: Proxy, registry: Registry, folder: TempDir) -> Self {
        let actor = Actor::builder("test").proxy(proxy.address().clone()).options(patient()).build().unwrap();
        Self { proxy, registry, actor, folder }
    }

    /// Ends the registry and begins another one with the same folder.
    pub(crate) async fn restart(&mut self) {
        self.registry.close().await.unwrap();
        self.registry = open(&self.proxy, self.folder.path(), Definitions::default()).await;
    }

    /// Waits until this holds for an outgoing connection.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&OutgoingReport) -> bool,
    ) -> OutgoingReport {
        let waiting = async {
            loop {
                let report = self.registry.outgoing(name).unwrap();
                if holds(&report) {
                    return report;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let Ok(report) = tokio::time::timeout(xmsg_tests::PATIENCE, waiting).await else {
            panic!("{what}: not reached by {:#?}", self.registry.outgoing(name).unwrap().link);
        };
        report
    }

    /// Waits until an outgoing connection has this state.
    pub(crate) async fn until_state(&self, name: &str, state: LinkState) -> OutgoingReport {
        self.until(name, &state.to_string(), |report| report.link.state == state).await
    }

    /// Waits until a channel is connected.
    pub(crate) async fn until_channel(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&xmsg_connect::ChannelReport) -> bool,
    ) {
        let waiting = async {
            while !holds(&self.registry.channel(name).unwrap()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(xmsg_tests::PATIENCE, waiting).await;
        assert!(reached.is_ok(), "{what}: not reached by {:#?}", self.registry.channel(name).unwrap().link);
    }
}

pub(crate) async fn open(proxy: &Proxy, folder: &Path, initial: Definitions) -> Registry {
    within("a registry", Registry::open(options(proxy, folder, initial))).await.unwrap()
}

fn options(proxy: &Proxy, folder: &Path, initial: Definitions) -> RegistryOptions {
    RegistryOptions {
        connect: patient(),
        initial,
        ..RegistryOptions::new(folder.join("state"), proxy.address().clone())
    }
}

/// Defines a connection to the broker at this port of the loopback, which is tried again soon.
pub(crate) fn broker(port: u16) -> ConnectionDefinition {
    let reconnect = Reconnect {
        min: Span::of(Duration::from_millis(20)),
        max: Span::of(Duration::from_millis(200)),
        jitter: true,
    };
    ConnectionDefinition {
        reconnect,
        ..ConnectionDefinition::amqp("broker", format!("amqp://127.0.0.1:{port}"))
    }
}

/// Defines an outgoing connection to this exchange of that broker.
pub(crate) fn outgoing(name: &str, exchange: &str) -> OutgoingDefinition {
    OutgoingDefinition::amqp(name, "broker", exchange)
}

pub(crate) fn message(topic: &str, text: &str) -> Message {
    Message::of(topic, text).unwrap()
}

/// How long a single delivery may take.
pub(crate) const LIMIT: Duration = xmsg_tests::PATIENCE;

/// Sets an entry to work or to rest.
pub(crate) async fn set_active(site: &Site, sort: Sort, name: &str, is_active: bool) {
    site.registry.set_active(sort, name, is_active).await.unwrap();
}

/// Writes a file that only its owner may read.
pub(crate) fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Asks the server of a durable subscription, as a program in another language does, again and again until
/// there is an answer. What is asked before the server has subscribed is lost after this time.
pub(crate) async fn ask(actor: &Actor, name: &str, request: Request, limit: Duration) -> Reply {
    let message = Message::of(&*format!("{TOPIC}{name}"), request.encode()).unwrap();
    let answer = within("an answer", async {
        loop {
            match actor.request(&message, limit).await {
                Ok(answer) => return answer,
                Err(error) => assert_eq!(error.kind(), xmsg_core::ErrorKind::Timeout, "{error}"),
            }
        }
    });
    Reply::decode(answer.await.data().clone()).unwrap()
}

/// Opens the session of a subscriber that asks by itself.
pub(crate) async fn session(actor: &Actor, name: &str, limit: Duration) -> Bytes {
    match ask(actor, name, Request::Open, limit).await {
        Reply::Opened { session, .. } => session,
        other => panic!("{other:?}"),
    }
}

/// Waits until the server of a durable subscription answers at the proxy.
pub(crate) async fn answers(site: &Site, name: &str) {
    let request = Request::Ack { session: Bytes::from_static(b"none"), ack: 0 }.encode();
    let message = Message::of(&*format!("{TOPIC}{name}"), request).unwrap();
    within("the server", async {
        // What is asked before it has subscribed is lost.
        while site.actor.request(&message, Duration::from_millis(100)).await.is_err() {}
    })
    .await;
}
