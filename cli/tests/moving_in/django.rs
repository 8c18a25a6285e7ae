//! djangorestframework-api-key: version 3 hashes keys by SHA-512, and its predecessors by PBKDF2.

use tower_api_key::{layer::Scheme, store::PgKeyStore};

use crate::{
    move_in::{NONE_IS_LEFT, keys_work, run_commands, slow_hashes},
    peer::Peer,
    place::Place,
    service::Service,
};

#[tokio::test]
async fn keys_of_version_3_work_at_once() {
    keys_work_after_their_import(&["3"], NONE_IS_LEFT).await;
}

#[tokio::test]
async fn keys_of_version_2_work_and_are_moved_by_their_first_use() {
    keys_work_after_their_import(&["2"], "keys that were not used since their import: 4").await;
}

async fn keys_work_after_their_import(version: &'static [&'static str], imported: &str) {
    let place = Place::postgres().await;
    let peer = Peer { script: "djangorestframework_api_key.py", options: version, place: &place };
    let keys = peer.make_keys();
    run_commands("djangorestframework-api-key", &place);
    assert_eq!(slow_hashes(&place, ""), imported);

    let format = "alnum:32,id=alnum:8:.,digest=sha512".parse().unwrap();
    let scheme = Scheme::new("Api-Key").unwrap();
    let store = PgKeyStore::connect(&place.url).await.unwrap();
    let service = Service::start(store, vec![format], |layer| layer.also_scheme(scheme));
    keys_work(&service, &peer, &keys, |key| ("authorization", format!("Api-Key {key}"))).await;
    assert_eq!(slow_hashes(&place, ""), NONE_IS_LEFT);
}
