//! The systems that keys come from, installed from their registries by `tests/run`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use serde_json::{Value, from_slice, from_value};

use crate::place::Place;

/// A script in this folder that makes keys as another system does, in the database of a place.
pub(crate) struct Peer<'a> {
    pub(crate) script: &'static str,
    /// Arguments before the command.
    pub(crate) options: &'static [&'static str],
    pub(crate) place: &'a Place,
}

/// A key of another system.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct OldKey {
    pub(crate) key: String,
    pub(crate) consumer: String,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Works,
    Revoked,
    Expired,
}

impl Peer<'_> {
    pub(crate) fn make_keys(&self) -> Vec<OldKey> {
        from_value(self.run("make", &[])).unwrap()
    }

    /// Which of its keys the other system lets in.
    pub(crate) fn verify(&self, keys: &[OldKey]) -> Vec<bool> {
        from_value(self.run("verify", keys)).unwrap()
    }

    fn run(&self, command: &str, keys: &[OldKey]) -> Value {
        let installed = installed();
        let is_python = self.script.ends_with(".py");
        let output =
            Command::new(installed.join("bin").join(if is_python { "python" } else { "node" }))
                .arg(folder().join(self.script))
                .arg(&self.place.url)
                .args(self.options)
                .arg(command)
                .args(keys.iter().map(|old| &old.key))
                .env("MOVING_IN", &installed)
                .env("NODE_PATH", installed.join("node_modules"))
                .output()
                .unwrap();
        assert!(output.status.success(), "{}: {output:?}", self.script);
        from_slice(&output.stdout).unwrap()
    }
}

fn installed() -> PathBuf {
    env::var_os("MOVING_IN").expect("tests/run installs the other systems and names them").into()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/moving_in")
}
