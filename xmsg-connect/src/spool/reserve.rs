//! Space on the disk that is kept for removals.
//!
//! Taking an entry out writes to the disk, too: the database never changes a page in place. On a disk that is
//! full a spool could not be drained, which is what would make room in it. So each spool keeps a file of
//! zeros, and gives it up when the disk is full.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use xmsg_zmq::files::create_anew;

/// Bytes that are kept for removals while the disk is full. Groups of removals on a file of 1 GiB take a
/// third of that.
pub(super) const RESERVE_BYTES: usize = 2 << 20;

/// The file that holds the space.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    is_held: bool,
}

impl Reserve {
    /// Makes the reserve of this directory. It is held only after [`hold`](Self::hold).
    pub(super) fn of(dir: &Path) -> Self {
        Self { path: dir.join("reserve"), is_held: false }
    }

    /// Takes the space, unless it has it.
    pub(super) fn hold(&mut self) -> io::Result<()> {
        if self.is_held {
            return Ok(());
        }
        if fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() == RESERVE_BYTES as u64) {
            self.is_held = true;
            return Ok(());
        }
        let write = || {
            let mut file = create_anew(&self.path)?;
            file.write_all(&vec![0; RESERVE_BYTES])?;
            file.sync_all()
        };
        if let Err(error) = write() {
            // A part of it would only take away what others need.
            let _ = fs::remove_file(&self.path);
            return Err(error);
        }
        self.is_held = true;
        Ok(())
    }

    /// Gives the space back to the disk.
    pub(super) fn give_up(&mut self) {
        self.is_held = false;
        let _ = fs::remove_file(&self.path);
    }
}
