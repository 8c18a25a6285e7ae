use std::time::Duration;

use crate::record::{KeyRecord, Scope, Scopes};

/// What becomes of a key that was found where others can read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeakResponse {
    /// The key is revoked at once. The default.
    Revoke,
    /// The key expires after this long, unless it expires earlier anyway. Its owner can
    /// [rotate](super::KeyIssuer::rotate) it until then, and so can a thief. No replacement is issued,
    /// because no client would receive it.
    ExpireAfter(Duration),
    /// The key keeps working. The leak is in its audit.
    Record,
}

impl LeakResponse {
    /// The less severe, the greater.
    const fn leniency(self) -> Duration {
        match self {
            Self::Revoke => Duration::ZERO,
            // One that ends at once is still less final than a revocation.
            Self::ExpireAfter(grace) => grace.saturating_add(Duration::from_nanos(1)),
            Self::Record => Duration::MAX,
        }
    }

    /// The more severe of the two.
    fn or_worse(self, other: Self) -> Self {
        if other.leniency() < self.leniency() { other } else { self }
    }
}

/// What becomes of leaked keys, by their prefixes and scopes.
///
/// If several rules match a key, the most severe one applies: a revocation before an expiry, and an
/// early expiry before a late one. A key that no rule matches is revoked, unless another
/// [default](Self::otherwise) is set: it can be replaced, and what an attacker does with it cannot be
/// undone.
///
/// ```
/// use std::time::Duration;
/// use tower_api_key::{
///     manage::{LeakPolicy, LeakResponse},
///     record::Scope,
/// };
///
/// const HOUR: Duration = Duration::from_secs(3600);
///
/// let policy = LeakPolicy::new()
///     .prefix("sk_test_", LeakResponse::Record)
///     .prefix("sk_live_", LeakResponse::ExpireAfter(HOUR))
///     .scope(Scope::new("payments:write")?, LeakResponse::Revoke);
/// # let _ = policy;
/// # Ok::<(), tower_api_key::record::InvalidScope>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct LeakPolicy {
    otherwise: LeakResponse,
    rules: Vec<(Matches, LeakResponse)>,
}

#[derive(Clone, Debug)]
enum Matches {
    Prefix(String),
    Scope(Scope),
}

impl LeakPolicy {
    /// Revokes every leaked key.
    pub const fn new() -> Self {
        Self { otherwise: LeakResponse::Revoke, rules: Vec::new() }
    }

    /// What becomes of keys that no rule matches. Default: [`Revoke`](LeakResponse::Revoke).
    pub fn otherwise(self, response: LeakResponse) -> Self {
        Self { otherwise: response, ..self }
    }

    /// What becomes of keys with exactly this prefix.
    pub fn prefix(self, key_prefix: impl Into<String>, response: LeakResponse) -> Self {
        self.with(Matches::Prefix(key_prefix.into()), response)
    }

    /// What becomes of keys that hold this scope, or one that
    /// [contains](crate::auth::Builder::scopes) it.
    pub fn scope(self, scope: Scope, response: LeakResponse) -> Self {
        self.with(Matches::Scope(scope), response)
    }

    fn with(mut self, matches: Matches, response: LeakResponse) -> Self {
        self.rules.push((matches, response));
        self
    }

    /// What becomes of `key`, which holds `scopes`.
    pub(super) fn response(&self, key: &KeyRecord, scopes: &Scopes) -> LeakResponse {
        let matching = self.rules.iter().filter(|(matches, _)| match matches {
            Matches::Prefix(prefix) => key.key_prefix == *prefix,
            Matches::Scope(scope) => scopes.contains(scope.as_str()),
        });
        let responses = matching.map(|(_, response)| *response);
        responses.reduce(LeakResponse::or_worse).unwrap_or(self.otherwise)
    }
}

impl Default for LeakPolicy {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{key::KeyHash, record::KeyId};

    const HOUR: Duration = Duration::from_secs(3600);

    fn key(prefix: &str, scopes: &[&str]) -> KeyRecord {
        let (id, hash) = (KeyId::from_bytes([1; 16]), KeyHash::from_bytes([2; 32]));
        let mut record = KeyRecord::new(id, hash, "acme", SystemTime::UNIX_EPOCH);
        record.key_prefix = prefix.to_owned();
        record.scopes = Scopes::parse(scopes.iter().copied()).unwrap();
        record
    }

    #[test]
    fn the_most_severe_rule_that_matches_applies() {
        let policy = LeakPolicy::new()
            .otherwise(LeakResponse::ExpireAfter(2 * HOUR))
            .prefix("sk_test_", LeakResponse::Record)
            .prefix("sk_live_", LeakResponse::ExpireAfter(HOUR))
            .scope(Scope::new("orders:read").unwrap(), LeakResponse::ExpireAfter(HOUR / 2))
            .scope(Scope::new("payments:write").unwrap(), LeakResponse::Revoke);
        for (prefix, scopes, response) in [
            ("sk_test_", &[][..], LeakResponse::Record),
            ("sk_test_", &["orders:read"], LeakResponse::ExpireAfter(HOUR / 2)),
            ("sk_live_", &[], LeakResponse::ExpireAfter(HOUR)),
            ("sk_live_", &["orders:read"], LeakResponse::ExpireAfter(HOUR / 2)),
            ("sk_live_", &["orders:read", "payments:write"], LeakResponse::Revoke),
            ("sk_test", &[], LeakResponse::ExpireAfter(2 * HOUR)),
        ] {
            let key = key(prefix, scopes);
            assert_eq!(policy.response(&key, &key.scopes), response, "{prefix} {scopes:?}");
        }
        let key = key("sk_live_", &[]);
        assert_eq!(LeakPolicy::new().response(&key, &key.scopes), LeakResponse::Revoke);
    }

    #[test]
    fn an_expiry_at_once_is_less_severe_than_a_revocation_and_a_late_one_more_than_none() {
        let at_once = LeakResponse::ExpireAfter(Duration::ZERO);
        let late = LeakResponse::ExpireAfter(Duration::from_secs(u64::MAX / 2));
        assert_eq!(at_once.or_worse(LeakResponse::Revoke), LeakResponse::Revoke);
        assert_eq!(LeakResponse::Revoke.or_worse(at_once), LeakResponse::Revoke);
        assert_eq!(LeakResponse::Record.or_worse(late), late);
        assert_eq!(late.or_worse(LeakResponse::Record), late);
    }
}
