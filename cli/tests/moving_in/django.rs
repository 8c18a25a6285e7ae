//! djangorestframework-api-key: version 3 hashes keys by SHA-512, and its predecessors by PBKDF2.

use tower_api_key::{layer::Scheme, store::PgKeyStore};

use crate::{
    move_in::{keys_work, left, run_commands, slow_hashes},
    peer::Peer,
    place::Place,
    service::Service,
};

const SCRIPT: &str = "djangorestframework_api_key.py";

const SECTION: &str = "djangorestframework-api-key";

#[tokio::test]
async fn keys_of_version_3_work_at_once() {
    keys_work_after_their_import(&["3"], &left(0)).await;
}

#[tokio::test]
async fn keys_of_version_2_work_and_are_moved_by_their_first_use() {
    keys_work_after_their_import(&["2"], &left(3)).await;
}

#[tokio::test]
async fn a_key_that_version_3_hashes_again_stays_one_key() {
    let place = Place::postgres().await;
    let [old, updated] =
        [&["2"], &["3"]].map(|options| Peer { script: SCRIPT, options, place: &place });
    let keys = old.make_keys();
    run_commands(SECTION, &place);
    updated.verify(&keys);
    run_commands(SECTION, &place);
    assert_eq!(place.json("list")["keys"].as_array().unwrap().len(), keys.len());
    keys_work(SECTION, &service(&place).await, &updated, keys, credentials).await;
    assert_eq!(slow_hashes(&place, ""), left(0));
}

async fn keys_work_after_their_import(version: &'static [&'static str], imported: &str) {
    let place = Place::postgres().await;
    let peer = Peer { script: SCRIPT, options: version, place: &place };
    let keys = peer.make_keys();
    run_commands(SECTION, &place);
    assert_eq!(slow_hashes(&place, ""), imported);
    keys_work(SECTION, &service(&place).await, &peer, keys, credentials).await;
    assert_eq!(slow_hashes(&place, ""), left(0));
}

async fn service(place: &Place) -> Service {
    let format = "alnum:32,id=alnum:8:.,digest=sha512".parse().unwrap();
    let scheme = Scheme::new("Api-Key").unwrap();
    let store = PgKeyStore::connect(&place.url).await.unwrap();
    Service::start(store, vec![format], |layer| layer.also_scheme(scheme))
}

fn credentials(key: &str) -> (&'static str, String) {
    ("authorization", format!("Api-Key {key}"))
}
