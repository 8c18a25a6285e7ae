//! Layers that limit single routes, inside an [`ApiKeyLayer`](super::ApiKeyLayer): the cost of a
//! request, quotas for a class of routes, and concurrency.

mod concurrency;
mod concurrency_body;
mod cost;
mod in_flight;
mod metered;
mod rate_class;
mod refund;
mod rejected_request;
mod require_scope;

pub use self::{
    concurrency::{ConcurrencyLimit, ConcurrencyLimitFuture, ConcurrencyLimitService},
    concurrency_body::ConcurrencyLimitBody,
    cost::Cost,
    metered::{MeteredFuture, MeteredLayer, MeteredService},
    rate_class::RateClass,
    require_scope::{RequireScope, RequireScopeFuture, RequireScopeService},
};
