//! Keys of other systems: their structure, the part that is hashed and the digest.

use axum::extract::Request;
use http::{HeaderName, HeaderValue, StatusCode};
use tower_api_key::{
    ApiKeyLayer,
    auth::RejectionKind,
    key::{AcceptedFormat, Digest, ImportedFormat, KeyHash},
    manage::{Expiry, KeyImport, KeyIssuer, NewKey},
};

use crate::app::{App, Keys, with_authorization, with_key};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A token of Laravel Sanctum.
const SANCTUM: &str = "17|AbCdEfGhIjKlMnOpQrStUvWxYz0123456789abcdf8c8ab1e";

fn in_header(name: HeaderName, key: &str) -> Request {
    let mut request = crate::app::get("/");
    request.headers_mut().insert(name, HeaderValue::try_from(key).unwrap());
    request
}

async fn import_hash(keys: &Keys, hash: KeyHash) {
    let issuer = KeyIssuer::new(keys.store.memory.clone(), crate::app::format());
    let import = KeyImport::new(hash, NewKey::new("acme", Expiry::Never));
    issuer.clock(keys.clock.clone()).import(vec![import]).await.unwrap();
}

/// Imports a key of `format`, as another system hashed it.
async fn import(keys: &Keys, format: &AcceptedFormat, key: &str) {
    let hash = format.parse(key.as_bytes()).unwrap().hash();
    import_hash(keys, hash).await;
}

#[tokio::test]
async fn a_key_of_characters_beyond_bearer_tokens_is_read_where_its_format_is_accepted() {
    let keys = Keys::new();
    let sanctum: AcceptedFormat = "sanctum".parse().unwrap();
    let key = SANCTUM;
    import(&keys, &sanctum, key).await;
    let (auth, _) = keys.builder().accept(sanctum).build();
    let app = App::new(ApiKeyLayer::new(auth.clone()).also_header(X_API_KEY));
    assert_eq!(app.get(key).await.text(), "hello acme");
    assert_eq!(app.send(in_header(X_API_KEY, key)).await.text(), "hello acme");
    // The checksum is wrong: not a mistake of the client's program.
    let typo = key.replace("AbC", "AbD");
    assert_eq!(app.get(&typo).await.kind(), Some(RejectionKind::Malformed));
    for wrong in [format!("{key},"), format!("\"{key}\""), format!("{key} x"), format!("<{key}>")] {
        assert_eq!(app.get(&wrong).await.status, StatusCode::BAD_REQUEST, "{wrong}");
    }
    // Its checksum tells it from other text, so it is found in the wrong place.
    let misplaced = App::new(ApiKeyLayer::new(auth).optional(true));
    for request in [
        in_header(X_API_KEY, key),
        with_authorization([format!("Token {key}")]),
        crate::app::get(&format!("/?key={key}&a=b")),
    ] {
        assert_eq!(misplaced.send(request).await.status, StatusCode::BAD_REQUEST);
    }

    let without = App::new(ApiKeyLayer::new(keys.auth()));
    let answer = without.get(key).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.json()["detail"].as_str().unwrap().contains("has characters"), "{answer:?}");
}

#[tokio::test]
async fn a_padded_key_is_found_in_the_wrong_place() {
    let keys = Keys::new();
    let format: AcceptedFormat = "base64url:43=:old_".parse().unwrap();
    let key = format!("old_{}-_a=", "Ab3dEf9hZ0".repeat(4));
    import(&keys, &format, &key).await;
    let (auth, _) = keys.builder().accept(format).build();
    let app = App::new(ApiKeyLayer::new(auth).optional(true));
    assert_eq!(app.get(&key).await.text(), "hello acme");
    for request in [
        in_header(X_API_KEY, &key),
        with_authorization([format!("Token token={key}")]),
        crate::app::get(&format!("/?key={key}&a=b")),
        crate::app::get(&format!("/?a=b&key={key}")),
    ] {
        assert_eq!(app.send(request).await.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(app.send(crate::app::get("/?key=old_&a=b")).await.text(), "hello stranger");
}

/// Digests of the key `abababababababababababababababab`, by Python's `hashlib` and `hmac`.
fn digests() -> Vec<(Digest, &'static str)> {
    let sha512 = "d7d8803c6855e2cada884cc64bb4ebb00e056755c6d2237cd78e8cb62cc37d98\
                  89aa9d45f6f639ab642b9c02d5eeb27ca29042c80f152100410072226e61fef2";
    let mut all = vec![
        (Digest::sha256(), "d2f9fa9d99bb30b2b67fc6b0ea2694f345c0961596e0fd82561010b4f7570c2d"),
        (
            Digest::salted_sha256(b"salt:", b":end"),
            "1a62325da682e8d55864d95cee478e0c8ebd5085055911288df38ac461fd1de7",
        ),
        (
            Digest::double_sha256(),
            "713f6f95db36ae61cccd52451d64852b0cbf66dc3da066777db9545224f08894",
        ),
        (Digest::sha512(), sha512),
        (Digest::custom(|key| key.iter().rev().copied().collect()), "6261626162616261"),
    ];
    #[cfg(feature = "legacy-hashes")]
    all.push((
        Digest::hmac_sha256(tower_api_key::key::Pepper::new("pepper")),
        "88976daa34efd8a616893aff978fedf7e45c0636b12623f086a897ef4393153a",
    ));
    all
}

#[tokio::test]
async fn a_key_is_found_by_what_was_made_of_its_old_digest() {
    let key = "ab".repeat(16);
    for (digest, old) in digests() {
        let keys = Keys::new();
        let old = if old.len() == 16 { old.repeat(4) } else { old.to_owned() };
        import_hash(&keys, digest.stored_hash_of_text(&old).unwrap()).await;
        let format: ImportedFormat = "hex:32".parse().unwrap();
        let (auth, _) = keys.builder().accept(format.hashed_by(digest.clone())).build();
        let app = App::new(ApiKeyLayer::new(auth));
        for _ in 0..3 {
            assert_eq!(app.get(&key).await.text(), "hello acme", "{digest:?}");
        }
        assert_eq!(keys.queries(), 1, "{digest:?}");
        let other = "cd".repeat(16);
        assert_eq!(app.get(&other).await.kind(), Some(RejectionKind::Unknown), "{digest:?}");
    }
}

#[tokio::test]
async fn keys_that_differ_in_their_id_are_one_key_where_the_secret_is_hashed() {
    let keys = Keys::new();
    // The column `token` of Sanctum: SHA-256 of what follows `|`, by `sha256sum`.
    let token = "2a0e4387dcc10a3114bf3518c114512abbe68156819fdcc9491b574cd059662b";
    import_hash(&keys, token.parse().unwrap()).await;
    let (auth, _) = keys.builder().accept(ImportedFormat::sanctum("").unwrap()).build();
    let app = App::new(ApiKeyLayer::new(auth));
    for id in ["17", "18", "18446744073709551615"] {
        let key = SANCTUM.replace("17|", &format!("{id}|"));
        assert_eq!(app.get(&key).await.text(), "hello acme", "{id}");
    }
    assert_eq!(keys.queries(), 1, "each id is looked up");
    for id in ["", "a", "184467440737095516150"] {
        let key = SANCTUM.replace("17|", &format!("{id}|"));
        assert_eq!(app.get(&key).await.kind(), Some(RejectionKind::Malformed), "{id}");
    }
}

#[tokio::test]
async fn a_uuid_of_another_version_is_malformed() {
    let keys = Keys::new();
    let format: AcceptedFormat = "uuid".parse().unwrap();
    let key = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
    import(&keys, &format, key).await;
    let (auth, _) = keys.builder().accept(format).build();
    let app = App::new(ApiKeyLayer::new(auth));
    assert_eq!(app.get(key).await.text(), "hello acme");
    assert_eq!(app.get(&key.to_uppercase()).await.kind(), Some(RejectionKind::Unknown));
    for version in ["1", "3", "5", "6", "7", "8"] {
        let other = key.replace("-4372", &format!("-{version}372"));
        assert_eq!(app.get(&other).await.kind(), Some(RejectionKind::Malformed), "{version}");
    }
}

#[tokio::test]
async fn a_digest_that_panics_is_an_internal_error() {
    let keys = Keys::new();
    let format: ImportedFormat = "hex:32".parse().unwrap();
    let panics = Digest::custom(|_| panic!("a bug of the application"));
    let (auth, _) = keys.builder().accept(format.hashed_by(panics)).build();
    let app = App::new(ApiKeyLayer::new(auth));
    let answer = app.send(with_key(&"0f".repeat(16))).await;
    assert_eq!(answer.kind(), Some(RejectionKind::Internal));
    let key = keys.key().await;
    assert_eq!(app.get(&key).await.text(), "hello acme");
}
