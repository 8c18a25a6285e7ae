use std::{fmt, sync::Arc, time::Duration};

use super::{
    Authenticator, CachePolicy, Observer, Worker,
    authenticator::Inner,
    feed::ErasedFeed,
    gcra::Rate,
    load::{ErasedStore, Loader},
    terms::Terms,
    usage,
};
use crate::{
    clock::{Clock, SystemClock},
    key::{AcceptedFormat, KeyFormat},
    rate_limit::{LocalRateLimiter, Meters, Plans, RateLimiter, RateLimits},
    store::{ChangeFeed, KeyStore},
};

const USAGE_INTERVAL: Duration = Duration::from_secs(10);
const MAX_USAGE_INTERVAL: Duration = Duration::from_secs(3600);
const MIN_USAGE_INTERVAL: Duration = Duration::from_millis(10);
const FAILURES_AT_ONCE: u32 = 20;
const FAILURE_INTERVAL: Duration = Duration::from_secs(1);

/// Settings of an [`Authenticator`].
#[must_use]
pub struct Builder {
    store: Arc<dyn ErasedStore>,
    formats: Vec<AcceptedFormat>,
    clock: Arc<dyn Clock>,
    limiter: Arc<dyn RateLimiter>,
    default_limits: RateLimits,
    plans: Plans,
    cache: CachePolicy,
    failures: Rate,
    usage_interval: Duration,
    feed: Option<Box<dyn ErasedFeed>>,
    observer: Option<Arc<dyn Observer>>,
}

impl Authenticator {
    /// Keys of `store` in `format`, with everything else at its default.
    pub fn builder(store: impl KeyStore, format: KeyFormat) -> Builder {
        Builder {
            store: Arc::new(store),
            formats: vec![format.into()],
            clock: Arc::new(SystemClock::new()),
            limiter: Arc::new(LocalRateLimiter::new()),
            default_limits: RateLimits::unlimited(),
            plans: Plans::new(),
            cache: CachePolicy::default(),
            failures: Rate::new(FAILURE_INTERVAL, FAILURES_AT_ONCE),
            usage_interval: USAGE_INTERVAL,
            feed: None,
            observer: None,
        }
    }
}

impl Builder {
    /// Also lets in keys of another format: an earlier prefix, or an
    /// [imported](crate::key::ImportedFormat) shape.
    pub fn accept(mut self, format: impl Into<AcceptedFormat>) -> Self {
        self.formats.push(format.into());
        self
    }

    /// The rate limits of keys that have neither limits of their own nor a plan. Default: unlimited, as no number would
    /// be right for most services, and a wrong one is found out by their customers.
    pub fn default_rate_limits(self, limits: impl Into<RateLimits>) -> Self {
        Self { default_limits: limits.into(), ..self }
    }

    /// The plans that keys name, beside those that the store defines. Default: none.
    ///
    /// A key has the limits of its plan and those of its own; of two with one name, its own. A plan
    /// that nobody defines is [observed](super::Event::UnknownPlan), and its keys have the limits of
    /// keys without a plan.
    pub fn plans(self, plans: Plans) -> Self {
        Self { plans, ..self }
    }

    /// Where buckets live. Default: [`LocalRateLimiter`].
    pub fn rate_limiter(self, limiter: impl RateLimiter) -> Self {
        Self { limiter: Arc::new(limiter), ..self }
    }

    /// How long what the store said is believed.
    pub fn cache(self, policy: CachePolicy) -> Self {
        Self { cache: policy, ..self }
    }

    /// How many unknown keys may come from a [network](super::ClientNetwork), where networks are
    /// [told](Authenticator::attempt_from) of: so many at once, and one more each interval. Default:
    /// 20, and 1 s. At least 1, and 1 ns.
    ///
    /// Twenty are an office whose clients all have a key that was deleted, or somebody who pastes
    /// the wrong one until it is right. One a second is nothing to a database, and so little to
    /// somebody who guesses that it is not worth the while. Beyond it, what is not in the cache is
    /// turned away with [`TooManyFailures`](super::RejectionKind::TooManyFailures).
    pub fn failure_limit(self, at_once: u32, interval: Duration) -> Self {
        Self { failures: Rate::new(interval, at_once), ..self }
    }

    /// How often last uses are written. Default: every 10 s, which makes one batch of whatever was
    /// used and is recent enough to find keys nobody uses; at least 10 ms, which no database should
    /// be asked to go below, and at most 1 h, which is what a crash may lose.
    ///
    /// Of each interval a key's first use counts, so that what is stored lags behind the very last
    /// use by two intervals at most.
    pub fn usage_interval(self, interval: Duration) -> Self {
        Self { usage_interval: interval.clamp(MIN_USAGE_INTERVAL, MAX_USAGE_INTERVAL), ..self }
    }

    /// Who hears of what is worth counting.
    pub fn observer(self, observer: impl Observer) -> Self {
        Self { observer: Some(Arc::new(observer)), ..self }
    }

    /// What tells of changes made elsewhere, once the [`Worker`] runs. Default: none, and a change is
    /// noticed when a record is no longer [`fresh`](CachePolicy::fresh).
    pub fn change_feed(self, feed: impl ChangeFeed) -> Self {
        Self { feed: Some(Box::new(feed)), ..self }
    }

    /// Where time comes from. Default: [`SystemClock`].
    pub fn clock(self, clock: impl Clock) -> Self {
        Self { clock: Arc::new(clock), ..self }
    }

    /// The authenticator, and the worker that is yours to run. Nothing is started.
    pub fn build(self) -> (Authenticator, Worker) {
        let Self { store, formats, clock, limiter, default_limits, plans, .. } = self;
        let meters = Arc::new(Meters { limiter, clock });
        let terms = Terms::new(meters, plans, default_limits);
        let loader = Loader::new(store, terms, self.observer, self.cache, self.failures);
        let loader = Arc::new(loader);
        if self.feed.is_some() {
            loader.feed.set_gap();
            loader.begin_gap();
        }
        let (usage, writer) = usage::channel(Arc::clone(&loader), self.usage_interval);
        let worker = Worker::new(Arc::clone(&loader), self.feed, writer);
        let formats = formats.into();
        (Authenticator::new(Inner { formats, loader, usage }), worker)
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
