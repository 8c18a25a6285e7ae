//! Look-ups that arrive while others are under way share a query, and only the server notices.

use std::{
    future::{Future, ready},
    iter::repeat_n,
    task::{Context, Waker},
    time::{Duration, SystemTime},
};

use futures_util::future::{self, join_all};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, Row as _,
    postgres::{PgConnectOptions, PgPoolOptions},
    query_scalar, raw_sql,
};
use tokio::{
    runtime::Builder,
    select,
    task::{JoinSet, yield_now},
    time::timeout,
};
use tower_api_key::{
    key::{KeyFormat, KeyHash},
    manage::{Expiry, KeyIssuer, NewKey},
    record::KeyRecord,
    store::{EventQuery, KeyQuery, KeyStore, PgKeyStore, StoreError, StoreErrorKind, port::Usage},
};

use crate::servers::{
    pgbouncer::PgBouncer,
    postgres::{Database, Server},
    proxy::{Fault, FaultProxy},
};
use crate::wait::{eventually, within};

const SOON: Duration = Duration::from_secs(20);
const KEYS: u32 = 1_000;

/// Keys `1..=KEYS`, each of the consumer with the same number.
const FILL: &str = "
    insert into api_keys (id, key_hash, key_prefix, key_last4, consumer_id, scopes, metadata,
                          is_active, created_at, root_id, version)
    select lpad(to_hex(key), 32, '0')::uuid, decode(lpad(to_hex(key), 64, '0'), 'hex'), 'sk_',
           'abcd', key, '{read}', '{}', true, now(), lpad(to_hex(key), 32, '0')::uuid, 1
    from generate_series(1, 1000) as key";

type Found = Result<Option<KeyRecord>, StoreError>;

async fn database() -> Database {
    let database = Server::shared().database().await;
    let store = PgKeyStore::new(database.pool().await);
    store.migrate().await.unwrap();
    raw_sql(FILL).execute(store.pool()).await.unwrap();
    database
}

/// A store with one connection, and therefore one query at a time.
async fn narrow(url: &str) -> PgKeyStore {
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(SOON);
    on_one_pool(pool.connect(url).await.unwrap())
}

/// A store that uses one pool for look-ups and everything else, so that a test sees every query.
fn on_one_pool(pool: PgPool) -> PgKeyStore {
    PgKeyStore::builder().lookup_pool(pool.clone()).build(pool).unwrap()
}

async fn connection(database: &Database) -> PgConnection {
    PgConnection::connect(database.url()).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

const LOCK: &str = "begin; lock table api_keys in access exclusive mode";

fn hash(key: u32) -> KeyHash {
    let mut hash = [0; 32];
    hash[28..].copy_from_slice(&key.to_be_bytes());
    KeyHash::from_bytes(hash)
}

/// Runs all look-ups concurrently.
async fn find(store: &PgKeyStore, keys: impl IntoIterator<Item = u32>) -> Vec<(u32, Found)> {
    let find = |key| async move { (key, store.find(&hash(key)).await) };
    within(join_all(keys.into_iter().map(find))).await
}

/// Asserts that the result is what [`FILL`] made.
fn is_right((key, found): (u32, Found)) {
    let consumer = found.unwrap().map(|record| record.consumer_id);
    assert_eq!(consumer, (1..=KEYS).contains(&key).then(|| key.to_string()));
}

/// How many times the only connection has executed a look-up.
async fn queries(pool: &PgPool) -> i64 {
    let executed = "select coalesce(sum(generic_plans + custom_plans), 0)::bigint \
                    from pg_prepared_statements where statement like '%api_keys%'";
    query_scalar(executed).persistent(false).fetch_one(pool).await.unwrap()
}

async fn backend(pool: &PgPool) -> i32 {
    query_scalar("select pg_backend_pid()").fetch_one(pool).await.unwrap()
}

/// The backends that wait for a lock, once there are this many.
async fn stuck(connection: &mut PgConnection, count: usize) -> Vec<i32> {
    let stuck = "select pid from pg_locks where not granted \
                 and database = (select oid from pg_database where datname = current_database())";
    let are_stuck = async {
        loop {
            let stuck = query_scalar(stuck).fetch_all(&mut *connection).await.unwrap();
            if stuck.len() == count {
                break stuck;
            }
            yield_now().await;
        }
    };
    within(are_stuck).await
}

/// Polls the future until this many backends are blocked.
async fn get_stuck(
    connection: &mut PgConnection,
    count: usize,
    finds: impl Future + Unpin,
) -> Vec<i32> {
    select! {
        biased;
        stuck = stuck(connection, count) => stuck,
        _ = finds => panic!("an answer from a table that is locked"),
    }
}

async fn begin(finds: impl Future + Unpin) {
    select! {
        biased;
        _ = finds => panic!("an answer from a table that is locked"),
        () = ready(()) => {}
    }
}

#[tokio::test]
async fn keys_asked_for_at_once_are_found_by_few_queries() {
    let database = database().await;
    let store = narrow(database.url()).await;
    // Half of them are unknown.
    find(&store, 1..=2 * KEYS).await.into_iter().for_each(is_right);
    let queries = queries(store.pool()).await;
    assert!((1..=i64::from(2 * KEYS) / 64 + 2).contains(&queries), "{queries} queries");
}

#[tokio::test]
async fn keys_asked_for_one_after_the_other_are_queries_of_their_own() {
    let database = database().await;
    let store = narrow(database.url()).await;
    for key in 1..=10 {
        find(&store, [key]).await.into_iter().for_each(is_right);
    }
    assert_eq!(queries(store.pool()).await, 10);
}

#[tokio::test]
async fn a_key_asked_for_by_many_at_once_is_found_for_each_of_them() {
    let database = database().await;
    let store = narrow(database.url()).await;
    let keys = repeat_n([1, KEYS + 1], 20).flatten();
    find(&store, keys).await.into_iter().for_each(is_right);
    // The first look-up was sent at once.
    assert_eq!(queries(store.pool()).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_and_clones_get_answers_to_what_they_asked() {
    let database = database().await;
    let store = PgKeyStore::new(database.pool().await);
    let mut tasks = JoinSet::new();
    for first in 1..=16 {
        let store = store.clone();
        tasks.spawn(async move {
            for key in (first..2 * KEYS).step_by(16) {
                is_right((key, store.find(&hash(key)).await));
            }
        });
    }
    while let Some(done) = within(tasks.join_next()).await {
        done.unwrap();
    }
}

#[tokio::test]
async fn behind_pgbouncer_in_transaction_mode_they_are_found_too() {
    let database = database().await;
    let pgbouncer = PgBouncer::start(Server::shared(), "transaction", 1);
    let store = narrow(&pgbouncer.url(database.url())).await;
    for _ in 0..3 {
        find(&store, 1..=2 * KEYS).await.into_iter().for_each(is_right);
    }
}

#[tokio::test]
async fn a_row_that_makes_no_sense_spoils_no_other_answer() {
    let database = database().await;
    let senseless = "update api_keys set metadata = jsonb_build_object('a', repeat('b', 20000)) \
                     where consumer_id = '3'";
    execute(&mut connection(&database).await, senseless).await;
    let store = narrow(database.url()).await;
    for (key, found) in find(&store, 1..=10).await {
        if key == 3 {
            assert_eq!(found.unwrap_err().kind(), StoreErrorKind::Corrupt);
        } else {
            is_right((key, found));
        }
    }
    // One query, whose connection is dropped: it may have mixed up the row.
    assert_eq!(queries(store.pool()).await, 0);
}

#[tokio::test]
async fn a_row_that_the_server_cannot_read_spoils_no_other_answer() {
    let database = database().await;
    let ambiguous = "
        alter table api_key_plans drop constraint api_key_plans_pkey;
        insert into api_key_plans (name, rate_limits) values ('pro', '[]'), ('pro', '[]');
        update api_keys set plan = 'pro' where consumer_id = '3'";
    execute(&mut connection(&database).await, ambiguous).await;
    let store = narrow(database.url()).await;
    for (key, found) in find(&store, 1..=10).await {
        if key == 3 {
            assert_eq!(found.unwrap_err().kind(), StoreErrorKind::Other);
        } else {
            is_right((key, found));
        }
    }
}

#[tokio::test]
async fn nobody_is_answered_by_a_query_that_was_sent_before_they_asked() {
    let database = database().await;
    // A query that has read the table and delays its answer.
    let slow = "
        create function public.clock_timestamp() returns timestamptz language plpgsql as $$
        begin
            perform pg_advisory_xact_lock_shared(1);
            return pg_catalog.clock_timestamp();
        end $$";
    let mut other = connection(&database).await;
    execute(&mut other, slow).await;
    execute(&mut other, "select pg_advisory_lock(1)").await;
    let options: PgConnectOptions = database.url().parse().unwrap();
    let options = options.options([("search_path", "public,pg_catalog")]);
    for connections in [1, 2] {
        let pool = PgPoolOptions::new().max_connections(connections);
        let store = PgKeyStore::new(pool.connect_with(options.clone()).await.unwrap());

        let key = hash(connections);
        let mut before = Box::pin(store.find(&key));
        get_stuck(&mut other, 1, &mut before).await;
        let rename =
            format!("update api_keys set name = 'new' where consumer_id = '{connections}'");
        execute(&mut other, &rename).await;
        let after = store.find(&key);
        let unlock = async {
            yield_now().await;
            execute(&mut other, "select pg_advisory_unlock(1)").await;
        };
        let (before, after, ()) = within(async { tokio::join!(before, after, unlock) }).await;
        assert_eq!(before.unwrap().unwrap().name, None);
        assert_eq!(after.unwrap().unwrap().name.as_deref(), Some("new"));
        execute(&mut other, "select pg_advisory_lock(1)").await;
    }
}

#[tokio::test]
async fn a_query_goes_on_without_those_who_no_longer_wait_for_it() {
    let database = database().await;
    let store = narrow(database.url()).await;
    let mut obstacle = connection(&database).await;
    execute(&mut obstacle, LOCK).await;

    let [first, second, third, fourth] = [hash(1), hash(2), hash(3), hash(4)];
    let mut alone = Box::pin(store.find(&first));
    get_stuck(&mut obstacle, 1, &mut alone).await;
    let mut gone = Box::pin(future::join(store.find(&second), store.find(&third)));
    let mut stays = Box::pin(store.find(&fourth));
    begin(&mut gone).await;
    begin(&mut stays).await;
    drop(alone);
    // A query that lost its connection continues on the server.
    let stuck = get_stuck(&mut obstacle, 2, future::select(&mut gone, &mut stays)).await;
    drop(gone);
    yield_now().await;
    execute(&mut obstacle, "rollback").await;
    is_right((4, within(stays).await));
    assert_eq!(queries(store.pool()).await, 1);
    assert!(stuck.contains(&backend(store.pool()).await));
}

#[tokio::test]
async fn a_query_that_nobody_waits_for_any_more_makes_room() {
    let database = database().await;
    let store = narrow(database.url()).await;
    let mut obstacle = connection(&database).await;
    execute(&mut obstacle, LOCK).await;

    let [first, second, third] = [hash(1), hash(2), hash(3)];
    let mut alone = Box::pin(store.find(&first));
    get_stuck(&mut obstacle, 1, &mut alone).await;
    let mut together = Box::pin(future::join(store.find(&second), store.find(&third)));
    begin(&mut together).await;
    drop(alone);
    let stuck = get_stuck(&mut obstacle, 2, &mut together).await;
    drop(together);
    // The only connection is a new one.
    assert!(!stuck.contains(&within(backend(store.pool())).await));
    execute(&mut obstacle, "rollback").await;
    find(&store, 1..=3).await.into_iter().for_each(is_right);
}

#[tokio::test]
async fn nobody_is_asked_for_who_has_gone() {
    let database = database().await;
    let store = narrow(database.url()).await;
    let mut obstacle = connection(&database).await;
    execute(&mut obstacle, LOCK).await;

    let [first, second, third] = [hash(1), hash(2), hash(3)];
    let mut stays = Box::pin(store.find(&first));
    get_stuck(&mut obstacle, 1, &mut stays).await;
    let mut gone = Box::pin(future::join(store.find(&second), store.find(&third)));
    begin(&mut gone).await;
    drop(gone);
    execute(&mut obstacle, "rollback").await;
    is_right((1, within(stays).await));
    assert_eq!(queries(store.pool()).await, 1);
}

/// Ends this many queries one after the other, each when it is blocked.
async fn kill(obstacle: &mut PgConnection, queries: usize) {
    for _ in 0..queries {
        for pid in stuck(obstacle, 1).await {
            execute(obstacle, &format!("select pg_terminate_backend({pid}, 20000)")).await;
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_killed_costs_none_of_those_who_asked_together_an_answer() {
    let database = database().await;
    let store = narrow(database.url()).await;
    let mut obstacle = connection(&database).await;
    execute(&mut obstacle, LOCK).await;
    let killed = async {
        // The query of the first look-up, and the query of the later ones, which is retried once.
        kill(&mut obstacle, 2).await;
        execute(&mut obstacle, "rollback").await;
    };
    let (found, ()) = tokio::join!(find(&store, 1..=10), killed);
    let (failed, right): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|(_, found)| found.is_err());
    let [(_, Err(error))] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
    right.into_iter().for_each(is_right);
}

#[tokio::test]
async fn a_server_that_ends_every_connection_is_unavailable_to_all_who_waited_for_it() {
    let database = database().await;
    let store = narrow(database.url()).await;
    let mut obstacle = connection(&database).await;
    execute(&mut obstacle, LOCK).await;
    let (found, ()) = tokio::join!(find(&store, 1..=10), kill(&mut obstacle, 3));
    for (key, found) in found {
        let error = found.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{key}: {error:?}");
        assert!(std::error::Error::source(&error).is_some(), "{key}: {error:?}");
    }
    execute(&mut obstacle, "rollback").await;
    find(&store, 1..=10).await.into_iter().for_each(is_right);
}

#[tokio::test]
async fn a_network_that_swallows_everything_holds_up_nobody_afterwards() {
    let database = database().await;
    let proxy = FaultProxy::start(Server::shared().addr()).await;
    let pool = PgPoolOptions::new().max_connections(5).acquire_timeout(SOON);
    let store = on_one_pool(pool.connect(&proxy.url(database.url())).await.unwrap());
    for _ in 0..3 {
        find(&store, 1..=10).await.into_iter().for_each(is_right);
        proxy.set(Fault::BlackHole).await;
        let before = proxy.bytes_swallowed();
        tokio::select! {
            _ = find(&store, 1..=100) => panic!("an answer from nowhere"),
            () = eventually("questions are lost", async || proxy.bytes_swallowed() > before) => {}
        }
        proxy.set(Fault::Pass).await;
    }
    find(&store, 1..=100).await.into_iter().for_each(is_right);
}

/// The driver waits forever for the rest of a message whose length field is too large, and panics
/// if it is too small.
#[tokio::test]
async fn answers_corrupted_anywhere_are_those_of_the_right_keys_or_none() {
    let database = database().await;
    let proxy = FaultProxy::start(Server::shared().addr()).await;
    let url = proxy.url(database.url());
    let store = narrow(&url).await;
    let before = proxy.bytes_from_server();
    find(&store, 1..=3).await.into_iter().for_each(is_right);
    let answer = before..proxy.bytes_from_server();

    let (mut found, mut failed) = (0, 0);
    for byte in answer.step_by(8) {
        proxy.set(Fault::Pass).await;
        let store = narrow(&url).await;
        proxy.set(Fault::Corrupt(byte)).await;
        let mut finds = JoinSet::new();
        for key in 1..=3 {
            let store = store.clone();
            let find = async move { (key, store.find(&hash(key)).await) };
            finds.spawn(timeout(Duration::from_millis(100), find));
        }
        while let Some(outcome) = within(finds.join_next()).await {
            let Ok(Ok((key, Ok(answer)))) = outcome else {
                failed += 1;
                continue;
            };
            assert_eq!(answer.expect("a key that is there").key_hash, hash(key));
            found += 1;
        }
        proxy.set(Fault::Pass).await;
        find(&store, 4..=6).await.into_iter().for_each(is_right);
    }
    assert!(found > 0 && failed > 0, "{found} found, {failed} failed");
}

#[test]
fn a_runtime_that_stands_still_or_ends_holds_up_no_look_up_of_another() {
    let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
    let other = runtime();
    let database = other.block_on(database());
    let store = other.block_on(narrow(database.url()));
    let stalled = runtime();
    let waiting = {
        let store = store.clone();
        let _within = stalled.enter();
        let find = move |key| {
            let store = store.clone();
            async move { (key, store.find(&hash(key)).await) }
        };
        let mut waiting = Box::pin(join_all((1..=100).map(find)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        waiting
    };
    other.block_on(find(&store, 1..=100)).into_iter().for_each(is_right);
    drop(stalled);
    drop(waiting);
    other.block_on(find(&store, 1..=100)).into_iter().for_each(is_right);
    other.block_on(async { drop(database) });
}

/// How many statements the server has prepared for the one connection of `store`.
async fn prepared(store: &PgKeyStore) -> i64 {
    let count = raw_sql("select count(*) from pg_prepared_statements");
    count.fetch_one(store.pool()).await.unwrap().get(0)
}

/// Look-ups in batches of every size up to this, and all other operations of a service.
async fn everything(store: &PgKeyStore, most: u32) {
    for keys in 1..=most {
        find(store, 1..=keys).await.into_iter().for_each(is_right);
    }
    let issuer = KeyIssuer::new(store.clone(), KeyFormat::new("sk_test_").unwrap());
    let issued = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record;
    let used = [Usage::new(issued.id, SystemTime::UNIX_EPOCH)];
    within(store.record_usage(&used.into())).await.unwrap();
    issuer.list(&KeyQuery::new()).await.unwrap();
    issuer.get(issued.id).await.unwrap();
    issuer.revoke(issued.id, None).await.unwrap();
    issuer.events(&EventQuery::new()).await.unwrap();
}

#[tokio::test]
async fn prepared_statements_do_not_pile_up_with_or_without_pgbouncer() {
    let database = database().await;
    let session = PgBouncer::start(Server::shared(), "session", 1);
    let transaction = PgBouncer::start(Server::shared(), "transaction", 1);
    for url in
        [database.url().to_owned(), session.url(database.url()), transaction.url(database.url())]
    {
        let store = narrow(&url).await;
        everything(&store, 70).await;
        let first = prepared(&store).await;
        assert!((1..50).contains(&first), "{first} statements");
        for _ in 0..5 {
            everything(&store, 70).await;
            assert_eq!(prepared(&store).await, first, "{url}");
        }
    }
    // The control: leaked statements would be noticed, as with the advice for old poolers, which
    // the manual warns of.
    let leaking = format!("{}?statement-cache-capacity=0", database.url());
    let store = narrow(&leaking).await;
    find(&store, 1..=10).await.into_iter().for_each(is_right);
    let first = prepared(&store).await;
    for key in 1..=20 {
        find(&store, [key]).await.into_iter().for_each(is_right);
    }
    assert!(prepared(&store).await >= first + 20);
}

/// How many statements are prepared on each server connection of PgBouncer.
async fn prepared_by_each(pool: &PgPool, connections: u32) -> Vec<i64> {
    let mut counts = Vec::new();
    // All are open at once, so that each has its own server connection.
    let mut transactions = Vec::new();
    for _ in 0..connections {
        let mut transaction = within(pool.begin()).await.unwrap();
        let count = raw_sql("select count(*) from pg_prepared_statements");
        counts.push(count.fetch_one(&mut *transaction).await.unwrap().get(0));
        transactions.push(transaction);
    }
    counts
}

#[tokio::test]
async fn where_pgbouncer_tracks_statements_connections_take_turns_and_nothing_piles_up() {
    const SHARED: u32 = 2;
    let database = database().await;
    let direct = narrow(database.url()).await;
    everything(&direct, 10).await;
    let distinct = prepared(&direct).await;

    let pgbouncer = PgBouncer::start_with_prepared_statements(Server::shared(), SHARED);
    let pool = PgPoolOptions::new().max_connections(8).acquire_timeout(SOON);
    let store = on_one_pool(pool.connect(&pgbouncer.url(database.url())).await.unwrap());
    // Eight client connections, all open, share two server connections.
    let ours = join_all((0..8).map(|_| store.pool().acquire())).await;
    assert!(ours.into_iter().all(|connection| connection.is_ok()));

    for _ in 0..4 {
        join_all((0..8).map(|_| everything(&store, 10))).await;
        let counts = prepared_by_each(store.pool(), SHARED).await;
        assert!(
            counts.iter().all(|count| (1..=distinct).contains(count)),
            "{counts:?}, {distinct}"
        );
    }
}
