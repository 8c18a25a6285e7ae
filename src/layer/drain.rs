use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Buf;
use http::{HeaderMap, Request, Response, Version, header::EXPECT};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Timeout, timeout};
use tower_layer::Layer;
use tower_service::Service;

use crate::auth::Rejection;

const MAX_BYTES: u64 = 1024 * 1024;
const MAX_TIME: Duration = Duration::from_secs(5);

/// Reads the body of a rejected request, within bounds, before its response is sent.
///
/// A request is rejected by its head. Over HTTP/1.1 a server then closes the connection while the
/// client still sends, and a client that does not read meanwhile sees a broken connection in place
/// of the 401 or 429. With this layer around [`ApiKeyLayer`](super::ApiKeyLayer), the client can
/// send the rest of a small upload, reads the response, and can reuse the connection:
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_api_key::{ApiKeyLayer, layer::DrainRejected};
/// # use tower_api_key::{Authenticator, key::KeyFormat, store::MemoryKeyStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (auth, worker) =
/// #     Authenticator::builder(MemoryKeyStore::new(), KeyFormat::new("sk_live_")?).build();
/// # drop(worker);
/// let app: Router = Router::new()
///     .route("/uploads", post(async |upload: String| upload.len().to_string()))
///     .layer(ApiKeyLayer::new(auth))
///     .layer(DrainRejected::new());
/// # Ok(())
/// # }
/// ```
///
/// It applies to every response that carries a [`Rejection`], and to nothing else. The response is
/// sent at once
///
/// 1. if the client waits for `100 Continue`, which is the better way to send a large upload: it
///    has not sent any of it;
/// 2. over HTTP/2, where a stream ends without its connection;
/// 3. if the body is longer than [`max_bytes`](Self::max_bytes), as soon as that is known;
/// 4. when [`max_time`](Self::max_time) is over. Needs a tokio runtime with its timer enabled.
///
/// # Security
///
/// Clients without a key can make the server receive that much. What is read is dropped at once,
/// and takes no memory beyond the server's own buffers.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct DrainRejected {
    max_bytes: u64,
    max_time: Duration,
}

impl DrainRejected {
    /// Reads up to 1 MiB within 5 seconds, which a connection of 2 Mbit/s can send.
    pub fn new() -> Self {
        Self { max_bytes: MAX_BYTES, max_time: MAX_TIME }
    }

    /// How many bytes of a body are read. Default: 1 MiB. A body with a greater declared length is
    /// not read at all.
    pub fn max_bytes(self, max_bytes: u64) -> Self {
        Self { max_bytes, ..self }
    }

    /// For how long a body is read. Default: 5 seconds.
    pub fn max_time(self, max_time: Duration) -> Self {
        Self { max_time, ..self }
    }
}

impl Default for DrainRejected {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for DrainRejected {
    type Service = DrainRejectedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DrainRejectedService { inner, bounds: *self }
    }
}

/// The service of [`DrainRejected`].
#[derive(Clone, Debug)]
pub struct DrainRejectedService<S> {
    inner: S,
    bounds: DrainRejected,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for DrainRejectedService<S>
where
    S: Service<Request<DrainRejectedBody<ReqBody>>, Response = Response<ResBody>>,
    ReqBody: Body,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = DrainRejectedFuture<S::Future, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let is_drained = request.version() <= Version::HTTP_11
            && !request.body().is_end_stream()
            && !expects_continue(request.headers());
        let remainder = is_drained.then(Remainder::default);
        let future = self.inner.call(request.map(|body| match &remainder {
            None => DrainRejectedBody { body: Inner::Passed { body } },
            Some(remainder) => {
                let body = Returned { body: Some(Box::pin(body)), to: remainder.clone() };
                DrainRejectedBody { body: Inner::Returned { body } }
            }
        }));
        DrainRejectedFuture { state: State::Inner { future, remainder, bounds: self.bounds } }
    }
}

/// Whether the client sends the body only after `100 Continue` (RFC 9110 §10.1.1). A server sends
/// that when the body is first read.
fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Receives the unread rest of a body that was dropped.
struct Remainder<B>(Arc<Mutex<Option<Pin<Box<B>>>>>);

impl<B> Remainder<B> {
    fn put(&self, body: Pin<Box<B>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    /// `None` while the inner service holds the body.
    fn take(&self) -> Option<Pin<Box<B>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<B> Clone for Remainder<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> Default for Remainder<B> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

pin_project! {
    /// The request body that services inside a [`DrainRejected`] receive.
    pub struct DrainRejectedBody<B> {
        #[pin]
        body: Inner<B>,
    }
}

pin_project! {
    #[project = InnerProj]
    enum Inner<B> {
        Passed { #[pin] body: B },
        Returned { body: Returned<B> },
    }
}

/// A body whose unread rest goes into a [`Remainder`] on drop.
struct Returned<B> {
    /// `None` after the end.
    body: Option<Pin<Box<B>>>,
    to: Remainder<B>,
}

impl<B> Drop for Returned<B> {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            self.to.put(body);
        }
    }
}

impl<B: Body> Body for DrainRejectedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project().body.project() {
            InnerProj::Passed { body } => body.poll_frame(cx),
            InnerProj::Returned { body: returned } => {
                let Some(body) = &mut returned.body else { return Poll::Ready(None) };
                let frame = ready!(body.as_mut().poll_frame(cx));
                if !matches!(frame, Some(Ok(_))) {
                    returned.body = None;
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Inner::Passed { body } => body.is_end_stream(),
            Inner::Returned { body } => body.body.as_ref().is_none_or(|body| body.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Inner::Passed { body } => body.size_hint(),
            Inner::Returned { body: Returned { body: Some(body), .. } } => body.size_hint(),
            Inner::Returned { .. } => SizeHint::with_exact(0),
        }
    }
}

impl<B> fmt::Debug for DrainRejectedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DrainRejectedBody")
    }
}

/// Reads a body to its end, or until `left` bytes were read.
struct Drain<B> {
    body: Pin<Box<B>>,
    left: u64,
}

impl<B: Body> Future for Drain<B> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        while !self.body.is_end_stream() && self.body.size_hint().lower() <= self.left {
            let Some(Ok(frame)) = ready!(self.body.as_mut().poll_frame(cx)) else { break };
            let read = frame.data_ref().map_or(0, |data| data.remaining() as u64);
            match self.left.checked_sub(read) {
                Some(left) => self.left = left,
                None => break,
            }
        }
        Poll::Ready(())
    }
}

pin_project! {
    /// The response future of [`DrainRejectedService`].
    pub struct DrainRejectedFuture<F, B, T> {
        #[pin]
        state: State<F, B, T>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B, T> {
        Inner { #[pin] future: F, remainder: Option<Remainder<B>>, bounds: DrainRejected },
        Draining { #[pin] drain: Timeout<Drain<B>>, response: Option<Response<T>> },
    }
}

impl<F, B, T, E> Future for DrainRejectedFuture<F, B, T>
where
    F: Future<Output = Result<Response<T>, E>>,
    B: Body,
{
    type Output = Result<Response<T>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Inner { future, remainder, bounds } => {
                    let response = ready!(future.poll(cx))?;
                    let is_rejected = response.extensions().get::<Rejection>().is_some();
                    let remainder = mem::take(remainder).filter(|_| is_rejected);
                    let Some(body) = remainder.and_then(|remainder| remainder.take()) else {
                        return Poll::Ready(Ok(response));
                    };
                    let drain = Drain { body, left: bounds.max_bytes };
                    let drain = timeout(bounds.max_time, drain);
                    state.set(State::Draining { drain, response: Some(response) });
                }
                StateProj::Draining { drain, response } => {
                    // Whether it was read to its end or not makes no difference.
                    let _ = ready!(drain.poll(cx));
                    // Pending for ever if polled again after completion.
                    return response
                        .take()
                        .map_or(Poll::Pending, |response| Poll::Ready(Ok(response)));
                }
            }
        }
    }
}

impl<F, B, T> fmt::Debug for DrainRejectedFuture<F, B, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DrainRejectedFuture")
    }
}
