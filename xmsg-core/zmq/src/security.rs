//! Security mechanisms of sockets, authentication of peers, keys, and key files.
//!
//! | mechanism | authenticates | encrypts the traffic |
//! |---|---|---|
//! | NULL | nobody | no |
//! | PLAIN | the client, by name and password in clear text | no |
//! | CURVE | both sides, by their keys | yes |
//!
//! The mechanism is an option of a socket, like any other
//! ([`SocketOptions::security`](crate::SocketOptions::security)). Both sides must use the same one. An
//! [`Authenticator`] decides whether a client is admitted.
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

/// The result of authenticating a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The peer is admitted.
    Admitted,
    /// The peer is rejected and receives an error: there is no use in trying again.
    Refused,
    /// The peer was not authenticated because of overload. Its connection is closed without an error, and it
    /// may try again.
    Busy,
}

impl From<bool> for Verdict {
    fn from(is_good: bool) -> Self {
        if is_good { Self::Admitted } else { Self::Refused }
    }
}

/// Decides whether a peer is admitted.
pub trait Authenticator: fmt::Debug + Send + Sync {
    /// Authenticates credentials. It may take a while, within the time limit of the handshake, but must not
    /// block the thread. `from` is the address of the peer if it connects over a network or, for IPv6, the
    /// network of 64 bits. One peer of each address is authenticated at a time.
    fn authenticate(&self, credentials: Credentials, from: Option<IpAddr>) -> BoxFuture<'_, Verdict>;

    /// Returns whether these credentials are known to be valid, so that authenticating them takes no time.
    /// They don't wait for earlier ones from the same address.
    fn recognizes(&self, credentials: &Credentials) -> bool {
        let _ = credentials;
        false
    }
}

/// Creates an authenticator from an async function, which returns a [`Verdict`] or a `bool`. Each socket may
/// have a function of its own; ZAP uses domains for this.
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
pub fn authenticate_with<F, Authentication, V>(authenticate: F) -> Arc<dyn Authenticator>
where
    F: Fn(Credentials, Option<IpAddr>) -> Authentication + Send + Sync + 'static,
    Authentication: Future<Output = V> + Send + 'static,
    V: Into<Verdict>,
{
    Arc::new(AsyncFunction(authenticate))
}

/// An async function that authenticates credentials.
struct AsyncFunction<F>(F);

impl<F> fmt::Debug for AsyncFunction<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AsyncFunction(…)")
    }
}

impl<F, Authentication, V> Authenticator for AsyncFunction<F>
where
    F: Fn(Credentials, Option<IpAddr>) -> Authentication + Send + Sync,
    Authentication: Future<Output = V> + Send + 'static,
    V: Into<Verdict>,
{
    fn authenticate(&self, credentials: Credentials, from: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
        let authentication = (self.0)(credentials, from);
        Box::pin(async move { authentication.await.into() })
    }
}

/// Admits clients that hold one of these keys.
#[derive(Clone, Debug, Default)]
pub struct AllowKeys(BTreeSet<PublicKey>);

impl AllowKeys {
    /// Creates an authenticator that admits these keys.
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

/// The security mechanism of a socket, with what our side needs for it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Security {
    /// No authentication and no confidentiality.
    #[default]
    Null,
    /// Authenticates us with a name and a password in clear text. Use it only on networks where nobody can
    /// listen.
    PlainClient {
        /// Our name, at most 255 bytes.
        user: String,
        /// Our password, at most 255 bytes. It is wiped when dropped.
        password: Password,
    },
    /// Clients authenticate with a name and a password.
    PlainServer(Arc<dyn Authenticator>),
    /// We authenticate with our key to the server that has the given key, and to no other. Everything is
    /// encrypted.
    CurveClient {
        /// Our long-term keys.
        keys: KeyPair,
        /// The public key of the server.
        server: PublicKey,
    },
    /// Clients must know our public key, and authenticate with their own. Everything is encrypted.
    CurveServer {
        /// Our long-term keys.
        keys: KeyPair,
        /// Decides which keys of clients are admitted.
        authenticator: Arc<dyn Authenticator>,
    },
}

impl Security {
    /// Creates a CURVE client with new random keys, for servers that admit every key.
    ///
    /// # Errors
    ///
    /// The operating system has no randomness.
    pub fn anonymous(server: PublicKey) -> Result<Self> {
        Ok(Self::CurveClient { keys: KeyPair::generate()?, server })
    }

    /// Returns the name of the mechanism.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::PlainClient { .. } | Self::PlainServer(_) => "PLAIN",
            Self::CurveClient { .. } | Self::CurveServer { .. } => "CURVE",
        }
    }

    /// Returns our side of one handshake.
    ///
    /// # Panics
    ///
    /// The mechanism is CURVE, and the operating system has no randomness.
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

    /// Returns the authenticator of the peers, if we are a server.
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

/// A password. `Debug` never shows it, and it is wiped when dropped.
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// Creates a password.
    ///
    /// # Errors
    ///
    /// It is longer than 255 bytes.
    pub fn new(password: impl Into<String>) -> Result<Self> {
        let password = Zeroizing::new(password.into());
        if password.len() > PLAIN_MAX {
            let what = format!("a password of {} bytes: PLAIN allows for {PLAIN_MAX}", password.len());
            return Err(Error::new(ErrorKind::InvalidOption, what));
        }
        Ok(Self(password))
    }

    /// Reads a password from the first line of a file that only its owner may read.
    ///
    /// # Errors
    ///
    /// See [`read_secret`] and [`new`](Self::new).
    pub fn read(file: &Path) -> Result<Self> {
        let text = read_secret(file)?;
        Self::new(text.lines().next().unwrap_or_default())
    }

    /// Returns the password itself.
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

/// Reads the keys from a file that `xmsg keygen` wrote. It has a line `secret-key = "…"`, in Z85; other lines
/// are comments or the public key.
///
/// # Errors
///
/// The file cannot be read, others may read or change it, or it contains no valid key.
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

/// Reads a file with keys, passwords or tokens, which only its owner may read.
///
/// The credentials that systemd loads for a service (`LoadCredential=`) are files of root that an access
/// control list lets the user of the service read. Their mode tells of the list as if a group might read
/// them, and they are accepted in the folder that `CREDENTIALS_DIRECTORY` names.
///
/// # Errors
///
/// The file cannot be read, or others may read or change it.
pub fn read_secret(file: &Path) -> Result<Zeroizing<String>> {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    let failed = |error| Error::io(format!("cannot read {}", file.display()), error);
    let mut opened = std::fs::File::open(file).map_err(failed)?;
    // The permissions are those of the opened file. Another file may be renamed to its path at any time.
    let metadata = opened.metadata().map_err(failed)?;
    let (mode, owner) = (metadata.mode(), metadata.uid());
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
    if mode & 0o077 != 0 && !is_credential(file, mode, owner, credentials.as_deref().map(Path::new)) {
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

/// Returns whether this is a file that the service manager has put into its folder of credentials, for this
/// service alone.
fn is_credential(file: &Path, mode: u32, owner: u32, credentials: Option<&Path>) -> bool {
    let folder = |path: &Path| path.canonicalize().ok();
    let is_there = credentials.and_then(folder).is_some_and(|credentials| {
        file.parent().and_then(folder).is_some_and(|parent| parent == credentials)
    });
    is_there && owner == 0 && matches!(mode & 0o777, 0o400 | 0o440 | 0o600 | 0o640)
}

/// Creates the random values for one CURVE handshake.
///
/// # Panics
///
/// The operating system has no randomness. Continuing without it would be worse.
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
    fn a_credential_of_the_service_manager_is_told_by_folder_owner_and_mode() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = folder.path().join("proxy.key");
        let here = Some(folder.path());
        assert!(is_credential(&file, 0o100_440, 0, here));
        for (mode, owner, credentials) in [
            (0o100_444, 0, here),
            (0o100_460, 0, here),
            (0o100_440, 1000, here),
            (0o100_440, 0, Some(other.path())),
            (0o100_440, 0, None),
        ] {
            assert!(!is_credential(&file, mode, owner, credentials), "{mode:o} {owner} {credentials:?}");
        }
        // A folder below the one of the credentials may be somebody else's.
        std::fs::create_dir(folder.path().join("below")).unwrap();
        assert!(!is_credential(&folder.path().join("below/proxy.key"), 0o100_440, 0, here));
    }

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

    /// Transient keys, nonces and cookies are for one connection only (RFC 26).
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
