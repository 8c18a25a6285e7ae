//! Server processes, and their CPU time and memory.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;

use crate::{Result, machine::resident};

/// How long a server may take to print its port.
const PATIENCE: Duration = Duration::from_secs(60);
/// The CPU time an idle server may use in [`LOOK`].
const IDLE: Duration = Duration::from_millis(3);
const LOOK: Duration = Duration::from_millis(50);

/// The cores of the server and of wrk, if both are pinned.
pub(crate) const SERVER_CORE: &str = "0";
pub(crate) const WRK_CORE: &str = "1";

/// `program`, on one core or on all.
pub(crate) fn command(program: &str, core: Option<&str>) -> Command {
    match core {
        None => Command::new(program),
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["--cpu-list", core, program]);
            command
        }
    }
}

/// A listening server. It ends when this value is dropped, or with this process.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
    /// Its own key, if it does not use those of `api_keys`.
    pub(crate) key: Option<String>,
}

/// What a server prints when it listens.
#[derive(Deserialize)]
struct Ready {
    port: u16,
    key: Option<String>,
}

impl Server {
    /// Starts a server that prints a line of JSON with its port and exits when its standard input
    /// closes.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| format!("{command:?}: {error}"))?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        // Before waiting for the port: a server that prints nothing is killed too.
        let mut server = Self { child, address: String::new(), key: None };
        let line = first_json(stdout).map_err(|error| format!("{command:?}: {error}"))?;
        let ready: Ready = serde_json::from_str(&line)?;
        server.address = format!("127.0.0.1:{}", ready.port);
        server.key = ready.key;
        Ok(server)
    }

    /// CPU time so far, of the server and the processes it started.
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        Cpu::of_tree(self.child.id())
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        tree(self.child.id())?.into_iter().map(resident).sum()
    }

    /// Waits until the server is idle.
    pub(crate) fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = self.cpu()?;
            thread::sleep(LOOK);
            if before.until(&self.cpu()?) < IDLE {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err("a server is still busy a minute after its last client".into());
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line of JSON. The rest is read too, so that the server never blocks on a full pipe.
fn first_json(stdout: ChildStdout) -> Result<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(io::Result::ok) {
            let _ = sender.send(line);
        }
    });
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) if line.starts_with('{') => return Ok(line),
            Ok(_) => {}
            Err(_) => return Err("it has not said where it listens".into()),
        }
    }
}

/// CPU time by thread, as the scheduler counts it: in nanoseconds.
pub(crate) struct Cpu(HashMap<u32, u64>);

impl Cpu {
    /// Of a process and its descendants.
    pub(crate) fn of_tree(root: u32) -> Result<Self> {
        let mut times = HashMap::new();
        for process in tree(root)? {
            // Skip a process that has exited in the meantime.
            let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { continue };
            for thread in threads.flatten() {
                let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else {
                    continue;
                };
                let time = text.split(' ').next().and_then(|time| time.parse().ok());
                let id = thread.file_name().to_str().and_then(|id| id.parse().ok());
                if let (Some(id), Some(time)) = (id, time) {
                    times.insert(id, time);
                }
            }
        }
        Ok(Self(times))
    }

    /// CPU time between `self` and `later`, of threads that still exist.
    pub(crate) fn until(&self, later: &Self) -> Duration {
        let used = |(thread, time): (&u32, &u64)| time - self.0.get(thread).unwrap_or(&0);
        Duration::from_nanos(later.0.iter().map(used).sum())
    }
}

/// A process and its descendants.
fn tree(root: u32) -> Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for process in fs::read_dir("/proc").map_err(|error| format!("/proc, of Linux: {error}"))? {
        let Some(id) = process?.file_name().to_str().and_then(|id| id.parse().ok()) else {
            continue;
        };
        if let Some(parent) = parent(id) {
            children.entry(parent).or_default().push(id);
        }
    }
    let mut tree = vec![root];
    let mut at = 0;
    while let Some(process) = tree.get(at) {
        let started = children.remove(process).unwrap_or_default();
        tree.extend(started);
        at += 1;
    }
    Ok(tree)
}

pub(crate) fn parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // After the name, which may have spaces and brackets: state, parent.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
