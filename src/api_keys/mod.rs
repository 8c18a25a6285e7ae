//! [`ApiKeys`]: everything that a service needs, connected and running.

mod backend;
mod builder;
mod error;

use std::{
    fmt,
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
};

use tokio::{runtime::Handle, sync::watch, task::JoinSet};

pub use self::{
    builder::ApiKeysBuilder,
    error::{StartError, StartErrorKind},
};
#[cfg(feature = "admin")]
use crate::{account::Account, admin::Admin};
use crate::{
    auth::{Authenticator, Health, Worker},
    key::KeyFormat,
    layer::ApiKeyLayer,
    manage::KeyIssuer,
    store::port::Backend,
    trace,
};

/// API keys of a service: the store, the [authenticator](Authenticator) with its running worker,
/// and an issuer that belongs to them.
///
/// Cheap to clone; clones share everything. Keep one in the state of the application, and call
/// [`stop`](Self::stop) before the process ends.
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use tower_api_key::{ApiKeys, Consumer, rate_limit::Quota};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let keys = ApiKeys::open("postgres://localhost/app", "sk_live_")
///     .default_rate_limits(Quota::per_minute(600)?)
///     .await?;
/// let orders = get(async |consumer: Consumer| format!("orders of {}", consumer.id()));
/// let app: Router = Router::new().route("/orders", orders).layer(keys.layer());
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
/// axum::serve(listener, app)
///     .with_graceful_shutdown(async { _ = tokio::signal::ctrl_c().await })
///     .await?;
/// keys.stop().await;
/// # Ok(())
/// # }
/// ```
///
/// # What runs
///
/// Starting it connects to the store, migrates the tables, listens to the store's change feed, and
/// runs the [`Worker`] in a task of the current tokio runtime. The worker ends
/// when [`stop`](Self::stop) is called, or when the last clone and everything that it handed out are
/// dropped. Dropping the last clone without a `stop` logs a warning, because the last uses of keys
/// are then lost if the process ends.
///
/// | keys are in | changes of other processes take effect after |
/// |---|---|
/// | PostgreSQL | about a millisecond, by [`PgChangeFeed`](crate::store) |
/// | a SQLite file | a second, by [`PollingChangeFeed`](crate::store::PollingChangeFeed) |
/// | memory | there are none |
///
/// # Without it
///
/// The parts are public: [`Authenticator::builder`], [`Authenticator::issuer`], [`Worker::run`] and
/// [`ApiKeyLayer::new`]. Use them to share a store between several authenticators, to run the worker
/// elsewhere, or to authenticate from a store that cannot be managed.
#[derive(Clone)]
#[must_use = "dropping it without `stop` may lose the last uses of keys"]
pub struct ApiKeys {
    inner: Arc<Inner>,
}

struct Inner {
    auth: Authenticator,
    /// One for all, because its clones count denials and concurrent requests together.
    issuer: KeyIssuer,
    stop: watch::Sender<bool>,
    /// Closed once the worker has ended.
    ended: watch::Receiver<()>,
}

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Other work in the background. It ends soon after the future that it is given.
type Duty = Box<dyn FnOnce(BoxFuture) -> BoxFuture + Send>;

impl ApiKeys {
    /// Opens the store at `url` for keys that begin with `prefix`, such as `sk_live_`. Set what is
    /// to differ from the defaults, then await it.
    ///
    /// The URL begins with `postgres:` (feature `postgres`) or `sqlite:` (feature `sqlite`). It is
    /// opened as by [`PgKeyStore::connect`](crate::store) or [`SqliteKeyStore::connect`](crate::store);
    /// for other settings of the store, pass one to [`builder`](Self::builder).
    pub fn open(url: &str, prefix: &str) -> ApiKeysBuilder {
        ApiKeysBuilder::at(url, prefix)
    }

    /// Keys in memory, which are lost when the process ends: for tests and demonstrations.
    pub fn in_memory(prefix: &str) -> ApiKeysBuilder {
        ApiKeysBuilder::in_memory(prefix)
    }

    /// Keys in `store`, issued in `format`.
    ///
    /// ```no_run
    /// # #[cfg(feature = "postgres")]
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_api_key::{ApiKeys, key::KeyFormat, store::PgKeyStore};
    ///
    /// let store = PgKeyStore::builder().schema("keys").connect_lazy("postgres://localhost/app")?;
    /// let keys = ApiKeys::builder(store, KeyFormat::new("sk_live_")?)
    ///     .migrate(false)
    ///     .start()
    ///     .await?;
    /// # keys.stop().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(store: impl Backend, format: KeyFormat) -> ApiKeysBuilder {
        ApiKeysBuilder::of(store, format)
    }

    fn run(
        auth: Authenticator,
        issuer: KeyIssuer,
        worker: Worker,
        duties: Vec<Duty>,
        runtime: &Handle,
    ) -> Self {
        let (stop, stopping) = watch::channel(false);
        let (running, ended) = watch::channel(());
        runtime.spawn(async move {
            let _running = running;
            let mut others = JoinSet::new();
            let (working, over) = watch::channel(());
            for duty in duties {
                let (stopping, mut over) = (stopping.clone(), over.clone());
                // With the worker at the latest.
                others.spawn(duty(Box::pin(async move {
                    tokio::select! {
                        () = stopped(stopping) => {}
                        _ = over.changed() => {}
                    }
                })));
            }
            worker.run(stopped(stopping)).await;
            drop(working);
            while others.join_next().await.is_some() {}
        });
        Self { inner: Arc::new(Inner { auth, issuer, stop, ended }) }
    }

    /// Without a task: nothing runs, and nothing is lost when it is dropped.
    #[cfg(feature = "test-util")]
    fn stopped(auth: Authenticator, issuer: KeyIssuer) -> Self {
        let (stop, ended) = (watch::Sender::new(true), watch::Sender::new(()).subscribe());
        Self { inner: Arc::new(Inner { auth, issuer, stop, ended }) }
    }

    /// A layer that admits requests with a key.
    pub fn layer(&self) -> ApiKeyLayer {
        ApiKeyLayer::new(self.inner.auth.clone())
    }

    /// Issues, lists, changes and revokes keys. What it changes takes effect in this process at
    /// once, with or without a change feed.
    #[must_use]
    pub fn issuer(&self) -> KeyIssuer {
        self.inner.issuer.clone()
    }

    /// The [routes for operators](crate::admin), guarded by these keys: call
    /// [`router`](Admin::router).
    #[cfg(feature = "admin")]
    pub fn admin(&self) -> Admin {
        Admin::new(self.issuer(), self.inner.auth.clone())
    }

    /// The [routes for consumers](crate::account), guarded by these keys: call
    /// [`router`](Account::router).
    #[cfg(feature = "admin")]
    pub fn account(&self) -> Account {
        Account::new(self.issuer(), self.inner.auth.clone())
    }

    /// Checks keys without HTTP, and empties the cache.
    #[must_use]
    pub fn authenticator(&self) -> &Authenticator {
        &self.inner.auth
    }

    /// The current health, for a readiness check: no query is made.
    #[must_use]
    pub fn health(&self) -> Health {
        self.inner.auth.health()
    }

    /// Stops listening for changes, writes the last uses of keys, and returns when that is done,
    /// after at most 5 seconds. Call it when the server has answered its last request.
    ///
    /// Layers and issuers go on working, but uses are no longer written, and records are fresh only
    /// for [as long as during a gap](crate::auth::CachePolicy::fresh_during_gap). Calling it again,
    /// also on another clone, waits for the same end.
    pub async fn stop(&self) {
        self.inner.stop.send_replace(true);
        let mut ended = self.inner.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

/// Completes when [`ApiKeys::stop`] is called. Dropped without it, the worker goes on for layers and
/// issuers that are still in use, and ends with the last of them.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    if stopping.wait_for(|is_stopping| *is_stopping).await.is_err() {
        pending::<()>().await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !*self.stop.borrow() {
            trace::warn!(
                consequences = "the last uses of keys are lost if the process ends before they are \
                                written",
                "ApiKeys dropped without being stopped"
            );
        }
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys")
            .field("authenticator", &self.inner.auth)
            .field("issuer", &self.inner.issuer)
            .field("is_stopped", &*self.inner.stop.borrow())
            .finish_non_exhaustive()
    }
}
