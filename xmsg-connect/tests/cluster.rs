//! A cluster of three nodes: one is killed under load, and nothing that was acknowledged is missing in the
//! queue.

#![allow(clippy::unwrap_used, reason = "a test panics: that is how it fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use lapin::types::AMQPValue;
use xmsg_connect::definition::Span;
use xmsg_tests::rabbitmq::Cluster;
use xmsg_tests::within;

use common::{LIMIT, Site, broker, message, outgoing};

/// Sends that wait for the broker at the same time.
const SIDE_BY_SIDE: usize = 64;
/// Messages that are acknowledged before the node is killed, and after that.
const BEFORE: u64 = 300;
const AFTER: u64 = 500;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_in_the_queue_although_a_node_was_killed() {
    let mut cluster = Cluster::of_three().await;
    // Its leader is on the node that it is declared at, which is the one that the link is connected to, too.
    cluster[0].declare_quorum_queue("safe").await;
    let site = Site::new().await;
    let mut nodes = broker(cluster[0].port());
    nodes.uris = cluster.nodes().map(|node| format!("amqp://127.0.0.1:{}", node.port())).collect();
    site.registry.create(nodes).await.unwrap();
    let mut out = outgoing("out", "");
    out.routing_key = Some("safe".into());
    // What a node has taken for a leader that is dead by then is never confirmed.
    out.confirm_timeout = Some(Span::seconds(3));
    site.registry.create(out).await.unwrap();

    let (acknowledged, is_enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let load = {
        let (registry, acknowledged, is_enough) =
            (site.registry.clone(), acknowledged.clone(), is_enough.clone());
        tokio::spawn(async move {
            let numbers = stream::iter(0_u64..).take_while(|_| {
                let goes_on = !is_enough.load(Ordering::SeqCst);
                async move { goes_on }
            });
            let sent = numbers.map(|number| {
                let (registry, acknowledged) = (registry.clone(), acknowledged.clone());
                async move {
                    let message = message("load", &number.to_string());
                    let accepted = registry.send_confirmed("out", message, LIMIT).await;
                    let accepted =
                        accepted.unwrap_or_else(|error| panic!("{error}: {:#?}", registry.outgoing("out")));
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                    (number, accepted.id.to_string())
                }
            });
            sent.buffer_unordered(SIDE_BY_SIDE).collect::<BTreeMap<_, _>>().await
        })
    };
    let reaches = async |count: u64| {
        within("acknowledged messages", async {
            while acknowledged.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    reaches(BEFORE).await;
    let killed = site.registry.outgoing("out").unwrap().link.peer.unwrap();
    assert!(killed.ends_with(&cluster[0].port().to_string()), "{killed}");
    cluster[0].kill().await;
    let at_the_kill = acknowledged.load(Ordering::SeqCst);
    reaches(at_the_kill + AFTER).await;
    let peer = site.registry.outgoing("out").unwrap().link.peer.unwrap();
    assert_ne!(peer, killed, "it goes on at another node");
    is_enough.store(true, Ordering::SeqCst);
    let sent = within("the end of the load", load).await.unwrap();
    let report = site.until("out", "all", |report| report.spool.entries == 0).await;
    site.registry.close().await.unwrap();
    // The node that was killed comes back, and loses nothing either.
    cluster[0].start_again().await;
    cluster.sees(1, 3).await;

    let mut arrived: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for got in cluster[1].drain("safe").await {
        let Some(AMQPValue::LongString(id)) =
            got.properties.headers().as_ref().unwrap().inner().get("X-Xmsg-Id").cloned()
        else {
            panic!("no identifier")
        };
        // The text of a message is after two bytes of its encoding.
        let number = String::from_utf8(got.data[2..].to_vec()).unwrap().parse().unwrap();
        arrived.entry(number).or_default().push(id.to_string());
    }
    let copies: usize = arrived.values().map(Vec::len).sum();
    println!(
        "{} acknowledged, {at_the_kill} of them when the node was killed; {} arrived, {} copies more; {} connections",
        sent.len(),
        arrived.len(),
        copies - arrived.len(),
        report.link.counts.connections
    );
    for (number, id) in &sent {
        let ids: BTreeSet<_> =
            arrived.get(number).unwrap_or_else(|| panic!("{number} is lost")).iter().collect();
        assert_eq!(ids, [id].into(), "{number} came with other identifiers");
    }
    assert_eq!(sent.len(), arrived.len(), "nothing is in the queue that nobody has sent");
    assert!(report.link.counts.connections >= 2);
}
