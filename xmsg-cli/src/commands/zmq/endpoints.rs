//! Endpoints to bind and connect to, and their security: the options, and their implementation.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use futures::FutureExt;
use futures::future::BoxFuture;
use xmsg_core::Security;
use xmsg_core::security::{
    AllowKeys, Authenticator, Credentials, Password, PublicKey, Verdict, read_key_file,
};
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::{Admission, AdmissionLimits, Endpoint, ErrorKind, HasIdentity, SocketOptions};
use xmsg_zmtp::Limits;

use super::Socket;
use crate::args::{SecurityOptions, parse_bytes};
use crate::exit::Usage;
use crate::output::note;
use crate::settings::{self, Found, Setting};

/// Whether a socket binds or connects by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Bind,
    Connect,
}

/// An endpoint, and whether to bind or connect to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) end: End,
    pub(crate) endpoint: Endpoint,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

/// The options for the endpoints and the peers of a socket.
#[derive(Debug, clap::Args)]
pub(crate) struct SocketArguments {
    /// Bind to the endpoints: peers connect to us. Port 0 is any free one, which is shown on standard error
    #[arg(id = "zmq_bind", long = "bind", conflicts_with = "zmq_connect")]
    bind: bool,

    /// Connect to the endpoints
    #[arg(id = "zmq_connect", long = "connect")]
    connect: bool,

    /// The identity of the socket, by which a ROUTER addresses it
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,

    #[command(flatten)]
    peers: PeerOptions,
}

/// The options for peers: who may connect, beside the shared options for security, and what peers may send.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerOptions {
    /// The largest message that is sent and that peers may send, with its frames and their headers, such as
    /// 100MB or 1GiB. A peer that sends a larger one loses its connection [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    max_message_size: Option<u64>,

    /// When we bind with CURVE (--key-file has our keys): accept only clients with this public key; can be
    /// given more than once
    // A key may begin with a hyphen.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    client_key: Vec<PublicKey>,
}

impl SocketArguments {
    /// Parses endpoints. `usual` holds where neither the word nor an option says whether to bind or connect.
    pub(super) fn targets<'a>(
        &self,
        words: impl IntoIterator<Item = &'a str>,
        usual: End,
    ) -> Result<Vec<Target>, Usage> {
        let usual = match (self.bind, self.connect) {
            (true, _) => End::Bind,
            (_, true) => End::Connect,
            _ => usual,
        };
        let mut targets = Vec::new();
        for word in words {
            targets.extend(read(word, usual)?);
        }
        Ok(targets)
    }

    /// Checks that the options are valid for RADIO or DISH, which have datagrams and no connections.
    pub(super) fn check_datagrams(&self, kind: &str, end: End) -> anyhow::Result<()> {
        let other = match end {
            End::Bind if self.connect => Some("binds: leave out --connect, and connect the RADIO"),
            End::Connect if self.bind => Some("connects: leave out --bind, and bind the DISH"),
            _ => None,
        };
        if let Some(other) = other {
            bail!(Usage(format!("a {kind} {other}")));
        }
        let given = [
            (self.identity.is_some(), "--identity"),
            (self.peers.max_message_size.is_some(), "--max-message-size"),
            (!self.peers.client_key.is_empty(), "--client-key"),
        ];
        if let Some((_, option)) = given.iter().find(|(is_given, _)| *is_given) {
            bail!(Usage(format!(
                "{option} is for sockets with connections: a {kind} has datagrams, leave it out"
            )));
        }
        if !matches!(SecurityOptions::security()?, Security::Null) {
            bail!(Usage(format!(
                "a {kind} has no security, everybody can read its datagrams: leave out keys and users, or use PUB and SUB"
            )));
        }
        Ok(())
    }

    /// Returns the options of a socket with these endpoints.
    pub(super) fn options(&self, targets: &[Target]) -> anyhow::Result<SocketOptions<Identified>> {
        let identity = self.identity.clone().unwrap_or_default();
        // An identity is announced in a frame whose length field has one byte.
        if identity.len() > 255 || self.identity.as_deref() == Some("") {
            bail!(Usage("--identity: a name has 1 to 255 bytes".to_owned()));
        }
        Ok(self.peers.options(targets, Room::of_process())?.for_socket().identity(identity))
    }
}

/// The type parameter of the options for sockets of any type, including those with an identity.
#[derive(Debug)]
pub(super) struct Identified;

impl HasIdentity for Identified {}

/// What the peers of all sockets of this process share: memory and connections. A connection to one socket
/// takes a descriptor that the others need, too.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    memory: MemoryBudget,
    admission: Admission,
}

/// The descriptors that are kept for everything but connections: standard streams, the runtime, listeners,
/// and connections that are ended and not yet closed.
const OWN_DESCRIPTORS: usize = 32;

impl Room {
    /// Raises the limit of open descriptors as far as this user may, and takes the limit of connections from
    /// it.
    pub(crate) fn of_process() -> Self {
        let memory = MemoryBudget::new(xmsg_proxy::default_memory_limit::default_limit());
        let admission =
            Admission::with_memory(limits_with(xmsg_proxy::descriptors::raise_limit()), memory.clone());
        Self { memory, admission }
    }
}

/// Returns the limits of connections of a process that may have this number of descriptors.
fn limits_with(descriptors: usize) -> AdmissionLimits {
    let usual = AdmissionLimits::default();
    let places = descriptors.saturating_sub(OWN_DESCRIPTORS).max(descriptors / 2);
    AdmissionLimits { connections: usual.connections.min(places), ..usual }
}

impl PeerOptions {
    /// Returns the options of a socket with these endpoints. For security, it is a client where it connects,
    /// and a server where it binds. Peers may send any number of messages, each up to the size limit;
    /// `room` limits the memory and the connections that the peers of all sockets with it use together.
    pub(crate) fn options(&self, targets: &[Target], room: Room) -> anyhow::Result<SocketOptions> {
        let Room { memory, admission } = room;
        let limits = self.limits();
        Ok(self.security_options(targets)?.limits(limits).memory(memory).admission(admission))
    }

    fn limits(&self) -> Limits {
        let usual = Limits::default();
        let size = self.max_message_size.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        Limits { message_size: size.unwrap_or(usual.message_size), ..usual }
    }

    fn security_options(&self, targets: &[Target]) -> anyhow::Result<SocketOptions> {
        let binds = targets.iter().any(|target| target.end == End::Bind);
        let connects = targets.iter().any(|target| target.end == End::Connect);
        if !binds {
            if !self.client_key.is_empty() {
                let what = "--client-key says who may connect to us, but nothing is bound: leave it out, or add --bind";
                bail!(Usage(what.to_owned()));
            }
            return Ok(SecurityOptions::socket_options()?);
        }
        let security = self.security()?;
        if connects && !matches!(security, Security::Null) {
            let what = "a socket that binds and connects would be server and client of security at once: bind alone or connect \
                        alone, or leave out keys and users";
            bail!(Usage(what.to_owned()));
        }
        Ok(SecurityOptions::socket_options_with(Security::Null).security(security))
    }

    /// Returns the security of a server, with the credentials of options, environment and context.
    fn security(&self) -> anyhow::Result<Security> {
        let found = |setting: &Setting| setting.current(settings::given(setting));
        if let Some(Found { source, .. }) = found(&settings::SERVER_KEY)? {
            bail!(Usage(format!(
                "{source} has the key of a server to connect to, but whoever binds is the server: give its keys with \
                 --key-file, and leave that one out (--server-key '')"
            )));
        }
        let key_file = found(&settings::KEY_FILE)?;
        match (key_file, found(&settings::USER)?) {
            (Some(file), Some(user)) => bail!(Usage(format!(
                "{} means CURVE and {} means PLAIN: leave one of them out",
                file.source, user.source
            ))),
            (Some(file), None) => {
                let keys = read_key_file(Path::new(&file.value)).map_err(|error| named(&file, &error))?;
                let authenticator: Arc<dyn Authenticator> = if self.client_key.is_empty() {
                    Arc::new(AcceptAnyKey)
                } else {
                    Arc::new(AllowKeys::new(self.client_key.iter().copied()))
                };
                Ok(Security::CurveServer { keys, authenticator })
            }
            (None, _) if !self.client_key.is_empty() => bail!(Usage(
                "--client-key means CURVE: give our own keys, too, with --key-file (`xmsg keygen` makes them)".to_owned()
            )),
            (None, Some(user)) => {
                let Some(file) = found(&settings::PASSWORD_FILE)? else {
                    bail!(Usage(format!(
                        "{} is given without --password-file: name the file with the password",
                        user.source
                    )));
                };
                let password = Password::read(Path::new(&file.value)).map_err(|error| named(&file, &error))?;
                Ok(Security::PlainServer(Arc::new(AcceptOneUser { user: user.value, password })))
            }
            (None, None) => Ok(Security::Null),
        }
    }
}

/// Adds the source of a value to an error about it.
fn named(found: &Found, error: &xmsg_zmq::Error) -> anyhow::Error {
    let error = error.clone();
    xmsg_zmq::Error::new(error.kind(), format!("{}: {error}", found.source)).into()
}

/// Accepts every client that knows our public key.
#[derive(Debug)]
struct AcceptAnyKey;

impl Authenticator for AcceptAnyKey {
    fn authenticate(&self, credentials: Credentials, _: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
        std::future::ready(matches!(credentials, Credentials::Key(_)).into()).boxed()
    }
}

/// Accepts one user.
#[derive(Debug)]
struct AcceptOneUser {
    user: String,
    password: Password,
}

impl Authenticator for AcceptOneUser {
    fn authenticate(&self, credentials: Credentials, _: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
        let is_good = match &credentials {
            Credentials::Password { user, password } => {
                // All bytes are compared, so that the time does not reveal where they differ.
                let ours = self.password.expose().as_bytes();
                let differs = ours.iter().zip(password.iter()).fold(0, |all, (a, b)| all | (a ^ b));
                user == self.user.as_bytes() && ours.len() == password.len() && differs == 0
            }
            _ => false,
        };
        std::future::ready(is_good.into()).boxed()
    }
}

/// Returns whether a word is an endpoint, and not another argument that may precede endpoints.
pub(super) fn is_endpoint(word: &str) -> bool {
    word.contains("://")
}

/// Parses endpoints that are separated by commas. As in CZMQ, the prefix `@` means bind and `>` means
/// connect.
pub(crate) fn read(word: &str, usual: End) -> Result<Vec<Target>, Usage> {
    let mut pieces: Vec<String> = Vec::new();
    for piece in word.split(',') {
        match pieces.last_mut() {
            // The path of a Unix socket may contain commas.
            Some(last) if !is_endpoint(piece) && last.contains("ipc://") => {
                last.push(',');
                last.push_str(piece);
            }
            _ => pieces.push(piece.to_owned()),
        }
    }
    pieces.iter().map(|piece| target(piece, usual)).collect()
}

fn target(word: &str, usual: End) -> Result<Target, Usage> {
    let (end, text) = match (word.strip_prefix('@'), word.strip_prefix('>')) {
        (Some(text), _) => (End::Bind, text),
        (_, Some(text)) => (End::Connect, text),
        _ => (usual, word),
    };
    let endpoint: Endpoint =
        text.parse().map_err(|error| Usage(format!("{error}, such as tcp://localhost:5557")))?;
    let invalid = |why: &str| Err(Usage(format!("invalid endpoint {text:?}: {why}")));
    match &endpoint {
        Endpoint::Inproc(_) => {
            invalid("inproc:// is within one process, and nobody else can be in ours: give tcp:// or ipc://")
        }
        Endpoint::Udp { .. } => invalid("udp:// is for RADIO and DISH: see xmsg zmq send and recv"),
        Endpoint::Tcp { host, port } if end == End::Connect && (host == "*" || *port == 0) => {
            invalid("`*` and port 0 are for binding: add --bind or `@` in front, or name host and port")
        }
        _ => Ok(Target { end, endpoint }),
    }
}

/// Parses endpoints for datagrams, separated by commas. A RADIO connects to them and a DISH binds to them.
pub(super) fn datagram_endpoints<'a>(
    words: impl IntoIterator<Item = &'a str>,
    end: End,
) -> Result<Vec<Endpoint>, Usage> {
    let (ours, not_ours) = match end {
        End::Bind => ('@', '>'),
        End::Connect => ('>', '@'),
    };
    let endpoint = |word: &str| {
        if word.starts_with(not_ours) {
            return Err(Usage(format!("{word}: a RADIO connects and a DISH binds: leave out `{not_ours}`")));
        }
        let text = word.strip_prefix(ours).unwrap_or(word);
        let example = "such as udp://127.0.0.1:5558";
        match text.parse() {
            Ok(Endpoint::Udp { host, port, .. }) if end == End::Connect && (host == "*" || port == 0) => {
                Err(Usage(format!("{text}: `*` and port 0 are for binding: name host and port, {example}")))
            }
            Ok(endpoint @ Endpoint::Udp { .. }) => Ok(endpoint),
            Ok(_) => Err(Usage(format!("{text}: RADIO and DISH are for datagrams, {example}"))),
            Err(error) => Err(Usage(format!("{error}, {example}"))),
        }
    };
    words.into_iter().flat_map(|word| word.split(',')).map(endpoint).collect()
}

/// Returns whether the socket only connects, so that its peer should already be there.
pub(super) fn only_connects(targets: &[Target]) -> bool {
    targets.iter().all(|target| target.end == End::Connect)
}

/// Returns a text with the endpoints.
pub(crate) fn names(targets: &[Target]) -> String {
    targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// Binds and connects the socket of a command. Returns the endpoints with their actual ports.
pub(super) async fn attach(socket: &Socket, mut targets: Vec<Target>) -> anyhow::Result<Vec<Target>> {
    for target in &mut targets {
        match target.end {
            End::Bind => {
                target.endpoint = bound(socket.bind(&target.endpoint).await)?;
                note(format_args!("bound to {target}"));
            }
            End::Connect => socket.connect(target.endpoint.clone()),
        }
    }
    Ok(targets)
}

/// Converts the error of an endpoint that cannot be bound. It is not a connection error.
pub(crate) fn bound(result: xmsg_zmq::Result<Endpoint>) -> anyhow::Result<Endpoint> {
    result.map_err(|error| match error.kind() {
        ErrorKind::UnknownHost | ErrorKind::InvalidAddress => anyhow!(Usage(error.with_causes().to_string())),
        _ => anyhow!("{}", error.with_causes()),
    })
}

/// Returns a word as text, if it is UTF-8.
pub(super) fn text(word: &std::ffi::OsStr) -> anyhow::Result<&str> {
    word.to_str().with_context(|| Usage(format!("{} is not UTF-8", word.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(word: &str, usual: End) -> Vec<(End, String)> {
        let targets = read(word, usual).unwrap_or_else(|error| panic!("{word}: {error}"));
        targets.into_iter().map(|target| (target.end, target.endpoint.to_string())).collect()
    }

    #[test]
    fn each_endpoint_may_say_what_is_done_there() {
        let (bind, connect) = (End::Bind, End::Connect);
        assert_eq!(ends("tcp://a:1", connect), [(connect, "tcp://a:1".into())]);
        assert_eq!(ends("tcp://*:0", bind), [(bind, "tcp://*:0".into())]);
        assert_eq!(
            ends("@tcp://*:1,>tcp://b:2,ipc:///tmp/a,b,ipc://c", connect),
            [
                (bind, "tcp://*:1".into()),
                (connect, "tcp://b:2".into()),
                (connect, "ipc:///tmp/a,b".into()),
                (connect, "ipc://c".into())
            ]
        );
    }

    #[test]
    fn there_are_never_more_connections_than_descriptors() {
        let connections = [usize::MAX, 1024, 40, 1].map(|descriptors| limits_with(descriptors).connections);
        assert_eq!(connections, [AdmissionLimits::default().connections, 992, 20, 0]);
    }

    #[test]
    fn what_can_not_be_is_told() {
        for (word, says) in [
            ("localhost:1", "such as tcp://"),
            ("tcp://a", "port is missing"),
            ("tcp://*:1", "for binding"),
            ("tcp://a:0", "for binding"),
            ("inproc://a", "within one process"),
            ("tcp://a:1,b:2", "\"b:2\": it has to start with"),
            ("", "such as tcp://"),
        ] {
            let error = read(word, End::Connect).unwrap_err();
            assert!(error.to_string().contains(says), "{word}: {error}");
        }
    }
}
