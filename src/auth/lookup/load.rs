//! Loads of keys that are not cached: a request joins the load in progress, or starts one.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::{
    Presented,
    fetch::Fetched,
    single_flight::{InFlightLoad, InFlightLoads},
    state::{Known, LoadResult, LoadState, Outcome},
};
use crate::{
    auth::{
        ClientNetwork, Event, Rejection, RejectionKind,
        cache::{Entry, Peek},
        core::Core,
        throttle::LookupClass,
    },
    key::KeyHash,
    record::KeyStatus,
    store::{StoreError, StoreErrorKind},
};

impl Core {
    /// Looks into the cache. A stale entry counts as fresh while the store is known to be down.
    pub(in crate::auth) fn peek(&self, hash: &KeyHash, now: Duration) -> Peek {
        match self.cache.peek(hash, now) {
            Peek::Fresh(entry) => {
                if entry.status(now) == KeyStatus::Active {
                    self.promote(hash, &entry, now);
                }
                Peek::Fresh(entry)
            }
            Peek::Stale(entry) if !self.lookup.breaker.would_allow(now) => {
                self.stale_served(&entry);
                Peek::Fresh(entry)
            }
            peek => peek,
        }
    }

    /// Skipped if the lock is taken: a later request will do it.
    fn promote(&self, hash: &KeyHash, entry: &Arc<Entry>, now: Duration) {
        if let Some(_guard) = self.lookup.try_state() {
            self.cache.promote(hash, entry, now);
        }
    }

    /// Asks the store; falls back to the cached record if it does not answer. `network` is the
    /// client's network, for keys that this node does not know, and `presented` the key itself if it
    /// may have a legacy hash.
    pub(in crate::auth) async fn load(
        self: Arc<Self>,
        hash: KeyHash,
        network: Option<ClientNetwork>,
        presented: Option<Arc<Presented>>,
    ) -> Outcome {
        let rejection = match self.join(hash, network, presented).await {
            Err(rejection) => rejection,
            Ok(known) => {
                if let Some(entry) = known.entry().filter(|entry| entry.is_outdated()) {
                    self.stale_served(entry);
                }
                return Ok(known);
            }
        };
        if rejection.store_error_kind() == Some(StoreErrorKind::Corrupt) {
            return Err(rejection);
        }
        // Read again, as the entry may have been invalidated in the meantime.
        let now = self.clock.monotonic();
        match self.cache.peek(&hash, now) {
            Peek::Fresh(entry) => Ok(Known::Key(entry)),
            Peek::Stale(entry)
                if rejection.kind() == RejectionKind::Overloaded
                    && self.cache.is_overdue(&entry, now) =>
            {
                Err(rejection)
            }
            Peek::Stale(entry) => {
                self.stale_served(&entry);
                Ok(Known::Key(entry))
            }
            Peek::Absent(_) | Peek::Miss => Err(rejection),
        }
    }

    async fn join(
        self: &Arc<Self>,
        hash: KeyHash,
        network: Option<ClientNetwork>,
        presented: Option<Arc<Presented>>,
    ) -> Outcome {
        let result = self.wait_for_load(hash, network, presented.clone()).await?;
        if !result.is_superseded {
            return result.outcome;
        }
        // This load starts after the request came, so its result is current enough.
        self.wait_for_load(hash, network, presented).await?.outcome
    }

    async fn wait_for_load(
        self: &Arc<Self>,
        hash: KeyHash,
        network: Option<ClientNetwork>,
        presented: Option<Arc<Presented>>,
    ) -> Result<LoadResult, Rejection> {
        let Ok(runtime) = Handle::try_current() else {
            let error = StoreError::new(StoreErrorKind::Other).because("no tokio runtime");
            return Err(Rejection::store_unavailable(error));
        };
        let (mut load, is_joined) = match self.join_or_start(hash, network, presented, &runtime) {
            ControlFlow::Continue(it) => it,
            ControlFlow::Break(outcome) => return Ok(LoadResult { outcome, is_superseded: false }),
        };
        let completion = load.result.wait_for(Option::is_some);
        let result = timeout(self.lookup.longest_load(), completion).await;
        match result.as_ref().map(|result| result.as_deref()) {
            Ok(Ok(Some(result))) => {
                if is_joined && matches!(result.outcome, Ok(Known::Absent(_))) {
                    self.lookup.unknown_keys.failed(network, self.clock.monotonic());
                }
                Ok(result.clone())
            }
            // The task panicked, or its runtime is shutting down or stalled.
            _ => {
                self.lookup.state().in_flight.detach_load(&hash, load.number);
                let error = StoreError::new(StoreErrorKind::Other).because("the load was aborted");
                Err(Rejection::store_unavailable(error))
            }
        }
    }

    /// The load of `hash` in progress, or a new one, and whether it was joined. Breaks with a
    /// cached result if a load completed after the caller had looked into the cache.
    fn join_or_start(
        self: &Arc<Self>,
        hash: KeyHash,
        network: Option<ClientNetwork>,
        presented: Option<Arc<Presented>>,
        runtime: &Handle,
    ) -> ControlFlow<Outcome, (InFlightLoad<LoadResult>, bool)> {
        let mut state = self.lookup.state();
        if let Some(load) = state.in_flight.get(&hash) {
            return ControlFlow::Continue((load.clone(), true));
        }
        let now = self.clock.monotonic();
        let class = match self.cache.peek(&hash, now) {
            Peek::Fresh(entry) => return ControlFlow::Break(Ok(Known::Key(entry))),
            Peek::Absent(canary) => {
                self.lookup.unknown_keys.failed(network, now);
                return ControlFlow::Break(Ok(Known::Absent(canary)));
            }
            Peek::Stale(_) => LookupClass::Known,
            Peek::Miss if state.recently_known.contains(&hash) => LookupClass::Known,
            Peek::Miss => {
                let has_room = state.in_flight.len() < self.lookup.max_in_flight;
                match self.lookup.unknown_keys.admit(&hash, network, has_room, now) {
                    Ok(class) => class,
                    Err(rejection) => return ControlFlow::Break(Err(rejection)),
                }
            }
        };
        let (load, result) = state.in_flight.start(hash);
        let guard = CompletionGuard { core: Arc::clone(self), hash, number: load.number, result };
        // A runtime that is shutting down drops the task at once, and dropping `guard` takes the
        // lock.
        drop(state);
        runtime.spawn(async move {
            let outcome = guard.core.fetch(&hash, class, presented).await;
            guard.complete(outcome);
        });
        ControlFlow::Continue((load, false))
    }

    fn stale_served(&self, entry: &Entry) {
        self.observe(&Event::StaleServed { key_id: entry.key_id() });
    }
}

/// Ends a load however its task ends. The load is detached before its result is published, so that
/// no request joins it afterwards.
struct CompletionGuard {
    core: Arc<Core>,
    hash: KeyHash,
    number: u64,
    result: watch::Sender<Option<LoadResult>>,
}

impl CompletionGuard {
    /// Caches the result unless the key changed after the load started: the load was detached, or a
    /// change of its id was noted.
    fn complete(self, outcome: Result<Fetched, Rejection>) {
        let mut state = self.core.lookup.state();
        let is_listed = state.in_flight.is_listed(&self.hash, self.number);
        let is_superseded = !is_listed
            || outcome.as_ref().is_ok_and(|fetched| self.is_superseded(&state.in_flight, fetched));
        if let Ok(fetched) = &outcome
            && !is_superseded
        {
            self.keep(&mut state, fetched);
        }
        state.in_flight.detach_load(&self.hash, self.number);
        drop(state);
        let outcome = outcome.map(|fetched| fetched.known);
        self.result.send_replace(Some(LoadResult { outcome, is_superseded }));
    }

    fn is_superseded(&self, in_flight: &InFlightLoads<LoadResult>, fetched: &Fetched) -> bool {
        let id = fetched.known.entry().map(|entry| entry.key_id());
        let is_outdated_absence =
            id.is_none() && !self.core.cache.is_absence_current(fetched.generation);
        is_outdated_absence || in_flight.is_superseded(self.number, id)
    }

    fn keep(&self, state: &mut LoadState, fetched: &Fetched) {
        let cache = &self.core.cache;
        state.recently_known.remove(&self.hash);
        match &fetched.known {
            Known::Key(entry) => {
                if let Some(before) = state.ids.enter(entry) {
                    // Changes reported for this id will no longer find the old hash.
                    self.core.forget(state, &before);
                }
                cache.insert(self.hash, Arc::clone(entry));
            }
            Known::Absent(canary) => {
                let (hash, canary) = (self.hash, canary.clone());
                cache.insert_absent(hash, fetched.loaded_at, fetched.generation, canary);
            }
        }
        // Streams waiting for a permit need not wait any longer.
        let works = |entry: &Arc<Entry>| entry.status(fetched.loaded_at) == KeyStatus::Active;
        if !fetched.known.entry().is_some_and(works) {
            state.ids.wake(&self.hash);
        }
    }
}

impl Drop for CompletionGuard {
    fn drop(&mut self) {
        self.core.lookup.state().in_flight.detach_load(&self.hash, self.number);
    }
}
