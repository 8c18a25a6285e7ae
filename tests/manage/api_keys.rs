//! `ApiKeys`: on every store, the parts it hands out belong together, and it says what it could not
//! start.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode, header::AUTHORIZATION};
use serde_json::json;
use sqlx::raw_sql;
use tempfile::TempDir;
use tower::ServiceExt as _;
use tower_api_key::{
    ApiKeys, ApiKeysBuilder, StartError, StartErrorKind,
    auth::{self, Event, FeedHealth, RejectionKind, StoreHealth},
    clock::ManualClock,
    key::KeyFormat,
    manage::{Expiry, Issued, NewKey},
    rate_limit::{Plans, Quota, RateLimits},
    record::Scopes,
    store::{MemoryKeyStore, PgKeyStore, PollingChangeFeed},
};
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    app::{PREFIX, text},
    servers::postgres::{Database, Server},
    wait::{eventually, within},
};

const HOUR: Duration = Duration::from_secs(3600);

/// A place for keys, opened any number of times.
enum Place {
    Memory(MemoryKeyStore),
    Sqlite(TempDir),
    Postgres(Database),
}

impl Place {
    async fn all() -> [Self; 3] {
        [
            Self::Memory(MemoryKeyStore::new()),
            Self::Sqlite(tempfile::tempdir().unwrap()),
            Self::Postgres(Server::shared().database().await),
        ]
    }

    fn open(&self) -> ApiKeysBuilder {
        match self {
            Self::Memory(store) => ApiKeys::builder(store.clone(), KeyFormat::new(PREFIX).unwrap()),
            Self::Sqlite(folder) => {
                ApiKeys::open(&format!("sqlite:{}/keys.db", folder.path().display()), PREFIX)
            }
            Self::Postgres(database) => ApiKeys::open(database.url(), PREFIX),
        }
    }
}

/// A service behind the layer of `keys`.
fn app(keys: &ApiKeys) -> Router {
    Router::new().route("/", get(async || "hello")).layer(keys.layer())
}

async fn status(app: &Router, key: &Issued) -> StatusCode {
    let request = Request::get("/").header(AUTHORIZATION, format!("Bearer {}", text(key)));
    let request = request.body(Body::empty()).unwrap();
    within(app.clone().oneshot(request)).await.unwrap().status()
}

async fn issue(keys: &ApiKeys) -> Issued {
    keys.issuer().issue(NewKey::new("acme", Expiry::Never)).await.unwrap()
}

/// Waits until the feed of `keys` is connected.
async fn is_live(keys: &ApiKeys) {
    let is_live = async || matches!(keys.health().feed, FeedHealth::Live { .. });
    eventually("the change feed", is_live).await;
}

#[tokio::test]
async fn a_key_that_the_issuer_revokes_is_refused_at_once_with_or_without_a_feed() {
    for place in Place::all().await {
        for builder in [place.open(), place.open().without_change_feed()] {
            let keys = builder.await.unwrap();
            let (app, key) = (app(&keys), issue(&keys).await);
            assert_eq!(status(&app, &key).await, StatusCode::OK);
            keys.issuer().revoke(key.record.id, None).await.unwrap();
            assert_eq!(status(&app, &key).await, StatusCode::UNAUTHORIZED);
            keys.stop().await;
        }
    }
}

#[tokio::test]
async fn stopping_writes_the_last_uses() {
    for place in Place::all().await {
        let rarely = place.open().configure_authenticator(|auth| auth.usage_interval(HOUR));
        let keys = rarely.await.unwrap();
        let (app, key) = (app(&keys), issue(&keys).await);
        assert_eq!(status(&app, &key).await, StatusCode::OK);
        let issuer = keys.issuer();
        let used = async || issuer.get(key.record.id).await.unwrap().last_used_at;
        assert_eq!(used().await, None);
        within(keys.stop()).await;
        assert!(used().await.is_some());
        assert_eq!(status(&app, &key).await, StatusCode::OK, "the layer goes on working");
    }
}

#[tokio::test]
async fn every_clone_stops_all_and_stopping_again_does_nothing() {
    let keys = ApiKeys::in_memory(PREFIX).await.unwrap();
    let other = keys.clone();
    within(async { tokio::join!(keys.stop(), other.stop()) }).await;
    within(keys.stop()).await;
}

#[tokio::test]
async fn a_stop_that_is_not_awaited_to_its_end_stops_all_the_same() {
    let rarely = |auth: auth::Builder| auth.usage_interval(HOUR);
    let keys = ApiKeys::in_memory(PREFIX).configure_authenticator(rarely).await.unwrap();
    let key = issue(&keys).await;
    assert_eq!(status(&app(&keys), &key).await, StatusCode::OK);
    assert!(futures_util::FutureExt::now_or_never(keys.stop()).is_none());
    let issuer = keys.issuer();
    let is_used = async || issuer.get(key.record.id).await.unwrap().last_used_at.is_some();
    eventually("the last use", is_used).await;
}

mod dropping {
    use super::*;

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
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Log {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[tokio::test]
    async fn the_last_clone_without_a_stop_is_logged_once() {
        let (log, _guard) = Log::listen();
        let keys = ApiKeys::in_memory(PREFIX).await.unwrap();
        let (clone, layer) = (keys.clone(), keys.layer());
        drop(keys);
        assert_eq!(log.take(), "");
        drop(clone);
        let said = log.take();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("WARN"), "{said}");
        assert!(said.contains("ApiKeys dropped without being stopped"), "{said}");
        assert!(said.contains("last uses"), "{said}");
        drop(layer);
        assert_eq!(log.take(), "");
    }

    #[tokio::test]
    async fn stopped_keys_are_dropped_in_silence() {
        let (log, _guard) = Log::listen();
        let keys = ApiKeys::in_memory(PREFIX).await.unwrap();
        keys.stop().await;
        drop(keys);
        assert_eq!(log.take(), "");
    }

    #[tokio::test]
    async fn a_layer_that_is_left_goes_on_hearing_and_writing() {
        let place = Place::Postgres(Server::shared().database().await);
        let often = |auth: auth::Builder| auth.usage_interval(Duration::ZERO);
        let keys = place.open().configure_authenticator(often).await.unwrap();
        is_live(&keys).await;
        let (app, key) = (app(&keys), issue(&keys).await);
        drop(keys);
        assert_eq!(status(&app, &key).await, StatusCode::OK);

        let other = place.open().await.unwrap();
        let issuer = other.issuer();
        let is_used = async || issuer.get(key.record.id).await.unwrap().last_used_at.is_some();
        eventually("the last use", is_used).await;
        issuer.revoke(key.record.id, None).await.unwrap();
        let is_refused = async || status(&app, &key).await == StatusCode::UNAUTHORIZED;
        eventually("the revocation", is_refused).await;
        other.stop().await;
    }
}

#[tokio::test]
async fn two_processes_hear_each_other() {
    for place in Place::all().await {
        // Keys in memory have one process.
        if matches!(place, Place::Memory(_)) {
            continue;
        }
        let (one, two) = (place.open().await.unwrap(), place.open().await.unwrap());
        is_live(&one).await;
        is_live(&two).await;
        for (issuing, other) in [(&one, &two), (&two, &one)] {
            let (app, key) = (app(other), issue(issuing).await);
            assert_eq!(status(&app, &key).await, StatusCode::OK);
            issuing.issuer().revoke(key.record.id, None).await.unwrap();
            let is_refused = async || status(&app, &key).await == StatusCode::UNAUTHORIZED;
            eventually("the revocation", is_refused).await;
        }
        one.stop().await;
        two.stop().await;
    }
}

#[tokio::test]
async fn a_process_that_starts_later_finds_the_tables_and_the_keys() {
    for place in Place::all().await {
        let old = place.open().await.unwrap();
        let key = issue(&old).await;
        let new = place.open().await.unwrap();
        old.stop().await;
        assert_eq!(status(&app(&new), &key).await, StatusCode::OK);
        new.stop().await;
    }
}

#[tokio::test]
async fn any_number_of_processes_may_start_at_once() {
    let place = Place::Postgres(Server::shared().database().await);
    let starting = (0..4).map(|_| place.open().into_future());
    for keys in within(futures_util::future::join_all(starting)).await {
        keys.unwrap().stop().await;
    }
}

#[tokio::test]
async fn without_a_migration_nothing_is_created() {
    let database = Server::shared().database().await;
    let keys = ApiKeys::open(database.url(), PREFIX).migrate(false).await.unwrap();
    let key = KeyFormat::new(PREFIX).unwrap().generate().unwrap();
    let checked = keys.authenticator().check(key.expose_secret().as_bytes()).await;
    assert_eq!(checked.unwrap_err().kind(), RejectionKind::StoreUnavailable);
    PgKeyStore::connect(database.url()).await.unwrap().migrate().await.unwrap();
    let is_up = async || {
        let checked = keys.authenticator().check(key.expose_secret().as_bytes()).await;
        checked.unwrap_err().kind() == RejectionKind::Unknown
    };
    eventually("the tables", is_up).await;
    assert_eq!(keys.health().store, StoreHealth::Up);
    keys.stop().await;
}

mod settings {
    use super::*;

    #[tokio::test]
    async fn limits_plans_formats_and_observer_are_those_of_the_authenticator() {
        let rejected = Arc::new(Mutex::new(Vec::new()));
        let observer = {
            let rejected = Arc::clone(&rejected);
            move |event: &Event<'_>| {
                if let Event::Rejected { kind, .. } = event {
                    rejected.lock().unwrap().push(*kind);
                }
            }
        };
        let store = MemoryKeyStore::new();
        let once = || RateLimits::from(Quota::per_hour(1).unwrap());
        let keys = ApiKeys::builder(store.clone(), KeyFormat::new("sk_new_").unwrap())
            .accept(KeyFormat::new(PREFIX).unwrap())
            .default_rate_limits(once())
            .plans(Plans::new().plan("pro", Quota::per_hour(2).unwrap()).unwrap())
            .observer(observer)
            .await
            .unwrap();
        let earlier = tower_api_key::manage::KeyIssuer::new(store, KeyFormat::new(PREFIX).unwrap());
        let earlier = earlier.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
        let new = issue(&keys).await;
        assert!(text(&new).starts_with("sk_new_"));
        let pro = NewKey::new("acme", Expiry::Never).plan("pro");
        let pro = keys.issuer().issue(pro).await.unwrap();
        let app = app(&keys);
        for (key, times) in [(&earlier, 1), (&new, 1), (&pro, 2)] {
            for _ in 0..times {
                assert_eq!(status(&app, key).await, StatusCode::OK);
            }
            assert_eq!(status(&app, key).await, StatusCode::TOO_MANY_REQUESTS);
        }
        assert_eq!(*rejected.lock().unwrap(), [RejectionKind::RateLimited; 3]);
        keys.stop().await;
    }

    #[tokio::test]
    async fn one_clock_is_that_of_all_parts() {
        let clock = ManualClock::default();
        let keys = ApiKeys::in_memory(PREFIX).clock(clock.clone()).await.unwrap();
        let new = NewKey::new("acme", Expiry::In(HOUR));
        let key = keys.issuer().issue(new).await.unwrap();
        let app = app(&keys);
        assert_eq!(status(&app, &key).await, StatusCode::OK);
        clock.advance(HOUR);
        assert_eq!(status(&app, &key).await, StatusCode::UNAUTHORIZED);
        keys.stop().await;
    }

    #[tokio::test]
    async fn the_feed_is_the_stores_own_another_one_or_none() {
        let database = Server::shared().database().await;
        let store = PgKeyStore::connect(database.url()).await.unwrap();
        let format = KeyFormat::new(PREFIX).unwrap();
        let open = || ApiKeys::builder(store.clone(), format.clone());
        let off = open().without_change_feed().await.unwrap();
        assert_eq!(off.health().feed, FeedHealth::Off);
        let polling = PollingChangeFeed::new(store.clone()).interval(Duration::from_millis(10));
        let (own, polling) = (open().await.unwrap(), open().change_feed(polling).await.unwrap());
        is_live(&own).await;
        is_live(&polling).await;
        for keys in [off, own, polling] {
            keys.stop().await;
        }
    }

    #[tokio::test]
    async fn settings_of_the_issuer_hold_for_the_routers_too() {
        let keys = ApiKeys::in_memory(PREFIX)
            .configure_issuer(|issuer| issuer.max_keys_per_consumer(1))
            .await
            .unwrap();
        let scopes = Scopes::parse(["api-keys:read", "api-keys:write"]).unwrap();
        let admin = NewKey::new("acme", Expiry::Never).scopes(scopes);
        let admin = keys.issuer().issue(admin).await.unwrap();
        let app = Router::new()
            .nest_service("/admin", keys.admin().router())
            .nest_service("/account", keys.account().router());
        let send = async |method: &str, path: &str, body: &serde_json::Value| {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(AUTHORIZATION, format!("Bearer {}", text(&admin)))
                .header("content-type", "application/json");
            let request = request.body(Body::from(body.to_string())).unwrap();
            app.clone().oneshot(request).await.unwrap().status()
        };
        let new = json!({ "consumer_id": "acme", "expires": "never" });
        assert_eq!(send("POST", "/admin/api-keys", &new).await, StatusCode::CONFLICT);
        let own = format!("/account/api-keys/{}/revoke", admin.record.id);
        assert_eq!(send("POST", &own, &json!({})).await, StatusCode::OK);
        let again = send("GET", "/account/api-keys", &json!({})).await;
        assert_eq!(again, StatusCode::UNAUTHORIZED, "a revocation by a router is heard at once");
        keys.stop().await;
    }
}

mod errors {
    use super::*;

    const PASSWORD: &str = "hunter2";

    async fn error(builder: ApiKeysBuilder, kind: StartErrorKind) -> String {
        let error: StartError = within(builder).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        let mut said = format!("{error} {error:?} {error:#?}");
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            said = format!("{said} {error} {error:?}");
            source = error.source();
        }
        assert!(!said.contains(PASSWORD), "{said}");
        said
    }

    #[tokio::test]
    async fn a_prefix_that_is_none_is_explained_and_not_quoted() {
        for prefix in ["", "sk-live", "sk_live", "postgres://app:hunter2@localhost/app"] {
            let said = error(ApiKeys::in_memory(prefix), StartErrorKind::InvalidPrefix).await;
            assert!(said.contains("such as `sk_live_`"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_url_of_another_database_is_told_which_there_are() {
        for url in ["mysql://app:hunter2@localhost/app", "app:hunter2@localhost/app", "keys.db", ""]
        {
            let said = error(ApiKeys::open(url, PREFIX), StartErrorKind::InvalidUrl).await;
            assert!(said.contains("`postgres:` or `sqlite:`"), "{said}");
        }
        let swapped = ApiKeys::open(PREFIX, "postgres://app:hunter2@localhost/app");
        error(swapped, StartErrorKind::InvalidPrefix).await;
    }

    #[tokio::test]
    async fn a_url_that_cannot_be_parsed_is_told_apart_from_a_server_that_is_away() {
        for url in ["postgres://app:hunter2@localhost:many/app", "postgres:hunter2"] {
            error(ApiKeys::open(url, PREFIX), StartErrorKind::InvalidUrl).await;
        }
        let away = "postgres://app:hunter2@127.0.0.1:1/app?password=hunter2";
        let said = error(ApiKeys::open(away, PREFIX), StartErrorKind::Connection).await;
        assert!(said.contains("is PostgreSQL running"), "{said}");

        let database = Server::shared().database().await;
        let nowhere = format!("{}_gone", database.url());
        error(ApiKeys::open(&nowhere, PREFIX), StartErrorKind::Connection).await;
        let folder = tempfile::tempdir().unwrap();
        let missing = format!("sqlite:{}/no/keys.db", folder.path().display());
        let said = error(ApiKeys::open(&missing, PREFIX), StartErrorKind::Connection).await;
        assert!(said.contains("does the folder of the SQLite file exist"), "{said}");
    }

    #[tokio::test]
    async fn a_table_in_the_way_is_a_failed_migration() {
        let database = Server::shared().database().await;
        let pool = database.pool().await;
        raw_sql("create table api_keys (mine int)").execute(&pool).await.unwrap();
        let said = error(ApiKeys::open(database.url(), PREFIX), StartErrorKind::Migration).await;
        assert!(said.contains("`migrate(false)`"), "{said}");
    }

    #[test]
    fn without_a_runtime_there_is_no_panic() {
        let started = futures_util::FutureExt::now_or_never(ApiKeys::in_memory(PREFIX).start());
        assert_eq!(started.unwrap().unwrap_err().kind(), StartErrorKind::NoRuntime);
    }

    #[test]
    fn settings_are_printed_without_the_url() {
        let builder = ApiKeys::open("postgres://app:hunter2@localhost/app", PREFIX);
        let said = format!("{builder:?}");
        assert!(said.contains(PREFIX) && !said.contains(PASSWORD), "{said}");
    }
}
