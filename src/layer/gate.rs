use std::{fmt, sync::Arc};

use http::{
    Method, Request, Response,
    header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN},
};

use super::{
    ClientAddress, RateLimitHeaders, RejectionResponse, caller,
    credentials::{Ambiguous, Credentials, is_b64token},
    headers::{vary_by, write_retirement},
    limits::Cost,
    response::{Challenges, complete},
    tally::{Policy, Tally},
};
use crate::{
    auth::{
        Admission, Attempt, Authenticator, Charge, Rejection, RejectionKind, Standing,
        catch_request_panic,
    },
    rate_limit::Decision,
};

/// The layer's settings and its renderer, shared by all of its services.
#[derive(Clone)]
pub(super) struct Gate<R> {
    pub(super) settings: Settings,
    pub(super) renderer: R,
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) auth: Authenticator,
    pub(super) challenges: Challenges,
    pub(super) credentials: Credentials,
    pub(super) optional: bool,
    pub(super) keep_credential: bool,
    pub(super) pass_preflight: bool,
    pub(super) charge: bool,
    pub(super) rate_limit_headers: RateLimitHeaders,
    pub(super) client_address: Option<ClientAddress>,
}

impl<R> Gate<R> {
    pub(super) fn reject<B>(&self, rejection: &Rejection) -> Response<B>
    where
        R: RejectionResponse<B>,
    {
        let mut response = complete(self.renderer.response(rejection), rejection.clone());
        if let Some(standing) = rejection.standing() {
            self.settings.tell_standing(&mut response, standing, &[]);
        }
        self.settings.answer_for(&mut response, rejection);
        self.settings.vary(&mut response);
        response
    }
}

impl<R> fmt::Debug for Gate<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Settings {
    /// Checks the key of a request and removes it from there; `None` for a request that may pass
    /// without a key.
    pub(super) fn attempt<B>(&self, request: &mut Request<B>) -> Option<Attempt> {
        let carries = |name| request.headers().contains_key(name);
        if self.pass_preflight && is_preflight(request) && !self.credentials.headers().any(carries)
        {
            return None;
        }
        let found = match self.credentials.find(request.headers()) {
            Ok(Some(found)) => found,
            Ok(None) if self.optional => return None,
            Ok(None) => return Some(Attempt::Reject(Rejection::new(RejectionKind::Missing))),
            Err(Ambiguous) => {
                return Some(Attempt::Reject(Rejection::new(RejectionKind::InvalidRequest)));
            }
        };
        let charge = if self.charge { Charge::One } else { Charge::Nothing };
        let network = || self.client_address?.network(request.headers(), request.extensions());
        let mut attempt = self.auth.judge(found.key, charge, network);
        // Only for malformed keys: a well-formed key is always a `b64token`.
        if let Attempt::Reject(rejection) = &attempt
            && rejection.kind() == RejectionKind::Malformed
            && !is_b64token(found.key)
        {
            attempt = Attempt::Reject(Rejection::new(RejectionKind::InvalidRequest));
        }
        let header = found.header;
        if !self.keep_credential {
            request.headers_mut().remove(header);
        } else if let Some(value) = request.headers_mut().get_mut(header) {
            value.set_sensitive(true);
        }
        Some(attempt)
    }

    /// Puts the consumer into the request's extensions.
    pub(super) fn introduce<B>(&self, request: &mut Request<B>, admission: &Admission) {
        let uncharged = (!self.charge).then(|| admission.standing());
        caller::admit(request.extensions_mut(), admission.consumer(), uncharged);
    }

    /// Adds the layer's headers to a response of the inner service.
    pub(super) fn finish<B>(&self, response: &mut Response<B>, admission: Option<&Admission>) {
        let standing = admission.map(Admission::standing);
        if response.extensions().is_empty() {
            // The usual case: no inner layer reports quotas, a cost or a rejection.
            if let Some(standing) = standing {
                self.tell_standing(response, standing, &[]);
            }
        } else {
            if let Some(standing) = standing {
                self.settle(response, standing);
            }
            // `RequireScope` and the extractor reject requests too, but do not know the realm.
            if let Some(rejection) = response.extensions().get::<Rejection>().cloned() {
                self.answer_for(response, &rejection);
            }
        }
        self.vary(response);
    }

    /// Charges or refunds the difference to the actual cost, then writes the headers, including the
    /// policies of inner layers.
    fn settle<B>(&self, response: &mut Response<B>, standing: &Standing) {
        // If the limiter panics, the units are not charged and the handler's response stands.
        let _ = catch_request_panic(|| self.settle_or_panic(response, standing));
    }

    fn settle_or_panic<B>(&self, response: &mut Response<B>, standing: &Standing) {
        let Tally { units, wanted, own, more } =
            response.extensions_mut().remove().unwrap_or_default();
        let taken = units.saturating_add(1);
        let rejection = response.extensions().get::<Rejection>();
        let is_limited = rejection.is_some_and(|r| r.kind() == RejectionKind::RateLimited);
        let wanted = match response.extensions().get::<Cost>() {
            // A request rejected by one quota takes from none.
            _ if is_limited => 0,
            Some(cost) => cost.units(),
            None => wanted.unwrap_or(taken),
        };
        let standing = match own {
            Some(own) => standing.after(own),
            None => standing.clone(),
        };
        let standing = if self.charge { standing.settle(taken, wanted) } else { standing };
        self.tell_standing(response, &standing, &more);
    }

    fn tell_standing<B>(
        &self,
        response: &mut Response<B>,
        standing: &Standing,
        more: &[(Arc<Policy>, Decision)],
    ) {
        if let Some(retirement) = standing.retirement() {
            write_retirement(response.headers_mut(), retirement);
        }
        let wall = || self.auth.wall();
        // If the clock panics, only the headers are missing.
        let _ = catch_request_panic(|| {
            self.rate_limit_headers.write(response.headers_mut(), standing, more, wall);
        });
    }

    /// Observes a rejection and adds its challenge, once: an inner `ApiKeyLayer` may have done so.
    fn answer_for<B>(&self, response: &mut Response<B>, rejection: &Rejection) {
        if response.extensions_mut().insert(Answered).is_some() {
            return;
        }
        self.auth.rejected(rejection);
        self.challenges.add(response.headers_mut(), rejection);
    }

    fn vary<B>(&self, response: &mut Response<B>) {
        for name in self.credentials.headers() {
            vary_by(response.headers_mut(), name);
        }
    }
}

/// Marks, in its extensions, a response whose rejection was observed and has its challenge.
#[derive(Clone, Copy)]
struct Answered;

/// <https://fetch.spec.whatwg.org/#cors-preflight-request>
fn is_preflight<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}
