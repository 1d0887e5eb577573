//! Options of single socket types, and REQ sockets to which peers connect.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{PATIENCE, anywhere, until, within};
use xmsg_zmq::security::Principal;
use xmsg_zmq::{
    Dealer, Endpoint, ErrorKind, Multipart, Publisher, Pull, Push, Replier, Requester, ReturnPath, Router,
    SocketEvent, SocketOptions, Subscriber,
};

fn options<S>() -> SocketOptions<S> {
    SocketOptions::default().reconnect_min(Duration::from_millis(10))
}

fn replier(endpoint: &Endpoint) -> Replier {
    let replier = Replier::new(options());
    replier.connect(endpoint.clone());
    replier
}

/// Answers every request with `with`.
fn answering(replier: &Replier, with: &'static str) {
    let replier = replier.clone();
    tokio::spawn(async move {
        while let Some((path, _)) = replier.recv().await {
            replier.try_reply(&path, [with]).unwrap();
        }
    });
}

async fn next(replier: &Replier) -> (ReturnPath, Multipart) {
    within("a request", replier.recv()).await.unwrap()
}

#[tokio::test]
async fn a_bound_requester_asks_its_peers_in_turn_and_around_those_that_are_gone() {
    let requester = Requester::new(options());
    let endpoint = requester.bind(&anywhere()).await.unwrap();
    let peers = [replier(&endpoint), replier(&endpoint)];
    answering(&peers[0], "one");
    answering(&peers[1], "other");
    until("both", || requester.peers() == 2).await;
    let mut replies = Vec::new();
    for _ in 0..4 {
        let reply = within("a reply", requester.request(["who?"], PATIENCE)).await.unwrap();
        replies.push(String::from_utf8(reply.frames()[0].to_vec()).unwrap());
    }
    assert_eq!(replies[..2], replies[2..]);
    assert_ne!(replies[0], replies[1]);
    let [one, other] = peers;
    one.close(Duration::ZERO).await;
    for _ in 0..4 {
        let reply = within("a reply", requester.request(["who?"], PATIENCE)).await.unwrap();
        assert_eq!(reply.frames(), ["other"]);
    }
    // An endpoint that it connects to takes part in the round robin, too.
    let bound = Replier::new(options());
    requester.connect(bound.bind(&anywhere()).await.unwrap());
    answering(&bound, "bound");
    let mut replies = Vec::new();
    for _ in 0..2 {
        replies.push(within("a reply", requester.request(["who?"], PATIENCE)).await.unwrap());
    }
    replies.sort_by(|a, b| a.frames().cmp(b.frames()));
    assert_eq!(replies, [Multipart::from(["bound"]), Multipart::from(["other"])]);
    requester.close().await;
    assert_eq!(requester.request(["who?"], PATIENCE).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(requester.bind(&anywhere()).await.unwrap_err().kind(), ErrorKind::Closed);
    other.close(Duration::ZERO).await;
}

#[tokio::test]
async fn a_request_of_a_bound_requester_waits_for_a_peer_and_goes_to_the_next_one() {
    let requester = Requester::new(options());
    let endpoint = requester.bind(&anywhere()).await.unwrap();
    let mut events = requester.events();
    let asking = requester.request(["still there?"], PATIENCE);
    let peers = async {
        let first = replier(&endpoint);
        next(&first).await;
        first.close(Duration::ZERO).await;
        let second = replier(&endpoint);
        let (path, request) = next(&second).await;
        second.try_reply(&path, request).unwrap();
        second
    };
    let (reply, _second) = futures::join!(asking, peers);
    assert_eq!(reply.unwrap(), Multipart::from(["still there?"]));
    let mut connected = 0;
    while connected < 2 {
        if let Some(SocketEvent::Connected { .. }) = within("an event", events.next()).await {
            connected += 1;
        }
    }
}

#[tokio::test]
async fn a_late_reply_to_a_bound_requester_is_not_taken_for_that_of_the_next_request() {
    let requester = Requester::new(options());
    let replier = replier(&requester.bind(&anywhere()).await.unwrap());
    until("a peer", || requester.peers() == 1).await;
    let mut events = requester.events();
    let message = Multipart::from(["first"]);
    let first = requester.try_request(&message, Duration::from_millis(100));
    let (first, (late, _)) = futures::join!(first, next(&replier));
    let first = first.unwrap_err();
    assert_eq!((first.error.kind(), first.sent), (ErrorKind::Timeout, true));
    let second = requester.request(["second"], PATIENCE);
    let answers = async {
        let (path, request) = next(&replier).await;
        assert_eq!(request, Multipart::from(["second"]));
        let ended = within("an event", events.next()).await;
        assert!(matches!(ended, Some(SocketEvent::Disconnected { .. })), "{ended:?}");
        assert_eq!(replier.try_reply(&late, ["late"]).unwrap_err().kind(), ErrorKind::Refused);
        replier.try_reply(&path, ["in time"]).unwrap();
    };
    assert_eq!(futures::join!(second, answers).0.unwrap(), Multipart::from(["in time"]));
    // The same applies to a request whose future is dropped.
    let dropped = requester.request(["third"], PATIENCE);
    tokio::select! {
        _ = dropped => panic!("nobody has replied"),
        _ = next(&replier) => {}
    }
    // The next request, which follows at once, uses another connection.
    let fourth = requester.request(["fourth"], PATIENCE);
    let answer = async {
        let (path, request) = next(&replier).await;
        replier.try_reply(&path, request).unwrap();
    };
    let (reply, ()) = within("a reply", async { futures::join!(fourth, answer) }).await;
    assert_eq!(reply.unwrap(), Multipart::from(["fourth"]));
}

#[tokio::test]
async fn what_a_peer_sends_unasked_holds_up_no_time_limit() {
    let requester = Requester::new(options());
    let router = Router::new(options());
    router.connect(requester.bind(&anywhere()).await.unwrap());
    let flood = tokio::spawn({
        let router = router.clone();
        async move {
            let Some((identity, _)) = router.recv().await else { return };
            // This is not a reply, because the frame in front is not empty.
            while router.send(&identity, ["unasked"]).await.is_ok() {}
        }
    });
    until("a peer", || requester.peers() == 1).await;
    let error = within("the time limit", requester.request(["what?"], Duration::from_millis(200))).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Timeout);
    flood.abort();
}

#[tokio::test]
async fn numbered_requests_keep_their_connection_when_they_time_out() {
    for bound in [false, true] {
        let requester = Requester::new(options().correlate(true));
        let replier = Replier::new(options());
        if bound {
            replier.connect(requester.bind(&anywhere()).await.unwrap());
            until("a peer", || requester.peers() == 1).await;
        } else {
            requester.connect(replier.bind(&anywhere()).await.unwrap());
        }
        let mut events = requester.events();
        let message = Multipart::from(["first"]);
        let first = requester.try_request(&message, Duration::from_millis(200));
        let (first, (late, _)) = futures::join!(first, next(&replier));
        let first = first.unwrap_err();
        assert_eq!((first.error.kind(), first.sent), (ErrorKind::Timeout, true));
        let second = requester.request(["second"], PATIENCE);
        let answers = async {
            let (path, request) = next(&replier).await;
            assert_eq!(request, Multipart::from(["second"]));
            replier.try_reply(&late, ["late"]).unwrap();
            replier.try_reply(&path, ["in time"]).unwrap();
        };
        assert_eq!(futures::join!(second, answers).0.unwrap(), Multipart::from(["in time"]));
        requester.close().await;
        while let Some(event) = events.next().await {
            assert!(!matches!(event, SocketEvent::Disconnected { .. }), "the connection stays");
        }
    }
}

fn numbers(range: std::ops::Range<u32>) -> impl Iterator<Item = Multipart> {
    range.map(|number| Multipart::from([number.to_string()]))
}

#[tokio::test]
async fn of_messages_that_replace_each_other_the_last_one_is_received() {
    let pull = Pull::new(options().conflate(true));
    let endpoint = pull.bind(&anywhere()).await.unwrap();
    let pushes = [Push::new(options()), Push::new(options())];
    for (push, range) in pushes.iter().zip([0..1000, 1000..2000]) {
        push.connect(endpoint.clone());
        for message in numbers(range) {
            push.send(message).await.unwrap();
        }
    }
    until("all of them", || pull.conflated() == 1998).await;
    let mut last = [within("one", pull.recv()).await.unwrap(), within("one", pull.recv()).await.unwrap()];
    last.sort_by(|a, b| a.frames().cmp(b.frames()));
    assert_eq!(last, [Multipart::from(["1999"]), Multipart::from(["999"])], "the last one of each peer");
    assert_eq!(pull.try_recv().unwrap(), None);

    let publisher = Publisher::new(options());
    let mut subscriber = Subscriber::new(options().conflate(true).receive_high_water_mark(1));
    subscriber.subscribe("").unwrap();
    subscriber.connect(publisher.bind(&anywhere()).await.unwrap());
    publisher.wait_for_subscriber(b"").await.unwrap();
    let large = Bytes::from(vec![7; 100_000]);
    for number in 0..100_u32 {
        publisher.publish([number.to_string().into(), large.clone()]).await.unwrap();
    }
    until("all of them", || subscriber.conflated() == 99).await;
    let last = within("the last one", subscriber.recv()).await.unwrap();
    assert_eq!(last.frames(), [Bytes::from("99"), large]);

    let (one, other) = (Dealer::new(options()), Dealer::new(options().conflate(true)));
    other.connect(one.bind(&anywhere()).await.unwrap());
    for message in numbers(0..10) {
        one.send(message).await.unwrap();
    }
    until("all of them", || other.conflated() == 9).await;
    assert_eq!(within("the last one", other.recv()).await, numbers(9..10).next());
}

#[tokio::test]
async fn a_probe_makes_a_peer_known_before_it_speaks() {
    let router = Router::new(options());
    let endpoint = router.bind(&anywhere()).await.unwrap();
    let dealer = Dealer::connecting_to(endpoint.clone(), options().identity("me").probe_router(true));
    let (identity, probe) = within("the probe", router.recv()).await.unwrap();
    assert_eq!((&identity[..], probe), (&b"me"[..], Multipart::from([""])));
    router.send(&identity, ["welcome"]).await.unwrap();
    assert_eq!(within("a message", dealer.recv()).await.unwrap().frames(), ["welcome"]);
    // After a reconnection, the probe is sent once more, ahead of what is queued.
    assert!(router.unbind(&endpoint));
    router.close(Duration::ZERO).await;
    until("its end", || dealer.peers() == 0).await;
    dealer.send(["data"]).await.unwrap();
    let router = Router::new(options());
    router.bind(&endpoint).await.unwrap();
    for expected in ["", "data"] {
        assert_eq!(within("a message", router.recv()).await.unwrap().1.frames(), [expected]);
    }
}

#[tokio::test]
async fn a_router_drops_what_is_for_nobody_if_it_is_told_so() {
    let strict = Router::new(options());
    assert_eq!(strict.send(b"nobody", ["x"]).await.unwrap_err().kind(), ErrorKind::Refused);
    let router = Router::new(options().mandatory(false));
    let mut events = router.events();
    router.send(b"nobody", ["x"]).await.unwrap();
    router.try_send(b"nobody", ["y"]).unwrap();
    assert_eq!((router.dropped(), strict.dropped()), (2, 0));
    let Some(SocketEvent::MessageDropped { reason, .. }) = within("an event", events.next()).await else {
        panic!("it is told")
    };
    assert!(reason.contains("nobody"), "{reason}");
}

#[tokio::test]
async fn an_identity_goes_to_the_newcomer_or_stays_where_it_is() {
    for handover in [true, false] {
        let router = Router::new(options().handover(handover));
        let endpoint = router.bind(&anywhere()).await.unwrap();
        let mut events = router.events();
        let quiet = || options().identity("same").reconnect_min(PATIENCE).reconnect_max(PATIENCE);
        let first = Dealer::connecting_to(endpoint.clone(), quiet());
        first.send(["first"]).await.unwrap();
        assert_eq!(within("a message", router.recv()).await.unwrap().1.frames(), ["first"]);
        let second = Dealer::connecting_to(endpoint.clone(), quiet());
        within("an end", async {
            loop {
                match events.next().await.unwrap() {
                    SocketEvent::Disconnected { .. } if handover => return,
                    SocketEvent::HandshakeFailed { error, .. } if !handover => {
                        assert!(error.to_string().contains("somebody else has its identity"), "{error}");
                        return;
                    }
                    _ => {}
                }
            }
        })
        .await;
        until("one of them", || router.peers() == 1).await;
        router.send(b"same", ["hello"]).await.unwrap();
        let holder = if handover { &second } else { &first };
        assert_eq!(within("a message", holder.recv()).await.unwrap().frames(), ["hello"]);
    }
}

#[tokio::test]
async fn a_rule_is_asked_when_a_peer_connects_and_when_it_has_changed() {
    let is_open = Arc::new(AtomicBool::new(true));
    let rule = {
        let is_open = is_open.clone();
        move |_: &str, principal: Option<&Principal>| principal.is_none() && is_open.load(Ordering::Relaxed)
    };
    let router = Router::new(options().keeps(rule));
    let endpoint = router.bind(&anywhere()).await.unwrap();
    let mut events = router.events();
    let dealer = Dealer::connecting_to(endpoint.clone(), options());
    dealer.connected().await.unwrap();
    until("a peer", || router.peers() == 1).await;
    router.recheck().await;
    dealer.send(["here"]).await.unwrap();
    assert_eq!(within("a message", router.recv()).await.unwrap().1.frames(), ["here"]);

    is_open.store(false, Ordering::Relaxed);
    router.recheck().await;
    let mut next = async || within("an event", events.next()).await.unwrap();
    while !matches!(next().await, SocketEvent::Disconnected { .. }) {}
    // It tries again and is rejected.
    while !matches!(next().await, SocketEvent::HandshakeFailed { .. }) {}
    assert_eq!(router.peers(), 0);
    is_open.store(true, Ordering::Relaxed);
    while !matches!(next().await, SocketEvent::Connected { .. }) {}
}
