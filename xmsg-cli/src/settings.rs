//! The sources of values: an option, the environment, a context, or the default, in this order. Only this
//! module decides it, and every error about a value names its source.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, OnceLock};

use xmsg_core::{Error, ErrorKind, Result, Security};

use crate::contexts::{Context, Contexts};
use xmsg_zmq::lock::lock;

/// A value that can be given in several places.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The key of the setting in a context. With two hyphens before it, it is the name of the option.
    pub(crate) key: &'static str,
    option: &'static str,
    variable: &'static str,
    pub(crate) default: Option<&'static str>,
    /// Whether it is the path of a file.
    pub(crate) is_path: bool,
}

macro_rules! setting {
    ($name:ident, $key:literal, $variable:literal, $default:expr, $is_path:literal) => {
        pub(crate) const $name: Setting = Setting {
            key: $key,
            option: concat!("--", $key),
            variable: $variable,
            default: $default,
            is_path: $is_path,
        };
    };
}

setting!(PROXY, "proxy", "XMSG_PROXY", Some("127.0.0.1:7771"), false);
setting!(REGISTRAR, "registrar", "XMSG_REGISTRAR", Some("127.0.0.1:8888"), false);
setting!(SERVER_KEY, "server-key", "XMSG_SERVER_KEY", None, false);
setting!(KEY_FILE, "key-file", "XMSG_KEY_FILE", None, true);
setting!(USER, "user", "XMSG_USER", None, false);
setting!(PASSWORD_FILE, "password-file", "XMSG_PASSWORD_FILE", None, true);
setting!(ADMIN, "admin", "XMSG_ADMIN", Some("127.0.0.1:7775"), false);
setting!(ADMIN_TOKEN_FILE, "admin-token-file", "XMSG_ADMIN_TOKEN_FILE", None, true);
// The context itself is the only setting that no context has.
setting!(CONTEXT, "context", "XMSG_CONTEXT", None, false);

/// The settings that a context may have.
pub(crate) const ALL: [&Setting; 8] =
    [&PROXY, &REGISTRAR, &SERVER_KEY, &KEY_FILE, &USER, &PASSWORD_FILE, &ADMIN, &ADMIN_TOKEN_FILE];
/// The settings that hold the credentials for a proxy or registrar.
const SECURITY: [&Setting; 4] = [&SERVER_KEY, &KEY_FILE, &USER, &PASSWORD_FILE];

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Option(&'static str),
    Environment(&'static str),
    /// The key, and its position in the file of contexts.
    Context(&'static str, String),
    Default(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option(option) => f.write_str(option),
            Self::Environment(variable) => write!(f, "{variable} in the environment"),
            Self::Context(key, place) => write!(f, "`{key}` of {place}"),
            Self::Default(option) => write!(f, "the default of {option}"),
        }
    }
}

/// A value and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) value: String,
    pub(crate) source: Source,
}

impl Found {
    /// Parses the value.
    pub(crate) fn parse<T: FromStr<Err: fmt::Display>>(&self) -> Result<T> {
        self.value.parse().map_err(|error| {
            let Self { value, source } = self;
            Error::new(ErrorKind::InvalidOption, format!("invalid value '{value}' for {source}: {error}"))
        })
    }
}

impl Setting {
    /// Returns the value of the setting, if it has one. An empty option means that there is no value,
    /// whatever the other sources have. An empty variable is ignored.
    pub(crate) fn find(&self, option: Option<&str>, context: Option<&Context>) -> Result<Option<Found>> {
        if let Some(value) = option {
            let source = Source::Option(self.option);
            return Ok(
                Some(Found { value: value.to_owned(), source }).filter(|found| !found.value.is_empty())
            );
        }
        let source = Source::Environment(self.variable);
        match std::env::var(self.variable) {
            Ok(value) if !value.is_empty() => return Ok(Some(Found { value, source })),
            Err(std::env::VarError::NotUnicode(_)) => {
                let what = format!("{source} is not UTF-8: set it anew, or give {}", self.option);
                return Err(Error::new(ErrorKind::InvalidOption, what));
            }
            _ => {}
        }
        if let Some((value, place)) = context.and_then(|context| context.value(self)) {
            let source = Source::Context(self.key, place);
            return Ok(Some(Found { value, source }));
        }
        let found = |value: &str| Found { value: value.to_owned(), source: Source::Default(self.option) };
        Ok(self.default.map(found))
    }

    /// Returns the value of the setting, with the current context.
    pub(crate) fn current(&self, option: Option<&str>) -> Result<Option<Found>> {
        let found = self.find(option, current()?)?;
        if let Some(found) = &found {
            let mut used = lock(&USED);
            used.insert(self.key, found.source.clone());
        }
        Ok(found)
    }

    /// Returns the parsed value of a setting that has a default, with the current context.
    pub(crate) fn parsed<T: FromStr<Err: fmt::Display>>(&self, option: Option<&str>) -> Result<T> {
        let found = self.current(option)?.ok_or_else(|| {
            let what = format!("{} is empty: give it a value, or leave it out", self.option);
            Error::new(ErrorKind::InvalidOption, what)
        })?;
        found.parse()
    }

    pub(crate) fn option(&self) -> &'static str {
        self.option
    }

    pub(crate) fn variable(&self) -> &'static str {
        self.variable
    }

    /// Returns the source of the value that was used last.
    fn source(&self) -> Option<Source> {
        lock(&USED).get(self.key).cloned()
    }
}

/// Returns the setting of the option `--key`.
pub(crate) fn of_option(key: &str) -> Option<&'static Setting> {
    ALL.into_iter().chain([&CONTEXT]).find(|setting| setting.key == key)
}

/// The sources of the values that were used, for later errors.
static USED: Mutex<BTreeMap<&'static str, Source>> = Mutex::new(BTreeMap::new());
/// The shared options on the command line. They are set once, at the start.
static GIVEN: OnceLock<BTreeMap<&'static str, String>> = OnceLock::new();

/// Sets the shared options of the process, by the keys of their settings.
pub(crate) fn set_given(options: BTreeMap<&'static str, String>) {
    GIVEN.get_or_init(|| options);
}

/// Returns the value of this setting on the command line.
pub(crate) fn given(setting: &Setting) -> Option<&'static str> {
    GIVEN.get()?.get(setting.key).map(String::as_str)
}

/// Returns the context that was asked for, or else the selected one.
pub(crate) fn current() -> Result<Option<&'static Context>> {
    static CURRENT: OnceLock<Result<Option<Context>>> = OnceLock::new();
    let read = || {
        let option = given(&CONTEXT);
        if option == Some("") {
            return Ok(None);
        }
        let found = CONTEXT.find(option, None)?;
        Contexts::read()?.choose(found.as_ref())
    };
    CURRENT.get_or_init(read).as_ref().map(Option::as_ref).map_err(Clone::clone)
}

/// Returns the mechanism that options, environment and context choose.
pub(crate) fn security() -> Result<Security> {
    let mut found = BTreeMap::new();
    for setting in SECURITY {
        if let Some(value) = setting.current(given(setting))? {
            found.insert(setting.key, value);
        }
    }
    security_of(|setting| found.get(setting.key).cloned())
}

/// Returns the mechanism that these values choose.
pub(crate) fn security_of(found: impl Fn(&Setting) -> Option<Found>) -> Result<Security> {
    let setting = |variable: &str| SECURITY.into_iter().find(|setting| setting.variable == variable);
    let value = |variable: &str| Some(found(setting(variable)?)?.value);
    let called = |variable: &str| match setting(variable) {
        // A missing value can be given in any place. The error names the option.
        Some(setting) => found(setting).map_or(setting.option.to_owned(), |found| found.source.to_string()),
        None => variable.to_owned(),
    };
    xmsg_core::security::from_options(value, called)
}

/// Returns a sentence about the source of an address that was not given on the command line.
pub(crate) fn origin(setting: &Setting) -> Option<String> {
    match setting.source()? {
        Source::Option(_) => None,
        source => Some(format!("This address is {source}.")),
    }
}

/// Returns a sentence about the sources of credentials that were not given on the command line.
pub(crate) fn credentials() -> Option<String> {
    let sources = SECURITY.iter().filter_map(|setting| setting.source());
    let names: Vec<_> = sources
        .filter(|source| !matches!(source, Source::Option(_)))
        .map(|source| source.to_string())
        .collect();
    (!names.is_empty()).then(|| format!("Taken from: {}.", names.join(", ")))
}
