use std::{mem, num::NonZeroU32, sync::Arc};

use http::Response;

use crate::{
    auth::{Rejection, RejectionKind, catch_request_panic},
    layer::{response::RateLimitReport, short_circuit::Finish},
    rate_limit::port::Buckets,
    record::Consumer,
};

/// What a request was charged before the inner service was called. It is refunded if an inner limit
/// rejects the request.
#[derive(Default)]
pub(super) struct Receipt {
    report: RateLimitReport,
    units: Option<(Arc<dyn Buckets>, NonZeroU32, Consumer)>,
}

impl Receipt {
    pub(super) fn nothing(report: RateLimitReport) -> Self {
        Self { report, units: None }
    }

    pub(super) fn of(
        report: RateLimitReport,
        buckets: Arc<dyn Buckets>,
        units: NonZeroU32,
        consumer: Consumer,
    ) -> Self {
        Self { report, units: Some((buckets, units, consumer)) }
    }
}

impl<B> Finish<Response<B>, Response<B>> for Receipt {
    fn finish(&mut self, mut response: Response<B>) -> Response<B> {
        let rejection = response.extensions().get::<Rejection>();
        let is_limited = rejection.is_some_and(|r| r.kind() == RejectionKind::RateLimited);
        let Self { mut report, units } = mem::take(self);
        // An inner limit rejected the request: refund the units.
        if is_limited && let Some((buckets, units, consumer)) = units {
            let state = consumer.meter().and_then(|meter| {
                let now = meter.now();
                catch_request_panic(|| {
                    buckets.give_back(units, now);
                    buckets.peek(now)
                })
                .ok()
            });
            consumer.count_units(-i64::from(report.units));
            report = report.refunded(state);
        }
        report.write(&mut response);
        response
    }
}
