//! Last uses of keys: reported by requests, collected, and written in batches.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use crate::auth::{
    Event,
    cache::Entry,
    catch_panic::{catch_panic, caught},
    core::Core,
};
use crate::{
    clock::nanos,
    record::KeyId,
    store::{StoreError, StoreErrorKind, port::Usage},
    trace,
};

/// Uses queued for the writer. It receives them at once, so the queue only has to bridge a flush.
const BUFFERED: usize = 16_384;
/// Keys whose last use may wait to be written while the store is down.
const MAX_PENDING: usize = 100_000;
/// The deadline of a flush. It also bounds the time of a shutdown.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
const RECEIVE_AT_ONCE: usize = 1024;

pub(in crate::auth) fn channel(
    core: Arc<Core>,
    interval: Duration,
) -> (UsageRecorder, UsageWriter) {
    let (sender, touches) = mpsc::channel(BUFFERED);
    let (received, pending) = (Vec::new(), BTreeMap::new());
    let writer = UsageWriter { core, touches, interval, received, pending, is_failing: false };
    (UsageRecorder { touches: sender, interval }, writer)
}

/// Reports to the writer the first use of a key in each interval after it was loaded.
pub(in crate::auth) struct UsageRecorder {
    touches: mpsc::Sender<Touch>,
    interval: Duration,
}

/// A use of a key, in monotonic time.
struct Touch {
    key_id: KeyId,
    at: Duration,
}

impl UsageRecorder {
    /// Most requests cost one relaxed load.
    pub(in crate::auth) fn touch(&self, entry: &Entry, now: Duration, core: &Core) {
        // Zero means "not reported yet", so it is never stored as a time.
        let at = nanos(now).saturating_add(1);
        let touched_at = &entry.ext.touched_at;
        let last = touched_at.load(Ordering::Relaxed);
        if last != 0 && at.saturating_sub(last) < nanos(self.interval) {
            return;
        }
        touched_at.store(at, Ordering::Relaxed);
        let touch = Touch { key_id: entry.key_id(), at: now };
        if let Err(mpsc::error::TrySendError::Full(_)) = self.touches.try_send(touch) {
            touched_at.store(0, Ordering::Relaxed);
            core.observe(&Event::UsageDropped);
        }
    }
}

/// Writes last uses to the store.
pub(in crate::auth) struct UsageWriter {
    core: Arc<Core>,
    touches: mpsc::Receiver<Touch>,
    interval: Duration,
    /// Received, but not yet converted to wall-clock time.
    received: Vec<Touch>,
    pending: BTreeMap<KeyId, SystemTime>,
    is_failing: bool,
}

impl UsageWriter {
    /// The number of keys waiting to be written.
    pub(in crate::auth) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Flushes once per interval, until every recorder is dropped. Cancel safe: may be dropped at
    /// any await and called again.
    pub(in crate::auth) async fn write(&mut self) {
        // Touches received before a panic.
        self.take_up();
        let mut ticks = interval_at(Instant::now() + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.flush().await,
                count = self.touches.recv_many(&mut self.received, RECEIVE_AT_ONCE) => {
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
        self.touches.close();
        self.write_now().await;
    }

    /// Writes what was reported so far.
    pub(in crate::auth) async fn write_now(&mut self) {
        while let Ok(touch) = self.touches.try_recv() {
            self.received.push(touch);
        }
        // If the clock panics, touches without a wall-clock time are lost; the others are still
        // written.
        let _ = catch_panic(async { self.take_up() }).await;
        self.flush().await;
    }

    /// Converts received touches to wall-clock time.
    fn take_up(&mut self) {
        if self.received.is_empty() {
            return;
        }
        let (wall, now) = (self.core.clock.now(), self.core.clock.monotonic());
        for Touch { key_id, at } in self.received.drain(..) {
            let at = wall.checked_sub(now.saturating_sub(at)).unwrap_or(wall);
            if self.pending.len() >= MAX_PENDING && !self.pending.contains_key(&key_id) {
                self.core.observe(&Event::UsageDropped);
                continue;
            }
            let latest = self.pending.entry(key_id).or_insert(at);
            *latest = at.max(*latest);
        }
    }

    async fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        // Sorted by id on every node, so that concurrent batches cannot deadlock.
        let batch: Vec<_> = self.pending.iter().map(|(&id, &at)| Usage::new(id, at)).collect();
        let begin = Instant::now();
        let record = caught(async { self.core.store.record_usage(&batch).await });
        let written = timeout(FLUSH_DEADLINE, record).await;
        match written
            .unwrap_or_else(|late| Err(StoreError::new(StoreErrorKind::Unavailable).because(late)))
        {
            Ok(()) => {
                self.pending.clear();
                if std::mem::take(&mut self.is_failing) {
                    trace::info!("usage flush recovered");
                }
                self.core
                    .observe(&Event::UsageFlushed { keys: batch.len(), took: begin.elapsed() });
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    trace::warn!(?error, keys = batch.len(), "usage flush failed");
                }
                self.core.observe(&Event::UsageFlushFailed { error: &error });
            }
        }
    }
}
