//! Detects that published messages reach no subscriber.

use std::time::Duration;

use futures::future::select_all;
use xmsg_core::{Connection, ProxyAddress, Topic};

use crate::output::{counted, note};
use crate::render::topics_text;

/// How long the proxy may take to receive the published messages before the note that nobody subscribes is
/// written.
const ARRIVAL_TIMEOUT: Duration = Duration::from_millis(500);
/// How long subscriptions that the proxy passes on may then still be on the way.
const SUBSCRIPTIONS: Duration = Duration::from_millis(50);
/// The largest number of topics that are remembered. After messages to more topics, no note is written, even
/// if the first ones reached nobody.
const TOPICS_MAX: usize = 64;
/// The largest number of topics that the note names.
const NAMED_MAX: usize = 3;

/// What is known of the subscribers of the published topics.
#[derive(Debug)]
pub(crate) struct SubscriberWatch {
    /// Whether a topic has a subscriber, or no note is wanted.
    is_reached: bool,
    /// The topics of the published messages.
    topics: Vec<Topic>,
}

impl SubscriberWatch {
    /// Starts without topics. If no note is wanted, nothing is watched.
    pub(crate) fn new(is_wanted: bool) -> Self {
        Self { is_reached: !is_wanted, topics: Vec::new() }
    }

    /// Records that a message is published to this topic. Call it before and after publishing: a subscriber
    /// may become known only during the call, or may leave during the call.
    pub(crate) fn check(&mut self, connection: &Connection, topic: &Topic) {
        if self.is_reached {
            return;
        }
        self.is_reached = connection.has_subscriber(topic);
        if self.topics.last() != Some(topic) && !self.topics.contains(topic) {
            // Further topics are not remembered, so the note could not be true for them.
            self.is_reached |= self.topics.len() == TOPICS_MAX;
            self.topics.push(topic.clone());
        }
    }

    /// Returns whether nobody can have received anything and a note is wanted. It is `false` if the proxy has
    /// not received everything in time, because then nothing is certain.
    pub(crate) async fn found_no_subscriber(&self, connection: &Connection) -> bool {
        if self.is_reached || self.topics.is_empty() {
            return false;
        }
        // A proxy tells a publisher about subscriptions only once it is connected. A single message may have
        // been accepted before that.
        let arrived_unseen = async {
            let has_arrived = connection.flush(ARRIVAL_TIMEOUT).await.is_ok();
            tokio::time::sleep(SUBSCRIPTIONS).await;
            has_arrived
        };
        let subscribers = self.topics.iter().map(|topic| Box::pin(connection.wait_for_subscriber(topic)));
        tokio::select! {
            biased;
            // This is watched all the time: a subscriber that wants only one message unsubscribes as soon as
            // it arrives.
            _ = select_all(subscribers) => false,
            found_no_subscriber = arrived_unseen => found_no_subscriber,
        }
    }

    /// Writes the note that this number of messages reached nobody.
    pub(crate) fn report(&self, messages: u64, proxy: &ProxyAddress) {
        let (named, left) = self.topics.split_at(self.topics.len().min(NAMED_MAX));
        let more = if left.is_empty() { String::new() } else { format!(", nor to {} more", left.len()) };
        let topics = topics_text(named);
        let what = if messages == 1 { "message".to_owned() } else { counted(messages, "message") };
        note(format_args!(
            "nobody subscribes to {topics}{more} at {proxy}: the {what} went nowhere (--wait-sub waits for a subscriber)"
        ));
    }
}
