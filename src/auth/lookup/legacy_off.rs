//! Without the feature `legacy-hashes`, no authenticator verifies them.

use std::{sync::Arc, time::Duration};

use super::fetch::Fetched;
use crate::{
    auth::{Rejection, core::Core, throttle::LookupClass},
    key::{AcceptedFormat, KeyHash},
};

pub(in crate::auth) enum Legacy {}

pub(in crate::auth) enum Presented {}

impl Legacy {
    pub(in crate::auth) const fn patience(&self) -> Duration {
        match *self {}
    }

    pub(in crate::auth) fn presented(
        &self,
        _: &[AcceptedFormat],
        _: &[u8],
    ) -> Option<Arc<Presented>> {
        match *self {}
    }

    pub(in crate::auth) fn may_have_grown(&self) {
        match *self {}
    }

    pub(in crate::auth) async fn count(&self, _: Duration) {
        match *self {}
    }

    #[cfg(feature = "metrics")]
    pub(in crate::auth) fn left(&self) -> Option<u64> {
        match *self {}
    }
}

impl Core {
    pub(in crate::auth::lookup) async fn fetch_legacy(
        self: &Arc<Self>,
        presented: Arc<Presented>,
        _: &KeyHash,
        _: LookupClass,
    ) -> Result<Option<Fetched>, Rejection> {
        match *presented {}
    }
}
