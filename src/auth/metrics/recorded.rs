use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit, with_recorder,
};

use super::striped::Striped;
use crate::{
    auth::{Event, FeedHealth, RejectionKind, VerificationOutcome, outcome::Outcome},
    rate_limit::LimiterHealth,
};

static METADATA: Metadata<'static> =
    Metadata::new("tower_api_key", Level::INFO, Some("tower_api_key"));

const REQUESTS: &str = "api_key_requests_total";
const REJECTIONS: &str = "api_key_rejections_total";
const SHADOW_REQUESTS: &str = "api_key_shadow_requests_total";
const SHADOW_REJECTIONS: &str = "api_key_shadow_rejections_total";
const HITS: &str = "api_key_cache_hits_total";
const MISSES: &str = "api_key_cache_misses_total";
const STALE: &str = "api_key_cache_stale_total";
const ENTRIES: &str = "api_key_cache_entries";
const LOOKUP: &str = "api_key_lookup_seconds";
const STORE_UP: &str = "api_key_store_up";
const FEED_CONNECTED: &str = "api_key_feed_connected";
const FEED_LAG: &str = "api_key_feed_lag_seconds";
const LIMITER_SHARED: &str = "api_key_limiter_shared";
const LEGACY_LEFT: &str = "api_key_legacy_hashes_left";
const VERIFICATIONS: &str = "api_key_legacy_verifications_total";
const VERIFICATION: &str = "api_key_legacy_verification_seconds";
const USAGE_FLUSH: &str = "api_key_usage_flush_seconds";
const USAGE_DROPPED: &str = "api_key_usage_dropped_total";

/// Handles of the recorder that was installed when the authenticator was built.
pub(in crate::auth) struct Metrics {
    labels: Vec<Label>,
    requests: [Counter; Outcome::ALL.len()],
    rejections: [Counter; RejectionKind::ALL.len()],
    shadow_requests: [Counter; Outcome::ALL.len()],
    shadow_rejections: [Counter; RejectionKind::ALL.len()],
    hits: Striped,
    /// How many of `hits` were published.
    published: AtomicU64,
    published_hits: Counter,
    misses: Counter,
    stale: Counter,
    entries: Gauge,
    lookup: Histogram,
    store_up: Gauge,
    /// Registered when known, as an authenticator may have no feed and no shared limiter.
    feed_connected: OnceLock<Gauge>,
    feed_lag: OnceLock<Gauge>,
    limiter_shared: OnceLock<Gauge>,
    /// Only of an authenticator that verifies legacy hashes.
    legacy: Option<LegacyMetrics>,
    usage_flush: Histogram,
    usage_dropped: Counter,
}

struct LegacyMetrics {
    left: Gauge,
    verifications: [Counter; VerificationOutcome::ALL.len()],
    verification: Histogram,
}

/// What the gauges show.
pub(in crate::auth) struct Levels {
    pub(in crate::auth) entries: u64,
    pub(in crate::auth) is_store_up: bool,
    pub(in crate::auth) feed: FeedHealth,
    pub(in crate::auth) limiter: LimiterHealth,
    pub(in crate::auth) legacy_left: Option<u64>,
}

impl Metrics {
    pub(in crate::auth) const IS_ON: bool = true;

    /// Registers the metrics, with the label `prefix` if there is one, and those of legacy hashes if
    /// they are verified.
    pub(in crate::auth) fn new(prefix: Option<&str>, has_legacy: bool) -> Self {
        with_recorder(describe);
        let labels: Vec<_> =
            prefix.into_iter().map(|prefix| Label::new("prefix", prefix.to_owned())).collect();
        let key = |name: &'static str| Key::from_parts(name, labels.clone());
        let labelled = |name: &'static str, label: &'static str, value: &'static str| {
            let labels = labels.iter().cloned().chain([Label::from_static_parts(label, value)]);
            counter(&Key::from_parts(name, labels.collect::<Vec<_>>()))
        };
        let by_outcome =
            |name| Outcome::ALL.map(|outcome| labelled(name, "outcome", outcome.as_str()));
        let by_reason =
            |name| RejectionKind::ALL.map(|kind| labelled(name, "reason", kind.as_str()));
        Self {
            requests: by_outcome(REQUESTS),
            rejections: by_reason(REJECTIONS),
            shadow_requests: by_outcome(SHADOW_REQUESTS),
            shadow_rejections: by_reason(SHADOW_REJECTIONS),
            hits: Striped::new(),
            published: AtomicU64::new(0),
            published_hits: counter(&key(HITS)),
            misses: counter(&key(MISSES)),
            stale: counter(&key(STALE)),
            entries: gauge(&key(ENTRIES)),
            lookup: histogram(&key(LOOKUP)),
            store_up: gauge(&key(STORE_UP)),
            feed_connected: OnceLock::new(),
            feed_lag: OnceLock::new(),
            limiter_shared: OnceLock::new(),
            legacy: has_legacy.then(|| LegacyMetrics::new(&labels)),
            usage_flush: histogram(&key(USAGE_FLUSH)),
            usage_dropped: counter(&key(USAGE_DROPPED)),
            labels,
        }
    }

    pub(in crate::auth) fn count(&self, event: &Event<'_>) {
        match event {
            Event::Admitted { .. } => count(&self.requests, Outcome::Admitted as usize),
            Event::Rejected { kind, .. } => {
                count(&self.requests, Outcome::of(*kind) as usize);
                count(&self.rejections, *kind as usize);
            }
            Event::Shadowed { would_reject: None, .. } => {
                count(&self.shadow_requests, Outcome::Admitted as usize);
            }
            Event::Shadowed { would_reject: Some(kind), .. } => {
                count(&self.shadow_requests, Outcome::of(*kind) as usize);
                count(&self.shadow_rejections, *kind as usize);
            }
            Event::Loaded { took, .. } => self.lookup.record(took.as_secs_f64()),
            Event::LegacyHashCompared { outcome, took } => {
                if let Some(legacy) = &self.legacy {
                    legacy.compared(*outcome, *took);
                }
            }
            Event::StaleServed { .. } => self.stale.increment(1),
            Event::UsageFlushed { took, .. } => self.usage_flush.record(took.as_secs_f64()),
            Event::UsageDropped => self.usage_dropped.increment(1),
            _ => {}
        }
    }

    /// A key was decided from the cache.
    pub(in crate::auth) fn hit(&self) {
        self.hits.add_one();
    }

    /// A key was looked up, or waited for the look-up of another request.
    pub(in crate::auth) fn miss(&self) {
        self.misses.increment(1);
    }

    /// Sets the gauges, and publishes the cache hits since the last call.
    pub(in crate::auth) fn refresh(&self, levels: &Levels) {
        let hits = self.hits.sum();
        let before = self.published.fetch_max(hits, Ordering::Relaxed);
        self.published_hits.increment(hits.saturating_sub(before));
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 entries")]
        self.entries.set(levels.entries as f64);
        self.store_up.set(zero_or_one(levels.is_store_up));
        let (is_connected, lag) = match levels.feed {
            FeedHealth::Off => (None, None),
            FeedHealth::Gap => (Some(false), None),
            FeedHealth::Behind { lag } => (Some(false), lag),
            FeedHealth::Live { lag } => (Some(true), lag),
        };
        self.set_known(&self.feed_connected, FEED_CONNECTED, is_connected.map(zero_or_one));
        self.set_known(&self.feed_lag, FEED_LAG, lag.map(|lag| lag.as_secs_f64()));
        let is_shared = match levels.limiter {
            LimiterHealth::Local | LimiterHealth::Unknown => None,
            LimiterHealth::Shared => Some(true),
            LimiterHealth::Down => Some(false),
        };
        self.set_known(&self.limiter_shared, LIMITER_SHARED, is_shared.map(zero_or_one));
        if let (Some(legacy), Some(left)) = (&self.legacy, levels.legacy_left) {
            #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 keys")]
            legacy.left.set(left as f64);
        }
    }

    fn set_known(&self, place: &OnceLock<Gauge>, name: &'static str, value: Option<f64>) {
        if let Some(value) = value {
            place.get_or_init(|| gauge(&Key::from_parts(name, self.labels.clone()))).set(value);
        }
    }
}

impl LegacyMetrics {
    fn new(labels: &[Label]) -> Self {
        let key = |name: &'static str| Key::from_parts(name, labels.to_vec());
        let of = |outcome: VerificationOutcome| {
            let outcome = Label::from_static_parts("outcome", outcome.as_str());
            let labels = labels.iter().cloned().chain([outcome]).collect::<Vec<_>>();
            counter(&Key::from_parts(VERIFICATIONS, labels))
        };
        Self {
            left: gauge(&key(LEGACY_LEFT)),
            verifications: VerificationOutcome::ALL.map(of),
            verification: histogram(&key(VERIFICATION)),
        }
    }

    fn compared(&self, outcome: VerificationOutcome, took: Duration) {
        count(&self.verifications, outcome as usize);
        if outcome != VerificationOutcome::Overloaded {
            self.verification.record(took.as_secs_f64());
        }
    }
}

fn count(counters: &[Counter], at: usize) {
    if let Some(counter) = counters.get(at) {
        counter.increment(1);
    }
}

fn zero_or_one(is_one: bool) -> f64 {
    if is_one { 1.0 } else { 0.0 }
}

fn counter(key: &Key) -> Counter {
    with_recorder(|recorder| recorder.register_counter(key, &METADATA))
}

fn gauge(key: &Key) -> Gauge {
    with_recorder(|recorder| recorder.register_gauge(key, &METADATA))
}

fn histogram(key: &Key) -> Histogram {
    with_recorder(|recorder| recorder.register_histogram(key, &METADATA))
}

fn describe(recorder: &dyn Recorder) {
    for (name, unit, text) in [
        (REQUESTS, Unit::Count, "Requests by outcome, each counted once."),
        (REJECTIONS, Unit::Count, "Rejected requests by reason."),
        (SHADOW_REQUESTS, Unit::Count, "Requests in shadow mode by what their outcome would be."),
        (SHADOW_REJECTIONS, Unit::Count, "Requests that shadow mode let pass, by reason."),
        (HITS, Unit::Count, "Keys decided from the cache, without waiting."),
        (MISSES, Unit::Count, "Keys that waited for a look-up."),
        (STALE, Unit::Count, "Keys decided by an old record, because the store did not answer."),
        (VERIFICATIONS, Unit::Count, "Comparisons of unknown keys with legacy hashes by outcome."),
        (USAGE_DROPPED, Unit::Count, "Uses of keys that were not recorded: a buffer was full."),
    ] {
        recorder.describe_counter(KeyName::from_const_str(name), Some(unit), text.into());
    }
    for (name, unit, text) in [
        (ENTRIES, Unit::Count, "Keys in the cache."),
        (STORE_UP, Unit::Count, "Whether the key store answers."),
        (FEED_CONNECTED, Unit::Count, "Whether the change feed is connected and current."),
        (FEED_LAG, Unit::Seconds, "The time until a change is known here, as last measured."),
        (LEGACY_LEFT, Unit::Count, "Imported keys whose legacy hash was not replaced yet."),
        (LIMITER_SHARED, Unit::Count, "Whether the fleet counts together, by the shared limiter."),
    ] {
        recorder.describe_gauge(KeyName::from_const_str(name), Some(unit), text.into());
    }
    for (name, text) in [
        (LOOKUP, "The time of a query for a key, successful or not."),
        (VERIFICATION, "The time of a comparison with a legacy hash."),
        (USAGE_FLUSH, "The time to write the last uses of keys."),
    ] {
        let unit = Some(Unit::Seconds);
        recorder.describe_histogram(KeyName::from_const_str(name), unit, text.into());
    }
}
