//! Layers inside an [`ApiKeyLayer`](super::ApiKeyLayer), around the routes they are for: what costs
//! more, what has quotas of its own, and how much may be under way at once.

mod concurrency;
mod cost;
mod in_flight;
mod metered;
mod rate_class;

use http::Request;

pub use self::{
    concurrency::{
        ConcurrencyLimit, ConcurrencyLimitBody, ConcurrencyLimitFuture, ConcurrencyLimitService,
    },
    cost::Cost,
    metered::{MeteredFuture, MeteredLayer, MeteredService},
    rate_class::RateClass,
};
use super::Anonymous;
use crate::{
    auth::{Rejection, RejectionKind, Standing},
    record::Consumer,
};

/// Who asks, and whether it is to be charged for; `None` for a request that needs no key.
fn caller<B>(request: &Request<B>) -> Result<Option<&Consumer>, Rejection> {
    match request.extensions().get::<Consumer>() {
        Some(consumer) => Ok(Some(consumer)),
        None if request.extensions().get::<Anonymous>().is_some() => Ok(None),
        None => Err(Rejection::new(RejectionKind::LayerMissing)),
    }
}

/// As [`caller`]; `None` too where the [layer around](super::ApiKeyLayer::charge) does not charge.
fn payer<B>(request: &Request<B>) -> Result<Option<&Consumer>, Rejection> {
    let is_charged = request.extensions().get::<Standing>().is_none();
    caller(request).map(|caller| caller.filter(|_| is_charged))
}
