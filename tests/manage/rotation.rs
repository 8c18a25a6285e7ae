//! Rotated keys in PostgreSQL: their chain has one quota.

use http::StatusCode;
use tokio::task::JoinSet;
use tower_api_key::{
    auth::{Builder, CachePolicy},
    clock::{Clock, ManualClock},
    key::SystemEntropy,
    rate_limit::Quota,
    record::{KeyId, KeyRecord},
    store::PgKeyStore,
};

use crate::{
    doubles::{Key, Service, format, within},
    raw_store::ByHand as _,
    servers::postgres::{Database, Server},
};

const QUOTA: u32 = 10;

/// A service over PostgreSQL, whose keys may be used ten times an hour. Its clock stands still, so
/// that nothing refills.
async fn service() -> (Database, Service<PgKeyStore>) {
    let database = Server::shared().database().await;
    let store = PgKeyStore::new(database.pool().await);
    store.migrate().await.unwrap();
    let patient = CachePolicy::default().load_deadline(std::time::Duration::from_secs(20)).unwrap();
    let settings = |builder: Builder| {
        builder.cache(patient).default_rate_limits(Quota::per_hour(QUOTA).unwrap())
    };
    let (service, _) = Service::around(store, ManualClock::default(), settings);
    (database, service)
}

/// Rotates `old`, which keeps working, and returns its successor.
async fn rotate(service: &Service<PgKeyStore>, old: &Key) -> Key {
    let (key, now) = (format().generate().unwrap(), service.clock.now());
    let id = KeyId::generate(now, &SystemEntropy).unwrap();
    let mut record = KeyRecord::new(id, key.hash(), old.record.consumer_id.clone(), now);
    record.rotated_from = Some(old.record.id);
    record.root_id = old.record.root_id;
    service.store.insert(&record).await.unwrap();
    Key { text: key.expose_secret().to_owned(), record }
}

async fn chain_of_three(service: &Service<PgKeyStore>) -> [Key; 3] {
    let first = service.issue("acme").await;
    let second = rotate(service, &first).await;
    let third = rotate(service, &second).await;
    [first, second, third]
}

#[tokio::test]
async fn keys_of_a_chain_take_turns_under_one_quota() {
    let (_database, service) = service().await;
    let keys = chain_of_three(&service).await;
    for (number, key) in (0..QUOTA * 2).zip(keys.iter().cycle()) {
        let expected = if number < QUOTA { StatusCode::OK } else { StatusCode::TOO_MANY_REQUESTS };
        assert_eq!(service.get(&key.text).await.status, expected, "request {number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_of_a_chain_that_come_at_once_do_not_pass_more_often_than_one() {
    let (_database, service) = service().await;
    let keys = chain_of_three(&service).await;
    let mut requests = JoinSet::new();
    for key in keys.iter().cycle().take(300) {
        requests.spawn(service.request(&key.text));
    }
    let mut passed = 0;
    while let Some(reply) = within(requests.join_next()).await {
        match reply.unwrap().status {
            StatusCode::OK => passed += 1,
            status => assert_eq!(status, StatusCode::TOO_MANY_REQUESTS),
        }
    }
    assert_eq!(passed, QUOTA);
}

#[tokio::test]
async fn rotating_and_revoking_a_drained_key_refills_nothing() {
    let (_database, service) = service().await;
    let old = service.issue("acme").await;
    for _ in 0..QUOTA {
        service.get(&old.text).await.is_for("acme");
    }
    let new = rotate(&service, &old).await;
    service.revoke(&old).await;
    assert_eq!(service.get(&new.text).await.status, StatusCode::TOO_MANY_REQUESTS);
    service.auth.invalidate_all();
    assert_eq!(service.get(&new.text).await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn another_chain_of_the_same_consumer_has_a_quota_of_its_own() {
    let (_database, service) = service().await;
    let drained = service.issue("acme").await;
    for _ in 0..QUOTA {
        service.get(&drained.text).await.is_for("acme");
    }
    assert_eq!(service.get(&drained.text).await.status, StatusCode::TOO_MANY_REQUESTS);
    for key in chain_of_three(&service).await {
        service.get(&key.text).await.is_for("acme");
    }
}
