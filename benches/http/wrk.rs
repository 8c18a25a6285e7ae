//! The load: wrk, whose connections are kept alive.

use std::{path::Path, process::Command, time::Duration};

use serde::Deserialize;

use crate::{
    Result,
    process::{WRK_CORE, command},
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/http/wrk.lua");
pub(crate) const CONNECTIONS: u32 = 64;

/// wrk's results.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Seen {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Connections and requests that failed, and answers other than 2xx and 3xx.
    pub(crate) errors: u64,
}

/// The version of wrk, or an error that says how to install it.
pub(crate) fn version() -> Result<String> {
    // wrk prints its version with its usage, and fails.
    let output = Command::new("wrk").arg("--version").output().map_err(|error| {
        format!("wrk: {error}. The load comes from wrk: install it, for instance with `apt-get install wrk`")
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

/// Puts load on the server at `address`, with the lines of the file `authorizations` in turn.
pub(crate) fn load(
    address: &str,
    authorizations: &Path,
    pinned: bool,
    time: Duration,
) -> Result<Seen> {
    let output = command("wrk", pinned.then_some(WRK_CORE))
        .env("AUTHORIZATIONS", authorizations)
        .args(["--threads", "1", "--connections", &CONNECTIONS.to_string()])
        // Whole seconds. Slow peers take several per response, and should not fail for that.
        .args(["--duration", &format!("{}s", time.as_secs()), "--timeout", "60s"])
        .args(["--script", SCRIPT, &format!("http://{address}/")])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let seen = text.lines().find(|line| line.starts_with('{'));
    let seen = seen.ok_or_else(|| {
        format!("wrk has failed: {text}{}", String::from_utf8_lossy(&output.stderr))
    })?;
    Ok(serde_json::from_str(seen)?)
}
