//! The decision: bytes in, an [`Attempt`] out.
//!
//! [`Authenticator`] knows no HTTP. [`ApiKeyLayer`](crate::ApiKeyLayer) is its adapter for tower;
//! a broker, a socket server or a command line can use it directly:
//!
//! ```
//! # use std::time::SystemTime;
//! use tower_api_key::{
//!     Authenticator,
//!     auth::RejectionKind,
//!     key::KeyFormat,
//!     manage::{Expiry, KeyIssuer, NewKey},
//!     rate_limit::Quota,
//!     store::MemoryKeyStore,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let format = KeyFormat::new("sk_live_")?;
//! let store = MemoryKeyStore::new();
//! let issued = KeyIssuer::new(store.clone(), format.clone()).issue(NewKey::new("acme", Expiry::Never)).await?;
//!
//! let (auth, worker) = Authenticator::builder(store, format)
//!     .default_rate_limits(Quota::per_minute(600)?)
//!     .build();
//! # drop(worker);
//!
//! let admission = auth.authenticate(issued.key.expose_secret().as_bytes()).await?;
//! assert_eq!(admission.consumer().id(), "acme");
//!
//! let rejection = auth.authenticate(b"sk_live_nonsense").await.unwrap_err();
//! assert_eq!(rejection.kind(), RejectionKind::Malformed);
//! # Ok(())
//! # }
//! ```
//!
//! # Rules
//!
//! 1. What is no key of an [accepted format](Builder::accept) is refused without a hash, an
//!    allocation or a query.
//! 2. A key in the cache is judged at once, without awaiting: expiry, revocation and rate are
//!    checked on every request from the facts of its record.
//! 3. Any number of requests for one key that is not in the cache make one query. It runs in a
//!    task of its own, so that a client who hangs up harms nobody.
//! 4. Identity fails closed: where the store does not answer, a key is refused as
//!    [`StoreUnavailable`](RejectionKind::StoreUnavailable), never as unknown, and nothing is
//!    remembered of it. A key that was known a short while ago is let in for a
//!    [bounded time](CachePolicy::stale_if_error).
//! 5. A change that is [told by a feed](Builder::change_feed), or by
//!    [`invalidate`](Authenticator::invalidate), wins over a query that is under way: what that
//!    query returns is not kept, and whoever waits for it gets what the next one returns.
//! 6. While changes may go unheard, what is cached is fresh for a [shorter
//!    time](CachePolicy::fresh_during_gap). Afterwards all of it is confirmed by the store before it
//!    is trusted again.
//! 7. Refused keys are never charged.
//! 8. Keys that nobody has heard of make no more than a [bounded number of
//!    queries](CachePolicy::stranger_queries) a second for nothing, and, where the client's
//!    [network](ClientNetwork) is [told](Authenticator::attempt_from), a [bounded number from
//!    each](Builder::failure_limit). A key in the cache is let in whatever goes on around it. One
//!    that comes again after it was turned away has a small reserve.
//!
//! How long a key that was revoked elsewhere can go on working, in numbers, is in the manual:
//! [freshness](crate::manual::freshness).
//!
//! # Concurrency
//!
//! Cached keys are read without locks. Starting, finishing and invalidating loads share one short
//! lock, which no request for a cached key takes. Loads need a tokio runtime
//! with its timer.
//!
//! # Panics of others
//!
//! A [store](crate::store::KeyStore) that panics is one that failed; so is a
//! [feed](crate::store::ChangeFeed). A panic of an [`Observer`] is caught and logged. A panic of a
//! [`Clock`](crate::clock::Clock) or a [`RateLimiter`](crate::rate_limit::RateLimiter) costs the
//! request that it happens in: it is refused as [`Internal`](RejectionKind::Internal), or, where a
//! key was being looked up, as [`StoreUnavailable`](RejectionKind::StoreUnavailable). A duty of the
//! [`Worker`] that panics begins again. Where the crate is built with `panic = "abort"`, none of this
//! holds.

mod authenticator;
mod builder;
mod cache;
mod caught;
mod clock_check;
mod copies;
mod entry;
mod feed;
mod gcra;
mod health;
mod load;
mod network;
mod observe;
mod rejection;
mod standing;
mod terms;
mod usage;
mod watch;
mod worker;

pub use self::{
    authenticator::{Admission, Attempt, Authenticator, Lookup},
    builder::Builder,
    cache::{CachePolicy, InvalidCachePolicy},
    health::{FeedHealth, Health, StoreHealth},
    network::ClientNetwork,
    observe::{Event, Observer},
    rejection::{Rejection, RejectionKind},
    standing::Standing,
    worker::Worker,
};
pub(crate) use self::{
    authenticator::{AuthenticatorId, Charge},
    caught::{catch_pending_panic, catch_request_panic},
    standing::wait,
};
