//! The blocking API without a proxy: its errors, and that it fails within an async runtime. The tests with a
//! proxy are in tests/tests/blocking.rs.

use std::time::{Duration, Instant};

use xmsg_core::blocking::{Actor, Connection};
use xmsg_core::{ConnectOptions, ErrorKind, Message};

#[test]
fn nobody_there_is_an_error_and_not_a_panic() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let options = ConnectOptions::new().connection_timeout(Duration::from_millis(200));
    let connection = Connection::with_options(address.as_str(), options).unwrap();
    let error = connection.publish(&Message::of("a", 1).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(connection.close(Duration::MAX).unwrap().is_nothing());
    assert_eq!(connection.connect().unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn within_an_async_runtime_a_call_fails_at_once() {
    let actor = Actor::builder("a").proxy("127.0.0.1:1").build().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let started = Instant::now();
    runtime.block_on(async {
        let message = Message::of("a", 1).unwrap();
        assert_eq!(actor.publish(&message).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(Actor::connect("b").unwrap_err().kind(), ErrorKind::WouldBlock);
        // Dropping the actor within a runtime works, too.
        drop(actor);
    });
    assert!(started.elapsed() < Duration::from_secs(5));
}
