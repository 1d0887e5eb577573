//! What outgoing connections and channels that are ZeroMQ sockets have in common.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xmsg_zmq::Endpoint;

/// Which side opens the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketMethod {
    /// We connect to the peer.
    #[default]
    Connect,
    /// We are bound to the address, and peers connect.
    Bind,
}

/// CURVE: who is at the other end is known by keys, and everything is encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// When we connect: the public key of the peer, 40 characters of Z85.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_key: Option<String>,
    /// The file with our key pair; relative to the folder of the state file. When we connect, it may be left
    /// out: a new one is made each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// When we are bound: the public keys of those who may connect. None: everybody who knows our public key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub client_keys: Vec<String>,
}

/// Where a socket connects or is bound, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ZmqFields {
    pub(crate) endpoint: Endpoint,
    pub(crate) method: SocketMethod,
    pub(crate) curve: Option<Curve>,
}

impl ZmqFields {
    /// Returns a copy whose relative files count from this folder.
    pub(crate) fn resolved(mut self, base: &Path) -> Self {
        if let Some(file) = self.curve.as_mut().and_then(|curve| curve.key_file.as_mut()) {
            *file = base.join(&*file);
        }
        self
    }

    /// Checks the fields. The error is the name of the field that is wrong, and why it is.
    pub(super) fn check(
        address: Option<&str>,
        method: Option<SocketMethod>,
        curve: Option<&Curve>,
    ) -> Result<Self, (&'static str, String)> {
        let Some(address) = address else {
            return Err(("address", "is missing: tcp://host:port or ipc:///path".to_owned()));
        };
        if !address.starts_with("tcp://") && !address.starts_with("ipc://") {
            return Err(("address", format!("{address:?} begins neither with tcp:// nor with ipc://")));
        }
        let endpoint: Endpoint =
            address.parse().map_err(|error: xmsg_zmq::Error| ("address", error.to_string()))?;
        let method = method.unwrap_or_default();
        if let Some(curve) = curve {
            let is_key = |key: &String| key.parse::<xmsg_zmtp::curve::PublicKey>().map(drop);
            let keys = curve.server_key.iter().chain(&curve.client_keys);
            for key in keys {
                is_key(key).map_err(|error| ("curve", format!("{key:?} is not a public key: {error}")))?;
            }
            match method {
                SocketMethod::Connect if curve.server_key.is_none() => {
                    return Err(("curve", "needs `server_key`, the public key of the peer".to_owned()));
                }
                SocketMethod::Connect if !curve.client_keys.is_empty() => {
                    return Err((
                        "curve",
                        "has `client_keys`, which are for a socket that is bound".to_owned(),
                    ));
                }
                SocketMethod::Bind if curve.key_file.is_none() => {
                    return Err(("curve", "needs `key_file`, the key pair of this socket".to_owned()));
                }
                SocketMethod::Bind if curve.server_key.is_some() => {
                    return Err((
                        "curve",
                        "has `server_key`, which is for a socket that connects".to_owned(),
                    ));
                }
                _ => {}
            }
        }
        Ok(Self { endpoint, method, curve: curve.cloned() })
    }
}
