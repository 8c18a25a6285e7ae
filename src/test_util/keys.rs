use std::{
    fmt,
    ops::Deref,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::Mutex;

use super::{FaultStore, IssueKey, TestKey};
use crate::{
    ApiKeys, ApiKeysBuilder,
    auth::Worker,
    clock::ManualClock,
    record::valid,
    store::{ManageKeys as _, MemoryKeyStore},
};

/// The prefix of the keys.
const PREFIX: &str = "sk_test_";
/// The shortest that the authenticator permits, so that each use at another time is recorded.
const USAGE_INTERVAL: Duration = Duration::from_millis(10);

/// The store of [`TestKeys`].
pub type TestStore = FaultStore<MemoryKeyStore>;

/// [`ApiKeys`] for a test: the real layer, authenticator, issuer and limiter over a store in memory,
/// all on one clock that the test advances.
///
/// It dereferences to [`ApiKeys`], so a function that builds the service from its keys takes it as
/// it is. Nothing runs in the background: a revocation takes effect at once, and uses are written
/// when something reads them. Clones share everything.
///
/// ```
/// # #[cfg(feature = "axum")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::time::Duration;
///
/// use axum::{Router, body::Body, routing::get};
/// use tower::ServiceExt;
/// use tower_api_key::{ApiKeys, Consumer, test_util::TestKeys};
///
/// fn app(keys: &ApiKeys) -> Router {
///     let orders = get(async |consumer: Consumer| format!("orders of {}", consumer.id()));
///     Router::new().route("/orders", orders).layer(keys.layer())
/// }
///
/// let keys = TestKeys::new();
/// let key = keys.issue("acme").expires_in(Duration::from_secs(3600)).await;
/// let status = async || {
///     let request = key.get::<Body>("/orders");
///     app(&keys).oneshot(request).await.unwrap().status()
/// };
/// assert_eq!(status().await, 200);
/// keys.advance(Duration::from_secs(3600));
/// assert_eq!(status().await, 401);
/// # }
/// # #[cfg(not(feature = "axum"))]
/// # fn main() {}
/// ```
#[derive(Clone)]
pub struct TestKeys {
    keys: ApiKeys,
    store: TestStore,
    clock: ManualClock,
    /// The store has it write uses.
    worker: Arc<Mutex<Worker>>,
}

impl TestKeys {
    /// Keys with the prefix `sk_test_` and every other setting at its default.
    #[must_use]
    pub fn new() -> Self {
        Self::with(|keys| keys)
    }

    /// Keys with the settings of the service, so that a test has the same limits and policy:
    ///
    /// ```
    /// use tower_api_key::{ApiKeysBuilder, rate_limit::Quota, test_util::TestKeys};
    ///
    /// /// Used with `ApiKeys::open` in `main`.
    /// fn configured(keys: ApiKeysBuilder) -> ApiKeysBuilder {
    ///     keys.default_rate_limits(Quota::per_minute(600).unwrap())
    /// }
    ///
    /// let keys = TestKeys::with(configured);
    /// ```
    ///
    /// Its clock and its store stay those of the test.
    #[must_use]
    pub fn with(settings: impl FnOnce(ApiKeysBuilder) -> ApiKeysBuilder) -> Self {
        let clock = ManualClock::default();
        let store = FaultStore::new(MemoryKeyStore::with_clock(clock.clone()), clock.clone());
        let builder = settings(ApiKeys::in_memory(PREFIX))
            .clock(clock.clone())
            .configure_authenticator(|auth| auth.usage_interval(USAGE_INTERVAL));
        let (keys, worker) = valid(builder.without_task(&store));
        let worker = Arc::new(Mutex::new(worker));
        store.write_usage_with(Arc::downgrade(&worker));
        Self { keys, store, clock, worker }
    }

    /// Issues a key when it is awaited; it does not expire and has no scopes unless told otherwise.
    pub fn issue(&self, consumer_id: impl Into<String>) -> IssueKey {
        IssueKey::new(self.keys.issuer(), consumer_id.into())
    }

    /// Revokes a key.
    ///
    /// # Panics
    ///
    /// When the store is down: the test should have called [`come_back`](Self::come_back).
    pub async fn revoke(&self, key: &TestKey) {
        valid(self.keys.issuer().revoke(key.id(), None).await);
    }

    /// When the key was last used.
    ///
    /// # Panics
    ///
    /// When the store is down.
    pub async fn last_used_at(&self, key: &TestKey) -> Option<SystemTime> {
        valid(self.store.last_used_at(key.id()).await)
    }

    /// Lets time pass: keys expire, quotas refill, records in the cache get old, and streams that end
    /// with their key notice. Returns at once.
    pub fn advance(&self, by: Duration) {
        // A key is used again at the new time.
        if let Ok(mut worker) = self.worker.try_lock() {
            worker.collect_usage();
        }
        self.clock.advance(by);
        self.keys.authenticator().clock_was_advanced();
    }

    /// From now on the store does not answer. As in production, a key in the cache keeps working: one
    /// that was used before, for [`fresh`](crate::auth::CachePolicy::fresh) and then for
    /// [`stale_if_error`](crate::auth::CachePolicy::stale_if_error). Any other gets 503, and so does
    /// every key after [`forget`](Self::forget).
    pub fn go_down(&self) {
        self.store.go_down();
    }

    /// The store answers again, and is asked at once.
    pub fn come_back(&self) {
        self.store.come_back();
        self.keys.authenticator().store_is_back();
    }

    /// Empties the cache, as a restart of the service does. Quotas stay as they are.
    pub fn forget(&self) {
        self.keys.authenticator().invalidate_all();
    }

    /// The store, for [other faults](FaultStore) and for changes that no cache is told of, such as
    /// those of another process.
    #[must_use]
    pub fn store(&self) -> &TestStore {
        &self.store
    }

    /// The clock of all parts.
    #[must_use]
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }
}

impl Default for TestKeys {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for TestKeys {
    type Target = ApiKeys;

    fn deref(&self) -> &ApiKeys {
        &self.keys
    }
}

impl fmt::Debug for TestKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestKeys").field("keys", &self.keys).finish_non_exhaustive()
    }
}
