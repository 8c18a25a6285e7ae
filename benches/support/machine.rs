//! The machine and versions that results come from, and the memory of a process.

use std::{collections::BTreeMap, error::Error, fs, process::Command, thread};

use serde::{Deserialize, Serialize};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) system: String,
    /// Load average of the last minute before the run: above 0, other processes were running.
    pub(crate) load_before: f64,
}

impl Machine {
    pub(crate) fn this() -> Result<Self> {
        let processors = fs::read_to_string("/proc/cpuinfo")?;
        let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
        let load = fs::read_to_string("/proc/loadavg")?;
        Ok(Self {
            processor: model.unwrap_or_default().trim_start_matches(['\t', ' ', ':']).into(),
            cores: thread::available_parallelism()?.get(),
            system: said("uname", &["-sr"])?,
            load_before: load.split(' ').next().unwrap_or_default().parse()?,
        })
    }
}

/// Versions of the compiler and of these crates.
pub(crate) fn versions(crates: &[&str]) -> Result<BTreeMap<String, String>> {
    let locked = |name: &&str| Some(((*name).to_owned(), locked(name)?));
    let mut versions: BTreeMap<_, _> = crates.iter().filter_map(locked).collect();
    versions.insert("rustc".into(), said("rustc", &["--version"])?);
    Ok(versions)
}

/// The version of a crate in this build: the newest, because dependencies may bring older ones.
fn locked(name: &str) -> Option<String> {
    const LOCK: &str = include_str!("../../Cargo.lock");
    let mut packages = LOCK.rsplit("[[package]]");
    let named = format!("name = \"{name}\"");
    let package = packages.find(|package| package.lines().any(|line| line == named))?;
    let version = package.lines().find_map(|line| line.strip_prefix("version = "))?;
    Some(version.trim_matches('"').into())
}

/// The first line that a program prints.
pub(crate) fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().into())
}

/// Resident memory of a process in bytes.
pub(crate) fn resident(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no VmRSS")?;
    Ok(kilobytes.parse::<u64>()? * 1024)
}
