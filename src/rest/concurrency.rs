//! Admission control: limits the requests of each consumer in progress, until their responses are
//! written.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::sleep;

use super::{error::ApiError, sign_in::Admitted};
use crate::{
    manage::{ConsumerPermit, ConsumerSemaphores},
    record::Consumer,
};

/// Concurrent requests of a consumer. The responses to them are held in memory.
const MAX_PER_CONSUMER: usize = 4;
const WAIT: Duration = Duration::from_secs(1);
/// How long the response to a denied request is delayed. The request counts as in progress
/// meanwhile, so a client that repeats it costs the service little: without a delay, 64 connections
/// got 25,000 denials a second. 404 is delayed as well, because a key out of reach is denied as not
/// found.
const DENIAL_DELAY: Duration = Duration::from_millis(100);
/// The server takes a body piece by piece as its buffer has room, so the permit is held until it
/// has taken the last piece.
const PIECE: usize = 64 * 1024;

pub(super) fn permits() -> Arc<ConsumerSemaphores> {
    Arc::new(ConsumerSemaphores::new(MAX_PER_CONSUMER, WAIT))
}

/// Limits a request by its consumer, or its member. A request without one passes; its handler
/// refuses it.
pub(super) async fn limit_concurrency(
    State(permits): State<Arc<ConsumerSemaphores>>,
    request: Request,
    next: Next,
) -> Response {
    let extensions = request.extensions();
    let permit = match (extensions.get::<Admitted>(), extensions.get::<Consumer>().cloned()) {
        (Some(admitted), _) => {
            let key = admitted.member().admission_key();
            permits.take(&key).await
        }
        (None, Some(consumer)) => permits.take(consumer.id()).await,
        (None, None) => return next.run(request).await,
    };
    let Some(permit) = permit else {
        return ApiError::too_many_at_once().into_response();
    };
    let response = next.run(request).await;
    if [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&response.status()) {
        delay_denial().await;
    }
    response.map(|body| Body::new(PermitBody { body, rest: Bytes::new(), _turn: permit }))
}

#[expect(clippy::disallowed_methods, reason = "the delay itself is intended")]
async fn delay_denial() {
    sleep(DENIAL_DELAY).await;
}

/// A body that holds a permit until it is written or dropped.
struct PermitBody {
    body: Body,
    rest: Bytes,
    _turn: ConsumerPermit,
}

impl HttpBody for PermitBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                other => return other,
            }
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        let mut hint = self.body.size_hint();
        let upper = hint.upper().map(|upper| upper.saturating_add(rest));
        hint.set_lower(0);
        if let Some(upper) = upper {
            hint.set_upper(upper);
        }
        hint.set_lower(self.body.size_hint().lower().saturating_add(rest));
        hint
    }
}
