//! The query of the store: within a deadline, with a permit, past the circuit breaker.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use super::{Presented, state::Known};
use crate::{
    auth::{
        Event, LoadOutcome, Rejection,
        cache::{Entry, Generation, Loaded},
        canary::Presence,
        core::Core,
        throttle::LookupClass,
    },
    circuit_breaker::Answer,
    key::KeyHash,
    record::{KeyRecord, KeyStatus},
    store::{StoreError, StoreErrorKind},
    trace,
};

/// The answer of the store.
pub(super) struct Fetched {
    pub(super) known: Known,
    pub(super) loaded_at: Duration,
    pub(super) generation: Generation,
}

impl Core {
    /// Asks the store for a hash that no key has.
    pub(in crate::auth) async fn probe(self: &Arc<Self>) {
        let core = Arc::clone(self);
        let no_key = KeyHash::from_bytes([0; 32]);
        let fetch = async move { core.fetch(&no_key, LookupClass::Known, None).await.map(drop) };
        // In a task of its own, because the store may panic. The result is recorded by the breaker.
        let _ = tokio::spawn(fetch).await;
    }

    pub(super) async fn fetch(
        self: &Arc<Self>,
        hash: &KeyHash,
        class: LookupClass,
        presented: Option<Arc<Presented>>,
    ) -> Result<Fetched, Rejection> {
        let mut cost = self.lookup.unknown_keys.cost(class);
        if !self.lookup.breaker.would_allow(self.clock.monotonic()) {
            return Err(down());
        }
        let begin = Instant::now();
        let deadline = begin + self.lookup.deadline;
        // In a full queue, permits come only near the deadline. Half of the time is kept for the
        // query: if cut short, it would look like a store that does not answer.
        let permit = timeout_at(begin + self.lookup.deadline / 2, self.lookup.permit(class)).await;
        let Ok(Ok(permit)) = permit else {
            return Err(self.lookup.unknown_keys.turn_away(hash));
        };
        self.check_clocks();
        let missed = self.clock_check.missed();
        // Both are read before the query: expiry measured from here comes early rather than late,
        // and later invalidations are noticed.
        let (now, generation) = (self.clock.monotonic(), self.cache.generation());
        // If the store is a replica that is too far behind, the record is older by this.
        let outdated_by = self.feed.outdated_by(now);
        self.lookup.unknown_keys.charge(&mut cost, class, hash, now)?;
        // Checked last, as the store may have gone down while waiting for the permit.
        if !self.lookup.breaker.allow(now) {
            return Err(down());
        }
        let found = timeout_at(deadline, self.store.find(hash)).await;
        let late = |_| {
            let late = format!("no answer within {:?}", self.lookup.deadline);
            Err(StoreError::new(StoreErrorKind::Unavailable).because(late))
        };
        let found = found.unwrap_or_else(late).and_then(|found| self.limits.check(found));
        // From here on, a canary key is an unknown one.
        let found = found.map(Presence::of);
        let answered = self.clock.monotonic();
        self.loaded(&found, answered.saturating_sub(now));
        drop(permit);
        if let (Ok(Presence::Absent(_)), Some(presented)) = (&found, presented) {
            match self.fetch_legacy(presented, hash, class).await {
                Ok(None) => {}
                Ok(Some(fetched)) => return Ok(fetched),
                Err(rejection) => {
                    cost.spend();
                    return Err(rejection);
                }
            }
        }
        match &found {
            Ok(Presence::Key(_)) => drop(cost),
            Ok(Presence::Absent(_)) => cost.fail(answered),
            Err(_) => cost.spend(),
        }
        match found {
            Ok(found) => {
                if self.lookup.breaker.answered() == Answer::Recovery {
                    trace::info!("key store recovered");
                }
                let loaded = Loaded {
                    loaded_at: now,
                    answered_at: answered,
                    outdated_by,
                    generation: generation.present,
                    missed,
                };
                let known = self.known(found, loaded);
                if !outdated_by.is_zero() && !self.may_tell(known.entry(), class, answered) {
                    return Err(outdated());
                }
                Ok(Fetched { known, loaded_at: now, generation })
            }
            Err(error) => Err(self.failed(hash, error)),
        }
    }

    /// What is cached of what the store has for a hash.
    pub(super) fn known(self: &Arc<Self>, found: Presence, loaded: Loaded) -> Known {
        match found {
            Presence::Key(record) => Known::Key(self.entry(record, loaded)),
            Presence::Absent(canary) => Known::Absent(canary),
        }
    }

    fn entry(self: &Arc<Self>, mut record: KeyRecord, loaded: Loaded) -> Arc<Entry> {
        self.lookup.state().revoked.correct(&mut record);
        record.scopes = self.lookup.effective(&record.scopes);
        if self.limits.misses_plan(&record) {
            self.unknown_plan(&record);
        }
        let watch: Weak<Self> = Arc::downgrade(self);
        Arc::new(Entry::load(record, &self.limits, watch, loaded))
    }

    /// Whether a replica that is too far behind is trusted about this key. Revocation and deletion
    /// are permanent, so those are; any other record is used as long as during an outage. A key
    /// that was never known may have been created in the meantime.
    fn may_tell(&self, entry: Option<&Arc<Entry>>, class: LookupClass, now: Duration) -> bool {
        match entry {
            Some(entry) => {
                entry.status(now) == KeyStatus::Revoked || self.cache.is_usable(entry, now)
            }
            None => matches!(class, LookupClass::Known),
        }
    }

    fn loaded(&self, found: &Result<Presence, StoreError>, took: Duration) {
        let outcome = match found {
            Ok(Presence::Key(_)) => LoadOutcome::Found,
            Ok(Presence::Absent(_)) => LoadOutcome::NotFound,
            Err(_) => LoadOutcome::Failed,
        };
        self.observe(&Event::Loaded { outcome, took });
    }

    fn unknown_plan(&self, record: &KeyRecord) {
        trace::warn!(key_id = %record.id, plan = record.plan, "undefined plan");
        self.observe(&Event::UnknownPlan { key_id: record.id });
    }

    fn failed(&self, hash: &KeyHash, error: StoreError) -> Rejection {
        self.observe(&Event::LoadFailed { error: &error });
        let now = self.clock.monotonic();
        match error.kind() {
            // Overload of this process says nothing about the store.
            StoreErrorKind::Overloaded => {
                self.lookup.errors.warn("key look-up failed", &error, now);
                Rejection::overloaded(error)
            }
            StoreErrorKind::Corrupt => {
                if self.lookup.corrupt.is_due(hash, now) {
                    trace::warn!(?error, "key record rejected");
                }
                Rejection::store_unavailable(error)
            }
            kind => {
                self.lookup.errors.warn("key look-up failed", &error, now);
                if kind == StoreErrorKind::Unavailable && self.lookup.breaker.failed(now) {
                    trace::warn!(
                        ?error,
                        "key store unavailable; keys are checked against the cache"
                    );
                }
                Rejection::store_unavailable(error)
            }
        }
    }
}

/// The rejection while the store is down.
fn down() -> Rejection {
    let error = StoreError::new(StoreErrorKind::Unavailable).because("circuit breaker open");
    Rejection::store_unavailable(error)
}

/// The rejection while the replica is too far behind.
fn outdated() -> Rejection {
    let problem = "the replica is too far behind to confirm keys";
    let error = StoreError::new(StoreErrorKind::Unavailable).because(problem);
    Rejection::store_unavailable(error)
}
