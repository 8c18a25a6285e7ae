//! [`IssuePolicy`] as JSON, so that a service and the command line can read the same file.

use std::{collections::BTreeMap, error::Error, fmt, str::FromStr, time::Duration};

use serde::Deserialize;

use super::{IssuePolicy, IssueRules, NeverExpires, duration::read_duration};
use crate::{
    key::KeyFormat,
    record::{Networks, Scope, Scopes},
};

/// JSON, as in a file that a service and the command line share. All members are optional, unknown
/// ones are an error, and durations are a number and `s`, `m`, `h`, `d` or `w`.
///
/// ```
/// use tower_api_key::manage::IssuePolicy;
///
/// let policy: IssuePolicy = r#"{
///     "rules": {
///         "max_lifetime": "90d",
///         "never_expires": "with_reason",
///         "max_live_keys": 20,
///         "allowed_scopes": ["orders:read", "orders:write"],
///         "allowed_networks": ["203.0.113.0/24"],
///         "requires_name": true,
///         "default_lifetime": "30d"
///     },
///     "prefixes": { "sk_test_": { "max_lifetime": "7d" } },
///     "plans": { "free": { "max_live_keys": 3 } }
/// }"#
/// .parse()?;
/// assert!("{\"rules\": {\"max_livetime\": \"90d\"}}".parse::<IssuePolicy>().is_err());
/// # Ok::<(), tower_api_key::manage::InvalidPolicy>(())
/// ```
impl FromStr for IssuePolicy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        let file: File =
            serde_json::from_str(text).map_err(|error| InvalidPolicy(error.to_string()))?;
        let mut policy = Self::new(file.rules.into());
        for (prefix, rules) in file.prefixes {
            let format = KeyFormat::new(&prefix)
                .map_err(|error| InvalidPolicy(format!("prefixes: {prefix:?}: {error}")))?;
            policy = policy.for_prefix(&format, rules.into());
        }
        for (plan, rules) in file.plans {
            policy = policy
                .for_plan(&plan, rules.into())
                .map_err(|error| InvalidPolicy(format!("plans: {plan:?}: {error}")))?;
        }
        Ok(policy)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rules: Rules,
    #[serde(default)]
    prefixes: BTreeMap<String, Rules>,
    #[serde(default)]
    plans: BTreeMap<String, Rules>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    max_lifetime: Option<Lifetime>,
    never_expires: Option<Never>,
    max_live_keys: Option<usize>,
    allowed_scopes: Option<Vec<Scope>>,
    allowed_networks: Option<SomeNetworks>,
    requires_name: Option<bool>,
    default_lifetime: Option<Lifetime>,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Lifetime(Duration);

impl TryFrom<String> for Lifetime {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let problem = "a lifetime must be a number and s, m, h, d or w, such as \"90d\"";
        read_duration(&text).map(Self).ok_or(problem)
    }
}

/// An empty list would allow every network, which is not what it looks like.
#[derive(Deserialize)]
#[serde(try_from = "Networks")]
struct SomeNetworks(Networks);

impl TryFrom<Networks> for SomeNetworks {
    type Error = &'static str;

    fn try_from(networks: Networks) -> Result<Self, &'static str> {
        let problem = "allowed_networks must not be empty: leave it out to allow all";
        if networks.is_empty() { Err(problem) } else { Ok(Self(networks)) }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Never {
    Allowed,
    WithReason,
    Refused,
}

impl From<Rules> for IssueRules {
    fn from(read: Rules) -> Self {
        let mut rules = Self::new();
        if let Some(Lifetime(longest)) = read.max_lifetime {
            rules = rules.max_lifetime(longest);
        }
        if let Some(never) = read.never_expires {
            rules = rules.never_expires(match never {
                Never::Allowed => NeverExpires::Allowed,
                Never::WithReason => NeverExpires::WithReason,
                Never::Refused => NeverExpires::Refused,
            });
        }
        if let Some(keys) = read.max_live_keys {
            rules = rules.max_live_keys(keys);
        }
        if let Some(scopes) = read.allowed_scopes {
            rules = rules.allowed_scopes(Scopes::from_iter(scopes));
        }
        if let Some(SomeNetworks(networks)) = read.allowed_networks {
            rules = rules.allowed_networks(networks);
        }
        if let Some(is_required) = read.requires_name {
            rules = rules.requires_name(is_required);
        }
        if let Some(Lifetime(lifetime)) = read.default_lifetime {
            rules = rules.default_lifetime(lifetime);
        }
        rules
    }
}

/// The text is not an [`IssuePolicy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPolicy(String);

impl fmt::Display for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not an issue policy: {}", self.0)
    }
}

impl Error for InvalidPolicy {}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<IssuePolicy>().unwrap_err().to_string()
    }

    #[test]
    fn a_policy_in_json_is_the_one_in_code() {
        const DAY: Duration = Duration::from_secs(86_400);
        let text = r#"{
            "rules": { "max_lifetime": "90d", "never_expires": "with_reason", "max_live_keys": 20,
                "allowed_scopes": ["a", "b"], "allowed_networks": ["10.0.0.0/8"], "requires_name": true, "default_lifetime": "30d" },
            "prefixes": { "sk_test_": { "max_lifetime": "7d", "never_expires": "allowed" } },
            "plans": { "free": { "max_live_keys": 3, "never_expires": "refused" } }
        }"#;
        let scopes = Scopes::parse(["a", "b"]).unwrap();
        let policy = IssuePolicy::new(
            IssueRules::new()
                .max_lifetime(90 * DAY)
                .never_expires(NeverExpires::WithReason)
                .max_live_keys(20)
                .allowed_scopes(scopes)
                .allowed_networks(Networks::parse(["10.0.0.0/8"]).unwrap())
                .requires_name(true)
                .default_lifetime(30 * DAY),
        )
        .for_prefix(
            &KeyFormat::new("sk_test_").unwrap(),
            IssueRules::new().max_lifetime(7 * DAY).never_expires(NeverExpires::Allowed),
        )
        .for_plan("free", IssueRules::new().max_live_keys(3).never_expires(NeverExpires::Refused))
        .unwrap();
        assert_eq!(text.parse(), Ok(policy));
        assert_eq!("{}".parse(), Ok(IssuePolicy::default()));
    }

    #[test]
    fn a_mistake_is_an_error_and_never_a_rule_less() {
        for (text, named) in [
            (r#"{"max_lifetime": "90d"}"#, "max_lifetime"),
            (r#"{"rules": {"max_livetime": "90d"}}"#, "max_livetime"),
            (r#"{"rules": {"max_lifetime": "90 days"}}"#, "such as \"90d\""),
            (r#"{"rules": {"max_lifetime": 90}}"#, "integer `90`"),
            (r#"{"rules": {"never_expires": "sometimes"}}"#, "with_reason"),
            (r#"{"rules": {"max_live_keys": -1}}"#, "-1"),
            (r#"{"rules": {"allowed_scopes": ["a b"]}}"#, "line 1"),
            (r#"{"rules": {"allowed_networks": []}}"#, "leave it out"),
            (r#"{"rules": {"allowed_networks": ["10.0.0.1/8"]}}"#, "10.0.0.0/8"),
            (r#"{"prefixes": {"sk_test": {}}}"#, "sk_test"),
            (r#"{"plans": {"free plan": {}}}"#, "free plan"),
            ("", "not an issue policy"),
        ] {
            assert!(error(text).contains(named), "{text}: {}", error(text));
        }
    }
}
