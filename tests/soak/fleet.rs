//! The servers and processes of the test.

use std::{
    env, fs,
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::Serialize;
use sqlx::{Connection as _, Executor as _, PgConnection, query_scalar};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    task::spawn_blocking,
    time::timeout,
};
use tower_api_key::store::PgKeyStore;

use crate::{
    clock::{Clock, Micros},
    node::{FLUSH_FAILED, FLUSHED, LISTENING, SETTINGS, Settings},
    oracle::NOISE,
    servers::{
        postgres::{Database, Server},
        proxy::FaultProxy,
        redis::Redis,
    },
};

const NODES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Fleet {
    slots: Vec<Slot>,
    pub(crate) redis: Redis,
    /// For the test's own sessions. It always leads to the primary, and has no faults.
    own: FaultProxy,
    database: Database,
    // Dropped last.
    server: Mutex<Arc<Server>>,
    clock: Clock,
}

/// A slot for a node: the links stay when its process is replaced.
struct Slot {
    store: FaultProxy,
    feed: FaultProxy,
    process: Mutex<Option<Process>>,
}

/// The resources of a process, or the maxima over several.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Resources {
    pub(crate) resident_mib: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: u64,
}

impl Resources {
    pub(crate) fn or_more(self, other: Self) -> Self {
        Self {
            resident_mib: self.resident_mib.max(other.resident_mib),
            threads: self.threads.max(other.threads),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

struct Process {
    child: Child,
    /// The node ends when this is closed. Kept here, because waiting for the child would close it.
    stdin: ChildStdin,
    address: SocketAddr,
    flushes: Arc<Mutex<Flushes>>,
}

/// What a node's process has written to the ledger.
#[derive(Default)]
struct Flushes {
    /// Uses that were counted before this are written.
    written_until: Micros,
    /// The next flush retries a batch, and covers no later use.
    retries: bool,
}

impl Process {
    async fn ended(self) -> ExitStatus {
        let Self { mut child, stdin, .. } = self;
        let status = timeout(PATIENCE, child.wait()).await.expect("the node ends");
        drop(stdin);
        status.expect("its status")
    }
}

impl Flushes {
    /// `told` is a line of the node, at `now`.
    fn hear(&mut self, told: &str, now: Micros) {
        if told == FLUSH_FAILED {
            self.retries = true;
        } else if let Some(took) = told.strip_prefix(FLUSHED).and_then(|it| it.parse().ok())
            && !std::mem::take(&mut self.retries)
        {
            let begun = now.saturating_sub(took).saturating_sub(NOISE);
            self.written_until = self.written_until.max(begun);
        }
    }
}

impl Fleet {
    pub(crate) async fn start(clock: Clock) -> Arc<Self> {
        // Flipped bits on the link are detected only with TLS.
        let server = Server::start_with_tls();
        let database = server.database().await;
        let store = PgKeyStore::connect(database.url()).await.expect("the database");
        store.migrate().await.expect("the tables");
        let mut slots = Vec::new();
        for _ in 0..NODES {
            let store = FaultProxy::start(server.addr()).await;
            let feed = FaultProxy::start(server.addr()).await;
            slots.push(Slot { store, feed, process: Mutex::default() });
        }
        let own = FaultProxy::start(server.addr()).await;
        let server = Mutex::new(Arc::new(server));
        let fleet = Arc::new(Self { slots, redis: Redis::start(), own, database, server, clock });
        for node in 0..NODES {
            fleet.start_node(node).await;
        }
        fleet
    }

    /// The URL of the database for the test's own sessions.
    pub(crate) fn url(&self) -> String {
        self.own.url(self.database.url())
    }

    /// The primary.
    pub(crate) fn server(&self) -> Arc<Server> {
        Arc::clone(&self.server.lock().expect("the server"))
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The address of a node; `None` while it has no process.
    pub(crate) fn address(&self, node: usize) -> Option<SocketAddr> {
        let process = self.slots[node].process.lock().expect("the node");
        process.as_ref().map(|process| process.address)
    }

    pub(crate) fn store_link(&self, node: usize) -> &FaultProxy {
        &self.slots[node].store
    }

    pub(crate) fn feed_link(&self, node: usize) -> &FaultProxy {
        &self.slots[node].feed
    }

    /// A session of the test, which bypasses all faulty links. Waits until the server is up.
    pub(crate) async fn session(&self) -> PgConnection {
        let connected = async {
            let url = self.url();
            loop {
                if let Ok(session) = PgConnection::connect(&url).await {
                    return session;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, connected).await.expect("PostgreSQL comes back")
    }

    /// A standby of the primary that has every commit that has returned.
    pub(crate) async fn standby(&self) -> Server {
        let primary = self.server();
        let standby = spawn_blocking(move || primary.standby()).await.expect("a standby");
        let mut session = self.session().await;
        for setting in
            ["alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"]
        {
            session.execute(setting).await.expect("a setting");
        }
        let synchronous = async {
            let sql = "select exists (select from pg_stat_replication where sync_state = 'sync')";
            while !query_scalar(sql).fetch_one(&mut session).await.unwrap_or(false) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, synchronous).await.expect("the standby follows");
        standby
    }

    /// Crashes the primary, promotes the standby, and moves the address there.
    pub(crate) async fn fail_over(&self, standby: Server) {
        self.server().stop_immediate().await;
        standby.promote().await;
        let links = self.slots.iter().flat_map(|slot| [&slot.store, &slot.feed]);
        links.chain([&self.own]).for_each(|link| link.redirect(standby.addr()));
        let old =
            std::mem::replace(&mut *self.server.lock().expect("the server"), Arc::new(standby));
        // The drop waits for its folder to be removed.
        spawn_blocking(move || drop(old)).await.expect("the end of the old server");
    }

    pub(crate) async fn start_node(&self, node: usize) {
        let process = self.spawn(node).await;
        *self.slots[node].process.lock().expect("the node") = Some(process);
    }

    /// Starts a new process in the slot and ends the old one after it has answered its requests: a
    /// rolling upgrade.
    pub(crate) async fn replace_node(&self, node: usize) {
        let process = self.spawn(node).await;
        let before = self.slots[node].process.lock().expect("the node").replace(process);
        let before = before.expect("a node that was running");
        kill("TERM", &before.child.id().expect("a running node").to_string()).await;
        assert!(before.ended().await.success(), "the node ends well");
    }

    async fn spawn(&self, node: usize) -> Process {
        let slot = &self.slots[node];
        let settings = Settings {
            database: slot.store.url(self.database.url()),
            feed: slot.feed.url(self.database.url()),
            redis: self.redis.url(),
        };
        let mut child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", crate::TEST, "--nocapture"])
            .env(SETTINGS, serde_json::to_string(&settings).expect("settings"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a node");
        let stdout = child.stdout.take().expect("the node's output");
        let mut lines = BufReader::new(stdout).lines();
        let listening = async {
            loop {
                let line = lines.next_line().await.expect("a line").expect("the node's address");
                if let Some((_, address)) = line.split_once(LISTENING) {
                    return address.parse().expect("an address");
                }
            }
        };
        let address = timeout(PATIENCE, listening).await.expect("the node starts");
        let flushes = Arc::new(Mutex::new(Flushes::default()));
        let (heard, clock) = (Arc::clone(&flushes), self.clock);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                heard.lock().expect("the flushes").hear(&line, clock.now());
            }
        });
        let stdin = child.stdin.take().expect("the node's input");
        Process { child, stdin, address, flushes }
    }

    /// The resources of the node's process; `None` if it has none, or the system does not report
    /// them.
    pub(crate) fn resources(&self, node: usize) -> Option<Resources> {
        let id = {
            let process = self.slots[node].process.lock().expect("the node");
            process.as_ref()?.child.id()?
        };
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let number = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Resources {
            resident_mib: number("VmRSS:")?.div_ceil(1024),
            threads: number("Threads:")?,
            descriptors: fs::read_dir(format!("/proc/{id}/fd")).ok()?.count() as u64,
        })
    }

    /// Sends `TERM`, `KILL`, `STOP` or `CONT`.
    pub(crate) async fn signal(&self, node: usize, signal: &str) {
        let id = {
            let process = self.slots[node].process.lock().expect("the node");
            process.as_ref().and_then(|process| process.child.id()).expect("a running node")
        };
        kill(signal, &id.to_string()).await;
    }

    /// Waits for the end of the process. Returns until when its uses are in the ledger if it could
    /// not write the rest.
    pub(crate) async fn ended(&self, node: usize) -> Micros {
        let process = self.slots[node].process.lock().expect("the node").take();
        let process = process.expect("a node that was running");
        let flushes = Arc::clone(&process.flushes);
        process.ended().await;
        flushes.lock().expect("the flushes").written_until
    }

    /// Freezes or resumes all processes of PostgreSQL.
    pub(crate) async fn signal_postgres(&self, postmaster: &str, signal: &str) {
        let mut children = Command::new("pkill");
        children.args([&format!("-{signal}"), "-P", postmaster]);
        let status = children.status().await.expect("pkill");
        // 1: it has no children.
        assert!(matches!(status.code(), Some(0 | 1)), "pkill -P {postmaster}: {status}");
        kill(signal, postmaster).await;
    }
}

async fn kill(signal: &str, id: &str) {
    let script = r#"kill -s "$0" "$1""#;
    let status = Command::new("sh").args(["-c", script, signal, id]).status().await.expect("sh");
    assert!(status.success(), "kill -s {signal} {id}");
}
