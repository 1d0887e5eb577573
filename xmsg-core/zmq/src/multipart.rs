//! A multipart message of ZeroMQ: one or more frames.

use bytes::{Buf, Bytes, BytesMut};
use smallvec::SmallVec;

use xmsg_zmtp::walk_message;

/// A multipart message. It is cheap to clone, since the frames are shared.
///
/// ```
/// use xmsg_zmq::Multipart;
/// let message = Multipart::from(["topic", "metadata", "data"]);
/// assert_eq!(message.frames().len(), 3);
/// assert_eq!(message.frames()[0], "topic");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Multipart(SmallVec<[Bytes; 3]>);

impl Multipart {
    /// Returns the frames, first to last.
    #[must_use]
    pub fn frames(&self) -> &[Bytes] {
        &self.0
    }

    /// Returns the frames as an array if there are exactly `N`.
    #[must_use]
    pub fn into_array<const N: usize>(self) -> Option<[Bytes; N]> {
        let mut frames = self.0.into_iter();
        if frames.len() != N {
            return None;
        }
        // There are exactly `N` frames, so the default is never used.
        Some(std::array::from_fn(|_| frames.next().unwrap_or_default()))
    }

    /// Returns a copy in memory of its own, whose frames keep nothing else alive.
    pub(crate) fn detached(&self) -> Self {
        let mut copy = BytesMut::with_capacity(self.0.iter().map(Bytes::len).sum());
        let frames = self.0.iter().map(|frame| {
            copy.extend_from_slice(frame);
            copy.split().freeze()
        });
        Self(frames.collect())
    }

    /// Takes the message at the front of `wire`, which contains whole encoded messages as the engine returns
    /// them. Bytes that are not a message are dropped.
    pub fn take(wire: &mut Bytes) -> Option<Self> {
        let mut frames = SmallVec::new();
        let Some(end) = walk_message(wire, 0, |frame| frames.push(wire.slice(frame))) else {
            wire.clear();
            return None;
        };
        wire.advance(end);
        Some(Self(frames))
    }
}

impl FromIterator<Bytes> for Multipart {
    fn from_iter<I: IntoIterator<Item = Bytes>>(frames: I) -> Self {
        Self(frames.into_iter().collect())
    }
}

impl<F: Into<Bytes>, const N: usize> From<[F; N]> for Multipart {
    fn from(frames: [F; N]) -> Self {
        // This is faster than `collect`, which does not know how many frames there are.
        let mut all = SmallVec::new();
        for frame in frames {
            all.push(frame.into());
        }
        Self(all)
    }
}

impl From<Vec<Bytes>> for Multipart {
    fn from(frames: Vec<Bytes>) -> Self {
        Self(frames.into())
    }
}
