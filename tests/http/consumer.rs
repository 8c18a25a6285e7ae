//! What a `Consumer` tells a handler.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Deserializer};
use serde_json::json;
use tower_api_key::{
    Consumer,
    manage::{Expiry, NewKey},
    record::{KeyKind, Metadata, Scopes, Tags, WebOrigins},
};

use crate::app::{Keys, text};

#[tokio::test]
async fn a_consumer_is_written_as_json_without_what_is_secret() {
    let keys = Keys::new();
    let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800);
    let new = NewKey::new("acme", Expiry::At(expires_at))
        .name("nightly export")
        .scopes(Scopes::parse(["reports:read"]).unwrap())
        .tags(Tags::parse(["team:billing"]).unwrap())
        .plan("pro")
        .metadata(Metadata::from_json(r#"{"region":"eu"}"#).unwrap());
    let issued = keys.issue(new).await;
    let key = text(&issued);
    let admission = keys.auth().check(key.as_bytes()).await.unwrap();
    let consumer = admission.consumer();
    let written = serde_json::to_value(consumer).unwrap();
    let created_at = written["created_at"].clone();
    assert_eq!(
        written,
        json!({
            "id": "acme",
            "key_id": issued.record.id.to_string(),
            "key_name": "nightly export",
            "scopes": ["reports:read"],
            "plan": "pro",
            "tags": ["team:billing"],
            "kind": "secret",
            "metadata": { "region": "eu" },
            "created_at": created_at,
            "expires_at": "2100-01-01T00:00:00Z",
        })
    );
    assert_eq!(consumer.created_at(), issued.record.created_at);
    assert_eq!(consumer.expires_at(), Some(expires_at));
    assert!(consumer.tags().contains("team:billing"));
    assert_eq!(consumer.kind(), KeyKind::Secret);
}

static DECODED: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug, PartialEq)]
struct Region(String);

impl<'de> Deserialize<'de> for Region {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            region: String,
        }

        DECODED.fetch_add(1, Ordering::SeqCst);
        Fields::deserialize(deserializer).map(|fields| Self(fields.region))
    }
}

#[tokio::test]
async fn metadata_are_decoded_once_for_all_requests_of_a_record() {
    let keys = Keys::new();
    let auth = keys.auth();
    let new =
        |json| NewKey::new("acme", Expiry::Never).metadata(Metadata::from_json(json).unwrap());
    let issued = keys.issue(new(r#"{"region":"eu"}"#)).await;
    let key = text(&issued);
    let region = async || {
        let admission = auth.check(key.as_bytes()).await.unwrap();
        let region = admission.consumer().metadata_as::<Region>();
        region.map(|region| region.0.clone()).map_err(ToString::to_string)
    };
    for _ in 0..5 {
        assert_eq!(region().await.as_deref(), Ok("eu"));
    }
    assert_eq!(DECODED.load(Ordering::SeqCst), 1);
    // Another type of the same record.
    let admission = auth.check(key.as_bytes()).await.unwrap();
    let map = admission.consumer().metadata_as::<std::collections::BTreeMap<String, String>>();
    assert_eq!(map.unwrap()["region"], "eu");
    assert_eq!(DECODED.load(Ordering::SeqCst), 1);
    // A changed record, which no longer fits.
    keys.change(&issued, |record| record.metadata = Metadata::default()).await;
    auth.invalidate_all();
    for _ in 0..5 {
        let error = region().await.unwrap_err();
        assert!(error.contains("does not match the requested type"), "{error}");
    }
    assert_eq!(DECODED.load(Ordering::SeqCst), 2);
}

#[test]
fn a_test_builds_a_consumer() {
    let plain = Consumer::builder("acme").build();
    assert_eq!((plain.id(), plain.scopes().is_empty(), plain.plan()), ("acme", true, None));
    assert_eq!((plain.expires_at(), plain.kind()), (None, KeyKind::Secret));

    let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800);
    let full = Consumer::builder("acme")
        .key_name("ci")
        .scopes(["orders:read", "orders:write"])
        .tags(["mobile"])
        .plan("pro")
        .metadata(&json!({ "region": "eu" }))
        .publishable(["https://shop.example"])
        .created_at(ends - Duration::from_secs(1))
        .expires_at(ends)
        .build();
    assert!(full.has_scope("orders:write") && full.tags().contains("mobile"));
    assert_eq!((full.plan(), full.key_name()), (Some("pro"), Some("ci")));
    let metadata = full.metadata_as::<std::collections::BTreeMap<String, String>>().unwrap();
    assert_eq!(metadata["region"], "eu");
    assert_eq!((full.kind(), full.expires_at()), (KeyKind::Publishable, Some(ends)));
    assert!(WebOrigins::default().is_empty());
}

#[test]
#[should_panic(expected = "a scope must be 1 to 128 printable ASCII characters")]
fn a_test_that_builds_a_consumer_with_an_invalid_scope_fails() {
    let _ = Consumer::builder("acme").scopes(["two words"]);
}
