//! A system that kept its keys as they are.

use tower_api_key::store::PgKeyStore;

use crate::{
    move_in::{keys_work, run_commands},
    peer::Peer,
    place::Place,
    servers::postgres::client,
    service::Service,
};

const SECTION: &str = "Keys in plaintext";

#[tokio::test]
async fn keys_work_at_once_and_are_stored_as_hashes() {
    let place = Place::postgres().await;
    let peer = Peer { script: "plaintext.py", options: &[], place: &place };
    let keys = peer.make_keys();
    run_commands(SECTION, &place);
    let dump = client("pg_dump").args(["--exclude-table=customers", &place.url]).output().unwrap();
    let dump = String::from_utf8(dump.stdout).unwrap();
    assert!(
        dump.contains("COPY public.api_keys ") && !keys.iter().any(|old| dump.contains(&old.key))
    );

    let store = PgKeyStore::connect(&place.url).await.unwrap();
    let service = Service::start(store, vec!["base64url:43".parse().unwrap()], |layer| layer);
    let credentials = |key: &str| ("authorization", format!("Bearer {key}"));
    keys_work(SECTION, &service, &peer, keys, credentials).await;
}

#[tokio::test]
async fn what_changes_in_the_old_system_after_the_import_stays_there() {
    let place = Place::postgres().await;
    let peer = Peer { script: "plaintext.py", options: &[], place: &place };
    let keys = peer.make_keys();
    run_commands(SECTION, &place);
    place.sql("UPDATE customers SET active = false").await;
    run_commands(SECTION, &place);
    assert!(!peer.verify(&keys).contains(&true));
    assert_eq!(place.fed("verify --accept base64url:43", &keys[0].key).code, 0);
}
