//! Shadow mode: every request passes, and the layer reports what it decided.

use http::{Request, Response};

use super::{
    middleware::Config,
    request::caller::{self, WouldReject},
    response::{RateLimitReport, write_shadow},
    span::record_shadow_outcome,
};
use crate::auth::{Admission, Outcome, RateLimitStatus, Rejection, catch_request_panic};

/// What was decided about a request that passes in shadow mode.
pub(super) struct ShadowDecision {
    admission: Option<Admission>,
    would_reject: WouldReject,
    /// Whether the observer is told, even if there is no reason to reject the request.
    is_told: bool,
}

impl Config {
    /// Prepares a request for the inner service, whatever was decided about its key: `None` if
    /// nothing was, because it passes without one or an outer layer admitted it.
    ///
    /// It gets a consumer if its key is good, and keeps the one of an outer layer: without this
    /// layer, it would have had that.
    pub(super) fn pass_in_shadow<B>(
        &self,
        request: &mut Request<B>,
        decision: Option<Result<Admission, Rejection>>,
    ) -> ShadowDecision {
        let would_reject = WouldReject::default();
        let is_told = decision.is_some();
        let mut admission = None;
        match decision {
            None => {}
            Some(Ok(admitted)) => {
                let status = admitted.rate_limit_status();
                // A key that was not charged is admitted beyond its quota.
                if self.charge && status.violated().next().is_some() {
                    would_reject.note(Rejection::rate_limited(status.clone()));
                }
                if !caller::is_admitted_by_another(request.extensions(), &self.auth) {
                    self.attach_consumer(request, &admitted);
                }
                admission = Some(admitted);
            }
            Some(Err(rejection)) => {
                self.leave_to_handler(request, &rejection);
                would_reject.note(rejection);
            }
        }
        caller::shadow(request.extensions_mut(), would_reject.clone());
        ShadowDecision { admission, would_reject, is_told }
    }

    /// A key beyond its quota is good. Without a good key, the request has no consumer.
    fn leave_to_handler<B>(&self, request: &mut Request<B>, rejection: &Rejection) {
        let extensions = request.extensions_mut();
        match rejection.rate_limit_status().map(RateLimitStatus::consumer) {
            Some(consumer) if !caller::is_admitted_by_another(extensions, &self.auth) => {
                caller::admit(extensions, consumer, None);
            }
            None if !caller::has_consumer(extensions) => {
                caller::admit_anonymous(extensions, rejection.clone());
            }
            _ => {}
        }
    }

    /// Reports the request. The response stays as it is, but for a header if that is wanted.
    pub(super) fn finish_in_shadow<B>(
        &self,
        response: &mut Response<B>,
        decision: &ShadowDecision,
    ) {
        if let Some(admission) = &decision.admission {
            let status = admission.rate_limit_status();
            // If the limiter panics, the units are not charged.
            let _ = catch_request_panic(|| self.reconcile(response, status));
            response.extensions_mut().remove::<RateLimitReport>();
        }
        // An extractor without a consumer rejects the request, whatever this layer does.
        if let Some(rejection) = response.extensions().get::<Rejection>().cloned() {
            self.observe_and_challenge(response, &rejection);
        }
        self.report_shadow(decision);
        if self.shadow.header {
            let kind = decision.would_reject.rejection().map(Rejection::kind);
            write_shadow(response.headers_mut(), kind);
        }
        self.vary(response);
    }

    /// Reports the request to the observer.
    pub(super) fn report_shadow(&self, decision: &ShadowDecision) {
        let rejection = decision.would_reject.rejection();
        if !decision.is_told && rejection.is_none() {
            return;
        }
        record_shadow_outcome(rejection.map_or(Outcome::Admitted, |it| Outcome::of(it.kind())));
        let admitted = decision.admission.as_ref().map(|it| it.consumer().key_id());
        let key_id = rejection.and_then(Rejection::key_id).or(admitted);
        self.auth.shadowed(rejection.map(Rejection::kind), key_id);
    }
}
