//! The `[security]` section of a configuration file.
//!
//! ```toml
//! [security]
//! mechanism = "curve"               # "null" (default), "plain" or "curve"
//! key_file = "/etc/xmsg/proxy.key"  # curve: our keys, as `xmsg keygen` writes them
//! #password_file = "/etc/xmsg/passwords"  # plain: as `xmsg passwd` writes it
//!
//! [[security.client]]               # who is let in …
//! key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
//! name = "counting house"           # for people
//! publish = ["daq:"]                # … and what it may do; without a line: everything
//! subscribe = ["daq:", "ret:"]
//! register = false
//!
//! [[security.client]]               # neither key nor user: whoever is not named
//! publish = []
//! subscribe = ["public:"]
//! register = false
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xmsg_core::{Error, ErrorKind, Result};
use xmsg_zmq::security::{KeyError, PublicKey, read_key_file, read_secret};

use super::{Mechanism, Passwords, Rights, Rules};

/// What the section says. See the [module documentation](self).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How the ports are secured.
    pub mechanism: MechanismName,
    /// CURVE: the file with our keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// PLAIN: the file with the users' passwords.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Who is let in, with which rights.
    #[serde(rename = "client", skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<Client>,
}

/// The name of a mechanism.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MechanismName {
    /// No security.
    #[default]
    Null,
    /// Names and passwords.
    Plain,
    /// Keys.
    Curve,
}

/// A client, or, without key and user, all that are not named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Client {
    /// CURVE: its public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// PLAIN: its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Prefixes of topics that it may publish.
    pub publish: Vec<String>,
    /// Prefixes that its subscriptions must start with.
    pub subscribe: Vec<String>,
    /// Whether it may register.
    pub register: bool,
    /// Whether it may see who is connected, and what flows.
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
    /// Reads the files that are named, and checks that everything fits together. Relative paths are taken from `folder`, that of
    /// the configuration file.
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
