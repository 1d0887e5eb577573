//! A message as ZeroMQ knows it: one or more frames.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::zmtp::{Frames, Header};

/// The frames of a message. Cheap to clone: the frames are shared.
///
/// ```
/// use xmsg_core::socket::Multipart;
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
        self.0.into_vec().try_into().ok()
    }

    /// Takes the message at the front of `wire`, bytes of whole messages as the engine hands them out.
    pub(crate) fn take(wire: &mut Bytes) -> Option<Self> {
        let mut end = 0;
        loop {
            let header = Header::read(wire.get(end..)?).ok().flatten()?;
            end += header.len + header.body_len as usize;
            if end > wire.len() {
                return None;
            }
            if !header.has_more() {
                return Some(Self(Frames::of(wire.split_to(end)).collect()));
            }
        }
    }
}

impl FromIterator<Bytes> for Multipart {
    fn from_iter<I: IntoIterator<Item = Bytes>>(frames: I) -> Self {
        Self(frames.into_iter().collect())
    }
}

impl<F: Into<Bytes>, const N: usize> From<[F; N]> for Multipart {
    fn from(frames: [F; N]) -> Self {
        frames.into_iter().map(Into::into).collect()
    }
}

impl From<Vec<Bytes>> for Multipart {
    fn from(frames: Vec<Bytes>) -> Self {
        Self(frames.into())
    }
}
