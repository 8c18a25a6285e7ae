//! Counts of uses: on their way from the cache to the store, none is lost, and none is written twice.

use std::{
    future::ready,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tower_api_key::{
    auth::{CachePolicy, RejectionKind},
    clock::Clock as _,
    manage::{Expiry, NewKey},
    rate_limit::Quota,
    store::{
        StoreErrorKind,
        port::{HourlyUse, UseCounts},
    },
};

use crate::doubles::{Answers, DOWN, Key, Said, Service, within};
use crate::worker::Running;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// The default.
const INTERVAL: Duration = Duration::from_secs(10);

const fn admitted(times: i64) -> UseCounts {
    UseCounts::new(times, 0, 0, 0, times)
}

fn hour(key: &Key, hour: SystemTime, counts: UseCounts) -> HourlyUse {
    HourlyUse::new(key.record.id, "acme".into(), hour, counts)
}

/// Moves to `left` before the next hour, and returns when that begins.
async fn until_next_hour(running: &Running, left: Duration) -> SystemTime {
    let since_1970 = running.service.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let into_the_hour = u64::try_from(since_1970.as_nanos() % HOUR.as_nanos()).unwrap();
    let rest = HOUR - Duration::from_nanos(into_the_hour);
    running.pass(rest - left).await;
    running.service.clock.now() + left
}

#[tokio::test(start_paused = true)]
async fn each_outcome_of_a_known_key_is_counted_once_in_its_hour() {
    let running = Running::start();
    let service = &running.service;
    let begin = service.clock.now();
    let limits = Quota::per_hour(3).unwrap();
    let limited = service.issue_new(NewKey::new("acme", Expiry::Never).rate_limits(limits)).await;
    let revoked = service.issue("acme").await;
    service.revoke(&revoked).await;
    for _ in 0..5 {
        service.get(&limited.text).await;
    }
    for _ in 0..7 {
        service.get(&revoked.text).await.is_refused(RejectionKind::Revoked);
    }
    running.pass(INTERVAL).await;
    let counted = service.store.counted();
    assert_eq!(counted.len(), 1);
    let mut expected = [
        hour(&limited, begin, UseCounts::new(3, 2, 0, 0, 3)),
        hour(&revoked, begin, UseCounts::new(0, 0, 0, 7, 0)),
    ];
    expected.sort_by_key(|used| used.key_id);
    assert_eq!(counted[0].hours, expected);
    assert_eq!(service.heard.count(Said::UsageFlushed(2)), 1);

    running.pass(10 * INTERVAL).await;
    assert_eq!(service.store.flushes(), 1, "nothing was used, and something was written");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_not_decided_is_not_counted() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    service.store.answer(DOWN);
    service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
    service.store.answer(Answers::Truthfully);
    running.pass(INTERVAL).await;
    assert_eq!(service.store.counted(), []);
    assert_eq!(service.store.flushes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_charged_costs_no_units() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    within(async { service.auth.check(key.text.as_bytes()).without_charge().await }).await.unwrap();
    service.get(&key.text).await.is_for("acme");
    running.pass(INTERVAL).await;
    assert_eq!(service.store.counts_of(&key), UseCounts::new(2, 0, 0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_evicted_from_a_tiny_cache_lose_no_count() {
    let tiny = CachePolicy::default().capacity(2);
    let (service, worker) = Service::and_worker(|builder| builder.cache(tiny));
    let running = Running::with(service, worker);
    let service = &running.service;
    let mut keys = Vec::new();
    for _ in 0..50 {
        keys.push(service.issue("acme").await);
    }
    for round in 0..10 {
        for key in &keys {
            service.get(&key.text).await.is_for("acme");
        }
        if round % 3 == 0 {
            running.pass(INTERVAL).await;
        }
    }
    running.pass(INTERVAL).await;
    for key in &keys {
        assert_eq!(service.store.counts_of(key), admitted(10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_loaded_again_keeps_the_counts_of_before() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    for _ in 0..4 {
        service.get(&key.text).await.is_for("acme");
        service.auth.invalidate(&key.record.key_hash);
        service.get(&key.text).await.is_for("acme");
        service.auth.invalidate_all();
    }
    running.pass(INTERVAL).await;
    let counted = service.store.counted();
    assert_eq!(counted.len(), 1);
    assert_eq!(counted[0].hours.len(), 1, "one row for all that were cached");
    assert_eq!(service.store.counts_of(&key), admitted(8));
}

#[tokio::test(start_paused = true)]
async fn uses_before_and_after_the_turn_of_an_hour_are_counted_in_their_own() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    let next = until_next_hour(&running, SECOND).await;
    service.get(&key.text).await.is_for("acme");
    running.pass(SECOND).await;
    assert_eq!(service.clock.now(), next);
    for _ in 0..2 {
        service.get(&key.text).await.is_for("acme");
    }
    running.pass(INTERVAL).await;
    let counted: Vec<_> = service.store.counted().into_iter().flat_map(|it| it.hours).collect();
    assert_eq!(counted, [hour(&key, next - HOUR, admitted(1)), hour(&key, next, admitted(2))]);
}

#[tokio::test(start_paused = true)]
async fn an_hour_is_noticed_within_a_second_although_a_flush_hangs() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    let next = until_next_hour(&running, INTERVAL + 3 * SECOND).await;
    service.get(&key.text).await.is_for("acme");
    service.store.answer(Answers::Never);
    running.pass(INTERVAL).await;
    assert_eq!(service.store.flushes(), 1, "it hangs");
    service.get(&key.text).await.is_for("acme");
    running.pass(3 * SECOND).await;
    service.get(&key.text).await.is_for("acme");
    service.store.answer(Answers::Truthfully);
    // The flush that hangs fails, and the next tick retries it.
    for _ in 0..3 {
        running.pass(INTERVAL).await;
    }
    let counted: Vec<_> = service.store.counted().into_iter().flat_map(|it| it.hours).collect();
    let of = |begin| {
        let hours = counted.iter().filter(|used| used.hour == begin);
        hours.fold(UseCounts::default(), |sum, used| sum.plus(used.counts))
    };
    assert_eq!((of(next - HOUR), of(next)), (admitted(2), admitted(1)));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_failed_is_sent_again_as_it_was() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    let begin = service.clock.now();
    service.get(&key.text).await.is_for("acme");
    service.store.answer(DOWN);
    running.pass(INTERVAL).await;
    for _ in 0..2 {
        service.get(&key.text).await.is_for("acme");
    }
    running.pass(INTERVAL).await;
    let failed = Said::UsageFlushFailed(StoreErrorKind::Unavailable);
    assert_eq!(service.heard.count(failed), 2);
    service.store.answer(Answers::Truthfully);
    running.pass(INTERVAL).await;
    let counted = service.store.counted();
    let told: Vec<_> = counted.iter().map(|it| (it.sequence, it.hours.clone())).collect();
    let expected = [(1, admitted(1)), (2, admitted(2))];
    assert_eq!(told, expected.map(|(number, counts)| (number, vec![hour(&key, begin, counts)])));
    assert_eq!(counted[0].writer, counted[1].writer);
}

#[tokio::test(start_paused = true)]
async fn two_processes_are_two_writers() {
    let (one, other) = (Running::start(), Running::start());
    for running in [&one, &other] {
        let key = running.service.issue("acme").await;
        running.service.get(&key.text).await.is_for("acme");
        running.pass(INTERVAL).await;
    }
    let writer = |running: &Running| running.service.store.counted()[0].writer;
    assert_ne!(writer(&one), writer(&other));
}

#[tokio::test(start_paused = true)]
async fn on_shutdown_the_counts_that_are_left_are_written() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    for _ in 0..3 {
        service.get(&key.text).await.is_for("acme");
    }
    running.pass(INTERVAL).await;
    let service = &running.service;
    for _ in 0..4 {
        service.get(&key.text).await.is_for("acme");
    }
    let (service, _) = running.stop().await;
    assert_eq!(service.store.counts_of(&key), admitted(7));
}

#[tokio::test(start_paused = true)]
async fn counts_for_which_the_queue_has_no_room_stay_with_their_key() {
    let (service, worker) = Service::and_worker(|builder| builder);
    let key = service.issue("acme").await;
    // Each look-up makes another entry, and each is reported.
    for _ in 0..16_384 {
        service.get(&key.text).await.is_for("acme");
        service.auth.invalidate(&key.record.key_hash);
    }
    let other = service.issue("acme").await;
    for _ in 0..3 {
        service.get(&other.text).await.is_for("acme");
    }
    assert_eq!(service.heard.count(Said::UsageDropped), 3);
    let running = Running::with(service, worker);
    running.pass(SECOND).await;
    running.service.get(&other.text).await.is_for("acme");
    running.pass(INTERVAL).await;
    assert_eq!(running.service.store.counts_of(&key), admitted(16_384));
    assert_eq!(running.service.store.counts_of(&other), admitted(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_use_is_lost_between_requests_and_the_worker() {
    const REQUESTS: usize = 20_000;
    let tiny = CachePolicy::default().capacity(1);
    let interval = Duration::from_millis(10);
    let (service, worker) =
        Service::and_worker(|builder| builder.cache(tiny).usage_interval(interval));
    let keys = [service.issue("acme").await, service.issue("acme").await];
    let auth = service.auth.clone();
    let keys = Arc::new(keys);
    let worker = tokio::spawn(worker.run(ready_after(Arc::clone(&keys), auth, REQUESTS)));
    within(worker).await.unwrap();
    for key in &*keys {
        let expected = i64::try_from(2 * REQUESTS).unwrap();
        assert_eq!(service.store.counts_of(key), admitted(expected));
    }
}

/// Two tasks use each of `keys`, and a third one drops them from the cache.
async fn ready_after(keys: Arc<[Key; 2]>, auth: tower_api_key::Authenticator, requests: usize) {
    let mut tasks = Vec::new();
    for task in 0..4 {
        let (keys, auth) = (Arc::clone(&keys), auth.clone());
        tasks.push(tokio::spawn(async move {
            let key = &keys[task % 2];
            for request in 0..requests {
                auth.check(key.text.as_bytes()).await.unwrap();
                if request % 1_000 == 0 {
                    auth.invalidate(&key.record.key_hash);
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    ready(()).await;
}
