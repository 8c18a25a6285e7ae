//! Which consumer in a request's extensions is trusted.

use std::sync::{Arc, OnceLock};

use http::{Extensions, HeaderName, header::AUTHORIZATION};

use super::credentials::Credentials;
use crate::{
    auth::{Authenticator, AuthenticatorId, RateLimitStatus, Rejection, RejectionKind},
    record::Consumer,
};

/// Marks, in its extensions, a request that the innermost layer let pass without a valid key, or
/// whatever its key is.
#[derive(Clone, Default)]
struct Lenient {
    /// The request has no consumer, and what requires one rejects it so: an
    /// [optional](crate::layer::ApiKeyLayer::optional) layer found no key, or a layer in shadow mode
    /// none that it would admit. It tells "no key was sent" from "no layer looked for one". A
    /// consumer beside this was put there by other code and is ignored.
    missing: Option<Rejection>,
    /// The layer is in [shadow mode](crate::layer::ApiKeyLayer::shadow).
    shadow: Option<WouldReject>,
}

/// Why a request would be rejected that passes in shadow mode: the first reason that a layer gives.
#[derive(Clone, Default)]
pub(in crate::layer) struct WouldReject(Arc<OnceLock<Rejection>>);

impl WouldReject {
    /// Notes a reason, unless there is one.
    pub(in crate::layer) fn note(&self, rejection: Rejection) {
        let _ = self.0.set(rejection);
    }

    pub(in crate::layer) fn rejection(&self) -> Option<&Rejection> {
        self.0.get()
    }
}

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
    extensions.remove::<Lenient>();
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
    extensions.insert(Lenient { missing: Some(missing), shadow: None });
}

/// Lets what is inside pass the request, and notes reasons to reject it in `would_reject`.
pub(in crate::layer) fn shadow(extensions: &mut Extensions, would_reject: WouldReject) {
    let lenient = extensions.get_or_insert_default::<Lenient>();
    lenient.shadow = Some(would_reject);
}

/// Where a reason to reject the request is noted, if the innermost layer is in shadow mode: then
/// the request passes.
pub(in crate::layer) fn shadowed(extensions: &Extensions) -> Option<&WouldReject> {
    extensions.get::<Lenient>()?.shadow.as_ref()
}

/// Whether a layer around this one, of another authenticator and not in shadow mode, admitted the
/// request.
pub(in crate::layer) fn is_admitted_by_another(
    extensions: &Extensions,
    auth: &Authenticator,
) -> bool {
    let caller = Trusted::default().caller(extensions).ok().flatten();
    shadowed(extensions).is_none() && caller.is_some_and(|consumer| !auth.id().made(consumer))
}

/// Whether a layer around this one put a consumer into the request.
pub(in crate::layer) fn has_consumer(extensions: &Extensions) -> bool {
    Trusted::default().caller(extensions).is_ok_and(|caller| caller.is_some())
}

/// The rejection of a request that was admitted without a key, where one is required.
pub(in crate::layer) fn missing(extensions: &Extensions) -> Rejection {
    let missing = extensions.get::<Lenient>().and_then(|lenient| lenient.missing.clone());
    missing.unwrap_or(Rejection::new(RejectionKind::Missing))
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

/// The consumer that an outer layer of `auth` admitted. One in shadow mode admits nothing: it lets
/// pass a key beyond its quota as well.
pub(in crate::layer) fn admitted<'a>(
    extensions: &'a Extensions,
    auth: &Authenticator,
) -> Option<&'a Consumer> {
    if shadowed(extensions).is_some() {
        return None;
    }
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
    has_consumer(extensions)
        && credentials.headers().any(|header| header == noted_header(extensions))
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
        if extensions.get::<Lenient>().is_some_and(|lenient| lenient.missing.is_some()) {
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
