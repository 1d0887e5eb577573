//! What can happen while nothing is read from a peer, because what it sent last is not taken yet: it may leave, and the memory that it
//! holds may be needed elsewhere.

use std::fmt;
use std::sync::Arc;
use std::task::Poll;

use tokio_util::sync::CancellationToken;

use crate::link::admission::Activity;
use crate::link::session::Ended;
use crate::link::transport::ReadHalf;

/// Somebody who wants to know that a peer has left although not all that it sent has been read.
pub trait Departure: fmt::Debug + Send + Sync {
    /// The peer has closed its direction, or the connection is broken. Said once, and only while reading pauses: what the peer sent before
    /// may still be read, and is.
    fn left(&self);
}

/// Whom to tell that the peer has left, as long as it is not told.
#[derive(Debug, Default)]
pub(crate) struct DepartureWatch(pub(crate) Option<Arc<dyn Departure>>);

impl DepartureWatch {
    /// Waits until the peer has left, says so, and never returns.
    async fn watch(&mut self, stream: &ReadHalf<'_>) -> std::convert::Infallible {
        if let Some(departure) = &self.0 {
            stream.left().await;
            departure.left();
            self.0 = None;
        }
        std::future::pending().await
    }
}

/// Waits until a handler has taken what the peer sent; the connection is not idle meanwhile. Returns early if `end` says that others need
/// its memory.
pub(crate) async fn taken(
    handling: impl Future<Output = Result<(), Ended>>,
    stream: &ReadHalf<'_>,
    end: Option<&CancellationToken>,
    activity: Option<&Activity>,
    departure: &mut DepartureWatch,
) -> Result<(), Ended> {
    let mut handling = std::pin::pin!(handling);
    // Most take it at once.
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
