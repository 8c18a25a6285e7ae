//! Which consumer in a request's extensions is trusted.

use http::{Extensions, HeaderName, header::AUTHORIZATION};

use super::credentials::Credentials;
use crate::{
    auth::{Authenticator, AuthenticatorId, RateLimitStatus, Rejection, RejectionKind},
    record::Consumer,
};

/// Marks, in its extensions, a request admitted without a key (see
/// [`optional`](crate::layer::ApiKeyLayer::optional)): it tells "no key was sent" from "no layer
/// looked for one". A consumer beside this marker was put there by other code and is ignored.
///
/// Holds the rejection for what requires a key behind the optional layer.
#[derive(Clone)]
struct Anonymous(Rejection);

/// Marks, in its extensions, a request whose key was in a header other than `Authorization`.
#[derive(Clone)]
struct KeyHeader(HeaderName);

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

/// Removes the consumer of an outer layer. What requires a key rejects the request as `missing`.
pub(in crate::layer) fn admit_anonymous(extensions: &mut Extensions, missing: Rejection) {
    extensions.remove::<Consumer>();
    extensions.remove::<RateLimitStatus>();
    extensions.insert(Anonymous(missing));
}

/// The rejection of a request that was admitted without a key, where one is required.
pub(in crate::layer) fn missing(extensions: &Extensions) -> Rejection {
    let anonymous = extensions.get::<Anonymous>();
    anonymous.map_or(Rejection::new(RejectionKind::Missing), |Anonymous(missing)| missing.clone())
}

/// Notes, for inner layers, which header the key was in.
pub(in crate::layer) fn note_header(extensions: &mut Extensions, header: &HeaderName) {
    if header != AUTHORIZATION {
        extensions.insert(KeyHeader(header.clone()));
    } else {
        extensions.remove::<KeyHeader>();
    }
}

pub(super) fn noted_header(extensions: &Extensions) -> &HeaderName {
    extensions.get().map_or(&AUTHORIZATION, |KeyHeader(header)| header)
}

/// The consumer that an outer layer of `auth` admitted.
pub(in crate::layer) fn admitted<'a>(
    extensions: &'a Extensions,
    auth: &Authenticator,
) -> Option<&'a Consumer> {
    Trusted::only(auth.id()).caller(extensions).ok().flatten()
}

/// The consumer that an outer layer of `auth` admitted by the key that it left in `header`.
pub(in crate::layer) fn kept_by_outer_layer<'a>(
    extensions: &'a Extensions,
    header: &HeaderName,
    auth: &Authenticator,
) -> Option<&'a Consumer> {
    admitted(extensions, auth).filter(|_| noted_header(extensions) == header)
}

/// Whether an outer layer admitted the request by a key from one of the headers of `credentials`.
pub(in crate::layer) fn is_taken(extensions: &Extensions, credentials: &Credentials) -> bool {
    let is_admitted = Trusted::default().caller(extensions).is_ok_and(|caller| caller.is_some());
    is_admitted && credentials.headers().any(|header| header == noted_header(extensions))
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
