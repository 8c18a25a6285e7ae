//! The user and the host of this process, for the audit.

use std::{env, fs};

use super::values;

/// The user's name, or its number if the name is unknown.
pub(crate) fn user() -> String {
    let named = ["USER", "LOGNAME", "USERNAME"].into_iter().find_map(variable);
    named.or_else(account).unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(unix)]
fn account() -> Option<String> {
    let uid = uid()?;
    let accounts = fs::read("/etc/passwd").unwrap_or_default();
    let name = name_of(uid, &String::from_utf8_lossy(&accounts));
    Some(name.unwrap_or_else(|| format!("uid{uid}")))
}

#[cfg(not(unix))]
fn account() -> Option<String> {
    None
}

/// The name of a user in a file like `/etc/passwd`: `name:password:uid:…`.
#[cfg(unix)]
fn name_of(uid: u32, accounts: &str) -> Option<String> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let is_user = fields.nth(1)?.parse::<u32>().ok() == Some(uid);
        fit(name).filter(|_| is_user)
    })
}

/// The user's number.
#[cfg(unix)]
pub(crate) fn uid() -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;

    // The owner of a process's folder is its user. Systems without /proc have the home folder.
    let own = fs::metadata("/proc/self").ok();
    let own = own.or_else(|| fs::metadata(env::home_dir()?).ok());
    own.map(|own| own.uid())
}

pub(crate) fn host() -> String {
    let files = ["/proc/sys/kernel/hostname", "/etc/hostname"];
    let named = files.into_iter().find_map(|file| fit(&fs::read_to_string(file).ok()?));
    let named = named.or_else(|| ["HOSTNAME", "COMPUTERNAME"].into_iter().find_map(variable));
    named.unwrap_or_else(|| "unknown".to_owned())
}

fn variable(name: &str) -> Option<String> {
    fit(&env::var(name).ok()?)
}

fn fit(text: &str) -> Option<String> {
    values::text(text.trim()).ok()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_number() {
        let accounts = "root:x:0:0:root:/root:/bin/sh\n\n# none\nann:x:1000:1000::/home/ann:\n";
        assert_eq!(name_of(0, accounts).as_deref(), Some("root"));
        assert_eq!(name_of(1000, accounts).as_deref(), Some("ann"));
        assert_eq!(name_of(100, accounts), None);
    }
}
