//! Layers inside an [`ApiKeyLayer`](super::ApiKeyLayer), around the routes they are for: what costs
//! more, what has quotas of its own, and how much may be under way at once.

mod concurrency;
mod cost;
mod in_flight;
mod metered;
mod rate_class;

pub use self::{
    concurrency::{
        ConcurrencyLimit, ConcurrencyLimitBody, ConcurrencyLimitFuture, ConcurrencyLimitService,
    },
    cost::Cost,
    metered::{MeteredFuture, MeteredLayer, MeteredService},
    rate_class::RateClass,
};
