//! An event with a lower number that appears later is not skipped.

use sqlx::Connection as _;
use tower_api_key::record::EventFilter;

use crate::{
    databases::{Place, Running},
    receiver::Receiver,
};

/// Begins a transaction that has written to the audit.
async fn slow_transaction(url: &str) -> sqlx::PgConnection {
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    let write = "begin; insert into api_key_events (action, actor) values ('revoked', 'slow')";
    sqlx::raw_sql(write).execute(&mut connection).await.unwrap();
    connection
}

#[tokio::test]
async fn events_wait_for_a_slow_transaction_with_a_lower_number() {
    let place = Place::postgres().await;
    let mut tail = place.webhooks().tail(0);
    place.issue().await;
    let first = tail.next(100).await.unwrap();
    assert_eq!(first.len(), 1);

    let mut slow = slow_transaction(&place.url()).await;
    for _ in 0..20 {
        place.issue().await;
        let early = tail.next(100).await.unwrap();
        assert!(early.is_empty(), "{early:?} overtook an event with a lower number");
    }
    sqlx::raw_sql("commit").execute(&mut slow).await.unwrap();
    let mut lines = tail.next(100).await.unwrap();
    // A transaction of the loop may just have ended its session.
    lines.extend(tail.next(100).await.unwrap());
    assert_eq!(lines.len(), 21);
    assert_eq!(lines[0].actor, "slow");
    assert!(lines.is_sorted_by(|a, b| a.id < b.id));
}

#[tokio::test]
async fn events_do_not_wait_for_a_transaction_that_began_after_them() {
    let place = Place::postgres().await;
    let mut tail = place.webhooks().tail(0);
    let mut first = slow_transaction(&place.url()).await;
    place.issue().await;
    assert!(tail.next(100).await.unwrap().is_empty());
    let mut second = slow_transaction(&place.url()).await;
    sqlx::raw_sql("rollback").execute(&mut first).await.unwrap();
    let lines = tail.next(100).await.unwrap();
    assert_eq!(lines.len(), 1, "the event is before the second transaction: {lines:?}");
    sqlx::raw_sql("rollback").execute(&mut second).await.unwrap();
}

#[tokio::test]
async fn a_prepared_transaction_is_waited_for() {
    let server = crate::servers::postgres::Server::start();
    let database = server.database().await;
    let store = tower_api_key::store::PgKeyStore::connect(database.url()).await.unwrap();
    store.migrate().await.unwrap();
    let enabled: String =
        sqlx::query_scalar("show max_prepared_transactions").fetch_one(store.pool()).await.unwrap();
    if enabled == "0" {
        let set = "alter system set max_prepared_transactions = 5";
        sqlx::raw_sql(set).execute(store.pool()).await.unwrap();
        store.pool().close().await;
        server.stop_immediate().await;
        server.start_again().await;
    }
    let store = tower_api_key::store::PgKeyStore::connect(database.url()).await.unwrap();
    let mut tail = tower_api_key::webhooks::Webhooks::new(store.clone()).tail(0);
    let mut slow = slow_transaction(database.url()).await;
    let write = "insert into api_key_events (action, actor) values ('revoked', 'quick')";
    sqlx::raw_sql(write).execute(store.pool()).await.unwrap();
    assert!(tail.next(100).await.unwrap().is_empty());
    sqlx::raw_sql("prepare transaction 'slow'").execute(&mut slow).await.unwrap();
    assert!(tail.next(100).await.unwrap().is_empty());
    sqlx::raw_sql("commit prepared 'slow'").execute(&mut slow).await.unwrap();
    let actors: Vec<_> = tail.next(100).await.unwrap().into_iter().map(|line| line.actor).collect();
    assert_eq!(actors, ["slow", "quick"]);
}

#[tokio::test]
async fn the_event_of_a_slow_transaction_is_delivered_in_its_place() {
    let place = Place::postgres().await;
    let (receiver, webhooks) = (Receiver::start().await, place.webhooks());
    webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
    let running = Running::start(&webhooks);
    receiver.has(1).await;
    let mut slow = slow_transaction(&place.url()).await;
    place.issue().await;
    sqlx::raw_sql("commit").execute(&mut slow).await.unwrap();
    receiver.has(3).await;
    let actors: Vec<_> =
        receiver.received().iter().map(|it| it.json()["data"]["actor"].clone()).collect();
    assert_eq!(actors[1], "slow");
    assert!(receiver.first_arrivals().is_sorted());
    running.stop().await;
}

#[tokio::test]
async fn events_of_a_key_arrive_in_order_while_many_write_at_once() {
    for place in Place::all().await {
        let (receiver, webhooks) = (Receiver::start().await, place.webhooks());
        webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
        let running = Running::start(&webhooks);
        let key = place.issue().await;
        let change = async |number: usize| {
            let issuer = place.issuer();
            for round in 0..10 {
                let name = Some(format!("{number}-{round}"));
                let update = tower_api_key::manage::KeyUpdate::new().name(name);
                issuer.update(key.id, update).await.unwrap();
            }
        };
        tokio::join!(change(1), change(2), change(3), change(4));
        receiver.has(42).await;
        let received = receiver.received();
        let of_key: Vec<_> = received.iter().filter(|it| it.kind() == "key.updated").collect();
        // Each change begins where the one before it ended.
        for pair in of_key.windows(2) {
            let (before, after) = (pair[0].json(), pair[1].json());
            let name = |event: &serde_json::Value, side: &str| {
                event["data"]["changes"]["name"][side].clone()
            };
            assert_eq!(name(&before, "to"), name(&after, "from"));
        }
        assert_eq!(of_key.len(), 40);
        running.stop().await;
    }
}
