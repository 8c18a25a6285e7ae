use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{ProblemJson, RejectionResponse, ResponseFuture, caller, gate::Gate};
use crate::auth::Attempt;

/// The service of [`ApiKeyLayer`](super::ApiKeyLayer).
///
/// A cached key is checked within `call`, which then calls the inner service directly. Only a
/// look-up makes the request wait, in the response future.
#[derive(Debug)]
pub struct ApiKeyService<S, R = ProblemJson> {
    inner: S,
    gate: Arc<Gate<R>>,
}

impl<S, R> ApiKeyService<S, R> {
    pub(super) fn new(inner: S, gate: Arc<Gate<R>>) -> Self {
        Self { inner, gate }
    }
}

impl<S: Clone, R> Clone for ApiKeyService<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), gate: Arc::clone(&self.gate) }
    }
}

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for ApiKeyService<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: RejectionResponse<ResBody>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        match self.gate.settings.attempt(&mut request) {
            Some(Attempt::Admit(admission)) => {
                self.gate.settings.introduce(&mut request, &admission);
                let gate = Arc::clone(&self.gate);
                ResponseFuture::inner(self.inner.call(request), gate, Some(admission))
            }
            Some(Attempt::Reject(rejection)) => {
                // Dropping the ready service releases what `poll_ready` reserved, such as a
                // concurrency permit: on a kept-alive connection the next call may never come.
                self.inner = self.inner.clone();
                ResponseFuture::rejected(self.gate.reject(&rejection))
            }
            Some(Attempt::Lookup(lookup)) => {
                // The clone is not ready, so it stays here and the future takes the ready service:
                // https://docs.rs/tower/latest/tower/trait.Service.html#be-careful-when-cloning-inner-services
                let clone = self.inner.clone();
                let ready = mem::replace(&mut self.inner, clone);
                ResponseFuture::looking_up(lookup, ready, request, Arc::clone(&self.gate))
            }
            None => {
                caller::admit_anonymous(request.extensions_mut());
                let gate = Arc::clone(&self.gate);
                ResponseFuture::inner(self.inner.call(request), gate, None)
            }
        }
    }
}
