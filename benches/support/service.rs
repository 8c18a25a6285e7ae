//! A service whose keys are all cached, and the requests sent to it.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::{
    future::Future,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{HeaderValue, Request, StatusCode, header};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    auth::CachePolicy,
    key::{EntropySource, KeyFormat, RngError},
    manage::{Expiry, Issued, KeyIssuer, NewKey},
    rate_limit::Quota,
    record::Scopes,
    store::MemoryKeyStore,
};

const SCHEME: &str = "Bearer ";

pub(crate) struct Service {
    pub(crate) format: KeyFormat,
    pub(crate) auth: Authenticator,
    /// `Authorization` values, sorted by text: neighbours in this list are not neighbours in
    /// memory.
    pub(crate) keys: Vec<HeaderValue>,
    /// Well-formed, and in the negative cache.
    pub(crate) unknown: HeaderValue,
    /// Cached as revoked.
    pub(crate) revoked: HeaderValue,
}

impl Service {
    pub(crate) fn new(runtime: &Runtime, keys: usize, quota: Quota) -> Self {
        runtime.block_on(async {
            let (store, format) = (MemoryKeyStore::new(), KeyFormat::new("sk_live_").unwrap());
            // The maximum, so that no look-up falls into the measurement.
            let cache = CachePolicy::default().fresh(Duration::from_secs(300)).unwrap();
            let (auth, worker) = Authenticator::builder(store.clone(), format.clone())
                .default_rate_limits(quota)
                .cache(cache.absent(Duration::from_secs(60)).unwrap())
                .build();
            drop(worker);
            let issuer = KeyIssuer::new(store, format.clone()).entropy(Entropy::default());
            let mut issued = Vec::new();
            for _ in 0..keys {
                let key = issue(&issuer).await;
                auth.check(key_of(&key)).await.unwrap();
                // Only the second use promotes a key to the hot table.
                let _ = auth.check(key_of(&key)).try_now();
                issued.push(key);
            }
            issued.sort();
            let revoked = issue_new(&issuer).await;
            issuer.revoke(revoked.record.id, None).await.unwrap();
            let revoked = authorization(&revoked);
            auth.check(key_of(&revoked)).await.unwrap_err();
            let elsewhere = KeyIssuer::new(MemoryKeyStore::new(), format.clone());
            let unknown = issue(&elsewhere.entropy(Entropy(AtomicU64::new(1 << 63)))).await;
            auth.check(key_of(&unknown)).await.unwrap_err();
            Self { format, auth, keys: issued, unknown, revoked }
        })
    }

    pub(crate) fn layer(&self) -> ApiKeyLayer {
        ApiKeyLayer::new(self.auth.clone())
    }

    pub(crate) fn hot(&self) -> &HeaderValue {
        &self.keys[0]
    }

    /// Its last character is wrong, and with it the checksum.
    pub(crate) fn malformed(&self) -> HeaderValue {
        let mut bytes = self.hot().as_bytes().to_vec();
        let last = bytes.last_mut().unwrap();
        *last = if *last == b'A' { b'B' } else { b'A' };
        HeaderValue::from_bytes(&bytes).unwrap()
    }
}

/// Deterministic, so that every run measures the same keys.
#[derive(Default)]
struct Entropy(AtomicU64);

impl EntropySource for Entropy {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError> {
        for chunk in buffer.chunks_mut(32) {
            let count = self.0.fetch_add(1, Ordering::Relaxed);
            let bytes = Sha256::digest(count.to_le_bytes());
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        Ok(())
    }
}

async fn issue(issuer: &KeyIssuer) -> HeaderValue {
    authorization(&issue_new(issuer).await)
}

async fn issue_new(issuer: &KeyIssuer) -> Issued {
    let scopes = Scopes::parse(["orders:read", "orders:write"]).unwrap();
    issuer.issue(NewKey::new("acme", Expiry::Never).scopes(scopes)).await.unwrap()
}

fn authorization(issued: &Issued) -> HeaderValue {
    HeaderValue::try_from(format!("{SCHEME}{}", issued.key.expose_secret())).unwrap()
}

/// High enough never to be reached.
pub(crate) fn roomy() -> Quota {
    Quota::per_second(50_000_000).unwrap().named("minute").unwrap()
}

/// Used up by the first request.
pub(crate) fn tight() -> Quota {
    Quota::per(1, Duration::from_secs(86_400)).unwrap().named("day").unwrap()
}

pub(crate) fn bare() -> Router {
    Router::new().route("/", get(|| async { "ok" }))
}

/// The key without its scheme.
pub(crate) fn key_of(authorization: &HeaderValue) -> &[u8] {
    &authorization.as_bytes()[SCHEME.len()..]
}

/// A complete request: built, sent through the router, answered at once.
pub(crate) fn ask(router: &Router, authorization: &HeaderValue) -> StatusCode {
    let mut request = Request::new(Body::empty());
    request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
    let mut response = pin!(router.clone().oneshot(request));
    match response.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(response)) => response.status(),
        Poll::Pending => panic!("it waits"),
    }
}
