//! Clients that take very little processor time, so that the proxy is what limits the rate. They write
//! messages that are already encoded, and count received bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use xmsg_core::Connection;
use xmsg_tests::raw::{Raw, message};
use xmsg_tests::{patient, topic, within};
use xmsg_zmtp::Version;

use crate::process::ProxyProcess;

/// The bytes of one write of a publisher.
const PIECE: usize = 64 << 10;
/// The most bytes of one read of a receiver.
const READ: usize = 16 << 10;

/// What was delivered to all subscribers together.
#[derive(Debug, Default)]
struct Tally {
    bytes: AtomicUsize,
    arrived: Notify,
}

/// A proxy with publishers and subscribers that wait for messages.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) proxy: ProxyProcess,
    publishers: Vec<OwnedWriteHalf>,
    tally: Arc<Tally>,
}

/// The measured costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Delivered messages per second.
    pub(crate) rate: f64,
    /// The processor time of the proxy per delivered message, in ns.
    pub(crate) processor: f64,
}

/// Returns a message of three frames with 14 bytes of metadata and 64 bytes of data.
pub(crate) fn encoded(topic: &str) -> Vec<u8> {
    message(&[topic.as_bytes(), &[7; 14], &[8; 64]])
}

impl Traffic {
    pub(crate) async fn new() -> Self {
        let proxy = ProxyProcess::start("0").await;
        Self { proxy, publishers: Vec::new(), tally: Arc::default() }
    }

    pub(crate) async fn publishers(&mut self, count: usize) {
        for _ in 0..count {
            let mut raw = Raw::handshake(self.proxy.address.publish_port(), "PUB").await;
            raw.is_read().await;
            let (read, write) = raw.stream.into_split();
            tokio::spawn(receive(read, |_| {}));
            self.publishers.push(write);
        }
    }

    /// Connects a subscriber with these prefixes. The subscriptions are active after
    /// [`settle`](Self::settle).
    pub(crate) async fn subscriber(&self, prefixes: impl Iterator<Item = String>) {
        let mut raw = Raw::handshake(self.proxy.address.subscribe_port(), "SUB").await;
        let mut wire = BytesMut::new();
        for prefix in prefixes {
            Version::V3_1.write_subscription(&mut wire, true, &Bytes::from(prefix));
            if wire.len() >= PIECE {
                raw.send(&wire.split()).await;
            }
        }
        raw.send(&wire).await;
        raw.is_read().await;
        let tally = self.tally.clone();
        let (read, write) = raw.stream.into_split();
        tokio::spawn(async move {
            receive(read, |bytes| {
                tally.bytes.fetch_add(bytes, Ordering::Relaxed);
                tally.arrived.notify_one();
            })
            .await;
            drop(write);
        });
    }

    /// Waits until all subscriptions are in the table. When a later subscription is confirmed, everything
    /// that was read before is there.
    pub(crate) async fn settle(&self) {
        let connection = Connection::with_options(self.proxy.address.clone(), patient()).unwrap();
        within("the checks", connection.subscribe([topic("last")])).await.expect("a proxy");
    }

    /// Makes each publisher write `messages` of the encoded messages, starting again at the end. Waits until
    /// each has arrived `copies` times. All messages must have the same length.
    pub(crate) async fn run(
        &mut self,
        encoded: &Arc<Vec<u8>>,
        size: usize,
        messages: usize,
        copies: usize,
    ) -> Cost {
        let delivered = messages * self.publishers.len() * copies;
        self.tally.bytes.store(0, Ordering::Relaxed);
        let (before, started) = (self.proxy.processor_time(), Instant::now());
        let publishing: Vec<_> = self
            .publishers
            .drain(..)
            .map(|publisher| tokio::spawn(publish(publisher, encoded.clone(), messages * size)))
            .collect();
        while self.tally.bytes.load(Ordering::Relaxed) < delivered * size {
            within("what was published", self.tally.arrived.notified()).await;
        }
        let (took, processor) = (started.elapsed(), self.proxy.processor_time().saturating_sub(before));
        for publisher in publishing {
            self.publishers.push(publisher.await.expect("it does not panic"));
        }
        assert_eq!(self.tally.bytes.load(Ordering::Relaxed), delivered * size, "each just once");
        let each = |time: Duration| time.as_nanos() as f64 / delivered as f64;
        Cost { rate: 1e9 / each(took), processor: each(processor) }
    }
}

async fn publish(mut publisher: OwnedWriteHalf, encoded: Arc<Vec<u8>>, bytes: usize) -> OwnedWriteHalf {
    let (mut left, mut at) = (bytes, 0);
    while left > 0 {
        let piece = &encoded[at..encoded.len().min(at + PIECE.min(left))];
        publisher.write_all(piece).await.expect("the proxy reads");
        left -= piece.len();
        at = (at + piece.len()) % encoded.len();
    }
    publisher
}

/// Reads until the connection ends.
async fn receive(stream: OwnedReadHalf, mut received: impl FnMut(usize)) {
    while stream.readable().await.is_ok() {
        match try_read(stream.as_ref()) {
            Ok(0) => return,
            Ok(bytes) => received(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Reads into a buffer on the stack, because thousands of tasks with buffers of their own would take much
/// memory.
fn try_read(stream: &TcpStream) -> std::io::Result<usize> {
    stream.try_read(&mut [0; READ])
}
