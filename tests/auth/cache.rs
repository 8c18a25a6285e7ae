//! The cache: how long and how much it keeps, and what invalidates it.
//!
//! The test controls the clock and tokio's time, so that no deadline passes on a busy machine.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use http::Request;
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Instant, timeout},
};
use tower_api_key::{
    Authenticator,
    auth::{Attempt, CachePolicy, RejectionKind},
    clock::{Clock, ManualClock},
    key::{Alphabet, ImportedFormat},
    manage::{Expiry, KeyIssuer, ManageErrorKind, NewKey},
    rate_limit::Quota,
    record::Scopes,
    store::{ManageKeys, StoreErrorKind},
};

use crate::doubles::{
    Answers, DOWN, Draws, FakeStore, FutureReply, Key, Said, Service, format, hash, poll_once,
    unknown_key, within,
};
use crate::raw_store::ByHand as _;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
const NANO: Duration = Duration::from_nanos(1);
/// The defaults.
const FRESH: Duration = Duration::from_secs(60);
const ABSENT: Duration = Duration::from_secs(30);
const STALE_IF_ERROR: Duration = Duration::from_secs(600);
const COOL_DOWN: Duration = Duration::from_millis(250);

fn policy() -> CachePolicy {
    CachePolicy::default()
}

// How long.

#[tokio::test(start_paused = true)]
async fn a_known_key_is_asked_for_once_a_minute() {
    let service = Service::new();
    let key = service.issue("acme").await;
    for minute in 1..=3 {
        service.get(&key.text).await.is_for("acme");
        assert_eq!(service.store.queries(), minute);
        service.get_at_once(&key.text).is_for("acme");
        service.clock.advance(FRESH - NANO);
        service.get_at_once(&key.text).is_for("acme");
        assert_eq!(service.store.queries(), minute);
        service.clock.advance(NANO);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_is_asked_for_twice_a_minute() {
    let service = Service::new();
    let key = unknown_key();
    for query in 1..=3 {
        service.get(&key).await.is_refused(RejectionKind::Unknown);
        assert_eq!(service.store.queries(), query);
        service.clock.advance(ABSENT - NANO);
        service.get_at_once(&key).is_refused(RejectionKind::Unknown);
        assert_eq!(service.store.queries(), query);
        service.clock.advance(NANO);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_as_old_as_its_question() {
    let service = Service::new();
    let (known, unknown) = (service.issue("acme").await, unknown_key());
    for (key, lasts) in [(&known.text, FRESH), (&unknown, ABSENT)] {
        let slow = held(&service, key).await;
        service.clock.advance(10 * SECOND);
        service.store.release();
        let reply = within(slow).await;

        service.clock.advance(lasts - 10 * SECOND - NANO);
        assert_eq!(service.get_at_once(key), reply);
        service.clock.advance(NANO);
        let again = service.begin(key);
        assert_eq!(within(again).await, reply);
    }
}

#[tokio::test(start_paused = true)]
async fn with_nothing_kept_every_request_asks() {
    let nothing = policy().fresh(Duration::ZERO).unwrap().absent(Duration::ZERO).unwrap();
    let service = Service::with(|builder| builder.cache(nothing));
    let (known, unknown) = (service.issue("acme").await, unknown_key());
    for round in 1..=3 {
        service.get(&known.text).await.is_for("acme");
        service.get(&unknown).await.is_refused(RejectionKind::Unknown);
        assert_eq!(service.store.queries(), 2 * round);
    }
}

#[tokio::test(start_paused = true)]
async fn without_room_keys_are_still_let_in() {
    let service = Service::with(|builder| builder.cache(policy().capacity(0).absent_capacity(0)));
    let key = service.issue("acme").await;
    for _ in 0..3 {
        service.get(&key.text).await.is_for("acme");
        service.get(&unknown_key()).await.is_refused(RejectionKind::Unknown);
    }
}

#[test]
fn settings_beyond_what_is_safe_are_refused_by_name() {
    type Setting = fn(Duration) -> Result<CachePolicy, tower_api_key::auth::InvalidCachePolicy>;
    let (zero, milli, secs) = (Duration::ZERO, Duration::from_millis(1), Duration::from_secs);
    let settings: [(&str, Duration, Duration, Setting); 4] = [
        ("fresh", zero, secs(300), |value| policy().fresh(value)),
        ("absent", zero, secs(60), |value| policy().absent(value)),
        ("stale_if_error", zero, secs(3600), |value| policy().stale_if_error(value)),
        ("load_deadline", milli, secs(30), |value| policy().load_deadline(value)),
    ];
    for (name, least, most, set) in settings {
        assert!(set(least).is_ok(), "{name}");
        assert!(set(most).is_ok(), "{name}");
        let refused = set(most + NANO).unwrap_err().to_string();
        assert_eq!(refused, format!("`{name}` must be at least {least:?} and at most {most:?}"));
        assert_eq!(set(least.saturating_sub(NANO)).is_ok(), least.is_zero(), "{name}");
        assert!(set(Duration::MAX).is_err(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_expires_while_it_is_fresh_is_refused_from_that_instant_on() {
    let service = Service::new();
    let key = service.issue_new(NewKey::new("acme", Expiry::In(10 * SECOND))).await;
    service.get(&key.text).await.is_for("acme");
    service.clock.advance(10 * SECOND - NANO);
    service.get_at_once(&key.text).is_for("acme");
    service.clock.advance(NANO);
    service.get_at_once(&key.text).is_refused(RejectionKind::Expired);
    assert_eq!(service.store.queries(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_slow_look_up_a_key_neither_begins_early_nor_ends_late() {
    let service = Service::new();
    let now = service.clock.now();
    let (slow, second) = (Duration::from_millis(300), Duration::from_secs(1));
    let begins =
        service.issue_new(NewKey::new("begins", Expiry::Never).not_before(now + second)).await;
    let begun = service.issue_new(NewKey::new("begun", Expiry::Never).not_before(now)).await;
    let ends = service.issue_new(NewKey::new("ends", Expiry::At(now + second))).await;
    // The store reads its clock at once, and responds later.
    service.store.hold();
    let replies = [&begins, &begun, &ends].map(|key| service.begin(&key.text));
    service.store.until(|state| state.queries.len() == 3).await;
    service.clock.advance(slow);
    service.store.release();
    let [begins_later, begun_before, ends_later] = replies;
    within(begins_later).await.is_refused(RejectionKind::NotYetActive);
    within(begun_before).await.is_for("begun");
    within(ends_later).await.is_for("ends");

    // For all the node knows, the store may have read its clock just before it responded.
    service.clock.advance(second - slow);
    service.get_at_once(&begins.text).is_refused(RejectionKind::NotYetActive);
    service.get_at_once(&ends.text).is_refused(RejectionKind::Expired);
    service.clock.advance(slow);
    service.get_at_once(&begins.text).is_for("begins");
}

#[tokio::test(start_paused = true)]
async fn a_step_of_the_wall_clock_changes_nothing_about_cached_keys() {
    let service = Service::new();
    let key = service.issue_new(NewKey::new("acme", Expiry::In(20 * SECOND))).await;
    let unknown = unknown_key();
    service.get(&key.text).await.is_for("acme");
    service.get(&unknown).await.is_refused(RejectionKind::Unknown);
    let hour = Duration::from_secs(3600);
    for wall in [service.clock.now() + hour, service.clock.now() - hour] {
        service.clock.set_wall(wall);
        service.clock.advance(9 * SECOND);
        service.get_at_once(&key.text).is_for("acme");
        service.get_at_once(&unknown).is_refused(RejectionKind::Unknown);
    }
    service.clock.advance(2 * SECOND);
    service.get_at_once(&key.text).is_refused(RejectionKind::Expired);
    assert_eq!(service.store.queries(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_key_stays_known_as_such_without_a_query() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.revoke(&key).await;
    service.get(&key.text).await.is_refused(RejectionKind::Revoked);
    service.get_at_once(&key.text).is_refused(RejectionKind::Revoked);
    assert_eq!(service.store.queries(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_key_is_unknown_once_it_is_no_longer_fresh() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.store.delete(key.record.key_hash);
    service.clock.advance(FRESH);
    service.get(&key.text).await.is_refused(RejectionKind::Unknown);

    service.store.answer(DOWN);
    service.get_at_once(&key.text).is_refused(RejectionKind::Unknown);
    service.clock.advance(ABSENT);
    let reply = service.get(&key.text).await;
    reply.is_unavailable(RejectionKind::StoreUnavailable);
}

// How much.

#[tokio::test(start_paused = true)]
async fn a_flood_of_unknown_keys_does_not_push_out_the_known_one() {
    // The format without a checksum, so that junk is cheap to make.
    let junk = ImportedFormat::new("", Alphabet::Hex, 64).unwrap();
    let policy = policy().capacity(1).unknown_key_queries_per_second(u32::MAX);
    let service = Service::with(|builder| builder.accept(junk).cache(policy));
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    for junk in 0..100_000 {
        let junk_key = format!("{junk:064x}");
        let rejection = service.auth.check(junk_key.as_bytes()).await.unwrap_err();
        assert_eq!(rejection.kind(), RejectionKind::Unknown);
        if junk % 50 == 0 {
            service.get_at_once(&key.text).is_for("acme");
        }
    }
    service.get_at_once(&key.text).is_for("acme");
    assert_eq!(service.store.queries_for(&key.record.key_hash), 1);
}

#[tokio::test(start_paused = true)]
async fn only_so_many_unknown_keys_are_remembered() {
    let policy = policy().absent_capacity(100).unknown_key_queries_per_second(u32::MAX);
    let service = Service::with(|builder| builder.cache(policy));
    let junk: Vec<_> = (0..3_000).map(|_| unknown_key()).collect();
    for key in junk.iter().chain(&junk) {
        service.get(key).await.is_refused(RejectionKind::Unknown);
    }
    let remembered = 2 * junk.len() - service.store.queries();
    // Some slack: moka evicts in batches.
    assert!(remembered < 1_000, "{remembered} unknown keys are remembered");
}

#[tokio::test(start_paused = true)]
async fn only_so_many_known_keys_are_remembered() {
    let service = Service::with(|builder| builder.cache(policy().capacity(100)));
    let mut keys = Vec::new();
    for _ in 0..3_000 {
        keys.push(service.issue("acme").await.text);
    }
    for key in keys.iter().chain(&keys) {
        service.get(key).await.is_for("acme");
    }
    let remembered = 2 * keys.len() - service.store.queries();
    assert!(remembered < 1_000, "{remembered} keys are remembered");
}

// Single flight.

#[tokio::test(start_paused = true)]
async fn a_thousand_first_requests_of_a_key_make_one_query() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.store.hold();
    let requests = (0..1_000).map(|_| service.begin(&key.text)).collect::<Vec<_>>();
    service.store.until(|state| state.queries.len() == 1).await;
    service.store.release();
    for request in requests {
        within(request).await.is_for("acme");
    }
    assert_eq!(service.store.queries(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_first_requests_from_many_threads_make_one_query() {
    let service = Service::new();
    for round in 1..=10 {
        let key = service.issue("acme").await;
        let start = Arc::new(Barrier::new(1_000));
        let mut clients = JoinSet::new();
        for _ in 0..1_000 {
            let (start, request) = (Arc::clone(&start), service.request(&key.text));
            clients.spawn(async move {
                start.wait().await;
                request.await
            });
        }
        while let Some(reply) = within(clients.join_next()).await {
            reply.unwrap().is_for("acme");
        }
        assert_eq!(service.store.queries(), round);
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_up_that_begins_late_takes_what_another_has_brought() {
    let service = Service::new();
    for key in [service.issue("acme").await.text, unknown_key()] {
        let Attempt::Pending(late) = service.auth.check(key.as_bytes()).try_now() else {
            panic!("nobody has asked for the key yet");
        };
        let queries = service.store.queries();
        let reply = service.get(&key).await;
        match within(late).await {
            Ok(admission) => reply.is_for(admission.consumer().id()),
            Err(rejection) => reply.is_refused(rejection.kind()),
        }
        assert_eq!(service.store.queries(), queries + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_first_requests_share_one_failure_and_none_is_remembered() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.store.answer(DOWN);
    service.store.hold();
    let requests = (0..1_000).map(|_| service.begin(&key.text)).collect::<Vec<_>>();
    service.store.until(|state| state.queries.len() == 1).await;
    service.store.release();
    for request in requests {
        within(request).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    assert_eq!(service.store.queries(), 1);
    assert_eq!(service.heard.count(Said::LoadFailed(StoreErrorKind::Unavailable)), 1);

    service.store.answer(Answers::Truthfully);
    service.get(&key.text).await.is_for("acme");
    assert_eq!(service.store.queries(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_request_after_a_failure_asks_again_rather_than_sharing_it() {
    let policy = policy().unknown_key_queries_per_second(u32::MAX);
    let service = Service::with(|builder| builder.cache(policy));
    let key = service.issue("acme").await;
    for failure in 1..=2_000 {
        service.store.answer(Answers::With(StoreErrorKind::Other));
        let reply = service.get(&key.text).await;
        reply.is_unavailable(RejectionKind::StoreUnavailable);
        service.store.answer(Answers::Truthfully);
        service.get(&key.text).await.is_for("acme");
        assert_eq!(service.store.queries(), 2 * failure);
        service.auth.invalidate_all();
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_is_one_that_does_not_answer() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.store.answer(Answers::Panicking);
    for _ in 0..300 {
        let reply = service.get(&key.text).await;
        reply.is_unavailable(RejectionKind::StoreUnavailable);
    }
    service.store.answer(Answers::Truthfully);
    service.get(&key.text).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_all_who_waited_and_nobody_after_them() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.store.answer(Answers::Panicking);
    service.store.hold();
    let requests = (0..100).map(|_| service.begin(&key.text)).collect::<Vec<_>>();
    service.store.until(|state| state.queries.len() == 1).await;
    service.store.release();
    for request in requests {
        within(request).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    service.store.answer(Answers::Truthfully);
    service.get(&key.text).await.is_for("acme");
    assert_eq!(service.store.queries(), 2);
}

#[tokio::test(start_paused = true)]
async fn clients_that_hang_up_leave_one_query_whose_answer_serves_the_next() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.store.hold();
    for _ in 0..10_000 {
        drop(service.begin(&key.text));
    }
    service.store.until(|state| state.queries.len() == 1).await;
    service.store.release();
    service.get(&key.text).await.is_for("acme");
    service.get_at_once(&key.text).is_for("acme");
    assert_eq!(service.store.queries(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_that_hang_up_on_many_threads_harm_nobody() {
    let service = Arc::new(Service::new());
    let key = service.issue("acme").await;
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let (service, key) = (Arc::clone(&service), key.text.clone());
        clients.spawn(async move {
            for _ in 0..2_500 {
                service.auth.invalidate_all();
                let _ = poll_once(&mut service.request(&key));
                tokio::task::yield_now().await;
            }
        });
    }
    while let Some(client) = within(clients.join_next()).await {
        client.unwrap();
    }
    service.get(&key.text).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn clients_that_hang_up_take_no_turn_with_them() {
    let turns = 8;
    let policy = policy().max_loads(turns).unknown_key_queries_per_second(u32::MAX);
    let service = Service::with(|builder| builder.cache(policy));
    for round in 1..=20 {
        for _ in 0..500 {
            drop(service.begin(&unknown_key()));
        }
        service.store.until(|state| state.queries.len() == round * 500).await;
    }
    service.store.hold();
    let for_strangers = turns - turns / 4;
    let requests: Vec<_> = (0..for_strangers).map(|_| service.begin(&unknown_key())).collect();
    service.store.until(|state| state.queries.len() == 10_000 + for_strangers).await;
    service.store.release();
    for request in requests {
        within(request).await.is_refused(RejectionKind::Unknown);
    }
}

// Invalidation.

/// A request whose query has read its row but not yet responded.
async fn held(service: &Service, key: &str) -> FutureReply {
    let query = service.store.queries() + 1;
    service.store.hold();
    let request = service.begin(key);
    service.store.until(|state| state.queries.len() == query).await;
    request
}

#[tokio::test(start_paused = true)]
async fn a_key_revoked_during_its_look_up_is_refused_from_then_on() {
    let service = Service::new();
    let key = service.issue("acme").await;
    let before = held(&service, &key.text).await;
    service.revoke(&key).await;
    service.store.release();
    within(before).await.is_refused(RejectionKind::Revoked);

    service.get_at_once(&key.text).is_refused(RejectionKind::Revoked);
    assert_eq!(service.store.queries(), 2);
}

#[tokio::test(start_paused = true)]
async fn forgetting_everything_during_a_look_up_forgets_its_answer_too() {
    let service = Service::new();
    let key = service.issue("acme").await;
    let before = held(&service, &key.text).await;
    service.store.revoke(key.record.id, None).await.unwrap();
    service.auth.invalidate_all();
    service.store.release();
    within(before).await.is_refused(RejectionKind::Revoked);

    service.get_at_once(&key.text).is_refused(RejectionKind::Revoked);
    assert_eq!(service.store.queries(), 2);
}

#[tokio::test(start_paused = true)]
async fn forgetting_one_key_leaves_the_look_up_of_another_alone() {
    let service = Service::new();
    let (key, other) = (service.issue("acme").await, service.issue("other").await);
    let before = held(&service, &key.text).await;
    service.auth.invalidate(&other.record.key_hash);
    service.store.release();
    within(before).await.is_for("acme");
    service.get_at_once(&key.text).is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn a_key_created_during_its_look_up_is_let_in_from_then_on() {
    let service = Service::new();
    let seed = Draws::usable().next().unwrap();
    let text = format().generate_from(&Draws::of([seed])).unwrap().expose_secret().to_owned();
    let before = held(&service, &text).await;
    let issuer = KeyIssuer::new(service.store.clone(), format())
        .entropy(Draws::of([seed, seed]))
        .invalidates(service.auth.clone());
    issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
    service.store.release();
    within(before).await.is_for("acme");

    service.get_at_once(&text).is_for("acme");
    assert_eq!(service.store.queries(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_after_the_revocation_does_not_join_the_look_up_from_before() {
    for newest_first in [false, true] {
        let service = Service::new();
        let key = service.issue("acme").await;
        let before = held(&service, &key.text).await;
        service.revoke(&key).await;
        let after = held(&service, &key.text).await;
        assert!(service.store.release_one(newest_first.into()));
        assert!(service.store.release_one(0));
        // The earlier request looks up again, and joins.
        within(before).await.is_refused(RejectionKind::Revoked);
        within(after).await.is_refused(RejectionKind::Revoked);
        service.get_at_once(&key.text).is_refused(RejectionKind::Revoked);
        assert_eq!(service.store.queries(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_revoked_key_is_not_let_in_while_the_store_is_down() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.revoke(&key).await;
    service.store.answer(DOWN);
    for _ in 0..10 {
        let reply = service.get(&key.text).await;
        reply.is_unavailable(RejectionKind::StoreUnavailable);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_revoked_while_the_store_goes_down_is_not_let_in_by_its_old_record() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.clock.advance(FRESH);
    let before = held(&service, &key.text).await;
    service.revoke(&key).await;
    service.store.answer(DOWN);
    service.store.release();
    within(before).await.is_unavailable(RejectionKind::StoreUnavailable);
}

#[tokio::test(start_paused = true)]
async fn a_changed_key_counts_as_changed_at_once() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    let mut changed = key.record.clone();
    changed.is_active = false;
    let changed = service.store.update(&changed).await.unwrap();
    service.get_at_once(&key.text).is_for("acme");
    service.auth.invalidate(&changed.key_hash);
    service.get(&key.text).await.is_refused(RejectionKind::Inactive);
}

#[tokio::test(start_paused = true)]
async fn forgetting_a_key_does_not_refill_its_quota() {
    let service = Service::new();
    let new = NewKey::new("acme", Expiry::Never).rate_limits(Quota::per_minute(2).unwrap());
    let key = service.issue_new(new).await;
    service.get(&key.text).await.is_for("acme");
    service.auth.invalidate(&key.record.key_hash);
    service.get(&key.text).await.is_for("acme");
    service.auth.invalidate_all();
    assert_eq!(service.get(&key.text).await.kind, Some(RejectionKind::RateLimited));
}

// Without a store.

/// A service that has cached a key, and whose store is down.
async fn stranded(settings: CachePolicy, new: NewKey) -> (Service, Key) {
    let service = Service::with(|builder| builder.cache(settings));
    let key = service.issue_new(new).await;
    service.get(&key.text).await.is_for("acme");
    service.store.answer(DOWN);
    (service, key)
}

#[tokio::test(start_paused = true)]
async fn a_fresh_key_does_not_notice() {
    let (service, key) = stranded(policy(), NewKey::new("acme", Expiry::Never)).await;
    service.clock.advance(FRESH - NANO);
    service.get_at_once(&key.text).is_for("acme");
    assert_eq!(service.heard.take(), []);
}

#[tokio::test(start_paused = true)]
async fn a_known_key_is_let_in_by_its_old_record_for_ten_minutes() {
    let (service, key) = stranded(policy(), NewKey::new("acme", Expiry::Never)).await;
    service.clock.advance(FRESH);
    for _ in 0..20 {
        service.heard.take();
        service.get(&key.text).await.is_for("acme");
        assert_eq!(service.heard.count(Said::StaleServed(key.record.id)), 1);
        service.clock.advance((STALE_IF_ERROR - NANO) / 20);
    }
    service.get(&key.text).await.is_for("acme");

    service.clock.advance(SECOND);
    let reply = service.get(&key.text).await;
    reply.is_unavailable(RejectionKind::StoreUnavailable);

    service.store.answer(Answers::Truthfully);
    service.clock.advance(COOL_DOWN);
    service.get(&key.text).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn an_old_record_lets_nobody_in_past_its_expiry() {
    let (service, key) = stranded(policy(), NewKey::new("acme", Expiry::In(2 * FRESH))).await;
    service.clock.advance(2 * FRESH - NANO);
    service.get(&key.text).await.is_for("acme");
    service.clock.advance(NANO);
    service.get(&key.text).await.is_refused(RejectionKind::Expired);
}

#[tokio::test(start_paused = true)]
async fn without_a_grace_a_key_is_refused_once_it_is_no_longer_fresh() {
    let none = policy().stale_if_error(Duration::ZERO).unwrap();
    let (service, key) = stranded(none, NewKey::new("acme", Expiry::Never)).await;
    service.clock.advance(FRESH);
    let reply = service.get(&key.text).await;
    reply.is_unavailable(RejectionKind::StoreUnavailable);
}

#[tokio::test(start_paused = true)]
async fn an_old_record_is_replaced_as_soon_as_the_store_answers() {
    let (service, key) = stranded(policy(), NewKey::new("acme", Expiry::Never)).await;
    service.clock.advance(FRESH);
    service.get(&key.text).await.is_for("acme");
    service.store.revoke(key.record.id, None).await.unwrap();
    service.get(&key.text).await.is_for("acme");
    service.store.answer(Answers::Truthfully);
    service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_is_not_taken_for_unknown_any_longer_than_it_would_be() {
    let service = Service::new();
    let key = unknown_key();
    service.get(&key).await.is_refused(RejectionKind::Unknown);
    service.store.answer(DOWN);
    service.clock.advance(ABSENT - NANO);
    service.get_at_once(&key).is_refused(RejectionKind::Unknown);
    service.clock.advance(NANO);
    service.get(&key).await.is_unavailable(RejectionKind::StoreUnavailable);
}

#[tokio::test(start_paused = true)]
async fn no_error_of_any_kind_is_remembered() {
    use StoreErrorKind::{Conflict, Corrupt, Migration, Other, Unavailable};
    for kind in [Unavailable, Conflict, Corrupt, Migration, Other] {
        let service = Service::new();
        let key = service.issue("acme").await;
        for query in 1..=4 {
            service.store.answer(Answers::With(kind));
            let reply = service.get(&key.text).await;
            reply.is_unavailable(RejectionKind::StoreUnavailable);
            assert_eq!(service.store.queries(), query);
            assert_eq!(service.heard.take().first(), Some(&Said::LoadFailed(kind)));
        }
        service.store.answer(Answers::Truthfully);
        service.get(&key.text).await.is_for("acme");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_failed_five_times_is_asked_four_times_a_second() {
    let service = Service::new();
    service.store.answer(DOWN);
    for query in 1..=5 {
        let reply = service.get(&unknown_key()).await;
        reply.is_unavailable(RejectionKind::StoreUnavailable);
        assert_eq!(service.store.queries(), query);
    }
    for probe in 0..8 {
        for _ in 0..10 {
            let reply = service.get(&unknown_key()).await;
            reply.is_unavailable(RejectionKind::StoreUnavailable);
        }
        assert_eq!(service.store.queries(), 5 + probe);
        service.clock.advance(COOL_DOWN - NANO);
        service.get(&unknown_key()).await.is_unavailable(RejectionKind::StoreUnavailable);
        assert_eq!(service.store.queries(), 5 + probe, "asked too early");
        service.clock.advance(NANO);
        service.get(&unknown_key()).await.is_unavailable(RejectionKind::StoreUnavailable);
        assert_eq!(service.store.queries(), 6 + probe, "not asked");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_back_is_noticed_by_the_next_probe_and_asked_by_all() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.store.answer(DOWN);
    for _ in 0..50 {
        service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    service.store.answer(Answers::Truthfully);
    service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
    service.clock.advance(COOL_DOWN);
    service.get(&key.text).await.is_for("acme");
    for _ in 0..50 {
        service.get(&unknown_key()).await.is_refused(RejectionKind::Unknown);
    }
}

#[tokio::test(start_paused = true)]
async fn one_probe_at_a_time_and_whoever_comes_meanwhile_does_not_wait() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.clock.advance(FRESH);
    service.store.answer(DOWN);
    for _ in 0..5 {
        service.get(&unknown_key()).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    service.clock.advance(COOL_DOWN);
    let probe = held(&service, &unknown_key()).await;
    service.get_at_once(&key.text).is_for("acme");
    service.get(&unknown_key()).await.is_unavailable(RejectionKind::StoreUnavailable);
    assert_eq!(service.store.queries(), 7);
    service.store.release();
    within(probe).await.is_unavailable(RejectionKind::StoreUnavailable);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_with_nonsense_is_not_down() {
    let service = Service::new();
    for query in 1..=20 {
        service.store.answer(Answers::With(StoreErrorKind::Corrupt));
        service.get(&unknown_key()).await.is_unavailable(RejectionKind::StoreUnavailable);
        assert_eq!(service.store.queries(), query);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_waited_for_half_a_second() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.store.answer(Answers::Never);
    let begun = Instant::now();
    service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
    assert_eq!(begun.elapsed(), 500 * MILLI);
    assert_eq!(
        service.heard.take(),
        [
            Said::LoadFailed(StoreErrorKind::Unavailable),
            Said::Rejected(RejectionKind::StoreUnavailable, None)
        ]
    );

    service.store.answer(Answers::Truthfully);
    service.get(&key.text).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn whoever_joins_a_look_up_late_waits_no_longer_than_it_does() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.store.answer(Answers::Never);
    let mut first = service.request(&key.text);
    assert!(timeout(499 * MILLI, &mut first).await.is_err());
    let begun = Instant::now();
    service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
    assert_eq!(begun.elapsed(), MILLI);
    assert_eq!(service.store.queries(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_so_many_queries_are_under_way_and_a_quarter_is_for_known_keys() {
    let service = Service::new();
    let mut known = Vec::new();
    for _ in 0..17 {
        let key = service.issue("acme").await;
        service.get(&key.text).await.is_for("acme");
        known.push(key.text);
    }
    service.clock.advance(FRESH);
    service.store.hold();

    let mut strangers: Vec<_> = (0..49).map(|_| service.begin(&unknown_key())).collect();
    service.store.until(|state| state.queries.len() == 17 + 48).await;
    assert!(timeout(100 * MILLI, strangers.last_mut().unwrap()).await.is_err());
    assert_eq!(service.store.queries(), 17 + 48);

    let mut known: Vec<_> = known.iter().map(|key| service.begin(key)).collect();
    service.store.until(|state| state.queries.len() == 17 + 64).await;
    assert!(timeout(100 * MILLI, known.last_mut().unwrap()).await.is_err());
    assert_eq!(service.store.queries(), 17 + 64);

    service.store.release();
    for request in known {
        within(request).await.is_for("acme");
    }
    for request in strangers {
        within(request).await.is_refused(RejectionKind::Unknown);
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_comes_late_leaves_time_for_the_query() {
    let service = Service::with(|builder| builder.cache(policy().max_loads(1)));
    service.store.hold();
    let first = service.begin(&unknown_key());
    let mut late = service.begin(&unknown_key());
    assert!(timeout(240 * MILLI, &mut late).await.is_err());
    assert!(service.store.release_one(0));
    within(first).await.is_refused(RejectionKind::Unknown);
    assert!(timeout(240 * MILLI, &mut late).await.is_err());
    service.store.release();
    within(late).await.is_refused(RejectionKind::Unknown);
}

#[tokio::test(start_paused = true)]
async fn the_queue_for_a_turn_is_bounded() {
    let service = Service::with(|builder| builder.cache(policy().max_loads(1)));
    service.store.hold();
    let queue: Vec<_> = (0..64).map(|_| service.begin(&unknown_key())).collect();
    service.get_at_once(&unknown_key()).is_unavailable(RejectionKind::Overloaded);
    drop(queue);
}

#[tokio::test(start_paused = true)]
async fn whoever_gets_no_turn_in_time_is_told_so_and_the_store_is_spared() {
    let service = Service::new();
    service.store.answer(Answers::Never);
    let mut requests: Vec<_> = (0..49).map(|_| service.begin(&unknown_key())).collect();
    let last = requests.pop().unwrap();
    let begun = Instant::now();
    within(last).await.is_unavailable(RejectionKind::Overloaded);
    assert_eq!(begun.elapsed(), 250 * MILLI);
    for request in requests {
        within(request).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    assert_eq!(begun.elapsed(), 500 * MILLI);
    assert_eq!(service.store.queries(), 48);

    service.store.answer(Answers::Truthfully);
    service.clock.advance(COOL_DOWN);
    service.get(&unknown_key()).await.is_refused(RejectionKind::Unknown);
}

#[tokio::test(start_paused = true)]
async fn whoever_waited_for_a_turn_does_not_ask_a_store_that_went_down_meanwhile() {
    let service = Service::with(|builder| builder.cache(policy().max_loads(1)));
    service.store.hold();
    let requests: Vec<_> = (0..20).map(|_| service.begin(&unknown_key())).collect();
    service.store.until(|state| state.queries.len() == 1).await;
    service.store.answer(DOWN);
    service.store.release();
    for request in requests {
        within(request).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    assert_eq!(service.store.queries(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_known_key_is_let_in_by_its_old_record_when_it_gets_no_turn() {
    let service = Service::with(|builder| builder.cache(policy().max_loads(1)));
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.clock.advance(FRESH);
    service.store.answer(Answers::Never);
    let first = service.begin(&unknown_key());
    service.get(&key.text).await.is_for("acme");
    assert_eq!(service.heard.count(Said::StaleServed(key.record.id)), 1);
    within(first).await.is_unavailable(RejectionKind::StoreUnavailable);
}

#[tokio::test]
async fn a_key_whose_record_makes_no_sense_any_more_is_not_let_in_by_an_old_one() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.clock.advance(FRESH);
    service.store.answer(Answers::With(StoreErrorKind::Corrupt));
    service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
}

#[test]
fn a_look_up_on_a_runtime_that_has_ended_fails_and_holds_nothing_up() {
    let service = Service::new();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    drop(runtime);
    let (done, told) = std::sync::mpsc::channel();
    let auth = service.auth;
    std::thread::spawn(move || {
        let _within = handle.enter();
        let Attempt::Pending(mut lookup) = auth.check(unknown_key().as_bytes()).try_now() else {
            panic!("the key needs no look-up");
        };
        let _ = poll_once(&mut lookup);
        done.send(()).unwrap();
    });
    told.recv_timeout(Duration::from_secs(30)).expect("the look-up holds its own lock up");
}

#[test]
fn a_look_up_on_a_runtime_that_stands_still_keeps_nobody_waiting() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let service = Service::new();
    let key = unknown_key();
    let stalled = runtime();
    let entered = stalled.enter();
    let first = service.begin(&key);
    drop(entered);
    let other = runtime();
    other.block_on(service.get(&key)).is_unavailable(RejectionKind::StoreUnavailable);
    other.block_on(service.get(&key)).is_refused(RejectionKind::Unknown);
    drop(first);
}

#[test]
fn outside_of_a_runtime_only_cached_keys_are_let_in() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let service = Service::new();
    let key = runtime.block_on(service.issue("acme"));
    service.get_at_once(&key.text).is_unavailable(RejectionKind::StoreUnavailable);
    runtime.block_on(service.get(&key.text)).is_for("acme");
    drop(runtime);
    service.get_at_once(&key.text).is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_ends_in_a_look_up_fails_it_and_no_other() {
    let service = Arc::new(Service::new());
    let key = service.issue("acme").await;
    service.store.hold();
    let theirs = Arc::clone(&service);
    let text = key.text.clone();
    let leader = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        drop(runtime.block_on(held(&theirs, &text)));
        runtime
    });
    let runtime = leader.join().unwrap();
    let follower = service.begin(&key.text);
    runtime.shutdown_background();
    within(follower).await.is_unavailable(RejectionKind::StoreUnavailable);
    service.store.release();
    service.get(&key.text).await.is_for("acme");
}

// Issuing.

fn issuer(store: &FakeStore, draws: impl IntoIterator<Item = u8>) -> KeyIssuer {
    KeyIssuer::new(store.clone(), format()).entropy(Draws::of(draws))
}

#[tokio::test(start_paused = true)]
async fn issuing_a_key_forgets_that_it_was_unknown() {
    let service = Service::new();
    let mut seeds = Draws::usable();
    for told in [true, false] {
        let seed = seeds.next().unwrap();
        let text = format().generate_from(&Draws::of([seed])).unwrap().expose_secret().to_owned();
        service.get(&text).await.is_refused(RejectionKind::Unknown);
        let issuer = issuer(&service.store, [seed, seed]);
        let issuer = if told { issuer.invalidates(service.auth.clone()) } else { issuer };
        issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
        if told {
            service.get(&text).await.is_for("acme");
        } else {
            service.get_at_once(&text).is_refused(RejectionKind::Unknown);
            service.clock.advance(ABSENT);
            service.get(&text).await.is_for("acme");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_revoked_through_the_authenticators_issuer_is_refused_at_once_without_a_feed() {
    let service = Service::new();
    let own = service.auth.issuer(service.store.clone());
    let unconnected = KeyIssuer::new(service.store.clone(), format());
    for (issuer, is_connected) in [(own, true), (unconnected, false)] {
        let key = Key::from(issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap());
        service.get(&key.text).await.is_for("acme");
        issuer.revoke(key.record.id, None).await.unwrap();
        if is_connected {
            service.get(&key.text).await.is_refused(RejectionKind::Revoked);
        } else {
            service.get_at_once(&key.text).is_for("acme");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_authenticators_issuer_has_its_format_and_its_clock() {
    let old = ImportedFormat::new("old_", Alphabet::Hex, 64).unwrap();
    let service = Service::with(|builder| builder.accept(old));
    let issuer = service.auth.issuer(service.store.clone());
    assert_eq!(issuer.format(), &format());
    service.clock.advance(FRESH);
    let issued = issuer.issue(NewKey::new("acme", Expiry::In(FRESH))).await.unwrap();
    assert_eq!(issued.record.expires_at, Some(service.clock.now() + FRESH));
    let key = Key::from(issued);
    service.get(&key.text).await.is_for("acme");
    service.clock.advance(FRESH);
    service.get(&key.text).await.is_refused(RejectionKind::Expired);
}

#[tokio::test(start_paused = true)]
async fn without_randomness_no_key_is_issued() {
    let store = FakeStore::new(&ManualClock::default());
    let seed = Draws::usable().next().unwrap();
    let failures: [(&str, Vec<u8>); 3] = [
        ("no randomness at all", vec![]),
        ("nothing but zeros", vec![0; 1_000]),
        ("none left for the id", vec![seed]),
    ];
    for (what, draws) in failures {
        let error =
            issuer(&store, draws).issue(NewKey::new("acme", Expiry::Never)).await.unwrap_err();
        assert_eq!(error.kind(), ManageErrorKind::Rng, "{what}");
    }
    assert_eq!(store.inserted().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_exists_already_is_made_again_and_left_as_it_is() {
    let service = Service::new();
    let seeds: Vec<_> = Draws::usable().take(2).collect();
    let [seed, other] = seeds[..] else { panic!("two keys that can be drawn at once") };
    // One draw for the key, another for its id.
    let first =
        issuer(&service.store, [seed, 1]).issue(NewKey::new("first", Expiry::Never)).await.unwrap();
    let draws = [seed, 2, seed, 3, other, 4];
    let second =
        issuer(&service.store, draws).issue(NewKey::new("second", Expiry::Never)).await.unwrap();
    assert_ne!(first.record.key_hash, second.record.key_hash);

    service.get(first.key.expose_secret()).await.is_for("first");
    service.get(second.key.expose_secret()).await.is_for("second");
    let stored = service.store.get(first.record.id).await.unwrap().unwrap();
    assert_eq!((stored.consumer_id.as_str(), stored.version), ("first", 1));
}

#[tokio::test(start_paused = true)]
async fn a_generator_that_repeats_itself_issues_nothing_and_overwrites_nothing() {
    let service = Service::new();
    let seed = Draws::usable().next().unwrap();
    let first =
        issuer(&service.store, [seed, 1]).issue(NewKey::new("first", Expiry::Never)).await.unwrap();
    let draws = [seed, 1].repeat(1_000);
    let error = issuer(&service.store, draws)
        .issue(NewKey::new("second", Expiry::Never))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ManageErrorKind::Store);
    service.get(first.key.expose_secret()).await.is_for("first");
}

// Events for the observer.

#[tokio::test(start_paused = true)]
async fn each_request_that_is_turned_away_is_observed_once() {
    let service = Service::with(|builder| builder.cache(policy().load_deadline(SECOND).unwrap()));
    let now = service.clock.now();
    let [active, revoked, expired, inactive, early, limited] = [
        service.issue("acme").await,
        service.issue("acme").await,
        service.issue_new(NewKey::new("acme", Expiry::At(now))).await,
        service.issue("acme").await,
        service.issue_new(NewKey::new("acme", Expiry::Never).not_before(now + SECOND)).await,
        service
            .issue_new(NewKey::new("acme", Expiry::Never).rate_limits(Quota::per_hour(1).unwrap()))
            .await,
    ];
    service.revoke(&revoked).await;
    let mut switched_off = inactive.record.clone();
    switched_off.is_active = false;
    service.store.update(&switched_off).await.unwrap();
    service.get(&limited.text).await.is_for("acme");
    service.get(&active.text).await.is_for("acme");
    assert_eq!(service.heard.take(), []);

    let bearer = |value: &str| {
        let request = Request::get("/").header("authorization", value);
        service.send(request.body(Body::empty()).unwrap())
    };
    let request = |key: &Key| service.request(&key.text);
    let missing = service.send(Request::get("/").body(Body::empty()).unwrap());
    let cases = [
        (RejectionKind::Missing, None, missing),
        (RejectionKind::InvalidRequest, None, bearer("Bearer one, Bearer two")),
        (RejectionKind::Malformed, None, bearer("Bearer nonsense")),
        (RejectionKind::Unknown, None, service.request(&unknown_key())),
        (RejectionKind::Revoked, Some(revoked.record.id), request(&revoked)),
        (RejectionKind::Expired, Some(expired.record.id), request(&expired)),
        (RejectionKind::Inactive, Some(inactive.record.id), request(&inactive)),
        (RejectionKind::NotYetActive, Some(early.record.id), request(&early)),
        (RejectionKind::RateLimited, Some(limited.record.id), request(&limited)),
    ];
    for (kind, key_id, request) in cases {
        let reply = within(request).await;
        assert_eq!(reply.kind, Some(kind));
        assert_eq!(service.heard.take(), [Said::Rejected(kind, key_id)]);
    }
    assert!(service.auth.check(b"nonsense").await.is_err());
    assert_eq!(service.heard.take(), [Said::Rejected(RejectionKind::Malformed, None)]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_scope_is_observed_with_the_key_that_lacks_it() {
    use axum::{Router, routing::get};
    use tower::ServiceExt;
    use tower_api_key::{ApiKeyLayer, RequireScope};

    let service = Service::new();
    let reader = NewKey::new("acme", Expiry::Never).scopes(Scopes::parse(["read"]).unwrap());
    let key = service.issue_new(reader).await;
    let app: Router = Router::new()
        .route("/", get(async || "written").layer(RequireScope::one("write").unwrap()))
        .layer(ApiKeyLayer::new(service.auth.clone()));
    let request = Request::get("/").header("authorization", format!("Bearer {}", key.text));
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 403);
    let expected = Said::Rejected(RejectionKind::InsufficientScope, Some(key.record.id));
    assert_eq!(service.heard.take(), [expected]);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_was_stale_is_observed_and_what_was_let_in_is_not() {
    let (service, key) = stranded(policy(), NewKey::new("acme", Expiry::Never)).await;
    service.clock.advance(FRESH);
    service.get(&key.text).await.is_for("acme");
    assert_eq!(
        service.heard.take(),
        [Said::LoadFailed(StoreErrorKind::Unavailable), Said::StaleServed(key.record.id)]
    );
    service.store.answer(Answers::Truthfully);
    service.get(&key.text).await.is_for("acme");
    assert_eq!(service.heard.take(), []);
}

#[tokio::test(start_paused = true)]
async fn authenticators_of_one_store_forget_apart() {
    let service = Service::new();
    let key = service.issue("acme").await;
    let (neighbour, _) = Authenticator::builder(service.store.clone(), format())
        .clock(service.clock.clone())
        .build();
    service.get(&key.text).await.is_for("acme");
    assert!(neighbour.check(key.text.as_bytes()).await.is_ok());
    service.revoke(&key).await;
    service.get(&key.text).await.is_refused(RejectionKind::Revoked);
    // Until it is told, or a minute has passed.
    assert!(neighbour.check(key.text.as_bytes()).await.is_ok());
    service.clock.advance(FRESH);
    let rejection = neighbour.check(key.text.as_bytes()).await.unwrap_err();
    assert_eq!(rejection.kind(), RejectionKind::Revoked);
    assert_eq!(service.store.queries_for(&hash(&key.text)), 4);
}
