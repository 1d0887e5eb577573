//! Types of ZeroMQ sockets as words of the command line.

use std::fmt;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use xmsg_zmtp::SocketType;

/// A type of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A type that has connections.
    Connected(SocketType),
    /// A type that sends datagrams to groups.
    Radio,
    /// A type that receives the datagrams of its groups.
    Dish,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Connected(kind) => kind.name(),
            Self::Radio => "RADIO",
            Self::Dish => "DISH",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns all types that have connections, in the order of their codes.
fn all() -> impl Iterator<Item = SocketType> {
    (0..).map_while(SocketType::from_code)
}

/// Returns the type with this name, in upper or lower case.
pub(super) fn named(name: &str) -> Option<SocketType> {
    SocketType::from_name(name.to_ascii_uppercase().as_bytes())
}

/// Returns a text with the types that this type can talk to.
pub(super) fn peers(kind: SocketType) -> String {
    let names: Vec<_> = all().filter(|peer| kind.fits(*peer)).map(SocketType::name).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => names.concat(),
    }
}

/// Adds the indefinite article to the name of a type: `an XPUB`, `a REP`. The name may come from a peer.
pub(super) fn with_article(name: &str) -> String {
    // The name of the letter X begins with a vowel sound.
    let article = if name.starts_with(['A', 'E', 'I', 'O', 'X']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// Makes a parser for types. The help lists those that fit the command. Other types are also parsed, and the
/// command explains why they do not fit.
pub(super) fn parser(
    fitting: &[SocketType],
    without_connections: Kind,
) -> impl TypedValueParser<Value = Kind> + use<> {
    let every = || all().map(Kind::Connected).chain([Kind::Radio, Kind::Dish]);
    let fitting: Vec<_> =
        fitting.iter().map(|kind| Kind::Connected(*kind)).chain([without_connections]).collect();
    let others = every().filter(|kind| !fitting.contains(kind)).map(|kind| (kind, true));
    let values = fitting.iter().map(|kind| (*kind, false)).chain(others);
    PossibleValuesParser::new(values.map(|(kind, is_hidden)| PossibleValue::new(kind.name()).hide(is_hidden)))
        .try_map(move |word| {
            every().find(|kind| kind.name().eq_ignore_ascii_case(&word)).ok_or("no type of socket")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case() {
        assert_eq!(all().count(), 11);
        for kind in all() {
            assert_eq!(named(&kind.name().to_lowercase()), Some(kind));
        }
        assert_eq!(named("STREAM"), None);
        assert_eq!(peers(SocketType::Pub), "SUB or XSUB");
        assert_eq!(
            (peers(SocketType::Pull), peers(SocketType::Router)),
            ("PUSH".into(), "REQ, DEALER or ROUTER".into())
        );
    }

    #[test]
    fn names_have_their_articles() {
        let an: Vec<_> =
            all().map(|kind| with_article(kind.name())).filter(|name| name.starts_with("an ")).collect();
        assert_eq!(an, ["an XPUB", "an XSUB"]);
        assert_eq!(with_article("REP"), "a REP");
    }
}
