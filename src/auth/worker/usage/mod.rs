//! Uses of keys: reported by requests, collected, and written in batches.

mod pending;

use std::{
    collections::BTreeSet,
    future::pending,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};

use self::pending::{Dropped, Pending, hour_of, left_of_hour};
use crate::auth::{
    Event,
    catch_panic::{catch_panic, caught},
    core::Core,
    lookup::BoxFuture,
    use_reports::KeyUse,
};
use crate::{
    record::Consumer,
    store::{
        StoreError, StoreErrorKind,
        port::{UsageBatch, UseCounts},
    },
    trace,
};

/// Keys whose counts are taken at once, before the next flush if there are more. It bounds the cached
/// keys that the writer keeps.
const MAX_USED: usize = 16_384;
/// The deadline of a flush. It also bounds the time of a shutdown.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
/// How long a shutdown waits for a flush that has begun before.
const HANGING: Duration = Duration::from_secs(1);
/// How late the writer notices at most that an hour has begun, if the wall clock was set.
const HOUR_CHECK: Duration = Duration::from_secs(1);
const RECEIVE_AT_ONCE: usize = 1024;

/// Writes last uses and counts of uses to the store.
pub(in crate::auth) struct UsageWriter {
    core: Arc<Core>,
    reports: mpsc::Receiver<KeyUse>,
    interval: Duration,
    /// Received, but not yet converted to wall-clock time.
    received: Vec<KeyUse>,
    /// Keys whose counts are not taken yet.
    used: Vec<Consumer>,
    /// When the writer last checked: counts that are not taken yet belong to this hour.
    hour: Option<SystemTime>,
    pending: Pending,
    /// The batch that is being written, or was not written. It is retried as it is: the store may
    /// have it.
    in_flight: Option<Arc<UsageBatch>>,
    flush: Option<Flush>,
    is_failing: bool,
}

/// Resolves to the outcome, and how long it took.
type Flush = BoxFuture<'static, (Result<(), StoreError>, Duration)>;

impl UsageWriter {
    pub(in crate::auth) fn new(
        core: Arc<Core>,
        reports: mpsc::Receiver<KeyUse>,
        interval: Duration,
    ) -> Self {
        Self {
            core,
            reports,
            interval,
            received: Vec::new(),
            used: Vec::new(),
            hour: None,
            pending: Pending::default(),
            in_flight: None,
            flush: None,
            is_failing: false,
        }
    }

    /// The number of keys waiting to be written.
    pub(in crate::auth) fn pending(&self) -> usize {
        let in_flight = self.in_flight.as_ref().map_or(0, |batch| batch.last_uses.len());
        self.pending.keys() + in_flight
    }

    /// Flushes once per interval, until every sender of reports is dropped. Cancel safe: may be
    /// dropped at any await and called again.
    pub(in crate::auth) async fn write(&mut self) {
        // Reports received before a panic.
        self.take_up();
        let mut ticks = interval_at(Instant::now() + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let until_next_check = self.check_hour();
            tokio::select! {
                (written, took) = end_of(&mut self.flush) => {
                    if self.end_flush(written, took) {
                        self.begin_flush();
                    }
                }
                _ = ticks.tick() => {
                    self.collect();
                    self.begin_flush();
                }
                () = sleep_until(Instant::now() + until_next_check) => {}
                count = self.reports.recv_many(&mut self.received, RECEIVE_AT_ONCE) => {
                    if count == 0 {
                        break;
                    }
                    self.take_up();
                }
            }
        }
    }

    /// Writes what is left.
    pub(in crate::auth) async fn finish(mut self) {
        self.reports.close();
        let _ = timeout(FLUSH_DEADLINE, self.write_rest()).await;
        let rows = self.pending.rows();
        if self.in_flight.is_some() || rows > 0 {
            let keys = self.in_flight.as_ref().map_or(0, |batch| keys(batch));
            trace::warn!(keys, rows, "uses lost at shutdown");
            // Without the feature `tracing`, nothing is logged.
            let _ = (keys, rows);
        }
    }

    /// A flush that hangs, as on a dead connection, would take all of the time: it is begun again, on
    /// another one.
    async fn write_rest(&mut self) {
        if self.flush.is_some() {
            match timeout(HANGING, end_of(&mut self.flush)).await {
                Ok((written, took)) => {
                    self.end_flush(written, took);
                }
                Err(_) => self.flush = None,
            }
        }
        self.write_now().await;
    }

    /// Writes what was reported so far.
    pub(in crate::auth) async fn write_now(&mut self) {
        // If the clock panics, reports without a wall-clock time are lost; the rest is still written.
        if catch_panic(async { self.collect() }).await.is_err()
            && let Some(hour) = self.hour
        {
            self.take_counts(hour);
        }
        if self.flush.is_some() {
            let (written, took) = end_of(&mut self.flush).await;
            self.end_flush(written, took);
        }
        loop {
            self.begin_flush();
            if self.flush.is_none() {
                break;
            }
            let (written, took) = end_of(&mut self.flush).await;
            if !self.end_flush(written, took) {
                break;
            }
        }
    }

    /// Takes the counts of an hour that has ended. Returns how long until the next check.
    fn check_hour(&mut self) -> Duration {
        let wall = self.core.clock.now();
        if self.hour != Some(hour_of(wall)) {
            self.collect();
        }
        left_of_hour(wall).min(HOUR_CHECK)
    }

    /// Takes the counts of all keys that were used.
    pub(super) fn collect(&mut self) {
        for _ in 0..self.reports.len() {
            self.received.extend(self.reports.try_recv());
        }
        self.take_up();
        let hour = hour_of(self.core.clock.now());
        let counted_in = self.hour.replace(hour).unwrap_or(hour);
        self.take_counts(counted_in);
    }

    /// Converts received uses to wall-clock time.
    fn take_up(&mut self) {
        if self.received.is_empty() {
            return;
        }
        let (wall, now) = (self.core.clock.now(), self.core.clock.monotonic());
        for KeyUse { key, at } in self.received.drain(..) {
            if let Some(at) = at {
                let at = wall.checked_sub(now.saturating_sub(at)).unwrap_or(wall);
                if let Err(Dropped) = self.pending.used(key.key_id(), at) {
                    self.core.observe(&Event::UsageDropped);
                }
            }
            self.used.push(key);
        }
        if self.used.len() >= MAX_USED {
            self.take_counts(self.hour.unwrap_or_else(|| hour_of(wall)));
        }
    }

    fn take_counts(&mut self, hour: SystemTime) {
        let mut total = UseCounts::default();
        for key in self.used.drain(..) {
            match self.pending.take_counts(&key, hour) {
                Ok(counts) => total = total.plus(counts),
                Err(Dropped) => self.core.observe(&Event::UsageDropped),
            }
        }
        self.core.hour_total.add(hour, total);
    }

    /// Begins to write the batch that was not written, or the next one.
    fn begin_flush(&mut self) {
        if self.flush.is_some() {
            return;
        }
        if self.in_flight.is_none() {
            self.in_flight = self.pending.next_batch().map(Arc::new);
        }
        let Some(batch) = self.in_flight.clone() else { return };
        let core = Arc::clone(&self.core);
        self.flush = Some(Box::pin(async move {
            let begin = Instant::now();
            let record = caught(async { core.store.record_usage(&batch).await });
            let written = timeout(FLUSH_DEADLINE, record).await.unwrap_or_else(|late| {
                Err(StoreError::new(StoreErrorKind::Unavailable).because(late))
            });
            (written, begin.elapsed())
        }));
    }

    /// Returns whether the batch was written.
    fn end_flush(&mut self, written: Result<(), StoreError>, took: Duration) -> bool {
        self.flush = None;
        match written {
            Ok(()) => {
                let keys = self.in_flight.take().map_or(0, |batch| keys(&batch));
                if std::mem::take(&mut self.is_failing) {
                    trace::info!("usage flush recovered");
                }
                self.core.observe(&Event::UsageFlushed { keys, took });
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    let keys = self.in_flight.as_ref().map_or(0, |batch| keys(batch));
                    trace::warn!(?error, keys, "usage flush failed");
                    // Without the feature `tracing`, nothing is logged.
                    let _ = keys;
                }
                self.core.observe(&Event::UsageFlushFailed { error: &error });
                false
            }
        }
    }
}

/// Waits for a flush that is running.
async fn end_of(flush: &mut Option<Flush>) -> (Result<(), StoreError>, Duration) {
    match flush {
        Some(flush) => flush.await,
        None => pending().await,
    }
}

/// The number of keys in a batch.
fn keys(batch: &UsageBatch) -> usize {
    let counted = batch.counted.iter().flat_map(|counted| &counted.hours);
    let keys: BTreeSet<_> = counted.map(|used| used.key_id).collect();
    let others = batch.last_uses.iter().filter(|used| !keys.contains(&used.key_id));
    keys.len() + others.count()
}
