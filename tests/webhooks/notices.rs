//! Events that time brings about, each once.

use std::time::{Duration, SystemTime};

use tower_api_key::{
    clock::{Clock, ManualClock, SystemClock},
    manage::{Expiry, NewKey, Rotation},
    record::{EventFilter, KeyId, KeyRecord},
    store::{
        KeyStore as _,
        port::{Usage, UsageBatch},
    },
    webhooks::Webhooks,
};

use crate::{
    databases::{Place, Running},
    receiver::Receiver,
    wait::eventually,
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

impl Place {
    async fn issue_for(&self, lifetime: Duration) -> KeyRecord {
        let new = NewKey::new("acme", Expiry::In(lifetime));
        self.issuer().issue(new).await.unwrap().record
    }

    async fn use_key(&self, id: KeyId, at: SystemTime) {
        let usage = UsageBatch::new(vec![Usage::new(id, at)]);
        match self {
            Self::Postgres(store, _) => store.record_usage(&usage).await.unwrap(),
            Self::Sqlite(store, _) => store.record_usage(&usage).await.unwrap(),
        }
    }
}

/// A receiver, and two workers, whose clock moves.
struct Scene {
    place: Place,
    clock: ManualClock,
    receiver: Receiver,
    workers: Vec<Running>,
    webhooks: Webhooks,
}

impl Scene {
    async fn new(place: Place) -> Self {
        let clock = ManualClock::at(SystemClock::new().now());
        let webhooks = place.webhooks().clock(clock.clone());
        let receiver = Receiver::start().await;
        let filter = ["key.first_use", "key.expiring", "key.retired_used", "key.unused"];
        let filter = EventFilter::parse(filter).unwrap();
        webhooks.add(&receiver.url(), filter).await.unwrap();
        Self { place, clock, receiver, workers: Vec::new(), webhooks }
    }

    fn start(&mut self) {
        self.workers = vec![Running::start(&self.webhooks), Running::start(&self.webhooks)];
    }

    /// What arrived about a key: type and days.
    fn about(&self, key: &KeyRecord) -> Vec<String> {
        let received = self.receiver.received();
        let events = received.iter().map(|it| it.json());
        let of_key = events.filter(|it| it["data"]["key_id"] == key.id.to_string());
        let name = |event: serde_json::Value| {
            let days = &event["data"]["changes"]["days"]["to"];
            let kind = event["type"].as_str().unwrap().to_owned();
            if days.is_null() { kind } else { format!("{kind} {days}") }
        };
        of_key.map(name).collect()
    }

    /// Advances the clock in steps until this is what arrived about a key.
    async fn expect(&self, key: &KeyRecord, step: Duration, expected: &[&str]) {
        eventually(format!("{expected:?}"), async || {
            self.clock.advance(step);
            self.about(key).len() >= expected.len()
        })
        .await;
        assert_eq!(self.about(key), expected);
    }

    async fn stop(self) {
        for worker in self.workers {
            worker.stop().await;
        }
    }
}

#[tokio::test]
async fn an_expiry_is_told_30_7_and_1_days_ahead_once_each() {
    for place in Place::all().await {
        let mut scene = Scene::new(place).await;
        let long = scene.place.issue_for(60 * DAY).await;
        let short = scene.place.issue_for(5 * DAY).await;
        let revoked = scene.place.issue_for(60 * DAY).await;
        let rotated = scene.place.issue_for(60 * DAY).await;
        let issuer = scene.place.issuer();
        issuer.revoke(revoked.id, None).await.unwrap();
        issuer.rotate(rotated.id, Rotation::new().grace(20 * DAY)).await.unwrap();
        scene.start();
        let step = Duration::from_secs(1800);
        let all = ["key.expiring 30", "key.expiring 7", "key.expiring 1"];
        scene.expect(&long, step, &all).await;
        assert_eq!(scene.about(&short), ["key.expiring 7", "key.expiring 1"]);
        assert!(scene.about(&revoked).is_empty() && scene.about(&rotated).is_empty());
        scene.stop().await;
    }
}

#[tokio::test]
async fn the_first_use_of_a_key_is_told_once() {
    for place in Place::all().await {
        let mut scene = Scene::new(place).await;
        let now = scene.clock.now();
        let (key, other) = (scene.place.issue().await, scene.place.issue().await);
        for minute in 0..3 {
            scene.place.use_key(key.id, now + minute * Duration::from_secs(60)).await;
        }
        scene.start();
        let minute = Duration::from_secs(60);
        scene.expect(&key, minute, &["key.first_use"]).await;
        scene.place.use_key(key.id, now + HOUR).await;
        scene.place.use_key(other.id, now + HOUR).await;
        scene.expect(&other, minute, &["key.first_use"]).await;
        assert_eq!(scene.about(&key), ["key.first_use"]);
        scene.stop().await;
    }
}

#[tokio::test]
async fn nothing_is_kept_of_first_uses_without_an_endpoint() {
    for place in Place::all().await {
        let key = place.issue().await;
        place.use_key(key.id, SystemClock::new().now()).await;
        let count = "select count(*) from api_key_first_uses";
        let kept: i64 = match &place {
            Place::Postgres(store, _) => {
                sqlx::query_scalar(count).fetch_one(store.pool()).await.unwrap()
            }
            Place::Sqlite(store, _) => {
                sqlx::query_scalar(count).fetch_one(store.pool()).await.unwrap()
            }
        };
        assert_eq!(kept, 0);
    }
}

#[tokio::test]
async fn the_use_of_a_rotated_key_in_its_last_24_hours_is_told_once() {
    for place in Place::all().await {
        let mut scene = Scene::new(place).await;
        let now = scene.clock.now();
        let issuer = scene.place.issuer();
        let rotate = async |key: &KeyRecord, grace| {
            issuer.rotate(key.id, Rotation::new().grace(grace)).await.unwrap();
        };
        let (used, unused, early) =
            (scene.place.issue().await, scene.place.issue().await, scene.place.issue().await);
        for key in [&used, &unused, &early] {
            rotate(key, 3 * DAY).await;
        }
        let not_rotated = scene.place.issue_for(2 * DAY).await;
        scene.place.use_key(not_rotated.id, now + 2 * DAY - HOUR).await;
        scene.place.use_key(early.id, now + DAY).await;
        scene.place.use_key(used.id, now + 3 * DAY - 2 * HOUR).await;
        scene.start();
        let retired = |scene: &Scene, key: &KeyRecord| {
            scene.about(key).iter().filter(|kind| *kind == "key.retired_used").count()
        };
        eventually("the use is told", async || {
            scene.clock.advance(Duration::from_secs(900));
            retired(&scene, &used) > 0
        })
        .await;
        // Used again.
        scene.place.use_key(used.id, now + 3 * DAY - HOUR).await;
        eventually("the keys have ended", async || {
            scene.clock.advance(Duration::from_secs(900));
            scene.clock.now() > now + 4 * DAY
        })
        .await;
        let marker = scene.place.issue().await;
        scene.place.use_key(marker.id, now).await;
        eventually("a later event has arrived", async || {
            scene.clock.advance(Duration::from_secs(60));
            !scene.about(&marker).is_empty()
        })
        .await;
        assert_eq!(retired(&scene, &used), 1);
        for key in [&unused, &early, &not_rotated] {
            assert_eq!(retired(&scene, key), 0);
        }
        scene.stop().await;
    }
}

#[tokio::test]
async fn a_key_that_is_not_used_for_90_days_is_told_once_until_it_is_used_again() {
    for place in Place::all().await {
        let mut scene = Scene::new(place).await;
        let now = scene.clock.now();
        let (idle, used) = (scene.place.issue().await, scene.place.issue().await);
        scene.place.use_key(used.id, now + 30 * DAY).await;
        scene.start();
        scene.expect(&idle, DAY, &["key.unused"]).await;
        assert!(scene.clock.now() >= now + 90 * DAY);
        let unused = |scene: &Scene, key: &KeyRecord| {
            scene.about(key).iter().filter(|kind| *kind == "key.unused").count()
        };
        eventually("the other key was not used either", async || {
            scene.clock.advance(DAY);
            unused(&scene, &used) == 1
        })
        .await;
        assert!(scene.clock.now() >= now + 120 * DAY);
        scene.place.use_key(used.id, now + 150 * DAY).await;
        eventually("it was used, and not again", async || {
            scene.clock.advance(DAY);
            unused(&scene, &used) == 2
        })
        .await;
        assert_eq!(unused(&scene, &idle), 1);
        scene.stop().await;
    }
}
