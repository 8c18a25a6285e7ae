//! The rules for new and changed keys.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    key::KeyFormat,
    rate_limit::{InvalidPlan, PlanName},
    record::{Networks, Scope, Scopes},
};

/// What keys may be issued: rules for all keys, for those with a prefix and for those on a plan.
///
/// A [`KeyIssuer`](super::KeyIssuer::policy) checks it in the transaction of each change, for every
/// actor: the application, a calling key over HTTP, and the command line. An operator can
/// [override](super::KeyIssuer::override_policy) it with a reason, which the audit keeps; calling
/// keys cannot.
///
/// ```
/// use std::time::Duration;
/// use tower_api_key::{
///     key::KeyFormat,
///     manage::{IssuePolicy, IssueRules, NeverExpires},
///     record::Scopes,
/// };
///
/// const DAY: Duration = Duration::from_secs(86_400);
///
/// # fn policy() -> Result<IssuePolicy, Box<dyn std::error::Error>> {
/// let policy = IssuePolicy::new(
///     IssueRules::new()
///         .max_lifetime(90 * DAY)
///         .never_expires(NeverExpires::WithReason)
///         .allowed_scopes(Scopes::parse(["orders:read", "orders:write"])?)
///         .requires_name(true),
/// )
/// .for_prefix(&KeyFormat::new("sk_test_")?, IssueRules::new().max_lifetime(7 * DAY))
/// .for_plan("free", IssueRules::new().max_live_keys(3))?;
/// # Ok(policy)
/// # }
/// # policy().unwrap();
/// ```
///
/// # Which rule applies
///
/// A rule for the prefix or the plan of a key replaces the same rule for all keys; where prefix and
/// plan both have it, the stricter one applies. Rules that are not set anywhere allow everything.
///
/// # When it is checked
///
/// 1. **Issuing and rotating**: the new key must meet every rule. If a rotation names no expiry, the
///    lifetime of the old key is shortened to [the longest](IssueRules::max_lifetime).
/// 2. **Importing**: the same, except for the number of keys, as imported keys exist already.
///    Lifetimes count from the import, and the prefix is that of the [hint](super::KeyImport::hint).
/// 3. **Updating**: what the change widens must meet the rules: added scopes or networks, a later
///    expiry, a removed name. A key that moves to another plan or is activated must meet all of them. Other
///    changes pass, so that a key from before a stricter policy can still be renamed or narrowed.
///
/// Keys that exist when a policy becomes stricter go on working.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct IssuePolicy {
    rules: IssueRules,
    by_prefix: BTreeMap<String, IssueRules>,
    by_plan: BTreeMap<String, IssueRules>,
}

impl IssuePolicy {
    /// These rules for all keys.
    pub const fn new(rules: IssueRules) -> Self {
        Self { rules, by_prefix: BTreeMap::new(), by_plan: BTreeMap::new() }
    }

    /// Rules for keys with the prefix of `format`.
    pub fn for_prefix(mut self, format: &KeyFormat, rules: IssueRules) -> Self {
        self.by_prefix.insert(format.prefix().to_owned(), rules);
        self
    }

    /// Rules for keys on the plan `name`.
    ///
    /// # Errors
    ///
    /// When no plan can have this name, or it has rules already.
    pub fn for_plan(mut self, name: &str, rules: IssueRules) -> Result<Self, InvalidPlan> {
        let name = PlanName::new(name).map_err(|_| InvalidPlan)?.as_str().to_owned();
        match self.by_plan.insert(name, rules) {
            None => Ok(self),
            Some(_) => Err(InvalidPlan),
        }
    }

    /// The rules that apply to keys with this prefix and plan, for a form that offers choices.
    pub fn rules_for(&self, prefix: &str, plan: Option<&str>) -> IssueRules {
        let prefix = self.by_prefix.get(prefix).cloned().unwrap_or_default();
        let plan = plan.and_then(|plan| self.by_plan.get(plan)).cloned().unwrap_or_default();
        prefix.and(&plan).over(&self.rules)
    }
}

impl From<IssueRules> for IssuePolicy {
    fn from(rules: IssueRules) -> Self {
        Self::new(rules)
    }
}

/// Rules of an [`IssuePolicy`]. Those that are not set allow everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct IssueRules {
    max_lifetime: Option<Duration>,
    never: Option<NeverExpires>,
    max_live_keys: Option<usize>,
    scopes: Option<Scopes>,
    /// A key must be within each of them.
    networks: Vec<Networks>,
    requires_name: Option<bool>,
    default_lifetime: Option<Duration>,
}

impl IssueRules {
    /// No rules.
    pub fn new() -> Self {
        Self::default()
    }

    /// The longest lifetime of a key, from its creation to its expiry. Keys that never expire are
    /// then refused, unless [`never_expires`](Self::never_expires) is set beside it.
    pub fn max_lifetime(self, lifetime: Duration) -> Self {
        Self { max_lifetime: Some(lifetime), ..self }
    }

    /// Whether a key may be issued that never expires. Default: it may, unless there is a [longest
    /// lifetime](Self::max_lifetime).
    pub fn never_expires(self, never: NeverExpires) -> Self {
        Self { never: Some(never), ..self }
    }

    /// How many keys that are neither revoked nor expired a consumer may have when it gets another
    /// one, counted over all of its keys. A rotated key counts until it ends, and rotations are
    /// refused only at twice as many, so that each key can be replaced while it still works.
    ///
    /// Unlike [`max_keys_per_consumer`](super::KeyIssuer::max_keys_per_consumer), it applies to
    /// operators too.
    pub fn max_live_keys(self, keys: usize) -> Self {
        Self { max_live_keys: Some(keys), ..self }
    }

    /// The scopes that a key may have, with all that they contain by the
    /// [catalogue](super::KeyIssuer::scopes) of the issuer, and no others.
    pub fn allowed_scopes(self, scopes: impl Into<Scopes>) -> Self {
        Self { scopes: Some(scopes.into()), ..self }
    }

    /// A key must be restricted to some of these networks. None of them are no rule.
    pub fn allowed_networks(self, networks: Networks) -> Self {
        let networks = if networks.is_empty() { Vec::new() } else { vec![networks] };
        Self { networks, ..self }
    }

    /// Whether a key needs a name that is not empty.
    pub fn requires_name(self, is_required: bool) -> Self {
        Self { requires_name: Some(is_required), ..self }
    }

    /// The lifetime that a form offers first. It is a suggestion: requests without an expiry are
    /// refused all the same.
    pub fn default_lifetime(self, lifetime: Duration) -> Self {
        Self { default_lifetime: Some(lifetime), ..self }
    }

    /// The [longest lifetime](Self::max_lifetime); `None` for no limit.
    #[must_use]
    pub const fn longest(&self) -> Option<Duration> {
        self.max_lifetime
    }

    /// Whether a key may be issued that [never expires](Self::never_expires).
    #[must_use]
    pub fn never(&self) -> NeverExpires {
        self.own_never().unwrap_or(NeverExpires::Allowed)
    }

    /// The [number of keys](Self::max_live_keys) of a consumer; `None` for no limit.
    #[must_use]
    pub const fn live_keys(&self) -> Option<usize> {
        self.max_live_keys
    }

    /// The [allowed scopes](Self::allowed_scopes); `None` for all.
    #[must_use]
    pub const fn scopes(&self) -> Option<&Scopes> {
        self.scopes.as_ref()
    }

    /// The [networks](Self::allowed_networks): a key must be within each of these. Empty if it may
    /// work from anywhere.
    #[must_use]
    pub fn networks(&self) -> &[Networks] {
        &self.networks
    }

    /// Whether a key [needs a name](Self::requires_name).
    #[must_use]
    pub fn is_name_required(&self) -> bool {
        self.requires_name.unwrap_or_default()
    }

    /// The [lifetime to offer first](Self::default_lifetime), at most the longest one.
    #[must_use]
    pub fn suggested_lifetime(&self) -> Option<Duration> {
        let longest = self.max_lifetime.unwrap_or(Duration::MAX);
        self.default_lifetime.map(|lifetime| lifetime.min(longest))
    }

    fn own_never(&self) -> Option<NeverExpires> {
        self.never.or_else(|| self.max_lifetime.map(|_| NeverExpires::Refused))
    }

    /// The rules of both, and the stricter one of a rule that both have.
    fn and(&self, other: &Self) -> Self {
        let both = |own: &Scopes, other: &Scopes| {
            let shared = own.iter().filter(|scope| other.contains(scope.as_str()));
            shared.cloned().collect::<Vec<Scope>>().into_iter().collect()
        };
        let scopes = match (&self.scopes, &other.scopes) {
            (Some(own), Some(other)) => Some(both(own, other)),
            (own, other) => own.as_ref().or(other.as_ref()).cloned(),
        };
        Self {
            max_lifetime: least(self.max_lifetime, other.max_lifetime),
            never: self.own_never().max(other.own_never()),
            max_live_keys: least(self.max_live_keys, other.max_live_keys),
            scopes,
            networks: self.networks.iter().chain(&other.networks).cloned().collect(),
            requires_name: self.requires_name.max(other.requires_name),
            default_lifetime: least(self.default_lifetime, other.default_lifetime),
        }
    }

    /// These rules, and those of `base` that are not set here.
    fn over(self, base: &Self) -> Self {
        Self {
            max_lifetime: self.max_lifetime.or(base.max_lifetime),
            never: self.own_never().or_else(|| base.own_never()),
            max_live_keys: self.max_live_keys.or(base.max_live_keys),
            scopes: self.scopes.or_else(|| base.scopes.clone()),
            networks: if self.networks.is_empty() { base.networks.clone() } else { self.networks },
            requires_name: self.requires_name.or(base.requires_name),
            default_lifetime: self.default_lifetime.or(base.default_lifetime),
        }
    }
}

fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}

/// Whether a key may be issued that never expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_enums, reason = "these are all there can be")]
pub enum NeverExpires {
    /// It may.
    Allowed,
    /// It may, with a reason, which the audit keeps.
    WithReason,
    /// It may not.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn scopes<const N: usize>(scopes: [&str; N]) -> Scopes {
        Scopes::parse(scopes).unwrap()
    }

    #[test]
    fn a_rule_of_prefix_or_plan_replaces_that_of_all_and_the_stricter_of_both_applies() {
        let test = KeyFormat::new("sk_test_").unwrap();
        let policy = IssuePolicy::new(
            IssueRules::new()
                .max_lifetime(90 * DAY)
                .max_live_keys(10)
                .allowed_scopes(scopes(["a", "b", "c"]))
                .default_lifetime(30 * DAY),
        )
        .for_prefix(
            &test,
            IssueRules::new().max_lifetime(7 * DAY).allowed_scopes(scopes(["a", "b", "test"])),
        )
        .for_plan(
            "device",
            IssueRules::new()
                .max_lifetime(3650 * DAY)
                .allowed_scopes(scopes(["b", "c"]))
                .requires_name(true),
        )
        .unwrap();

        let all = policy.rules_for("sk_live_", Some("other"));
        assert_eq!((all.longest(), all.live_keys()), (Some(90 * DAY), Some(10)));
        assert_eq!(all.suggested_lifetime(), Some(30 * DAY));
        assert!(!all.is_name_required());

        let of_prefix = policy.rules_for("sk_test_", None);
        assert_eq!((of_prefix.longest(), of_prefix.live_keys()), (Some(7 * DAY), Some(10)));
        assert_eq!(of_prefix.scopes(), Some(&scopes(["a", "b", "test"])));
        assert_eq!(of_prefix.suggested_lifetime(), Some(7 * DAY));

        let of_plan = policy.rules_for("sk_live_", Some("device"));
        assert_eq!(of_plan.longest(), Some(3650 * DAY));
        assert!(of_plan.is_name_required());

        let of_both = policy.rules_for("sk_test_", Some("device"));
        assert_eq!(of_both.longest(), Some(7 * DAY));
        assert_eq!(of_both.scopes(), Some(&scopes(["b"])));
        assert!(of_both.is_name_required());
    }

    #[test]
    fn a_key_of_prefix_and_plan_is_within_the_networks_of_both() {
        let networks = |text| Networks::parse([text]).unwrap();
        let rules = |text| IssueRules::new().allowed_networks(networks(text));
        let test = KeyFormat::new("sk_test_").unwrap();
        let policy = IssuePolicy::new(rules("10.0.0.0/8"))
            .for_prefix(&test, rules("192.0.2.0/24"))
            .for_plan("device", rules("192.0.2.128/25"))
            .unwrap();
        assert_eq!(policy.rules_for("sk_live_", None).networks(), [networks("10.0.0.0/8")]);
        assert_eq!(policy.rules_for("sk_test_", None).networks(), [networks("192.0.2.0/24")]);
        assert_eq!(
            policy.rules_for("sk_test_", Some("device")).networks(),
            [networks("192.0.2.0/24"), networks("192.0.2.128/25")]
        );
        assert!(IssueRules::new().allowed_networks(Networks::default()).networks().is_empty());
    }

    #[test]
    fn a_longest_lifetime_refuses_keys_that_never_expire_unless_told_otherwise_beside_it() {
        let never = |rules: &IssueRules| rules.clone().over(&IssueRules::new()).never();
        let (longest, reasoned) = (
            IssueRules::new().max_lifetime(DAY),
            IssueRules::new().never_expires(NeverExpires::WithReason),
        );
        assert_eq!(never(&IssueRules::new()), NeverExpires::Allowed);
        assert_eq!(never(&longest), NeverExpires::Refused);
        let both = longest.clone().never_expires(NeverExpires::WithReason);
        assert_eq!(never(&both), NeverExpires::WithReason);
        assert_eq!(longest.clone().over(&reasoned).never(), NeverExpires::Refused);
        assert_eq!(reasoned.clone().over(&longest).never(), NeverExpires::WithReason);
        assert_eq!(longest.and(&reasoned).never(), NeverExpires::Refused);
    }

    #[test]
    fn a_plan_that_cannot_be_is_refused() {
        let policy = IssuePolicy::default();
        assert!(policy.clone().for_plan("free plan", IssueRules::new()).is_err());
        let policy = policy.for_plan("free", IssueRules::new()).unwrap();
        assert!(policy.for_plan("free", IssueRules::new()).is_err());
    }
}
