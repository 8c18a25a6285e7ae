use std::{
    fmt,
    sync::{Arc, Weak},
};

use super::core::Core;
use crate::record::{Consumer, Origin};

/// Distinguishes consumers of one authenticator from those of others. It does not keep the
/// authenticator alive.
#[derive(Clone)]
pub(crate) struct AuthenticatorId(Weak<Core>);

impl AuthenticatorId {
    pub(super) fn of(core: &Arc<Core>) -> Self {
        Self(Arc::downgrade(core))
    }

    pub(crate) fn made(&self, consumer: &Consumer) -> bool {
        consumer.origin() == Some(Origin::of(&self.0))
    }
}

impl fmt::Debug for AuthenticatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuthenticatorId").field(&Origin::of(&self.0)).finish()
    }
}
