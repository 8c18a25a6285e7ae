//! Unkey, which hashes keys by SHA-256, in base64.

use tower_api_key::store::PgKeyStore;

use crate::{
    move_in::{keys_work, run_commands},
    peer::Peer,
    place::Place,
    service::Service,
};

#[tokio::test]
async fn keys_of_each_length_work_at_once() {
    let place = Place::postgres().await;
    let peer = Peer { script: "unkey.py", options: &[], place: &place };
    let keys = peer.make_keys();
    run_commands("Unkey", &place);

    let formats = ["base58:57:sk_", "base58:22:sk_", "[1-9A-HJ-NP-Za-km-z_]:24"];
    let formats = formats.map(|format| format.parse().unwrap()).to_vec();
    let store = PgKeyStore::connect(&place.url).await.unwrap();
    let service = Service::start(store, formats, |layer| layer);
    let credentials = |key: &str| ("authorization", format!("Bearer {key}"));
    keys_work(&service, &peer, &keys, credentials).await;
}
