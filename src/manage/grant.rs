use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use super::{ConsumerIds, ManageError, places::Places};
use crate::{
    rate_limit::RateLimits,
    record::{KeyRecord, Metadata, Networks, ScopeCatalog, Scopes},
};

/// A ceiling on what may be given to a key: scopes, lifetime, plan, limits, metadata, networks,
/// consumers.
///
/// A calling key has a grant made from its own record: it gives no more than it holds. The grant of
/// a signed-in [`Member`](super::Member) comes from the application. Both are compared with a new
/// or changed key in the same way, in the transaction of the change.
///
/// ```
/// use std::time::Duration;
/// use tower_api_key::{manage::Grant, record::Scopes};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// const DAY: Duration = Duration::from_secs(86_400);
///
/// let grant = Grant::new(90 * DAY)
///     .scopes(Scopes::parse(["orders:read", "orders:write"])?)
///     .plans(["free", "pro"]);
/// # let _ = grant;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Grant {
    /// `None` for all scopes.
    scopes: Option<Scopes>,
    max_lifetime: Option<Duration>,
    /// For a calling key: when it expires itself.
    expires_at: Option<SystemTime>,
    plans: Plans,
    limits: Limits,
    has_metadata: bool,
    places: Places,
    consumers: ConsumerIds,
    source: Source,
}

/// The plans that a key may be on; `None` is no plan.
#[derive(Clone, Debug)]
enum Plans {
    Any,
    Of(Vec<Option<String>>),
}

/// The limits that a key may have.
#[derive(Clone, Debug)]
enum Limits {
    Any,
    /// Those of a key on the same plan.
    OfKey {
        own: Option<RateLimits>,
        plan: Option<RateLimits>,
    },
    /// Those of its plan, and quotas of its own within these; none if there are none.
    OfMember(Option<RateLimits>),
}

/// Who gives, for the text of a denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Key,
    Member,
}

impl Grant {
    /// Keys that last for at most `max_lifetime`, from issue to expiry, without scopes, plan,
    /// metadata and limits of their own. There is no default lifetime: 90 days suit keys of a
    /// service.
    pub fn new(max_lifetime: Duration) -> Self {
        Self {
            scopes: Some(Scopes::default()),
            max_lifetime: Some(max_lifetime),
            plans: Plans::Of(vec![None]),
            limits: Limits::OfMember(None),
            has_metadata: false,
            ..Self::everything()
        }
    }

    /// Keys of any kind, for staff: all scopes, plans, limits and metadata, without an expiry if
    /// wanted.
    pub fn everything() -> Self {
        Self {
            scopes: None,
            max_lifetime: None,
            expires_at: None,
            plans: Plans::Any,
            limits: Limits::Any,
            has_metadata: true,
            places: Places::default(),
            consumers: ConsumerIds::all(),
            source: Source::Member,
        }
    }

    /// The scopes that a key may have, with all that they contain by the
    /// [catalogue](super::KeyIssuer::scopes) of the issuer. Default of [`new`](Self::new): none.
    pub fn scopes(self, scopes: impl Into<Scopes>) -> Self {
        Self { scopes: Some(scopes.into()), ..self }
    }

    /// How long a key may last, from issue to expiry. A change that extends a key counts from its
    /// issue too, so that repeated changes do not prolong it further.
    pub fn max_lifetime(self, lifetime: Duration) -> Self {
        Self { max_lifetime: Some(lifetime), ..self }
    }

    /// The plans that a key may be on; it must be on one of them. Default of [`new`](Self::new): a
    /// key is on no plan.
    pub fn plans<P: Into<String>>(self, names: impl IntoIterator<Item = P>) -> Self {
        Self { plans: Plans::Of(names.into_iter().map(|name| Some(name.into())).collect()), ..self }
    }

    /// A key may have quotas of its own within these: for each of these quotas, it has one with no
    /// larger burst and no faster refill. On a plan, its quotas replace those of the same name.
    /// Without a plan, a key must have such quotas, unless the service's default limits are within
    /// these too. Default of [`new`](Self::new): no quotas of its own.
    pub fn rate_limits(self, limits: impl Into<RateLimits>) -> Self {
        Self { limits: Limits::OfMember(Some(limits.into())), ..self }
    }

    /// Whether a key may have [metadata](Metadata), and metadata may be changed. Only the
    /// application knows what metadata means: allow it if none of it decides what a key may do.
    /// Default of [`new`](Self::new): false.
    pub fn metadata(self, is_allowed: bool) -> Self {
        Self { has_metadata: is_allowed, ..self }
    }

    /// The networks that a key may work from; it must be restricted to some of them. Default: a key
    /// may work from anywhere.
    pub fn networks(mut self, networks: Networks) -> Self {
        self.places.networks = networks;
        self
    }

    /// The consumers that may be given keys. Default: all whose keys the
    /// [member](super::Member) manages.
    pub fn consumers(self, ids: impl Into<ConsumerIds>) -> Self {
        Self { consumers: ids.into(), ..self }
    }

    /// What a key gives: what it holds. An unlimited key, with neither a plan nor a quota, gives
    /// any plan and limits. `default_limits` are those of keys with neither.
    ///
    /// Metadata is not compared here: see [`Actor::key`](super::Actor::key).
    pub(super) fn of_key(held: &KeyRecord, default_limits: Option<&RateLimits>) -> Self {
        let effective = held.rate_limits.as_ref().or(default_limits);
        let is_free = held.plan.is_none() && effective.is_some_and(RateLimits::is_unlimited);
        let (plans, limits) = if is_free {
            (Plans::Any, Limits::Any)
        } else {
            let (own, plan) = (held.rate_limits.clone(), held.plan_limits.clone());
            (Plans::Of(vec![held.plan.clone()]), Limits::OfKey { own, plan })
        };
        Self {
            scopes: Some(held.scopes.clone()),
            expires_at: held.expires_at,
            plans,
            limits,
            places: Places::of(held),
            source: Source::Key,
            ..Self::everything()
        }
    }

    /// With all that its scopes contain.
    pub(super) fn expanded(self, catalog: &ScopeCatalog) -> Self {
        Self { scopes: self.scopes.map(|scopes| catalog.expand(&scopes)), ..self }
    }

    /// The latest expiry of a key that is issued at `now`; `None` if it need not expire.
    pub(super) fn latest_expiry(&self, now: SystemTime) -> Option<SystemTime> {
        // Beyond the range of the clock, there is no bound to reach.
        let end = self.max_lifetime.and_then(|lifetime| now.checked_add(lifetime));
        [end, self.expires_at].into_iter().flatten().min()
    }

    /// Whether metadata may be given, and changed.
    pub(super) fn has_metadata(&self) -> bool {
        self.has_metadata
    }

    /// Whether `key` is within the grant. `now` is the time of the change, `default_limits` the
    /// limits of keys with neither a plan nor quotas of their own, if they are known.
    pub(super) fn check(
        &self,
        key: &KeyRecord,
        now: SystemTime,
        default_limits: Option<&RateLimits>,
    ) -> Result<(), ManageError> {
        let denied = |field, detail: String| Err(ManageError::denied(field, detail));
        if !self.consumers.contains(&key.consumer_id) {
            return denied("consumer_id", "this consumer may not be given keys".into());
        }
        let is_beyond =
            |bound: &Scopes| key.scopes.iter().find(|scope| !bound.contains(scope.as_str()));
        if let Some(scope) = self.scopes.as_ref().and_then(is_beyond) {
            return denied("scopes", self.source.lacks(scope.as_str()));
        }
        // A time of issue in the future, set in SQL, prolongs nothing.
        let latest = self.latest_expiry(key.created_at.min(now));
        if latest.is_some_and(|latest| key.expires_at.is_none_or(|end| end > latest)) {
            return denied("expires_at", self.source.outlived(self.max_lifetime));
        }
        if !self.has_metadata && key.metadata != Metadata::default() {
            return denied("metadata", "the member may not give metadata to a key".into());
        }
        if let Plans::Of(names) = &self.plans
            && !names.contains(&key.plan)
        {
            return denied("plan", self.source.off_plan(names));
        }
        self.places.check(key, self.source.name())?;
        if !self.limits.contain(key, default_limits) {
            return denied("rate_limits", self.source.beyond_limits().into());
        }
        Ok(())
    }
}

/// For a page that shows what its visitor may give: `scopes`, `max_lifetime_s`, `plans`,
/// `rate_limits` and `metadata`. `null` stands for all scopes, any lifetime, any plan, and no
/// quotas of its own; an empty list of quotas for any quotas. In `plans`, `null` is no plan.
impl Serialize for Grant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let unlimited = RateLimits::unlimited();
        let plans = match &self.plans {
            Plans::Any => None,
            Plans::Of(names) => Some(names),
        };
        let rate_limits = match &self.limits {
            Limits::Any => Some(&unlimited),
            Limits::OfKey { own, .. } => own.as_ref(),
            Limits::OfMember(most) => most.as_ref(),
        };
        let mut grant = serializer.serialize_struct("Grant", 5)?;
        grant.serialize_field("scopes", &self.scopes)?;
        grant.serialize_field("max_lifetime_s", &self.max_lifetime.map(whole_seconds))?;
        grant.serialize_field("plans", &plans)?;
        grant.serialize_field("rate_limits", &rate_limits)?;
        grant.serialize_field("metadata", &self.has_metadata)?;
        grant.end()
    }
}

impl Limits {
    /// Whether the limits of `key`, whose plan was compared before, are within these.
    fn contain(&self, key: &KeyRecord, default_limits: Option<&RateLimits>) -> bool {
        let asked = &key.rate_limits;
        match (self, &key.plan) {
            (Self::Any, _) => true,
            (Self::OfKey { own, .. }, _) if own == asked => true,
            (Self::OfKey { own, .. }, None) => {
                let effective =
                    asked.as_ref().or(default_limits).zip(own.as_ref().or(default_limits));
                effective.is_some_and(|(asked, own)| asked.is_within(own))
            }
            // The key would be unlimited once the plan is removed.
            (Self::OfKey { plan: Some(_), .. }, Some(_))
                if asked.as_ref().is_some_and(RateLimits::is_unlimited) =>
            {
                false
            }
            (Self::OfKey { own, plan: Some(plan) }, Some(_)) => {
                merged_with_plan(asked, plan).is_within(&merged_with_plan(own, plan))
            }
            // The application may define the plan in code, so its limits are unknown.
            (Self::OfKey { own, plan: None }, Some(_)) => match (own, asked) {
                (Some(own), Some(asked)) => replaces_within(asked, own),
                _ => false,
            },
            (Self::OfMember(None), _) => asked.is_none(),
            (Self::OfMember(Some(most)), None) => {
                let effective = asked.as_ref().or(default_limits);
                most.is_unlimited() || effective.is_some_and(|asked| asked.is_within(most))
            }
            (Self::OfMember(Some(most)), Some(_)) => asked
                .as_ref()
                .is_none_or(|asked| most.is_unlimited() || replaces_within(asked, most)),
        }
    }
}

impl Source {
    const fn name(self) -> &'static str {
        match self {
            Self::Key => "the calling key",
            Self::Member => "the member may grant",
        }
    }

    fn lacks(self, scope: &str) -> String {
        match self {
            Self::Key => format!("the calling key does not hold `{scope}` and cannot grant it"),
            Self::Member => format!("the member may not grant `{scope}`"),
        }
    }

    fn outlived(self, lifetime: Option<Duration>) -> String {
        match (self, lifetime) {
            (Self::Member, Some(lifetime)) => {
                let secs = whole_seconds(lifetime);
                let (number, unit) = match (secs % 86_400, secs % 3600) {
                    (0, _) => (secs / 86_400, "days"),
                    (_, 0) => (secs / 3600, "hours"),
                    _ => (secs, "seconds"),
                };
                format!("a key must expire within {number} {unit} of its issue")
            }
            _ => "a key must not expire later than the calling key".into(),
        }
    }

    fn off_plan(self, plans: &[Option<String>]) -> String {
        let names: Vec<_> = plans.iter().flatten().map(String::as_str).collect();
        match (self, &names[..]) {
            (Self::Key, []) => {
                "a calling key without a plan cannot grant one, unless it is unlimited".into()
            }
            (Self::Key, names) => {
                format!("a key must be on the plan of the calling key: {}", names.join(", "))
            }
            (Self::Member, []) => "the member may not put a key on a plan".into(),
            (Self::Member, names) => {
                format!("a key must be on a plan that the member may grant: {}", names.join(", "))
            }
        }
    }

    const fn beyond_limits(self) -> &'static str {
        match self {
            Self::Key => "the limits of a key must not exceed those of the calling key",
            Self::Member => "the limits of a key must not exceed those that the member may grant",
        }
    }
}

/// Rounded down: a key of so many seconds is within the grant.
#[expect(clippy::disallowed_methods, reason = "a ceiling is rounded down, unlike a wait")]
const fn whole_seconds(lifetime: Duration) -> u64 {
    lifetime.as_secs()
}

/// The limits of a key on a plan: its own quotas replace those of the plan by name.
fn merged_with_plan(own: &Option<RateLimits>, plan: &RateLimits) -> RateLimits {
    own.as_ref().map_or_else(|| plan.clone(), |own| own.and(plan))
}

/// Whether `asked` is within `own`, and replaces only quotas of the plan that `own` replaces too.
fn replaces_within(asked: &RateLimits, own: &RateLimits) -> bool {
    let is_replaced = |name: &str| own.iter().any(|own| own.name() == name);
    asked.is_within(own) && asked.iter().all(|asked| is_replaced(asked.name()))
}
