use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::body::UntilKeyEnds;
use crate::{
    auth::{Authenticator, Rejection, RejectionKind},
    layer::{
        ProblemJson, RejectionResponse,
        request::{caller::Trusted, parts_without_key},
        response::{grpc, respond},
        short_circuit::{Finish, ShortCircuit},
    },
    record::{Consumer, KeyEnded},
};

/// Ends responses with the key of their request, as [`UntilKeyEnds`] does, where the handler does
/// not see the body: around a tonic service, for instance.
///
/// Apply it inside an [`ApiKeyLayer`](crate::ApiKeyLayer), around the routes whose responses go on:
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_api_key::layer::UntilKeyEndsLayer;
///
/// let app: Router =
///     Router::new().route("/events", get(async || "events").layer(UntilKeyEndsLayer::new()));
/// ```
///
/// A gRPC request (feature `grpc`) ends with the status `UNAUTHENTICATED`, also before its response
/// begins: a client that streams its request is told in the middle, and the handler is dropped.
///
/// Requests that were admitted without a key are left alone. Without an `ApiKeyLayer` it answers
/// 500, because a response that outlives its key is a mistake.
#[derive(Clone, Debug)]
#[must_use]
pub struct UntilKeyEndsLayer<R = ProblemJson> {
    trusted: Trusted,
    renderer: R,
}

impl UntilKeyEndsLayer {
    /// Ends responses with the key of any authenticator.
    pub fn new() -> Self {
        Self { trusted: Trusted::default(), renderer: ProblemJson::default() }
    }
}

impl Default for UntilKeyEndsLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<R> UntilKeyEndsLayer<R> {
    /// Renders rejections with `renderer`. Default: [`ProblemJson`].
    pub fn render_rejections<R2>(self, renderer: R2) -> UntilKeyEndsLayer<R2> {
        UntilKeyEndsLayer { trusted: self.trusted, renderer }
    }

    /// Trusts only consumers of `auth`; see [`RequireScope::of`](crate::RequireScope::of).
    pub fn of(self, auth: &Authenticator) -> Self {
        Self { trusted: Trusted::only(auth.id()), ..self }
    }
}

impl<S, R: Clone> Layer<S> for UntilKeyEndsLayer<R> {
    type Service = UntilKeyEndsService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        UntilKeyEndsService { inner, layer: self.clone() }
    }
}

/// The service of [`UntilKeyEndsLayer`].
#[derive(Clone, Debug)]
pub struct UntilKeyEndsService<S, R = ProblemJson> {
    inner: S,
    layer: UntilKeyEndsLayer<R>,
}

impl<S, R, ReqBody, B> Service<Request<ReqBody>> for UntilKeyEndsService<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<B>> + Clone,
    R: RejectionResponse<B>,
    B: Body,
{
    type Response = Response<UntilKeyEnds<B>>;
    type Error = S::Error;
    type Future = UntilKeyEndsFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let Self { inner, layer: UntilKeyEndsLayer { trusted, renderer } } = self;
        let caller = trusted.caller(request.extensions()).map(Option::<&Consumer>::cloned);
        let future = match caller {
            Ok(consumer) => {
                let ended = consumer.as_ref().and_then(|it| Ended::of(&request, it, renderer));
                let future = BeforeKeyEnds { future: inner.call(request), ended };
                ShortCircuit::Inner { future, finish: consumer }
            }
            Err(kind) => ShortCircuit::reject(inner, || {
                let request = parts_without_key(request);
                respond(renderer, Rejection::new(kind), &request).map(UntilKeyEnds::unwatched)
            }),
        };
        UntilKeyEndsFuture { future }
    }
}

impl<B: Body> Finish<Response<B>, Response<UntilKeyEnds<B>>> for Option<Consumer> {
    fn finish(&mut self, response: Response<B>) -> Response<UntilKeyEnds<B>> {
        match self {
            Some(consumer) => UntilKeyEnds::response(response, consumer),
            None => response.map(UntilKeyEnds::unwatched),
        }
    }
}

/// The end of the key of a gRPC request, and the response to the request in that case.
struct Ended<B> {
    key: KeyEnded,
    response: Response<B>,
}

impl<B> Ended<B> {
    /// `None` for other requests: over HTTP, a request that has begun is answered.
    fn of<Q>(
        request: &Request<Q>,
        consumer: &Consumer,
        renderer: &impl RejectionResponse<B>,
    ) -> Option<Self> {
        let content_type = grpc::content_type(request.headers())?.clone();
        let rejection = Rejection::new(RejectionKind::Revoked);
        let mut response = grpc::response(&rejection, None, content_type, renderer.empty_body());
        response.extensions_mut().insert(rejection);
        Some(Self { key: consumer.key_ended(), response })
    }
}

pin_project! {
    /// The response of the inner service, unless the key ends first.
    struct BeforeKeyEnds<F, B> {
        #[pin]
        future: F,
        ended: Option<Ended<B>>,
    }
}

impl<F, B, E> Future for BeforeKeyEnds<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if let Poll::Ready(response) = this.future.poll(cx) {
            return Poll::Ready(response);
        }
        let has_ended = |ended: &mut Ended<B>| Pin::new(&mut ended.key).poll(cx).is_ready();
        match this.ended.take_if(has_ended) {
            Some(ended) => Poll::Ready(Ok(ended.response)),
            None => Poll::Pending,
        }
    }
}

pin_project! {
    /// The response future of [`UntilKeyEndsService`].
    pub struct UntilKeyEndsFuture<F, B> {
        #[pin]
        future: ShortCircuit<BeforeKeyEnds<F, B>, Option<Consumer>, Response<UntilKeyEnds<B>>>,
    }
}

impl<F, B, E> Future for UntilKeyEndsFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<UntilKeyEnds<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx)
    }
}

impl<F, B> fmt::Debug for UntilKeyEndsFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UntilKeyEndsFuture")
    }
}
