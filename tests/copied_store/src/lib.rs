//! A store as another crate writes it, after that of the library in memory, with two bugs to plant.
//! It uses the public API alone.

mod transaction;

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tower_api_key::{
    clock::{Clock, SystemClock},
    key::KeyHash,
    rate_limit::RateLimits,
    record::{KeyEvent, KeyId, KeyRecord},
    store::{
        EventPage, EventQuery, KeyPage, KeyQuery, KeyStore, ListedKey, ManageKeys, StoreError,
        StoreErrorKind,
        port::{IdempotencyRecord, ManagePlans, UsageBatch},
    },
};

pub use self::transaction::CopiedTransaction;

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bugs {
    /// A transaction copies the keys before it waits for its turn, so it overwrites what the
    /// transaction before it committed, such as a revocation.
    pub stale_snapshot: bool,
    /// The cursor of a page is the first key of the next one, which the next page leaves out.
    pub cursor_skips: bool,
}

#[derive(Clone, Default)]
pub struct CopiedStore {
    data: Arc<Mutex<Data>>,
    last_used: Arc<Mutex<HashMap<KeyId, SystemTime>>>,
    /// Transactions run one after the other.
    turn: Arc<tokio::sync::Mutex<()>>,
    bugs: Bugs,
}

#[derive(Clone, Default)]
struct Data {
    records: BTreeMap<KeyId, KeyRecord>,
    events: Vec<KeyEvent>,
    claims: HashMap<[u8; 32], (SystemTime, IdempotencyRecord)>,
    plans: BTreeMap<String, RateLimits>,
}

impl CopiedStore {
    #[must_use]
    pub fn with(bugs: Bugs) -> Self {
        Self { bugs, ..Self::default() }
    }
}

impl Data {
    /// As read now, with the limits of its plan.
    fn read(&self, record: &KeyRecord) -> KeyRecord {
        let mut record = record.clone();
        record.plan_limits = record.plan.as_ref().and_then(|plan| self.plans.get(plan)).cloned();
        record.read_at = now();
        record
    }

    fn by_hash(&self, hash: &KeyHash) -> Option<&KeyRecord> {
        self.records.values().find(|record| record.key_hash == *hash)
    }
}

fn now() -> SystemTime {
    SystemClock::new().now()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_plan_name(name: &str) -> Result<(), StoreError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=64).contains(&name.len()) && name.chars().all(is_plain) {
        return Ok(());
    }
    Err(StoreError::new(StoreErrorKind::Other).because("the name of a plan has 1 to 64 letters"))
}

impl KeyStore for CopiedStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let data = locked(&self.data);
        Ok(data.by_hash(hash).map(|record| data.read(record)))
    }

    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        let (data, mut last_used) = (locked(&self.data), locked(&self.last_used));
        for usage in batch.last_uses.iter().filter(|usage| data.records.contains_key(&usage.key_id))
        {
            let at = last_used.entry(usage.key_id).or_insert(usage.last_used_at);
            *at = usage.last_used_at.max(*at);
        }
        Ok(())
    }
}

impl ManageKeys for CopiedStore {
    type Transaction = CopiedTransaction;

    async fn begin(&self) -> Result<CopiedTransaction, StoreError> {
        let early = locked(&self.data).clone();
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let data = if self.bugs.stale_snapshot { early } else { locked(&self.data).clone() };
        Ok(CopiedTransaction::new(self.clone(), data, turn))
    }

    async fn get(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        let data = locked(&self.data);
        Ok(data.records.get(&id).map(|record| data.read(record)))
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let (data, last_used) = (locked(&self.data), locked(&self.last_used));
        let end = query.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found = (data.records.range((Bound::Unbounded, end)).rev())
            .map(|(id, record)| ListedKey::new(data.read(record), last_used.get(id).copied()))
            .filter(|key| matches(query, key));
        let keys: Vec<_> = found.by_ref().take(query.limit).collect();
        let next = if self.bugs.cursor_skips {
            found.next().map(|key| key.record.id)
        } else {
            keys.last().map(|key| key.record.id).filter(|_| keys.len() == query.limit)
        };
        Ok(KeyPage::new(keys, next))
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let data = locked(&self.data);
        let found = (data.events.iter().rev())
            .filter(|event| query.after.is_none_or(|after| event.id < after))
            .filter(|event| query.key_id.is_none_or(|id| event.entry.key_id == Some(id)))
            .filter(|event| {
                query.consumer_id.is_none() || event.entry.consumer_id == query.consumer_id
            });
        let events: Vec<_> = found.take(query.limit).cloned().collect();
        let last = events.last().map(|event| event.id);
        let is_full = events.len() == query.limit;
        Ok(EventPage::new(events, last.filter(|_| is_full)))
    }

    async fn last_used_at(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        Ok(locked(&self.last_used).get(&id).copied())
    }
}

/// Whether a listing includes the key.
fn matches(query: &KeyQuery, key: &ListedKey) -> bool {
    let ListedKey { record, last_used_at, .. } = key;
    let is_unused = |since| record.created_at < since && last_used_at.is_none_or(|at| at < since);
    query.consumer_id.as_ref().is_none_or(|consumer| record.consumer_id == *consumer)
        && query.key_prefix.as_ref().is_none_or(|prefix| record.key_prefix == *prefix)
        && query.tag.as_ref().is_none_or(|tag| record.tags.contains(tag))
        && query.scope.as_ref().is_none_or(|scope| record.scopes.contains(scope.as_str()))
        && query.status.is_none_or(|status| record.status(record.read_at) == status)
        && query.expires_before.is_none_or(|end| record.expires_at.is_some_and(|at| at < end))
        && query.unused_since.is_none_or(is_unused)
}

impl ManagePlans for CopiedStore {
    async fn set_plan(&self, name: &str, limits: &RateLimits) -> Result<(), StoreError> {
        check_plan_name(name)?;
        let _turn = self.turn.lock().await;
        locked(&self.data).plans.insert(name.to_owned(), limits.clone());
        Ok(())
    }

    async fn remove_plan(&self, name: &str) -> Result<bool, StoreError> {
        let _turn = self.turn.lock().await;
        Ok(locked(&self.data).plans.remove(name).is_some())
    }

    async fn plans(&self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        Ok(locked(&self.data).plans.clone().into_iter().collect())
    }
}
