//! What was accepted arrives, whoever is killed meanwhile: the broker, or the process that sends.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use xmsg_tests::rabbitmq::Broker;
use xmsg_tests::{PATIENCE, process, within};

/// What happens so often, unless `XMSG_TEST_CYCLES` says otherwise: the whole run of the documents has 50.
const CYCLES: usize = 6;
/// Each process numbers its messages from a multiple of this.
const RANGE: u64 = 10_000_000;

/// A process that sends; what it said was accepted is collected.
struct Courier {
    child: Child,
    reading: JoinHandle<bool>,
}

impl Courier {
    fn start(folder: &Path, port: u16, first: u64, count: u64, accepted: &Arc<Mutex<BTreeSet<u64>>>) -> Self {
        let mut child = Command::new(process::built("examples/courier"))
            .arg(folder)
            .args([port.to_string(), "survival".into(), first.to_string(), count.to_string()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let accepted = accepted.clone();
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                match line.strip_prefix("accepted ") {
                    Some(number) => drop(accepted.lock().unwrap().insert(number.parse().unwrap())),
                    None => return line == "delivered",
                }
            }
            false
        });
        Self { child, reading }
    }

    /// Kills it as a power cut does. All that it has said is known when this returns.
    async fn kill(mut self) {
        self.child.kill().await.unwrap();
        assert!(!self.reading.await.unwrap(), "it was killed in the middle");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_message_arrives_whoever_is_killed() {
    let cycles =
        std::env::var("XMSG_TEST_CYCLES").map_or(CYCLES, |text| text.parse().expect("a number of cycles"));
    let mut random = fastrand::Rng::with_seed(fastrand::u64(..));
    let mut broker = Broker::start().await;
    broker.declare_queue("survival").await;
    let folder = tempfile::tempdir().unwrap();
    let accepted = Arc::new(Mutex::new(BTreeSet::new()));
    let mut events = HashMap::new();
    let mut nth = 0;
    let mut courier = Courier::start(folder.path(), broker.port(), 0, RANGE, &accepted);
    for cycle in 0..cycles {
        let before = accepted.lock().unwrap().len();
        // It sends, and for a while of any length more.
        within("some messages", async {
            while accepted.lock().unwrap().len() < before + 50 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(random.u64(0..300))).await;
        // Each of them at least once in six cycles.
        let event = match cycle % 8 {
            0 => "broker killed",
            3 => "broker stopped",
            5 => "memory alarm",
            _ => "sender killed",
        };
        *events.entry(event).or_insert(0) += 1;
        match event {
            "broker killed" => {
                broker.kill().await;
                broker.start_again().await;
            }
            "broker stopped" => {
                broker.stop().await;
                broker.start_again().await;
            }
            "memory alarm" => {
                broker.alarm(true).await;
                tokio::time::sleep(Duration::from_millis(random.u64(0..500))).await;
                broker.alarm(false).await;
            }
            _ => {
                courier.kill().await;
                nth += 1;
                courier = Courier::start(folder.path(), broker.port(), nth * RANGE, RANGE, &accepted);
            }
        }
    }
    courier.kill().await;
    let last = Courier::start(folder.path(), broker.port(), (nth + 1) * RANGE, 100, &accepted);
    // What was accepted faster than the broker took it waits for this one: the more cycles, the more of it.
    let patience = PATIENCE * u32::try_from(cycles.div_ceil(2)).expect("a number of cycles");
    let ended = tokio::time::timeout(patience, last.reading).await.expect("it ends in time");
    assert!(ended.unwrap(), "it has delivered everything");

    let arrived = consume(&broker).await;
    let acknowledged = accepted.lock().unwrap();
    let missing: Vec<_> =
        acknowledged.iter().filter(|number| !arrived.contains_key(number)).take(10).collect();
    let copies: usize = arrived.values().map(Vec::len).sum();
    println!(
        "{} accepted, {} arrived, {} of them more than once; {events:?}",
        acknowledged.len(),
        arrived.len(),
        copies - arrived.len()
    );
    assert!(missing.is_empty(), "accepted and lost: {missing:?}");
    for (number, identifiers) in arrived {
        assert_eq!(
            identifiers.iter().collect::<BTreeSet<_>>().len(),
            1,
            "{number} came with several identifiers"
        );
    }
}

/// Takes all there is out of the queue: by their numbers, the identifiers of all copies.
async fn consume(broker: &Broker) -> HashMap<u64, Vec<String>> {
    let connection = broker.connect().await;
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(1000, BasicQosOptions::default()).await.unwrap();
    let mut left = broker.queue_len("survival").await;
    let options = BasicConsumeOptions::default();
    let mut consumer = channel
        .basic_consume("survival".into(), "count".into(), options, FieldTable::default())
        .await
        .unwrap();
    let mut arrived: HashMap<u64, Vec<String>> = HashMap::new();
    while left > 0 {
        let delivery = within("a message", consumer.next()).await.unwrap().unwrap();
        left -= 1;
        let headers = delivery.properties.headers().clone().unwrap();
        let Some(AMQPValue::LongString(id)) = headers.inner().get("X-Xmsg-Id") else {
            panic!("no identifier")
        };
        // The text of a message is after two bytes of its encoding.
        let number = String::from_utf8(delivery.data[2..].to_vec()).unwrap().parse().unwrap();
        arrived.entry(number).or_default().push(id.to_string());
        if left % 500 == 0 {
            delivery.ack(BasicAckOptions { multiple: true }).await.unwrap();
        }
    }
    connection.close(200, "OK".into()).await.unwrap();
    arrived
}
