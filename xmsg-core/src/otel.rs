//! Traces: a span for each message that is published, received, handled or requested, and the context of the
//! trace in the headers of messages.
//!
//! Spans are those of the crate [`tracing`], with the names and attributes that OpenTelemetry's conventions
//! for messaging give them: the layer of `tracing-opentelemetry` makes spans of OpenTelemetry of them. They
//! have the target `xmsg_core::otel` and the level `DEBUG`. Where nobody has enabled both, no span is made,
//! and a message costs one comparison more.
//!
//! | call | name of the span | `otel.kind` | `messaging.operation.type` |
//! |---|---|---|---|
//! | [`publish`](crate::Connection::publish), `try_publish` | `publish DOMAIN` | `producer` | `send` |
//! | [`next`], the stream of a subscription | `receive DOMAIN` | `consumer` | `receive` |
//! | a handler of [`subscribe_with`], [`process_span`] | `process DOMAIN` | `consumer` | `process` |
//! | [`request`](crate::Actor::request) | `request DOMAIN` | `client` | `send` |
//!
//! `DOMAIN` is the first part of the topic, of which there are few, and 64 bytes of it at most.
//!
//! All spans have `messaging.system` (`xmsg`), `messaging.operation.name`, `messaging.message.body.size` and
//! `messaging.destination.name` (the topic, 256 bytes of it at most). Those that send have `server.address`
//! and `server.port`, too. A call that failed has `error.type` (the [`ErrorKind`](crate::ErrorKind)) and
//! `otel.status_code` (`ERROR`).
//!
//! Batches ([`next_batch`](crate::Subscription::next_batch)) make no spans: make those of the messages that
//! matter with [`process_span`].
//!
//! A trace goes on at the receiver if both sides have named a [`Propagator`]. It writes headers such as
//! `traceparent` ([W3C Trace Context](https://www.w3.org/TR/trace-context/)) into messages that are
//! published, and reads them from those that are received. A message that has `traceparent` already, such as
//! one that is forwarded, keeps it, and so do replies that are made of their request.
//!
//! The program `xmsg-core/examples/traces.rs` has a propagator of OpenTelemetry, and prints its spans.
//!
//! [`next`]: crate::Subscription::next
//! [`subscribe_with`]: crate::Actor::subscribe_with

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

use tracing::{Span, debug_span, field};

use crate::text::floor_char_boundary;
use crate::{Message, ProxyAddress, Result};

/// The header with the context of a trace: its ID, and that of the span which the message comes from.
pub const TRACEPARENT: &str = "traceparent";

/// The target of all spans.
const SYSTEM: &str = "xmsg";

/// The longest part of a domain in the name of a span, in bytes. Tools group spans by their names, so that
/// there must be few of them, and short ones: the topics come from peers.
const DOMAIN_MAX: usize = 64;
/// The longest part of a topic in a span, in bytes.
const TOPIC_MAX: usize = 256;

/// Returns the beginning of a text, at most so many bytes of it.
fn beginning(text: &str, most: usize) -> &str {
    &text[..floor_char_boundary(text, most)]
}

/// What writes the context of a trace into headers, and reads it from there.
///
/// It is asked for each message that has a span, on the thread that publishes or receives it.
pub trait Propagator: Send + Sync + 'static {
    /// Returns the headers with which a message continues the trace of this span: texts by name.
    fn inject(&self, span: &Span) -> HashMap<String, String>;

    /// Makes this span a part of the trace in these headers. They come from a peer, and may hold anything.
    fn extract(&self, span: &Span, headers: &HashMap<String, String>);
}

/// Makes a span of a message, with the attributes that all spans have, and these fields in addition.
macro_rules! message_span {
    ($message:expr, $operation:literal, $kind:literal, $type:literal $(, $field:literal = $value:expr)* $(,)?) => {{
        let message: &Message = $message;
        let topic = message.topic();
        debug_span!(
            target: "xmsg_core::otel",
            $operation,
            "otel.name" =
                %format_args!(concat!($operation, " {}"), beginning(&topic.domain(), DOMAIN_MAX)),
            "otel.kind" = $kind,
            "messaging.system" = SYSTEM,
            "messaging.operation.name" = $operation,
            "messaging.operation.type" = $type,
            "messaging.destination.name" = beginning(&String::from_utf8_lossy(topic.as_bytes()), TOPIC_MAX),
            "messaging.message.body.size" = message.data().len() as u64,
            $($field = $value,)*
        )
    }};
}

/// Makes the span of a call that sends a message to this proxy, and may fail.
macro_rules! sending_span {
    ($message:expr, $proxy:expr, $operation:literal, $kind:literal) => {
        message_span!(
            $message,
            $operation,
            $kind,
            "send",
            "otel.status_code" = field::Empty,
            "server.address" = $proxy.host(),
            "server.port" = $proxy.publish_port(),
            "error.type" = field::Empty,
        )
    };
}

static PROPAGATOR: OnceLock<Box<dyn Propagator>> = OnceLock::new();

/// Names the propagator of this process. Returns whether it was the first: later ones change nothing.
///
/// ```
/// use std::collections::HashMap;
///
/// use tracing::Span;
/// use xmsg_core::otel::{Propagator, set_propagator};
///
/// /// Continues no trace, and begins none.
/// struct Nothing;
///
/// impl Propagator for Nothing {
///     fn inject(&self, _: &Span) -> HashMap<String, String> {
///         HashMap::new()
///     }
///
///     fn extract(&self, _: &Span, _: &HashMap<String, String>) {}
/// }
///
/// assert!(set_propagator(Nothing));
/// assert!(!set_propagator(Nothing), "there is one already");
/// ```
pub fn set_propagator(propagator: impl Propagator) -> bool {
    PROPAGATOR.set(Box::new(propagator)).is_ok()
}

/// Makes the span in which a message is processed: a part of the trace that the message brings. It is for
/// programs that take messages with [`next`](crate::Subscription::next) or in batches; handlers of
/// [`subscribe_with`](crate::Actor::subscribe_with) run in one.
///
/// ```
/// use xmsg_core::Message;
/// use xmsg_core::otel::process_span;
///
/// let message = Message::of("report:sports", "3:1")?;
/// process_span(&message).in_scope(|| println!("{message:?}"));
/// # Ok::<(), xmsg_core::Error>(())
/// ```
#[must_use]
pub fn process_span(message: &Message) -> Span {
    let span = message_span!(message, "process", "consumer", "process");
    continue_trace(&span, message);
    span
}

/// Notes that a message was taken by the program.
pub(crate) fn received(message: &Message) {
    let span = message_span!(message, "receive", "consumer", "receive");
    continue_trace(&span, message);
    // It lasts for this moment: what was waited for before is none of it.
    drop(span.entered());
}

/// Makes the span in which a message is published, and gives the message the context of its trace. Returns
/// `None` if nobody wants to know.
pub(crate) fn sending<'a>(message: &'a Message, proxy: &ProxyAddress) -> Option<(Span, Cow<'a, Message>)> {
    let span = sending_span!(message, proxy, "publish", "producer");
    if span.is_disabled() {
        return None;
    }
    let has_context = matches!(message.header(TRACEPARENT), Ok(Some(_)));
    if has_context {
        continue_trace(&span, message);
        return Some((span, Cow::Borrowed(message)));
    }
    let headers = PROPAGATOR.get().map(|propagator| propagator.inject(&span)).unwrap_or_default();
    let mut traced = Cow::Borrowed(message);
    for (name, value) in headers {
        // Metadata that can't be read, or has no room, is sent as it is: a trace is worth no message.
        if let Ok(with) = traced.clone().into_owned().with_header(&name, &value) {
            traced = Cow::Owned(with);
        }
    }
    Some((span, traced))
}

/// Makes the span of a request, in which it is published and its reply is awaited.
pub(crate) fn requesting(message: &Message, proxy: &ProxyAddress) -> Span {
    sending_span!(message, proxy, "request", "client")
}

/// Notes in its span how a call has ended.
pub(crate) fn ended<T>(span: &Span, result: Result<T>) -> Result<T> {
    if let Err(error) = &result {
        span.record("error.type", field::debug(error.kind()));
        span.record("otel.status_code", "ERROR");
    }
    result
}

/// Makes a span a part of the trace that a message brings.
fn continue_trace(span: &Span, message: &Message) {
    if span.is_disabled() || !matches!(message.header(TRACEPARENT), Ok(Some(_))) {
        return;
    }
    if let (Some(propagator), Ok(meta)) = (PROPAGATOR.get(), message.meta()) {
        let headers = meta.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        propagator.extract(span, &headers.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_spans_are_bounded_and_cut_between_characters() {
        assert_eq!(beginning("stock", DOMAIN_MAX), "stock");
        assert_eq!(beginning("stock", 5), "stock");
        assert_eq!(beginning("stöck", 3), "st");
        assert_eq!(beginning(&"ä".repeat(1_000), DOMAIN_MAX), "ä".repeat(DOMAIN_MAX / 2));
        assert_eq!(beginning("ä", 1), "");
    }
}
