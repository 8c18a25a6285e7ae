#![cfg(test)]
//! Whatever is interleaved with whatever: each answer is explained by a state its key was in, no
//! longer ago than promised.

mod by_hand;
mod doubles;
mod wait;

use std::{
    future::pending,
    task::Poll,
    time::{Duration, SystemTime},
};

use proptest::{collection::vec, prelude::*};
use tower_api_key::{
    auth::RejectionKind,
    clock::Clock,
    record::{KeyId, KeyRecord, KeyStatus},
    store::{self, StoreErrorKind},
};

use crate::by_hand::ByHand as _;
use crate::doubles::{
    Answers, DOWN, FakeFeed, FutureReply, Reply, Said, Service, hash, poll_once, unknown_key,
};

const KEYS: usize = 4;
/// The defaults: for how long an answer may be old, and how long a load may take.
const FRESH: Duration = Duration::from_secs(60);
const STALE_IF_ERROR: Duration = Duration::from_secs(600);
const LOAD_DEADLINE: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
enum Step {
    Request(usize),
    /// The client has had enough of its oldest request.
    HangUp,
    Change(usize, Change),
    /// The same elsewhere: the feed tells of it, if it is connected.
    ChangeToldByFeed(usize, Change),
    /// The same, where no cache is told of it.
    ChangeElsewhere(usize, Change),
    FeedTellsOfEverything,
    FeedIsLost,
    FeedComesBack,
    InvalidateAll,
    StoreGoesDown,
    StoreComesUp,
    HoldQueries,
    ReleaseQuery(usize),
    ReleaseQueries,
    Wait(Duration),
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Create,
    Revoke,
    Switch,
    ExpireIn(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    let change = prop_oneof![
        2 => Just(Change::Create),
        1 => Just(Change::Revoke),
        2 => Just(Change::Switch),
        1 => (1..100_000_u64).prop_map(|millis| Change::ExpireIn(Duration::from_millis(millis))),
    ];
    let change = (0..KEYS, change);
    let wait = prop_oneof![
        4 => 1..400_u64,
        2 => 400..40_000_u64,
        1 => 40_000..400_000_u64,
    ];
    prop_oneof![
        12 => (0..KEYS).prop_map(Step::Request),
        1 => Just(Step::HangUp),
        4 => change.clone().prop_map(|(key, change)| Step::Change(key, change)),
        4 => change.clone().prop_map(|(key, change)| Step::ChangeToldByFeed(key, change)),
        2 => change.prop_map(|(key, change)| Step::ChangeElsewhere(key, change)),
        1 => Just(Step::FeedTellsOfEverything),
        1 => Just(Step::FeedIsLost),
        2 => Just(Step::FeedComesBack),
        1 => Just(Step::InvalidateAll),
        1 => Just(Step::StoreGoesDown),
        2 => Just(Step::StoreComesUp),
        3 => Just(Step::HoldQueries),
        4 => (0..KEYS).prop_map(Step::ReleaseQuery),
        2 => Just(Step::ReleaseQueries),
        4 => wait.prop_map(|millis| Step::Wait(Duration::from_millis(millis))),
    ]
}

/// A key, and everything it ever was.
struct History {
    text: String,
    consumer: String,
    versions: Vec<Version>,
    /// The version the cache has been told of.
    announced: usize,
    /// The version the cache was at when it was last told to confirm everything.
    confirmed: usize,
}

struct Version {
    /// `None` before it was created.
    record: Option<KeyRecord>,
    /// When it came into force, on the monotonic clock.
    since: Duration,
}

impl History {
    fn latest(&self) -> Option<&KeyRecord> {
        self.versions.last()?.record.as_ref()
    }

    /// The version in force at `time`.
    fn at(&self, time: Duration) -> usize {
        self.versions.iter().skip(1).take_while(|next| next.since < time).count()
    }
}

struct Request {
    reply: FutureReply,
    key: usize,
    began: Duration,
    /// The versions the cache had been told of.
    announced: usize,
    confirmed: usize,
    /// The store had not answered when it was last asked.
    store_was_failing: bool,
    failures_before: usize,
}

struct World {
    service: Service,
    feed: FakeFeed,
    keys: Vec<History>,
    requests: Vec<Request>,
    failures: usize,
    answered: usize,
    store_is_failing: bool,
    replies: usize,
    gaps_closed: usize,
}

impl World {
    fn new() -> Self {
        let key = |number| History {
            text: unknown_key(),
            consumer: format!("consumer {number}"),
            versions: vec![Version { record: None, since: Duration::ZERO }],
            announced: 0,
            confirmed: 0,
        };
        let feed = FakeFeed::new();
        let (service, worker) = Service::and_worker(|builder| builder.change_feed(feed.clone()));
        tokio::spawn(worker.run(pending()));
        Self {
            service,
            feed,
            keys: (0..KEYS).map(key).collect(),
            requests: Vec::new(),
            failures: 0,
            answered: 0,
            store_is_failing: false,
            replies: 0,
            gaps_closed: 0,
        }
    }

    async fn take(&mut self, step: Step) {
        let store = self.service.store.clone();
        match step {
            Step::Request(key) => self.request(key),
            Step::HangUp if self.requests.is_empty() => {}
            Step::HangUp => drop(self.requests.remove(0)),
            Step::Change(key, change) => {
                self.change(key, change).await;
                let history = &mut self.keys[key];
                self.service.auth.invalidate(&hash(&history.text));
                history.announced = history.versions.len() - 1;
            }
            Step::ChangeToldByFeed(key, change) => {
                if let Some(told) = self.change(key, change).await {
                    self.feed.tell(told);
                    let was_connected = self.feed.is_connected();
                    self.settle().await;
                    let history = &mut self.keys[key];
                    // A change of a key that the cache takes for unknown says nothing to it: a feed
                    // tells of its creation first.
                    let created = matches!(told, store::Change::Created(_));
                    let knows_of_it = created || history.announced.max(history.confirmed) > 0;
                    if was_connected && knows_of_it {
                        history.announced = history.versions.len() - 1;
                    }
                }
            }
            Step::ChangeElsewhere(key, change) => drop(self.change(key, change).await),
            Step::FeedTellsOfEverything => self.feed.tell(store::Change::Everything),
            Step::FeedIsLost => self.feed.lose(),
            Step::FeedComesBack => self.feed.come_back(),
            Step::InvalidateAll => {
                self.service.auth.invalidate_all();
                self.keys.iter_mut().for_each(|key| key.announced = key.versions.len() - 1);
            }
            Step::StoreGoesDown => store.answer(DOWN),
            Step::StoreComesUp => store.answer(Answers::Truthfully),
            Step::HoldQueries => store.hold(),
            Step::ReleaseQuery(index) => {
                store.release_one(index);
            }
            Step::ReleaseQueries => store.release(),
            Step::Wait(time) => {
                self.service.clock.advance(time);
                tokio::time::advance(time).await;
            }
        }
        self.settle().await;
    }

    fn request(&mut self, key: usize) {
        let history = &self.keys[key];
        let mut request = Request {
            reply: self.service.request(&history.text),
            key,
            began: self.service.clock.monotonic(),
            announced: history.announced,
            confirmed: history.confirmed,
            store_was_failing: self.store_is_failing,
            failures_before: self.failures,
        };
        match poll_once(&mut request.reply) {
            Poll::Ready(reply) => self.check(&request, &reply),
            Poll::Pending => self.requests.push(request),
        }
    }

    /// What a feed tells of the change.
    async fn change(&mut self, key: usize, change: Change) -> Option<store::Change> {
        let store = &self.service.store;
        let (wall, now) = (self.service.clock.now(), self.service.clock.monotonic());
        let history = &mut self.keys[key];
        let name = Some(format!("version {}", history.versions.len()));
        let record = match (history.latest().cloned(), change) {
            (None, Change::Create) => {
                let id = KeyId::from_bytes([u8::try_from(key).unwrap(); 16]);
                let hash = hash(&history.text);
                let mut record = KeyRecord::new(id, hash, &*history.consumer, wall);
                record.name = name;
                store.insert(&record).await.unwrap();
                record
            }
            (Some(record), Change::Revoke) => store.revoke(record.id, None).await.unwrap().unwrap(),
            (Some(mut record), Change::Switch) => {
                record.is_active = !record.is_active;
                record.name = name;
                store.update(&record).await.unwrap()
            }
            (Some(mut record), Change::ExpireIn(time)) => {
                record.expires_at = Some(wall + time);
                record.name = name;
                store.update(&record).await.unwrap()
            }
            _ => return None,
        };
        let told = match change {
            Change::Create => store::Change::Created(record.id),
            _ => store::Change::Changed(record.id),
        };
        history.versions.push(Version { record: Some(record), since: now });
        Some(told)
    }

    /// Lets everything go on that waits for nothing.
    async fn settle(&mut self) {
        run_tasks().await;
        let failed = Said::LoadFailed(StoreErrorKind::Unavailable);
        let failures = self.service.heard.count(failed);
        let answered = self.service.store.answered();
        if failures > self.failures {
            self.store_is_failing = true;
        } else if answered > self.answered {
            self.store_is_failing = false;
        }
        (self.failures, self.answered) = (failures, answered);
        let gaps_closed = self.service.heard.count(Said::FeedLive);
        if gaps_closed > self.gaps_closed {
            self.gaps_closed = gaps_closed;
            self.keys.iter_mut().for_each(|key| key.confirmed = key.versions.len() - 1);
        }

        for mut request in std::mem::take(&mut self.requests) {
            match poll_once(&mut request.reply) {
                Poll::Ready(reply) => self.check(&request, &reply),
                Poll::Pending => self.requests.push(request),
            }
        }
        // Requests that were overtaken by a change have begun another load.
        run_tasks().await;
    }

    fn check(&mut self, request: &Request, reply: &Reply) {
        self.replies += 1;
        let wall = self.service.clock.now();
        let history = &self.keys[request.key];
        let grace = if self.failures == 0 { Duration::ZERO } else { STALE_IF_ERROR };
        // A load that it joined may have begun a deadline earlier.
        let earliest = request.began.saturating_sub(FRESH + grace + LOAD_DEADLINE);
        let mut from = history.at(earliest).max(request.announced);
        if !request.store_was_failing && self.failures == request.failures_before {
            from = from.max(request.confirmed);
        }
        let explained = match (reply.status.as_u16(), reply.kind) {
            (200, None) => {
                assert_eq!(reply.body, history.consumer, "the wrong consumer");
                history.versions[from..].iter().any(|version| {
                    let same = |record: &&KeyRecord| record.name == reply.key_name;
                    let record = version.record.as_ref().filter(same);
                    record.is_some_and(|record| record.status(wall) == KeyStatus::Active)
                })
            }
            (401, Some(kind)) => {
                let versions = &history.versions[from..];
                versions.iter().any(|version| refusal(version, wall) == Some(kind))
            }
            (503, Some(RejectionKind::StoreUnavailable)) => {
                request.store_was_failing || self.failures > request.failures_before
            }
            _ => false,
        };
        assert!(
            explained,
            "{reply:?} to a request from version {} of {:?} on",
            from,
            history.versions.iter().map(|version| refusal(version, wall)).collect::<Vec<_>>()
        );
    }
}

async fn run_tasks() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

fn refusal(version: &Version, wall: SystemTime) -> Option<RejectionKind> {
    match version.record.as_ref().map(|record| record.status(wall)) {
        Some(KeyStatus::Active) => None,
        Some(KeyStatus::Inactive) => Some(RejectionKind::Inactive),
        Some(KeyStatus::Expired) => Some(RejectionKind::Expired),
        Some(KeyStatus::Revoked) => Some(RejectionKind::Revoked),
        Some(status) => panic!("no key was made {status:?}"),
        None => Some(RejectionKind::Unknown),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn each_answer_is_explained_by_a_state_the_key_was_in(steps in vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            let requests = steps.iter().filter(|step| matches!(step, Step::Request(_))).count();
            let mut hung_up = 0;
            for step in steps {
                hung_up += usize::from(matches!(step, Step::HangUp) && !world.requests.is_empty());
                world.take(step).await;
            }
            world.take(Step::ReleaseQueries).await;
            // What was overtaken by a change is asked for again.
            world.settle().await;
            assert_eq!(world.replies + hung_up, requests, "a request was left waiting");
        });
    }
}
