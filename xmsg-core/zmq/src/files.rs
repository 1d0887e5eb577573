//! Files at names that others may know beforehand: a symbolic link that somebody has put there is not
//! followed. Whoever can write to the folder could otherwise have us truncate or lock any file of ours.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
#[cfg(unix)]
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// How often a file may be replaced while it is opened.
const ATTEMPTS: usize = 16;

/// Opens the file at this path with these options, and creates it if it is not there. What is in it stays.
///
/// # Errors
///
/// If there is something else than an ordinary file, such as a symbolic link, wherever that leads, or if the
/// file can't be opened.
pub fn open_itself(path: &Path, options: &OpenOptions) -> io::Result<File> {
    for _ in 0..ATTEMPTS {
        let opened = match fs::symlink_metadata(path) {
            // This follows no link, not even one that leads to nothing.
            Err(error) if error.kind() == ErrorKind::NotFound => options.clone().create_new(true).open(path),
            Err(error) => return Err(error),
            Ok(there) if !there.is_file() => {
                let what = "it is no ordinary file: if it is a symbolic link that nobody needs, remove it";
                return Err(io::Error::new(ErrorKind::InvalidInput, what));
            }
            // A link may have been put there in between. Opening what it leads to changes nothing there.
            Ok(there) => match options.open(path) {
                Ok(file) if is_same(&there, &file.metadata()?) => Ok(file),
                Ok(_) => continue,
                Err(error) => Err(error),
            },
        };
        match opened {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => {
                // Without its folder it can't be there.
                if error.kind() == ErrorKind::NotFound
                    && path.parent().is_some_and(|folder| !is_there(folder))
                {
                    return Err(error);
                }
            }
            opened => return opened,
        }
    }
    Err(io::Error::other("it is replaced again and again"))
}

/// Creates an empty file at this path, in place of one that an earlier process has left, or of a symbolic
/// link.
///
/// # Errors
///
/// If what is there can't be removed, or the file can't be created.
pub fn create_anew(path: &Path) -> io::Result<File> {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

fn is_there(folder: &Path) -> bool {
    folder.as_os_str().is_empty() || folder.exists()
}

/// Returns whether these are of one file.
#[cfg(unix)]
pub(crate) fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(not(unix))]
pub(crate) fn is_same(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    true
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_is_not_followed_and_what_it_leads_to_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, name) = (folder.path().join("victim"), folder.path().join("name"));
        fs::write(&victim, "precious").unwrap();
        let missing = folder.path().join("missing");
        for target in [&victim, &missing] {
            symlink(target, &name).unwrap();
            let error = open_itself(&name, OpenOptions::new().write(true)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            drop(create_anew(&name).unwrap());
            assert!(fs::symlink_metadata(&name).unwrap().is_file(), "the link itself was replaced");
            fs::remove_file(&name).unwrap();
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(!missing.exists());
    }

    #[test]
    fn an_ordinary_file_is_opened_or_created_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("name");
        let options = OpenOptions::new().write(true).to_owned();
        drop(open_itself(&name, &options).unwrap());
        fs::write(&name, "kept").unwrap();
        drop(open_itself(&name, &options).unwrap());
        assert_eq!(fs::read_to_string(&name).unwrap(), "kept");
        drop(create_anew(&name).unwrap());
        assert_eq!(fs::read_to_string(&name).unwrap(), "");
        let nowhere = open_itself(&folder.path().join("none/name"), &options).unwrap_err();
        assert_eq!(nowhere.kind(), ErrorKind::NotFound);
    }
}
