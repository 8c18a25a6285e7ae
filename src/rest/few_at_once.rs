//! Bounds what each consumer has under way, until its answers are written out.

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

use super::refusal::Refusal;
use crate::{
    manage::{PerConsumer, Turn},
    record::Consumer,
};

/// Requests of a consumer, the answers to which are in memory.
const MAX_PER_CONSUMER: usize = 4;
const WAIT: Duration = Duration::from_secs(1);
/// How long the answer to a denied request is held back. The request counts as under way for that time,
/// so a client that repeats it costs the service little: without a delay, 64 connections got 25,000
/// denials a second. Keys that are out of reach are denied as not found.
const DENIAL_DELAY: Duration = Duration::from_millis(100);
/// A server takes as much of an answer as its buffer has room for, piece by piece.
const PIECE: usize = 64 * 1024;

pub(super) fn turns() -> Arc<PerConsumer> {
    Arc::new(PerConsumer::new(MAX_PER_CONSUMER, WAIT))
}

/// A request without a consumer is refused by its handler.
pub(super) async fn few_at_once(
    State(turns): State<Arc<PerConsumer>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(consumer) = request.extensions().get::<Consumer>().cloned() else {
        return next.run(request).await;
    };
    let Some(turn) = turns.take(consumer.id()).await else {
        return Refusal::too_many_at_once().into_response();
    };
    let response = next.run(request).await;
    if [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&response.status()) {
        hold_back().await;
    }
    response.map(|body| Body::new(Held { body, rest: Bytes::new(), _turn: turn }))
}

#[expect(clippy::disallowed_methods, reason = "the delay itself is what is meant")]
async fn hold_back() {
    sleep(DENIAL_DELAY).await;
}

/// A body that holds a turn until it is written out or dropped.
struct Held {
    body: Body,
    rest: Bytes,
    _turn: Turn,
}

impl HttpBody for Held {
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
