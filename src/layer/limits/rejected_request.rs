use http::Response;

use crate::{
    auth::{Rejection, RejectionKind},
    layer::{
        RejectionResponse,
        response::{RateLimitReport, complete},
    },
};

/// Why a limit rejected a request, and the state of its quotas.
pub(super) struct RejectedRequest {
    rejection: Rejection,
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

    pub(super) fn response<B>(self, renderer: &impl RejectionResponse<B>) -> Response<B> {
        let mut response = complete(renderer.response(&self.rejection), self.rejection);
        self.report.write(&mut response);
        response
    }
}
