//! Socket types, and which of them are compatible.

use std::fmt;

/// A ZeroMQ socket type, as announced in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the field's own: RFC 28 to 31")]
pub enum SocketType {
    Pair,
    Pub,
    Sub,
    Req,
    Rep,
    Dealer,
    Router,
    Pull,
    Push,
    Xpub,
    Xsub,
}

impl SocketType {
    const ALL: [Self; 11] = [
        Self::Pair,
        Self::Pub,
        Self::Sub,
        Self::Req,
        Self::Rep,
        Self::Dealer,
        Self::Router,
        Self::Pull,
        Self::Push,
        Self::Xpub,
        Self::Xsub,
    ];

    /// Returns the name on the wire, such as `"XPUB"`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pair => "PAIR",
            Self::Pub => "PUB",
            Self::Sub => "SUB",
            Self::Req => "REQ",
            Self::Rep => "REP",
            Self::Dealer => "DEALER",
            Self::Router => "ROUTER",
            Self::Pull => "PULL",
            Self::Push => "PUSH",
            Self::Xpub => "XPUB",
            Self::Xsub => "XSUB",
        }
    }

    /// Returns the socket type with this name, as ZMTP 3 announces it.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name().as_bytes() == name)
    }

    /// Returns the number of this type in a ZMTP 2.0 greeting.
    #[must_use]
    pub fn code(self) -> u8 {
        // `ALL` is in the order of the numbers of RFC 15, and of those of libzmq 3.2 for XPUB and XSUB.
        Self::ALL.iter().position(|kind| *kind == self).unwrap_or_default() as u8
    }

    /// Returns the socket type with this number in a ZMTP 2.0 greeting.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Returns whether sockets of these two types may be connected.
    #[must_use]
    pub fn fits(self, peer: Self) -> bool {
        use SocketType::{Dealer, Pair, Pub, Pull, Push, Rep, Req, Router, Sub, Xpub, Xsub};
        match self {
            Pub | Xpub => matches!(peer, Sub | Xsub),
            Sub | Xsub => matches!(peer, Pub | Xpub),
            Req => matches!(peer, Rep | Router),
            Rep => matches!(peer, Req | Dealer),
            Dealer => matches!(peer, Rep | Dealer | Router),
            Router => matches!(peer, Req | Dealer | Router),
            Push => peer == Pull,
            Pull => peer == Push,
            Pair => peer == Pair,
        }
    }

    /// Returns whether peers send subscriptions to a socket of this type.
    #[must_use]
    pub fn takes_subscriptions(self) -> bool {
        matches!(self, Self::Pub | Self::Xpub)
    }

    /// Returns whether a socket of this type understands [`Command::Drain`](super::Command::Drain). It is for
    /// sockets that only send messages and get no answers to them.
    #[must_use]
    pub fn drains(self) -> bool {
        matches!(self, Self::Pub)
    }

    /// Returns whether a socket of this type understands [`Command::Dropped`](super::Command::Dropped).
    #[must_use]
    pub fn accepts_drop_reports(self) -> bool {
        matches!(self, Self::Sub)
    }

    /// Returns whether a socket of this type announces its identity (RFC 28).
    #[must_use]
    pub fn announces_identity(self) -> bool {
        matches!(self, Self::Req | Self::Dealer | Self::Router)
    }
}

impl fmt::Display for SocketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::SocketType;

    #[test]
    fn fitting_is_mutual() {
        for a in SocketType::ALL {
            for b in SocketType::ALL {
                assert_eq!(a.fits(b), b.fits(a), "{a} {b}");
            }
        }
    }

    /// This is the table of RFC 23, "The Socket-Type Property".
    #[test]
    fn exactly_the_pairs_of_the_rfc_fit() {
        let pairs = [
            "REQ REP",
            "REQ ROUTER",
            "REP DEALER",
            "DEALER DEALER",
            "DEALER ROUTER",
            "ROUTER ROUTER",
            "PUB SUB",
            "PUB XSUB",
            "XPUB SUB",
            "XPUB XSUB",
            "PUSH PULL",
            "PAIR PAIR",
        ];
        for a in SocketType::ALL {
            for b in SocketType::ALL {
                let is_legal = pairs.contains(&&*format!("{a} {b}")) || pairs.contains(&&*format!("{b} {a}"));
                assert_eq!(a.fits(b), is_legal, "{a} {b}");
            }
        }
    }

    #[test]
    fn names_and_codes_read_back() {
        for kind in SocketType::ALL {
            assert_eq!(SocketType::from_name(kind.name().as_bytes()), Some(kind));
            assert_eq!(SocketType::from_code(kind.code()), Some(kind));
        }
        assert_eq!(SocketType::from_name(b"STREAM"), None);
        assert_eq!(SocketType::Pub.code(), 1);
        assert_eq!(SocketType::Xsub.code(), 10);
    }
}
