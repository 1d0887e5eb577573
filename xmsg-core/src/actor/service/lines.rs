//! Log lines that a message can cause: only a few of each kind are written, and what peers wrote is cut.

use xmsg_zmq::link::throttle::Throttle;

use crate::Topic;

/// Characters of a topic or an error in a line: both can be as long as whoever sent the message likes.
const SHOWN: usize = 256;

/// The lines of one service.
#[derive(Debug, Default)]
pub(super) struct Lines {
    unsent: Throttle,
    failures: Throttle,
    panics: Throttle,
    report_failed: Throttle,
    unreadable: Throttle,
}

impl Lines {
    pub(super) fn unsent(&self, topic: &Topic, error: &str) {
        if let Some(unlogged) = self.unsent.pass("replies that were not sent") {
            tracing::warn!(topic = %cut(topic), error = cut(error), unlogged, "a reply was not sent");
        }
    }

    pub(super) fn failed(&self, topic: &Topic, error: &str) {
        if let Some(unlogged) = self.failures.pass("handlers that failed") {
            tracing::warn!(topic = %cut(topic), error = cut(error), unlogged, "a handler failed");
        }
    }

    pub(super) fn panicked(&self, topic: &Topic, panic: &str) {
        if let Some(unlogged) = self.panics.pass("handlers that panicked") {
            tracing::error!(topic = %cut(topic), panic = cut(panic), unlogged, "a handler panicked");
        }
    }

    pub(super) fn report_failed(&self, topic: &Topic, error: &str) {
        if let Some(unlogged) = self.report_failed.pass("requesters that could not be told of a failure") {
            tracing::warn!(
                topic = %cut(topic),
                error = cut(error),
                unlogged,
                "the requester could not be told that a handler failed"
            );
        }
    }

    pub(super) fn unreadable(&self, error: &crate::Error) {
        if let Some(unlogged) = self.unreadable.pass("messages that are not xMsg messages") {
            let error = cut(error);
            tracing::warn!(error, unlogged, "ignored a message that is not an xMsg message");
        }
    }
}

/// The beginning of a text, with a mark if there is more of it.
fn cut<T: ToString + ?Sized>(text: &T) -> String {
    let mut text = text.to_string();
    if let Some((end, _)) = text.char_indices().nth(SHOWN) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"ä".repeat(SHOWN)), "ä".repeat(SHOWN));
        assert_eq!(cut(&"ä".repeat(SHOWN + 1)), format!("{}…", "ä".repeat(SHOWN)));
    }
}
