//! Which consumer in a request's extensions is trusted.

use http::Extensions;

use crate::{
    auth::{AuthenticatorId, RateLimitStatus, RejectionKind},
    record::Consumer,
};

/// Marks, in its extensions, a request admitted without a key (see
/// [`optional`](crate::layer::ApiKeyLayer::optional)): it tells "no key was sent" from "no layer
/// looked for one". A consumer beside this marker was put there by other code and is ignored.
#[derive(Clone, Copy)]
struct Anonymous;

/// Replaces the consumer of an outer layer.
pub(in crate::layer) fn admit(
    extensions: &mut Extensions,
    consumer: &Consumer,
    uncharged: Option<&RateLimitStatus>,
) {
    extensions.insert(consumer.clone());
    extensions.remove::<Anonymous>();
    match uncharged {
        Some(rate_limit_status) => {
            extensions.insert(rate_limit_status.clone());
        }
        None => {
            extensions.remove::<RateLimitStatus>();
        }
    }
}

/// Removes the consumer of an outer layer.
pub(in crate::layer) fn admit_anonymous(extensions: &mut Extensions) {
    extensions.remove::<Consumer>();
    extensions.remove::<RateLimitStatus>();
    extensions.insert(Anonymous);
}

/// Which consumers a layer trusts: those of any authenticator, or of a single one.
#[derive(Clone, Debug, Default)]
pub(in crate::layer) struct Trusted(Option<AuthenticatorId>);

impl Trusted {
    pub(in crate::layer) fn only(authenticator: AuthenticatorId) -> Self {
        Self(Some(authenticator))
    }

    /// The trusted consumer; `None` for a request admitted without a key.
    pub(in crate::layer) fn caller<'a>(
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

    /// As [`caller`](Self::caller); also `None` if the [outer
    /// layer](crate::layer::ApiKeyLayer::danger_without_charge) does not charge.
    pub(in crate::layer) fn charged_caller<'a>(
        &self,
        extensions: &'a Extensions,
    ) -> Result<Option<&'a Consumer>, RejectionKind> {
        let is_charged = extensions.get::<RateLimitStatus>().is_none();
        self.caller(extensions).map(|caller| caller.filter(|_| is_charged))
    }
}
