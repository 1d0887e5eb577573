//! Tests of what the log says of losses.

use xmsg_tests::log::Log;
use xmsg_zmq::HighWaterMark;
use xmsg_zmq::link::send_queue::SendQueue;

use super::*;
use crate::switch::connected_peers::ConnectedPeers;

/// Returns the numbers of this field in a log, line by line.
fn numbers(log: &Log, field: &str) -> Vec<u64> {
    let field = format!(" {field}=");
    let after = |line: &str| Some(line.split_once(&field)?.1.split(' ').next()?.parse().unwrap());
    log.text().lines().filter_map(after).collect()
}

fn subscriber() -> Arc<ConnectedSubscriber> {
    let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
    Arc::new(ConnectedSubscriber::new(1, "a test", send_queue, Authorization::new(&Arc::default(), None)))
}

fn newest(messages: u64) -> Drops {
    Drops { newest: Amount::new(messages as usize, messages as usize), ..Drops::default() }
}

/// Drops for 25 s and then for a moment, with a pause between.
#[tokio::test(start_paused = true)]
async fn lines_of_a_slow_subscriber_add_up_to_all_that_was_dropped() {
    let (log, _guard) = Log::start();
    let subscriber = subscriber();
    let connected_peers = ConnectedPeers::default();
    connected_peers.add_subscriber(&subscriber);
    let dropping = async {
        for _ in 0..250 {
            subscriber.count_dropped(newest(100));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // It keeps up for a while: what it lost until then is told meanwhile.
        tokio::time::sleep(Duration::from_secs(60)).await;
        // At once, and then every 10 s; which of what happens at the same moment comes first is left open.
        let dropped = numbers(&log, "dropped");
        assert_eq!((dropped.len(), dropped[0], dropped.iter().sum::<u64>()), (4, 100, 25_000), "{dropped:?}");
        assert!(dropped[1..3].iter().all(|count| (9_900..=10_100).contains(count)), "{dropped:?}");
        subscriber.count_dropped(newest(7));
        subscriber.count_dropped(newest(8));
    };
    tokio::select! {
        never = subscriber.keep_logging() => match never {},
        () = dropping => {}
    }
    connected_peers.remove_subscriber(&subscriber);
    let dropped = numbers(&log, "dropped");
    assert_eq!(dropped[4..], [7, 8, 25_015], "the rest, and the sum when it leaves");
    assert_eq!(dropped[..6].iter().sum::<u64>(), 25_015);
    assert_eq!(*numbers(&log, "dropped_in_all").last().unwrap(), 25_015);
}

#[tokio::test(start_paused = true)]
async fn lines_about_messages_that_are_too_large_or_not_allowed_add_up_too() {
    let (log, _guard) = Log::start();
    let subscriber = subscriber();
    let connected_peers = ConnectedPeers::default();
    connected_peers.add_subscriber(&subscriber);
    for _ in 0..10 {
        subscriber.count_too_large(Amount::new(3, 3), b"a:b");
        subscriber.authorization.deny("a test", "publish", b"a:b", 2);
    }
    connected_peers.remove_subscriber(&subscriber);
    subscriber.authorization.log_rest("a test");
    assert_eq!(numbers(&log, "too_large"), [3, 27]);
    assert_eq!(numbers(&log, "denied"), [2, 18]);
}

#[tokio::test(start_paused = true)]
async fn many_subscribers_that_are_slow_at_the_same_time_do_not_fill_the_log() {
    let (log, _guard) = Log::start();
    let lines = Arc::<LogThrottles>::default();
    for _ in 0..50 {
        let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
        let subscriber =
            ConnectedSubscriber::new(1, "a test", send_queue, Authorization::new(&Arc::default(), None));
        subscriber.logging(&lines).count_dropped(newest(1));
    }
    assert_eq!(numbers(&log, "unlogged"), [0; 10]);
    // Nobody is slow any more, and the log says what is missing all the same.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(numbers(&log, "unlogged")[10..], [40]);
}
