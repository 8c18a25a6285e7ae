//! The decision: key bytes in, an [`Attempt`] out.
//!
//! [`Authenticator`] does not depend on HTTP. [`ApiKeyLayer`](crate::ApiKeyLayer) adapts it to
//! tower; a message broker, a socket server or a command line can use it directly:
//!
//! ```
//! # use std::time::SystemTime;
//! use tower_api_key::{
//!     Authenticator,
//!     auth::RejectionKind,
//!     key::KeyFormat,
//!     manage::{Expiry, NewKey},
//!     rate_limit::Quota,
//!     store::MemoryKeyStore,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = MemoryKeyStore::new();
//! let (auth, worker) = Authenticator::builder(store.clone(), KeyFormat::new("sk_live_")?)
//!     .default_rate_limits(Quota::per_minute(600)?)
//!     .build();
//! tokio::spawn(worker.run(std::future::pending()));
//!
//! let issuer = auth.issuer(store);
//! let issued = issuer.issue(NewKey::new("acme", Expiry::Never)).await?;
//! let admission = auth.check(issued.key.expose_secret().as_bytes()).await?;
//! assert_eq!(admission.consumer().id(), "acme");
//!
//! // `auth` applies at once what its issuer changes.
//! issuer.revoke(issued.record.id, None).await?;
//! let rejection = auth.check(issued.key.expose_secret().as_bytes()).await.unwrap_err();
//! assert_eq!(rejection.kind(), RejectionKind::Revoked);
//!
//! let rejection = auth.check(b"sk_live_nonsense").await.unwrap_err();
//! assert_eq!(rejection.kind(), RejectionKind::Malformed);
//! # Ok(())
//! # }
//! ```
//!
//! # Rules
//!
//! 1. Input that is not in an [accepted format](Builder::accept) is refused without a hash, an
//!    allocation or a query.
//! 2. A cached key is evaluated synchronously: expiry, revocation and rate limits are checked on
//!    every request from its cached record.
//! 3. Look-ups are single-flight: any number of requests for one uncached key share one query. It
//!    runs in its own task, so a client that disconnects does not cancel it.
//! 4. Identity fails closed: while the store does not answer, a key is refused as
//!    [`StoreUnavailable`](RejectionKind::StoreUnavailable), never as unknown, and the refusal is
//!    not cached. A key that is still in the cache is let in for a [bounded
//!    time](CachePolicy::stale_if_error).
//! 5. A change from the [change feed](Builder::change_feed) or from
//!    [`invalidate`](Authenticator::invalidate) wins over a query in progress: its result is not
//!    cached, and the requests waiting for it get the result of the next query.
//! 6. During a gap in the change feed, cached records are fresh for a [shorter
//!    time](CachePolicy::fresh_during_gap). After the gap, every cached record is confirmed by the
//!    store before it is trusted again.
//! 7. Refused keys are never charged.
//! 8. Look-ups of keys that this node does not know are limited: a [number of failed queries per
//!    second](CachePolicy::unknown_key_queries_per_second) and, if the client's [network](ClientNetwork) is
//!    [passed in](KeyCheck::from), a [number of failures per
//!    network](Builder::failure_limit). Cached keys are not affected. A small reserve is kept for
//!    rejected keys that are retried.
//!
//! How long a key revoked elsewhere can go on working, in numbers:
//! [freshness](crate::manual::freshness) in the manual.
//!
//! # Concurrency
//!
//! Cached keys are read without locks. Starting, finishing and invalidating loads share one short
//! lock, which requests for cached keys never wait for. Loads need a tokio runtime with its timer
//! enabled.
//!
//! # Panics in supplied code
//!
//! A panic in a [store](crate::store::KeyStore) or a [feed](crate::store::port::ChangeFeed) counts as a
//! failure of it. A panic in an [`Observer`] is caught and logged. A panic in a
//! [`Clock`](crate::clock::Clock) or a [`RateLimiter`](crate::rate_limit::RateLimiter) fails the
//! request it happens in: the request is refused as [`Internal`](RejectionKind::Internal), or,
//! during a look-up, as [`StoreUnavailable`](RejectionKind::StoreUnavailable). A duty of the
//! [`Worker`] that panics is restarted. With `panic = "abort"` none of this holds.

mod attempt;
mod authenticator;
mod authenticator_id;
mod builder;
mod cache;
mod canary;
mod catch_panic;
mod client;
mod clock_gap;
mod core;
#[cfg(feature = "test-util")]
mod for_tests;
mod health;
mod hour_total;
mod key_check;
mod key_log;
mod lookup;
mod metrics;
mod observe;
mod outcome;
mod panic_safe_observer;
mod rate_limit_status;
mod rejection;
mod rejection_kind;
mod throttle;
mod usage_totals;
mod use_reports;
mod worker;

pub(crate) use self::{
    attempt::Charge,
    authenticator_id::AuthenticatorId,
    catch_panic::{catch_pending_panic, catch_request_panic},
    client::{Address, Client},
    outcome::Outcome,
    rate_limit_status::wait,
};
pub use self::{
    attempt::{Admission, Attempt, PendingAttempt},
    authenticator::Authenticator,
    builder::Builder,
    cache::{CachePolicy, InvalidCachePolicy},
    health::{FeedHealth, Health, StoreHealth},
    key_check::{CheckFuture, KeyCheck},
    observe::{Event, LoadOutcome, Observer, VerificationOutcome},
    rate_limit_status::RateLimitStatus,
    rejection::Rejection,
    rejection_kind::RejectionKind,
    throttle::ClientNetwork,
    worker::Worker,
};
