//! PAIR: talks to one other PAIR, and to nobody else.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use xmsg_zmtp::{Peer, SocketType};

use crate::balance::Balancer;
use crate::hub::Owner;
use crate::link::Link;
use crate::methods::{balanced_methods, endpoint_methods};
use crate::role::{Role, Seat};
use crate::{Multipart, SocketOptions};

/// A socket that is connected to one other `Pair` (RFC 31), most often in the same process, over `inproc://`; a [`Stream`](futures::Stream) of
/// what that sends. While it is connected, no other peer is let in. Dropping it closes it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use xmsg_zmq::{Pair, SocketOptions};
/// let mut here = Pair::new(SocketOptions::default());
/// let endpoint = here.bind(&"inproc://threads".parse()?).await?;
/// let mut there = Pair::new(SocketOptions::default());
/// there.connect(endpoint);
/// there.send(["ready"]).await?;
/// assert_eq!(here.recv().await.unwrap().frames(), ["ready"]);
/// here.send(["go"]).await?;
/// assert_eq!(there.recv().await.unwrap().frames(), ["go"]);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Pair {
    hub: Owner,
    balancer: Arc<Balancer>,
}

/// PAIR has one place.
#[derive(Debug, Default)]
struct Exclusive {
    balancer: Arc<Balancer>,
    is_taken: Arc<AtomicBool>,
}

impl Role for Exclusive {
    fn socket_type(&self) -> SocketType {
        SocketType::Pair
    }

    fn join<'a>(&'a self, _: &Arc<Link>, peer: &Peer) -> Result<Seat<'a>, &'static str> {
        if self.is_taken.swap(true, Ordering::AcqRel) {
            return Err("a PAIR is connected to one peer, and another one is");
        }
        Ok(Seat::of(peer).with_guard(Place(self.is_taken.clone())))
    }

    fn balancer(&self) -> Option<&Arc<Balancer>> {
        Some(&self.balancer)
    }
}

/// The only place of a PAIR, as long as somebody has it.
#[derive(Debug)]
struct Place(Arc<AtomicBool>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Pair {
    /// A socket without a connection.
    #[must_use]
    pub fn new(options: SocketOptions) -> Self {
        let role = Arc::<Exclusive>::default();
        let balancer = role.balancer.clone();
        Self { hub: Owner::new(role, options), balancer }
    }

    endpoint_methods!();
    balanced_methods!();

    /// The next message; `None` once the socket is closed and everything received was taken. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<Multipart> {
        std::future::poll_fn(|cx| self.hub.inbox.poll_next(cx)).await.map(|(_, message)| message)
    }
}

impl futures::Stream for Pair {
    type Item = Multipart;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Multipart>> {
        self.hub.inbox.poll_next(cx).map(|next| next.map(|(_, message)| message))
    }
}
