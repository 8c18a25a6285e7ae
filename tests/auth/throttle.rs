//! Throttling of guesses, without hurting legitimate clients on the same network.
//!
//! Only the test's clock counts: it stands still unless a test advances it.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

use allocation_counter::measure;
use axum::{body::Body, extract::ConnectInfo};
use http::Request;
use proptest::{collection::vec, prelude::*};
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    auth::{Attempt, Builder, CachePolicy, ClientNetwork, RejectionKind},
    key::{Alphabet, ImportedFormat},
    layer::{ClientAddress, PeerAddr},
    manage::{Expiry, NewKey},
    rate_limit::Quota,
    store::StoreErrorKind,
};

use crate::app::{Answer, App, Keys, MILLI, SECOND, text, with_key};
use crate::doubles::{Answers, DOWN, Key, Said, Service, poll_once, unknown_key, within};

const NANO: Duration = Duration::from_nanos(1);
/// The defaults.
const FRESH: Duration = Duration::from_secs(60);
const STRANGERS: usize = 100;
const RETURNING: usize = 10;
const FAILURES: usize = 20;

fn policy() -> CachePolicy {
    CachePolicy::default()
}

/// Uses up the budget for unknown keys, and returns how much that was.
async fn flood(service: &Service) -> usize {
    let asked = service.store.queries();
    for _ in 0..100 * STRANGERS {
        match service.get(&unknown_key()).await.kind {
            Some(RejectionKind::Unknown) => {}
            Some(RejectionKind::Overloaded) => return service.store.queries() - asked,
            other => panic!("{other:?}"),
        }
    }
    panic!("strangers are never turned away")
}

// The limits on unknown keys.

#[tokio::test(start_paused = true)]
async fn strangers_make_a_hundred_queries_at_once_and_then_a_hundred_a_second() {
    let service = Service::new();
    assert_eq!(flood(&service).await, STRANGERS);
    for (time, queries) in [(9 * MILLI, 0), (MILLI, 1), (SECOND, 100), (60 * SECOND, 100)] {
        service.clock.advance(time);
        assert_eq!(flood(&service).await, queries, "after {time:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn strangers_make_as_many_queries_as_is_said() {
    for rate in [0, 1, 7, 1000] {
        let policy = policy().max_loads(1).unknown_key_queries_per_second(rate);
        let service = Service::with(|builder| builder.cache(policy));
        // At least enough for one valid key while another one waits.
        let at_once = rate.max(2);
        assert_eq!(flood(&service).await, usize::try_from(at_once).unwrap(), "{rate}");
        service.clock.advance(SECOND);
        assert_eq!(flood(&service).await, usize::try_from(rate.max(1)).unwrap(), "{rate}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_beyond_that_is_told_to_come_again_and_nothing_is_remembered_of_it() {
    let service = Service::new();
    let (key, unknown) = (service.issue("acme").await, unknown_key());
    flood(&service).await;
    service.heard.take();
    let asked = service.store.queries();
    for stranger in [&key.text, &unknown] {
        let reply = service.get_at_once(stranger);
        reply.is_unavailable(RejectionKind::Overloaded);
        assert_eq!(reply.retry_after, Some(1));
    }
    assert_eq!(service.store.queries(), asked);
    assert_eq!(service.heard.take(), [Said::Rejected(RejectionKind::Overloaded, None); 2]);

    service.clock.advance(SECOND);
    service.get(&key.text).await.is_for("acme");
    service.get(&unknown).await.is_refused(RejectionKind::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_cold_looks_up_thousands_of_good_keys_at_once() {
    for rate in [1, 100] {
        let service =
            Service::with(|builder| builder.cache(policy().unknown_key_queries_per_second(rate)));
        let mut keys = Vec::new();
        for _ in 0..4_000 {
            keys.push(service.issue("acme").await.text);
        }
        let requests: Vec<_> = keys.iter().map(|key| service.begin(key)).collect();
        for request in requests {
            within(request).await.is_for("acme");
        }
        service.auth.invalidate_all();
        for key in &keys {
            service.get(key).await.is_for("acme");
        }
        assert_eq!(service.store.queries(), 8_000);
        assert_eq!(flood(&service).await, usize::try_from(rate.max(49)).unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn good_keys_under_way_keep_no_other_one_out() {
    let policy = policy().max_loads(400).unknown_key_queries_per_second(1);
    let service = Service::with(|builder| builder.cache(policy));
    let mut keys = Vec::new();
    for _ in 0..500 {
        keys.push(service.issue("acme").await.text);
    }
    service.store.hold();
    let requests: Vec<_> = keys.iter().map(|key| service.begin(key)).collect();
    service.store.until(|state| state.queries.len() == 300).await;
    let late = service.issue("late").await;
    let late = service.begin(&late.text);
    service.store.release();
    for request in requests {
        within(request).await.is_for("acme");
    }
    within(late).await.is_for("late");
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_known_need_nothing_of_what_strangers_have() {
    let service = Service::new();
    let (fresh, stale, changed) =
        (service.issue("fresh").await, service.issue("stale").await, service.issue("old").await);
    service.get(&stale.text).await.is_for("stale");
    service.clock.advance(FRESH);
    service.get(&fresh.text).await.is_for("fresh");
    service.get(&changed.text).await.is_for("old");
    flood(&service).await;
    flood_of_those_who_come_again(&service).await;

    service.get_at_once(&fresh.text).is_for("fresh");
    service.get(&stale.text).await.is_for("stale");
    service.revoke(&changed).await;
    service.get(&changed.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test(start_paused = true)]
async fn a_query_that_fails_is_spent() {
    let service = Service::new();
    service.store.answer(Answers::With(StoreErrorKind::Other));
    for _ in 0..STRANGERS {
        service.get(&unknown_key()).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    service.get_at_once(&unknown_key()).is_unavailable(RejectionKind::Overloaded);
    assert_eq!(service.store.queries(), STRANGERS);
}

// Retries.

/// Uses up the reserve for retries, with unknown keys.
async fn flood_of_those_who_come_again(service: &Service) -> usize {
    let asked = service.store.queries();
    for _ in 0..100 * RETURNING {
        let key = unknown_key();
        service.get_at_once(&key).is_unavailable(RejectionKind::Overloaded);
        match service.get(&key).await.kind {
            Some(RejectionKind::Unknown) => {}
            Some(RejectionKind::Overloaded) => return service.store.queries() - asked,
            other => panic!("{other:?}"),
        }
    }
    panic!("keys that come again are never turned away")
}

#[tokio::test(start_paused = true)]
async fn a_good_key_that_comes_again_gets_in_although_strangers_have_nothing_left() {
    let service = Service::new();
    flood(&service).await;
    for _ in 0..1_000 {
        let key = service.issue("acme").await;
        service.get_at_once(&key.text).is_unavailable(RejectionKind::Overloaded);
        service.get(&key.text).await.is_for("acme");
    }
    assert_eq!(flood(&service).await, 0);
}

#[tokio::test(start_paused = true)]
async fn junk_that_comes_again_makes_ten_queries_at_once_and_then_ten_a_second() {
    let service = Service::new();
    flood(&service).await;
    assert_eq!(flood_of_those_who_come_again(&service).await, RETURNING);
    for _ in 0..3 {
        service.clock.advance(SECOND);
        assert_eq!(flood(&service).await, STRANGERS);
        assert_eq!(flood_of_those_who_come_again(&service).await, RETURNING);
    }
    let key = service.issue("acme").await;
    for _ in 0..3 {
        service.get_at_once(&key.text).is_unavailable(RejectionKind::Overloaded);
    }
    service.clock.advance(100 * MILLI);
    service.get(&key.text).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn a_good_key_that_comes_again_does_not_queue_up_with_strangers() {
    let patient = policy().load_deadline(30 * SECOND).unwrap();
    let service = Service::with(|builder| builder.cache(patient));
    service.store.hold();
    let strangers: Vec<_> = (0..48).map(|_| service.begin(&unknown_key())).collect();
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_unavailable(RejectionKind::Overloaded);
    assert_eq!(service.store.queries(), 48);

    let again = service.begin(&key.text);
    service.store.until(|state| state.queries.len() == 49).await;
    service.store.release();
    within(again).await.is_for("acme");
    drop(strangers);
}

// Failures per network.

fn network(address: &str) -> ClientNetwork {
    address.parse::<IpAddr>().unwrap().into()
}

fn home() -> ClientNetwork {
    network("192.0.2.1")
}

/// The reason for the refusal of a key, and the wait.
type Told = (Option<RejectionKind>, Option<Duration>);

const IN: Told = (None, None);
const UNKNOWN: Told = (Some(RejectionKind::Unknown), None);

fn too_many(wait: Duration) -> Told {
    (Some(RejectionKind::TooManyFailures), Some(wait))
}

async fn ask(auth: &Authenticator, key: &str, network: ClientNetwork) -> Told {
    match within(auth.check(key.as_bytes()).from(network)).await {
        Ok(_) => IN,
        Err(rejection) => (Some(rejection.kind()), rejection.retry_after()),
    }
}

/// Uses up the failures of `network`.
async fn fail(service: &Service, network: ClientNetwork) -> usize {
    let mut failures = 0;
    while ask(&service.auth, &unknown_key(), network).await == UNKNOWN {
        failures += 1;
    }
    failures
}

#[tokio::test(start_paused = true)]
async fn a_network_fails_twenty_times_at_once_and_then_once_a_second() {
    let service = Service::new();
    assert_eq!(fail(&service, home()).await, FAILURES);
    let asked = service.store.queries();
    assert_eq!(ask(&service.auth, &unknown_key(), home()).await, too_many(SECOND));
    for _ in 0..3 {
        service.clock.advance(SECOND - NANO);
        assert_eq!(ask(&service.auth, &unknown_key(), home()).await, too_many(NANO));
        service.clock.advance(NANO);
        assert_eq!(fail(&service, home()).await, 1);
    }
    assert_eq!(service.store.queries(), asked + 3);
    service.clock.advance(60 * SECOND);
    assert_eq!(fail(&service, home()).await, FAILURES);
}

#[tokio::test(start_paused = true)]
async fn a_network_may_fail_as_often_as_is_said() {
    let service = Service::with(|builder| builder.failure_limit(3, 5 * SECOND));
    assert_eq!(fail(&service, home()).await, 3);
    assert_eq!(ask(&service.auth, &unknown_key(), home()).await, too_many(5 * SECOND));
    service.clock.advance(10 * SECOND);
    assert_eq!(fail(&service, home()).await, 2);

    let service = Service::with(|builder| builder.failure_limit(0, Duration::ZERO));
    assert_eq!(ask(&service.auth, &unknown_key(), home()).await, UNKNOWN);
}

#[tokio::test(start_paused = true)]
async fn networks_fail_apart_and_as_a_whole() {
    let service = Service::new();
    let mine = network("2001:db8::1");
    assert_eq!(fail(&service, mine).await, FAILURES);
    for same in ["2001:db8::2", "2001:db8:0:0:ffff:ffff:ffff:ffff"] {
        assert_eq!(fail(&service, network(same)).await, 0, "{same}");
    }
    for other in ["2001:db8:0:1::1", "192.0.2.1"] {
        assert_eq!(fail(&service, network(other)).await, FAILURES, "{other}");
    }
    assert_eq!(fail(&service, network("::ffff:192.0.2.1")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_to_be_no_key_counts_as_well() {
    let service = Service::new();
    let unknown = unknown_key();
    for _ in 0..FAILURES {
        assert_eq!(ask(&service.auth, &unknown, home()).await, UNKNOWN);
    }
    assert_eq!(ask(&service.auth, &unknown, home()).await, too_many(SECOND));
    assert_eq!(ask(&service.auth, &unknown, network("192.0.2.2")).await, UNKNOWN);
    assert_eq!(service.store.queries(), 1);
}

#[tokio::test(start_paused = true)]
async fn many_who_wait_for_one_query_have_failed_each() {
    let service = Service::new();
    let unknown = unknown_key();
    service.store.hold();
    let mut lookups = Vec::new();
    for _ in 0..FAILURES {
        let Attempt::Pending(mut lookup) =
            service.auth.check(unknown.as_bytes()).from(home()).try_now()
        else {
            panic!("the key is not cached");
        };
        assert!(poll_once(&mut lookup).is_pending());
        lookups.push(lookup);
    }
    service.store.release();
    for lookup in lookups {
        assert_eq!(within(lookup).await.unwrap_err().kind(), RejectionKind::Unknown);
    }
    assert_eq!(fail(&service, home()).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_has_failed_nevertheless() {
    let service = Service::new();
    for failures in 1..=FAILURES {
        let unknown = unknown_key();
        let Attempt::Pending(mut lookup) =
            service.auth.check(unknown.as_bytes()).from(home()).try_now()
        else {
            panic!("the key is not cached");
        };
        assert!(poll_once(&mut lookup).is_pending());
        drop(lookup);
        service.store.until(|state| state.answered == failures).await;
    }
    // The last task has responded, but not yet reported.
    tokio::task::yield_now().await;
    assert_eq!(fail(&service, home()).await, 0);
}

/// How many of these unknown keys get a query. The clients hang up.
fn at_once(service: &Service, strangers: usize) -> usize {
    let begin = |_: usize| {
        let attempt = service.auth.check(unknown_key().as_bytes()).from(home()).try_now();
        let Attempt::Pending(mut lookup) = attempt else { panic!("the key is not cached") };
        poll_once(&mut lookup).is_pending()
    };
    (0..strangers).filter(|number| begin(*number)).count()
}

#[tokio::test(start_paused = true)]
async fn failures_that_are_under_way_at_once_are_as_many_as_there_may_be() {
    let service = Service::new();
    for _ in 0..FAILURES / 2 {
        assert_eq!(ask(&service.auth, &unknown_key(), home()).await, UNKNOWN);
    }
    for may in [FAILURES - FAILURES / 2, 1, 1] {
        let asked = service.store.queries();
        service.store.hold();
        assert_eq!(at_once(&service, 40), may);
        service.store.until(|state| state.queries.len() == asked + may).await;
        service.clock.advance(SECOND / 2);
        service.store.release();
        service.store.until(|state| state.answered == asked + may).await;
        assert_eq!(fail(&service, home()).await, 0);
        assert_eq!(service.store.queries(), asked + may);
        service.clock.advance(SECOND / 2);
    }
}

#[tokio::test(start_paused = true)]
async fn good_keys_of_a_network_that_failed_take_nothing_of_what_it_may_fail() {
    let service = Service::new();
    for _ in 0..FAILURES - 1 {
        assert_eq!(ask(&service.auth, &unknown_key(), home()).await, UNKNOWN);
    }
    for _ in 0..1_000 {
        let key = service.issue("acme").await;
        assert_eq!(ask(&service.auth, &key.text, home()).await, IN);
    }
    service.store.answer(Answers::With(StoreErrorKind::Other));
    for _ in 0..FAILURES {
        let (kind, _) = ask(&service.auth, &unknown_key(), home()).await;
        assert_eq!(kind, Some(RejectionKind::StoreUnavailable));
    }
    service.store.answer(Answers::Truthfully);
    assert_eq!(fail(&service, home()).await, 1);
}

/// Like a cold start of a node behind which a whole office has its keys.
#[tokio::test(start_paused = true)]
async fn many_good_keys_of_one_network_come_at_once() {
    let service = Service::new();
    for _ in 0..FAILURES / 2 - 1 {
        assert_eq!(ask(&service.auth, &unknown_key(), home()).await, UNKNOWN);
    }
    let mut lookups = Vec::new();
    for _ in 0..1_000 {
        let key = service.issue("acme").await;
        let Attempt::Pending(lookup) =
            service.auth.check(key.text.as_bytes()).from(home()).try_now()
        else {
            panic!("the key is not cached");
        };
        lookups.push(tokio::spawn(lookup));
    }
    for lookup in lookups {
        assert!(within(lookup).await.unwrap().is_ok());
    }
}

/// A cached key whose network has used up its failures.
async fn besieged() -> (Service, Key) {
    let service = Service::new();
    let key = service.issue("acme").await;
    assert_eq!(ask(&service.auth, &key.text, home()).await, IN);
    assert_eq!(fail(&service, home()).await, FAILURES);
    (service, key)
}

#[tokio::test(start_paused = true)]
async fn a_key_in_the_cache_is_let_in_whatever_its_network_did() {
    let (service, key) = besieged().await;
    for _ in 0..1_000 {
        let attempt = service.auth.check(key.text.as_bytes()).from(home()).try_now();
        assert!(matches!(attempt, Attempt::Admit(_)));
        assert_ne!(ask(&service.auth, &unknown_key(), home()).await, IN);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_known_is_let_in_whatever_its_network_did() {
    let (service, key) = besieged().await;
    service.clock.advance(FRESH);
    fail(&service, home()).await;
    assert_eq!(ask(&service.auth, &key.text, home()).await, IN);
    service.auth.invalidate(&key.record.key_hash);
    assert_eq!(ask(&service.auth, &key.text, home()).await, IN);
    assert_eq!(service.store.queries_for(&key.record.key_hash), 3);
}

#[tokio::test(start_paused = true)]
async fn a_good_key_that_is_not_cached_gets_in_when_it_comes_again() {
    let (service, _) = besieged().await;
    for _ in 0..1_000 {
        let cold = service.issue("cold").await;
        assert_eq!(ask(&service.auth, &cold.text, home()).await, too_many(SECOND));
        assert_eq!(service.store.queries_for(&cold.record.key_hash), 0);
        assert_eq!(ask(&service.auth, &cold.text, home()).await, IN);
    }
}

#[tokio::test(start_paused = true)]
async fn junk_that_comes_again_fails_again() {
    let (service, _) = besieged().await;
    let asked = service.store.queries();
    for number in 0..100 {
        let junk = unknown_key();
        assert_eq!(ask(&service.auth, &junk, home()).await, too_many(SECOND));
        let again = ask(&service.auth, &junk, home()).await;
        assert_eq!(again, if number < RETURNING { UNKNOWN } else { too_many(SECOND) });
        assert_eq!(ask(&service.auth, &junk, home()).await, too_many(SECOND));
    }
    assert_eq!(service.store.queries(), asked + RETURNING);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_key_at_all_is_refused_as_ever_and_does_not_count() {
    let service = Service::new();
    let malformed = (Some(RejectionKind::Malformed), None);
    for _ in 0..10 * FAILURES {
        assert_eq!(ask(&service.auth, "junk", home()).await, malformed);
    }
    assert_eq!(fail(&service, home()).await, FAILURES);
    assert_eq!(ask(&service.auth, "junk", home()).await, malformed);
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_known_but_do_not_work_are_no_guesses() {
    let service = Service::new();
    let soon = Expiry::In(SECOND);
    let expired = service.issue_new(NewKey::new("acme", soon)).await;
    let revoked = service.issue("acme").await;
    service.revoke(&revoked).await;
    service.clock.advance(SECOND);
    for (key, kind) in [(expired, RejectionKind::Expired), (revoked, RejectionKind::Revoked)] {
        for _ in 0..10 * FAILURES {
            assert_eq!(ask(&service.auth, &key.text, home()).await, (Some(kind), None));
        }
    }
    assert_eq!(fail(&service, home()).await, FAILURES);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_deleted_fails_from_its_second_request_on() {
    let service = Service::with(|builder| builder.failure_limit(1, SECOND));
    let key = service.issue("acme").await;
    assert_eq!(ask(&service.auth, &key.text, home()).await, IN);
    service.store.delete(key.record.key_hash);
    service.clock.advance(FRESH);
    assert_eq!(ask(&service.auth, &key.text, home()).await, UNKNOWN);
    assert_eq!(ask(&service.auth, &key.text, home()).await, UNKNOWN);
    assert_eq!(ask(&service.auth, &key.text, home()).await, too_many(SECOND));
}

#[tokio::test(start_paused = true)]
async fn nobody_fails_while_the_store_is_away() {
    let service = Service::new();
    for answers in [DOWN, Answers::Panicking, Answers::With(StoreErrorKind::Corrupt)] {
        service.store.answer(answers);
        for _ in 0..FAILURES {
            let (kind, _) = ask(&service.auth, &unknown_key(), home()).await;
            assert_eq!(kind, Some(RejectionKind::StoreUnavailable), "{answers:?}");
        }
        service.clock.advance(SECOND);
    }
    service.store.answer(Answers::Truthfully);
    assert_eq!(fail(&service, home()).await, FAILURES);
}

#[tokio::test(start_paused = true)]
async fn strangers_from_everywhere_have_no_more_queries_than_from_one_place() {
    let service = Service::new();
    for number in 0..10_000_u32 {
        let from = ClientNetwork::from(IpAddr::from(number.to_be_bytes()));
        let (kind, _) = ask(&service.auth, &unknown_key(), from).await;
        assert_ne!(kind, Some(RejectionKind::TooManyFailures), "{number}");
    }
    assert_eq!(service.store.queries(), STRANGERS);
}

/// F38: failures count against their own network only.
#[tokio::test(start_paused = true)]
async fn a_thousand_failures_leave_every_quota_as_it_was() {
    let quota = Quota::per_hour(3).unwrap();
    let service = Service::with(|builder| builder.default_rate_limits(quota));
    let key = service.issue("acme").await;
    assert_eq!(ask(&service.auth, &key.text, home()).await, IN);
    for _ in 0..1_000 {
        assert_ne!(ask(&service.auth, &unknown_key(), home()).await, IN);
    }
    let admission = service.auth.check(key.text.as_bytes()).from(home()).await.unwrap();
    let left: Vec<_> = admission.rate_limit_status().iter().map(|(_, it)| it.remaining()).collect();
    assert_eq!(left, [1]);
}

// Both limits together, under any sequence.

#[derive(Clone, Debug)]
enum Step {
    /// Some of these junk keys, so that some repeat, from a few networks.
    Junk(Vec<(usize, u8)>),
    Wait(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        vec((0_usize..300, 0_u8..4), 1..120).prop_map(Step::Junk),
        (0_u64..3000).prop_map(|millis| Step::Wait(Duration::from_millis(millis))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn junk_never_makes_more_queries_than_the_budget_and_the_reserve(steps in vec(step(), 1..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let policy = policy().absent(Duration::ZERO).unwrap();
            let service = Service::with(|builder| builder.cache(policy));
            let junk: Vec<_> = (0..300).map(|_| unknown_key()).collect();
            let mut elapsed = Duration::ZERO;
            for step in steps {
                match step {
                    Step::Wait(wait) => {
                        service.clock.advance(wait);
                        elapsed += wait;
                    }
                    Step::Junk(keys) => for (key, from) in keys {
                        let from = ClientNetwork::from(IpAddr::from([192, 0, 2, from]));
                        assert_ne!(ask(&service.auth, &junk[key], from).await, IN);
                    }
                }
                let rate = |at_once: usize, interval: Duration| {
                    at_once as u128 + elapsed.as_nanos() / interval.as_nanos()
                };
                let returning = rate(RETURNING, 100 * MILLI);
                let all = rate(STRANGERS, 10 * MILLI) + returning;
                let of_networks = 4 * rate(FAILURES, SECOND) + returning;
                let queries = service.store.queries() as u128;
                assert!(queries <= all.min(of_networks), "{queries} queries after {elapsed:?}");
            }
        });
    }
}

// After a flood.

/// T6, at the pace of fifty thousand a second.
#[test]
fn a_flood_of_ever_new_junk_pushes_no_good_key_out_and_takes_no_memory() {
    const JUNK: usize = 150_000;
    const MIB: i64 = 1 << 20;
    // The format without a checksum, so that junk is cheap to make.
    let junk = ImportedFormat::new("", Alphabet::Hex, 64).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // So that only an eviction could cause a query for a known key.
    let policy = policy().fresh(300 * SECOND).unwrap();
    let service = Service::with(|builder| builder.accept(junk).cache(policy));
    let keys: Vec<_> = runtime.block_on(async {
        let mut keys = Vec::new();
        for _ in 0..1_000 {
            let key = service.issue("acme").await;
            assert_eq!(ask(&service.auth, &key.text, home()).await, IN);
            keys.push(key);
        }
        keys
    });
    let flood = |junk: Range<usize>| {
        runtime.block_on(async {
            for junk in junk {
                let key = format!("{junk:064x}");
                let from = u32::try_from(junk % 5_000).unwrap();
                let from = ClientNetwork::from(IpAddr::from(from.to_be_bytes()));
                assert_ne!(ask(&service.auth, &key, from).await, IN);
                if junk % 500 == 0 {
                    service.clock.advance(10 * MILLI);
                    service.heard.take();
                }
            }
        });
    };
    let cost = measure(|| flood(0..JUNK));
    assert!(cost.bytes_max < 16 * MIB as u64, "{cost:?}");
    assert!(cost.bytes_current < 8 * MIB, "{cost:?}");
    // The filter of refused keys is full by then.
    let further = measure(|| flood(JUNK..2 * JUNK));
    assert!(further.bytes_current < MIB / 2, "{further:?}");
    for key in &keys {
        let attempt = service.auth.check(key.text.as_bytes()).from(home()).try_now();
        assert!(matches!(attempt, Attempt::Admit(_)));
        assert_eq!(service.store.queries_for(&key.record.key_hash), 1);
    }
    let elapsed = 2 * JUNK / 50_000;
    assert!(service.store.queries() <= keys.len() + STRANGERS + elapsed * STRANGERS);
}

// Responses of the layer.

fn from(key: &str, address: &str) -> Request<Body> {
    let mut request = with_key(key);
    request.extensions_mut().insert(PeerAddr(address.parse().unwrap()));
    request
}

fn throttled(builder: Builder, address: ClientAddress) -> App {
    App::new(ApiKeyLayer::new(builder.build().0).throttle_failures(address))
}

#[tokio::test]
async fn a_client_hears_how_long_to_wait_in_whole_seconds_and_nothing_else() {
    let keys = Keys::new();
    let quota = Quota::per_hour(100).unwrap();
    let builder = keys.builder().default_rate_limits(quota).failure_limit(2, 2500 * MILLI);
    let app = throttled(builder, ClientAddress::peer());
    let cold = keys.key().await;
    for _ in 0..2 {
        let answer = app.send(from(&unknown_key(), "192.0.2.1")).await;
        assert_eq!(answer.kind(), Some(RejectionKind::Unknown));
    }
    for (time, seconds) in [(Duration::ZERO, 3), (500 * MILLI, 2), (MILLI, 2), (999 * MILLI, 1)] {
        keys.clock.advance(time);
        let answer = app.send(from(&unknown_key(), "192.0.2.1")).await;
        assert_eq!(
            answer.wire(),
            format!(
                "429 Too Many Requests\n\
                 content-type: application/problem+json\n\
                 cache-control: no-store\n\
                 retry-after: {seconds}\n\
                 vary: Authorization\n\
                 \n\
                 {{\"type\":\"https://iana.org/assignments/http-problem-types#abnormal-usage-detected\",\
                 \"title\":\"Request not satisfied due to detection of abnormal request pattern\",\
                 \"status\":429,\
                 \"detail\":\"Too many unknown API keys came from your network. If yours is valid, \
                 keep it and retry after the number of seconds in `Retry-After`.\",\
                 \"code\":\"too_many_failures\"}}"
            )
        );
        assert_eq!(answer.kind(), Some(RejectionKind::TooManyFailures));
    }
    assert_eq!(keys.queries(), 2);

    // A valid key gets the same response, and is let in afterwards.
    let answer = app.send(from(&cold, "192.0.2.1")).await;
    assert_eq!(
        (answer.kind(), answer.header("retry-after")),
        (Some(RejectionKind::TooManyFailures), Some("1"))
    );
    let answer = app.send(from(&cold, "192.0.2.1")).await;
    assert_eq!(answer.text(), "hello acme");
    assert!(!answer.rate_limit_headers().is_empty());
}

async fn fails(app: &App, request: impl Fn() -> Request<Body>) -> usize {
    let mut failures = 0;
    for _ in 0..FAILURES + 1 {
        let answer: Answer = app.send(request()).await;
        failures += usize::from(answer.kind() == Some(RejectionKind::Unknown));
    }
    failures
}

#[tokio::test]
async fn failures_are_throttled_only_where_that_was_asked_for_and_the_address_is_known() {
    let keys = Keys::new();
    let unknown = unknown_key();
    let x_forwarded_for = |lines: &str| {
        let mut request = with_key(&unknown);
        request.headers_mut().insert("x-forwarded-for", lines.parse().unwrap());
        request
    };
    let off = App::new(ApiKeyLayer::new(keys.auth()));
    assert_eq!(fails(&off, || from(&unknown, "192.0.2.1")).await, FAILURES + 1);

    let app = throttled(keys.builder(), ClientAddress::peer());
    assert_eq!(fails(&app, || with_key(&unknown)).await, FAILURES + 1);
    assert_eq!(fails(&app, || from(&unknown, "192.0.2.1")).await, FAILURES);
    let of_axum = || {
        let mut request = with_key(&unknown);
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([192, 0, 2, 2], 1))));
        request
    };
    assert_eq!(fails(&app, of_axum).await, FAILURES);
    assert_eq!(fails(&app, || from(&unknown, "192.0.2.2")).await, 0);

    let app = throttled(keys.builder(), ClientAddress::x_forwarded_for(2));
    assert_eq!(fails(&app, || x_forwarded_for("192.0.2.1")).await, FAILURES + 1);
    assert_eq!(fails(&app, || x_forwarded_for("unknown, 192.0.2.1")).await, FAILURES + 1);
    assert_eq!(fails(&app, || x_forwarded_for("1, 192.0.2.1, 192.0.2.9")).await, FAILURES);
    assert_eq!(fails(&app, || x_forwarded_for("2, 192.0.2.1, 192.0.2.8")).await, 0);
    assert_eq!(fails(&app, || x_forwarded_for("192.0.2.2, 192.0.2.9")).await, FAILURES);
}

#[tokio::test]
async fn a_route_that_charges_nothing_is_throttled_too() {
    let keys = Keys::new();
    let layer = ApiKeyLayer::new(keys.auth()).throttle_failures(ClientAddress::peer());
    let app = App::new(layer.danger_without_charge());
    let unknown = unknown_key();
    assert_eq!(fails(&app, || from(&unknown, "192.0.2.1")).await, FAILURES);
}

#[tokio::test]
async fn services_of_one_authenticator_count_together() {
    let keys = Keys::new();
    let auth = keys.auth();
    let layer = ApiKeyLayer::new(auth).throttle_failures(ClientAddress::peer());
    let (one, other) = (App::new(layer.clone()), App::new(layer));
    let unknown = unknown_key();
    assert_eq!(fails(&one, || from(&unknown, "192.0.2.1")).await, FAILURES);
    assert_eq!(fails(&other, || from(&unknown, "192.0.2.1")).await, 0);
}

#[tokio::test]
async fn a_request_that_is_throttled_is_observed_once() {
    let heard = crate::doubles::Heard::default();
    let keys = Keys::new();
    let builder = keys.builder().observer(heard.clone()).failure_limit(1, SECOND);
    let app = throttled(builder, ClientAddress::peer());
    for _ in 0..2 {
        app.send(from(&unknown_key(), "192.0.2.1")).await;
    }
    let kinds = [RejectionKind::Unknown, RejectionKind::TooManyFailures];
    assert_eq!(heard.take(), kinds.map(|kind| Said::Rejected(kind, None)));
    let issued = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    keys.revoke(&issued).await;
    assert_eq!(
        app.send(from(&text(&issued), "192.0.2.2")).await.kind(),
        Some(RejectionKind::Revoked)
    );
}
