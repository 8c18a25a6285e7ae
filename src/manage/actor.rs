use std::time::SystemTime;

use super::ManageError;
use crate::{
    rate_limit::RateLimits,
    record::{Consumer, KeyId, KeyRecord, KeyStatus, Scope},
};

/// Who changes keys: an operator or a calling key. Sets the name in the audit and what is allowed.
///
/// ```
/// use tower_api_key::{Consumer, manage::Actor, record::Scope};
///
/// // An operator may do anything.
/// let operator = Actor::operator("root@db1").origin("command line");
///
/// // The key behind a request can grant no more than it holds.
/// fn caller(consumer: &Consumer, write: Scope) -> Actor {
///     Actor::key(consumer).required_scope(write)
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Actor {
    pub(super) name: String,
    pub(super) origin: Option<String>,
    pub(super) caller: Option<Caller>,
}

/// A calling key, and the scopes it needs.
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
    /// An operator, to whom nothing is denied: operators have access to the database anyway. `name`
    /// is for the audit.
    pub fn operator(name: impl Into<String>) -> Self {
        Self { name: name.into(), origin: None, caller: None }
    }

    /// The key behind a request. It sees and changes only the keys of its own consumer, and can
    /// grant nothing that it does not hold. The audit names it `key:` followed by its id.
    ///
    /// New keys are on the plan of the calling key, or on none if it has none. Plans are compared
    /// by name, not by limits: a plan's limits may change, and a plan may mean more than limits to
    /// the application. A key cannot move a key off its own plan. Only an unlimited key, with
    /// neither a plan nor a quota, can grant any plan or none. Between keys on one plan, the limits
    /// are compared after they are merged with those of the plan. If the store does not define the
    /// plan, a key can only be given the calling key's own quotas, or narrower ones of the same
    /// names.
    ///
    /// Without a further scope, it changes only itself and the keys of its own rotation chain.
    /// Other keys of its consumer need a scope: the one [required](Self::required_scope) for
    /// everything, or [a separate one](Self::other_keys_scope). Without that scope, a key that is
    /// rotated must have the same [metadata](crate::record::Metadata) as the calling key, because
    /// the new key inherits it. With the scope, metadata is not compared: a key that may write keys
    /// may write their metadata too. Metadata that the application itself puts into a new key or a
    /// change is not compared.
    ///
    /// What the calling key holds is read again in the transaction of each change: a key that was
    /// revoked after it was authenticated changes nothing. If it lacked a required scope when it
    /// was authenticated, the change is denied without a transaction.
    pub fn key(consumer: &Consumer) -> Self {
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

    /// A [caller](Self::key) needs `scope` to change anything. Default: none.
    pub fn required_scope(self, scope: Scope) -> Self {
        self.with(|caller| caller.required = Some(scope))
    }

    /// A [caller](Self::key) needs `scope` to change, revoke or rotate keys of its consumer outside
    /// its own rotation chain. Default: the scope that is [required](Self::required_scope) for
    /// everything; without either, it cannot.
    pub fn other_keys_scope(self, scope: Scope) -> Self {
        self.with(|caller| caller.others = Some(scope))
    }

    /// A [caller](Self::key) with `scope` manages the keys of all consumers. Default: no scope
    /// allows it.
    pub fn all_consumers_scope(self, scope: Scope) -> Self {
        self.with(|caller| caller.everywhere = Some(scope))
    }

    /// The limits of keys with neither quotas nor a plan, for comparing the limits of two keys. Set
    /// what the authenticator uses. Default: unlimited.
    pub fn default_rate_limits(self, limits: RateLimits) -> Self {
        self.with(|caller| caller.default_limits = limits)
    }

    /// Where the request came from, such as an address or a host, for the audit.
    pub fn origin(self, origin: impl Into<String>) -> Self {
        Self { origin: Some(origin.into()), ..self }
    }

    /// Whether nothing is denied to it.
    pub(super) const fn is_operator(&self) -> bool {
        self.caller.is_none()
    }

    fn with(mut self, change: impl FnOnce(&mut Caller)) -> Self {
        if let Some(caller) = &mut self.caller {
            change(caller);
        }
        self
    }

    /// Checks the required scope against the consumer that the layer authenticated.
    pub(super) fn check_known(&self) -> Result<(), ManageError> {
        match self.caller.as_ref().and_then(|caller| Some((caller, caller.required.as_ref()?))) {
            Some((caller, scope)) if !caller.consumer.has_scope(scope.as_str()) => {
                Err(ManageError::lacks_scope(scope.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The only consumer whose keys are visible, judged by the consumer that the layer
    /// authenticated; `None` for all.
    pub(super) fn tenant(&self) -> Option<&str> {
        let caller = self.caller.as_ref()?;
        let everywhere = caller.everywhere.as_ref();
        let is_unrestricted =
            everywhere.is_some_and(|scope| caller.consumer.has_scope(scope.as_str()));
        (!is_unrestricted).then(|| caller.consumer.id())
    }
}

impl Caller {
    /// Checks that the caller is still active and has the required scope; `held` is its record.
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

    /// The consumer that the layer authenticated.
    pub(super) fn consumer_id(&self) -> &str {
        self.consumer.id()
    }

    /// Whether it may change keys outside its rotation chain. Assumes that `check` has passed.
    pub(super) fn check_others(&self, held: &KeyRecord) -> Result<(), ManageError> {
        match (&self.others, &self.required) {
            (Some(scope), _) if !held.scopes.contains(scope.as_str()) => {
                Err(ManageError::lacks_scope(scope.clone()))
            }
            (None, None) => Err(ManageError::own_keys_only()),
            _ => Ok(()),
        }
    }

    /// Whether it may change `target`. Assumes that `reaches` holds.
    pub(super) fn check_target(
        &self,
        held: &KeyRecord,
        target: &KeyRecord,
    ) -> Result<(), ManageError> {
        let is_own = held.consumer_id == target.consumer_id && held.root_id == target.root_id;
        if is_own { Ok(()) } else { self.check_others(held) }
    }

    /// Whether it may rotate `old`, whose metadata the new key inherits.
    pub(super) fn check_takeover(
        &self,
        held: &KeyRecord,
        old: &KeyRecord,
    ) -> Result<(), ManageError> {
        if held.metadata == old.metadata || self.check_others(held).is_ok() {
            return Ok(());
        }
        let detail = "the calling key cannot rotate a key whose metadata differs from its own";
        Err(ManageError::denied("metadata", detail))
    }

    /// Whether it may manage keys of `consumer_id` at all.
    pub(super) fn reaches(&self, held: &KeyRecord, consumer_id: &str) -> bool {
        let is_unrestricted = |scope: &Scope| held.scopes.contains(scope.as_str());
        held.consumer_id == consumer_id || self.everywhere.as_ref().is_some_and(is_unrestricted)
    }

    /// Whether the caller holds everything that `granted` does.
    pub(super) fn check_grant(
        &self,
        held: &KeyRecord,
        granted: &KeyRecord,
    ) -> Result<(), ManageError> {
        self.check_within(held, granted)
    }

    /// Whether the change only takes away, or the caller holds everything that `after` does.
    /// Reactivating a key or changing its plan always counts as granting.
    pub(super) fn check_change(
        &self,
        held: &KeyRecord,
        before: &KeyRecord,
        after: &KeyRecord,
    ) -> Result<(), ManageError> {
        let reactivates = !before.is_active && after.is_active;
        let moves = after.plan != before.plan;
        if !reactivates && !moves && self.check_within(before, after).is_ok() {
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
            let detail = "a key must not expire later than the calling key";
            return Err(ManageError::denied("expires_at", detail));
        }
        if self.is_free(bound) {
            return Ok(());
        }
        if key.plan != bound.plan {
            let detail = match &bound.plan {
                Some(plan) => {
                    format!("a key must be on the plan of the calling key: {plan}")
                }
                None => {
                    "a calling key without a plan cannot grant one, unless it is unlimited".into()
                }
            };
            return Err(ManageError::denied("plan", detail));
        }
        if !self.is_limited_within(bound, key) {
            let detail = "the limits of a key must not exceed those of the calling key";
            return Err(ManageError::denied("rate_limits", detail));
        }
        Ok(())
    }

    /// Whether the key has neither a plan nor a quota.
    fn is_free(&self, key: &KeyRecord) -> bool {
        key.plan.is_none() && self.limits_without_plan(key).is_unlimited()
    }

    /// Whether the limits of `key` are within those of `bound`, which is on the same plan.
    fn is_limited_within(&self, bound: &KeyRecord, key: &KeyRecord) -> bool {
        let (own, asked) = (&bound.rate_limits, &key.rate_limits);
        if own == asked {
            return true;
        }
        match (&bound.plan, &bound.plan_limits) {
            (None, _) => self.limits_without_plan(key).is_within(self.limits_without_plan(bound)),
            // The key would be unlimited once the plan is removed.
            (Some(_), Some(_)) if asked.as_ref().is_some_and(RateLimits::is_unlimited) => false,
            (Some(_), Some(plan)) => beside(asked, plan).is_within(&beside(own, plan)),
            // The application may define the plan in code, so its limits are unknown.
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

/// The limits of a key on a plan: its own quotas replace those of the plan by name.
fn beside(own: &Option<RateLimits>, plan: &RateLimits) -> RateLimits {
    own.as_ref().map_or_else(|| plan.clone(), |own| own.and(plan))
}

/// Whether `asked` replaces only quotas of the plan that `own` replaces too.
fn replaces_no_more(asked: &RateLimits, own: &RateLimits) -> bool {
    asked.iter().all(|asked| own.iter().any(|own| own.name() == asked.name()))
}
