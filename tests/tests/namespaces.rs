//! Tests of hosts that vanish, unreliable links, and proxies that move. They run real processes on two hosts,
//! which are network namespaces.

use std::time::{Duration, Instant};

use xmsg_tests::netns::{Host, LossyLink, Network, PROXY, Process, binaries, wanted};

/// Heartbeats in milliseconds for tests in which they should act quickly.
const FAST: [&str; 2] = ["1000", "1000"];
/// Heartbeats in milliseconds that are much longer than a test.
const NEVER: [&str; 2] = ["600000", "600000"];
/// The documented defaults.
const DEFAULT: [&str; 2] = ["-", "-"];
/// The additional time that a loaded machine may need.
const SLACK: Duration = Duration::from_secs(8);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

async fn proxy(host: &Host, [interval, timeout]: [&str; 2]) -> Process {
    let mut proxy = host.station(&["proxy", &format!("{PROXY}:7771"), interval, timeout]);
    proxy.find(&["listening"]).await;
    proxy
}

/// Starts the daemon itself.
async fn daemon(host: &Host, address: &str) -> Process {
    let program = binaries().join("xmsg-proxy");
    let mut proxy = host.start(program, &["--host", address, "--slow-subscriber", "block"]);
    proxy.expect("xmsg-proxy").await;
    proxy
}

async fn subscriber(host: &Host, proxy: &str, [interval, timeout]: [&str; 2]) -> Process {
    let mut subscriber = host.station(&["sub", &format!("{proxy}:7771"), interval, timeout, "65536"]);
    subscriber.find(&["subscribed"]).await;
    subscriber
}

async fn publisher(host: &Host, proxy: &str, [interval, timeout]: [&str; 2]) -> Process {
    let mut publisher = host.station(&["pub", &format!("{proxy}:7771"), interval, timeout]);
    publisher.find(&["ready"]).await;
    publisher
}

/// Publishes `count` messages, and waits until the publisher has accepted them.
async fn publish(publisher: &mut Process, count: u32, bytes: usize) {
    publisher.say(&format!("{count} {bytes}")).await;
    publisher.find(&["published"]).await;
}

/// Expects these messages next, in this order, and no other event meanwhile.
async fn receive(subscriber: &mut Process, numbers: std::ops::Range<u32>) {
    for number in numbers {
        assert_eq!(subscriber.line().await, number.to_string());
    }
}

/// Expects these messages in this order, possibly with lost and new connections in between.
async fn receive_in_the_end(subscriber: &mut Process, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let line = loop {
            let line = subscriber.line().await;
            if !["connected", "disconnected", "failed"].iter().any(|word| line.starts_with(word)) {
                break line;
            }
        };
        assert_eq!(line, number.to_string());
    }
}

/// Waits until the proxy logs that a subscriber was disconnected for this reason. Returns the time since
/// `since`.
async fn drops_subscriber(proxy: &mut Process, since: Instant, reason: &str) -> Duration {
    let line = proxy.find(&["disconnected", "side=Subscribers"]).await;
    assert!(line.contains(reason), "{line}");
    since.elapsed()
}

#[tokio::test]
async fn an_idle_subscriber_that_vanishes_is_noticed_by_keepalive() {
    if !wanted() {
        return;
    }
    let network = Network::new();
    let mut proxy = proxy(&network.proxy, FAST).await;
    let _subscriber = subscriber(&network.client, PROXY, NEVER).await;
    // After this time the proxy's last packets are acknowledged, and the connection is idle.
    tokio::time::sleep(seconds(1)).await;
    let cut = Instant::now();
    network.client.plug(false);
    let time = drops_subscriber(&mut proxy, cut, "timed out").await;
    println!("noticed after {time:?}");
    // The kernel counts keepalive in seconds, and sends three probes.
    assert!(time < seconds(1 + 3) + SLACK, "it took {time:?}");
}

#[tokio::test]
async fn a_subscriber_that_vanishes_with_data_on_its_way_is_noticed() {
    if !wanted() {
        return;
    }
    let mut cable = LossyLink::new().await;
    let mut proxy = proxy(&cable.network.proxy, FAST).await;
    let mut subscriber = subscriber(&cable.network.client, PROXY, NEVER).await;
    let mut publisher = publisher(&cable.network.proxy, PROXY, NEVER).await;
    publish(&mut publisher, 10, 1000).await;
    receive(&mut subscriber, 0..10).await;
    cable.set(0, 100).await;
    let cut = Instant::now();
    publish(&mut publisher, 10, 1000).await;
    let time = drops_subscriber(&mut proxy, cut, "host does not answer").await;
    println!("noticed after {time:?}");
    assert!(time > seconds(1), "that is too early: {time:?}");
    assert!(time < seconds(1 + 1) + SLACK, "it took {time:?}");
}

/// Stops the subscriber, and publishes more than queues and kernels hold for it.
async fn fill(publisher: &mut Process, subscriber: &Process) {
    subscriber.signal("STOP").await;
    publish(publisher, 1000, 32 << 10).await;
}

#[tokio::test]
async fn a_subscriber_that_pauses_is_not_taken_for_gone() {
    if !wanted() {
        return;
    }
    let network = Network::new();
    let mut proxy = proxy(&network.proxy, FAST).await;
    let mut subscriber = subscriber(&network.client, PROXY, NEVER).await;
    let mut publisher = publisher(&network.proxy, PROXY, NEVER).await;
    fill(&mut publisher, &subscriber).await;
    // This is much longer than it takes to notice a vanished subscriber.
    tokio::time::sleep(seconds(10)).await;
    subscriber.signal("CONT").await;
    receive(&mut subscriber, 0..1000).await;
    // The connection was the same all the time: the first event that the proxy logs is the end of the
    // subscriber here.
    subscriber.kill().await;
    drops_subscriber(&mut proxy, Instant::now(), "").await;
}

/// The kernel asks a paused peer less and less often whether it has room. So this takes the longer, the
/// longer the peer was paused.
#[tokio::test]
async fn a_subscriber_that_vanishes_while_it_pauses_is_noticed() {
    if !wanted() {
        return;
    }
    let network = Network::new();
    let mut proxy = proxy(&network.proxy, FAST).await;
    let subscriber = subscriber(&network.client, PROXY, NEVER).await;
    let mut publisher = publisher(&network.proxy, PROXY, NEVER).await;
    fill(&mut publisher, &subscriber).await;
    // The subscriber's host has no room any more, and is asked from time to time whether it has.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    network.client.plug(false);
    let cut = Instant::now();
    let time = drops_subscriber(&mut proxy, cut, "host does not answer").await;
    println!("noticed after {time:?}");
    assert!(time < seconds(40) + SLACK, "it took {time:?}");
}

/// Everything that is accepted while there is no proxy is sent to the restarted one, once the subscriber has
/// reconnected, too.
#[tokio::test]
async fn clients_notice_a_proxy_that_vanishes_and_go_on_when_it_is_back() {
    if !wanted() {
        return;
    }
    let network = Network::new();
    let _proxy = proxy(&network.proxy, FAST).await;
    let mut subscriber = subscriber(&network.client, PROXY, FAST).await;
    let mut publisher = publisher(&network.client, PROXY, FAST).await;
    publish(&mut publisher, 10, 1000).await;
    receive(&mut subscriber, 0..10).await;
    network.proxy.plug(false);
    let cut = Instant::now();
    for client in [&mut subscriber, &mut publisher] {
        client.find(&["disconnected"]).await;
        let time = cut.elapsed();
        println!("noticed after {time:?}");
        assert!(time < seconds(1 + 1) + SLACK, "it took {time:?}");
    }
    publish(&mut publisher, 100, 1000).await;
    network.proxy.plug(true);
    let back = Instant::now();
    receive_in_the_end(&mut subscriber, 10..110).await;
    println!("going on after {:?}", back.elapsed());
    publish(&mut publisher, 10, 1000).await;
    receive_in_the_end(&mut subscriber, 110..120).await;
}

/// A publisher continues to send into a link that is cut, and TCP delivers what it sent.
#[tokio::test]
async fn a_cut_shorter_than_the_heartbeats_loses_nothing() {
    if !wanted() {
        return;
    }
    let network = Network::new();
    let _proxy = proxy(&network.proxy, DEFAULT).await;
    let mut subscriber = subscriber(&network.client, PROXY, DEFAULT).await;
    let mut publisher = publisher(&network.client, PROXY, DEFAULT).await;
    publish(&mut publisher, 10, 1000).await;
    network.proxy.plug(false);
    publish(&mut publisher, 100, 10_000).await;
    tokio::time::sleep(seconds(3)).await;
    network.proxy.plug(true);
    publish(&mut publisher, 10, 1000).await;
    receive(&mut subscriber, 0..120).await;
}

#[tokio::test]
async fn a_long_link_loses_nothing() {
    const DELAY: u32 = 100;
    if !wanted() {
        return;
    }
    let mut cable = LossyLink::new().await;
    cable.set(DELAY, 0).await;
    let _proxy = daemon(&cable.network.proxy, PROXY).await;
    let mut subscriber = subscriber(&cable.network.client, PROXY, DEFAULT).await;
    let mut publisher = publisher(&cable.network.client, PROXY, DEFAULT).await;
    let sent = Instant::now();
    publish(&mut publisher, 2000, 1000).await;
    receive(&mut subscriber, 0..2000).await;
    let time = sent.elapsed();
    println!("2000 messages in {time:?}");
    assert!(time >= Duration::from_millis(2 * u64::from(DELAY)), "the cable is shorter: {time:?}");
}

#[tokio::test]
async fn a_link_that_loses_packets_loses_no_message() {
    if !wanted() {
        return;
    }
    let mut cable = LossyLink::new().await;
    cable.set(1, 5).await;
    let _proxy = daemon(&cable.network.proxy, PROXY).await;
    let mut subscriber = subscriber(&cable.network.client, PROXY, DEFAULT).await;
    let mut publisher = publisher(&cable.network.client, PROXY, DEFAULT).await;
    let sent = Instant::now();
    publish(&mut publisher, 3000, 1000).await;
    receive(&mut subscriber, 0..3000).await;
    let time = sent.elapsed();
    let lost = cable.set(0, 0).await;
    println!("3000 messages in {time:?}, {lost} packets lost");
    assert!(lost > 20, "{lost} packets were lost: the link was too good");
}

/// This is the same link, with heartbeats that are as short as the losses last.
#[tokio::test]
async fn a_paused_subscriber_behind_a_link_that_loses_packets_is_not_taken_for_gone() {
    if !wanted() {
        return;
    }
    let mut cable = LossyLink::new().await;
    let mut proxy = proxy(&cable.network.proxy, ["4000", "4000"]).await;
    let mut subscriber = subscriber(&cable.network.client, PROXY, NEVER).await;
    let mut publisher = publisher(&cable.network.proxy, PROXY, NEVER).await;
    fill(&mut publisher, &subscriber).await;
    cable.set(1, 5).await;
    tokio::time::sleep(seconds(12)).await;
    cable.set(0, 0).await;
    subscriber.signal("CONT").await;
    receive(&mut subscriber, 0..1000).await;
    subscriber.kill().await;
    drops_subscriber(&mut proxy, Instant::now(), "").await;
}

#[tokio::test]
async fn clients_find_a_proxy_that_was_killed_and_started_again() {
    if !wanted() {
        return;
    }
    let network = Network::new();
    let proxy = daemon(&network.proxy, PROXY).await;
    let mut subscriber = subscriber(&network.client, PROXY, DEFAULT).await;
    let mut publisher = publisher(&network.client, PROXY, DEFAULT).await;
    publish(&mut publisher, 10, 1000).await;
    receive(&mut subscriber, 0..10).await;
    proxy.kill().await;
    for client in [&mut subscriber, &mut publisher] {
        client.find(&["disconnected"]).await;
    }
    publish(&mut publisher, 10, 1000).await;
    let _proxy = daemon(&network.proxy, PROXY).await;
    receive_in_the_end(&mut subscriber, 10..20).await;
}

/// The proxy's old address does not answer any more, its name gets another address, and the clients are not
/// notified.
#[tokio::test]
async fn clients_follow_the_name_of_a_proxy_to_another_address() {
    const ELSEWHERE: &str = "10.77.0.5";
    if !wanted() {
        return;
    }
    let network = Network::new();
    network.client.set_hosts(&format!("{PROXY} proxy.test\n"));
    let proxy = daemon(&network.proxy, PROXY).await;
    let mut subscriber = subscriber(&network.client, "proxy.test", FAST).await;
    let mut publisher = publisher(&network.client, "proxy.test", FAST).await;
    publish(&mut publisher, 10, 1000).await;
    receive(&mut subscriber, 0..10).await;
    // The old host vanishes without notice: first its link, then the rest of it.
    network.proxy.plug(false);
    proxy.kill().await;
    network.proxy.ip(&["address", "del", &format!("{PROXY}/24"), "dev", "eth0"]);
    network.proxy.ip(&["address", "add", &format!("{ELSEWHERE}/24"), "dev", "eth0"]);
    network.proxy.plug(true);
    let _proxy = daemon(&network.proxy, ELSEWHERE).await;
    network.client.set_hosts(&format!("{ELSEWHERE} proxy.test\n"));
    let moved = Instant::now();
    for client in [&mut subscriber, &mut publisher] {
        client.find(&["disconnected"]).await;
    }
    publish(&mut publisher, 10, 1000).await;
    receive_in_the_end(&mut subscriber, 10..20).await;
    println!("going on after {:?}", moved.elapsed());
}

/// The first of two addresses swallows all packets. It gets its share of the time, and then the second one is
/// tried.
#[tokio::test]
async fn the_second_address_of_a_name_is_tried_when_the_first_swallows_everything() {
    // This address is closer to the client's own address than the proxy's is, so the resolver puts it first.
    const SINK: &str = "10.77.0.3";
    if !wanted() {
        return;
    }
    let network = Network::new();
    network.client.set_hosts(&format!("{SINK} proxy.test\n{PROXY} proxy.test\n"));
    // The proxy's host receives packets for this address, and discards them.
    network.client.ip(&["route", "add", SINK, "via", PROXY]);
    let _proxy = daemon(&network.proxy, PROXY).await;
    let begun = Instant::now();
    let mut subscriber = subscriber(&network.client, "proxy.test", DEFAULT).await;
    let time = begun.elapsed();
    println!("subscribed after {time:?}");
    assert!(time > seconds(3), "the sink was not the first: {time:?}");
    let mut publisher = publisher(&network.client, "proxy.test", DEFAULT).await;
    publish(&mut publisher, 10, 1000).await;
    receive(&mut subscriber, 0..10).await;
}
