//! Metadata on the command line: `--meta key=value`.

use std::str::FromStr;

use xmsg_core::Meta;
use xmsg_core::meta::{Action, ByteOrder, Control, Status};

/// The known keys, for the error about an unknown key.
const KEYS: &str = "version, description, author, status, severityId, sender, senderState, communicationId, \
                    composition, executionTime, action, control, dataTypeDescription, byteOrder";

/// One field of the metadata and its value, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Version(String),
    Description(String),
    Author(String),
    Status(Status),
    SeverityId(i32),
    Sender(String),
    SenderState(String),
    CommunicationId(u32),
    Composition(String),
    ExecutionTime(i64),
    Action(Action),
    Control(Control),
    DataTypeDescription(String),
    ByteOrder(ByteOrder),
}

impl FromStr for Field {
    type Err = String;

    /// Parses `key=value`. Keys are those of the protocol; case, `-` and `_` do not matter.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(format!("expected key=value; keys: {KEYS}"));
        };
        let plain: String =
            key.chars().filter(|c| !matches!(c, '-' | '_')).map(|c| c.to_ascii_lowercase()).collect();
        let text = || value.to_owned();
        Ok(match plain.as_str() {
            "version" => Self::Version(text()),
            "description" => Self::Description(text()),
            "author" => Self::Author(text()),
            "sender" => Self::Sender(text()),
            "senderstate" => Self::SenderState(text()),
            "composition" => Self::Composition(text()),
            "datatypedescription" | "dattypedescription" => Self::DataTypeDescription(text()),
            "severityid" => Self::SeverityId(number(key, value)?),
            "communicationid" => Self::CommunicationId(number(key, value)?),
            "executiontime" => Self::ExecutionTime(number(key, value)?),
            "status" => Self::Status(named(
                key,
                value,
                &[("info", Status::Info), ("warning", Status::Warning), ("error", Status::Error)],
            )?),
            "action" => Self::Action(named(
                key,
                value,
                &[("execute", Action::Execute), ("configure", Action::Configure)],
            )?),
            "control" => Self::Control(named(key, value, &[("skip", Control::Skip)])?),
            "byteorder" => {
                Self::ByteOrder(named(key, value, &[("little", ByteOrder::Little), ("big", ByteOrder::Big)])?)
            }
            "datatype" => return Err("the type of the data is given with --mime".to_owned()),
            _ => return Err(format!("the key `{key}` is not known; keys: {KEYS}")),
        })
    }
}

impl Field {
    /// Sets the field.
    pub(crate) fn apply(self, meta: &mut Meta) {
        match self {
            Self::Version(value) => meta.version = Some(value),
            Self::Description(value) => meta.description = Some(value),
            Self::Author(value) => meta.author = Some(value),
            Self::Status(value) => meta.status = Some(value),
            Self::SeverityId(value) => meta.severity_id = Some(value),
            Self::Sender(value) => meta.sender = Some(value),
            Self::SenderState(value) => meta.sender_state = Some(value),
            Self::CommunicationId(value) => meta.communication_id = Some(value),
            Self::Composition(value) => meta.composition = Some(value),
            Self::ExecutionTime(value) => meta.execution_time = Some(value),
            Self::Action(value) => meta.action = Some(value),
            Self::Control(value) => meta.control = Some(value),
            Self::DataTypeDescription(value) => meta.data_type_description = Some(value),
            Self::ByteOrder(value) => meta.byte_order = Some(value),
        }
    }
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("`{value}` is not a number that {key} can be"))
}

fn named<T: Copy>(key: &str, value: &str, names: &[(&str, T)]) -> Result<T, String> {
    let found = names.iter().find(|(name, _)| name.eq_ignore_ascii_case(value));
    found.map(|(_, named)| *named).ok_or_else(|| {
        let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
        format!("`{value}` is not a value of {key}: {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_sets_its_field_and_comes_back_in_json() {
        let texts = [
            ("version", "2"),
            ("description", "a=b"),
            ("author", "zoë"),
            ("status", "warning"),
            ("severityId", "-3"),
            ("sender", "me"),
            ("senderState", ""),
            ("communicationId", "4000000000"),
            ("composition", "a+b"),
            ("executionTime", "-9"),
            ("action", "configure"),
            ("control", "skip"),
            ("dataTypeDescription", "text"),
            ("byteOrder", "little"),
        ];
        let mut meta = Meta::new("a/b");
        for (key, value) in texts {
            assert!(KEYS.contains(key));
            format!("{key}={value}").parse::<Field>().unwrap().apply(&mut meta);
        }
        let json = xmsg_proxy::shown::metadata(&meta);
        assert_eq!(json.len(), texts.len());
        meta.headers.insert("trace", "0af7").unwrap();
        assert_eq!(xmsg_proxy::shown::metadata(&meta)["headers"], serde_json::json!({ "trace": "0af7" }));
        for (key, value) in texts {
            assert_eq!(json[key].as_str().map_or_else(|| json[key].to_string(), str::to_owned), value);
        }
    }

    #[test]
    fn keys_are_read_in_any_spelling() {
        for key in ["severity-id", "SeverityID", "severity_id"] {
            assert_eq!(format!("{key}=1").parse(), Ok(Field::SeverityId(1)));
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let cases = [
            ("author", "expected key=value"),
            ("colour=red", "keys: version, description, author"),
            ("status=fine", "info, warning, error"),
            ("severityId=x", "not a number"),
            ("communicationId=-1", "not a number"),
            ("dataType=a/b", "--mime"),
        ];
        for (text, advice) in cases {
            let error = text.parse::<Field>().unwrap_err();
            assert!(error.contains(advice), "{text}: {error}");
        }
    }
}
