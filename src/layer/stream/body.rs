use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{
    layer::response::grpc,
    record::{Consumer, KeyEnded},
};

pin_project! {
    /// A body that ends when the key of its consumer does: revoked, switched off, deleted or
    /// expired, as soon as [`Consumer::key_ended`] knows.
    ///
    /// A gRPC response (feature `grpc`) ends with the status `UNAUTHENTICATED` in its trailers if it
    /// was wrapped by [`response`](Self::response), which sees its content type.
    ///
    /// Any other ends with an error, [`KeyEndedError`], so that a client cannot take the truncated body
    /// for a complete one: over HTTP/1.1 the connection closes without a last chunk, over HTTP/2
    /// the stream is reset. The last data sent before that may be lost. An event-stream client
    /// reconnects, and the layer then rejects it.
    ///
    /// The inner body is dropped at once, with everything it holds. But a server does not poll a
    /// body while its client does not read: a stalled client is cut off only when it reads on, and
    /// keeps the body alive until then. Limiting how long a client may stall is up to the server.
    #[derive(Debug)]
    pub struct UntilKeyEnds<B> {
        // `None` after the end.
        #[pin]
        body: Option<B>,
        // `None` after the end: the key is no longer watched.
        revoked: Option<KeyEnded>,
        is_grpc: bool,
    }
}

impl<B: Body> UntilKeyEnds<B> {
    /// Ends `body` when the key of `consumer` ends. An empty body does not watch its key.
    ///
    /// Needs a tokio runtime with its timer enabled; see [`Consumer::key_ended`].
    #[must_use]
    pub fn new(body: B, consumer: &Consumer) -> Self {
        let revoked = (!body.is_end_stream()).then(|| consumer.key_ended());
        Self { body: Some(body), revoked, is_grpc: false }
    }

    /// Ends the body of `response` when the key of `consumer` ends. An axum handler can return the
    /// result as it is.
    #[must_use]
    pub fn response(response: Response<B>, consumer: &Consumer) -> Response<Self> {
        let is_grpc = grpc::ends_with_trailers(response.headers());
        response.map(|body| Self { is_grpc, ..Self::new(body, consumer) })
    }

    /// A body that does not end with a key.
    pub(super) fn unwatched(body: B) -> Self {
        Self { body: Some(body), revoked: None, is_grpc: false }
    }
}

/// A body that has ended.
impl<B> Default for UntilKeyEnds<B> {
    fn default() -> Self {
        Self { body: None, revoked: None, is_grpc: false }
    }
}

impl<B> Body for UntilKeyEnds<B>
where
    B: Body,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = B::Data;
    /// [`KeyEndedError`], or the inner body's error.
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let mut this = self.project();
        let Some(mut body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        // Polled first: a body that is always ready would starve it.
        let revoked =
            this.revoked.as_mut().is_some_and(|revoked| Pin::new(revoked).poll(cx).is_ready());
        let frame = if revoked && *this.is_grpc {
            Some(Ok(Frame::trailers(grpc::key_ended())))
        } else if revoked {
            Some(Err(KeyEndedError.into()))
        } else {
            ready!(body.as_mut().poll_frame(cx)).map(|frame| frame.map_err(Into::into))
        };
        if revoked || !matches!(frame, Some(Ok(_))) || body.is_end_stream() {
            this.body.set(None);
            *this.revoked = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The key ended before the response did: the error of an [`UntilKeyEnds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyEndedError;

impl fmt::Display for KeyEndedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the API key ended before the response was complete")
    }
}

impl Error for KeyEndedError {}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Weak},
        task::Waker,
        time::{Duration, SystemTime},
    };

    use bytes::Bytes;
    use futures_util::stream;
    use http::HeaderMap;
    use http_body_util::{BodyExt, Empty, Full, StreamBody};
    use tokio::{sync::watch, time::timeout};

    use super::*;
    use crate::{
        key::KeyHash,
        rate_limit::Meter,
        record::{KeyExtension, KeyId, KeyRecord, LookedUpKey, Origin},
    };

    /// A key that the test can end.
    #[derive(Default)]
    struct Key(watch::Sender<bool>);

    impl KeyExtension for Weak<Key> {
        fn meter(&self) -> Option<&Meter> {
            None
        }

        fn ended(&self, _: KeyId) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            let key = self.upgrade().unwrap();
            Box::pin(async move {
                key.0.subscribe().wait_for(|ended| *ended).await.unwrap();
            })
        }

        fn origin(&self) -> Option<Origin> {
            Some(Origin::of(self))
        }
    }

    impl Key {
        fn consumer(self: &Arc<Self>) -> Consumer {
            let (id, hash) = (KeyId::from_bytes([1; 16]), KeyHash::from_bytes([7; 32]));
            let record = KeyRecord::new(id, hash, "acme", SystemTime::UNIX_EPOCH);
            Consumer::of(&Arc::new(LookedUpKey::new(record, Arc::downgrade(self))))
        }

        fn end(&self) {
            self.0.send_replace(true);
        }

        fn is_watched(self: &Arc<Self>) -> bool {
            Arc::strong_count(self) > 1
        }
    }

    type Polled = Poll<Option<Result<Frame<Bytes>, Box<dyn Error + Send + Sync>>>>;

    fn poll<B>(body: &mut UntilKeyEnds<B>) -> Polled
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin,
    {
        Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    #[track_caller]
    fn assert_data(polled: Polled, expected: &str) {
        let Poll::Ready(Some(Ok(frame))) = polled else { panic!("no frame: {polled:?}") };
        assert_eq!(frame.into_data().unwrap(), expected);
    }

    #[track_caller]
    fn assert_cut_off(polled: Polled) {
        let Poll::Ready(Some(Err(error))) = polled else { panic!("no error: {polled:?}") };
        assert!(error.is::<KeyEndedError>(), "{error:?}");
    }

    /// Frames that are always ready, without an end.
    fn endless() -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        StreamBody::new(stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(b"more")))))
    }

    #[test]
    fn a_body_that_always_has_more_ends_with_an_error_and_stays_ended() {
        let key = Arc::<Key>::default();
        let mut body = UntilKeyEnds::new(endless(), &key.consumer());
        assert_data(poll(&mut body), "more");
        assert_data(poll(&mut body), "more");

        key.end();

        assert!(!body.is_end_stream(), "it is not complete");
        assert_cut_off(poll(&mut body));
        assert!(matches!(poll(&mut body), Poll::Ready(None)));
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
    }

    /// A body that is never ready and holds a resource.
    struct Waiting(#[expect(dead_code, reason = "held")] Arc<()>);

    impl Body for Waiting {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_body_that_waits_is_woken_and_what_it_holds_is_dropped() {
        let (key, held) = (Arc::<Key>::default(), Arc::new(()));
        let mut body = UntilKeyEnds::new(Waiting(Arc::clone(&held)), &key.consumer());

        let end = async { key.end() };
        let both = async { tokio::join!(biased; body.frame(), end).0 };
        let frame = timeout(Duration::from_secs(30), both).await.expect("it is woken");

        assert_cut_off(Poll::Ready(frame));
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn until_then_it_is_the_body_within() {
        let key = Arc::<Key>::default();
        let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
        let end = trailers.clone();
        let body = Full::from("text").with_trailers(async { Some(Ok(end)) });
        let mut body = UntilKeyEnds::new(Box::pin(body), &key.consumer());

        assert_eq!(body.size_hint().exact(), Some(4));
        assert_data(poll(&mut body), "text");
        let Poll::Ready(Some(Ok(last))) = poll(&mut body) else { panic!("no trailers") };
        assert_eq!(last.into_trailers().unwrap(), trailers);
        assert!(matches!(poll(&mut body), Poll::Ready(None)));
    }

    #[test]
    fn errors_of_the_body_within_are_handed_on() {
        let key = Arc::<Key>::default();
        let failing = stream::iter([Err::<Frame<Bytes>, _>("broken")]);
        let mut body = UntilKeyEnds::new(StreamBody::new(failing), &key.consumer());

        let Poll::Ready(Some(Err(error))) = poll(&mut body) else { panic!("no error") };
        assert_eq!(error.to_string(), "broken");
        assert!(!key.is_watched());
        assert!(matches!(poll(&mut body), Poll::Ready(None)));
    }

    #[test]
    fn a_key_is_watched_until_the_body_has_ended_or_is_dropped() {
        let key = Arc::<Key>::default();
        let consumer = key.consumer();

        let empty = UntilKeyEnds::new(Empty::<Bytes>::new(), &consumer);
        assert!(!key.is_watched(), "for an empty body");
        drop(empty);

        let mut whole = UntilKeyEnds::new(Full::<Bytes>::from("text"), &consumer);
        assert!(key.is_watched());
        assert_data(poll(&mut whole), "text");
        assert!(!key.is_watched(), "after the last frame");

        let mut begun = UntilKeyEnds::new(endless(), &consumer);
        assert_data(poll(&mut begun), "more");
        assert!(key.is_watched());
        drop(begun);
        assert!(!key.is_watched(), "after it was dropped");
    }

    #[test]
    fn a_complete_body_stays_complete() {
        let key = Arc::<Key>::default();
        let mut body = UntilKeyEnds::new(Full::<Bytes>::from("text"), &key.consumer());
        assert_data(poll(&mut body), "text");

        key.end();

        assert!(body.is_end_stream());
        assert!(matches!(poll(&mut body), Poll::Ready(None)));
    }
}
