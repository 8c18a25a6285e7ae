use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::in_flight::Permit;

pin_project! {
    /// A body that keeps its request in flight until it ends or is dropped.
    pub struct ConcurrencyLimitBody<B> {
        #[pin]
        body: B,
        permit: Option<Permit>,
    }
}

impl<B> ConcurrencyLimitBody<B> {
    /// `permit` is `None` for a request that is not counted.
    pub(super) fn new(body: B, permit: Option<Permit>) -> Self {
        Self { body, permit }
    }
}

impl<B: Body> Body for ConcurrencyLimitBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let body = self.project();
        let frame = ready!(body.body.poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            *body.permit = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Default> Default for ConcurrencyLimitBody<B> {
    fn default() -> Self {
        Self { body: B::default(), permit: None }
    }
}

impl<B: fmt::Debug> fmt::Debug for ConcurrencyLimitBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimitBody").field("body", &self.body).finish_non_exhaustive()
    }
}
