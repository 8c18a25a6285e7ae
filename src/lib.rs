//! API keys for any tower HTTP service: issued, hashed, cached, rate-limited, revoked.
//!
//! *A **key** is hashed; its **record** is found in a **store**; its **rate limit** is taken;
//! **auth** decides; the **layer** speaks HTTP; keys are **managed**.* The modules are called
//! after that sentence, and each explains itself:
//!
//! | module | what |
//! |---|---|
//! | `admin`, `account` | routers to manage keys with: for operators, and for consumers (feature `admin`) |
//! | [`layer`] | [`ApiKeyLayer`], [`RequireScope`], what each request is answered and why |
//! | [`auth`] | [`Authenticator`]: the decision, its cache, its worker |
//! | [`manage`] | the life of a key: issuing, changing, rotating, revoking, the audit |
//! | [`store`] | PostgreSQL, SQLite, memory, or your own |
//! | [`record`] | what is known of a key, [`Consumer`] |
//! | [`rate_limit`] | quotas and buckets |
//! | [`key`] | the format of keys, secrets and hashes |
//! | [`clock`] | time as an argument |
//! | [`manual`] | what the parts promise together: [who may grant what](manual::keys), [how much a key holder can make](manual::bounds), [how long a revoked key can go on working](manual::freshness), [what a server in front of it takes](manual::deployment) |
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_api_key::{
//!     ApiKeyLayer, Authenticator, Consumer,
//!     key::KeyFormat,
//!     manage::{Expiry, KeyIssuer, NewKey},
//!     rate_limit::Quota,
//!     store::MemoryKeyStore,
//! };
//! # use {axum::body::Body, http::{Request, StatusCode}, tower::ServiceExt};
//!
//! async fn orders(consumer: Consumer) -> String {
//!     format!("orders of {}", consumer.id())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let format = KeyFormat::new("sk_live_")?;
//! let store = MemoryKeyStore::new();
//!
//! let (auth, worker) = Authenticator::builder(store.clone(), format.clone())
//!     .default_rate_limits(Quota::per_minute(600)?)
//!     .build();
//! tokio::spawn(worker.run(std::future::pending()));
//!
//! let app: Router =
//!     Router::new().route("/orders", get(orders)).layer(ApiKeyLayer::new(auth));
//!
//! let issued = KeyIssuer::new(store, format).issue(NewKey::new("acme", Expiry::Never)).await?;
//! let request = Request::get("/orders")
//!     .header("authorization", format!("Bearer {}", issued.key.expose_secret()))
//!     .body(Body::empty())?;
//! assert_eq!(app.oneshot(request).await?.status(), StatusCode::OK);
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! `postgres`, `axum` and `tracing` are on by default; `sqlite`, `redis`, `redis-tls`, `ws`, `admin`,
//! `openapi`, `cli` and `test-util` are not. Each adds one thing; none changes what is there without it.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "admin")]
pub mod account;
#[cfg(feature = "admin")]
pub mod admin;
pub mod auth;
pub mod clock;
pub mod key;
pub mod layer;
pub mod manage;
pub mod manual;
pub mod rate_limit;
pub mod record;
#[cfg(feature = "admin")]
mod rest;
pub mod store;
mod trace;

pub use auth::Authenticator;
pub use layer::{ApiKeyLayer, RequireScope};
pub use record::Consumer;

#[cfg(all(doctest, feature = "postgres", feature = "axum"))]
#[doc = include_str!("../README.md")]
struct Readme;
