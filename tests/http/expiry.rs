//! `X-Api-Key-Expires`.

use std::time::Duration;

use tower_api_key::{
    ApiKeyLayer,
    manage::{Expiry, NewKey},
    rate_limit::Quota,
};

use crate::app::{App, Keys, SECOND, text};

const DAY: Duration = Duration::from_secs(86_400);
const EXPIRES: &str = "x-api-key-expires";

#[tokio::test]
async fn a_key_in_its_last_seven_days_says_when_it_expires() {
    let keys = Keys::new();
    let app = App::new(ApiKeyLayer::new(keys.auth()));
    let issued = keys.issue(NewKey::new("acme", Expiry::In(30 * DAY))).await;
    let key = text(&issued);
    assert_eq!(app.get(&key).await.header(EXPIRES), None);
    keys.clock.advance(23 * DAY - SECOND);
    assert_eq!(app.get(&key).await.header(EXPIRES), None, "not a second early");
    keys.clock.advance(SECOND);
    let expected = jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&issued.record.expires_at.unwrap().try_into().unwrap())
        .unwrap();
    for _ in 0..3 {
        let answer = app.get(&key).await;
        assert_eq!(answer.header(EXPIRES), Some(&*expected));
        assert_eq!(answer.header("sunset"), None, "only a rotated key has it");
    }
    keys.clock.advance(7 * DAY - SECOND);
    assert_eq!(app.get(&key).await.header(EXPIRES), Some(&*expected));
    keys.clock.advance(SECOND);
    let answer = app.get(&key).await;
    assert_eq!((answer.status.as_u16(), answer.header(EXPIRES)), (401, None));
}

#[tokio::test]
async fn a_key_without_an_expiry_says_nothing_and_the_header_can_be_switched_off() {
    let keys = Keys::new();
    let app = App::new(ApiKeyLayer::new(keys.auth()));
    assert_eq!(app.get(&keys.key().await).await.header(EXPIRES), None);

    let day = text(&keys.issue(NewKey::new("acme", Expiry::In(DAY))).await);
    let off = App::new(ApiKeyLayer::new(keys.auth()).expiry_header(false));
    assert!(app.get(&day).await.header(EXPIRES).is_some());
    assert_eq!(off.get(&day).await.header(EXPIRES), None);
}

#[tokio::test]
async fn a_key_beyond_its_quota_still_says_when_it_expires() {
    let keys = Keys::new();
    let app = App::new(ApiKeyLayer::new(keys.auth()));
    let new = NewKey::new("acme", Expiry::In(DAY)).rate_limits(Quota::per_minute(1).unwrap());
    let key = text(&keys.issue(new).await);
    assert_eq!(app.get(&key).await.status, 200);
    let answer = app.get(&key).await;
    assert_eq!(answer.status, 429);
    assert!(answer.header(EXPIRES).is_some());
}
