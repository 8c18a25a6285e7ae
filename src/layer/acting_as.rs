//! Requests of a test that act as a consumer.

use std::task::{Context, Poll};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    Cost, ProblemJson, RejectionResponse,
    limits::{MeteredFuture, MeteredService},
    request::caller,
};
use crate::{Consumer, record::ConsumerBuilder};

impl<S> Layer<S> for ConsumerBuilder {
    type Service = ActingAsService<S>;

    fn layer(&self, inner: S) -> ActingAsService<S> {
        // The first unit is that of an `ApiKeyLayer`, which is missing here.
        let one_unit = Cost::new(2);
        ActingAsService { inner: one_unit.layer(inner), consumer: self.clone().build() }
    }
}

/// The service of [`Consumer::acting_as`](crate::Consumer::acting_as).
#[derive(Clone, Debug)]
pub struct ActingAsService<S> {
    inner: MeteredService<S>,
    consumer: Consumer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for ActingAsService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ProblemJson: RejectionResponse<ResBody>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = MeteredFuture<S, ReqBody, ProblemJson>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        caller::admit(request.extensions_mut(), &self.consumer, None);
        self.inner.call(request)
    }
}
