//! Admission control for keys that this node does not know.
//!
//! Clients can make up any number of such keys. A flood of them must neither keep valid keys out
//! nor overload the store.

use std::time::Duration;

use tokio::sync::Semaphore;

use super::{
    failures::{Failures, Try},
    turned_away::TurnedAway,
};
use crate::{
    auth::{
        Rejection, RejectionKind,
        cache::CachePolicy,
        gcra::{Rate, Used},
        network::ClientNetwork,
    },
    key::KeyHash,
};

/// Limits on look-ups of unknown keys: concurrency, query rate, failures per network.
pub(in crate::auth) struct Strangers {
    pub(super) turns: Semaphore,
    budget: Budget,
    /// For keys that are retried, as a client does after `Retry-After`. A flood of ever new keys
    /// never gets here.
    reserve: Budget,
    turned_away: TurnedAway,
    failures: Failures,
}

/// Which limits a query is subject to, and its reservation for a failure.
#[derive(Clone, Copy)]
pub(super) enum Asker {
    /// A key that was known until now.
    Known,
    Stranger(Option<Try>),
    /// An unknown key that was rejected before. It has taken a unit of the reserve.
    Returning(Option<Try>),
}

impl Strangers {
    pub(super) fn new(policy: &CachePolicy, failures: Rate) -> Self {
        // The rest is kept for known keys, so that they are confirmed and revocations noticed in
        // time.
        let turns = policy.max_loads - policy.max_loads / 4;
        let queries = policy.stranger_queries;
        // A valid key holds its unit during its query, and must not keep other valid keys out by
        // that.
        let burst = queries.max(u32::try_from(turns).unwrap_or(u32::MAX).saturating_add(1));
        let reserve = (queries / 10).max(1);
        Self {
            turns: Semaphore::new(turns),
            budget: Budget::new(Rate::per_second(queries, burst)),
            reserve: Budget::new(Rate::per_second(reserve, reserve)),
            turned_away: TurnedAway::new(),
            failures: Failures::new(failures),
        }
    }

    /// Whether an unknown key may queue for a query. Calls must be serialized.
    pub(super) fn admit(
        &self,
        hash: &KeyHash,
        network: Option<ClientNetwork>,
        has_room: bool,
        now: Duration,
    ) -> Result<Asker, Rejection> {
        if self.turned_away.remembers(hash) && self.reserve.take(now) {
            return Ok(Asker::Returning(network.map(Try::of)));
        }
        let attempt = network.map(|network| self.failures.begin(network, now)).transpose();
        let asker = Asker::Stranger(attempt.map_err(|wait| {
            self.turned_away.remember(hash);
            Rejection::too_many_failures(wait)
        })?);
        if has_room && self.budget.has_left(now) {
            return Ok(asker);
        }
        drop(self.cost(asker));
        Err(self.turn_away(hash))
    }

    /// What `asker` has taken before its query is made.
    pub(super) fn cost(&self, asker: Asker) -> Cost<'_> {
        let (budget, attempt) = match asker {
            Asker::Known => (None, None),
            Asker::Stranger(attempt) => (None, attempt),
            Asker::Returning(attempt) => (Some(&self.reserve), attempt),
        };
        Cost { budget, attempt, failures: &self.failures }
    }

    /// Takes the remaining cost of the query that `asker` is about to make.
    pub(super) fn charge<'a>(
        &'a self,
        cost: &mut Cost<'a>,
        asker: Asker,
        hash: &KeyHash,
        now: Duration,
    ) -> Result<(), Rejection> {
        if matches!(asker, Asker::Stranger(_)) {
            if !self.budget.take(now) {
                return Err(self.turn_away(hash));
            }
            cost.budget = Some(&self.budget);
        }
        Ok(())
    }

    /// Rejects the key for lack of capacity.
    pub(super) fn turn_away(&self, hash: &KeyHash) -> Rejection {
        self.turned_away.remember(hash);
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

    /// Counts a failure of a request that joined another one's query.
    pub(super) fn failed(&self, network: Option<ClientNetwork>, now: Duration) {
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

struct Budget {
    rate: Rate,
    used: Used,
}

impl Budget {
    fn new(rate: Rate) -> Self {
        Self { rate, used: Used::default() }
    }

    fn has_left(&self, now: Duration) -> bool {
        self.used.wait(self.rate, now).is_zero()
    }

    fn take(&self, now: Duration) -> bool {
        self.used.take(self.rate, now)
    }
}

/// The cost of a query, refunded on drop unless it is spent.
pub(super) struct Cost<'a> {
    budget: Option<&'a Budget>,
    attempt: Option<Try>,
    failures: &'a Failures,
}

impl Cost<'_> {
    /// Keeps the unit of the budget, but counts no failure: the store did not answer.
    pub(super) fn spend(mut self) {
        self.budget = None;
    }

    /// Spends the cost and counts a failure: the key does not exist.
    pub(super) fn fail(mut self, now: Duration) {
        if let Some(attempt) = self.attempt.take() {
            self.failures.fail(attempt, now);
        }
        self.spend();
    }
}

impl Drop for Cost<'_> {
    fn drop(&mut self) {
        if let Some(budget) = self.budget {
            budget.used.give_back(budget.rate);
        }
        if let Some(attempt) = self.attempt {
            self.failures.release(attempt);
        }
    }
}
