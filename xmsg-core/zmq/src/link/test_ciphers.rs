//! The ciphers of both ends of a connection, for tests of the code between them.

use bytes::BytesMut;
use xmsg_zmtp::curve::{Cipher, KeyPair};
use xmsg_zmtp::{Engine, Event, Options, SocketType};

use crate::link::session::now;
use crate::security::{AllowKeys, Security};

/// Returns the ciphers of the client and of the server after a handshake between two engines.
pub(crate) fn connected() -> [Cipher; 2] {
    let keys = KeyPair::generate().unwrap();
    let server = *keys.public();
    let sides = [
        Security::anonymous(server).unwrap(),
        Security::CurveServer { keys, authenticator: std::sync::Arc::new(AllowKeys::default()) },
    ];
    let mut engines = sides.map(|security| {
        Engine::with_mechanism(Options::new(SocketType::Dealer), security.mechanism(), now())
    });
    let mut inputs = [BytesMut::new(), BytesMut::new()];
    let mut ready = [false; 2];
    while ready != [true; 2] {
        for side in 0..2 {
            match engines[side].poll_event(&mut inputs[side]).unwrap() {
                Some(Event::Credentials(_)) => engines[side].set_verdict(true).unwrap(),
                Some(Event::Ready(_)) => ready[side] = true,
                _ => {}
            }
            while let Some(bytes) = engines[side].poll_transmit() {
                inputs[1 - side].extend_from_slice(&bytes);
            }
        }
    }
    engines.map(|mut engine| engine.take_cipher().unwrap())
}
