use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
};

use super::{
    ApiKeys, Duty, StartError,
    backend::{DynBackend, connect},
};
use crate::{
    auth::{self, Authenticator, CachePolicy, Observer, Worker},
    clock::Clock,
    key::{AcceptedFormat, InvalidFormat, KeyFormat},
    manage::{IssuePolicy, KeyIssuer},
    rate_limit::{Plans, RateLimiter, RateLimits},
    record::ScopeCatalog,
    store::{
        MemoryKeyStore,
        port::{Backend, ChangeFeed},
    },
};

/// Settings of [`ApiKeys`]. Awaiting it, or [`start`](Self::start), starts them.
///
/// It has the settings that most services need. All others of the two parts are reached by
/// [`configure_authenticator`](Self::configure_authenticator) and
/// [`configure_issuer`](Self::configure_issuer).
#[must_use = "nothing is started until it is awaited"]
pub struct ApiKeysBuilder {
    source: Source,
    format: Result<KeyFormat, InvalidFormat>,
    clock: Option<Arc<dyn Clock>>,
    migrates: bool,
    follows: bool,
    authenticator: Vec<Setting<auth::Builder>>,
    issuer: Vec<Setting<KeyIssuer>>,
    duties: Vec<Duty>,
}

type Setting<T> = Box<dyn FnOnce(T) -> T + Send>;

/// Where the keys are.
enum Source {
    Url(String),
    Memory,
    Store(Box<dyn DynBackend>),
}

impl ApiKeysBuilder {
    fn new(source: Source, format: Result<KeyFormat, InvalidFormat>) -> Self {
        Self {
            source,
            format,
            clock: None,
            migrates: true,
            follows: true,
            authenticator: Vec::new(),
            issuer: Vec::new(),
            duties: Vec::new(),
        }
    }

    pub(super) fn at(url: &str, prefix: &str) -> Self {
        Self::new(Source::Url(url.to_owned()), KeyFormat::new(prefix))
    }

    pub(super) fn in_memory(prefix: &str) -> Self {
        Self::new(Source::Memory, KeyFormat::new(prefix))
    }

    pub(super) fn of(store: impl Backend, format: KeyFormat) -> Self {
        Self::new(Source::Store(Box::new(store)), Ok(format))
    }

    /// The rate limits of keys that have neither limits of their own nor a plan. Default:
    /// [unlimited](auth::Builder::default_rate_limits).
    pub fn default_rate_limits(self, limits: impl Into<RateLimits>) -> Self {
        let limits = limits.into();
        self.configure_authenticator(|auth| auth.default_rate_limits(limits))
    }

    /// [Plans](auth::Builder::plans) defined in code, beside those defined in the store. Default:
    /// none.
    pub fn plans(self, plans: Plans) -> Self {
        self.configure_authenticator(|auth| auth.plans(plans))
    }

    /// The [scopes of the service](auth::Builder::scopes), for the authenticator, the issuer and the
    /// routers. Default: any scope, each of which is only itself.
    pub fn scopes(self, catalog: ScopeCatalog) -> Self {
        self.configure_authenticator(|auth| auth.scopes(catalog))
    }

    /// Also accepts keys of [another format](auth::Builder::accept): an earlier prefix, or keys
    /// that another system issued.
    pub fn accept(self, format: impl Into<AcceptedFormat>) -> Self {
        let format = format.into();
        self.configure_authenticator(|auth| auth.accept(format))
    }

    /// Verifies keys that were imported with a slow or salted hash, which `store` keeps: a clone of
    /// the one that [`ApiKeys::builder`] got. Default: such keys are unknown. See
    /// [`auth::Builder::legacy_hashes`]. Feature `legacy-hashes`.
    #[cfg(feature = "legacy-hashes")]
    pub fn legacy_hashes(self, store: impl crate::store::port::LegacyHashes) -> Self {
        self.configure_authenticator(|auth| auth.legacy_hashes(store))
    }

    /// Delivers events to webhook endpoints, until [`ApiKeys::stop`]. Default: no events are delivered
    /// by this process. Of several processes, one delivers. Feature `webhooks`.
    #[cfg(feature = "webhooks")]
    pub fn webhooks(mut self, webhooks: &crate::webhooks::Webhooks) -> Self {
        let worker = webhooks.worker();
        self.duties.push(Box::new(|stopped| Box::pin(worker.run(stopped))));
        self
    }

    /// How long records are cached, and how many. Default: [`CachePolicy::default`].
    pub fn cache(self, policy: CachePolicy) -> Self {
        self.configure_authenticator(|auth| auth.cache(policy))
    }

    /// The [rate limiter](auth::Builder::rate_limiter), which holds the buckets. Default: in memory,
    /// so a fleet of *n* processes admits up to *n* times the quota.
    pub fn rate_limiter(self, limiter: impl RateLimiter) -> Self {
        self.configure_authenticator(|auth| auth.rate_limiter(limiter))
    }

    /// Receives [events](auth::Event) for metrics and alerts. Default: none.
    pub fn observer(self, observer: impl Observer) -> Self {
        self.configure_authenticator(|auth| auth.observer(observer))
    }

    /// What keys the issuer and the routers may [issue](KeyIssuer::policy). Default: everything.
    pub fn issue_policy(self, policy: impl Into<IssuePolicy>) -> Self {
        let policy = policy.into();
        self.configure_issuer(|issuer| issuer.policy(policy))
    }

    /// Listens to `feed` instead of the store's own. Default: the store's own, see
    /// [`Backend::change_feed`].
    ///
    /// PostgreSQL behind a pooler in transaction mode needs a
    /// [`PollingChangeFeed`](crate::store::PollingChangeFeed).
    pub fn change_feed(self, feed: impl ChangeFeed) -> Self {
        self.configure_authenticator(|auth| auth.change_feed(feed))
    }

    /// Does not listen to the store's change feed: a key that another process revokes works here
    /// for up to [`fresh`](CachePolicy::fresh). Keys revoked by this process are refused at once all
    /// the same.
    pub fn without_change_feed(self) -> Self {
        Self { follows: false, ..self }
    }

    /// Whether the tables are migrated on start. Default: true; any number of processes may do so
    /// at once, and an up-to-date database is not changed.
    ///
    /// Turn it off where the role of the service may not create tables and a deployment runs
    /// `api-key migrate`.
    pub fn migrate(self, migrate: bool) -> Self {
        Self { migrates: migrate, ..self }
    }

    /// The time source of the authenticator and the issuer, and of a store that is [in
    /// memory](ApiKeys::in_memory). Default: [`SystemClock`](crate::clock::SystemClock).
    pub fn clock(self, clock: impl Clock) -> Self {
        Self { clock: Some(Arc::new(clock)), ..self }
    }

    /// Any other setting of the [authenticator](auth::Builder).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_api_key::ApiKeys;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let keys = ApiKeys::in_memory("sk_live_")
    ///     .configure_authenticator(|auth| auth.usage_interval(Duration::from_secs(60)))
    ///     .await?;
    /// # keys.stop().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn configure_authenticator(
        mut self,
        setting: impl FnOnce(auth::Builder) -> auth::Builder + Send + 'static,
    ) -> Self {
        self.authenticator.push(Box::new(setting));
        self
    }

    /// Any setting of the [issuer](KeyIssuer), which is also that of the routers.
    ///
    /// ```
    /// # use tower_api_key::ApiKeys;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let keys = ApiKeys::in_memory("sk_live_")
    ///     .configure_issuer(|issuer| issuer.max_keys_per_consumer(20))
    ///     .await?;
    /// # keys.stop().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn configure_issuer(
        mut self,
        setting: impl FnOnce(KeyIssuer) -> KeyIssuer + Send + 'static,
    ) -> Self {
        self.issuer.push(Box::new(setting));
        self
    }

    /// Connects to the store, migrates its tables and starts the worker on the current tokio
    /// runtime. Awaiting the builder does the same.
    ///
    /// # Errors
    ///
    /// When the prefix or the URL is invalid, the store cannot be opened or migrated, or there is
    /// no tokio runtime. Nothing is running then.
    pub async fn start(self) -> Result<ApiKeys, StartError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(StartError::no_runtime)?;
        let Self { source, format, clock, migrates, follows, authenticator, issuer, duties } = self;
        let format = format.map_err(StartError::invalid_prefix)?;
        let store = match (source, &clock) {
            (Source::Url(url), _) => connect(&url).await?,
            (Source::Memory, None) => Box::new(MemoryKeyStore::new()),
            (Source::Memory, Some(clock)) => {
                Box::new(MemoryKeyStore::with_clock(Arc::clone(clock)))
            }
            (Source::Store(store), _) => store,
        };
        if migrates {
            store.migrate().await.map_err(StartError::migration)?;
        }
        let settings = Settings { clock, follows, authenticator, issuer };
        let (auth, issuer, worker) = settings.connect(&*store, format);
        Ok(ApiKeys::run(auth, issuer, worker, duties, &runtime))
    }

    /// The parts around `store`, which replaces the source, without a task for the worker.
    #[cfg(feature = "test-util")]
    pub(crate) fn without_task(
        self,
        store: &impl Backend,
    ) -> Result<(ApiKeys, Worker), StartError> {
        let Self { format, clock, follows, authenticator, issuer, .. } = self;
        let format = format.map_err(StartError::invalid_prefix)?;
        let settings = Settings { clock, follows, authenticator, issuer };
        let (auth, issuer, worker) = settings.connect(store, format);
        Ok((ApiKeys::stopped(auth, issuer), worker.run_by_hand()))
    }
}

/// The settings of both parts.
struct Settings {
    clock: Option<Arc<dyn Clock>>,
    follows: bool,
    authenticator: Vec<Setting<auth::Builder>>,
    issuer: Vec<Setting<KeyIssuer>>,
}

impl Settings {
    fn connect(
        self,
        store: &dyn DynBackend,
        format: KeyFormat,
    ) -> (Authenticator, KeyIssuer, Worker) {
        let mut builder = store.authenticator(format, self.follows);
        if let Some(clock) = self.clock {
            builder = builder.clock(clock);
        }
        let settings = self.authenticator.into_iter();
        let (auth, worker) = settings.fold(builder, |builder, setting| setting(builder)).build();
        let settings = self.issuer.into_iter();
        let issuer = settings.fold(store.issuer(&auth), |issuer, setting| setting(issuer));
        (auth, issuer, worker)
    }
}

impl IntoFuture for ApiKeysBuilder {
    type Output = Result<ApiKeys, StartError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.start())
    }
}

impl fmt::Debug for ApiKeysBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("ApiKeysBuilder")
            .field("format", &self.format)
            .field("migrates", &self.migrates)
            .field("follows", &self.follows)
            .finish_non_exhaustive()
    }
}
