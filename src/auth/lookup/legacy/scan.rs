//! The comparison of one presented key with the hashes that may be its own.

use std::{sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::timeout};

use super::{
    dyn_hashes::Replaced,
    presented::Presented,
    state::{Lane, Legacy, PATIENCE, Scanning},
};
use crate::{
    auth::{
        Event, Rejection, VerificationOutcome, cache::Loaded, canary::Presence, core::Core,
        lookup::fetch::Fetched, throttle::LookupClass,
    },
    key::KeyHash,
    store::{StoreError, StoreErrorKind, port::LegacyKey},
    trace,
};

/// Why a key was not compared, or not moved.
enum Failed {
    /// The budget is spent, or a verification was aborted.
    Busy,
    Store(StoreError),
}

impl Core {
    /// Looks for a key that the store does not know by `hash` among those that have not moved, and
    /// moves it. `None`: it is not among them.
    pub(in crate::auth::lookup) async fn fetch_legacy(
        self: &Arc<Self>,
        presented: Arc<Presented>,
        hash: &KeyHash,
        class: LookupClass,
    ) -> Result<Option<Fetched>, Rejection> {
        let Some(legacy) = &self.legacy else { return Ok(None) };
        let busy = || {
            let outcome = VerificationOutcome::Overloaded;
            self.observe(&Event::LegacyHashCompared { outcome, took: Duration::ZERO });
            self.lookup.unknown_keys.turn_away(hash)
        };
        let Some(scanning) = legacy.enter(*hash) else { return Err(busy()) };
        let scan = tokio::spawn(Arc::clone(self).scan(scanning, presented, class));
        match timeout(PATIENCE, scan).await {
            Ok(Ok(Ok(fetched))) => Ok(fetched),
            Ok(Ok(Err(Failed::Store(error)))) => {
                legacy.errors.warn("legacy hash look-up failed", &error, self.clock.monotonic());
                Err(Rejection::store_unavailable(error))
            }
            // It takes longer, it panicked, or its runtime is shutting down.
            Ok(Ok(Err(Failed::Busy)) | Err(_)) | Err(_) => Err(busy()),
        }
    }

    /// Compares `presented` with its candidates, and moves the key that it is.
    async fn scan(
        self: Arc<Self>,
        scanning: Scanning,
        presented: Arc<Presented>,
        class: LookupClass,
    ) -> Result<Option<Fetched>, Failed> {
        let Scanning { legacy, hash } = &scanning;
        let lane = legacy.lane(class);
        lane.check(self.clock.monotonic())?;
        let candidates = self.candidates(legacy, &presented).await.map_err(Failed::Store)?;
        if candidates.is_empty() {
            return Ok(None);
        }
        let _turn = lane.turns.acquire().await.map_err(|_| Failed::Busy)?;
        lane.check(self.clock.monotonic())?;
        match self.first_match(legacy, lane, candidates, &presented).await? {
            Some(key) => self.replace(legacy, &key, hash).await.map_err(Failed::Store),
            None => Ok(None),
        }
    }

    async fn candidates(
        &self,
        legacy: &Legacy,
        presented: &Presented,
    ) -> Result<Vec<LegacyKey>, StoreError> {
        let find = async {
            let permit = legacy.queries.acquire().await;
            let closed = |error| StoreError::new(StoreErrorKind::Other).because(error);
            let _permit = permit.map_err(closed)?;
            legacy.hashes.candidates(presented.hint.as_deref()).await
        };
        let late = |late| Err(StoreError::new(StoreErrorKind::Unavailable).because(late));
        timeout(self.lookup.deadline, find).await.unwrap_or_else(late)
    }

    async fn first_match(
        &self,
        legacy: &Legacy,
        lane: &Lane,
        candidates: Vec<LegacyKey>,
        presented: &Arc<Presented>,
    ) -> Result<Option<LegacyKey>, Failed> {
        let mut spent = Duration::ZERO;
        for key in candidates {
            // For each hash anew, so that a key with one candidate need not wait for all of another
            // key's.
            let core = Arc::clone(&legacy.cores).acquire_owned().await;
            let core = core.map_err(|_| Failed::Busy)?;
            let (presented, clock) = (Arc::clone(presented), Arc::clone(&self.clock));
            let verification = spawn_blocking(move || {
                let begun = clock.monotonic();
                let is_match = key.hash.verify(&presented.hashed);
                drop(core);
                (key, is_match, clock.monotonic().saturating_sub(begun))
            });
            let (key, is_match, took) = verification.await.map_err(|_| Failed::Busy)?;
            let outcome = VerificationOutcome::of(is_match);
            self.observe(&Event::LegacyHashCompared { outcome, took });
            lane.budget.spend(took, self.clock.monotonic());
            spent += took;
            if is_match {
                lane.budget.give_back(spent);
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// Moves the key. If that fails it is not let in either: its record could not be confirmed.
    async fn replace(
        self: &Arc<Self>,
        legacy: &Legacy,
        key: &LegacyKey,
        hash: &KeyHash,
    ) -> Result<Option<Fetched>, StoreError> {
        let missed = self.clock_check.missed();
        let (loaded_at, generation) = (self.clock.monotonic(), self.cache.generation());
        let record = match legacy.hashes.replace(key, hash).await? {
            Replaced::Moved(record) => {
                trace::debug!(key_id = %key.id, "legacy hash replaced");
                self.observe(&Event::Rehashed { key_id: key.id });
                record
            }
            Replaced::Already(record) => record,
            Replaced::Gone => return Ok(None),
        };
        let Some(record) = self.limits.check(Some(record))? else { return Ok(None) };
        let answered_at = self.clock.monotonic();
        // From the store that is written to, so it is current.
        let outdated_by = Duration::ZERO;
        let loaded =
            Loaded { loaded_at, answered_at, outdated_by, generation: generation.present, missed };
        let known = self.known(Presence::of(Some(record)), loaded);
        Ok(Some(Fetched { known, loaded_at, generation }))
    }
}

impl Lane {
    fn check(&self, now: Duration) -> Result<(), Failed> {
        if self.budget.has_left(now) { Ok(()) } else { Err(Failed::Busy) }
    }
}
