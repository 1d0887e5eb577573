//! What can happen while nothing is read from a peer because its last messages are not taken yet. The peer
//! may leave, and its memory may be needed elsewhere.

use std::fmt;
use std::sync::Arc;
use std::task::Poll;

use tokio_util::sync::CancellationToken;

use crate::link::admission::Activity;
use crate::link::session::Ended;
use crate::link::transport::ReadHalf;

/// Is notified that a peer has left although not all that it sent has been read.
pub trait PeerLeft: fmt::Debug + Send + Sync {
    /// The peer has closed its direction, or the connection is broken. It is called at most once, and only
    /// while reading pauses. What the peer sent before may still be read, and is.
    fn left(&self);
}

/// Notifies its [`PeerLeft`] once that the peer has left. It is `None` after that.
#[derive(Debug, Default)]
pub(crate) struct DepartureWatch(pub(crate) Option<Arc<dyn PeerLeft>>);

impl DepartureWatch {
    /// Waits until the peer has left, notifies the `PeerLeft`, and never returns.
    async fn watch(&mut self, stream: &ReadHalf<'_>) -> std::convert::Infallible {
        if let Some(departure) = &self.0 {
            stream.left().await;
            departure.left();
            self.0 = None;
        }
        std::future::pending().await
    }
}

/// Waits until a handler has taken what the peer sent. The connection does not count as idle meanwhile.
/// Returns [`Ended::OutOfMemory`] early when `end` is cancelled because others need the memory.
pub(crate) async fn until_handled(
    handling: impl Future<Output = Result<(), Ended>>,
    stream: &ReadHalf<'_>,
    end: Option<&CancellationToken>,
    activity: Option<&Activity>,
    departure: &mut DepartureWatch,
) -> Result<(), Ended> {
    let mut handling = std::pin::pin!(handling);
    // Most handlers finish at their first poll.
    if let Poll::Ready(result) = futures::poll!(handling.as_mut()) {
        return result;
    }
    let _held_up = activity.map(Activity::held_up);
    let needed_elsewhere = async {
        match end {
            Some(end) => end.cancelled().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        result = handling => result,
        () = needed_elsewhere => Err(Ended::OutOfMemory),
        never = departure.watch(stream) => match never {},
    }
}
