//! Several nodes, nodes that are killed, and databases that go away.

use std::{collections::BTreeSet, env, process::Stdio, time::Duration};

use tokio::{
    io::AsyncReadExt as _,
    process::{Child, Command},
};
use tower_api_key::{
    ApiKeys,
    key::KeyFormat,
    manage::{Expiry, KeyIssuer, NewKey},
    record::EventFilter,
    store::{EventQuery, PgKeyStore, SqliteKeyStore},
    webhooks::Webhooks,
};

use crate::{
    databases::{Place, Running, local},
    receiver::{Receiver, Reply},
    servers::{
        postgres::Server,
        proxy::{Fault, FaultProxy},
        unique,
    },
    wait::{eventually, within},
};

const DATABASE: &str = "WEBHOOKS_DATABASE_URL";

/// The ids of all events in the audit.
async fn audit(place: &Place) -> BTreeSet<u64> {
    let mut query = EventQuery::new().limit(1000);
    let mut ids = BTreeSet::new();
    loop {
        let page = place.issuer().events(&query).await.unwrap();
        ids.extend(page.events.iter().map(|event| event.id));
        match page.next {
            Some(next) => query = query.after(next),
            None => return ids,
        }
    }
}

#[tokio::test]
async fn two_nodes_deliver_every_event_in_order_and_the_second_goes_on_when_the_first_stops() {
    for place in Place::all().await {
        let receiver = Receiver::start().await;
        let webhooks = place.webhooks();
        webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
        let (first, second) = (Running::start(&webhooks), Running::start(&webhooks));
        for _ in 0..10 {
            place.issue().await;
        }
        receiver.has(11).await;
        first.stop().await;
        for _ in 0..10 {
            place.issue().await;
        }
        receiver.has(21).await;
        let ids: Vec<_> = receiver.received().iter().map(|it| it.event_id()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "with a lease, none arrives twice: {ids:?}");
        second.stop().await;
    }
}

#[tokio::test]
async fn nodes_without_a_working_lease_deliver_some_events_twice_but_in_order() {
    for place in Place::all().await {
        let receiver = Receiver::start().await;
        let webhooks = place.webhooks();
        webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
        // Both nodes always get it.
        match &place {
            Place::Postgres(..) => {
                place
                    .run(
                        "create function let_all() returns trigger language plpgsql as $$
                    begin new.expires_at := 'epoch'; return new; end $$;
                    create trigger let_all before update on api_key_webhook_lease
                    for each row execute function let_all()",
                    )
                    .await;
            }
            Place::Sqlite(..) => {
                place
                    .run(
                        "create trigger let_all after update on api_key_webhook_lease
                    when new.expires_at > 0
                    begin update api_key_webhook_lease set expires_at = 0; end",
                    )
                    .await;
            }
        }
        let nodes = [(); 3].map(|()| Running::start(&webhooks));
        for _ in 0..30 {
            place.issue().await;
        }
        receiver.has(31).await;
        let ids = receiver.first_arrivals();
        assert!(ids.is_sorted(), "{ids:?}");
        for node in nodes {
            node.stop().await;
        }
    }
}

/// A node in a process of its own: it changes keys, and delivers, until it is killed.
async fn run_node(url: &str) {
    use std::io::Write as _;

    let format = KeyFormat::new("sk_test_").unwrap();
    let (webhooks, issuer) = if url.starts_with("sqlite") {
        let store = SqliteKeyStore::connect(url).await.unwrap();
        (Webhooks::new(store.clone()), KeyIssuer::new(store, format))
    } else {
        let store = PgKeyStore::connect(url).await.unwrap();
        (Webhooks::new(store.clone()), KeyIssuer::new(store, format))
    };
    let webhooks =
        local(webhooks).interval(Duration::from_millis(10)).lease(Duration::from_secs(1));
    tokio::spawn(webhooks.worker().run(std::future::pending()));
    loop {
        issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
        let mut stdout = std::io::stdout();
        stdout.write_all(b"+").unwrap();
        stdout.flush().unwrap();
    }
}

fn start_node(url: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "nodes::a_node_that_is_killed_loses_no_event", "--nocapture"])
        .env(DATABASE, url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_node_that_is_killed_loses_no_event() {
    if let Ok(url) = env::var(DATABASE) {
        return run_node(&url).await;
    }
    for place in Place::all().await {
        let receiver = Receiver::start().await;
        let webhooks = place.webhooks();
        webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
        for round in 1..=4 {
            let mut node = start_node(&place.url());
            let mut stdout = node.stdout.take().unwrap();
            // Changes that are committed, and in later rounds a request that was received.
            let mut committed = 0;
            let before = receiver.received().len();
            let working = async {
                while committed < 20 {
                    let mut bytes = [0; 64];
                    let read = stdout.read(&mut bytes).await.unwrap();
                    assert!(read > 0, "the node ended by itself");
                    committed += bytes[..read].iter().filter(|byte| **byte == b'+').count();
                }
            };
            within(working).await;
            if round > 1 {
                receiver.has_requests(before + 1).await;
            }
            let moment = Duration::from_micros(unique() % 30_000);
            let mut bytes = Vec::new();
            let _ = tokio::time::timeout(moment, stdout.read_to_end(&mut bytes)).await;
            node.kill().await.unwrap();
        }
        let running = Running::start(&webhooks);
        let expected = audit(&place).await;
        assert!(expected.len() > 80);
        receiver.has(expected.len()).await;
        let arrived = receiver.first_arrivals();
        assert_eq!(arrived.iter().copied().collect::<BTreeSet<_>>(), expected);
        assert!(arrived.is_sorted(), "{arrived:?}");
        running.stop().await;
    }
}

#[tokio::test]
async fn an_event_whose_request_is_cut_off_is_posted_again_with_the_same_id() {
    for place in Place::all().await {
        let receiver = Receiver::start().await;
        receiver.replies(|_| Reply::Hang);
        let webhooks = place.webhooks().lease(Duration::from_secs(1));
        webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
        let running = Running::start(&webhooks);
        receiver.has_requests(1).await;
        running.kill();
        receiver.replies(|_| Reply::Status(200));
        place.issue().await;
        let running = Running::start(&webhooks);
        receiver.has(2).await;
        let ids: Vec<_> = receiver.received().iter().map(|it| it.id()).collect();
        assert_eq!(ids.len(), 3);
        assert_eq!(ids[0], ids[1]);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_worker_that_is_stopped_waits_for_its_request_and_gives_up_the_lease() {
    let place = Place::postgres().await;
    let receiver = Receiver::start().await;
    let webhooks = place.webhooks();
    webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
    let running = Running::start(&webhooks);
    receiver.has(1).await;
    running.stop().await;
    place.issue().await;
    // With a lease of 30 seconds, the next one would wait for longer than `within`.
    let running = Running::start(&webhooks);
    receiver.has(2).await;
    assert_eq!(receiver.received().len(), 2, "the first was noted before the worker ended");
    running.stop().await;
}

#[tokio::test]
async fn a_service_delivers_from_its_start_to_its_stop() {
    for place in Place::all().await {
        let (receiver, webhooks) = (Receiver::start().await, place.webhooks());
        webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
        let format = KeyFormat::new("sk_test_").unwrap();
        let builder = match &place {
            Place::Postgres(store, _) => ApiKeys::builder(store.clone(), format),
            Place::Sqlite(store, _) => ApiKeys::builder(store.clone(), format),
        };
        let keys = builder.webhooks(&webhooks).await.unwrap();
        keys.issuer().issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
        receiver.has(2).await;
        within(keys.stop()).await;
        // Another service gets the lease at once.
        place.issue().await;
        let running = Running::start(&webhooks);
        receiver.has(3).await;
        assert_eq!(receiver.received().len(), 3);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_database_that_restarts_loses_no_event() {
    let server = Server::start();
    let database = server.database().await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    store.migrate().await.unwrap();
    let issuer = KeyIssuer::new(store.clone(), KeyFormat::new("sk_test_").unwrap());
    let webhooks = local(Webhooks::new(store.clone())).interval(Duration::from_millis(10));
    let receiver = Receiver::start().await;
    webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
    let running = Running::start(&webhooks);
    let issue = async || issuer.issue(NewKey::new("acme", Expiry::Never)).await.is_ok();
    for round in 1..=3 {
        for _ in 0..5 {
            eventually("a key is issued", issue).await;
        }
        server.stop_immediate().await;
        server.start_again().await;
        receiver.has(1 + 5 * round).await;
    }
    let ids = receiver.first_arrivals();
    assert!(ids.is_sorted(), "{ids:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_standby_that_takes_over_goes_on_with_its_events() {
    let primary = Server::start();
    let database = primary.database().await;
    let proxy = FaultProxy::start(primary.addr()).await;
    let store = PgKeyStore::connect(&proxy.url(database.url())).await.unwrap();
    store.migrate().await.unwrap();
    let issuer = KeyIssuer::new(store.clone(), KeyFormat::new("sk_test_").unwrap());
    let webhooks = local(Webhooks::new(store.clone())).interval(Duration::from_millis(10));
    let receiver = Receiver::start().await;
    webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
    let issue = async || issuer.issue(NewKey::new("acme", Expiry::Never)).await.is_ok();
    for _ in 0..5 {
        assert!(issue().await);
    }
    let standby = primary.standby();
    let on_standby = standby.url(database.url().rsplit('/').next().unwrap());
    let pool = sqlx::PgPool::connect(&on_standby).await.unwrap();
    eventually("the standby has all events", async || {
        let count = sqlx::query_scalar("select count(*) from api_key_events").fetch_one(&pool);
        count.await.is_ok_and(|count: i64| count == 6)
    })
    .await;
    let running = Running::start(&webhooks);
    receiver.has(6).await;
    primary.stop_immediate().await;
    standby.promote().await;
    proxy.redirect(standby.addr());
    proxy.set(Fault::Rst).await;
    proxy.set(Fault::Pass).await;
    eventually("a key is issued on the new primary", issue).await;
    receiver.has(7).await;
    let received = receiver.received();
    let mut ids: Vec<_> = received.iter().map(|it| it.id()).collect();
    ids.dedup();
    let unique_ids: BTreeSet<_> = ids.iter().collect();
    assert!(unique_ids.len() >= 7, "{ids:?}");
    running.stop().await;
}
