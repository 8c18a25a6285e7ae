//! Decisions of this node alone, while Redis does not decide.

use std::{num::NonZeroU32, time::Duration};

use super::{
    outage_policy::OutagePolicy,
    script::Action,
    shared::{Shared, admit},
};
use crate::rate_limit::{
    Decision,
    port::{Buckets as _, Decisions},
};

/// The wait that clients are told when neither Redis nor this node decides.
const WAIT: Duration = Duration::from_secs(1);

impl Shared {
    pub(super) fn take_alone(&self, units: NonZeroU32, now: Duration) -> Decisions {
        if self.unavailable == OutagePolicy::Deny {
            return self.denied();
        }
        let decisions = self.own.take_alone(units, now);
        if !decisions.is_admitted() {
            return decisions;
        }
        // Assumes that every other node admits as much meanwhile.
        let others = units.get().saturating_mul(self.nodes.get() - 1);
        let Some(others) = NonZeroU32::new(others) else { return decisions };
        self.own.charge(others, now);
        let own = self.own.look(NonZeroU32::MIN, now);
        own.iter().map(|own| admit(*own, 0)).collect()
    }

    pub(super) fn peek_alone(&self, now: Duration) -> Decisions {
        match self.unavailable {
            OutagePolicy::Deny => self.denied(),
            OutagePolicy::Local => self.own.look(NonZeroU32::MIN, now),
        }
    }

    fn denied(&self) -> Decisions {
        self.counted.quotas.iter().map(|_| Decision::deny(WAIT)).collect()
    }

    pub(super) fn settle_alone(&self, action: Action, now: Duration) {
        match action {
            Action::Charge(units) => self.own.charge(units, now),
            Action::GiveBack(units) => self.own.give_back(units, now),
            Action::Take { .. } | Action::Peek => return,
        }
        self.own.go_on_alone();
    }
}
