//! The `[security]` section of a configuration file.
//!
//! ```toml
//! [security]
//! mechanism = "curve"               # "null" (default), "plain" or "curve"
//! key_file = "/etc/xmsg/proxy.key"  # curve: the keys of the server, from `xmsg keygen`
//! #password_file = "/etc/xmsg/passwords"  # plain: the passwords, from `xmsg passwd`
//!
//! [[security.client]]               # a client that may connect
//! key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
//! name = "counting house"           # a description for people
//! publish = ["daq:"]                # what it may publish; without this line, everything
//! subscribe = ["daq:", "ret:"]
//! register = false
//!
//! [[security.client]]               # without key and user: all other clients
//! publish = []
//! subscribe = ["public:"]
//! register = false
//! ```
//!
//! A client without `publish` or `subscribe` may publish or subscribe to everything. By default `register` is
//! true and `inspect` is false.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xmsg_core::{Error, ErrorKind, Result};
use xmsg_zmq::security::{KeyError, PublicKey, read_key_file, read_secret};

use super::{Mechanism, Passwords, Rights, Rules};

/// The content of the section. See the [module documentation](self).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The security mechanism of the ports.
    pub mechanism: MechanismName,
    /// CURVE: the file with the keys of this server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// PLAIN: the file with the users' passwords.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The clients that may connect, with their rights.
    #[serde(rename = "client", skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<Client>,
}

/// The name of a security mechanism.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MechanismName {
    /// No security.
    #[default]
    Null,
    /// Names and passwords.
    Plain,
    /// Keys, with encryption.
    Curve,
}

/// The rights of one client or, if it has neither key nor user, of all clients that are not listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Client {
    /// CURVE: the public key of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// PLAIN: the name of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A description for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Prefixes of the topics that the client may publish. Default: all topics.
    pub publish: Vec<String>,
    /// Prefixes that the client's subscriptions must start with. Default: all topics.
    pub subscribe: Vec<String>,
    /// Whether the client may register. Default: true.
    pub register: bool,
    /// Whether the client may see who is connected, and what flows. Default: false.
    pub inspect: bool,
}

impl Default for Client {
    fn default() -> Self {
        let everything = || vec![String::new()];
        Self {
            key: None,
            user: None,
            name: None,
            publish: everything(),
            subscribe: everything(),
            register: true,
            inspect: false,
        }
    }
}

impl Client {
    fn rights(&self) -> Arc<Rights> {
        let prefixes = |list: &[String]| list.iter().map(|prefix| Bytes::from(prefix.clone())).collect();
        Arc::new(Rights {
            publish: prefixes(&self.publish),
            subscribe: prefixes(&self.subscribe),
            register: self.register,
            inspect: self.inspect,
        })
    }
}

impl Settings {
    /// Reads the files that the section names, and checks that its settings are consistent. Relative paths
    /// are relative to `folder`, the folder of the configuration file.
    ///
    /// # Errors
    ///
    /// If settings are missing, contradict each other or are not valid, or if a file can't be read.
    pub fn load(&self, folder: &Path) -> Result<(Mechanism, Rules)> {
        let wrong = |what: String| Err(Error::new(ErrorKind::InvalidOption, format!("[security]: {what}")));
        let needs =
            |what: &str, how: &str| wrong(format!("mechanism {:?} needs {what}: {how}", self.mechanism));
        let mut rules = Rules::default();
        let mechanism = match self.mechanism {
            MechanismName::Null => Mechanism::Null,
            MechanismName::Plain => {
                let Some(file) = &self.password_file else {
                    return needs("password_file", "write one with `xmsg passwd FILE USER`");
                };
                let file = folder.join(file);
                rules.passwords = Passwords::parse(&read_secret(&file)?)
                    .map_err(|error| Error::new(error.kind(), format!("{}: {error}", file.display())))?;
                Mechanism::Plain
            }
            MechanismName::Curve => {
                let Some(file) = &self.key_file else {
                    return needs("key_file", "write one with `xmsg keygen FILE`");
                };
                Mechanism::Curve(read_key_file(&folder.join(file))?)
            }
        };
        let (mut keys, mut users) = (HashMap::new(), HashMap::new());
        let mut others = None;
        for (number, client) in self.clients.iter().enumerate() {
            let number = number + 1;
            let twice = match (&client.key, &client.user, self.mechanism) {
                (Some(key), None, MechanismName::Curve) => {
                    let key: PublicKey = key.parse().map_err(|error: KeyError| {
                        Error::new(
                            ErrorKind::InvalidOption,
                            format!("[[security.client]] {number}: {error}, as `xmsg keygen` prints them"),
                        )
                    })?;
                    keys.insert(key, client.rights()).is_some()
                }
                (None, Some(user), MechanismName::Plain) => {
                    if !rules.passwords.knows(user) {
                        return wrong(format!("client {number}: user {user:?} is not in the password file"));
                    }
                    users.insert(user.clone(), client.rights()).is_some()
                }
                (None, None, _) => others.replace(client.rights()).is_some(),
                _ => {
                    let what = "a key goes with mechanism \"curve\", a user with \"plain\"";
                    return wrong(format!("client {number}: {what}"));
                }
            };
            if twice {
                return wrong(format!("client {number} is there twice"));
            }
        }
        match self.mechanism {
            MechanismName::Null => rules.anonymous = others.or(Rules::open().anonymous),
            MechanismName::Plain => (rules.users, rules.other_users) = (users, others),
            MechanismName::Curve => (rules.keys, rules.other_keys) = (keys, others),
        }
        if self.mechanism != MechanismName::Null && self.clients.is_empty() {
            tracing::warn!(
                "[security] names no client, and so every connection is refused: add [[security.client]]"
            );
        }
        Ok((mechanism, rules))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use xmsg_zmq::security::{KeyPair, Principal};

    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        std::fs::write(folder.join(name), text).unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn parse(text: &str) -> Settings {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_section_becomes_rules() {
        let folder = tempfile::tempdir().unwrap();
        let keys = KeyPair::generate().unwrap();
        write(folder.path(), "proxy.key", &format!("secret-key = \"{}\"\n", *keys.secret().expose_text()));
        let settings = parse(&format!(
            "mechanism = 'curve'\nkey_file = 'proxy.key'\n\
             [[client]]\nkey = '{}'\npublish = ['a:']\n[[client]]\npublish = []\nregister = false",
            keys.public()
        ));
        let (mechanism, rules) = settings.load(folder.path()).unwrap();
        assert!(matches!(mechanism, Mechanism::Curve(ours) if ours == keys));
        let rights = rules.rights(Some(&Principal::Key(*keys.public()))).unwrap();
        assert!(rights.may_publish(b"a:b") && !rights.may_publish(b"b") && rights.register);
        let other = rules.rights(Some(&Principal::Key(PublicKey::from_bytes([1; 32])))).unwrap();
        assert!(!other.may_publish(b"a:b") && other.may_subscribe(b"") && !other.register);
        assert_eq!(toml::from_str::<Settings>(&toml::to_string(&settings).unwrap()).unwrap(), settings);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "passwords", "");
        for (text, part) in [
            ("mechanism = 'curve'", "xmsg keygen"),
            ("mechanism = 'plain'", "xmsg passwd"),
            ("mechanism = 'curve'\nkey_file = 'none'", "none"),
            ("[[client]]\nkey = 'x'", "curve"),
            ("[[client]]\n[[client]]", "twice"),
            (
                "mechanism = 'plain'\npassword_file = 'passwords'\n[[client]]\nuser = 'a'",
                "not in the password file",
            ),
        ] {
            let error = parse(text).load(folder.path()).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
