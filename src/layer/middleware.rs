use std::{fmt, net::IpAddr, sync::Arc};

use http::{
    HeaderName, Request, Response,
    header::{ORIGIN, USER_AGENT, WWW_AUTHENTICATE},
};

use super::{
    ClientAddress, RateLimitHeaders, RejectionResponse,
    advised_rejections::AdvisedRejections,
    limits::Cost,
    request::{
        Mistake, UserName, caller,
        credentials::{self, Credentials, Found},
        find_misplaced, is_preflight, parts_without_keys,
    },
    response::{
        Challenges, OtherPolicies, Policy, RateLimitReport, grpc,
        headers::{vary_by, write_expiry, write_retirement},
        respond,
    },
    span::{record_admission, record_outcome},
};
use crate::{
    auth::{
        Address, Admission, Attempt, Authenticator, Charge, Client, ClientNetwork, Outcome,
        RateLimitStatus, Rejection, RejectionKind, catch_request_panic,
    },
    rate_limit::Decision,
    record::Consumer,
};

/// The layer's settings and its renderer, shared by all of its services.
#[derive(Clone)]
pub(super) struct Middleware<R> {
    pub(super) config: Config,
    pub(super) renderer: R,
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) auth: Authenticator,
    pub(super) challenges: Challenges,
    pub(super) credentials: Credentials,
    pub(super) advised: AdvisedRejections,
    pub(super) optional: bool,
    pub(super) keep_credential: bool,
    pub(super) pass_preflight: bool,
    pub(super) charge: bool,
    pub(super) rate_limit_headers: RateLimitHeaders,
    pub(super) client_address: Option<ClientAddress>,
    pub(super) throttle_failures: bool,
    pub(super) expiry_header: bool,
    pub(super) shadow: Shadow,
}

/// Shadow mode: requests pass, whatever is decided.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shadow {
    pub(super) is_on: bool,
    /// Whether requests are charged in shadow mode.
    pub(super) charge: bool,
    /// Whether a response header tells the decision.
    pub(super) header: bool,
}

/// What the layer knows of the client of a request.
struct Sender<'a, B> {
    config: &'a Config,
    request: &'a Request<B>,
}

impl<B> Sender<'_, B> {
    /// `None` if the layer is not told where to find addresses.
    fn told_address(&self) -> Option<Option<IpAddr>> {
        let source = self.config.client_address?;
        Some(source.address(self.request.headers(), self.request.extensions()))
    }
}

impl<B> Client for Sender<'_, B> {
    fn network(&self) -> Option<ClientNetwork> {
        if !self.config.throttle_failures {
            return None;
        }
        self.told_address().flatten().map(ClientNetwork::from)
    }

    fn address(&self) -> Address {
        match self.told_address() {
            None => Address::NotTold,
            Some(None) => Address::Unknown,
            Some(Some(address)) => Address::Known(address),
        }
    }

    fn origin(&self) -> Option<&[u8]> {
        let mut origins = self.request.headers().get_all(ORIGIN).iter();
        let origin = origins.next()?;
        origins.next().is_none().then(|| origin.as_bytes())
    }

    fn user_agent(&self) -> Option<&[u8]> {
        Some(self.request.headers().get(USER_AGENT)?.as_bytes())
    }
}

/// What a layer does with a request.
pub(super) enum Verdict {
    /// The request has a key.
    Attempt(Attempt),
    /// An outer layer of the same authenticator has admitted the request, which is not reported
    /// again.
    Readmission(Attempt),
    /// The request passes without a key.
    Anonymous,
    /// An outer layer of the same authenticator has admitted and charged the request.
    AlreadyAdmitted,
}

impl<R> Middleware<R> {
    pub(super) fn reject<B, Q>(&self, rejection: &Rejection, request: Request<Q>) -> Response<B>
    where
        R: RejectionResponse<B>,
    {
        let Config { credentials, auth, .. } = &self.config;
        let request = parts_without_keys(request, credentials, auth);
        let mut response = respond(&self.renderer, rejection.clone(), &request);
        if let Some(rate_limit_status) = rejection.rate_limit_status() {
            self.config.write_rate_limit_headers(&mut response, rate_limit_status, &[]);
        }
        if rejection.kind() == RejectionKind::OriginNotAllowed {
            vary_by(response.headers_mut(), &ORIGIN);
        }
        self.config.observe_and_challenge(&mut response, rejection);
        self.config.vary(&mut response);
        response
    }
}

impl<R> fmt::Debug for Middleware<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Middleware").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Config {
    /// Checks the key of a request and removes it from there.
    pub(super) fn attempt<B>(&self, request: &mut Request<B>) -> Verdict {
        let carries = |name| request.headers().contains_key(name);
        if self.pass_preflight && is_preflight(request) && !self.credentials.headers().any(carries)
        {
            return Verdict::Anonymous;
        }
        let is_key = |text: &[u8]| self.auth.recognizes(text);
        let found = match self.credentials.find(request, is_key) {
            Ok(Some(found)) => found,
            Ok(None) => return self.without_credentials(request),
            Err(mistake) => return self.advise(mistake, None),
        };
        let header = found.header;
        let verdict = if found.is_sensitive
            && let Some(consumer) =
                caller::kept_by_outer_layer(request.extensions(), header, &self.auth)
        {
            self.readmit(consumer.clone())
        } else {
            self.evaluate(found, request)
        };
        caller::note_header(request.extensions_mut(), header);
        if !self.keep_credential && !self.shadow.is_on {
            credentials::remove_key(request.headers_mut(), header);
        } else {
            credentials::mark_sensitive(request.headers_mut(), header);
        }
        verdict
    }

    fn evaluate<B>(&self, found: Found<'_, '_>, request: &Request<B>) -> Verdict {
        if found.is_basic {
            return self.evaluate_user_name(found, request);
        }
        let charge = if self.charges() { Charge::One } else { Charge::Nothing };
        let attempt = self.auth.evaluate(found.key, charge, &Sender { config: self, request });
        // Only a malformed key can be a mistake that the client should learn of.
        if let Attempt::Reject(rejection) = &attempt
            && rejection.kind() == RejectionKind::Malformed
        {
            match self.credentials.mistake_in(&found, &self.auth) {
                None => {}
                Some(mistake @ Mistake::JsonWebToken) => return self.advise(mistake, None),
                Some(mistake) => return self.advise(mistake, Some(found.header)),
            }
        }
        Verdict::Attempt(attempt)
    }

    #[cold]
    fn evaluate_user_name<B>(&self, found: Found<'_, '_>, request: &Request<B>) -> Verdict {
        match UserName::of(found.key) {
            Some(user) => {
                self.evaluate(Found { key: user.as_bytes(), is_basic: false, ..found }, request)
            }
            None => self.advise(Mistake::UserName, Some(found.header)),
        }
    }

    fn without_credentials<B>(&self, request: &Request<B>) -> Verdict {
        if let Some(consumer) = caller::admitted(request.extensions(), &self.auth) {
            return self.readmit(consumer.clone());
        }
        if let Some(mistake) = find_misplaced(request, &self.credentials, &self.auth) {
            return self.advise(mistake, None);
        }
        if self.optional {
            return Verdict::Anonymous;
        }
        let rejection = if caller::is_taken(request.extensions(), &self.credentials) {
            Rejection::new(RejectionKind::ForeignLayer)
        } else {
            self.credentials.missing().clone()
        };
        Verdict::Attempt(Attempt::Reject(rejection))
    }

    /// Whether requests are charged.
    fn charges(&self) -> bool {
        self.charge && (!self.shadow.is_on || self.shadow.charge)
    }

    fn readmit(&self, consumer: Consumer) -> Verdict {
        if self.charges() {
            Verdict::AlreadyAdmitted
        } else {
            Verdict::Readmission(self.auth.readmit(consumer))
        }
    }

    fn advise(&self, mistake: Mistake, header: Option<&HeaderName>) -> Verdict {
        let (credentials, challenges) = (&self.credentials, &self.challenges);
        let rejection = self.advised.rejection(mistake, header, credentials, challenges);
        Verdict::Attempt(Attempt::Reject(rejection))
    }

    /// Puts the consumer into the request's extensions.
    pub(super) fn attach_consumer<B>(&self, request: &mut Request<B>, admission: &Admission) {
        record_admission(admission);
        let uncharged = (!self.charges()).then(|| admission.rate_limit_status());
        caller::admit(request.extensions_mut(), admission.consumer(), uncharged);
    }

    /// Adds the layer's headers to a response of the inner service, and reports the request unless
    /// that `is_reported`.
    pub(super) fn finish<B>(
        &self,
        response: &mut Response<B>,
        admission: Option<&Admission>,
        is_reported: bool,
    ) {
        let rate_limit_status = admission.map(Admission::rate_limit_status);
        let mut is_rejected = false;
        if response.extensions().is_empty() {
            // The usual case: no inner layer reports quotas, a cost or a rejection.
            if let Some(rate_limit_status) = rate_limit_status {
                self.write_rate_limit_headers(response, rate_limit_status, &[]);
            }
        } else {
            if let Some(rate_limit_status) = rate_limit_status {
                self.settle(response, rate_limit_status);
            }
            // `RequireScope` and the extractor reject requests too, but do not know the realm.
            let rejection = response.extensions().get::<Rejection>();
            let rejection = rejection.or_else(|| grpc::rejection(response.extensions()));
            if let Some(rejection) = rejection.cloned() {
                is_rejected = true;
                if let Some(status) = rate_limit_status.filter(|_| !is_reported) {
                    rejection.count_admitted(status.consumer());
                }
                self.observe_and_challenge(response, &rejection);
            }
        }
        if let Some(rate_limit_status) = rate_limit_status.filter(|_| !is_reported && !is_rejected)
        {
            record_outcome(Outcome::Admitted);
            self.auth.admitted(rate_limit_status);
        }
        self.vary(response);
    }

    /// Charges or refunds the difference to the actual cost, then writes the headers, including the
    /// policies of inner layers.
    fn settle<B>(&self, response: &mut Response<B>, rate_limit_status: &RateLimitStatus) {
        // If the limiter panics, the units are not charged and the handler's response stands.
        let _ = catch_request_panic(|| self.settle_or_panic(response, rate_limit_status));
    }

    fn settle_or_panic<B>(&self, response: &mut Response<B>, rate_limit_status: &RateLimitStatus) {
        let (rate_limit_status, more) = self.reconcile(response, rate_limit_status);
        self.write_rate_limit_headers(response, &rate_limit_status, &more);
    }

    /// Charges or refunds the difference to the actual cost. The new status, and the policies of
    /// inner layers.
    pub(super) fn reconcile<B>(
        &self,
        response: &mut Response<B>,
        rate_limit_status: &RateLimitStatus,
    ) -> (RateLimitStatus, OtherPolicies) {
        let RateLimitReport { units, wanted, own, more } =
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
        let rate_limit_status = match own {
            Some(own) => rate_limit_status.after(own),
            None => rate_limit_status.clone(),
        };
        let rate_limit_status = if self.charges() {
            let change = i64::from(wanted) - i64::from(taken);
            rate_limit_status.consumer().count_units(change);
            rate_limit_status.settle(taken, wanted)
        } else {
            rate_limit_status
        };
        (rate_limit_status, more)
    }

    fn write_rate_limit_headers<B>(
        &self,
        response: &mut Response<B>,
        rate_limit_status: &RateLimitStatus,
        more: &[(Arc<Policy>, Decision)],
    ) {
        if let Some(retirement) = rate_limit_status.retirement() {
            write_retirement(response.headers_mut(), retirement);
        }
        if !rate_limit_status.notice.is_none() {
            self.write_notice(response, rate_limit_status);
        }
        let wall = || self.auth.wall();
        // If the clock panics, only the headers are missing.
        let _ = catch_request_panic(|| {
            self.rate_limit_headers.write(response.headers_mut(), rate_limit_status, more, wall);
        });
    }

    #[cold]
    fn write_notice<B>(&self, response: &mut Response<B>, status: &RateLimitStatus) {
        if status.notice.is_publishable {
            vary_by(response.headers_mut(), &ORIGIN);
        }
        if status.notice.expires_soon
            && self.expiry_header
            && let Some(expiry) = status.consumer().expiry()
        {
            write_expiry(response.headers_mut(), expiry);
        }
    }

    /// Observes a rejection and adds its challenge, which gRPC has no use for, once: an inner
    /// `ApiKeyLayer` may have done so.
    pub(super) fn observe_and_challenge<B>(
        &self,
        response: &mut Response<B>,
        rejection: &Rejection,
    ) {
        if response.extensions_mut().insert(Answered).is_some() {
            return;
        }
        record_outcome(Outcome::of(rejection.kind()));
        self.auth.rejected(rejection);
        if grpc::content_type(response.headers()).is_some() {
            return;
        }
        let known = self.advised.challenge(rejection).cloned();
        if let Some(challenge) = known.or_else(|| self.challenges.of(rejection)) {
            // The renderer may have set one.
            response.headers_mut().entry(WWW_AUTHENTICATE).or_insert(challenge);
        }
    }

    pub(super) fn vary<B>(&self, response: &mut Response<B>) {
        for name in self.credentials.headers() {
            vary_by(response.headers_mut(), name);
        }
    }
}

/// Marks, in its extensions, a response whose rejection was observed and has its challenge.
#[derive(Clone, Copy)]
struct Answered;
