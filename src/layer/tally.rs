use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use smallvec::SmallVec;

use crate::rate_limit::{Decision, Decisions};

/// In the extensions of a response: what the layers inside have done with quotas, for the
/// [`ApiKeyLayer`](super::ApiKeyLayer) around them to tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Units taken of each quota of the key, beyond the first.
    pub(super) units: u32,
    /// What it is to be after all, where the response has no [`Cost`](super::Cost).
    pub(super) wanted: Option<u32>,
    /// Where those stand, if anything was taken.
    pub(super) own: Option<Decisions>,
    /// Policies beside those of the key.
    pub(super) more: SmallVec<[(Arc<Policy>, Decision); 1]>,
}

impl Tally {
    pub(super) fn of(policy: Arc<Policy>, decision: Decision) -> Self {
        Self { more: SmallVec::from([(policy, decision)]), ..Self::default() }
    }

    /// Adds this to what a response says already.
    pub(super) fn write<B>(self, response: &mut Response<B>) {
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
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) name: Arc<str>,
    pub(super) item: Bytes,
    /// What `RateLimit` says of it, up to the number that is left.
    pub(super) state: Bytes,
    /// Whether units of it come back with time.
    pub(super) refills: bool,
}
