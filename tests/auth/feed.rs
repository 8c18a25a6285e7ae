//! The effect of changes that a feed announces, and of those it misses.

use std::{
    collections::HashMap,
    future::pending,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{sync::oneshot, task::JoinHandle};
use tower_api_key::{
    Consumer,
    auth::{Builder, CachePolicy, Event, FeedHealth, RejectionKind, StoreHealth},
    clock::{Clock, ManualClock},
    key::KeyHash,
    manage::{Expiry, NewKey},
    rate_limit::{Quota, RateLimits},
    record::{KeyEnded, KeyId, KeyRecord},
    store::{
        KeyStore, StoreError, StoreErrorKind,
        port::{Change, ChangeFeed, Staleness},
    },
};

use crate::doubles::{
    Answers, DOWN, FakeFeed, FutureReply, Key, Said, Service, hash, poll_once, unknown_key, within,
};
use crate::raw_store::ByHand as _;

const FRESH: Duration = Duration::from_secs(60);
const FRESH_DURING_GAP: Duration = Duration::from_secs(5);
const STALE_IF_ERROR: Duration = Duration::from_secs(600);
const SECOND: Duration = Duration::from_secs(1);

/// A service with a change feed and a running worker.
struct Node {
    service: Service,
    feed: FakeFeed,
    shutdown: Option<oneshot::Sender<()>>,
    worker: JoinHandle<()>,
}

impl Node {
    async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    async fn with(settings: impl FnOnce(Builder) -> Builder) -> Self {
        let node = Self::without_feed_yet(FakeFeed::new(), settings);
        node.heard(Said::FeedLive).await;
        // Wait until the worker has probed the store.
        node.service.store.until(|state| state.answered == 1).await;
        node
    }

    fn without_feed_yet(feed: FakeFeed, settings: impl FnOnce(Builder) -> Builder) -> Self {
        let settings = |builder: Builder| settings(builder).change_feed(feed.clone());
        let (service, worker) = Service::and_worker(settings);
        let (shutdown, asked) = oneshot::channel::<()>();
        let worker = tokio::spawn(worker.run(async { drop(asked.await) }));
        Self { service, feed, shutdown: Some(shutdown), worker }
    }

    async fn known(&self, consumer: &str) -> Key {
        let key = self.service.issue(consumer).await;
        self.service.get(&key.text).await.is_for(consumer);
        key
    }

    /// Revokes like another node.
    async fn revoke_elsewhere(&self, key: &Key) {
        self.service.store.revoke(key.record.id, None).await.unwrap();
    }

    /// Announces a change, and waits until the worker has handled it.
    async fn tell(&self, change: Change) {
        self.feed.tell(change);
        // A change is handled once the worker takes the one after it.
        self.feed.tell(Change::Unrecognized);
        self.heard(Said::FeedMessageUnrecognized).await;
    }

    /// Waits until the gap has begun.
    async fn lose_feed(&self) {
        self.feed.lose();
        self.heard(Said::FeedLost(StoreErrorKind::Unavailable)).await;
    }

    /// A request whose query has read its row and responds when the store is released.
    async fn look_up(&self, key: &Key) -> FutureReply {
        self.service.store.hold();
        let request = self.service.begin(&key.text);
        self.service.store.until(|state| state.queries.contains(&key.record.key_hash)).await;
        request
    }

    async fn heard(&self, said: Said) {
        self.service.heard.until(|heard| heard.contains(&said)).await;
        self.service.heard.take();
    }

    fn feed_health(&self) -> FeedHealth {
        self.service.auth.health().feed
    }

    /// The number of queries for this key.
    fn queries_for(&self, key: &Key) -> usize {
        self.service.store.queries_for(&key.record.key_hash)
    }

    async fn advance(&self, time: Duration) {
        self.service.clock.advance(time);
        tokio::time::advance(time).await;
    }
}

// Announced changes.

#[tokio::test(start_paused = true)]
async fn a_key_that_was_changed_elsewhere_is_asked_for_again() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.revoke_elsewhere(&key).await;
    node.service.get_at_once(&key.text).is_for("acme");

    node.tell(Change::Changed(key.record.id)).await;
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
    assert_eq!(node.queries_for(&key), 2);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_changed_is_not_let_in_by_its_old_record_while_the_store_is_down() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.service.store.answer(DOWN);
    node.tell(Change::Changed(key.record.id)).await;
    node.service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_one_key_leaves_the_others_alone() {
    let node = Node::new().await;
    let (key, other) = (node.known("acme").await, node.known("other").await);
    let unknown = unknown_key();
    node.service.get(&unknown).await.is_refused(RejectionKind::Unknown);

    node.tell(Change::Changed(key.record.id)).await;
    node.tell(Change::Changed(KeyId::from_bytes([9; 16]))).await;
    node.service.get_at_once(&other.text).is_for("other");
    node.service.get_at_once(&unknown).is_refused(RejectionKind::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_key_created_elsewhere_is_no_longer_unknown() {
    let node = Node::new().await;
    let known = node.known("other").await;
    let key = node.service.issue("acme").await;
    node.service.store.delete(key.record.key_hash);
    node.service.get(&key.text).await.is_refused(RejectionKind::Unknown);
    node.service.store.restore(key.record.key_hash);
    node.service.get_at_once(&key.text).is_refused(RejectionKind::Unknown);

    node.tell(Change::Created(key.record.id)).await;
    node.service.get(&key.text).await.is_for("acme");
    node.service.get_at_once(&known.text).is_for("other");
}

#[tokio::test(start_paused = true)]
async fn a_key_deleted_elsewhere_is_unknown() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.service.store.delete(key.record.key_hash);
    node.tell(Change::Changed(key.record.id)).await;
    node.service.get(&key.text).await.is_refused(RejectionKind::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_found_by_its_id_after_it_was_evicted_and_loaded_again() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    for _ in 0..3 {
        node.service.auth.invalidate(&key.record.key_hash);
        node.service.get(&key.text).await.is_for("acme");
    }
    node.revoke_elsewhere(&key).await;
    node.tell(Change::Changed(key.record.id)).await;
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test(start_paused = true)]
async fn when_everything_may_have_changed_everything_is_confirmed() {
    let node = Node::new().await;
    let (key, other) = (node.known("acme").await, node.known("other").await);
    node.revoke_elsewhere(&key).await;
    node.tell(Change::Everything).await;
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
    node.service.get(&other.text).await.is_for("other");
    node.service.get_at_once(&other.text).is_for("other");
    assert_eq!(node.queries_for(&other), 2);
}

#[tokio::test(start_paused = true)]
async fn everything_is_confirmed_once_a_second_at_most() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    for _ in 0..100 {
        node.tell(Change::Everything).await;
        node.service.get(&key.text).await.is_for("acme");
    }
    assert_eq!(node.queries_for(&key), 2, "the first one at once, the others later");

    tokio::time::advance(SECOND).await;
    node.tell(Change::Heartbeat { lag: SECOND }).await;
    node.service.get(&key.text).await.is_for("acme");
    assert_eq!(node.queries_for(&key), 3, "none of them is lost");

    tokio::time::advance(SECOND).await;
    node.tell(Change::Heartbeat { lag: SECOND }).await;
    node.service.get_at_once(&key.text).is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn junk_is_counted_and_changes_nothing() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.service.heard.take();
    for _ in 0..10 {
        node.feed.tell(Change::Unrecognized);
    }
    node.service.heard.until(|heard| heard.len() == 10).await;
    assert_eq!(node.service.heard.count(Said::FeedMessageUnrecognized), 10);
    node.service.get_at_once(&key.text).is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn limits_changed_elsewhere_apply_to_the_running_bucket() {
    let node = Node::new().await;
    let limits = |most| RateLimits::from(Quota::per_minute(most).unwrap());
    let key =
        node.service.issue_new(NewKey::new("acme", Expiry::Never).rate_limits(limits(10))).await;
    let remaining = async || {
        let admission = node.service.auth.check(key.text.as_bytes()).await.unwrap();
        admission
            .rate_limit_status()
            .iter()
            .map(|(quota, left)| (quota.limit(), left.remaining()))
            .collect()
    };
    for left in (4..10).rev() {
        let rate_limit_status: Vec<_> = remaining().await;
        assert_eq!(rate_limit_status, [(10, left)]);
    }
    let mut record = key.record.clone();
    record.rate_limits = Some(limits(100));
    node.service.store.update(&record).await.unwrap();
    node.tell(Change::Changed(key.record.id)).await;
    assert_eq!(remaining().await, [(100, 93)], "what was taken counts, and one more");
}

// Changes during a look-up.

#[tokio::test(start_paused = true)]
async fn a_change_during_a_look_up_wins() {
    let node = Node::new().await;
    let key = node.service.issue("acme").await;
    let before = node.look_up(&key).await;
    node.revoke_elsewhere(&key).await;
    node.tell(Change::Changed(key.record.id)).await;
    // The look-up is registered by hash, and the id of the key is not known yet.
    let joined = node.service.begin(&key.text);
    node.service.store.release();

    within(before).await.is_refused(RejectionKind::Revoked);
    within(joined).await.is_refused(RejectionKind::Revoked);
    node.service.get_at_once(&key.text).is_refused(RejectionKind::Revoked);
    assert_eq!(node.queries_for(&key), 2);
}

#[tokio::test(start_paused = true)]
async fn a_creation_during_a_look_up_wins() {
    let node = Node::new().await;
    let key = node.service.issue("acme").await;
    node.service.store.delete(key.record.key_hash);
    let before = node.look_up(&key).await;
    // The row that the query has read does not change.
    node.service.store.restore(key.record.key_hash);
    node.tell(Change::Created(key.record.id)).await;
    node.service.store.release();
    within(before).await.is_for("acme");
    node.service.get_at_once(&key.text).is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn changes_of_other_keys_during_a_look_up_are_none_of_its_business() {
    let node = Node::new().await;
    let key = node.service.issue("acme").await;
    let before = node.look_up(&key).await;
    for number in 0..1000_u128 {
        node.feed.tell(Change::Changed(KeyId::from_bytes(number.to_be_bytes())));
    }
    node.tell(Change::Unrecognized).await;
    node.service.store.release();
    within(before).await.is_for("acme");
    assert_eq!(node.queries_for(&key), 1);
}

#[tokio::test(start_paused = true)]
async fn more_changes_than_are_kept_during_a_look_up_repeat_it() {
    let node = Node::new().await;
    let key = node.service.issue("acme").await;
    let before = node.look_up(&key).await;
    node.revoke_elsewhere(&key).await;
    node.feed.tell(Change::Changed(key.record.id));
    for number in 0..10_000_u128 {
        node.feed.tell(Change::Changed(KeyId::from_bytes(number.to_be_bytes())));
    }
    node.tell(Change::Unrecognized).await;
    node.service.store.release();
    within(before).await.is_refused(RejectionKind::Revoked);
    node.service.get_at_once(&key.text).is_refused(RejectionKind::Revoked);
}

// Gaps.

#[tokio::test(start_paused = true)]
async fn records_are_fresh_for_a_shorter_time_during_a_gap() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.revoke_elsewhere(&key).await;
    node.service.clock.advance(FRESH_DURING_GAP);
    node.service.get_at_once(&key.text).is_for("acme");

    node.lose_feed().await;
    assert_eq!(node.feed_health(), FeedHealth::Gap);
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test(start_paused = true)]
async fn what_was_revoked_during_a_gap_is_refused_after_the_time_that_a_gap_allows() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.lose_feed().await;
    node.revoke_elsewhere(&key).await;
    node.service.clock.advance(FRESH_DURING_GAP - Duration::from_nanos(1));
    node.service.get_at_once(&key.text).is_for("acme");
    node.service.clock.advance(Duration::from_nanos(1));
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test(start_paused = true)]
async fn a_gap_never_prolongs_what_is_fresh() {
    let policy = CachePolicy::default().fresh(SECOND).unwrap();
    let policy = policy.fresh_during_gap(FRESH).unwrap();
    let node = Node::with(|builder| builder.cache(policy)).await;
    let key = node.known("acme").await;
    node.lose_feed().await;
    node.service.clock.advance(SECOND);
    node.service.get(&key.text).await.is_for("acme");
    assert_eq!(node.queries_for(&key), 2);
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_everything_is_confirmed_once() {
    let node = Node::new().await;
    let (key, other) = (node.known("acme").await, node.known("other").await);
    let unknown = node.service.issue("late").await;
    node.service.store.delete(unknown.record.key_hash);
    node.service.get(&unknown.text).await.is_refused(RejectionKind::Unknown);

    node.feed.lose();
    node.feed.until(|state| state.attempts == 3).await;
    node.revoke_elsewhere(&key).await;
    node.service.store.restore(unknown.record.key_hash);
    node.feed.come_back();
    node.heard(Said::FeedLive).await;

    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
    node.service.get(&unknown.text).await.is_for("late");
    node.service.get(&other.text).await.is_for("other");
    node.service.clock.advance(FRESH_DURING_GAP);
    node.service.get_at_once(&other.text).is_for("other");
    assert_eq!(node.queries_for(&other), 2);
    assert_eq!(node.feed_health(), FeedHealth::Live { lag: None });
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_old_records_are_better_than_none_while_the_store_is_down() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.feed.lose();
    node.feed.until(|state| state.attempts == 2).await;
    node.feed.come_back();
    node.heard(Said::FeedLive).await;
    node.service.store.answer(DOWN);
    node.service.get(&key.text).await.is_for("acme");
    node.service.clock.advance(FRESH + STALE_IF_ERROR);
    node.service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
}

#[tokio::test(start_paused = true)]
async fn after_a_gap_a_store_that_was_down_is_asked_at_once() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.lose_feed().await;
    node.service.store.answer(DOWN);
    for _ in 0..5 {
        node.service.get(&unknown_key()).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    node.service.store.answer(Answers::Truthfully);
    node.revoke_elsewhere(&key).await;
    node.service.get_at_once(&key.text).is_for("acme");
    node.feed.come_back();
    node.heard(Said::FeedLive).await;
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

/// A key is revoked during a gap; after it, so many keys are in use that the store cannot confirm
/// all of them at once.
#[tokio::test(start_paused = true)]
async fn after_a_gap_a_key_that_gets_no_turn_is_let_in_for_as_long_as_in_one() {
    let policy = CachePolicy::default().max_loads(1);
    let node = Node::with(|builder| builder.cache(policy)).await;
    let (key, other) = (node.known("acme").await, node.known("other").await);
    node.lose_feed().await;
    node.revoke_elsewhere(&key).await;
    node.feed.come_back();
    node.heard(Said::FeedLive).await;

    // The only permit is always taken.
    let overloaded = async || {
        let taken = node.look_up(&other).await;
        let reply = node.service.get(&key.text).await;
        node.service.store.release();
        drop(within(taken).await);
        node.service.auth.invalidate(&other.record.key_hash);
        node.service.heard.take();
        reply
    };
    overloaded().await.is_for("acme");
    node.service.clock.advance(FRESH_DURING_GAP - Duration::from_nanos(1));
    overloaded().await.is_for("acme");
    node.service.clock.advance(Duration::from_nanos(1));
    overloaded().await.is_unavailable(RejectionKind::Overloaded);
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test(start_paused = true)]
async fn a_changed_key_does_not_queue_up_with_strangers() {
    let policy = CachePolicy::default().max_loads(4);
    let node = Node::with(|builder| builder.cache(policy)).await;
    let key = node.known("acme").await;
    node.service.store.hold();
    let mut strangers: Vec<_> = (0..10).map(|_| node.service.begin(&unknown_key())).collect();
    // Three of four permits are theirs.
    let asked = node.service.store.queries();
    node.service.store.until(|state| state.queries.len() >= asked + 3).await;

    node.tell(Change::Changed(key.record.id)).await;
    let mut changed = node.service.begin(&key.text);
    node.service
        .store
        .until(|state| {
            state.queries.iter().filter(|asked| **asked == key.record.key_hash).count() == 2
        })
        .await;
    assert!(poll_once(&mut changed).is_pending());
    node.service.store.release();
    within(changed).await.is_for("acme");
    strangers.clear();
}

/// A feed that always has another change.
struct Endless;

impl ChangeFeed for Endless {
    async fn connect(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn next(&mut self) -> Result<Change, StoreError> {
        Ok(Change::Changed(KeyId::from_bytes([9; 16])))
    }
}

#[tokio::test]
async fn a_feed_without_end_leaves_everything_else_its_turn() {
    let (service, worker) = Service::and_worker(|builder| builder.change_feed(Endless));
    let (shutdown, asked) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { drop(asked.await) }));
    service.heard.until(|heard| heard.contains(&Said::FeedLive)).await;
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    drop(shutdown);
    within(worker).await.unwrap();
}

/// A change of another key costs neither a query nor a wait, however many there are.
#[tokio::test(start_paused = true)]
async fn a_flood_of_changes_of_other_keys_keeps_no_request_waiting() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    for other in 0..20_000_u128 {
        node.feed.tell(Change::Changed(KeyId::from_bytes(other.to_be_bytes())));
    }
    node.feed.tell(Change::Unrecognized);
    let mut answered = 0;
    while node.service.heard.count(Said::FeedMessageUnrecognized) == 0 {
        node.service.get_at_once(&key.text).is_for("acme");
        answered += 1;
        tokio::task::yield_now().await;
    }
    assert!(answered >= 100, "requests had their turn {answered} times");
    assert_eq!(node.queries_for(&key), 1);

    node.service.heard.take();
    node.revoke_elsewhere(&key).await;
    node.tell(Change::Changed(key.record.id)).await;
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test(start_paused = true)]
async fn a_look_up_from_before_the_end_of_a_gap_is_repeated() {
    let node = Node::new().await;
    let key = node.service.issue("acme").await;
    node.feed.lose();
    node.feed.until(|state| state.attempts == 2).await;
    let before = node.look_up(&key).await;
    node.revoke_elsewhere(&key).await;
    node.feed.come_back();
    // The next attempt comes after at most twice 100 ms: within the look-up's deadline.
    node.heard(Said::FeedLive).await;
    node.service.store.release();
    within(before).await.is_refused(RejectionKind::Revoked);
    node.service.get_at_once(&key.text).is_refused(RejectionKind::Revoked);
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_told_once_however_often_connecting_fails() {
    let node = Node::new().await;
    node.feed.lose();
    node.feed.until(|state| state.attempts == 10).await;
    let heard = node.service.heard.take();
    let lost = |said: &&Said| matches!(said, Said::FeedLost(_));
    assert_eq!(heard.iter().filter(lost).count(), 1, "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn attempts_to_connect_back_off() {
    let feed = FakeFeed::new();
    feed.lose();
    let node = Node::without_feed_yet(feed, |builder| builder);
    let begin = tokio::time::Instant::now();
    node.feed.until(|state| state.attempts == 10).await;
    let took = begin.elapsed();
    // 100 ms, doubling up to 5 s, of which up to half is left out.
    let longest = Duration::from_millis(6_300 + 3 * 5_000);
    assert!((longest / 2..=longest + SECOND).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_connects_and_fails_at_once_backs_off_too() {
    let node = Node::new().await;
    let begin = tokio::time::Instant::now();
    for _ in 0..19 {
        node.feed.lose();
        node.feed.come_back();
        node.heard(Said::FeedLive).await;
    }
    assert!(begin.elapsed() >= Duration::from_secs(30), "{:?}", begin.elapsed());

    // After a long connection, the next one comes soon.
    tokio::time::advance(Duration::from_secs(5)).await;
    node.feed.lose();
    node.feed.come_back();
    let begin = tokio::time::Instant::now();
    node.heard(Said::FeedLive).await;
    assert!(begin.elapsed() <= Duration::from_millis(110), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_panics_is_a_feed_that_failed() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.feed.panic();
    node.heard(Said::FeedLost(StoreErrorKind::Other)).await;
    node.heard(Said::FeedLive).await;
    node.revoke_elsewhere(&key).await;
    node.tell(Change::Changed(key.record.id)).await;
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

// The worker's end.

#[tokio::test(start_paused = true)]
async fn without_its_worker_a_node_is_in_a_gap() {
    let feed = FakeFeed::new();
    let (service, worker) = Service::and_worker(|builder| builder.change_feed(feed));
    assert_eq!(service.auth.health().feed, FeedHealth::Gap);
    drop(worker);
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.clock.advance(FRESH_DURING_GAP);
    service.get(&key.text).await.is_for("acme");
    assert_eq!(service.store.queries(), 2);
}

#[tokio::test(start_paused = true)]
async fn after_shutdown_a_node_is_in_a_gap() {
    let mut node = Node::new().await;
    assert_eq!(node.feed_health(), FeedHealth::Live { lag: None });
    drop(node.shutdown.take());
    within(&mut node.worker).await.unwrap();
    assert_eq!(node.feed_health(), FeedHealth::Gap);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_dropped_leaves_a_gap() {
    let mut node = Node::new().await;
    let key = node.known("acme").await;
    node.worker.abort();
    assert!(within(&mut node.worker).await.unwrap_err().is_cancelled());
    assert_eq!(node.feed_health(), FeedHealth::Gap);
    node.service.clock.advance(FRESH_DURING_GAP);
    node.service.get(&key.text).await.is_for("acme");
    assert_eq!(node.queries_for(&key), 2);
}

#[tokio::test(start_paused = true)]
async fn a_worker_may_be_dropped_at_any_await() {
    for polls in 0..30 {
        let feed = FakeFeed::new();
        let (service, worker) = Service::and_worker(|builder| builder.change_feed(feed.clone()));
        let key = service.issue("acme").await;
        let mut run = Box::pin(worker.run(pending()));
        for poll in 0..polls {
            // A request, a change, a gap and a flush that does not end, in turns.
            match poll % 5 {
                0 => service.get(&key.text).await.is_for("acme"),
                1 => feed.tell(Change::Everything),
                2 => feed.lose(),
                3 => feed.come_back(),
                _ => {
                    service.store.answer(Answers::Truthfully);
                    tokio::time::advance(10 * SECOND).await;
                }
            }
            assert!(poll_once(&mut run).is_pending());
            tokio::task::yield_now().await;
        }
        drop(run);
        assert_eq!(service.auth.health().feed, FeedHealth::Gap, "after {polls} polls");
        service.get(&key.text).await.is_for("acme");
        service.revoke(&key).await;
        service.get(&key.text).await.is_refused(RejectionKind::Revoked);
    }
}

#[tokio::test(start_paused = true)]
async fn the_feed_is_not_listened_to_while_the_last_uses_are_written() {
    let mut node = Node::new().await;
    node.known("acme").await;
    node.service.store.answer(Answers::Never);
    drop(node.shutdown.take());
    node.service.store.until(|state| state.flushes == 1).await;
    assert_eq!(node.feed_health(), FeedHealth::Gap);
    within(&mut node.worker).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_worker_ends_when_nobody_is_left_to_work_for() {
    let Node { service, feed, worker, shutdown } = Node::new().await;
    drop(service);
    within(worker).await.unwrap();
    drop((feed, shutdown));
}

// Health.

#[tokio::test(start_paused = true)]
async fn a_node_is_ready_once_its_store_has_answered() {
    let feed = FakeFeed::new();
    feed.lose();
    let (service, worker) = Service::and_worker(|builder| builder.change_feed(feed.clone()));
    let key = service.issue("acme").await;
    service.store.answer(DOWN);
    let _worker = tokio::spawn(worker.run(pending()));
    service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
    assert_eq!(service.auth.health().store, StoreHealth::Unknown);
    assert!(!service.auth.health().is_ready());

    // It recovers without any request.
    service.store.answer(Answers::Truthfully);
    let advancing = async {
        while !service.auth.health().is_ready() {
            service.clock.advance(SECOND);
            tokio::time::advance(SECOND).await;
            tokio::task::yield_now().await;
        }
    };
    within(advancing).await;
    assert_eq!(service.auth.health().store, StoreHealth::Up);
    assert_eq!(service.auth.health().feed, FeedHealth::Gap, "which is no reason to be unready");
    service.get(&key.text).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_went_away_is_told_of_and_no_reason_to_be_unready() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    assert_eq!(node.service.auth.health().store, StoreHealth::Up);
    node.service.store.answer(DOWN);
    for _ in 0..5 {
        node.service.get(&unknown_key()).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    assert_eq!(node.service.auth.health().store, StoreHealth::Down);
    assert!(node.service.auth.health().is_ready());
    node.service.get_at_once(&key.text).is_for("acme");

    node.service.store.answer(Answers::Truthfully);
    let mut lasted = 0;
    while node.service.auth.health().store != StoreHealth::Up {
        assert!(lasted < 60, "the store is not found to be up again");
        lasted += 1;
        node.advance(SECOND).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_goes_away_with_the_feed_is_told_of_although_nobody_asks_it_for_a_key() {
    let node = Node::new().await;
    node.service.store.answer(DOWN);
    node.lose_feed().await;
    let mut lasted = 0;
    while node.service.auth.health().store == StoreHealth::Up {
        assert!(lasted < 10);
        lasted += 1;
        node.advance(SECOND).await;
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(node.service.auth.health().store, StoreHealth::Down);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_while_it_is_probed_does_not_take_the_worker_with_it() {
    let (service, worker) = Service::and_worker(|builder| builder);
    service.store.answer(Answers::Panicking);
    let worker = tokio::spawn(worker.run(pending()));
    service.store.until(|state| state.queries.len() >= 2).await;
    assert!(!worker.is_finished());
    service.store.answer(Answers::Truthfully);
    service.store.until(|state| state.answered >= 1).await;
    assert!(service.auth.health().is_ready());
    assert_eq!(service.auth.health().feed, FeedHealth::Off);
}

#[tokio::test(start_paused = true)]
async fn the_lag_of_the_feed_is_told() {
    let node = Node::new().await;
    let lag = Duration::from_micros(1234);
    node.tell(Change::Heartbeat { lag }).await;
    assert_eq!(node.feed_health(), FeedHealth::Live { lag: Some(lag) });
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_harms_nobody() {
    let feed = FakeFeed::new();
    let panics = |_: &Event<'_>| panic!("the observer panics");
    let (service, worker) =
        Service::and_worker(|builder| builder.change_feed(feed.clone()).observer(panics));
    let worker = tokio::spawn(worker.run(pending()));
    feed.until(|state| state.is_connected).await;
    service.get(&unknown_key()).await.is_refused(RejectionKind::Unknown);
    feed.tell(Change::Unrecognized);
    feed.until(|state| state.told.is_empty()).await;
    feed.lose();
    feed.until(|state| state.attempts >= 3).await;
    assert!(!worker.is_finished());
}

#[tokio::test(start_paused = true)]
async fn messages_that_are_ignored_are_counted_in_health() {
    let node = Node::new().await;
    assert_eq!(node.service.auth.health().ignored_messages, 0);
    for _ in 0..10 {
        node.feed.tell(Change::Unrecognized);
    }
    node.tell(Change::Heartbeat { lag: SECOND }).await;
    // And the one that shows the test that everything before was handled.
    assert_eq!(node.service.auth.health().ignored_messages, 11);
}

// A replica that is behind.

impl Node {
    /// Sets the age of the feed and the store, and waits until the worker knows.
    async fn falls_behind(&self, age: Duration) {
        self.feed.set_staleness(Some(Staleness::new(age, true)));
        self.tell(Change::Heartbeat { lag: age }).await;
        assert_eq!(self.feed_health(), FeedHealth::Behind { lag: Some(age) });
    }

    async fn catches_up(&self) {
        self.feed.set_staleness(Some(Staleness::new(SECOND, false)));
        self.tell(Change::Heartbeat { lag: SECOND }).await;
        assert_eq!(self.feed_health(), FeedHealth::Live { lag: Some(SECOND) });
    }
}

/// The store keeps answering with old data: a replica whose replay is paused.
#[tokio::test(start_paused = true)]
async fn a_replica_that_is_behind_lets_a_key_in_for_no_longer_than_an_outage() {
    let node = Node::new().await;
    let (key, other) = (node.known("acme").await, node.service.issue("other").await);
    node.falls_behind(10 * SECOND).await;
    let mut age = 10 * SECOND;
    while age < FRESH + STALE_IF_ERROR {
        node.service.get(&key.text).await.is_for("acme");
        node.service.get(&other.text).await.is_for("other");
        // The age at the last poll, plus the time since.
        node.service.clock.advance(10 * SECOND);
        age += 10 * SECOND;
        if age < Duration::from_secs(300) {
            node.falls_behind(age).await;
        }
    }
    for key in [&key, &other] {
        node.service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    let queries = node.queries_for(&key);
    assert!(queries > 60, "it was asked again all the time: {queries}");
    node.catches_up().await;
    node.service.get(&key.text).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_fresh_when_its_replica_falls_behind_is_not_confirmed_by_it() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.falls_behind(FRESH + STALE_IF_ERROR).await;
    node.service.get_at_once(&key.text).is_for("acme");
    // It was read shortly before, when the lag was unknown. That ends as in every gap.
    node.service.clock.advance(FRESH + STALE_IF_ERROR - Duration::from_nanos(1));
    node.service.get(&key.text).await.is_for("acme");
    node.service.clock.advance(Duration::from_nanos(1));
    node.service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_behind_may_refuse_a_key() {
    let node = Node::new().await;
    let (revoked, deleted) = (node.known("acme").await, node.known("other").await);
    node.falls_behind(10 * SECOND).await;
    // The replica has caught up to this point.
    node.revoke_elsewhere(&revoked).await;
    node.service.store.delete(deleted.record.key_hash);
    node.service.clock.advance(FRESH_DURING_GAP);
    node.service.get(&revoked.text).await.is_refused(RejectionKind::Revoked);
    node.service.get(&deleted.text).await.is_refused(RejectionKind::Unknown);

    node.falls_behind(2 * (FRESH + STALE_IF_ERROR)).await;
    node.service.auth.invalidate_all();
    node.service.get(&revoked.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_behind_cannot_say_that_there_is_no_such_key() {
    let node = Node::new().await;
    let key = node.service.issue("acme").await;
    node.service.store.delete(key.record.key_hash);
    node.falls_behind(10 * SECOND).await;
    for _ in 0..2 {
        node.service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    // And its answer is not cached.
    node.service.store.restore(key.record.key_hash);
    node.service.get(&key.text).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_from_a_replica_behind_is_confirmed_when_it_has_caught_up() {
    let node = Node::new().await;
    let (key, other) = (node.known("acme").await, node.known("other").await);
    node.falls_behind(10 * SECOND).await;
    node.service.clock.advance(FRESH_DURING_GAP);
    node.service.get(&key.text).await.is_for("acme");
    node.service.get_at_once(&key.text).is_for("acme");
    node.revoke_elsewhere(&key).await;
    node.catches_up().await;
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
    node.service.get(&other.text).await.is_for("other");
    node.service.clock.advance(FRESH_DURING_GAP);
    node.service.get_at_once(&other.text).is_for("other");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_behind_is_one_gap_however_long_and_whether_or_not_it_answers() {
    let node = Node::new().await;
    node.service.heard.take();
    for age in 6..20 {
        node.feed.set_staleness(Some(Staleness::new(age * SECOND, true)));
        node.feed.tell(Change::Heartbeat { lag: SECOND });
    }
    node.heard(Said::FeedLost(StoreErrorKind::Unavailable)).await;
    let key = node.service.issue("acme").await;
    node.feed.lose();
    node.feed.until(|state| state.attempts >= 3).await;
    assert_eq!(node.feed_health(), FeedHealth::Gap);
    // Nothing was announced that would make it newer.
    node.service.clock.advance(FRESH + STALE_IF_ERROR);
    node.service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);

    // It is behind once it can be connected to again.
    node.feed.come_back();
    node.feed.until(|state| state.is_connected).await;
    node.falls_behind(20 * SECOND).await;
    assert_eq!(node.service.heard.count(Said::FeedLive), 0);
    node.service.get(&key.text).await.is_for("acme");
    let told = node.service.heard.take();
    assert!(
        !told.iter().any(|said| matches!(said, Said::FeedLost(_) | Said::FeedLive)),
        "{told:?}"
    );
    node.catches_up().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_on_a_replica_behind_is_not_live_for_a_moment() {
    let feed = FakeFeed::new();
    feed.set_staleness(Some(Staleness::new(3_600 * SECOND, true)));
    let node = Node::without_feed_yet(feed, |builder| builder);
    node.heard(Said::FeedLost(StoreErrorKind::Unavailable)).await;
    assert_eq!(node.feed_health(), FeedHealth::Behind { lag: Some(3_600 * SECOND) });
    assert_eq!(node.service.heard.count(Said::FeedLive), 0);
    let key = node.service.issue("acme").await;
    node.service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
    node.catches_up().await;
    node.service.get(&key.text).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn a_stream_does_not_outlast_what_a_replica_behind_may_say_of_its_key() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.falls_behind(10 * SECOND).await;
    node.service.clock.advance(FRESH_DURING_GAP);
    let mut ended = watched(&node, &key).await;
    let mut lasted = Duration::ZERO;
    while poll_once(&mut ended).is_pending() {
        assert!(lasted < FRESH + STALE_IF_ERROR);
        node.advance(SECOND).await;
        lasted += SECOND;
        tokio::task::yield_now().await;
    }
    let expected = FRESH + STALE_IF_ERROR - 10 * SECOND;
    assert!(lasted + 10 * SECOND >= expected && lasted <= expected, "{lasted:?}");
}

// Waiting for the end of a key.

/// The consumer behind `key`, as a handler has it.
async fn consumer(node: &Node, key: &Key) -> Consumer {
    node.service.auth.check(key.text.as_bytes()).await.unwrap().consumer().clone()
}

/// Resolves when the valid key `key` ends.
async fn watched(node: &Node, key: &Key) -> KeyEnded {
    let mut ended = consumer(node, key).await.key_ended();
    assert!(poll_once(&mut ended).is_pending());
    ended
}

#[tokio::test(start_paused = true)]
async fn a_consumer_hears_that_its_key_was_revoked_elsewhere() {
    let node = Node::new().await;
    let (key, other) = (node.known("acme").await, node.known("other").await);
    let mut ended = consumer(&node, &key).await.key_ended();
    let mut unharmed = consumer(&node, &other).await.key_ended();
    assert!(poll_once(&mut ended).is_pending() && poll_once(&mut unharmed).is_pending());

    let begin = tokio::time::Instant::now();
    node.revoke_elsewhere(&key).await;
    node.tell(Change::Changed(key.record.id)).await;
    within(ended).await;
    assert_eq!(begin.elapsed(), Duration::ZERO, "it need not wait for anything");
    assert!(poll_once(&mut unharmed).is_pending());
}

#[tokio::test(start_paused = true)]
async fn a_consumer_hears_of_what_happens_on_its_own_node() {
    for forget_everything in [false, true] {
        let node = Node::new().await;
        let key = node.known("acme").await;
        let ended = watched(&node, &key).await;
        node.revoke_elsewhere(&key).await;
        if forget_everything {
            node.service.auth.invalidate_all();
        } else {
            node.service.auth.invalidate(&key.record.key_hash);
        }
        within(ended).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_hears_of_it_even_if_its_key_is_no_longer_cached() {
    let policy = CachePolicy::default().capacity(0);
    let node = Node::with(|builder| builder.cache(policy)).await;
    let key = node.known("acme").await;
    let ended = watched(&node, &key).await;
    // Looked up by now, and not cached.
    let asked = node.queries_for(&key);
    assert!(asked >= 2);
    node.revoke_elsewhere(&key).await;
    node.tell(Change::Changed(key.record.id)).await;
    within(ended).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_changed_and_still_works_goes_on() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    let mut ended = watched(&node, &key).await;
    let mut record = key.record.clone();
    record.name = Some("another".into());
    node.service.store.update(&record).await.unwrap();
    node.tell(Change::Changed(key.record.id)).await;
    assert!(poll_once(&mut ended).is_pending());
    node.service.get(&key.text).await.is_for("acme");
    assert!(poll_once(&mut ended).is_pending());
}

#[tokio::test(start_paused = true)]
async fn a_consumer_hears_that_its_key_was_switched_off_or_deleted() {
    for delete in [false, true] {
        let node = Node::new().await;
        let key = node.known("acme").await;
        let ended = watched(&node, &key).await;
        if delete {
            node.service.store.delete(key.record.key_hash);
        } else {
            let mut record = key.record.clone();
            record.is_active = false;
            node.service.store.update(&record).await.unwrap();
        }
        node.tell(Change::Changed(key.record.id)).await;
        within(ended).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_hears_that_its_key_expires() {
    let node = Node::new().await;
    let lifetime = Duration::from_secs(90);
    let new = NewKey::new("acme", Expiry::In(lifetime));
    let key = node.service.issue_new(new).await;
    let mut ended = watched(&node, &key).await;
    for _ in 0..89 {
        node.advance(SECOND).await;
        assert!(poll_once(&mut ended).is_pending());
        tokio::task::yield_now().await;
        assert!(poll_once(&mut ended).is_pending());
    }
    node.advance(SECOND).await;
    assert!(poll_once(&mut ended).is_ready(), "at once, and asking nobody");
}

#[tokio::test(start_paused = true)]
async fn a_consumer_hears_of_what_nobody_tells_when_its_record_is_no_longer_fresh() {
    let (service, worker) = Service::and_worker(|builder| builder);
    drop(worker);
    let key = service.issue("acme").await;
    let admission = service.auth.check(key.text.as_bytes()).await.unwrap();
    let mut ended = admission.consumer().key_ended();
    assert!(poll_once(&mut ended).is_pending());
    service.store.revoke(key.record.id, None).await.unwrap();

    let almost = FRESH - SECOND;
    service.clock.advance(almost);
    tokio::time::advance(almost).await;
    assert!(poll_once(&mut ended).is_pending());
    service.clock.advance(SECOND);
    within(ended).await;
    assert_eq!(service.store.queries_for(&key.record.key_hash), 2);
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_time_to_confirm_watched_keys_more_often() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    let mut ended = watched(&node, &key).await;
    node.lose_feed().await;
    node.revoke_elsewhere(&key).await;
    assert!(poll_once(&mut ended).is_pending(), "it is fresh for five seconds yet");
    node.service.clock.advance(FRESH_DURING_GAP);
    let begin = tokio::time::Instant::now();
    within(ended).await;
    assert!(begin.elapsed() <= FRESH_DURING_GAP + Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_store_ends_a_watched_key_when_a_cached_one_would_be_refused() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    let mut ended = watched(&node, &key).await;
    node.service.store.answer(DOWN);
    let mut lasted = Duration::ZERO;
    while poll_once(&mut ended).is_pending() {
        assert!(lasted < FRESH + STALE_IF_ERROR + 10 * SECOND);
        node.advance(SECOND).await;
        lasted += SECOND;
        tokio::task::yield_now().await;
    }
    assert!(lasted >= FRESH + STALE_IF_ERROR - SECOND, "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_store_that_ends_in_time_is_survived() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    let mut ended = consumer(&node, &key).await.key_ended();
    node.service.store.answer(DOWN);
    for second in 0..1200 {
        if second == 300 {
            node.service.store.answer(Answers::Truthfully);
        }
        assert!(poll_once(&mut ended).is_pending(), "at {second} s");
        node.advance(SECOND).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_reckoned_from_the_last_time_the_key_was_confirmed() {
    let policy = CachePolicy::default().capacity(0);
    let node = Node::with(|builder| builder.cache(policy)).await;
    let key = node.known("acme").await;
    let mut ended = consumer(&node, &key).await.key_ended();
    for second in 0..1200 {
        if second == 900 {
            node.service.store.answer(DOWN);
        }
        assert!(poll_once(&mut ended).is_pending(), "at {second} s");
        node.advance(SECOND).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_gap_ends_no_stream_of_a_key_that_nobody_can_confirm_yet() {
    let policy = CachePolicy::default().capacity(0);
    let node = Node::with(|builder| builder.cache(policy)).await;
    let key = node.known("acme").await;
    let mut ended = watched(&node, &key).await;
    node.lose_feed().await;
    node.service.store.answer(DOWN);
    node.feed.come_back();
    node.heard(Said::FeedLive).await;
    for _ in 0..30 {
        assert!(poll_once(&mut ended).is_pending());
        node.advance(SECOND).await;
        tokio::task::yield_now().await;
    }
}

/// Keys that a test changes like an administrator in SQL: any column, even the hash.
#[derive(Clone, Default)]
struct Rows(Arc<Mutex<HashMap<KeyHash, KeyRecord>>>);

impl Rows {
    /// Makes `secret` the secret of key `id`, and removes the previous one.
    fn put(&self, id: KeyId, secret: &str, now: SystemTime) {
        let mut rows = self.0.lock().unwrap();
        rows.retain(|_, row| row.id != id);
        rows.insert(hash(secret), KeyRecord::new(id, hash(secret), "acme", now));
    }
}

impl KeyStore for Rows {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        Ok(self.0.lock().unwrap().get(hash).cloned())
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_deleted_has_ended_even_if_its_secret_is_another_key_now() {
    let (clock, rows, secret) = (ManualClock::default(), Rows::default(), unknown_key());
    let id = |byte| KeyId::from_bytes([byte; 16]);
    rows.put(id(1), &secret, clock.now());
    let (service, worker) = Service::around(rows.clone(), clock.clone(), |builder| builder);
    drop(worker);
    let admission = service.auth.check(secret.as_bytes()).await.unwrap();
    let mut ended = admission.consumer().key_ended();
    assert!(poll_once(&mut ended).is_pending());
    rows.put(id(2), &secret, clock.now());
    service.auth.invalidate(&hash(&secret));
    within(ended).await;
    service.get(&secret).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn the_old_secret_of_a_key_ends_although_the_new_one_was_used_before_that_was_told() {
    let (clock, rows, feed) = (ManualClock::default(), Rows::default(), FakeFeed::new());
    let (id, old, new) = (KeyId::from_bytes([1; 16]), unknown_key(), unknown_key());
    rows.put(id, &old, clock.now());
    let (service, worker) =
        Service::around(rows.clone(), clock.clone(), |builder| builder.change_feed(feed.clone()));
    tokio::spawn(worker.run(pending()));
    service.heard.until(|heard| heard.contains(&Said::FeedLive)).await;
    let admission = service.auth.check(old.as_bytes()).await.unwrap();
    let mut ended = admission.consumer().key_ended();
    assert!(poll_once(&mut ended).is_pending());

    rows.put(id, &new, clock.now());
    service.get(&new).await.is_for("acme");
    feed.tell(Change::Changed(id));
    feed.tell(Change::Created(id));
    within(ended).await;
    service.get(&old).await.is_refused(RejectionKind::Unknown);
    service.get(&new).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn a_stream_does_not_outlast_a_change_that_nobody_can_look_up() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    let ended = watched(&node, &key).await;
    node.service.store.answer(DOWN);
    node.tell(Change::Changed(key.record.id)).await;
    node.service.get(&key.text).await.is_unavailable(RejectionKind::StoreUnavailable);
    let begin = tokio::time::Instant::now();
    within(ended).await;
    assert!(begin.elapsed() <= 2 * SECOND, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_looked_up_at_the_second_attempt_ends_no_stream() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    let mut ended = watched(&node, &key).await;
    node.service.store.answer(DOWN);
    node.tell(Change::Changed(key.record.id)).await;
    let failed = Said::LoadFailed(StoreErrorKind::Unavailable);
    let mut turns = 0;
    while node.service.heard.count(failed) == 0 {
        assert!(turns < 1_000, "the look-up does not fail");
        turns += 1;
        assert!(poll_once(&mut ended).is_pending());
        tokio::task::yield_now().await;
    }
    node.service.store.answer(Answers::Truthfully);
    for _ in 0..120 {
        assert!(poll_once(&mut ended).is_pending());
        node.advance(SECOND).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_begins_on_an_old_record_does_not_outlast_it() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.service.store.answer(DOWN);
    let almost = FRESH + STALE_IF_ERROR - SECOND;
    node.service.clock.advance(almost);
    let consumer = consumer(&node, &key).await;
    // Creating the response takes a while.
    node.service.clock.advance(2 * SECOND);
    let begin = tokio::time::Instant::now();
    within(consumer.key_ended()).await;
    assert!(begin.elapsed() <= SECOND, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_consumer_whose_authenticator_is_gone_is_told_so() {
    let Node { service, worker, .. } = Node::new().await;
    let key = service.issue("acme").await;
    let admission = service.auth.check(key.text.as_bytes()).await.unwrap();
    let consumer = admission.consumer().clone();
    drop((service, admission));
    within(worker).await.unwrap();
    within(consumer.key_ended()).await;
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_no_authenticator_made_goes_on() {
    let service = Service::new();
    let key = service.issue("acme").await;
    let consumer = Consumer::from(key.record);
    assert!(poll_once(&mut consumer.key_ended()).is_pending());
}

#[tokio::test(start_paused = true)]
async fn nobody_watches_what_nobody_asked_for() {
    let node = Node::new().await;
    let key = node.known("acme").await;
    node.advance(FRESH * 2).await;
    tokio::task::yield_now().await;
    assert_eq!(node.queries_for(&key), 1);
}
