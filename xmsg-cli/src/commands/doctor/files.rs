//! Contexts, keys, passwords and tokens: whether their files can be read, and by whom.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use xmsg_core::security::{Password, Security, read_key_file, read_secret};
use xmsg_core::{Error, Result};

use super::finding::{Findings, error_text};
use crate::contexts::{self, Context, Contexts};
use crate::output::counted;
use crate::settings::{self, ADMIN_TOKEN_FILE, KEY_FILE, PASSWORD_FILE, Setting};

const EDIT: &str = "correct the file, or run the command with --context ''";

/// Checks the file of contexts, the one in use, and the files that the others name.
pub(super) fn check_contexts(findings: &mut Findings) {
    let contexts = match Contexts::read() {
        Ok(contexts) => contexts,
        Err(error) => return findings.problem("contexts", error_text(&error), EDIT),
    };
    let in_use = match settings::current() {
        Ok(context) => context,
        Err(error) => return findings.problem("contexts", error_text(&error), EDIT),
    };
    let count = counted(contexts.names().count() as u64, "context");
    let path = contexts::path().ok().filter(|path| path.exists());
    match (&path, in_use) {
        (None, _) => findings.ok("contexts", "none: values come from options and the environment"),
        (Some(path), None) => {
            findings.ok("contexts", format!("{count} in {}, none of them in use", path.display()));
        }
        (Some(path), Some(context)) => {
            findings.ok("contexts", format!("{count} in {}, in use: {}", path.display(), context.name));
        }
    }
    if let Some(path) = path {
        check_writers(&path, findings);
    }
    let others = contexts.names().filter(|name| in_use.is_none_or(|context| context.name != *name));
    for context in others.filter_map(|name| contexts.get(name)) {
        check_context(&context, findings);
    }
}

/// Warns if others can change the file of contexts: they could direct us to another proxy.
fn check_writers(path: &Path, findings: &mut Findings) {
    let Ok(metadata) = fs::metadata(path) else { return };
    let mode = metadata.permissions().mode();
    if metadata.is_file() && mode & 0o022 != 0 {
        let found = format!("others may change {} (mode {:o})", path.display(), mode & 0o777);
        findings.warning("contexts", found, format!("run `chmod 600 {}`", path.display()));
    }
}

/// Checks the files that are named by a context that is not in use.
fn check_context(context: &Context, findings: &mut Findings) {
    for setting in [&KEY_FILE, &PASSWORD_FILE, &ADMIN_TOKEN_FILE] {
        let Some((path, place)) = context.value(setting) else { continue };
        if let Err(error) = read(setting, Path::new(&path)) {
            let found = format!("`{}` of {place}: {}", setting.key, error_text(&error));
            let advice = format!("make the file, or another context: `xmsg context remove {}`", context.name);
            findings.warning("contexts", found, advice);
        }
    }
}

/// Reads the file of a setting as the commands do.
fn read(setting: &Setting, path: &Path) -> Result<()> {
    match setting {
        key if *key == KEY_FILE => read_key_file(path).map(drop),
        password if *password == PASSWORD_FILE => Password::read(path).map(drop),
        _ => read_secret(path).map(drop),
    }
}

/// Checks the credentials in use. Returns the mechanism, if they can be used.
pub(super) fn check_credentials(findings: &mut Findings) -> Option<&'static str> {
    match settings::security() {
        Ok(security) => {
            let found = match &security {
                Security::CurveClient { keys, .. } => {
                    let own = KEY_FILE.current(settings::given(&KEY_FILE)).ok().flatten();
                    let own = own.map_or("new keys for each run".to_owned(), |file| file.value);
                    format!("CURVE, our keys: {own}; the public one is {}", keys.public())
                }
                Security::PlainClient { user, .. } => format!("PLAIN, as {user}"),
                _ => "NULL: no keys and no password".to_owned(),
            };
            findings.ok("security", found);
            Some(security.name())
        }
        Err(error) => {
            findings.problem("security", error_text(&error), advice(&error));
            None
        }
    }
}

/// Returns the advice about credentials that can't be used. Some errors give it themselves.
fn advice(error: &Error) -> &'static str {
    if error.to_string().contains("chmod") {
        "a file with a secret must be readable by its owner alone"
    } else {
        "`xmsg help security` tells which options belong together; `xmsg keygen FILE` makes keys"
    }
}
