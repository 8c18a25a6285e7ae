//! Whether the file that is read is still the one that others write.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// A database's file as it was when it was first seen.
///
/// Connections stay with the file they have opened. When another one takes its name, as when a backup
/// is moved into its place, or when it is deleted, they go on reading what nobody writes any more.
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

    /// Never where there is no such file, as of a database in memory.
    pub(super) fn is_replaced(&self) -> bool {
        match identity(&self.path) {
            Some(now) => *self.opened.get_or_init(|| now) != now,
            None => self.opened.get().is_some(),
        }
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;

    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Other systems keep a file that is open from being replaced.
#[cfg(not(unix))]
fn identity(_: &Path) -> Option<Identity> {
    None
}
