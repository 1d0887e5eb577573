//! Whether what is published reaches anybody.

use std::time::Duration;

use futures::future::select_all;
use xmsg_core::{Connection, ProxyAddress, Topic};

use crate::output::{counted, note};
use crate::render::topics_text;

/// How long the proxy may take, before it is said that nobody subscribes, to have what was published.
const ARRIVAL: Duration = Duration::from_millis(500);
/// How long what it has told of subscriptions may then still be on the way.
const SUBSCRIPTIONS: Duration = Duration::from_millis(50);
/// Topics that are remembered. Of messages to more than these, nothing is said when the first ones reach nobody.
const TOPICS_MAX: usize = 64;
/// Topics that are named.
const NAMED_MAX: usize = 3;

/// What is known of the subscribers of what was published.
#[derive(Debug)]
pub(crate) struct Reach {
    /// Those that somebody has been told of, or nobody wants to know.
    is_reached: bool,
    /// What was published to.
    topics: Vec<Topic>,
}

impl Reach {
    /// If nobody is there to be told, nothing is watched.
    pub(crate) fn new(is_wanted: bool) -> Self {
        Self { is_reached: !is_wanted, topics: Vec::new() }
    }

    /// A message is published to this topic. To be called before it is, and again after that: who subscribes may be known only then, and
    /// may have gone by then.
    pub(crate) fn look(&mut self, connection: &Connection, topic: &Topic) {
        if self.is_reached {
            return;
        }
        self.is_reached = connection.has_subscriber(topic);
        if self.topics.last() != Some(topic) && !self.topics.contains(topic) {
            // More are not remembered, so that it could not be said of them.
            self.is_reached |= self.topics.len() == TOPICS_MAX;
            self.topics.push(topic.clone());
        }
    }

    /// Whether nobody can have received anything, and somebody is to be told so. Of what the proxy does not have by
    /// then, nothing is known.
    pub(crate) async fn went_nowhere(&self, connection: &Connection) -> bool {
        if self.is_reached || self.topics.is_empty() {
            return false;
        }
        // A proxy tells a publisher of subscriptions once it is connected; a single message may have been accepted before.
        let arrived_unseen = async {
            let has_arrived = connection.flush(ARRIVAL).await.is_ok();
            tokio::time::sleep(SUBSCRIPTIONS).await;
            has_arrived
        };
        let subscribers = self.topics.iter().map(|topic| Box::pin(connection.wait_for_subscriber(topic)));
        tokio::select! {
            biased;
            // All the while: whoever wants one message alone has gone as soon as it came.
            _ = select_all(subscribers) => false,
            went_nowhere = arrived_unseen => went_nowhere,
        }
    }

    /// Says that so many messages went nowhere.
    pub(crate) fn tell(&self, messages: u64, proxy: &ProxyAddress) {
        let (named, left) = self.topics.split_at(self.topics.len().min(NAMED_MAX));
        let more = if left.is_empty() { String::new() } else { format!(", nor to {} more", left.len()) };
        let topics = topics_text(named);
        let what = if messages == 1 { "message".to_owned() } else { counted(messages, "message") };
        note(format_args!(
            "nobody subscribes to {topics}{more} at {proxy}: the {what} went nowhere (--wait-sub waits for a subscriber)"
        ));
    }
}
