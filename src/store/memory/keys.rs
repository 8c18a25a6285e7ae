use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use crate::{
    clock::Clock,
    key::{KeyHash, LegacyHash},
    rate_limit::RateLimits,
    record::{KeyEvent, KeyId, KeyRecord},
    store::port::{CountedUses, IdempotencyRecord, UseCounts},
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
    /// Counts of uses, by key and hour.
    pub(super) hourly: BTreeMap<(KeyId, SystemTime), CountedUse>,
    /// Counts of uses, by key and day.
    pub(super) daily: BTreeMap<(KeyId, SystemTime), CountedUse>,
    /// The last batch of each writer, and when it was added.
    pub(super) writers: HashMap<[u8; 16], (u64, SystemTime)>,
    pub(super) events: Vec<KeyEvent>,
    pub(super) claims: HashMap<[u8; 32], (SystemTime, IdempotencyRecord)>,
    pub(super) plans: BTreeMap<String, RateLimits>,
    pub(super) legacy: HashMap<KeyId, StoredLegacyHash>,
}

/// How often a key was used in an hour or on a day.
#[derive(Clone, Debug)]
pub(super) struct CountedUse {
    pub(super) consumer_id: String,
    pub(super) counts: UseCounts,
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

    /// Adds the counts of a batch, unless it was added before.
    pub(super) fn add(&mut self, batch: &CountedUses, now: SystemTime) {
        let last = self.writers.entry(batch.writer).or_insert((0, now));
        if batch.sequence <= last.0 {
            return;
        }
        *last = (batch.sequence, now);
        for used in &batch.hours {
            let hours = (&mut self.hourly, used.hour);
            for (counted, begin) in [hours, (&mut self.daily, day(used.hour))] {
                let consumer_id = used.consumer_id.clone();
                let new = CountedUse { consumer_id, counts: UseCounts::default() };
                let row = counted.entry((used.key_id, begin)).or_insert(new);
                row.counts = row.counts.plus(used.counts);
            }
        }
    }
}

const DAY: Duration = Duration::from_secs(86_400);

/// The beginning of the day in UTC.
fn day(hour: SystemTime) -> SystemTime {
    let since_1970 = hour.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let into_the_day = since_1970.as_nanos() % DAY.as_nanos();
    let into_the_day = Duration::from_nanos(u64::try_from(into_the_day).unwrap_or_default());
    hour.checked_sub(into_the_day).unwrap_or(hour)
}
