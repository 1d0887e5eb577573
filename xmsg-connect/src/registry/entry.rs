//! The entries of a registry: their sorts, and how definitions refer to each other.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::definition::{
    ChannelDefinition, ConnectionDefinition, Definitions, DurableDefinition, FederationDefinition,
    OutgoingDefinition,
};
use crate::error::{Error, ErrorKind, Result};

/// The definition of an entry of any sort.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "sort", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Definition {
    /// A connection to a broker.
    Connection(Box<ConnectionDefinition>),
    /// A way out.
    Outgoing(Box<OutgoingDefinition>),
    /// A way in.
    Channel(Box<ChannelDefinition>),
    /// How the proxy takes part in a federation.
    Federation(Box<FederationDefinition>),
    /// A durable subscription.
    Durable(Box<DurableDefinition>),
}

impl Definition {
    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Connection(definition) => &definition.name,
            Self::Outgoing(definition) => &definition.name,
            Self::Channel(definition) => &definition.name,
            Self::Federation(definition) => &definition.name,
            Self::Durable(definition) => &definition.name,
        }
    }

    /// Returns what sort of entry it is.
    #[must_use]
    pub fn sort(&self) -> Sort {
        match self {
            Self::Connection(_) => Sort::Connection,
            Self::Outgoing(_) => Sort::Outgoing,
            Self::Channel(_) => Sort::Channel,
            Self::Federation(_) => Sort::Federation,
            Self::Durable(_) => Sort::Durable,
        }
    }
}

impl From<ConnectionDefinition> for Definition {
    fn from(definition: ConnectionDefinition) -> Self {
        Self::Connection(Box::new(definition))
    }
}

impl From<OutgoingDefinition> for Definition {
    fn from(definition: OutgoingDefinition) -> Self {
        Self::Outgoing(Box::new(definition))
    }
}

impl From<ChannelDefinition> for Definition {
    fn from(definition: ChannelDefinition) -> Self {
        Self::Channel(Box::new(definition))
    }
}

impl From<FederationDefinition> for Definition {
    fn from(definition: FederationDefinition) -> Self {
        Self::Federation(Box::new(definition))
    }
}

impl From<DurableDefinition> for Definition {
    fn from(definition: DurableDefinition) -> Self {
        Self::Durable(Box::new(definition))
    }
}

/// A sort of entries. Names are unique within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// Connections to brokers.
    Connection,
    /// Ways out.
    Outgoing,
    /// Ways in.
    Channel,
    /// Federations, of which a proxy has one at most.
    Federation,
    /// Durable subscriptions.
    Durable,
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "connection",
            Self::Outgoing => "outgoing",
            Self::Channel => "channel",
            Self::Federation => "federation",
            Self::Durable => "durable",
        })
    }
}

impl FromStr for Sort {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        [Self::Connection, Self::Outgoing, Self::Channel, Self::Federation, Self::Durable]
            .into_iter()
            .find(|sort| sort.to_string() == text)
            .ok_or_else(|| {
                format!(
                    "{text:?} is no sort of entries: there are connection, outgoing, channel, federation and durable"
                )
            })
    }
}

/// What happens to messages in the spool of an outgoing connection that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDelete {
    /// It is not deleted while there are any, or dead letters: [`ErrorKind::InUse`].
    Refuse,
    /// Nothing new is taken; it is deleted once all are delivered, and not at all if that takes longer than
    /// this. Dead letters still stop it.
    Drain(Duration),
    /// They are deleted, with the dead letters.
    Purge,
}

pub(super) fn unknown(sort: Sort, name: &str) -> Error {
    let is_internal = name.contains(':') && matches!(sort, Sort::Outgoing | Sort::Channel);
    let hint = if is_internal {
        " in the definitions: it belongs to a federation or a durable subscription, which is changed as a whole"
    } else {
        ""
    };
    let what = format!("there is no {sort} {name:?}{hint}");
    Error::new(ErrorKind::Unknown, what)
}

impl Definitions {
    /// Returns the definition of this sort and name.
    #[must_use]
    pub fn find(&self, sort: Sort, name: &str) -> Option<Definition> {
        match sort {
            Sort::Connection => {
                self.connections.iter().find(|entry| entry.name == *name).cloned().map(Definition::from)
            }
            Sort::Outgoing => {
                self.outgoing.iter().find(|entry| entry.name == *name).cloned().map(Definition::from)
            }
            Sort::Channel => {
                self.channels.iter().find(|entry| entry.name == *name).cloned().map(Definition::from)
            }
            Sort::Durable => {
                self.durables.iter().find(|entry| entry.name == *name).cloned().map(Definition::from)
            }
            Sort::Federation => {
                self.federation.clone().filter(|entry| entry.name == *name).map(Definition::from)
            }
        }
    }

    pub(super) fn add(&mut self, definition: Definition) -> Result<()> {
        let (sort, name) = (definition.sort(), definition.name());
        if self.find(sort, name).is_some() {
            return Err(Error::new(ErrorKind::NameTaken, format!("{sort} {name:?} is there already")));
        }
        match definition {
            Definition::Connection(definition) => self.connections.push(*definition),
            Definition::Outgoing(definition) => self.outgoing.push(*definition),
            Definition::Channel(definition) => self.channels.push(*definition),
            Definition::Durable(definition) => self.durables.push(*definition),
            Definition::Federation(definition) => {
                if let Some(other) = &self.federation {
                    let what = format!("the proxy takes part in a federation already, as {:?}", other.name);
                    return Err(Error::new(ErrorKind::NameTaken, what));
                }
                self.federation = Some(*definition);
            }
        }
        Ok(())
    }

    pub(super) fn outgoing_mut(&mut self, name: &str) -> Result<&mut OutgoingDefinition> {
        let found = self.outgoing.iter_mut().find(|entry| entry.name == *name);
        found.ok_or_else(|| unknown(Sort::Outgoing, name))
    }

    pub(super) fn channel_mut(&mut self, name: &str) -> Result<&mut ChannelDefinition> {
        let found = self.channels.iter_mut().find(|entry| entry.name == *name);
        found.ok_or_else(|| unknown(Sort::Channel, name))
    }

    pub(super) fn durable_mut(&mut self, name: &str) -> Result<&mut DurableDefinition> {
        let found = self.durables.iter_mut().find(|entry| entry.name == *name);
        found.ok_or_else(|| unknown(Sort::Durable, name))
    }

    pub(super) fn federation_mut(&mut self, name: &str) -> Result<&mut FederationDefinition> {
        let found = self.federation.as_mut().filter(|entry| entry.name == *name);
        found.ok_or_else(|| unknown(Sort::Federation, name))
    }

    /// Puts a definition in the place of the one of this name. What refers to it follows when it gets another
    /// name.
    pub(super) fn replace(&mut self, name: &str, definition: Definition) -> Result<()> {
        let (sort, new_name) = (definition.sort(), definition.name().to_owned());
        if new_name != name && self.find(sort, &new_name).is_some() {
            return Err(Error::new(ErrorKind::NameTaken, format!("{sort} {new_name:?} is there already")));
        }
        match definition {
            Definition::Connection(definition) => {
                let place = self.connections.iter_mut().find(|entry| entry.name == *name);
                *place.ok_or_else(|| unknown(sort, name))? = *definition;
                let users = self.outgoing.iter_mut().map(|entry| &mut entry.connection);
                for user in users.chain(self.channels.iter_mut().map(|entry| &mut entry.connection)) {
                    if user.as_deref() == Some(name) {
                        *user = Some(new_name.clone());
                    }
                }
                for durable in self.durables.iter_mut().filter(|entry| entry.connection == name) {
                    durable.connection.clone_from(&new_name);
                }
                if let Some(federation) = self.federation.as_mut().filter(|entry| entry.connection == name) {
                    federation.connection = new_name;
                }
            }
            Definition::Outgoing(mut definition) => {
                let place = self.outgoing_mut(name)?;
                // The messages stay where they are, whatever the connection is called.
                let folder = place.spool_folder().to_owned();
                definition.spool_dir = (folder != new_name).then_some(folder);
                *place = *definition;
                for channel in &mut self.channels {
                    if let crate::definition::Target::Outgoing(target) = &mut channel.target
                        && target == name
                    {
                        target.clone_from(&new_name);
                    }
                }
            }
            Definition::Channel(definition) => *self.channel_mut(name)? = *definition,
            Definition::Federation(definition) => *self.federation_mut(name)? = *definition,
            Definition::Durable(definition) => {
                let place = self.durable_mut(name)?;
                if definition.name != name {
                    let what =
                        "a durable subscription can't be renamed: its messages are in a queue of its name";
                    return Err(Error::new(ErrorKind::InvalidDefinition, what));
                }
                *place = *definition;
            }
        }
        Ok(())
    }

    pub(super) fn check_unused(&self, sort: Sort, name: &str) -> Result<()> {
        let used_by = match sort {
            Sort::Connection => {
                let mut outgoing =
                    self.outgoing.iter().filter(|entry| entry.connection.as_deref() == Some(name));
                let mut channels =
                    self.channels.iter().filter(|entry| entry.connection.as_deref() == Some(name));
                let outgoing = outgoing.next().map(|entry| format!("outgoing {:?}", entry.name));
                let channels = channels.next().map(|entry| format!("channel {:?}", entry.name));
                let federation = self.federation.iter().find(|entry| entry.connection == name);
                let federation = federation.map(|entry| format!("federation {:?}", entry.name));
                let durable = self.durables.iter().find(|entry| entry.connection == name);
                let durable = durable.map(|entry| format!("durable {:?}", entry.name));
                outgoing.or(channels).or(federation).or(durable)
            }
            Sort::Outgoing => {
                let target = crate::definition::Target::Outgoing(name.to_owned());
                let channel = self.channels.iter().find(|entry| entry.target == target);
                channel.map(|entry| format!("channel {:?}", entry.name))
            }
            Sort::Channel | Sort::Federation | Sort::Durable => None,
        };
        match used_by {
            Some(user) => Err(Error::new(ErrorKind::InUse, format!("{sort} {name:?} is used by {user}"))),
            None => Ok(()),
        }
    }
}
