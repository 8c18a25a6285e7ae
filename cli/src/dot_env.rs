//! The file `.env`.

use std::{
    env,
    fs::{self, File, Metadata},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::{failure::Failure, output};

/// The use made of the nearest `.env`.
pub(crate) enum DotEnv {
    /// There is none, or it adds nothing to the environment.
    Unused,
    /// It set variables.
    Read(PathBuf),
    /// It belongs to another user, who could redirect commands to another database.
    Foreign(PathBuf),
}

/// Reads `.env` in this folder or a parent folder, if it belongs to this user or root. The
/// environment takes precedence.
pub(crate) fn load() -> Result<DotEnv, Failure> {
    let folder = match env::current_dir() {
        Ok(folder) => folder,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(DotEnv::Unused),
        Err(error) => return Err(Failure::new("cannot read this folder").because(&error)),
    };
    for path in folder.ancestors().map(|folder| folder.join(".env")) {
        match fs::metadata(&path) {
            Ok(found) if !found.is_file() => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(found) if !is_trusted(&found) => return Ok(DotEnv::Foreign(path)),
            Ok(_) => return read(path),
            Err(error) => return Err(unreadable(&path, &error)),
        }
    }
    Ok(DotEnv::Unused)
}

fn read(path: PathBuf) -> Result<DotEnv, Failure> {
    let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, file)));
    let (found, file) = opened.map_err(|error| unreadable(&path, &error))?;
    // Another file may have taken its name since it was found.
    if !is_trusted(&found) {
        return Ok(DotEnv::Foreign(path));
    }
    let before = env::vars_os().count();
    match dotenvy::from_read(file) {
        Ok(()) if env::vars_os().count() == before => Ok(DotEnv::Unused),
        Ok(()) => Ok(DotEnv::Read(path)),
        Err(dotenvy::Error::Io(error)) => Err(unreadable(&path, &error)),
        // The error quotes the line, which may hold a password.
        Err(_) => Err(Failure::new(format!(
            "the file {} is invalid: write each line as NAME=value, with quotes around a value \
            that has spaces",
            output::printable_path(&path)
        ))),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("cannot read {}", output::printable_path(path))).because(error)
}

impl DotEnv {
    /// Tells where settings come from.
    pub(crate) fn report(&self) {
        match self {
            Self::Unused => {}
            Self::Read(path) => {
                output::note(&format!("settings read from {}", output::printable_path(path)));
            }
            Self::Foreign(path) => output::warn(&format!(
                "ignored {}: it belongs to another user; only a file of yours or of root is read",
                output::printable_path(path)
            )),
        }
    }
}

#[cfg(unix)]
fn is_trusted(file: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;

    file.uid() == 0 || super::identity::uid() == Some(file.uid())
}

/// Other systems do not tell the owner.
#[cfg(not(unix))]
fn is_trusted(_: &Metadata) -> bool {
    true
}
