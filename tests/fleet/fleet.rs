//! Nodes that are separate processes, in front of one database: each learns of the others' changes,
//! and none is affected by faults of the database or of another node.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::{Method, StatusCode, header};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar, raw_sql};
use tokio::{
    sync::{Mutex, watch},
    task::JoinSet,
    time::{Instant, interval},
};
use tower_api_key::{
    clock::{Clock, SystemClock},
    manage::{Expiry, NewKey},
    record::KeyId,
    store::{ManageKeys, PgKeyStore},
};

use crate::{
    github::{GitHub, found},
    nodes::{
        Client, Distribution, Events, Key, Node, Settings, Socket, eventually, issue, issue_new,
        run_if_node, within,
    },
    servers::postgres::{Database, Server},
};

const MILLI: Duration = Duration::from_millis(1);

/// Tests of this file run one at a time: concurrent ones would distort each other's measurements.
static TURN: Mutex<()> = Mutex::const_new(());

async fn database(server: &Server) -> Database {
    let database = server.database().await;
    PgKeyStore::connect(database.url()).await.unwrap().migrate().await.unwrap();
    database
}

/// Runs a node of a fleet: this test in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_comes_up_and_ends() {
    if run_if_node().await {
        return;
    }
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let node = Node::start(&Settings::new(database.url())).await;
    let keys = node.issue(2).await;
    for key in &keys {
        node.get(&key.text).await.is(StatusCode::OK);
    }
    node.admin(Method::POST, &format!("/revoke/{}", keys[0].id())).await;
    node.get(&keys[0].text).await.is(StatusCode::UNAUTHORIZED);
    node.get(&keys[1].text).await.is(StatusCode::OK);
    assert!(node.terminate().await.success());
}

/// A node with a connected feed.
async fn listening(settings: &Settings) -> Node {
    let node = Node::start(settings).await;
    eventually("the feed is connected", async || node.count("feed_live").await == 1).await;
    node
}

/// The time from the return of `revoke` until the other nodes, which have cached the key, refuse
/// it.
async fn revocations(
    others: &[&Node],
    keys: Vec<Key>,
    mut revoke: impl AsyncFnMut(&Key),
) -> Distribution {
    let mut clients = Vec::new();
    for node in others {
        clients.push(node.client().await);
    }
    let mut times = Vec::new();
    for key in keys {
        let mut asking = Vec::new();
        for mut client in clients.drain(..) {
            client.get(&key.text).await.is(StatusCode::OK);
            let key = key.text.clone();
            asking.push(tokio::spawn(async move {
                let refused = client.until_refused(&key).await;
                (client, refused)
            }));
        }
        revoke(&key).await;
        let revoked = Instant::now();
        for asking in asking {
            let (client, refused) = within(asking).await.unwrap();
            times.push(refused.saturating_duration_since(revoked));
            clients.push(client);
        }
    }
    Distribution::of(times)
}

async fn is_prompt(others: &[&Node], keys: Vec<Key>, revoke: impl AsyncFnMut(&Key)) {
    let times = revocations(others, keys, revoke).await;
    println!("revoked to refused by {} others: {times}", others.len());
    assert!(times.percentile(50) < 10 * MILLI && times.percentile(99) < 100 * MILLI, "{times}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_revoked_on_one_node_is_refused_by_the_others() {
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let settings = Settings::new(database.url());
    let (a, b) = (listening(&settings).await, listening(&settings).await);
    let mut admin = a.client().await;
    let mut revoke = async |key: &Key| {
        admin.admin(Method::POST, &format!("/revoke/{}", key.id())).await;
    };
    is_prompt(&[&b], a.issue(600).await, &mut revoke).await;
    let c = listening(&settings).await;
    is_prompt(&[&b, &c], a.issue(400).await, &mut revoke).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_revoked_by_hand_is_refused_by_all() {
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let settings = Settings::new(database.url());
    let (a, b) = (listening(&settings).await, listening(&settings).await);
    let prompt = database.pool().await;
    is_prompt(&[&a, &b], a.issue(200).await, async |key| {
        let by_hand = format!("update api_keys set revoked_at = now() where id = '{}'", key.id());
        raw_sql(AssertSqlSafe(by_hand)).execute(&prompt).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaked_key_that_one_node_is_told_of_is_refused_by_the_others() {
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let settings = Settings::new(database.url());
    let (a, b) = (listening(&settings).await, listening(&settings).await);
    let (github, mut answered) = (GitHub::new(), Vec::new());
    is_prompt(&[&b], a.issue(300).await, async |key| {
        let delivery = github.delivery("/leaks", &json!([found(&key.text)]));
        let begin = Instant::now();
        let reply = a.send(delivery).await;
        answered.push(begin.elapsed());
        assert_eq!((reply.status, reply.body.contains("true_positive")), (StatusCode::OK, true));
    })
    .await;
    println!("delivered to answered: {}", Distribution::of(answered));
}

/// Clients that use known keys at a steady rate until stopped.
struct Load {
    end: watch::Sender<bool>,
    clients: JoinSet<Vec<Use>>,
    answers: Arc<AtomicUsize>,
}

/// A request with a key, and its response: `None` if the connection ended first.
struct Use {
    key: KeyId,
    at: SystemTime,
    answered: SystemTime,
    status: Option<StatusCode>,
}

impl Load {
    const CLIENTS: u32 = 8;

    async fn start(node: &Node, keys: &[Key], per_second: u32) -> Self {
        let first_round = Duration::from_secs(1) / per_second * u32::try_from(keys.len()).unwrap();
        Self::start_slowly(node, keys, per_second, first_round).await
    }

    /// The first uses of the keys are spread over `first_round`.
    async fn start_slowly(
        node: &Node,
        keys: &[Key],
        per_second: u32,
        first_round: Duration,
    ) -> Self {
        let (end, answers) = (watch::Sender::new(false), Arc::<AtomicUsize>::default());
        let mut clients = JoinSet::new();
        for keys in keys.chunks(keys.len().div_ceil(Self::CLIENTS as usize)) {
            let (client, end) = (node.client().await, end.subscribe());
            let (keys, answers) = (keys.to_vec(), Arc::clone(&answers));
            let every = Duration::from_secs(1) * Self::CLIENTS / per_second;
            clients.spawn(
                async move { ask(client, &keys, [first_round, every], &answers, end).await },
            );
        }
        Self { end, clients, answers }
    }

    /// Waits for this many more responses.
    async fn is_answered(&self, more: usize) {
        let then = self.answers.load(Ordering::SeqCst) + more;
        let what = format!("{more} requests are answered");
        eventually(what, async || self.answers.load(Ordering::SeqCst) >= then).await;
    }

    async fn end(self) -> Vec<Use> {
        self.end.send_replace(true);
        within(self.clients.join_all()).await.into_iter().flatten().collect()
    }
}

async fn ask(
    mut client: Client,
    keys: &[Key],
    [first_round, every]: [Duration; 2],
    answers: &AtomicUsize,
    mut end: watch::Receiver<bool>,
) -> Vec<Use> {
    let clock = SystemClock::new();
    let mut uses = Vec::new();
    let mut turns = interval(first_round / u32::try_from(keys.len()).unwrap());
    for (turn, key) in keys.iter().cycle().enumerate() {
        if turn == keys.len() {
            turns = interval(every);
        }
        tokio::select! {
            biased;
            _ = end.wait_for(|end| *end) => break,
            _ = turns.tick() => {}
        }
        let at = clock.now();
        let status = client.try_get(&key.text).await.map(|reply| reply.status);
        uses.push(Use { key: key.id(), at, answered: clock.now(), status });
        if status.is_none() {
            break;
        }
        answers.fetch_add(1, Ordering::SeqCst);
    }
    uses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_crashes_and_starts_again_under_load_fails_no_known_key() {
    let _turn = TURN.lock().await;
    let server = Server::start();
    let database = database(&server).await;
    let settings = Settings { load_deadline: None, ..Settings::new(database.url()) };
    let node = Node::start(&settings).await;
    let keys = node.issue(200).await;
    let (known, other) = keys.split_at(199);
    let mut client = node.client().await;
    for key in known {
        client.get(&key.text).await.is(StatusCode::OK);
    }

    let begun = Instant::now();
    let load = Load::start(&node, known, 2_000).await;
    load.is_answered(1_000).await;
    server.stop_immediate().await;
    let ready = async {
        eventually("the database answers", async || {
            PgConnection::connect(database.url()).await.is_ok()
        })
        .await;
        Instant::now()
    };
    let known_anew = async {
        eventually("another key is let in", async || {
            let reply = client.get(&other[0].text).await;
            if reply.status == StatusCode::OK {
                return true;
            }
            reply.is(StatusCode::SERVICE_UNAVAILABLE);
            assert!(reply.headers.contains_key(header::RETRY_AFTER), "{reply:?}");
            false
        })
        .await;
        Instant::now()
    };
    let ((), ready, known_anew) = tokio::join!(server.start_again(), ready, known_anew);
    load.is_answered(1_000).await;
    let took = begun.elapsed();
    let uses = load.end().await;

    let known_anew = known_anew.saturating_duration_since(ready);
    let rate = uses.len() as f64 / took.as_secs_f64();
    println!("{rate:.0} requests/s over a restart; an uncached key {known_anew:.1?} after it");
    assert!(uses.len() > 1_000, "{} requests are not much of a load", uses.len());
    assert!(uses.iter().all(|it| it.status == Some(StatusCode::OK)));
    assert!(known_anew < 1_000 * MILLI, "{known_anew:?}");
}

const USAGE_INTERVAL: Duration = Duration::from_secs(1);

/// A node with 2,000 requests a second, for 200 keys in turn. At any time, the last record of some
/// key is almost an interval old: the recorded uses are as old as they get.
async fn under_load(database: &Database) -> (Node, Load) {
    let settings =
        Settings { usage_interval: Some(USAGE_INTERVAL), ..Settings::new(database.url()) };
    let node = Node::start(&settings).await;
    let keys = node.issue(200).await;
    let load = Load::start_slowly(&node, &keys, 2_000, USAGE_INTERVAL).await;
    (node, load)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_terminated_under_load_has_written_every_use() {
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let (node, load) = under_load(&database).await;
    // Some uses are written, and later ones are not yet.
    eventually("uses are written", async || node.count("usage_flushes").await > 0).await;
    load.is_answered(1_000).await;
    assert!(node.terminate().await.success());
    let uses = load.end().await;
    let Recorded { never, lag } = Recorded::of(&uses, &database).await;
    assert_eq!(never, 0);
    // The first use of each interval is recorded.
    assert!(lag <= USAGE_INTERVAL, "{lag:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_loses_the_uses_of_one_interval() {
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let (node, load) = under_load(&database).await;
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    let (mut latest, mut flushes) = (None, Vec::new());
    while flushes.len() < 4 {
        flushes.push(next_flush(&mut connection, &mut latest).await);
    }
    // Some uses are not written yet.
    load.is_answered(500).await;
    node.kill().await;
    let uses = load.end().await;

    // A use before the end of a flush is in the next one.
    let written = flushes[flushes.len() - 2];
    let mut last_uses = HashMap::new();
    for it in uses.iter().filter(|it| it.answered <= written) {
        assert_eq!(it.status, Some(StatusCode::OK));
        last_uses.insert(it.key, it.at);
    }
    assert!(last_uses.len() > 100, "{} keys were used", last_uses.len());
    let store = PgKeyStore::new(database.pool().await);
    for (key, last_use) in last_uses {
        let recorded = store.last_used_at(key).await.unwrap();
        let recorded = recorded.unwrap_or_else(|| panic!("no use of {key} was written"));
        // The first use of each interval is recorded. Times are stored in microseconds.
        let lag = last_use.duration_since(recorded).unwrap_or_default();
        assert!(lag <= USAGE_INTERVAL + MILLI, "{lag:?} of the uses of {key} are lost");
    }
}

/// Waits until the node has written later uses than `latest`, and returns when that was seen.
async fn next_flush(connection: &mut PgConnection, latest: &mut Option<String>) -> SystemTime {
    let clock = SystemClock::new();
    eventually("uses are written", async || {
        let sql = "select max(last_used_at)::text from api_key_usage";
        let found: Option<String> = query_scalar(sql).fetch_one(&mut *connection).await.unwrap();
        let is_later = found != *latest;
        *latest = found;
        is_later
    })
    .await;
    clock.now()
}

/// The recorded uses of keys.
struct Recorded {
    /// Keys without a recorded use.
    never: usize,
    /// The maximum time by which the last use was later than the recorded one, or than the first.
    lag: Duration,
}

impl Recorded {
    async fn of(uses: &[Use], database: &Database) -> Self {
        let mut span = HashMap::new();
        for it in uses {
            match it.status {
                Some(StatusCode::OK) => span.entry(it.key).or_insert((it.at, it.at)).1 = it.at,
                status => assert_eq!(status, None),
            }
        }
        let store = PgKeyStore::new(database.pool().await);
        let (keys, mut this) = (span.len(), Self { never: 0, lag: Duration::ZERO });
        for (key, (first, last)) in span {
            let recorded = store.last_used_at(key).await.unwrap();
            this.never += usize::from(recorded.is_none());
            let lag = last.duration_since(recorded.unwrap_or(first)).unwrap_or_default();
            this.lag = this.lag.max(lag);
        }
        let Self { never, lag } = this;
        println!(
            "{keys} keys used, {never} never recorded, the others {lag:.1?} before the last use"
        );
        assert!(keys > 100, "{keys}");
        this
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_started_before_its_database_heals_by_itself() {
    let _turn = TURN.lock().await;
    let server = Server::start();
    let database = database(&server).await;
    let keys = issue(&PgKeyStore::new(database.pool().await), 1).await.unwrap();
    server.stop_immediate().await;

    let settings = Settings { load_deadline: None, ..Settings::new(database.url()) };
    let node = Node::start(&settings).await;
    for _ in 0..3 {
        let reply = node.get(&keys[0].text).await;
        reply.is(StatusCode::SERVICE_UNAVAILABLE);
        assert!(reply.headers.contains_key(header::RETRY_AFTER), "{reply:?}");
    }
    assert_eq!(node.health().await["ready"], false);

    server.start_again().await;
    eventually("it is ready", async || node.health().await["ready"] == true).await;
    let begun = Instant::now();
    eventually("the key is let in", async || node.get(&keys[0].text).await.status == 200).await;
    assert!(begun.elapsed() < 1_000 * MILLI, "{:?}", begun.elapsed());
}

/// Ten changes of keys that do not exist.
const TEN_CHANGES: &str = "do $$ begin perform \
    api_key_announce('changed:' || gen_random_uuid()) \
    from generate_series(1, 10); end $$";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_changes_of_other_keys_cost_a_known_key_no_query() {
    const CHANGES: u64 = 20_000;
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let node = listening(&Settings::new(database.url())).await;
    let keys = node.issue(2).await;
    let mut client = node.client().await;
    client.get(&keys[0].text).await.is(StatusCode::OK);
    let before = (node.count("queries").await, node.count("changes").await);

    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    let announced = tokio::spawn(async move {
        for _ in 0..CHANGES / 10 {
            raw_sql(TEN_CHANGES).execute(&mut connection).await.unwrap();
        }
    });
    eventually("the node has heard of all changes", async || {
        client.get(&keys[0].text).await.is(StatusCode::OK);
        node.count("changes").await >= before.1 + CHANGES
    })
    .await;
    within(announced).await.unwrap();
    assert_eq!(node.count("queries").await, before.0);
    assert_eq!(node.count("feed_lost").await, 0);

    // The feed still announces real changes.
    let by_hand = format!("update api_keys set revoked_at = now() where id = '{}'", keys[0].id());
    raw_sql(AssertSqlSafe(by_hand)).execute(&database.pool().await).await.unwrap();
    within(client.until_refused(&keys[0].text)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_sockets_end_with_their_key_that_another_node_revokes() {
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let settings = Settings::new(database.url());
    let (a, b) = (listening(&settings).await, listening(&settings).await);
    let mut admin = a.client().await;
    let (mut streams, mut sockets) = (Vec::new(), Vec::new());
    for key in a.issue(200).await {
        let (events, socket) = (Events::of(&b, &key).await, Socket::of(&b, &key).await);
        let (cut_off, closed) = (tokio::spawn(events.cut_off()), tokio::spawn(socket.closed()));
        admin.admin(Method::POST, &format!("/revoke/{}", key.id())).await;
        let revoked = Instant::now();
        streams.push(within(cut_off).await.unwrap().saturating_duration_since(revoked));
        sockets.push(within(closed).await.unwrap().saturating_duration_since(revoked));
    }
    for (what, times) in [("streams", streams), ("sockets", sockets)] {
        let times = Distribution::of(times);
        println!("revoked to ended, {what}: {times}");
        assert!(times.percentile(99) < 100 * MILLI, "{times}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_sockets_end_when_their_key_expires() {
    const KEYS: usize = 50;
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let node = listening(&Settings::new(database.url())).await;
    let store = PgKeyStore::new(database.pool().await);
    let expiring = || NewKey::new("acme", Expiry::In(Duration::from_secs(2)));
    let mut ends = JoinSet::new();
    for key in issue_new(&store, KEYS, expiring).await.unwrap() {
        let record = store.get(key.id()).await.unwrap().unwrap();
        let now = Instant::now();
        let left = record.expires_at.unwrap().duration_since(SystemClock::new().now()).unwrap();
        let expires = now + left;
        let (events, socket) = (Events::of(&node, &key).await, Socket::of(&node, &key).await);
        ends.spawn(async move { (expires, events.cut_off().await) });
        ends.spawn(async move { (expires, socket.closed().await) });
    }
    let mut late = Vec::new();
    while let Some(end) = within(ends.join_next()).await {
        let (expires, ended) = end.unwrap();
        // Measured from the start of the look-up, so a little early is correct.
        assert!(ended + 100 * MILLI >= expires, "{:?} too early", expires - ended);
        late.push(ended.saturating_duration_since(expires));
    }
    let late = Distribution::of(late);
    println!("expired to ended: {late}");
    assert!(late.percentile(99) < 100 * MILLI, "{late}");
}
