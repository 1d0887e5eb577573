//! The values of settings. Each is checked where it is read, and is valid from then on. One type serves the
//! file (through serde) and the command line (through [`FromStr`]).

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xmsg_core::address::{DEFAULT_PROXY_PORT, MAX_PROXY_PORT};
use xmsg_core::{Error, ErrorKind, Result};

use crate::duration;

/// The largest memory in a setting, in MiB: 16 TiB.
pub const MIB_MAX: u64 = 1 << 24;
/// The largest count in a file.
pub const COUNT_MAX: u64 = i64::MAX as u64;

/// Creates an error that a value can't be used. `what` says which ones can.
pub(super) fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, what.into())
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Count<MIN, MAX> {
    /// Creates this number. The bounds are checked when the program is built.
    #[must_use]
    pub const fn of<const VALUE: u64>() -> Self {
        const { assert!(MIN <= VALUE && VALUE <= MAX) };
        Self(VALUE)
    }

    /// Returns the number.
    #[must_use]
    pub fn get(self) -> usize {
        self.0 as usize
    }

    /// Returns the number times 1024 × 1024.
    #[must_use]
    pub fn mib(self) -> usize {
        self.get() << 20
    }

    /// Returns the number times 1024.
    #[must_use]
    pub fn kib(self) -> usize {
        self.get() << 10
    }

    fn checked(value: i128) -> Result<Self> {
        match u64::try_from(value) {
            Ok(value) if (MIN..=MAX).contains(&value) => Ok(Self(value)),
            _ => Err(invalid(format!("{value} is not from {MIN} to {MAX}"))),
        }
    }
}

impl<const MIN: u64, const MAX: u64> FromStr for Count<MIN, MAX> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let value = text.parse().map_err(|_| invalid(format!("not a whole number from {MIN} to {MAX}")))?;
        Self::checked(value)
    }
}

impl<const MIN: u64, const MAX: u64> Serialize for Count<MIN, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Count<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::checked(i64::deserialize(deserializer)?.into()).map_err(de::Error::custom)
    }
}

/// A duration. It is written as a number of seconds with or without a fraction, and as an option also with a
/// unit, such as `500ms` or `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(Duration);

impl Seconds {
    /// Creates a duration of whole seconds.
    #[must_use]
    pub const fn of(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Returns the duration.
    #[must_use]
    pub fn get(self) -> Duration {
        self.0
    }

    /// Returns the duration, or `None` for 0, which stands for never.
    #[must_use]
    pub fn unless_zero(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }

    fn checked(time: Option<Duration>) -> Result<Self> {
        let expected = "not a number of seconds from 0 to 1000000, nor a time such as 500ms, 10s or 2m";
        time.map(Self).ok_or_else(|| invalid(expected))
    }
}

impl FromStr for Seconds {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::checked(duration::parse(text))
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0.as_secs_f64())
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::checked(duration::of_seconds(deserializer.deserialize_any(Number)?)).map_err(de::Error::custom)
    }
}

/// The visitor of a number with or without a fraction.
struct Number;

impl de::Visitor<'_> for Number {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of seconds")
    }

    fn visit_f64<E>(self, value: f64) -> Result<f64, E> {
        Ok(value)
    }

    fn visit_i64<E>(self, value: i64) -> Result<f64, E> {
        Ok(value as f64)
    }

    fn visit_u64<E>(self, value: u64) -> Result<f64, E> {
        Ok(value as f64)
    }
}

/// The first port of a proxy, or 0 for any three free ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64")]
pub struct ProxyPort(u16);

impl ProxyPort {
    /// Returns the port.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for ProxyPort {
    fn default() -> Self {
        Self(DEFAULT_PROXY_PORT)
    }
}

impl TryFrom<i64> for ProxyPort {
    type Error = Error;

    fn try_from(port: i64) -> Result<Self> {
        match u16::try_from(port) {
            Ok(port @ 0..=MAX_PROXY_PORT) => Ok(Self(port)),
            Ok(port) => {
                let what = format!("{port} leaves no room for three ports: the highest is {MAX_PROXY_PORT}");
                Err(invalid(what))
            }
            Err(_) => Err(invalid(format!("not a port: 1 to {MAX_PROXY_PORT}, or 0 for any"))),
        }
    }
}

impl FromStr for ProxyPort {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().unwrap_or(-1_i64).try_into()
    }
}

/// A name or an address of an interface, without brackets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Host(String);

impl Host {
    /// Returns the name or address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the host with a port, as `host:port`.
    #[must_use]
    pub fn with_port(&self, port: u16) -> String {
        if self.0.contains(':') { format!("[{}]:{port}", self.0) } else { format!("{}:{port}", self.0) }
    }

    /// Returns whether only this machine can connect to this interface.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        // `::ffff:127.0.0.1` is an address of IPv4, written as one of IPv6.
        let is_loopback = |address: std::net::IpAddr| address.to_canonical().is_loopback();
        self.0 == "localhost" || self.0.parse().is_ok_and(is_loopback)
    }
}

impl Default for Host {
    fn default() -> Self {
        Self("127.0.0.1".to_owned())
    }
}

impl FromStr for Host {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let host = text.trim_start_matches('[').trim_end_matches(']');
        xmsg_core::ProxyAddress::new(host, 1)?;
        Ok(Self(host.to_owned()))
    }
}

impl TryFrom<String> for Host {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// `host:port`, or a port of the loopback alone. Port 0 means any free one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// Creates the address of a port of the loopback.
    #[must_use]
    pub fn loopback(port: u16) -> Self {
        Self { host: Host::default(), port }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host.with_port(self.port))
    }
}

impl FromStr for HostPort {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (host, port) = match text.rsplit_once(':') {
            None => (None, text),
            Some((host, port)) => (Some(host), port),
        };
        let port = port.parse().map_err(|_| {
            invalid(format!(
                "{text:?} is not an address: give ADDRESS:PORT, or a port of the loopback; port 0 to 65535"
            ))
        })?;
        Ok(Self { host: host.map_or(Ok(Host::default()), str::parse)?, port })
    }
}

impl TryFrom<String> for HostPort {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A choice that is written by its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Named<T>(pub T);

impl<T: FromStr> FromStr for Named<T> {
    type Err = T::Err;

    fn from_str(name: &str) -> Result<Self, T::Err> {
        name.parse().map(Self)
    }
}

impl<T: fmt::Display> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Name<T>(PhantomData<T>);

        impl<T: FromStr<Err: fmt::Display>> de::Visitor<'_> for Name<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name in quotes")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<T, E> {
                name.parse().map_err(E::custom)
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<T, E> {
                Err(E::invalid_type(Unexpected::Bool(value), &self))
            }
        }
        deserializer.deserialize_str(Name(PhantomData)).map(Named)
    }
}

/// Makes a path absolute. A path in a file is relative to the folder of that file, so that it means the same
/// wherever the daemon is started.
pub(super) fn resolve(path: &mut Option<PathBuf>, folder: &Path) {
    if let Some(path) = path {
        let joined = folder.join(&*path);
        *path = std::path::absolute(&joined).unwrap_or(joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_bounds() {
        assert_eq!("7".parse::<Count<1, 7>>().unwrap(), Count::of::<7>());
        for bad in ["0", "8", "-1", "x", "", "1.5"] {
            let error = bad.parse::<Count<1, 7>>().unwrap_err();
            assert!(error.to_string().contains("from 1 to 7"), "{bad}: {error}");
        }
    }

    #[test]
    fn seconds_may_have_a_fraction() {
        assert_eq!("0.25".parse::<Seconds>().unwrap().get(), Duration::from_millis(250));
        assert_eq!(Seconds::of(0).unless_zero(), None);
        assert_eq!("1.5m".parse::<Seconds>().unwrap().get(), Duration::from_secs(90));
        for bad in ["-1", "x", "1e9", "5 parsecs"] {
            assert!(bad.parse::<Seconds>().unwrap_err().to_string().contains("seconds"), "{bad}");
        }
    }

    #[test]
    fn addresses_default_to_the_loopback() {
        for (text, shown) in [
            ("7775", "127.0.0.1:7775"),
            ("0.0.0.0:0", "0.0.0.0:0"),
            ("[::1]:80", "[::1]:80"),
            ("localhost:1", "localhost:1"),
        ] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), shown);
        }
        for bad in ["", "x", ":80", "a b:80", "h:", "h:70000"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
        for host in ["::1", "::ffff:127.0.0.1", "[::ffff:127.9.9.9]", "127.9.9.9", "localhost"] {
            assert!(host.parse::<Host>().unwrap().is_loopback(), "{host}");
        }
        assert!(!"::ffff:10.0.0.1".parse::<Host>().unwrap().is_loopback());
        assert!(!"0.0.0.0".parse::<Host>().unwrap().is_loopback());
    }
}
