//! The servers and processes of the test.

use std::{
    env,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use sqlx::{Connection as _, PgConnection};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};
use tower_api_key::store::PgKeyStore;

use crate::{
    harness::{
        postgres::{Database, Server},
        proxy::FaultProxy,
        redis::Redis,
    },
    node::{LISTENING, SETTINGS, Settings},
};

const NODES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Fleet {
    slots: Vec<Slot>,
    pub(crate) redis: Redis,
    pub(crate) database: Database,
    // Ends last.
    pub(crate) server: Server,
}

/// A node's place: its links stay when its process is replaced.
struct Slot {
    store: FaultProxy,
    feed: FaultProxy,
    process: Mutex<Option<Process>>,
}

struct Process {
    child: Child,
    address: SocketAddr,
}

impl Fleet {
    pub(crate) async fn start() -> Arc<Self> {
        // A flipped bit on the way is noticed behind TLS alone.
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
        let fleet = Arc::new(Self { slots, redis: Redis::start(), database, server });
        for node in 0..NODES {
            fleet.start_node(node).await;
        }
        fleet
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// `None` while there is no such process.
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

    /// A session of our own, past all links. It waits until the server is there.
    pub(crate) async fn session(&self) -> PgConnection {
        let connected = async {
            loop {
                if let Ok(session) = PgConnection::connect(self.database.url()).await {
                    return session;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, connected).await.expect("PostgreSQL comes back")
    }

    pub(crate) async fn start_node(&self, node: usize) {
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
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let process = Process { child, address };
        *slot.process.lock().expect("the node") = Some(process);
    }

    /// `TERM`, `KILL`, `STOP` or `CONT`.
    pub(crate) async fn signal(&self, node: usize, signal: &str) {
        let id = {
            let process = self.slots[node].process.lock().expect("the node");
            process.as_ref().and_then(|process| process.child.id()).expect("a running node")
        };
        kill(signal, &id.to_string()).await;
    }

    /// Waits for the end of the process.
    pub(crate) async fn ended(&self, node: usize) {
        let process = self.slots[node].process.lock().expect("the node").take();
        let mut process = process.expect("a node that was running");
        timeout(PATIENCE, process.child.wait()).await.expect("the node ends").expect("its status");
    }

    /// Has all processes of PostgreSQL stand still, or go on.
    pub(crate) async fn signal_postgres(&self, postmaster: &str, signal: &str) {
        let mut children = Command::new("pkill");
        children.args([&format!("-{signal}"), "-P", postmaster]);
        let status = children.status().await.expect("pkill");
        // 1: it has none.
        assert!(matches!(status.code(), Some(0 | 1)), "pkill -P {postmaster}: {status}");
        kill(signal, postmaster).await;
    }
}

async fn kill(signal: &str, id: &str) {
    let script = r#"kill -s "$0" "$1""#;
    let status = Command::new("sh").args(["-c", script, signal, id]).status().await.expect("sh");
    assert!(status.success(), "kill -s {signal} {id}");
}
