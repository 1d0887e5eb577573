//! The greeting: signature, version, and mechanism (RFC 37, "Version Negotiation").

use super::Violation;

/// The length of a ZMTP 3 greeting in bytes.
pub const GREETING_LEN: usize = 64;
/// The length in bytes of the signature and the major version. These are enough to determine the version of a
/// peer.
pub(super) const SIGNATURE_LEN: usize = 11;
/// The major version in the greeting of ZMTP 2.0 (RFC 15, "revision").
pub(super) const REVISION_2_0: u8 = 1;

/// A ZMTP 3 greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The major version, 3 or higher.
    pub major: u8,
    /// The minor version, 0 or 1. Peers with a later version may send a higher one.
    pub minor: u8,
    /// The security mechanism, without its padding.
    pub mechanism: Vec<u8>,
    /// Whether the peer is the server of the security handshake.
    pub as_server: bool,
}

impl Greeting {
    /// Decodes a complete greeting.
    ///
    /// # Errors
    ///
    /// There are other bytes behind the zero byte that ends the name of the mechanism.
    pub fn read(bytes: &[u8; GREETING_LEN]) -> Result<Self, Violation> {
        let mechanism = &bytes[12..32];
        let end = mechanism.iter().position(|&b| b == 0).unwrap_or(mechanism.len());
        if mechanism[end..].iter().any(|&b| b != 0) {
            return Err(Violation::Malformed("mechanism name in the greeting"));
        }
        Ok(Self {
            major: bytes[10],
            minor: bytes[11],
            mechanism: mechanism[..end].to_vec(),
            as_server: bytes[32] == 1,
        })
    }
}

/// Returns the first bytes that we send: the signature and major version 3. The rest is sent when the version
/// of the peer is known.
pub(super) fn signature() -> [u8; SIGNATURE_LEN] {
    // A ZMTP 1.0 peer reads the padding as the length of an identity frame of one byte, so old peers do not
    // fail on it. libzmq sends the same bytes.
    [0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3]
}

/// Returns what follows [`signature`] to a ZMTP 3 peer: minor version, mechanism, as-server flag, and filler.
pub(super) fn remainder(mechanism: &str, as_server: bool) -> [u8; GREETING_LEN - SIGNATURE_LEN] {
    let mut bytes = [0; GREETING_LEN - SIGNATURE_LEN];
    bytes[0] = 1;
    bytes[1..=mechanism.len()].copy_from_slice(mechanism.as_bytes());
    bytes[21] = u8::from(as_server);
    bytes
}

/// Checks as much of a signature as has arrived, so that a peer with another protocol is detected at its
/// first wrong byte.
pub(super) fn check_signature(bytes: &[u8]) -> Result<(), Violation> {
    match bytes.first() {
        None | Some(0xff) => {}
        // A ZMTP 1.0 peer starts with the length of its identity frame and a flags byte of zero.
        Some(_) if bytes.len() >= 2 && bytes[1] == 0 => return Err(Violation::VersionTooOld),
        Some(_) if bytes.len() >= 2 => return Err(Violation::NotZmtp),
        Some(_) => {}
    }
    // In a long ZMTP 1.0 identity frame, this byte holds flags, of which the lowest bit is not set.
    match bytes.get(9) {
        Some(byte) if byte & 1 == 0 => Err(Violation::VersionTooOld),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let mut bytes = [0; GREETING_LEN];
        bytes[..SIGNATURE_LEN].copy_from_slice(&signature());
        bytes[SIGNATURE_LEN..].copy_from_slice(&remainder("CURVE", true));
        let greeting = Greeting::read(&bytes).unwrap();
        assert_eq!(greeting, Greeting { major: 3, minor: 1, mechanism: b"CURVE".to_vec(), as_server: true });
    }

    #[test]
    fn tells_http_and_old_zeromq_apart() {
        assert_eq!(check_signature(b"GET / HTTP/1.1"), Err(Violation::NotZmtp));
        assert_eq!(check_signature(&[1, 0]), Err(Violation::VersionTooOld));
        assert_eq!(check_signature(&[0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Err(Violation::VersionTooOld));
        assert_eq!(check_signature(&signature()), Ok(()));
    }
}
