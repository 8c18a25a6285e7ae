//! A system that kept its keys as they are.

use tower_api_key::store::PgKeyStore;

use crate::{
    move_in::{keys_work, run_commands},
    peer::Peer,
    place::Place,
    servers::postgres::client,
    service::Service,
};

#[tokio::test]
async fn keys_work_at_once_and_are_stored_as_hashes() {
    let place = Place::postgres().await;
    let peer = Peer { script: "plaintext.py", options: &[], place: &place };
    let keys = peer.make_keys();
    run_commands("Keys in plaintext", &place);
    let dump = client("pg_dump").args(["--exclude-table=customers", &place.url]).output().unwrap();
    let dump = String::from_utf8(dump.stdout).unwrap();
    assert!(
        dump.contains("COPY public.api_keys ") && !keys.iter().any(|old| dump.contains(&old.key))
    );

    let store = PgKeyStore::connect(&place.url).await.unwrap();
    let service = Service::start(store, vec!["base64url:43".parse().unwrap()], |layer| layer);
    let credentials = |key: &str| ("authorization", format!("Bearer {key}"));
    keys_work(&service, &peer, &keys, credentials).await;
}
