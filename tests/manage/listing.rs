//! Pages among a million keys in PostgreSQL: each is read along an index and from few blocks,
//! wherever its keys are.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use sqlx::{PgPool, postgres::PgPoolOptions, raw_sql};
use tower_api_key::{
    clock::{Clock, SystemClock},
    record::{KeyId, KeyStatus, Scope},
    store::{
        BucketWidth, EventQuery, KeyQuery, ManageKeys, PgKeyStore, UsageCursor, UsageQuery,
        port::ChangeLog as _,
    },
};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

use crate::servers::postgres::{Database, Server};

/// The maximum number of 8 KiB blocks that the statements of one page read, from memory or disk:
/// ten for each of the 1,500 keys it looks at. Each key is found through up to two indexes.
const MOST_BLOCKS: u64 = 15_000;

/// Every other key belongs to one consumer. Rare keys are among the oldest, at the far end of a
/// list that starts with the newest, and the planner believes they are spread evenly.
const MILLION: &str = "
    alter table api_keys disable trigger user;
    insert into api_keys (id, key_hash, key_prefix, key_last4, consumer_id, scopes, metadata,
                          is_active, created_at, expires_at, not_before, revoked_at, root_id, version,
                          tags)
    select lpad(to_hex(key), 32, '0')::uuid, decode(lpad(to_hex(key), 64, '0'), 'hex'),
           case when key <= 1000 then 'old_' else 'sk_' end,
           'abcd',
           case when key <= 1000 then 'old' when key % 2 = 0 then 'big' else 'c' || key / 100 end,
           case when key <= 1000 then '{read,old}'::text[] else '{read}' end,
           '{}', key > 100,
           now() - (1000001 - key) * interval '1 minute',
           case when key <= 1000 then now() - interval '1 day' + (key % 2) * interval '1 year' end,
           case when key <= 1000 and key % 3 = 0 then now() + interval '1 year' end,
           case when key between 500 and 1000 then now() end,
           lpad(to_hex(key), 32, '0')::uuid, 1,
           case when key <= 1000 then '{usual,old}'::text[] else '{usual}' end
    from generate_series(1, 1000000) as key;
    alter table api_keys enable trigger user;
    insert into api_key_scopes
    select scope, id from api_keys, unnest(scopes) as scope order by scope, id;
    insert into api_key_tags select tag, id from api_keys, unnest(tags) as tag order by tag, id;
    insert into api_key_usage select id, now() from api_keys where key_prefix <> 'old_' order by id;
    insert into api_key_events (action, key_id, consumer_id, actor)
    select 'issued', id, consumer_id, 'operator' from api_keys where key_prefix = 'old_' order by id;
    insert into api_key_events (action, key_id, consumer_id, actor)
    select 'issued', id, consumer_id, 'operator' from api_keys order by id limit 200000 offset 1000;
    analyze api_keys, api_key_scopes, api_key_tags, api_key_usage, api_key_events";

/// The server's log for this connection: the plan of each statement.
#[derive(Clone, Default)]
struct Plans(Arc<Mutex<Vec<u8>>>);

impl Plans {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl Write for Plans {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Plans {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn key(number: u64) -> KeyId {
    KeyId::from_bytes(u128::from(number).to_be_bytes())
}

type Filter = (&'static str, fn(&mut KeyQuery));

/// Every filter.
fn filters() -> Vec<Filter> {
    vec![
        ("of a few", |query| query.consumer_id = Some("c5000".into())),
        ("of the oldest", |query| query.consumer_id = Some("old".into())),
        ("of half", |query| query.consumer_id = Some("big".into())),
        ("active", |query| query.status = Some(KeyStatus::Active)),
        ("inactive", |query| query.status = Some(KeyStatus::Inactive)),
        ("not yet active", |query| query.status = Some(KeyStatus::NotYetActive)),
        ("expired", |query| query.status = Some(KeyStatus::Expired)),
        ("revoked", |query| query.status = Some(KeyStatus::Revoked)),
        ("a common scope", |query| query.scope = Some(Scope::new("read").unwrap())),
        ("a rare scope", |query| query.scope = Some(Scope::new("old").unwrap())),
        ("a common tag", |query| query.tag = Some("usual".into())),
        ("a rare tag", |query| query.tag = Some("old".into())),
        ("a common prefix", |query| query.key_prefix = Some("sk_".into())),
        ("a rare prefix", |query| query.key_prefix = Some("old_".into())),
        ("unused", |query| {
            query.unused_since = Some(SystemClock::new().now() - Duration::from_secs(86_400));
        }),
        ("expiring", |query| query.expires_before = Some(SystemClock::new().now())),
    ]
}

/// No filter, each one, and all pairs.
fn questions() -> Vec<(String, KeyQuery)> {
    let filters = filters();
    let mut questions = vec![("all".to_owned(), KeyQuery::new())];
    for (at, (name, one)) in filters.iter().enumerate() {
        let mut query = KeyQuery::new();
        one(&mut query);
        questions.push(((*name).to_owned(), query.clone()));
        for (other_name, other) in &filters[at + 1..] {
            let mut pair = query.clone();
            other(&mut pair);
            questions.push((format!("{name}, {other_name}"), pair));
        }
    }
    questions
}

async fn pool(url: &str, options: &str) -> PgPool {
    let url = format!("{url}?options={options}");
    PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap()
}

/// The totals of all statements with these plans: each plan begins with its totals.
fn blocks(plans: &str) -> u64 {
    let number = |line: &str, name: &str| {
        let digits = line.split_once(name).map_or("", |(_, rest)| rest);
        let end = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
        digits[..end].parse().unwrap_or(0)
    };
    let of_statement = |plan: &str| -> u64 {
        let line = plan.split_once("Buffers: shared").map_or("", |(_, rest)| rest);
        let line = line.lines().next().unwrap_or_default();
        number(line, " hit=") + number(line, " read=")
    };
    plans.split("Query Text:").skip(1).map(of_statement).sum()
}

/// A store whose statements log their plans, and the log.
async fn explained(database: &Database) -> (PgKeyStore, Plans, DefaultGuard) {
    let plans = Plans::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(plans.clone());
    let subscriber = subscriber.with_env_filter("sqlx::postgres::notice=trace").finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let explained = "-csession_preload_libraries%3Dauto_explain%20\
        -cauto_explain.log_analyze%3Don%20-cauto_explain.log_buffers%3Don%20\
        -cauto_explain.log_timing%3Doff%20-cauto_explain.log_min_duration%3D0%20-cclient_min_messages%3Dlog";
    let explained = PgKeyStore::new(pool(database.url(), explained).await);
    // From here on the store knows the schema of its tables.
    explained.changes_since(None).await.unwrap();
    (explained, plans, guard)
}

#[tokio::test]
async fn a_page_among_a_million_keys_takes_an_index_and_few_blocks() {
    let database = Server::shared().database().await;
    let store = PgKeyStore::new(database.pool().await);
    store.migrate().await.unwrap();
    raw_sql(MILLION).execute(store.pool()).await.unwrap();

    let (explained, plans, _guard) = explained(&database).await;
    let mut most = (0, String::new());
    for (name, mut query) in questions() {
        for after in [None, Some(key(500_000)), Some(key(6_000)), Some(key(700))] {
            query.after = after;
            plans.take();
            explained.list(&query).await.unwrap();
            let plan = plans.take();
            let place = format!("{name} after {after:?}");
            assert!(plan.contains("Index"), "{place}: {plan}");
            assert!(!plan.contains("Seq Scan"), "{place}: {plan}");

            let blocks = blocks(&plan);
            println!("{blocks:>8} blocks  {place}");
            assert!(blocks > 0, "{place}: {plan}");
            most = most.max((blocks, place));
        }
    }
    assert!(most.0 <= MOST_BLOCKS, "{most:?}");

    for (key_id, consumer_id) in [
        (None, None),
        (Some(key(3)), None),
        (None, Some("old".to_owned())),
        (None, Some("big".to_owned())),
    ] {
        let mut query = EventQuery::new();
        (query.key_id, query.consumer_id) = (key_id, consumer_id);
        plans.take();
        assert!(!explained.events(&query).await.unwrap().events.is_empty());
        let plan = plans.take();
        assert!(plan.contains("Index") && !plan.contains("Seq Scan"), "{plan}");
    }
}

/// 400 keys of 40 consumers for 35 days of hours, and 40 keys of 4 consumers for ten years of days. As
/// nodes write them: one hour after the other.
const USE: &str = "
    insert into api_key_usage_hourly
    select lpad(to_hex(key), 32, '0')::uuid, to_timestamp(1764547200 + 3600 * hour), 'c' || key % 40,
           1, 1, 1, 1, 1
    from generate_series(0, 839) as hour, generate_series(1, 400) as key order by hour, key;
    insert into api_key_usage_daily
    select lpad(to_hex(key), 32, '0')::uuid, to_timestamp(86400 * day), 'c' || key % 4, 1, 1, 1, 1, 1
    from generate_series(20000, 23659) as day, generate_series(1, 40) as key order by day, key;
    analyze api_key_usage_hourly, api_key_usage_daily";

#[tokio::test]
async fn use_of_a_key_or_a_consumer_is_read_along_an_index() {
    let database = Server::shared().database().await;
    let store = PgKeyStore::new(database.pool().await);
    store.migrate().await.unwrap();
    raw_sql(USE).execute(store.pool()).await.unwrap();
    let (explained, plans, _guard) = explained(&database).await;

    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let hours = UsageQuery::until(at(1_764_547_200 + 840 * 3600), BucketWidth::Hour);
    let hours = hours.from(at(1_764_547_200));
    let days = UsageQuery::until(at(23_660 * 86_400), BucketWidth::Day).from(at(20_000 * 86_400));
    // The rows of each bucket, and the index. A row is in a block of its own at worst.
    for (query, rows, index) in [
        (hours.clone().key_id(key(7)), 1, "api_key_usage_hourly_pkey"),
        (hours.clone().consumer_id("c7"), 10, "api_key_usage_hourly_of_consumer"),
        (days.clone().key_id(key(7)), 1, "api_key_usage_daily_pkey"),
        (days.consumer_id("c1"), 10, "api_key_usage_daily_of_consumer"),
    ] {
        plans.take();
        let buckets = explained.usage(&query).await.unwrap();
        let expected = if query.width == BucketWidth::Hour { 840 } else { 3660 };
        assert_eq!(buckets.len(), expected, "{query:?}");
        assert!(buckets.iter().all(|bucket| bucket.counts.admitted == rows), "{query:?}");
        let plan = plans.take();
        assert!(plan.contains(index) && !plan.contains("Seq Scan"), "{query:?}: {plan}");
        let most = u64::try_from(rows).unwrap() * u64::try_from(expected).unwrap() * 11 / 10 + 50;
        assert!((1..=most).contains(&blocks(&plan)), "{query:?}: {} blocks", blocks(&plan));
    }

    for after in [UsageCursor::at(hours.from), UsageCursor::after(hours.from, key(300))] {
        plans.take();
        let page = explained.usage_hours(after, hours.to, 1000).await.unwrap();
        assert_eq!(page.len(), 1000);
        let plan = plans.take();
        assert!(plan.contains("api_key_usage_hourly_by_hour"), "{plan}");
        assert!(!plan.contains("Seq Scan") && !plan.contains("Sort"), "{plan}");
        assert!((1..200).contains(&blocks(&plan)), "{} blocks", blocks(&plan));
    }
}
