//! Admission control for keys that this node does not know.
//!
//! Clients can make up any number of such keys. A flood of them must neither keep valid keys out
//! nor overload the store.

use std::{hint::black_box, time::Duration};

use tokio::sync::Semaphore;

use super::{
    client_network::ClientNetwork,
    failure_sketch::{FailureSketch, Reservation},
    gcra::{Budget, Rate},
    retry_filter::RetryFilter,
};
use crate::{
    auth::{Rejection, RejectionKind, cache::CachePolicy},
    key::KeyHash,
};

/// Limits on look-ups of unknown keys: concurrency, query rate, failures per network.
pub(in crate::auth) struct UnknownKeyLimiter {
    pub(in crate::auth) permits: Semaphore,
    budget: Budget,
    retry_filter: RetryFilter,
    failures: FailureSketch,
}

/// Which limits a query is subject to, and its reservation for a failure.
#[derive(Clone, Copy)]
pub(in crate::auth) enum LookupClass {
    /// A key that was known until now.
    Known,
    Unknown(Option<Reservation>),
    /// An unknown key that was rejected before. It has taken a unit of the retry budget.
    Retrying(Option<Reservation>),
}

impl UnknownKeyLimiter {
    pub(in crate::auth) fn new(policy: &CachePolicy, failures: Rate) -> Self {
        // The rest is kept for known keys, so that they are confirmed and revocations noticed in
        // time.
        let permits = policy.max_loads - policy.max_loads / 4;
        let queries = policy.unknown_key_queries_per_second;
        // A valid key holds its unit during its query, and must not keep other valid keys out by
        // that.
        let burst = queries.max(u32::try_from(permits).unwrap_or(u32::MAX).saturating_add(1));
        Self {
            permits: Semaphore::new(permits),
            budget: Budget::new(Rate::per_second(queries, burst)),
            retry_filter: RetryFilter::new(queries),
            failures: FailureSketch::new(failures),
        }
    }

    /// Whether an unknown key may queue for a query. Calls must be serialized.
    pub(in crate::auth) fn admit(
        &self,
        hash: &KeyHash,
        network: Option<ClientNetwork>,
        has_room: bool,
        now: Duration,
    ) -> Result<LookupClass, Rejection> {
        if self.retry_filter.admit(hash, now) {
            return Ok(LookupClass::Retrying(network.map(Reservation::of)));
        }
        let attempt = network.map(|network| self.failures.begin(network, now)).transpose();
        let class = LookupClass::Unknown(attempt.map_err(|wait| {
            self.retry_filter.remember(hash);
            Rejection::too_many_failures(wait)
        })?);
        if has_room && self.budget.has_left(now) {
            return Ok(class);
        }
        drop(self.cost(class));
        Err(self.turn_away(hash))
    }

    /// What `class` has taken before its query is made.
    pub(in crate::auth) fn cost(&self, class: LookupClass) -> Cost<'_> {
        let (budget, attempt) = match class {
            LookupClass::Known => (None, None),
            LookupClass::Unknown(attempt) => (None, attempt),
            LookupClass::Retrying(attempt) => (Some(self.retry_filter.budget()), attempt),
        };
        Cost { budget, attempt, failures: &self.failures }
    }

    /// Takes the remaining cost of the query that `class` is about to make.
    pub(in crate::auth) fn charge<'a>(
        &'a self,
        cost: &mut Cost<'a>,
        class: LookupClass,
        hash: &KeyHash,
        now: Duration,
    ) -> Result<(), Rejection> {
        if matches!(class, LookupClass::Unknown(_)) {
            if !self.budget.take(now) {
                return Err(self.turn_away(hash));
            }
            cost.budget = Some(&self.budget);
        }
        Ok(())
    }

    /// Rejects the key for lack of capacity.
    pub(in crate::auth) fn turn_away(&self, hash: &KeyHash) -> Rejection {
        self.retry_filter.remember(hash);
        Rejection::new(RejectionKind::Overloaded)
    }

    /// Counts a try of a key that is cached as absent.
    pub(in crate::auth) fn guess(
        &self,
        network: Option<ClientNetwork>,
        now: Duration,
    ) -> Rejection {
        self.too_many_failures(network, now).unwrap_or_else(|| {
            self.failed(network, now);
            Rejection::new(RejectionKind::Unknown)
        })
    }

    /// Takes as long as [`guess`](Self::guess) but counts nothing: for a key that exists but is not
    /// active, so that timing cannot distinguish it from an unknown one.
    pub(in crate::auth) fn take_as_long_as_a_guess(
        &self,
        network: Option<ClientNetwork>,
        now: Duration,
    ) {
        black_box(self.too_many_failures(network, now));
    }

    /// Counts a failure of a request that joined another one's query.
    pub(in crate::auth) fn failed(&self, network: Option<ClientNetwork>, now: Duration) {
        if let Some(network) = network {
            self.failures.count(network, now);
        }
    }

    fn too_many_failures(
        &self,
        network: Option<ClientNetwork>,
        now: Duration,
    ) -> Option<Rejection> {
        let wait = self.failures.wait(network?, now);
        (!wait.is_zero()).then(|| Rejection::too_many_failures(wait))
    }
}

/// The cost of a query, refunded on drop unless it is spent.
pub(in crate::auth) struct Cost<'a> {
    budget: Option<&'a Budget>,
    attempt: Option<Reservation>,
    failures: &'a FailureSketch,
}

impl Cost<'_> {
    /// Keeps the unit of the budget, but counts no failure: the store did not answer.
    pub(in crate::auth) fn spend(mut self) {
        self.budget = None;
    }

    /// Spends the cost and counts a failure: the key does not exist.
    pub(in crate::auth) fn fail(mut self, now: Duration) {
        if let Some(attempt) = self.attempt.take() {
            self.failures.fail(attempt, now);
        }
        self.spend();
    }
}

impl Drop for Cost<'_> {
    fn drop(&mut self) {
        if let Some(budget) = self.budget {
            budget.give_back();
        }
        if let Some(attempt) = self.attempt {
            self.failures.release(attempt);
        }
    }
}
