//! The feed of an outgoing connection, from the proxy to its spool. It subscribes like everybody else.

use std::collections::HashMap;
use std::iter::Peekable;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xmsg_core::{Actor, DropReason, Message, Messages, SocketEvent, Subscription, Topic};
use xmsg_zmq::deadline::Deadline;

use super::{Shared, storage};
use crate::definition::Destination;
use crate::error::{Error, ErrorKind, Result};
use crate::outbound::{Outbound, Stored};
use crate::spool::{Spool, SpoolErrorKind};
use crate::status::add;
use crate::supervise::Plan;

/// The pause before the proxy is asked again for a subscription that it has not confirmed, or the disk for
/// what it has refused.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the spool may take for one group of messages once the feed is told to stop. As long as the disk
/// makes progress, all that has come is stored; a full or broken disk does not keep the program from ending.
const STALLED: Duration = Duration::from_secs(10);
/// How many messages are put into the spool at a time, with one fsync, and how many bytes of them.
const GROUP_MAX: usize = 1000;
const GROUP_BYTES_MAX: usize = 1 << 20;
/// The bytes that an entry is charged beside the message, with room to spare.
const OVERHEAD: usize = 256;

/// Subscribes by the plan of the moment, and puts what comes into the spool, until there are no plans any
/// more.
pub(super) async fn run(link: &Arc<Shared>, actor: &Actor, mut plans: watch::Receiver<Plan<Vec<String>>>) {
    // Nothing is taken from the proxy before there is a place for it.
    while link.spool.get().is_err() {
        tokio::select! {
            () = link.spool.wait_until_open() => {}
            changed = plans.changed() => if changed.is_err() { return },
        }
    }
    loop {
        let plan = plans.borrow_and_update().clone();
        let Plan::Active(topics) = plan else {
            match plans.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        };
        let stop = CancellationToken::new();
        let mut watched = plans.clone();
        let ended = {
            let feeding = feed(link, actor, &topics, &mut plans, &stop);
            tokio::pin!(feeding);
            // Other topics are no reason to begin anew: what is published meanwhile would be missed.
            let inactive = async { watched.wait_for(|plan| matches!(plan, Plan::Inactive)).await.is_err() };
            tokio::select! {
                ended = &mut feeding => ended,
                is_over = inactive => {
                    stop.cancel();
                    let ended = feeding.await;
                    if is_over {
                        if let Err(error) = ended {
                            link.status.note(error.with_causes());
                        }
                        return;
                    }
                    ended
                }
            }
        };
        if let Err(error) = ended {
            link.status.note(error.with_causes());
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                changed = plans.changed() => if changed.is_err() { return },
            }
        }
    }
}

async fn feed(
    link: &Arc<Shared>,
    actor: &Actor,
    subscribe: &[String],
    plans: &mut watch::Receiver<Plan<Vec<String>>>,
    stop: &CancellationToken,
) -> Result<()> {
    let topics = parsed(subscribe)?;
    let subscribed = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        subscribed = actor.subscribe(&topics) => subscribed,
    };
    let mut subscription = subscribed.map_err(|error| {
        let what = format!(
            "the subscription to {topics:?} at the proxy is not confirmed; it is tried again (subscribe)"
        );
        Error::new(ErrorKind::Unreachable, what).with_source(error)
    })?;
    let mut events = subscription.events();
    let mut losses = Losses::default();
    let mut feed_paused = link.is_feed_paused.subscribe();
    loop {
        let is_feed_paused = *feed_paused.borrow_and_update();
        tokio::select! {
            biased;
            Ok(()) = plans.changed() => {
                let Plan::Active(subscribe) = plans.borrow_and_update().clone() else { continue };
                subscription.set_topics(parsed(&subscribe)?).map_err(|error| {
                    let what = "the proxy takes no such subscription; it is tried again (subscribe)";
                    Error::new(ErrorKind::Unreachable, what).with_source(error)
                })?;
            }
            Ok(()) = feed_paused.changed() => {}
            event = events.next() => if let Some(SocketEvent::DroppedByPeer { peer, reason, total, .. }) = event {
                let messages = losses.since(peer, reason, total);
                if messages == 0 {
                    continue;
                }
                add(&link.status.counters.lost_before, messages);
                let what = format!(
                    "the proxy has dropped {messages} messages that were not taken in time: its policy for slow subscribers would \
                     have to be `block` for none to be lost"
                );
                link.status.note(what);
            },
            batch = subscription.next_batch(), if !is_feed_paused => match batch {
                Some(batch) => if !take(link, batch, &mut subscription, stop).await? {
                    return Ok(());
                },
                None => return Err(Error::new(ErrorKind::Closed, "the subscription at the proxy has ended")),
            },
            () = stop.cancelled() => {
                // It is deleted if it is held now, with what it did not take.
                if !is_feed_paused {
                    drain(link, &mut subscription, stop).await?;
                }
                return Ok(());
            }
        }
    }
}

/// Parses topics. An empty text is every topic.
fn parsed(subscribe: &[String]) -> Result<Vec<Topic>> {
    let parse = |text: &String| if text.is_empty() { Ok(Topic::everything()) } else { text.parse() };
    let topics = subscribe.iter().map(parse).collect::<xmsg_core::Result<Vec<_>>>();
    topics.map_err(|error| {
        Error::new(ErrorKind::InvalidDefinition, "a topic can't be used (subscribe)").with_source(error)
    })
}

/// What proxies have dropped, by the totals that they report. They report them again and again, so that what
/// was missed while the spool took nothing is in the next total.
#[derive(Debug, Default)]
struct Losses(HashMap<(String, DropReason), u64>);

impl Losses {
    /// Returns how many were dropped since this was called last.
    fn since(&mut self, peer: String, reason: DropReason, total: u64) -> u64 {
        let known = self.0.insert((peer, reason), total).unwrap_or_default();
        // A total that has become smaller counts from the beginning.
        if total < known { total } else { total - known }
    }
}

/// Puts what was received and not taken yet into the spool, too.
async fn drain(link: &Arc<Shared>, subscription: &mut Subscription, stop: &CancellationToken) -> Result<()> {
    subscription.drain();
    while let Some(batch) = subscription.next_batch().await {
        if !take(link, batch, subscription, stop).await? {
            break;
        }
    }
    Ok(())
}

/// Puts a batch into the spool. If that takes nothing more at the end, this counts what is lost, with what is
/// left in the subscription behind it, and returns `false`.
async fn take(
    link: &Arc<Shared>,
    batch: Messages,
    subscription: &mut Subscription,
    stop: &CancellationToken,
) -> Result<bool> {
    let mut lost = store(link, batch.detached(), stop).await?;
    if lost == 0 {
        return Ok(true);
    }
    subscription.drain();
    while let Some(batch) = subscription.next_batch().await {
        lost += batch.count() as u64;
    }
    add(&link.status.counters.lost_before, lost);
    link.status.note(format!(
        "{lost} messages are lost: they came from the proxy, and the spool took nothing for {STALLED:?} while this connection ended"
    ));
    Ok(false)
}

/// Waits for `work`, but not much longer than until `stop` is cancelled. There is no result then.
async fn unless_stalled<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    let stalled = async {
        stop.cancelled().await;
        Deadline::after(STALLED).passed().await;
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = stalled => None,
    }
}

/// Returns whether a message is a request to a durable subscription, an answer to a request, or one that
/// proxies use among themselves. A durable subscription to everything would otherwise store its own answers,
/// and answer with them.
fn is_request_traffic(message: &Message) -> bool {
    ["xmsg:", xmsg_core::durable::protocol::TOPIC, "ret:", "return:"]
        .iter()
        .any(|prefix| message.topic().as_bytes().starts_with(prefix.as_bytes()))
}

/// Puts messages into the spool in their order; waits while it is full. One that the disk refuses is tried
/// again for as long as it takes: nothing more is read from the proxy meanwhile. Once `stop` is cancelled, it
/// gives up after [`STALLED`], and returns how many messages are not in the spool.
async fn store(link: &Arc<Shared>, batch: Messages, stop: &CancellationToken) -> Result<u64> {
    let spool = link.spool.get()?;
    let federation = link.plan().federation.clone();
    let is_durable = matches!(&link.plan().destination, Destination::Amqp(amqp) if amqp.durable.is_some());
    let is_exported = |message: &Message| {
        if is_durable && is_request_traffic(message) {
            add(&link.status.counters.passed_over, 1);
            return false;
        }
        federation.as_ref().is_none_or(|one| one.should_export(message, &link.status))
    };
    let messages = batch.filter_map(|message| match message {
        Ok(message) => is_exported(&message).then_some(message),
        Err(error) => {
            add(&link.status.counters.refused, 1);
            link.status.note(format!("a message that is none of xMsg was refused: {}", error.with_causes()));
            None
        }
    });
    let mut messages = messages.peekable();
    loop {
        let bodies = group(&mut messages, spool.options().max_bytes);
        if bodies.is_empty() {
            return Ok(0);
        }
        let count = bodies.len() as u64;
        let Some(stored) = unless_stalled(stop, append(link, spool, &bodies)).await else {
            return Ok(count + messages.count() as u64);
        };
        stored?;
    }
}

/// Puts one group into the spool, and tries again until the spool takes it.
async fn append(link: &Arc<Shared>, spool: &Spool, bodies: &[Bytes]) -> Result<()> {
    let count = bodies.len() as u64;
    loop {
        match spool.append_many(bodies.to_vec()).await {
            Ok(_) => add(&link.status.counters.accepted, count),
            Err(error) if error.kind() == SpoolErrorKind::TooLarge => {
                add(&link.status.counters.refused, count);
                link.status.note(format!("{count} messages were refused: {error}"));
            }
            Err(error) if error.kind() == SpoolErrorKind::Closed => return Err(storage(error)),
            Err(error) => {
                // The spool is full and told to refuse, or the disk does not take it. Nobody else has the
                // messages, so they wait here.
                link.status.note(format!("{count} messages wait: {error}"));
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        return Ok(());
    }
}

/// Takes as many messages as are put into the spool at a time. One that is long goes alone, so that its size
/// concerns no other.
fn group(messages: &mut Peekable<impl Iterator<Item = Message>>, max_bytes: u64) -> Vec<Bytes> {
    let (mut bodies, mut bytes) = (Vec::new(), 0);
    // A spool is never so small that a group does not fit although each message of it would.
    let most = GROUP_BYTES_MAX.min(usize::try_from(max_bytes / 4).unwrap_or(GROUP_BYTES_MAX));
    while bodies.len() < GROUP_MAX
        && let Some(message) =
            messages.next_if(|message| bodies.is_empty() || bytes + message.size() + OVERHEAD <= most)
    {
        bytes += message.size() + OVERHEAD;
        bodies.push(Stored::new(Outbound::new(message)).encode());
    }
    bodies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_makes_no_progress_is_given_up_only_after_the_stop() {
        let stop = CancellationToken::new();
        let takes = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        assert!(unless_stalled(&stop, takes(3600)).await.is_some(), "there is no limit before the stop");
        stop.cancel();
        assert!(unless_stalled(&stop, takes(9)).await.is_some());
        assert!(unless_stalled(&stop, takes(11)).await.is_none());
    }

    #[test]
    fn what_was_dropped_is_known_although_events_were_missed() {
        let mut losses = Losses::default();
        let mut since = |peer: &str, total| losses.since(peer.to_owned(), DropReason::TooSlow, total);
        // The second event, about 5 more, did not come.
        assert_eq!([since("a", 10), since("a", 18), since("a", 18)], [10, 8, 0]);
        assert_eq!([since("b", 3), since("a", 20)], [3, 2]);
        assert_eq!(since("a", 4), 4, "it counts from the beginning");
    }
}
