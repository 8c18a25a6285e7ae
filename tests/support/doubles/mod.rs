//! Fakes for the surroundings of an authenticator, and a small service made of them.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of the doubles")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a double that fails must fail its test"
)]

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use tokio::sync::{oneshot, watch};
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer,
    auth::{Builder, Event, Rejection, RejectionKind, Worker},
    clock::ManualClock,
    key::{EntropySource, KeyFormat, KeyHash, RngError},
    manage::{Expiry, Issued, KeyIssuer, NewKey},
    rate_limit::RateLimits,
    record::{KeyId, KeyRecord},
    store::{
        EventPage, EventQuery, KeyPage, KeyQuery, KeyStore, ManageKeys, MemoryKeyStore,
        MemoryTransaction, StoreError, StoreErrorKind,
        port::{
            Change, ChangeFeed, CountedUses, ManagePlans, Staleness, Usage, UsageBatch, UseCounts,
        },
    },
};

use crate::raw_store::ByHand as _;
pub use crate::wait::within;

/// Polls a future once.
pub fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

pub fn format() -> KeyFormat {
    KeyFormat::new("sk_test_").unwrap()
}

/// A well-formed key that was never issued.
pub fn unknown_key() -> String {
    format().generate().unwrap().expose_secret().to_owned()
}

pub fn hash(key: &str) -> KeyHash {
    format().parse(key.as_bytes()).unwrap().hash()
}

pub type FutureReply = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// A handler behind the layer, the parts of the layer, and the observed events.
pub struct Service<S = FakeStore> {
    pub store: S,
    pub clock: ManualClock,
    pub auth: Authenticator,
    pub heard: Heard,
    app: Router,
}

impl Service {
    pub fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub fn with(settings: impl FnOnce(Builder) -> Builder) -> Self {
        Self::and_worker(settings).0
    }

    pub fn and_worker(settings: impl FnOnce(Builder) -> Builder) -> (Self, Worker) {
        let clock = ManualClock::default();
        Self::around(FakeStore::new(&clock), clock, settings)
    }
}

impl<S: KeyStore + Clone> Service<S> {
    pub fn around(
        store: S,
        clock: ManualClock,
        settings: impl FnOnce(Builder) -> Builder,
    ) -> (Self, Worker) {
        let heard = Heard::default();
        let builder = Authenticator::builder(store.clone(), format())
            .clock(clock.clone())
            .observer(heard.clone());
        let (auth, worker) = settings(builder).build();
        let app = Router::new().route("/", get(whoami)).layer(ApiKeyLayer::new(auth.clone()));
        (Self { store, clock, auth, heard, app }, worker)
    }

    /// The future of the response to a request with `key`, not polled yet.
    pub fn request(&self, key: &str) -> FutureReply {
        let request = Request::get("/").header(header::AUTHORIZATION, format!("Bearer {key}"));
        self.send(request.body(Body::empty()).unwrap())
    }

    pub fn send(&self, request: Request<Body>) -> FutureReply {
        let response = self.app.clone().oneshot(request);
        Box::pin(async move { Reply::of(response.await.unwrap()).await })
    }

    pub async fn get(&self, key: &str) -> Reply {
        within(self.request(key)).await
    }

    /// A request that was polled once and waits for the store.
    pub fn begin(&self, key: &str) -> FutureReply {
        let mut request = self.request(key);
        assert!(poll_once(&mut request).is_pending(), "the request waits for nothing");
        request
    }

    /// The response to a request that must be ready at once.
    pub fn get_at_once(&self, key: &str) -> Reply {
        match poll_once(&mut self.request(key)) {
            Poll::Ready(reply) => reply,
            Poll::Pending => panic!("the request waits for something"),
        }
    }
}

impl<S: ManageKeys + Clone> Service<S> {
    /// A valid key of `consumer`, stored without telling the authenticator.
    pub async fn issue(&self, consumer: &str) -> Key {
        self.issue_new(NewKey::new(consumer, Expiry::Never)).await
    }

    pub async fn issue_new(&self, new: NewKey) -> Key {
        let issuer = KeyIssuer::new(self.store.clone(), format()).clock(self.clock.clone());
        Key::from(issuer.issue(new).await.unwrap())
    }

    /// Revokes as an operator on this node does, which also invalidates the cache.
    pub async fn revoke(&self, key: &Key) {
        self.store.revoke(key.record.id, None).await.unwrap().expect("a key to revoke");
        self.auth.invalidate(&key.record.key_hash);
    }
}

async fn whoami(consumer: Consumer) -> impl IntoResponse {
    let name = consumer.key_name().unwrap_or_default().to_owned();
    ([("x-key-name", name)], consumer.id().to_owned())
}

/// A key as its owner and its store know it.
#[derive(Clone)]
pub struct Key {
    pub text: String,
    pub record: KeyRecord,
}

impl From<Issued> for Key {
    fn from(issued: Issued) -> Self {
        Self { text: issued.key.expose_secret().to_owned(), record: issued.record }
    }
}

/// The response that a client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: StatusCode,
    pub body: String,
    pub kind: Option<RejectionKind>,
    pub retry_after: Option<u64>,
    pub key_name: Option<String>,
}

impl Reply {
    async fn of(response: axum::response::Response) -> Self {
        let (parts, body) = response.into_parts();
        let header = |name: &str| Some(parts.headers.get(name)?.to_str().unwrap().to_owned());
        Self {
            status: parts.status,
            kind: parts.extensions.get::<Rejection>().map(Rejection::kind),
            retry_after: header("retry-after").map(|text| text.parse().expect("whole seconds")),
            key_name: header("x-key-name"),
            body: String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap(),
        }
    }

    #[track_caller]
    pub fn is_for(&self, consumer: &str) {
        assert_eq!((self.status, &*self.body), (StatusCode::OK, consumer), "{self:?}");
    }

    #[track_caller]
    pub fn is_refused(&self, kind: RejectionKind) {
        assert_eq!((self.status, self.kind), (StatusCode::UNAUTHORIZED, Some(kind)), "{self:?}");
        assert_eq!(self.retry_after, None, "{self:?}");
    }

    /// Asserts 503 with `Retry-After`.
    #[track_caller]
    pub fn is_unavailable(&self, kind: RejectionKind) {
        let expected = (StatusCode::SERVICE_UNAVAILABLE, Some(kind));
        assert_eq!((self.status, self.kind), expected, "{self:?}");
        assert!(self.retry_after.is_some_and(|seconds| seconds >= 1), "{self:?}");
    }
}

/// Keys in memory, behind a database that the test controls.
///
/// A query reads its row at once and answers later, as in a real database: by then, the row may
/// have changed.
#[derive(Clone)]
pub struct FakeStore {
    keys: MemoryKeyStore,
    state: Arc<watch::Sender<State>>,
}

#[derive(Default)]
pub struct State {
    answers: Answers,
    holding: bool,
    held: VecDeque<oneshot::Sender<()>>,
    deleted: HashSet<KeyHash>,
    /// The hashes that were looked up.
    pub queries: Vec<KeyHash>,
    /// How many look-ups were answered.
    pub answered: usize,
    /// The batches of last uses that were written.
    pub batches: Vec<UsageBatch>,
    /// How many times a batch was offered.
    pub flushes: usize,
}

/// How the database answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    #[default]
    Truthfully,
    With(StoreErrorKind),
    Panicking,
    Never,
}

/// The store is down.
pub const DOWN: Answers = Answers::With(StoreErrorKind::Unavailable);

impl FakeStore {
    pub fn new(clock: &ManualClock) -> Self {
        let keys = MemoryKeyStore::with_clock(clock.clone());
        Self { keys, state: Arc::default() }
    }

    /// Sets how the database answers from now on.
    pub fn answer(&self, answers: Answers) {
        self.state.send_modify(|state| state.answers = answers);
    }

    /// From now on, queries read their row but do not answer.
    pub fn hold(&self) {
        self.state.send_modify(|state| state.holding = true);
    }

    /// Lets every query answer.
    pub fn release(&self) {
        self.state.send_modify(|state| {
            state.holding = false;
            state.held.clear();
        });
    }

    /// Lets one held query answer, counted from the oldest. False if there is none.
    pub fn release_one(&self, index: usize) -> bool {
        self.state.send_if_modified(|state| {
            state.held.retain(|query| !query.is_closed());
            state.held.remove(index).is_some()
        })
    }

    /// Deletes the row.
    pub fn delete(&self, hash: KeyHash) {
        self.state.send_modify(|state| assert!(state.deleted.insert(hash)));
    }

    /// Puts a deleted row back.
    pub fn restore(&self, hash: KeyHash) {
        self.state.send_modify(|state| assert!(state.deleted.remove(&hash)));
    }

    pub fn queries(&self) -> usize {
        self.state.borrow().queries.len()
    }

    pub fn answered(&self) -> usize {
        self.state.borrow().answered
    }

    pub fn queries_for(&self, hash: &KeyHash) -> usize {
        self.state.borrow().queries.iter().filter(|asked| *asked == hash).count()
    }

    pub async fn inserted(&self) -> usize {
        self.keys.list(&KeyQuery::new()).await.unwrap().keys.len()
    }

    /// The last uses of each batch that has some.
    pub fn batches(&self) -> Vec<Vec<Usage>> {
        let state = self.state.borrow();
        let last_uses = state.batches.iter().map(|batch| batch.last_uses.clone());
        last_uses.filter(|uses| !uses.is_empty()).collect()
    }

    /// The counts of each batch that has some.
    pub fn counted(&self) -> Vec<CountedUses> {
        let state = self.state.borrow();
        state.batches.iter().filter_map(|batch| batch.counted.clone()).collect()
    }

    /// What all batches count of a key.
    pub fn counts_of(&self, key: &Key) -> UseCounts {
        let counted = self.counted();
        let hours = counted.iter().flat_map(|batch| &batch.hours);
        let hours = hours.filter(|used| used.key_id == key.record.id);
        hours.fold(UseCounts::default(), |sum, used| sum.plus(used.counts))
    }

    pub fn flushes(&self) -> usize {
        self.state.borrow().flushes
    }

    pub async fn until(&self, reached: impl FnMut(&State) -> bool) {
        within(self.state.subscribe().wait_for(reached)).await.unwrap();
    }

    async fn answers(&self) -> Result<(), StoreError> {
        let answers = self.state.borrow().answers;
        match answers {
            Answers::Truthfully => Ok(()),
            Answers::With(kind) => Err(StoreError::new(kind)),
            Answers::Panicking => panic!("the store panics, as the test wants it to"),
            Answers::Never => pending().await,
        }
    }
}

impl KeyStore for FakeStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let row = self.keys.find(hash).await?;
        let (mut held, mut is_deleted) = (None, false);
        self.state.send_modify(|state| {
            is_deleted = state.deleted.contains(hash);
            state.queries.push(*hash);
            if state.holding {
                let (release, released) = oneshot::channel();
                state.held.push_back(release);
                held = Some(released);
            }
        });
        let row = row.filter(|_| !is_deleted);
        if let Some(released) = held {
            // An error means the other end was dropped, which releases the query as well.
            let _ = released.await;
        }
        self.answers().await?;
        self.state.send_modify(|state| state.answered += 1);
        Ok(row)
    }

    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        self.state.send_modify(|state| state.flushes += 1);
        self.answers().await?;
        self.state.send_modify(|state| state.batches.push(batch.clone()));
        self.keys.record_usage(batch).await
    }
}

/// Management is never held.
impl ManageKeys for FakeStore {
    type Transaction = MemoryTransaction;

    async fn begin(&self) -> Result<MemoryTransaction, StoreError> {
        self.keys.begin().await
    }

    async fn get(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.keys.get(id).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.keys.list(query).await
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        self.keys.events(query).await
    }

    async fn last_used_at(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        self.keys.last_used_at(id).await
    }
}

impl ManagePlans for FakeStore {
    async fn set_plan(&self, name: &str, limits: &RateLimits) -> Result<(), StoreError> {
        self.keys.set_plan(name, limits).await
    }

    async fn remove_plan(&self, name: &str) -> Result<bool, StoreError> {
        self.keys.remove_plan(name).await
    }

    async fn plans(&self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        self.keys.plans().await
    }
}

/// A change feed that the test controls. Clones are one feed.
#[derive(Clone)]
pub struct FakeFeed(Arc<watch::Sender<FeedState>>);

#[derive(Default)]
pub struct FeedState {
    pub is_down: bool,
    pub is_connected: bool,
    pub told: VecDeque<Tells>,
    /// How often the worker tried to connect.
    pub attempts: usize,
    pub staleness: Option<Staleness>,
}

/// What a feed does next.
#[derive(Clone, Copy, Debug)]
pub enum Tells {
    Change(Change),
    Panic,
}

impl FakeFeed {
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// A change is lost if nothing listens.
    pub fn tell(&self, change: Change) {
        self.push(Tells::Change(change));
    }

    pub fn panic(&self) {
        self.push(Tells::Panic);
    }

    fn push(&self, tells: Tells) {
        self.0.send_modify(|state| {
            if state.is_connected {
                state.told.push_back(tells);
            }
        });
    }

    pub fn lose(&self) {
        self.0.send_modify(|state| {
            (state.is_down, state.is_connected) = (true, false);
            state.told.clear();
        });
    }

    pub fn come_back(&self) {
        self.0.send_modify(|state| state.is_down = false);
    }

    /// Takes effect with the next change.
    pub fn set_staleness(&self, staleness: Option<Staleness>) {
        self.0.send_modify(|state| state.staleness = staleness);
    }

    pub fn is_connected(&self) -> bool {
        self.0.borrow().is_connected
    }

    pub fn attempts(&self) -> usize {
        self.0.borrow().attempts
    }

    pub async fn until(&self, reached: impl FnMut(&FeedState) -> bool) {
        within(self.0.subscribe().wait_for(reached)).await.unwrap();
    }
}

impl ChangeFeed for FakeFeed {
    async fn connect(&mut self) -> Result<(), StoreError> {
        self.0.send_modify(|state| {
            state.attempts += 1;
            state.is_connected = !state.is_down;
        });
        if self.is_connected() { Ok(()) } else { Err(StoreError::new(StoreErrorKind::Unavailable)) }
    }

    async fn next(&mut self) -> Result<Change, StoreError> {
        let mut state = self.0.subscribe();
        let waiting = state.wait_for(|state| !state.is_connected || !state.told.is_empty());
        drop(waiting.await.unwrap());
        let mut next = None;
        self.0.send_modify(|state| next = state.told.pop_front());
        match next {
            Some(Tells::Change(change)) => Ok(change),
            Some(Tells::Panic) => panic!("the feed panics, as the test wants it to"),
            None => Err(StoreError::new(StoreErrorKind::Unavailable)),
        }
    }

    fn staleness(&self) -> Option<Staleness> {
        self.0.borrow().staleness
    }
}

/// An observer that records events.
#[derive(Clone, Default)]
pub struct Heard(Arc<watch::Sender<Vec<Said>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Rejected(RejectionKind, Option<KeyId>),
    StaleServed(KeyId),
    LoadFailed(StoreErrorKind),
    UsageFlushed(usize),
    UsageFlushFailed(StoreErrorKind),
    UsageDropped,
    FeedLive,
    FeedLost(StoreErrorKind),
    FeedMessageUnrecognized,
    ClockGap(Duration),
    DutyPanicked(&'static str),
}

impl Heard {
    /// The events since the last call.
    pub fn take(&self) -> Vec<Said> {
        self.0.send_replace(Vec::new())
    }

    pub fn count(&self, said: Said) -> usize {
        self.count_by(|heard| *heard == said)
    }

    pub fn count_by(&self, is_counted: impl Fn(&Said) -> bool) -> usize {
        self.0.borrow().iter().filter(|heard| is_counted(heard)).count()
    }

    pub async fn until(&self, heard: impl FnMut(&Vec<Said>) -> bool) {
        within(self.0.subscribe().wait_for(heard)).await.unwrap();
    }
}

impl tower_api_key::auth::Observer for Heard {
    fn observe(&self, event: &Event<'_>) {
        let said = match *event {
            Event::Rejected { kind, key_id, .. } => Said::Rejected(kind, key_id),
            Event::StaleServed { key_id, .. } => Said::StaleServed(key_id),
            Event::LoadFailed { error, .. } => Said::LoadFailed(error.kind()),
            Event::UsageFlushed { keys, .. } => Said::UsageFlushed(keys),
            Event::UsageFlushFailed { error, .. } => Said::UsageFlushFailed(error.kind()),
            Event::UsageDropped => Said::UsageDropped,
            Event::FeedLive => Said::FeedLive,
            Event::FeedLost { error, .. } => Said::FeedLost(error.kind()),
            Event::FeedMessageUnrecognized => Said::FeedMessageUnrecognized,
            Event::ClockGap { ahead, .. } => Said::ClockGap(ahead),
            Event::DutyPanicked { duty, .. } => Said::DutyPanicked(duty),
            // Counted by tests of their own.
            Event::Admitted { .. } | Event::Loaded { .. } => return,
            _ => panic!("an event nobody has told this test of: {event:?}"),
        };
        self.0.send_modify(|heard| heard.push(said));
    }
}

/// Randomness from a list: each draw is filled with the next byte of the list, and fails when the
/// list is used up.
pub struct Draws(Mutex<VecDeque<u8>>);

impl Draws {
    pub fn of(bytes: impl IntoIterator<Item = u8>) -> Self {
        Self(Mutex::new(bytes.into_iter().collect()))
    }

    /// Bytes that make a key in one draw. Draws whose text has a `-` are repeated.
    pub fn usable() -> impl Iterator<Item = u8> {
        (1..=u8::MAX).filter(|&byte| format().generate_from(&Self::of([byte])).is_ok())
    }
}

impl EntropySource for Draws {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError> {
        let byte = self.0.lock().unwrap().pop_front();
        buffer.fill(byte.ok_or_else(|| RngError::new("no randomness is left"))?);
        Ok(())
    }
}

impl fmt::Debug for Draws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Draws")
    }
}
