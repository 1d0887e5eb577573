//! From a ZeroMQ socket to the target. ZeroMQ has no acknowledgements: what was received and not delivered
//! when the process is killed is lost.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xmsg_core::data::mime;
use xmsg_core::{Message, Meta, Topic};
use xmsg_zmq::lock::lock;
use xmsg_zmq::{Multipart, Pull, SocketEvents, Subscriber};

use super::ChannelPlan;
use super::target::{OpenTarget, Targets, is_retryable};
use crate::definition::{ReceivingSocket, Target, ZmqChannel};
use crate::error::{Error, ErrorKind, Result};
use crate::outbound::Outbound;
use crate::receive_memory::ReceiveMemory;
use crate::status::{LinkState, Status, add};
use crate::supervise::Failure;
use crate::zmq::{connect_or_bind, no_peer_reason, options};

/// The number of messages that are given to the target at a time.
const BATCH_MAX: usize = 256;
/// How often the state is updated while nothing comes.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The pause before the target is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug)]
enum Socket {
    Pull(Pull),
    Subscriber(Box<Subscriber>),
}

impl Socket {
    async fn open(settings: &ZmqChannel, receive_memory: &ReceiveMemory) -> Result<Self> {
        let fields = &settings.socket;
        match settings.socket_type {
            ReceivingSocket::Pull => {
                let socket = Pull::new(options(fields, receive_memory.budget())?);
                connect_or_bind!(socket, fields)?;
                Ok(Self::Pull(socket))
            }
            ReceivingSocket::Sub => {
                let socket = Subscriber::new(options(fields, receive_memory.budget())?);
                for key in &settings.sub_keys {
                    socket.subscribe(key.clone().into_bytes()).map_err(|error| {
                        let what = format!("{key:?} can't be subscribed to (sub_keys)");
                        Error::new(ErrorKind::InvalidDefinition, what).with_source(error)
                    })?;
                }
                connect_or_bind!(socket, fields)?;
                Ok(Self::Subscriber(Box::new(socket)))
            }
        }
    }

    /// Receives the next message, and those that are there already. Receives none once the socket has ended.
    async fn receive(&mut self, messages: &mut Vec<Multipart>) {
        match self {
            Self::Pull(socket) => {
                socket.recv_many(messages, BATCH_MAX).await;
            }
            Self::Subscriber(socket) => {
                // Batches that were read at once, so that a message is not waited for more than once.
                if let Some(mut batch) = socket.recv_batch().await {
                    while let Some(message) = Multipart::take(&mut batch) {
                        messages.push(message);
                    }
                }
            }
        }
    }

    fn peers(&self) -> usize {
        match self {
            Self::Pull(socket) => socket.peers(),
            Self::Subscriber(socket) => socket.peers(),
        }
    }

    fn failure(&self) -> Option<xmsg_zmq::Error> {
        match self {
            Self::Pull(socket) => socket.failure(),
            Self::Subscriber(socket) => socket.failure(),
        }
    }

    fn events(&self) -> SocketEvents {
        match self {
            Self::Pull(socket) => socket.events(),
            Self::Subscriber(socket) => socket.events(),
        }
    }

    /// Receives nothing more; what was received can still be taken.
    async fn close(&self) {
        match self {
            Self::Pull(socket) => socket.close().await,
            Self::Subscriber(socket) => socket.close().await,
        }
    }
}

/// Messages that a channel has received and its target does not have yet. They stay when its session ends,
/// such as for an edit, and the next one delivers them first: there is nobody to give them back to. There are
/// no more of them than the socket holds, and what is taken from it at a time.
#[derive(Debug, Default)]
pub(super) struct Undelivered(Mutex<VecDeque<Outbound>>);

impl Undelivered {
    pub(super) fn len(&self) -> usize {
        lock(&self.0).len()
    }

    fn add(&self, messages: impl IntoIterator<Item = Outbound>) {
        lock(&self.0).extend(messages);
    }

    /// Takes the first messages. Unless the batch is [completed](Batch::complete), they are back in their
    /// place when it is dropped.
    fn take_batch(&self) -> Batch<'_> {
        let mut undelivered = lock(&self.0);
        let count = undelivered.len().min(BATCH_MAX);
        Batch { undelivered: self, messages: undelivered.drain(..count).collect() }
    }
}

/// Messages on their way to the target.
struct Batch<'a> {
    undelivered: &'a Undelivered,
    messages: Vec<Outbound>,
}

impl Batch<'_> {
    /// Drops the messages, because the target has all of them.
    fn complete(mut self) {
        self.messages.clear();
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let mut undelivered = lock(&self.undelivered.0);
        for message in self.messages.drain(..).rev() {
            undelivered.push_front(message);
        }
    }
}

/// Receives until something breaks, or `stop`.
pub(super) async fn session(
    status: &Arc<Status>,
    targets: &Targets,
    plan: &ChannelPlan,
    settings: &ZmqChannel,
    undelivered: &Undelivered,
    receive_memory: &ReceiveMemory,
    stop: CancellationToken,
) -> Result<(), Failure> {
    status.set(LinkState::Connecting);
    let target = targets.open(&plan.definition.target)?;
    let mut socket = Socket::open(settings, receive_memory).await?;
    let mut events = socket.events();
    add(&status.counters.connections, 1);
    update_state(status, settings, &socket);
    let mut received = Vec::new();
    loop {
        // What an earlier session has left goes first.
        while undelivered.len() > 0 {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = deliver(status, &target, undelivered.take_batch()) => {}
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = socket.receive(&mut received) => {}
            Some(_) = events.next() => {
                update_state(status, settings, &socket);
                continue;
            }
            () = tokio::time::sleep(POLL_INTERVAL) => {
                update_state(status, settings, &socket);
                continue;
            }
        }
        if received.is_empty() {
            return Err(Failure {
                error: Error::new(ErrorKind::Closed, "the socket has ended"),
                had_worked: true,
            });
        }
        store_received(status, plan, &mut received, undelivered);
    }
    // Nothing more comes from here on; what has come is kept before anything is waited for.
    socket.close().await;
    loop {
        socket.receive(&mut received).await;
        if received.is_empty() {
            break;
        }
        store_received(status, plan, &mut received, undelivered);
    }
    while undelivered.len() > 0 {
        deliver(status, &target, undelivered.take_batch()).await;
    }
    Ok(())
}

/// Delivers what an ended session has left. The caller limits the time.
pub(super) async fn deliver_rest(
    status: &Status,
    targets: &Targets,
    target: &Target,
    undelivered: &Undelivered,
) {
    if undelivered.len() == 0 {
        return;
    }
    let Ok(target) = targets.open(target) else { return };
    while undelivered.len() > 0 {
        deliver(status, &target, undelivered.take_batch()).await;
    }
}

/// Keeps what has come, as messages of xMsg.
fn store_received(
    status: &Status,
    plan: &ChannelPlan,
    received: &mut Vec<Multipart>,
    undelivered: &Undelivered,
) {
    add(&status.counters.accepted, received.len() as u64);
    let messages = received.drain(..).filter_map(|message| {
        match inbound(&plan.definition.name, &message, &plan.definition.target) {
            Ok(message) => Some(Outbound::new(message)),
            Err(what) => {
                add(&status.counters.dead, 1);
                status.note(format!("a message was dropped, because it can't be one of xMsg: {what}"));
                None
            }
        }
    });
    undelivered.add(messages);
}

/// Tries until the target has all of them.
async fn deliver(status: &Status, target: &OpenTarget, mut messages: Batch<'_>) {
    let mut delivered = 0;
    // Those that the target has taken, and has not confirmed: should this be dropped, they are delivered
    // again.
    let mut unconfirmed = Vec::new();
    let mut waiting = std::mem::take(&mut messages.messages);
    while !waiting.is_empty() {
        messages.messages = [unconfirmed.as_slice(), waiting.as_slice()].concat();
        let outcomes = target.send(&waiting).await;
        let mut again = Vec::new();
        let mut fault = None;
        for (message, outcome) in waiting.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    delivered += 1;
                    unconfirmed.push(message);
                }
                Err(error) if is_retryable(&error) => {
                    fault = Some(error);
                    again.push(message);
                }
                Err(error) => {
                    add(&status.counters.dead, 1);
                    status.note(format!("a message was dropped: {}", error.with_causes()));
                }
            }
        }
        if !target.needs_confirmation() {
            unconfirmed.clear();
        }
        waiting = again;
        messages.messages = [unconfirmed.as_slice(), waiting.as_slice()].concat();
        if let Some(fault) = fault {
            pause_before_retry(status, &fault, waiting.len()).await;
        }
    }
    while delivered > 0
        && let Err(fault) = target.confirm().await
    {
        pause_before_retry(status, &fault, delivered).await;
    }
    messages.complete();
    add(&status.counters.delivered, delivered as u64);
}

async fn pause_before_retry(status: &Status, fault: &Error, messages: usize) {
    add(&status.counters.repeated, messages as u64);
    status.note(format!("{messages} messages are held, and tried again: {}", fault.with_causes()));
    tokio::time::sleep(RETRY_PAUSE).await;
}

fn update_state(status: &Status, settings: &ZmqChannel, socket: &Socket) {
    if socket.peers() == 0 {
        status.set_peer(None);
        status.fail(LinkState::Disconnected, no_peer_reason(&settings.socket, socket.failure().as_ref()));
    } else {
        status.set_peer(Some(settings.socket.endpoint.to_string()));
        status.set(LinkState::Connected);
    }
}

/// Makes a message of xMsg from one of a ZeroMQ socket.
///
/// One with three frames, of which the second is metadata, is one of xMsg. Of a foreign one, the last frame
/// is the data: JSON or a text where it is one, else bytes. With two frames, the first one is the topic, as
/// with most publishers.
fn inbound(channel: &str, message: &Multipart, target: &Target) -> Result<Message, String> {
    let frames = message.frames();
    let own = match frames {
        [topic, meta, _] if Meta::decode(meta).is_ok() => Some(topic),
        [topic, _] => Some(topic),
        _ => None,
    };
    let topic = match (target, own) {
        (Target::Topic(topic), _) => topic.clone(),
        (_, Some(topic)) => Topic::wrap(topic.clone()),
        (Target::Original, None) => {
            return Err(format!("it has {} frames, and none is a topic", frames.len()));
        }
        (Target::Outgoing(_), None) => Topic::of_domain(channel).map_err(|error| error.to_string())?,
    };
    if topic.as_bytes().starts_with(b"xmsg:") {
        return Err(format!("its topic {topic} is one that proxies use among themselves"));
    }
    match frames {
        [_, meta, data] if Meta::decode(meta).is_ok() => {
            Ok(Message::from_frames(topic.into_bytes(), meta.clone(), data.clone()))
        }
        [data] | [_, data] => Ok(foreign(topic, data)),
        _ => Err(format!(
            "it has {} frames; one of xMsg has three, and a foreign one has one or two",
            frames.len()
        )),
    }
}

/// Makes a message of foreign data, by what the data looks like, since nothing says what it is.
fn foreign(topic: Topic, data: &bytes::Bytes) -> Message {
    let text = std::str::from_utf8(data).ok();
    if let Some(text) = text {
        let is_json = text.trim_start().starts_with(['{', '['])
            && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        if is_json {
            return Message::with_mime(topic, mime::JSON, data.clone());
        }
        if let Ok(message) = Message::of(&topic, text) {
            return message;
        }
    }
    Message::with_mime(topic, mime::BYTES, data.clone())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn frames(frames: &[&[u8]]) -> Multipart {
        frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect()
    }

    #[test]
    fn one_of_xmsg_stays_as_it_is_and_others_get_a_type() {
        let ours = Message::of("weather:oslo", 4.5).unwrap();
        let wire: Vec<Bytes> = ours.clone().into_frames().into();
        let original = inbound("c", &wire.clone().into(), &Target::Original).unwrap();
        assert_eq!(original.into_frames(), ours.clone().into_frames());
        let topic = Target::Topic("other".parse().unwrap());
        let moved = inbound("c", &wire.into(), &topic).unwrap();
        assert_eq!((moved.topic().as_bytes(), moved.value::<f64>().unwrap()), (&b"other"[..], 4.5));

        let text = inbound("c", &frames(&[b"hello"]), &topic).unwrap();
        assert_eq!(text.value::<String>().unwrap(), "hello");
        let json = inbound("c", &frames(&[b"t", b" {\"a\": 1}"]), &Target::Original).unwrap();
        assert_eq!((json.topic().as_bytes(), json.mime_type().unwrap()), (&b"t"[..], mime::JSON));
        let bytes = inbound("c", &frames(&[b"t", b"\xff\x00"]), &topic).unwrap();
        assert_eq!((bytes.mime_type().unwrap(), &bytes.data()[..]), (mime::BYTES, &b"\xff\x00"[..]));

        for (message, target) in [
            (frames(&[b"data"]), &Target::Original),
            (frames(&[b"a", b"b", b"c", b"d"]), &topic),
            (frames(&[b"a", b"\xff\xff", b"c"]), &topic),
            (frames(&[b"xmsg:control", b"x"]), &Target::Original),
        ] {
            inbound("c", &message, target).unwrap_err();
        }
    }
}
