//! What a look-up costs PostgreSQL: one query and one index, however many keys there are.

#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

mod harness;

use sqlx::{AssertSqlSafe, PgPool, Row, postgres::PgPoolOptions, raw_sql};
use tower_api_key::{
    key::KeyHash,
    store::{KeyStore, PgKeyStore},
};

use crate::harness::postgres::Server;

const MILLION: &str = "
    insert into api_keys (id, key_hash, key_prefix, key_last4, consumer_id, scopes, metadata,
                          is_active, created_at, root_id, version)
    select lpad(to_hex(key), 32, '0')::uuid, decode(lpad(to_hex(key), 64, '0'), 'hex'), 'sk_',
           'abcd', 'consumer-' || key / 10, '{read}', '{}', true, now(), lpad(to_hex(key), 32, '0')::uuid, 1
    from generate_series(1, 1000000) as key;
    analyze api_keys";

/// The statements a connection has prepared, and how often it executed each.
///
/// Asked in simple queries, which prepare nothing.
async fn prepared(pool: &PgPool) -> Vec<(String, i64)> {
    let prepared = "select name, generic_plans + custom_plans as executed \
                    from pg_prepared_statements where not from_sql order by name";
    let rows = raw_sql(prepared).fetch_all(pool).await.unwrap();
    rows.iter().map(|row| (row.get("name"), row.get("executed"))).collect()
}

async fn explain(pool: &PgPool, statement: &str, hash: &str) -> Vec<String> {
    let explain = "explain (analyze, costs off, timing off, summary off) execute";
    let explain = AssertSqlSafe(format!("{explain} {statement}('\\x{hash}')"));
    let lines = raw_sql(explain).fetch_all(pool).await.unwrap();
    lines.iter().map(|line| line.get(0)).collect()
}

#[tokio::test]
async fn a_look_up_is_one_query_of_one_index_among_a_million_keys() {
    let database = Server::shared().database().await;
    PgKeyStore::connect(database.url()).await.unwrap().migrate().await.unwrap();
    // All that is asked through a pool of one connection is asked where the store asks.
    let pool = PgPoolOptions::new().max_connections(1).connect(database.url()).await.unwrap();
    raw_sql(MILLION).execute(&pool).await.unwrap();
    let store = PgKeyStore::new(pool.clone());

    const LOOK_UPS: u32 = 20;
    for key in 1..=LOOK_UPS {
        let mut hash = [0; 32];
        hash[28..].copy_from_slice(&(key * 50_000).to_be_bytes());
        assert!(store.find(&KeyHash::from_bytes(hash)).await.unwrap().is_some());
    }
    let prepared = prepared(&pool).await;
    let [(statement, executed)] = &*prepared else {
        panic!("a look-up is one statement, not {prepared:?}");
    };
    assert_eq!(*executed, i64::from(LOOK_UPS));

    for plan in ["force_custom_plan", "force_generic_plan"] {
        let mode = AssertSqlSafe(format!("set plan_cache_mode = {plan}"));
        raw_sql(mode).execute(&pool).await.unwrap();
        let lines = explain(&pool, statement, &format!("{:064x}", 123_456)).await;
        let [scan, condition] = &*lines else { panic!("one step, not {lines:#?}") };
        let index = "Index Scan using api_keys_key_hash_key on api_keys (actual rows=1";
        assert!(scan.starts_with(index), "{plan}: {scan}");
        assert!(condition.trim().starts_with("Index Cond: (key_hash = "), "{plan}: {condition}");
    }
}
