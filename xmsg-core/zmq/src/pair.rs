//! PAIR: exchanges messages with exactly one other PAIR socket.

use std::sync::Arc;

use tokio::sync::Semaphore;
use xmsg_zmtp::{Peer, SocketType};

use crate::balance::Balancer;
use crate::hub::Owner;
use crate::link::Link;
use crate::methods::{balanced_methods, endpoint_methods, receiving_methods, stream_of_messages};
use crate::options::{Receives, Sends, SocketOptions};
use crate::role::{PeerSlot, Role};

/// A socket that is connected to one other `Pair` (RFC 31), most often in the same process, over `inproc://`.
/// It is a [`Stream`](futures::Stream) of what that socket sends. While it is connected, no other peer is
/// accepted. Clones share the socket, so that one task may send and another receive; dropping the last one
/// closes it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use xmsg_zmq::{Pair, SocketOptions};
/// let here = Pair::new(SocketOptions::default());
/// let endpoint = here.bind(&"inproc://threads".parse()?).await?;
/// let there = Pair::new(SocketOptions::default());
/// there.connect(endpoint);
/// there.send(["ready"]).await?;
/// assert_eq!(here.recv().await.unwrap().frames(), ["ready"]);
/// here.send(["go"]).await?;
/// assert_eq!(there.recv().await.unwrap().frames(), ["go"]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Pair {
    hub: Arc<Owner>,
    balancer: Arc<Balancer>,
}

/// The reason for which a peer is refused.
const TAKEN: &str = "a PAIR is connected to one peer, and another one is";

/// The role of PAIR, which has one place.
#[derive(Debug)]
struct PairRole {
    balancer: Arc<Balancer>,
    place: Semaphore,
}

impl Role for PairRole {
    fn socket_type(&self) -> SocketType {
        SocketType::Pair
    }

    fn has_place(&self) -> Result<(), &'static str> {
        if self.place.available_permits() == 0 { Err(TAKEN) } else { Ok(()) }
    }

    fn join<'a>(&'a self, _: &Arc<Link>, peer: &Peer) -> Result<PeerSlot<'a>, &'static str> {
        let place = self.place.try_acquire();
        Ok(PeerSlot::at(place.map_err(|_| TAKEN)?, peer))
    }

    fn balancer(&self) -> Option<&Arc<Balancer>> {
        Some(&self.balancer)
    }
}

impl Sends for Pair {}

impl Receives for Pair {}

impl Pair {
    /// Creates a socket without a connection.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let balancer = Arc::<Balancer>::default();
        let role = PairRole { balancer: balancer.clone(), place: Semaphore::new(1) };
        Self { hub: Arc::new(Owner::new(Arc::new(role), options.into_settings())), balancer }
    }

    endpoint_methods!();
    balanced_methods!();

    receiving_methods!();
}

stream_of_messages!(Pair);
