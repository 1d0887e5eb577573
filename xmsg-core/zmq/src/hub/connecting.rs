//! The connections that a socket makes and re-establishes.

use std::sync::Arc;

use tokio::time::Instant;
use xmsg_zmtp::Peer;

use super::{Hub, silent};
use crate::events::SocketEvent;
use crate::link::Link;
use crate::link::hold::LostConnection;
use crate::link::reconnect::Backoff;
use crate::link::session::Session;
#[cfg(feature = "socks")]
use crate::link::socks::Target;
use crate::link::transport::Stream;
use crate::{Endpoint, Error, ErrorKind, Result};

impl Hub {
    pub(super) async fn keep_connected(self: Arc<Self>, endpoint: Endpoint, link: Arc<Link>) {
        let peer = endpoint.to_string();
        let mut end = LinkEnd { hub: &self, link: &link, is_disconnected: false };
        let mut backoff = Backoff::new(&self.options);
        let mut lost = None;
        let mut closed_before = false;
        let work = async {
            loop {
                let begun = Instant::now();
                let attempt = self.open(&endpoint, &link);
                let opened = tokio::time::timeout(self.options.connect_timeout, attempt).await;
                let was_silent = link.state().silent_since.take().is_some();
                let failure = match opened {
                    Ok(Ok((session, found))) => {
                        backoff.reset();
                        self.run(&peer, session, found, &link, &mut lost).await;
                        lost = Some(LostConnection::again(lost.take(), link.state().forget_wanted()));
                        None
                    }
                    Ok(Err(error)) => Some(error),
                    Err(_) if was_silent => Some(silent(&peer)),
                    Err(_) => Some(Error::new(
                        ErrorKind::Timeout,
                        format!("no answer from {peer} within the time limit for connecting"),
                    )),
                };
                if link.send_queue.is_closed() && link.send_queue.queued().messages == 0 {
                    return;
                }
                let mut pause = backoff.next_pause();
                // When a peer closes the connection once without an error, it may have been about to stop. A
                // peer that does it again rejects us.
                let is_closed = failure.as_ref().is_some_and(is_closed_in_handshake);
                let is_first = is_closed && !std::mem::replace(&mut closed_before, is_closed);
                if let Some(error) = failure {
                    let error = if is_first { error.with_kind(ErrorKind::Refused) } else { error };
                    // The pause is measured from the beginning of one attempt to that of the next, so an
                    // attempt that took long shortens it.
                    let least = pause.min(backoff.min);
                    pause = pause.saturating_sub(begun.elapsed()).max(least);
                    tracing::debug!(peer, reason = %error.with_causes(), ?pause, "cannot connect");
                    link.state().failure = Some(error.clone());
                    self.emit(SocketEvent::ConnectFailed { peer: peer.clone(), error, pause });
                }
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            biased;
            () = link.stop.cancelled() => end.is_disconnected = !self.tasks.is_closed(),
            () = work => {}
        }
    }

    async fn connect_stream(&self, endpoint: &Endpoint) -> Result<Stream> {
        let limit = self.options.connect_timeout;
        #[cfg(feature = "socks")]
        if let (Some(proxy), Endpoint::Tcp { host, port }) = (&self.options.socks_proxy, endpoint) {
            let target = Target { endpoint, host, port: *port };
            return proxy.connect(target, &self.options.tcp, limit).await;
        }
        Stream::connect(endpoint, &self.options.tcp, limit).await
    }

    async fn open(&self, endpoint: &Endpoint, link: &Link) -> Result<(Session, Peer)> {
        self.options.check_identity()?;
        let stream = self.connect_stream(endpoint).await?;
        let mut limits = self.options.limits.clone();
        // What others subscribe to at a proxy is no reason to end the connection to it.
        limits.subscription_len = limits.subscription_len.max(limits.command_size);
        let mut session = self.session(stream, limits);
        link.state().silent_since = Some(Instant::now());
        let peer = session.handshake().await.map_err(|ended| ended.while_connecting(endpoint))?;
        Ok((session, peer))
    }
}

/// Whether the peer closed the connection without an error at the point of the handshake where it may have
/// rejected our keys.
fn is_closed_in_handshake(error: &Error) -> bool {
    let violation = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    matches!(violation, Some(xmsg_zmtp::Violation::ClosedByPeer(_)))
}

/// Ends a connecting link, also when its task is dropped because the runtime ends. If the socket is used in
/// another runtime, calls then return an error instead of filling a queue that is never emptied.
struct LinkEnd<'a> {
    hub: &'a Arc<Hub>,
    link: &'a Link,
    /// Whether `disconnect` was called for this endpoint. The socket goes on without it.
    is_disconnected: bool,
}

impl Drop for LinkEnd<'_> {
    fn drop(&mut self) {
        self.link.send_queue.close();
        if self.is_disconnected {
            self.hub.report_ended(self.link);
        }
        self.link.disconnected();
        self.link.stop.cancel();
        if self.is_disconnected {
            self.hub.reassign();
            self.hub.remove_link(self.link);
        } else {
            self.hub.receive_queue.close();
        }
        self.hub.changed.notify_waiters();
    }
}
