//! Fan-out: sends each message to all peers that it is for, as PUB and XPUB do (RFC 29), and XSUB in the
//! other direction.

use std::sync::Arc;

use smallvec::SmallVec;
use xmsg_zmtp::encoded_len;

use crate::hub::Hub;
use crate::link::Link;
use crate::link::refusal::exceeds_limits;
use crate::link::send_queue::{self, Begun, Frame, Refused, Sending};
use crate::options::Overflow;
use crate::{Error, ErrorKind, Result};

/// The peers that a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recipients {
    /// Peers that have subscribed to it, and all peers that the socket connects to, unless it
    /// [filters](crate::SocketOptions::filter) for them.
    Subscribers,
    /// All peers.
    All,
}

/// A socket, as far as it sends to many peers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FanOut<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) audience: Recipients,
}

/// What remains to be done for links at which the message or its sender has to wait.
#[derive(Debug, Default)]
pub(crate) struct Unfinished(SmallVec<[Sending<Arc<Link>>; 1]>);

impl Unfinished {
    /// Waits until every link has accepted the message and the sender may proceed.
    pub(crate) async fn finish(&mut self, fan_out: FanOut<'_>, frames: &[impl Frame]) -> Result<()> {
        // The position of the message at each link is fixed already.
        for sending in &mut self.0 {
            let done = sending.finish().await;
            done.or_else(|refused| fan_out.judge_refusal(&sending.target(), refused, frames))?;
        }
        Ok(())
    }

    /// Removes links that have accepted the message, and for which the sender would only yield to the writer.
    pub(crate) fn only_waiting(mut self) -> Self {
        self.0.retain(|sending| sending.waits());
        self
    }
}

impl<'a> FanOut<'a> {
    /// Returns when every peer that the message is for has accepted it, or has dropped it by its
    /// [policy](Overflow).
    pub(crate) async fn send(self, frames: &[impl Frame]) -> Result<()> {
        let topic = self.check(frames)?;
        if let Some(done) = self.send_now(topic, frames) {
            return done;
        }
        let mut unfinished = self.begin(topic, frames)?;
        unfinished.finish(self, frames).await
    }

    /// Sends a message without waiting. Returns [`Full`](ErrorKind::Full), and sends it to no peer, if it
    /// would have to wait for one.
    pub(crate) fn try_send(self, frames: &[impl Frame]) -> Result<()> {
        let topic = self.check(frames)?;
        // No other message takes the room while this is locked.
        let links = self.hub.links();
        let targets = || links.iter().filter(|link| self.goes_to(link, topic));
        if links.len() > 1 {
            self.all_take(targets(), frames)?;
            let len = encoded_len(frames);
            let must_wait =
                |link: &&Arc<Link>| link.overflow == Overflow::Wait && link.send_queue.lock().is_full(len);
            if targets().any(|link| must_wait(&link)) {
                return Err(full());
            }
        }
        for link in targets() {
            let pushed = match link.overflow {
                Overflow::Wait => link.send_queue.try_push(frames),
                overflow => self.push_or_drop(link, overflow, frames).map(|_| ()),
            };
            pushed.or_else(|refused| self.judge_refusal(link, refused, frames))?;
        }
        Ok(())
    }

    /// Returns the topic of the message if it is within our limits.
    pub(crate) fn check(self, frames: &[impl Frame]) -> Result<&[u8]> {
        let limits = self.hub.options.send_limits();
        match frames.first() {
            Some(topic) if limits.allow(encoded_len(frames), frames.len()) => Ok(topic.as_ref()),
            _ => Err(exceeds_limits(frames, limits, limits, "")),
        }
    }

    /// Sends a message as far as that is possible without waiting. Its position among other messages is then
    /// fixed at every link.
    pub(crate) fn begin(self, topic: &[u8], frames: &[impl Frame]) -> Result<Unfinished> {
        // This is declared before the lock is taken, so that it is dropped after the lock is released:
        // dropping it may wake other tasks.
        let mut unfinished = Unfinished::default();
        // All links are handled under one lock, so that two messages have the same order at each of them.
        let links = self.hub.links();
        if links.len() > 1 {
            self.all_take(links.iter().filter(|link| self.goes_to(link, topic)), frames)?;
        }
        for link in links.iter().filter(|link| self.goes_to(link, topic)) {
            let begun = match link.overflow {
                Overflow::Wait => send_queue::begin(link, frames),
                overflow => match self.push_or_drop(link, overflow, frames) {
                    Ok(true) => Begun::MustWait(Sending::pausing(link.clone())),
                    done => Begun::Done(done.map(|_| ())),
                },
            };
            match begun {
                Begun::Done(done) => {
                    done.or_else(|refused| self.judge_refusal(link, refused, frames))?;
                }
                Begun::MustWait(sending) => unfinished.0.push(sending),
            }
        }
        Ok(unfinished)
    }

    /// Judges a refusal by one link: is it an error for the sender, or does only this peer not get the
    /// message? A connection that has ended meanwhile is not a subscriber any more, and a peer that has
    /// connected to us may not accept all messages. Both are no failure for the others.
    pub(crate) fn judge_refusal(self, link: &Link, refused: Refused, frames: &[impl Frame]) -> Result<()> {
        match refused {
            Refused::Full => Err(full()),
            Refused::ExceedsLimits if link.connecting => Err(self.hub.exceeds_limits(link, frames)),
            Refused::ExceedsLimits => {
                self.hub.drop_for(link, frames);
                Ok(())
            }
            Refused::Closed if link.connecting => Err(Error::new(
                ErrorKind::Closed,
                "the socket is closed, or the runtime that it connected in has ended",
            )),
            Refused::Closed => Ok(()),
        }
    }

    /// Whether a message with this topic goes to this link.
    pub(crate) fn goes_to(self, link: &Link, topic: &[u8]) -> bool {
        match self.audience {
            Recipients::All => true,
            Recipients::Subscribers => (link.connecting && !self.hub.options.filter) || link.wants(topic),
        }
    }

    /// Fails if the message exceeds the limits of a peer that we connect to. No peer gets it then.
    fn all_take(self, mut links: impl Iterator<Item = &'a Arc<Link>>, frames: &[impl Frame]) -> Result<()> {
        let size = encoded_len(frames);
        let takes = |link: &Link| !link.connecting || link.send_queue.limits().allow(size, frames.len());
        match links.find(|link| !takes(link)) {
            Some(link) => Err(self.hub.exceeds_limits(link, frames)),
            None => Ok(()),
        }
    }

    /// Sends over the only link. Nearly always there is just one link, and it has room. Otherwise returns
    /// `None`.
    fn send_now(self, topic: &[u8], frames: &[impl Frame]) -> Option<Result<()>> {
        let links = self.hub.links();
        let [link] = &links[..] else { return None };
        if !self.goes_to(link, topic) {
            return Some(Ok(()));
        }
        let done = link.send_queue.push_now(frames)?;
        Some(done.or_else(|refused| self.judge_refusal(link, refused, frames)))
    }

    /// Queues the message, or drops and counts it or older ones. Returns whether the sender should yield to
    /// the writer.
    fn push_or_drop(self, link: &Link, overflow: Overflow, frames: &[impl Frame]) -> Result<bool, Refused> {
        let pushed = match overflow {
            Overflow::DropOldest => link.send_queue.push_or_drop_oldest(frames)?,
            _ => link.send_queue.push_or_drop_newest(frames)?,
        };
        self.hub.note_overflow(link, pushed.dropped);
        Ok(pushed.should_yield)
    }
}

fn full() -> Error {
    Error::new(ErrorKind::Full, "a connection is at its high-water mark: wait with `publish`, or send less")
}
