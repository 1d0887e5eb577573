//! Tests of the registrar: exact bytes, hostile peers, many clients, peers of other implementations, and
//! restarts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::registration::{Action, OwnerType, Query, Registration, Reply, Request};
use xmsg_core::{ErrorKind, ProxyAddress, RegistrarAddress, Topic};
use xmsg_proxy::registrar::journal::Journal;
use xmsg_proxy::registrar::{Config, Registrar};
use xmsg_tests::peer::Peer;
use xmsg_tests::raw::Raw;
use xmsg_tests::{PATIENCE, start_tracing, within};
use xmsg_zmq::{Dealer, Endpoint, Multipart, Requester, SocketOptions};

/// The registration of the publisher `bass` of `rock:metal:x` at 10.2.9.1:7771, as Google's protobuf encodes
/// it.
const PUBLISHER: &[u8] =
    b"\x0a\x04bass\x1a\x0810.2.9.1\x25\x5b\x1e\0\0\x2a\x04rock\x32\x05metal\x3a\x01x\x40\x01";
/// The registration of the subscriber `bass` of `rock:metal:x` at 10.2.9.1:7771, with a description.
const SUBSCRIBER: &[u8] =
    b"\x0a\x04bass\x12\x05plays\x1a\x0810.2.9.1\x25\x5b\x1e\0\0\x2a\x04rock\x32\x05metal\x3a\x01x\x40\x02";
/// The query for all publishers below `rock:metal`.
const QUERY: &[u8] =
    b"\x0a\x09undefined\x1a\x09undefined\x25\0\0\0\0\x2a\x04rock\x32\x05metal\x3a\x01*\x40\x01";

fn registration(owner: OwnerType, name: &str, topic: &str) -> Registration {
    let proxy = ProxyAddress::new("10.2.9.1", 7771).unwrap();
    Registration::new(owner, name, &topic.parse().unwrap(), &proxy)
}

fn client(address: &RegistrarAddress) -> xmsg_core::Registrar {
    xmsg_core::Registrar::builder(address.clone())
        .registration_timeout(PATIENCE)
        .discovery_timeout(PATIENCE)
        .renewal_interval(None)
        .build()
        .unwrap()
}

async fn start() -> (Registrar, xmsg_core::Registrar) {
    start_tracing();
    let registrar = Registrar::bind("127.0.0.1:0").start().await.unwrap();
    let client = client(registrar.address());
    (registrar, client)
}

fn requester(address: &RegistrarAddress) -> Requester {
    Requester::connecting_to(Endpoint::tcp(address.host(), address.port()), SocketOptions::default())
}

async fn ask(requester: &Requester, frames: &[&[u8]]) -> Vec<Bytes> {
    let message: Multipart = frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
    requester.request(message, PATIENCE).await.unwrap().frames().to_vec()
}

fn names(found: Vec<Registration>) -> Vec<String> {
    let mut names: Vec<_> = found.into_iter().map(|registration| registration.name).collect();
    names.sort();
    names
}

#[test]
fn registrations_requests_and_replies_have_the_bytes_of_the_contract() {
    let publisher = registration(OwnerType::Publisher, "bass", "rock:metal:x");
    assert_eq!(publisher.encode(), PUBLISHER);
    let subscriber = registration(OwnerType::Subscriber, "bass", "rock:metal:x").with_description("plays");
    assert_eq!(subscriber.encode(), SUBSCRIBER);
    assert_eq!(Registration::decode(&Bytes::from_static(SUBSCRIBER)).unwrap(), subscriber);

    let frames = |request: Request| request.frames().map(|frame| frame.to_vec());
    assert_eq!(
        frames(Request::register("me", publisher.clone())),
        [&b"registerPublisher"[..], b"me", PUBLISHER]
    );
    assert_eq!(
        frames(Request::remove("me", subscriber)),
        [&b"removeSubscriberRegistration"[..], b"me", SUBSCRIBER]
    );
    assert_eq!(frames(Request::remove_all("me", "h")), [&b"removeAllRegistration"[..], b"me", b"h"]);
    let query = Query::topic(OwnerType::Publisher, &Topic::new("rock", "metal").unwrap());
    assert_eq!(frames(Request::discover("me", Action::Find, &query)), [&b"findPublisher"[..], b"me", QUERY]);
    let reply = Reply {
        action: "findPublisher".into(),
        sender: "10.2.9.1:registrar".into(),
        outcome: Ok(vec![Bytes::from_static(PUBLISHER)]),
    };
    assert_eq!(reply.into_frames(), [&b"findPublisher"[..], b"10.2.9.1:registrar", b"success", PUBLISHER]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_action_does_what_the_table_says() {
    use OwnerType::{Publisher, Subscriber};
    let (_registrar, client) = start().await;
    for (name, topic) in
        [("a", "M"), ("b", "M:s"), ("c", "M:s:t"), ("d", "M:s2"), ("e", "N:s:t"), ("f", "M2")]
    {
        for owner in OwnerType::ALL {
            client.register(&registration(owner, name, topic)).await.unwrap();
            client.register(&registration(owner, name, topic)).await.unwrap();
        }
    }
    let query = |owner, topic: &str| Query::topic(owner, &topic.parse().unwrap());
    assert_eq!(names(client.find(&query(Publisher, "M:s")).await.unwrap()), ["b", "c", "d"]);
    assert_eq!(names(client.find(&query(Publisher, "M")).await.unwrap()), ["a", "b", "c", "d"]);
    assert_eq!(names(client.find(&query(Subscriber, "M:s2")).await.unwrap()), ["a", "b", "d"]);
    assert_eq!(names(client.exact(&query(Publisher, "M:s")).await.unwrap()), ["b"]);
    let any_t = Query::parts(Subscriber, "*", "*", "t").host("10.2.9.1").port(7771);
    assert_eq!(names(client.filter(&any_t).await.unwrap()), ["c", "e"]);
    assert!(client.filter(&any_t.port(7772)).await.unwrap().is_empty());
    assert_eq!(client.all(Publisher).await.unwrap().len(), 6);

    // The port does not matter here, but the host does.
    let mut elsewhere = registration(Publisher, "b", "M:s");
    elsewhere.host = "other".into();
    client.deregister(&elsewhere).await.unwrap();
    assert_eq!(client.all(Publisher).await.unwrap().len(), 6);
    let mut same = registration(Publisher, "b", "M:s");
    same.port = 1;
    client.deregister(&same).await.unwrap();
    assert_eq!(names(client.exact(&query(Publisher, "M:s")).await.unwrap()), [""; 0]);
    assert_eq!(names(client.exact(&query(Subscriber, "M:s")).await.unwrap()), ["b"]);
    client.remove_all("10.2.9.1").await.unwrap();
    assert!(client.all(Publisher).await.unwrap().is_empty());
    assert!(client.all(Subscriber).await.unwrap().is_empty());

    let any = client.find(&Query::any(Publisher)).await.unwrap_err();
    assert_eq!(any.kind(), ErrorKind::Remote);
    assert!(any.to_string().contains("domain"), "{any}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_answered_with_an_error_and_the_service_goes_on() {
    let (registrar, client) = start().await;
    let requester = requester(registrar.address());
    let sender = &b"127.0.0.1:registrar"[..];
    let format = &b"invalid registrar server request format"[..];
    for frames in [&[&b"x"[..]][..], &[b"registerPublisher", b"me"], &[b"allPublisher", b"me", b"", b""]] {
        assert_eq!(ask(&requester, frames).await, [b"undefined", sender, format]);
    }
    let many = vec![&b"x"[..]; 1000];
    assert_eq!(ask(&requester, &many).await, [b"undefined", sender, format]);
    assert_eq!(ask(&requester, &[b"", b"", b""]).await, [b"", sender, b"unknown registration request"]);
    let ten_megabytes = vec![7; 10 << 20];
    let star = [&b"\x0a\x01n\x1a\x01h\x25\x01\0\0\0\x2a\x01*"[..]].concat();
    let cases: [(&[u8], &[u8], &str); 7] = [
        (b"registerPublisher", b"", "name"),
        (b"registerPublisher", b"\xff\xff\xff\xff", "protobuf"),
        (b"findSubscriber", b"\x0a\x01", "protobuf"),
        (b"removeAllRegistration", b"\xff", "UTF-8"),
        (b"registerPublisher", &star, "domain"),
        (b"registerPublisher", &ten_megabytes, "too long"),
        (b"allPublisher", &ten_megabytes, "too long"),
    ];
    for (action, data, says) in cases {
        let reply = ask(&requester, &[action, b"me", data]).await;
        assert_eq!((reply.len(), &reply[0][..]), (3, action));
        let status = String::from_utf8(reply[2].to_vec()).unwrap();
        assert!(status.contains(says), "{status}");
    }
    let long = vec![b'a'; 100 << 10];
    assert_eq!(
        ask(&requester, &[&long, &long, &long]).await[2],
        "the request is too long: no frame may have more than 4096 bytes"
    );

    // A message that is not a request gets no reply, and peers that violate the protocol are disconnected.
    let port = registrar.address().port();
    let mut raw = Raw::handshake(port, "REQ").await;
    raw.send_message(&[b"no envelope"]).await;
    raw.send_message(&[&b""[..], b"allPublisher", b"me", b""]).await;
    assert_eq!(raw.next_frame().await.unwrap().1, "");
    raw.send(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").await;
    raw.closed().await;
    let mut greedy = Raw::handshake(port, "REQ").await;
    greedy.send(b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff").await;
    greedy.closed().await;

    client.register(&registration(OwnerType::Publisher, "n", "a:b")).await.unwrap();
    assert_eq!(registrar.counts().publishers, 1);
    within("the end", registrar.stop(PATIENCE)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_are_served_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for snapshot in [None, Some(folder.path().join("snapshot"))] {
        let mut builder = Registrar::bind("127.0.0.1:0");
        if let Some(path) = &snapshot {
            builder = builder.snapshot(path);
        }
        let registrar = Arc::new(builder.start().await.unwrap());
        let clients = (0..200).map(|number| {
            let registrar = registrar.clone();
            tokio::spawn(async move {
                let client = client(registrar.address());
                let name = format!("n{number}");
                for topic in ["a:b", "a:c"] {
                    let mine = registration(OwnerType::Subscriber, &name, topic);
                    client.register(&mine).await.unwrap();
                    let query = Query::topic(OwnerType::Subscriber, &topic.parse().unwrap());
                    assert!(client.exact(&query).await.unwrap().contains(&mine));
                }
                client.deregister(&registration(OwnerType::Subscriber, &name, "a:c")).await.unwrap();
            })
        });
        for client in within("all clients", futures::future::join_all(clients)).await {
            client.unwrap();
        }
        assert_eq!(registrar.counts().subscribers, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_clients_are_served() {
    let (registrar, _) = start().await;
    let port = registrar.address().port().to_string();
    let mut peer =
        Peer::python("registrar_client.py", &["--port", &port, "--clients", "50", "--heartbeat", "50"]);
    peer.expect("registered").await;
    assert_eq!(peer.expect("found").await, ["bass"]);
    peer.expect("refused").await;
    assert_eq!(peer.expect("served").await, ["50"]);
    peer.expect("removed").await;
    peer.finish().await;
}

/// A request that was not answered in time must not get the reply to the next one. Nor may the next one get
/// the late reply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_recovers_from_a_silent_libzmq_registrar() {
    let mut peer = Peer::python("registrar_server.py", &["--silent", "1"]);
    let port: u16 = peer.expect("listening").await[0].parse().unwrap();
    let address = RegistrarAddress::new("127.0.0.1", port).unwrap();
    let impatient = xmsg_core::Registrar::builder(address)
        .registration_timeout(Duration::from_millis(500))
        .discovery_timeout(PATIENCE)
        .renewal_interval(None)
        .build()
        .unwrap();
    let mine = registration(OwnerType::Publisher, "n", "a:b");
    let error = impatient.register(&mine).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unconfirmed, "as it is: it was carried out");
    assert_eq!(impatient.all(OwnerType::Publisher).await.unwrap(), [mine]);
    assert_eq!(peer.expect("request").await, ["registerPublisher"]);
    assert_eq!(peer.expect("request").await, ["allPublisher"]);
    peer.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_loses_nothing_and_clients_go_on() {
    start_tracing();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let registrar = Registrar::bind("127.0.0.1:0").snapshot(&path).start().await.unwrap();
    let address = registrar.address().clone();
    let client = client(&address);
    for name in ["a", "b", "c"] {
        client.register(&registration(OwnerType::Publisher, name, "x:y")).await.unwrap();
    }
    client.deregister(&registration(OwnerType::Publisher, "b", "x:y")).await.unwrap();
    within("the end", registrar.stop(PATIENCE)).await;

    let again = Registrar::bind(address.to_string()).snapshot(&path).start().await.unwrap();
    assert_eq!(names(client.all(OwnerType::Publisher).await.unwrap()), ["a", "c"]);
    let taken = Registrar::bind("127.0.0.1:0").snapshot(&path).start().await.unwrap_err();
    assert!(taken.to_string().contains("another registrar"), "{taken}");
    within("the end", again.stop(PATIENCE)).await;
}

/// The test runs on one thread, so nothing that was spawned has run when `start` returns.
#[tokio::test]
async fn what_was_read_from_the_snapshot_is_counted_from_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let registrar = Registrar::bind("127.0.0.1:0").snapshot(&path).start().await.unwrap();
    let client = client(registrar.address());
    client.register(&registration(OwnerType::Subscriber, "a", "x:y")).await.unwrap();
    within("the end", registrar.stop(PATIENCE)).await;
    let again = Registrar::bind("127.0.0.1:0").snapshot(&path).start().await.unwrap();
    assert_eq!((again.counts().publishers, again.counts().subscribers), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_renewed_is_forgotten() {
    start_tracing();
    let ttl = Duration::from_millis(500);
    let registrar = Registrar::bind("127.0.0.1:0").ttl(ttl).start().await.unwrap();
    let forgetful = client(registrar.address());
    let renewing = xmsg_core::Registrar::builder(registrar.address().clone())
        .renewal_interval(Some(ttl / 10))
        .build()
        .unwrap();
    forgetful.register(&registration(OwnerType::Publisher, "old", "a:b")).await.unwrap();
    renewing.register(&registration(OwnerType::Publisher, "new", "a:b")).await.unwrap();
    within("the end of the old one", async {
        while registrar.counts().expired == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(names(forgetful.all(OwnerType::Publisher).await.unwrap()), ["new"]);
    renewing.close().await;
    within("the end of the other", async {
        while registrar.counts().expired < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Writes a snapshot with `count` publishers, each with a topic of its own.
fn snapshot_of(path: &std::path::Path, count: usize) {
    let (mut journal, _) = Journal::open(path, drop).unwrap();
    let record = |number| registration(OwnerType::Publisher, "n", &format!("a:s{number}")).encode();
    journal.compact(&[(OwnerType::Publisher, (0..count).map(record).collect())], &mut []).unwrap();
}

/// The test runs on one thread, and a long answer is built between the turns of others.
#[tokio::test]
async fn a_short_answer_passes_a_long_one() {
    const COUNT: usize = 200_000;
    start_tracing();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    snapshot_of(&path, COUNT);
    let registrar = Registrar::bind("127.0.0.1:0").snapshot(&path).start().await.unwrap();
    let port = registrar.address().port();
    let mut greedy = Raw::handshake(port, "REQ").await;
    let mut modest = Raw::handshake(port, "REQ").await;
    let one = registration(OwnerType::Publisher, "n", "a:s1");
    greedy.send_message(&[&b""[..], b"allPublisher", b"me", b""]).await;
    modest.send_message(&[&b""[..], b"exactPublisher", b"me", &one.encode()]).await;
    let mut answer = Vec::new();
    for _ in 0..5 {
        answer.push(modest.next_frame().await.unwrap().1);
    }
    assert_eq!((&answer[3][..], &answer[4]), (&b"success"[..], &one.encode()));
    assert_eq!(registrar.counts().requests, 1, "the long one is not done yet");
    let mut frames = 0;
    within("the long answer", async {
        while greedy.next_frame().await.unwrap().0 & 1 != 0 {
            frames += 1;
        }
    })
    .await;
    assert_eq!(frames, COUNT + 3);
}

/// Requests of a peer while an answer to it is being built are answered after it, in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_gets_its_answers_in_order_and_finds_what_it_changed() {
    const COUNT: usize = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    snapshot_of(&path, COUNT);
    let registrar = Registrar::bind("127.0.0.1:0").snapshot(&path).start().await.unwrap();
    let mut peer = Raw::handshake(registrar.address().port(), "DEALER").await;
    let mine = registration(OwnerType::Publisher, "mine", "b:c").encode();
    let requests: [(&[u8], &[u8], usize); 7] = [
        (b"registerPublisher", &mine, 0),
        (b"exactPublisher", &mine, 1),
        (b"allPublisher", b"", COUNT + 1),
        (b"removePublisherRegistration", &mine, 0),
        (b"registerPublisher", &mine, 0),
        (b"what", b"", 0),
        (b"allPublisher", b"", COUNT + 1),
    ];
    for (action, data, _) in requests {
        peer.send_message(&[&b""[..], action, b"me", data]).await;
    }
    for (action, _, found) in requests {
        let mut frames = Vec::new();
        loop {
            let (flags, body) = peer.next_frame().await.unwrap();
            frames.push(body);
            if flags & 1 == 0 {
                break;
            }
        }
        assert_eq!((&frames[1][..], frames.len() - 4), (action, found));
    }
    // A peer that sends requests again and again without reading the answers has to wait, and others are
    // served.
    for _ in 0..2000 {
        peer.send_message(&[&b""[..], b"allPublisher", b"me", b""]).await;
    }
    let one = registration(OwnerType::Publisher, "n", "a:s1");
    let found =
        client(registrar.address()).exact(&Query::topic(OwnerType::Publisher, &one.topic().unwrap())).await;
    assert_eq!(found.unwrap(), [one]);
    within("the end", registrar.stop(Duration::ZERO)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_are_limited_in_bytes() {
    let config = Config { registration_memory: 8000, ..Config::default() };
    let registrar = Registrar::bind("127.0.0.1:0").config(config).start().await.unwrap();
    let client = client(registrar.address());
    let long = registration(OwnerType::Publisher, "n", "a:b").with_description("d".repeat(3000));
    client.register(&long).await.unwrap();
    let another = registration(OwnerType::Publisher, "m", "a:b").with_description("d".repeat(3000));
    let error = client.register(&another).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(
        error.to_string().contains("8000 bytes") && error.to_string().contains("max_registration_memory"),
        "{error}"
    );
    let counts = registrar.counts();
    assert_eq!((counts.publishers, counts.full, counts.refused), (1, 1, 1));
    assert!((3000..=8000).contains(&counts.memory), "{counts:?}");
    client.register(&registration(OwnerType::Publisher, "small", "a:b")).await.unwrap();
}

#[tokio::test]
async fn a_registrar_on_its_own_thread_is_one_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let start = async |address: &str| {
        let builder = Registrar::bind(address).snapshot(&path).on_its_own_thread();
        builder.start().await
    };
    let registrar = start("127.0.0.1:0").await.unwrap();
    let address = registrar.address().to_string();
    let client = client(registrar.address());
    // The registrar works while this thread is busy.
    let turn = registrar.monitor().runtime().spawn(async {});
    while !turn.is_finished() {
        std::hint::spin_loop();
    }
    client.register(&registration(OwnerType::Publisher, "n", "a:b")).await.unwrap();
    assert_eq!(registrar.counts().publishers, 1);
    assert!(start(&address).await.unwrap_err().to_string().contains("another registrar"));
    within("the end", registrar.stop(PATIENCE)).await;

    let again = start(&address).await.unwrap();
    assert_eq!(names(client.all(OwnerType::Publisher).await.unwrap()), ["n"]);
    drop(again);
    drop(std::net::TcpListener::bind(&address).unwrap());
    assert!(start("nowhere.invalid:1").await.is_err());
}

/// A host has so many registrations that removing them takes a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_others_do_not_wait_until_all_of_a_host_is_removed() {
    const MANY: usize = 200_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    let proxy = ProxyAddress::new("big", 7771).unwrap();
    let frames = (0..MANY).map(|number| {
        let topic = Topic::new("d", format!("{:x}", number / 4)).unwrap();
        Registration::new(OwnerType::Publisher, format!("{number:x}"), &topic, &proxy).encode()
    });
    let (mut journal, _) = Journal::open(&path, drop).unwrap();
    journal.compact(&[(OwnerType::Publisher, frames.collect())], &mut []).unwrap();
    drop(journal);
    let registrar = Registrar::bind("127.0.0.1:0").snapshot(&path).start().await.unwrap();
    assert_eq!(registrar.counts().publishers, MANY as u64);
    let dealer = || {
        let endpoint = Endpoint::tcp("127.0.0.1", registrar.address().port());
        Dealer::connecting_to(endpoint, SocketOptions::default())
    };
    let (removing, other) = (dealer(), dealer());
    for dealer in [&removing, &other] {
        within("a connection", dealer.connected()).await.unwrap();
    }
    removing.send(["", "removeAllRegistration", "me", "big"]).await.unwrap();
    within("the first ones to go", async {
        while registrar.counts().publishers == MANY as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    for number in 0..3 {
        let one = registration(OwnerType::Publisher, "n", &format!("a:{number}"));
        let frames = [Bytes::new(), "registerPublisher".into(), "me".into(), one.encode()];
        other.send(Multipart::from_iter(frames)).await.unwrap();
        let reply = within("a reply", other.recv()).await.unwrap();
        assert!(reply.frames().contains(&Bytes::from("success")), "{reply:?}");
    }
    let left = registrar.counts().publishers;
    assert!(left > 3, "all of the host had to go first");
    // A change of that host waits until the removal is complete.
    let again = Registration::new(OwnerType::Publisher, "n", &Topic::new("d", "s").unwrap(), &proxy);
    let frames = [Bytes::new(), "registerPublisher".into(), "me".into(), again.encode()];
    other.send(Multipart::from_iter(frames)).await.unwrap();
    within("a reply", other.recv()).await.unwrap();
    within("a reply", removing.recv()).await.unwrap();
    assert_eq!(registrar.counts().publishers, 4);
    registrar.stop(PATIENCE).await;
}
