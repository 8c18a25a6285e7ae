//! Layers inside an [`ApiKeyLayer`](super::ApiKeyLayer), around the routes they are for: what costs
//! more, what has quotas of its own, and how much may be under way at once.

mod concurrency;
mod cost;
mod in_flight;
mod metered;
mod rate_class;

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use smallvec::SmallVec;

pub use self::{
    concurrency::{
        ConcurrencyLimit, ConcurrencyLimitBody, ConcurrencyLimitFuture, ConcurrencyLimitService,
    },
    cost::Cost,
    metered::{MeteredFuture, MeteredLayer, MeteredService},
    rate_class::RateClass,
};
use super::{Anonymous, headers::state_begin};
use crate::{
    auth::{Rejection, RejectionKind, Standing},
    rate_limit::{Decision, Decisions},
    record::Consumer,
};

/// In the extensions of a response: what the layers inside have done with quotas, for the
/// [`ApiKeyLayer`](super::ApiKeyLayer) around them to tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Units taken of each quota of the key, beyond the first.
    pub(super) units: u32,
    /// What it is to be after all, where the response has no [`Cost`].
    pub(super) wanted: Option<u32>,
    /// Where those stand, if anything was taken.
    pub(super) own: Option<Decisions>,
    /// Policies beside those of the key.
    pub(super) more: SmallVec<[(Policy, Decision); 1]>,
}

impl Tally {
    fn of(policy: Policy, decision: Decision) -> Self {
        Self { more: SmallVec::from([(policy, decision)]), ..Self::default() }
    }

    /// Adds this to what a response says already.
    fn write<B>(self, response: &mut http::Response<B>) {
        let extensions = response.extensions_mut();
        let inside = extensions.remove::<Self>().unwrap_or_default();
        extensions.insert(Self {
            units: self.units.saturating_add(inside.units),
            wanted: inside.wanted.or(self.wanted),
            own: inside.own.or(self.own),
            more: self.more.into_iter().chain(inside.more).collect(),
        });
    }
}

/// The name of a policy, and the item of `RateLimit-Policy` that it is.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) name: Arc<str>,
    pub(super) item: Bytes,
    /// What `RateLimit` says of it, up to the number that is left.
    pub(super) state: Bytes,
    /// Whether units of it come back with time.
    pub(super) refills: bool,
}

impl Policy {
    fn of_concurrent_requests(name: &str, limit: u32) -> Self {
        let item = format!("\"{name}\";q={limit};qu=\"concurrent-requests\"").into();
        Self { name: name.into(), item, state: state_begin(name), refills: false }
    }
}

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
