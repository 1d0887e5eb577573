//! Streams of server-sent events: few at a time. Whoever reads slowly misses events, and takes no memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use tokio_util::sync::CancellationToken;

use super::Problem;
use crate::admin::State;
use crate::admin::access::{Caller, Role};

/// Streams at a time, of all sorts together.
pub(in crate::admin) const STREAMS: usize = 32;
/// Streams among them that only operators get: whoever may only look can't keep them from following.
const FOR_OPERATORS: usize = 8;
/// What a browser waits for before it connects again, milliseconds.
const RETRY: &str = "retry: 1000\n\n";
/// After so long without an event, whoever reads is shown that the connection is alive.
const SILENCE: Duration = Duration::from_secs(10);

/// An answer that is written bit by bit, as long as it is read.
#[derive(Clone, Copy, Debug)]
pub(in crate::admin) struct Streamed;

/// The streams of a server.
#[derive(Debug, Default)]
pub(in crate::admin) struct Streams {
    open: Arc<AtomicUsize>,
    /// Ends all of them.
    pub(in crate::admin) stop: CancellationToken,
}

/// The place of one.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Streams {
    /// A place for one more stream, which `caller` has asked for.
    pub(super) fn place(&self, caller: Option<Caller>) -> Result<Place, Problem> {
        self.place_for(caller.is_some_and(|caller| caller.role == Role::Operator))
    }

    fn place_for(&self, is_operator: bool) -> Result<Place, Problem> {
        let place = Place(self.open.clone());
        let most = if is_operator { STREAMS } else { STREAMS - FOR_OPERATORS };
        if self.open.fetch_add(1, Ordering::Relaxed) >= most {
            let what = format!("{most} pages and programs follow what happens already: close one of them");
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "full", what));
        }
        Ok(place)
    }

    /// Overviews, one a second.
    pub(super) fn overview(&self, state: &Arc<State>, caller: Option<Caller>) -> Result<Response, Problem> {
        let place = self.place(caller)?;
        let follower = Follower {
            overviews: state.looks.subscribe(),
            state: state.clone(),
            stop: self.stop.clone(),
            caller,
            is_first: true,
            _place: place,
        };
        Ok(follower.stream())
    }
}

/// Somebody who follows what happens.
struct Follower {
    overviews: tokio::sync::watch::Receiver<Bytes>,
    state: Arc<State>,
    stop: CancellationToken,
    caller: Option<Caller>,
    is_first: bool,
    _place: Place,
}

impl Follow for Follower {
    async fn next(&mut self) -> Option<Bytes> {
        if std::mem::take(&mut self.is_first) {
            return Some(RETRY.into());
        }
        tokio::select! {
            () = self.stop.cancelled() => return None,
            changed = self.overviews.changed() => changed.ok()?,
            () = tokio::time::sleep(SILENCE) => return Some(": nothing new\n\n".into()),
        }
        // Whoever has logged out, or whose token is another one now, is to see nothing more.
        if !self.state.access.still(self.caller) {
            return None;
        }
        Some(self.overviews.borrow_and_update().clone())
    }
}

/// One event. Its data is JSON, which has no line ends.
pub(in crate::admin) fn event(name: &str, json: &[u8]) -> Bytes {
    let mut text = BytesMut::with_capacity(json.len() + name.len() + 16);
    for part in [b"event: ", name.as_bytes(), b"\ndata: ", json, b"\n\n"] {
        text.put_slice(part);
    }
    text.freeze()
}

/// Somebody to whom events are sent, one after another.
pub(super) trait Follow: Sized + Send + 'static {
    /// The next event; `None` ends the stream.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;

    /// The answer that is made of these events.
    fn stream(self) -> Response {
        let events = stream::unfold(self, |mut follower| async {
            let event = follower.next().await?;
            Some((Ok::<_, std::convert::Infallible>(event), follower))
        });
        let mut response = Body::from_stream(events).into_response();
        let kind = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response.extensions_mut().insert(Streamed);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_end_to_the_streams_and_a_place_is_given_back() {
        let streams = Streams::default();
        let viewers = STREAMS - FOR_OPERATORS;
        let mut places: Vec<_> = (0..viewers).map(|_| streams.place_for(false).unwrap()).collect();
        for _ in 0..3 {
            assert!(streams.place_for(false).is_err());
        }
        let others: Vec<_> = (0..FOR_OPERATORS).map(|_| streams.place_for(true).unwrap()).collect();
        assert!(streams.place_for(true).is_err());
        drop(others);
        places.pop();
        assert!(streams.place_for(false).is_ok());
    }

    #[test]
    fn an_event_is_one_line_of_data() {
        assert_eq!(&event("overview", b"{}")[..], b"event: overview\ndata: {}\n\n");
    }
}
