//! Change feeds: every change of a key, by any means, reaches the nodes that cache it.

use std::{
    collections::{BTreeSet, VecDeque},
    future::{Future, poll_fn},
    pin::pin,
    sync::Mutex,
    task::Poll,
    time::{Duration, SystemTime},
};

use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
    query_scalar, raw_sql,
};
use tokio::{
    process::Command,
    time::{Instant, timeout},
};
use tower_api_key::{
    key::KeyHash,
    rate_limit::{Quota, RateLimits},
    record::{KeyId, KeyRecord},
    store::{
        KeyStore, ManageKeys, PgChangeFeed, PgKeyStore, PollingChangeFeed, SqliteKeyStore,
        StoreError, StoreErrorKind,
        port::{Change, ChangeFeed, ChangeLog, Changes, LogPosition, ManagePlans, Replica, Usage},
    },
};

use crate::raw_store::ByHand as _;
use crate::servers::{
    pgbouncer::PgBouncer,
    postgres::{Database, Server},
    proxy::{Fault, FaultProxy},
    unique,
};

const SOON: Duration = Duration::from_secs(20);
const HEARTBEAT: Duration = Duration::from_millis(500);
const OFTEN: Duration = Duration::from_millis(10);

/// The key that a test changes, and a marker key, changed afterwards to see that everything before
/// was announced.
const KEY: KeyId = KeyId::from_bytes([9; 16]);
const MARKER: KeyId = KeyId::from_bytes([1; 16]);
const OTHER: KeyId = KeyId::from_bytes([8; 16]);

fn record(id: KeyId) -> KeyRecord {
    let hash = KeyHash::from_bytes([id.as_bytes()[0]; 32]);
    KeyRecord::new(id, hash, "acme", SystemTime::UNIX_EPOCH)
}

async fn soon<T>(event: impl Future<Output = T>) -> T {
    timeout(SOON, event).await.expect("it should have happened by now")
}

/// The next change that is not a heartbeat.
async fn told(feed: &mut impl ChangeFeed) -> Change {
    soon(async {
        loop {
            match feed.next().await.unwrap() {
                Change::Heartbeat { .. } => {}
                change => return change,
            }
        }
    })
    .await
}

/// Waits for the end of a feed without changes.
async fn end(feed: &mut impl ChangeFeed) -> StoreError {
    soon(async {
        loop {
            match feed.next().await {
                Ok(Change::Heartbeat { .. }) => {}
                Ok(change) => panic!("{change:?}"),
                Err(error) => return error,
            }
        }
    })
    .await
}

/// The changes announced up to a change of the marker: a poll sees both at once.
async fn told_before_marker(feed: &mut impl ChangeFeed) -> BTreeSet<String> {
    let mut before = BTreeSet::new();
    let mut change = told(feed).await;
    while change != Change::Changed(MARKER) {
        assert!(before.insert(format!("{change:?}")), "{change:?} was told twice");
        change = told(feed).await;
    }
    before
}

async fn told_with_marker(feed: &mut impl ChangeFeed) -> BTreeSet<String> {
    let mut with = told_before_marker(feed).await;
    loop {
        match soon(feed.next()).await.unwrap() {
            Change::Heartbeat { .. } => return with,
            change => {
                assert!(with.insert(format!("{change:?}")), "{change:?} was told twice");
            }
        }
    }
}

fn set(changes: &[Change]) -> BTreeSet<String> {
    changes.iter().map(|change| format!("{change:?}")).collect()
}

async fn connected<F: ChangeFeed>(mut feed: F) -> F {
    soon(feed.connect()).await.unwrap();
    feed
}

async fn refused(feed: &mut impl ChangeFeed) -> String {
    let error = soon(feed.connect()).await.unwrap_err();
    assert!(soon(feed.next()).await.is_err(), "what is not connected tells nothing");
    format!("{error:?}")
}

/// Polls `future` at most this many times.
async fn polled<T>(times: usize, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut left) = (pin!(future), times);
    poll_fn(|context| match left.checked_sub(1) {
        None => Poll::Ready(None),
        Some(fewer) => {
            left = fewer;
            let polled = future.as_mut().poll(context).map(Some);
            if left == 0 && polled.is_pending() { Poll::Ready(None) } else { polled }
        }
    })
    .await
}

/// A database with two keys.
async fn database() -> Database {
    let database = Server::shared().database().await;
    furnish(&store(database.url()).await).await;
    database
}

async fn furnish(store: &PgKeyStore) {
    store.migrate().await.unwrap();
    store.insert(&record(KEY)).await.unwrap();
    store.insert(&record(MARKER)).await.unwrap();
}

async fn store(url: &str) -> PgKeyStore {
    PgKeyStore::connect(url).await.unwrap()
}

async fn connection(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: impl Into<String>) {
    let sql = sql.into();
    let done = raw_sql(AssertSqlSafe(sql.clone())).execute(connection).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn touch(connection: &mut PgConnection, id: KeyId) {
    execute(connection, format!("update api_keys set name = '{}' where id = '{id}'", unique()))
        .await;
}

/// A pool without connections, which need not be able to connect.
fn pool(url: &str) -> PgPool {
    let options: PgConnectOptions = url.parse().unwrap();
    PgPoolOptions::new().acquire_timeout(SOON).connect_lazy_with(options)
}

fn listening(url: &str) -> PgChangeFeed {
    PgChangeFeed::new(pool(url)).heartbeat(HEARTBEAT)
}

fn polling(url: &str) -> PollingChangeFeed<PgKeyStore> {
    PollingChangeFeed::new(PgKeyStore::new(pool(url))).interval(OFTEN)
}

mod triggers {
    use super::*;

    /// All feeds, and a session to make changes in.
    struct Audience {
        database: Database,
        prompt: PgConnection,
        listening: PgChangeFeed,
        polling: PollingChangeFeed<PgKeyStore>,
    }

    impl Audience {
        async fn new() -> Self {
            let database = database().await;
            Self {
                prompt: connection(database.url()).await,
                listening: connected(listening(database.url())).await,
                polling: connected(polling(database.url())).await,
                database,
            }
        }

        /// The changes that both feeds announce for `sql`.
        async fn hears(&mut self, sql: &str) -> [BTreeSet<String>; 2] {
            execute(&mut self.prompt, sql).await;
            touch(&mut self.prompt, MARKER).await;
            [
                told_before_marker(&mut self.listening).await,
                told_with_marker(&mut self.polling).await,
            ]
        }

        #[track_caller]
        fn both(changes: &[Change]) -> [BTreeSet<String>; 2] {
            [set(changes), set(changes)]
        }
    }

    const SET: &str = "update api_keys set";
    const OF_KEY: &str = "where id = '09090909-0909-0909-0909-090909090909'";

    #[tokio::test]
    async fn a_column_that_matters_is_told_and_no_other() {
        let told = [
            ("consumer_id", "'other'"),
            ("name", "'a name'"),
            ("name", "null"),
            ("scopes", "array['reports:read']"),
            ("rate_limits", "'[]'"),
            ("rate_limits", "null"),
            ("plan", "'pro'"),
            ("plan", "null"),
            ("metadata", r#"'{"plan": "pro"}'"#),
            ("is_active", "not is_active"),
            ("not_before", "now()"),
            ("expires_at", "now()"),
            ("expires_at", "null"),
            ("revoked_at", "now()"),
            ("rotated_at", "now()"),
            ("root_id", "gen_random_uuid()"),
            ("networks", "'{10.0.0.0/8}'"),
            ("networks", "null"),
            ("tags", "'{mobile}'"),
            ("tags", "null"),
            ("kind", "'publishable', origins = '{https://shop.example}'"),
            ("origins", "'{https://other.example}'"),
        ];
        let silent = [
            ("key_prefix", "'sk_'"),
            ("key_last4", "'abcd'"),
            ("created_at", "now()"),
            ("created_by", "'alice'"),
            ("revoked_reason", "'leaked'"),
            ("rotated_from", "gen_random_uuid()"),
            ("version", "version + 1"),
            ("name", "name"),
            ("id", "id"),
        ];
        let mut audience = Audience::new().await;
        for (column, value) in told {
            let heard = audience.hears(&format!("{SET} {column} = {value} {OF_KEY}")).await;
            assert_eq!(heard, Audience::both(&[Change::Changed(KEY)]), "{column} = {value}");
        }
        for (column, value) in silent {
            let heard = audience.hears(&format!("{SET} {column} = {value} {OF_KEY}")).await;
            assert_eq!(heard, Audience::both(&[]), "{column} = {value}");
        }
        let new_hash = format!("{SET} key_hash = sha256('new') {OF_KEY}");
        let replaced = [Change::Changed(KEY), Change::Created(KEY)];
        assert_eq!(audience.hears(&new_hash).await, Audience::both(&replaced));
        let new_id = format!("{SET} id = '{OTHER}' {OF_KEY}");
        let [listening, polling] = audience.hears(&new_id).await;
        let moved = [Change::Changed(KEY), Change::Created(OTHER)];
        assert_eq!(listening, set(&moved));
        assert_eq!(polling, set(&[&moved[..], &[Change::Changed(OTHER)]].concat()));

        let judged = told.iter().chain(&silent).map(|(column, _)| column.to_string());
        let judged: BTreeSet<_> = judged.chain(["key_hash".to_owned()]).collect();
        let columns = "select column_name::text from information_schema.columns \
                       where table_name = 'api_keys'";
        let columns: Vec<String> =
            query_scalar(columns).fetch_all(&mut audience.prompt).await.unwrap();
        assert_eq!(judged, columns.into_iter().collect(), "a new column matters or does not");
    }

    #[tokio::test]
    async fn keys_that_come_and_go_are_told() {
        let mut audience = Audience::new().await;
        let copy = format!("create temp table copy as select * from api_keys {OF_KEY}");
        execute(&mut audience.prompt, copy).await;

        let deleted = audience.hears(&format!("delete from api_keys {OF_KEY}")).await;
        assert_eq!(deleted, Audience::both(&[Change::Changed(KEY)]));
        let [listening, polling] = audience.hears("insert into api_keys select * from copy").await;
        assert_eq!(listening, set(&[Change::Created(KEY)]));
        assert_eq!(polling, set(&[Change::Changed(KEY), Change::Created(KEY)]));

        let replaced = "begin; delete from api_keys where id = (select id from copy); \
                        insert into api_keys select * from copy; commit";
        let both = [Change::Changed(KEY), Change::Created(KEY)];
        assert_eq!(audience.hears(replaced).await, Audience::both(&both));

        let marker = format!(
            "begin; create temp table marker as select * from api_keys \
            where id = '{MARKER}'; truncate api_keys; insert into api_keys select * from marker; \
            commit"
        );
        let [listening, polling] = audience.hears(&marker).await;
        assert_eq!(listening, set(&[Change::Everything, Change::Created(MARKER)]));
        assert!(polling.contains("Everything"), "{polling:?}");
    }

    #[tokio::test]
    async fn a_change_of_a_plan_is_told_as_one_of_everything() {
        let mut audience = Audience::new().await;
        let everything = Audience::both(&[Change::Everything]);
        let silence = Audience::both(&[]);
        for (sql, expected) in [
            ("insert into api_key_plans values ('a', '[]'), ('b', '[]')", &everything),
            ("update api_key_plans set rate_limits = '[1]' where name = 'a'", &everything),
            ("update api_key_plans set name = 'c' where name = 'b'", &everything),
            ("update api_key_plans set updated_at = now()", &silence),
            ("update api_key_plans set rate_limits = rate_limits, name = name", &silence),
            ("insert into api_key_plans values ('a', '[]') on conflict do nothing", &silence),
            ("begin; delete from api_key_plans; rollback", &silence),
            ("delete from api_key_plans where name = 'unknown'", &silence),
            ("delete from api_key_plans where name = 'a'", &everything),
            ("truncate api_key_plans", &everything),
        ] {
            assert_eq!(audience.hears(sql).await, *expected, "{sql}");
        }
    }

    #[tokio::test]
    async fn what_a_store_does_to_plans_is_told() {
        let mut audience = Audience::new().await;
        let store = store(audience.database.url()).await;
        let limits = RateLimits::unlimited();
        for changes in [&[Change::Everything][..], &[]] {
            store.set_plan("pro", &limits).await.unwrap();
            assert_eq!(audience.hears("select").await, Audience::both(changes));
        }
        store.set_plan("pro", &Quota::per_second(1).unwrap().into()).await.unwrap();
        assert_eq!(audience.hears("select").await, Audience::both(&[Change::Everything]));
        assert!(store.remove_plan("pro").await.unwrap());
        assert_eq!(audience.hears("select").await, Audience::both(&[Change::Everything]));
        assert!(!store.remove_plan("pro").await.unwrap());
        assert_eq!(audience.hears("select").await, Audience::both(&[]));
    }

    #[tokio::test]
    async fn what_is_rolled_back_is_not_told() {
        let mut audience = Audience::new().await;
        let change = format!("{SET} name = 'never' {OF_KEY}");
        for sql in [
            format!("begin; {change}; delete from api_keys; rollback"),
            format!("begin; savepoint s; {change}; rollback to s; commit"),
        ] {
            assert_eq!(audience.hears(&sql).await, Audience::both(&[]), "{sql}");
        }
        // Many changes of a key in one transaction are one.
        let often = format!("begin; {change}; {SET} name = 'often' {OF_KEY}; commit");
        assert_eq!(audience.hears(&often).await, Audience::both(&[Change::Changed(KEY)]));
    }

    #[tokio::test]
    async fn the_use_of_keys_is_not_told() {
        let mut audience = Audience::new().await;
        let store = store(audience.database.url()).await;
        for at in [SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + SOON] {
            store.record_usage(&[Usage::new(KEY, at)].into()).await.unwrap();
        }
        assert_eq!(audience.hears("select").await, Audience::both(&[]));
    }

    #[tokio::test]
    async fn what_a_store_does_is_told() {
        let mut audience = Audience::new().await;
        let store = store(audience.database.url()).await;
        store.insert(&record(OTHER)).await.unwrap();
        let mut changed = store.get(KEY).await.unwrap().unwrap();
        changed.name = Some("changed".into());
        store.update(&changed).await.unwrap();
        store.revoke(OTHER, None).await.unwrap();
        // Revoking twice changes nothing.
        store.revoke(OTHER, None).await.unwrap();
        let told = [Change::Created(OTHER), Change::Changed(KEY), Change::Changed(OTHER)];
        assert_eq!(audience.hears("select").await, Audience::both(&told));
    }

    #[tokio::test]
    async fn no_session_can_talk_a_trigger_out_of_it() {
        let mut audience = Audience::new().await;
        for disguise in [
            "create temp table api_key_changes (like api_key_changes including all)",
            "set search_path = pg_catalog",
            "set search_path = pg_temp, public",
            "set default_transaction_isolation = serializable",
        ] {
            execute(&mut audience.prompt, disguise).await;
            let sql = format!("update public.api_keys set name = '{}' {OF_KEY}", unique());
            execute(&mut audience.prompt, sql).await;
            let plan = format!("insert into public.api_key_plans values ('{}', '[]')", unique());
            execute(&mut audience.prompt, plan).await;
            execute(&mut audience.prompt, "reset search_path").await;
            let told = audience.hears("select").await;
            let expected = Audience::both(&[Change::Changed(KEY), Change::Everything]);
            assert_eq!(told, expected, "{disguise}");
        }
    }

    #[tokio::test]
    async fn who_may_write_keys_need_not_know_of_the_log() {
        let mut audience = Audience::new().await;
        let role = format!("test_role_{:016x}", unique());
        let sql = format!(
            "create role {role}; grant select, update on api_keys to {role}; \
             grant insert on api_key_plans to {role}"
        );
        execute(&mut audience.prompt, sql).await;
        let change = format!(
            "set role {role}; {SET} name = 'by another role' {OF_KEY}; \
             insert into api_key_plans values ('of-another-role', '[]'); reset role"
        );
        let heard = audience.hears(&change).await;
        let right = AssertSqlSafe(format!(
            "select has_table_privilege('{role}', 'api_key_feed', 'select') \
             or has_function_privilege('{role}', 'api_keys_tell()', 'execute') \
             or has_function_privilege('{role}', 'api_key_plans_tell()', 'execute') \
             or has_table_privilege('{role}', 'api_key_changes', 'select')"
        ));
        let right: bool = query_scalar(right).fetch_one(&mut audience.prompt).await.unwrap();
        execute(&mut audience.prompt, format!("drop owned by {role}; drop role {role}")).await;
        assert_eq!(heard, Audience::both(&[Change::Changed(KEY), Change::Everything]));
        assert!(!right, "a trigger takes neither right, and one of them is dangerous");
    }

    #[tokio::test]
    async fn each_schema_has_a_log_of_its_own() {
        let database = Server::shared().database().await;
        let mut prompt = connection(database.url()).await;
        execute(&mut prompt, r#"create schema one; create schema "the ""other""""#).await;
        let options = |schema| {
            let options: PgConnectOptions = database.url().parse().unwrap();
            let path = [("search_path", schema)];
            PgPoolOptions::new().connect_lazy_with(options.options(path))
        };
        let [one, other] = ["one", r#""the ""other""""#].map(options);
        // A second set of tables is created only on purpose.
        for (schema, pool) in [("one", &one), (r#"the "other""#, &other)] {
            furnish(&PgKeyStore::builder().schema(schema).build(pool.clone()).unwrap()).await;
        }
        let poll = |pool: &PgPool| {
            connected(PollingChangeFeed::new(PgKeyStore::new(pool.clone())).interval(OFTEN))
        };
        let (mut of_one, mut of_other) = (poll(&one).await, poll(&other).await);

        execute(&mut prompt, format!("update one.api_keys set name = 'one' {OF_KEY}")).await;
        assert_eq!(told(&mut of_one).await, Change::Changed(KEY));
        execute(&mut prompt, r#"alter schema "the ""other""" rename to renamed"#).await;
        execute(&mut prompt, "delete from renamed.api_keys").await;
        execute(&mut prompt, r#"alter schema renamed rename to "the ""other""""#).await;
        let deleted = [told(&mut of_other).await, told(&mut of_other).await];
        assert_eq!(set(&deleted), set(&[Change::Changed(KEY), Change::Changed(MARKER)]));
        execute(&mut prompt, r#"insert into "the ""other""".api_key_plans values ('a', '[]')"#)
            .await;
        assert_eq!(told(&mut of_other).await, Change::Everything);
        execute(&mut prompt, format!("delete from one.api_keys where id = '{MARKER}'")).await;
        assert_eq!(told(&mut of_one).await, Change::Changed(MARKER));
    }
}

mod listening {
    use super::*;

    #[tokio::test]
    async fn a_change_is_told_at_once() {
        let database = database().await;
        let slow = PgChangeFeed::new(pool(database.url())).heartbeat(Duration::from_secs(300));
        let mut feed = connected(slow).await;
        let mut prompt = connection(database.url()).await;
        for _ in 0..100 {
            touch(&mut prompt, KEY).await;
            assert_eq!(soon(feed.next()).await.unwrap(), Change::Changed(KEY));
        }
    }

    #[tokio::test]
    async fn silence_is_told_with_its_lag() {
        let database = database().await;
        let mut feed = connected(listening(database.url())).await;
        for _ in 0..3 {
            let nothing = soon(feed.next()).await.unwrap();
            assert!(matches!(nothing, Change::Heartbeat { lag } if lag < HEARTBEAT), "{nothing:?}");
        }
    }

    /// The channel of the announcements.
    async fn channel(connection: &mut PgConnection) -> String {
        let channel = query_scalar("select channel from api_key_feed");
        channel.fetch_one(connection).await.unwrap()
    }

    #[tokio::test]
    async fn what_nobody_has_signed_is_junk_and_what_is_not_for_us_is_ignored() {
        let database = database().await;
        let mut feed = connected(listening(database.url())).await;
        let mut prompt = connection(database.url()).await;
        let channel = channel(&mut prompt).await;
        for junk in [
            "''",
            "'junk'",
            "'v1:everything'",
            "'v2:everything'",
            "'v2:everything:' || pg_current_xact_id()",
            "'v2:everything:' || pg_current_xact_id() || ':' || repeat('0', 32)",
            "'v2:changed:09090909-0909-0909-0909-090909090909:1:' || md5('guessed')",
            "'v2:hello:4711'",
            "repeat('v', 7999)",
            "repeat(':', 7999)",
            "repeat(chr(128512), 1999)",
        ] {
            execute(&mut prompt, format!("select pg_notify('{channel}', {junk})")).await;
            assert_eq!(told(&mut feed).await, Change::Unrecognized, "{junk}");
        }
        for ignored in [
            "api_key_announce('hello:somebody else')".to_owned(),
            "pg_notify('tower_api_key', 'v1:everything')".into(),
            format!("pg_notify('{}', 'v1:everything')", channel.to_uppercase()),
            format!("pg_notify('{channel}0', 'v1:everything')"),
        ] {
            execute(&mut prompt, format!("select {ignored}")).await;
        }
        touch(&mut prompt, KEY).await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
    }

    #[tokio::test]
    async fn what_an_operator_announces_is_told() {
        let database = database().await;
        let mut feed = connected(listening(database.url())).await;
        let mut prompt = connection(database.url()).await;
        for (message, change) in [
            ("everything".into(), Change::Everything),
            (format!("changed:{KEY}"), Change::Changed(KEY)),
            (format!("created:{KEY}"), Change::Created(KEY)),
            // A later release may announce changes that this one does not know.
            (format!("suspended:{KEY}"), Change::Everything),
            (format!("changed:{{{KEY}}}"), Change::Everything),
        ] {
            execute(&mut prompt, format!("select api_key_announce('{message}')")).await;
            assert_eq!(told(&mut feed).await, change, "{message}");
        }
    }

    #[tokio::test]
    async fn all_announcements_of_a_transaction_are_told_whatever_comes_before_and_after() {
        let database = database().await;
        let mut feed = connected(listening(database.url())).await;
        let mut prompt = connection(database.url()).await;
        let channel = channel(&mut prompt).await;
        for round in 0..50_u8 {
            let junk = format!("select pg_notify('{channel}', 'junk {round}')");
            execute(&mut prompt, junk.clone()).await;
            let sql = format!(
                "begin; update api_keys set name = 'round {round}'; \
                 update api_keys set key_hash = sha256(id::text::bytea || '{round}'); commit"
            );
            execute(&mut prompt, sql).await;
            execute(&mut prompt, junk).await;
            let mut heard = BTreeSet::new();
            for _ in 0..6 {
                heard.insert(format!("{:?}", told(&mut feed).await));
            }
            let keys = [KEY, MARKER].map(|key| [Change::Changed(key), Change::Created(key)]);
            let expected = set(&[keys.concat(), vec![Change::Unrecognized]].concat());
            assert_eq!(heard, expected);
        }
    }

    /// Heartbeats forget old message numbers: old messages are still not accepted again, and none
    /// is missed.
    #[tokio::test]
    async fn heartbeats_come_in_between_and_nothing_is_missed_or_told_twice() {
        let database = database().await;
        let mut feed = connected(listening(database.url())).await;
        let [mut prompt, mut slow] =
            [connection(database.url()).await, connection(database.url()).await];
        let channel = channel(&mut prompt).await;
        let mut overheard = PgListener::connect(database.url()).await.unwrap();
        overheard.listen(&channel).await.unwrap();
        for _ in 0..5 {
            execute(&mut slow, "begin; select pg_current_xact_id()").await;
            touch(&mut prompt, KEY).await;
            assert_eq!(told(&mut feed).await, Change::Changed(KEY));
            // Two heartbeats: the second one has seen the first one's hello arrive.
            for _ in 0..2 {
                assert!(matches!(soon(feed.next()).await.unwrap(), Change::Heartbeat { .. }));
            }
            let copy = soon(overheard.recv()).await.unwrap().payload().to_owned();
            let replay = format!("select pg_notify('{channel}', '{copy}')");
            execute(&mut prompt, replay).await;
            assert_eq!(told(&mut feed).await, Change::Unrecognized, "{copy}");
            // With a lower number than those forgotten.
            touch(&mut slow, MARKER).await;
            execute(&mut slow, "commit").await;
            assert_eq!(told(&mut feed).await, Change::Changed(MARKER));
            while overheard.next_buffered().is_some() {}
            soon(async {
                while !overheard.recv().await.unwrap().payload().contains(&MARKER.to_string()) {}
            })
            .await;
        }
    }

    /// A session of a role that can connect to the database, and nothing else.
    struct Stranger {
        session: PgConnection,
        role: String,
    }

    impl Stranger {
        async fn new(url: &str) -> Self {
            let (mut session, role) = (connection(url).await, format!("test_{:016x}", unique()));
            execute(&mut session, format!("create role {role}")).await;
            execute(&mut session, format!("set session authorization {role}")).await;
            Self { session, role }
        }

        async fn is_denied(&mut self, sql: &'static str) {
            let error = raw_sql(sql).execute(&mut self.session).await.unwrap_err();
            let code = error.as_database_error().and_then(|error| error.code()).unwrap();
            assert_eq!(code, "42501", "{sql}: {error}");
        }

        async fn go(mut self) {
            execute(&mut self.session, "reset session authorization").await;
            execute(&mut self.session, format!("drop role {}", self.role)).await;
        }
    }

    #[tokio::test]
    async fn a_role_that_may_only_connect_neither_hears_nor_disturbs() {
        let database = database().await;
        let mut feed = connected(listening(database.url())).await;
        let mut prompt = connection(database.url()).await;
        let mut stranger = Stranger::new(database.url()).await;
        stranger.is_denied("select channel from api_key_feed").await;
        stranger.is_denied("select api_key_announce('everything')").await;
        stranger.is_denied("select * from api_key_changes").await;
        let flood = "select pg_notify('tower_api_key', 'v1:everything' || repeat(' ', 7000) || n) \
                     from generate_series(1, 10000) n";
        execute(&mut stranger.session, flood).await;
        touch(&mut prompt, KEY).await;
        let next = soon(feed.next()).await.unwrap();
        let next =
            if matches!(next, Change::Heartbeat { .. }) { told(&mut feed).await } else { next };
        assert_eq!(next, Change::Changed(KEY), "and nothing else was delivered");
        stranger.go().await;
    }

    #[tokio::test]
    async fn who_has_learnt_the_channel_and_hears_everything_can_forge_nothing() {
        let database = database().await;
        let mut feed = connected(listening(database.url())).await;
        let mut prompt = connection(database.url()).await;
        let channel = channel(&mut prompt).await;
        let mut overheard = PgListener::connect(database.url()).await.unwrap();
        overheard.listen(&channel).await.unwrap();
        let mut copies = Vec::new();
        for _ in 0..100 {
            touch(&mut prompt, KEY).await;
            assert_eq!(told(&mut feed).await, Change::Changed(KEY));
            copies.push(soon(overheard.recv()).await.unwrap().payload().to_owned());
        }

        let mut stranger = Stranger::new(database.url()).await;
        let mut forged = 0;
        for copy in &copies {
            let another = copy.replace(&KEY.to_string(), &MARKER.to_string());
            let later = copy.replacen(":changed:", ":created:", 1);
            for payload in [copy, &another, &later, copy] {
                let sql = format!("select pg_notify('{channel}', '{payload}')");
                execute(&mut stranger.session, sql).await;
                forged += 1;
            }
        }
        let random = format!(
            "select pg_notify('{channel}', 'v2:changed:' || gen_random_uuid() || ':' || \
             pg_current_xact_id() || ':' || md5(n::text)) from generate_series(1, 9600) n"
        );
        execute(&mut stranger.session, random).await;
        forged += 9_600;
        touch(&mut prompt, MARKER).await;
        for number in 0..forged {
            assert_eq!(told(&mut feed).await, Change::Unrecognized, "{number}");
        }
        assert_eq!(told(&mut feed).await, Change::Changed(MARKER));
        stranger.go().await;
    }

    #[tokio::test]
    async fn a_trigger_that_does_not_announce_our_changes_is_missed() {
        const DROP: &str = "drop trigger api_keys_tell_update on api_keys;";
        for (sabotage, missing) in [
            ("alter table api_keys disable trigger api_keys_tell".to_owned(), "api_keys_tell "),
            (
                "alter table api_keys enable replica trigger api_keys_tell_update".into(),
                "api_keys_tell_update ",
            ),
            (
                "drop trigger api_keys_tell_truncate on api_keys".into(),
                "api_keys_tell_truncate on api_keys",
            ),
            (
                "alter table api_key_plans disable trigger user".into(),
                "api_key_plans_tell on api_key_plans",
            ),
            // A table of the same name in another schema, from an older copy of the tables.
            (
                format!(
                    "{DROP} create schema other; \
                     create table other.api_keys (like api_keys); \
                     create trigger api_keys_tell_update after update on other.api_keys \
                     for each row execute function api_keys_tell()"
                ),
                "api_keys_tell_update on api_keys",
            ),
            // A trigger of the same name on another table.
            (
                format!(
                    "{DROP} create table decoy (like api_keys); \
                     create trigger api_keys_tell_update after update on decoy \
                     for each row execute function api_keys_tell()"
                ),
                "api_keys_tell_update on api_keys",
            ),
            // A trigger of the same name that calls another function.
            (
                format!(
                    "{DROP} create schema other; \
                     create function other.api_keys_tell() returns trigger language plpgsql \
                     as 'begin return null; end'; \
                     create trigger api_keys_tell_update after update on api_keys \
                     for each row execute function other.api_keys_tell()"
                ),
                "api_keys_tell_update on api_keys",
            ),
            // A trigger of the same name for other statements.
            (
                format!(
                    "{DROP} create trigger api_keys_tell_update after insert on api_keys \
                     for each row execute function api_keys_tell()"
                ),
                "api_keys_tell_update on api_keys",
            ),
        ] {
            let database = database().await;
            let mut feed = connected(listening(database.url())).await;
            execute(&mut connection(database.url()).await, sabotage.clone()).await;
            let error = end(&mut feed).await;
            assert_eq!(error.kind(), StoreErrorKind::Migration, "{sabotage}: {error:?}");
            assert!(format!("{error:?}").contains(missing), "{sabotage}: {error:?}");
            let error = refused(&mut feed).await;
            assert!(error.contains(missing) && error.contains("`migrate`"), "{sabotage}: {error}");
        }
    }

    #[tokio::test]
    async fn a_channel_that_was_replaced_is_noticed() {
        let database = database().await;
        let mut feed = connected(listening(database.url())).await;
        let mut prompt = connection(database.url()).await;
        let replace = "update api_key_feed set channel = default, secret = default";
        execute(&mut prompt, replace).await;
        assert!(format!("{:?}", end(&mut feed).await).contains("another channel"));
        soon(feed.connect()).await.unwrap();
        touch(&mut prompt, KEY).await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
        for lost in ["delete from api_key_feed", "truncate api_key_feed"] {
            let error = raw_sql(lost).execute(&mut prompt).await.unwrap_err();
            assert!(error.to_string().contains("api_key_feed is refused"), "{error}");
        }
    }

    #[tokio::test]
    async fn who_may_not_read_the_channel_is_told_so() {
        let database = database().await;
        let mut prompt = connection(database.url()).await;
        let role = format!("test_{:016x}", unique());
        execute(
            &mut prompt,
            format!("create role {role} login; grant select on api_keys to {role}"),
        )
        .await;
        let mut options: PgConnectOptions = database.url().parse().unwrap();
        options = options.options([("role", &role)]);
        let mut feed = PgChangeFeed::new(PgPoolOptions::new().connect_lazy_with(options));
        let denied = refused(&mut feed).await;
        // Hidden rows must not silence the feed without an error.
        execute(
            &mut prompt,
            format!(
                "grant select on api_key_feed to {role}; \
                 alter table api_key_feed enable row level security"
            ),
        )
        .await;
        let hidden = refused(&mut feed).await;
        execute(&mut prompt, format!("drop owned by {role}; drop role {role}")).await;
        assert!(denied.contains("api_key_feed") && denied.contains("42501"), "{denied}");
        assert!(hidden.contains("row-level security"), "{hidden}");
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_stop_nobody() {
        let server = Server::shared();
        let own = server.database().await;
        let mut admin = connection(own.url()).await;
        let name = format!("test_bytes_{:016x}", unique());
        let create = format!(
            "create database {name} template template0 encoding 'SQL_ASCII' \
             lc_collate 'C' lc_ctype 'C'"
        );
        execute(&mut admin, create).await;
        let url = server.url(&name);
        furnish(&store(&url).await).await;

        let mut feed = connected(listening(&url)).await;
        let mut prompt = connection(&url).await;
        let channel = channel(&mut prompt).await;
        execute(&mut prompt, format!(r"select pg_notify('{channel}', e'v1:\xff')")).await;
        // Either PostgreSQL refuses to send it, or it is sent and refused here.
        let heard = soon(async {
            loop {
                match feed.next().await {
                    Ok(Change::Heartbeat { .. }) => {}
                    heard => return heard,
                }
            }
        });
        if let Ok(heard) = heard.await {
            assert_eq!(heard, Change::Unrecognized);
        } else {
            soon(feed.connect()).await.unwrap();
        }
        touch(&mut prompt, KEY).await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
        drop(feed);
        execute(&mut admin, format!("drop database {name} with (force)")).await;
    }

    #[tokio::test]
    async fn a_connection_that_is_lost_is_noticed_within_two_heartbeats() {
        let database = database().await;
        let proxy = FaultProxy::start(Server::shared().addr()).await;
        let mut prompt = connection(database.url()).await;
        let mut feed = listening(&proxy.url(database.url()));
        for fault in [Fault::Fin, Fault::Rst, Fault::BlackHole, Fault::Refuse] {
            soon(feed.connect()).await.unwrap();
            touch(&mut prompt, KEY).await;
            assert_eq!(told(&mut feed).await, Change::Changed(KEY), "{fault:?}");

            proxy.set(fault).await;
            // Two heartbeats, and the slack of a busy machine.
            let deadline = 2 * HEARTBEAT + Duration::from_secs(2);
            let error = timeout(deadline, end(&mut feed)).await.expect("a verdict in time");
            assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{fault:?}: {error:?}");
            assert!(feed.next().await.is_err(), "{fault:?}");
            proxy.set(Fault::Pass).await;
        }
    }

    #[tokio::test]
    async fn a_backend_that_is_terminated_is_noticed() {
        let database = database().await;
        let url = format!("{}?application_name=feed", database.url());
        let mut feed = connected(listening(&url)).await;
        let mut prompt = connection(database.url()).await;
        let terminate = "select pg_terminate_backend(pid) from pg_stat_activity \
                         where application_name = 'feed' and datname = current_database()";
        execute(&mut prompt, terminate).await;
        end(&mut feed).await;
        soon(feed.connect()).await.unwrap();
        touch(&mut prompt, KEY).await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
    }

    #[tokio::test]
    async fn a_server_that_restarts_is_found_again() {
        let server = Server::start();
        let database = server.database().await;
        furnish(&store(database.url()).await).await;
        let mut listening = connected(listening(database.url())).await;
        let mut polling = connected(polling(database.url())).await;

        server.stop_immediate().await;
        end(&mut listening).await;
        refused(&mut listening).await;
        server.start_again().await;
        // A poll may have missed the outage.
        end(&mut polling).await;
        soon(listening.connect()).await.unwrap();
        soon(polling.connect()).await.unwrap();
        touch(&mut connection(database.url()).await, KEY).await;
        assert_eq!(told(&mut listening).await, Change::Changed(KEY));
        assert_eq!(told(&mut polling).await, Change::Changed(KEY));
    }

    #[tokio::test]
    async fn who_cannot_connect_says_why() {
        let database = database().await;
        let proxy = FaultProxy::start(Server::shared().addr()).await;
        let mut feed = listening(&proxy.url(database.url()));
        for (fault, why) in [(Fault::Refuse, "refused"), (Fault::BlackHole, "took too long")] {
            proxy.set(fault).await;
            let error = refused(&mut feed).await;
            assert!(error.contains("Unavailable") && error.contains(why), "{error}");
        }
        let mut nowhere = listening(&Server::shared().url("there_is_no_such_database"));
        assert!(refused(&mut nowhere).await.contains("does not exist"));
    }

    #[tokio::test]
    async fn who_has_no_triggers_is_not_listened_to() {
        let database = Server::shared().database().await;
        let mut feed = listening(database.url());
        let error = refused(&mut feed).await;
        assert!(error.contains("Migration") && error.contains("`migrate`"), "{error}");

        // As after a restore of the table alone.
        furnish(&store(database.url()).await).await;
        soon(feed.connect()).await.unwrap();
        let disable = "alter table api_keys disable trigger user";
        execute(&mut connection(database.url()).await, disable).await;
        let error = refused(&mut feed).await;
        assert!(error.contains("Migration") && error.contains("triggers"), "{error}");
    }

    #[tokio::test]
    async fn a_channel_that_nothing_arrives_on_is_not_trusted() {
        let database = database().await;
        let mut prompt = connection(database.url()).await;
        let silence = "create or replace function api_key_announce(message text) returns void \
                       language sql as ''";
        execute(&mut prompt, silence).await;
        let error = refused(&mut listening(database.url())).await;
        assert!(error.contains("`PollingChangeFeed`"), "{error}");
    }

    #[tokio::test]
    async fn what_was_never_connected_fails() {
        let error = listening("postgres://nowhere/none").next().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn the_pool_is_left_alone_and_its_end_is_the_feeds() {
        let database = database().await;
        let pool = PgPoolOptions::new().max_connections(1).connect(database.url()).await.unwrap();
        let mut taken = pool.acquire().await.unwrap();
        let mut feed = connected(PgChangeFeed::new(pool.clone()).heartbeat(HEARTBEAT)).await;
        touch(&mut taken, KEY).await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
        drop(taken);
        let found = soon(PgKeyStore::new(pool.clone()).find(&record(KEY).key_hash)).await;
        assert_eq!(found.unwrap().unwrap().id, KEY);
        assert_eq!(pool.size(), 1);

        let (ended, ()) = tokio::join!(end(&mut feed), async { soon(pool.close()).await });
        assert!(format!("{ended:?}").contains("closed"), "{ended:?}");
        assert!(refused(&mut feed).await.contains("closed"));
    }

    #[tokio::test]
    async fn it_may_be_dropped_anywhere() {
        let database = database().await;
        let mut feed = listening(database.url());
        let mut connections = 0;
        for polls in 0.. {
            if polled(polls, feed.connect()).await.is_some() {
                connections += 1;
                polled(polls % 5, feed.next()).await;
                if connections > 10 {
                    break;
                }
            }
        }
        soon(feed.connect()).await.unwrap();
        touch(&mut connection(database.url()).await, KEY).await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
    }

    #[test]
    fn it_may_be_dropped_outside_of_the_runtime() {
        let runtime = || tokio::runtime::Runtime::new().unwrap();
        let (first, second) = (runtime(), runtime());
        let database = first.block_on(database());

        let feed = || async { connected(listening(database.url())).await };
        drop(first.block_on(feed()));
        let outlives_its_runtime = second.block_on(feed());
        let mut halfway = first.block_on(feed());
        for polls in 0..30 {
            let mut connecting = Box::pin(halfway.connect());
            first.block_on(polled(polls, connecting.as_mut()));
            drop(connecting);
            let mut feed = first.block_on(feed());
            let mut waiting = Box::pin(feed.next());
            first.block_on(polled(polls % 3, waiting.as_mut()));
            drop(waiting);
            first.block_on(feed.connect()).unwrap();
            first.spawn(async move { while feed.next().await.is_ok() {} });
        }
        drop(second);
        drop(outlives_its_runtime);
        first.block_on(async { drop(database) });
        drop(first);
    }
}

mod polling {
    use super::*;

    #[tokio::test]
    async fn transactions_that_commit_out_of_order_are_told_once_each() {
        let database = database().await;
        let mut feed = connected(polling(database.url())).await;
        let [mut first, mut second, mut third] = [
            connection(database.url()).await,
            connection(database.url()).await,
            connection(database.url()).await,
        ];
        execute(&mut first, "begin").await;
        touch(&mut first, KEY).await;
        execute(&mut second, "begin").await;
        touch(&mut second, MARKER).await;
        execute(&mut second, "commit").await;
        assert_eq!(told(&mut feed).await, Change::Changed(MARKER));
        // The first transaction holds the horizon back: later changes are read again, and not
        // announced twice.
        for _ in 0..3 {
            assert!(matches!(soon(feed.next()).await.unwrap(), Change::Heartbeat { .. }));
        }
        execute(&mut first, "commit").await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));

        // Of two changes of one key, the one with the lower number may be the later one.
        execute(&mut first, "begin; select pg_current_xact_id()").await;
        touch(&mut third, KEY).await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
        touch(&mut first, KEY).await;
        execute(&mut first, "commit").await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));

        // A creation is announced once, however often the key changes afterwards.
        execute(&mut first, "begin; select pg_current_xact_id()").await;
        store(database.url()).await.insert(&record(OTHER)).await.unwrap();
        let created = [told(&mut feed).await, told(&mut feed).await];
        assert_eq!(created, [Change::Changed(OTHER), Change::Created(OTHER)]);
        for _ in 0..3 {
            touch(&mut second, OTHER).await;
            assert_eq!(told(&mut feed).await, Change::Changed(OTHER));
        }
        touch(&mut first, OTHER).await;
        execute(&mut first, "commit").await;
        assert_eq!(told(&mut feed).await, Change::Changed(OTHER));
        for _ in 0..3 {
            assert!(matches!(soon(feed.next()).await.unwrap(), Change::Heartbeat { .. }));
        }
    }

    #[tokio::test]
    async fn what_was_before_is_not_told() {
        let database = database().await;
        let [mut first, mut second] =
            [connection(database.url()).await, connection(database.url()).await];
        execute(&mut first, "begin; select pg_current_xact_id()").await;
        touch(&mut second, KEY).await;
        store(database.url()).await.insert(&record(OTHER)).await.unwrap();
        let mut feed = connected(polling(database.url())).await;
        let nothing = soon(feed.next()).await.unwrap();
        let Change::Heartbeat { lag } = nothing else { panic!("{nothing:?}") };
        assert!(lag >= OFTEN, "a change right after the last poll would be heard of now: {lag:?}");
        touch(&mut second, OTHER).await;
        assert_eq!(told(&mut feed).await, Change::Changed(OTHER));
        touch(&mut first, KEY).await;
        execute(&mut first, "commit").await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
    }

    #[tokio::test]
    async fn numbers_of_another_server_are_overlooked_until_they_are_replaced() {
        let database = database().await;
        let mut prompt = connection(database.url()).await;
        // As restored from a dump.
        let restored = "update api_key_changes set created_in = '1000000000000000000', \
                        changed_in = '1000000000000000000'";
        execute(&mut prompt, restored).await;
        let mut feed = connected(polling(database.url())).await;
        assert!(matches!(soon(feed.next()).await.unwrap(), Change::Heartbeat { .. }));
        touch(&mut prompt, KEY).await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
    }

    #[tokio::test]
    async fn whatever_writers_do_each_last_change_is_told() {
        let database = database().await;
        let mut feed = connected(polling(database.url())).await;
        let ids: Vec<_> = (20..28).map(|n| KeyId::from_bytes([n; 16])).collect();
        let store = store(database.url()).await;
        for id in &ids {
            store.insert(&record(*id)).await.unwrap();
        }
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (url, ids) = (database.url().to_owned(), ids.clone());
                tokio::spawn(async move {
                    let mut prompt = connection(&url).await;
                    for round in 0..40 {
                        execute(&mut prompt, "begin; select pg_current_xact_id()").await;
                        touch(&mut prompt, ids[(writer * 3 + round) % ids.len()]).await;
                        execute(&mut prompt, "commit").await;
                    }
                    for id in ids.iter().skip(writer).step_by(4) {
                        let delete = format!("delete from api_keys where id = '{id}'");
                        execute(&mut prompt, delete).await;
                    }
                    touch(&mut prompt, MARKER).await;
                })
            })
            .collect();

        // A cache that looks up again every key that is announced.
        let mut cache = std::collections::HashMap::new();
        let follow = async {
            loop {
                match feed.next().await.unwrap() {
                    Change::Changed(id) | Change::Created(id) => {
                        cache.insert(id, store.get(id).await.unwrap());
                    }
                    Change::Heartbeat { .. }
                        if writers.iter().all(|writer| writer.is_finished()) =>
                    {
                        break;
                    }
                    _ => {}
                }
            }
            // One more poll, because the last one may have begun before the last writer ended.
            while !matches!(feed.next().await.unwrap(), Change::Heartbeat { .. }) {}
        };
        soon(follow).await;
        for id in ids {
            assert_eq!(cache[&id], None, "{id} was deleted");
        }
    }

    /// A change log with scripted answers.
    struct Script(Mutex<VecDeque<Changes>>);

    impl ChangeLog for Script {
        async fn changes_since(&self, _: Option<LogPosition>) -> Result<Changes, StoreError> {
            let next = self.0.lock().unwrap().pop_front();
            next.ok_or(StoreError::new(StoreErrorKind::Unavailable))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_is_another_or_went_backwards_is_an_error() {
        let at = |from, server| Changes::new(LogPosition::new(from, server));
        for (then, fails) in [
            (at(100, 7), false),
            (at(101, 7), false),
            (at(99, 7), true),
            (at(100, 8), true),
            (at(101, 6), true),
        ] {
            let script = [at(100, 7), then.clone(), at(100, 7)];
            let mut feed =
                connected(PollingChangeFeed::new(Script(Mutex::new(script.into())))).await;
            let next = feed.next().await;
            assert_eq!(next.is_err(), fails, "{then:?}");
            if fails {
                assert!(feed.next().await.is_err(), "`connect` comes first");
                feed.connect().await.unwrap();
            }
        }
    }

    /// What a poll reports about a replica, and whether the replica is then too far behind.
    async fn polls_of_a_replica(polls: &[(Option<Replica>, bool)]) {
        let changes = |replica| {
            let mut changes = Changes::new(LogPosition::new(100, 7));
            changes.replica = replica;
            changes
        };
        let script = polls.iter().map(|(replica, _)| changes(*replica)).collect();
        let feed = PollingChangeFeed::new(Script(Mutex::new(script)));
        let feed = feed.interval(Duration::from_millis(300)).max_lag(Duration::from_secs(2));
        let mut feed = connected(feed).await;
        for (number, (replica, is_too_old)) in polls.iter().enumerate() {
            if number > 0 {
                feed.next().await.unwrap();
            }
            let staleness = feed.staleness();
            assert_eq!(staleness.is_some(), replica.is_some(), "poll {number}");
            let too_old = staleness.is_some_and(|staleness| staleness.is_too_old);
            assert_eq!(too_old, *is_too_old, "poll {number}: {staleness:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_is_behind_when_it_has_lacked_something_for_too_long() {
        let at = |applied, known| Some(Replica::new(applied, known, Some(Duration::ZERO)));
        // Idle, with everything applied.
        polls_of_a_replica(&[(at(7, Some(7)), false); 60]).await;
        // Busy: never completely up to date, but always up to the state of a moment ago.
        let busy: Vec<_> = (0..60).map(|n| (at(n, Some(n + 1)), false)).collect();
        polls_of_a_replica(&busy).await;
        // Paused while its source continues, or stops after that.
        for end in [|n: u64| 10 + n, |_: u64| 10] {
            let paused: Vec<_> = (1..20).map(|n| (at(7, Some(end(n))), n > 7)).collect();
            let all = [&[(at(7, Some(7)), false)][..], &paused].concat();
            polls_of_a_replica(&all).await;
        }
        // Cut off, then reconnected.
        let mut cut_off = vec![(at(7, Some(7)), false)];
        cut_off.extend((1..20).map(|n| (at(7, None), n > 7)));
        cut_off.extend([(at(8, Some(9)), true), (at(9, Some(9)), false), (None, false)]);
        polls_of_a_replica(&cut_off).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_replica_lacked_before_it_was_asked_is_told_by_its_clock() {
        let at = |known, age| Some(Replica::new(7, known, age));
        let age = |seconds| Some(Duration::from_secs(seconds));
        for (first, is_too_old) in [
            (at(Some(7), age(3_600)), false),
            (at(Some(8), age(1)), false),
            (at(Some(8), age(3)), true),
            (at(Some(8), None), true),
            (at(None, age(3_600)), true),
            (at(None, age(1)), false),
        ] {
            polls_of_a_replica(&[(first, is_too_old)]).await;
        }
        // It goes on without an age that it can tell.
        polls_of_a_replica(&[(at(Some(8), None), true); 2]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn polls_that_are_far_apart_make_no_replica_look_behind() {
        let busy: VecDeque<_> = (0..40)
            .map(|n| {
                let mut changes = Changes::new(LogPosition::new(100, 7));
                changes.replica = Some(Replica::new(n, Some(n + 1), Some(Duration::ZERO)));
                changes
            })
            .collect();
        let feed = PollingChangeFeed::new(Script(Mutex::new(busy)));
        let mut feed = connected(feed.interval(Duration::from_secs(60))).await;
        let begun = Instant::now();
        for _ in 0..30 {
            feed.next().await.unwrap();
            assert!(!feed.staleness().unwrap().is_too_old);
        }
        // Nor are polls more frequent because of it, except the second one.
        assert!(begun.elapsed() >= Duration::from_secs(29 * 60), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_standby_is_polled_and_not_listened_to() {
        let primary = Server::start();
        let database = primary.database().await;
        furnish(&store(database.url()).await).await;
        let standby = primary.standby();
        let url = standby.url(database.url().rsplit('/').next().unwrap());
        let mut feed = connected(polling(&url)).await;
        let error = refused(&mut listening(&url)).await;
        assert!(error.contains("during recovery") && error.contains("25006"), "{error}");

        let [mut first, mut second] =
            [connection(database.url()).await, connection(database.url()).await];
        execute(&mut first, "begin").await;
        touch(&mut first, KEY).await;
        touch(&mut second, MARKER).await;
        assert_eq!(told(&mut feed).await, Change::Changed(MARKER));
        execute(&mut first, "commit").await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
        store(database.url()).await.insert(&record(OTHER)).await.unwrap();
        let created = [told(&mut feed).await, told(&mut feed).await];
        assert_eq!(created, [Change::Changed(OTHER), Change::Created(OTHER)]);
    }

    #[tokio::test]
    async fn behind_pgbouncer_in_transaction_mode_it_is_polled_and_not_listened_to() {
        let database = database().await;
        for connections in [1, 5] {
            let pgbouncer = PgBouncer::start(Server::shared(), "transaction", connections);
            let url = pgbouncer.url(database.url());
            let error = refused(&mut listening(&url)).await;
            // Otherwise a LISTEN would be left on the connection, and notifications would arrive
            // during other queries.
            assert!(error.contains("share a backend") && error.contains("PgBouncer"), "{error}");
            assert!(error.contains("`PollingChangeFeed`"), "{error}");
        }

        let pgbouncer = PgBouncer::start(Server::shared(), "transaction", 1);
        let pool = PgPoolOptions::new().max_connections(1);
        let pool = pool.connect(&pgbouncer.url(database.url())).await.unwrap();
        let feed = PollingChangeFeed::new(PgKeyStore::new(pool)).interval(OFTEN);
        let mut feed = connected(feed).await;
        touch(&mut connection(database.url()).await, KEY).await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
    }

    #[tokio::test]
    async fn behind_pgbouncer_in_session_mode_it_is_listened_to() {
        let database = database().await;
        let pgbouncer = PgBouncer::start(Server::shared(), "session", 5);
        let mut feed = connected(listening(&pgbouncer.url(database.url()))).await;
        touch(&mut connection(database.url()).await, KEY).await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));
    }

    #[tokio::test]
    async fn a_poll_reads_one_range_of_an_index() {
        let database = database().await;
        let mut prompt = connection(database.url()).await;
        let fill = "insert into api_key_changes \
                    select gen_random_uuid(), '1', (1 + n % 500)::text::xid8 \
                    from generate_series(1, 20000) n; analyze api_key_changes";
        execute(&mut prompt, fill).await;
        let store = store(database.url()).await;
        let mut feed = connected(PollingChangeFeed::new(store.clone()).interval(OFTEN)).await;
        touch(&mut prompt, KEY).await;
        assert_eq!(told(&mut feed).await, Change::Changed(KEY));

        // Often enough for PostgreSQL to switch to a generic plan.
        for _ in 0..10 {
            assert!(matches!(soon(feed.next()).await.unwrap(), Change::Heartbeat { .. }));
        }
        let scans = "select seq_scan from pg_stat_user_tables where relname = 'api_key_changes'";
        store.pool().close().await;
        let stats = async {
            loop {
                let sql = "select coalesce(idx_scan, 0) from pg_stat_user_indexes \
                           where indexrelname = 'api_key_changes_by_transaction'";
                let count: i64 = query_scalar(sql).fetch_one(&mut prompt).await.unwrap();
                if count >= 10 {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        soon(stats).await;
        let scans: i64 = query_scalar(scans).fetch_one(&mut prompt).await.unwrap();
        assert!(scans <= 2, "making the indexes scans the table, and nothing else does: {scans}");
    }

    #[tokio::test]
    async fn who_has_no_log_is_told_to_migrate() {
        let database = Server::shared().database().await;
        let error = refused(&mut polling(database.url())).await;
        assert!(error.contains("Migration") && error.contains("`migrate`"), "{error}");
        let sqlite = SqliteKeyStore::in_memory().await.unwrap();
        let error = refused(&mut PollingChangeFeed::new(sqlite)).await;
        assert!(error.contains("Migration") && error.contains("`migrate`"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_hangs_is_an_error() {
        let database = database().await;
        let proxy = FaultProxy::start(Server::shared().addr()).await;
        let mut feed = connected(polling(&proxy.url(database.url()))).await;
        proxy.set(Fault::BlackHole).await;
        let begin = Instant::now();
        assert_eq!(end(&mut feed).await.kind(), StoreErrorKind::Unavailable);
        // The deadline of a poll, and the slack of a busy machine.
        assert!(begin.elapsed() < Duration::from_secs(7), "{:?}", begin.elapsed());
        assert!(feed.next().await.is_err());
    }

    #[tokio::test]
    async fn a_change_is_told_by_the_next_poll() {
        let database = database().await;
        let interval = Duration::from_millis(300);
        let feed = PollingChangeFeed::new(PgKeyStore::new(pool(database.url())));
        let mut feed = connected(feed.interval(interval)).await;
        let mut prompt = connection(database.url()).await;
        for _ in 0..3 {
            touch(&mut prompt, KEY).await;
            let begin = Instant::now();
            assert_eq!(told(&mut feed).await, Change::Changed(KEY));
            assert!(begin.elapsed() < 2 * interval, "{:?}", begin.elapsed());
        }
    }

    #[tokio::test]
    async fn more_changes_than_anybody_would_go_through_are_told_as_one() {
        let database = database().await;
        let mut feed = connected(polling(database.url())).await;
        let many = "insert into api_key_changes select gen_random_uuid(), pg_current_xact_id(), \
                    pg_current_xact_id() from generate_series(1, 10001)";
        execute(&mut connection(database.url()).await, many).await;
        assert_eq!(told(&mut feed).await, Change::Everything);
        assert!(matches!(soon(feed.next()).await.unwrap(), Change::Heartbeat { .. }));
    }

    /// The server recovers without exiting, and reuses sequence numbers that were never written to
    /// disk.
    #[tokio::test]
    async fn a_server_that_recovers_from_a_crash_is_another_one() {
        let server = Server::start();
        let database = server.database().await;
        furnish(&store(database.url()).await).await;
        let log = async || soon(store(database.url()).await.changes_since(None)).await;
        let before = log().await.unwrap().horizon.server;
        let mut victim = connection(database.url()).await;
        let backend: i32 =
            query_scalar("select pg_backend_pid()").fetch_one(&mut victim).await.unwrap();
        let kill = Command::new("sh").args(["-c", &format!("kill -s KILL {backend}")]).status();
        assert!(kill.await.unwrap().success());
        soon(async {
            while raw_sql("select 1").execute(&mut victim).await.is_ok() {}
            // The server is recovering.
            while PgConnection::connect(database.url()).await.is_err() {}
        })
        .await;
        assert_ne!(log().await.unwrap().horizon.server, before);
    }
}

mod sqlite {
    use super::*;

    /// A file with two keys, opened by two processes.
    async fn file() -> (tempfile::TempDir, [SqliteKeyStore; 2]) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/keys.db", folder.path().display());
        let writer = SqliteKeyStore::connect(&url).await.unwrap();
        writer.migrate().await.unwrap();
        writer.insert(&record(KEY)).await.unwrap();
        writer.insert(&record(MARKER)).await.unwrap();
        let reader = SqliteKeyStore::connect(&url).await.unwrap();
        (folder, [writer, reader])
    }

    async fn execute(store: &SqliteKeyStore, sql: impl Into<String>) {
        raw_sql(AssertSqlSafe(sql.into())).execute(store.pool()).await.unwrap();
    }

    const OF_KEY: &str = "where hex(id) = '09090909090909090909090909090909'";
    const TOUCH_MARKER: &str = "update api_keys set name = hex(randomblob(8)) \
                                where hex(id) = '01010101010101010101010101010101'";

    struct Audience {
        _folder: tempfile::TempDir,
        writer: SqliteKeyStore,
        feed: PollingChangeFeed<SqliteKeyStore>,
    }

    impl Audience {
        async fn new() -> Self {
            let (folder, [writer, reader]) = file().await;
            let feed = connected(PollingChangeFeed::new(reader).interval(OFTEN)).await;
            Self { _folder: folder, writer, feed }
        }

        async fn hears(&mut self, sql: impl Into<String>) -> BTreeSet<String> {
            execute(&self.writer, sql).await;
            execute(&self.writer, TOUCH_MARKER).await;
            told_with_marker(&mut self.feed).await
        }
    }

    #[tokio::test]
    async fn a_column_that_matters_is_told_and_no_other() {
        let told = [
            ("consumer_id", "'other'"),
            ("name", "'a name'"),
            ("name", "null"),
            ("scopes", r#"'["reports:read"]'"#),
            ("rate_limits", "'[]'"),
            ("plan", "'pro'"),
            ("plan", "null"),
            ("metadata", r#"'{"plan": "pro"}'"#),
            ("is_active", "0"),
            ("not_before", "1"),
            ("expires_at", "1"),
            ("expires_at", "null"),
            ("revoked_at", "1"),
            ("rotated_at", "1"),
            ("root_id", "randomblob(16)"),
            ("networks", r#"'["10.0.0.0/8"]'"#),
            ("networks", "null"),
            ("tags", r#"'["mobile"]'"#),
            ("tags", "null"),
            ("kind", r#"'publishable', origins = '["https://shop.example"]'"#),
            ("origins", r#"'["https://other.example"]'"#),
        ];
        let silent = [
            ("key_prefix", "'sk_'"),
            ("key_last4", "'abcd'"),
            ("created_at", "1"),
            ("created_by", "'alice'"),
            ("revoked_reason", "'leaked'"),
            ("rotated_from", "randomblob(16)"),
            ("version", "version + 1"),
            ("name", "name"),
            ("id", "id"),
        ];
        let mut audience = Audience::new().await;
        for (columns, expected) in [(&told[..], set(&[Change::Changed(KEY)])), (&silent, set(&[]))]
        {
            for (column, value) in columns {
                let heard =
                    audience.hears(format!("update api_keys set {column} = {value} {OF_KEY}"));
                assert_eq!(heard.await, expected, "{column} = {value}");
            }
        }
        let new_hash = format!("update api_keys set key_hash = randomblob(32) {OF_KEY}");
        let replaced = set(&[Change::Changed(KEY), Change::Created(KEY)]);
        assert_eq!(audience.hears(new_hash).await, replaced);

        let judged = told.iter().chain(&silent).map(|(column, _)| column.to_string());
        let judged: BTreeSet<_> = judged.chain(["key_hash".to_owned()]).collect();
        let columns = query_scalar("select name from pragma_table_info('api_keys')");
        let columns: Vec<String> = columns.fetch_all(audience.writer.pool()).await.unwrap();
        assert_eq!(judged, columns.into_iter().collect(), "a new column matters or does not");
    }

    #[tokio::test]
    async fn keys_that_come_go_and_move_are_told() {
        let mut audience = Audience::new().await;
        let created = set(&[Change::Changed(KEY), Change::Created(KEY)]);
        let changed = set(&[Change::Changed(KEY)]);
        let moved = set(&[Change::Changed(KEY), Change::Changed(OTHER), Change::Created(OTHER)]);
        let copy = format!("create table copy as select * from api_keys {OF_KEY}");
        assert_eq!(audience.hears(copy).await, set(&[]));
        let back = set(&[Change::Changed(OTHER), Change::Changed(KEY), Change::Created(KEY)]);
        let rename = format!("update api_keys set id = unhex('{}') {OF_KEY}", "08".repeat(16));
        for (sql, expected) in [
            (format!("delete from api_keys {OF_KEY}"), &changed),
            ("insert into api_keys select * from copy".into(), &created),
            ("insert or replace into api_keys select * from copy".into(), &created),
            ("insert or ignore into api_keys select * from copy".into(), &set(&[])),
            (rename.clone(), &moved),
            // The hash belonged to the other key, which is deleted without a trigger.
            ("insert or replace into api_keys select * from copy".into(), &back),
            (rename, &moved),
            (format!("begin; delete from api_keys {OF_KEY}; rollback"), &set(&[])),
        ] {
            assert_eq!(audience.hears(&sql).await, *expected, "{sql}");
        }
        assert_eq!(
            audience
                .hears("delete from api_keys where id <> x'01010101010101010101010101010101'")
                .await,
            set(&[Change::Changed(OTHER)])
        );
        audience.hears("insert into api_keys select * from copy").await;
        // The key that had the hash is deleted without a trigger here, too.
        let taken = "update or replace api_keys set key_hash = (select key_hash from copy) \
                     where id = x'01010101010101010101010101010101'";
        let expected = set(&[Change::Changed(KEY), Change::Created(MARKER)]);
        assert_eq!(audience.hears(taken).await, expected);
    }

    #[tokio::test]
    async fn a_change_of_a_plan_is_told_as_one_of_everything() {
        let mut audience = Audience::new().await;
        let (everything, silence) = (set(&[Change::Everything]), set(&[]));
        for (sql, expected) in [
            ("insert into api_key_plans values ('a', '[]', 0), ('b', '[]', 0)", &everything),
            ("update api_key_plans set rate_limits = '[1]' where name = 'a'", &everything),
            ("update api_key_plans set name = 'c' where name = 'b'", &everything),
            ("update api_key_plans set updated_at = 1", &silence),
            ("update api_key_plans set rate_limits = rate_limits, name = name", &silence),
            ("insert or ignore into api_key_plans values ('a', '[]', 0)", &silence),
            ("insert or replace into api_key_plans values ('a', '[]', 0)", &everything),
            ("update or replace api_key_plans set name = 'c' where name = 'a'", &everything),
            ("begin; delete from api_key_plans; rollback", &silence),
            ("delete from api_key_plans where name = 'unknown'", &silence),
            ("delete from api_key_plans", &everything),
        ] {
            assert_eq!(audience.hears(sql).await, *expected, "{sql}");
        }
        let limits = RateLimits::unlimited();
        for expected in [&everything, &silence] {
            audience.writer.set_plan("pro", &limits).await.unwrap();
            assert_eq!(audience.hears("select 1").await, *expected);
        }
        for expected in [&everything, &silence] {
            audience.writer.remove_plan("pro").await.unwrap();
            assert_eq!(audience.hears("select 1").await, *expected);
        }
    }

    #[tokio::test]
    async fn what_a_store_does_is_told_and_use_is_not() {
        let mut audience = Audience::new().await;
        let usage = [Usage::new(KEY, SystemTime::UNIX_EPOCH)];
        audience.writer.record_usage(&usage.into()).await.unwrap();
        assert_eq!(audience.hears("select 1").await, set(&[]));
        audience.writer.insert(&record(OTHER)).await.unwrap();
        audience.writer.revoke(KEY, None).await.unwrap();
        let told = [Change::Created(OTHER), Change::Changed(OTHER), Change::Changed(KEY)];
        assert_eq!(audience.hears("select 1").await, set(&told));
    }

    /// A process that has the file open keeps reading a file that is no longer written.
    #[tokio::test]
    async fn a_file_that_was_replaced_or_deleted_is_behind() {
        for replace in [true, false] {
            let (folder, [writer, reader]) = file().await;
            let feed = PollingChangeFeed::new(reader).interval(OFTEN).max_lag(OFTEN);
            let mut feed = connected(feed).await;
            execute(&writer, TOUCH_MARKER).await;
            assert_eq!(told(&mut feed).await, Change::Changed(MARKER));
            assert_eq!(feed.staleness(), None);
            let path = folder.path().join("keys.db");
            if replace {
                let backup = folder.path().join("backup.db");
                execute(&writer, "vacuum").await;
                execute(&writer, format!("vacuum into '{}'", backup.display())).await;
                assert!(matches!(feed.next().await.unwrap(), Change::Heartbeat { .. }));
                assert_eq!(feed.staleness(), None, "what is rewritten in place is no other file");
                std::fs::rename(backup, path).unwrap();
            } else {
                std::fs::remove_file(path).unwrap();
            }
            let noticed = async {
                while !feed.staleness().is_some_and(|staleness| staleness.is_too_old) {
                    feed.next().await.unwrap();
                }
            };
            soon(noticed).await;
        }
    }

    #[tokio::test]
    async fn a_file_that_was_restored_is_an_error() {
        let mut audience = Audience::new().await;
        execute(&audience.writer, "delete from api_key_changes").await;
        let error = end(&mut audience.feed).await;
        assert!(format!("{error:?}").contains("backwards"), "{error:?}");
    }

    #[tokio::test]
    async fn a_poll_reads_one_range_of_an_index() {
        let (_folder, [store, _]) = file().await;
        let horizon = store.changes_since(None).await.unwrap().horizon;
        let statements = statements::of(store.changes_since(Some(horizon))).await;
        let polls: Vec<_> =
            statements.iter().filter(|sql| sql.contains("api_key_changes")).collect();
        let [poll] = polls[..] else { panic!("one statement reads the log: {statements:?}") };

        let plan = AssertSqlSafe(format!("explain query plan {poll}"));
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(plan).bind(7).fetch_all(store.pool()).await.unwrap();
        let steps: Vec<_> = plan.iter().map(|(.., step)| step.as_str()).collect();
        let index = "api_key_changes USING INDEX api_key_changes_by_number";
        let range = format!("SEARCH {index} (changed_in>?)");
        assert!(steps.iter().any(|step| step.starts_with(&range)), "{steps:?}");
        // The end of the log is a single index look-up, too.
        let reads = steps.iter().filter(|step| step.contains("api_key_changes"));
        let reads: Vec<_> = reads.filter(|step| !step.starts_with(&range)).collect();
        let [end] = reads[..] else { panic!("{steps:?}") };
        assert!(end.starts_with("SEARCH api_key_changes USING"), "{steps:?}");
        assert!(end.contains("INDEX api_key_changes_by_number"), "{steps:?}");
    }

    /// The statements that the driver runs, from its log. The driver runs them on threads of its
    /// own, so the subscriber is that of the process.
    mod statements {
        use std::{
            fmt,
            sync::{LazyLock, Mutex},
        };

        use tracing::{
            Event, Instrument, Metadata, Subscriber,
            field::{Field, Visit},
            span::Id,
        };
        use tracing_subscriber::{
            Layer, layer::Context, layer::SubscriberExt, registry, registry::LookupSpan,
        };

        const SPAN: &str = "statements";

        /// With the span of each.
        static LOG: Mutex<Vec<(Id, String)>> = Mutex::new(Vec::new());

        static SUBSCRIBED: LazyLock<()> = LazyLock::new(|| {
            let subscriber = registry().with(Log);
            tracing::subscriber::set_global_default(subscriber).unwrap();
        });

        /// All statements run by `work`, in full.
        pub(super) async fn of<T>(work: impl Future<Output = T>) -> Vec<String> {
            LazyLock::force(&SUBSCRIBED);
            let span = tracing::info_span!(SPAN);
            let id = span.id().expect("the subscriber of the process takes the span");
            work.instrument(span.clone()).await;
            let log = LOG.lock().unwrap();
            let of_span = log.iter().filter(|(of, _)| *of == id);
            of_span.map(|(_, statement)| statement.clone()).collect()
        }

        struct Log;

        impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
            fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
                metadata.target() == "sqlx::query" || metadata.name() == SPAN
            }

            fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
                let span = context.lookup_current().filter(|span| span.name() == SPAN);
                let Some(span) = span else { return };
                let mut statement = Statement::default();
                event.record(&mut statement);
                // A statement as short as its summary is logged only once.
                let text = if statement.text.trim().is_empty() {
                    statement.summary
                } else {
                    statement.text
                };
                LOG.lock().unwrap().push((span.id(), text));
            }
        }

        #[derive(Default)]
        struct Statement {
            summary: String,
            text: String,
        }

        impl Visit for Statement {
            fn record_str(&mut self, field: &Field, value: &str) {
                match field.name() {
                    "summary" => self.summary = value.to_owned(),
                    "db.statement" => self.text = value.to_owned(),
                    _ => {}
                }
            }

            fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
        }
    }
}
