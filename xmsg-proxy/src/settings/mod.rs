//! The settings of the daemons, as they stand in a file. Reading is pure: text in, checked values or an error
//! out. Defaults come first, then the file; the binaries put the environment and flags over them.
//!
//! ```
//! use xmsg_proxy::settings::{self, ProxySettings};
//! let settings: ProxySettings = settings::parse("port = 9000\n[log]\nformat = \"json\"", "xmsg-proxy.toml")?;
//! assert_eq!(settings.port.get(), 9000);
//! let error = settings::parse::<ProxySettings>("linger_s = 1\nprot = 1", "xmsg-proxy.toml").unwrap_err();
//! assert!(error.to_string().starts_with("xmsg-proxy.toml, line 2: there is no setting \"prot\""));
//! # Ok::<(), settings::SettingsError>(())
//! ```

// | file | answers |
// |---|---|
// | `file.rs` | How is a settings file read, written and compared with another one? |
// | `values.rs` | Which values may a setting have? |
// | `proxy.rs` | Which settings has a proxy? |
// | `registrar.rs` | Which settings has a registrar? |
// | `connect.rs` | Which settings have outgoing connections and channels? |
// | `upstream.rs` | How is an upstream set? |

mod connect;
mod file;
mod proxy;
mod registrar;
mod upstream;
mod values;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use tracing_subscriber::filter::Targets;

#[cfg(feature = "connect")]
pub use connect::read_definitions;
pub use connect::{ConnectSection, ConnectSettings, Credentials};
pub use file::{Change, SettingsError, absolute, merge, parse, print, read};
pub use proxy::{Heartbeat, LimitSettings, PolicySection, ProxySettings, RegistrarSection, Tcp};
pub use registrar::RegistrarSettings;
pub use upstream::UpstreamSection;
pub use values::{COUNT_MAX, Count, Host, HostPort, MIB_MAX, Named, ProxyPort, Seconds};

use crate::admin::Token;
use crate::security::{Mechanism, Rules, settings as security};
use crate::upstream::Upstream;

/// The common interface of the settings of all daemons.
pub trait Settings: Clone + Default + PartialEq + Serialize + DeserializeOwned + Send + 'static {
    /// The keys that SIGHUP applies. All other changes need a restart, and are reported.
    const RELOADABLE: &'static [&'static str];

    /// Makes paths absolute: those in a file are relative to its folder.
    fn resolve(&mut self, folder: &Path);

    /// Checks that the settings make sense together.
    fn check(&self) -> Result<(), SettingsError>;

    /// Checks that files can be used that are read when a daemon starts, and not again.
    fn check_files(&self) -> Result<(), SettingsError> {
        Ok(())
    }

    /// Returns the settings of the log.
    fn log(&self) -> &Log;

    /// Returns the settings of the HTTP server.
    fn admin(&self) -> &Admin;

    /// Returns the settings of security and of rights.
    fn security(&self) -> &security::Settings;

    /// Returns the time that stopping may take.
    fn linger(&self) -> Duration;

    /// Returns the file of the registrations.
    fn snapshot(&self) -> Option<&Path>;

    /// Returns the other proxies that this one connects to, with the content of the files that are named for
    /// them.
    fn upstreams(&self) -> Result<Vec<Upstream>, SettingsError> {
        Ok(Vec::new())
    }

    /// Reads the files that the settings refer to, and returns the parts that can change while the daemon
    /// runs.
    fn reloadable(&self) -> Result<Reloadable, SettingsError> {
        let token = |path: &Option<PathBuf>| {
            let read = path.as_deref().map(Token::read).transpose();
            read.map_err(|error| SettingsError::new(error.to_string()))
        };
        // Paths are absolute by now.
        let loaded = self.security().load(Path::new("/"));
        let (mechanism, rules) = loaded.map_err(|error| SettingsError::new(error.to_string()))?;
        Ok(Reloadable {
            log_filter: self.log().filter.clone(),
            linger: self.linger(),
            admin_token: token(&self.admin().token_file)?,
            admin_viewer_token: token(&self.admin().viewer_token_file)?,
            viewer_may_watch: self.admin().viewer_may_watch,
            mechanism,
            rules,
            upstreams: self.upstreams()?,
        })
    }
}

/// The parts that SIGHUP can change. They are compared with the former ones. The keys that belong to them are
/// in [`Settings::RELOADABLE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloadable {
    /// The filter of the log.
    pub log_filter: String,
    /// The time that stopping may take.
    pub linger: Duration,
    /// The token for requests to the HTTP server. The file may have changed although its name has not.
    pub admin_token: Option<Token>,
    /// The token for requests that change nothing.
    pub admin_viewer_token: Option<Token>,
    /// Whether a client with that token may see the content of messages.
    pub viewer_may_watch: bool,
    /// The security mechanism of the ports. A change needs a restart. It is a part of this because its file
    /// is read with the others.
    pub mechanism: Mechanism,
    /// The rules: who is admitted, with which rights.
    pub rules: Rules,
    /// The other proxies that this one connects to. Keys and passwords may have changed although their files
    /// have not.
    pub upstreams: Vec<Upstream>,
}

/// `[log]`: the log on standard error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The format: lines for people, or JSON.
    pub format: Named<LogFormat>,
    /// The filter, as in `RUST_LOG`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: Named(LogFormat::Text), filter: "info".to_owned() }
    }
}

impl Log {
    /// Returns the filter for `tracing-subscriber`.
    pub fn targets(&self) -> Result<Targets, SettingsError> {
        log_filter(&self.filter)
    }
}

/// Libraries that log things that do not belong into the log, such as whole messages, at the level of
/// warnings.
const QUIET: [&str; 3] = ["lapin", "amq_protocol", "async_rs"];

/// A log filter from text such as `info,xmsg_core=debug`, as in `RUST_LOG`: levels for all that is logged,
/// and for modules.
///
/// Spaces around directives, and directives that are empty, mean nothing. Of the modules `lapin`,
/// `amq_protocol` and `async_rs` nothing is logged unless they are named.
pub fn log_filter(text: &str) -> Result<Targets, SettingsError> {
    let directives: Vec<_> = text.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
    if directives.is_empty() {
        return Ok(Targets::new());
    }
    let quiet = QUIET.map(|module| format!("{module}=off")).join(",");
    format!("{quiet},{}", directives.join(",")).parse::<Targets>().map_err(|error| {
        SettingsError::new(format!(
            "the log filter {text:?} (log.filter, RUST_LOG, --log-filter) can't be read: {error}; give a level, or module=level with \
             commas between"
        ))
    })
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object on each line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = xmsg_core::Error;

    fn from_str(name: &str) -> xmsg_core::Result<Self> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(values::invalid(format!("unknown log format {name:?}: text or json"))),
        }
    }
}

impl std::fmt::Display for LogFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// `[admin]`: the HTTP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Admin {
    /// Whether there is an HTTP server.
    pub enabled: bool,
    /// The address that it listens at, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<HostPort>,
    /// The file with the token that clients have to send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The file with a token that allows to look, and to change nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub viewer_token_file: Option<PathBuf>,
    /// Whether a client with that token may see the content of messages.
    pub viewer_may_watch: bool,
    /// The port of the loopback that it listens at if no address was given.
    #[serde(skip)]
    port: u16,
    /// Whether it is on by default. A server that is on only by default keeps no daemon from starting.
    #[serde(skip)]
    is_on_by_default: bool,
}

/// Reads an [`Admin`] with this default port, which is on or off by default.
fn admin_at<'de, D: Deserializer<'de>, const PORT: u16, const ON: bool>(
    deserializer: D,
) -> Result<Admin, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Section {
        enabled: Option<bool>,
        listen: Option<HostPort>,
        token_file: Option<PathBuf>,
        viewer_token_file: Option<PathBuf>,
        viewer_may_watch: bool,
    }

    let Section { enabled, listen, token_file, viewer_token_file, viewer_may_watch } =
        Section::deserialize(deserializer)?;
    let enabled = enabled.unwrap_or(ON);
    Ok(Admin { enabled, listen, token_file, viewer_token_file, viewer_may_watch, ..Admin::at(PORT, ON) })
}

impl Admin {
    fn at(port: u16, is_on_by_default: bool) -> Self {
        Self {
            enabled: is_on_by_default,
            listen: None,
            token_file: None,
            viewer_token_file: None,
            viewer_may_watch: false,
            port,
            is_on_by_default,
        }
    }

    /// Returns the address that it listens at: the given one, or its default port of the loopback.
    #[must_use]
    pub fn address(&self) -> HostPort {
        self.listen.clone().unwrap_or_else(|| HostPort::loopback(self.port))
    }

    /// Returns whether it may listen at another port of the loopback if its own one is taken, and may be
    /// missing if there is none: it is on by default, and no address was given.
    #[must_use]
    pub fn may_move(&self) -> bool {
        self.is_on_by_default && self.listen.is_none()
    }

    fn check(&self) -> Result<(), SettingsError> {
        let listen = self.address();
        if self.enabled && self.token_file.is_none() && !listen.host.is_loopback() {
            return Err(SettingsError::new(format!(
                "the HTTP server is to listen at {listen}, which others can reach, without a token: name a file with one \
                 (admin.token_file, --admin-token-file), or let it listen on the loopback"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error<S: Settings + std::fmt::Debug>(text: &str) -> String {
        let checked = parse::<S>(text, "FILE").and_then(|settings| settings.check().map(|()| settings));
        checked.unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(parse::<ProxySettings>("", "FILE").unwrap(), ProxySettings::default());
        assert_eq!(parse::<RegistrarSettings>("", "FILE").unwrap(), RegistrarSettings::default());
        assert_eq!(
            format!("{:?}", ProxySettings::default().config()),
            format!("{:?}", crate::Config::default())
        );
        assert_eq!(
            format!("{:?}", RegistrarSettings::default().config()),
            format!("{:?}", crate::registrar::Config::default())
        );
    }

    #[test]
    fn what_is_printed_reads_back_to_the_same() {
        let text = "host = \"::1\"\nport = 0\nlinger_s = 0.25\nslow_subscriber = \"block\"\n\
                    high_water_mark_messages = 7\npublishers_send = \"all\"\n\
                    [admin]\nlisten = \"0.0.0.0:0\"\ntoken_file = \"/a/b\"\n\
                    [registrar]\nenabled = true\nsnapshot = \"/c\"\n\
                    [log]\nfilter = \"a=\\\"b\\\"\"\nformat = \"json\"\n[heartbeat]\ninterval_s = 0";
        let settings: ProxySettings = parse(text, "FILE").unwrap();
        assert_ne!(settings, ProxySettings::default());
        assert_eq!(parse::<ProxySettings>(&print(&settings).unwrap(), "FILE").unwrap(), settings);
        assert_eq!(settings.config().heartbeat_interval, None);
        assert_eq!(settings.config().high_water_mark.messages, 7);
        let settings: RegistrarSettings = parse("ttl_s = 60\nsnapshot = \"/x\"", "FILE").unwrap();
        assert_eq!(parse::<RegistrarSettings>(&print(&settings).unwrap(), "FILE").unwrap(), settings);
    }

    /// The commented examples say what the defaults are: with every comment sign taken away in front of a
    /// setting, too.
    #[test]
    fn the_examples_show_the_defaults() {
        fn example<S: Settings + std::fmt::Debug>(text: &str) {
            assert_eq!(parse::<S>(text, "example").unwrap(), S::default());
            let printed: toml::Table = toml::from_str(&print(&S::default()).unwrap()).unwrap();
            let shown: toml::Table = toml::from_str(text).unwrap();
            assert_eq!(printed, shown, "every setting is in the example");
            let all: String =
                text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line).to_owned() + "\n").collect();
            parse::<S>(&all, "example").unwrap();
        }
        example::<ProxySettings>(include_str!("xmsg-proxy.toml"));
        example::<RegistrarSettings>(include_str!("xmsg-registrar.toml"));
        example::<ConnectSettings>(include_str!("xmsg-connect.toml"));
    }

    #[test]
    fn errors_say_where_and_what() {
        for (text, line, says) in [
            ("prot = 1", 1, "there is no setting \"prot\" in this section"),
            ("port = 1\n\n[log]\nlevel = 1", 4, "there are format, filter"),
            ("[admin]\nenabled = true\nlisten = \"here\"", 3, "ADDRESS:PORT"),
            ("port = 65534", 1, "three ports"),
            ("port = \"x\"", 1, "expected a whole number"),
            ("host = \"a b\"", 1, "host"),
            ("\nlinger_s = -1", 2, "seconds"),
            ("high_water_mark_mib = 0", 1, "0 is not from 1 to"),
            ("slow_subscriber = \"fast\"", 1, "drop-newest"),
            ("[log]\nformat = \"xml\"", 2, "text or json"),
            ("port = 1\nport = 2", 2, "duplicate key"),
            ("port = ", 1, ""),
            ("[[policy]]\nprefix = \"a\"", 1, "missing field `slow_subscriber`"),
            ("[[policy]]\nprefix = \"a\"\nslow_subscriber = \"fast\"", 3, "drop-newest"),
        ] {
            let error = error::<ProxySettings>(text);
            assert!(
                error.starts_with(&format!("FILE, line {line}: ")) && error.contains(says),
                "{text:?}: {error}"
            );
        }
        assert!(error::<RegistrarSettings>("ttl_s = \"x\"").contains("a number of seconds"));
    }

    #[test]
    fn what_makes_no_sense_together_is_said() {
        for (text, says) in [
            ("[admin]\nenabled = true\nlisten = \"0.0.0.0:1\"", "--admin-token-file"),
            ("[log]\nfilter = \"a=b=c\"", "log filter"),
            ("[registrar]\nsnapshot = \"/x\"", "registrar.snapshot"),
        ] {
            let error = error::<ProxySettings>(text);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn spaces_around_the_directives_of_a_log_filter_mean_nothing() {
        let text = " info, xmsg_core=debug ,\tw\u{fc}st[{\u{fc}}]=warn,,";
        let [spaced, plain] =
            [text, "info,xmsg_core=debug,w\u{fc}st[{\u{fc}}]=warn"].map(|text| log_filter(text).unwrap());
        assert_eq!(spaced, plain);
        assert_eq!(log_filter(" ").unwrap(), Targets::new());
        assert_eq!(spaced.default_level(), Some(tracing::level_filters::LevelFilter::INFO));
    }

    #[test]
    fn libraries_that_log_messages_are_quiet_unless_they_are_named() {
        use tracing::Level;
        for text in ["info", "trace", "xmsg_connect=debug"] {
            let filter = log_filter(text).unwrap();
            for target in ["lapin", "lapin::channel", "amq_protocol::frame", "amq_protocol_tcp", "async_rs"] {
                assert!(!filter.would_enable(target, &Level::ERROR), "{text}: {target}");
            }
            assert!(filter.would_enable("xmsg_connect::registry", &Level::INFO), "{text}");
        }
        let named = log_filter("info,lapin=warn").unwrap();
        assert!(named.would_enable("lapin::channel", &Level::WARN));
        assert!(!named.would_enable("amq_protocol_tcp", &Level::WARN));
    }

    #[test]
    fn a_reload_takes_over_what_it_can_and_names_the_rest() {
        let old: ProxySettings = parse("port = 1\nlinger_s = 1", "FILE").unwrap();
        let text = "port = 2\nlinger_s = 2\n[admin]\ntoken_file = \"/t\"\n[log]\nformat = \"json\"\nfilter = \"debug\"";
        let new: ProxySettings = parse(text, "FILE").unwrap();
        let (merged, changes) = merge(&old, &new).unwrap();
        let keys = |reloadable| -> Vec<&str> {
            changes.iter().filter(|c| c.is_reloadable == reloadable).map(|c| c.key.as_str()).collect()
        };
        assert_eq!(keys(true), ["admin.token_file", "linger_s", "log.filter"]);
        assert_eq!(keys(false), ["log.format", "port"]);
        assert_eq!((merged.port.get(), merged.linger_s.get()), (1, Duration::from_secs(2)));
        assert_eq!(merged.log.filter, "debug");
        assert_eq!(merged.log.format, old.log.format);
        assert_eq!(merge(&merged, &old).unwrap().0, old, "and back");
        assert_eq!(merge(&old, &old).unwrap(), (old.clone(), Vec::new()));
    }

    #[test]
    fn what_makes_sense_with_one_mechanism_alone_is_not_taken_over_with_another() {
        let clients = |mechanism: &str, rest: &str| -> ProxySettings {
            let text = format!("linger_s = 2\n[security]\nmechanism = '{mechanism}'\n{rest}");
            parse(&text, "FILE").unwrap()
        };
        let all = ["null", "plain", "curve"];
        for (before, after) in all.iter().flat_map(|before| all.map(|after| (*before, after))) {
            let old = clients(before, "[[security.client]]\npublish = ['daq:']");
            let new = clients(after, "password_file = '/p'\n[[security.client]]");
            let (merged, changes) = merge(&old, &new).unwrap();
            let key = |name: &str| changes.iter().find(|change| change.key == name).unwrap();
            for name in ["security.client", "security.password_file"] {
                assert_eq!(key(name).is_reloadable, before == after, "{before} to {after}: {name}");
            }
            let expected = if before == after { new.security } else { old.security };
            assert_eq!(merged.security, expected, "{before} to {after}");
        }
    }

    /// The address needs a restart, and the token goes with it.
    #[test]
    fn what_would_be_in_force_has_to_make_sense_together() {
        let at = |listen: &str, rest: &str| -> ProxySettings {
            parse(&format!("[admin]\nenabled = true\nlisten = '{listen}'\n{rest}"), "FILE").unwrap()
        };
        let (open, loopback) = (at("0.0.0.0:1", "token_file = '/t'"), at("127.0.0.1:1", ""));
        assert!(loopback.check().is_ok());
        let error = merge(&open, &loopback).unwrap_err().to_string();
        assert!(error.contains("restart") && error.contains("without a token"), "{error}");
        merge(&open, &at("127.0.0.1:1", "token_file = '/u'")).unwrap();
    }

    #[test]
    fn every_reloadable_key_exists() {
        fn check<S: Settings>(with_all: &str) {
            let printed: toml::Table = toml::from_str(with_all).unwrap();
            for key in S::RELOADABLE {
                let found = key
                    .split('.')
                    .try_fold(toml::Value::Table(printed.clone()), |value, name| value.get(name).cloned());
                assert!(found.is_some(), "{key}");
            }
        }
        let with_all = "upstream = []\nlinger_s = 1\nslow_subscriber = \"\"\n[log]\nfilter = \"\"\n[admin]\ntoken_file = \"\"\nviewer_token_file = \"\"\nviewer_may_watch = true\n\
                        [security]\npassword_file = \"\"\n[[security.client]]\n[[policy]]";
        check::<ProxySettings>(with_all);
        check::<RegistrarSettings>(with_all);
        check::<ConnectSettings>(with_all);
    }
}
