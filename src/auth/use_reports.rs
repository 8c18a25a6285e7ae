//! The channel from requests to the worker.

use std::time::Duration;

use tokio::sync::mpsc::{self, error::TrySendError};

use crate::record::Consumer;

/// Keys queued for the worker. It receives them at once, so the queue only has to bridge the time
/// until it is scheduled.
const BUFFERED: usize = 16_384;

/// The worker ends when this is dropped.
pub(super) struct KeepsWorkerRunning {
    _sender: mpsc::Sender<KeyUse>,
}

/// Tells the worker which keys were used.
pub(super) struct UseReports(mpsc::WeakSender<KeyUse>);

/// A key whose counts are not zero, and when it was used, in monotonic time; `None` if it was not let
/// in.
pub(super) struct KeyUse {
    pub(super) key: Consumer,
    pub(super) at: Option<Duration>,
}

/// The queue is full. The counts stay with the cached key, until another request tells of them.
pub(super) struct Full;

pub(super) fn channel() -> (KeepsWorkerRunning, UseReports, mpsc::Receiver<KeyUse>) {
    let (sender, receiver) = mpsc::channel(BUFFERED);
    let reports = UseReports(sender.downgrade());
    (KeepsWorkerRunning { _sender: sender }, reports, receiver)
}

impl UseReports {
    pub(super) fn tell(&self, key: Consumer, at: Option<Duration>) -> Result<(), Full> {
        // Without a worker, nothing is counted.
        let Some(sender) = self.0.upgrade() else { return Ok(()) };
        match sender.try_send(KeyUse { key, at }) {
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
            Err(TrySendError::Full(KeyUse { key, .. })) => {
                if let Some(counters) = key.use_counters() {
                    counters.not_told();
                }
                Err(Full)
            }
        }
    }
}
