//! Messages of a topic as they come, for somebody who looks at them: an ordinary subscriber of the proxy,
//! which reads all of them, shows some, and counts the others. It never keeps the proxy waiting, however
//! slowly the browser reads.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use xmsg_core::security::Security;
use xmsg_core::{ConnectOptions, Connection, Message, ProxyAddress, Result, Subscription, Topic};
use xmsg_zmq::deadline::Deadline;

use super::process::unix_s;
use crate::shown;

/// Messages that are shown in a second, unless asked for more or fewer, and at most.
pub(super) const RATE_DEFAULT: u32 = 20;
pub(super) const RATE_MAX: u32 = 200;
/// Bytes of data that are shown in a second.
const BYTES_PER_S: usize = 1 << 20;
/// Bytes of a message's data that are shown; the length is told in full.
const DATA_MAX: usize = 16 << 10;
/// Bytes of topic and metadata of a message that is shown: one with more is counted as left out.
const REST_MAX: usize = 16 << 10;
/// Events that wait for whoever reads them. Beyond, messages are counted and not shown.
const WAITING: usize = 64;
/// How long subscribing may take, and publishing until the proxy has the message.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long the end may take.
const CLOSE: Duration = Duration::from_millis(200);

/// Where the proxy is reached from its own process, and as whom.
#[derive(Clone, Debug)]
pub struct Reach {
    address: ProxyAddress,
    security: Security,
}

impl Reach {
    /// A proxy without security at this address.
    #[must_use]
    pub fn new(address: ProxyAddress) -> Self {
        Self { address, security: Security::Null }
    }

    /// With these credentials.
    #[must_use]
    pub fn security(self, security: Security) -> Self {
        Self { security, ..self }
    }
}

/// The connection of the HTTP server to its own proxy, made when somebody taps or publishes.
#[derive(Debug)]
pub(super) struct Client {
    reach: Option<Reach>,
    connection: OnceLock<Connection>,
}

impl Client {
    pub(super) fn new(reach: Option<Reach>) -> Self {
        Self { reach, connection: OnceLock::new() }
    }

    /// Whether there is a way to the proxy.
    pub(super) fn is_there(&self) -> bool {
        self.reach.is_some()
    }

    /// The connection; `None`: there is no way to the proxy.
    fn connection(&self) -> Option<Result<&Connection>> {
        let Reach { address, security } = self.reach.as_ref()?;
        if let Some(connection) = self.connection.get() {
            return Some(Ok(connection));
        }
        let options = ConnectOptions::new()
            .security(security.clone())
            .connection_timeout(PATIENCE)
            .subscription_timeout(PATIENCE);
        let made = match Connection::with_options(address.clone(), options) {
            Ok(made) => made,
            Err(error) => return Some(Err(error)),
        };
        Some(Ok(self.connection.get_or_init(|| made)))
    }

    /// Publishes a message, and waits until the proxy has it. `None`: there is no way to the proxy.
    pub(super) async fn publish(&self, message: &Message) -> Option<Result<()>> {
        let connection = match self.connection()? {
            Ok(connection) => connection,
            Err(error) => return Some(Err(error)),
        };
        let publish = async {
            connection.publish(message).await?;
            connection.flush(PATIENCE).await
        };
        Some(publish.await)
    }

    /// Follows the messages whose topic starts with this.
    pub(super) async fn tap(&self, prefix: Topic, rate: u32) -> Option<Result<Tap>> {
        let connection = match self.connection()? {
            Ok(connection) => connection,
            Err(error) => return Some(Err(error)),
        };
        Some(connection.subscribe([prefix]).await.map(|subscription| Tap::start(subscription, rate)))
    }

    /// Ends the connection.
    pub(super) async fn close(&self) {
        if let Some(connection) = self.connection.get() {
            // What it had to send was confirmed, or somebody was told that it was not.
            let _ = connection.close(CLOSE).await;
        }
    }
}

/// What a tap tells.
pub(super) enum Told {
    /// A message, as JSON.
    Message(Bytes),
    /// How many came, once a second and at the end, as JSON.
    Counts(Bytes),
}

/// What came since the tap began.
#[derive(Clone, Copy, Debug, Default, Serialize, utoipa::ToSchema)]
pub(super) struct Counts {
    /// All messages, shown or not.
    messages: u64,
    /// Those that were not shown, because they were more than somebody can read.
    left_out: u64,
}

/// Messages on their way to somebody who looks. The task that reads them ends when it is dropped.
#[derive(Debug)]
pub(super) struct Tap {
    told: mpsc::Receiver<Told>,
    _reading: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told(…)")
    }
}

impl Tap {
    fn start(subscription: Subscription, rate: u32) -> Self {
        let (tell, told) = mpsc::channel(WAITING);
        Self { told, _reading: AbortOnDropHandle::new(tokio::spawn(read(subscription, rate, tell))) }
    }

    /// The next thing that is told; `None`: the proxy has ended.
    pub(super) async fn next(&mut self) -> Option<Told> {
        self.told.recv().await
    }
}

/// How much may still be shown in a second.
struct Budget {
    rate: u32,
    messages: u32,
    bytes: usize,
    until: Deadline,
}

impl Budget {
    fn new(rate: u32) -> Self {
        Self { rate, messages: rate, bytes: BYTES_PER_S, until: Deadline::after(Duration::from_secs(1)) }
    }

    /// Whether this much may be shown, too.
    fn take(&mut self, bytes: usize) -> bool {
        let may = self.messages > 0 && self.bytes >= bytes;
        if may {
            self.messages -= 1;
            self.bytes -= bytes;
        }
        may
    }
}

/// Reads everything, so that nothing waits in the proxy, and passes on what there is room for.
async fn read(mut subscription: Subscription, rate: u32, tell: mpsc::Sender<Told>) {
    let (mut counts, mut budget) = (Counts::default(), Budget::new(rate));
    loop {
        let batch = tokio::select! {
            batch = subscription.next_batch() => match batch {
                Some(batch) => batch,
                None => return,
            },
            () = tokio::time::sleep(budget.until.left()) => {
                budget = Budget::new(rate);
                // Whoever has no room for it gets the next one.
                let _ = tell.try_send(Told::Counts(serde_json::to_vec(&counts).unwrap_or_default().into()));
                continue;
            }
        };
        if budget.until.has_passed() {
            budget = Budget::new(budget.rate);
            let _ = tell.try_send(Told::Counts(serde_json::to_vec(&counts).unwrap_or_default().into()));
        }
        for message in &batch {
            counts.messages += 1;
            let Ok(message) = message else {
                counts.left_out += 1;
                continue;
            };
            let message = message.to_message();
            let has_room = is_shown(&message)
                && tell.capacity() > 1
                && budget.take(message.data().len().min(DATA_MAX) + rest(&message));
            let told = has_room && tell.try_send(Told::Message(json(message))).is_ok();
            counts.left_out += u64::from(!told);
        }
        // A topic that never pauses lets others on this thread have their turn.
        tokio::task::yield_now().await;
    }
}

/// Bytes beside the data.
fn rest(message: &Message) -> usize {
    message.size() - message.data().len()
}

/// Whether a message is one that is shown: it takes some memory, and others choose how long its topic and its
/// metadata are.
fn is_shown(message: &Message) -> bool {
    rest(message) <= REST_MAX
}

/// A message as it is told: long data is cut, and then has no value.
fn json(message: Message) -> Bytes {
    let (len, time) = (message.data().len(), unix_s(SystemTime::now()));
    let is_cut = len > DATA_MAX;
    let message = if is_cut {
        let [topic, meta, data] = message.into_frames();
        // A character that is cut in two would turn a text into none.
        let end = match str::from_utf8(&data[..DATA_MAX]) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => DATA_MAX,
        };
        Message::from_frames(topic, meta, data.slice(..end))
    } else {
        message
    };
    let mut line = Vec::new();
    shown::message(&mut line, &message, &time.into());
    if is_cut {
        // The length is that of the whole, and what is decoded from a part would be wrong.
        let mut read: serde_json::Map<String, Value> = serde_json::from_slice(&line).unwrap_or_default();
        read.remove("value");
        read.insert("length".to_owned(), len.into());
        read.insert("shown_bytes".to_owned(), message.data().len().into());
        line = serde_json::to_vec(&read).unwrap_or_default();
    }
    line.into()
}

#[cfg(test)]
mod tests {
    use xmsg_core::Topic;

    use super::*;

    fn read(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn long_data_is_cut_between_characters_and_says_so() {
        let text = format!("x{}", "\u{e4}".repeat(DATA_MAX));
        let message = Message::with_mime(Topic::wrap("a"), "text/plain", text.clone());
        let told = read(&json(message));
        assert_eq!((&told["length"], &told["encoding"]), (&text.len().into(), &"utf-8".into()));
        assert_eq!(told["shown_bytes"], DATA_MAX - 1);
        assert_eq!(told["data"].as_str().unwrap().len(), DATA_MAX - 1);
        let short = read(&json(Message::of("a", 17).unwrap()));
        assert_eq!((&short["value"], short.get("shown_bytes")), (&17.into(), None));
    }

    /// Each frame may be as long as the proxy lets messages be.
    #[test]
    fn long_topics_and_metadata_are_not_shown() {
        let long = || "\u{1}".repeat(REST_MAX);
        let meta = || xmsg_core::Meta::new("text/plain").encode();
        let mut description = xmsg_core::Meta::new("text/plain");
        description.description = Some(long());
        for (topic, meta) in [(long(), meta()), ("a".to_owned(), description.encode())] {
            assert!(!is_shown(&Message::from_frames(topic.into(), meta, Bytes::from_static(b"data"))));
        }
        assert!(is_shown(&Message::from_frames("a".into(), meta(), vec![1; 4 << 20].into())));
    }

    #[test]
    fn a_second_has_room_for_so_much() {
        let mut budget = Budget::new(3);
        assert!(budget.take(BYTES_PER_S - 1) && !budget.take(2) && budget.take(1) && budget.take(0));
        assert!(!budget.take(0), "three were asked for");
    }
}
