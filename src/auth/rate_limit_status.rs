use std::{fmt, time::Duration};

use crate::{
    rate_limit::{Decision, Quota, RateLimits, port::Decisions},
    record::{Consumer, Retirement},
};

/// The state of a key against its quotas after a request, in the order of its
/// [limits](Self::limits).
#[derive(Clone)]
pub struct RateLimitStatus {
    consumer: Consumer,
    decisions: Decisions,
    pub(crate) notice: Notice,
}

/// What the layer tells beside the quotas. Rare, and computed with the decision, when the time is
/// known.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Notice {
    /// The key is in its last 7 days.
    pub(crate) expires_soon: bool,
    /// The decision depended on `Origin`.
    pub(crate) is_publishable: bool,
}

impl Notice {
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }
}

impl RateLimitStatus {
    pub(crate) fn new(consumer: Consumer, decisions: Decisions) -> Self {
        Self { consumer, decisions, notice: Notice::default() }
    }

    pub(super) fn with(self, notice: Notice) -> Self {
        Self { notice, ..self }
    }

    /// The state after the quotas were asked again.
    pub(crate) fn after(&self, decisions: Decisions) -> Self {
        Self { consumer: self.consumer.clone(), decisions, notice: self.notice }
    }

    /// Adjusts the charge from `taken` to `wanted` units of each quota.
    pub(crate) fn settle(self, taken: u32, wanted: u32) -> Self {
        match self.consumer.meter() {
            Some(meter) if taken != wanted => {
                self.after(meter.settle(&self.decisions, taken, wanted))
            }
            _ => self,
        }
    }

    pub(crate) fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    pub(crate) fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// Each quota with its decision.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Quota, Decision)> {
        self.limits().iter().zip(self.decisions.iter().copied())
    }

    /// The retirement of the key, if it was rotated.
    #[must_use]
    pub fn retirement(&self) -> Option<Retirement> {
        self.consumer.retirement()
    }

    /// All quotas of the key.
    #[must_use]
    pub fn limits(&self) -> &RateLimits {
        self.consumer.limits()
    }

    /// The quotas that rejected the request.
    pub fn violated(&self) -> impl Iterator<Item = &Quota> {
        self.iter().filter(|(_, decision)| !decision.is_admitted()).map(|(quota, _)| quota)
    }

    /// How long until another request like this one would fit all quotas. This includes quotas that
    /// admitted the request but have nothing left.
    #[must_use]
    pub fn wait(&self) -> Duration {
        wait(&self.decisions)
    }
}

/// How long until every quota can admit another such request.
pub(crate) fn wait(decisions: &[Decision]) -> Duration {
    let used_up =
        decisions.iter().filter(|decision| !decision.is_admitted() || decision.remaining() == 0);
    used_up.map(Decision::next_unit_in).max().unwrap_or_default()
}

impl fmt::Debug for RateLimitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
