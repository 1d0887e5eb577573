//! A peer that can write any bytes, for input that no well-behaved library would send.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use xmsg_zmtp::{Command, Frames, Header, encode_message};

use crate::within;

/// A raw connection to a port of the loopback interface.
#[derive(Debug)]
pub struct Raw {
    /// The stream, for direct access.
    pub stream: TcpStream,
    received: BytesMut,
}

impl Raw {
    /// Connects and sends nothing. Each connection comes from another address of the loopback network than
    /// the one before. If one address closes thousands of connections, the system soon has no free port left
    /// for it.
    pub async fn connect(port: u16) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let host = 16 + NEXT.fetch_add(1, Ordering::Relaxed) % 128;
        Self::connect_from(host, port).await.expect("somebody listens")
    }

    /// Connects from the address `127.0.0.HOST`. Returns `None` if the connection was reset at once.
    pub async fn connect_from(host: u8, port: u16) -> Option<Self> {
        Self::connect_on(TcpSocket::new_v4().expect("a socket"), host, port).await
    }

    async fn connect_on(socket: TcpSocket, host: u8, port: u16) -> Option<Self> {
        socket.bind(([127, 0, 0, host], 0).into()).expect("the loopback has many addresses");
        let stream = within("connect", socket.connect(([127, 0, 0, 1], port).into())).await.ok()?;
        // Each step of a handshake is a packet of its own, which must not wait for the acknowledgement of the
        // one before.
        stream.set_nodelay(true).expect("TCP_NODELAY");
        Some(Self { stream, received: BytesMut::new() })
    }

    /// Connects, and completes the handshake as a socket of this type, with ZMTP 3.1.
    pub async fn handshake(port: u16, socket_type: &str) -> Self {
        Self::handshake_with(port, socket_type, b"").await
    }

    /// Connects from the address `127.0.0.HOST`, and completes the handshake. Returns `None` if the
    /// connection was refused.
    pub async fn handshake_from(host: u8, port: u16, socket_type: &str) -> Option<Self> {
        let mut raw = Self::connect_from(host, port).await?;
        let hello = [&greeting(3, 1)[..], &ready(socket_type, b"")].concat();
        if !raw.try_send(&hello).await {
            return None;
        }
        while raw.received.len() < 64 {
            let count = within("a greeting", raw.stream.read_buf(&mut raw.received)).await.ok()?;
            if count == 0 {
                return None;
            }
        }
        let _ = raw.received.split_to(64);
        raw.next_frame().await.map(|_| raw)
    }

    /// Connects from the address `127.0.0.HOST` with a receive buffer of about this many bytes, and completes
    /// the handshake. What the other side sends soon waits there and not in the system.
    pub async fn handshake_narrow(host: u8, port: u16, socket_type: &str, buffer: u32) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(buffer).expect("SO_RCVBUF");
        let mut raw = Self::connect_on(socket, host, port).await.expect("somebody listens");
        raw.send(&[&greeting(3, 1)[..], &ready(socket_type, b"")].concat()).await;
        raw.skip(64).await;
        assert!(raw.next_frame().await.is_some_and(|(flags, _)| flags & 4 != 0), "READY");
        raw
    }

    /// Connects, and completes the handshake with an identity.
    pub async fn handshake_with(port: u16, socket_type: &str, identity: &[u8]) -> Self {
        let mut raw = Self::connect(port).await;
        raw.send(&greeting(3, 1)).await;
        raw.send(&ready(socket_type, identity)).await;
        raw.skip(64).await;
        assert!(raw.next_frame().await.is_some_and(|(flags, _)| flags & 4 != 0), "READY");
        raw
    }

    /// Accepts a connection, and completes the handshake as a socket of this type, with ZMTP 3.1. Like a
    /// foreign socket, it announces nothing but its type.
    pub async fn accept(listener: &TcpListener, socket_type: &str) -> Self {
        let (stream, _) = within("a peer", listener.accept()).await.expect("it listens");
        let mut raw = Self { stream, received: BytesMut::new() };
        raw.send(&greeting(3, 1)).await;
        raw.send(&ready(socket_type, b"")).await;
        raw.skip(64).await;
        assert!(raw.next_frame().await.is_some_and(|(flags, _)| flags & 4 != 0), "READY");
        raw
    }

    /// Returns the frames of the next message, and skips commands. Returns `None` if the connection has
    /// ended, or if a frame of more than `most` bytes was announced. In the second case the caller drops the
    /// connection, as libzmq does.
    pub async fn next_message(&mut self, most: u64) -> Option<Vec<Bytes>> {
        let mut frames = Vec::new();
        loop {
            let header = loop {
                if let Some(header) = Header::read(&self.received).expect("a header") {
                    break header;
                }
                match within("a header", self.stream.read_buf(&mut self.received)).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return None,
                }
            };
            if header.body_len > most {
                return None;
            }
            let (_, body) = self.next_frame().await?;
            if header.is_command() {
                continue;
            }
            frames.push(body);
            if !header.has_more() {
                return Some(frames);
            }
        }
    }

    /// Writes bytes.
    pub async fn send(&mut self, bytes: &[u8]) {
        within("send", self.stream.write_all(bytes)).await.expect("the other side reads");
    }

    /// Writes bytes. Returns `false` if the connection has ended.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        within("send", self.stream.write_all(bytes)).await.is_ok()
    }

    /// Writes a message.
    pub async fn send_message<F: AsRef<[u8]>>(&mut self, frames: &[F]) {
        self.send(&message(frames)).await;
    }

    /// Returns the flags and the body of the next frame, or `None` if the connection has ended in any way.
    pub async fn next_frame(&mut self) -> Option<(u8, Bytes)> {
        loop {
            if let Some(body) = Frames::of(self.received.clone().freeze()).next() {
                let flags = self.received[0];
                let header = if flags & 2 == 0 { 2 } else { 9 };
                let _ = self.received.split_to(header + body.len());
                return Some((flags, body));
            }
            match within("a frame", self.stream.read_buf(&mut self.received)).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return None,
            }
        }
    }

    /// Waits until the other side has closed the connection.
    pub async fn closed(&mut self) {
        while self.next_frame().await.is_some() {}
    }

    /// Waits until the other side has read everything that was sent: it has answered a PING. Other frames are
    /// skipped.
    pub async fn is_read(&mut self) {
        self.send(&ping()).await;
        self.pong().await;
    }

    /// Waits for the answer to a PING. Other frames are skipped.
    pub async fn pong(&mut self) {
        while !self.next_frame().await.expect("it stays connected").1.starts_with(b"\x04PONG") {}
    }

    /// Skips bytes that are not frames.
    pub async fn skip(&mut self, len: usize) {
        while self.received.len() < len {
            let count = within("bytes", self.stream.read_buf(&mut self.received)).await.expect("bytes");
            assert!(count > 0, "the connection ended in the greeting");
        }
        let _ = self.received.split_to(len);
    }

    /// Ends the connection with a TCP reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("SO_LINGER");
    }
}

/// Returns a ZMTP greeting with the NULL mechanism.
#[must_use]
pub fn greeting(major: u8, minor: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..10].copy_from_slice(b"\xff\0\0\0\0\0\0\0\x01\x7f");
    bytes[10] = major;
    bytes[11] = minor;
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

/// Returns a READY command.
#[must_use]
pub fn ready(socket_type: &str, identity: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", socket_type.as_bytes()), ("Identity", identity)] {
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value);
    }
    let mut frame = if body.len() < 256 { vec![4, body.len() as u8] } else { vec![6] };
    if body.len() >= 256 {
        frame.extend_from_slice(&(body.len() as u64).to_be_bytes());
    }
    frame.extend_from_slice(&body);
    frame
}

/// Returns the encoded bytes of a message.
#[must_use]
pub fn message<F: AsRef<[u8]>>(frames: &[F]) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_message(&mut out, frames);
    out.to_vec()
}

/// Returns the encoded bytes of a command.
#[must_use]
pub fn command(command: &Command) -> Vec<u8> {
    let mut out = BytesMut::new();
    command.write(&mut out);
    out.to_vec()
}

/// Returns an encoded PING.
#[must_use]
pub fn ping() -> Vec<u8> {
    command(&Command::Ping { ttl: Duration::ZERO, context: Bytes::from_static(b"are you there?") })
}
