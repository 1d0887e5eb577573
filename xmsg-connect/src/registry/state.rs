//! The state directory: the file with all definitions, and the lock that says who uses it.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use xmsg_zmq::lock::LockedFile;

use crate::definition::Definitions;
use crate::error::{Error, ErrorKind, Result};

/// The file with all definitions, in the state directory.
pub(super) const STATE_FILE: &str = "connect.toml";
/// The file that whoever uses the state directory has locked.
const LOCK_FILE: &str = "lock";

/// Makes an error of this library from one of the file system.
fn storage_error(what: &str, path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Storage, format!("{} can't be {what}", path.display())).with_source(error)
}

/// Makes the state directory if it is not there, and locks it.
pub(super) fn lock_state(state_dir: &Path) -> Result<LockedFile> {
    std::fs::create_dir_all(state_dir).map_err(|error| storage_error("made", state_dir, error))?;
    let path = state_dir.join(LOCK_FILE);
    match LockedFile::open(&path) {
        Ok(lock) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let what = format!(
                "{} is used by another registry: end that, or choose another folder",
                state_dir.display()
            );
            Err(Error::new(ErrorKind::InUse, what))
        }
        Err(TryLockError::Error(error)) => Err(storage_error("locked", &path, error)),
    }
}

/// Returns the absolute path of this folder, so that it stays the same if the working directory changes.
pub(super) fn absolute(folder: &Path) -> Result<PathBuf> {
    std::path::absolute(folder).map_err(|error| storage_error("found", folder, error))
}

pub(super) fn read_state(state_dir: &Path, initial: Definitions) -> Result<Definitions> {
    let file = state_dir.join(STATE_FILE);
    match std::fs::read_to_string(&file) {
        Ok(text) => Definitions::parse(&text).map_err(|error| {
            Error::new(ErrorKind::InvalidDefinition, format!("{}: {error}", file.display()))
                .with_source(error)
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            initial.check()?;
            initial.check_new_names(&Definitions::default())?;
            Ok(initial)
        }
        Err(error) => Err(storage_error("read", &file, error)),
    }
}

/// Writes a file so that it has either the old text or the new one, whatever happens meanwhile.
pub(super) fn replace_file(file: &Path, text: &str) -> Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        temporary.write_all(text.as_bytes())?;
        temporary.as_file().sync_all()?;
        temporary.persist(file).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error: std::io::Error| {
        Error::new(ErrorKind::Storage, format!("the definitions can't be saved to {}", file.display()))
            .with_source(error)
    })
}
