//! Streams end when their key does: bodies and WebSockets, over real connections.

use std::{convert::Infallible, future::pending, net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    response::{IntoResponse, Response, Sse, sse::Event},
    routing::{any, get},
};
use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt, stream};
use http::{Request, StatusCode, header::AUTHORIZATION};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    time,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, client::IntoClientRequest, protocol::frame::coding::CloseCode},
};
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer,
    clock::ManualClock,
    layer::{KeyEndedError, UntilKeyEnds, websocket::until_key_ends},
    manage::{Expiry, KeyIssuer, NewKey},
    store::ManageKeys,
};

use crate::{
    app::server,
    doubles::{FakeStore, Key, format, poll_once, within},
    raw_store::ByHand as _,
};

/// The number of open streams: each keeps a guest for as long as it lives.
#[derive(Clone, Default)]
struct Present(watch::Sender<usize>);

struct Guest(Present);

impl Present {
    fn enter(&self) -> Guest {
        self.0.send_modify(|present| *present += 1);
        Guest(self.clone())
    }

    async fn until(&self, count: usize) {
        within(self.0.subscribe().wait_for(|present| *present == count)).await.unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.0.send_modify(|present| *present -= 1);
    }
}

/// What the handlers work with.
#[derive(Clone)]
struct Office {
    present: Present,
    news: watch::Sender<&'static str>,
    /// The results of the sessions.
    outcomes: mpsc::UnboundedSender<Option<String>>,
}

impl Office {
    fn news(&self) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
        let mut news = self.news.subscribe();
        news.mark_changed();
        stream::unfold((news, self.present.enter()), async |(mut news, guest)| {
            news.changed().await.ok()?;
            let event = Event::default().data(*news.borrow_and_update());
            Some((Ok(event), (news, guest)))
        })
    }

    /// Endless chunks, each ready at once.
    fn flood(&self) -> impl Stream<Item = Result<Bytes, Infallible>> + use<> {
        let guest = self.present.enter();
        stream::repeat_with(move || {
            let _ = &guest;
            Ok(Bytes::from_static(&[b'x'; 16 * 1024]))
        })
    }
}

async fn events(State(office): State<Office>, consumer: Consumer) -> impl IntoResponse {
    UntilKeyEnds::response(Sse::new(office.news()).into_response(), &consumer)
}

/// Not wrapped.
async fn carefree(State(office): State<Office>, _: Consumer) -> impl IntoResponse {
    Sse::new(office.news())
}

async fn download(State(office): State<Office>, consumer: Consumer) -> impl IntoResponse {
    Response::new(UntilKeyEnds::new(Body::from_stream(office.flood()), &consumer))
}

async fn page(consumer: Consumer) -> impl IntoResponse {
    UntilKeyEnds::response("a page".into_response(), &consumer)
}

/// Responds until it is told to stop; returns the reason.
async fn echo(
    State(office): State<Office>,
    upgrade: WebSocketUpgrade,
    consumer: Consumer,
) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let session = async |socket: &mut WebSocket| {
            let _guest = office.present.enter();
            while let Some(Ok(message)) = socket.recv().await {
                if message.to_text().is_ok_and(|text| text.starts_with("bye")) {
                    return message.into_text().unwrap().to_string();
                }
                socket.send(message).await.unwrap();
            }
            "the client has gone".to_owned()
        };
        let outcome = until_key_ends(socket, &consumer, session).await;
        office.outcomes.send(outcome).unwrap();
    })
}

/// Reads and writes concurrently.
async fn halves(
    State(office): State<Office>,
    upgrade: WebSocketUpgrade,
    consumer: Consumer,
) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let outcome = until_key_ends(socket, &consumer, async |socket| {
            let _guest = office.present.enter();
            let (mut sender, mut receiver) = socket.split();
            let write = async {
                while sender.send(Message::text("tick")).await.is_ok() {
                    tokio::task::yield_now().await;
                }
            };
            let read = async { while let Some(Ok(_)) = receiver.next().await {} };
            tokio::join!(read, write);
            "the client has gone".to_owned()
        });
        office.outcomes.send(outcome.await).unwrap();
    })
}

/// Waits for something other than its client.
async fn elsewhere(
    State(office): State<Office>,
    upgrade: WebSocketUpgrade,
    consumer: Consumer,
) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let outcome = until_key_ends(socket, &consumer, async |_| {
            let _guest = office.present.enter();
            pending().await
        });
        office.outcomes.send(outcome.await).unwrap();
    })
}

/// Sends more than the buffers of a connection hold.
async fn bulk(
    State(office): State<Office>,
    upgrade: WebSocketUpgrade,
    consumer: Consumer,
) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let outcome = until_key_ends(socket, &consumer, async |socket| {
            let _guest = office.present.enter();
            socket.send(Message::binary(vec![0; 32 << 20])).await.unwrap();
            "all sent".to_owned()
        });
        office.outcomes.send(outcome.await).unwrap();
    })
}

/// A service with streams, and its issuer.
struct Live {
    store: FakeStore,
    clock: ManualClock,
    auth: Authenticator,
    app: Router,
    office: Office,
    outcomes: mpsc::UnboundedReceiver<Option<String>>,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Revoked,
    SwitchedOff,
    Deleted,
}

const ENDS: [End; 3] = [End::Revoked, End::SwitchedOff, End::Deleted];

impl Live {
    fn new() -> Self {
        let clock = ManualClock::default();
        let store = FakeStore::new(&clock);
        let (auth, _) =
            Authenticator::builder(store.clone(), format()).clock(clock.clone()).build();
        let (sender, outcomes) = mpsc::unbounded_channel();
        let office = Office {
            present: Present::default(),
            news: watch::Sender::new("hello"),
            outcomes: sender,
        };
        let app = Router::new()
            .route("/events", get(events))
            .route("/carefree", get(carefree))
            .route("/download", get(download))
            .route("/page", get(page))
            .route("/echo", any(echo))
            .route("/halves", any(halves))
            .route("/elsewhere", any(elsewhere))
            .route("/bulk", any(bulk))
            .layer(ApiKeyLayer::new(auth.clone()))
            .with_state(office.clone());
        Self { store, clock, auth, app, office, outcomes }
    }

    async fn serve(&self) -> SocketAddr {
        server::serve(self.app.clone()).await
    }

    async fn issue(&self) -> Key {
        self.issue_new(NewKey::new("acme", Expiry::Never)).await
    }

    async fn issue_new(&self, new: NewKey) -> Key {
        let issuer = KeyIssuer::new(self.store.clone(), format()).clock(self.clock.clone());
        Key::from(issuer.issue(new).await.unwrap())
    }

    /// Revokes a key like an operator on this node.
    async fn end(&self, key: &Key, end: End) {
        match end {
            End::Revoked => {
                self.store.revoke(key.record.id, None).await.unwrap().expect("a key to revoke");
            }
            End::SwitchedOff => {
                let mut record = self.store.get(key.record.id).await.unwrap().expect("a key");
                record.is_active = false;
                self.store.update(&record).await.unwrap();
            }
            End::Deleted => self.store.delete(key.record.key_hash),
        }
        self.auth.invalidate(&key.record.key_hash);
    }

    /// A response without a connection.
    async fn answer(&self, path: &str, key: &Key) -> Body {
        let response = self.app.clone().oneshot(request(path, key, Body::empty())).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body()
    }

    async fn outcome(&mut self) -> Option<String> {
        within(self.outcomes.recv()).await.unwrap()
    }
}

fn request<B>(path: &str, key: &Key, body: B) -> Request<B> {
    let uri = format!("http://localhost{path}");
    let request = Request::get(uri).header(AUTHORIZATION, format!("Bearer {}", key.text));
    request.body(body).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Http1,
    Http2,
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

impl Protocol {
    async fn get(self, address: SocketAddr, path: &str, key: &Key) -> http::Response<Incoming> {
        let request = request(path, key, Empty::new());
        match self {
            Self::Http1 => server::http1(address, request).await,
            Self::Http2 => server::http2(address, request).await,
        }
    }
}

/// The next chunk of a body; `None` after a regular end.
async fn next<B>(body: &mut B) -> Option<Result<Bytes, B::Error>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let frame = within(body.frame()).await?;
    Some(frame.map(|frame| frame.into_data().expect("data")))
}

async fn connect(address: SocketAddr, path: &str, key: &Key) -> WebSocketStream<TcpStream> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    let authorization = format!("Bearer {}", key.text).parse().unwrap();
    request.headers_mut().insert(AUTHORIZATION, authorization);
    let connection = within(TcpStream::connect(address)).await.unwrap();
    within(client_async(request, connection)).await.unwrap().0
}

/// The close frame from the server, after any other messages.
async fn closed(socket: &mut WebSocketStream<TcpStream>) -> (CloseCode, String) {
    loop {
        let message = within(socket.next()).await.expect("a close frame before the end");
        if let tungstenite::Message::Close(frame) = message.expect("no reset") {
            let frame = frame.expect("a code");
            return (frame.code, frame.reason.to_string());
        }
    }
}

#[tokio::test]
async fn events_break_off_however_their_key_ends() {
    for end in ENDS {
        for protocol in PROTOCOLS {
            let live = Live::new();
            let (address, key) = (live.serve().await, live.issue().await);
            let mut body = protocol.get(address, "/events", &key).await.into_body();
            assert_eq!(next(&mut body).await.unwrap().unwrap(), "data: hello\n\n");
            live.office.news.send_replace("more");
            assert_eq!(next(&mut body).await.unwrap().unwrap(), "data: more\n\n");

            live.end(&key, end).await;

            let rest = next(&mut body).await;
            assert!(matches!(rest, Some(Err(_))), "{end:?}, {protocol:?}: {rest:?}");
            live.office.present.until(0).await;
            let again = protocol.get(address, "/events", &key).await;
            assert_eq!(again.status(), StatusCode::UNAUTHORIZED, "{end:?}, {protocol:?}");
        }
    }
}

#[tokio::test]
async fn a_download_breaks_off_in_the_middle() {
    for protocol in PROTOCOLS {
        let live = Live::new();
        let (address, key) = (live.serve().await, live.issue().await);
        let mut body = protocol.get(address, "/download", &key).await.into_body();
        assert!(matches!(next(&mut body).await, Some(Ok(_))));

        live.end(&key, End::Revoked).await;

        let broken_off = loop {
            match next(&mut body).await {
                Some(Ok(_)) => {}
                Some(Err(_)) => break true,
                None => break false,
            }
        };
        assert!(broken_off, "{protocol:?}: a part is taken for the whole");
        live.office.present.until(0).await;
    }
}

#[tokio::test]
async fn a_client_that_stalled_is_cut_off_when_it_reads_on() {
    let live = Live::new();
    let (address, key) = (live.serve().await, live.issue().await);
    let mut stalled = within(TcpStream::connect(address)).await.unwrap();
    let request = format!(
        "GET /download HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
        key.text
    );
    within(stalled.write_all(request.as_bytes())).await.unwrap();
    live.office.present.until(1).await;
    let mut events = Protocol::Http1.get(address, "/events", &key).await.into_body();
    assert!(matches!(next(&mut events).await, Some(Ok(_))));

    live.end(&key, End::Revoked).await;
    assert!(matches!(next(&mut events).await, Some(Err(_))));

    let mut answer = Vec::new();
    // A reset is an acceptable end, too.
    let _ = within(stalled.read_to_end(&mut answer)).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert!(!answer.ends_with(b"\r\n0\r\n\r\n"), "a part is taken for the whole");
    live.office.present.until(0).await;
}

#[tokio::test(start_paused = true)]
async fn events_break_off_when_their_key_expires() {
    const LIFE: Duration = Duration::from_secs(600);
    let live = Live::new();
    let key = live.issue_new(NewKey::new("acme", Expiry::In(LIFE))).await;
    let mut body = live.answer("/events", &key).await;
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "data: hello\n\n");
    let pass = async |time: Duration| {
        live.clock.advance(time);
        time::advance(time).await;
    };

    pass(LIFE - Duration::from_secs(1)).await;
    assert!(poll_once(&mut body.frame()).is_pending(), "it still has a second");

    pass(Duration::from_secs(1)).await;
    let error = next(&mut body).await.expect("no proper end").unwrap_err();
    assert!(error.into_inner().is::<KeyEndedError>());
    live.office.present.until(0).await;
    assert!(next(&mut body).await.is_none());
}

#[tokio::test]
async fn an_answer_that_is_complete_is_left_alone() {
    for protocol in PROTOCOLS {
        let live = Live::new();
        let (address, key) = (live.serve().await, live.issue().await);
        let mut response = protocol.get(address, "/page", &key).await;
        assert_eq!(response.headers()["content-length"], "6");
        assert_eq!(next(response.body_mut()).await.unwrap().unwrap(), "a page");

        live.end(&key, End::Revoked).await;

        assert!(next(response.body_mut()).await.is_none(), "{protocol:?}");
    }
}

#[tokio::test]
async fn an_answer_that_did_not_ask_goes_on_and_nobody_watches_its_key() {
    let live = Live::new();
    let (address, watched, unwatched) =
        (live.serve().await, live.issue().await, live.issue().await);
    let mut carefree = Protocol::Http1.get(address, "/carefree", &unwatched).await.into_body();
    let mut events = Protocol::Http1.get(address, "/events", &watched).await.into_body();
    assert_eq!(next(&mut carefree).await.unwrap().unwrap(), "data: hello\n\n");
    assert_eq!(next(&mut events).await.unwrap().unwrap(), "data: hello\n\n");

    live.end(&unwatched, End::Revoked).await;
    live.end(&watched, End::Revoked).await;

    assert!(matches!(next(&mut events).await, Some(Err(_))));
    live.office.news.send_replace("more");
    assert_eq!(next(&mut carefree).await.unwrap().unwrap(), "data: more\n\n");
    assert_eq!(live.store.queries_for(&unwatched.record.key_hash), 1, "that of its request");
}

#[tokio::test]
async fn a_socket_is_closed_for_a_violation_of_policy() {
    for path in ["/echo", "/halves", "/elsewhere"] {
        let mut live = Live::new();
        let (address, key) = (live.serve().await, live.issue().await);
        let mut socket = connect(address, path, &key).await;
        live.office.present.until(1).await;
        // Some of it is unread when the key ends.
        for _ in 0..100 {
            within(socket.send("words".into())).await.unwrap();
        }

        live.end(&key, End::Revoked).await;

        let farewell = (CloseCode::Policy, "authorization ended".to_owned());
        assert_eq!(closed(&mut socket).await, farewell, "{path}");
        assert!(within(socket.next()).await.is_none(), "{path}");
        assert_eq!(live.outcome().await, None, "{path}");
        live.office.present.until(0).await;
    }
}

#[tokio::test]
async fn a_session_that_ends_by_itself_returns_its_result() {
    let mut live = Live::new();
    let (address, key) = (live.serve().await, live.issue().await);
    let mut socket = connect(address, "/echo", &key).await;
    within(socket.send("hello".into())).await.unwrap();
    let answer = within(socket.next()).await.unwrap().unwrap();
    assert_eq!(answer.into_text().unwrap(), "hello");

    within(socket.send("bye, see you".into())).await.unwrap();
    assert_eq!(live.outcome().await.as_deref(), Some("bye, see you"));

    let socket = connect(address, "/halves", &key).await;
    live.office.present.until(1).await;
    drop(socket);
    assert_eq!(live.outcome().await.as_deref(), Some("the client has gone"));
}

#[tokio::test]
async fn a_client_that_does_not_read_keeps_nothing_alive() {
    let mut live = Live::new();
    let (address, key) = (live.serve().await, live.issue().await);
    let socket = connect(address, "/bulk", &key).await;
    live.office.present.until(1).await;

    live.end(&key, End::Revoked).await;

    live.office.present.until(0).await;
    assert_eq!(live.outcome().await, None);
    drop(socket);
}

#[tokio::test]
async fn a_client_that_does_not_answer_is_not_waited_for() {
    let mut live = Live::new();
    let (address, key) = (live.serve().await, live.issue().await);
    let mut socket = connect(address, "/elsewhere", &key).await;
    live.office.present.until(1).await;

    live.end(&key, End::Revoked).await;

    // Its own close frame would be sent with its next action, and there is none.
    assert_eq!(closed(&mut socket).await.0, CloseCode::Policy);
    assert_eq!(live.outcome().await, None);
}

/// Thousands of streams over a slow store.
mod herd {
    use std::{
        collections::{HashMap, HashSet},
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
        time::SystemTime,
    };

    use tokio::time::{Instant, timeout};
    use tower_api_key::{
        auth::{CachePolicy, RejectionKind},
        clock::Clock,
        key::{Alphabet, ImportedFormat, KeyHash},
        record::{KeyId, KeyRecord},
        store::{KeyStore, StoreError, StoreErrorKind, port::Change},
    };

    use super::*;
    use crate::doubles::FakeFeed;

    const SECOND: Duration = Duration::from_secs(1);
    const MILLI: Duration = Duration::from_millis(1);
    const STREAMS: usize = 4_000;
    /// The latency of a store that is 30 ms away.
    const LATENCY: Duration = Duration::from_millis(30);
    /// A quarter of the maximum number of look-ups, by default.
    const TURNS: usize = 16;

    /// The clock of the paused runtime, so that everything is as late as the timers are.
    struct RuntimeClock(Instant);

    impl Clock for RuntimeClock {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600) + self.0.elapsed()
        }

        fn monotonic(&self) -> Duration {
            self.0.elapsed()
        }
    }

    /// Has every key, except those that were removed.
    #[derive(Clone, Default)]
    struct SlowStore(Arc<Slow>);

    #[derive(Default)]
    struct Slow {
        latency: Mutex<Duration>,
        revoked: Mutex<HashSet<KeyHash>>,
        queries: Mutex<HashMap<KeyHash, usize>>,
        under_way: AtomicUsize,
        most: AtomicUsize,
    }

    impl SlowStore {
        fn revoke(&self, hash: KeyHash) {
            self.0.revoked.lock().unwrap().insert(hash);
        }

        fn take_queries(&self) -> HashMap<KeyHash, usize> {
            std::mem::take(&mut self.0.queries.lock().unwrap())
        }

        fn answer_after(&self, latency: Duration) {
            *self.0.latency.lock().unwrap() = latency;
        }
    }

    impl KeyStore for SlowStore {
        async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
            *self.0.queries.lock().unwrap().entry(*hash).or_default() += 1;
            let under_way = self.0.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.0.most.fetch_max(under_way, Ordering::SeqCst);
            let latency = *self.0.latency.lock().unwrap();
            let _ = timeout(latency, pending::<()>()).await;
            self.0.under_way.fetch_sub(1, Ordering::SeqCst);
            let mut record = KeyRecord::new(id(hash), *hash, "acme", SystemTime::UNIX_EPOCH);
            record.is_active = !self.0.revoked.lock().unwrap().contains(hash);
            Ok(Some(record))
        }
    }

    fn id(hash: &KeyHash) -> KeyId {
        KeyId::from_bytes(*hash.as_bytes().first_chunk().unwrap())
    }

    fn text(number: usize) -> String {
        format!("{number:064x}")
    }

    fn any_key() -> ImportedFormat {
        ImportedFormat::new("", Alphabet::Hex, 64).unwrap()
    }

    fn hash_of(number: usize) -> KeyHash {
        any_key().parse(text(number).as_bytes()).unwrap().hash()
    }

    struct Herd {
        auth: Authenticator,
        store: SlowStore,
        feed: FakeFeed,
        /// The number of each ended stream, and when it ended.
        ended: mpsc::UnboundedReceiver<(usize, Instant)>,
        end: mpsc::UnboundedSender<(usize, Instant)>,
    }

    impl Herd {
        /// `streams` streams of `keys` keys.
        async fn new(streams: usize, keys: usize, policy: CachePolicy) -> Self {
            let (store, feed) = (SlowStore::default(), FakeFeed::new());
            let builder = Authenticator::builder(store.clone(), format())
                .accept(any_key())
                .clock(RuntimeClock(Instant::now()))
                .cache(policy)
                .change_feed(feed.clone());
            let (auth, worker) = builder.build();
            tokio::spawn(worker.run(pending()));
            feed.until(|state| state.is_connected).await;
            let (end, ended) = mpsc::unbounded_channel();
            let herd = Self { auth, store, feed, ended, end };
            for stream in 0..streams {
                herd.watch(stream % keys).await;
            }
            settle().await;
            herd.store.take_queries();
            herd.store.answer_after(LATENCY);
            herd.store.0.most.store(0, Ordering::SeqCst);
            herd
        }

        async fn watch(&self, number: usize) {
            let admission = self.auth.check(text(number).as_bytes()).await.unwrap();
            let (ended, end) = (admission.consumer().key_ended(), self.end.clone());
            tokio::spawn(async move {
                ended.await;
                let _ = end.send((number, Instant::now()));
            });
        }

        async fn tell_all(&self, keys: usize) {
            for number in 0..keys {
                self.feed.tell(Change::Changed(id(&hash_of(number))));
            }
            self.feed.until(|state| state.told.is_empty()).await;
        }

        /// The streams that have ended within `for_this_long` from now, and the time that took.
        async fn ends(&mut self, for_this_long: Duration) -> Vec<(usize, Duration)> {
            let (begin, mut ends) = (Instant::now(), Vec::new());
            let wait = async {
                while let Some((number, at)) = self.ended.recv().await {
                    ends.push((number, at - begin));
                }
            };
            let _ = timeout(for_this_long, wait).await;
            ends
        }
    }

    async fn settle() {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    #[track_caller]
    fn assert_only(ends: &[(usize, Duration)], expected: &[usize], within: Duration) {
        let mut numbers: Vec<_> = ends.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers.len(), expected.len(), "{} streams ended", numbers.len());
        assert_eq!(numbers, expected);
        assert!(ends.iter().all(|(_, after)| *after <= within), "{ends:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_all_keys_ends_no_stream_but_that_of_the_key_that_it_ended() {
        let mut herd = Herd::new(STREAMS, STREAMS, CachePolicy::default()).await;
        let revoked = [7, 1234, STREAMS - 1];
        revoked.iter().for_each(|number| herd.store.revoke(hash_of(*number)));
        herd.tell_all(STREAMS).await;

        // The time to look all of them up, this many at a time.
        let all = LATENCY * u32::try_from(STREAMS / TURNS).unwrap() + SECOND;
        assert_only(&herd.ends(50 * SECOND).await, &revoked, all);
        let queries = herd.store.take_queries();
        assert_eq!(queries.len(), STREAMS);
        assert!(queries.values().all(|queries| *queries == 1), "a key was asked for twice");
        assert!(herd.store.0.most.load(Ordering::SeqCst) <= TURNS);
        // And again when their records become stale.
        assert_only(&herd.ends(120 * SECOND).await, &[], all);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_let_in_while_all_streams_look_their_keys_up() {
        let mut herd = Herd::new(STREAMS, STREAMS, CachePolicy::default()).await;
        herd.tell_all(STREAMS).await;
        for new in 0..100 {
            let (begin, key) = (Instant::now(), text(1_000_000 + new));
            herd.auth.check(key.as_bytes()).await.expect("a stranger is let in");
            assert!(begin.elapsed() <= 3 * LATENCY, "it waited for {:?}", begin.elapsed());
        }
        assert!(herd.store.take_queries().len() < STREAMS, "the streams were faster");
        assert_only(&herd.ends(10 * SECOND).await, &[], SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn when_everything_may_have_changed_no_stream_of_a_key_that_works_ends() {
        let mut herd = Herd::new(STREAMS, STREAMS, CachePolicy::default()).await;
        herd.store.revoke(hash_of(42));
        herd.feed.tell(Change::Everything);
        let all = LATENCY * u32::try_from(STREAMS / TURNS).unwrap() + SECOND;
        assert_only(&herd.ends(50 * SECOND).await, &[42], all);
        let queries = herd.store.take_queries();
        assert_eq!(queries.len(), STREAMS);
        assert!(queries.values().all(|queries| *queries <= 2));
        assert!(herd.store.0.most.load(Ordering::SeqCst) <= TURNS);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_of_one_key_share_a_query() {
        const KEYS: usize = 40;
        let mut herd = Herd::new(STREAMS, KEYS, CachePolicy::default()).await;
        herd.store.revoke(hash_of(3));
        herd.tell_all(KEYS).await;
        let of_one = [3; STREAMS / KEYS];
        assert_only(&herd.ends(30 * SECOND).await, &of_one, SECOND);
        let queries = herd.store.take_queries();
        assert_eq!(queries.len(), KEYS);
        assert!(queries.values().all(|queries| *queries == 1), "{queries:?}");
    }

    /// Requests for keys that are invalidated again and again take every permit.
    async fn overload(herd: &Herd) {
        let mut requests = Vec::new();
        for _ in 0..300 {
            for number in 0..20 {
                let (auth, number) = (herd.auth.clone(), 2_000_000 + number);
                auth.invalidate(&hash_of(number));
                requests.push(tokio::spawn(async move {
                    auth.check(text(number).as_bytes()).await.map(drop)
                }));
            }
            let _ = timeout(100 * MILLI, pending::<()>()).await;
        }
        let mut overloaded = 0;
        for request in requests {
            let outcome = request.await.unwrap().map_err(|rejection| rejection.kind());
            overloaded += usize::from(outcome == Err(RejectionKind::Overloaded));
        }
        assert!(overloaded > 1_000, "it was no overload: {overloaded}");
    }

    #[tokio::test(start_paused = true)]
    async fn look_ups_that_get_no_turn_end_no_stream_and_go_on_when_they_get_one() {
        let policy = CachePolicy::default().max_loads(4);
        let mut herd = Herd::new(50, 50, policy).await;
        for number in 0..20 {
            herd.auth.check(text(2_000_000 + number).as_bytes()).await.unwrap();
        }
        herd.store.answer_after(200 * MILLI);
        herd.store.revoke(hash_of(3));
        herd.tell_all(50).await;
        overload(&herd).await;
        // During the overload or afterwards.
        assert_only(&herd.ends(20 * SECOND).await, &[3], 20 * SECOND);
    }

    /// Reports that it is overloaded, or down, for old keys.
    #[derive(Clone, Default)]
    struct Failing(Arc<Mutex<Option<StoreErrorKind>>>);

    impl KeyStore for Failing {
        async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
            match *self.0.lock().unwrap() {
                Some(kind) => Err(StoreError::new(kind)),
                None => {
                    let (id, created_at) = (id(hash), SystemTime::UNIX_EPOCH);
                    Ok(Some(KeyRecord::new(id, *hash, "acme", created_at)))
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_fail_together_do_not_come_again_together() {
        let store = Failing::default();
        let builder = Authenticator::builder(store.clone(), format()).accept(any_key());
        let times = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&times);
        let observer = move |event: &tower_api_key::auth::Event<'_>| {
            if matches!(event, tower_api_key::auth::Event::StaleServed { .. }) {
                seen.lock().unwrap().push(Instant::now());
            }
        };
        let clock = RuntimeClock(Instant::now());
        let (auth, worker) = builder.clock(clock).observer(observer).build();
        drop(worker);
        for number in 0..1_000 {
            let admission = auth.check(text(number).as_bytes()).await.unwrap();
            tokio::spawn(admission.consumer().key_ended());
        }
        settle().await;
        *store.0.lock().unwrap() = Some(StoreErrorKind::Unavailable);
        let _ = timeout(75 * SECOND, pending::<()>()).await;
        let times = times.lock().unwrap();
        let after_the_first: Vec<_> =
            times.iter().filter(|at| **at > times[0] + 400 * MILLI).collect();
        assert!(after_the_first.len() > 2_000, "{}", after_the_first.len());
        let mut at_once = HashMap::<_, usize>::new();
        for at in after_the_first {
            *at_once.entry((*at - times[0]).as_millis() / 10).or_default() += 1;
        }
        let most = at_once.values().max().unwrap();
        assert!(*most < 100, "{most} of 1,000 came within 10 ms");
    }
}
