//! Canary keys, which are answered as unknown keys are.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::client::{Address, Client, short_user_agent};
use crate::record::{KeyId, KeyKind, KeyRecord, KeyStatus};

/// Uses queued for the writer. It receives them at once, and more than the first few of a key are not
/// written anyway.
const BUFFERED: usize = 1024;

/// What is known of a canary key: cached with its absence, so that its uses are noticed.
pub(super) struct Canary {
    pub(super) key_id: KeyId,
    pub(super) consumer_id: String,
}

/// What the store has for a hash.
#[expect(clippy::large_enum_variant, reason = "moved once for each query, and not kept")]
pub(super) enum Presence {
    Key(KeyRecord),
    /// No key that could let anyone in.
    Absent(Option<Arc<Canary>>),
}

impl Presence {
    /// A canary key is absent. One that has ended or is switched off is not even noticed.
    pub(super) fn of(found: Option<KeyRecord>) -> Self {
        match found {
            None => Self::Absent(None),
            Some(record) if record.kind != KeyKind::Canary => Self::Key(record),
            Some(record) => {
                let is_set = record.status(record.read_at) == KeyStatus::Active;
                let KeyRecord { id: key_id, consumer_id, .. } = record;
                Self::Absent(is_set.then(|| Arc::new(Canary { key_id, consumer_id })))
            }
        }
    }
}

/// A use of a canary key.
pub(super) struct CanaryUse {
    pub(super) canary: Arc<Canary>,
    pub(super) address: Option<IpAddr>,
    pub(super) user_agent: Option<Box<[u8]>>,
    /// In monotonic time.
    pub(super) at: Duration,
}

/// Passes uses of canary keys to the worker.
pub(super) struct CanaryRecorder(mpsc::Sender<CanaryUse>);

pub(super) fn channel() -> (CanaryRecorder, mpsc::Receiver<CanaryUse>) {
    let (sender, uses) = mpsc::channel(BUFFERED);
    (CanaryRecorder(sender), uses)
}

impl CanaryRecorder {
    /// Drops the use of a canary key if too many are queued: then the writer knows of others.
    pub(super) fn note(&self, canary: Option<Arc<Canary>>, client: &impl Client, at: Duration) {
        let Some(canary) = canary else { return };
        let address = match client.address() {
            Address::Known(address) => Some(address),
            Address::NotTold | Address::Unknown => None,
        };
        let user_agent = client.user_agent().and_then(short_user_agent);
        let _ = self.0.try_send(CanaryUse { canary, address, user_agent, at });
    }
}
