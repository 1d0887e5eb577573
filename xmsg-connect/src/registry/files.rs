//! The files that a change of definitions may name. Whoever may change definitions is not to have this
//! process read every file that its user can read.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use super::state::STATE_FILE;
use crate::definition::{Curve, DefinitionError, Definitions};
use crate::error::Result;

/// The policy for files that a change names: where they have to be.
#[derive(Clone, Debug)]
#[allow(clippy::struct_field_names, reason = "each is a folder, and named as the setting")]
pub(super) struct FilePolicy {
    /// The folder that they have to be in.
    pub(super) secrets_dir: PathBuf,
    /// An absolute path, which relative files count from.
    pub(super) state_dir: PathBuf,
    /// The folder of the spools, of which no file may be named.
    pub(super) spool_dir: PathBuf,
}

/// A file that a definition names.
struct NamedFile<'a> {
    sort: &'static str,
    name: &'a str,
    field: &'static str,
    file: &'a Path,
}

impl NamedFile<'_> {
    fn refused(&self, secrets_dir: &Path) -> DefinitionError {
        DefinitionError {
            sort: self.sort,
            name: self.name.to_owned(),
            field: self.field.to_owned(),
            // The text says nothing of what is there, since whoever asks may not know it.
            what: format!(
                "names {:?}, which is not in the folder {:?}: a change may name files of that folder only (secrets_dir \
                 in the settings)",
                self.file.display().to_string(),
                secrets_dir.display().to_string()
            ),
            line: None,
        }
    }
}

/// Returns the file with the keys of a socket.
fn curve_file<'a>(sort: &'static str, name: &'a str, curve: Option<&'a Curve>) -> Option<NamedFile<'a>> {
    Some(NamedFile { sort, name, field: "curve", file: curve?.key_file.as_deref()? })
}

/// Returns all files that definitions name.
fn named_files(definitions: &Definitions) -> impl Iterator<Item = NamedFile<'_>> {
    let of_connections = definitions.connections.iter().flat_map(|entry| {
        let files = [("password_file", &entry.password_file), ("ca_file", &entry.ca_file)];
        files.into_iter().filter_map(|(field, file)| {
            Some(NamedFile { sort: "connection", name: &entry.name, field, file: file.as_deref()? })
        })
    });
    let of_outgoing = definitions.outgoing.iter();
    let of_outgoing =
        of_outgoing.filter_map(|entry| curve_file("outgoing", &entry.name, entry.curve.as_ref()));
    let of_channels = definitions.channels.iter();
    let of_channels =
        of_channels.filter_map(|entry| curve_file("channel", &entry.name, entry.curve.as_ref()));
    of_connections.chain(of_outgoing).chain(of_channels)
}

impl FilePolicy {
    /// Checks that a change names only files that it may name. What was named before may be named again,
    /// since the file that everything began with may name files from anywhere. The check waits for the disk.
    pub(super) fn check(&self, before: &Definitions, after: &Definitions) -> Result<()> {
        let known: HashSet<&Path> = named_files(before).map(|one| one.file).collect();
        for one in named_files(after).filter(|one| !known.contains(one.file)) {
            if !self.contains(one.file).unwrap_or(false) {
                return Err(one.refused(&self.secrets_dir).into());
            }
        }
        Ok(())
    }

    /// Returns whether this file, which need not be there yet, is in the folder, wherever links lead.
    fn contains(&self, file: &Path) -> io::Result<bool> {
        let file = self.state_dir.join(file);
        let real = match file.canonicalize() {
            Ok(real) => real,
            // A link to nowhere may lead somewhere one day.
            Err(_) if file.symlink_metadata().is_ok() => return Ok(false),
            Err(_) => match (file.parent(), file.file_name()) {
                (Some(folder), Some(name)) => folder.canonicalize()?.join(name),
                _ => return Ok(false),
            },
        };
        let is_own = |own: &Path| own.canonicalize().is_ok_and(|own| real.starts_with(own));
        let is_ours = is_own(&self.spool_dir) || is_own(&self.state_dir.join(STATE_FILE));
        Ok(real.starts_with(self.secrets_dir.canonicalize()?) && !is_ours)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::definition::ConnectionDefinition;
    use crate::registry::Definition;

    fn with(files: &[(&str, Option<&str>)]) -> Definitions {
        let mut all = Definitions::default();
        for (at, (password, ca)) in files.iter().enumerate() {
            let entry = ConnectionDefinition {
                password_file: Some(password.into()),
                ca_file: ca.map(PathBuf::from),
                ..ConnectionDefinition::amqp(format!("c{at}"), "amqp://127.0.0.1")
            };
            all.add(Definition::from(entry)).unwrap();
        }
        all
    }

    #[test]
    fn only_files_of_the_folder_may_be_named_wherever_links_lead() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["state", "state/spool", "secrets", "secrets/below"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        for name in ["state/password", "state/connect.toml", "state/spool/1", "secrets/password", "outside"] {
            std::fs::write(path(name), "x").unwrap();
        }
        symlink(path("outside"), path("secrets/link")).unwrap();
        symlink(path("nowhere"), path("secrets/dangling")).unwrap();
        symlink(folder.path(), path("secrets/up")).unwrap();
        symlink(path("secrets"), path("alias")).unwrap();
        let secrets_dir = |name: &str| FilePolicy {
            secrets_dir: path(name),
            state_dir: path("state"),
            spool_dir: path("state/spool"),
        };
        let shown = |name: &str| path(name).display().to_string();
        let secrets = secrets_dir("secrets");
        let may = |file_policy: &FilePolicy, file: &str| {
            file_policy.check(&Definitions::default(), &with(&[(file, None)]))
        };
        for file in
            ["secrets/password", "secrets/below/not-there-yet", "alias/password", "secrets/below/../password"]
        {
            may(&secrets, &shown(file)).unwrap();
        }
        may(&secrets, "../secrets/password").unwrap();
        for file in [
            "outside",
            "secrets/link",
            "secrets/dangling",
            "secrets/up/outside",
            "secrets/../outside",
            "secrets/missing/file",
            "state/password",
        ] {
            let error = may(&secrets, &shown(file)).unwrap_err().to_string();
            assert!(
                error.contains("password_file names") && error.contains("secrets_dir"),
                "{file}: {error}"
            );
            assert!(error.contains(&shown("secrets")), "it says what is allowed: {error}");
        }
        assert!(may(&secrets, "password").is_err(), "it counts from the state directory");
        assert!(may(&secrets, "/etc/passwd").is_err());

        // The state directory has other files, too.
        let state = secrets_dir("state");
        may(&state, "password").unwrap();
        for file in ["connect.toml", "spool/1", "spool/not-there-yet", "../outside"] {
            assert!(may(&state, file).is_err(), "{file}");
        }
        // Nothing is in a folder that is not there.
        assert!(may(&secrets_dir("gone"), &shown("secrets/password")).is_err());
    }

    #[test]
    fn what_was_named_before_may_be_named_again_and_each_field_counts() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().to_owned();
        let file_policy =
            FilePolicy { secrets_dir: state_dir.clone(), spool_dir: state_dir.join("spool"), state_dir };
        let before = with(&[("/etc/xmsg/password", None)]);
        file_policy.check(&before, &with(&[("/etc/xmsg/password", None), ("own", None)])).unwrap();
        let error =
            file_policy.check(&before, &with(&[("/etc/xmsg/password", Some("/etc/passwd"))])).unwrap_err();
        assert!(error.to_string().contains("ca_file names \"/etc/passwd\""), "{error}");

        let text = "[[outgoing]]\nname = 'a'\nkind = 'zmq'\nsocket_type = 'PUSH'\naddress = 'tcp://127.0.0.1:1'\nsocket_method = 'bind'\n\
                    curve = { key_file = '/etc/key' }\nsubscribe = ['a']\n";
        let error = file_policy.check(&before, &Definitions::parse(text).unwrap()).unwrap_err();
        assert!(error.to_string().contains("curve names \"/etc/key\""), "{error}");
    }
}
