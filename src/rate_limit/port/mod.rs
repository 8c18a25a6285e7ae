//! The port of rate limiters, for authors of one.
//!
//! A limiter implements [`RateLimiter`](super::RateLimiter), which creates [`Buckets`] for a
//! [`Subject`]. Services need none of this: they choose a limiter and set
//! [quotas](super::Quota).
//!
//! The rules are with the methods; the most important ones are:
//!
//! 1. A bucket is identified by its subject, not by its quotas, and outlives the cached record of
//!    its key.
//! 2. A request takes from all quotas or from none.
//! 3. In any window, the units taken less those refunded are at most
//!    [`most_in`](super::Quota::most_in).
//!
//! They are [a suite of tests](crate::manual::testing#a-store-a-limiter-or-a-feed-of-your-own), which
//! runs in the crate that implements a limiter.

mod buckets;
mod decisions;
pub(super) mod rate_limiter;
mod subject;

pub use self::{
    buckets::{Buckets, Check},
    decisions::Decisions,
    subject::Subject,
};
