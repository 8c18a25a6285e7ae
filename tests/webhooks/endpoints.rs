//! Endpoints are added, tested, changed and removed, within bounds.

use std::time::Duration;

use tower_api_key::{
    record::{EventFilter, KeyAction, WebhookId},
    store::EventQuery,
    webhooks::WebhookErrorKind,
};

use crate::{
    databases::{Place, Running},
    receiver::{Receiver, Reply},
};

#[tokio::test]
async fn an_endpoint_is_added_listed_and_removed_and_the_audit_says_so() {
    for place in Place::all().await {
        let webhooks = place.webhooks().by("ops").origin("laptop");
        let filter = EventFilter::parse(["key.revoked"]).unwrap();
        let added = webhooks.add("https://example.com/hooks?token=canary", filter).await.unwrap();
        assert_eq!(webhooks.list().await.unwrap(), std::slice::from_ref(&added));
        assert_eq!(added.events.types().unwrap(), ["key.revoked"]);
        assert_eq!(added.url, "https://example.com/hooks?token=canary");
        webhooks.remove(added.id).await.unwrap();
        assert!(webhooks.list().await.unwrap().is_empty());
        let again = webhooks.remove(added.id).await.unwrap_err();
        assert_eq!(again.kind(), WebhookErrorKind::NotFound);

        let events = place.issuer().events(&EventQuery::new()).await.unwrap().events;
        let actions: Vec<_> = events.iter().map(|event| event.entry.action).collect();
        assert_eq!(actions, [KeyAction::WebhookRemoved, KeyAction::WebhookAdded]);
        for event in &events {
            assert_eq!(
                (&*event.entry.actor, event.entry.origin.as_deref()),
                ("ops", Some("laptop"))
            );
            let shown = format!("{event:?} {added:?}");
            assert!(!shown.contains("canary"), "{shown}");
            assert!(!shown.contains(added.secret.expose_secret()), "{shown}");
        }
    }
}

#[tokio::test]
async fn there_are_at_most_100_endpoints_however_many_are_added_at_once() {
    for place in Place::all().await {
        let webhooks = place.webhooks();
        for number in 0..97 {
            let url = format!("https://example.com/{number}");
            webhooks.add(&url, EventFilter::all()).await.unwrap();
        }
        let add = || webhooks.add("https://example.com/", EventFilter::all());
        let (a, b, c, d, e) = tokio::join!(add(), add(), add(), add(), add());
        let results = [a, b, c, d, e];
        assert_eq!(results.iter().filter(|it| it.is_ok()).count(), 3);
        for error in results.into_iter().filter_map(Result::err) {
            assert_eq!(error.kind(), WebhookErrorKind::TooMany, "{error}");
        }
        assert_eq!(webhooks.list().await.unwrap().len(), 100);
    }
}

#[tokio::test]
async fn an_invalid_endpoint_is_refused_and_the_error_says_why() {
    let place = Place::sqlite().await;
    let webhooks = place.strict_webhooks();
    let long = format!("https://example.com/{}", "a".repeat(2030));
    for (url, problem) in [
        ("http://example.com/", "https://"),
        ("https://user:canary@example.com/", "a password"),
        ("https://127.0.0.1/canary", "private"),
        ("canary", "not a URL"),
        (&*long, "2048"),
    ] {
        let error = webhooks.add(url, EventFilter::all()).await.unwrap_err();
        assert_eq!(error.kind(), WebhookErrorKind::Invalid);
        assert!(error.to_string().contains(problem), "{error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
    let unknown = WebhookId::from_bytes([7; 16]);
    for error in [
        webhooks.test(unknown).await.unwrap_err(),
        webhooks.replay(unknown, None).await.unwrap_err(),
        webhooks.rotate_secret(unknown, Duration::ZERO).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), WebhookErrorKind::NotFound);
    }
    let overlap = Duration::from_secs(31 * 86_400);
    let error = webhooks.rotate_secret(unknown, overlap).await.unwrap_err();
    assert_eq!(error.kind(), WebhookErrorKind::Invalid);
}

#[tokio::test]
async fn a_test_posts_at_once_and_tells_the_status() {
    for place in Place::all().await {
        let (receiver, webhooks) = (Receiver::start().await, place.webhooks());
        let id = webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap().id;
        let before = webhooks.get(id).await.unwrap();
        let test = webhooks.test(id).await.unwrap();
        assert_eq!((test.status, test.is_delivered()), (Some(204), true));
        receiver.replies(|_| Reply::Status(404));
        let test = webhooks.test(id).await.unwrap();
        assert_eq!((test.status, test.is_delivered()), (Some(404), false));
        let received = receiver.received();
        assert_eq!(received[0].kind(), "webhook.test");
        assert_ne!(received[0].id(), received[1].id());
        assert_eq!(webhooks.get(id).await.unwrap(), before, "a test changes nothing");
    }
}

#[tokio::test]
async fn a_change_by_an_operator_is_not_undone_by_a_delivery() {
    for place in Place::all().await {
        let (receiver, webhooks) = (Receiver::start().await, place.webhooks());
        let endpoint = webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
        let running = Running::start(&webhooks);
        for round in 1..=5 {
            place.issue().await;
            let rotated = webhooks.rotate_secret(endpoint.id, Duration::from_secs(60)).await;
            let rotated = rotated.unwrap();
            place.issue().await;
            receiver.has(1 + 3 * round).await;
            let now = webhooks.get(endpoint.id).await.unwrap();
            assert_eq!(now.secret, rotated.secret);
        }
        running.stop().await;
    }
}
