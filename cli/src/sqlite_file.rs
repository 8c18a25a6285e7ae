//! The file of a SQLite database.

use std::fs::OpenOptions;

/// Creates the file of a URL that creates a missing file, readable by its owner alone: it holds
/// hashes of keys and the audit. SQLite would let all users read it, and gives the files beside it
/// the permissions of this one.
pub(crate) fn create(url: &str) {
    let Some(path) = path_to_create(url) else { return };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    // If it exists, it stays as it is. SQLite reports all other errors.
    let _ = options.open(path);
}

/// The file that SQLite would create; `None` for a database in memory and for one that must exist.
fn path_to_create(url: &str) -> Option<String> {
    let url = url.trim_start_matches("sqlite://").trim_start_matches("sqlite:");
    let (path, parameters) = url.split_once('?').unwrap_or((url, ""));
    let parameter = |name: &str| {
        let mut named = parameters.split('&').filter_map(|parameter| parameter.split_once('='));
        named.find_map(|(other, value)| (other == name).then_some(value))
    };
    let creates = matches!(parameter("mode"), None | Some("rwc")) && parameter("vfs").is_none();
    let is_file = !path.is_empty() && !path.ends_with(":memory:") && !path.starts_with("file:");
    if creates && is_file { decoded(path) } else { None }
}

/// Decodes `%3F` and the like.
fn decoded(path: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, others)) = rest.split_first() {
        let escaped = others.get(..2).filter(|_| first == b'%').and_then(byte);
        decoded.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { others.get(2..).unwrap_or_default() } else { others };
    }
    String::from_utf8(decoded).ok()
}

/// A byte of two hexadecimal digits.
fn byte(digits: &[u8]) -> Option<u8> {
    // `from_str_radix` also accepts a sign.
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_one_that_sqlite_creates() {
        for (url, path) in [
            ("sqlite:keys.db", Some("keys.db")),
            ("sqlite:///var/keys.db?mode=rwc", Some("/var/keys.db")),
            ("sqlite://a%20b%3f%zz%+1%.db?cache=private", Some("a b?%zz%+1%.db")),
            ("sqlite:%ff", None),
            ("sqlite:keys.db?cache=private&mode=rw", None),
            ("sqlite:keys.db?mode=ro", None),
            ("sqlite:keys.db?mode=memory", None),
            ("sqlite:keys?vfs=memdb", None),
            ("sqlite::memory:", None),
            ("sqlite:", None),
        ] {
            assert_eq!(path_to_create(url).as_deref(), path, "{url}");
        }
    }
}
