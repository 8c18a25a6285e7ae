//! API keys for any tower HTTP service: issued, hashed, cached, rate-limited, revoked.
//!
//! *A **key** is hashed; its **record** is found in a **store**; its **rate limit** is charged;
//! **auth** decides; the **layer** speaks HTTP; keys are **managed**.* The modules are named after
//! this sentence:
//!
//! | module | contents |
//! |---|---|
//! | [`ApiKeys`] | all of it, connected and running |
//! | `admin`, `account` | HTTP routers for managing keys: for operators, and for consumers (feature `admin`) |
//! | `leaks` | a router that hears of leaked keys, from GitHub and other scanners (feature `leaks`) |
//! | [`layer`] | [`ApiKeyLayer`], [`RequireScope`], responses to rejected requests |
//! | [`auth`] | [`Authenticator`]: the decision, its cache, its worker |
//! | [`manage`] | key life cycle: issue, update, rotate, revoke, audit |
//! | `webhooks` | signed events for other services (feature `webhooks`) |
//! | [`store`] | PostgreSQL, SQLite, memory, or your own |
//! | [`record`] | stored facts about a key, [`Consumer`] |
//! | [`rate_limit`] | quotas and buckets |
//! | [`key`] | the format of keys, secrets and hashes |
//! | [`clock`] | time as a dependency |
//! | [`manual`] | guarantees that span modules: [who may grant what](manual::keys), [how much a key holder can create](manual::bounds), [how long a revoked key may keep working](manual::freshness), [what an attacker may try](manual::attacks), [HTTP servers and database connections](manual::deployment), [metrics, spans and logs](manual::observability) |
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_api_key::{
//!     ApiKeys, Consumer,
//!     manage::{Expiry, NewKey},
//!     rate_limit::Quota,
//! };
//! # use {axum::body::Body, http::{Request, StatusCode}, tower::ServiceExt};
//!
//! async fn orders(consumer: Consumer) -> String {
//!     format!("orders of {}", consumer.id())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Or `ApiKeys::open("postgres://localhost/app", "sk_live_")`.
//! let keys = ApiKeys::in_memory("sk_live_")
//!     .default_rate_limits(Quota::per_minute(600)?)
//!     .await?;
//!
//! let app: Router = Router::new().route("/orders", get(orders)).layer(keys.layer());
//!
//! let issued = keys.issuer().issue(NewKey::new("acme", Expiry::Never)).await?;
//! let request = Request::get("/orders")
//!     .header("authorization", format!("Bearer {}", issued.key.expose_secret()))
//!     .body(Body::empty())?;
//! assert_eq!(app.oneshot(request).await?.status(), StatusCode::OK);
//!
//! keys.stop().await; // writes the last uses of keys
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! `postgres`, `axum`, `tls-rustls-ring` and `tracing` are on by default; `sqlite`, `redis`, `ws`,
//! `admin`, `leaks`, `openapi`, `metrics`, `legacy-hashes`, `webhooks`, `tls-rustls-aws-lc-rs`, `tls-native` and `test-util` are not. Features are additive: none changes existing
//! behaviour.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "admin")]
pub mod account;
#[cfg(feature = "admin")]
pub mod admin;
mod api_keys;
pub mod auth;
mod circuit_breaker;
pub mod clock;
pub mod key;
pub mod layer;
#[cfg(feature = "leaks")]
pub mod leaks;
pub mod manage;
pub mod manual;
pub mod rate_limit;
pub mod record;
#[cfg(feature = "admin")]
mod rest;
pub mod store;
#[cfg(feature = "test-util")]
pub mod test_util;
#[cfg(any(
    feature = "tls-rustls-ring",
    feature = "tls-rustls-aws-lc-rs",
    feature = "leaks",
    feature = "webhooks"
))]
mod tls;
mod trace;
#[cfg(feature = "webhooks")]
pub mod webhooks;

pub use api_keys::{ApiKeys, ApiKeysBuilder, StartError, StartErrorKind};
pub use auth::Authenticator;
pub use layer::{ApiKeyLayer, RequireScope};
pub use record::Consumer;

#[cfg(all(doctest, feature = "postgres", feature = "axum"))]
#[doc = include_str!("../README.md")]
struct Readme;
