use std::{sync::atomic::Ordering, time::Duration};

use tokio::sync::mpsc;

use super::{Event, entry::Entry, load::Loader};
use crate::record::KeyId;

/// Touches under way to the worker. It takes them up at once, so this need only bridge the time of
/// a flush.
const BUFFERED: usize = 16_384;

/// Reports uses of keys to the worker: of each interval, the first one after a key was loaded.
pub(super) struct UsageRecorder {
    touches: mpsc::Sender<Touch>,
    interval: Duration,
}

/// A key was used at this time of the monotonic clock.
pub(super) struct Touch {
    pub(super) key_id: KeyId,
    pub(super) at: Duration,
}

impl UsageRecorder {
    pub(super) fn new(interval: Duration) -> (Self, mpsc::Receiver<Touch>) {
        let (touches, receiver) = mpsc::channel(BUFFERED);
        (Self { touches, interval }, receiver)
    }

    /// One relaxed load for most requests.
    pub(super) fn touch(&self, entry: &Entry, now: Duration, loader: &Loader) {
        // Never zero, which stands for "not yet".
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).saturating_add(1);
        let last = entry.touched_at.load(Ordering::Relaxed);
        if last != 0 && Duration::from_nanos(nanos.saturating_sub(last)) < self.interval {
            return;
        }
        entry.touched_at.store(nanos, Ordering::Relaxed);
        let touch = Touch { key_id: entry.consumer.key_id(), at: now };
        if let Err(mpsc::error::TrySendError::Full(_)) = self.touches.try_send(touch) {
            entry.touched_at.store(0, Ordering::Relaxed);
            loader.observe(&Event::UsageDropped);
        }
    }
}
