//! A message as ZeroMQ knows it: one or more frames.

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

use xmsg_zmtp::walk_message;

/// The frames of a message. Cheap to clone: the frames are shared.
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
    /// The frames, first to last.
    #[must_use]
    pub fn frames(&self) -> &[Bytes] {
        &self.0
    }

    /// The same as an array, if there are just so many frames.
    #[must_use]
    pub fn into_array<const N: usize>(self) -> Option<[Bytes; N]> {
        let mut frames = self.0.into_iter();
        if frames.len() != N {
            return None;
        }
        // As many as were counted, so none of them is made up.
        Some(std::array::from_fn(|_| frames.next().unwrap_or_default()))
    }

    /// Takes the message at the front of `wire`, bytes of whole messages as the engine hands them out. Bytes that are none are thrown away.
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
        // Faster than `collect`, which does not know how many there are.
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
