use std::time::{Duration, SystemTime};

use serde_json::json;

use super::{ManageError, text};
use crate::{
    key::digest,
    rate_limit::RateLimits,
    record::{KeyRecord, Metadata, Scope, Scopes},
};

/// What a new key shall be.
#[derive(Clone, Debug)]
#[must_use]
pub struct NewKey {
    pub(super) consumer_id: String,
    name: Option<String>,
    scopes: Scopes,
    rate_limits: Option<RateLimits>,
    plan: Option<String>,
    metadata: Metadata,
    created_by: Option<String>,
    not_before: Option<SystemTime>,
    expiry: Expiry,
    pub(super) reason: Option<String>,
    pub(super) idempotency_key: Option<String>,
}

/// When a key stops working. There is no default: a key that never expires is a decision, and one
/// for the few that nobody can renew. 30 to 90 days suit a service, a day a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "these are all there can be")]
pub enum Expiry {
    /// Not by itself.
    Never,
    /// At this instant it no longer works.
    At(SystemTime),
    /// So long after it was asked for.
    In(Duration),
}

/// The end of the year 9999, beyond which databases and programs disagree on time.
fn latest() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

impl Expiry {
    /// The instant it means at `now`.
    pub(super) fn reckon(self, now: SystemTime) -> Result<Option<SystemTime>, ManageError> {
        let end = match self {
            Self::Never => return Ok(None),
            Self::At(at) => Some(at),
            Self::In(lifetime) => now.checked_add(lifetime),
        };
        match end {
            Some(end) if end < now => {
                Err(ManageError::invalid("expires_at", "that is in the past"))
            }
            Some(end) if end <= latest() => Ok(Some(whole_micros(end))),
            _ => {
                let beyond = "that is after the year 9999: say that it never expires if it never \
                    shall";
                Err(ManageError::invalid("expires_at", beyond))
            }
        }
    }

    fn describe(self) -> serde_json::Value {
        match self {
            Self::Never => json!("never"),
            Self::At(at) => json!({ "at": since_epoch(at) }),
            Self::In(lifetime) => json!({ "in": lifetime.as_nanos().to_string() }),
        }
    }
}

/// `at` as databases keep it, so that a record is what is read again: rounded down.
pub(super) fn whole_micros(at: SystemTime) -> SystemTime {
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => at - Duration::from_nanos(u64::from(after.subsec_nanos() % 1000)),
        // Nothing begins or ends before 1970.
        Err(_) => at,
    }
}

fn since_epoch(at: SystemTime) -> String {
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => after.as_nanos().to_string(),
        Err(before) => format!("-{}", before.duration().as_nanos()),
    }
}

impl NewKey {
    /// A key of `consumer_id`, without scopes, that works at once.
    pub fn new(consumer_id: impl Into<String>, expiry: Expiry) -> Self {
        Self {
            consumer_id: consumer_id.into(),
            name: None,
            scopes: Scopes::default(),
            rate_limits: None,
            plan: None,
            metadata: Metadata::default(),
            created_by: None,
            not_before: None,
            expiry,
            reason: None,
            idempotency_key: None,
        }
    }

    /// What its owner calls it.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// What it may do.
    pub fn scopes(self, scopes: Scopes) -> Self {
        Self { scopes, ..self }
    }

    /// How often it may be used, beside what its plan says: of two quotas with one name, this one
    /// counts. Without a plan either, the authenticator's default applies.
    pub fn rate_limits(self, limits: impl Into<RateLimits>) -> Self {
        Self { rate_limits: Some(limits.into()), ..self }
    }

    /// The plan it is on, by name: limits that many keys share. It need not be defined yet.
    pub fn plan(self, name: impl Into<String>) -> Self {
        Self { plan: Some(name.into()), ..self }
    }

    /// What the application wants to know of it. Unlike scopes, expiry and limits it is nothing
    /// that a calling key has to hold to grant it.
    pub fn metadata(self, metadata: Metadata) -> Self {
        Self { metadata, ..self }
    }

    /// On whose behalf it is issued. Default: the [`Actor`](super::Actor).
    pub fn created_by(self, who: impl Into<String>) -> Self {
        Self { created_by: Some(who.into()), ..self }
    }

    /// When it begins to work.
    pub fn not_before(self, at: SystemTime) -> Self {
        Self { not_before: Some(at), ..self }
    }

    /// Why it is issued, for the audit.
    pub fn reason(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// What the actor calls this request: sent again under the same name it makes no second key,
    /// but [fails](super::ManageErrorKind::Repeated) and names the first. 1 to 255 visible ASCII
    /// characters, remembered until they are [pruned](super::KeyIssuer::prune).
    pub fn idempotency_key(self, key: impl Into<String>) -> Self {
        Self { idempotency_key: Some(key.into()), ..self }
    }

    /// Fills in `record`, a key that is issued by `actor` at its `created_at`.
    pub(super) fn fill(&self, record: &mut KeyRecord, actor: &str) -> Result<(), ManageError> {
        text::check("consumer_id", &self.consumer_id)?;
        if self.consumer_id.is_empty() {
            return Err(ManageError::invalid("consumer_id", "a key stands for somebody"));
        }
        text::check_some("name", self.name.as_deref())?;
        self.plan.as_deref().map_or(Ok(()), text::check_plan)?;
        let created_by = self.created_by.as_deref().unwrap_or(actor);
        text::check("created_by", created_by)?;
        text::check_scopes(&self.scopes)?;
        text::check_quotas(self.rate_limits.as_ref())?;
        text::check_some("reason", self.reason.as_deref())?;
        let expires_at = self.expiry.reckon(record.created_at)?;
        if let (Some(begin), Some(end)) = (self.not_before, expires_at)
            && begin >= end
        {
            return Err(ManageError::invalid("not_before", "it would expire before it begins"));
        }
        if self.not_before.is_some_and(|begin| begin > latest()) {
            return Err(ManageError::invalid("not_before", "that is after the year 9999"));
        }
        record.name.clone_from(&self.name);
        record.scopes = self.scopes.clone();
        record.rate_limits.clone_from(&self.rate_limits);
        record.plan.clone_from(&self.plan);
        record.metadata = self.metadata.clone();
        record.created_by = Some(created_by.to_owned());
        record.not_before = self.not_before.map(whole_micros);
        record.expires_at = expires_at;
        Ok(())
    }

    /// A digest of what is asked for.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        let scopes: Vec<_> = self.scopes.iter().map(Scope::as_str).collect();
        let asked = json!([
            self.consumer_id,
            self.name,
            scopes,
            self.rate_limits,
            self.plan,
            self.metadata.as_json(),
            self.created_by,
            self.not_before.map(since_epoch),
            self.expiry.describe(),
        ]);
        digest(&[b"issue", asked.to_string().as_bytes()])
    }
}
