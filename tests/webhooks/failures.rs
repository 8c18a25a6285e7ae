//! Receivers that misbehave, and addresses that are not connected to.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tower_api_key::{
    clock::ManualClock,
    record::{EventFilter, WebhookEndpoint, WebhookId, WebhookState},
    webhooks::Webhooks,
};

use crate::{
    databases::{Place, Running},
    receiver::{Receiver, Reply},
    wait::eventually,
};

/// Waits until an attempt failed, and returns the endpoint.
async fn failed(webhooks: &Webhooks, id: WebhookId) -> WebhookEndpoint {
    eventually("an attempt failed", async || webhooks.get(id).await.unwrap().last_error.is_some())
        .await;
    webhooks.get(id).await.unwrap()
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let place = Place::sqlite().await;
    let (receiver, elsewhere) = (Receiver::start().await, Receiver::start().await);
    let to = elsewhere.addr;
    receiver.replies(move |_| Reply::Redirect(to));
    let webhooks = place.webhooks();
    let id = webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap().id;
    let running = Running::start(&webhooks);
    let endpoint = failed(&webhooks, id).await;
    assert_eq!(endpoint.last_error.as_deref(), Some("status 308"));
    assert_eq!((endpoint.failures, endpoint.state), (1, WebhookState::Active));
    assert!(elsewhere.received().is_empty());
    running.stop().await;
}

#[tokio::test]
async fn the_answer_410_unsubscribes_until_a_replay() {
    for place in Place::all().await {
        let (receiver, other) = (Receiver::start().await, Receiver::start().await);
        receiver.replies(|_| Reply::Status(410));
        let webhooks = place.webhooks();
        let id = webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap().id;
        webhooks.add(&other.url(), EventFilter::all()).await.unwrap();
        let running = Running::start(&webhooks);
        let endpoint = failed(&webhooks, id).await;
        assert_eq!(endpoint.state, WebhookState::Unsubscribed);
        place.issue().await;
        // Its own event, that of the state, and the key.
        other.has(3).await;
        assert_eq!(receiver.received().len(), 1);
        let told = other.received();
        let told = told.iter().map(|it| it.json()).find(|it| it["type"] == "webhook.updated");
        let changes = &told.unwrap()["data"]["changes"];
        assert_eq!(changes["state"]["to"], "unsubscribed");
        assert_eq!(changes["webhook"]["to"], id.to_string());

        receiver.replies(|_| Reply::Status(200));
        webhooks.replay(id, None).await.unwrap();
        receiver.has(5).await;
        assert_eq!(webhooks.get(id).await.unwrap().state, WebhookState::Active);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_receiver_that_keeps_failing_is_parked_and_a_replay_resumes_it() {
    for place in Place::all().await {
        let clock = ManualClock::default();
        let receiver = Receiver::start().await;
        receiver.replies(|_| Reply::Status(503));
        let webhooks = place.webhooks().clock(clock.clone());
        let id = webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap().id;
        let running = Running::start(&webhooks);
        eventually("the endpoint is parked", async || {
            clock.advance(Duration::from_secs(3600));
            webhooks.get(id).await.unwrap().state == WebhookState::Parked
        })
        .await;
        let endpoint = webhooks.get(id).await.unwrap();
        assert_eq!((endpoint.failures, endpoint.last_error.as_deref()), (18, Some("status 503")));
        assert_eq!(receiver.received().len(), 18);

        receiver.replies(|_| Reply::Status(200));
        clock.advance(Duration::from_secs(10 * 86_400));
        webhooks.replay(id, None).await.unwrap();
        receiver.has(3).await;
        let first = &receiver.received()[18];
        assert_eq!(first.id(), receiver.received()[0].id(), "it goes on where it stopped");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_receiver_that_hangs_is_given_up_after_ten_seconds_and_holds_up_no_other() {
    let place = Place::postgres().await;
    let (hanging, other) = (Receiver::start().await, Receiver::start().await);
    hanging.replies(|_| Reply::Hang);
    let webhooks = place.webhooks();
    let id = webhooks.add(&hanging.url(), EventFilter::all()).await.unwrap().id;
    webhooks.add(&other.url(), EventFilter::all()).await.unwrap();
    let begun = tokio::time::Instant::now();
    let running = Running::start(&webhooks);
    hanging.has_requests(1).await;
    place.issue().await;
    other.has(2).await;
    assert!(begun.elapsed() < Duration::from_secs(9), "the other one waited");
    let endpoint = failed(&webhooks, id).await;
    assert_eq!(endpoint.last_error.as_deref(), Some("no response within 10 s"));
    assert!(begun.elapsed() >= Duration::from_secs(10));
    running.stop().await;
}

#[tokio::test]
async fn an_endless_body_is_not_read_to_its_end() {
    let place = Place::sqlite().await;
    let receiver = Receiver::start().await;
    receiver.replies(|_| Reply::EndlessBody);
    let webhooks = place.webhooks();
    let id = webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap().id;
    let running = Running::start(&webhooks);
    eventually("the event is delivered", async || {
        webhooks.get(id).await.unwrap().last_delivered_at.is_some()
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn garbage_and_a_closed_connection_are_failures() {
    let place = Place::sqlite().await;
    let webhooks = place.webhooks();
    for answer in [b"\x16\x03\x01 garbage \xff\r\n\r\n".as_slice(), b"", b"HTTP/1.1 200"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
            }
        });
        let id = webhooks.add(&url, EventFilter::all()).await.unwrap().id;
        let running = Running::start(&webhooks);
        let error = failed(&webhooks, id).await.last_error.unwrap();
        assert_eq!(error, "the connection ended, or the response was not HTTP");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_name_that_resolves_to_a_private_address_is_not_connected_to() {
    let place = Place::sqlite().await;
    let receiver = Receiver::start().await;
    let port = receiver.addr.port();
    let strict = place.strict_webhooks();
    // No address in the URL is private; that of the name is.
    let url = format!("https://localhost:{port}/");
    let id = strict.add(&url, EventFilter::all()).await.unwrap().id;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let untouched = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let second = strict.add(&untouched, EventFilter::all()).await.unwrap().id;
    let running = Running::start(&strict);
    for id in [id, second] {
        let error = failed(&strict, id).await.last_error.unwrap();
        assert!(error.starts_with("the address is private"), "{error}");
        assert!(!error.contains("127.0.0.1"), "{error}");
    }
    let test = strict.test(second).await.unwrap();
    assert!(test.status.is_none() && test.problem.unwrap().starts_with("the address is private"));
    running.stop().await;
    let accepted = futures_util::poll!(std::pin::pin!(listener.accept()));
    assert!(accepted.is_pending(), "it was connected to");
    assert!(receiver.received().is_empty());
}

#[tokio::test]
async fn an_address_that_is_no_longer_allowed_gets_nothing_more() {
    let place = Place::sqlite().await;
    let receiver = Receiver::start().await;
    let id = place.webhooks().add(&receiver.url(), EventFilter::all()).await.unwrap().id;
    let strict = place.strict_webhooks();
    let running = Running::start(&strict);
    let error = failed(&strict, id).await.last_error.unwrap();
    assert!(error.contains("https://"), "{error}");
    assert!(receiver.received().is_empty());
    running.stop().await;
}
