//! Each cause of a missing connection has its own error kind and text, and the source error that it came
//! from.

use std::error::Error as _;
use std::io;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use xmsg_core::security::Security;
use xmsg_core::{Actor, ConnectOptions, Error, ErrorKind, Message};
use xmsg_zmq::{
    Dealer, Endpoint, Publisher, Replier, Requester, Router, SocketEvent, SocketEvents, SocketOptions,
    Subscriber,
};
use xmsg_zmtp::curve::KeyPair;
use xmsg_zmtp::{Limits, Violation};

const PATIENCE: Duration = Duration::from_secs(60);

async fn failure(mut events: SocketEvents) -> Error {
    let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("it tells in time");
    match event {
        Some(SocketEvent::ConnectFailed { error, .. }) => error,
        other => panic!("{other:?}"),
    }
}

/// Returns why a dealer cannot connect to this endpoint.
async fn cause(endpoint: &str) -> Error {
    let dealer = Dealer::connecting_to(endpoint.parse().expect("an endpoint"), SocketOptions::default());
    failure(dealer.events()).await
}

fn source<T: std::error::Error + 'static>(error: &Error) -> &T {
    error.source().and_then(|source| source.downcast_ref()).unwrap_or_else(|| panic!("{error:?}"))
}

/// Starts a server that sends this answer on each connection and closes it.
fn server(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(answer);
        }
    });
    format!("tcp://{address}")
}

#[tokio::test]
async fn nobody_listens_there() {
    // The port is bound, so that nothing else takes it, but it does not listen.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let endpoint = format!("tcp://127.0.0.1:{port}");
    let error = cause(&endpoint).await;
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains(&endpoint) && error.to_string().contains("nobody listens"), "{error}");
    assert_eq!(source::<io::Error>(&error).kind(), io::ErrorKind::ConnectionRefused);
    for endpoint in ["ipc:///no/such/socket", "inproc://nobody"] {
        assert_eq!(cause(endpoint).await.kind(), ErrorKind::Refused, "{endpoint}");
    }
}

/// Makes an actor of the proxy at this port, whose attempts to connect take at most 300 ms.
fn actor(port: u16) -> Actor {
    let options = ConnectOptions::without_environment().connection_timeout(Duration::from_millis(300));
    Actor::builder("a").proxy(format!("127.0.0.1:{port}")).options(options).build().expect("it makes sense")
}

#[tokio::test]
async fn every_call_says_that_nobody_listens() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let actor = actor(socket.local_addr().unwrap().as_socket().unwrap().port());
    let message = Message::of("a", 1).unwrap();
    for error in [
        actor.publish(&message).await.unwrap_err(),
        actor.subscribe("a").await.unwrap_err(),
        actor.request(&message, PATIENCE).await.unwrap_err(),
        // The reason is also known to a request with less time than an attempt to connect.
        actor.request(&message, Duration::from_millis(100)).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.with_causes().to_string().contains("nobody listens"), "{error:?}");
    }
    let error = actor.publish(&message).await.unwrap_err();
    assert!(error.to_string().contains("nobody listens there (tried for 300ms)"), "{error}");
}

#[tokio::test]
async fn a_peer_that_says_nothing_has_words_of_its_own() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let actor = actor(silent.local_addr().unwrap().port());
    let error = actor.publish(&Message::of("a", 1).unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("says nothing"), "{error}");
    assert!(error.with_causes().to_string().contains("such as HTTP"), "{error:?}");
}

#[tokio::test]
async fn nobody_knows_the_host() {
    let error = cause("tcp://no-such-host.invalid:7771").await;
    assert_eq!(error.kind(), ErrorKind::UnknownHost);
    assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
    source::<io::Error>(&error);
}

#[tokio::test]
async fn something_without_zeromq_is_there() {
    let error = cause(&server(b"HTTP/1.1 400 Bad Request\r\n\r\n")).await;
    assert_eq!(error.kind(), ErrorKind::WrongPort);
    assert_eq!(source::<Violation>(&error), &Violation::NotZmtp);
    // A peer that sends nothing and closes the connection may be overloaded, about to end, or not speak
    // ZeroMQ.
    let error = cause(&server(b"")).await;
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.with_causes().to_string().contains("is it a ZeroMQ socket"), "{error:?}");
}

#[tokio::test]
async fn another_socket_is_there() {
    let any = Endpoint::tcp("127.0.0.1", 0);
    let (publisher, router, replier) = (
        Publisher::new(SocketOptions::default()),
        Router::new(SocketOptions::default()),
        Replier::new(SocketOptions::default()),
    );
    let subscriber = Subscriber::new(SocketOptions::default());
    let for_subscribers = publisher.bind(&any).await.unwrap();
    let for_publishers = subscriber.bind(&any).await.unwrap();
    let for_requests = [router.bind(&any).await.unwrap(), replier.bind(&any).await.unwrap()];
    let mut errors = Vec::new();
    for (endpoint, words) in [
        (&for_subscribers, "subscribers"),
        (&for_publishers, "publishers"),
        (&for_requests[0], "requests"),
        (&for_requests[1], "requests"),
    ] {
        if words != "publishers" {
            let socket = Publisher::new(SocketOptions::default());
            socket.connect(endpoint.clone());
            errors.push((failure(socket.events()).await, words));
        }
        if words != "subscribers" {
            let socket = Subscriber::new(SocketOptions::default());
            socket.connect(endpoint.clone());
            errors.push((failure(socket.events()).await, words));
        }
        if words != "requests" {
            let socket = Dealer::connecting_to(endpoint.clone(), SocketOptions::default());
            errors.push((failure(socket.events()).await, words));
            let error = Requester::connecting_to(endpoint.clone(), SocketOptions::default())
                .request(["x"], Duration::MAX)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WrongPort);
        }
    }
    assert_eq!(errors.len(), 8);
    for (error, words) in errors {
        assert_eq!(error.kind(), ErrorKind::WrongPort);
        assert!(error.to_string().contains(&format!("a port for {words}")), "{error}");
        assert!(matches!(source::<Violation>(&error), Violation::SocketTypeMismatch { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn we_may_not() {
    let (server, client) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let plain = Router::new(SocketOptions::default());
    let endpoint = plain.bind(&Endpoint::tcp("127.0.0.1", 0)).await.unwrap();
    let security = Security::CurveClient { keys: client, server: *server.public() };
    let dealer = Dealer::connecting_to(endpoint.clone(), SocketOptions::default().security(security.clone()));
    let error = failure(dealer.events()).await;
    assert_eq!(error.kind(), ErrorKind::NotAllowed);
    assert!(matches!(source::<Violation>(&error), Violation::MechanismMismatch { .. }), "{error:?}");
    let requester = Requester::connecting_to(endpoint, SocketOptions::default().security(security));
    assert_eq!(requester.request(["x"], Duration::MAX).await.unwrap_err().kind(), ErrorKind::NotAllowed);
}

#[tokio::test]
async fn nobody_answers() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::tcp("127.0.0.1", silent.local_addr().unwrap().port());
    for options in [
        SocketOptions::default().connect_timeout(Duration::from_millis(50)),
        SocketOptions::default()
            .limits(Limits { handshake_timeout: Duration::from_millis(50), ..Limits::default() }),
    ] {
        let dealer = Dealer::connecting_to(endpoint.clone(), options);
        let error = failure(dealer.events()).await;
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.to_string().contains(&endpoint.to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_ends_says_why() {
    let router = Router::new(SocketOptions::default());
    let endpoint = router.bind(&Endpoint::tcp("127.0.0.1", 0)).await.unwrap();
    let dealer = Dealer::connecting_to(endpoint, SocketOptions::default());
    let mut events = dealer.events();
    dealer.connected().await.unwrap();
    router.close(Duration::ZERO).await;
    let ended = async {
        loop {
            if let SocketEvent::Disconnected { error, .. } = events.next().await.unwrap() {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert!(error.with_causes().to_string().ends_with("closed by the peer"), "{error:?}");
}

/// The limit of descriptors holds for a whole process, so this test runs in its own process.
#[test]
fn no_descriptor_is_left() {
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "without_descriptors", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "`no_descriptor_is_left` runs it, with few descriptors"]
async fn without_descriptors() {
    let mut held = Vec::new();
    let error = loop {
        match std::fs::File::open("/dev/null") {
            Ok(file) if held.len() < 1000 => held.push(file),
            Ok(_) => panic!("there are many descriptors"),
            Err(error) => break error,
        }
    };
    for endpoint in ["tcp://127.0.0.1:1", "tcp://localhost:1", "ipc:///no/such/socket"] {
        let found = cause(endpoint).await;
        assert_eq!(found.kind(), ErrorKind::NoResources, "{endpoint}: {found:?}");
        assert_eq!(source::<io::Error>(&found).raw_os_error(), error.raw_os_error());
        assert!(found.to_string().contains("ulimit"), "{found}");
    }
    let found =
        Publisher::new(SocketOptions::default()).bind(&Endpoint::tcp("127.0.0.1", 0)).await.unwrap_err();
    assert_eq!(found.kind(), ErrorKind::NoResources);
    // When descriptors are available again, the connection is made.
    let requester = Requester::connecting_to(Endpoint::tcp("127.0.0.1", 1), SocketOptions::default());
    let error = requester.request(["x"], Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoResources);
    drop(held);
    let replier = Replier::new(SocketOptions::default());
    let endpoint = replier.bind(&Endpoint::tcp("127.0.0.1", 0)).await.unwrap();
    let requester = Requester::connecting_to(endpoint, SocketOptions::default());
    let answer = async {
        let (path, request) = replier.recv().await.unwrap();
        replier.try_reply(&path, request).unwrap();
    };
    futures::join!(requester.request(["x"], PATIENCE), answer).0.unwrap();
}
