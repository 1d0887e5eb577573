//! Measures the cost of the cipher of an encrypted proxy: the time in microseconds to open the three boxes of
//! a message and to seal them again, for each size of data that is given. The fastest of many rounds counts,
//! because anything else that the machine does can only add time.
//! ```sh
//! cargo run --release --example cipher_bench -- 20 100 1024 65536
//! ```

use std::hint::black_box;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use xmsg_core::security::{KeyPair, Security};
use xmsg_zmtp::curve::Cipher;
use xmsg_zmtp::{Engine, Event, Header, Options, SocketType, encode_message};

/// The number of rounds of each measurement.
const ROUNDS: usize = 400;
/// The bytes that are processed in a round, unless one message is longer. A round takes about a millisecond.
const ROUND: usize = 1 << 20;
/// The number of messages that are sealed before they are opened.
const BATCH: usize = 64;

/// Makes the ciphers of both ends of a connection.
fn ciphers() -> Result<[Cipher; 2], Box<dyn std::error::Error>> {
    #[derive(Debug)]
    struct Anybody;
    impl xmsg_core::security::Authenticator for Anybody {
        fn authenticate(
            &self,
            _: xmsg_core::security::Credentials,
            _: Option<std::net::IpAddr>,
        ) -> futures::future::BoxFuture<'_, xmsg_core::security::Verdict> {
            Box::pin(std::future::ready(xmsg_core::security::Verdict::Admitted))
        }
    }
    let keys = KeyPair::generate()?;
    let client = Security::anonymous(*keys.public())?;
    let server = Security::CurveServer { keys, authenticator: std::sync::Arc::new(Anybody) };
    let engine = |socket_type, security: &Security| {
        Engine::with_mechanism(Options::new(socket_type), security.mechanism(), Instant::now())
    };
    let mut sides = [engine(SocketType::Pub, &client), engine(SocketType::Xsub, &server)];
    let mut inputs = [BytesMut::new(), BytesMut::new()];
    let mut ready = 0;
    while ready < 2 {
        for index in 0..2 {
            while let Some(bytes) = sides[index].poll_transmit() {
                inputs[1 - index].extend_from_slice(&bytes);
            }
            while let Some(event) = sides[index].poll_event(&mut inputs[index])? {
                match event {
                    Event::Credentials(_) => sides[index].set_verdict(true)?,
                    Event::Ready(_) => ready += 1,
                    _ => {}
                }
            }
        }
    }
    let [client, server] = sides.each_mut().map(Engine::take_cipher);
    Ok([client.ok_or("no cipher")?, server.ok_or("no cipher")?])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [mut client, mut server] = ciphers()?;
    for size in std::env::args().skip(1) {
        let size: usize = size.parse()?;
        let mut wire = BytesMut::new();
        encode_message(
            &mut wire,
            &[Bytes::from(vec![b't'; 20]), vec![b'm'; 20].into(), vec![7; size].into()],
        );
        // The sealed bytes stay in the caches of the processor, as they do in a proxy.
        let batch = (ROUND / 8 / wire.len()).clamp(1, BATCH);
        let batches = (ROUND / (batch * wire.len())).clamp(1, 100);
        let (mut boxed, mut plain) = (BytesMut::new(), BytesMut::new());
        let mut fastest = f64::INFINITY;
        for _ in 0..ROUNDS {
            let started = Instant::now();
            for _ in 0..batches {
                for _ in 0..batch {
                    let mut at = 0;
                    while let Some(header) = Header::read(&wire[at..])? {
                        let end = at + header.len + header.body_len as usize;
                        client.sealer.seal(header.flags, &wire[at + header.len..end], &mut boxed);
                        at = end;
                    }
                }
                while server.opener.open(&mut boxed, &mut plain)? {}
                black_box(&plain);
                plain.clear();
            }
            fastest = fastest.min(started.elapsed().as_secs_f64() / (batches * batch) as f64);
        }
        println!("{:.3}", fastest * 1e6);
    }
    Ok(())
}
