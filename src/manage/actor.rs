use std::time::SystemTime;

use super::ManageError;
use crate::{
    rate_limit::RateLimits,
    record::{Consumer, KeyId, KeyRecord, KeyStatus, Scope},
};

/// Who changes keys: what the audit says, and what is beyond them.
///
/// ```
/// use tower_api_key::{Consumer, manage::Actor, record::Scope};
///
/// // Whoever may run this program may do anything.
/// let operator = Actor::operator("root@db1").from("command line");
///
/// // The key behind a request, which can grant no more than it holds.
/// fn caller(consumer: &Consumer, write: Scope) -> Actor {
///     Actor::caller(consumer).requires(write)
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Actor {
    pub(super) name: String,
    pub(super) origin: Option<String>,
    pub(super) caller: Option<Caller>,
}

/// A key that asks for a change, and what that takes.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) key_id: KeyId,
    consumer: Consumer,
    required: Option<Scope>,
    others: Option<Scope>,
    everywhere: Option<Scope>,
    default_limits: RateLimits,
}

impl Actor {
    /// Somebody whom nothing is denied, as they have the database at hand anyway. `name` is for the
    /// audit.
    pub fn operator(name: impl Into<String>) -> Self {
        Self { name: name.into(), origin: None, caller: None }
    }

    /// The key behind a request. It sees and changes the keys of its own consumer only, and can
    /// grant nothing that it does not hold. In the audit it is `key:` and its id.
    ///
    /// The keys that it makes are on its own plan, or on none as it is. What a plan means may be
    /// something else tomorrow, and more than limits to the application, so plans are not compared
    /// by their limits, and nobody leaves one to be free. Only a key that nothing limits, neither a
    /// plan nor a quota, can grant any plan or none. On one plan, limits are compared as they are
    /// with those of the plan. Where the store does not define it, a key can be given the limits
    /// that its maker has beside the plan, or narrower ones of the same names.
    ///
    /// By itself it changes only itself, and the keys of its own chain of rotations. Other keys of its
    /// consumer take a scope: the one that it [requires](Self::requires) for everything, or one
    /// [for that](Self::other_keys_scope). Without the scope, [metadata](crate::record::Metadata) counts
    /// as something held: to rotate a key is to get a key with its metadata, so it has to be the
    /// caller's own. With the scope it is not compared: a key that may write keys may write their metadata, too. Metadata
    /// that the application itself puts into a new key or a change is not compared.
    ///
    /// What it holds is read again in the transaction of each change: a key that was revoked after
    /// it had been let in changes nothing. A required scope that it did not have when it was let in is
    /// denied without a transaction.
    pub fn caller(consumer: &Consumer) -> Self {
        let caller = Caller {
            key_id: consumer.key_id(),
            consumer: consumer.clone(),
            required: None,
            others: None,
            everywhere: None,
            default_limits: RateLimits::unlimited(),
        };
        let name = format!("key:{}", consumer.key_id());
        Self { name, origin: None, caller: Some(caller) }
    }

    /// A [caller](Self::caller) needs `scope` to change anything. Default: none.
    pub fn requires(self, scope: Scope) -> Self {
        self.with(|caller| caller.required = Some(scope))
    }

    /// A [caller](Self::caller) needs `scope` to change, revoke or rotate keys of its consumer other
    /// than itself and those of its own chain of rotations. Default: what it
    /// [requires](Self::requires) for everything; without that, none may.
    pub fn other_keys_scope(self, scope: Scope) -> Self {
        self.with(|caller| caller.others = Some(scope))
    }

    /// A [caller](Self::caller) with `scope` manages the keys of every consumer. Default: none does.
    pub fn everywhere_with(self, scope: Scope) -> Self {
        self.with(|caller| caller.everywhere = Some(scope))
    }

    /// The limits of keys that have neither their own nor a plan, as the authenticator has them: they count
    /// when the limits of two keys are compared. Default: unlimited.
    pub fn default_rate_limits(self, limits: RateLimits) -> Self {
        self.with(|caller| caller.default_limits = limits)
    }

    /// Where the request came from, for the audit: an address, a host.
    pub fn from(self, origin: impl Into<String>) -> Self {
        Self { origin: Some(origin.into()), ..self }
    }

    fn with(mut self, change: impl FnOnce(&mut Caller)) -> Self {
        if let Some(caller) = &mut self.caller {
            change(caller);
        }
        self
    }

    /// Whether the actor may change anything, by what the layer knows of the caller.
    pub(super) fn check_known(&self) -> Result<(), ManageError> {
        match self.caller.as_ref().and_then(|caller| Some((caller, caller.required.as_ref()?))) {
            Some((caller, scope)) if !caller.consumer.has_scope(scope.as_str()) => {
                Err(ManageError::lacks_scope(scope.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The one consumer whose keys are to be seen, by what the layer knows of the caller; `None` for
    /// all.
    pub(super) fn tenant(&self) -> Option<&str> {
        let caller = self.caller.as_ref()?;
        let everywhere = caller.everywhere.as_ref();
        let roams = everywhere.is_some_and(|scope| caller.consumer.has_scope(scope.as_str()));
        (!roams).then(|| caller.consumer.id())
    }
}

impl Caller {
    /// Whether the caller, whose record is `held`, may change anything at all.
    pub(super) fn check(&self, held: &KeyRecord) -> Result<(), ManageError> {
        if held.status(held.read_at) != KeyStatus::Active {
            return Err(ManageError::caller_ended());
        }
        match &self.required {
            Some(scope) if !held.scopes.contains(scope.as_str()) => {
                Err(ManageError::lacks_scope(scope.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The consumer that the key was let in for.
    pub(super) fn consumer_id(&self) -> &str {
        self.consumer.id()
    }

    /// Whether it may change keys other than its own. It holds what it is required to.
    pub(super) fn check_others(&self, held: &KeyRecord) -> Result<(), ManageError> {
        match (&self.others, &self.required) {
            (Some(scope), _) if !held.scopes.contains(scope.as_str()) => {
                Err(ManageError::lacks_scope(scope.clone()))
            }
            (None, None) => Err(ManageError::own_keys_only()),
            _ => Ok(()),
        }
    }

    /// Whether it may change `target`, which is within its reach.
    pub(super) fn check_target(
        &self,
        held: &KeyRecord,
        target: &KeyRecord,
    ) -> Result<(), ManageError> {
        let is_own = held.consumer_id == target.consumer_id && held.root_id == target.root_id;
        if is_own { Ok(()) } else { self.check_others(held) }
    }

    /// Whether it may have a key with the metadata of `old`.
    pub(super) fn check_takeover(
        &self,
        held: &KeyRecord,
        old: &KeyRecord,
    ) -> Result<(), ManageError> {
        if held.metadata == old.metadata || self.check_others(held).is_ok() {
            return Ok(());
        }
        let detail = "a key cannot take over metadata that it does not have itself";
        Err(ManageError::denied("metadata", detail))
    }

    /// Whether it may touch keys of `consumer_id`.
    pub(super) fn reaches(&self, held: &KeyRecord, consumer_id: &str) -> bool {
        let roams = |scope: &Scope| held.scopes.contains(scope.as_str());
        held.consumer_id == consumer_id || self.everywhere.as_ref().is_some_and(roams)
    }

    /// Whether `granted` is something that the caller holds itself.
    pub(super) fn check_grant(
        &self,
        held: &KeyRecord,
        granted: &KeyRecord,
    ) -> Result<(), ManageError> {
        self.check_within(held, granted)
    }

    /// Whether `after` is something that the caller holds, or no more than the key was `before`.
    pub(super) fn check_change(
        &self,
        held: &KeyRecord,
        before: &KeyRecord,
        after: &KeyRecord,
    ) -> Result<(), ManageError> {
        let awakens = !before.is_active && after.is_active;
        let moves = after.plan != before.plan;
        if !awakens && !moves && self.check_within(before, after).is_ok() {
            return Ok(());
        }
        self.check_within(held, after)
    }

    fn check_within(&self, bound: &KeyRecord, key: &KeyRecord) -> Result<(), ManageError> {
        if let Some(scope) = key.scopes.iter().find(|scope| !bound.scopes.contains(scope.as_str()))
        {
            let detail = format!("the calling key does not hold `{scope}` and cannot grant it");
            return Err(ManageError::denied("scopes", detail));
        }
        let lasts_longer =
            |end: SystemTime| key.expires_at.is_none_or(|expires_at| expires_at > end);
        if bound.expires_at.is_some_and(lasts_longer) {
            let detail = "a key cannot be made to outlive the key that asks for it";
            return Err(ManageError::denied("expires_at", detail));
        }
        if self.is_free(bound) {
            return Ok(());
        }
        if key.plan != bound.plan {
            let detail = match &bound.plan {
                Some(plan) => {
                    format!("a key has to be on the plan of the key that asks for it: {plan}")
                }
                None => {
                    "a key that is on no plan cannot grant one, unless nothing limits it".into()
                }
            };
            return Err(ManageError::denied("plan", detail));
        }
        if !self.is_limited_within(bound, key) {
            let detail = "a key cannot be given more than the quota of the key that asks for it";
            return Err(ManageError::denied("rate_limits", detail));
        }
        Ok(())
    }

    /// Whether nothing limits the key.
    fn is_free(&self, key: &KeyRecord) -> bool {
        key.plan.is_none() && self.limits_without_plan(key).is_unlimited()
    }

    /// Whether `key` is limited no less than `bound`, which is on the same plan.
    fn is_limited_within(&self, bound: &KeyRecord, key: &KeyRecord) -> bool {
        let (own, asked) = (&bound.rate_limits, &key.rate_limits);
        if own == asked {
            return true;
        }
        match (&bound.plan, &bound.plan_limits) {
            (None, _) => self.limits_without_plan(key).is_within(self.limits_without_plan(bound)),
            // Unlimited beside a plan is unlimited on the day on which the plan is gone.
            (Some(_), Some(_)) if asked.as_ref().is_some_and(RateLimits::is_unlimited) => false,
            (Some(_), Some(plan)) => beside(asked, plan).is_within(&beside(own, plan)),
            // It may be defined in code, as anything.
            (Some(_), None) => match (own, asked) {
                (Some(own), Some(asked)) => asked.is_within(own) && replaces_no_more(asked, own),
                _ => false,
            },
        }
    }

    fn limits_without_plan<'a>(&'a self, key: &'a KeyRecord) -> &'a RateLimits {
        key.rate_limits.as_ref().unwrap_or(&self.default_limits)
    }
}

/// What a key has on a plan: a quota of its own stands for one of the same name.
fn beside(own: &Option<RateLimits>, plan: &RateLimits) -> RateLimits {
    own.as_ref().map_or_else(|| plan.clone(), |own| own.and(plan))
}

/// Whether each quota of a plan that `asked` stands for is one that `own` stands for.
fn replaces_no_more(asked: &RateLimits, own: &RateLimits) -> bool {
    asked.iter().all(|asked| own.iter().any(|own| own.name() == asked.name()))
}
