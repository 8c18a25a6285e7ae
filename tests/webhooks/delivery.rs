//! Every event arrives, in order, each with an id that stays the same.

use std::time::Duration;

use tokio::net::TcpListener;
use tower_api_key::{
    clock::ManualClock,
    manage::{Expiry, KeyUpdate, NewKey, Rotation},
    rate_limit::{Quota, RateLimits},
    record::EventFilter,
};

use crate::{
    databases::{Place, Running},
    receiver::{Receiver, Reply},
    servers::Port,
    wait::eventually,
};

#[tokio::test]
async fn every_event_of_the_audit_is_posted_in_order_with_what_the_audit_says() {
    for place in Place::all().await {
        let before = place.issue().await;
        let (receiver, webhooks) = (Receiver::start().await, place.webhooks());
        webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
        let running = Running::start(&webhooks);

        let issuer = place.issuer();
        let key = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record;
        let update = KeyUpdate::new().name(Some("nightly".to_owned()));
        issuer.update(key.id, update).await.unwrap();
        issuer.rotate(key.id, Rotation::new()).await.unwrap();
        issuer.revoke(key.id, Some("it \"leaked\"")).await.unwrap();
        let limits = RateLimits::new([Quota::per_minute(600).unwrap()]).unwrap();
        issuer.set_plan("pro", &limits).await.unwrap();
        issuer.remove_plan("pro").await.unwrap();
        receiver.has(8).await;

        let received = receiver.received();
        let kinds: Vec<_> = received.iter().map(|it| it.kind()).collect();
        let expected = [
            "webhook.added",
            "key.issued",
            "key.updated",
            "key.rotated",
            "key.issued",
            "key.revoked",
            "plan.created",
            "plan.removed",
        ];
        let mut sorted = (kinds.clone(), expected.map(str::to_owned).to_vec());
        sorted.0[3..5].sort();
        sorted.1[3..5].sort();
        assert_eq!(sorted.0, sorted.1, "a rotation and the new key are one transaction");
        let ids = receiver.first_arrivals();
        assert!(ids.is_sorted() && ids.len() == received.len(), "{ids:?}");

        let revoked = received.iter().find(|it| it.kind() == "key.revoked").unwrap().json();
        assert_eq!(revoked["data"]["key_id"], key.id.to_string());
        assert_eq!(revoked["data"]["consumer_id"], "acme");
        assert_eq!(revoked["data"]["reason"], "it \"leaked\"");
        assert!(revoked["data"]["changes"]["revoked_at"]["to"].is_string(), "{revoked}");
        for request in &received {
            let text = String::from_utf8_lossy(&request.body);
            assert!(!text.contains("key_hash") && !text.contains(&before.id.to_string()), "{text}");
            assert!(!text.contains("canary"), "the token of a receiver is in an event: {text}");
        }
        running.stop().await;
    }
}

#[tokio::test]
async fn an_event_that_fails_is_posted_again_with_the_same_id_and_body_before_the_next() {
    for place in Place::all().await {
        let clock = ManualClock::default();
        let (receiver, webhooks) = (Receiver::start().await, place.webhooks().clock(clock.clone()));
        let mut requests = 0;
        receiver.replies(move |_| {
            requests += 1;
            // Two of three requests fail.
            if requests % 3 == 0 { Reply::Status(200) } else { Reply::Status(500) }
        });
        let endpoint = webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
        for _ in 0..4 {
            place.issue().await;
        }
        let running = Running::start(&webhooks);
        eventually("every event is delivered", async || {
            clock.advance(Duration::from_secs(1));
            receiver.received().len() >= 15
        })
        .await;

        let received = receiver.received();
        for attempts in received.chunks(3) {
            let first = &attempts[0];
            for attempt in attempts {
                assert_eq!((attempt.id(), &attempt.body), (first.id(), &first.body));
            }
        }
        let ids: Vec<_> = received.iter().step_by(3).map(|it| it.event_id()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        let delivered = async || webhooks.get(endpoint.id).await.unwrap().failures == 0;
        eventually("the last delivery is noted", delivered).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn a_receiver_that_is_down_for_an_hour_misses_nothing() {
    for place in Place::all().await {
        let clock = ManualClock::default();
        let webhooks = place.webhooks().clock(clock.clone());
        let port = Port::reserve();
        let url = format!("http://{}/", port.addr);
        let endpoint = webhooks.add(&url, EventFilter::all()).await.unwrap();
        let running = Running::start(&webhooks);
        let mut failures = Vec::new();
        for minute in 0..60 {
            if minute % 10 == 0 {
                place.issue().await;
            }
            clock.advance(Duration::from_secs(60));
            if minute % 10 == 0 {
                let before = failures.last().copied().unwrap_or_default();
                eventually("another attempt", async || {
                    webhooks.get(endpoint.id).await.unwrap().failures > before || before > 8
                })
                .await;
                failures.push(webhooks.get(endpoint.id).await.unwrap().failures);
            }
        }
        let state = webhooks.get(endpoint.id).await.unwrap();
        assert!(state.failures >= 5 && state.delivered_to < 6, "{state:?}");
        assert_eq!(state.last_error.as_deref(), Some("the connection failed"));

        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(port.addr).unwrap();
        let listener: TcpListener = socket.listen(64).unwrap();
        let receiver = Receiver::on(listener);
        clock.advance(Duration::from_secs(3600));
        receiver.has(7).await;
        let ids = receiver.first_arrivals();
        assert!(ids.is_sorted(), "{ids:?}");
        running.stop().await;
    }
}

#[tokio::test]
async fn an_endpoint_gets_only_the_types_it_asked_for_and_each_has_its_own_position() {
    for place in Place::all().await {
        let webhooks = place.webhooks();
        let (some, all) = (Receiver::start().await, Receiver::start().await);
        let filter = EventFilter::parse(["key.revoked", "plan.*"]).unwrap();
        let filtered = webhooks.add(&some.url(), filter).await.unwrap();
        webhooks.add(&all.url(), EventFilter::all()).await.unwrap();
        let running = Running::start(&webhooks);
        let issuer = place.issuer();
        let key = place.issue().await;
        issuer.revoke(key.id, None).await.unwrap();
        issuer.set_plan("pro", &RateLimits::unlimited()).await.unwrap();
        place.issue().await;
        some.has(2).await;
        all.has(5).await;
        let kinds: Vec<_> = some.received().iter().map(|it| it.kind()).collect();
        assert_eq!(kinds, ["key.revoked", "plan.created"]);
        let last = *all.first_arrivals().last().unwrap();
        eventually("events for others are passed over", async || {
            webhooks.get(filtered.id).await.unwrap().delivered_to == last
        })
        .await;
        running.stop().await;
    }
}

#[tokio::test]
async fn a_replay_delivers_again_from_an_event_on() {
    for place in Place::all().await {
        let (receiver, webhooks) = (Receiver::start().await, place.webhooks());
        let endpoint = webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
        for _ in 0..3 {
            place.issue().await;
        }
        let running = Running::start(&webhooks);
        receiver.has(4).await;
        let from = receiver.first_arrivals()[2];
        webhooks.replay(endpoint.id, Some(from)).await.unwrap();
        // The two events again, and that of the replay.
        receiver.has(5).await;
        receiver.has_requests(7).await;
        let ids: Vec<_> = receiver.received().iter().map(|it| it.id()).collect();
        assert!(ids[4..].contains(&ids[2]) && ids[4..].contains(&ids[3]), "{ids:?}");
        assert!(!ids[4..].contains(&ids[1]), "{ids:?}");
        running.stop().await;
    }
}
