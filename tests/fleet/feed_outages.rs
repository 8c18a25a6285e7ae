//! The connection of the change feed under faults, and keys that are revoked in the meantime.

use std::{env, io, time::Duration};

use http::StatusCode;
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, postgres::PgListener, query, query_scalar, raw_sql,
};
use tokio::{
    process::Command,
    task::JoinSet,
    time::{Instant, interval},
};
use tower_api_key::store::PgKeyStore;

use crate::{
    nodes::{Client, Key, Node, Settings, eventually, issue, run_if_node, within},
    raw_store::ByHand as _,
    servers::{
        Port, as_root,
        netns::{Link, Namespace},
        postgres::{Database, Server},
        proxy::{Fault, FaultProxy},
        unique,
    },
};

const MILLI: Duration = Duration::from_millis(1);
const HEARTBEAT: Duration = Duration::from_millis(500);
const FRESH_DURING_GAP: Duration = Duration::from_millis(500);
/// How long a revocation may go unnoticed on a dead connection: until the heartbeat notices. By
/// then records are no longer trusted.
const UNNOTICED: Duration = HEARTBEAT.saturating_mul(2);
/// The slack of a deadline on a busy machine.
const SLACK: Duration = Duration::from_millis(300);

/// Runs a node of this file: this test in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_comes_up_and_ends() {
    if run_if_node().await {
        return;
    }
    let scene = Scene::new().await;
    let node = scene.start().await;
    assert!(node.terminate().await.success());
}

/// A database, and the proxy for the feeds of nodes.
struct Scene {
    heartbeat: Duration,
    database: Database,
    /// A store that bypasses the proxy.
    store: PgKeyStore,
    proxy: FaultProxy,
    keys: Vec<Key>,
}

impl Scene {
    async fn new() -> Self {
        Self::on(Server::shared(), HEARTBEAT).await
    }

    async fn on(server: &Server, heartbeat: Duration) -> Self {
        let database = server.database().await;
        let store = PgKeyStore::new(database.pool().await);
        store.migrate().await.unwrap();
        let keys = issue(&store, 60).await.unwrap();
        let proxy = FaultProxy::start(server.addr()).await;
        Self { heartbeat, database, store, proxy, keys }
    }

    fn settings(&self) -> Settings {
        let feed = self.proxy.url(&with_name(self.database.url(), "the feed"));
        Settings {
            feed: Some(feed),
            heartbeat: Some(self.heartbeat),
            fresh_during_gap: Some(FRESH_DURING_GAP),
            ..Settings::new(self.database.url())
        }
    }

    /// A node that has cached all keys, with a connected feed.
    async fn start(&self) -> Node {
        let node = Node::start(&self.settings()).await;
        self.is_known_to(&node).await;
        node
    }

    async fn is_known_to(&self, node: &Node) {
        heard(node, 1).await;
        let mut client = node.client().await;
        for key in &self.keys {
            client.get(&key.text).await.is(StatusCode::OK);
        }
    }

    /// Revokes a key past the proxy, and returns the time until the node refuses it.
    async fn revoke(&self, node: &Node, key: usize) -> Duration {
        let key = &self.keys[key];
        let mut client = node.client().await;
        let text = key.text.clone();
        let refused = tokio::spawn(async move { client.until_refused(&text).await });
        self.store.revoke(key.id(), None).await.unwrap();
        let revoked = Instant::now();
        within(refused).await.unwrap().saturating_duration_since(revoked)
    }

    /// Checks that after a gap each key is confirmed once, and revocations arrive again.
    async fn is_over(&self, node: &Node) {
        heard(node, 2).await;
        assert_eq!(node.count("feed_lost").await, 1);
        let before = node.count("queries").await;
        let mut client = node.client().await;
        let known = &self.keys[3..];
        for _ in 0..3 {
            for key in known {
                client.get(&key.text).await.is(StatusCode::OK);
            }
        }
        let queries = node.count("queries").await - before;
        assert_eq!((node.count("feed_live").await, node.count("feed_lost").await), (2, 1));
        assert_eq!(queries, known.len() as u64);
        assert!(self.revoke(node, 2).await < SLACK);
    }
}

fn with_name(url: &str, name: &str) -> String {
    let and = if url.contains('?') { '&' } else { '?' };
    format!("{url}{and}application_name={}", name.replace(' ', "%20"))
}

/// Waits until the feed of `node` is connected, for the `times`th time.
async fn heard(node: &Node, times: u64) {
    eventually("the feed is connected", async || node.count("feed_live").await == times).await;
}

/// How a node notices that something happened to its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noticed {
    /// At once, without a heartbeat.
    AtOnce,
    ByHeartbeat,
}

async fn a_revocation_during(
    outage: &str,
    noticed: Noticed,
    server: &Server,
    end: impl AsyncFnOnce(&Scene),
    mend: impl AsyncFnOnce(&Scene),
) {
    let (heartbeat, bound) = match noticed {
        Noticed::AtOnce => (60_000 * MILLI, FRESH_DURING_GAP),
        Noticed::ByHeartbeat => (HEARTBEAT, UNNOTICED),
    };
    let scene = Scene::on(server, heartbeat).await;
    let node = scene.start().await;
    assert!(scene.revoke(&node, 0).await < SLACK, "before the outage");
    end(&scene).await;
    let took = scene.revoke(&node, 1).await;
    println!("{outage}: refused after {took:.1?}");
    assert!(took < bound + SLACK, "{outage}: {took:?}");
    mend(&scene).await;
    scene.is_over(&node).await;
}

async fn a_revocation_during_fault(fault: Fault) {
    let end = async |scene: &Scene| scene.proxy.set(fault).await;
    let mend = async |scene: &Scene| scene.proxy.set(Fault::Pass).await;
    let noticed = match fault {
        Fault::BlackHole | Fault::Unplugged | Fault::Mute => Noticed::ByHeartbeat,
        _ => Noticed::AtOnce,
    };
    a_revocation_during(&format!("{fault:?}"), noticed, Server::shared(), end, mend).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_closed() {
    a_revocation_during_fault(Fault::Fin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_reset() {
    a_revocation_during_fault(Fault::Rst).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone() {
    a_revocation_during_fault(Fault::Refuse).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_swallows_everything() {
    a_revocation_during_fault(Fault::BlackHole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hears_and_says_nothing() {
    a_revocation_during_fault(Fault::Mute).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_an_administrator_ends() {
    let end = async |scene: &Scene| {
        let terminate = "select pg_terminate_backend(pid) from pg_stat_activity \
                         where datname = current_database() and application_name = 'the feed'";
        query(terminate).execute(scene.store.pool()).await.unwrap();
    };
    a_revocation_during("terminated", Noticed::AtOnce, Server::shared(), end, async |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_and_starts_again() {
    let server = Server::start();
    let restart = async |_: &Scene| {
        server.stop_immediate().await;
        server.start_again().await;
    };
    a_revocation_during("restarted", Noticed::AtOnce, &server, restart, async |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_drops_everything() {
    a_revocation_during_fault(Fault::Unplugged).await;
}

/// In a network namespace, whose link is cut. Needs root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_cut() {
    let network = Network::new().await;
    let Some(network) = as_root("feed_outages::a_link_that_is_cut", network) else { return };
    let scene = Scene::new().await;
    let node = network.start(&scene).await;
    network.feeds.cut();
    let took = scene.revoke(&node, 1).await;
    println!("a link is cut: refused after {took:.1?}");
    assert!(took < UNNOTICED + SLACK, "{took:?}");
    network.feeds.mend();
    scene.is_over(&node).await;
}

/// A network in which a node has one link for its feed, and another for everything else.
struct Network {
    namespace: Namespace,
    feeds: Link,
    other: Link,
    feed: FaultProxy,
    database: FaultProxy,
}

impl Network {
    async fn new() -> io::Result<Self> {
        let namespace = Namespace::new()?;
        let (feeds, other) = (namespace.link()?, namespace.link()?);
        let feed = Port::reserve_on(feeds.outside);
        let database = Port::reserve_on(other.outside);
        let upstream = Server::shared().addr();
        Ok(Self {
            namespace,
            feeds,
            other,
            feed: FaultProxy::start_on(feed, upstream).await,
            database: FaultProxy::start_on(database, upstream).await,
        })
    }

    async fn start(&self, scene: &Scene) -> Node {
        let url = scene.database.url();
        let settings = Settings {
            bind: format!("{}:0", self.other.inside),
            database: self.database.url(url),
            feed: Some(self.feed.url(url)),
            ..scene.settings()
        };
        let command = self.namespace.command(env::current_exe().unwrap());
        let node = Node::start_by(Command::from(command), &settings).await;
        scene.is_known_to(&node).await;
        node
    }
}

/// A role that can connect to the database and knows the channel's name: 10,000 forgeries and
/// copies cost no look-up, and delay no revocation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_notifications_cost_no_look_up_and_delay_no_revocation() {
    let scene = Scene::on(Server::shared(), 60_000 * MILLI).await;
    let node = scene.start().await;
    let channel = "select channel from api_key_feed";
    let channel: String = query_scalar(channel).fetch_one(scene.store.pool()).await.unwrap();
    let mut overheard = PgListener::connect(scene.database.url()).await.unwrap();
    overheard.listen(&channel).await.unwrap();
    assert!(scene.revoke(&node, 0).await < SLACK, "before the flood");
    let genuine = within(overheard.recv()).await.unwrap().payload().to_owned();
    assert!(genuine.contains(":changed:"), "{genuine}");
    let before = node.count("queries").await;

    let mut forger = PgConnection::connect(scene.database.url()).await.unwrap();
    let role = format!("test_{:016x}", unique());
    let connect_only = format!("create role {role}; set session authorization {role}");
    raw_sql(AssertSqlSafe(connect_only)).execute(&mut forger).await.unwrap();
    let flood = tokio::spawn(async move {
        for round in 0..100 {
            // Within a transaction, equal notifications are sent once.
            let sql = format!(
                "select pg_notify('{channel}', '{genuine}');
                select pg_notify('{channel}', 'v1:everything');
                select pg_notify('{channel}', 'v2:changed:' || gen_random_uuid() || ':' ||
                    pg_current_xact_id() || ':' || md5(n::text || '{round}'))
                from generate_series(1, 98) n"
            );
            raw_sql(AssertSqlSafe(sql)).execute(&mut forger).await.unwrap();
        }
        let clean = format!("reset session authorization; drop role {role}");
        raw_sql(AssertSqlSafe(clean)).execute(&mut forger).await.unwrap();
    });
    let took = scene.revoke(&node, 1).await;
    println!("revoked during a flood: refused after {took:.1?}");
    // Earlier messages must be read first, which takes some microseconds each; the heartbeat, or
    // the end of a gap, would take a minute.
    assert!(took < 10_000 * MILLI, "{took:?}");
    within(flood).await.unwrap();
    eventually("all is read", async || node.count("feed_junk").await == 10_000).await;
    let took = scene.revoke(&node, 2).await;
    println!("revoked after a flood: refused after {took:.1?}");
    assert!(took < 10_000 * MILLI, "{took:?}");

    let mut client = node.client().await;
    for key in &scene.keys[3..] {
        client.get(&key.text).await.is(StatusCode::OK);
    }
    assert_eq!(node.count("queries").await - before, 2, "one for each key that was revoked");
    assert_eq!((node.count("feed_live").await, node.count("feed_lost").await), (1, 0));
}

/// Continuous revocations while the feeds of some nodes reconnect at different moments: none is
/// lost between listening again and trusting again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_while_feeds_connect_again() {
    let scene = Scene::new().await;
    let nodes = [scene.start().await, scene.start().await, scene.start().await];
    let mut asking = JoinSet::new();
    for node in &nodes {
        asking.spawn(last_let_in(node.client().await, scene.keys.clone()));
    }
    scene.proxy.set(Fault::Rst).await;
    eventually("they are cut off", async || scene.proxy.open_connections() == 0).await;
    scene.proxy.set(Fault::Pass).await;
    let (mut revoked, mut pace) = (Vec::new(), interval(5 * MILLI));
    for (number, key) in scene.keys.iter().enumerate() {
        if number == scene.keys.len() - 10 {
            // The last keys are revoked after that.
            for node in &nodes {
                heard(node, 2).await;
            }
        }
        pace.tick().await;
        scene.store.revoke(key.id(), None).await.unwrap();
        revoked.push(Instant::now());
    }
    let mut latest = Duration::ZERO;
    for let_in in within(asking.join_all()).await {
        for (revoked, let_in) in revoked.iter().zip(let_in) {
            latest = latest.max(let_in.saturating_duration_since(*revoked));
        }
    }
    println!("while feeds connect again: let in until {latest:.1?} after the revocation");
    assert!(latest < FRESH_DURING_GAP + SLACK, "{latest:?}");
}

/// For each key, when the last request that was let in was sent, once all keys are refused.
async fn last_let_in(mut client: Client, keys: Vec<Key>) -> Vec<Instant> {
    let (mut let_in, mut refused) = (vec![Instant::now(); keys.len()], vec![false; keys.len()]);
    while refused.contains(&false) {
        for (at, key) in keys.iter().enumerate().filter(|(at, _)| !refused[*at]).collect::<Vec<_>>()
        {
            let sent = Instant::now();
            match client.get(&key.text).await.status {
                StatusCode::OK => let_in[at] = sent,
                _ => refused[at] = true,
            }
        }
    }
    let_in
}

/// Checks the feed's backoff between attempts to connect. Returns how many connections the proxy
/// accepted during the first six.
async fn six_attempts_take_three_seconds(fault: Fault) -> u64 {
    let scene = Scene::new().await;
    let node = scene.start().await;
    let (accepted, begun) = (scene.proxy.connections(), Instant::now());
    let before = node.count("feed_attempts").await;
    scene.proxy.set(fault).await;
    eventually("the feed attempts to connect", async || {
        node.count("feed_attempts").await >= before + 6
    })
    .await;
    let took = begun.elapsed();
    println!("{fault:?}: six attempts to connect in {took:.1?}");
    // Before each there is at least one half of 100, 200, 400, 800, 1,600 and 3,200 ms.
    assert!(took >= 3_150 * MILLI, "{took:?}");
    node.get(&scene.keys[3].text).await.is(StatusCode::OK);
    // The seventh attempt is at least another 2.5 s away.
    if fault == Fault::Rst {
        eventually("the attempts arrive", async || scene.proxy.connections() >= accepted + 6).await;
    }
    scene.proxy.connections() - accepted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_is_not_run_down() {
    assert_eq!(six_attempts_take_three_seconds(Fault::Refuse).await, 0, "the server is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_resets_connections_is_not_run_down() {
    let accepted = six_attempts_take_three_seconds(Fault::Rst).await;
    assert_eq!(accepted, 6, "an attempt is one connection");
}
