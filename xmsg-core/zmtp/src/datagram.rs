//! The datagrams of RADIO and DISH. Each contains one message: the length of the group in one byte, the
//! group, and the body. There is no greeting, no handshake and no security. RFC 48 leaves the format to the
//! transport; this is the format of libzmq (`udp_engine.cpp`).
//!
//! ```
//! use xmsg_zmtp::datagram::{Datagram, encode};
//! let bytes = encode(b"weather", b"12.5").unwrap();
//! assert_eq!(&bytes[..], b"\x07weather12.5");
//! assert_eq!(Datagram::decode(&bytes).unwrap(), Datagram { group: b"weather", body: b"12.5" });
//! ```

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

/// The maximum length of a group in bytes (RFC 48).
pub const GROUP_MAX: usize = 255;

/// A message that was received in one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The group that the message belongs to.
    pub group: &'a [u8],
    /// The body of the message.
    pub body: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Decodes a datagram.
    ///
    /// # Errors
    ///
    /// The datagram is shorter than its first byte says, or the group has a zero byte.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (&len, rest) = bytes.split_first().ok_or(Malformed::Short)?;
        let (group, body) = rest.split_at_checked(len.into()).ok_or(Malformed::Short)?;
        if group.contains(&0) { Err(Malformed::ZeroInGroup) } else { Ok(Self { group, body }) }
    }
}

/// Why bytes are not a datagram, or cannot be encoded as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Malformed {
    /// The datagram ends before its group does.
    Short,
    /// The group has a zero byte.
    ZeroInGroup,
    /// The group is longer than [`GROUP_MAX`].
    LongGroup,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "the datagram ends before its group does",
            Self::ZeroInGroup => "a group must not have a zero byte",
            Self::LongGroup => "a group is at most 255 bytes long",
        })
    }
}

impl std::error::Error for Malformed {}

/// Checks whether this is a valid group (RFC 48): 0 to 255 bytes, none of them zero.
///
/// # Errors
///
/// What is wrong with the group.
pub fn check_group(group: &[u8]) -> Result<(), Malformed> {
    match group {
        _ if group.len() > GROUP_MAX => Err(Malformed::LongGroup),
        _ if group.contains(&0) => Err(Malformed::ZeroInGroup),
        _ => Ok(()),
    }
}

/// Encodes a datagram. The caller has to check its size.
///
/// # Errors
///
/// The group is invalid: see [`check_group`].
pub fn encode(group: &[u8], body: &[u8]) -> Result<Bytes, Malformed> {
    check_group(group)?;
    let mut bytes = BytesMut::with_capacity(1 + group.len() + body.len());
    bytes.put_u8(group.len() as u8);
    bytes.put_slice(group);
    bytes.put_slice(body);
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_are_those_of_libzmq() {
        assert_eq!(&encode(b"TV", b"Friends").unwrap()[..], b"\x02TVFriends");
        assert_eq!(&encode(b"", b"").unwrap()[..], b"\0");
        let longest = [b'g'; GROUP_MAX];
        let bytes = encode(&longest, b"x").unwrap();
        assert_eq!((bytes[0], bytes.len()), (255, 257));
        assert_eq!(Datagram::decode(&bytes).unwrap(), Datagram { group: &longest, body: b"x" });
    }

    #[test]
    fn what_is_no_datagram_says_why() {
        assert_eq!(Datagram::decode(b""), Err(Malformed::Short));
        assert_eq!(Datagram::decode(b"\x03ab"), Err(Malformed::Short));
        assert_eq!(Datagram::decode(b"\x02a\0x"), Err(Malformed::ZeroInGroup));
        assert_eq!(encode(&[b'g'; GROUP_MAX + 1], b""), Err(Malformed::LongGroup));
        assert_eq!(encode(b"a\0", b""), Err(Malformed::ZeroInGroup));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(group in prop::collection::vec(1_u8.., 0..=GROUP_MAX), body: Vec<u8>) {
            let bytes = encode(&group, &body).unwrap();
            prop_assert_eq!(Datagram::decode(&bytes), Ok(Datagram { group: &group, body: &body }));
        }

        #[test]
        fn bytes_from_anywhere_are_a_datagram_or_an_error(bytes: Vec<u8>) {
            if let Ok(Datagram { group, body }) = Datagram::decode(&bytes) {
                prop_assert_eq!(&encode(group, body).unwrap()[..], &bytes[..]);
            }
        }
    }
}
