//! Each metric is described to the recorder: its kind, its unit and a text.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_default_local_recorder,
};
use tower_api_key::{
    Authenticator,
    clock::ManualClock,
    rate_limit::{LimiterHealth, LocalRateLimiter, RateLimiter, RateLimits, port},
    store::{MemoryKeyStore, port::Change},
};

use crate::{
    doubles::{FakeFeed, Heard, Said, format},
    wait::eventually,
};

struct Description {
    kind: &'static str,
    unit: Option<Unit>,
    text: String,
}

/// What a recorder was told, by the name of a metric.
#[derive(Default)]
struct Told {
    described: Mutex<BTreeMap<String, Description>>,
    registered: Mutex<BTreeMap<String, &'static str>>,
}

impl Told {
    fn describe(
        &self,
        kind: &'static str,
        name: &KeyName,
        unit: Option<Unit>,
        text: &SharedString,
    ) {
        let described = Description { kind, unit, text: text.to_string() };
        let before = self.described.lock().unwrap().insert(name.as_str().to_owned(), described);
        assert!(before.is_none(), "{} is described twice", name.as_str());
    }

    fn register(&self, kind: &'static str, key: &Key) {
        self.registered.lock().unwrap().insert(key.name().to_owned(), kind);
    }

    fn has_registered(&self, name: &str) -> bool {
        self.registered.lock().unwrap().contains_key(name)
    }
}

impl Recorder for Told {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe("counter", &name, unit, &text);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe("gauge", &name, unit, &text);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe("histogram", &name, unit, &text);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.register("counter", key);
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.register("gauge", key);
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.register("histogram", key);
        Histogram::noop()
    }
}

/// Counts locally, and says that it is shared.
struct Shared(LocalRateLimiter);

impl RateLimiter for Shared {
    fn buckets(
        &self,
        subject: &port::Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> Arc<dyn port::Buckets> {
        self.0.buckets(subject, limits, now)
    }

    fn health(&self) -> LimiterHealth {
        LimiterHealth::Shared
    }
}

#[tokio::test]
async fn each_metric_has_a_description_and_its_unit_and_no_other_is_described() {
    let told = Told::default();
    let _recorder = set_default_local_recorder(&told);
    // With all that a gauge shows: a feed that has told of its lag, a shared limiter, and keys of
    // another system.
    let (feed, heard) = (FakeFeed::new(), Heard::default());
    let store = MemoryKeyStore::new();
    let (auth, worker) = Authenticator::builder(store.clone(), format())
        .legacy_hashes(store)
        .clock(ManualClock::default())
        .observer(heard.clone())
        .rate_limiter(Arc::new(Shared(LocalRateLimiter::new())))
        .change_feed(feed.clone())
        .build();
    let worker = tokio::spawn(worker.run(pending()));
    heard.until(|heard| heard.contains(&Said::FeedLive)).await;
    feed.tell(Change::Heartbeat { lag: Duration::from_millis(3) });
    eventually("the lag is shown", async || {
        auth.refresh_metrics();
        told.has_registered("api_key_feed_lag_seconds")
    })
    .await;
    worker.abort();

    let registered = told.registered.lock().unwrap();
    let described = told.described.lock().unwrap();
    assert!(registered.len() >= 18, "{registered:?}");
    let kinds: BTreeMap<_, _> =
        described.iter().map(|(name, told)| (name.clone(), told.kind)).collect();
    assert_eq!(kinds, *registered);
    for (name, Description { unit, text, .. }) in &*described {
        let is_time = name.ends_with("_seconds");
        let expected = if is_time { Unit::Seconds } else { Unit::Count };
        assert_eq!(*unit, Some(expected), "{name}");
        assert!(text.len() > 10 && text.ends_with('.'), "{name}: {text:?}");
    }
}
