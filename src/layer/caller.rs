//! Which consumer of a request counts.

use http::Extensions;

use crate::{
    auth::{AuthenticatorId, RejectionKind, Standing},
    record::Consumer,
};

/// In the extensions of a request that was let through without a key, as
/// [`optional`](super::ApiKeyLayer::optional) allows: it tells "no key was sent" from "no layer
/// looked for one". What is found beside it was put there by other code and does not count.
#[derive(Clone, Copy)]
struct Anonymous;

/// Replaces what a layer further out has found.
pub(super) fn admit(
    extensions: &mut Extensions,
    consumer: &Consumer,
    uncharged: Option<&Standing>,
) {
    extensions.insert(consumer.clone());
    extensions.remove::<Anonymous>();
    match uncharged {
        Some(standing) => {
            extensions.insert(standing.clone());
        }
        None => {
            extensions.remove::<Standing>();
        }
    }
}

/// Removes what a layer further out has found.
pub(super) fn admit_anonymous(extensions: &mut Extensions) {
    extensions.remove::<Consumer>();
    extensions.remove::<Standing>();
    extensions.insert(Anonymous);
}

/// Which consumers a layer trusts: those of any authenticator, or of one.
#[derive(Clone, Debug, Default)]
pub(super) struct Trusted(Option<AuthenticatorId>);

impl Trusted {
    pub(super) fn only(authenticator: AuthenticatorId) -> Self {
        Self(Some(authenticator))
    }

    /// `None` for a request that needs no key.
    pub(super) fn caller<'a>(
        &self,
        extensions: &'a Extensions,
    ) -> Result<Option<&'a Consumer>, RejectionKind> {
        if extensions.get::<Anonymous>().is_some() {
            return Ok(None);
        }
        let is_trusted = |consumer: &&Consumer| match &self.0 {
            Some(authenticator) => authenticator.made(consumer),
            None => consumer.origin().is_some(),
        };
        let consumer = extensions.get::<Consumer>().filter(is_trusted);
        consumer.map(Some).ok_or(RejectionKind::LayerMissing)
    }

    /// As [`caller`](Self::caller); `None` too where the [layer
    /// around](super::ApiKeyLayer::charge) does not charge.
    pub(super) fn charged_caller<'a>(
        &self,
        extensions: &'a Extensions,
    ) -> Result<Option<&'a Consumer>, RejectionKind> {
        let is_charged = extensions.get::<Standing>().is_none();
        self.caller(extensions).map(|caller| caller.filter(|_| is_charged))
    }
}
