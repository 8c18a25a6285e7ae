//! Last uses: collected, written in batches, and never in the way of a request.

use std::{
    collections::HashSet,
    future::{pending, ready},
    time::{Duration, SystemTime},
};

use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use tower_api_key::{
    Authenticator,
    auth::{RejectionKind, Worker},
    clock::{Clock, ManualClock},
    key::{Alphabet, ImportedFormat, KeyHash},
    manage::{Expiry, NewKey},
    rate_limit::Quota,
    record::{KeyEnded, KeyId, KeyRecord},
    store::{
        KeyStore, ManageKeys, StoreError, StoreErrorKind,
        port::{Usage, UsageBatch},
    },
};

use crate::doubles::{Answers, DOWN, Heard, Key, Said, Service, format, poll_once, within};
use crate::raw_store::ByHand as _;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
/// The default.
const INTERVAL: Duration = Duration::from_secs(10);
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// A service whose worker runs until stopped.
pub(crate) struct Running {
    pub(crate) service: Service,
    stop: oneshot::Sender<()>,
    worker: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start() -> Self {
        let (service, worker) = Service::and_worker(|builder| builder);
        Self::with(service, worker)
    }

    pub(crate) fn with(service: Service, worker: Worker) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = tokio::spawn(worker.run(async {
            let _ = stopped.await;
        }));
        Self { service, stop, worker }
    }

    /// Advances all clocks.
    pub(crate) async fn pass(&self, time: Duration) {
        // The worker receives pending reports before the time advances.
        settle().await;
        self.service.clock.advance(time);
        tokio::time::advance(time).await;
        settle().await;
    }

    /// The final state after the worker stops, and the time it took.
    pub(crate) async fn stop(self) -> (Service, Duration) {
        let begun = Instant::now();
        self.stop.send(()).expect("the worker is running");
        within(self.worker).await.expect("the worker ends in good order");
        (self.service, begun.elapsed())
    }
}

/// Runs every task that is ready.
pub(crate) async fn settle() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

fn ids(batch: &[Usage]) -> Vec<KeyId> {
    batch.iter().map(|usage| usage.key_id).collect()
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_requests_with_three_keys_are_one_batch_of_three() {
    let running = Running::start();
    let service = &running.service;
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(service.issue("acme").await);
    }
    for request in 0..10_000 {
        service.get(&keys[request % 3].text).await.is_for("acme");
    }
    running.pass(INTERVAL - MILLI).await;
    assert_eq!(service.store.batches(), [] as [Vec<Usage>; 0], "written too early");
    running.pass(MILLI).await;
    let batches = service.store.batches();
    assert_eq!(batches.len(), 1);
    let mut expected: Vec<_> = keys.iter().map(|key| key.record.id).collect();
    expected.sort();
    assert_eq!(ids(&batches[0]), expected, "each key once, in order");
    assert_eq!(service.heard.take(), [Said::UsageFlushed(3)]);

    running.pass(10 * INTERVAL).await;
    assert_eq!(service.store.flushes(), 1, "nothing was used, and something was written");
}

#[tokio::test(start_paused = true)]
async fn the_first_use_is_written_at_the_next_flush_with_the_time_it_happened_at() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    running.pass(7 * SECOND).await;
    let used_at = service.clock.now();
    service.get(&key.text).await.is_for("acme");
    running.pass(3 * SECOND).await;
    let expected = [[Usage::new(key.record.id, used_at)]];
    assert_eq!(service.store.batches(), expected);
    assert_eq!(service.store.last_used_at(key.record.id).await.unwrap(), Some(used_at));
}

#[tokio::test(start_paused = true)]
async fn a_key_is_reported_once_an_interval_however_often_it_is_used() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    let first = service.clock.now();
    for _ in 0..10 {
        service.get(&key.text).await.is_for("acme");
        running.pass(SECOND).await;
    }
    assert_eq!(service.store.batches(), [[Usage::new(key.record.id, first)]]);
    service.get(&key.text).await.is_for("acme");
    running.pass(INTERVAL).await;
    assert_eq!(service.store.batches()[1..], [[Usage::new(key.record.id, first + INTERVAL)]]);
}

#[tokio::test(start_paused = true)]
async fn what_is_written_lags_behind_by_less_than_two_intervals() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    for second in 0..300 {
        service.get(&key.text).await.is_for("acme");
        let used_at = service.clock.now();
        running.pass(SECOND).await;
        let recorded = service.store.last_used_at(key.record.id).await.unwrap();
        if second >= 10 {
            let recorded = recorded.expect("the first flush is over");
            assert!(recorded <= used_at);
            assert!(used_at < recorded + 2 * INTERVAL, "second {second}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_not_let_in_were_not_used() {
    let running = Running::start();
    let service = &running.service;
    let revoked = service.issue("acme").await;
    service.revoke(&revoked).await;
    let limits = Quota::per_hour(1).unwrap();
    let limited = service.issue_new(NewKey::new("acme", Expiry::Never).rate_limits(limits)).await;
    let used_at = service.clock.now();
    service.get(&revoked.text).await.is_refused(RejectionKind::Revoked);
    service.get(&limited.text).await.is_for("acme");
    running.pass(INTERVAL).await;
    assert_eq!(service.get(&limited.text).await.kind, Some(RejectionKind::RateLimited));
    running.pass(INTERVAL).await;
    assert_eq!(service.store.batches(), [[Usage::new(limited.record.id, used_at)]]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_fails_is_kept_and_tried_again() {
    let running = Running::start();
    let service = &running.service;
    let (early, late) = (service.issue("acme").await, service.issue("acme").await);
    let early_at = service.clock.now();
    service.get(&early.text).await.is_for("acme");
    service.store.answer(DOWN);
    running.pass(INTERVAL).await;
    running.pass(INTERVAL).await;
    assert_eq!((service.store.flushes(), service.store.batches().len()), (2, 0));
    let failed = Said::UsageFlushFailed(StoreErrorKind::Unavailable);
    assert_eq!(service.heard.take(), [failed, failed]);

    service.store.answer(Answers::Truthfully);
    let late_at = service.clock.now();
    service.get(&late.text).await.is_for("acme");
    running.pass(INTERVAL).await;
    let expected = [[Usage::new(early.record.id, early_at)], [Usage::new(late.record.id, late_at)]];
    assert_eq!(service.store.batches(), expected);
    running.pass(INTERVAL).await;
    assert_eq!(service.store.flushes(), 4, "written twice");
}

#[tokio::test(start_paused = true)]
async fn a_use_while_a_flush_fails_is_the_one_that_counts() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    let used_at = service.clock.now();
    service.get(&key.text).await.is_for("acme");
    service.store.answer(DOWN);
    running.pass(INTERVAL).await;
    let again_at = service.clock.now();
    service.get(&key.text).await.is_for("acme");
    service.store.answer(Answers::Truthfully);
    running.pass(INTERVAL).await;
    let expected = [used_at, again_at].map(|at| [Usage::new(key.record.id, at)]);
    assert_eq!(service.store.batches(), expected);
    assert_eq!(service.store.last_used_at(key.record.id).await.unwrap(), Some(again_at));
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_steps_back_takes_no_last_use_back() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    let used_at = service.clock.now();
    service.get(&key.text).await.is_for("acme");
    // The first use is still pending when the second comes, an hour before it.
    service.store.answer(DOWN);
    running.pass(INTERVAL).await;
    service.clock.set_wall(service.clock.now() - Duration::from_secs(3600));
    service.get(&key.text).await.is_for("acme");
    service.store.answer(Answers::Truthfully);
    running.pass(INTERVAL).await;
    assert_eq!(service.store.batches().len(), 2);
    assert_eq!(service.store.last_used_at(key.record.id).await.unwrap(), Some(used_at));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_does_not_keep_the_worker_from_the_next_flush() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    let used_at = service.clock.now();
    service.get(&key.text).await.is_for("acme");
    service.store.answer(Answers::Never);
    running.pass(INTERVAL).await;
    running.pass(FLUSH_DEADLINE).await;
    let failed = Said::UsageFlushFailed(StoreErrorKind::Unavailable);
    assert_eq!(service.heard.take(), [failed]);
    service.store.answer(Answers::Truthfully);
    running.pass(INTERVAL).await;
    assert_eq!(service.store.batches(), [[Usage::new(key.record.id, used_at)]]);
}

#[tokio::test(start_paused = true)]
async fn requests_do_not_wait_for_a_flush_that_hangs() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.store.answer(Answers::Never);
    running.pass(INTERVAL).await;
    assert_eq!(service.store.flushes(), 1);
    service.get_at_once(&key.text).is_for("acme");
}

// Bounds. The stores here know every key, so that many cost little.

/// Every key exists.
struct Everybody;

impl KeyStore for Everybody {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let id = KeyId::from_bytes(*hash.as_bytes().first_chunk().unwrap());
        Ok(Some(KeyRecord::new(id, *hash, "acme", SystemTime::UNIX_EPOCH)))
    }

    async fn record_usage(&self, _: &UsageBatch) -> Result<(), StoreError> {
        Err(StoreError::new(StoreErrorKind::Unavailable))
    }
}

fn everybody() -> (Authenticator, Worker, Heard) {
    let heard = Heard::default();
    let any = ImportedFormat::new("", Alphabet::Hex, 64).unwrap();
    let builder = Authenticator::builder(Everybody, format()).accept(any);
    let builder = builder.clock(ManualClock::default()).observer(heard.clone());
    let (auth, worker) = builder.build();
    (auth, worker, heard)
}

async fn use_keys(auth: &Authenticator, keys: std::ops::Range<usize>) {
    for key in keys {
        auth.check(format!("{key:064x}").as_bytes()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_than_a_hundred_thousand_keys_wait_to_be_written() {
    let (auth, worker, heard) = everybody();
    let worker = tokio::spawn(worker.run(pending()));
    use_keys(&auth, 0..100_000).await;
    settle().await;
    assert_eq!(heard.count(Said::UsageDropped), 0);
    use_keys(&auth, 100_000..100_010).await;
    settle().await;
    assert_eq!(heard.count(Said::UsageDropped), 10);
    worker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_never_runs_costs_no_request_and_bounded_memory() {
    let (auth, worker, heard) = everybody();
    use_keys(&auth, 0..16_384).await;
    assert_eq!(heard.take(), []);
    use_keys(&auth, 16_384..16_394).await;
    assert_eq!(heard.take(), [Said::UsageDropped; 10]);
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_dropped_costs_no_request_and_is_not_complained_about() {
    let (auth, worker, heard) = everybody();
    drop(worker);
    use_keys(&auth, 0..20_000).await;
    use_keys(&auth, 0..20_000).await;
    assert_eq!(heard.take(), []);
}

#[tokio::test(start_paused = true)]
async fn a_worker_dropped_while_it_runs_costs_no_request() {
    for answers in [Answers::Truthfully, Answers::Never] {
        let running = Running::start();
        let service = &running.service;
        let key = service.issue("acme").await;
        service.get(&key.text).await.is_for("acme");
        service.store.answer(answers);
        running.pass(INTERVAL).await;
        running.worker.abort();
        settle().await;
        assert!(running.worker.is_finished());
        service.store.answer(Answers::Truthfully);
        for _ in 0..3 {
            service.clock.advance(INTERVAL);
            service.get(&key.text).await.is_for("acme");
        }
    }
}

mod logs {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// What was logged on this thread.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
            let log = Self::default();
            let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone());
            let subscriber = subscriber.with_env_filter("tower_api_key=warn").finish();
            (log, tracing::subscriber::set_default(subscriber))
        }

        fn take(&self) -> Vec<String> {
            let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
            text.lines().map(str::to_owned).collect()
        }

        #[track_caller]
        fn is_one_warning(&self) {
            let lines = self.take();
            let [line] = &lines[..] else { panic!("{lines:?}") };
            assert!(line.contains("WARN"), "{line}");
            assert!(line.contains("worker dropped without being run"), "{line}");
            assert!(line.contains("uses of keys are not written"), "{line}");
        }
    }

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Log {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_dropped_without_being_run_is_logged_once() {
        let (log, _guard) = Log::listen();
        let (_service, worker) = Service::and_worker(|builder| builder);
        assert_eq!(log.take(), [""; 0]);
        drop(worker);
        log.is_one_warning();

        let (_auth, _) = Authenticator::builder(Everybody, format()).build();
        log.is_one_warning();

        let (_service, worker) = Service::and_worker(|builder| builder);
        drop(worker.run(pending()));
        log.is_one_warning();
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_has_begun_to_run_is_not_logged_when_it_ends() {
        let (log, _guard) = Log::listen();
        let running = Running::start();
        settle().await;
        running.stop().await;
        let running = Running::start();
        settle().await;
        running.worker.abort();
        settle().await;
        assert!(running.worker.is_finished());
        assert_eq!(log.take(), [""; 0]);
    }
}

// Clocks that disagree: the monotonic one stands still while some machines sleep.

const HOUR: Duration = Duration::from_secs(3600);
/// How often the worker compares the clocks.
const CLOCK_INTERVAL: Duration = SECOND;

impl Running {
    /// The machine sleeps: only the wall clock advances.
    fn sleep(&self, time: Duration) {
        self.service.clock.set_wall(self.service.clock.now() + time);
    }

    /// A cached key that expires after this long.
    async fn key_for(&self, lifetime: Duration) -> Key {
        let key = self.service.issue_new(NewKey::new("acme", Expiry::In(lifetime))).await;
        self.service.get(&key.text).await.is_for("acme");
        key
    }

    fn gaps(&self) -> Vec<Said> {
        let heard = self.service.heard.take().into_iter();
        heard.filter(|said| matches!(said, Said::ClockGap(_))).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_expired_while_the_machine_slept_is_refused_at_the_next_check_of_the_clocks() {
    for answers in [Answers::Truthfully, DOWN, Answers::Never] {
        let running = Running::start();
        let (key, other) = (running.key_for(HOUR).await, running.key_for(10 * HOUR).await);
        running.pass(SECOND).await;
        running.service.store.answer(answers);
        running.sleep(2 * HOUR);
        running.pass(CLOCK_INTERVAL).await;
        assert_eq!(running.gaps(), [Said::ClockGap(2 * HOUR)], "{answers:?}");
        running.service.get(&key.text).await.is_refused(RejectionKind::Expired);
        running.service.get(&other.text).await.is_for("acme");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_worker_the_next_look_up_of_any_key_notices_that_the_machine_slept() {
    let (service, worker) = Service::and_worker(|builder| builder);
    drop(worker);
    let key = service.issue_new(NewKey::new("acme", Expiry::In(HOUR))).await;
    let other = service.issue("other").await;
    service.get(&key.text).await.is_for("acme");
    service.clock.set_wall(service.clock.now() + 2 * HOUR);
    service.get(&other.text).await.is_for("other");
    service.get(&key.text).await.is_refused(RejectionKind::Expired);
}

#[tokio::test(start_paused = true)]
async fn without_a_worker_and_look_ups_a_key_that_expired_in_sleep_is_let_in_while_it_is_fresh() {
    const FRESH: Duration = Duration::from_secs(60);
    let (service, worker) = Service::and_worker(|builder| builder);
    drop(worker);
    let key = service.issue_new(NewKey::new("acme", Expiry::In(HOUR))).await;
    service.get(&key.text).await.is_for("acme");
    service.clock.set_wall(service.clock.now() + 2 * HOUR);
    service.clock.advance(FRESH - MILLI);
    service.get(&key.text).await.is_for("acme");
    service.clock.advance(MILLI);
    service.get(&key.text).await.is_refused(RejectionKind::Expired);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_revoked_while_the_machine_slept_is_asked_for_before_it_is_let_in() {
    let running = Running::start();
    let key = running.key_for(10 * HOUR).await;
    running.pass(SECOND).await;
    running.service.store.revoke(key.record.id, None).await.unwrap();
    running.sleep(30 * SECOND);
    running.pass(CLOCK_INTERVAL).await;
    running.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test(start_paused = true)]
async fn each_step_of_the_wall_clock_forward_confirms_each_key_once() {
    let running = Running::start();
    let service = &running.service;
    let key = running.key_for(1_000 * HOUR).await;
    running.pass(SECOND).await;
    for step in 1..=3 {
        running.sleep(HOUR);
        for _ in 0..10 {
            running.pass(SECOND).await;
            service.get(&key.text).await.is_for("acme");
        }
        assert_eq!(running.gaps(), [Said::ClockGap(HOUR)]);
        assert_eq!(service.store.queries_for(&key.record.key_hash), 1 + step);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_steps_back_or_is_slewed_is_no_gap() {
    let running = Running::start();
    let service = &running.service;
    let key = running.key_for(HOUR).await;
    running.pass(SECOND).await;
    service.clock.set_wall(service.clock.now() - 10 * HOUR);
    for _ in 0..50 {
        running.pass(SECOND).await;
        // 500 millionths, as NTP does, in either direction.
        running.sleep(MILLI / 2);
        service.get(&key.text).await.is_for("acme");
    }
    for _ in 0..5 {
        running.pass(SECOND).await;
        service.clock.set_wall(service.clock.now() - MILLI / 2);
    }
    assert_eq!(running.gaps(), []);
    assert_eq!(service.store.queries_for(&key.record.key_hash), 1);
}

#[tokio::test(start_paused = true)]
async fn short_sleeps_add_up_to_a_gap() {
    let running = Running::start();
    running.pass(SECOND).await;
    let _key = running.key_for(HOUR).await;
    for _ in 0..3 {
        running.sleep(400 * MILLI);
        running.pass(SECOND).await;
    }
    assert_eq!(running.gaps().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_gap_of_the_clocks_brings_no_beginning_forward_and_refills_no_quota() {
    let running = Running::start();
    let service = &running.service;
    let now = service.clock.now();
    let later = NewKey::new("acme", Expiry::Never).not_before(now + HOUR);
    let later = service.issue_new(later).await;
    let quota = Quota::per_hour(1).unwrap();
    let limited = service.issue_new(NewKey::new("acme", Expiry::Never).rate_limits(quota)).await;
    service.get(&later.text).await.is_refused(RejectionKind::NotYetActive);
    service.get(&limited.text).await.is_for("acme");
    running.pass(SECOND).await;
    service.store.answer(DOWN);
    running.sleep(2 * HOUR);
    running.pass(CLOCK_INTERVAL).await;
    service.get(&later.text).await.is_refused(RejectionKind::NotYetActive);
    let kind = service.get(&limited.text).await.kind;
    assert_eq!(kind, Some(RejectionKind::RateLimited));
}

/// Resolves when the key ends.
async fn watched(service: &Service, key: &Key) -> KeyEnded {
    let admission = service.auth.check(key.text.as_bytes()).await.unwrap();
    let mut ended = admission.consumer().key_ended();
    assert!(poll_once(&mut ended).is_pending());
    ended
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_key_expired_while_the_machine_slept_ends_at_the_next_check() {
    for answers in [Answers::Truthfully, DOWN] {
        let running = Running::start();
        let key = running.key_for(HOUR).await;
        running.pass(SECOND).await;
        let ended = watched(&running.service, &key).await;
        running.service.store.answer(answers);
        running.sleep(2 * HOUR);
        let begun = Instant::now();
        within(ended).await;
        assert!(begun.elapsed() <= CLOCK_INTERVAL, "{answers:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_although_timers_slept_and_the_monotonic_clock_did_not() {
    // As with `CLOCK_BOOTTIME`: no timer has noticed that the key has expired.
    let running = Running::start();
    let key = running.key_for(30 * SECOND).await;
    running.pass(SECOND).await;
    let ended = watched(&running.service, &key).await;
    running.service.clock.advance(45 * SECOND);
    running.service.get(&key.text).await.is_refused(RejectionKind::Expired);
    let begun = Instant::now();
    within(ended).await;
    assert!(begun.elapsed() <= CLOCK_INTERVAL, "{:?}", begun.elapsed());
    assert_eq!(running.gaps(), []);
}

// The end.

#[tokio::test(start_paused = true)]
async fn on_shutdown_what_is_left_is_written_before_the_worker_returns() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    let used_at = service.clock.now();
    service.get(&key.text).await.is_for("acme");
    let (service, took) = running.stop().await;
    assert_eq!(service.store.batches(), [[Usage::new(key.record.id, used_at)]]);
    assert_eq!(took, Duration::ZERO);
    service.get(&key.text).await.is_for("acme");
}

#[tokio::test(start_paused = true)]
async fn a_worker_told_to_stop_before_it_began_still_writes_what_it_was_told() {
    let (service, worker) = Service::and_worker(|builder| builder);
    let mut expected = HashSet::new();
    for _ in 0..5_000 {
        let key = service.issue("acme").await;
        service.get(&key.text).await.is_for("acme");
        expected.insert(key.record.id);
    }
    within(worker.run(ready(()))).await;
    let batches = service.store.batches();
    assert_eq!(batches.len(), 1);
    assert_eq!(ids(&batches[0]).into_iter().collect::<HashSet<_>>(), expected);
    assert_eq!(batches[0].len(), expected.len());
}

#[tokio::test(start_paused = true)]
async fn a_use_that_waited_for_the_worker_keeps_its_time() {
    let (service, worker) = Service::and_worker(|builder| builder);
    let key = service.issue("acme").await;
    let used_at = service.clock.now();
    service.get(&key.text).await.is_for("acme");
    service.clock.advance(3 * SECOND);
    within(worker.run(ready(()))).await;
    assert_eq!(service.store.batches(), [[Usage::new(key.record.id, used_at)]]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_with_nothing_to_write_stops_without_a_word_to_the_store() {
    let (service, worker) = Service::and_worker(|builder| builder);
    within(worker.run(ready(()))).await;
    assert_eq!(service.store.flushes(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_worker_ends_with_the_last_authenticator() {
    let (Service { store, clock, auth, .. }, worker) = {
        let (service, worker) = Service::and_worker(|builder| builder);
        let key = service.issue("acme").await;
        service.get(&key.text).await.is_for("acme");
        (service, worker)
    };
    let mut worker = tokio::spawn(worker.run(pending()));
    let second = auth.clone();
    drop(auth);
    settle().await;
    assert!(poll_once(&mut worker).is_pending(), "an authenticator is left");
    drop(second);
    within(worker).await.unwrap();
    assert_eq!(store.batches().len(), 1);
    drop(clock);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_holds_shutting_down_up_for_five_seconds() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.store.answer(Answers::Never);
    let (service, took) = running.stop().await;
    assert_eq!(took, FLUSH_DEADLINE);
    let failed = Said::UsageFlushFailed(StoreErrorKind::Unavailable);
    assert_eq!(service.heard.take(), [failed]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_hangs_already_prolongs_shutting_down_no_further() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.store.answer(Answers::Never);
    running.pass(INTERVAL).await;
    assert_eq!(service.store.flushes(), 1);
    let (_, took) = running.stop().await;
    assert!(took <= FLUSH_DEADLINE, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_comes_back_during_shutdown_gets_everything() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    let used_at = service.clock.now();
    service.get(&key.text).await.is_for("acme");
    service.store.answer(Answers::Never);
    running.pass(INTERVAL).await;
    service.store.answer(Answers::Truthfully);
    let (service, _) = running.stop().await;
    assert_eq!(service.store.batches(), [[Usage::new(key.record.id, used_at)]]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_on_shutdown_is_not_tried_for_ever() {
    let running = Running::start();
    let service = &running.service;
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.store.answer(DOWN);
    let (service, took) = running.stop().await;
    assert_eq!((took, service.store.flushes()), (Duration::ZERO, 1));
}

#[tokio::test]
async fn an_interval_without_end_is_no_mistake() {
    let (_service, worker) = Service::and_worker(|builder| builder.usage_interval(Duration::MAX));
    within(worker.run(ready(()))).await;
}

mod postgres {
    use std::sync::Arc;

    use sqlx::{query_as, types::Uuid};
    use tokio::sync::Barrier;
    use tower_api_key::{
        auth::Builder,
        manage::KeyIssuer,
        store::{MemoryKeyStore, PgKeyStore},
    };

    use super::*;
    use crate::servers::postgres::Server;

    #[tokio::test]
    async fn a_last_use_is_there_after_shutdown() {
        let database = Server::shared().database().await;
        let store = PgKeyStore::new(database.pool().await);
        store.migrate().await.unwrap();
        let (service, worker) = Service::around(store, ManualClock::default(), |it| it);
        let (used, unused) = (service.issue("acme").await, service.issue("acme").await);
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = tokio::spawn(worker.run(async {
            let _ = stopped.await;
        }));
        service.get(&used.text).await.is_for("acme");
        assert_eq!(service.store.last_used_at(used.record.id).await.unwrap(), None);
        stop.send(()).unwrap();
        within(worker).await.unwrap();
        let used_at = Some(service.clock.now());
        assert_eq!(service.store.last_used_at(used.record.id).await.unwrap(), used_at);
        assert_eq!(service.store.last_used_at(unused.record.id).await.unwrap(), None);
    }

    #[tokio::test]
    async fn uses_are_written_while_requests_come_in() {
        let database = Server::shared().database().await;
        let store = PgKeyStore::new(database.pool().await);
        store.migrate().await.unwrap();
        let often = |builder: Builder| builder.usage_interval(10 * MILLI);
        let (service, worker) = Service::around(store, ManualClock::default(), often);
        let key = service.issue("acme").await;
        let worker = tokio::spawn(worker.run(pending()));
        for flushes in 1..=5 {
            service.clock.advance(SECOND);
            service.get(&key.text).await.is_for("acme");
            service.heard.until(|heard| heard.len() == flushes).await;
            let recorded = service.store.last_used_at(key.record.id).await.unwrap();
            assert_eq!(recorded, Some(service.clock.now()));
        }
        assert_eq!(service.heard.take(), [Said::UsageFlushed(1); 5]);
        worker.abort();
    }

    const KEYS: usize = 1_000;
    const ROUNDS: usize = 20;

    /// Keys are looked up in memory, because this is not about look-ups. Uses are written to the
    /// database once the other node is about to write.
    #[derive(Clone)]
    struct Shared {
        keys: MemoryKeyStore,
        uses: PgKeyStore,
        both: Arc<Barrier>,
    }

    impl KeyStore for Shared {
        async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
            self.keys.find(hash).await
        }

        async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
            self.both.wait().await;
            self.uses.record_usage(batch).await
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_nodes_that_write_the_same_uses_at_once_keep_the_later_ones() {
        let database = Server::shared().database().await;
        let uses = PgKeyStore::new(database.pool().await);
        uses.migrate().await.unwrap();
        let keys = MemoryKeyStore::new();
        let issuer = KeyIssuer::new(keys.clone(), format());
        let mut issued = Vec::new();
        for _ in 0..KEYS {
            let key = Key::from(issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap());
            uses.insert(&key.record).await.unwrap();
            issued.push(key);
        }
        // In sequence, in neither the order of ids nor that of the other node.
        let mut shuffled = issued.clone();
        shuffled.sort_by(|one, other| one.text.cmp(&other.text));

        let clock = ManualClock::default();
        let store = Shared { keys, uses: uses.clone(), both: Arc::new(Barrier::new(2)) };
        for round in 0..ROUNDS {
            clock.advance(SECOND);
            let later = ManualClock::at(clock.now() + SECOND / 2);
            let (one, one_works) = Service::around(store.clone(), clock.clone(), |it| it);
            let (other, other_works) = Service::around(store.clone(), later.clone(), |it| it);
            for key in &issued {
                one.get(&key.text).await.is_for("acme");
            }
            // The later node has used half of the keys.
            for key in shuffled.iter().skip(round % 2).step_by(2) {
                other.get(&key.text).await.is_for("acme");
            }
            let (one_works, other_works) =
                (tokio::spawn(one_works.run(ready(()))), tokio::spawn(other_works.run(ready(()))));
            within(one_works).await.unwrap();
            within(other_works).await.unwrap();
            assert_eq!(one.heard.take(), [Said::UsageFlushed(KEYS)]);
            assert_eq!(other.heard.take(), [Said::UsageFlushed(KEYS / 2)]);

            let recorded = "select key_id, (extract(epoch from last_used_at) * 1000)::int8 \
                            from api_key_usage";
            let recorded: Vec<(Uuid, i64)> =
                query_as(recorded).fetch_all(uses.pool()).await.unwrap();
            assert_eq!(recorded.len(), KEYS);
            let millis = |clock: &ManualClock| {
                let since = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                i64::try_from(since.as_millis()).unwrap()
            };
            let seen = shuffled.iter().skip(round % 2).step_by(2);
            let seen: HashSet<_> = seen.map(|key| key.record.id).collect();
            for (id, at) in recorded {
                let expected = if seen.contains(&KeyId::from_bytes(id.into_bytes())) {
                    millis(&later)
                } else {
                    millis(&clock)
                };
                assert_eq!(at, expected, "round {round}");
            }
        }
    }
}
