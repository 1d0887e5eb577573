//! The settings of outgoing connections and channels, in the proxy and in a daemon of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xmsg_core::ProxyAddress;
use xmsg_core::security::{KeyPair, Password, PublicKey, Security, read_key_file};

use super::values::resolve;
use super::{Admin, Log, Named, Seconds, Settings, SettingsError, admin_at};
use crate::security::Mechanism;
use crate::security::settings::{self as security, MechanismName};

/// The default port of the HTTP server.
const ADMIN_PORT: u16 = 8890;

/// `[connect]` of the proxy: outgoing connections and channels in the same process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectSection {
    /// Whether there are any.
    pub enabled: bool,
    /// The folder of the definitions, and of messages that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// The file with the definitions that are used as long as the folder has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definitions: Option<PathBuf>,
    /// The folder of the files that may be named over HTTP. Default: the state folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets_dir: Option<PathBuf>,
    /// CURVE: the file with the keys by which the proxy knows this client of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// PLAIN: the name by which the proxy knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// PLAIN: the file with its password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

impl ConnectSection {
    pub(super) fn resolve(&mut self, folder: &Path) {
        let Self { state_dir, definitions, secrets_dir, key_file, password_file, .. } = self;
        for path in [state_dir, definitions, secrets_dir, key_file, password_file] {
            resolve(path, folder);
        }
    }

    /// Checks that the section makes sense in a proxy with this security.
    pub(super) fn check(&self, mechanism: MechanismName) -> Result<(), SettingsError> {
        if !self.enabled {
            return Ok(());
        }
        let wrong = |what: &str| Err(SettingsError::new(format!("[connect]: {what}")));
        if !cfg!(feature = "connect") {
            return wrong(
                "this program was built without outgoing connections and channels (feature `connect`)",
            );
        }
        if self.state_dir.is_none() {
            return wrong(
                "enabled needs state_dir: the folder for what is declared, and for messages that wait",
            );
        }
        let (has_key, has_user) = (self.key_file.is_some(), self.user.is_some());
        match mechanism {
            MechanismName::Null if has_key || has_user || self.password_file.is_some() => {
                wrong("key_file, user and password_file are for a proxy with security: leave them out")
            }
            MechanismName::Plain if !has_user || self.password_file.is_none() || has_key => wrong(
                "mechanism \"plain\" needs user and password_file here: the proxy lets in its own outgoing connections and channels by \
                 their password, too",
            ),
            MechanismName::Curve if !has_key || has_user || self.password_file.is_some() => wrong(
                "mechanism \"curve\" needs key_file here, from `xmsg keygen`: the proxy lets in its own outgoing connections and channels \
                 by their key, too, with the rights of their [[security.client]]",
            ),
            _ => Ok(()),
        }
    }

    /// Checks that the files that are read at the start can be used.
    #[cfg(feature = "connect")]
    pub(super) fn check_files(&self) -> Result<(), SettingsError> {
        if !self.enabled {
            return Ok(());
        }
        if let Some(file) = &self.key_file {
            own_keys("[connect]", Some(file))?;
        }
        if self.user.is_some() {
            plain("[connect]", self.user.as_deref(), self.password_file.as_deref())?;
        }
        read_definitions(self.definitions.as_deref()).map(drop)
    }

    /// Returns the security with which to connect to a proxy that has this mechanism. Reads the named files.
    pub fn security(&self, mechanism: &Mechanism) -> Result<Security, SettingsError> {
        match mechanism {
            Mechanism::Null => Ok(Security::Null),
            Mechanism::Plain => plain("[connect]", self.user.as_deref(), self.password_file.as_deref()),
            Mechanism::Curve(ours) => curve("[connect]", *ours.public(), self.key_file.as_deref()),
        }
    }
}

/// `[security]` of `xmsg-connect`: its credentials for the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Credentials {
    /// CURVE: the public key of the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_key: Option<String>,
    /// CURVE: the file with our keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// PLAIN: our name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// PLAIN: the file with our password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

impl Credentials {
    /// Returns the security for these credentials, with the content of their files.
    pub fn security(&self) -> Result<Security, SettingsError> {
        let wrong = |what: &str| Err(SettingsError::new(format!("[security]: {what}")));
        let (user, password_file) = (self.user.as_deref(), self.password_file.as_deref());
        match (&self.server_key, user) {
            (Some(_), Some(_)) => wrong("server_key means CURVE and user means PLAIN: leave one of them out"),
            (Some(key), None) => {
                let key = key.parse().map_err(|error| {
                    SettingsError::new(format!(
                        "[security]: server_key: {error}, as `xmsg keygen` prints them"
                    ))
                })?;
                curve("[security]", key, self.key_file.as_deref())
            }
            (None, Some(_)) => plain("[security]", user, password_file),
            (None, None) if self.key_file.is_some() => {
                wrong("key_file needs server_key: the public key of the proxy")
            }
            (None, None) if password_file.is_some() => wrong("password_file needs user: our name"),
            (None, None) => Ok(Security::Null),
        }
    }
}

pub(super) fn curve(
    section: &str,
    server: PublicKey,
    key_file: Option<&Path>,
) -> Result<Security, SettingsError> {
    Ok(Security::CurveClient { keys: own_keys(section, key_file)?, server })
}

/// Returns the keys in this file, or new ones without a file.
fn own_keys(section: &str, key_file: Option<&Path>) -> Result<KeyPair, SettingsError> {
    match key_file {
        Some(file) => {
            read_key_file(file).map_err(|error| SettingsError::new(format!("{section}: key_file: {error}")))
        }
        None => KeyPair::generate()
            .map_err(|error| SettingsError::new(format!("{section}: keys can't be made: {error}"))),
    }
}

pub(super) fn plain(
    section: &str,
    user: Option<&str>,
    password_file: Option<&Path>,
) -> Result<Security, SettingsError> {
    let (Some(user), Some(file)) = (user, password_file) else {
        return Err(SettingsError::new(format!(
            "{section}: user and password_file belong together: give both"
        )));
    };
    let password = Password::read(file)
        .map_err(|error| SettingsError::new(format!("{section}: password_file: {error}")))?;
    Ok(Security::PlainClient { user: user.to_owned(), password })
}

/// Reads the file with the first definitions. Without a file, there are none.
#[cfg(feature = "connect")]
pub fn read_definitions(file: Option<&Path>) -> Result<xmsg_connect::definition::Definitions, SettingsError> {
    let Some(file) = file else { return Ok(xmsg_connect::definition::Definitions::default()) };
    let shown = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|error| SettingsError::new(format!("the definitions {shown} can't be read: {error}")))?;
    xmsg_connect::definition::Definitions::parse(&text)
        .map_err(|error| SettingsError::new(format!("{shown}: {error}")))
}

/// The settings of `xmsg-connect`. The names and defaults are those of `docs/xmsg-connect.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectSettings {
    /// The proxy to which outgoing connections subscribe, and channels publish.
    pub proxy: Named<ProxyAddress>,
    /// The folder of the definitions, and of messages that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// The file with the definitions that are used as long as the folder has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definitions: Option<PathBuf>,
    /// The folder of the files that may be named over HTTP. Default: the state folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets_dir: Option<PathBuf>,
    /// The time that stopping may take.
    pub linger_s: Seconds,
    /// The credentials for the proxy.
    pub security: Credentials,
    /// The HTTP server.
    #[serde(deserialize_with = "admin_at::<_, ADMIN_PORT, false>")]
    pub admin: Admin,
    /// The log.
    pub log: Log,
}

impl Default for ConnectSettings {
    fn default() -> Self {
        Self {
            proxy: Named(ProxyAddress::default()),
            state_dir: None,
            definitions: None,
            secrets_dir: None,
            linger_s: Seconds::of(5),
            security: Credentials::default(),
            admin: Admin::at(ADMIN_PORT, false),
            log: Log::default(),
        }
    }
}

/// The security of `xmsg-connect`, which has no port but that for HTTP.
static NO_SECURITY: security::Settings = security::Settings {
    mechanism: MechanismName::Null,
    key_file: None,
    password_file: None,
    clients: Vec::new(),
};

impl Settings for ConnectSettings {
    const RELOADABLE: &'static [&'static str] =
        &["admin.token_file", "admin.viewer_may_watch", "admin.viewer_token_file", "linger_s", "log.filter"];

    fn resolve(&mut self, folder: &Path) {
        let Self { state_dir, definitions, secrets_dir, security, admin, .. } = self;
        let Credentials { key_file, password_file, .. } = security;
        let Admin { token_file, viewer_token_file, .. } = admin;
        let files = [key_file, password_file, token_file, viewer_token_file];
        [state_dir, definitions, secrets_dir].into_iter().chain(files).for_each(|path| resolve(path, folder));
    }

    fn check(&self) -> Result<(), SettingsError> {
        if self.state_dir.is_none() {
            return Err(SettingsError::new(
                "state_dir (--state-dir) is missing: name the folder for what is declared, and for messages that wait",
            ));
        }
        self.admin.check()?;
        self.log.targets().map(drop)
    }

    #[cfg(feature = "connect")]
    fn check_files(&self) -> Result<(), SettingsError> {
        self.security.security()?;
        read_definitions(self.definitions.as_deref()).map(drop)
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn admin(&self) -> &Admin {
        &self.admin
    }

    fn security(&self) -> &security::Settings {
        &NO_SECURITY
    }

    fn linger(&self) -> Duration {
        self.linger_s.get()
    }

    fn snapshot(&self) -> Option<&Path> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ProxySettings, parse};
    use super::*;

    #[test]
    fn what_is_missing_or_too_much_is_said() {
        for (text, says) in [
            ("[connect]\nenabled = true", "needs state_dir"),
            ("[connect]\nenabled = true\nstate_dir = \"/a\"\nuser = \"me\"", "leave them out"),
            (
                "[connect]\nenabled = true\nstate_dir = \"/a\"\n[security]\nmechanism = \"plain\"",
                "needs user and password_file",
            ),
            (
                "[connect]\nenabled = true\nstate_dir = \"/a\"\n[security]\nmechanism = \"curve\"",
                "needs key_file here",
            ),
        ] {
            let error = parse::<ProxySettings>(text, "FILE").unwrap().check().unwrap_err().to_string();
            assert!(error.starts_with("[connect]: ") && error.contains(says), "{error}");
        }
        parse::<ProxySettings>("[connect]\nuser = \"later\"", "FILE").unwrap().check().unwrap();
        assert!(ConnectSettings::default().check().unwrap_err().to_string().contains("--state-dir"));
    }

    #[test]
    fn credentials_that_do_not_fit_together_are_refused() {
        assert!(matches!(Credentials::default().security(), Ok(Security::Null)));
        let text = |text: &str| Some(text.to_owned());
        let file = || Some(PathBuf::from("/does/not/exist"));
        for (credentials, says) in [
            (Credentials { server_key: text("short"), ..Credentials::default() }, "server_key"),
            (
                Credentials { server_key: text("k"), user: text("u"), ..Credentials::default() },
                "leave one of them out",
            ),
            (Credentials { key_file: file(), ..Credentials::default() }, "needs server_key"),
            (Credentials { user: text("u"), ..Credentials::default() }, "belong together"),
            (Credentials { password_file: file(), ..Credentials::default() }, "needs user"),
            (
                Credentials { user: text("u"), password_file: file(), ..Credentials::default() },
                "/does/not/exist",
            ),
        ] {
            let error = credentials.security().unwrap_err().to_string();
            assert!(error.starts_with("[security]: ") && error.contains(says), "{error}");
        }
    }
}
