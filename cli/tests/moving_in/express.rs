//! The widespread Express tutorial, which hashes keys by bcrypt.

use http::HeaderName;
use tower_api_key::store::PgKeyStore;

use crate::{
    move_in::{keys_work, left, run_commands, slow_hashes},
    peer::Peer,
    place::Place,
    service::Service,
};

const SECTION: &str = "Express with bcrypt";

#[tokio::test]
async fn keys_work_and_are_moved_by_their_first_use() {
    let place = Place::postgres().await;
    let peer = Peer { script: "express.js", options: &[], place: &place };
    let keys = peer.make_keys();
    run_commands(SECTION, &place);
    assert_eq!(slow_hashes(&place, "--schema keys"), left(3));
    let laptop = &place.json("list --consumer 17 --schema keys")["keys"][0];
    assert_eq!(
        (&laptop["name"], &laptop["rate_limits"][0]["limit"]),
        (&"Laptop, \"old\"".into(), &1000.into())
    );

    let header = HeaderName::from_static("x-api-key");
    let format = "hex:64".parse().unwrap();
    let store = PgKeyStore::builder().schema("keys").connect(&place.url).await.unwrap();
    let service = Service::start(store, vec![format], |layer| layer.only_header(header));
    keys_work(SECTION, &service, &peer, keys, |key| ("x-api-key", key.to_owned())).await;
    assert_eq!(slow_hashes(&place, "--schema keys"), left(0));
}
