//! What the holder of a key can make is bounded, in every interface and again when read: quotas,
//! scopes, metadata, keys, rotations, pages and headers. Rows in a database beyond the bounds are
//! not let in, and are shown as they are.

use std::{
    future::Future,
    io::Write,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode, header};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, query, types::Uuid};
use tokio::task::JoinSet;
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, account, admin,
    auth::Worker,
    clock::ManualClock,
    key::KeyHash,
    manage::{
        Actor, Expiry, KeyImport, KeyIssuer, KeyUpdate, ManageError, ManageErrorKind, NewKey,
        Rotation,
    },
    rate_limit::{InvalidQuota, Quota, RateLimits},
    record::{AuditEntry, KeyAction, KeyId, KeyRecord, Metadata, Scope, Scopes},
    store::{
        EventQuery, KeyQuery, ManageKeys, MemoryKeyStore, PgKeyStore, SqliteKeyStore,
        port::KeyTransaction as _,
    },
};
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    admin_client::{Desk, assert_problem},
    app::{Answer, format, send},
    raw_store::ByHand as _,
    servers::postgres::{Database, Server},
};

const READ: &str = "api-keys:read";
const WRITE: &str = "api-keys:write";
const ALL: &str = "api-keys:all-consumers";
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

// Stores.

async fn postgres() -> (Database, PgKeyStore) {
    let database = Server::shared().database().await;
    let store = PgKeyStore::new(database.pool().await);
    store.migrate().await.unwrap();
    (database, store)
}

async fn sqlite() -> SqliteKeyStore {
    let store = SqliteKeyStore::in_memory().await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// Runs each rule on a new store of each kind.
macro_rules! on_every_store {
    ($($rule:ident)*) => {
        mod memory {
            $(
                #[tokio::test]
                async fn $rule() {
                    super::$rule(super::MemoryKeyStore::new()).await;
                }
            )*
        }

        mod every_sqlite {
            $(
                #[tokio::test]
                async fn $rule() {
                    super::$rule(super::sqlite().await).await;
                }
            )*
        }

        mod every_postgres {
            $(
                #[tokio::test]
                async fn $rule() {
                    let (_database, store) = super::postgres().await;
                    super::$rule(store).await;
                }
            )*
        }
    };
}

/// Runs each rule on a new database of each kind.
macro_rules! on_every_database {
    ($($rule:ident)*) => {
        mod in_sqlite {
            $(
                #[tokio::test]
                async fn $rule() {
                    super::$rule(super::sqlite().await).await;
                }
            )*
        }

        mod in_postgres {
            $(
                #[tokio::test]
                async fn $rule() {
                    let (_database, store) = super::postgres().await;
                    super::$rule(store).await;
                }
            )*
        }
    };
}

on_every_store! {
    a_key_has_eight_quotas_together_with_its_plan
    a_plan_that_grew_beyond_that_lets_its_keys_with_quotas_of_their_own_not_in
    metadata_that_were_accepted_are_read_again
    a_caller_makes_as_many_keys_as_its_consumer_may_have
    a_caller_makes_as_many_keys_an_hour_whatever_became_of_them
    of_callers_that_ask_at_once_as_many_get_a_key_as_there_is_room_for
    operators_and_imports_are_not_bound
    a_chain_of_rotations_has_as_many_links_an_hour
    each_of_the_keys_that_there_may_be_can_be_rotated
    a_page_of_keys_has_a_mebibyte
    a_page_of_events_has_a_mebibyte
}

on_every_database! {
    a_row_beyond_the_bounds_is_not_let_in_and_shown_as_it_is
    an_event_that_cannot_be_read_is_shown_as_it_is
    a_row_longer_than_a_page_is_a_page
    a_time_beyond_the_year_9999_is_shown
    a_key_that_was_made_after_its_expiry_is_not_rotated_to_one_without
    a_page_with_rows_that_cannot_be_read_goes_on_behind_them
}

/// A database that the test changes in SQL.
trait Prompt: ManageKeys + Clone {
    /// Sets a column to a text, or to JSON.
    fn set(&self, id: KeyId, column: &str, value: &str) -> impl Future<Output = ()> + Send;

    /// Writes a line into the audit.
    fn tell(
        &self,
        id: KeyId,
        action: &str,
        reason: &str,
        changes: &str,
    ) -> impl Future<Output = ()> + Send;
}

impl Prompt for PgKeyStore {
    async fn set(&self, id: KeyId, column: &str, value: &str) {
        let value_sql = match column {
            "rate_limits" | "metadata" => "$2::jsonb",
            "scopes" => "array(select jsonb_array_elements_text($2::jsonb))",
            "created_at" => "to_timestamp($2::float8 / 1000000)",
            _ => "$2",
        };
        let update =
            AssertSqlSafe(format!("update api_keys set {column} = {value_sql} where id = $1"));
        let update = query(update).bind(Uuid::from_bytes(*id.as_bytes())).bind(value.to_owned());
        assert_eq!(update.execute(self.pool()).await.unwrap().rows_affected(), 1);
    }

    async fn tell(&self, id: KeyId, action: &str, reason: &str, changes: &str) {
        let insert =
            "insert into api_key_events (action, key_id, consumer_id, actor, reason, changes)
            values ($1, $2, 'acme', 'by hand', $3, $4::jsonb)";
        let insert = query(insert)
            .bind(action.to_owned())
            .bind(Uuid::from_bytes(*id.as_bytes()))
            .bind(reason.to_owned())
            .bind(changes.to_owned());
        insert.execute(self.pool()).await.unwrap();
    }
}

impl Prompt for SqliteKeyStore {
    async fn set(&self, id: KeyId, column: &str, value: &str) {
        let update = AssertSqlSafe(format!("update api_keys set {column} = ?2 where id = ?1"));
        let update = query(update).bind(Uuid::from_bytes(*id.as_bytes())).bind(value.to_owned());
        assert_eq!(update.execute(self.pool()).await.unwrap().rows_affected(), 1);
    }

    async fn tell(&self, id: KeyId, action: &str, reason: &str, changes: &str) {
        let insert =
            "insert into api_key_events (action, key_id, consumer_id, actor, reason, changes)
            values (?1, ?2, 'acme', 'by hand', ?3, ?4)";
        let insert = query(insert)
            .bind(action.to_owned())
            .bind(Uuid::from_bytes(*id.as_bytes()))
            .bind(reason.to_owned())
            .bind(changes.to_owned());
        insert.execute(self.pool()).await.unwrap();
    }
}

// A service over a store.

struct Service {
    app: Router,
    /// Acts as an operator.
    issuer: KeyIssuer,
    _worker: Worker,
}

impl Service {
    fn new(store: impl ManageKeys + Clone) -> Self {
        let (auth, worker) = Authenticator::builder(store.clone(), format()).build();
        let issuer = KeyIssuer::new(store, format());
        let app = Router::new()
            .route("/hello", get(async || "hello"))
            .layer(ApiKeyLayer::new(auth.clone()))
            .nest_service("/admin", admin::router(issuer.clone(), auth));
        Self { app, issuer, _worker: worker }
    }

    async fn issue(&self, new: NewKey) -> (String, KeyRecord) {
        let issued = self.issuer.issue(new).await.unwrap();
        (issued.key.expose_secret().to_owned(), issued.record)
    }

    async fn send(&self, key: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {key}"));
        let request = match body {
            None => request.body(Body::empty()),
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(body.to_string())),
        };
        send(self.app.clone(), request.unwrap()).await
    }

    async fn hello(&self, key: &str) -> StatusCode {
        self.send(key, "GET", "/hello", None).await.status
    }
}

fn acme() -> NewKey {
    NewKey::new("acme", Expiry::Never)
}

fn administrator() -> NewKey {
    NewKey::new("ops", Expiry::Never).scopes(Scopes::parse([READ, WRITE, ALL]).unwrap())
}

fn quota(name: impl Into<String>) -> Quota {
    Quota::per_minute(600).unwrap().named(name).unwrap()
}

/// This many quotas, each with its own name.
fn quotas(prefix: &str, count: usize) -> RateLimits {
    RateLimits::new((0..count).map(|at| quota(format!("{prefix}{at}")))).unwrap()
}

fn quotas_json(count: usize) -> Value {
    let quota = |at| json!({ "name": format!("leak{at}"), "limit": 600, "window_ms": 60_000 });
    (0..count).map(quota).collect()
}

/// JSON with this many levels, the outermost of which is an object.
fn nested(levels: usize) -> String {
    format!("{}1{}", r#"{"leak":"#.repeat(levels), "}".repeat(levels))
}

/// The nesting depth of arrays and objects.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut is_text, mut is_escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b'{' | b'[' if !is_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !is_text => depth -= 1,
            _ => {}
        }
    }
    deepest
}

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone());
        let subscriber = subscriber.with_env_filter("tower_api_key=warn").finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[track_caller]
fn is(error: &ManageError, kind: ManageErrorKind, field: Option<&str>) {
    assert_eq!((error.kind(), error.field()), (kind, field), "{error}");
}

/// The issuer, acting for the key.
fn caller(issuer: &KeyIssuer, key: &KeyRecord) -> KeyIssuer {
    let actor = Actor::key(&Consumer::from(key.clone())).required_scope(Scope::new(WRITE).unwrap());
    issuer.by(actor)
}

fn writer() -> NewKey {
    acme().scopes(Scopes::parse([WRITE]).unwrap())
}

// Quotas.

#[tokio::test]
async fn a_ninth_quota_is_refused_over_http() {
    let desk = Desk::new("/admin", admin::router);
    let (caller, _) = desk.key("acme", &[READ, WRITE]).await;
    let mut new = json!({ "consumer_id": "acme", "expires": "1d", "rate_limits": quotas_json(8) });
    let created = desk.send(&caller, "POST", "/api-keys", Some(&new)).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let key = format!("/api-keys/{}", created.json()["id"].as_str().unwrap());
    for count in [9, 100, 600] {
        new["rate_limits"] = quotas_json(count);
        let refused = desk.send(&caller, "POST", "/api-keys", Some(&new)).await;
        assert_problem(&refused, 422, "invalid", Some("/rate_limits"));
        assert!(refused.json()["detail"].as_str().unwrap().contains("at most 8 quotas"));
        let patch = json!({ "rate_limits": quotas_json(count) });
        let refused = desk.send(&caller, "PATCH", &key, Some(&patch)).await;
        assert_problem(&refused, 422, "invalid", Some("/rate_limits"));
    }
    let shown = desk.send(&caller, "GET", &key, None).await.json();
    assert_eq!(shown["rate_limits"].as_array().unwrap().len(), 8);
}

#[tokio::test]
async fn a_ninth_quota_is_refused_in_code() {
    let nine = RateLimits::new((0..9).map(|at| quota(format!("q{at}"))));
    assert_eq!(nine, Err(InvalidQuota::TooMany));
    // Combined from lists that are short enough.
    let sixteen = quotas("a", 8).and(&quotas("b", 8));
    let issuer = KeyIssuer::new(MemoryKeyStore::new(), format());
    let key = issuer.issue(acme()).await.unwrap().record;
    let import = KeyImport::new(KeyHash::from_bytes([1; 32]), acme().rate_limits(sixteen.clone()));
    for error in [
        issuer.issue(acme().rate_limits(sixteen.clone())).await.unwrap_err(),
        issuer
            .update(key.id, KeyUpdate::new().rate_limits(Some(sixteen.clone())))
            .await
            .unwrap_err(),
        issuer.import(vec![import]).await.unwrap_err(),
        issuer.set_plan("pro", &sixteen).await.unwrap_err(),
    ] {
        is(&error, ManageErrorKind::Invalid, Some("rate_limits"));
        assert!(error.to_string().contains("at most 8 quotas"), "{error}");
    }
}

#[tokio::test]
async fn a_window_beyond_400_days_is_refused_over_http() {
    const DAY: u64 = 86_400_000;
    const MOST: u64 = 400 * DAY;
    let desk = Desk::new("/admin", admin::router);
    let (caller, id) = desk.key("acme", &[READ, WRITE]).await;
    let quota = |limit: u64, window: u64, burst: u64| json!([{ "name": "q", "limit": limit, "window_ms": window, "burst": burst }]);
    let sliding =
        |window: u64| json!([{ "name": "q", "limit": 1, "window_ms": window, "sliding": true }]);
    let new =
        |limits: &Value| json!({ "consumer_id": "acme", "expires": "1d", "rate_limits": limits });
    for limits in [quota(10, MOST, 10), sliding(MOST), quota(10, DAY, 4_000)] {
        let created = desk.send(&caller, "POST", "/api-keys", Some(&new(&limits))).await;
        assert_eq!(created.status, 201, "{}", created.text());
    }
    // The use of the last one is remembered for 1,000 days, too.
    for limits in [
        quota(10, MOST + 1, 10),
        sliding(MOST + 1),
        sliding(4_000_000_000_000),
        quota(10, DAY, 10_000),
    ] {
        let refused = desk.send(&caller, "POST", "/api-keys", Some(&new(&limits))).await;
        assert_problem(&refused, 422, "invalid", Some("/rate_limits/0/window_ms"));
        assert!(refused.text().contains("400 days"), "{}", refused.text());
        let patch = json!({ "rate_limits": limits });
        let refused = desk.send(&caller, "PATCH", &format!("/api-keys/{id}"), Some(&patch)).await;
        assert_problem(&refused, 422, "invalid", Some("/rate_limits/0/window_ms"));
    }
}

async fn a_key_has_eight_quotas_together_with_its_plan(store: impl ManageKeys + Clone) {
    let service = Service::new(store);
    let issuer = &service.issuer;
    issuer.set_plan("pro", &quotas("plan", 5)).await.unwrap();
    let on_plan = |own: RateLimits| acme().plan("pro").rate_limits(own);
    let refused = |error: &ManageError| {
        is(error, ManageErrorKind::Invalid, Some("rate_limits"));
        assert!(error.to_string().contains("at most 8 quotas"), "{error}");
    };
    refused(&issuer.issue(on_plan(quotas("own", 4))).await.unwrap_err());
    let import = KeyImport::new(KeyHash::from_bytes([1; 32]), on_plan(quotas("own", 4)));
    let good = KeyImport::new(KeyHash::from_bytes([2; 32]), on_plan(quotas("own", 3)));
    let error = issuer.import(vec![good.clone(), import]).await.unwrap_err();
    refused(&error);
    assert_eq!(error.index(), Some(1));
    let page = issuer.list(&KeyQuery::new()).await.unwrap();
    assert!(page.keys.is_empty(), "nothing was stored");
    issuer.import(vec![good]).await.unwrap();

    // Quotas with the plan's names replace the plan's.
    let same = quotas("plan", 5).and(&quotas("own", 3));
    for own in [quotas("own", 3), same] {
        let (key, record) = service.issue(on_plan(own)).await;
        assert_eq!(service.hello(&key).await, 200);
        let more = KeyUpdate::new().rate_limits(Some(quotas("own", 4)));
        refused(&issuer.update(record.id, more).await.unwrap_err());
        assert_eq!(issuer.get(record.id).await.unwrap().record.version, 1);
        issuer.rotate(record.id, Rotation::new()).await.unwrap();
    }
    // In the other direction.
    let (_, record) = service.issue(acme().rate_limits(quotas("own", 4))).await;
    let update = KeyUpdate::new().plan(Some("pro".into()));
    refused(&issuer.update(record.id, update).await.unwrap_err());
    assert_eq!(issuer.get(record.id).await.unwrap().record.plan, None);
    // The store does not define this plan, so its quotas are unknown here.
    let elsewhere = acme().plan("elsewhere").rate_limits(quotas("own", 8));
    assert_eq!(service.hello(&service.issue(elsewhere).await.0).await, 200);
}

async fn a_plan_that_grew_beyond_that_lets_its_keys_with_quotas_of_their_own_not_in(
    store: impl ManageKeys + Clone,
) {
    let service = Service::new(store);
    let issuer = &service.issuer;
    issuer.set_plan("pro", &quotas("plan", 5)).await.unwrap();
    let (plain, _) = service.issue(acme().plan("pro")).await;
    let (special, record) = service.issue(acme().plan("pro").rate_limits(quotas("own", 3))).await;
    issuer.set_plan("pro", &quotas("plan", 8)).await.unwrap();

    let (log, _guard) = Log::listen();
    assert_eq!(service.hello(&plain).await, 200);
    assert_eq!(log.take(), "");
    for _ in 0..3 {
        assert_eq!(service.hello(&special).await, 503);
    }
    let said = log.take();
    assert!(said.contains("WARN") && said.contains(&record.id.to_string()), "{said}");
    assert!(said.contains("more than 8 quotas together with its plan"), "{said}");
    assert_eq!(said.lines().count(), 1, "once a minute, however often it comes: {said}");
    // Operators see it, and can repair it.
    assert_eq!(issuer.get(record.id).await.unwrap().record.rate_limits, Some(quotas("own", 3)));
    issuer.update(record.id, KeyUpdate::new().rate_limits(None)).await.unwrap();
    assert_eq!(service.hello(&special).await, 200);
}

// Scopes and texts.

#[tokio::test]
async fn a_key_has_at_most_128_scopes() {
    let names = |count: usize| (0..count).map(|at| format!("s{at}")).collect::<Vec<_>>();
    let desk = Desk::new("/admin", admin::router);
    let issuer = &desk.issuer;
    let all = Scopes::parse(names(126).into_iter().chain([READ.into(), WRITE.into()])).unwrap();
    let caller = issuer.issue(acme().scopes(all)).await.unwrap();
    let id = caller.record.id;
    let caller = caller.key.expose_secret();
    for count in [129, 1_000] {
        let scopes = names(count);
        let new = json!({ "consumer_id": "acme", "expires": "1d", "scopes": scopes });
        let refused = desk.send(caller, "POST", "/api-keys", Some(&new)).await;
        assert_problem(&refused, 422, "invalid", Some("/scopes"));
        let patch = json!({ "scopes": scopes });
        let refused = desk.send(caller, "PATCH", &format!("/api-keys/{id}"), Some(&patch)).await;
        assert_problem(&refused, 422, "invalid", Some("/scopes"));

        assert!(Scopes::parse(scopes.clone()).is_err());
        let collected: Scopes = scopes.into_iter().map(|name| Scope::new(name).unwrap()).collect();
        let error = issuer.issue(acme().scopes(collected.clone())).await.unwrap_err();
        is(&error, ManageErrorKind::Invalid, Some("scopes"));
        let error = issuer.update(id, KeyUpdate::new().scopes(collected)).await.unwrap_err();
        is(&error, ManageErrorKind::Invalid, Some("scopes"));
    }
    let new = json!({ "consumer_id": "acme", "expires": "1d", "scopes": names(100) });
    assert_eq!(desk.send(caller, "POST", "/api-keys", Some(&new)).await.status, 201);
}

/// The name of a key's maker comes from code that clients do not see, and is stored with the key.
#[tokio::test]
async fn the_name_of_a_maker_has_at_most_1024_bytes() {
    let issuer = KeyIssuer::new(MemoryKeyStore::new(), format());
    let named = |bytes: usize| issuer.by(Actor::operator("x".repeat(bytes)));
    named(1024).issue(acme()).await.unwrap();
    let error = named(1025).issue(acme()).await.unwrap_err();
    is(&error, ManageErrorKind::Invalid, Some("created_by"));
}

// Metadata.

#[tokio::test]
async fn metadata_beyond_32_levels_or_16_kib_are_refused_over_http() {
    let desk = Desk::new("/admin", admin::router);
    let (caller, id) = desk.key("acme", &[READ, WRITE]).await;
    let key = format!("/api-keys/{id}");
    let new = |metadata: &str| {
        let metadata: Value = serde_json::from_str(metadata).unwrap();
        json!({ "consumer_id": "acme", "expires": "1d", "metadata": metadata })
    };
    let large = json!({ "a": "x".repeat(16 * KIB) }).to_string();
    let digits = json!({ "a": vec![1e300; 100] }).to_string();
    for (metadata, bound) in [
        (nested(33), "32 levels"),
        (nested(64), "32 levels"),
        (nested(126), "32 levels"),
        (large, "16 KiB"),
        (digits, "16 KiB"),
    ] {
        let refused = desk.send(&caller, "POST", "/api-keys", Some(&new(&metadata))).await;
        assert_problem(&refused, 422, "invalid", Some("/metadata"));
        assert!(refused.text().contains(bound), "{}", refused.text());
        let patch = json!({ "metadata": serde_json::from_str::<Value>(&metadata).unwrap() });
        let refused = desk.send(&caller, "PATCH", &key, Some(&patch)).await;
        assert_problem(&refused, 422, "invalid", Some("/metadata"));
        assert!(refused.text().contains(bound), "{}", refused.text());
    }
    // Unparsable JSON is not reported as another error.
    let mut request = desk.request(&caller, "POST", "/api-keys", None);
    let body = format!(r#"{{"consumer_id":"acme","expires":"1d","metadata":{}}}"#, nested(500));
    *request.body_mut() = Body::from(body);
    request.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    let refused = send(desk.app.clone(), request).await;
    assert_problem(&refused, 400, "invalid_body", None);
    assert!(refused.text().contains("deeper than 128 levels"), "{}", refused.text());

    let created = desk.send(&caller, "POST", "/api-keys", Some(&new(&nested(32)))).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let key = format!("/api-keys/{}", created.json()["id"].as_str().unwrap());
    let events = desk.send(&caller, "GET", &format!("{key}/events"), None).await;
    let events = events.json();
    let stored: Value = serde_json::from_str(&nested(32)).unwrap();
    assert_eq!(events["events"][0]["changes"]["metadata"]["to"], stored, "the audit has it");
    assert_eq!(desk.send(&caller, "GET", &key, None).await.json()["metadata"], stored);
}

#[tokio::test]
async fn a_merge_deepens_metadata_step_by_step_to_32_levels() {
    let desk = Desk::new("/admin", admin::router);
    let (caller, id) = desk.key("acme", &[READ, WRITE]).await;
    let key = format!("/api-keys/{id}");
    for levels in 2..=32 {
        let patch = json!({ "metadata": serde_json::from_str::<Value>(&nested(levels)).unwrap() });
        let changed = desk.send(&caller, "PATCH", &key, Some(&patch)).await;
        assert_eq!(changed.status, 200, "{levels}: {}", changed.text());
    }
    let patch = json!({ "metadata": serde_json::from_str::<Value>(&nested(33)).unwrap() });
    let refused = desk.send(&caller, "PATCH", &key, Some(&patch)).await;
    assert_problem(&refused, 422, "invalid", Some("/metadata"));
    // Next to each other, each of which is small.
    for at in 0..3 {
        let patch = json!({ "metadata": { format!("part{at}"): "x".repeat(5 * KIB) } });
        assert_eq!(desk.send(&caller, "PATCH", &key, Some(&patch)).await.status, 200);
    }
    let patch = json!({ "metadata": { "part3": "x".repeat(5 * KIB) } });
    let refused = desk.send(&caller, "PATCH", &key, Some(&patch)).await;
    assert_problem(&refused, 422, "invalid", Some("/metadata"));
    let events = desk.send(&caller, "GET", &format!("{key}/events?limit=1000"), None).await.json();
    let changes = events["events"].as_array().unwrap().iter().map(|event| &event["changes"]);
    assert!(changes.clone().all(Value::is_object), "{events}");
    assert_eq!(changes.count(), 1 + 31 + 3);
}

/// A database formats numbers differently, still within the bounds.
async fn metadata_that_were_accepted_are_read_again(store: impl ManageKeys + Clone) {
    let service = Service::new(store);
    let numbers = |number: &str, count: usize| {
        Metadata::from_json(&format!(r#"{{"a":[{}]}}"#, vec![number; count].join(","))).unwrap()
    };
    let mut metadata = vec![
        numbers("1e16", 700),
        numbers("1e308", 50),
        numbers("5e-324", 45),
        numbers("-1.5e-300", 50),
        numbers("18446744073709551615", 700),
        numbers("-0.0", 3_000),
        numbers("1", 8_000),
        Metadata::from_json(&nested(32)).unwrap(),
        Metadata::new(&json!({ "a": "\u{1}\u{7f}é".repeat(1_500) })).unwrap(),
    ];
    // Up to the last accepted digit.
    let accepted = |count: &usize| {
        Metadata::from_json(&format!(r#"{{"a":[{}]}}"#, vec!["1e16"; *count].join(","))).is_ok()
    };
    let most = (1..3_000).take_while(accepted).last().unwrap();
    metadata.push(numbers("1e16", most));
    for metadata in metadata {
        let (key, record) = service.issue(acme().metadata(metadata)).await;
        assert_eq!(service.hello(&key).await, 200);
        let read = service.issuer.get(record.id).await.unwrap().record.metadata;
        assert!(read.as_json().len() <= Metadata::MAX_LEN);
        // The value as it was read is accepted again.
        service.issuer.update(record.id, KeyUpdate::new().metadata(read)).await.unwrap();
        assert_eq!(service.hello(&key).await, 200);
    }
}

// Rows in a database beyond the bounds.

async fn a_row_beyond_the_bounds_is_not_let_in_and_shown_as_it_is(store: impl Prompt) {
    let (log, _guard) = Log::listen();
    let service = Service::new(store.clone());
    let (admin, _) = service.issue(administrator()).await;
    let (before, first) = service.issue(acme()).await;
    let (bad, record) = service.issue(acme().name("leaky")).await;
    let (after, last) = service.issue(acme()).await;
    let scopes: Vec<_> = (0..129).map(|at| format!("leak{at}")).collect();
    for (column, value, harmless, bound) in [
        ("rate_limits", quotas_json(9).to_string(), "[]", "more than 8 quotas"),
        ("rate_limits", quotas_json(1_000).to_string(), "[]", "more than 8 quotas"),
        ("metadata", nested(33), "{}", "deeper than 32 levels"),
        ("metadata", nested(126), "{}", "deeper than 32 levels"),
        ("metadata", nested(500), "{}", "deeper than 32 levels"),
        ("metadata", json!({ "leak": "x".repeat(17 * KIB) }).to_string(), "{}", "16 KiB"),
        ("scopes", json!(scopes).to_string(), "[]", "more than 128"),
        ("name", "leak".repeat(257), "leaky", "1,024 bytes"),
        ("consumer_id", "leak".repeat(257), "acme", "1,024 bytes"),
    ] {
        store.set(record.id, column, &value).await;
        log.take();
        // A separate service, with an empty cache and no earlier warnings.
        let service = Service::new(store.clone());
        for _ in 0..2 {
            assert_eq!(service.hello(&bad).await, 503, "{column}: {bound}");
        }
        let said = log.take();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("WARN") && said.contains(&record.id.to_string()), "{said}");
        assert!(said.contains(column) && said.contains(bound), "{said}");
        assert!(!said.contains("leak"), "{said}");
        for good in [&before, &after] {
            assert_eq!(service.hello(good).await, 200);
        }

        let list = service.send(&admin, "GET", "/admin/api-keys", None).await;
        assert_eq!(list.status, 200, "{column}: {}", list.text());
        assert!(depth(list.text()) < 64);
        let list = list.json();
        let listed: Vec<_> =
            list["keys"].as_array().unwrap().iter().map(|key| key["id"].clone()).collect();
        for key in [&first, &last] {
            assert!(listed.contains(&json!(key.id.to_string())), "{column}: {list}");
        }
        assert!(!listed.contains(&json!(record.id.to_string())));
        let [row] = &list["invalid"].as_array().unwrap()[..] else { panic!("{list}") };
        assert_eq!(row["id"], json!(record.id.to_string()));
        assert!(row["problem"].as_str().unwrap().contains(bound), "{row}");
        assert!(row["values"][column].as_str().unwrap().contains("leak"), "{column}: {row}");
        assert!(row["values"].get("key_hash").is_none());

        // After the repair the key works again, and no mark is left.
        store.set(record.id, column, harmless).await;
        assert_eq!(Service::new(store.clone()).hello(&bad).await, 200, "{column}");
        let list = service.send(&admin, "GET", "/admin/api-keys", None).await.json();
        assert_eq!((list["keys"].as_array().unwrap().len(), list.get("invalid")), (4, None));
    }
}

async fn a_page_with_rows_that_cannot_be_read_goes_on_behind_them(store: impl Prompt) {
    let service = Service::new(store.clone());
    let (admin, _) = service.issue(administrator()).await;
    let mut ids = Vec::new();
    for at in 0..6 {
        let (_, record) = service.issue(acme()).await;
        if at % 3 != 1 {
            store.set(record.id, "metadata", &nested(40)).await;
        }
        ids.push(record.id.to_string());
    }
    ids.sort();
    for limit in [1, 2, 4] {
        let mut found = Vec::new();
        let mut path = format!("/admin/api-keys?consumer_id=acme&limit={limit}");
        loop {
            let page = service.send(&admin, "GET", &path, None).await;
            assert_eq!(page.status, 200, "{}", page.text());
            let page = page.json();
            let rows = |name: &str| page[name].as_array().cloned().unwrap_or_default();
            let here: Vec<_> = [rows("keys"), rows("invalid")]
                .concat()
                .iter()
                .map(|row| row["id"].as_str().unwrap().to_owned())
                .collect();
            assert!(here.len() <= limit && !here.is_empty());
            found.extend(here);
            assert!(found.len() <= ids.len(), "the pages do not end");
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/admin/api-keys?consumer_id=acme&limit={limit}&cursor={next}");
        }
        found.sort();
        assert_eq!(found, ids, "{limit}");
    }
}

async fn an_event_that_cannot_be_read_is_shown_as_it_is(store: impl Prompt) {
    let service = Service::new(store.clone());
    let (admin, _) = service.issue(administrator()).await;
    let (_, record) = service.issue(acme()).await;
    let path = format!("/admin/api-keys/{}/events", record.id);
    // Too deep for serde_json; readable for serde_json, but not for other parsers once it is inside
    // a page; and fine.
    for (levels, is_text) in [(500, true), (100, true), (60, true), (40, false)] {
        store.tell(record.id, "updated", "by hand", &nested(levels)).await;
        let page = service.send(&admin, "GET", &path, None).await;
        assert_eq!(page.status, 200, "{}", page.text());
        assert!(depth(page.text()) < 64, "{levels}: every parser reads the page");
        let page = page.json();
        let changes = &page["events"][0]["changes"];
        assert_eq!(changes.is_string(), is_text, "{levels}");
        let shown = changes.as_str().map_or_else(|| changes.to_string(), str::to_owned);
        assert_eq!(shown.matches("leak").count(), levels, "all of it is there");
    }
    // An event of a later release, between others.
    store.tell(record.id, "frozen", "it was cold", r#"{"name":{"to":"ice"}}"#).await;
    service.issuer.revoke(record.id, None).await.unwrap();
    let page = service.send(&admin, "GET", &path, None).await;
    assert_eq!(page.status, 200, "{}", page.text());
    let page = page.json();
    assert_eq!(page["events"].as_array().unwrap().len(), 6);
    assert_eq!(page["events"][0]["action"], json!("revoked"));
    let [row] = &page["invalid"].as_array().unwrap()[..] else { panic!("{page}") };
    assert!(row["problem"].as_str().unwrap().contains("action"), "{row}");
    for (column, text) in
        [("action", "frozen"), ("reason", "it was cold"), ("actor", "by hand"), ("changes", "ice")]
    {
        assert!(row["values"][column].as_str().unwrap().contains(text), "{column}: {row}");
    }
    // Also one at a time.
    let mut seen = 0;
    let mut query = EventQuery::new().key_id(record.id).limit(1);
    loop {
        let page = service.issuer.events(&query).await.unwrap();
        seen += page.events.len() + page.invalid.len();
        assert!(seen <= 7, "the pages do not end");
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    assert_eq!(seen, 7);
}

/// An unprintable time must not look like an absent time.
async fn a_time_beyond_the_year_9999_is_shown(store: impl Prompt) {
    let service = Service::new(store.clone());
    let (admin, _) = service.issue(administrator()).await;
    let (_, record) = service.issue(acme()).await;
    let year_10000 = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800);
    let mut changed = record.clone();
    changed.expires_at = Some(year_10000);
    store.update(&changed).await.unwrap();
    let shown = service.send(&admin, "GET", &format!("/admin/api-keys/{}", record.id), None).await;
    assert_eq!(shown.json()["expires_at"], json!("+010000-01-01T00:00:00Z"));
    let sooner = KeyUpdate::new().expiry(Expiry::In(HOUR));
    service.issuer.update(record.id, sooner).await.unwrap();
    let path = format!("/admin/api-keys/{}/events", record.id);
    let events = service.send(&admin, "GET", &path, None).await.json();
    let change = &events["events"][0]["changes"]["expires_at"];
    assert_eq!(change["from"], json!("+010000-01-01T00:00:00Z"), "{events}");
}

async fn a_key_that_was_made_after_its_expiry_is_not_rotated_to_one_without(store: impl Prompt) {
    let service = Service::new(store.clone());
    let (_, record) = service.issue(NewKey::new("acme", Expiry::In(DAY))).await;
    // Set in SQL: so far in the future that its lifetime cannot be computed.
    store.set(record.id, "created_at", "4102444800000000").await;
    let rotated = service.issuer.rotate(record.id, Rotation::new()).await.unwrap().record;
    assert_eq!(rotated.expires_at, record.expires_at);
}

// Keys and rotations.

/// A key created long ago.
fn old(number: u128, change: impl FnOnce(&mut KeyRecord)) -> KeyRecord {
    let long_ago = SystemTime::UNIX_EPOCH + 20_000 * DAY;
    let mut hash = [0; 32];
    hash[..16].copy_from_slice(&number.to_be_bytes());
    let id = KeyId::from_bytes(number.to_be_bytes());
    let mut record = KeyRecord::new(id, KeyHash::from_bytes(hash), "acme", long_ago);
    change(&mut record);
    record
}

async fn a_caller_makes_as_many_keys_as_its_consumer_may_have(store: impl ManageKeys + Clone) {
    let issuer = KeyIssuer::new(store.clone(), format()).max_keys_per_consumer(5);
    let writer = issuer.issue(writer()).await.unwrap().record;
    let caller = caller(&issuer, &writer);
    let long_ago = SystemTime::UNIX_EPOCH + 20_001 * DAY;
    for record in [
        old(1, |_| {}),
        old(2, |key| key.is_active = false),
        // Neither of these counts.
        old(3, |key| key.expires_at = Some(long_ago)),
        old(4, |key| {
            key.revoked_at = Some(long_ago);
        }),
        old(5, |key| key.consumer_id = "other".into()),
    ] {
        store.insert(&record).await.unwrap();
    }
    let short = NewKey::new("acme", Expiry::In(HOUR));
    caller.issue(acme()).await.unwrap();
    caller.issue(short.clone()).await.unwrap();
    for new in [acme(), short] {
        let error = caller.issue(new).await.unwrap_err();
        is(&error, ManageErrorKind::TooManyKeys, None);
        assert!(error.to_string().contains("more than 5 keys"), "{error}");
        assert_eq!(error.retry_after(), None);
    }
    let count = issuer.list(&KeyQuery::new().consumer_id("acme")).await.unwrap().keys.len();
    assert_eq!(count, 7, "nothing of it is left");
    caller.revoke(KeyId::from_bytes(1_u128.to_be_bytes()), None).await.unwrap();
    caller.issue(acme()).await.unwrap();
    is(&caller.issue(acme()).await.unwrap_err(), ManageErrorKind::TooManyKeys, None);
}

async fn a_caller_makes_as_many_keys_an_hour_whatever_became_of_them(
    store: impl ManageKeys + Clone,
) {
    let issuer = KeyIssuer::new(store, format()).max_keys_per_consumer(5);
    let writer = issuer.issue(writer()).await.unwrap().record;
    let caller = caller(&issuer, &writer);
    for at in 0..4 {
        let new = NewKey::new("acme", Expiry::In(Duration::ZERO));
        let key = caller.issue(if at % 2 == 0 { new } else { acme() }).await.unwrap().record;
        caller.revoke(key.id, None).await.unwrap();
    }
    let error = caller.issue(acme()).await.unwrap_err();
    is(&error, ManageErrorKind::TooManyChanges, None);
    assert!(error.retry_after().is_some_and(|wait| !wait.is_zero()));
}

async fn of_callers_that_ask_at_once_as_many_get_a_key_as_there_is_room_for(
    store: impl ManageKeys + Clone,
) {
    const MOST: usize = 8;
    let issuer = KeyIssuer::new(store, format()).max_keys_per_consumer(MOST);
    // Several, because the changes of one caller wait for each other anyway.
    let mut callers = Vec::new();
    for _ in 0..3 {
        let writer = issuer.issue(writer()).await.unwrap().record;
        callers.push(caller(&issuer, &writer));
    }
    let mut asking = JoinSet::new();
    for at in 0..10 {
        let caller = callers[at % callers.len()].clone();
        asking.spawn(async move { caller.issue(acme()).await.map(drop) });
    }
    let answers = asking.join_all().await;
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!(made.len(), MOST - callers.len());
    for refused in refused {
        is(&refused.unwrap_err(), ManageErrorKind::TooManyKeys, None);
    }
    let page = issuer.list(&KeyQuery::new().consumer_id("acme")).await.unwrap();
    assert_eq!(page.keys.len(), MOST);
}

async fn operators_and_imports_are_not_bound(store: impl ManageKeys + Clone) {
    let issuer = KeyIssuer::new(store, format()).max_keys_per_consumer(1).max_rotations_per_hour(1);
    for _ in 0..3 {
        let mut key = issuer.issue(acme()).await.unwrap().record;
        for _ in 0..3 {
            key = issuer.rotate(key.id, Rotation::new()).await.unwrap().record;
        }
    }
    let import = |byte| KeyImport::new(KeyHash::from_bytes([byte; 32]), acme());
    let imported = issuer.import((1..=5).map(import).collect()).await.unwrap();
    assert_eq!(imported.keys.len(), 5);
}

async fn a_chain_of_rotations_has_as_many_links_an_hour(store: impl ManageKeys + Clone) {
    let issuer = KeyIssuer::new(store, format()).max_rotations_per_hour(3);
    let writer = issuer.issue(writer()).await.unwrap().record;
    let caller = caller(&issuer, &writer);
    let mut key = issuer.issue(acme()).await.unwrap().record;
    for grace in [HOUR, Duration::ZERO, DAY] {
        let rotation = Rotation::new().grace(grace);
        key = caller.rotate(key.id, rotation).await.unwrap().record;
    }
    for _ in 0..2 {
        let error = caller.rotate(key.id, Rotation::new()).await.unwrap_err();
        is(&error, ManageErrorKind::TooManyChanges, None);
        assert!(error.to_string().contains("at most 3 times an hour"), "{error}");
        let wait = error.retry_after().unwrap();
        assert!(wait > HOUR / 2 && wait <= HOUR, "{wait:?}");
    }
    assert_eq!(issuer.get(key.id).await.unwrap().record.rotated_at, None, "nothing is left of it");
    // Other chains have bounds of their own, and operators have none.
    let other = issuer.issue(acme()).await.unwrap().record;
    caller.rotate(other.id, Rotation::new()).await.unwrap();
    issuer.rotate(key.id, Rotation::new()).await.unwrap();
}

async fn each_of_the_keys_that_there_may_be_can_be_rotated(store: impl ManageKeys + Clone) {
    let issuer = KeyIssuer::new(store, format()).max_keys_per_consumer(3);
    let writer = issuer.issue(writer()).await.unwrap().record;
    let caller = caller(&issuer, &writer);
    let mut ids = vec![];
    for _ in 0..2 {
        ids.push(caller.issue(acme()).await.unwrap().record.id);
    }
    is(&caller.issue(acme()).await.unwrap_err(), ManageErrorKind::TooManyKeys, None);
    let mut last = None;
    for id in ids.into_iter().chain([writer.id]) {
        last = Some(caller.rotate(id, Rotation::new()).await.unwrap().record.id);
    }
    // Otherwise, keys in their grace period would accumulate.
    let error = caller.rotate(last.unwrap(), Rotation::new()).await.unwrap_err();
    is(&error, ManageErrorKind::TooManyKeys, None);
}

#[tokio::test]
async fn a_consumer_has_a_thousand_keys_over_http() {
    let desk = Desk::new("/admin", admin::router);
    let (caller, _) = desk.key("acme", &[READ, WRITE]).await;
    for _ in 0..998 {
        desk.key("acme", &[]).await;
    }
    let new = json!({ "consumer_id": "acme", "expires": "1d" });
    assert_eq!(desk.send(&caller, "POST", "/api-keys", Some(&new)).await.status, 201);
    let refused = desk.send(&caller, "POST", "/api-keys", Some(&new)).await;
    assert_problem(&refused, 409, "too_many_keys", None);
    assert!(refused.text().contains("more than 1000 keys"), "{}", refused.text());
    assert_eq!(desk.denials().await, 0, "nothing that is not allowed was tried");
}

#[tokio::test]
async fn a_key_rotates_itself_ten_times_an_hour_over_http() {
    let desk = Desk::new("/account", account::router);
    let (mut key, id) = desk.key("acme", &[]).await;
    let mut id = id.to_string();
    for _ in 0..10 {
        let rotated = desk.send(&key, "POST", &format!("/api-keys/{id}/rotate"), None).await;
        assert_eq!(rotated.status, 201, "{}", rotated.text());
        let rotated = rotated.json();
        key = rotated["key"].as_str().unwrap().to_owned();
        id = rotated["id"].as_str().unwrap().to_owned();
    }
    let refused = desk.send(&key, "POST", &format!("/api-keys/{id}/rotate"), None).await;
    assert_problem(&refused, 429, "too_many_changes", None);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3600).contains(&wait), "{wait}");
}

#[tokio::test]
async fn an_hour_later_a_key_is_rotated_again() {
    let clock = ManualClock::default();
    let store = MemoryKeyStore::with_clock(clock.clone());
    let issuer = KeyIssuer::new(store, format()).clock(clock.clone()).max_rotations_per_hour(2);
    let mut key = issuer.issue(writer()).await.unwrap().record;
    for _ in 0..4 {
        for _ in 0..2 {
            key = caller(&issuer, &key).rotate(key.id, Rotation::new()).await.unwrap().record;
        }
        let error = caller(&issuer, &key).rotate(key.id, Rotation::new()).await.unwrap_err();
        is(&error, ManageErrorKind::TooManyChanges, None);
        clock.advance(error.retry_after().unwrap());
    }
}

// Pages.

fn large_metadata(at: usize) -> Metadata {
    Metadata::new(&json!({ "number": at, "text": "x".repeat(15 * KIB) })).unwrap()
}

/// Two hundred keys of 15 KiB each.
async fn large_keys(service: &Service) {
    let import = |at: usize| {
        let mut hash = [7; 32];
        hash[..8].copy_from_slice(&at.to_be_bytes());
        KeyImport::new(KeyHash::from_bytes(hash), acme().metadata(large_metadata(at)))
    };
    service.issuer.import((0..200).map(import).collect()).await.unwrap();
}

/// The ids on all pages, and the number of pages.
async fn all_pages(service: &Service, admin: &str, path: &str, rows: &str) -> (Vec<String>, usize) {
    let (mut found, mut pages, mut cursor) = (Vec::new(), 0, String::new());
    loop {
        let page = service.send(admin, "GET", &format!("{path}limit=1000{cursor}"), None).await;
        assert_eq!(page.status, 200, "{}", page.text());
        // The counted size is about the size that is sent.
        assert!(page.text().len() <= MIB + 64 * KIB, "{}", page.text().len());
        pages += 1;
        assert!(pages <= 1_000, "the pages do not end");
        let page = page.json();
        found.extend(page[rows].as_array().unwrap().iter().map(|row| match &row["id"] {
            Value::String(id) => id.clone(),
            id => format!("{:020}", id.as_u64().unwrap()),
        }));
        let Some(next) = page["next"].as_str() else { return (found, pages) };
        cursor = format!("&cursor={next}");
    }
}

async fn a_page_of_keys_has_a_mebibyte(store: impl ManageKeys + Clone) {
    let service = Service::new(store);
    let (admin, _) = service.issue(administrator()).await;
    large_keys(&service).await;
    for path in ["/admin/api-keys?", "/admin/api-keys?consumer_id=acme&status=active&"] {
        let (found, pages) = all_pages(&service, &admin, path, "keys").await;
        let of_ops = usize::from(!path.contains("acme"));
        assert_eq!(found.len(), 200 + of_ops);
        assert!(found.is_sorted_by(|a, b| a > b), "each once, the newest first");
        assert!((3..=5).contains(&pages), "{pages}");
    }
    // Small rows fill the requested limit.
    let page = service.send(&admin, "GET", "/admin/api-keys?limit=20", None).await.json();
    assert_eq!(page["keys"].as_array().unwrap().len(), 20);
}

async fn a_page_of_events_has_a_mebibyte(store: impl ManageKeys + Clone) {
    let service = Service::new(store);
    let (admin, record) = service.issue(administrator().name("x")).await;
    let path = format!("/admin/api-keys/{}/events?", record.id);
    for at in 0..70 {
        let update = KeyUpdate::new().metadata(large_metadata(at));
        service.issuer.update(record.id, update).await.unwrap();
    }
    let (found, pages) = all_pages(&service, &admin, &path, "events").await;
    assert_eq!(found.len(), 71);
    assert!(found.is_sorted_by(|a, b| a > b), "each once, the newest first");
    assert!((2..=4).contains(&pages), "{pages}");
    let unfiltered = service.issuer.events(&EventQuery::new().limit(1000)).await.unwrap();
    assert!(unfiltered.next.is_some() && unfiltered.events.len() < 50);
}

async fn a_row_longer_than_a_page_is_a_page(store: impl Prompt) {
    let service = Service::new(store.clone());
    let (_, record) = service.issue(acme()).await;
    for reason in ["short", &"x".repeat(2 * MIB), "short"] {
        store.tell(record.id, "updated", reason, "{}").await;
    }
    let mut query = EventQuery::new().key_id(record.id);
    let mut pages = Vec::new();
    loop {
        let page = service.issuer.events(&query).await.unwrap();
        pages.push(page.events.len());
        assert!(pages.len() <= 3, "the pages do not end");
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    assert_eq!(pages, [1, 1, 2]);
}

// Headers.

/// Bytes of all headers, as HTTP/1.1 sends them.
fn header_bytes(answer: &Answer) -> usize {
    answer.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

#[tokio::test]
async fn the_headers_of_eight_quotas_with_the_longest_names_fit_into_2_kib() {
    let service = Service::new(MemoryKeyStore::new());
    let long = |at: usize| {
        let window = Duration::from_secs(400 * 86_400);
        let quota = Quota::per(u32::MAX, window).unwrap();
        quota.named(format!("{at}{}", "q".repeat(63))).unwrap()
    };
    let limits = RateLimits::new((0..8).map(long)).unwrap();
    let ending = NewKey::new("acme", Expiry::In(Duration::from_secs(86_400)));
    for (new, has_date) in [(acme(), false), (ending, true)] {
        let (key, _) = service.issue(new.rate_limits(limits.clone())).await;
        let answer = service.send(&key, "GET", "/hello", None).await;
        assert_eq!(answer.status, 200);
        let policy = answer.header("ratelimit-policy").unwrap();
        assert_eq!(policy.matches(";q=4294967295;w=34560000").count(), 8, "{policy}");
        assert_eq!(answer.header("ratelimit").unwrap().matches(";r=").count(), 8);
        assert_eq!(answer.header("x-api-key-expires").is_some(), has_date);
        assert!(header_bytes(&answer) <= 2 * KIB, "{}", header_bytes(&answer));
    }
}

#[tokio::test]
async fn the_link_to_a_next_page_is_left_out_where_a_proxy_would_refuse_it() {
    let service = Service::new(MemoryKeyStore::new());
    let (admin, _) = service.issue(administrator()).await;
    for consumer in ["short", &"ü".repeat(512)] {
        for _ in 0..2 {
            service.issue(NewKey::new(consumer, Expiry::Never)).await;
        }
        let id: String = consumer.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/admin/api-keys?limit=1&consumer_id={id}");
        let page = service.send(&admin, "GET", &path, None).await;
        assert_eq!(page.status, 200, "{}", page.text());
        assert!(page.json()["next"].is_string());
        assert_eq!(page.header("link").is_some(), consumer == "short");
        assert!(header_bytes(&page) <= 3 * KIB);
    }
    let path = format!("/admin/api-keys?prefix={}", "x".repeat(1025));
    let refused = service.send(&admin, "GET", &path, None).await;
    assert_problem(&refused, 400, "invalid_query", Some("prefix"));
}

#[tokio::test]
async fn a_query_has_at_most_32_parameters_and_is_not_repeated_in_full() {
    let service = Service::new(MemoryKeyStore::new());
    let (admin, _) = service.issue(administrator()).await;
    let path = format!("/admin/api-keys?{}", "a=1&".repeat(33));
    let refused = service.send(&admin, "GET", &path, None).await;
    assert_problem(&refused, 400, "invalid_query", None);
    assert!(refused.text().contains("more than 32"), "{}", refused.text());
    let path = format!("/admin/api-keys?{}=1", "x".repeat(1_000));
    let refused = service.send(&admin, "GET", &path, None).await;
    assert_problem(&refused, 400, "invalid_query", Some(&"x".repeat(64)));
}

#[tokio::test]
async fn counts_are_those_of_the_transaction() {
    async fn counts(store: impl ManageKeys) {
        let mut transaction = store.begin().await.unwrap();
        transaction.insert(&[old(1, |_| {}), old(2, |_| {})]).await.unwrap();
        let query = |limit| {
            let from = KeyId::from_bytes(2_u128.to_be_bytes());
            tower_api_key::store::port::KeyCountQuery::new("acme".into(), from, limit)
        };
        let counted = transaction.count_keys(&query(10)).await.unwrap();
        assert_eq!((counted.live, counted.recent), (2, 1));
        transaction.revoke(&[KeyId::from_bytes(2_u128.to_be_bytes())], None).await.unwrap();
        let counted = transaction.count_keys(&query(10)).await.unwrap();
        assert_eq!((counted.live, counted.recent), (1, 1));
        transaction.insert(&[old(3, |_| {}), old(4, |_| {})]).await.unwrap();
        let counted = transaction.count_keys(&query(2)).await.unwrap();
        assert_eq!((counted.live, counted.recent), (2, 2), "no further than was asked");
        transaction.write_audit(&[AuditEntry::new(KeyAction::Updated, "test")]).await.unwrap();
        transaction.commit().await.unwrap();
    }

    counts(MemoryKeyStore::new()).await;
    counts(sqlite().await).await;
    let (_database, store) = postgres().await;
    counts(store).await;
}
