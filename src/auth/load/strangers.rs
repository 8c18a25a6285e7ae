//! What keys that nobody has heard of may ask of the store.
//!
//! Anybody can make up such keys, as many as a network carries. A flood of them shall keep no good
//! key out, nor the store busy.

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

/// Of the turns, the queries and the patience with failures, what strangers may have.
pub(in crate::auth) struct Strangers {
    pub(super) turns: Semaphore,
    budget: Budget,
    /// For those who come again, as a client does that was told when to. A flood of ever new keys
    /// never does.
    reserve: Budget,
    turned_away: TurnedAway,
    failures: Failures,
}

/// Whose query it is, and what it may fail.
#[derive(Clone, Copy)]
pub(super) enum Asker {
    /// A key's that was known until now.
    Known,
    Stranger(Option<Try>),
    /// A stranger's that was turned away before. It has taken a unit of the reserve.
    Returning(Option<Try>),
}

impl Strangers {
    pub(super) fn new(policy: &CachePolicy, failures: Rate) -> Self {
        // The rest is for known keys: that they are confirmed, or a revocation noticed.
        let turns = policy.max_loads - policy.max_loads / 4;
        let queries = policy.stranger_queries;
        // A good key holds its unit during its query, and shall keep no other one out by that.
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

    /// Whether a stranger may queue for a query at all. Called by one at a time.
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

    /// What the query of `asker` has taken before it is made.
    pub(super) fn cost(&self, asker: Asker) -> Cost<'_> {
        let (budget, attempt) = match asker {
            Asker::Known => (None, None),
            Asker::Stranger(attempt) => (None, attempt),
            Asker::Returning(attempt) => (Some(&self.reserve), attempt),
        };
        Cost { budget, attempt, failures: &self.failures }
    }

    /// Takes what the query costs that `asker` makes now.
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

    /// There is no room for this one now.
    pub(super) fn turn_away(&self, hash: &KeyHash) -> Rejection {
        self.turned_away.remember(hash);
        Rejection::new(RejectionKind::Overloaded)
    }

    /// Somebody tried a key of which it is known that it is none.
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

    /// Somebody has heard of another one's query that a key is none.
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

/// What a query costs: given back, unless it is spent.
pub(super) struct Cost<'a> {
    budget: Option<&'a Budget>,
    attempt: Option<Try>,
    failures: &'a Failures,
}

impl Cost<'_> {
    /// The store did not answer, which is nobody's failure.
    pub(super) fn spend(mut self) {
        self.budget = None;
    }

    /// There is no such key.
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
