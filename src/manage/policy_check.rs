//! Checks changes against the [`IssuePolicy`](super::IssuePolicy).

use std::time::{Duration, SystemTime};

use super::{
    IssueRules, KeyIssuer, ManageError, NeverExpires, change::Change, new_key::whole_micros, text,
};
use crate::record::{KeyRecord, Scope, rfc3339};

impl Change {
    /// Checks a new key. It was requested for `reason`.
    pub(super) fn check_policy(
        &mut self,
        new: &KeyRecord,
        reason: Option<&str>,
    ) -> Result<(), ManageError> {
        self.check_policy_since(new, new.created_at, reason)
    }

    /// Checks a new key whose lifetime counts from `begin`.
    pub(super) fn check_policy_since(
        &mut self,
        new: &KeyRecord,
        begin: SystemTime,
        reason: Option<&str>,
    ) -> Result<(), ManageError> {
        let rules = self.rules(new);
        let issuer = &self.issuer;
        let check = Check { issuer, rules: &rules, before: None, after: new, begin, reason };
        let breaches = check.breaches();
        breaches.into_iter().try_for_each(|breach| self.exceeds(new, breach))
    }

    /// Checks what the change from `before` to `after` widens.
    pub(super) fn check_policy_change(
        &mut self,
        before: &KeyRecord,
        after: &KeyRecord,
        reason: Option<&str>,
    ) -> Result<(), ManageError> {
        let rules = self.rules(after);
        let before = Some(before).filter(|before| !grants_all(before, after));
        let (issuer, begin) = (&self.issuer, begin(after));
        let breaches = Check { issuer, rules: &rules, before, after, begin, reason }.breaches();
        breaches.into_iter().try_for_each(|breach| self.exceeds(after, breach))
    }

    /// The end of the lifetime of `new`, unless its rotated predecessor, which never expires, may
    /// be followed by a key that does not either.
    pub(super) fn policy_end(&self, new: &KeyRecord, now: SystemTime) -> Option<SystemTime> {
        let rules = self.rules(new);
        let may_last = new.expires_at.is_none() && rules.never() != NeverExpires::Refused;
        let longest = rules.longest().filter(|_| !may_last)?;
        now.checked_add(longest).map(whole_micros)
    }

    /// How many live keys the consumer of `key` may have.
    pub(super) fn policy_live_keys(&self, key: &KeyRecord) -> Option<usize> {
        self.rules(key).live_keys()
    }

    fn rules(&self, key: &KeyRecord) -> IssueRules {
        self.policy().rules_for(&key.key_prefix, key.plan.as_deref())
    }

    /// Refuses what exceeds the policy, or notes it for the audit if an operator overrides it.
    pub(super) fn exceeds(
        &mut self,
        key: &KeyRecord,
        breach: ManageError,
    ) -> Result<(), ManageError> {
        let Some(reason) = self.policy_override() else { return Err(breach) };
        if reason.is_empty() {
            return Err(ManageError::invalid("policy_override", "must not be empty"));
        }
        text::check("policy_override", reason)?;
        self.exceeded.push((key.id, breach.to_string()));
        Ok(())
    }
}

/// Whether all that `after` holds counts as granted: another plan has other rules, and an inactive
/// key holds nothing.
pub(super) fn grants_all(before: &KeyRecord, after: &KeyRecord) -> bool {
    before.plan != after.plan || (!before.is_active && after.is_active)
}

/// When the lifetime of a stored key began. An imported key may have been created much earlier, but
/// its id is made by the import.
fn begin(key: &KeyRecord) -> SystemTime {
    let made = key.id.made_at().filter(|made| *made <= key.read_at);
    made.map_or(key.created_at, |made| made.max(key.created_at))
}

struct Check<'a> {
    issuer: &'a KeyIssuer,
    rules: &'a IssueRules,
    /// `None` if everything that `after` holds is granted.
    before: Option<&'a KeyRecord>,
    after: &'a KeyRecord,
    begin: SystemTime,
    reason: Option<&'a str>,
}

impl Check<'_> {
    fn breaches(&self) -> Vec<ManageError> {
        [self.expiry(), self.scopes(), self.networks(), self.name()].into_iter().flatten().collect()
    }

    fn expiry(&self) -> Option<ManageError> {
        let lasts_longer = |before: &KeyRecord| match (before.expires_at, self.after.expires_at) {
            (Some(before), Some(after)) => after > before,
            (before, after) => before.is_some() && after.is_none(),
        };
        if !self.before.is_none_or(lasts_longer) {
            return None;
        }
        let longest = self.rules.longest();
        let Some(end) = self.after.expires_at else { return self.never(longest) };
        let longest = longest?;
        let latest = self.begin.checked_add(longest)?;
        (end > latest).then(|| {
            let (longest, latest) = (words(longest), rfc3339(latest));
            let detail = format!(
                "the issue policy allows a lifetime of at most {longest}: expire by {latest}, and \
                rotate the key before that"
            );
            ManageError::exceeds_policy("expires_at", detail)
        })
    }

    fn never(&self, longest: Option<Duration>) -> Option<ManageError> {
        match self.rules.never() {
            NeverExpires::Allowed => None,
            NeverExpires::WithReason if self.reason.is_some_and(|reason| !reason.is_empty()) => {
                None
            }
            NeverExpires::WithReason => {
                let detail = "the issue policy requires a reason for a key that never expires";
                Some(ManageError::exceeds_policy("reason", detail))
            }
            NeverExpires::Refused => {
                let detail = match longest {
                    Some(longest) => format!(
                        "the issue policy requires an expiry, with a lifetime of at most {}",
                        words(longest)
                    ),
                    None => "the issue policy requires an expiry".to_owned(),
                };
                Some(ManageError::exceeds_policy("expires_at", detail))
            }
        }
    }

    fn scopes(&self) -> Option<ManageError> {
        let allowed = self.rules.scopes()?;
        let had = self.before.map(|before| self.issuer.effective(&before.scopes));
        let had = had.unwrap_or_default();
        let may_have = self.issuer.effective(allowed);
        let is_refused =
            |scope: &&Scope| !may_have.contains(scope.as_str()) && !had.contains(scope.as_str());
        let refused = self.after.scopes.iter().find(is_refused)?;
        let named: Vec<_> = allowed.iter().take(MAX_NAMED).map(Scope::as_str).collect();
        let more = if allowed.iter().len() > MAX_NAMED { ", …" } else { "" };
        let named = if named.is_empty() { "none".to_owned() } else { named.join(", ") };
        let detail = format!("the issue policy does not allow `{refused}`, only: {named}{more}");
        Some(ManageError::exceeds_policy("scopes", detail))
    }

    fn networks(&self) -> Option<ManageError> {
        let after = &self.after.networks;
        if self.before.is_some_and(|before| after.is_within(&before.networks)) {
            return None;
        }
        let exceeded = self.rules.networks().iter().find(|allowed| !after.is_within(allowed))?;
        let named: Vec<_> = exceeded.iter().take(MAX_NAMED).map(ToString::to_string).collect();
        let more = if exceeded.iter().len() > MAX_NAMED { ", …" } else { "" };
        let detail =
            format!("the issue policy requires networks within: {}{more}", named.join(", "));
        Some(ManageError::exceeds_policy("networks", detail))
    }

    fn name(&self) -> Option<ManageError> {
        let has_name = |key: &KeyRecord| key.name.as_ref().is_some_and(|name| !name.is_empty());
        let is_missing = self.rules.is_name_required() && !has_name(self.after);
        (is_missing && self.before.is_none_or(has_name))
            .then(|| ManageError::exceeds_policy("name", "the issue policy requires a name"))
    }
}

/// How many scopes or networks of a policy an error lists.
const MAX_NAMED: usize = 16;

/// A duration in the words of a request, such as `90d`.
#[expect(clippy::disallowed_methods, reason = "there is nothing to round")]
fn words(duration: Duration) -> String {
    if duration.subsec_nanos() != 0 {
        return format!("{duration:?}");
    }
    let seconds = duration.as_secs();
    let unit = [(86_400, 'd'), (3600, 'h'), (60, 'm')].into_iter();
    let (unit, letter) =
        unit.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit)).unwrap_or((1, 's'));
    format!("{}{letter}", seconds / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_largest_unit_that_fits() {
        assert_eq!(words(Duration::from_millis(1500)), "1.5s");
        for (seconds, text) in
            [(90 * 86_400, "90d"), (36 * 3600, "36h"), (90 * 60, "90m"), (61, "61s")]
        {
            assert_eq!(words(Duration::from_secs(seconds)), text);
        }
    }
}
