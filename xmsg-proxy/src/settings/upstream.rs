//! The settings of upstreams: addresses alone, or tables with all that a link needs.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess};
use serde::{Deserialize, Deserializer, Serialize};
use xmsg_core::security::Security;

use super::SettingsError;
use super::connect::{curve, plain};
use super::values::resolve;
use crate::upstream::Upstream;

/// One of `upstream = ["host", …]`, or an `[[upstream]]`: another proxy to whose subscribers' port this one
/// connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpstreamSection {
    /// The address: `host[:port]` with the first port of an xMsg proxy, or `tcp://host:port` with the
    /// subscribers' port.
    pub address: String,
    /// CURVE: the public key of the other proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_key: Option<String>,
    /// CURVE: the file with the keys of this proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// PLAIN: the user name of this proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// PLAIN: the file with the password of this proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The prefixes of the topics that the link subscribes to and accepts, or `None` for all topics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topics: Option<Vec<String>>,
}

impl<'de> Deserialize<'de> for UpstreamSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Section {
            address: String,
            server_key: Option<String>,
            key_file: Option<PathBuf>,
            user: Option<String>,
            password_file: Option<PathBuf>,
            topics: Option<Vec<String>>,
        }

        struct Either;

        impl<'de> de::Visitor<'de> for Either {
            type Value = UpstreamSection;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address in quotes, or a table with an address")
            }

            fn visit_str<E: de::Error>(self, address: &str) -> Result<UpstreamSection, E> {
                UpstreamSection::at(address).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<UpstreamSection, A::Error> {
                let Section { address, server_key, key_file, user, password_file, topics } =
                    Section::deserialize(MapAccessDeserializer::new(map))?;
                let section = UpstreamSection::at(&address).map_err(de::Error::custom)?;
                Ok(UpstreamSection { server_key, key_file, user, password_file, topics, ..section })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Reads the list of all upstreams.
pub(super) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<UpstreamSection>, D::Error> {
    struct List;

    impl<'de> de::Visitor<'de> for List {
        type Value = Vec<UpstreamSection>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of addresses, such as [\"host\"], or tables")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            if matches!(text, "all" | "subscribed") {
                return Err(E::custom(
                    "what publishers send is the setting publishers_send; upstream lists other proxies",
                ));
            }
            Err(E::invalid_type(de::Unexpected::Str(text), &self))
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, sections: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(sections))
        }
    }

    deserializer.deserialize_any(List)
}

impl UpstreamSection {
    /// Creates the section of an upstream without security, and checks its address.
    fn at(address: &str) -> xmsg_core::Result<Self> {
        address.parse::<Upstream>()?;
        Ok(Self {
            address: address.to_owned(),
            server_key: None,
            key_file: None,
            user: None,
            password_file: None,
            topics: None,
        })
    }

    pub(super) fn resolve(&mut self, folder: &Path) {
        resolve(&mut self.key_file, folder);
        resolve(&mut self.password_file, folder);
    }

    /// Checks that all upstreams make sense together.
    pub(super) fn check(sections: &[Self]) -> Result<(), SettingsError> {
        let mut upstreams = Vec::new();
        for section in sections {
            let wrong =
                |what: &str| Err(SettingsError::new(format!("[[upstream]] {}: {what}", section.address)));
            let (has_key, has_user) = (section.server_key.is_some(), section.user.is_some());
            if has_key && (has_user || section.password_file.is_some()) {
                return wrong(
                    "server_key means CURVE, and user with password_file PLAIN: leave one of them out",
                );
            }
            if section.key_file.is_some() && !has_key {
                return wrong(
                    "key_file needs server_key: the public key of the other proxy, as its `xmsg keygen` printed it",
                );
            }
            if has_user != section.password_file.is_some() {
                return wrong("user and password_file go together");
            }
            if section.topics.as_ref().is_some_and(Vec::is_empty) {
                return wrong(
                    "topics is empty, so that nothing would be asked for: name prefixes, or leave it out for all topics",
                );
            }
            upstreams.push(section.bare()?);
        }
        Upstream::check(&upstreams).map_err(|error| SettingsError::new(error.to_string()))
    }

    fn bare(&self) -> Result<Upstream, SettingsError> {
        self.address.parse().map_err(|error: xmsg_core::Error| SettingsError::new(error.to_string()))
    }

    fn with_topics(&self) -> Result<Upstream, SettingsError> {
        let upstream = self.bare()?;
        Ok(match &self.topics {
            Some(topics) => upstream.topics(topics.clone()),
            None => upstream,
        })
    }

    /// Returns the options of the link. Reads the named files.
    pub(super) fn upstream(&self) -> Result<Upstream, SettingsError> {
        let place = format!("[[upstream]] {}", self.address);
        let security = match (&self.server_key, &self.user) {
            (Some(key), _) => {
                let server = key.parse().map_err(|error| {
                    SettingsError::new(format!("{place}: server_key: {error}, as `xmsg keygen` prints them"))
                })?;
                if self.key_file.is_none() {
                    let keys_failed = |error| SettingsError::new(format!("{place}: {error}"));
                    return self.with_topics()?.anonymous(server).map_err(keys_failed);
                }
                curve(&place, server, self.key_file.as_deref())?
            }
            (None, Some(user)) => plain(&place, Some(user), self.password_file.as_deref())?,
            (None, None) => Security::Null,
        };
        self.with_topics()?.security(security).map_err(|error| SettingsError::new(error.to_string()))
    }
}

/// Parses the address of an upstream on a command line.
impl std::str::FromStr for UpstreamSection {
    type Err = xmsg_core::Error;

    fn from_str(address: &str) -> xmsg_core::Result<Self> {
        Self::at(address)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ProxySettings, Settings, parse, print};

    fn error(text: &str) -> String {
        let checked = parse::<ProxySettings>(text, "FILE").and_then(|settings| settings.check());
        checked.unwrap_err().to_string()
    }

    #[test]
    fn addresses_and_tables_are_read_and_printed() {
        let text = "upstream = [\"daq\", { address = \"tcp://site:5556\", topics = [\"daq:\"] }]";
        let settings: ProxySettings = parse(text, "FILE").unwrap();
        settings.check().unwrap();
        let tables = "[[upstream]]\naddress = \"daq\"\n[[upstream]]\naddress = \"tcp://site:5556\"\ntopics = [\"daq:\"]";
        assert_eq!(parse::<ProxySettings>(tables, "FILE").unwrap(), settings);
        assert_eq!(parse::<ProxySettings>(&print(&settings).unwrap(), "FILE").unwrap(), settings);
        let upstreams = settings.reloadable().unwrap().upstreams;
        assert_eq!(upstreams[0].to_string(), "tcp://daq:7772");
        assert_eq!(upstreams[1], "tcp://site:5556".parse::<crate::Upstream>().unwrap().topics(["daq:"]));
    }

    #[test]
    fn what_does_not_fit_is_told_with_what_to_do() {
        for (text, says) in [
            ("upstream = [\"daq:7772\"]", "FILE, line 1: the upstream daq:7772"),
            ("upstream = [\"udp://daq:1\"]", "tcp://HOST:PORT"),
            ("upstream = \"all\"", "publishers_send"),
            ("upstream = \"daq\"", "a list"),
            ("upstream = [7772]", "an address in quotes"),
            ("upstream = [\"daq\", \"tcp://daq:7772\"]", "twice"),
            ("[[upstream]]\nkey_file = \"k\"", "missing field `address`"),
            ("[[upstream]]\naddress = \"daq\"\nkey_file = \"k\"", "server_key"),
            ("[[upstream]]\naddress = \"daq\"\nuser = \"ali\"", "password_file"),
            (
                "[[upstream]]\naddress = \"daq\"\nserver_key = \"k\"\nuser = \"ali\"\npassword_file = \"p\"",
                "leave one of them out",
            ),
            ("[[upstream]]\naddress = \"daq\"\ntopics = []", "nothing would be asked for"),
            ("[[upstream]]\naddress = \"daq\"\nport = 1", "there is no setting \"port\""),
        ] {
            let error = error(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
