//! A sender of leak deliveries that signs them as GitHub does.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a harness that fails must fail its test")]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Request, header::CONTENT_TYPE};
use p256::{
    ecdsa::{Signature, SigningKey, signature::Signer as _},
    pkcs8::{EncodePublicKey as _, LineEnding},
};
use serde_json::{Value, json};
use tower_api_key::leaks::{PublicKey, PublicKeySet};

pub const IDENTIFIER: &str = "github-public-key-identifier";
pub const SIGNATURE: &str = "github-public-key-signature";

/// A sender with a key pair of its own, the same in each process.
pub struct GitHub {
    key: SigningKey,
    identifier: String,
}

impl GitHub {
    pub fn new() -> Self {
        Self::with_key(7, "current")
    }

    pub fn with_key(seed: u8, identifier: &str) -> Self {
        let key = SigningKey::from_slice(&[seed; 32]).unwrap();
        Self { key, identifier: identifier.to_owned() }
    }

    pub fn pem(&self) -> String {
        self.key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap()
    }

    /// The document that GitHub publishes.
    pub fn published(&self) -> Value {
        let key = json!({
            "key_identifier": self.identifier, "key": self.pem(), "is_current": true,
        });
        json!({ "public_keys": [key] })
    }

    pub fn public_keys(&self) -> PublicKeySet {
        PublicKeySet::new().with(self.identifier.clone(), PublicKey::from_pem(&self.pem()).unwrap())
    }

    pub fn sign(&self, body: &[u8]) -> String {
        let signature: Signature = self.key.sign(body);
        STANDARD.encode(signature.to_der())
    }

    /// A signed delivery of these tokens, to `path`.
    pub fn delivery<B: From<Vec<u8>>>(&self, path: &str, found: &Value) -> Request<B> {
        self.signed(path, found.to_string().into_bytes())
    }

    /// Any body, signed.
    pub fn signed<B: From<Vec<u8>>>(&self, path: &str, body: Vec<u8>) -> Request<B> {
        Request::post(path)
            .header(CONTENT_TYPE, "application/json")
            .header(IDENTIFIER, &self.identifier)
            .header(SIGNATURE, self.sign(&body))
            .body(body.into())
            .unwrap()
    }
}

/// A found token, as GitHub describes it.
pub fn found(token: &str) -> Value {
    json!({
        "token": token,
        "type": "acme_api_key",
        "url": "https://github.com/acme/shop/blob/0123abc/config.py",
        "source": "commit",
    })
}
