//! What every path has in common: the commands of its section, and where they lead.

use std::{env, fs, path::Path, process::Command};

use http::StatusCode;
use serde_json::Value;

use crate::{
    peer::{OldKey, Peer, State},
    place::Place,
    servers::postgres::client,
    service::Service,
};

/// Runs the commands of a section of the manual, in order, in the folder of `place`.
pub(crate) fn run_commands(section: &str, place: &Place) {
    let commands = commands(section);
    let psql = client("psql");
    let programs = [env!("CARGO_BIN_EXE_api-key").as_ref(), Path::new(psql.get_program())];
    let folders = programs.map(|program| program.parent().unwrap().to_owned());
    let path = env::var_os("PATH").unwrap();
    let path = env::join_paths(folders.into_iter().chain(env::split_paths(&path))).unwrap();
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &commands])
        .current_dir(place.folder.path())
        .env("PATH", path)
        .env("DATABASE_URL", &place.url)
        .output()
        .unwrap();
    assert!(output.status.success(), "{commands}\n{output:?}");
}

fn commands(section: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/manual/moving_in.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once(&format!("\n## {section}\n")).expect("the section");
    let section = rest.split("\n## ").next().unwrap();
    let (_, commands) = section.split_once("```sh\n").expect("commands");
    commands.split("```").next().unwrap().to_owned()
}

/// Each of the old keys does here what it does in the other system, and a wrong one is refused. Keys that
/// the other system issues meanwhile come by the same commands.
pub(crate) async fn keys_work(
    section: &str,
    service: &Service,
    peer: &Peer<'_>,
    mut keys: Vec<OldKey>,
    credentials: impl Fn(&str) -> (&'static str, String),
) {
    they_work(service, peer, &keys, &credentials).await;
    keys.extend(peer.make_keys());
    run_commands(section, peer.place);
    they_work(service, peer, &keys, &credentials).await;
}

async fn they_work(
    service: &Service,
    peer: &Peer<'_>,
    keys: &[OldKey],
    credentials: impl Fn(&str) -> (&'static str, String),
) {
    let send = async |key: &str| {
        let (header, value) = credentials(key);
        service.consumer(header, &value).await
    };
    let let_in: Vec<_> = keys.iter().map(|old| old.state == State::Works).collect();
    assert!(let_in.contains(&true) && let_in.contains(&false), "{keys:?}");
    assert_eq!(peer.verify(keys), let_in, "before the first use: {keys:?}");
    // The first use moves a key that has a slow hash.
    for old in keys.iter().chain(keys) {
        let expected = match old.state {
            State::Works => Ok(old.consumer.clone()),
            State::Revoked | State::Expired => Err(StatusCode::UNAUTHORIZED),
        };
        assert_eq!(send(&old.key).await, expected, "{old:?}");
    }
    for old in keys {
        assert_eq!(send(&altered(&old.key)).await, Err(StatusCode::UNAUTHORIZED), "{old:?}");
    }
    assert_eq!(peer.verify(keys), let_in, "after the first use: {keys:?}");
}

/// A key that has other last characters.
fn altered(key: &str) -> String {
    let (head, tail) = key.split_at(key.len() - 10);
    let tail = tail.chars().map(|c| if c == '7' { '8' } else { '7' });
    head.chars().chain(tail).collect()
}

/// What `doctor` with these options says of slow hashes.
pub(crate) fn slow_hashes(place: &Place, options: &str) -> String {
    let report = place.run(&format!("doctor --json {options}")).out;
    let report: Value = serde_json::from_str(&report).unwrap();
    let findings = report["findings"].as_array().unwrap_or_else(|| panic!("{report}"));
    let finding = findings.iter().find(|finding| finding["check"] == "legacy").unwrap();
    finding["detail"].as_str().unwrap().to_owned()
}

/// What `doctor` says with so many keys left.
pub(crate) fn left(keys: u64) -> String {
    format!("{keys} left of the imported keys that keep a legacy hash until their first use")
}
