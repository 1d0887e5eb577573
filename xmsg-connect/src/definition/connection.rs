//! `[[connection]]`: how to reach a broker. Outgoing connections and channels name it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{DefinitionError, Span, check_name, not_short};

/// What kind of peer is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A broker that speaks AMQP 0-9-1, such as RabbitMQ.
    Amqp,
    /// A ZeroMQ socket.
    Zmq,
}

/// Pauses between attempts to connect: they double from `min` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reconnect {
    /// The first pause. Default: `"500ms"`.
    pub min: Span,
    /// The longest pause. Default: `"30s"`.
    pub max: Span,
    /// Whether each pause is shortened by up to half of it, by chance, so that many do not come back at the
    /// same moment. Default: true.
    pub jitter: bool,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self { min: Span::of(std::time::Duration::from_millis(500)), max: Span::seconds(30), jitter: true }
    }
}

/// How to reach a broker.
///
/// Each outgoing connection and channel has a connection of its own to it, so that one that is held up holds
/// up no other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionDefinition {
    /// Its name, which no other connection has.
    pub name: String,
    /// The kind of the peer. Only `amqp` is possible so far.
    #[serde(default = "default_kind")]
    pub kind: Kind,
    /// Where the broker is: `amqp://host:port` or, with TLS, `amqps://host:port`. The nodes of a cluster, or
    /// of two, are tried in turn. Neither user nor password stands here.
    pub uris: Vec<String>,
    /// The virtual host. Default: `/`.
    #[serde(default = "default_vhost", skip_serializing_if = "is_default_vhost")]
    pub vhost: String,
    /// The login. Default: `guest`.
    #[serde(default = "default_username")]
    pub username: String,
    /// The file with the password, which only its owner may read; relative to the folder of the state file.
    /// Default: the password `guest`, which brokers accept from their own machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The file with the certificates (PEM) of those who may vouch for the broker; relative to the folder of
    /// the state file. Default: those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// How long the broker may be silent before it counts as gone; half of it goes by between signs of life.
    /// Default: `"30s"`.
    #[serde(default = "default_heartbeat")]
    pub heartbeat: Span,
    /// The longest frame, in bytes. Default: 131072.
    #[serde(default = "default_frame_max")]
    pub frame_max: u32,
    /// How long an attempt to connect may take, with the login. Default: `"10s"`.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Span,
    /// Pauses between attempts.
    #[serde(default)]
    pub reconnect: Reconnect,
}

fn default_kind() -> Kind {
    Kind::Amqp
}

fn default_vhost() -> String {
    "/".to_owned()
}

#[allow(clippy::ptr_arg, reason = "serde gives the field as it is")]
fn is_default_vhost(vhost: &String) -> bool {
    vhost == "/"
}

fn default_username() -> String {
    "guest".to_owned()
}

fn default_heartbeat() -> Span {
    Span::seconds(30)
}

fn default_frame_max() -> u32 {
    131_072
}

fn default_connect_timeout() -> Span {
    Span::seconds(10)
}

/// The smallest frame that the client allows, in bytes.
const FRAME_MIN: u32 = 8192;
/// The largest frame, in bytes. The client keeps buffers for 64 of them.
const FRAME_MAX: u32 = 16 << 20;
/// The longest heartbeat in seconds. AMQP has two bytes for it.
const HEARTBEAT_MAX_S: u64 = 65_535;

impl ConnectionDefinition {
    /// Defines a connection to a broker at this address, with the defaults.
    ///
    /// ```
    /// use xmsg_connect::definition::ConnectionDefinition;
    ///
    /// let broker = ConnectionDefinition::amqp("crm", "amqp://127.0.0.1:5672");
    /// assert_eq!((broker.vhost.as_str(), broker.username.as_str()), ("/", "guest"));
    /// ```
    #[must_use]
    pub fn amqp(name: impl Into<String>, uri: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: Kind::Amqp,
            uris: vec![uri.into()],
            vhost: default_vhost(),
            username: default_username(),
            password_file: None,
            ca_file: None,
            heartbeat: default_heartbeat(),
            frame_max: default_frame_max(),
            connect_timeout: default_connect_timeout(),
            reconnect: Reconnect::default(),
        }
    }

    /// Returns a copy whose relative files count from this folder.
    pub(crate) fn resolved(&self, base: &Path) -> Self {
        let resolve = |file: &Option<PathBuf>| file.as_ref().map(|file| base.join(file));
        Self { password_file: resolve(&self.password_file), ca_file: resolve(&self.ca_file), ..self.clone() }
    }

    /// Checks that the values make sense.
    pub(super) fn check(&self) -> Result<(), DefinitionError> {
        let field_error =
            |field: &str, what: String| DefinitionError::new("connection", &self.name, field, what);
        check_name("connection", &self.name)?;
        if self.kind != Kind::Amqp {
            let what = "can only be \"amqp\": a ZeroMQ socket is defined where it is used, by `kind = \"zmq\"` and `address`";
            return Err(field_error("kind", what.to_owned()));
        }
        if self.uris.is_empty() {
            return Err(field_error(
                "uris",
                "is empty: name the broker, such as \"amqp://127.0.0.1:5672\"".to_owned(),
            ));
        }
        for uri in &self.uris {
            check_uri(uri).map_err(|what| field_error("uris", what))?;
        }
        if let Some(what) = not_short(&self.vhost) {
            return Err(field_error("vhost", what));
        }
        if let Some(what) = not_short(&self.username) {
            return Err(field_error("username", what));
        }
        if self.frame_max > FRAME_MAX {
            return Err(field_error(
                "frame_max",
                format!("is {}; no more than {FRAME_MAX} is possible", self.frame_max),
            ));
        }
        if self.frame_max < FRAME_MIN {
            return Err(field_error(
                "frame_max",
                format!("is {}; no less than {FRAME_MIN} is possible", self.frame_max),
            ));
        }
        if !(1..=HEARTBEAT_MAX_S).contains(&self.heartbeat.get().as_secs()) {
            return Err(field_error(
                "heartbeat",
                format!("is {}; AMQP has 1 s to {HEARTBEAT_MAX_S} s", self.heartbeat),
            ));
        }
        if self.connect_timeout.get().is_zero() {
            return Err(field_error(
                "connect_timeout",
                "is 0: nothing can be reached in that time".to_owned(),
            ));
        }
        if self.reconnect.min.get().is_zero() || self.reconnect.min > self.reconnect.max {
            return Err(field_error("reconnect", "needs a `min` above 0 that is not above `max`".to_owned()));
        }
        Ok(())
    }
}

fn check_uri(uri: &str) -> Result<(), String> {
    // Whatever is before the last @ may be a password.
    let shown = || uri.rsplit_once('@').map_or(uri, |(_, host)| host);
    let rest = uri.strip_prefix("amqp://").or_else(|| uri.strip_prefix("amqps://"));
    let Some(rest) = rest else {
        return Err(format!("{:?} does not begin with amqp:// or amqps://", shown()));
    };
    if rest.contains('@') {
        return Err(format!("for {:?} has a login: it belongs into `username` and `password_file`", shown()));
    }
    if rest.contains(['?', '#']) {
        return Err(format!(
            "{uri:?} has options: they belong into fields of their own, such as `heartbeat`"
        ));
    }
    if rest.trim_end_matches('/').contains('/') {
        return Err(format!("{uri:?} has a virtual host: it belongs into `vhost`"));
    }
    let parsed = uri.parse::<lapin::uri::AMQPUri>();
    match parsed {
        Ok(parsed) if !parsed.authority.host.is_empty() => Ok(()),
        Ok(_) => Err(format!("{uri:?} has no host")),
        Err(error) => Err(format!("{uri:?} can't be read: {error}")),
    }
}
