//! Lock files beside the database crates that services have: what Cargo resolves, and what it
//! refuses as the manual says. Nothing is built. Needs the registry, or its index in Cargo's cache.

#![cfg(test)]

use std::{env, fs, path::Path, process::Command};

/// `links = "sqlite3"`: Cargo allows one version of this crate in a lock file.
const SHARED: &str = "libsqlite3-sys";
const DEFAULT: &str = "";
const SQLITE: &str = "default-features = false, features = [\"sqlite\"],";

/// The lock file of a package that depends on this crate and on another one, or what Cargo says.
fn resolve(features: &str, other: &str) -> Result<String, String> {
    let this = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let manifest = format!(
        "[package]\nname = \"service\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n\
         tower-api-key = {{ {features} path = {this:?} }}\n{other}\n"
    );
    fs::write(folder.path().join("Cargo.toml"), manifest).unwrap();
    fs::create_dir(folder.path().join("src")).unwrap();
    fs::write(folder.path().join("src/lib.rs"), "").unwrap();
    // Versions that this crate is tested with, so that a release elsewhere changes nothing here.
    fs::copy(this.join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--quiet"])
        .current_dir(folder.path())
        .output()
        .expect("cargo runs");
    if output.status.success() {
        Ok(fs::read_to_string(folder.path().join("Cargo.lock")).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The versions of a crate in a lock file.
fn versions<'a>(lock: &'a str, name: &str) -> Vec<&'a str> {
    let header = format!("name = \"{name}\"\nversion = \"");
    lock.split(header.as_str()).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[track_caller]
fn resolves(features: &str, other: &str, with: &str) {
    let lock = resolve(features, other);
    let lock = lock.unwrap_or_else(|error| {
        panic!("no lock file beside {other}; is the registry reachable?\n{error}")
    });
    let found = versions(&lock, SHARED);
    assert!(matches!(&found[..], [one] if one.starts_with(with)), "{found:?} beside {other}");
}

#[track_caller]
fn is_refused(features: &str, other: &str) {
    let error = resolve(features, other).expect_err("the manual says that Cargo refuses this");
    for part in [
        "failed to select a version for `libsqlite3-sys`",
        "links to the native library `sqlite3`, but it conflicts with",
    ] {
        assert!(error.contains(part), "is the registry reachable?\n{error}");
    }
}

const SQLX_0_7: &str =
    "sqlx = { version = \"0.7\", features = [\"runtime-tokio\", \"postgres\", \"sqlite\"] }";
const SQLX_0_8: &str =
    "sqlx = { version = \"0.8\", features = [\"runtime-tokio\", \"postgres\", \"sqlite\"] }";
/// Without SQLite, which is in the lock file all the same.
const SQLX_0_7_POSTGRES: &str =
    "sqlx = { version = \"0.7\", features = [\"runtime-tokio\", \"postgres\", \"uuid\"] }";
const SEA_ORM: &str =
    "sea-orm = { version = \"1.1\", features = [\"sqlx-postgres\", \"sqlx-sqlite\"] }";
const DIESEL: &str = "diesel = { version = \"2.3\", features = [\"postgres\", \"sqlite\"] }";

#[test]
fn without_sqlite_it_resolves_beside_sqlx_0_7() {
    resolves(DEFAULT, SQLX_0_7, "0.2");
    resolves(DEFAULT, SQLX_0_7_POSTGRES, "0.2");
}

#[test]
fn without_sqlite_it_resolves_beside_sqlx_0_8() {
    resolves(DEFAULT, SQLX_0_8, "0.30.");
}

#[test]
fn without_sqlite_it_resolves_beside_sea_orm() {
    resolves(DEFAULT, SEA_ORM, "0.30.");
}

#[test]
fn without_sqlite_it_resolves_beside_diesel() {
    resolves(DEFAULT, DIESEL, "0.3");
}

#[test]
fn without_sqlite_it_resolves_beside_rusqlite() {
    resolves(DEFAULT, "rusqlite = \"0.39\"", "0.37.");
    resolves(DEFAULT, "rusqlite = \"0.40\"", "0.38.");
    resolves(DEFAULT, "rusqlite = \"0.43\"", "0.40.");
}

#[test]
fn with_sqlite_it_resolves_beside_sqlx_0_8() {
    resolves(SQLITE, SQLX_0_8, "0.30.");
}

#[test]
fn with_sqlite_it_resolves_beside_sea_orm() {
    resolves(SQLITE, SEA_ORM, "0.30.");
}

#[test]
fn with_sqlite_it_resolves_beside_diesel() {
    resolves(SQLITE, DIESEL, "0.37.");
}

#[test]
fn with_sqlite_it_resolves_beside_rusqlite_0_32_and_0_39() {
    resolves(SQLITE, "rusqlite = \"0.32\"", "0.30.");
    resolves(SQLITE, "rusqlite = \"0.39\"", "0.37.");
}

#[test]
fn with_sqlite_it_is_refused_beside_sqlx_0_7() {
    is_refused(SQLITE, SQLX_0_7);
}

#[test]
fn with_sqlite_it_is_refused_beside_rusqlite_0_40() {
    is_refused(SQLITE, "rusqlite = \"0.40\"");
}
