//! Detects that the open database file was replaced.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The identity of the database file when first seen.
///
/// Connections keep the file they opened. If it is deleted or another file takes its name, for
/// instance when a backup is restored, they keep reading a file that is no longer written.
pub(super) struct File {
    path: PathBuf,
    opened: OnceLock<Identity>,
}

/// Device and inode.
type Identity = (u64, u64);

impl File {
    pub(super) fn at(path: &Path) -> Self {
        let file = Self { path: path.to_owned(), opened: OnceLock::new() };
        file.is_replaced();
        file
    }

    /// Always false for a path without a file, such as a database in memory.
    pub(super) fn is_replaced(&self) -> bool {
        match identity(&self.path) {
            Some(now) => *self.opened.get_or_init(|| now) != now,
            None => self.opened.get().is_some(),
        }
    }
}

/// Creates the file at `path` if it is missing, for its owner alone. SQLite would let all users read
/// it, and gives the files of its log the permissions of this one.
#[cfg(unix)]
pub(super) fn create(path: &Path) {
    use std::os::unix::fs::OpenOptionsExt;

    // A URI of SQLite's own.
    if path.as_os_str().as_encoded_bytes().starts_with(b"file:") {
        return;
    }
    // An existing file stays as it is. SQLite reports all other errors.
    let _ = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
}

/// Other systems give a new file the permissions of its folder.
#[cfg(not(unix))]
pub(super) fn create(_: &Path) {}

#[cfg(unix)]
fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;

    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Other systems prevent an open file from being replaced.
#[cfg(not(unix))]
fn identity(_: &Path) -> Option<Identity> {
    None
}
