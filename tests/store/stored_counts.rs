//! Counts of uses in both databases: each batch is added once, whatever happens on its way.

use std::time::{Duration, SystemTime};

use tower_api_key::{
    clock::{Clock as _, SystemClock},
    record::KeyId,
    store::{
        KeyStore, ManageKeys,
        port::{CountedUses, HourlyUse, KeyTransaction as _, UsageBatch, UseCounts},
    },
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// 2026-01-01T22:00:00Z.
fn evening() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_304_800)
}

type Row = (String, i64, i64, i64, i64, i64, i64);

/// What a test reads and does in SQL.
trait Counted: KeyStore + ManageKeys + Clone {
    /// The rows, with times in seconds since 1970.
    async fn hours(&self) -> Vec<Row>;
    async fn days(&self) -> Vec<Row>;
    async fn writers(&self) -> i64;
    async fn sql(&self, sql: &'static str);
}

fn id(key: u64) -> KeyId {
    KeyId::from_bytes(u128::from(key).to_be_bytes())
}

const fn counts(admitted: i64) -> UseCounts {
    UseCounts::new(admitted, 2, 3, 4, 5)
}

fn used(key: u64, hour: SystemTime, admitted: i64) -> HourlyUse {
    HourlyUse::new(id(key), format!("consumer {key}"), hour, counts(admitted))
}

fn batch(writer: u8, sequence: u64, hours: Vec<HourlyUse>) -> UsageBatch {
    UsageBatch::default().counted(CountedUses::new([writer; 16], sequence, hours))
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis() / 1_000).unwrap()
}

fn row(key: u64, begin: SystemTime, admitted: i64, times: i64) -> Row {
    let consumer = format!("consumer {key}");
    (consumer, seconds(begin), admitted, 2 * times, 3 * times, 4 * times, 5 * times)
}

async fn a_batch_is_added_once(store: impl Counted) {
    let first = batch(1, 1, vec![used(1, evening(), 10), used(2, evening(), 20)]);
    for _ in 0..3 {
        store.record_usage(&first).await.unwrap();
    }
    store.record_usage(&batch(2, 1, vec![used(1, evening(), 100)])).await.unwrap();
    store.record_usage(&batch(1, 2, vec![used(1, evening(), 1_000)])).await.unwrap();
    store.record_usage(&first).await.unwrap();
    assert_eq!(store.hours().await, [row(1, evening(), 1_110, 3), row(2, evening(), 20, 1)]);
    assert_eq!(store.writers().await, 2);
}

async fn hours_add_up_to_days_in_utc(store: impl Counted) {
    let [late, later, next] = [evening(), evening() + HOUR, evening() + 2 * HOUR];
    let hours = vec![used(1, late, 1), used(1, later, 2), used(1, next, 4), used(2, next, 8)];
    store.record_usage(&batch(1, 1, hours)).await.unwrap();
    store.record_usage(&batch(1, 2, vec![used(1, next + HOUR, 16)])).await.unwrap();
    let (day, tomorrow) = (evening() - 22 * HOUR, evening() - 22 * HOUR + DAY);
    let days = [row(1, day, 3, 2), row(1, tomorrow, 20, 2), row(2, tomorrow, 8, 1)];
    assert_eq!(store.days().await, days);
    assert_eq!(store.hours().await.len(), 5);
}

async fn corrections_are_added(store: impl Counted) {
    store.record_usage(&batch(1, 1, vec![used(1, evening(), 10)])).await.unwrap();
    let correction = UseCounts::new(-1, 0, 1, 0, -2);
    let correction = HourlyUse::new(id(1), "consumer 1".into(), evening(), correction);
    store.record_usage(&batch(1, 2, vec![correction])).await.unwrap();
    let expected = [("consumer 1".to_owned(), seconds(evening()), 9, 2, 4, 4, 3)];
    assert_eq!(store.hours().await, expected);
    assert_eq!(store.days().await[0].2, 9);
}

async fn old_hours_and_writers_are_deleted_in_bounded_batches_and_days_are_kept(
    store: impl Counted,
) {
    let hours = (0..10).map(|hour| used(1, evening() + hour * HOUR, 1)).collect();
    store.record_usage(&batch(1, 1, hours)).await.unwrap();
    store.record_usage(&batch(2, 1, Vec::new())).await.unwrap();
    let delete = async |hours_before, writers_before, limit| {
        let mut tx = store.begin().await.unwrap();
        let deleted = tx.delete_counted_uses(hours_before, writers_before, limit).await.unwrap();
        tx.commit().await.unwrap();
        deleted
    };
    let (five, none) = (evening() + 5 * HOUR, SystemTime::UNIX_EPOCH);
    assert_eq!(delete(five, none, 3).await, 3);
    assert_eq!(delete(five, none, 3).await, 2);
    assert_eq!(delete(five, none, 3).await, 0);
    let kept: Vec<_> = store.hours().await.iter().map(|row| row.1).collect();
    assert!(kept.len() == 5 && kept.iter().all(|hour| *hour >= seconds(five)), "{kept:?}");
    assert_eq!((store.days().await.len(), store.writers().await), (2, 2));
    let ahead = SystemClock::new().now() + DAY;
    assert_eq!(delete(none, ahead, 1).await, 1);
    assert_eq!((delete(none, ahead, 9).await, store.writers().await), (1, 0));
}

async fn a_count_that_the_database_refuses_holds_up_no_other(store: impl Counted) {
    store.sql("{refuse consumer 5}").await;
    let hours: Vec<_> = (1..=9).map(|key| used(key, evening(), 1)).collect();
    for _ in 0..2 {
        store.record_usage(&batch(1, 1, hours.clone())).await.unwrap();
    }
    let expected: Vec<_> =
        (1..=9).filter(|key| *key != 5).map(|key| row(key, evening(), 1, 1)).collect();
    assert_eq!(store.hours().await, expected);
    assert_eq!(store.days().await.len(), 8, "a row that is refused is in neither table");
}

async fn nodes_that_write_at_once_add_all_of_their_counts(store: impl Counted) {
    const NODES: u8 = 3;
    const BATCHES: u64 = 10;
    let mut nodes = Vec::new();
    for node in 0..NODES {
        let store = store.clone();
        nodes.push(tokio::spawn(async move {
            for sequence in 1..=BATCHES {
                let hours = (1..=200).map(|key| used(key, evening(), 1)).collect();
                let batch = batch(node, sequence, hours);
                // Two tries run at once, as after a time-out.
                let (one, other) =
                    tokio::join!(store.record_usage(&batch), store.record_usage(&batch));
                one.and(other).unwrap();
            }
        }));
    }
    for node in nodes {
        node.await.unwrap();
    }
    let times = i64::from(NODES) * i64::try_from(BATCHES).unwrap();
    let hours = store.hours().await;
    let is_whole = |row: &Row| row.2 == times && row.6 == 5 * times;
    assert!(hours.len() == 200 && hours.iter().all(is_whole), "{:?}", hours.first());
}

macro_rules! each {
    ($($rule:ident)*) => {
        $(#[tokio::test]
        async fn $rule() {
            let (_kept, store) = store().await;
            super::$rule(store).await;
        })*
    };
}

mod postgres {
    use sqlx::{AssertSqlSafe, query_as, query_scalar, raw_sql};
    use tower_api_key::{
        key::KeyFormat,
        manage::{Expiry, KeyIssuer, NewKey},
        store::{PgKeyStore, StoreErrorKind},
    };

    use super::*;
    use crate::{
        servers::{
            postgres::{Database, Server},
            proxy::{Fault, FaultProxy},
        },
        wait::within,
    };

    async fn store() -> (Database, PgKeyStore) {
        let database = Server::shared().database().await;
        let store = PgKeyStore::connect(database.url()).await.unwrap();
        store.migrate().await.unwrap();
        (database, store)
    }

    const ROWS: &str = "select consumer_id, extract(epoch from {time})::bigint, admitted, limited, \
                        forbidden, refused, units from {table} order by key_id, {time}";

    impl Counted for PgKeyStore {
        async fn hours(&self) -> Vec<Row> {
            let sql = ROWS.replace("{time}", "hour").replace("{table}", "api_key_usage_hourly");
            query_as(AssertSqlSafe(sql)).fetch_all(self.pool()).await.unwrap()
        }

        async fn days(&self) -> Vec<Row> {
            let sql = ROWS.replace("{time}", "day").replace("{table}", "api_key_usage_daily");
            query_as(AssertSqlSafe(sql)).fetch_all(self.pool()).await.unwrap()
        }

        async fn writers(&self) -> i64 {
            let count = query_scalar("select count(*) from api_key_usage_writers");
            count.fetch_one(self.pool()).await.unwrap()
        }

        async fn sql(&self, sql: &'static str) {
            let sql = match sql {
                "{refuse consumer 5}" => {
                    "alter table api_key_usage_hourly
                    add constraint picky check (consumer_id <> 'consumer 5')"
                }
                sql => sql,
            };
            raw_sql(sql).execute(self.pool()).await.unwrap();
        }
    }

    each! {
        a_batch_is_added_once
        hours_add_up_to_days_in_utc
        corrections_are_added
        old_hours_and_writers_are_deleted_in_bounded_batches_and_days_are_kept
        a_count_that_the_database_refuses_holds_up_no_other
        nodes_that_write_at_once_add_all_of_their_counts
    }

    #[tokio::test]
    async fn days_are_those_of_utc_whatever_the_time_zone_of_the_session_is() {
        let database = Server::shared().database().await;
        let url = format!("{}{}options=-c%20timezone%3DPacific/Auckland", database.url(), {
            if database.url().contains('?') { '&' } else { '?' }
        });
        let store = PgKeyStore::connect(&url).await.unwrap();
        store.migrate().await.unwrap();
        store.record_usage(&batch(1, 1, vec![used(1, evening(), 1)])).await.unwrap();
        assert_eq!(store.days().await, [row(1, evening() - 22 * HOUR, 1, 1)]);
    }

    #[tokio::test]
    async fn a_batch_whose_answer_was_lost_is_sent_again_and_added_once() {
        let (database, store) = store().await;
        let proxy = FaultProxy::start(Server::shared().addr()).await;
        let node = || PgKeyStore::connect_lazy(&proxy.url(database.url())).unwrap();
        let first = batch(1, 1, vec![used(1, evening(), 1)]);
        node().record_usage(&first).await.unwrap();
        let bytes = proxy.bytes_from_server();

        // The connection ends after ever fewer of the server's bytes, so at every step of a flush.
        let (mut added, mut lost) = (1, 0);
        for missing in (0..=bytes).step_by(11) {
            proxy.set(Fault::CutAfter(bytes - missing)).await;
            let next = batch(1, u64::try_from(added).unwrap() + 1, vec![used(1, evening(), 1)]);
            let node = node();
            let outcome = within(node.record_usage(&next)).await;
            let was_added = store.hours().await[0].2 > added;
            lost += i64::from(outcome.is_err() && was_added);
            proxy.set(Fault::Pass).await;
            within(node.record_usage(&next)).await.unwrap();
            added += 1;
            assert_eq!(store.hours().await, [row(1, evening(), added, added)], "{missing}");
        }
        assert!(lost > 0, "no batch was added without its node's knowledge");
    }

    #[tokio::test]
    async fn a_row_that_is_locked_is_added_when_the_batch_is_sent_again() {
        let (database, store) = store().await;
        let hours: Vec<_> = (1..=9).map(|key| used(key, evening(), 1)).collect();
        store.record_usage(&batch(1, 1, hours.clone())).await.unwrap();
        let pool = database.pool().await;
        let mut other = pool.begin().await.unwrap();
        let lock = "select from api_key_usage_hourly where consumer_id = 'consumer 5' for update";
        raw_sql(lock).execute(&mut *other).await.unwrap();
        let error = within(store.record_usage(&batch(1, 2, hours.clone()))).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
        assert!(store.hours().await.iter().all(|row| row.2 == 1), "all of it or nothing");
        other.rollback().await.unwrap();
        for _ in 0..2 {
            within(store.record_usage(&batch(1, 2, hours.clone()))).await.unwrap();
        }
        assert!(store.hours().await.iter().all(|row| row.2 == 2));
    }

    #[tokio::test]
    async fn use_outlives_its_key_and_is_written_after_its_end() {
        let (_database, store) = store().await;
        let issuer = KeyIssuer::new(store.clone(), KeyFormat::new("sk_").unwrap());
        let key = issuer.issue(NewKey::new("consumer 1", Expiry::Never)).await.unwrap().record.id;
        let hour = |sequence| {
            let used = HourlyUse::new(key, "consumer 1".into(), evening(), counts(1));
            batch(1, sequence, vec![used])
        };
        store.record_usage(&hour(1)).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        tx.delete(&[key]).await.unwrap();
        tx.commit().await.unwrap();
        store.record_usage(&hour(2)).await.unwrap();
        assert_eq!(store.hours().await, [row(1, evening(), 2, 2)]);
    }

    #[tokio::test]
    async fn roles_that_wrote_last_uses_may_add_counts_after_the_migration() {
        let database = Server::shared().database().await;
        let owner = PgKeyStore::connect(database.url()).await.unwrap();
        owner.migrate().await.unwrap();
        let migration = include_str!("../../migrations/postgres/0010_api_key_usage_ledger.sql");
        let role = format!("writes_{}", std::process::id());
        let sql = format!(
            "drop table api_key_usage_hourly, api_key_usage_daily, api_key_usage_writers;
            create role {role};
            grant select on _api_key_migrations, api_keys to {role};
            grant select, insert, update on api_key_usage to {role};
            {migration};
            set role {role}"
        );
        let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1);
        let pool = pool.connect(database.url()).await.unwrap();
        raw_sql(AssertSqlSafe(sql)).execute(&pool).await.unwrap();
        let store = PgKeyStore::new(pool);
        store.record_usage(&batch(1, 1, vec![used(1, evening(), 1)])).await.unwrap();
        assert_eq!(owner.hours().await, [row(1, evening(), 1, 1)]);
        let drop = format!("drop owned by {role}; drop role {role}");
        raw_sql(AssertSqlSafe(drop)).execute(owner.pool()).await.unwrap();
    }
}

mod sqlite {
    use sqlx::{AssertSqlSafe, query_as, query_scalar, raw_sql};
    use tempfile::TempDir;
    use tower_api_key::store::SqliteKeyStore;

    use super::*;

    async fn store() -> (TempDir, SqliteKeyStore) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/keys.db", folder.path().display());
        let store = SqliteKeyStore::connect(&url).await.unwrap();
        store.migrate().await.unwrap();
        (folder, store)
    }

    const ROWS: &str = "select consumer_id, {time} / 1000000, admitted, limited, forbidden, \
                        refused, units from {table} order by key_id, {time}";

    impl Counted for SqliteKeyStore {
        async fn hours(&self) -> Vec<Row> {
            let sql = ROWS.replace("{time}", "hour").replace("{table}", "api_key_usage_hourly");
            query_as(AssertSqlSafe(sql)).fetch_all(self.pool()).await.unwrap()
        }

        async fn days(&self) -> Vec<Row> {
            let sql = ROWS.replace("{time}", "day").replace("{table}", "api_key_usage_daily");
            query_as(AssertSqlSafe(sql)).fetch_all(self.pool()).await.unwrap()
        }

        async fn writers(&self) -> i64 {
            let count = query_scalar("select count(*) from api_key_usage_writers");
            count.fetch_one(self.pool()).await.unwrap()
        }

        async fn sql(&self, sql: &'static str) {
            let sql = match sql {
                "{refuse consumer 5}" => {
                    "create trigger picky before insert on api_key_usage_hourly
                    when new.consumer_id = 'consumer 5'
                    begin select raise(abort, 'refused'); end"
                }
                sql => sql,
            };
            raw_sql(sql).execute(self.pool()).await.unwrap();
        }
    }

    each! {
        a_batch_is_added_once
        hours_add_up_to_days_in_utc
        corrections_are_added
        old_hours_and_writers_are_deleted_in_bounded_batches_and_days_are_kept
        a_count_that_the_database_refuses_holds_up_no_other
        nodes_that_write_at_once_add_all_of_their_counts
    }
}
