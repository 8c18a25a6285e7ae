use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval_at, timeout},
};

use super::{Event, load::Loader, usage::Touch};
use crate::{
    record::KeyId,
    store::{StoreError, StoreErrorKind, Usage},
    trace,
};

/// Keys whose use may wait to be written while the store is away.
const MAX_PENDING: usize = 100_000;
/// How long one flush may take. It also bounds how long shutting down takes.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
const RECEIVE_AT_ONCE: usize = 1024;

/// The work that no request waits for: it writes when keys were last used, and tidies up.
///
/// Nothing runs until [`run`](Self::run) is awaited, usually in a task of its own. Who does not
/// want `last_used_at` drops it instead.
///
/// Uses that cannot be written yet are kept for up to 100,000 keys, as many as are cached by
/// default; beyond that, and when 16,384 wait to be taken up, they are dropped and
/// [observed](super::Event::UsageDropped).
#[must_use = "nothing is recorded unless the worker runs"]
pub struct Worker {
    loader: Arc<Loader>,
    touches: mpsc::Receiver<Touch>,
    interval: Duration,
    pending: BTreeMap<KeyId, SystemTime>,
}

impl Worker {
    pub(super) fn new(
        loader: Arc<Loader>,
        touches: mpsc::Receiver<Touch>,
        interval: Duration,
    ) -> Self {
        Self { loader, touches, interval, pending: BTreeMap::new() }
    }

    /// Works until `shutdown` resolves or every [`Authenticator`](super::Authenticator) is gone,
    /// then writes what is left and returns.
    ///
    /// Writing what is left takes at most 5 s. The future may be dropped at any time, at the price
    /// of the uses not yet written.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut ticks = interval_at(tokio::time::Instant::now() + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut received = Vec::new();
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                _ = ticks.tick() => {
                    tokio::select! {
                        // What is left is written below, within a deadline of its own.
                        () = &mut shutdown => break,
                        () = self.flush() => {}
                    }
                    self.loader.limiter.sweep(self.loader.clock.monotonic());
                }
                count = self.touches.recv_many(&mut received, RECEIVE_AT_ONCE) => {
                    if count == 0 {
                        break;
                    }
                    self.take_up(received.drain(..));
                }
            }
        }
        self.touches.close();
        while let Ok(touch) = self.touches.try_recv() {
            self.take_up([touch]);
        }
        self.flush().await;
    }

    fn take_up(&mut self, touches: impl IntoIterator<Item = Touch>) {
        let (wall, now) = (self.loader.clock.now(), self.loader.clock.monotonic());
        for Touch { key_id, at } in touches {
            let at = wall.checked_sub(now.saturating_sub(at)).unwrap_or(wall);
            if self.pending.len() >= MAX_PENDING && !self.pending.contains_key(&key_id) {
                self.loader.observe(&Event::UsageDropped);
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
        // In the order of ids, in which every node writes: two of them cannot deadlock.
        let batch: Vec<_> = self.pending.iter().map(|(&id, &at)| Usage::new(id, at)).collect();
        let written = timeout(FLUSH_DEADLINE, self.loader.store.record_usage(&batch)).await;
        match written
            .unwrap_or_else(|late| Err(StoreError::new(StoreErrorKind::Unavailable).because(late)))
        {
            Ok(()) => {
                self.pending.clear();
                self.loader.observe(&Event::UsageFlushed { keys: batch.len() });
            }
            Err(error) => {
                trace::warn!(?error, keys = batch.len(), "last uses could not be written");
                self.loader.observe(&Event::UsageFlushFailed { error: &error });
            }
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}
