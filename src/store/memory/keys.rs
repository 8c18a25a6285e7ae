use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use crate::{
    clock::Clock,
    key::{KeyHash, LegacyHash},
    rate_limit::RateLimits,
    record::{KeyEvent, KeyId, KeyRecord},
    store::port::IdempotencyRecord,
};

/// The keys of a store, shared with its clones and transactions.
#[derive(Clone)]
pub(super) struct SharedKeys {
    keys: Arc<Mutex<Keys>>,
    pub(super) clock: Arc<dyn Clock>,
}

impl SharedKeys {
    pub(super) fn new(clock: impl Clock) -> Self {
        Self { keys: Arc::default(), clock: Arc::new(clock) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
pub(super) struct Keys {
    pub(super) records: BTreeMap<KeyId, KeyRecord>,
    pub(super) ids: HashMap<KeyHash, KeyId>,
    pub(super) last_used: HashMap<KeyId, SystemTime>,
    pub(super) events: Vec<KeyEvent>,
    pub(super) claims: HashMap<[u8; 32], (SystemTime, IdempotencyRecord)>,
    pub(super) plans: BTreeMap<String, RateLimits>,
    pub(super) legacy: HashMap<KeyId, StoredLegacyHash>,
}

/// The legacy hash that a key was imported with.
#[derive(Clone)]
pub(super) struct StoredLegacyHash {
    pub(super) hint: Option<String>,
    /// `None` once the key has moved.
    pub(super) hash: Option<LegacyHash>,
    pub(super) digest: [u8; 32],
}

impl Keys {
    /// `record` as read at `now`.
    pub(super) fn read(&self, record: &KeyRecord, now: SystemTime) -> KeyRecord {
        let plan_limits = record.plan.as_ref().and_then(|plan| self.plans.get(plan)).cloned();
        KeyRecord { plan_limits, read_at: now, ..record.clone() }
    }
}
