//! The headers of responses to a rotated key, until it ends.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderValue, Response, StatusCode};
use tower::service_fn;
use tower_api_key::{
    ApiKeyLayer,
    auth::{Event, RejectionKind},
    manage::{Expiry, KeyIssuer, NewKey, Rotation},
    rate_limit::Quota,
    record::KeyId,
};
use tower_layer::Layer;

use crate::app::{App, Keys, SECOND, format, text};

const DAY: Duration = Duration::from_secs(86_400);
/// The start of the tests' clock: 2026-01-01.
const SINCE: &str = "@1767225600";
const SUNSET: &str = "Fri, 02 Jan 2026 00:00:00 GMT";

fn issuer(keys: &Keys) -> KeyIssuer {
    KeyIssuer::new(keys.store.memory.clone(), format()).clock(keys.clock.clone())
}

#[tokio::test]
async fn answers_to_a_rotated_key_say_since_when_and_until_when() {
    let keys = Keys::new();
    let app = App::new(ApiKeyLayer::new(keys.auth()));
    let old = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    let answer = app.get(&text(&old)).await;
    assert_eq!((answer.header("deprecation"), answer.header("sunset")), (None, None));

    let (auth, _) = keys.builder().build();
    let app = App::new(ApiKeyLayer::new(auth.clone()));
    app.get(&text(&old)).await;
    let issuer = issuer(&keys).invalidates(auth);
    let new = issuer.rotate(old.record.id, Rotation::new()).await.unwrap();
    for _ in 0..2 {
        let answer = app.get(&text(&old)).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("deprecation"), Some(SINCE));
        assert_eq!(answer.header("sunset"), Some(SUNSET));
    }
    let answer = app.get(new.key.expose_secret()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!((answer.header("deprecation"), answer.header("sunset")), (None, None));

    keys.clock.advance(DAY);
    let answer = app.get(&text(&old)).await;
    assert_eq!(answer.kind(), Some(RejectionKind::Expired));
    assert_eq!((answer.header("deprecation"), answer.header("sunset")), (None, None));
    assert_eq!(app.get(new.key.expose_secret()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_handler_that_is_on_its_way_out_itself_is_left_alone() {
    let keys = Keys::new();
    let old = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    issuer(&keys).rotate(old.record.id, Rotation::new()).await.unwrap();
    let handler = service_fn(|_| async {
        let mut response = Response::new(String::new());
        response.headers_mut().insert("deprecation", HeaderValue::from_static("@1"));
        Ok::<_, std::convert::Infallible>(response)
    });
    let service = ApiKeyLayer::new(keys.auth()).layer(handler);
    let response =
        tower::ServiceExt::oneshot(service, crate::app::with_key(&text(&old))).await.unwrap();
    assert_eq!(response.headers()["deprecation"], "@1");
    assert_eq!(response.headers()["sunset"], SUNSET);
}

#[tokio::test]
async fn both_keys_share_their_quota_and_its_end_says_so_too() {
    let keys = Keys::new();
    let app = App::new(ApiKeyLayer::new(keys.auth()));
    let new = NewKey::new("acme", Expiry::Never).rate_limits(Quota::per_hour(3).unwrap());
    let old = keys.issue(new).await;
    let new = issuer(&keys).rotate(old.record.id, Rotation::new()).await.unwrap();
    for key in [&text(&old), new.key.expose_secret(), &text(&old)] {
        assert_eq!(app.get(key).await.status, StatusCode::OK);
    }
    let answer = app.get(new.key.expose_secret()).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.header("sunset"), None);
    let answer = app.get(&text(&old)).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        (answer.header("deprecation"), answer.header("sunset")),
        (Some(SINCE), Some(SUNSET))
    );
}

#[tokio::test]
async fn uses_of_a_rotated_key_are_counted() {
    let keys = Keys::new();
    let uses = Arc::new(Mutex::new(Vec::<KeyId>::new()));
    let counted = Arc::clone(&uses);
    let observer = move |event: &Event<'_>| {
        if let Event::RetiredKeyUsed { key_id, .. } = event {
            counted.lock().unwrap().push(*key_id);
        }
    };
    let app = App::new(ApiKeyLayer::new(keys.builder().observer(observer).build().0));
    let old = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    let rotation = Rotation::new().grace(10 * SECOND);
    let new = issuer(&keys).rotate(old.record.id, rotation).await.unwrap();
    app.get(&text(&old)).await;
    app.get(new.key.expose_secret()).await;
    app.get(&text(&old)).await;
    keys.clock.advance(10 * SECOND);
    app.get(&text(&old)).await;
    assert_eq!(*uses.lock().unwrap(), [old.record.id; 2]);
}
