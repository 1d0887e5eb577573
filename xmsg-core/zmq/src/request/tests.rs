//! Tests of REQ with REP and ROUTER peers.

use super::*;
use crate::Replier;

const PATIENCE: Duration = Duration::from_secs(60);

async fn pair() -> (Replier, Requester) {
    let replier = Replier::new(SocketOptions::default());
    let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    (replier, Requester::connecting_to(endpoint, SocketOptions::default()))
}

async fn next(replier: &Replier) -> (crate::ReturnPath, Multipart) {
    tokio::time::timeout(PATIENCE, replier.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_late_reply_is_not_taken_for_that_of_the_next_request() {
    let (replier, requester) = pair().await;
    let first = requester.request(["first"], Duration::from_millis(200));
    let (first, (late, _)) = futures::join!(first, next(&replier));
    assert_eq!(first.unwrap_err().kind(), ErrorKind::Timeout);
    let second = requester.request(["second"], PATIENCE);
    let answers = async {
        let (path, request) = next(&replier).await;
        assert_eq!(request, Multipart::from(["second"]));
        let _ = replier.try_reply(&late, ["late"]);
        replier.try_reply(&path, ["in time"]).unwrap();
    };
    assert_eq!(futures::join!(second, answers).0.unwrap(), Multipart::from(["in time"]));
}

#[tokio::test]
async fn a_dropped_request_leaves_the_way_clear() {
    let (replier, requester) = pair().await;
    {
        let first = std::pin::pin!(requester.request(["first"], PATIENCE));
        let arrived = std::pin::pin!(next(&replier));
        assert!(matches!(futures::future::select(first, arrived).await, futures::future::Either::Right(_)));
    }
    let second = requester.request(["second"], PATIENCE);
    let answer = async {
        let (path, request) = next(&replier).await;
        replier.try_reply(&path, request).unwrap();
    };
    assert_eq!(futures::join!(second, answer).0.unwrap(), Multipart::from(["second"]));
}

#[tokio::test]
async fn requests_of_several_tasks_queue_and_get_their_own_replies() {
    let (replier, requester) = pair().await;
    let echo = tokio::spawn(async move {
        for _ in 0..50 {
            let (path, request) = next(&replier).await;
            replier.try_reply(&path, request).unwrap();
        }
        replier
    });
    let requests = (0..50).map(|number: u32| {
        let requester = requester.clone();
        async move {
            let request = Multipart::from([number.to_string()]);
            assert_eq!(requester.request(request.clone(), PATIENCE).await.unwrap(), request);
        }
    });
    futures::future::join_all(requests).await;
    assert_eq!(echo.await.unwrap().peers(), 1);
}

#[tokio::test]
async fn a_request_survives_a_restart_of_its_peer() {
    let (replier, requester) = pair().await;
    let endpoint = requester.endpoints().remove(0);
    let request = requester.request(["still there?"], PATIENCE);
    let restart = async move {
        next(&replier).await;
        replier.close(Duration::ZERO).await;
        let replier = Replier::new(SocketOptions::default());
        replier.bind(&endpoint).await.unwrap();
        let (path, request) = next(&replier).await;
        replier.try_reply(&path, request).unwrap();
        replier
    };
    assert_eq!(futures::join!(request, restart).0.unwrap(), Multipart::from(["still there?"]));
}

#[tokio::test]
async fn requests_go_to_one_endpoint_after_another_and_around_those_that_are_gone() {
    let (one, requester) = pair().await;
    let (other, spare) = pair().await;
    requester.connect(spare.endpoints().remove(0));
    let echo = |replier: Replier, name: &'static str| {
        tokio::spawn(async move {
            while let Some((path, _)) = replier.recv().await {
                replier.try_reply(&path, [name]).unwrap();
            }
        })
    };
    let (_one, other_echo) = (echo(one.clone(), "one"), echo(other.clone(), "other"));
    let ask = async || requester.request(["who?"], PATIENCE).await.unwrap().frames()[0].clone();
    assert_eq!([ask().await, ask().await, ask().await, ask().await], ["one", "other", "one", "other"]);
    // One peer is gone, so the requests that it would get go to the other.
    let gone = spare.endpoints().remove(0);
    other.close(Duration::ZERO).await;
    other_echo.await.unwrap();
    for _ in 0..4 {
        assert_eq!(ask().await, "one");
    }
    assert!(requester.disconnect(&gone) && !requester.disconnect(&gone));
    assert_eq!(ask().await, "one");
    // A peer is added again.
    let again = Replier::new(SocketOptions::default());
    let endpoint = again.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let _again = echo(again, "again");
    requester.connect(endpoint);
    let mut answers = [ask().await, ask().await];
    answers.sort();
    assert_eq!(answers, ["again", "one"]);
    for endpoint in requester.endpoints() {
        requester.disconnect(&endpoint);
    }
    let error = requester.request(["anybody?"], Duration::from_millis(50)).await.unwrap_err();
    assert_eq!((error.kind(), requester.endpoints().len()), (ErrorKind::Timeout, 0));
}

#[tokio::test]
async fn nobody_there_is_said_and_a_closed_requester_too() {
    let (replier, requester) = pair().await;
    replier.close(Duration::ZERO).await;
    let error = requester.request(["x"], Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains(&requester.endpoints()[0].to_string()), "{error}");
    requester.close().await;
    assert_eq!(requester.request(["x"], PATIENCE).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn the_longest_and_the_shortest_time_limit_are_fine() {
    let (replier, requester) = pair().await;
    let error = requester.request(["at once"], Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    // A clock has its ticks, so the first request may have arrived.
    let echo = async {
        loop {
            let (path, request) = next(&replier).await;
            let _ = replier.try_reply(&path, request);
        }
    };
    tokio::select! {
        () = echo => {}
        reply = requester.request(["x"], Duration::MAX) => assert_eq!(reply.unwrap(), Multipart::from(["x"])),
    }
}

#[tokio::test]
async fn closing_ends_a_request_that_is_under_way_and_those_behind_it() {
    let (replier, requester) = pair().await;
    let one = requester.request(["one"], PATIENCE);
    let two = requester.request(["two"], Duration::MAX);
    let close = async {
        next(&replier).await;
        requester.close().await;
    };
    let (one, two, ()) = futures::join!(one, two, close);
    assert_eq!(one.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(two.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn an_error_knows_whether_the_request_was_sent() {
    let (replier, requester) = pair().await;
    let request = Multipart::from(["x"]);
    let sent_within = async |requester: &Requester, time| {
        let unanswered = requester.try_request(&request, time).await.unwrap_err();
        (unanswered.error.kind(), unanswered.sent)
    };
    let (sent, ()) = futures::join!(sent_within(&requester, PATIENCE), async {
        next(&replier).await;
        // From here on, the clock jumps from one deadline to the next.
        tokio::time::pause();
    });
    tokio::time::resume();
    assert_eq!(sent, (ErrorKind::Timeout, true));
    let sent = async |requester| sent_within(requester, Duration::from_millis(300)).await;
    replier.close(Duration::ZERO).await;
    assert_eq!(sent(&requester).await, (ErrorKind::Refused, false));
    // The kernel accepts the connection, but no program does.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let requester = Requester::connecting_to(Endpoint::tcp("127.0.0.1", port), SocketOptions::default());
    assert_eq!(sent(&requester).await, (ErrorKind::Timeout, false));
    // The time limit passes while the request waits for the one before it.
    let (first, second) = futures::join!(sent(&requester), sent(&requester));
    assert_eq!((first, second), ((ErrorKind::Timeout, false), (ErrorKind::Timeout, false)));
}

#[tokio::test]
async fn what_does_not_pass_with_time_is_returned_at_once() {
    let publisher = crate::Publisher::new(SocketOptions::default());
    let endpoint = publisher.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let requester = Requester::connecting_to(endpoint, SocketOptions::default());
    let error = requester.request(["x"], Duration::MAX).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongPort);
    assert!(format!("{error:?}").contains("PUB"), "{error:?}");
}

/// An envelope alone is not a request. libzmq's REP does the same.
#[tokio::test]
async fn an_envelope_with_nothing_behind_it_is_no_request() {
    let replier = Replier::new(SocketOptions::default());
    let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let dealer = crate::Dealer::connecting_to(endpoint, SocketOptions::default());
    for frames in [&["", "one"][..], &["", ""], &[""], &["way", ""], &["way", "", "two"], &["", "", ""]] {
        dealer.send(frames.iter().map(|frame| Bytes::from(*frame)).collect::<Multipart>()).await.unwrap();
    }
    let mut requests = Vec::new();
    for _ in 0..4 {
        requests.push(replier.recv().await.unwrap().1);
    }
    let expected = [&["one"][..], &[""], &["two"], &["", ""]];
    assert_eq!(requests, expected.map(|frames| frames.iter().map(|frame| Bytes::from(*frame)).collect()));
}

/// A reply starts with an empty frame (RFC 28). A message without one is not a reply.
#[tokio::test]
async fn a_message_without_an_envelope_is_no_reply() {
    let router = crate::Router::new(SocketOptions::default());
    let endpoint = router.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let requester = Requester::connecting_to(endpoint, SocketOptions::default());
    let answer = async {
        let (peer, request) = router.recv().await.unwrap();
        assert_eq!(request, Multipart::from(["", "what", ""]));
        router.try_send(&peer, ["this"]).unwrap();
        router.try_send(&peer, ["this", "", "way"]).unwrap();
        router.try_send(&peer, ["", "that", ""]).unwrap();
    };
    let (reply, ()) = futures::join!(requester.request(["what", ""], PATIENCE), answer);
    assert_eq!(reply.unwrap(), Multipart::from(["that", ""]));
}

#[tokio::test]
async fn peers_with_the_same_identity_are_both_served() {
    let (replier, _) = pair().await;
    let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let same = || {
        let options = SocketOptions::default().identity("same");
        Requester::connecting_to(endpoint.clone(), options)
    };
    let (one, other) = (same(), same());
    let answers = async {
        let (first, second) = (next(&replier).await, next(&replier).await);
        assert_ne!(first.0.peer(), second.0.peer());
        for (path, request) in [first, second] {
            replier.try_reply(&path, request).unwrap();
        }
    };
    let (a, b, ()) =
        futures::join!(one.request(["one"], PATIENCE), other.request(["other"], PATIENCE), answers);
    assert_eq!((a.unwrap(), b.unwrap()), (Multipart::from(["one"]), Multipart::from(["other"])));
}
