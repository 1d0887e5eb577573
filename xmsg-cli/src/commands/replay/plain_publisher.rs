//! Publishes messages without metadata, as plain ZeroMQ publishers do.

use std::time::Duration;

use xmsg_core::control::Request;
use xmsg_core::{Error, ErrorKind, ProxyAddress};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::{Multipart, SocketEvent, SocketEvents};

use crate::args::ConnectOptions;
use crate::control::ControlSockets;

/// How often an unanswered request for a confirmation is repeated.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

/// Publishes messages that do not have three frames, as a plain ZeroMQ publisher does, and has them confirmed
/// as an xMsg client does.
#[derive(Debug)]
pub(super) struct PlainPublisher {
    sockets: ControlSockets,
    events: SocketEvents,
    published: u64,
}

impl PlainPublisher {
    /// Connects. The proxy is known to exist, because another connection to it was made before.
    pub(super) async fn open(connect: &ConnectOptions) -> anyhow::Result<Self> {
        let proxy = &connect.proxy()?;
        let sockets = ControlSockets::connect(connect)?;
        let events = sockets.publisher.events();
        let mut plain = Self { sockets, events, published: 0 };
        let limit = connect.timeout();
        match tokio::time::timeout(limit, plain.confirm()).await {
            Ok(()) => Ok(plain),
            Err(_) => Err(no_answer(proxy, limit).into()),
        }
    }

    pub(super) async fn publish(&mut self, message: Multipart) -> xmsg_core::Result<()> {
        self.sockets.publisher.publish(message).await?;
        self.published += 1;
        Ok(())
    }

    /// Waits until the proxy has confirmed everything that was published.
    pub(super) async fn confirm(&mut self) {
        // Others may have seen the identity of an earlier request, and could send requests in our place.
        let request = Request::Publisher(self.sockets.take_secret_identity());
        let _ = self.sockets.connected().await;
        let is_answer = |answer: Multipart| request.is_answered_by(&answer).then_some(());
        let _ = self.sockets.ask(&request.message(), ASK_INTERVAL, is_answer).await;
    }

    /// Sends the rest. Returns the number of messages that may not have arrived.
    pub(super) async fn close(mut self, linger: Duration) -> u64 {
        let end = Deadline::after(linger);
        // An answer to an earlier request would confirm less, but there is none: each earlier answer was
        // waited for.
        let is_confirmed = end.limit(self.confirm()).await.is_ok();
        let mut is_broken = false;
        while let std::task::Poll::Ready(Some(event)) = futures::poll!(std::pin::pin!(self.events.next())) {
            is_broken |= matches!(event, SocketEvent::Disconnected { .. });
        }
        self.sockets.publisher.close(end.left()).await;
        if is_confirmed && !is_broken { 0 } else { self.published }
    }
}

fn no_answer(proxy: &ProxyAddress, limit: Duration) -> Error {
    let what = format!(
        "the proxy at {proxy} did not answer within {limit:?}, when messages without metadata were to be published"
    );
    Error::new(ErrorKind::Timeout, what)
}
