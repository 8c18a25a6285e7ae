//! Which consumer in a request's extensions is trusted.

use http::Extensions;

use crate::{
    auth::{AuthenticatorId, RejectionKind, Standing},
    record::Consumer,
};

/// Marks, in its extensions, a request admitted without a key (see
/// [`optional`](super::ApiKeyLayer::optional)): it tells "no key was sent" from "no layer looked
/// for one". A consumer beside this marker was put there by other code and is ignored.
#[derive(Clone, Copy)]
struct Anonymous;

/// Replaces the consumer of an outer layer.
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

/// Removes the consumer of an outer layer.
pub(super) fn admit_anonymous(extensions: &mut Extensions) {
    extensions.remove::<Consumer>();
    extensions.remove::<Standing>();
    extensions.insert(Anonymous);
}

/// Which consumers a layer trusts: those of any authenticator, or of a single one.
#[derive(Clone, Debug, Default)]
pub(super) struct Trusted(Option<AuthenticatorId>);

impl Trusted {
    pub(super) fn only(authenticator: AuthenticatorId) -> Self {
        Self(Some(authenticator))
    }

    /// The trusted consumer; `None` for a request admitted without a key.
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

    /// As [`caller`](Self::caller); also `None` if the [outer layer](super::ApiKeyLayer::charge)
    /// does not charge.
    pub(super) fn charged_caller<'a>(
        &self,
        extensions: &'a Extensions,
    ) -> Result<Option<&'a Consumer>, RejectionKind> {
        let is_charged = extensions.get::<Standing>().is_none();
        self.caller(extensions).map(|caller| caller.filter(|_| is_charged))
    }
}
