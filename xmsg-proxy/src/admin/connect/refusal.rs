//! Answers to requests that are not fulfilled: a status, and the reason as JSON.

use std::error::Error as _;
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};
use xmsg_connect::definition::DefinitionError;
use xmsg_connect::{Error, ErrorKind, Sort};

/// The body of an answer to a request that is not fulfilled.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Refusal)]
pub(super) struct RefusalBody {
    /// The kind of the error, as a word to match on.
    kind: &'static str,
    /// The field of a definition or of a request that is wrong.
    field: Option<String>,
    /// What is wrong, and what to do.
    message: String,
}

/// The answers of every path to what is not fulfilled, for its description.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "a refusal is answered by its status, and this only describes it")]
pub(super) enum Refusals {
    #[response(status = "4XX", description = "It is not done; nothing has changed")]
    ByRequest(RefusalBody),
    #[response(status = "5XX", description = "The peer, the disk or the time limit is why it is not done")]
    ByOthers(RefusalBody),
}

/// Why a request is not fulfilled.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// The kind of the error, as a word to match on.
    kind: &'static str,
    /// The field of a definition or of a request that is wrong.
    field: Option<String>,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, field: None, message: message.into() }
    }

    fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    pub(super) fn not_allowed(what: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, "not_allowed", what)
    }

    pub(super) fn ended() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "closed", "outgoing connections and channels have ended")
    }

    pub(super) fn unknown_path(what: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown", what)
    }

    pub(super) fn unknown(sort: Sort, name: &str) -> Self {
        Self::unknown_path(format!("there is no {sort} {name:?}"))
    }

    pub(super) fn late_body(limit: Duration) -> Self {
        let what = format!("the body of the request has not come within {limit:?}");
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", what)
    }

    pub(super) fn unreadable(status: StatusCode, what: String) -> Self {
        let kind = if status == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "invalid_request" };
        Self::new(status, kind, what)
    }

    pub(super) fn invalid_request(field: &str, what: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", what).at(field)
    }

    pub(super) fn invalid_message(field: &str, what: String) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_message", what).at(field)
    }

    /// Makes the answer to a body that is no JSON, or none of what was expected.
    pub(super) fn invalid_json(error: &serde_json::Error) -> Self {
        let what = error.to_string();
        if !error.is_data() {
            let what = format!("the body of the request is no JSON: {what}");
            return Self::new(StatusCode::BAD_REQUEST, "invalid_request", what);
        }
        let field = ["unknown field `", "missing field `", "duplicate field `"]
            .into_iter()
            .find_map(|begin| what.strip_prefix(begin)?.split_once('`'))
            .map(|(field, _)| field.to_owned());
        Self { field, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_definition", what) }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (status, kind) = match error.kind() {
            ErrorKind::Unknown => (StatusCode::NOT_FOUND, "unknown"),
            ErrorKind::NameTaken => (StatusCode::CONFLICT, "name_taken"),
            ErrorKind::InUse => (StatusCode::CONFLICT, "in_use"),
            ErrorKind::InvalidDefinition => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_definition"),
            ErrorKind::InvalidMessage => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_message"),
            ErrorKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            ErrorKind::Inactive => (StatusCode::SERVICE_UNAVAILABLE, "inactive"),
            ErrorKind::Full => (StatusCode::SERVICE_UNAVAILABLE, "full"),
            ErrorKind::Closed => (StatusCode::SERVICE_UNAVAILABLE, "closed"),
            ErrorKind::Storage => (StatusCode::INSUFFICIENT_STORAGE, "storage"),
            // The cause is at the peer, beyond this process.
            ErrorKind::Unreachable => (StatusCode::BAD_GATEWAY, "unreachable"),
            ErrorKind::NotAllowed => (StatusCode::BAD_GATEWAY, "not_allowed_by_peer"),
            ErrorKind::Refused => (StatusCode::BAD_GATEWAY, "refused_by_peer"),
            ErrorKind::Undeliverable => (StatusCode::BAD_GATEWAY, "undeliverable"),
            ErrorKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "other"),
        };
        // A definition's error says all that its source does.
        let found = error.source().and_then(|source| source.downcast_ref::<DefinitionError>());
        let field = found.map(|found| found.field.clone()).filter(|field| !field.is_empty());
        let message = if found.is_some() { error.to_string() } else { error.with_causes() };
        Self { field, ..Self::new(status, kind, message) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, kind, field, message } = self;
        (status, Json(RefusalBody { kind, field, message })).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_wrong_in_json_is_named() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "it is only read")]
        struct Document {
            name: String,
        }
        let of = |text: &str| Refusal::invalid_json(&serde_json::from_str::<Document>(text).unwrap_err());
        for (text, field, status) in [
            (r#"{"nam": 1}"#, Some("nam"), StatusCode::UNPROCESSABLE_ENTITY),
            ("{}", Some("name"), StatusCode::UNPROCESSABLE_ENTITY),
            (r#"{"name": 1}"#, None, StatusCode::UNPROCESSABLE_ENTITY),
            ("{", None, StatusCode::BAD_REQUEST),
        ] {
            let refusal = of(text);
            assert_eq!((refusal.field.as_deref(), refusal.status), (field, status), "{text}");
        }
    }
}
