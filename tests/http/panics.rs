//! Code of the application that panics: at most one request fails, and the process goes on.

use std::{
    future::pending,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use http::{Request, StatusCode, header::AUTHORIZATION};
use tokio::sync::oneshot;
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer,
    auth::{Builder, Event, FeedHealth, Rejection, RejectionKind},
    clock::{Clock, ManualClock},
    layer::{Cost, RateClass},
    rate_limit::{
        LocalRateLimiter, Quota, RateLimiter, RateLimits,
        port::{Buckets, Check, Subject},
    },
    store::port::Change,
};

use crate::{
    doubles::{Answers, FakeFeed, Key, Said, Service, poll_once, within},
    raw_store::ByHand as _,
};

const SECOND: Duration = Duration::from_secs(1);

/// The part that panics, and how many times it was called.
#[derive(Clone, Default)]
struct Fuse(Arc<(AtomicU8, AtomicUsize)>);

const NOTHING: u8 = 0;
const SWEEP: u8 = 1;
const BUCKETS: u8 = 2;
const TAKE: u8 = 3;
const PENDING_TAKE: u8 = 4;
const PEEK: u8 = 5;
const CHARGE: u8 = 6;
const GIVE_BACK: u8 = 7;
const WALL: u8 = 8;
const MONOTONIC: u8 = 9;

impl Fuse {
    fn light(&self, part: u8) {
        self.0.0.store(part, Ordering::SeqCst);
    }

    fn burns(&self, part: u8) -> bool {
        self.0.0.load(Ordering::SeqCst) == part
    }

    fn pass(&self, part: u8) {
        if part == SWEEP {
            self.0.1.fetch_add(1, Ordering::SeqCst);
        }
        assert!(!self.burns(part), "it panics, as the test wants it to");
    }

    fn sweeps(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

struct Limiter(LocalRateLimiter, Fuse);

struct Bucket(Arc<dyn Buckets>, Fuse);

impl RateLimiter for Limiter {
    fn buckets(
        &self,
        subject: &Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> Arc<dyn Buckets> {
        self.1.pass(BUCKETS);
        Arc::new(Bucket(self.0.buckets(subject, limits, now), self.1.clone()))
    }

    fn sweep(&self, now: Duration) {
        self.1.pass(SWEEP);
        self.0.sweep(now);
    }
}

impl Buckets for Bucket {
    fn take(&self, units: NonZeroU32, now: Duration) -> Check {
        self.1.pass(TAKE);
        if self.1.burns(PENDING_TAKE) {
            return Check::Pending(Box::pin(async {
                panic!("it panics, as the test wants it to")
            }));
        }
        self.0.take(units, now)
    }

    fn peek(&self, now: Duration) -> Check {
        self.1.pass(PEEK);
        self.0.peek(now)
    }

    fn charge(&self, units: NonZeroU32, now: Duration) {
        self.1.pass(CHARGE);
        self.0.charge(units, now);
    }

    fn give_back(&self, units: NonZeroU32, now: Duration) {
        self.1.pass(GIVE_BACK);
        self.0.give_back(units, now);
    }
}

struct Watch(ManualClock, Fuse);

impl Clock for Watch {
    fn now(&self) -> SystemTime {
        self.1.pass(WALL);
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.1.pass(MONOTONIC);
        self.0.monotonic()
    }
}

/// A service whose limiter and clock panic on demand.
fn fused(
    settings: impl FnOnce(Builder) -> Builder,
) -> (Service, Fuse, tower_api_key::auth::Worker) {
    let (fuse, clock) = (Fuse::default(), ManualClock::default());
    let store = crate::doubles::FakeStore::new(&clock);
    let (limiter, watch) =
        (Limiter(LocalRateLimiter::new(), fuse.clone()), Watch(clock.clone(), fuse.clone()));
    let (service, worker) = Service::around(store, clock, |builder| {
        let quota = Quota::per_hour(1_000).unwrap();
        settings(builder.rate_limiter(limiter).clock(watch).default_rate_limits(quota))
    });
    (service, fuse, worker)
}

fn with_key(path: &str, key: &Key) -> Request<Body> {
    let value = format!("Bearer {}", key.text);
    Request::get(path).header(AUTHORIZATION, value).body(Body::empty()).unwrap()
}

async fn status(app: &Router, path: &str, key: &Key) -> (StatusCode, Option<RejectionKind>) {
    let answer = app.clone().oneshot(with_key(path, key)).await.unwrap();
    (answer.status(), answer.extensions().get::<Rejection>().map(Rejection::kind))
}

const INTERNAL: (StatusCode, Option<RejectionKind>) =
    (StatusCode::INTERNAL_SERVER_ERROR, Some(RejectionKind::Internal));
const FINE: (StatusCode, Option<RejectionKind>) = (StatusCode::OK, None);

// Requests.

#[tokio::test(start_paused = true)]
async fn a_limiter_or_a_clock_that_panics_costs_one_request() {
    for part in [TAKE, PENDING_TAKE, MONOTONIC] {
        let (service, fuse, worker) = fused(|builder| builder);
        drop(worker);
        let key = service.issue("acme").await;
        service.get(&key.text).await.is_for("acme");
        fuse.light(part);
        for _ in 0..3 {
            let reply = service.get(&key.text).await;
            assert_eq!((reply.status, reply.kind), INTERNAL, "{part}");
        }
        fuse.light(NOTHING);
        service.get(&key.text).await.is_for("acme");
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_panics_while_a_key_is_looked_up_costs_those_who_wait_for_it() {
    for part in [BUCKETS, TAKE, PENDING_TAKE, WALL, MONOTONIC] {
        let (service, fuse, worker) = fused(|builder| builder);
        drop(worker);
        let (key, other) = (service.issue("acme").await, service.issue("other").await);
        service.get(&other.text).await.is_for("other");
        fuse.light(part);
        let reply = service.get(&key.text).await;
        assert!(reply.status.is_server_error(), "{part}: {reply:?}");
        fuse.light(NOTHING);
        service.get(&other.text).await.is_for("other");
        service.get(&key.text).await.is_for("acme");
    }
}

#[tokio::test(start_paused = true)]
async fn in_shadow_mode_a_limiter_or_a_clock_that_panics_costs_no_request() {
    for part in [BUCKETS, TAKE, PENDING_TAKE, PEEK, CHARGE, GIVE_BACK, WALL, MONOTONIC] {
        for charge in [false, true] {
            let (service, fuse, worker) = fused(|builder| builder);
            drop(worker);
            let (key, fresh) = (service.issue("acme").await, service.issue("acme").await);
            service.get(&key.text).await.is_for("acme");
            let class = RateClass::new("search", Quota::per_minute(100).unwrap()).unwrap();
            let app = Router::new()
                .route("/", get(async || (Cost::FREE, "answer")))
                .route("/cost", get(async || "answer").layer((class, Cost::new(5))));
            let layer = ApiKeyLayer::new(service.auth.clone()).shadow(true).shadow_charge(charge);
            let app = app.layer(layer);
            fuse.light(part);
            for (path, key) in [("/", &key), ("/cost", &key), ("/", &fresh)] {
                assert_eq!(status(&app, path, key).await, FINE, "{part} {path}");
            }
            fuse.light(NOTHING);
            assert_eq!(status(&app, "/", &key).await, FINE, "{part}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_limiter_that_panics_after_the_handler_changes_no_answer() {
    for part in [PEEK, CHARGE, GIVE_BACK, MONOTONIC] {
        for cost in [Cost::FREE, Cost::new(5)] {
            let (service, fuse, worker) = fused(|builder| builder);
            drop(worker);
            let key = service.issue("acme").await;
            let burning = fuse.clone();
            let handler = move || async move {
                burning.light(part);
                (cost, "answer").into_response()
            };
            let app = Router::new().route("/", get(handler));
            let app = app.layer(ApiKeyLayer::new(service.auth.clone()));
            assert_eq!(status(&app, "/", &key).await, FINE, "{part}");
            fuse.light(NOTHING);
            assert_eq!(status(&app, "/", &key).await, FINE, "{part}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_limiter_that_panics_in_a_layer_inside_costs_one_request() {
    for part in [TAKE, PENDING_TAKE, BUCKETS, MONOTONIC] {
        for path in ["/class", "/cost"] {
            let (service, fuse, worker) = fused(|builder| builder);
            drop(worker);
            let key = service.issue("acme").await;
            let class = RateClass::new("search", Quota::per_minute(100).unwrap()).unwrap();
            let burning = fuse.clone();
            let light = axum::middleware::map_request(move |request: Request<Body>| {
                // After the layer has let it in.
                if request.headers().contains_key("x-burn") {
                    burning.light(part);
                }
                std::future::ready(request)
            });
            let app = Router::new()
                .route("/class", get(|| async {}).layer(class))
                .route("/cost", get(|| async {}).layer(Cost::new(5)))
                .layer(light)
                .layer(ApiKeyLayer::new(service.auth.clone()));
            let mut request = with_key(path, &key);
            request.headers_mut().insert("x-burn", "1".parse().unwrap());
            let answer = app.clone().oneshot(request).await.unwrap();
            if path == "/class" || part != BUCKETS {
                assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR, "{part} {path}");
            }
            fuse.light(NOTHING);
            assert_eq!(status(&app, path, &key).await, FINE, "{part} {path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_panics_while_a_stream_looks_at_its_key_ends_the_stream() {
    let (service, fuse, worker) = fused(|builder| builder);
    drop(worker);
    let key = service.issue("acme").await;
    let admission = service.auth.check(key.text.as_bytes()).await.unwrap();
    let mut ended = admission.consumer().key_ended();
    assert!(poll_once(&mut ended).is_pending());
    fuse.light(MONOTONIC);
    service.auth.invalidate(&key.record.key_hash);
    within(ended).await;
    fuse.light(NOTHING);
    service.get(&key.text).await.is_for("acme");
}

// The worker.

/// Advances all clocks.
async fn pass(service: &Service, time: Duration) {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
    service.clock.advance(time);
    tokio::time::advance(time).await;
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_limiter_that_panics_when_it_is_swept_ends_no_duty_of_the_worker() {
    let feed = FakeFeed::new();
    let (service, fuse, worker) = fused(|builder| builder.change_feed(feed.clone()));
    let worker = tokio::spawn(worker.run(pending()));
    service.heard.until(|heard| heard.contains(&Said::FeedLive)).await;
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    fuse.light(SWEEP);
    pass(&service, 10 * SECOND).await;
    assert_eq!(service.heard.count(Said::DutyPanicked("limiter sweep")), 1);
    assert_eq!(service.store.batches().len(), 1, "uses are written");

    service.store.revoke(key.record.id, None).await.unwrap();
    feed.tell(Change::Changed(key.record.id));
    feed.until(|state| state.told.is_empty()).await;
    pass(&service, SECOND).await;
    service.get(&key.text).await.is_refused(RejectionKind::Revoked);
    assert!(matches!(service.auth.health().feed, FeedHealth::Live { .. }));

    // The sweep runs again while it panics, and afterwards.
    for _ in 0..10 {
        pass(&service, 10 * SECOND).await;
    }
    let panics = service.heard.count(Said::DutyPanicked("limiter sweep"));
    assert!(panics >= 5, "{panics}");
    fuse.light(NOTHING);
    let before = fuse.sweeps();
    for _ in 0..5 {
        pass(&service, 10 * SECOND).await;
    }
    assert!(fuse.sweeps() >= before + 3);
    assert_eq!(service.heard.count(Said::DutyPanicked("limiter sweep")), panics);
    assert!(!worker.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_panics_for_a_while_ends_no_duty_of_the_worker_and_loses_no_use() {
    for part in [WALL, MONOTONIC] {
        let feed = FakeFeed::new();
        let (service, fuse, worker) = fused(|builder| builder.change_feed(feed.clone()));
        let key = service.issue("acme").await;
        service.get(&key.text).await.is_for("acme");
        fuse.light(part);
        let worker = tokio::spawn(worker.run(pending()));
        for _ in 0..30 {
            pass(&service, SECOND).await;
        }
        let heard = service.heard.take();
        for duty in ["usage", "clock check"] {
            assert!(heard.contains(&Said::DutyPanicked(duty)), "{part}: {duty}");
        }
        if part == MONOTONIC {
            assert!(heard.contains(&Said::DutyPanicked("change feed")));
            assert_eq!(service.auth.health().feed, FeedHealth::Gap);
        }
        fuse.light(NOTHING);
        for _ in 0..30 {
            pass(&service, SECOND).await;
        }
        assert!(matches!(service.auth.health().feed, FeedHealth::Live { .. }), "{part}");
        let written: Vec<_> = service.store.batches().concat();
        assert_eq!(written.len(), 1, "{part}");
        assert_eq!(written[0].key_id, key.record.id);
        service.store.revoke(key.record.id, None).await.unwrap();
        feed.tell(Change::Changed(key.record.id));
        feed.until(|state| state.told.is_empty()).await;
        pass(&service, SECOND).await;
        service.get(&key.text).await.is_refused(RejectionKind::Revoked);
        assert!(!worker.is_finished());
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_or_an_observer_that_panics_ends_no_duty_of_the_worker() {
    let feed = FakeFeed::new();
    let observer = |_: &Event<'_>| panic!("it panics, as the test wants it to");
    let (service, _fuse, worker) =
        fused(|builder| builder.change_feed(feed.clone()).observer(observer));
    let worker = tokio::spawn(worker.run(pending()));
    feed.until(|state| state.is_connected).await;
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.store.answer(Answers::Panicking);
    for _ in 0..30 {
        pass(&service, SECOND).await;
    }
    assert!(!worker.is_finished());
    service.store.answer(Answers::Truthfully);
    for _ in 0..30 {
        pass(&service, SECOND).await;
    }
    assert_eq!(service.store.batches().concat().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_panics_is_one_and_what_is_left_is_written() {
    let (service, _fuse, worker) = fused(|builder| builder);
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { stopped.await.unwrap() }));
    pass(&service, SECOND).await;
    drop(stop);
    within(worker).await.expect("the worker ends in good order");
    assert_eq!(service.store.batches().concat().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_panics_at_the_end_costs_only_what_was_not_dated() {
    let (service, fuse, worker) = fused(|builder| builder);
    let (early, late) = (service.issue("acme").await, service.issue("acme").await);
    service.get(&early.text).await.is_for("acme");
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));
    pass(&service, SECOND).await;
    service.get(&late.text).await.is_for("acme");
    fuse.light(WALL);
    stop.send(()).unwrap();
    within(worker).await.expect("the worker ends in good order");
    let written = service.store.batches().concat();
    assert!(written.iter().any(|usage| usage.key_id == early.record.id));
}
