//! Webhooks: the events of the audit, posted to other services and signed.
//!
//! Each endpoint gets **every event at least once, in order, with an id that stays the same**. See
//! [the manual](crate::manual::webhooks) for the events, and for how a receiver verifies them. Feature
//! `webhooks`.
//!
//! 1. The audit is the queue. An endpoint is a row with a URL and a position; a change of a key and
//!    its event are one transaction, so neither is lost without the other.
//! 2. A position moves past an event after the receiver answered 2xx. Then comes the next one: events
//!    of an endpoint never overtake each other, and an event that cannot be delivered holds up those
//!    after it, at this endpoint alone.
//! 3. Failures are retried after 5 seconds, then after twice as long each time, up to a day. After 18
//!    in a row, about five days, the endpoint is parked; the answer 410 unsubscribes it. Both are
//!    logged and shown, and end with a [replay](Webhooks::replay).
//! 4. One node delivers, by a lease in the database. If it is gone, another one goes on when the lease
//!    ends.
//! 5. Only public addresses are connected to, over TLS, unless a network is
//!    [allowed](Webhooks::allow_network). Redirects are not followed.
//!
//! ```no_run
//! # #[cfg(feature = "postgres")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_api_key::{record::EventFilter, store::PgKeyStore, webhooks::Webhooks};
//!
//! let store = PgKeyStore::connect("postgres://localhost/app").await?;
//! let webhooks = Webhooks::new(store);
//!
//! let events = EventFilter::parse(["key.revoked", "key.expiring"])?;
//! let endpoint = webhooks.add("https://example.com/hooks", events).await?;
//! println!("for the receiver: {}", endpoint.secret.expose_secret());
//!
//! // On each node of the service. Only one of them delivers.
//! webhooks.worker().run(async { _ = tokio::signal::ctrl_c().await }).await;
//! # Ok(())
//! # }
//! ```
//!
//! For receivers within a company:
//!
//! ```no_run
//! # fn example(store: impl tower_api_key::store::port::WebhookStore) -> Result<(), Box<dyn std::error::Error>> {
//! use tower_api_key::webhooks::Webhooks;
//!
//! let webhooks = Webhooks::new(store)
//!     .allow_network("10.20.0.0/16".parse()?)
//!     .trust_certificates(&std::fs::read("/etc/ssl/company.pem")?)?;
//! # Ok(())
//! # }
//! ```
//!
//! In production, the trap is a receiver that works on an event before it answers: after 10 seconds
//! the request is given up, and the event comes again. A receiver stores the event, answers, and then
//! works.

mod address;
mod client;
mod delivery;
mod dyn_store;
mod error;
mod manager;
mod message;
mod metrics;
mod outcome;
mod schedule;
mod settings;
mod settled;
mod shared;
mod tail;
mod target;
mod worker;

pub use self::{
    error::{WebhookError, WebhookErrorKind},
    manager::{WebhookTest, Webhooks},
    tail::AuditTail,
    worker::WebhookWorker,
};
