//! A key that is no longer, not yet or not at all valid.

use std::time::Duration;

use http::StatusCode;
use tower_api_key::{
    ApiKeyLayer,
    auth::{CachePolicy, RejectionKind},
    clock::{Clock, ManualClock},
    manage::{Expiry, NewKey},
    rate_limit::Quota,
};

use crate::app::{App, INVALID_TOKEN, Keys, MILLI, PREFIX, SECOND, text, unknown_key};

const HOUR: Duration = Duration::from_secs(3600);

fn app(keys: &Keys) -> App {
    App::new(ApiKeyLayer::new(keys.auth()))
}

/// One key of each kind that is refused as invalid.
async fn invalid_keys(keys: &Keys) -> Vec<(RejectionKind, String)> {
    let now = keys.clock.now();
    let revoked = keys
        .issue(NewKey::new("acme", Expiry::Never).rate_limits(Quota::per_minute(9).unwrap()))
        .await;
    keys.revoke(&revoked).await;
    let inactive = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    keys.change(&inactive, |record| record.is_active = false).await;
    let expired = keys.issue(NewKey::new("acme", Expiry::At(now))).await;
    let future = keys.issue(NewKey::new("acme", Expiry::Never).not_before(now + HOUR)).await;
    let valid = keys.key().await;
    let flipped = if valid.ends_with('A') { "g" } else { "A" };
    vec![
        (RejectionKind::Malformed, "secret".to_owned()),
        (RejectionKind::Malformed, valid.replace(PREFIX, "sk_live_")),
        (RejectionKind::Malformed, format!("{}{flipped}", &valid[..valid.len() - 1])),
        (RejectionKind::Unknown, unknown_key()),
        (RejectionKind::Revoked, text(&revoked)),
        (RejectionKind::Inactive, text(&inactive)),
        (RejectionKind::Expired, text(&expired)),
        (RejectionKind::NotYetActive, text(&future)),
    ]
}

#[tokio::test]
async fn every_invalid_key_gets_the_same_bytes() {
    let keys = Keys::new();
    let app = app(&keys);
    let expected = format!(
        "401 Unauthorized\n\
         content-type: application/problem+json\n\
         cache-control: no-store\n\
         www-authenticate: {INVALID_TOKEN}\n\
         vary: Authorization\n\
         \n\
         {{\"type\":\"about:blank\",\"title\":\"Unauthorized\",\"status\":401,\
         \"detail\":\"The API key is not valid.\",\"code\":\"invalid_api_key\"}}"
    );
    for (kind, key) in invalid_keys(&keys).await {
        for state in ["not cached", "cached"] {
            let answer = app.get(&key).await;
            assert_eq!(answer.kind(), Some(kind), "{state}");
            assert_eq!(answer.wire(), expected, "{kind:?}, {state}");
        }
    }
    assert_eq!(app.calls(), 0);
}

#[tokio::test]
async fn every_invalid_key_gets_the_same_length_over_http() {
    let keys = Keys::new();
    let router = axum::Router::new()
        .route("/", axum::routing::get(|| async {}))
        .layer(ApiKeyLayer::new(keys.auth()));
    let address = crate::app::server::serve(router).await;
    let mut answers = Vec::new();
    for (_, key) in invalid_keys(&keys).await {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        );
        let answer = crate::app::server::raw(address, request.as_bytes()).await;
        let lines = answer.split("\r\n").filter(|line| !line.starts_with("date:"));
        answers.push(lines.collect::<Vec<_>>().join("\n"));
    }
    assert!(answers[0].starts_with("HTTP/1.1 401 Unauthorized"), "{}", answers[0]);
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:#?}");
}

#[tokio::test]
async fn an_unknown_key_is_looked_up_once() {
    let keys = Keys::new();
    let app = app(&keys);
    let unknown = unknown_key();
    for _ in 0..3 {
        let answer = app.get(&unknown).await;
        assert_eq!(answer.kind(), Some(RejectionKind::Unknown));
        assert_eq!(keys.queries(), 1);
    }
}

#[tokio::test]
async fn a_key_is_looked_up_once_whatever_its_state() {
    let keys = Keys::new();
    let app = app(&keys);
    for (kind, key) in invalid_keys(&keys).await {
        let before = keys.queries();
        app.get(&key).await;
        app.get(&key).await;
        let queries = usize::from(kind != RejectionKind::Malformed);
        assert_eq!(keys.queries() - before, queries, "{kind:?}");
    }
}

#[tokio::test]
async fn a_key_expires_on_time_while_it_is_cached() {
    let keys = Keys::new();
    let cache = CachePolicy::default().fresh(Duration::from_secs(300)).unwrap();
    let app = App::new(ApiKeyLayer::new(keys.builder().cache(cache).build().0));
    let lifetime = Duration::from_secs(200);
    let key = text(&keys.issue(NewKey::new("acme", Expiry::In(lifetime))).await);
    assert_eq!(app.get(&key).await.status, StatusCode::OK);

    keys.clock.advance(lifetime - MILLI);
    assert_eq!(app.get(&key).await.status, StatusCode::OK);
    keys.clock.advance(MILLI);
    assert_eq!(app.get(&key).await.kind(), Some(RejectionKind::Expired));
    assert_eq!(keys.queries(), 1, "the cache was not used");
}

#[tokio::test]
async fn a_key_that_is_looked_up_as_it_expires_has_expired() {
    let keys = Keys::new();
    let now = keys.clock.now();
    let mut issued = Vec::new();
    for (expires_at, status) in [
        (now + MILLI, StatusCode::UNAUTHORIZED),
        (now + 2 * MILLI, StatusCode::UNAUTHORIZED),
        (now + 3 * MILLI, StatusCode::OK),
    ] {
        let new = NewKey::new("acme", Expiry::At(expires_at));
        issued.push((text(&keys.issue(new).await), status));
    }
    keys.clock.advance(2 * MILLI);
    for (key, status) in issued {
        assert_eq!(app(&keys).get(&key).await.status, status);
    }
}

#[tokio::test]
async fn a_key_begins_to_work_on_time_while_it_is_cached() {
    let keys = Keys::new();
    let app = app(&keys);
    let not_before = keys.clock.now() + 30 * SECOND;
    let key = text(&keys.issue(NewKey::new("acme", Expiry::Never).not_before(not_before)).await);
    assert_eq!(app.get(&key).await.kind(), Some(RejectionKind::NotYetActive));

    keys.clock.advance(30 * SECOND - MILLI);
    assert_eq!(app.get(&key).await.kind(), Some(RejectionKind::NotYetActive));
    keys.clock.advance(MILLI);
    assert_eq!(app.get(&key).await.status, StatusCode::OK);
    assert_eq!(keys.queries(), 1, "the cache was not used");
}

#[tokio::test]
async fn a_step_of_the_wall_clock_changes_no_decision() {
    let keys = Keys::new();
    let node = ManualClock::default();
    let quota = Quota::per_hour(3).unwrap();
    let (auth, _) = keys.builder().clock(node.clone()).default_rate_limits(quota).build();
    let app = App::new(ApiKeyLayer::new(auth));
    let now = keys.clock.now();
    let valid = text(&keys.issue(NewKey::new("acme", Expiry::At(now + HOUR / 2))).await);
    let expired = text(&keys.issue(NewKey::new("acme", Expiry::At(now))).await);
    let future =
        text(&keys.issue(NewKey::new("acme", Expiry::Never).not_before(now + HOUR / 2)).await);

    for (wall, remaining) in [(now, 2), (now + HOUR, 1), (now - HOUR, 0)] {
        node.set_wall(wall);
        let answer = app.get(&valid).await;
        assert_eq!(answer.status, StatusCode::OK);
        let state = format!("\"hour\";r={remaining};t=1200");
        assert_eq!(answer.header("ratelimit"), Some(state.as_str()));
        assert_eq!(app.get(&expired).await.kind(), Some(RejectionKind::Expired));
        assert_eq!(app.get(&future).await.kind(), Some(RejectionKind::NotYetActive));
    }
    node.set_wall(now + HOUR);
    assert_eq!(app.get(&valid).await.kind(), Some(RejectionKind::RateLimited));
    assert_eq!(keys.queries(), 3, "a step of the wall clock made the cache forget");
}

#[tokio::test]
async fn a_node_whose_wall_clock_is_wrong_judges_by_the_stores_clock() {
    for wrong_by in [HOUR, 1000 * HOUR] {
        let keys = Keys::new();
        let now = keys.clock.now();
        for wall in [now - wrong_by, now + wrong_by] {
            let (auth, _) = keys.builder().clock(ManualClock::at(wall)).build();
            let app = App::new(ApiKeyLayer::new(auth));
            let (valid, expired) = (now + SECOND, now);
            let valid = text(&keys.issue(NewKey::new("acme", Expiry::At(valid))).await);
            let expired = text(&keys.issue(NewKey::new("acme", Expiry::At(expired))).await);
            assert_eq!(app.get(&valid).await.status, StatusCode::OK);
            assert_eq!(app.get(&expired).await.kind(), Some(RejectionKind::Expired));
        }
    }
}

#[tokio::test]
async fn failed_guesses_do_not_use_up_a_keys_quota() {
    let keys = Keys::new();
    // The clock stands still, so the query budget for unknown keys does not refill.
    let policy = CachePolicy::default().unknown_key_queries_per_second(u32::MAX);
    let quota = Quota::per_minute(10).unwrap();
    let (auth, _) = keys.builder().cache(policy).default_rate_limits(quota).build();
    let app = App::new(ApiKeyLayer::new(auth));
    let key = keys.key().await;
    assert_eq!(app.get(&key).await.header("ratelimit"), Some(r#""minute";r=9;t=6"#));

    let (head, checksum) = key.split_at(key.len() - 6);
    for guess in 0..1_000 {
        let answer = match guess % 2 {
            0 => app.get(&unknown_key()).await,
            _ => app.get(&format!("{}{guess:03}{checksum}", &head[..head.len() - 3])).await,
        };
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer.rate_limit_headers(), [""; 0]);
    }
    assert_eq!(app.get(&key).await.header("ratelimit"), Some(r#""minute";r=8;t=6"#));
}

#[tokio::test]
async fn a_key_that_is_refused_does_not_use_up_its_quota() {
    let keys = Keys::new();
    let (auth, _) = keys.builder().default_rate_limits(Quota::per_hour(5).unwrap()).build();
    let app = App::new(ApiKeyLayer::new(auth.clone()));
    let issued = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    let key = text(&issued);
    keys.change(&issued, |record| record.is_active = false).await;
    for _ in 0..20 {
        let answer = app.get(&key).await;
        assert_eq!(answer.kind(), Some(RejectionKind::Inactive));
        assert_eq!(answer.rate_limit_headers(), [""; 0]);
    }
    keys.change(&issued, |record| record.is_active = true).await;
    auth.invalidate(&issued.record.key_hash);
    assert_eq!(app.get(&key).await.header("ratelimit"), Some(r#""hour";r=4;t=720"#));
}
