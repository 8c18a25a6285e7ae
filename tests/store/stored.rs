//! What a database stores of a key: its SHA-256, and nothing from which the key could be restored.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::fmt::Write as _;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tower_api_key::{
    clock::{Clock, SystemClock},
    key::{ApiKey, KeyFormat},
    manage::{Expiry, KeyImport, KeyIssuer, KeyUpdate, NewKey, Rotation},
    rate_limit::RateLimits,
    record::{Scopes, Tags},
    store::{
        ManageKeys,
        port::{CountedUses, HourlyUse, Usage, UsageBatch, UseCounts},
    },
};

const PREFIX: &str = "sk_stored_";
const BODY: usize = 43;

/// Takes a key through every write operation of a store.
async fn lead_a_life(store: &(impl ManageKeys + Clone)) -> ApiKey {
    let issuer = KeyIssuer::new(store.clone(), KeyFormat::new(PREFIX).unwrap());
    let new = NewKey::new("acme", Expiry::Never)
        .name("nightly")
        .created_by("root")
        .scopes(Scopes::parse(["reports:read"]).unwrap())
        .tags(Tags::parse(["mobile"]).unwrap())
        .plan("pro")
        .idempotency_key("one");
    store.set_plan("pro", &RateLimits::unlimited()).await.unwrap();
    let issued = issuer.issue(new).await.unwrap();
    let id = issued.record.id;
    issuer.update(id, KeyUpdate::new().name(Some("weekly".to_owned()))).await.unwrap();
    let now = SystemClock::new().now();
    let hour = HourlyUse::new(id, "acme".into(), now, UseCounts::new(1, 0, 0, 0, 1));
    let counted = CountedUses::new([1; 16], 1, vec![hour]);
    let usage = UsageBatch::new(vec![Usage::new(id, now)]).counted(counted);
    store.record_usage(&usage).await.unwrap();
    import_with_legacy_hash(&issuer).await;
    issuer.rotate(id, Rotation::new()).await.unwrap();
    issuer.revoke(id, Some("rotated")).await.unwrap();
    issued.key
}

async fn import_with_legacy_hash(issuer: &KeyIssuer) {
    let hash = format!("pbkdf2_sha256$1$saltsalt${}", "A".repeat(43)).parse().unwrap();
    let import = KeyImport::of_legacy_hash(hash, NewKey::new("acme", Expiry::Never));
    issuer.import(vec![import]).await.unwrap();
}

/// The secret parts of the key.
fn secrets(key: &ApiKey) -> [(&'static str, Vec<u8>); 3] {
    let key = key.expose_secret();
    let body = &key[PREFIX.len()..][..BODY];
    let random = URL_SAFE_NO_PAD.decode(body).unwrap();
    [("key", key.into()), ("body", body.into()), ("random bytes", random)]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

fn contains(bytes: &[u8], piece: &[u8]) -> bool {
    bytes.windows(piece.len()).any(|window| window == piece)
}

/// The parts of the key that are in `stored`, verbatim or as PostgreSQL and `Debug` print bytes.
fn found(stored: &[u8], key: &ApiKey) -> Vec<&'static str> {
    let is_there = |secret: &[u8]| {
        let decimal = format!("{secret:?}");
        contains(stored, secret)
            || contains(&stored.to_ascii_lowercase(), hex(secret).as_bytes())
            || contains(stored, decimal.trim_matches(['[', ']']).as_bytes())
    };
    let secrets = secrets(key).into_iter();
    secrets.filter(|(_, secret)| is_there(secret)).map(|(name, _)| name).collect()
}

#[test]
fn a_key_that_is_stored_is_noticed() {
    let key = KeyFormat::new(PREFIX).unwrap().generate().unwrap();
    for (name, secret) in secrets(&key) {
        for stored in [secret.clone(), hex(&secret).into_bytes(), format!("{secret:?}").into()] {
            let stored = [b"a page ".as_slice(), &stored, b" of a file"].concat();
            assert!(found(&stored, &key).contains(&name), "{name}");
        }
    }
    assert!(found(key.hash().as_bytes(), &key).is_empty());
}

/// By its id and by its hash, neither of which is the key.
async fn records_do_not_know_the_key(store: &impl ManageKeys, key: &ApiKey) {
    let found_by_hash = store.find(&key.hash()).await.unwrap().unwrap();
    let got_by_id = store.get(found_by_hash.id).await.unwrap().unwrap();
    for record in [found_by_hash, got_by_id] {
        assert_eq!(record.key_hash, key.hash());
        for shown in [format!("{record:?}"), format!("{record:#?}")] {
            assert!(found(shown.as_bytes(), key).is_empty(), "{shown}");
        }
    }
}

mod postgres {
    use sqlx::{AssertSqlSafe, PgPool, query_scalar};
    use tower_api_key::store::PgKeyStore;

    use super::*;
    use crate::servers::postgres::{Database, Server};

    async fn store() -> (Database, PgKeyStore) {
        let database = Server::shared().database().await;
        let store = PgKeyStore::new(database.pool().await);
        store.migrate().await.unwrap();
        (database, store)
    }

    /// Every row of every table, as text.
    async fn everything(pool: &PgPool) -> String {
        let tables = "select quote_ident(tablename) from pg_tables \
                      where schemaname = current_schema() order by 1";
        let tables: Vec<String> = query_scalar(tables).fetch_all(pool).await.unwrap();
        let expected = [
            "_api_key_migrations",
            "api_key_changes",
            "api_key_events",
            "api_key_feed",
            "api_key_first_uses",
            "api_key_legacy_hashes",
            "api_key_notice_positions",
            "api_key_notices",
            "api_key_plans",
            "api_key_requests",
            "api_key_scopes",
            "api_key_tags",
            "api_key_usage",
            "api_key_usage_daily",
            "api_key_usage_hourly",
            "api_key_usage_writers",
            "api_key_webhook_lease",
            "api_key_webhooks",
            "api_keys",
        ];
        // Filled only by endpoints and their worker.
        let of_webhooks = [
            "api_key_first_uses",
            "api_key_notice_positions",
            "api_key_notices",
            "api_key_webhooks",
        ];
        assert_eq!(tables, expected);
        let mut everything = String::new();
        for table in tables {
            let rows = AssertSqlSafe(format!("select t::text from {table} t"));
            let rows: Vec<String> = query_scalar(rows).fetch_all(pool).await.unwrap();
            assert!(!rows.is_empty() || of_webhooks.contains(&&*table), "{table}");
            everything += &rows.concat();
        }
        everything
    }

    #[tokio::test]
    async fn tables_hold_the_hash_and_nothing_else_of_the_key() {
        let (_database, store) = store().await;
        let key = lead_a_life(&store).await;
        let everything = everything(store.pool()).await;
        assert!(everything.contains(&hex(key.hash().as_bytes())), "{everything}");
        assert!(found(everything.as_bytes(), &key).is_empty(), "{everything}");
    }

    #[tokio::test]
    async fn records_come_without_the_key() {
        let (_database, store) = store().await;
        let key = lead_a_life(&store).await;
        records_do_not_know_the_key(&store, &key).await;
    }
}

mod sqlite {
    use std::{fs, path::Path};

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

    /// Name and bytes of every file in the folder.
    fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let files = fs::read_dir(folder).unwrap().map(|file| {
            let path = file.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
        });
        files.collect()
    }

    fn hold_only_the_hash(files: &[(String, Vec<u8>)], key: &ApiKey, holds_hash: &str) {
        for (name, bytes) in files {
            assert_eq!(found(bytes, key), [""; 0], "{name}");
        }
        let (_, bytes) = files.iter().find(|(name, _)| name == holds_hash).unwrap();
        assert!(contains(bytes, key.hash().as_bytes()), "{holds_hash}");
    }

    #[tokio::test]
    async fn the_file_and_its_log_hold_the_hash_and_nothing_else_of_the_key() {
        let (folder, store) = store().await;
        let key = lead_a_life(&store).await;
        hold_only_the_hash(&files(folder.path()), &key, "keys.db-wal");
        // The last connection to close moves the log into the file.
        store.pool().close().await;
        hold_only_the_hash(&files(folder.path()), &key, "keys.db");
    }

    #[tokio::test]
    async fn records_come_without_the_key() {
        let (_folder, store) = store().await;
        let key = lead_a_life(&store).await;
        records_do_not_know_the_key(&store, &key).await;
    }
}
