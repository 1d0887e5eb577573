//! Messages of a topic as they pass through the proxy, for somebody who looks at them, and the connection by
//! which the page publishes.
//!
//! Watching takes no connection: the switch copies the beginning of some messages, and counts all of them
//! (`switch/observer.rs`). So the proxy does nothing twice, holds no message for it, and waits for no
//! browser, however slowly that reads.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use xmsg_core::security::Security;
use xmsg_core::{ConnectOptions, Connection, Message, ProxyAddress, Result};
use xmsg_zmq::deadline::Deadline;

use super::process::unix_s;
use crate::shown;
use crate::switch::{Observation, Sample};

/// Messages that are shown in a second, unless asked for more or fewer, and at most.
pub(super) const RATE_DEFAULT: u32 = 20;
pub(super) const RATE_MAX: u32 = 200;
/// How often is told how many messages there were.
const COUNTS_EVERY: Duration = Duration::from_secs(1);
/// How long publishing may take until the proxy has the message.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the end may take.
const CLOSE: Duration = Duration::from_millis(200);

/// Where the proxy is reached from its own process, and as whom.
#[derive(Clone, Debug)]
pub struct OwnProxy {
    address: ProxyAddress,
    security: Security,
}

impl OwnProxy {
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

/// The connection of the HTTP server to its own proxy, made when somebody publishes.
#[derive(Debug)]
pub(super) struct Client {
    own_proxy: Option<OwnProxy>,
    connection: OnceLock<Connection>,
}

impl Client {
    pub(super) fn new(own_proxy: Option<OwnProxy>) -> Self {
        Self { own_proxy, connection: OnceLock::new() }
    }

    /// Whether there is a way to the proxy.
    pub(super) fn is_there(&self) -> bool {
        self.own_proxy.is_some()
    }

    /// The connection; `None`: there is no way to the proxy.
    fn connection(&self) -> Option<Result<&Connection>> {
        let OwnProxy { address, security } = self.own_proxy.as_ref()?;
        if let Some(connection) = self.connection.get() {
            return Some(Ok(connection));
        }
        let options = ConnectOptions::new().security(security.clone()).connection_timeout(PATIENCE);
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

    /// Ends the connection.
    pub(super) async fn close(&self) {
        if let Some(connection) = self.connection.get() {
            // What it had to send was confirmed, or somebody was told that it was not.
            let _ = connection.close(CLOSE).await;
        }
    }
}

/// What happens at a tap.
pub(super) enum TapEvent {
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

/// Messages on their way to somebody who looks.
#[derive(Debug)]
pub(super) struct Tap {
    observation: Observation,
    counts_at: Deadline,
}

impl Tap {
    pub(super) fn new(observation: Observation) -> Self {
        Self { observation, counts_at: Deadline::after(COUNTS_EVERY) }
    }

    /// The next event; `None`: the proxy has ended.
    pub(super) async fn next(&mut self) -> Option<TapEvent> {
        tokio::select! {
            // A topic that never pauses does not keep the counts back.
            biased;
            () = tokio::time::sleep(self.counts_at.left()) => {
                self.counts_at = Deadline::after(COUNTS_EVERY);
                let (messages, left_out) = self.observation.counts();
                let counts = serde_json::to_vec(&Counts { messages, left_out });
                Some(TapEvent::Counts(counts.unwrap_or_default().into()))
            }
            sample = self.observation.next() => sample.map(|sample| TapEvent::Message(json(sample))),
        }
    }
}

/// A message as it is told: data that was cut has no value.
fn json(sample: Sample) -> Bytes {
    let Sample { topic, meta, mut data, length, time } = sample;
    let is_cut = data.len() < length;
    // A character that is cut in two would turn a text into none.
    if is_cut
        && let Err(error) = str::from_utf8(&data)
        && error.error_len().is_none()
    {
        data.truncate(error.valid_up_to());
    }
    let shown_bytes = data.len();
    let mut line = Vec::new();
    shown::message(&mut line, &Message::from_frames(topic, meta, data), &unix_s(time).into());
    if is_cut {
        // The length is that of the whole, and what is decoded from a part would be wrong.
        let mut read: serde_json::Map<String, Value> = serde_json::from_slice(&line).unwrap_or_default();
        read.remove("value");
        read.remove("value_error");
        read.insert("length".to_owned(), length.into());
        read.insert("shown_bytes".to_owned(), shown_bytes.into());
        line = serde_json::to_vec(&read).unwrap_or_default();
    }
    line.into()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const CUT: usize = 16 << 10;

    /// A message as it is told if the switch shows so much of it.
    fn told(message: Message) -> Value {
        let [topic, meta, data] = message.into_frames();
        let (length, data) = (data.len(), data.slice(..data.len().min(CUT)));
        serde_json::from_slice(&json(Sample { topic, meta, data, length, time: SystemTime::now() })).unwrap()
    }

    #[test]
    fn long_data_is_cut_between_characters_and_says_so() {
        let text = format!("x{}", "\u{e4}".repeat(CUT));
        let long = told(Message::with_mime("a".parse().unwrap(), "text/plain", text.clone()));
        assert_eq!((&long["length"], &long["encoding"]), (&text.len().into(), &"utf-8".into()));
        assert_eq!(long["shown_bytes"], CUT - 1);
        assert_eq!(long["data"].as_str().unwrap().len(), CUT - 1);
        let short = told(Message::of("a", 17).unwrap());
        assert_eq!((&short["value"], short.get("shown_bytes")), (&17.into(), None));
    }
}
