use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{
    ProblemJson, RejectionResponse, ResponseFuture, middleware::Middleware, request::caller,
};
use crate::auth::Attempt;

/// The service of [`ApiKeyLayer`](super::ApiKeyLayer).
///
/// A cached key is checked within `call`, which then calls the inner service directly. Only a
/// look-up makes the request wait, in the response future.
#[derive(Debug)]
pub struct ApiKeyService<S, R = ProblemJson> {
    inner: S,
    middleware: Arc<Middleware<R>>,
}

impl<S, R> ApiKeyService<S, R> {
    pub(super) fn new(inner: S, middleware: Arc<Middleware<R>>) -> Self {
        Self { inner, middleware }
    }
}

impl<S: Clone, R> Clone for ApiKeyService<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), middleware: Arc::clone(&self.middleware) }
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
        match self.middleware.config.attempt(&mut request) {
            Some(Attempt::Admit(admission)) => {
                self.middleware.config.attach_consumer(&mut request, &admission);
                let middleware = Arc::clone(&self.middleware);
                ResponseFuture::inner(self.inner.call(request), middleware, Some(admission))
            }
            Some(Attempt::Reject(rejection)) => {
                // Dropping the ready service releases what `poll_ready` reserved, such as a
                // concurrency permit: on a kept-alive connection the next call may never come.
                self.inner = self.inner.clone();
                ResponseFuture::rejected(self.middleware.reject(&rejection))
            }
            Some(Attempt::Pending(lookup)) => {
                // The clone is not ready, so it stays here and the future takes the ready service:
                // https://docs.rs/tower/latest/tower/trait.Service.html#be-careful-when-cloning-inner-services
                let clone = self.inner.clone();
                let ready = mem::replace(&mut self.inner, clone);
                ResponseFuture::looking_up(lookup, ready, request, Arc::clone(&self.middleware))
            }
            None => {
                caller::admit_anonymous(request.extensions_mut());
                let middleware = Arc::clone(&self.middleware);
                ResponseFuture::inner(self.inner.call(request), middleware, None)
            }
        }
    }
}
