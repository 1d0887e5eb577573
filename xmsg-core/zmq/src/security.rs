//! Who may connect: security mechanisms of sockets, keys, and the files that keys lie in.
//!
//! | mechanism | authenticates | hides the traffic |
//! |---|---|---|
//! | NULL | nobody | no |
//! | PLAIN | the client, by name and password in clear text | no |
//! | CURVE | both sides, by their keys | yes |
//!
//! The mechanism is an option of a socket, like any other ([`SocketOptions::security`](crate::SocketOptions::security)); both
//! sides must agree on it. Whether a client is let in is for an [`Authenticator`] to say.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
//! use std::sync::Arc;
//! use std::time::Duration;
//! use xmsg_zmq::security::{AllowKeys, KeyPair, Security};
//! use xmsg_zmq::{Replier, Requester, SocketOptions};
//!
//! let (server, client) = (KeyPair::generate()?, KeyPair::generate()?);
//! let public = *server.public();
//! let allowed = Arc::new(AllowKeys::new([*client.public()]));
//! let options = SocketOptions::any();
//!
//! let replier = Replier::new(
//!     options.for_socket().security(Security::CurveServer { keys: server, authenticator: allowed }),
//! );
//! let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse()?).await?;
//! let requester = Requester::connecting_to(
//!     endpoint,
//!     options.for_socket().security(Security::CurveClient { keys: client, server: public }),
//! );
//! let answering = async {
//!     let (path, request) = replier.recv().await.unwrap();
//!     replier.try_reply(&path, request)
//! };
//! let (reply, answered) = futures::join!(requester.request(["secret"], Duration::from_secs(10)), answering);
//! assert_eq!(reply?.frames(), ["secret"]);
//! answered
//! # }
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use zeroize::Zeroizing;

use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::curve::{CurveClient, CurveServer, Entropy};
pub use xmsg_zmtp::curve::{KeyError, KeyPair, PublicKey, SecretKey};
pub use xmsg_zmtp::{Credentials, Principal};
use xmsg_zmtp::{Mechanism, Null, PLAIN_MAX, PlainClient, PlainServer};

/// What becomes of a peer that has shown its credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is let in.
    Admitted,
    /// It is told that it is not: there is no use in trying again.
    Refused,
    /// It was not judged, because there is too much to do. Its connection ends without a word, and it may come again.
    Busy,
}

impl From<bool> for Verdict {
    fn from(is_good: bool) -> Self {
        if is_good { Self::Admitted } else { Self::Refused }
    }
}

/// Says whether a peer is let in.
pub trait Authenticator: fmt::Debug + Send + Sync {
    /// Judges credentials. It may take its time, within that of the handshake, but must not block the thread. `from` is the address of the
    /// peer, if it comes over a network (IPv6: the network of 64 bits). Of one address, one is judged at a time.
    fn authenticate(&self, credentials: Credentials, from: Option<IpAddr>) -> BoxFuture<'_, Verdict>;

    /// Whether these credentials are known to be good, so that judging them takes no time. They don't wait for those that came from the
    /// same address before.
    fn recognizes(&self, credentials: &Credentials) -> bool {
        let _ = credentials;
        false
    }
}

/// Has an async function judge credentials: whether a peer is let in, as a [`Verdict`] or a `bool`. Each socket may have a function of its own, which
/// is what domains are for in ZAP.
///
/// ```
/// use xmsg_zmq::security::{Credentials, Security, authenticate_with};
/// let security = Security::PlainServer(authenticate_with(|credentials, from| async move {
///     let Credentials::Password { user, password } = credentials else { return false };
///     // Here one would ask a directory, or a database.
///     println!("{user:?} comes from {from:?}");
///     user == "ali" && password.as_slice() == b"open sesame"
/// }));
/// ```
pub fn authenticate_with<F, Judging, V>(judge: F) -> Arc<dyn Authenticator>
where
    F: Fn(Credentials, Option<IpAddr>) -> Judging + Send + Sync + 'static,
    Judging: Future<Output = V> + Send + 'static,
    V: Into<Verdict>,
{
    Arc::new(AsyncFunction(judge))
}

/// An async function that judges credentials.
struct AsyncFunction<F>(F);

impl<F> fmt::Debug for AsyncFunction<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AsyncFunction(…)")
    }
}

impl<F, Judging, V> Authenticator for AsyncFunction<F>
where
    F: Fn(Credentials, Option<IpAddr>) -> Judging + Send + Sync,
    Judging: Future<Output = V> + Send + 'static,
    V: Into<Verdict>,
{
    fn authenticate(&self, credentials: Credentials, from: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
        let judging = (self.0)(credentials, from);
        Box::pin(async move { judging.await.into() })
    }
}

/// Lets in whoever holds one of these keys.
#[derive(Clone, Debug, Default)]
pub struct AllowKeys(BTreeSet<PublicKey>);

impl AllowKeys {
    /// These keys.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        Self(keys.into_iter().collect())
    }
}

impl Authenticator for AllowKeys {
    fn authenticate(&self, credentials: Credentials, _: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
        Box::pin(std::future::ready(self.recognizes(&credentials).into()))
    }

    fn recognizes(&self, credentials: &Credentials) -> bool {
        matches!(credentials, Credentials::Key(key) if self.0.contains(key))
    }
}

/// The security mechanism of a socket, with our side's part in it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Security {
    /// No authentication, no confidentiality.
    #[default]
    Null,
    /// A name and a password, in clear text: for networks that nobody listens on.
    PlainClient {
        /// Who we are: at most 255 bytes.
        user: String,
        /// The proof: at most 255 bytes. Wiped when dropped.
        password: Password,
    },
    /// Clients show a name and a password.
    PlainServer(Arc<dyn Authenticator>),
    /// We show our key, to the server of this key and to no other; everything is encrypted.
    CurveClient {
        /// Our long-term keys.
        keys: KeyPair,
        /// The server's.
        server: PublicKey,
    },
    /// Clients must know our public key, and show theirs; everything is encrypted.
    CurveServer {
        /// Our long-term keys.
        keys: KeyPair,
        /// Who judges the clients' keys.
        authenticator: Arc<dyn Authenticator>,
    },
}

impl Security {
    /// A CURVE client whose keys are made up for it: for servers that let in every key.
    pub fn anonymous(server: PublicKey) -> Result<Self> {
        Ok(Self::CurveClient { keys: KeyPair::generate()?, server })
    }

    /// The name of the mechanism.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::PlainClient { .. } | Self::PlainServer(_) => "PLAIN",
            Self::CurveClient { .. } | Self::CurveServer { .. } => "CURVE",
        }
    }

    /// Our side of one handshake.
    #[must_use]
    pub fn mechanism(&self) -> Box<dyn Mechanism> {
        match self {
            Self::Null => Box::new(Null::default()),
            Self::PlainClient { user, password } => {
                Box::new(PlainClient::new(user.as_bytes(), password.expose().as_bytes()))
            }
            Self::PlainServer(_) => Box::new(PlainServer::default()),
            Self::CurveClient { keys, server } => {
                Box::new(CurveClient::new(keys.clone(), *server, entropy()))
            }
            Self::CurveServer { keys, .. } => Box::new(CurveServer::new(keys.clone(), entropy())),
        }
    }

    /// Who judges the peers, if we are a server.
    #[must_use]
    pub fn authenticator(&self) -> Option<Arc<dyn Authenticator>> {
        match self {
            Self::PlainServer(authenticator) | Self::CurveServer { authenticator, .. } => {
                Some(authenticator.clone())
            }
            _ => None,
        }
    }
}

/// A password: never shown by `Debug`, wiped when dropped.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// This password; at most 255 bytes.
    pub fn new(password: impl Into<String>) -> Result<Self> {
        let password = Zeroizing::new(password.into());
        if password.len() > PLAIN_MAX {
            let what = format!("a password of {} bytes: PLAIN allows for {PLAIN_MAX}", password.len());
            return Err(Error::new(ErrorKind::InvalidOption, what));
        }
        Ok(Self(password))
    }

    /// The first line of a file that nobody else may read.
    pub fn read(file: &Path) -> Result<Self> {
        let text = read_secret(file)?;
        Self::new(text.lines().next().unwrap_or_default())
    }

    /// The password itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// The keys in a file that `xmsg keygen` wrote: a line `secret-key = "…"`, in Z85; other lines are comments, or the public key. The
/// file must not be readable by others.
pub fn read_key_file(file: &Path) -> Result<KeyPair> {
    let text = read_secret(file)?;
    let value = text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "secret-key").then(|| value.trim().trim_matches('"'))
    });
    let Some(value) = value else {
        let what =
            format!("{}: no line `secret-key = \"…\"`; make a file with `xmsg keygen`", file.display());
        return Err(Error::new(ErrorKind::InvalidOption, what));
    };
    let secret: SecretKey = value.parse().map_err(|error: KeyError| {
        Error::new(ErrorKind::InvalidOption, format!("{}: {error}", file.display()))
    })?;
    Ok(secret.into())
}

/// The text of a file that only its owner may read: keys, passwords, tokens. One that others may read or change is refused.
pub fn read_secret(file: &Path) -> Result<Zeroizing<String>> {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    let failed = |error| Error::io(format!("cannot read {}", file.display()), error);
    let mut opened = std::fs::File::open(file).map_err(failed)?;
    // Of the very file that is read: another one may take its name meanwhile.
    let mode = opened.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        let what = format!(
            "{file} holds a secret and others may read or change it (mode {:o}): run `chmod 600 {file}`",
            mode & 0o777,
            file = file.display()
        );
        return Err(Error::new(ErrorKind::InvalidOption, what));
    }
    let mut text = Zeroizing::new(String::new());
    opened.read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// # Panics
///
/// When the operating system has no randomness: going on without would be worse.
fn entropy() -> Entropy {
    const RANDOMNESS: &str = "the operating system gives randomness";
    let (mut transient, mut nonce) = (Zeroizing::new([0; 32]), [0; 16]);
    let mut cookie = Zeroizing::new([0; 96]);
    getrandom::fill(&mut *transient).expect(RANDOMNESS);
    getrandom::fill(&mut nonce).expect(RANDOMNESS);
    getrandom::fill(&mut *cookie).expect(RANDOMNESS);
    Entropy { transient: SecretKey::from_bytes(*transient), nonce, cookie }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use bytes::Bytes;
    use xmsg_zmtp::Properties;

    use super::*;

    #[test]
    fn a_key_file_is_for_its_owner_alone() {
        let keys = KeyPair::generate().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let secret = keys.secret().expose_text();
        std::fs::write(file.path(), format!("# a key\nsecret-key = \"{}\"\n", *secret)).unwrap();
        assert_eq!(read_key_file(file.path()).unwrap(), keys);
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = read_key_file(file.path()).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    /// RFC 26: transient keys, nonces and cookies are for one connection.
    #[test]
    fn every_connection_has_keys_and_nonces_of_its_own() {
        let (server, client) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let at_client = Security::CurveClient { keys: client, server: *server.public() };
        let allowed = Arc::new(AllowKeys::default());
        let at_server = Security::CurveServer { keys: server, authenticator: allowed };
        let hello = || at_client.mechanism().poll_command(&Properties::default()).unwrap();
        let (first, second) = (hello(), hello());
        assert_eq!(first.len(), 200);
        assert_eq!(first[8..80], [0; 72], "the padding");
        let transient_key = 80..112;
        assert_ne!(first[transient_key.clone()], second[transient_key]);
        let welcome = |hello: &Bytes| {
            let mut mechanism = at_server.mechanism();
            mechanism.handle_command(hello.clone()).unwrap();
            mechanism.poll_command(&Properties::default()).unwrap()
        };
        let (one, other) = (welcome(&first), welcome(&first));
        assert_eq!(one.len(), 168);
        let nonce = 8..24;
        assert_ne!(one[nonce.clone()], other[nonce], "also for a HELLO that was recorded");
        assert_ne!(one[24..], other[24..]);
    }

    #[test]
    fn nothing_secret_is_shown() {
        let password = Password::new("open sesame").unwrap();
        let shown = format!("{:?}", Security::PlainClient { user: "ali".into(), password });
        assert!(shown.contains("ali") && !shown.contains("sesame"), "{shown}");
    }
}
