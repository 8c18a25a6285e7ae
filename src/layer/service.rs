use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, ORIGIN},
};
use tower_service::Service;

use super::{
    Anonymous, RateLimitHeaders, RejectionResponse, ResponseFuture,
    credentials::{Ambiguous, Credentials, is_b64token},
    headers::vary_by,
    response::{Challenges, complete},
};
use crate::auth::{Admission, Attempt, Authenticator, Rejection, RejectionKind};

/// The service of [`ApiKeyLayer`](super::ApiKeyLayer).
///
/// A key in the cache is judged within `call`, and the inner service is called at once. Only
/// behind a look-up does it wait in the response future.
#[derive(Debug)]
pub struct ApiKeyService<S, R = super::ProblemJson> {
    inner: S,
    shared: Arc<Shared<R>>,
}

impl<S, R> ApiKeyService<S, R> {
    pub(super) fn new(inner: S, shared: Arc<Shared<R>>) -> Self {
        Self { inner, shared }
    }
}

impl<S: Clone, R> Clone for ApiKeyService<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: Arc::clone(&self.shared) }
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
        match self.shared.attempt(&mut request) {
            Some(Attempt::Admit(admission)) => {
                request.extensions_mut().insert(admission.consumer().clone());
                let shared = Arc::clone(&self.shared);
                ResponseFuture::inner(self.inner.call(request), shared, Some(admission))
            }
            Some(Attempt::Reject(rejection)) => {
                // What the inner service holds since it said it was ready, such as a permit of a
                // concurrency limit, goes back: on a kept-alive connection the next call may never
                // come.
                self.inner = self.inner.clone();
                ResponseFuture::rejected(self.shared.reject(&rejection))
            }
            Some(Attempt::Lookup(lookup)) => {
                // The clone is not ready, so it stays here and the ready service goes along:
                // https://docs.rs/tower/latest/tower/trait.Service.html#be-careful-when-cloning-inner-services
                let clone = self.inner.clone();
                let ready = mem::replace(&mut self.inner, clone);
                ResponseFuture::looking_up(lookup, ready, request, Arc::clone(&self.shared))
            }
            None => {
                request.extensions_mut().insert(Anonymous);
                let shared = Arc::clone(&self.shared);
                ResponseFuture::inner(self.inner.call(request), shared, None)
            }
        }
    }
}

/// What all clones of a layer and its services share.
#[derive(Clone)]
pub(super) struct Shared<R> {
    pub(super) auth: Authenticator,
    pub(super) challenges: Challenges,
    pub(super) credentials: Credentials,
    pub(super) optional: bool,
    pub(super) keep_credential: bool,
    pub(super) pass_preflight: bool,
    pub(super) rate_limit_headers: RateLimitHeaders,
    pub(super) renderer: R,
}

impl<R> Shared<R> {
    pub(super) fn with_renderer<R2>(self, renderer: R2) -> Shared<R2> {
        let Self { auth, challenges, credentials, rate_limit_headers, .. } = self;
        let Self { optional, keep_credential, pass_preflight, .. } = self;
        Shared {
            auth,
            challenges,
            credentials,
            optional,
            keep_credential,
            pass_preflight,
            rate_limit_headers,
            renderer,
        }
    }

    /// Judges the key of a request and takes it out; `None` for a request that may pass without.
    fn attempt<B>(&self, request: &mut Request<B>) -> Option<Attempt> {
        if self.pass_preflight && is_preflight(request) {
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
        let mut attempt = self.auth.attempt(found.key);
        // Only now: a key that could be read needs no second look at its bytes.
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

    pub(super) fn reject<B>(&self, rejection: &Rejection) -> Response<B>
    where
        R: RejectionResponse<B>,
    {
        let mut response = complete(self.renderer.response(rejection), rejection.clone());
        if let Some(standing) = rejection.standing() {
            let wall = || self.auth.wall();
            self.rate_limit_headers.write(response.headers_mut(), standing, wall);
        }
        self.answer_for(&mut response, rejection);
        self.vary(response.headers_mut());
        response
    }

    /// Adds what a response from inside lacks.
    pub(super) fn finish<B>(&self, response: &mut Response<B>, admission: Option<&Admission>) {
        if let Some(admission) = admission {
            let wall = || self.auth.wall();
            self.rate_limit_headers.write(response.headers_mut(), admission.standing(), wall);
        }
        // `RequireScope` and the extractor turn requests away too, but know no realm.
        if matches!(response.status(), StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED)
            && let Some(rejection) = response.extensions().get::<Rejection>().cloned()
        {
            self.answer_for(response, &rejection);
        }
        self.vary(response.headers_mut());
    }

    fn answer_for<B>(&self, response: &mut Response<B>, rejection: &Rejection) {
        self.auth.rejected(rejection);
        self.challenges.add(response.headers_mut(), rejection);
    }

    fn vary(&self, headers: &mut HeaderMap) {
        for name in self.credentials.headers() {
            vary_by(headers, name);
        }
    }
}

impl<R> fmt::Debug for Shared<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("auth", &self.auth)
            .field("credentials", &self.credentials)
            .field("optional", &self.optional)
            .field("keep_credential", &self.keep_credential)
            .field("pass_preflight", &self.pass_preflight)
            .field("rate_limit_headers", &self.rate_limit_headers)
            .finish_non_exhaustive()
    }
}

/// <https://fetch.spec.whatwg.org/#cors-preflight-request>
fn is_preflight<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
        && !headers.contains_key(AUTHORIZATION)
}
