use http::{Request, Response};

use crate::{
    auth::{Rejection, RejectionKind},
    layer::{
        RejectionResponse,
        request::parts_without_key,
        response::{RateLimitReport, respond},
    },
};

/// Why a limit rejected a request, and the state of its quotas.
pub(super) struct RejectedRequest {
    pub(super) rejection: Rejection,
    report: RateLimitReport,
}

impl RejectedRequest {
    pub(super) fn of(rejection: Rejection, report: RateLimitReport) -> Box<Self> {
        Box::new(Self { rejection, report })
    }

    /// A limiter or a clock panicked.
    pub(super) fn panicked() -> Box<Self> {
        Self::of(Rejection::new(RejectionKind::Internal), RateLimitReport::default())
    }

    pub(super) fn response<B, Q>(
        self,
        renderer: &impl RejectionResponse<B>,
        request: Request<Q>,
    ) -> Response<B> {
        let request = parts_without_key(request);
        let mut response = respond(renderer, self.rejection, &request);
        self.report.write(&mut response);
        response
    }
}
