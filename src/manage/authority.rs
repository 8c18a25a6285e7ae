//! What the actor of a change may do: compared in its transaction, with the calling key's record as
//! locked in it.

use std::{borrow::Cow, time::SystemTime};

use super::{
    Grant, ManageError, Member,
    actor::{Actor, Caller},
    change::Change,
    creation_bounds::Bounds,
};
use crate::{
    rate_limit::RateLimits,
    record::{KeyRecord, Metadata},
};

impl Change {
    /// The bounds on new keys; `None` for an operator.
    pub(super) fn bounds(&self) -> Option<Bounds> {
        (!self.actor().is_operator()).then_some(self.issuer.bounds)
    }

    fn actor(&self) -> &Actor {
        &self.issuer.actor
    }

    /// The calling key and its record; `None` for other actors.
    fn caller(&self) -> Result<Option<(&Caller, &KeyRecord)>, ManageError> {
        match (self.actor().caller(), &self.held) {
            (None, _) => Ok(None),
            (Some(caller), Some(held)) => Ok(Some((caller, held))),
            (Some(_), None) => Err(ManageError::caller_ended()),
        }
    }

    fn member(&self) -> Option<&Member> {
        self.actor().as_member()
    }

    /// What the actor may give to keys; `None` for an operator, who may give anything.
    fn grant(&self) -> Result<Option<Cow<'_, Grant>>, ManageError> {
        if let Some(member) = self.member() {
            return Ok(Some(match member.check_granted()? {
                grant if self.issuer.catalog.is_none() => Cow::Borrowed(grant),
                grant => Cow::Owned(self.with_contained(grant.clone())),
            }));
        }
        let caller = self.caller()?;
        Ok(caller.map(|(_, held)| Cow::Owned(Grant::of_key(held, self.default_limits()))))
    }

    fn default_limits(&self) -> Option<&RateLimits> {
        self.actor().default_limits(self.issuer.default_limits.as_ref())
    }

    /// Whether the calling key still works and has the required scope.
    pub(super) fn check_caller(&self) -> Result<(), ManageError> {
        match self.caller()? {
            Some((caller, held)) => caller.check(held),
            None => Ok(()),
        }
    }

    /// Whether the actor may manage keys of `consumer_id`.
    pub(super) fn check_reach(&mut self, consumer_id: &str) -> Result<(), ManageError> {
        let reaches = match (self.member(), self.caller()?) {
            (Some(member), _) => member.consumers().contains(consumer_id),
            (None, Some((caller, held))) => caller.reaches(held, consumer_id),
            (None, None) => true,
        };
        if reaches {
            return Ok(());
        }
        self.attempt.consumer_id = Some(consumer_id.to_owned());
        Err(ManageError::out_of_reach())
    }

    /// Whether the actor may issue keys at all, and say who made them.
    pub(super) fn check_issue(&self, new: &KeyRecord) -> Result<(), ManageError> {
        if self.member().is_some() && new.created_by.as_deref() != Some(&self.actor().name) {
            let detail = "a member cannot name another maker of its keys: leave it out";
            return Err(ManageError::denied("created_by", detail));
        }
        match self.caller()? {
            Some((caller, held)) => caller.check_issue(held),
            None => Ok(()),
        }
    }

    /// Whether the actor may change keys other than its own.
    pub(super) fn check_others(&self) -> Result<(), ManageError> {
        match self.caller()? {
            Some((caller, held)) => caller.check_others(held),
            None => Ok(()),
        }
    }

    /// Whether the actor may rotate `old`, whose metadata the new key inherits.
    pub(super) fn check_takeover(&self, old: &KeyRecord) -> Result<(), ManageError> {
        match self.caller()? {
            Some((caller, held)) => caller.check_takeover(held, old),
            None => Ok(()),
        }
    }

    /// Whether the actor may give a new key all that `granted` has.
    pub(super) fn check_grant(&self, granted: &KeyRecord) -> Result<(), ManageError> {
        match self.grant()? {
            Some(grant) => grant.check(granted, granted.created_at, self.default_limits()),
            None => Ok(()),
        }
    }

    /// Whether the change only takes away, or the actor may give all that `after` has. Reactivating
    /// a key or changing its plan always counts as giving.
    pub(super) fn check_change(
        &self,
        before: &KeyRecord,
        after: &KeyRecord,
    ) -> Result<(), ManageError> {
        if self.actor().is_operator() {
            return Ok(());
        }
        let (now, default_limits) = (before.read_at, self.default_limits());
        let reactivates = !before.is_active && after.is_active;
        let moves = after.plan != before.plan;
        // The service's default may change, so a member does not replace it by quotas of the key.
        let known = default_limits.filter(|_| self.member().is_none());
        let before_it = || self.with_contained(Grant::of_key(before, known));
        let takes_away = || before_it().check(after, now, known);
        if !reactivates && !moves && takes_away().is_ok() {
            return Ok(());
        }
        match self.grant()? {
            Some(grant) => grant.check(after, now, default_limits),
            None => Ok(()),
        }
    }

    /// Whether the actor may change metadata. A calling key may where it may change any key of its
    /// consumer, unless the application sets no scope and decides by itself.
    pub(super) fn check_metadata(
        &self,
        before: &Metadata,
        after: &Metadata,
    ) -> Result<(), ManageError> {
        if before == after {
            return Ok(());
        }
        if let Some(member) = self.member() {
            if member.check_granted()?.has_metadata() {
                return Ok(());
            }
            let detail = "the member may not change the metadata of a key";
            return Err(ManageError::denied("metadata", detail));
        }
        match self.caller()? {
            Some((caller, held)) => caller.check_issue(held),
            None => Ok(()),
        }
    }

    /// The latest expiry that the actor may give to a key issued at `now`; `None` for no bound.
    pub(super) fn latest_expiry(&self, now: SystemTime) -> Option<SystemTime> {
        self.grant().ok()??.latest_expiry(now)
    }

    /// The one target of the change. A caller cannot tell a key out of its reach from one that does
    /// not exist, neither by the answer nor in the audit.
    pub(super) fn target(&mut self, locked: Vec<KeyRecord>) -> Result<KeyRecord, ManageError> {
        let Some(target) = locked.into_iter().next() else {
            return Err(if self.actor().is_operator() {
                ManageError::no_such_key()
            } else {
                self.caller()?;
                ManageError::out_of_reach()
            });
        };
        self.check_reach(&target.consumer_id)?;
        if let Some((caller, held)) = self.caller()? {
            caller.check_target(held, &target)?;
        }
        Ok(target)
    }
}
