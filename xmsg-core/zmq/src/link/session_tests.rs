use super::*;
use crate::link::transport::Listener;
use crate::security::{AllowKeys, KeyPair, Security};
use crate::{Endpoint, Publisher, SocketOptions, Subscriber, TcpOptions};
use xmsg_zmtp::{Options, SocketType};

/// Records each message with its length, the size of its slab, and the memory claimed when it arrived.
#[derive(Debug, Default)]
struct Taken {
    budget: MemoryBudget,
    messages: Vec<(usize, usize, usize)>,
}

impl Handler for Taken {
    async fn messages(&mut self, batch: Batch<'_>) -> Result<(), Ended> {
        self.messages.push((batch.wire.len(), batch.slab.size, self.budget.claimed()));
        Ok(())
    }

    async fn subscription(&mut self, _: bool, _: Bytes) -> Result<(), Ended> {
        Ok(())
    }
}

/// The security options of a server and of the only client that it admits, and the server's authenticator.
fn curve() -> (Security, Security, Arc<AllowKeys>) {
    let (server, client) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let authenticator = Arc::new(AllowKeys::new([*client.public()]));
    let security = Security::CurveClient { keys: client, server: *server.public() };
    (Security::CurveServer { keys: server, authenticator: authenticator.clone() }, security, authenticator)
}

/// Sends an encrypted message of this length to a session whose memory budget is `limit`.
async fn encrypted_message(len: usize, limit: usize) -> (Taken, Ended) {
    let (listening, security, authenticator) = curve();
    let mut listener = Listener::bind(&Endpoint::tcp("127.0.0.1", 0), TcpOptions::default()).await.unwrap();
    let publisher = Publisher::new(SocketOptions::default().security(security));
    publisher.connect(listener.endpoint().clone());
    let (stream, name) = listener.accept().await;
    let budget = MemoryBudget::new(limit);
    let engine = Engine::with_mechanism(Options::new(SocketType::Xsub), listening.mechanism(), now());
    let mut session =
        Session::new(stream, engine).with_authenticator(Some(authenticator)).with_memory(&budget, &name);
    session.handshake().await.unwrap();
    let send_queue = SendQueue::new(crate::HighWaterMark::bytes(1 << 10));
    assert!(send_queue.push_urgent(b"\0\x01\x01", URGENT_MAX), "a subscription to everything");

    let mut taken = Taken { budget: budget.clone(), messages: Vec::new() };
    let sending = tokio::spawn(async move {
        publisher.wait_for_subscriber(b"").await.unwrap();
        publisher.publish([Bytes::from(vec![7; len])]).await.unwrap();
        publisher.close(Duration::from_secs(60)).await
    });
    let ended = session.run(&send_queue, &mut taken, CLOSE_TIMEOUT).await;
    sending.abort();
    assert_eq!(budget.claimed(), 0, "all was given back");
    (taken, ended)
}

/// Without this, seven peers with the longest boxes would take twice as much memory as the process may have.
#[tokio::test]
async fn clear_text_counts_before_there_is_memory_for_it() {
    const LEN: usize = 20 << 20;
    // There is room for the box but not for its clear text.
    let (taken, ended) = encrypted_message(LEN, LEN + (LEN >> 1)).await;
    assert!(matches!(ended, Ended::OutOfMemory), "{ended}");
    assert_eq!((taken.budget.ended(), &taken.messages[..]), (1, &[][..]));

    // There is room for both, and the box is not kept until the message has been passed on.
    let (taken, ended) = encrypted_message(LEN, 2 * LEN + (1 << 20)).await;
    assert!(ended.is_by_peer(), "{ended}");
    let [(len, slab, claimed)] = taken.messages[..] else { panic!("{:?}", taken.messages) };
    assert_eq!((len, slab), (LEN + 9, LEN + 9), "the slab is as large as the message");
    assert!(claimed <= LEN + (1 << 20), "{claimed} bytes");
}

/// A connection for which there is no memory releases what it holds at once: it does not read on first.
#[tokio::test]
async fn a_connection_without_memory_for_a_box_ends_at_once() {
    let (listening, security, authenticator) = curve();
    let mut listener = Listener::bind(&Endpoint::tcp("127.0.0.1", 0), TcpOptions::default()).await.unwrap();
    // The subscriber stays connected until the end of the test.
    let subscriber = Subscriber::new(SocketOptions::default().security(security));
    subscriber.connect(listener.endpoint().clone());
    let (stream, name) = listener.accept().await;
    let budget = MemoryBudget::new(2 << 20);
    let engine = Engine::with_mechanism(Options::new(SocketType::Xpub), listening.mechanism(), now());
    let mut session =
        Session::new(stream, engine).with_authenticator(Some(authenticator)).with_memory(&budget, &name);
    session.handshake().await.unwrap();
    let send_queue = SendQueue::new(crate::HighWaterMark::bytes(64 << 20));
    send_queue.try_push(&[Bytes::from(vec![7; 4 << 20])]).unwrap();
    let mut taken = Taken { budget: budget.clone(), messages: Vec::new() };
    let close_timeout = Duration::from_secs(3600);
    let running =
        tokio::time::timeout(Duration::from_secs(60), session.run(&send_queue, &mut taken, close_timeout));
    let ended = running.await.expect("nothing is waited for");
    assert!(matches!(ended, Ended::OutOfMemory), "{ended}");
    assert_eq!(budget.claimed(), 0);
    drop(subscriber);
}

/// A handler that panics when it gets a message.
#[derive(Debug)]
struct Faulty;

impl Handler for Faulty {
    async fn messages(&mut self, _: Batch<'_>) -> Result<(), Ended> {
        tokio::task::yield_now().await;
        panic!("on purpose")
    }

    async fn subscription(&mut self, _: bool, _: Bytes) -> Result<(), Ended> {
        Ok(())
    }
}

/// An authenticator that panics.
#[derive(Debug)]
struct FaultyAuthenticator;

impl Authenticator for FaultyAuthenticator {
    fn authenticate(
        &self,
        _: xmsg_zmtp::Credentials,
        _: Option<std::net::IpAddr>,
    ) -> futures::future::BoxFuture<'_, Verdict> {
        panic!("on purpose, too")
    }
}

/// Without this, the task of the connection would end before it has told anybody that the connection has.
#[tokio::test]
async fn a_panic_over_what_a_peer_sent_ends_the_connection_like_any_other_reason() {
    let mut listener = Listener::bind(&Endpoint::tcp("127.0.0.1", 0), TcpOptions::default()).await.unwrap();
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(listener.endpoint().clone());
    let (stream, name) = listener.accept().await;
    let budget = MemoryBudget::new(1 << 20);
    let engine = Engine::with_mechanism(Options::new(SocketType::Xsub), Security::Null.mechanism(), now());
    let mut session = Session::new(stream, engine).with_memory(&budget, &name);
    session.handshake().await.unwrap();
    let send_queue = SendQueue::new(crate::HighWaterMark::bytes(1 << 10));
    assert!(send_queue.push_urgent(b"\0\x01\x01", URGENT_MAX), "a subscription to everything");
    let publishing = async {
        publisher.wait_for_subscriber(b"").await.unwrap();
        publisher.publish([Bytes::from_static(b"a message")]).await.unwrap();
    };
    let mut faulty = Faulty;
    let (ended, ()) = futures::join!(session.run(&send_queue, &mut faulty, CLOSE_TIMEOUT), publishing);
    assert_eq!(ended.to_string(), "a fault of this program: on purpose");
    assert_eq!(budget.claimed(), 0, "all was given back");
}

#[tokio::test]
async fn a_panic_in_the_handshake_ends_the_handshake_alone() {
    let (listening, security, _) = curve();
    let mut listener = Listener::bind(&Endpoint::tcp("127.0.0.1", 0), TcpOptions::default()).await.unwrap();
    let publisher = Publisher::new(SocketOptions::default().security(security));
    publisher.connect(listener.endpoint().clone());
    let (stream, _) = listener.accept().await;
    let engine = Engine::with_mechanism(Options::new(SocketType::Xsub), listening.mechanism(), now());
    let mut session = Session::new(stream, engine).with_authenticator(Some(Arc::new(FaultyAuthenticator)));
    let ended = session.handshake().await.unwrap_err();
    assert_eq!(ended.to_string(), "a fault of this program: on purpose, too");
}

/// A handler that never takes a message.
#[derive(Debug)]
struct Stalled;

impl Handler for Stalled {
    async fn messages(&mut self, _: Batch<'_>) -> Result<(), Ended> {
        std::future::pending().await
    }

    async fn subscription(&mut self, _: bool, _: Bytes) -> Result<(), Ended> {
        Ok(())
    }
}

#[tokio::test]
async fn a_connection_whose_message_is_not_taken_gives_its_memory_to_others() {
    const LEN: usize = 12 << 20;
    let mut listener = Listener::bind(&Endpoint::tcp("127.0.0.1", 0), TcpOptions::default()).await.unwrap();
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(listener.endpoint().clone());
    let (stream, name) = listener.accept().await;
    let budget = MemoryBudget::new(LEN + (2 << 20));
    let mut session =
        Session::new(stream, Engine::new(Options::new(SocketType::Xsub), now())).with_memory(&budget, &name);
    session.handshake().await.unwrap();
    let send_queue = SendQueue::new(crate::HighWaterMark::bytes(1 << 10));
    assert!(send_queue.push_urgent(b"\0\x01\x01", URGENT_MAX), "a subscription to everything");
    let sending = async {
        publisher.wait_for_subscriber(b"").await.unwrap();
        publisher.publish([Bytes::from(vec![7; LEN])]).await.unwrap();
        let arrives = async {
            while budget.claimed() < LEN {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), arrives).await.expect("it arrives");
        let mut other = budget.claim("another", "something", CancellationToken::new());
        assert!(other.set(6 << 20).await, "the largest makes room");
        drop(other);
    };
    let mut stalled = Stalled;
    let (ended, ()) = futures::join!(session.run(&send_queue, &mut stalled, CLOSE_TIMEOUT), sending);
    assert!(matches!(ended, Ended::OutOfMemory), "{ended}");
    assert_eq!(budget.claimed(), 0);
}
