//! Settings as TOML: reading, writing and comparing them.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Settings;

/// The reason why settings can't be used: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError(String);

impl SettingsError {
    /// Creates an error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SettingsError {}

/// Reads a file. Settings that it does not mention have their defaults.
pub fn read<S: Settings>(path: &Path) -> Result<S, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        SettingsError::new(format!("cannot read the configuration file {}: {error}", path.display()))
    })?;
    let mut settings: S = parse(&text, &path.display().to_string())?;
    settings.resolve(path.parent().unwrap_or(Path::new("")));
    Ok(settings)
}

/// Parses settings from the text of a file of this name.
pub fn parse<S: Settings>(text: &str, file: &str) -> Result<S, SettingsError> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        SettingsError::new(format!("{file}, line {line}: {}", explain(error.message())))
    })
}

/// Returns settings as the complete text of a file: reading it gives the same settings.
pub fn print<S: Settings>(settings: &S) -> Result<String, SettingsError> {
    toml::to_string(settings)
        .map_err(|error| SettingsError::new(format!("the configuration can't be written as TOML: {error}")))
}

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, with its section: `log.filter`.
    pub key: String,
    /// The old value. It is empty if there was none.
    pub old: String,
    /// The new value. It is empty if there is none.
    pub new: String,
    /// Whether the change can be applied while the daemon runs.
    pub is_reloadable: bool,
}

/// Settings that depend on the value of the first one: they are applied only while that one stays.
const TOGETHER: [(&str, &[&str]); 1] =
    [("security.mechanism", &["security.client", "security.password_file"])];

/// Compares settings. Returns the differences, and the settings to continue with: those of `new` that can be
/// changed while the daemon runs, and the others of `old`.
///
/// # Errors
///
/// [`SettingsError`] if these settings make no sense together.
pub fn merge<S: Settings>(old: &S, new: &S) -> Result<(S, Vec<Change>), SettingsError> {
    let table = |settings| {
        toml::Table::try_from(settings)
            .map_err(|error| SettingsError::new(format!("the configuration can't be compared: {error}")))
    };
    let (mut merged, new) = (table(old)?, table(new)?);
    let mut reloadable = S::RELOADABLE.to_vec();
    for (first, others) in TOGETHER {
        if value(&merged, first) != value(&new, first) {
            reloadable.retain(|key| !others.contains(key));
        }
    }
    let mut changes = Vec::new();
    take_over(&mut merged, &new, "", &reloadable, &mut changes);
    let settings: S = merged
        .try_into()
        .map_err(|error| SettingsError::new(format!("the configuration can't be taken over: {error}")))?;
    settings.check().map_err(|error| {
        SettingsError::new(format!(
            "together with the settings that need a restart it makes no sense: {error}"
        ))
    })?;
    Ok((settings, changes))
}

/// Returns the value of a key such as `log.filter`.
fn value<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    let (sections, name) = key.rsplit_once('.').unwrap_or(("", key));
    let sections = sections.split('.').filter(|section| !section.is_empty());
    sections.into_iter().try_fold(table, |table, section| table.get(section)?.as_table())?.get(name)
}

fn take_over(
    old: &mut toml::Table,
    new: &toml::Table,
    section: &str,
    reloadable: &[&str],
    changes: &mut Vec<Change>,
) {
    let mut names: Vec<String> = old.keys().chain(new.keys()).cloned().collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let key = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
        match (old.get_mut(&name), new.get(&name)) {
            (Some(toml::Value::Table(old)), Some(toml::Value::Table(new))) => {
                take_over(old, new, &key, reloadable, changes);
            }
            (before, after) if before.as_deref() == after => {}
            (before, after) => {
                let shown = |value: Option<&toml::Value>| value.map_or(String::new(), ToString::to_string);
                let is_reloadable = reloadable.contains(&key.as_str());
                changes.push(Change { key, old: shown(before.as_deref()), new: shown(after), is_reloadable });
                if is_reloadable {
                    match after {
                        Some(value) => drop(old.insert(name, value.clone())),
                        None => drop(old.remove(&name)),
                    }
                }
            }
        }
    }
}

/// Explains an error of the parser in the words of the file, and says what to do.
fn explain(message: &str) -> String {
    let unknown = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split_once('`'))
        .map(|(name, rest)| (name, rest.split('`').skip(1).step_by(2).collect::<Vec<_>>()));
    if let Some((name, known)) = unknown {
        return format!(
            "there is no setting {name:?} in this section: correct it or take it out; there are {}",
            known.join(", ")
        );
    }
    let plain = message.trim_end().replace('\n', ", ");
    ["i64", "u16"].iter().fold(plain, |text, kind| {
        text.replace(&format!("expected {kind}"), "expected a whole number in its range")
    })
}

/// Returns the absolute path of a file that was named on the command line.
#[must_use]
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
