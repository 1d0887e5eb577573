//! One connection of the scripted AMQP peer.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use amq_protocol::frame::{
    AMQPContentHeader, AMQPFrame, ProtocolVersion, WriteContext, gen_frame, parse_frame,
};
use amq_protocol::protocol::{AMQPClass, BasicProperties, basic, channel, confirm, connection};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::Shared;
use super::actions::{Action, Step};
use super::record::{Consumer, How, Publish, Received, Settlement, What};

/// The size of a frame beside its payload, in bytes.
const FRAME_OVERHEAD: usize = 8;
/// The number of the class of messages.
const BASIC: u16 = 60;

/// Serves a connection until its end.
pub(super) async fn serve(
    stream: TcpStream,
    number: usize,
    shared: Arc<Shared>,
    actions: mpsc::Receiver<Action>,
) {
    let (heartbeat, frame_max) = {
        let script = shared.script.lock().expect("no rule panics");
        (script.heartbeat, script.frame_max)
    };
    let mut link = Link {
        stream,
        number,
        shared,
        incoming: BytesMut::new(),
        frame_max: frame_max as usize,
        channels: BTreeMap::new(),
        is_open: false,
        is_silent: false,
        is_reading: true,
    };
    // A connection that fails ends in the same way as one that is dropped.
    let _ = link.run(actions, heartbeat).await;
    let Link { stream, shared, .. } = link;
    drop(stream);
    shared.links.lock().expect("nobody panics with it").remove(&number);
    shared.received.send_modify(|all| {
        all.push(Received { connection: number, channel: 0, what: What::Ended });
    });
}

#[derive(Debug)]
struct Link {
    stream: TcpStream,
    number: usize,
    shared: Arc<Shared>,
    incoming: BytesMut,
    frame_max: usize,
    channels: BTreeMap<u16, Channel>,
    /// Whether the handshake is complete, so that heartbeats may be sent.
    is_open: bool,
    is_silent: bool,
    is_reading: bool,
}

#[derive(Debug, Default)]
struct Channel {
    has_confirms: bool,
    tags: u64,
    prefetch_count: u16,
    consumers: u32,
    content: Option<Content>,
    /// Whether the peer has closed the channel. Until the client agrees, everything else on the channel is
    /// ignored.
    is_closing: bool,
}

/// A message that has been received in part.
#[derive(Debug)]
struct Content {
    publish: Publish,
    /// The size of the body in bytes, once the header has been received.
    size: Option<usize>,
}

/// Whether the connection continues.
type Flow = std::ops::ControlFlow<()>;

impl Link {
    async fn run(&mut self, mut actions: mpsc::Receiver<Action>, heartbeat: u16) -> io::Result<()> {
        let half = Duration::from_millis(u64::from(heartbeat.max(1)) * 500);
        let mut beat = tokio::time::interval(half);
        if self.receive(0, What::Connected).await?.is_break() {
            return Ok(());
        }
        loop {
            let flow = tokio::select! {
                count = self.stream.read_buf(&mut self.incoming), if self.is_reading => {
                    if count? == 0 { Flow::Break(()) } else { self.read_frames().await? }
                }
                Some(action) = actions.recv() => self.act(action).await?,
                _ = beat.tick(), if heartbeat > 0 && self.is_open && !self.is_silent => {
                    self.write(&AMQPFrame::Heartbeat).await?;
                    Flow::Continue(())
                }
            };
            if flow.is_break() {
                return Ok(());
            }
        }
    }

    async fn read_frames(&mut self) -> io::Result<Flow> {
        while self.is_reading {
            let (left, frame) = match parse_frame(&self.incoming[..]) {
                Ok((rest, frame)) => (rest.len(), frame),
                Err(error) if error.is_incomplete() => break,
                Err(error) => return Err(io::Error::other(format!("{error:?}"))),
            };
            self.incoming.advance(self.incoming.len() - left);
            if let Some((channel, what)) = self.understand(frame)
                && self.receive(channel, what).await?.is_break()
            {
                return Ok(Flow::Break(()));
            }
        }
        Ok(Flow::Continue(()))
    }

    /// Records what was received, and performs the actions of the script.
    async fn receive(&mut self, channel: u16, what: What) -> io::Result<Flow> {
        let received = Received { connection: self.number, channel, what };
        self.shared.received.send_modify(|all| all.push(received.clone()));
        if self.is_silent {
            return Ok(Flow::Continue(()));
        }
        let actions = self.shared.script.lock().expect("no rule panics").answer(&received);
        for action in actions {
            if self.act(action).await?.is_break() {
                return Ok(Flow::Break(()));
            }
        }
        Ok(Flow::Continue(()))
    }

    /// Returns the meaning of a frame, or `None` if the frame has no meaning by itself.
    fn understand(&mut self, frame: AMQPFrame) -> Option<(u16, What)> {
        match frame {
            AMQPFrame::ProtocolHeader(_) => Some((0, What::Greeting)),
            AMQPFrame::Heartbeat | AMQPFrame::InvalidHeartbeat(_) => Some((0, What::Heartbeat)),
            AMQPFrame::Method(number, method) => self.understand_method(number, method),
            AMQPFrame::Header(number, header) => {
                let channel = self.channels.get_mut(&number)?;
                let content = channel.content.as_mut()?;
                content.publish.properties = header.properties;
                content.size = Some(header.body_size as usize);
                channel.whole().map(|publish| (number, What::Publish(Box::new(publish))))
            }
            AMQPFrame::Body(number, body) => {
                let channel = self.channels.get_mut(&number)?;
                channel.content.as_mut()?.publish.body.extend_from_slice(&body);
                channel.whole().map(|publish| (number, What::Publish(Box::new(publish))))
            }
        }
    }

    fn understand_method(&mut self, number: u16, method: AMQPClass) -> Option<(u16, What)> {
        let connection = self.number;
        let channel = self.channels.entry(number).or_default();
        if channel.is_closing {
            if let AMQPClass::Channel(channel::AMQPMethod::CloseOk(_)) = method {
                self.channels.remove(&number);
                return Some((number, What::Method(method)));
            }
            return None;
        }
        let what = match method {
            AMQPClass::Connection(connection::AMQPMethod::StartOk(login)) => {
                // PLAIN: an authorization identity, which is empty, the user and the password, separated by
                // zero bytes.
                let response = String::from_utf8_lossy(login.response.as_bytes()).into_owned();
                let mut parts = response.splitn(3, '\0').skip(1).map(str::to_owned);
                let (user, password) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                What::Login { user, password, properties: login.client_properties }
            }
            AMQPClass::Connection(connection::AMQPMethod::TuneOk(tune)) => {
                if tune.frame_max > 0 {
                    self.frame_max = tune.frame_max as usize;
                }
                What::Method(AMQPClass::Connection(connection::AMQPMethod::TuneOk(tune)))
            }
            AMQPClass::Connection(connection::AMQPMethod::Open(open)) => {
                self.is_open = true;
                What::Open { virtual_host: open.virtual_host.to_string() }
            }
            AMQPClass::Channel(channel::AMQPMethod::Close(_)) => {
                self.channels.remove(&number);
                What::Method(method)
            }
            AMQPClass::Confirm(confirm::AMQPMethod::Select(_)) => {
                channel.has_confirms = true;
                What::Method(method)
            }
            AMQPClass::Basic(basic::AMQPMethod::Publish(publish)) => {
                channel.tags += u64::from(channel.has_confirms);
                let publish = Publish {
                    connection,
                    channel: number,
                    tag: channel.tags,
                    exchange: publish.exchange.to_string(),
                    routing_key: publish.routing_key.to_string(),
                    is_mandatory: publish.mandatory,
                    properties: BasicProperties::default(),
                    body: Vec::new(),
                };
                channel.content = Some(Content { publish, size: None });
                return None;
            }
            AMQPClass::Basic(basic::AMQPMethod::Qos(qos)) => {
                channel.prefetch_count = qos.prefetch_count;
                What::Method(AMQPClass::Basic(basic::AMQPMethod::Qos(qos)))
            }
            AMQPClass::Basic(basic::AMQPMethod::Consume(consume)) => {
                channel.consumers += 1;
                let mut tag = consume.consumer_tag.to_string();
                if tag.is_empty() {
                    tag = format!("amq.ctag-{number}-{}", channel.consumers);
                }
                What::Consume(Consumer {
                    connection,
                    channel: number,
                    tag,
                    queue: consume.queue.to_string(),
                    is_no_ack: consume.no_ack,
                    is_nowait: consume.nowait,
                    prefetch_count: channel.prefetch_count,
                })
            }
            AMQPClass::Basic(method) => match settlement(connection, number, &method) {
                Some(settlement) => What::Settle(settlement),
                None => What::Method(AMQPClass::Basic(method)),
            },
            method => What::Method(method),
        };
        Some((number, what))
    }

    async fn act(&mut self, action: Action) -> io::Result<Flow> {
        match action.step {
            Step::Method(number, method) => return self.send(number, method).await,
            Step::Content(number, method, properties, body) => {
                let header = AMQPContentHeader {
                    class_id: BASIC,
                    body_size: body.len() as u64,
                    properties: *properties,
                };
                self.write(&AMQPFrame::Method(number, method)).await?;
                self.write(&AMQPFrame::Header(number, header)).await?;
                for part in body.chunks(self.frame_max - FRAME_OVERHEAD) {
                    self.write(&AMQPFrame::Body(number, part.to_vec())).await?;
                }
            }
            Step::Header => {
                self.write(&AMQPFrame::ProtocolHeader(ProtocolVersion::amqp_0_9_1())).await?;
                return Ok(Flow::Break(()));
            }
            Step::Bytes(bytes) => self.stream.write_all(&bytes).await?,
            Step::DropConnection => return Ok(Flow::Break(())),
            Step::Silence => self.is_silent = true,
            Step::StopReading => self.is_reading = false,
        }
        Ok(Flow::Continue(()))
    }

    async fn send(&mut self, number: u16, method: AMQPClass) -> io::Result<Flow> {
        if let AMQPClass::Channel(channel::AMQPMethod::Close(_)) = method {
            self.channels.entry(number).or_default().is_closing = true;
        }
        // After `connection.close` the connection ends with the client's answer or with the client's end of
        // the connection.
        let is_last = matches!(method, AMQPClass::Connection(connection::AMQPMethod::CloseOk(_)));
        self.write(&AMQPFrame::Method(number, method)).await?;
        Ok(if is_last { Flow::Break(()) } else { Flow::Continue(()) })
    }

    async fn write(&mut self, frame: &AMQPFrame) -> io::Result<()> {
        let written = gen_frame(frame)(WriteContext::from(Vec::new())).map_err(io::Error::other)?;
        self.stream.write_all(&written.into_inner().0).await
    }
}

impl Channel {
    /// Returns the message once it is complete.
    fn whole(&mut self) -> Option<Publish> {
        let content = self.content.take_if(|content| Some(content.publish.body.len()) == content.size)?;
        Some(content.publish)
    }
}

fn settlement(connection: usize, channel: u16, method: &basic::AMQPMethod) -> Option<Settlement> {
    let (tag, how, is_multiple) = match method {
        basic::AMQPMethod::Ack(ack) => (ack.delivery_tag, How::Ack, ack.multiple),
        basic::AMQPMethod::Nack(nack) => {
            (nack.delivery_tag, How::Nack { requeue: nack.requeue }, nack.multiple)
        }
        basic::AMQPMethod::Reject(reject) => {
            (reject.delivery_tag, How::Reject { requeue: reject.requeue }, false)
        }
        _ => return None,
    };
    Some(Settlement { connection, channel, tag, how, is_multiple })
}
