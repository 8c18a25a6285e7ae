use std::{fmt, sync::Arc, time::Duration};

use super::{
    Authenticator, CachePolicy, Observer, Worker,
    authenticator::Inner,
    cache::LimitResolver,
    canary,
    core::Core,
    lookup::{DynStore, Legacy, Lookup},
    metrics::Metrics,
    panic_safe_observer::PanicSafeObserver,
    throttle::Rate,
    use_reports,
    worker::{CanaryWriter, DynFeed, UsageWriter},
};
use crate::{
    clock::{Clock, SystemClock},
    key::{AcceptedFormat, KeyFormat, KeyMask},
    rate_limit::{LocalRateLimiter, Meters, Plans, RateLimiter, RateLimits},
    record::ScopeCatalog,
    store::{KeyStore, port::ChangeFeed},
};

const USAGE_INTERVAL: Duration = Duration::from_secs(10);
const MAX_USAGE_INTERVAL: Duration = Duration::from_secs(3600);
const MIN_USAGE_INTERVAL: Duration = Duration::from_millis(10);
const FAILURES_AT_ONCE: u32 = 20;
const FAILURE_INTERVAL: Duration = Duration::from_secs(1);

/// Configures an [`Authenticator`].
#[must_use]
pub struct Builder {
    store: Arc<dyn DynStore>,
    /// The format of keys issued here, which is also the first of `formats`.
    format: KeyFormat,
    formats: Vec<AcceptedFormat>,
    clock: Arc<dyn Clock>,
    limiter: Arc<dyn RateLimiter>,
    default_limits: RateLimits,
    plans: Plans,
    scopes: Option<ScopeCatalog>,
    cache: CachePolicy,
    failures: Rate,
    usage_interval: Duration,
    feed: Option<Box<dyn DynFeed>>,
    legacy: Option<Arc<Legacy>>,
    observer: Option<Arc<dyn Observer>>,
    label_metrics: bool,
}

impl Authenticator {
    /// Authenticates keys of `store` in `format`, with every other setting at its default.
    pub fn builder(store: impl KeyStore, format: KeyFormat) -> Builder {
        Builder {
            store: Arc::new(store),
            formats: vec![format.clone().into()],
            format,
            clock: Arc::new(SystemClock::new()),
            limiter: Arc::new(LocalRateLimiter::new()),
            default_limits: RateLimits::unlimited(),
            plans: Plans::new(),
            scopes: None,
            cache: CachePolicy::default(),
            failures: Rate::new(FAILURE_INTERVAL, FAILURES_AT_ONCE),
            usage_interval: USAGE_INTERVAL,
            feed: None,
            legacy: None,
            observer: None,
            label_metrics: false,
        }
    }
}

impl Builder {
    /// Also accepts keys of another format: an earlier prefix, or an
    /// [imported](crate::key::ImportedFormat) format. Formats are tried in the order in which they
    /// are named, and the first that a key matches is its format: of two formats of the same
    /// structure, only the first [digest](crate::key::Digest) is used.
    pub fn accept(mut self, format: impl Into<AcceptedFormat>) -> Self {
        self.formats.push(format.into());
        self
    }

    /// The rate limits of keys that have neither limits of their own nor a plan. Default:
    /// unlimited. No number would suit most services, and customers would be the first to notice a
    /// wrong one.
    pub fn default_rate_limits(self, limits: impl Into<RateLimits>) -> Self {
        Self { default_limits: limits.into(), ..self }
    }

    /// Plans defined in code, beside those defined in the store. Default: none.
    ///
    /// A key has the limits of its plan plus its own; on a name clash, its own wins. An undefined
    /// plan is [reported](super::Event::UnknownPlan), and its keys get the limits of keys without a
    /// plan.
    pub fn plans(self, plans: Plans) -> Self {
        Self { plans, ..self }
    }

    /// The scopes of the service, by which a key with `orders:write` or `orders:*` also has
    /// `orders:read` where the catalogue says so. They are added when a record is loaded, so that a
    /// request finds them in the key's set. Default: none; each scope is only itself.
    ///
    /// Issuers made [by the authenticator](Authenticator::issuer) use the same catalogue, and
    /// refuse scopes that it lacks. That includes the scopes that the [routers](crate::manual::keys)
    /// require, such as `api-keys:write`: declare those that keys of the service have.
    ///
    /// ```
    /// # use tower_api_key::{Authenticator, key::KeyFormat, store::MemoryKeyStore};
    /// tower_api_key::scopes! {
    ///     pub enum Scope {
    ///         /// Read orders.
    ///         OrdersRead = "orders:read",
    ///         /// Create and change orders.
    ///         OrdersWrite = "orders:write" implies OrdersRead,
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (auth, worker) = Authenticator::builder(MemoryKeyStore::new(), KeyFormat::new("sk_live_")?)
    ///     .scopes(Scope::catalog())
    ///     .build();
    /// # drop((auth, worker));
    /// # Ok(())
    /// # }
    /// ```
    pub fn scopes(self, catalog: ScopeCatalog) -> Self {
        Self { scopes: Some(catalog), ..self }
    }

    /// The rate limiter, which holds the buckets. Default: [`LocalRateLimiter`].
    pub fn rate_limiter(self, limiter: impl RateLimiter) -> Self {
        Self { limiter: Arc::new(limiter), ..self }
    }

    /// How long records are cached, and how many.
    pub fn cache(self, policy: CachePolicy) -> Self {
        Self { cache: policy, ..self }
    }

    /// How many unknown keys a [network](super::ClientNetwork) may try, if networks are [passed
    /// in](super::KeyCheck::from): `at_once`, then one per `interval`. Default: 20, and 1 s.
    /// Minimum: 1, and 1 ns.
    ///
    /// Twenty allow for an office whose clients all use a deleted key, or a user who pastes the
    /// wrong key several times. One per second is negligible load for a database and useless for
    /// guessing. Beyond the limit, keys that are not cached are rejected with
    /// [`TooManyFailures`](super::RejectionKind::TooManyFailures).
    pub fn failure_limit(self, at_once: u32, interval: Duration) -> Self {
        Self { failures: Rate::new(interval, at_once), ..self }
    }

    /// How often [uses of keys](crate::manual::usage) are written: when they were last used, and how
    /// often. Default: 10 s, which batches writes well and is recent enough to find unused keys.
    /// Minimum: 10 ms, to protect the database. Maximum: 1 h, which is what a crash can lose.
    ///
    /// Only the time of the first use of a key in each interval is recorded, so the stored time lags
    /// behind the last use by at most two intervals. The rate limiter is swept in the same interval.
    pub fn usage_interval(self, interval: Duration) -> Self {
        Self { usage_interval: interval.clamp(MIN_USAGE_INTERVAL, MAX_USAGE_INTERVAL), ..self }
    }

    /// Receives [events](super::Event) for metrics and alerts. Default: none.
    pub fn observer(self, observer: impl Observer) -> Self {
        Self { observer: Some(Arc::new(observer)), ..self }
    }

    /// Adds the label `prefix`, the prefix of issued keys, to all metrics: for a process with several
    /// authenticators, whose gauges would overwrite each other. Default: no label. Feature `metrics`.
    ///
    /// Metrics go to the recorder that is installed when the authenticator is built.
    #[cfg(feature = "metrics")]
    pub fn label_metrics(self, label: bool) -> Self {
        Self { label_metrics: label, ..self }
    }

    /// Reports changes made elsewhere, once the [`Worker`] runs. Default: none; a change is then
    /// noticed when the record is no longer [`fresh`](CachePolicy::fresh).
    pub fn change_feed(self, feed: impl ChangeFeed) -> Self {
        Self { feed: Some(Box::new(feed)), ..self }
    }

    /// Verifies keys that were [imported](crate::manage::KeyImport::of_legacy_hash) with a bcrypt,
    /// Argon2, scrypt or PBKDF2 hash, which `store` keeps, usually a clone of the authenticator's
    /// own. Default: such keys are unknown. Feature `legacy-hashes`.
    ///
    /// A key that the store does not know by its hash, and that has an [imported
    /// format](crate::key::ImportedFormat), is compared with the hashes of the keys that were not
    /// used yet and have the same hint. The hash that matches is replaced, with an audit event
    /// ([`Rehashed`](crate::record::KeyAction::Rehashed)), and from then on the key is like any other.
    /// If it cannot be replaced, the request is answered with 503, and the key's next use repeats it.
    ///
    /// Comparisons run on blocking threads of tokio, on at most half of the cores. Unknown keys may
    /// spend half a core in the long run, half of which is kept for keys that are retried. Keys
    /// beyond that are rejected as
    /// [`Overloaded`](super::RejectionKind::Overloaded) with `Retry-After`, and so is a key whose
    /// comparison takes longer than 5 s; it goes on meanwhile. Once no such key is left, which the
    /// [`Worker`] counts every minute, nothing is queried any more.
    #[cfg(feature = "legacy-hashes")]
    pub fn legacy_hashes(self, store: impl crate::store::port::LegacyHashes) -> Self {
        Self { legacy: Some(Arc::new(Legacy::new(store))), ..self }
    }

    /// The time source. Default: [`SystemClock`].
    pub fn clock(self, clock: impl Clock) -> Self {
        Self { clock: Arc::new(clock), ..self }
    }

    /// Returns the authenticator, and the worker for the caller to run. Nothing is started.
    pub fn build(self) -> (Authenticator, Worker) {
        let Self { store, format, formats, clock, limiter, default_limits, plans, .. } = self;
        let meters = Arc::new(Meters { limiter, clock });
        let limits = LimitResolver::new(meters, plans, default_limits);
        let metrics =
            Metrics::new(self.label_metrics.then(|| format.prefix()), self.legacy.is_some());
        let (running, reports, received) = use_reports::channel();
        let core = Core::new(
            store,
            limits,
            PanicSafeObserver::new(metrics, self.observer),
            Lookup::new(&self.cache, self.failures, self.scopes, self.legacy.as_deref()),
            self.legacy,
            self.cache,
            reports,
        );
        let core = Arc::new(core);
        if self.feed.is_some() {
            core.feed.set_gap();
            core.begin_gap();
        }
        let writer = UsageWriter::new(Arc::clone(&core), received, self.usage_interval);
        let mask = KeyMask::new(formats.iter().cloned());
        let (canaries, uses) = canary::channel();
        let canary_writer = CanaryWriter::new(Arc::clone(&core), mask.clone(), uses);
        let worker =
            Worker::new(Arc::clone(&core), self.feed, writer, canary_writer, self.usage_interval);
        let mut symbols: Vec<_> =
            formats.iter().flat_map(AcceptedFormat::symbols_beyond_bearer).collect();
        symbols.sort_unstable();
        symbols.dedup();
        let (formats, symbols_beyond_bearer) = (formats.into(), symbols.into());
        let inner = Inner {
            format,
            formats,
            symbols_beyond_bearer,
            core,
            mask,
            _running: running,
            canaries,
        };
        (Authenticator::new(inner), worker)
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("formats", &self.formats)
            .field("default_limits", &self.default_limits)
            .field("cache", &self.cache)
            .field("usage_interval", &self.usage_interval)
            .finish_non_exhaustive()
    }
}
