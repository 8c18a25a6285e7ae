//! Nodes that are processes of their own, in front of one database: what one does the others know,
//! and none of them minds what happens to the database or to another node.

#![cfg(test)]

mod harness;
mod nodes;

use std::time::Duration;

use http::{Method, StatusCode};
use sqlx::{AssertSqlSafe, raw_sql};
use tokio::{sync::Mutex, time::Instant};
use tower_api_key::store::PgKeyStore;

use crate::{
    harness::postgres::{Database, Server},
    nodes::{Distribution, Key, Node, Settings, run_if_node, within},
};

const MILLI: Duration = Duration::from_millis(1);

/// Tests of this file take turns: what one measures, another one at the same time would falsify.
static TURN: Mutex<()> = Mutex::const_new(());

async fn database(server: &Server) -> Database {
    let database = server.database().await;
    PgKeyStore::connect(database.url()).await.unwrap().migrate().await.unwrap();
    database
}

/// The nodes of a fleet are this test in processes of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_comes_up_and_ends() {
    if run_if_node().await {
        return;
    }
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let node = Node::start(&Settings::new(database.url())).await;
    let keys = node.issue(2).await;
    for key in &keys {
        node.get(&key.text).await.is(StatusCode::OK);
    }
    node.admin(Method::POST, &format!("/revoke/{}", keys[0].id)).await;
    node.get(&keys[0].text).await.is(StatusCode::UNAUTHORIZED);
    node.get(&keys[1].text).await.is(StatusCode::OK);
    assert!(node.terminate().await.success());
}

/// How long after `revoke` has returned the others refuse the key, which they know.
async fn revocations(
    others: &[&Node],
    keys: Vec<Key>,
    mut revoke: impl AsyncFnMut(&Key),
) -> Distribution {
    let mut clients = Vec::new();
    for node in others {
        clients.push(node.client().await);
    }
    let mut times = Vec::new();
    for key in keys {
        let mut asking = Vec::new();
        for mut client in clients.drain(..) {
            client.get(&key.text).await.is(StatusCode::OK);
            let key = key.text.clone();
            asking.push(tokio::spawn(async move {
                let refused = client.first(StatusCode::UNAUTHORIZED, &key).await;
                (client, refused)
            }));
        }
        revoke(&key).await;
        let revoked = Instant::now();
        for asking in asking {
            let (client, refused) = within(asking).await.unwrap();
            times.push(refused.saturating_duration_since(revoked));
            clients.push(client);
        }
    }
    Distribution::of(times)
}

async fn is_prompt(others: &[&Node], keys: Vec<Key>, revoke: impl AsyncFnMut(&Key)) {
    let times = revocations(others, keys, revoke).await;
    println!("revoked to refused by {} others: {times}", others.len());
    assert!(times.percentile(50) < 10 * MILLI && times.percentile(99) < 100 * MILLI, "{times}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_revoked_on_one_node_is_refused_by_the_others() {
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let settings = Settings { fresh: Some(Duration::ZERO), ..Settings::new(database.url()) };
    let (a, b) = (Node::start(&settings).await, Node::start(&settings).await);
    let mut admin = a.client().await;
    let mut revoke = async |key: &Key| {
        admin.admin(Method::POST, &format!("/revoke/{}", key.id)).await;
    };
    is_prompt(&[&b], a.issue(600).await, &mut revoke).await;
    let c = Node::start(&settings).await;
    is_prompt(&[&b, &c], a.issue(400).await, &mut revoke).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_revoked_by_hand_is_refused_by_all() {
    let _turn = TURN.lock().await;
    let database = database(Server::shared()).await;
    let settings = Settings { fresh: Some(Duration::ZERO), ..Settings::new(database.url()) };
    let (a, b) = (Node::start(&settings).await, Node::start(&settings).await);
    let prompt = database.pool().await;
    is_prompt(&[&a, &b], a.issue(200).await, async |key| {
        let by_hand = format!("update api_keys set revoked_at = now() where id = '{}'", key.id);
        raw_sql(AssertSqlSafe(by_hand)).execute(&prompt).await.unwrap();
    })
    .await;
}
