//! Contexts: named sets of addresses and credentials, in a file of the user.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use xmsg_core::{Error, ErrorKind, Result};

use crate::settings::{self, Found, Setting};

/// The file, unless `XMSG_CONFIG` says otherwise, below the folder for configuration.
const FILE: &str = "xmsg/contexts.toml";
const HEADER: &str = "\
# Contexts of xmsg: see `xmsg help context`. Commands that change them write this file anew, without other comments.
";

/// All contexts, as the file has them.
#[derive(Debug)]
pub(crate) struct Contexts {
    path: PathBuf,
    text: String,
    content: Content,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    selected: Option<Spanned<String>>,
    #[serde(default)]
    contexts: BTreeMap<String, Values>,
}

/// The values of a context, by the keys of their settings.
type Values = BTreeMap<Spanned<String>, Spanned<String>>;

/// One context.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) name: String,
    /// Each with the place at which it stands.
    values: BTreeMap<String, (String, String)>,
}

impl Context {
    /// A context that is not in the file yet.
    pub(crate) fn new(name: &str, values: &BTreeMap<&'static str, String>) -> Self {
        let place = format!("the context {name}");
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), (value.clone(), place.clone())));
        Self { name: name.to_owned(), values: values.collect() }
    }

    /// The value that it has for a setting, and where it stands.
    pub(crate) fn value(&self, setting: &Setting) -> Option<(String, String)> {
        self.values.get(setting.key).filter(|(value, _)| !value.is_empty()).cloned()
    }
}

/// Whether this can be the name of a context.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 64 && !name.starts_with('-') && name.chars().all(is_good) {
        return Ok(());
    }
    let what = format!("{name:?} can't be the name of a context: use letters, digits, `-`, `_` and `.`");
    Err(Error::new(ErrorKind::InvalidOption, what))
}

/// Where the file is.
pub(crate) fn path() -> Result<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = folder("XMSG_CONFIG") {
        return Ok(path);
    }
    // A relative one does not count, says the specification of XDG.
    let configuration = folder("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let configuration = configuration.or_else(|| Some(folder("HOME")?.join(".config")));
    configuration.map(|folder| folder.join(FILE)).ok_or_else(|| {
        let what = "there is no place for contexts: set XMSG_CONFIG to the path of a file, or HOME";
        Error::new(ErrorKind::InvalidOption, what)
    })
}

impl Contexts {
    /// Reads the file; without one, there are no contexts.
    pub(crate) fn read() -> Result<Self> {
        match path() {
            Ok(path) => Self::read_from(path),
            // Whoever has no home has no contexts, and may not want any.
            Err(_) => Ok(Self { path: PathBuf::new(), text: String::new(), content: Content::default() }),
        }
    }

    pub(crate) fn read_from(path: PathBuf) -> Result<Self> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                let what = format!("cannot read the contexts in {}: {error}", path.display());
                return Err(Error::new(ErrorKind::Io, what));
            }
        };
        let content = toml::from_str(&text).map_err(|error: toml::de::Error| {
            let at = error.span().unwrap_or_default();
            damaged(&path, &text, &at, error.message())
        })?;
        let contexts = Self { path, text, content };
        contexts.check()?;
        Ok(contexts)
    }

    fn check(&self) -> Result<()> {
        for values in self.content.contexts.values() {
            for key in values.keys() {
                if !settings::ALL.iter().any(|setting| setting.key == key.get_ref()) {
                    let keys: Vec<_> = settings::ALL.iter().map(|setting| setting.key).collect();
                    let what = format!("a context has no `{}`, but {}", key.get_ref(), keys.join(", "));
                    return Err(damaged(&self.path, &self.text, &key.span(), &what));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.content.contexts.keys().map(String::as_str)
    }

    pub(crate) fn selected(&self) -> Option<&str> {
        self.content.selected.as_ref().map(|name| name.get_ref().as_str())
    }

    /// The context of this name.
    pub(crate) fn get(&self, name: &str) -> Option<Context> {
        let values = self.content.contexts.get(name)?.iter().map(|(key, value)| {
            let line = line(&self.text, value.span().start);
            let place = format!("the context {name} ({}, line {line})", self.path.display());
            (key.get_ref().clone(), (self.resolved(key.get_ref(), value.get_ref()), place))
        });
        Some(Context { name: name.to_owned(), values: values.collect() })
    }

    /// Paths are relative to the file.
    fn resolved(&self, key: &str, value: &str) -> String {
        let is_path = settings::ALL.iter().any(|setting| setting.key == key && setting.is_path);
        match self.path.parent() {
            Some(folder) if is_path && !value.is_empty() => folder.join(value).display().to_string(),
            _ => value.to_owned(),
        }
    }

    /// The context that was asked for, or the selected one, if any.
    pub(crate) fn choose(&self, asked: Option<&Found>) -> Result<Option<Context>> {
        if let Some(Found { value, source }) = asked {
            return match self.get(value) {
                None => Err(self.unknown(value, &format!(", which {source} names"))),
                found => Ok(found),
            };
        }
        let Some(selected) = &self.content.selected else { return Ok(None) };
        match self.get(selected.get_ref()) {
            None => {
                let what = format!(
                    "the selected context {} is not there: choose another one with `xmsg context select`",
                    selected.get_ref()
                );
                Err(damaged(&self.path, &self.text, &selected.span(), &what))
            }
            found => Ok(found),
        }
    }

    /// There is no context of this name.
    pub(crate) fn unknown(&self, name: &str, named: &str) -> Error {
        let all: Vec<_> = self.names().collect();
        let known = if all.is_empty() {
            "there is none: `xmsg context add` makes one".to_owned()
        } else {
            format!("there is {}", all.join(", "))
        };
        let what = format!("no context {name:?}{named}, in {}: {known}", self.path.display());
        Error::new(ErrorKind::InvalidOption, what)
    }

    /// Adds a context, or replaces it.
    pub(crate) fn put(&mut self, context: &Context) {
        let place = |text: &str| Spanned::new(0..0, text.to_owned());
        let values = context.values.iter().map(|(key, (value, _))| (place(key), place(value))).collect();
        self.content.contexts.insert(context.name.clone(), values);
    }

    /// Removes a context; one that was selected is no longer.
    pub(crate) fn remove(&mut self, name: &str) {
        self.content.contexts.remove(name);
        if self.selected() == Some(name) {
            self.select(None);
        }
    }

    pub(crate) fn select(&mut self, name: Option<&str>) {
        self.content.selected = name.map(|name| Spanned::new(0..0, name.to_owned()));
    }

    /// Writes the file anew. Whoever reads it finds the old one or the new one; nobody else may.
    pub(crate) fn write(&self) -> Result<()> {
        let path = if self.path.as_os_str().is_empty() { path()? } else { self.path.clone() };
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Io, format!("cannot write the contexts to {}: {error}", path.display()))
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        // A link stays one.
        let target = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(folder);
        let mut file = tempfile::Builder::new().prefix(".contexts-").tempfile_in(folder).map_err(failed)?;
        file.write_all(self.text().as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(&target).map_err(|error| failed(error.error))?;
        Ok(())
    }

    fn text(&self) -> String {
        let mut all = toml::Table::new();
        if let Some(name) = self.selected() {
            all.insert("selected".to_owned(), name.to_owned().into());
        }
        let mut contexts = toml::Table::new();
        for (name, values) in &self.content.contexts {
            let pair = |(key, value): (&Spanned<String>, &Spanned<String>)| {
                (key.get_ref().clone(), value.get_ref().clone().into())
            };
            contexts.insert(name.clone(), toml::Value::Table(values.iter().map(pair).collect()));
        }
        all.insert("contexts".to_owned(), toml::Value::Table(contexts));
        format!("{HEADER}{all}")
    }
}

fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

fn damaged(path: &Path, text: &str, at: &Range<usize>, what: &str) -> Error {
    let place = format!("{}, line {}", path.display(), line(text, at.start));
    let what = what.trim().replace('\n', "; ");
    Error::new(ErrorKind::InvalidOption, format!("the contexts can't be read: {place}: {what}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const TEXT: &str = "\
selected = \"lab\"

[contexts.lab]
proxy = \"10.0.0.7\"
key-file = \"client.key\"

[contexts.home]
proxy = \"::1\"
";

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("contexts.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn values_know_where_they_stand() {
        let (folder, path) = file(TEXT);
        let contexts = Contexts::read_from(path.clone()).unwrap();
        assert_eq!(contexts.names().collect::<Vec<_>>(), ["home", "lab"]);
        let lab = contexts.choose(None).unwrap().unwrap();
        assert_eq!(lab.name, "lab");
        let (proxy, place) = lab.value(&settings::PROXY).unwrap();
        assert_eq!(proxy, "10.0.0.7");
        assert_eq!(place, format!("the context lab ({}, line 4)", path.display()));
        // Paths are relative to the file.
        let (key_file, _) = lab.value(&settings::KEY_FILE).unwrap();
        assert_eq!(Path::new(&key_file), folder.path().join("client.key"));
        assert_eq!(lab.value(&settings::USER), None);
    }

    #[test]
    fn what_is_written_is_read_again_and_is_for_nobody_else() {
        let (folder, path) = file(TEXT);
        let mut contexts = Contexts::read_from(path.clone()).unwrap();
        contexts.put(&Context::new("new.one", &BTreeMap::from([("user", "me \"x\"\n".to_owned())])));
        contexts.remove("lab");
        contexts.write().unwrap();
        let contexts = Contexts::read_from(path.clone()).unwrap();
        assert_eq!((contexts.selected(), contexts.names().count()), (None, 2));
        let value = contexts.get("new.one").unwrap().value(&settings::USER).unwrap();
        assert_eq!(value.0, "me \"x\"\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn damage_is_named_with_its_line() {
        for (text, line, says) in [
            ("\n[contexts", 2, ""),
            ("[contexts.a]\nproxy = 5\n", 2, "string"),
            ("[contexts.a]\n\nprxy = \"b\"\n", 3, "no `prxy`, but proxy, registrar"),
            ("[context.a]\n", 1, "unknown field"),
            ("\n\nselected = \"b\"\n[contexts.a]\n", 3, "the selected context b is not there"),
        ] {
            let (_folder, path) = file(text);
            let error =
                Contexts::read_from(path.clone()).and_then(|contexts| contexts.choose(None)).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&format!("{}, line {line}: ", path.display())), "{text}");
            assert!(text.contains(says) && error.kind() == ErrorKind::InvalidOption, "{text}");
        }
    }

    #[test]
    fn names_are_plain() {
        for name in ["lab", "a.b-c_1"] {
            check_name(name).unwrap();
        }
        for name in ["", "a b", "-a", "a/b", "\u{e4}", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
