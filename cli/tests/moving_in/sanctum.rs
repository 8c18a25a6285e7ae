//! Laravel Sanctum, which hashes the secret of a token by SHA-256.

use serde_json::json;
use tower_api_key::store::PgKeyStore;

use crate::{
    move_in::{keys_work, run_commands},
    peer::Peer,
    place::Place,
    service::Service,
};

#[tokio::test]
async fn tokens_work_at_once_with_their_abilities() {
    let place = Place::postgres().await;
    let peer = Peer { script: "sanctum.py", options: &[], place: &place };
    let tokens = peer.make_keys();
    run_commands("Laravel Sanctum", &place);
    let phone = &place.json("list --consumer 18")["keys"][0];
    assert_eq!(phone["scopes"], json!(["orders:read", "orders:write"]));

    let store = PgKeyStore::connect(&place.url).await.unwrap();
    let service = Service::start(store, vec!["sanctum".parse().unwrap()], |layer| layer);
    let credentials = |token: &str| ("authorization", format!("Bearer {token}"));
    keys_work(&service, &peer, &tokens, credentials).await;
}
