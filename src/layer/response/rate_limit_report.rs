use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use smallvec::SmallVec;

use crate::rate_limit::{
    Decision,
    port::{Check, Decisions},
};

/// What inner layers took from quotas, in a response's extensions. The outer
/// [`ApiKeyLayer`](crate::layer::ApiKeyLayer) reports it in the headers.
#[derive(Clone, Debug, Default)]
pub(in crate::layer) struct RateLimitReport {
    /// Units taken from each quota of the key, beyond the first.
    pub(in crate::layer) units: u32,
    /// The actual cost, if the response has no [`Cost`](crate::layer::Cost).
    pub(in crate::layer) wanted: Option<u32>,
    /// The state of those quotas, if anything was taken.
    pub(in crate::layer) own: Option<Decisions>,
    /// Policies other than the key's own.
    pub(in crate::layer) more: OtherPolicies,
}

impl RateLimitReport {
    pub(in crate::layer) fn of(policy: Arc<Policy>, decision: Decision) -> Self {
        Self { more: SmallVec::from([(policy, decision)]), ..Self::default() }
    }

    /// The report after everything was refunded; `state` is the state of the quotas since then. A
    /// pending state is left out of the report.
    pub(in crate::layer) fn refunded(self, state: Option<Check>) -> Self {
        let more = match state {
            Some(Check::Ready(decisions)) => {
                let policies = self.more.into_iter().map(|(policy, _)| policy);
                policies.zip(decisions.iter().copied()).collect()
            }
            _ => SmallVec::new(),
        };
        Self { units: 0, own: None, more, ..self }
    }

    /// Merges this with the report that the response already carries.
    pub(in crate::layer) fn write<B>(self, response: &mut Response<B>) {
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

/// The state of policies other than the key's own.
pub(in crate::layer) type OtherPolicies = SmallVec<[(Arc<Policy>, Decision); 1]>;

/// A policy's name, and its items in the headers.
#[derive(Debug)]
pub(in crate::layer) struct Policy {
    pub(in crate::layer) name: Arc<str>,
    /// Its item in `RateLimit-Policy`.
    pub(in crate::layer) item: Bytes,
    /// Its item in `RateLimit`, up to the number of remaining units.
    pub(in crate::layer) state: Bytes,
    /// Whether its units refill with time.
    pub(in crate::layer) refills: bool,
}
