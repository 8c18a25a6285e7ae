//! `PgKeyStore` under faults: dropped futures, broken networks, invalid rows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use sqlx::{Connection, PgConnection, PgPool, postgres::PgPoolOptions, query_scalar, raw_sql};
use tokio::{task::yield_now, time::timeout};
use tower_api_key::{
    key::KeyHash,
    record::{KeyId, KeyRecord, Scopes},
    store::{KeyStore, ManageKeys, PgKeyStore, StoreErrorKind, port::Usage},
};

use crate::raw_store::ByHand as _;
use crate::servers::{
    postgres::{Database, Server},
    proxy::{Fault, FaultProxy},
};
use crate::wait::{eventually, within};

const SOON: Duration = Duration::from_secs(20);
const BRIEF: Duration = Duration::from_millis(500);
const HASH: KeyHash = KeyHash::from_bytes([7; 32]);
const ID: KeyId = KeyId::from_bytes([9; 16]);

fn record() -> KeyRecord {
    let mut record = KeyRecord::new(ID, HASH, "acme", SystemTime::UNIX_EPOCH);
    record.scopes = Scopes::parse(["reports:read", "reports:write"]).unwrap();
    record
}

/// A database with one key.
async fn database() -> Database {
    database_on(Server::shared()).await
}

async fn database_on(server: &Server) -> Database {
    let database = server.database().await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    store.migrate().await.unwrap();
    store.insert(&record()).await.unwrap();
    database
}

async fn connection(database: &Database) -> PgConnection {
    PgConnection::connect(database.url()).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: &'static str) {
    raw_sql(sql).execute(connection).await.unwrap();
}

/// A pool with a single connection: losing it is noticed at once.
async fn narrow_pool(url: &str) -> PgPool {
    let options = PgPoolOptions::new().max_connections(1).acquire_timeout(SOON);
    options.connect(url).await.unwrap()
}

/// A store that uses one pool for look-ups and everything else.
fn on_one_pool(pool: PgPool) -> PgKeyStore {
    PgKeyStore::builder().lookup_pool(pool.clone()).build(pool).unwrap()
}

/// Retries until the connections that are being closed have made room.
async fn is_found(store: &PgKeyStore) {
    let found = within(async {
        loop {
            match store.find(&HASH).await {
                Err(error) if error.kind() == StoreErrorKind::Overloaded => {}
                found => break found,
            }
        }
    });
    assert_eq!(found.await.unwrap().unwrap().id, ID);
}

async fn unavailable(store: &PgKeyStore) {
    let error = within(store.find(&HASH)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
}

/// Waits until a session waits for a lock on `api_keys`.
async fn somebody_waits(connection: &mut PgConnection) {
    let waiting = "select count(*) from pg_locks where relation = 'api_keys'::regclass \
                   and database = (select oid from pg_database where datname = current_database()) \
                   and not granted";
    within(async {
        while query_scalar::<_, i64>(waiting).fetch_one(&mut *connection).await.unwrap() == 0 {
            yield_now().await;
        }
    })
    .await;
}

/// Drops a look-up once a message from or to it was lost on the way.
async fn is_swallowed<T>(proxy: &FaultProxy, find: impl Future<Output = T>) {
    let before = proxy.bytes_swallowed();
    tokio::select! {
        _ = find => panic!("an answer from nowhere"),
        () = eventually("bytes are lost", async || proxy.bytes_swallowed() > before) => {}
    }
}

#[tokio::test]
async fn a_look_up_that_is_dropped_does_not_keep_its_connection() {
    let database = database().await;
    let store = on_one_pool(narrow_pool(database.url()).await);
    let mut obstacle = connection(&database).await;
    execute(&mut obstacle, "begin; lock table api_keys in access exclusive mode").await;

    let mut find = Box::pin(store.find(&HASH));
    tokio::select! {
        _ = &mut find => panic!("found a key in a table that is locked"),
        () = somebody_waits(&mut obstacle) => {}
    }
    // The query continues on the server, so its connection cannot be reused.
    drop(find);
    assert_eq!(within(store.last_used_at(ID)).await.unwrap(), None);

    execute(&mut obstacle, "rollback").await;
    is_found(&store).await;
    assert_eq!(store.pool().size(), 1);
}

#[tokio::test]
async fn look_ups_dropped_anywhere_leave_a_healthy_pool() {
    let database = database().await;
    let store = on_one_pool(narrow_pool(database.url()).await);
    for polls in 0..200 {
        let mut find = Box::pin(store.find(&HASH));
        for _ in 0..polls % 40 {
            tokio::select! {
                biased;
                _ = &mut find => break,
                () = yield_now() => {}
            }
        }
        drop(find);
    }
    is_found(&store).await;
    assert_eq!(store.pool().size(), 1);
}

#[tokio::test]
async fn a_network_that_swallows_everything_costs_connections_but_not_capacity() {
    let database = database().await;
    let proxy = FaultProxy::start(Server::shared().addr()).await;
    let store = on_one_pool(narrow_pool(&proxy.url(database.url())).await);
    is_found(&store).await;
    for _ in 0..2 {
        // The connection of the last look-up is being returned to the pool.
        proxy.set(Fault::BlackHole).await;
        for _ in 0..2 {
            is_swallowed(&proxy, store.find(&HASH)).await;
        }
        proxy.set(Fault::Pass).await;
        is_found(&store).await;
    }
    assert_eq!(store.pool().size(), 1);
}

#[tokio::test]
async fn a_look_up_in_a_black_hole_does_not_keep_its_connection() {
    let database = database().await;
    let proxy = FaultProxy::start(Server::shared().addr()).await;
    let store = on_one_pool(narrow_pool(&proxy.url(database.url())).await);
    let mut obstacle = connection(&database).await;
    execute(&mut obstacle, "begin; lock table api_keys in access exclusive mode").await;

    let mut find = Box::pin(store.find(&HASH));
    tokio::select! {
        _ = &mut find => panic!("found a key in a table that is locked"),
        () = somebody_waits(&mut obstacle) => {}
    }
    proxy.set(Fault::BlackHole).await;
    tokio::join!(is_swallowed(&proxy, find), execute(&mut obstacle, "rollback"));

    proxy.set(Fault::Pass).await;
    is_found(&store).await;
}

#[tokio::test]
async fn a_database_that_is_gone_is_unavailable_and_comes_back() {
    let database = database().await;
    let proxy = FaultProxy::start(Server::shared().addr()).await;
    let url = proxy.url(database.url());
    let options = PgPoolOptions::new().max_connections(2).acquire_timeout(BRIEF);
    let store = on_one_pool(options.connect(&url).await.unwrap());
    for fault in [Fault::Refuse, Fault::BlackHole, Fault::Fin, Fault::Rst] {
        is_found(&store).await;
        proxy.set(fault).await;
        unavailable(&store).await;
        let batch = [Usage::new(ID, SystemTime::UNIX_EPOCH)];
        let error = within(store.record_usage(&batch.into())).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{fault:?}: {error:?}");
        proxy.set(Fault::Pass).await;
    }
    is_found(&store).await;

    proxy.set(Fault::Refuse).await;
    let error = within(PgKeyStore::connect(&url)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);

    store.pool().close().await;
    unavailable(&store).await;
}

#[tokio::test]
async fn an_answer_cut_off_anywhere_is_the_right_one_or_none() {
    let database = database().await;
    let proxy = FaultProxy::start(Server::shared().addr()).await;
    let options = PgPoolOptions::new().max_connections(1).acquire_timeout(SOON);
    let store = on_one_pool(options.connect(&proxy.url(database.url())).await.unwrap());
    is_found(&store).await;
    let whole = proxy.bytes_from_server();

    let (mut found, mut refused) = (0, 0);
    for bytes in (0..whole + 200).step_by(17) {
        // The connection of the last round is past the limit, so each round opens its own.
        proxy.set(Fault::CutAfter(bytes)).await;
        match within(store.find(&HASH)).await {
            Ok(answer) => {
                let mut answer = answer.expect("the key, which is there");
                answer.read_at = record().read_at;
                assert_eq!(answer, record());
                found += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{bytes}: {error:?}");
                refused += 1;
            }
        }
    }
    assert!(found > 0 && refused > 0, "{found} found, {refused} refused");
    proxy.set(Fault::Pass).await;
    is_found(&store).await;
}

/// The result of a look-up if one byte of the response is changed, for every `step`th byte.
async fn corrupted_answers(server: &Server, step: usize) -> Vec<Option<KeyRecord>> {
    let database = server.database().await;
    let direct = PgKeyStore::connect(database.url()).await.unwrap();
    direct.migrate().await.unwrap();
    direct.insert(&record()).await.unwrap();
    let proxy = FaultProxy::start(server.addr()).await;
    let url = proxy.url(database.url());
    let connected = async || on_one_pool(narrow_pool(&url).await);

    let store = connected().await;
    let before = proxy.bytes_from_server();
    is_found(&store).await;
    let answer = before..proxy.bytes_from_server();

    let mut answers = Vec::new();
    for byte in answer.step_by(step) {
        proxy.set(Fault::Pass).await;
        let store = connected().await;
        proxy.set(Fault::Corrupt(byte)).await;
        // The driver waits forever for the rest of a message whose length field is too large, and
        // panics if it is too small.
        let find = tokio::spawn(async move { timeout(BRIEF / 5, store.find(&HASH)).await });
        if let Ok(Ok(Ok(found))) = find.await {
            answers.push(Some(found.expect("a key that is there is not unknown")));
        } else {
            answers.push(None);
        }
    }
    answers
}

#[tokio::test]
async fn an_answer_corrupted_anywhere_is_not_the_record_of_another_key() {
    let answers = corrupted_answers(Server::shared(), 8).await;
    assert!(answers.contains(&None), "no byte was missed");
    for answer in answers.into_iter().flatten() {
        assert_eq!(answer.key_hash, HASH);
    }
}

#[tokio::test]
async fn an_answer_corrupted_anywhere_is_noticed_where_there_is_tls() {
    let answers = corrupted_answers(&Server::start_with_tls(), 16).await;
    assert!(answers.contains(&None), "no byte was missed");
    for mut answer in answers.into_iter().flatten() {
        answer.read_at = record().read_at;
        assert_eq!(answer, record());
    }
}

#[tokio::test]
async fn a_connection_that_is_terminated_is_unavailable() {
    let database = database().await;
    let store = on_one_pool(narrow_pool(database.url()).await);
    let mut obstacle = connection(&database).await;
    execute(&mut obstacle, "begin; lock table api_keys in access exclusive mode").await;
    let terminated = async {
        somebody_waits(&mut obstacle).await;
        let others = "select pg_terminate_backend(pid) from pg_stat_activity \
                      where datname = current_database() and pid <> pg_backend_pid()";
        execute(&mut obstacle, others).await;
    };
    tokio::join!(unavailable(&store), terminated);
    execute(&mut obstacle, "rollback").await;
    is_found(&store).await;
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_unavailable() {
    let database = database().await;
    let mut obstacle = connection(&database).await;
    execute(&mut obstacle, "begin; lock table api_keys in access exclusive mode").await;
    for limit in ["statement_timeout", "lock_timeout"] {
        let url = format!("{}?options=-c{limit}=50ms", database.url());
        unavailable(&on_one_pool(narrow_pool(&url).await)).await;
    }
}

#[tokio::test]
async fn a_standby_answers_and_takes_no_changes() {
    let primary = Server::start();
    let database = database_on(&primary).await;
    let standby = primary.standby();
    let url = standby.url(database.url().rsplit('/').next().unwrap());
    let store = on_one_pool(narrow_pool(&url).await);
    let is_standby = query_scalar::<_, bool>("select pg_is_in_recovery()");
    assert!(is_standby.fetch_one(store.pool()).await.unwrap());
    is_found(&store).await;
    let batch = [Usage::new(ID, SystemTime::UNIX_EPOCH)];
    for error in [
        store.revoke(ID, None).await.unwrap_err(),
        store.record_usage(&batch.into()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
    }
    is_found(&store).await;
}

#[tokio::test]
async fn a_database_without_the_tables_says_so() {
    let database = Server::shared().database().await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    let error = store.find(&HASH).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Other);
    assert!(format!("{error:?}").contains("\"api_keys\" is not on the search path"), "{error:?}");
}

#[tokio::test]
async fn a_row_that_makes_no_sense_is_corrupt() {
    for (column, change) in [
        ("scopes", "update api_keys set scopes = '{\"the secret\"}'"),
        ("scopes", "update api_keys set scopes = '{read,null}'"),
        (
            "scopes",
            "drop trigger api_keys_tell_update on api_keys; \
             alter table api_keys alter scopes type text using 'the secret'",
        ),
        ("rate_limits", r#"update api_keys set rate_limits = '[{"the secret": 1}]'"#),
        (
            "plan_limits",
            r#"insert into api_key_plans values ('pro', '[{"the secret": 1}]');
            update api_keys set plan = 'pro'"#,
        ),
        (
            "plan",
            "alter table api_keys drop constraint api_keys_plan_is_plain;
            update api_keys set plan = 'the secret'",
        ),
        ("metadata", "update api_keys set metadata = jsonb_build_object('a', repeat('b', 20000))"),
        (
            "networks",
            "alter table api_keys drop constraint api_keys_networks_are_bounded;
            update api_keys set networks = array_fill('10.0.0.1'::cidr, array[65])
                || array(select ('10.0.0.' || n)::cidr from generate_series(2, 80) as n)",
        ),
        (
            "tags",
            "alter table api_keys drop constraint api_keys_tags_are_plain;
            update api_keys set tags = '{the secret}'",
        ),
        (
            "origins",
            "alter table api_keys drop constraint api_keys_only_the_publishable_have_origins;
            update api_keys set origins = '{https://secret.example}'",
        ),
        (
            "kind",
            "alter table api_keys drop constraint api_keys_kind_is_known;
            update api_keys set kind = 'the secret'",
        ),
        ("created_at", "update api_keys set created_at = 'infinity'"),
        ("revoked_at", "update api_keys set revoked_at = '-infinity'"),
    ] {
        let database = database().await;
        let store = on_one_pool(narrow_pool(database.url()).await);
        execute(&mut connection(&database).await, change).await;
        let error = store.find(&HASH).await.unwrap_err();
        let shown = format!("{error:?}");
        assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{change}: {shown}");
        assert!(shown.contains(column) && !shown.contains("secret"), "{change}: {shown}");
    }
}

#[tokio::test]
async fn the_tables_refuse_what_makes_no_sense() {
    let database = database().await;
    let mut connection = connection(&database).await;
    for change in [
        "update api_keys set key_hash = 'short'",
        "update api_keys set rate_limits = '{}'",
        "update api_keys set rate_limits = 'null'",
        "update api_keys set plan = ''",
        "update api_keys set plan = 'a b'",
        "update api_keys set plan = E'pro\\n'",
        "update api_keys set plan = 'é'",
        "update api_keys set plan = repeat('a', 65)",
        "insert into api_key_plans values ('a b', '[]')",
        "insert into api_key_plans values (repeat('a', 65), '[]')",
        "insert into api_key_plans values ('pro', '{}')",
        "insert into api_key_plans values ('pro', 'null')",
        "update api_keys set metadata = '[]'",
        "update api_keys set expires_at = 'infinity'",
        "update api_keys set not_before = '-infinity'",
        "update api_keys set revoked_reason = 'leaked'",
        "update api_keys set version = 0",
        "update api_keys set networks = '{}'",
        "update api_keys set networks = '{null}'",
        "update api_keys set networks = '{{10.0.0.0/8}}'",
        "update api_keys set networks = array_fill('10.0.0.1'::cidr, array[65])",
        "update api_keys set tags = '{}'",
        "update api_keys set tags = array['a b']",
        "update api_keys set tags = array['a,b']",
        r"update api_keys set tags = array['a\b']",
        "update api_keys set tags = array['a''b']",
        "update api_keys set tags = array[repeat('a', 65)]",
        "update api_keys set tags = array_fill('a'::text, array[33])",
        "update api_keys set kind = 'public'",
        "update api_keys set kind = 'publishable'",
        "update api_keys set origins = '{https://shop.example}'",
        "update api_keys set kind = 'publishable', origins = '{}'",
        "update api_keys set kind = 'publishable', origins = array['a b']",
        "update api_keys set kind = 'publishable', origins = array[repeat('a', 256)]",
        "update api_keys set kind = 'publishable', origins = array_fill('a'::text, array[33])",
    ] {
        let error = raw_sql(change).execute(&mut connection).await.unwrap_err();
        assert!(error.as_database_error().unwrap().is_check_violation(), "{change}: {error}");
    }
}

#[tokio::test]
async fn no_error_shows_a_hash_or_a_password() {
    let database = database().await;
    let store = on_one_pool(narrow_pool(database.url()).await);
    let mut senseless = record();
    senseless.version = 0;
    let refused = store.insert(&senseless).await.unwrap_err();
    let source = std::error::Error::source(&refused).unwrap();
    // The driver's own error contains the refused row.
    let shown = format!("{refused:?} {refused} {source:?} {source}");
    assert!(shown.contains("version_counts_from_1") && !shown.contains("07070707"), "{shown}");

    let unreachable = "postgres://postgres:hunter2@127.0.0.1:1/postgres?the=hunter2";
    let pool = PgPoolOptions::new().connect_lazy(unreachable).unwrap();
    let shown = format!("{:?}", PgKeyStore::new(pool));
    assert!(!shown.contains("hunter2"), "{shown}");
    for url in [unreachable, "hunter2", "postgres://:hunter2@[/", "mysql://a:hunter2@b/c"] {
        let error = PgKeyStore::connect(url).await.unwrap_err();
        let source = std::error::Error::source(&error).unwrap();
        let shown = format!("{error:?} {error} {source:?} {source}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[tokio::test]
async fn two_nodes_that_record_the_same_usage_do_not_deadlock() {
    const KEYS: u64 = 10_000;
    const ROUNDS: u64 = 4;
    let database = database().await;
    let keys = "insert into api_keys (id, key_hash, key_prefix, key_last4, consumer_id, scopes, \
                metadata, is_active, created_at, root_id, version) \
                select lpad(to_hex(key), 32, '0')::uuid, sha256(key::text::bytea), '', '', 'acme', \
                '{}', '{}', true, now(), lpad(to_hex(key), 32, '0')::uuid, 1 \
                from generate_series(1, 10000) as key";
    execute(&mut connection(&database).await, keys).await;

    let at = |round| SystemTime::UNIX_EPOCH + Duration::from_secs(round);
    let id = |key: u64| KeyId::from_bytes(u128::from(key).to_be_bytes());
    let mut nodes = Vec::new();
    for node in 0..2 {
        let store = PgKeyStore::connect(database.url()).await.unwrap();
        nodes.push(tokio::spawn(async move {
            for round in 1..=ROUNDS {
                // They are never in the same round, so each has changes for the other.
                let at = at(2 * round + node);
                let batch: Vec<_> = (1..=KEYS).map(|key| Usage::new(id(key), at)).collect();
                store.record_usage(&batch.into()).await.unwrap();
            }
        }));
    }
    for node in nodes {
        node.await.unwrap();
    }
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    for key in [1, KEYS / 2, KEYS] {
        assert_eq!(store.last_used_at(id(key)).await.unwrap(), Some(at(2 * ROUNDS + 1)));
    }
}

#[tokio::test]
async fn a_url_that_leads_nowhere_is_an_error_that_says_why() {
    let proxy = FaultProxy::start(Server::shared().addr()).await;
    proxy.set(Fault::Refuse).await;
    let url = proxy.url("postgres://postgres:secret@127.0.0.1/app");
    let error = within(PgKeyStore::connect(&url)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    let shown = format!("{error:?}");
    assert!(shown.contains("refused") && !shown.contains("secret"), "{shown}");

    let error = PgKeyStore::connect("mysql://localhost/app").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Other);
    assert!(format!("{error:?}").contains("begin with `postgres://`"), "{error:?}");
}

#[tokio::test]
async fn a_store_can_be_made_before_its_database_is_there() {
    for url in ["mysql://127.0.0.1/app", "127.0.0.1", ""] {
        assert_eq!(PgKeyStore::connect_lazy(url).unwrap_err().kind(), StoreErrorKind::Other);
    }
    let server = Server::start();
    let database = server.database().await;
    server.stop_immediate().await;
    let store = PgKeyStore::connect_lazy(database.url()).unwrap();
    let error = within(store.migrate()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    server.start_again().await;
    within(store.migrate()).await.unwrap();
    assert_eq!(within(store.find(&KeyHash::from_bytes([7; 32]))).await.unwrap(), None);
}

/// The server's response to `sql`.
async fn refusal(connection: &mut PgConnection, sql: &'static str) -> String {
    let error = raw_sql(sql).execute(connection).await.unwrap_err();
    error.as_database_error().unwrap().code().unwrap().into_owned()
}

#[tokio::test]
async fn the_audit_is_append_only_and_a_revocation_for_good_whoever_asks() {
    let database = database().await;
    let store = on_one_pool(narrow_pool(database.url()).await);
    let mut connection = connection(&database).await;
    let event = "insert into api_key_events (action, actor) values ('issued', 'somebody')";
    execute(&mut connection, event).await;
    for change in [
        "update api_key_events set actor = 'nobody'",
        "delete from api_key_events",
        "truncate api_key_events",
    ] {
        assert_eq!(refusal(&mut connection, change).await, "TK002", "{change}");
    }
    store.revoke(ID, None).await.unwrap().unwrap();
    for change in [
        "update api_keys set revoked_at = null",
        "update api_keys set revoked_at = revoked_at + interval '1 second'",
    ] {
        assert_eq!(refusal(&mut connection, change).await, "TK001", "{change}");
    }
    execute(&mut connection, "update api_keys set name = 'of old'").await;
    execute(&mut connection, "delete from api_keys").await;
}
