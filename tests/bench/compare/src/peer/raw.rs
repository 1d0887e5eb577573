//! A stack without messaging: the same bytes are written to a TCP connection, copied to another one by a
//! relay, and read. It shows the lowest possible cost for large messages. It takes part only in cases with
//! one publisher and one subscriber.

use std::io::IoSlice;

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Draft, Stack, Threads, read_payload};
use crate::plan::{Header, METADATA, Plan};

/// The size of a buffer in bytes. It fits into the cache of a core, and larger ones were slower.
const BUFFER: usize = 64 << 10;

pub(super) struct Raw;

pub(super) struct Publisher {
    stream: TcpStream,
    topics: Vec<String>,
}

pub(super) struct Subscriber {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Stack for Raw {
    type Publisher = Publisher;
    type Subscriber = Subscriber;
    const THREADS: Threads = Threads::One;

    async fn publisher(plan: &Plan) -> Result<Publisher> {
        let stream = TcpStream::connect(("127.0.0.1", plan.port)).await?;
        stream.set_nodelay(true)?;
        Ok(Publisher { stream, topics: plan.topics(':') })
    }

    async fn subscriber(plan: &Plan, _index: usize) -> Result<Subscriber> {
        let stream = TcpStream::connect(("127.0.0.1", plan.port + 1)).await?;
        Ok(Subscriber { stream, buffer: vec![0; BUFFER], start: 0, end: 0 })
    }

    async fn proxy(port: u16, listening: impl FnOnce()) -> Result<()> {
        let publishers = TcpListener::bind(("127.0.0.1", port)).await?;
        let subscribers = TcpListener::bind(("127.0.0.1", port + 1)).await?;
        listening();
        let (mut from, _) = publishers.accept().await?;
        let (mut to, _) = subscribers.accept().await?;
        to.set_nodelay(true)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..length]).await?;
        }
    }
}

impl super::Publisher for Publisher {
    async fn send(&mut self, topic: usize, draft: &Draft<'_>) -> Result<()> {
        let (length, header) = ((draft.template.len() as u32).to_le_bytes(), draft.header.to_bytes());
        let topic = self.topics[topic].as_bytes();
        let mut parts =
            [&length[..], topic, METADATA, &header, &draft.template[Header::LEN..]].map(IoSlice::new);
        let mut left = &mut parts[..];
        while !left.is_empty() {
            let written = self.stream.write_vectored(left).await?;
            IoSlice::advance_slices(&mut left, written);
        }
        Ok(())
    }
}

impl Subscriber {
    /// Reads until the buffer contains this many bytes.
    async fn fill(&mut self, wanted: usize) -> Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start + wanted > BUFFER {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < wanted {
            match self.stream.read(&mut self.buffer[self.end..]).await? {
                0 => bail!("the relay closed the connection"),
                read => self.end += read,
            }
        }
        Ok(())
    }
}

impl super::Subscriber for Subscriber {
    async fn receive(&mut self) -> Result<(usize, Header)> {
        const FRONT: usize = 4 + 20 + 20;
        self.fill(FRONT + Header::LEN).await?;
        let front = &self.buffer[self.start..];
        let length = u32::from_le_bytes([front[0], front[1], front[2], front[3]]) as usize;
        let (_, header) = read_payload(&front[FRONT..FRONT + Header::LEN])?;
        ensure!(length >= Header::LEN, "a payload of {length} bytes came");
        self.start += FRONT + Header::LEN;
        // The payload is read and discarded, which is the least that any subscriber has to do.
        let mut left = length - Header::LEN;
        while left > 0 {
            self.fill(1).await?;
            let taken = left.min(self.end - self.start);
            self.start += taken;
            left -= taken;
        }
        Ok((length, header))
    }
}
