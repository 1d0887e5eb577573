//! Contexts: named sets of addresses and credentials, in a file of the user.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml_edit::{DocumentMut, Item, RawString, Table, Value};
use xmsg_core::{Error, ErrorKind, Result};
use xmsg_zmq::files::open_itself;

use crate::settings::{self, Found, Setting};

/// The path of the file below the configuration folder, unless `XMSG_CONFIG` gives another path.
const FILE: &str = "xmsg/contexts.toml";
/// The beginning of a new file.
const HEADER: &str = "\
# Contexts of xmsg: see `xmsg help context`. It may be edited; `xmsg context` leaves comments as they are.

";

/// All contexts of the file.
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
    /// The values by key, each with its position in the file, as text.
    values: BTreeMap<String, (String, String)>,
}

impl Context {
    /// Makes a context that is not in the file yet.
    pub(crate) fn new(name: &str, values: &BTreeMap<&'static str, String>) -> Self {
        let place = format!("the context {name}");
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), (value.clone(), place.clone())));
        Self { name: name.to_owned(), values: values.collect() }
    }

    /// Returns the value of the context for a setting, and its position.
    pub(crate) fn value(&self, setting: &Setting) -> Option<(String, String)> {
        self.values.get(setting.key).filter(|(value, _)| !value.is_empty()).cloned()
    }
}

/// Checks that this is a valid name of a context.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 64 && !name.starts_with('-') && name.chars().all(is_good) {
        return Ok(());
    }
    let what = format!("{name:?} can't be the name of a context: use letters, digits, `-`, `_` and `.`");
    Err(Error::new(ErrorKind::InvalidOption, what))
}

/// Returns the path of the file.
pub(crate) fn path() -> Result<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = folder("XMSG_CONFIG") {
        return Ok(path);
    }
    // The XDG specification says that a relative path is to be ignored.
    let configuration = folder("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let configuration = configuration.or_else(|| Some(folder("HOME")?.join(".config")));
    configuration.map(|folder| folder.join(FILE)).ok_or_else(|| {
        let what = "there is no place for contexts: set XMSG_CONFIG to the path of a file, or HOME";
        Error::new(ErrorKind::InvalidOption, what)
    })
}

impl Contexts {
    /// Reads the file. Without a file there are no contexts.
    pub(crate) fn read() -> Result<Self> {
        match path() {
            Ok(path) => Self::read_from(path),
            // A user without a home directory has no contexts, and may not need any.
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

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.content.contexts.keys().map(String::as_str)
    }

    pub(crate) fn selected(&self) -> Option<&str> {
        self.content.selected.as_ref().map(|name| name.get_ref().as_str())
    }

    /// Returns the context with this name.
    pub(crate) fn get(&self, name: &str) -> Option<Context> {
        let values = self.content.contexts.get(name)?.iter().map(|(key, value)| {
            let line = line(&self.text, value.span().start);
            let place = format!("the context {name} ({}, line {line})", self.path.display());
            (key.get_ref().clone(), (self.resolved(key.get_ref(), value.get_ref()), place))
        });
        Some(Context { name: name.to_owned(), values: values.collect() })
    }

    /// Makes a path that is relative to the file absolute.
    fn resolved(&self, key: &str, value: &str) -> String {
        let is_path = settings::ALL.iter().any(|setting| setting.key == key && setting.is_path);
        match self.path.parent() {
            Some(folder) if is_path && !value.is_empty() => folder.join(value).display().to_string(),
            _ => value.to_owned(),
        }
    }

    /// Returns the context that was asked for, or else the selected one, if any.
    pub(crate) fn choose(&self, name: Option<&Found>) -> Result<Option<Context>> {
        if let Some(Found { value, source }) = name {
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

    /// Makes the error that there is no context with this name.
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

    /// Changes the file under a lock, so that concurrent changes are made one after another and none is lost.
    pub(crate) fn edit(
        change: impl FnOnce(&Self, &mut Editor) -> anyhow::Result<()>,
    ) -> anyhow::Result<PathBuf> {
        let path = path()?;
        let _lock = lock(&path)?;
        let contexts = Self::read_from(path.clone())?;
        let mut editor = Editor::of(&contexts)?;
        change(&contexts, &mut editor)?;
        write(&path, &editor.text())?;
        Ok(path)
    }
}

/// The file while it is being changed, with its comments.
#[derive(Debug)]
pub(crate) struct Editor {
    /// The text at the beginning of the file, as long as the file has no item that it could be attached to.
    beginning: String,
    document: DocumentMut,
}

impl Editor {
    fn of(contexts: &Contexts) -> Result<Self> {
        let text = if contexts.text.trim().is_empty() { HEADER } else { &contexts.text };
        let mut document = text.parse::<DocumentMut>().map_err(|error| {
            let at = error.span().unwrap_or_default();
            damaged(&contexts.path, text, &at, error.message())
        })?;
        let mut beginning = String::new();
        if document.is_empty() {
            beginning = document.to_string();
            document.set_trailing("");
        }
        Ok(Self { beginning, document })
    }

    fn text(&self) -> String {
        format!("{}{}", self.beginning, self.document)
    }

    /// Adds a context, or replaces all values of an existing one.
    pub(crate) fn put(&mut self, context: &Context) {
        let mut all = Table::new();
        // The table gets no header of its own in the file.
        all.set_implicit(true);
        let all = self.document.entry("contexts").or_insert(Item::Table(all));
        let Some(all) = all.as_table_like_mut() else { return };
        let there = all.entry(&context.name).or_insert(Item::Table(Table::new()));
        let Some(there) = there.as_table_like_mut() else { return };
        let gone: Vec<_> = there.iter().map(|(key, _)| key.to_owned()).collect();
        for key in gone.iter().filter(|key| !context.values.contains_key(*key)) {
            there.remove(key);
        }
        for (key, (value, _)) in &context.values {
            replace(there.entry(key).or_insert(Item::None), value);
        }
    }

    /// Removes a context. If it was selected, no context is selected afterwards.
    pub(crate) fn remove(&mut self, name: &str) {
        let selected = self.document.get("selected").and_then(Item::as_str);
        if selected == Some(name) {
            self.select(None);
        }
        if let Some(all) = self.document.get_mut("contexts").and_then(Item::as_table_like_mut) {
            let removed = all.remove(name);
            let head = removed.as_ref().and_then(Item::as_table).map(|table| head(table.decor().prefix()));
            self.put_in_front(&head.unwrap_or_default());
        }
    }

    pub(crate) fn select(&mut self, name: Option<&str>) {
        let Some(name) = name else {
            let removed = self.document.remove_entry("selected");
            let head = removed.map(|(key, _)| head(key.leaf_decor().prefix()));
            return self.put_in_front(&head.unwrap_or_default());
        };
        if self.document.contains_key("selected") {
            return replace(&mut self.document["selected"], name);
        }
        self.document.insert("selected", toml_edit::value(name));
        // The entry is inserted before everything else. A comment at the beginning of the file stays at the
        // beginning.
        let first = self.first_table().map(Table::decor_mut);
        let Some(first) = first else { return };
        let prefix = text_of(first.prefix());
        let beginning = head(first.prefix());
        first.set_prefix(format!("\n{}", prefix[beginning.len()..].trim_start_matches('\n')));
        if let Some(mut key) = self.document.key_mut("selected") {
            key.leaf_decor_mut().set_prefix(beginning);
        }
    }

    /// Returns the table that is the first in the file.
    fn first_table(&mut self) -> Option<&mut Table> {
        let all = self.document.get_mut("contexts")?.as_table_mut()?;
        let position = |table: &Table| table.position().unwrap_or(isize::MAX);
        if !all.is_implicit() {
            return Some(all);
        }
        all.iter_mut().filter_map(|(_, item)| item.as_table_mut()).min_by_key(|table| position(table))
    }

    /// Puts comments before the item that is now the first.
    fn put_in_front(&mut self, text: &str) {
        if text.trim().is_empty() {
            return;
        }
        if let Some(mut key) = self.document.key_mut("selected") {
            let prefix = format!("{text}{}", text_of(key.leaf_decor().prefix()));
            return key.leaf_decor_mut().set_prefix(prefix);
        }
        match self.first_table().map(Table::decor_mut) {
            Some(decor) => {
                let prefix = format!("{text}{}", text_of(decor.prefix()).trim_start_matches('\n'));
                decor.set_prefix(prefix);
            }
            None => self.beginning.push_str(text),
        }
    }
}

/// Sets a value and keeps the comments around the previous one.
fn replace(item: &mut Item, text: &str) {
    let mut value = Value::from(text);
    if let Some(before) = item.as_value() {
        *value.decor_mut() = before.decor().clone();
    }
    *item = Item::Value(value);
}

fn text_of(text: Option<&RawString>) -> String {
    text.and_then(RawString::as_str).unwrap_or_default().to_owned()
}

/// Returns the comments before an item that do not belong to it: those that are followed by a blank line.
fn head(prefix: Option<&RawString>) -> String {
    let mut text = text_of(prefix);
    text.truncate(text.rfind("\n\n").map_or(0, |at| at + 2));
    text
}

/// Locks the file of contexts for a change. The lock is a separate file, because the file of contexts is
/// replaced.
fn lock(path: &Path) -> Result<File> {
    let target = target(path)?;
    let mut name = target.into_os_string();
    name.push(".lock");
    let failed = |error: io::Error| {
        let name = name.display();
        Error::new(ErrorKind::Io, format!("cannot lock the contexts with {name}: {error}"))
    };
    let file = open_itself(Path::new(&name), OpenOptions::new().write(true).mode(0o600)).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

/// Returns the file itself if the path is a link, and creates its folder if necessary.
fn target(path: &Path) -> Result<PathBuf> {
    let failed = |error: io::Error| cannot_write(path, &error);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed)?;
    match std::fs::metadata(path) {
        Ok(there) if !there.is_file() => {
            Err(cannot_write(path, &io::Error::other("it is no ordinary file: name another one")))
        }
        Ok(_) => std::fs::canonicalize(path).map_err(failed),
        Err(_) => Ok(path.to_owned()),
    }
}

/// Replaces the file. Readers see either the old or the new content. Only the user may read it.
fn write(path: &Path, text: &str) -> Result<()> {
    let failed = |error: io::Error| cannot_write(path, &error);
    let target = target(path)?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".contexts-").tempfile_in(folder).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(&target).map_err(|error| failed(error.error))?;
    Ok(())
}

fn cannot_write(path: &Path, error: &io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("cannot write the contexts to {}: {error}", path.display()))
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

    /// Returns the text after the change of a file with this text.
    fn edited(text: &str, change: impl FnOnce(&mut Editor)) -> String {
        let (_folder, path) = file(text);
        let contexts = Contexts::read_from(path.clone()).unwrap();
        let mut editor = Editor::of(&contexts).unwrap();
        change(&mut editor);
        let text = editor.text();
        write(&path, &text).unwrap();
        Contexts::read_from(path).unwrap();
        text
    }

    #[test]
    fn what_is_written_is_read_again_and_is_for_nobody_else() {
        let (folder, path) = file(TEXT);
        let text = edited(TEXT, |editor| {
            editor.put(&Context::new("new.one", &BTreeMap::from([("user", "me \"x\"\n".to_owned())])));
            editor.remove("lab");
        });
        write(&path, &text).unwrap();
        let contexts = Contexts::read_from(path.clone()).unwrap();
        assert_eq!((contexts.selected(), contexts.names().count()), (None, 2));
        let value = contexts.get("new.one").unwrap().value(&settings::USER).unwrap();
        assert_eq!(value.0, "me \"x\"\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn comments_of_whoever_edited_the_file_stay() {
        const EDITED: &str = "\
# My proxies.

# The one that I use most.
selected = \"lab\" # until May

# In the cellar.
[contexts.lab]
# Its new address.
proxy = \"10.0.0.7\" # since March
user = \"me\"

[contexts.home] # my own
proxy = \"::1\"
# The end.
";
        let lab = |values: &[(&'static str, &str)]| {
            let values = values.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
            Context::new("lab", &values)
        };
        let text = edited(EDITED, |editor| {
            editor.put(&lab(&[("proxy", "10.0.0.9"), ("registrar", "a")]));
            editor.select(Some("home"));
        });
        let expected = EDITED
            .replace("= \"lab\" #", "= \"home\" #")
            .replace("10.0.0.7", "10.0.0.9")
            .replace("user = \"me\"", "registrar = \"a\"");
        assert_eq!(text, expected);

        // Comments of a removed item are removed with it. The comment at the beginning of the file stays.
        let text = edited(EDITED, |editor| editor.remove("lab"));
        assert_eq!(text, "# My proxies.\n\n[contexts.home] # my own\nproxy = \"::1\"\n# The end.\n");
        let text = edited(&text, |editor| editor.select(Some("home")));
        let expected =
            "# My proxies.\n\nselected = \"home\"\n\n[contexts.home] # my own\nproxy = \"::1\"\n# The end.\n";
        assert_eq!(text, expected);
        let text = edited(&text, |editor| editor.remove("home"));
        assert_eq!(text, "# My proxies.\n\n# The end.\n");
        let text = edited(&text, |editor| editor.put(&lab(&[("proxy", "a")])));
        for part in ["# My proxies.\n", "# The end.\n", "[contexts.lab]\nproxy = \"a\"\n"] {
            assert!(text.contains(part), "{text}");
        }

        // Other TOML notations of the same content.
        let inline = "contexts = { lab = { proxy = \"a\" }, home = { proxy = \"b\" } } # mine\n";
        let text = edited(inline, |editor| {
            editor.put(&lab(&[("proxy", "c")]));
            editor.remove("home");
            editor.select(Some("lab"));
        });
        assert!(text.contains("# mine") && text.contains("\"c\"") && !text.contains("home"), "{text}");
        let whole = "[contexts]\n# one\nlab.proxy = \"a\"\n";
        let text = edited(whole, |editor| editor.put(&lab(&[("proxy", "b")])));
        assert_eq!(text, whole.replace("\"a\"", "\"b\""));
    }

    #[test]
    fn a_new_file_says_what_it_is() {
        let text = edited("", |editor| {
            editor.put(&Context::new("lab", &BTreeMap::from([("proxy", "a".to_owned())])));
            editor.select(Some("lab"));
        });
        assert_eq!(text, format!("{HEADER}selected = \"lab\"\n\n[contexts.lab]\nproxy = \"a\"\n"));
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
