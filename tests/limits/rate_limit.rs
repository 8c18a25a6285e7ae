//! Rate limits of a key, and the headers that its owner sees.

use std::{
    cell::Cell,
    num::NonZeroU32,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, SystemTime},
};

use http::StatusCode;
use proptest::{prelude::*, test_runner::TestRunner};
use sfv::{BareItem, List, ListEntry, Parser};
use tower_api_key::{
    ApiKeyLayer,
    auth::{Attempt, RejectionKind},
    clock::{Clock, ManualClock},
    key::{KeyHash, SystemEntropy},
    layer::RateLimitHeaders,
    manage::{Expiry, Issued, NewKey},
    rate_limit::{
        InvalidQuota, LocalRateLimiter, Quota, RateLimiter, RateLimits,
        port::{Buckets, Check, Subject},
    },
    record::{KeyId, KeyRecord},
    store::port::Invalidate,
};

use crate::app::{Answer, App, Keys, MILLI, SECOND, text, unknown_key};

use crate::raw_store::ByHand as _;

const DAY: Duration = Duration::from_secs(86_400);

/// An app whose keys have these limits unless they have their own, and a key without its own.
async fn limited(keys: &Keys, limits: impl Into<RateLimits>) -> (App, String) {
    let (auth, _) = keys.builder().default_rate_limits(limits).build();
    (App::new(ApiKeyLayer::new(auth)), keys.key().await)
}

fn stacked(quotas: impl IntoIterator<Item = Quota>) -> RateLimits {
    RateLimits::new(quotas).unwrap()
}

mod denial {
    use super::*;

    #[tokio::test]
    async fn a_key_beyond_its_quota_gets_429_and_learns_when_to_come_back() {
        let keys = Keys::new();
        let (app, key) = limited(&keys, Quota::per_minute(2).unwrap()).await;
        for _ in 0..2 {
            assert_eq!(app.get(&key).await.status, StatusCode::OK);
        }
        keys.clock.advance(500 * MILLI);
        let answer = app.get(&key).await;
        assert_eq!(
            answer.wire(),
            "429 Too Many Requests\n\
             content-type: application/problem+json\n\
             cache-control: no-store\n\
             retry-after: 30\n\
             ratelimit-policy: \"minute\";q=2;w=60\n\
             ratelimit: \"minute\";r=0;t=30\n\
             vary: Authorization\n\
             \n\
             {\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded\",\
             \"title\":\"Request cannot be satisfied as assigned quota has been exceeded\",\
             \"status\":429,\
             \"detail\":\"Retry after the number of seconds in `Retry-After`.\",\
             \"code\":\"rate_limit_exceeded\",\"violated-policies\":[\"minute\"]}"
        );
        assert_eq!(answer.challenge(), None);
        assert_eq!(answer.kind(), Some(RejectionKind::RateLimited));
        assert_eq!(app.calls(), 2);
    }

    #[tokio::test]
    async fn waiting_as_long_as_told_is_enough() {
        let keys = Keys::new();
        let (app, key) = limited(&keys, Quota::per_minute(7).unwrap()).await;
        while app.get(&key).await.status == StatusCode::OK {
            assert!(app.calls() < 1_000, "the quota does not end");
        }
        for _ in 0..20 {
            let wait = app.get(&key).await.header("retry-after").unwrap().parse().unwrap();
            keys.clock.advance(Duration::from_secs(wait));
            assert_eq!(app.get(&key).await.status, StatusCode::OK);
        }
    }

    #[tokio::test]
    async fn requests_that_are_denied_cost_nothing() {
        let keys = Keys::new();
        let (app, key) = limited(&keys, Quota::per_second(1).unwrap()).await;
        assert_eq!(app.get(&key).await.status, StatusCode::OK);
        for _ in 0..999 {
            keys.clock.advance(MILLI);
            assert_eq!(app.get(&key).await.status, StatusCode::TOO_MANY_REQUESTS);
        }
        keys.clock.advance(MILLI);
        assert_eq!(app.get(&key).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn keys_of_one_consumer_have_quotas_of_their_own() {
        let keys = Keys::new();
        let (app, first) = limited(&keys, Quota::per_minute(1).unwrap()).await;
        let second = keys.key().await;
        for key in [&first, &second] {
            assert_eq!(app.get(key).await.status, StatusCode::OK);
            assert_eq!(app.get(key).await.status, StatusCode::TOO_MANY_REQUESTS);
        }
    }
}

mod headers {
    use super::*;

    /// Name and integer parameters of each item of a structured list.
    fn parse(field: &str) -> Vec<(String, Vec<(String, i64)>)> {
        let list: List = Parser::new(field).parse().unwrap_or_else(|e| panic!("{field}: {e}"));
        let integer = |value: &BareItem| match value {
            BareItem::Integer(value) => i64::from(*value),
            other => panic!("{field}: {other:?} is no integer"),
        };
        let item = |entry| {
            let ListEntry::Item(item) = entry else { panic!("{field}: not a list of items") };
            let BareItem::String(name) = item.bare_item else { panic!("{field}: not a string") };
            let parameters = item.params.iter();
            let parameters = parameters.map(|(key, value)| (key.to_string(), integer(value)));
            (name.as_str().to_owned(), parameters.collect())
        };
        list.into_iter().map(item).collect()
    }

    fn parameter(parameters: &[(String, i64)], name: &str) -> u64 {
        let mut values = parameters.iter().filter(|(key, _)| key == name);
        let (_, value) = values.next().unwrap();
        assert_eq!(values.next(), None);
        u64::try_from(*value).unwrap()
    }

    /// Checks the headers of a response against each other and the draft, and returns the time that
    /// a client has to wait.
    fn check(answer: &Answer, limits: &RateLimits) -> Duration {
        let policy = parse(answer.header("ratelimit-policy").unwrap());
        let state = parse(answer.header("ratelimit").unwrap());
        let names: Vec<_> = limits.iter().map(Quota::name).collect();
        assert_eq!(policy.iter().map(|(name, _)| name).collect::<Vec<_>>(), names);
        for ((_, parameters), quota) in policy.iter().zip(limits.iter()) {
            assert_eq!(parameter(parameters, "q"), u64::from(quota.burst_size().get()));
            assert!(parameter(parameters, "w") > 0);
        }
        let retry_after = answer.header("retry-after").map(|wait| wait.parse::<u64>().unwrap());
        for ((name, parameters), (policy, quota)) in state.iter().zip(&policy) {
            assert_eq!(name, policy);
            let (left, all) = (parameter(parameters, "r"), parameter(quota, "q"));
            match retry_after {
                None => assert!(left < all),
                // A client that waits as told finds every quota available.
                Some(wait) if left == 0 => {
                    assert!(parameter(parameters, "t") <= wait, "{answer:?}")
                }
                // Nothing is taken from the quotas that a request does fit.
                Some(_) => assert!(left <= all),
            }
        }
        assert_eq!(state.len(), names.len());
        match answer.status {
            StatusCode::OK => {
                assert_eq!(retry_after, None);
                Duration::ZERO
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let empty = state.iter().filter(|(_, parameters)| parameter(parameters, "r") == 0);
                let empty: Vec<_> = empty.map(|(name, _)| name).collect();
                assert_eq!(answer.json()["violated-policies"], serde_json::json!(empty));
                let wait = retry_after.unwrap();
                assert!(wait >= 1);
                Duration::from_secs(wait)
            }
            other => panic!("{other}"),
        }
    }

    fn quotas() -> impl Strategy<Value = RateLimits> {
        let quota = (1..2_000_u32, 1..100_000_000_u64, 1..2_000_u32, 0..3_u8);
        proptest::collection::vec(quota, 1..4).prop_filter_map("out of range", |quotas| {
            let quota = |(index, (limit, window_ms, burst, kind))| {
                let window = Duration::from_millis(window_ms);
                let quota = match kind {
                    0 => Quota::at_most(limit, window).ok()?,
                    1 => Quota::sliding(limit, window).ok()?,
                    _ => Quota::per(limit, window).and_then(|quota| quota.burst(burst)).ok()?,
                };
                quota.named(format!("quota.{index}")).ok()
            };
            let quotas: Option<Vec<_>> = quotas.into_iter().enumerate().map(quota).collect();
            RateLimits::new(quotas?).ok()
        })
    }

    proptest! {
        #[test]
        fn headers_are_structured_fields_and_the_wait_they_name_is_enough(
            limits in quotas(),
            gaps in proptest::collection::vec(0..3_000_u64, 1..40),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let keys = Keys::new();
                let (app, key) = limited(&keys, limits.clone()).await;
                for gap in gaps {
                    keys.clock.advance(Duration::from_millis(gap));
                    let wait = check(&app.get(&key).await, &limits);
                    if !wait.is_zero() {
                        keys.clock.advance(wait);
                        let wait = check(&app.get(&key).await, &limits);
                        assert_eq!(wait, Duration::ZERO, "the wait was not enough");
                    }
                }
            });
        }

        #[test]
        fn a_single_quota_admits_after_the_wait_it_names(
            limit in 1..100_u32,
            window_ms in 1..1_000_000_u64,
            burst in 1..20_u32,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let keys = Keys::new();
                let quota = Quota::per(limit, Duration::from_millis(window_ms)).unwrap();
                let limits = RateLimits::from(quota.burst(burst).unwrap());
                let (app, key) = limited(&keys, limits.clone()).await;
                for _ in 0..burst {
                    assert_eq!(check(&app.get(&key).await, &limits), Duration::ZERO);
                }
                let wait = check(&app.get(&key).await, &limits);
                assert_ne!(wait, Duration::ZERO, "more than the burst passed");
                keys.clock.advance(wait);
                assert_eq!(check(&app.get(&key).await, &limits), Duration::ZERO);
            });
        }
    }

    #[tokio::test]
    async fn every_quota_is_named_shortest_window_first() {
        let keys = Keys::new();
        let limits = stacked([
            Quota::per(1_000, DAY).unwrap().named("daily").unwrap(),
            Quota::per_second(5).unwrap(),
        ]);
        let (app, key) = limited(&keys, limits).await;
        let answer = app.get(&key).await;
        let policy = r#""second";q=5;w=1, "daily";q=1000;w=86400"#;
        assert_eq!(answer.header("ratelimit-policy"), Some(policy));
        assert_eq!(answer.header("ratelimit"), Some(r#""second";r=4;t=1, "daily";r=999;t=87"#));
    }

    /// The names and values of the rate limit headers, admitted and denied.
    async fn told(headers: RateLimitHeaders) -> [Vec<(String, String)>; 2] {
        let keys = Keys::new();
        let (auth, _) = keys.builder().default_rate_limits(Quota::per_minute(1).unwrap()).build();
        let app = App::new(ApiKeyLayer::new(auth).rate_limit_headers(headers));
        let key = keys.key().await;
        keys.clock.advance(300 * MILLI);
        let told = |answer: Answer| {
            let mut told: Vec<_> = answer
                .headers
                .iter()
                .filter(|(name, _)| {
                    name.as_str().contains("ratelimit") || *name == http::header::RETRY_AFTER
                })
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
                .collect();
            told.sort();
            told
        };
        [told(app.get(&key).await), told(app.get(&key).await)]
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    const POLICY: (&str, &str) = ("ratelimit-policy", r#""minute";q=1;w=60"#);
    const STATE: (&str, &str) = ("ratelimit", r#""minute";r=0;t=60"#);
    const RETRY: (&str, &str) = ("retry-after", "60");
    const LIMIT: (&str, &str) = ("x-ratelimit-limit", "1");
    const LEFT: (&str, &str) = ("x-ratelimit-remaining", "0");
    /// 2026-01-01T00:01:00.3Z, rounded up.
    const RESET: (&str, &str) = ("x-ratelimit-reset", "1767225661");

    #[tokio::test]
    async fn standard_headers_are_those_of_the_draft() {
        let [admitted, denied] = told(RateLimitHeaders::Standard).await;
        assert_eq!(admitted, pairs(&[STATE, POLICY]));
        assert_eq!(denied, pairs(&[STATE, POLICY, RETRY]));
    }

    #[tokio::test]
    async fn legacy_headers_reset_at_a_unix_time() {
        let [admitted, denied] = told(RateLimitHeaders::Legacy).await;
        assert_eq!(admitted, pairs(&[LIMIT, LEFT, RESET]));
        assert_eq!(denied, pairs(&[RETRY, LIMIT, LEFT, RESET]));
    }

    #[tokio::test]
    async fn both_are_both() {
        let [admitted, denied] = told(RateLimitHeaders::Both).await;
        assert_eq!(admitted, pairs(&[STATE, POLICY, LIMIT, LEFT, RESET]));
        assert_eq!(denied, pairs(&[STATE, POLICY, RETRY, LIMIT, LEFT, RESET]));
    }

    #[tokio::test]
    async fn without_headers_there_is_still_a_time_to_come_back() {
        let [admitted, denied] = told(RateLimitHeaders::Off).await;
        assert_eq!(admitted, []);
        assert_eq!(denied, pairs(&[RETRY]));
    }

    #[tokio::test]
    async fn legacy_headers_speak_of_the_quota_with_the_least_left() {
        let keys = Keys::new();
        let quotas = [
            Quota::per_second(100).unwrap(),
            Quota::per_hour(3).unwrap(),
            Quota::per(50, DAY).unwrap().named("day").unwrap(),
        ];
        let (auth, _) = keys.builder().default_rate_limits(stacked(quotas)).build();
        let app = App::new(ApiKeyLayer::new(auth).rate_limit_headers(RateLimitHeaders::Legacy));
        let answer = app.get(&keys.key().await).await;
        assert_eq!(answer.header("x-ratelimit-limit"), Some("3"));
        assert_eq!(answer.header("x-ratelimit-remaining"), Some("2"));
        let now = keys.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let reset = (now + Duration::from_secs(1200)).as_millis() / 1000;
        assert_eq!(answer.header("x-ratelimit-reset"), Some(reset.to_string().as_str()));
    }

    #[tokio::test]
    async fn a_stranger_learns_nothing_of_a_quota() {
        let keys = Keys::new();
        let (auth, _) = keys.builder().default_rate_limits(Quota::per_minute(9).unwrap()).build();
        let layer = ApiKeyLayer::new(auth).rate_limit_headers(RateLimitHeaders::Both);
        let (app, optional) = (App::new(layer.clone()), App::new(layer.optional(true)));
        let revoked = keys.issue(NewKey::new("acme", Expiry::Never)).await;
        keys.revoke(&revoked).await;
        for key in ["junk", "a b", &unknown_key(), &text(&revoked)] {
            for _ in 0..2 {
                let answer = app.get(key).await;
                assert_ne!(answer.status, StatusCode::OK);
                assert_eq!(answer.rate_limit_headers(), [""; 0]);
            }
        }
        assert_eq!(app.send(crate::app::get("/")).await.rate_limit_headers(), [""; 0]);
        assert_eq!(optional.send(crate::app::get("/")).await.rate_limit_headers(), [""; 0]);
    }

    #[tokio::test]
    async fn headers_of_the_handler_are_replaced_not_doubled() {
        let keys = Keys::new();
        let (auth, _) = keys.builder().default_rate_limits(Quota::per_minute(9).unwrap()).build();
        let handler =
            || async { [("ratelimit", "\"theirs\";r=1"), ("ratelimit-policy", "\"theirs\";q=1")] };
        let app = axum::Router::new()
            .route("/", axum::routing::get(handler))
            .layer(ApiKeyLayer::new(auth));
        let answer = crate::app::send(app, crate::app::with_key(&keys.key().await)).await;
        assert_eq!(answer.header("ratelimit"), Some(r#""minute";r=8;t=7"#));
        assert_eq!(answer.header("ratelimit-policy"), Some(r#""minute";q=9;w=60"#));
    }
}

mod quotas {
    use super::*;

    /// The headers when the burst is used up.
    async fn exhausted(quota: Quota) -> (Option<String>, Option<String>) {
        let keys = Keys::new();
        let burst = quota.burst_size().get();
        let (app, key) = limited(&keys, quota).await;
        for _ in 0..burst {
            assert_eq!(app.get(&key).await.status, StatusCode::OK);
        }
        let answer = app.get(&key).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        let header = |name| answer.header(name).map(str::to_owned);
        (header("ratelimit-policy"), header("retry-after"))
    }

    #[track_caller]
    fn assert_told(told: &(Option<String>, Option<String>), policy: &str, retry_after: &str) {
        assert_eq!((told.0.as_deref(), told.1.as_deref()), (Some(policy), Some(retry_after)));
    }

    #[tokio::test]
    async fn half_a_request_a_second() {
        let quota = Quota::per(1, 2 * SECOND).unwrap();
        assert_told(&exhausted(quota).await, r#""default";q=1;w=2"#, "2");
    }

    #[tokio::test]
    async fn one_request_a_day() {
        let quota = Quota::per(1, DAY).unwrap();
        assert_told(&exhausted(quota).await, r#""default";q=1;w=86400"#, "86400");
    }

    #[tokio::test]
    async fn three_requests_a_second_round_the_wait_up() {
        let quota = Quota::per_second(3).unwrap().burst(1).unwrap();
        assert_told(&exhausted(quota).await, r#""second";q=1;w=1"#, "1");
    }

    #[tokio::test]
    async fn a_thousand_million_requests_a_second() {
        let keys = Keys::new();
        let (app, key) = limited(&keys, Quota::per_second(1_000_000_000).unwrap()).await;
        for left in [999_999_999, 999_999_998] {
            let answer = app.get(&key).await;
            assert_eq!(answer.header("ratelimit-policy"), Some(r#""second";q=1000000000;w=1"#));
            let state = format!(r#""second";r={left};t=1"#);
            assert_eq!(answer.header("ratelimit"), Some(state.as_str()));
        }
    }

    #[test]
    fn zero_and_what_would_overflow_are_errors() {
        for quota in [
            Quota::per_second(0),
            Quota::per_minute(0),
            Quota::per_hour(0),
            Quota::at_most(0, DAY),
            Quota::per_second(1).and_then(|quota| quota.burst(0)),
        ] {
            assert_eq!(quota, Err(InvalidQuota::Zero));
        }
        for quota in [
            Quota::per_second(u32::MAX),
            Quota::per(1, Duration::ZERO),
            Quota::per(1, Duration::MAX),
            Quota::per(1, DAY).and_then(|quota| quota.burst(u32::MAX)),
            Quota::per(u32::MAX, 365 * 200 * DAY),
        ] {
            assert_eq!(quota, Err(InvalidQuota::OutOfRange));
        }
    }

    /// Windows of any length, many short, some at the maximum.
    fn windows() -> impl Strategy<Value = Duration> {
        let millis = prop_oneof![
            1 => Just(0),
            6 => 1..100_000_u64,
            3 => 100_000..400 * 86_400_000_u64,
            1 => MOST_MILLIS - 2..=MOST_MILLIS + 2,
            1 => any::<u64>(),
        ];
        let nanos = prop_oneof![9 => Just(0), 1 => 1..1_000_000_u64];
        (millis, nanos).prop_map(|(millis, nanos)| {
            Duration::from_millis(millis).saturating_add(Duration::from_nanos(nanos))
        })
    }

    fn amounts() -> impl Strategy<Value = u32> {
        prop_oneof![1 => Just(0), 6 => 1..10_000_u32, 2 => any::<u32>(), 1 => Just(u32::MAX)]
    }

    /// The maximum time for a bucket to fill: 146 years.
    const MOST_MILLIS: u64 = u64::MAX / 4 / 1_000_000;

    /// The error for an invalid quota, by the documentation of [`Quota::per`] and [`Quota::burst`].
    fn refusal(limit: u32, window: Duration, burst: u32) -> Option<InvalidQuota> {
        let [limit, burst] = [limit, burst].map(u128::from);
        if limit == 0 {
            return Some(InvalidQuota::Zero);
        }
        let interval = window.as_nanos() / limit;
        let is_too_long = |units| interval * units > u128::from(u64::MAX / 4);
        if interval == 0 || !window.subsec_nanos().is_multiple_of(1_000_000) || is_too_long(limit) {
            return Some(InvalidQuota::OutOfRange);
        }
        if burst == 0 {
            return Some(InvalidQuota::Zero);
        }
        is_too_long(burst).then_some(InvalidQuota::OutOfRange)
    }

    #[test]
    fn a_quota_is_refused_or_works() {
        const CASES: u32 = 2_000;
        let counts = [const { Cell::new(0_u32) }; 3];
        let parts = (amounts(), windows(), amounts(), 0..1_u64 << 60);
        let config =
            ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) };
        let mut runner = TestRunner::new(config);
        let outcome = runner.run(&parts, |(limit, window, burst, elapsed)| {
            let quota = Quota::per(limit, window).and_then(|quota| quota.burst(burst));
            prop_assert_eq!(quota.clone().err(), refusal(limit, window, burst));
            let count = match &quota {
                Ok(_) => 0,
                Err(InvalidQuota::Zero) => 1,
                Err(_) => 2,
            };
            counts[count].set(counts[count].get() + 1);
            let Ok(quota) = quota else { return Ok(()) };

            let (now, interval) = (Duration::from_nanos(elapsed), quota.interval());
            let bucket = |key| {
                let subject = Subject::of_key("acme", key);
                LocalRateLimiter::new().buckets(&subject, &quota.clone().into(), now)
            };
            let one_by_one = bucket(1);
            for taken in 1..=burst.min(3) {
                prop_assert_eq!(take(&*one_by_one, 1, now), (true, burst - taken));
            }
            let at_once = bucket(2);
            prop_assert_eq!(take(&*at_once, burst, now), (true, 0));
            prop_assert_eq!(take(&*at_once, 1, now), (false, 0));
            let too_early = now + interval - Duration::from_nanos(1);
            prop_assert_eq!(take(&*at_once, 1, too_early), (false, 0));
            prop_assert_eq!(take(&*at_once, 1, now + interval), (true, 0));
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));
        let [works, zero, out_of_range] = counts.map(Cell::into_inner);
        assert!(works > CASES / 3, "{works} of {CASES} quotas work");
        assert!(zero > CASES / 20 && out_of_range > CASES / 20, "{zero}, {out_of_range}");
    }

    fn take(bucket: &dyn Buckets, units: u32, now: Duration) -> (bool, u32) {
        let units = NonZeroU32::new(units).unwrap();
        let Check::Ready(decisions) = bucket.take(units, now) else { panic!("pending") };
        (decisions.is_admitted(), decisions[0].remaining())
    }

    async fn remaining(app: &App, new: NewKey, keys: &Keys) -> Option<String> {
        let key = text(&keys.issue(new).await);
        app.get(&key).await.header("ratelimit").map(str::to_owned)
    }

    #[tokio::test]
    async fn a_key_has_its_own_limits_the_default_or_none() {
        let keys = Keys::new();
        let (app, _) = limited(&keys, Quota::per_minute(10).unwrap()).await;
        let default = remaining(&app, NewKey::new("a", Expiry::Never), &keys).await;
        assert_eq!(default.as_deref(), Some(r#""minute";r=9;t=6"#));
        let own = NewKey::new("a", Expiry::Never).rate_limits(Quota::per_hour(60).unwrap());
        let own = remaining(&app, own, &keys).await;
        assert_eq!(own.as_deref(), Some(r#""hour";r=59;t=60"#));
        let unlimited = NewKey::new("a", Expiry::Never).rate_limits(RateLimits::unlimited());
        assert_eq!(remaining(&app, unlimited, &keys).await, None);
    }

    #[tokio::test]
    async fn without_a_default_a_key_is_not_limited() {
        let keys = Keys::new();
        let (app, key) = limited(&keys, RateLimits::unlimited()).await;
        for _ in 0..1_000 {
            let answer = app.get(&key).await;
            assert_eq!((answer.status, answer.rate_limit_headers()), (StatusCode::OK, vec![]));
        }
    }
}

mod stacked_quotas {
    use super::*;

    #[tokio::test]
    async fn a_burst_that_the_short_one_denies_never_charges_the_long_one() {
        let keys = Keys::new();
        let limits = stacked([Quota::per_hour(100).unwrap(), Quota::per_second(2).unwrap()]);
        let (app, key) = limited(&keys, limits).await;
        for _ in 0..2 {
            assert_eq!(app.get(&key).await.status, StatusCode::OK);
        }
        for _ in 0..500 {
            let answer = app.get(&key).await;
            assert_eq!(answer.json()["violated-policies"], serde_json::json!(["second"]));
            let state = r#""second";r=0;t=1, "hour";r=98;t=36"#;
            assert_eq!(answer.header("ratelimit"), Some(state));
            let policy = r#""second";q=2;w=1, "hour";q=100;w=3600"#;
            assert_eq!(answer.header("ratelimit-policy"), Some(policy));
        }
        keys.clock.advance(SECOND);
        let state = app.get(&key).await;
        assert_eq!(state.header("ratelimit"), Some(r#""second";r=1;t=1, "hour";r=97;t=35"#));
    }

    #[tokio::test]
    async fn what_one_quota_denies_no_other_is_charged_for() {
        let keys = Keys::new();
        let slow = Quota::per(1, 100 * SECOND).unwrap().burst(2).unwrap().named("slow").unwrap();
        let long = Quota::per(20, 1_000 * SECOND).unwrap().burst(1).unwrap().named("long").unwrap();
        let (app, key) = limited(&keys, stacked([slow, long])).await;
        assert_eq!(app.get(&key).await.status, StatusCode::OK);
        let answer = app.get(&key).await;
        assert_eq!(answer.json()["violated-policies"], serde_json::json!(["long"]));
        assert_eq!(answer.header("ratelimit"), Some(r#""slow";r=1;t=100, "long";r=0;t=50"#));
        assert_eq!(answer.header("retry-after"), Some("50"));
        keys.clock.advance(50 * SECOND);
        assert_eq!(app.get(&key).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn the_long_one_denies_when_it_is_used_up() {
        let keys = Keys::new();
        let limits = stacked([Quota::per_hour(3).unwrap(), Quota::per_second(2).unwrap()]);
        let (app, key) = limited(&keys, limits).await;
        for _ in 0..3 {
            assert_eq!(app.get(&key).await.status, StatusCode::OK);
            keys.clock.advance(SECOND);
        }
        let answer = app.get(&key).await;
        assert_eq!(answer.json()["violated-policies"], serde_json::json!(["hour"]));
        assert_eq!(answer.header("retry-after"), Some("1197"));
    }
}

mod sliding_windows {
    use super::*;

    #[tokio::test]
    async fn its_limit_and_window_are_told_and_the_wait_is_exact() {
        let keys = Keys::new();
        let quota = Quota::sliding(3, 64 * SECOND).unwrap().named("day").unwrap();
        let (app, key) = limited(&keys, quota).await;
        // Slots are two seconds long: a unit taken now is back when the 33rd slot from here begins.
        keys.clock.advance(Duration::from_millis(2_500));
        for left in [2, 1] {
            let answer = app.get(&key).await;
            assert_eq!(answer.header("ratelimit-policy"), Some(r#""day";q=3;w=64"#));
            let state = format!(r#""day";r={left};t=66"#);
            assert_eq!(answer.header("ratelimit"), Some(state.as_str()));
        }
        keys.clock.advance(10 * SECOND);
        let state = Some(r#""day";r=0;t=56"#);
        assert_eq!(app.get(&key).await.header("ratelimit"), state);

        let denied = app.get(&key).await;
        assert_eq!(denied.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(denied.header("ratelimit"), state);
        assert_eq!(denied.header("retry-after"), Some("56"));
        keys.clock.advance(Duration::from_millis(55_499));
        assert_eq!(app.get(&key).await.status, StatusCode::TOO_MANY_REQUESTS);
        keys.clock.advance(MILLI);
        // Both units that were taken together are back.
        for left in [1, 0] {
            let state = format!(r#""day";r={left};t=10"#);
            assert_eq!(app.get(&key).await.header("ratelimit"), Some(state.as_str()));
        }
        assert_eq!(app.get(&key).await.header("retry-after"), Some("10"));
    }

    #[tokio::test]
    async fn no_window_ever_holds_more() {
        let keys = Keys::new();
        let quota = Quota::sliding(5, SECOND).unwrap();
        let (app, key) = limited(&keys, quota).await;
        let mut admitted = Vec::new();
        for _ in 0..500 {
            if app.get(&key).await.status == StatusCode::OK {
                admitted.push(keys.clock.monotonic());
            }
            keys.clock.advance(11 * MILLI);
        }
        assert!(admitted.windows(6).all(|six| six[5] - six[0] > SECOND), "{admitted:?}");
        assert!(admitted.len() >= 5 * 5 * 96 / 100, "{}", admitted.len());
    }
}

mod consumers {
    use super::*;

    async fn key_of(keys: &Keys, consumer: &str) -> String {
        text(&keys.issue(NewKey::new(consumer, Expiry::Never)).await)
    }

    #[tokio::test]
    async fn the_keys_of_one_share_a_quota_and_those_of_another_have_theirs() {
        let keys = Keys::new();
        let (app, _) = limited(&keys, Quota::per_minute(3).unwrap().per_consumer()).await;
        let (first, second) = (key_of(&keys, "acme").await, key_of(&keys, "acme").await);
        let other = key_of(&keys, "zeta").await;
        for (key, left) in [(&first, 2), (&second, 1), (&other, 2), (&first, 0)] {
            let state = format!(r#""minute";r={left};t=20"#);
            assert_eq!(app.get(key).await.header("ratelimit"), Some(state.as_str()));
        }
        for key in [&first, &second] {
            assert_eq!(app.get(key).await.status, StatusCode::TOO_MANY_REQUESTS);
        }
        assert_eq!(app.get(&other).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn what_a_key_or_its_consumer_does_not_have_is_taken_of_neither() {
        let keys = Keys::new();
        let limits = stacked([
            Quota::per_minute(2).unwrap(),
            Quota::sliding(3, 3_200 * SECOND).unwrap().named("all").unwrap().per_consumer(),
        ]);
        let (app, _) = limited(&keys, limits).await;
        let (first, second) = (key_of(&keys, "acme").await, key_of(&keys, "acme").await);
        for (key, own, shared) in [(&first, 1, 2), (&first, 0, 1)] {
            let state = format!(r#""minute";r={own};t=30, "all";r={shared};t=3300"#);
            assert_eq!(app.get(key).await.header("ratelimit"), Some(state.as_str()));
        }
        // The key's own quota is used up. The shared one is unchanged.
        for _ in 0..9 {
            let answer = app.get(&first).await;
            assert_eq!(answer.json()["violated-policies"], serde_json::json!(["minute"]));
            let state = r#""minute";r=0;t=30, "all";r=1;t=3300"#;
            assert_eq!(answer.header("ratelimit"), Some(state));
        }
        assert_eq!(app.get(&second).await.status, StatusCode::OK);
        // The shared quota is used up. The key's own is unchanged.
        for _ in 0..9 {
            let answer = app.get(&second).await;
            assert_eq!(answer.json()["violated-policies"], serde_json::json!(["all"]));
            let state = r#""minute";r=1;t=30, "all";r=0;t=3300"#;
            assert_eq!(answer.header("ratelimit"), Some(state));
            assert_eq!(answer.header("retry-after"), Some("3300"));
        }
    }
}

mod buckets {
    use super::*;

    async fn drained(keys: &Keys, app: &App, quota: Quota) -> (Issued, String) {
        let issued = keys.issue(NewKey::new("acme", Expiry::Never).rate_limits(quota)).await;
        let key = text(&issued);
        let before = app.calls();
        while app.get(&key).await.status == StatusCode::OK {
            assert!(app.calls() - before < 1_000_000, "the quota does not end");
        }
        (issued, key)
    }

    #[tokio::test]
    async fn forgetting_a_key_does_not_refill_its_bucket() {
        type Forget = fn(&tower_api_key::Authenticator, &KeyHash);
        let forget: [Forget; 3] = [
            |auth, hash| auth.invalidate(hash),
            |auth, hash| Invalidate::invalidate(auth, hash),
            |auth, _| auth.invalidate_all(),
        ];
        for forget in forget {
            let keys = Keys::new();
            let auth = keys.auth();
            let app = App::new(ApiKeyLayer::new(auth.clone()));
            let (issued, key) = drained(&keys, &app, Quota::per_hour(3).unwrap()).await;
            let queries = keys.queries();
            forget(&auth, &issued.record.key_hash);
            assert_eq!(app.get(&key).await.status, StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(keys.queries(), queries + 1, "the key was not forgotten");
        }
    }

    #[tokio::test]
    async fn a_key_that_falls_out_of_the_cache_does_not_refill_its_bucket() {
        let keys = Keys::new();
        let cache = tower_api_key::auth::CachePolicy::default().capacity(0);
        let app = App::new(ApiKeyLayer::new(keys.builder().cache(cache).build().0));
        let (_, key) = drained(&keys, &app, Quota::per_hour(3).unwrap()).await;
        let queries = keys.queries();
        for again in 1..=3 {
            assert_eq!(app.get(&key).await.status, StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(keys.queries(), queries + again, "the key stayed in the cache");
        }
    }

    #[tokio::test]
    async fn reading_a_key_again_does_not_refill_its_bucket() {
        let keys = Keys::new();
        let app = App::new(ApiKeyLayer::new(keys.auth()));
        let (_, key) = drained(&keys, &app, Quota::per_hour(3).unwrap()).await;
        let queries = keys.queries();
        keys.clock.advance(Duration::from_secs(61));
        let answer = app.get(&key).await;
        assert_eq!(answer.header("retry-after"), Some("1139"));
        assert_eq!(keys.queries(), queries + 1);
    }

    #[tokio::test]
    async fn a_key_and_the_one_it_was_rotated_to_share_a_bucket() {
        let keys = Keys::new();
        let quota = Quota::per_hour(10).unwrap();
        let (auth, _) = keys.builder().default_rate_limits(quota).build();
        let app = App::new(ApiKeyLayer::new(auth));
        let old = keys.issue(NewKey::new("acme", Expiry::Never)).await;
        let new = crate::app::format().generate().unwrap();
        let id = KeyId::generate(keys.clock.now(), &SystemEntropy).unwrap();
        let mut record = KeyRecord::new(id, new.hash(), "acme", keys.clock.now());
        record.rotated_from = Some(old.record.id);
        record.root_id = old.record.root_id;
        keys.store.memory.insert(&record).await.unwrap();

        let (old, new) = (text(&old), new.expose_secret());
        for (key, left) in [(old.as_str(), 9), (new, 8), (&old, 7), (new, 6)] {
            let state = format!(r#""hour";r={left};t=360"#);
            assert_eq!(app.get(key).await.header("ratelimit"), Some(state.as_str()));
        }
    }

    #[tokio::test]
    async fn a_changed_quota_applies_from_the_next_request_without_a_refill() {
        let keys = Keys::new();
        let auth = keys.auth();
        let app = App::new(ApiKeyLayer::new(auth.clone()));
        let (issued, key) = drained(&keys, &app, Quota::per_minute(6).unwrap()).await;
        let wider = Quota::per_minute(60).unwrap();
        keys.change(&issued, |record| record.rate_limits = Some(wider.into())).await;
        auth.invalidate(&issued.record.key_hash);

        // The six units already taken count against it, too.
        let answer = app.get(&key).await;
        assert_eq!(answer.header("ratelimit-policy"), Some(r#""minute";q=60;w=60"#));
        assert_eq!(answer.header("ratelimit"), Some(r#""minute";r=53;t=1"#));
    }

    #[tokio::test]
    async fn a_faster_quota_frees_a_key_from_the_slow_one_it_had() {
        let keys = Keys::new();
        let auth = keys.auth();
        let app = App::new(ApiKeyLayer::new(auth.clone()));
        let (issued, key) = drained(&keys, &app, Quota::per(2, DAY).unwrap()).await;
        let faster = Quota::per(60, Duration::from_secs(60)).unwrap();
        keys.change(&issued, |record| record.rate_limits = Some(faster.into())).await;
        auth.invalidate(&issued.record.key_hash);

        for _ in 0..58 {
            assert_eq!(app.get(&key).await.status, StatusCode::OK);
        }
        let answer = app.get(&key).await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (429, Some("1")));
        keys.clock.advance(SECOND);
        assert_eq!(app.get(&key).await.status, StatusCode::OK);
        assert_eq!(app.get(&key).await.status, StatusCode::TOO_MANY_REQUESTS);
    }

    #[tokio::test]
    async fn a_slower_quota_applies_from_the_next_request_too() {
        let keys = Keys::new();
        let auth = keys.auth();
        let app = App::new(ApiKeyLayer::new(auth.clone()));
        let (issued, key) = drained(&keys, &app, Quota::per_second(10).unwrap()).await;
        let slower = Quota::per(2, DAY).unwrap().named("second").unwrap();
        keys.change(&issued, |record| record.rate_limits = Some(slower.into())).await;
        auth.invalidate(&issued.record.key_hash);

        keys.clock.advance(SECOND);
        assert_eq!(app.get(&key).await.status, StatusCode::OK);
        assert_eq!(app.get(&key).await.status, StatusCode::OK);
        assert_eq!(app.get(&key).await.header("retry-after"), Some("43200"));
    }
}

mod under_load {
    use super::*;

    /// Lets `threads` threads use one key as often as they can, `step` after `step`, and returns
    /// the number of uses.
    async fn hammer(quota: Quota, threads: usize, step: Duration, steps: usize) -> u64 {
        let keys = Keys::new();
        let (auth, _) = keys.builder().default_rate_limits(quota).build();
        let key = keys.key().await;
        let warmed_up = auth.check(key.as_bytes()).await.is_ok();
        let admitted = AtomicU64::new(u64::from(warmed_up));
        let barrier = Barrier::new(threads);
        thread::scope(|scope| {
            for thread in 0..threads {
                let (auth, keys, key, barrier, admitted) =
                    (&auth, &keys, &key, &barrier, &admitted);
                scope.spawn(move || {
                    for _ in 0..steps {
                        loop {
                            match auth.check(key.as_bytes()).try_now() {
                                Attempt::Admit(_) => {
                                    let before = admitted.fetch_add(1, Ordering::Relaxed);
                                    assert!(before < 1_000_000, "the quota does not end");
                                }
                                Attempt::Reject(_) => break,
                                Attempt::Pending(_) => panic!("the key is cached"),
                            };
                        }
                        barrier.wait();
                        if thread == 0 {
                            keys.clock.advance(step);
                        }
                        barrier.wait();
                    }
                });
            }
        });
        admitted.into_inner()
    }

    #[tokio::test]
    async fn threads_get_what_the_quota_promises_and_no_request_more() {
        let quota = Quota::per_second(100).unwrap().burst(20).unwrap();
        let elapsed = 10 * SECOND;
        let admitted = hammer(quota.clone(), 8, 10 * MILLI, 1_001).await;
        assert_eq!(admitted, quota.most_in(elapsed));
    }

    #[tokio::test]
    async fn threads_out_of_step_with_the_clock_get_no_request_more() {
        let quota = Quota::per_second(300).unwrap().burst(7).unwrap();
        let most = quota.most_in(10 * SECOND);
        let admitted = hammer(quota, 16, 7 * MILLI, 1_429).await;
        assert!(admitted <= most, "{admitted} of at most {most}");
        assert!(admitted * 100 >= most * 99, "{admitted} of {most}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn concurrent_requests_through_the_layer_get_what_the_quota_promises() {
        let keys = Keys::new();
        let (app, key) = limited(&keys, Quota::per_second(50).unwrap()).await;
        let mut admitted = 0;
        for _ in 0..10 {
            let tasks = (0..16).map(|_| {
                let (app, key) = (app.clone(), key.clone());
                tokio::spawn(async move {
                    let mut admitted = 0;
                    while app.get(&key).await.status == StatusCode::OK {
                        admitted += 1;
                        assert!(admitted < 1_000_000, "the quota does not end");
                    }
                    admitted
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                admitted += task.await.unwrap();
            }
            keys.clock.advance(SECOND);
        }
        assert_eq!(admitted, 500);
    }

    /// A limiter whose sweep pauses in the middle until released.
    #[derive(Clone)]
    struct Gated {
        local: Arc<LocalRateLimiter>,
        asked: Arc<AtomicU64>,
        sweeping: mpsc::Sender<()>,
        go_on: Arc<Mutex<mpsc::Receiver<()>>>,
    }

    impl RateLimiter for Gated {
        fn buckets(
            &self,
            subject: &Subject<'_>,
            limits: &RateLimits,
            now: Duration,
        ) -> Arc<dyn Buckets> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.local.buckets(subject, limits, now)
        }

        fn sweep(&self, now: Duration) {
            self.sweeping.send(()).unwrap();
            self.go_on.lock().unwrap().recv_timeout(Duration::from_secs(30)).unwrap();
            self.local.sweep(now);
        }
    }

    #[test]
    fn a_limiter_behind_a_pointer_is_swept() {
        let (sweeping, swept) = mpsc::channel();
        let (go_on, gate) = mpsc::channel();
        let go_on_at_once = go_on.send(());
        let limiter = Arc::new(Gated {
            local: Arc::default(),
            asked: Arc::default(),
            sweeping,
            go_on: Arc::new(Mutex::new(gate)),
        });
        go_on_at_once.unwrap();
        RateLimiter::sweep(&limiter, SECOND);
        swept.try_recv().unwrap();
    }

    #[tokio::test]
    async fn a_request_for_a_cached_key_does_not_wait_for_a_sweep() {
        let keys = Keys::new();
        let (sweeping, swept) = mpsc::channel();
        let (go_on, gate) = mpsc::channel();
        let limiter = Gated {
            local: Arc::default(),
            asked: Arc::default(),
            sweeping,
            go_on: Arc::new(Mutex::new(gate)),
        };
        let (auth, _) = keys
            .builder()
            .default_rate_limits(Quota::per_hour(100).unwrap())
            .rate_limiter(limiter.clone())
            .build();
        let app = App::new(ApiKeyLayer::new(auth));
        let key = keys.key().await;
        assert_eq!(app.get(&key).await.status, StatusCode::OK);
        let sweep = thread::spawn({
            let (limiter, now) = (limiter.clone(), keys.clock.monotonic());
            move || limiter.sweep(now)
        });
        swept.recv_timeout(Duration::from_secs(30)).unwrap();
        for left in (90..99).rev() {
            let state = format!(r#""hour";r={left};t=36"#);
            assert_eq!(app.get(&key).await.header("ratelimit"), Some(state.as_str()));
        }
        assert_eq!(limiter.asked.load(Ordering::SeqCst), 1, "a hit asked for its bucket");
        go_on.send(()).unwrap();
        sweep.join().unwrap();
    }

    #[tokio::test]
    async fn a_million_idle_buckets_are_swept_while_a_key_is_used() {
        let clock = ManualClock::default();
        let limiter = Arc::new(LocalRateLimiter::new());
        let quota = Quota::per_hour(1_000_000).unwrap();
        let now = clock.monotonic();
        let limits = RateLimits::from(quota);
        let bucket = |key| limiter.buckets(&Subject::of_key("acme", key), &limits, now);
        let used = bucket(u128::MAX);
        for key in 0..1_000_000 {
            let bucket = bucket(key);
            assert!(matches!(
                bucket.take(NonZeroU32::MIN, now),
                Check::Ready(decision) if decision.is_admitted()
            ));
        }
        assert_eq!(limiter.len(), 1_000_001);

        let (begun, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        let stop = AtomicBool::new(false);
        let during = thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    begun.fetch_add(1, Ordering::SeqCst);
                    limiter.sweep(now);
                    ended.fetch_add(1, Ordering::SeqCst);
                }
            });
            let mut during = 0;
            for _ in 0..1_000_000 {
                let before = begun.load(Ordering::SeqCst);
                let admitted = matches!(
                    used.take(NonZeroU32::MIN, now),
                    Check::Ready(decision) if decision.is_admitted()
                );
                assert!(admitted);
                // This sweep began before the request and is still running.
                if before > 0 && ended.load(Ordering::SeqCst) < before {
                    during += 1;
                }
                if during == 1_000 {
                    break;
                }
            }
            stop.store(true, Ordering::SeqCst);
            during
        });
        assert_eq!(during, 1_000, "a request waited for the end of the sweep");
        assert_eq!(limiter.len(), 1_000_001, "a bucket in use was swept");

        // Full again after 3.6 ms, and kept for ten minutes.
        clock.advance(Duration::from_secs(600));
        limiter.sweep(clock.monotonic());
        assert_eq!(limiter.len(), 1_000_001, "full for less than ten minutes");
        clock.advance(Duration::from_millis(4));
        limiter.sweep(clock.monotonic());
        assert_eq!(limiter.len(), 1, "only the bucket that somebody holds is left");
        drop(used);
        clock.advance(Duration::from_secs(2 * 3600));
        limiter.sweep(clock.monotonic());
        assert!(limiter.is_empty());
    }
}
