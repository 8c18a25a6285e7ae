use std::collections::BTreeSet;

use super::{ManageError, Member, text};
use crate::{
    rate_limit::RateLimits,
    record::{Consumer, KeyId, KeyRecord, KeyStatus, Scope, ScopeCatalog},
};

/// Who changes keys: an operator, a calling key or a signed-in member. Sets the name in the audit
/// and what is allowed.
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
    role: Role,
    default_limits: Option<RateLimits>,
}

#[derive(Clone, Debug)]
enum Role {
    Operator,
    Key(Caller),
    Member(Box<Member>),
}

/// A calling key, and the scopes it needs.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) key_id: KeyId,
    consumer: Consumer,
    required: Option<Scope>,
    others: Option<Scope>,
    everywhere: Option<Scope>,
}

impl Actor {
    /// An operator, to whom nothing is denied: operators have access to the database anyway. `name`
    /// is for the audit.
    pub fn operator(name: impl Into<String>) -> Self {
        Self::of(name.into(), Role::Operator)
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
        };
        Self::of(format!("key:{}", consumer.key_id()), Role::Key(caller))
    }

    /// Someone who is signed in to the application. It sees and changes only the keys of its
    /// consumers, and gives only what its [grant](Member::grant) allows. The audit names it
    /// `member:` followed by its name.
    ///
    /// The bounds on a [calling key](Self::key) hold for it too: how many keys a consumer has, how
    /// often they are rotated, how many requests run at once. `created_by` of its keys is itself.
    ///
    /// Nothing about a member is read again in the transaction of a change: ask the application's
    /// session right before it.
    pub fn member(member: Member) -> Self {
        Self::of(format!("member:{}", member.name()), Role::Member(Box::new(member)))
    }

    fn of(name: String, role: Role) -> Self {
        Self { name, origin: None, role, default_limits: None }
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
    /// what the authenticator uses. Default: for a [caller](Self::key) unlimited; for a
    /// [member](Self::member) those of the authenticator that made the
    /// [issuer](crate::Authenticator::issuer), else unknown.
    pub fn default_rate_limits(self, limits: RateLimits) -> Self {
        Self { default_limits: Some(limits), ..self }
    }

    /// Where the request came from, such as an address or a host, for the audit.
    pub fn origin(self, origin: impl Into<String>) -> Self {
        Self { origin: Some(origin.into()), ..self }
    }

    fn with(mut self, change: impl FnOnce(&mut Caller)) -> Self {
        if let Role::Key(caller) = &mut self.role {
            change(caller);
        }
        self
    }

    /// Whether nothing is denied to it.
    pub(super) const fn is_operator(&self) -> bool {
        matches!(self.role, Role::Operator)
    }

    pub(super) const fn caller(&self) -> Option<&Caller> {
        match &self.role {
            Role::Key(caller) => Some(caller),
            Role::Operator | Role::Member(_) => None,
        }
    }

    pub(super) fn as_member(&self) -> Option<&Member> {
        match &self.role {
            Role::Member(member) => Some(member),
            Role::Operator | Role::Key(_) => None,
        }
    }

    /// The limits of keys with neither quotas nor a plan; `known` are those of the authenticator.
    pub(super) fn default_limits<'a>(
        &'a self,
        known: Option<&'a RateLimits>,
    ) -> Option<&'a RateLimits> {
        match &self.role {
            Role::Member(_) => self.default_limits.as_ref().or(known),
            Role::Operator | Role::Key(_) => {
                Some(self.default_limits.as_ref().unwrap_or_else(|| RateLimits::unlimited_ref()))
            }
        }
    }

    /// Checks the required scope against the consumer that the layer authenticated, or the name of
    /// the member.
    pub(super) fn check_known(&self, catalog: Option<&ScopeCatalog>) -> Result<(), ManageError> {
        match &self.role {
            Role::Operator => Ok(()),
            Role::Key(caller) => match &caller.required {
                Some(scope) if !caller.is_known_to_hold(scope, catalog) => {
                    Err(ManageError::lacks_scope(scope.clone()))
                }
                _ => Ok(()),
            },
            Role::Member(member) if member.name().is_empty() => {
                Err(ManageError::invalid("member", "must not have an empty name"))
            }
            Role::Member(_) => text::check("member", &self.name),
        }
    }

    /// The only consumers whose keys are visible, judged by the consumer that the layer
    /// authenticated; `None` for all.
    pub(super) fn tenants(&self, catalog: Option<&ScopeCatalog>) -> Option<BTreeSet<&str>> {
        match &self.role {
            Role::Operator => None,
            Role::Key(caller) => {
                let everywhere = caller.everywhere.as_ref();
                let is_unrestricted =
                    everywhere.is_some_and(|scope| caller.is_known_to_hold(scope, catalog));
                (!is_unrestricted).then(|| BTreeSet::from([caller.consumer.id()]))
            }
            Role::Member(member) => {
                let ids = member.consumers().ids()?;
                Some(ids.iter().map(String::as_str).collect())
            }
        }
    }

    /// The one consumer that it acts for, if there is one: the calling key's, or the member's.
    pub(super) fn consumer_id(&self) -> Option<&str> {
        match &self.role {
            Role::Operator => None,
            Role::Key(caller) => Some(caller.consumer.id()),
            Role::Member(member) => member.consumers().only(),
        }
    }
}

impl Caller {
    /// Whether the consumer that the layer authenticated holds `scope`. One that was made from a
    /// record has only what is stored.
    fn is_known_to_hold(&self, scope: &Scope, catalog: Option<&ScopeCatalog>) -> bool {
        let is_contained = |catalog: &ScopeCatalog| {
            catalog.expand(self.consumer.scopes()).contains(scope.as_str())
        };
        self.consumer.has_scope(scope) || catalog.is_some_and(is_contained)
    }

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

    /// Whether it may issue keys, which are outside its rotation chain. An application that sets no
    /// scope decides by itself. Assumes that `check` has passed.
    pub(super) fn check_issue(&self, held: &KeyRecord) -> Result<(), ManageError> {
        if self.others.is_some() { self.check_others(held) } else { Ok(()) }
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
}
