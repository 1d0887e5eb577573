//! What a reload of the settings would change.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use xmsg_core::text::escaped;

use super::{Answer, Problem};
use crate::admin::State;
use crate::settings::Change;

/// A setting that is another one in the file than in force.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChangeRow {
    /// Its key, with its section: `log.filter`.
    setting: String,
    /// Empty if it is not there, and if only the content of the file differs that it names.
    in_force: String,
    in_file: String,
    /// Whether only the content of the file differs that it names. What is in it is not told.
    is_content: bool,
    /// Whether SIGHUP takes it over; otherwise it needs a restart.
    is_reloadable: bool,
}

/// What a reload would change now.
#[allow(clippy::struct_field_names, reason = "it is the name in JSON")]
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Changes {
    /// Whether there is a settings file.
    has_file: bool,
    /// Why the settings can't be used, so that a reload would change nothing.
    problem: Option<String>,
    changes: Vec<ChangeRow>,
}

/// What SIGHUP would change: settings that are other ones in the file than in force. They may have been
/// changed again since; files are read once a second at most.
#[utoipa::path(
    get, path = "/api/v1/settings/changes",
    responses((status = 200, body = Changes), (status = 503, body = Problem))
)]
pub(super) async fn changes(Shared(state): Shared<Arc<State>>) -> Answer<Changes> {
    let Some(pending) = &state.pending else { return Ok(Json(Changes::default())) };
    let found = pending.read(&state.runtime).await.ok_or_else(|| {
        let what = "the files of the settings are still being read: one of them may not answer";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", what)
    })?;
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            let problem = Some(escaped(&error.to_string()).into_owned());
            return Ok(Json(Changes { has_file: true, problem, changes: Vec::new() }));
        }
    };
    let changed = found.changes.into_iter().map(|Change { key, old, new, is_reloadable }| {
        let (in_force, in_file) = (escaped(&old).into_owned(), escaped(&new).into_owned());
        ChangeRow { setting: key, in_force, in_file, is_content: false, is_reloadable }
    });
    let contents = found.contents.into_iter().map(|(setting, is_reloadable)| ChangeRow {
        setting: setting.to_owned(),
        in_force: String::new(),
        in_file: String::new(),
        is_content: true,
        is_reloadable,
    });
    Ok(Json(Changes { has_file: found.has_file, problem: None, changes: changed.chain(contents).collect() }))
}
