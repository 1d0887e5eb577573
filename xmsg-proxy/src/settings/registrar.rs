//! The settings of the registrar.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xmsg_core::address::DEFAULT_REGISTRAR_PORT;

use super::values::resolve;
use super::{Admin, Count, Host, Log, MIB_MAX, Seconds, Settings, SettingsError, admin_at};
use crate::registrar::Config;
use crate::security::settings as security;

/// The default port of the HTTP server.
const ADMIN_PORT: u16 = 8889;

/// The settings of `xmsg-registrar`. The names and defaults are those of `docs/xmsg-registrar.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrarSettings {
    /// The interface to listen on.
    pub host: Host,
    /// The port, or 0 for any free one.
    pub port: u16,
    /// The file of the registrations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<PathBuf>,
    /// The time that a registration lasts if it is not renewed, or 0 for ever.
    pub ttl_s: Seconds,
    /// The largest number of registrations.
    pub max_registrations: Count<1, 4_294_967_295>,
    /// The memory for all registrations.
    pub max_registration_memory_mib: Count<1, MIB_MAX>,
    /// The time for which answers go on after SIGINT or SIGTERM.
    pub linger_s: Seconds,
    /// The settings of security and of rights.
    pub security: security::Settings,
    /// The HTTP server.
    #[serde(deserialize_with = "admin_at::<_, ADMIN_PORT, false>")]
    pub admin: Admin,
    /// The log.
    pub log: Log,
}

impl Default for RegistrarSettings {
    fn default() -> Self {
        Self {
            host: Host::default(),
            port: DEFAULT_REGISTRAR_PORT,
            snapshot: None,
            ttl_s: Seconds::of(0),
            max_registrations: Count::of::<4_000_000>(),
            max_registration_memory_mib: Count::of::<2048>(),
            linger_s: Seconds::of(5),
            security: security::Settings::default(),
            admin: Admin::at(ADMIN_PORT, false),
            log: Log::default(),
        }
    }
}

impl Settings for RegistrarSettings {
    const RELOADABLE: &'static [&'static str] = &[
        "admin.token_file",
        "admin.viewer_may_watch",
        "admin.viewer_token_file",
        "linger_s",
        "log.filter",
        "security.client",
        "security.password_file",
    ];

    fn resolve(&mut self, folder: &Path) {
        resolve(&mut self.admin.token_file, folder);
        resolve(&mut self.admin.viewer_token_file, folder);
        resolve(&mut self.security.key_file, folder);
        resolve(&mut self.security.password_file, folder);
        resolve(&mut self.snapshot, folder);
    }

    fn check(&self) -> Result<(), SettingsError> {
        self.admin.check()?;
        self.log.targets().map(drop)
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn admin(&self) -> &Admin {
        &self.admin
    }

    fn security(&self) -> &security::Settings {
        &self.security
    }

    fn linger(&self) -> Duration {
        self.linger_s.get()
    }

    fn snapshot(&self) -> Option<&Path> {
        self.snapshot.as_deref()
    }
}

impl RegistrarSettings {
    /// Returns the options of the registrar without its security: see [`Reloadable`](super::Reloadable).
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            snapshot: self.snapshot.clone(),
            ttl: self.ttl_s.unless_zero(),
            registrations: self.max_registrations.get(),
            registration_memory: self.max_registration_memory_mib.mib(),
            ..Config::default()
        }
    }
}
