//! RADIO and DISH over UDP, according to RFC 48. They run on the loopback interface, beside sockets of the
//! standard library that send and receive raw bytes.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

use std::net::UdpSocket;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use xmsg_zmq::{
    Dish, DishOptions, DishStatistics, Endpoint, ErrorKind, GroupMessage, HighWaterMark, Radio, RadioOptions,
    RadioStatistics,
};

const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step).await.unwrap_or_else(|_| panic!("{what}: nothing in time"))
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

/// Creates a DISH on a free port that has joined these groups. Returns it with its endpoint.
async fn dish_with(options: DishOptions, groups: &[&str]) -> (Dish, Endpoint) {
    let dish = Dish::new(options);
    for group in groups {
        dish.join(group).unwrap();
    }
    let bound = dish.bind(&endpoint("udp://127.0.0.1:0")).await.unwrap();
    (dish, bound)
}

async fn dish(groups: &[&str]) -> (Dish, Endpoint) {
    dish_with(DishOptions::default(), groups).await
}

async fn radio_to(endpoint: &Endpoint) -> Radio {
    let radio = Radio::new(RadioOptions::default());
    radio.connect(endpoint).await.unwrap();
    radio
}

async fn next(dish: &Dish) -> GroupMessage {
    within("a message", dish.recv()).await.expect("the socket is open")
}

async fn next_text(dish: &Dish) -> (String, String) {
    let message = next(dish).await;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&message.group), text(&message.body))
}

fn pair(group: &str, body: &str) -> (String, String) {
    (group.to_owned(), body.to_owned())
}

/// Waits until the statistics of the only endpoint are as wanted, and returns them.
async fn counts(dish: &Dish, wanted: impl Fn(&DishStatistics) -> bool) -> DishStatistics {
    within("the counts", async {
        loop {
            let now = dish.statistics().pop().unwrap();
            if wanted(&now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
}

async fn sent(radio: &Radio, wanted: impl Fn(&RadioStatistics) -> bool) -> RadioStatistics {
    within("the counts", async {
        loop {
            let now = radio.statistics().remove(0);
            if wanted(&now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_dish_receives_the_groups_that_it_has_joined_and_no_others() {
    let (dish, endpoint) = dish(&["TV", ""]).await;
    let radio = radio_to(&endpoint).await;
    // Groups match exactly: neither a longer nor a shorter group is the same.
    for (group, body) in [("TVs", "a"), ("T", "b"), ("TV", "c"), ("tv", "d"), ("", "e"), ("TV", "")] {
        assert_eq!(radio.send(group, body).unwrap(), 1);
    }
    assert_eq!(next_text(&dish).await, pair("TV", "c"));
    assert_eq!(next_text(&dish).await, pair("", "e"));
    assert_eq!(next_text(&dish).await, pair("TV", ""));
    let now = counts(&dish, |now| now.unwanted == 3).await;
    assert_eq!((now.received, now.queued, now.dropped, now.malformed), (3, 0, 0, 0));
}

#[tokio::test]
async fn groups_are_joined_and_left_at_any_time() {
    let (dish, endpoint) = dish(&["Movies"]).await;
    let radio = radio_to(&endpoint).await;
    radio.send("TV", "1").unwrap();
    radio.send("Movies", "2").unwrap();
    assert_eq!(next_text(&dish).await, pair("Movies", "2"));
    dish.join("TV").unwrap();
    radio.send("TV", "3").unwrap();
    assert_eq!(next_text(&dish).await, pair("TV", "3"));
    dish.leave("TV").unwrap();
    radio.send("TV", "4").unwrap();
    radio.send("Movies", "5").unwrap();
    assert_eq!(next_text(&dish).await, pair("Movies", "5"));
}

#[test]
fn what_is_no_group_is_an_error_and_so_is_joining_twice() {
    let (dish, radio) = (Dish::new(DishOptions::default()), Radio::new(RadioOptions::default()));
    let longest = "g".repeat(255);
    dish.join(&longest).unwrap();
    radio.send(&longest, "").unwrap();
    for (error, why) in [
        (dish.join("g".repeat(256)).unwrap_err(), "at most 255 bytes"),
        (dish.join("a\0b").unwrap_err(), "zero byte"),
        (radio.send("g".repeat(256), "x").unwrap_err(), "at most 255 bytes"),
        (radio.send("a\0b", "x").unwrap_err(), "zero byte"),
        (dish.join(&longest).unwrap_err(), "already"),
        (dish.leave("never").unwrap_err(), "has not joined"),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidTopic);
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn the_bytes_of_a_datagram_are_those_of_libzmq() {
    let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let radio = radio_to(&endpoint(&format!("udp://127.0.0.1:{port}"))).await;
    radio.send("TV", "Friends").unwrap();
    sent(&radio, |now| now.sent == 1).await;
    let mut bytes = [0; 100];
    let len = listener.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"\x02TVFriends");

    let (dish, Endpoint::Udp { port, .. }) = dish(&["TV"]).await else { unreachable!() };
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    // The first four are not messages: an empty datagram, two truncated groups, and a group with a zero byte.
    for bytes in [&b""[..], b"\x05TV", b"\xff", b"\x02T\0x", b"\x02TVFriends"] {
        sender.send_to(bytes, ("127.0.0.1", port)).unwrap();
    }
    let message = next(&dish).await;
    assert_eq!((&message.group[..], &message.body[..]), (&b"TV"[..], &b"Friends"[..]));
    assert_eq!(message.from, sender.local_addr().unwrap());
    assert_eq!(counts(&dish, |now| now.malformed == 4).await.received, 1);
}

#[tokio::test]
async fn messages_come_whole_and_unchanged_up_to_the_largest_datagram() {
    let (dish, endpoint) = dish(&["g"]).await;
    let radio = Radio::new(RadioOptions::default().max_datagram(65_507));
    radio.connect(&endpoint).await.unwrap();
    for len in [0_u32, 1, 8_192, 65_505] {
        let body: Vec<u8> = (0..len).map(|index| index as u8).collect();
        radio.send("g", &body).unwrap();
        assert_eq!(next(&dish).await.body, body, "{len}");
    }
    let error = radio.send("g", vec![0; 65_506]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    // A message that libzmq would truncate is refused, unless the program sets another limit.
    let error = radio_to(&endpoint).await.send("g", vec![0; 8_191]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("8192") && error.to_string().contains("max_datagram"), "{error}");
}

/// On one thread, nothing is sent before the program awaits something. So the queue fills, and sending does
/// not wait.
#[tokio::test(flavor = "current_thread")]
async fn a_radio_never_waits_and_counts_what_has_no_room() {
    let (dish, endpoint) = dish(&["g"]).await;
    let mark = HighWaterMark { messages: 3, bytes: usize::MAX };
    let radio = Radio::new(RadioOptions::default().high_water_mark(mark));
    radio.connect(&endpoint).await.unwrap();
    let accepted: usize = (0..10).map(|number: u8| radio.send("g", [number]).unwrap()).sum();
    assert_eq!(accepted, 3);
    let now = radio.statistics().remove(0);
    assert_eq!((now.endpoint.clone(), now.queued, now.dropped, now.sent), (endpoint, 3, 7, 0));
    for number in 0..3 {
        assert_eq!(next(&dish).await.body, [number][..]);
    }
    assert_eq!(radio.close(PATIENCE).await, 0);
}

#[tokio::test]
async fn a_dish_counts_what_comes_to_a_full_queue() {
    let mark = HighWaterMark { messages: 2, bytes: usize::MAX };
    let (dish, endpoint) = dish_with(DishOptions::default().high_water_mark(mark), &["g"]).await;
    let radio = radio_to(&endpoint).await;
    for number in 0..5_u8 {
        radio.send("g", [number]).unwrap();
    }
    let now = counts(&dish, |now| now.received + now.dropped == 5).await;
    assert_eq!((now.received, now.queued, now.dropped), (2, 2, 3));
    assert_eq!((next(&dish).await.body[0], next(&dish).await.body[0]), (0, 1));
    assert_eq!(dish.try_recv().unwrap(), None);
    // There is room again.
    radio.send("g", "x").unwrap();
    assert_eq!(next(&dish).await.body, "x");
}

#[tokio::test]
async fn a_radio_sends_to_every_endpoint_until_it_is_disconnected() {
    let ((one, first), (two, second)) = (dish(&["g"]).await, dish(&["g"]).await);
    let radio = radio_to(&first).await;
    radio.connect(&second).await.unwrap();
    assert_eq!(radio.send("g", "both").unwrap(), 2);
    assert_eq!((next(&one).await.body, next(&two).await.body), ("both".into(), "both".into()));
    assert!(radio.disconnect(&first) && !radio.disconnect(&first));
    assert_eq!(radio.send("g", "one").unwrap(), 1);
    assert_eq!(next(&two).await.body, "one");
    assert_eq!(radio.statistics().len(), 1);
}

#[tokio::test]
async fn endpoints_of_a_dish_have_their_turns() {
    let (dish, busy) = dish(&["g"]).await;
    let quiet = dish.bind(&endpoint("udp://127.0.0.1:0")).await.unwrap();
    let (many, few) = (radio_to(&busy).await, radio_to(&quiet).await);
    for _ in 0..100 {
        many.send("g", "many").unwrap();
    }
    few.send("g", "few").unwrap();
    within("all of them", async {
        while dish.statistics().iter().map(|now| now.queued).sum::<usize>() < 101 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let first_two = [next(&dish).await.body, next(&dish).await.body];
    assert!(first_two.iter().any(|body| body == "few"), "{first_two:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_are_used_by_many_tasks_at_once() {
    let (dish, endpoint) = dish(&["g"]).await;
    let radio = radio_to(&endpoint).await;
    let receivers: Vec<_> = (0..4)
        .map(|_| {
            let dish = dish.clone();
            tokio::spawn(dish.into_stream().map(|message| message.body[0]).collect::<Vec<u8>>())
        })
        .collect();
    for sender in (0..4_u8)
        .map(|task| {
            let radio = radio.clone();
            tokio::spawn(async move {
                for number in 0..25 {
                    assert_eq!(radio.send("g", [task * 25 + number]).unwrap(), 1);
                }
            })
        })
        .collect::<Vec<_>>()
    {
        sender.await.unwrap();
    }
    counts(&dish, |now| now.received == 100).await;
    dish.close().await;
    let mut all = Vec::new();
    for receiver in receivers {
        all.extend(within("the end of the stream", receiver).await.unwrap());
    }
    all.sort_unstable();
    assert_eq!(all, (0..100).collect::<Vec<u8>>(), "each message goes to one of them");
}

#[tokio::test]
async fn what_is_closed_says_so_and_frees_its_ports() {
    let (dish, bound) = dish(&["g"]).await;
    let radio = radio_to(&bound).await;
    radio.send("g", "before").unwrap();
    counts(&dish, |now| now.queued == 1).await;
    assert_eq!(radio.close(PATIENCE).await, 0);
    assert_eq!(radio.send("g", "x").unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(radio.connect(&bound).await.unwrap_err().kind(), ErrorKind::Closed);

    let error = Dish::new(DishOptions::default()).bind(&bound).await.unwrap_err();
    assert!(error.to_string().contains("in use"), "one endpoint is one socket's: {error}");
    let other = dish.bind(&endpoint("udp://127.0.0.1:0")).await.unwrap();
    assert!(dish.unbind(&other).await && !dish.unbind(&other).await);
    let waiting = dish.clone();
    dish.close().await;
    for free in [&bound, &other] {
        Dish::new(DishOptions::default()).bind(free).await.unwrap();
    }
    // What had arrived can still be received.
    assert_eq!(next(&waiting).await.body, "before");
    assert_eq!(waiting.recv().await, None);
    assert_eq!(waiting.try_recv().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(waiting.bind(&bound).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn dropping_a_socket_sends_what_it_accepted() {
    let (dish, endpoint) = dish(&["g"]).await;
    let radio = radio_to(&endpoint).await;
    for number in 0..10_u8 {
        radio.send("g", [number]).unwrap();
    }
    drop(radio);
    for number in 0..10 {
        assert_eq!(next(&dish).await.body, [number][..]);
    }
    assert!(dish.recv().now_or_never().is_none());
}

/// If no socket is bound there, the other host reports that. What is sent later arrives at a socket that is
/// bound by then.
#[tokio::test]
async fn nobody_who_listens_is_counted_and_no_error() {
    let (dish, endpoint) = dish(&["g"]).await;
    dish.close().await;
    let radio = radio_to(&endpoint).await;
    radio.send("g", "into nothing").unwrap();
    sent(&radio, |now| now.sent == 1).await;
    let statistics = within("word that nobody listens", async {
        loop {
            radio.send("g", "into nothing").unwrap();
            let now = radio.statistics().remove(0);
            if now.refused > 0 {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!((statistics.failed, statistics.last_error), (0, None));
    let dish = Dish::new(DishOptions::default());
    dish.join("g").unwrap();
    dish.bind(&endpoint).await.unwrap();
    sent(&radio, |now| now.queued == 0).await;
    radio.send("g", "heard").unwrap();
    while next(&dish).await.body != "heard" {}
}

#[tokio::test]
async fn endpoints_that_make_no_sense_are_errors_that_say_why() {
    let (dish, radio) = (Dish::new(DishOptions::default()), Radio::new(RadioOptions::default()));
    for text in ["tcp://127.0.0.1:5555", "ipc://@x", "inproc://x"] {
        let (bind, connect) = (
            dish.bind(&endpoint(text)).await.unwrap_err(),
            radio.connect(&endpoint(text)).await.unwrap_err(),
        );
        for error in [bind, connect] {
            assert_eq!(error.kind(), ErrorKind::InvalidAddress);
            assert!(error.to_string().contains("udp://"), "{error}");
        }
    }
    let error = dish.bind(&endpoint("udp://lo;127.0.0.1:0")).await.unwrap_err();
    assert!(error.with_causes().to_string().contains("multicast"), "{error:?}");
    let error = dish.bind(&endpoint("udp://no-such-interface;239.192.0.1:0")).await.unwrap_err();
    assert!(error.with_causes().to_string().contains("no interface of this name"), "{error:?}");
    let error = xmsg_zmq::Pull::new(xmsg_zmq::SocketOptions::default()).bind(&endpoint("udp://*:0")).await;
    assert!(error.unwrap_err().to_string().contains("RADIO and DISH"));
}

/// The sockets only receive, on the loopback interface. Nothing is sent to the group, and no other network
/// learns of it.
#[tokio::test]
async fn several_sockets_listen_to_one_multicast_address() {
    let group = Dish::new(DishOptions::default());
    let Endpoint::Udp { interface, host, port } =
        group.bind(&endpoint("udp://lo;239.192.7.1:0")).await.unwrap()
    else {
        unreachable!()
    };
    assert_eq!((interface.as_deref(), host.as_str()), (Some("lo"), "239.192.7.1"));
    let again = format!("udp://127.0.0.1;239.192.7.1:{port}");
    Dish::new(DishOptions::default()).bind(&endpoint(&again)).await.unwrap();
    let radio = Radio::new(RadioOptions::default().multicast_hops(4).multicast_loop(false));
    radio.connect(&endpoint(&again)).await.unwrap();
    assert_eq!(radio.statistics().len(), 1);
}
