//! better-auth, which hashes keys by SHA-256, in base64url.

use http::HeaderName;
use tower_api_key::store::PgKeyStore;

use crate::{
    move_in::{keys_work, run_commands},
    peer::Peer,
    place::Place,
    service::Service,
};

#[tokio::test]
async fn keys_work_at_once() {
    let place = Place::postgres().await;
    let peer = Peer { script: "better_auth.js", options: &[], place: &place };
    let keys = peer.make_keys();
    run_commands("better-auth", &place);

    let header = HeaderName::from_static("x-api-key");
    let store = PgKeyStore::connect(&place.url).await.unwrap();
    let format = "[A-Za-z]:64".parse().unwrap();
    let service = Service::start(store, vec![format], |layer| layer.only_header(header));
    keys_work(&service, &peer, &keys, |key| ("x-api-key", key.to_owned())).await;
}
