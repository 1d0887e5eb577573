//! Proxies whose upstreams close a loop, and those that are reached over two ways.

use std::time::Duration;

use xmsg_proxy::{Proxy, Upstream, UpstreamState};
use xmsg_tests::peer::Peer;
use xmsg_tests::raw::Raw;
use xmsg_tests::{PATIENCE, proxy, until, within};
use xmsg_zmq::{Endpoint, Publisher, SocketOptions, Subscriber};

fn upstream(proxy: &Proxy) -> Upstream {
    proxy.address().to_string().parse().unwrap()
}

fn states(proxies: &[&Proxy]) -> Vec<UpstreamState> {
    proxies.iter().flat_map(|proxy| proxy.upstreams()).map(|link| link.state).collect()
}

/// How many links are at work, and how many close a loop.
fn at_work(proxies: &[&Proxy]) -> (usize, usize) {
    let states = states(proxies);
    let count = |wanted| states.iter().filter(|state| **state == wanted).count();
    (count(UpstreamState::Connected), count(UpstreamState::Loop))
}

/// All links of a loop but one come to work, and that one is known to close the loop.
async fn settled(proxies: &[&Proxy]) {
    until("all links but one", || at_work(proxies) == (proxies.len() - 1, 1)).await;
}

/// Which of these proxies have that one as an upstream that is at work.
fn below(proxies: &[&Proxy], number: usize) -> Vec<usize> {
    let address = upstream(proxies[number]).to_string();
    let has = |proxy: &Proxy| {
        let links = proxy.upstreams();
        links.iter().any(|link| link.address == address && link.state == UpstreamState::Connected)
    };
    (0..proxies.len()).filter(|other| has(proxies[*other])).collect()
}

/// How many have subscribed to this prefix. A forwarder subscribes to the control topic, too, which does not
/// count.
fn subscribers_to(proxy: &Proxy, prefix: &[u8]) -> usize {
    let mut subscribers = 0;
    proxy.monitor().prefixes(|found, count| {
        if found == prefix {
            subscribers = count;
        }
    });
    subscribers
}

/// Whoever subscribes, wherever: a message reaches those below once, and goes to nobody for ever.
async fn nothing_goes_round(proxies: &[&Proxy]) {
    let mut subscribers = Vec::new();
    for proxy in proxies {
        let subscriber = Subscriber::new(SocketOptions::default());
        subscriber.subscribe("a").unwrap();
        subscriber.connect(Endpoint::tcp("127.0.0.1", proxy.address().subscribe_port()));
        subscribers.push(subscriber);
    }
    for (number, proxy) in proxies.iter().enumerate() {
        let wanted = 1 + below(proxies, number).len();
        until("all have subscribed", || subscribers_to(proxy, b"a") == wanted).await;
    }
    let before: Vec<u64> = proxies.iter().map(|proxy| proxy.totals().received.messages).collect();
    let mut expected = vec![0; proxies.len()];
    for number in 0..proxies.len() {
        let publisher = Publisher::new(SocketOptions::default());
        publisher.connect(Endpoint::tcp("127.0.0.1", proxies[number].address().publish_port()));
        within("a subscription", publisher.wait_for_subscriber(b"a")).await.unwrap();
        publisher.publish(["a".to_owned(), number.to_string()]).await.unwrap();
        let mut reached = vec![number];
        while let Some(next) = reached.pop() {
            let received = within("it gets here", subscribers[next].recv()).await.unwrap();
            assert_eq!(received.frames()[1], number.to_string(), "at {next}");
            expected[next] += 1;
            reached.extend(below(proxies, next));
        }
        assert_eq!(publisher.close(PATIENCE).await, 0);
    }
    for subscriber in &mut subscribers {
        let more = tokio::time::timeout(Duration::from_millis(100), subscriber.recv()).await;
        assert!(more.is_err(), "{more:?} came twice");
    }
    for ((proxy, before), expected) in proxies.iter().zip(before).zip(expected) {
        assert_eq!(proxy.totals().received.messages - before, expected, "each message once");
    }
}

async fn proxies<const COUNT: usize>() -> [Proxy; COUNT] {
    let mut all = Vec::new();
    for _ in 0..COUNT {
        all.push(proxy().start().await.unwrap());
    }
    all.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_no_upstream_of_itself() {
    let [own] = proxies().await;
    own.set_upstreams(&[upstream(&own)]).unwrap();
    settled(&[&own]).await;
    nothing_goes_round(&[&own]).await;
    assert!(own.upstreams()[0].loops >= 1);
    assert!(own.upstreams()[0].error.as_ref().unwrap().contains("this proxy itself"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_name_each_other_the_first_stays() {
    let [a, b] = proxies().await;
    for (first, second) in [(&a, &b), (&b, &a)] {
        first.set_upstreams(&[upstream(second)]).unwrap();
        until("the first", || states(&[first]) == [UpstreamState::Connected]).await;
        second.set_upstreams(&[upstream(first)]).unwrap();
        settled(&[first, second]).await;
        assert_eq!(states(&[first, second]), [UpstreamState::Connected, UpstreamState::Loop]);
        nothing_goes_round(&[&a, &b]).await;
        assert_eq!(states(&[first, second]), [UpstreamState::Connected, UpstreamState::Loop]);
        first.set_upstreams(&[]).unwrap();
        second.set_upstreams(&[]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_name_each_other_at_once_one_stays() {
    for _ in 0..3 {
        let [a, b] = proxies().await;
        a.set_upstreams(&[upstream(&b)]).unwrap();
        b.set_upstreams(&[upstream(&a)]).unwrap();
        settled(&[&a, &b]).await;
        nothing_goes_round(&[&a, &b]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_of_three_is_found_in_whatever_order_it_is_closed() {
    for order in [[0, 1, 2], [2, 1, 0]] {
        let all: [Proxy; 3] = proxies().await;
        for number in order {
            all[number].set_upstreams(&[upstream(&all[(number + 1) % 3])]).unwrap();
            if number != order[2] {
                until("it is at work", || states(&[&all[number]]) == [UpstreamState::Connected]).await;
            }
        }
        let all = [&all[0], &all[1], &all[2]];
        settled(&all).await;
        assert_eq!(states(&[all[order[2]]]), [UpstreamState::Loop], "the one that came last");
        nothing_goes_round(&all).await;
    }
    let all: [Proxy; 3] = proxies().await;
    for number in 0..3 {
        all[number].set_upstreams(&[upstream(&all[(number + 1) % 3])]).unwrap();
    }
    let all = [&all[0], &all[1], &all[2]];
    settled(&all).await;
    nothing_goes_round(&all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_comes_to_work_when_the_loop_is_gone() {
    let [a, b] = proxies().await;
    a.set_upstreams(&[upstream(&b)]).unwrap();
    b.set_upstreams(&[upstream(&a)]).unwrap();
    settled(&[&a, &b]).await;
    let (first, second) = if states(&[&a]) == [UpstreamState::Connected] { (&a, &b) } else { (&b, &a) };
    first.set_upstreams(&[]).unwrap();
    until("the other one", || states(&[second]) == [UpstreamState::Connected]).await;
    assert_eq!(second.upstreams()[0].error, None);
}

/// It does not know what a token is, and passes it on as any subscription.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_through_libzmqs_forwarder_is_found() {
    let [own] = proxies().await;
    let port = own.address().subscribe_port().to_string();
    let mut forwarder = Peer::python("forwarder.py", &["--subscribe-at", &port]);
    let ports = forwarder.expect("listening").await;
    own.set_upstreams(&[format!("tcp://127.0.0.1:{}", ports[1]).parse().unwrap()]).unwrap();
    until("the loop", || states(&[&own]) == [UpstreamState::Loop]).await;
    nothing_goes_round(&[&own]).await;
    forwarder.finish().await;
}

/// One that connects to a publishers' port passes tokens on, too, because its socket tells that it forwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_through_a_forwarder_that_connects_as_a_publisher_is_found() {
    let [above, below] = proxies().await;
    let (to, from) =
        (above.address().publish_port().to_string(), below.address().subscribe_port().to_string());
    let mut forwarder = Peer::python("forwarder.py", &["--subscribe-at", &from, "--publish-at", &to]);
    forwarder.expect("listening").await;
    until("it is there", || above.publishers().len() == 1 && below.subscribers().len() == 1).await;
    below.set_upstreams(&[upstream(&above)]).unwrap();
    until("the loop", || states(&[&below]) == [UpstreamState::Loop]).await;
    nothing_goes_round(&[&below]).await;
    forwarder.finish().await;
}

/// The link was at work before there was a loop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_that_is_closed_later_ends_a_link_that_is_at_work() {
    let [above, below] = proxies().await;
    below.set_upstreams(&[upstream(&above)]).unwrap();
    until("the link", || states(&[&below]) == [UpstreamState::Connected]).await;
    let (to, from) =
        (above.address().publish_port().to_string(), below.address().subscribe_port().to_string());
    let mut forwarder = Peer::python("forwarder.py", &["--subscribe-at", &from, "--publish-at", &to]);
    forwarder.expect("listening").await;
    until("the loop", || states(&[&below]) == [UpstreamState::Loop]).await;
    forwarder.finish().await;
    until("it is gone", || states(&[&below]) == [UpstreamState::Connected]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ways_to_the_same_proxy_are_seen_where_they_meet() {
    let [top, left, right, bottom] = proxies().await;
    left.set_upstreams(&[upstream(&top)]).unwrap();
    right.set_upstreams(&[upstream(&top)]).unwrap();
    bottom.set_upstreams(&[upstream(&left), upstream(&right)]).unwrap();
    until("both ways", || top.monitor().double_paths() == 1).await;
    assert_eq!(
        (left.monitor().double_paths(), right.monitor().double_paths(), bottom.monitor().double_paths()),
        (0, 0, 0)
    );
    bottom.set_upstreams(&[upstream(&left)]).unwrap();
    until("one way", || top.monitor().double_paths() == 0).await;
}

/// Tokens are no subscriptions: they are neither shown nor counted, match nothing, and come from whoever may
/// do nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_no_subscription_and_there_may_be_so_many() {
    let [own] = proxies().await;
    let token = |link: usize| format!("xmsg:loop:{:032x}:{link:08x}:00000000", 77);
    let mut raw = Raw::handshake(own.address().subscribe_port(), "SUB").await;
    raw.send_message(&[format!("\x01{}", token(0))]).await;
    raw.send_message(&["\x01b"]).await;
    until("it is subscribed", || own.subscriptions() == 1).await;
    own.monitor().prefixes(|prefix, _| assert_eq!(prefix, b"b"));
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(Endpoint::tcp("127.0.0.1", own.address().publish_port()));
    within("it wants b", publisher.wait_for_subscriber(b"b")).await.unwrap();
    publisher.publish([token(0), "smuggled".to_owned()]).await.unwrap();
    publisher.publish(["b", "data"]).await.unwrap();
    let (_, name) = raw.next_frame().await.unwrap();
    assert_eq!(name, "b", "nothing is delivered to a token");
    assert_eq!(own.totals().unmatched, 1);
    raw.next_frame().await.unwrap();
    for link in 1..=1024 {
        raw.send_message(&[format!("\x01{}", token(link))]).await;
    }
    // One more than there are places for: it may come from others behind this peer, which stays connected.
    publisher.publish(["b", "more"]).await.unwrap();
    let (_, name) = raw.next_frame().await.unwrap();
    assert_eq!(name, "b");
}

/// Somebody makes up more tokens than there are places, at each of the proxies: those that close a loop are
/// passed on all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_is_found_although_somebody_makes_tokens_up() {
    let all: [Proxy; 3] = proxies().await;
    let mut hostile = Vec::new();
    for proxy in &all {
        for peer in 0..2 {
            let mut raw = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
            for number in 0..1024 {
                let token = format!("xmsg:loop:{number:032x}:{peer:08x}:00000000");
                raw.send_message(&[format!("\x01{token}")]).await;
            }
            raw.is_read().await;
            hostile.push(raw);
        }
    }
    for number in 0..3 {
        all[number].set_upstreams(&[upstream(&all[(number + 1) % 3])]).unwrap();
        if number < 2 {
            until("it is at work", || states(&[&all[number]]) == [UpstreamState::Connected]).await;
        }
    }
    settled(&[&all[0], &all[1], &all[2]]).await;
}
