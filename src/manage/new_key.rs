use std::time::{Duration, SystemTime};

use serde_json::json;

use super::{ManageError, places, text};
use crate::{
    key::digest,
    rate_limit::{PlanName, RateLimits},
    record::{KeyKind, KeyRecord, Metadata, Networks, Scope, Scopes, Tags, WebOrigins},
};

/// The properties of a new key.
#[derive(Clone, Debug)]
#[must_use]
pub struct NewKey {
    pub(super) consumer_id: String,
    name: Option<String>,
    scopes: Scopes,
    rate_limits: Option<RateLimits>,
    plan: Option<String>,
    metadata: Metadata,
    networks: Networks,
    tags: Tags,
    kind: KeyKind,
    origins: WebOrigins,
    created_by: Option<String>,
    not_before: Option<SystemTime>,
    expiry: Expiry,
    pub(super) reason: Option<String>,
    pub(super) idempotency_key: Option<String>,
}

/// When a key stops working. There is no default: a key that never expires is a deliberate choice,
/// for the few keys that cannot be renewed. 30 to 90 days suit a service, a day suits a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "these are all there can be")]
pub enum Expiry {
    /// It does not expire.
    Never,
    /// At this instant, from which the key no longer works.
    At(SystemTime),
    /// This long after the request.
    In(Duration),
}

/// The end of the year 9999. Databases and programs disagree on later times.
fn latest() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

impl Expiry {
    /// The instant of expiry if requested at `now`.
    pub(super) fn resolve_at(self, now: SystemTime) -> Result<Option<SystemTime>, ManageError> {
        let end = match self {
            Self::Never => return Ok(None),
            Self::At(at) => Some(at),
            Self::In(lifetime) => now.checked_add(lifetime),
        };
        match end {
            Some(end) if end < now => {
                Err(ManageError::invalid("expires_at", "must not be in the past"))
            }
            Some(end) if end <= latest() => Ok(Some(whole_micros(end))),
            _ => {
                let beyond = "must not be after the year 9999: for a key that does not expire, use \
                    \"never\"";
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

/// `at` rounded down to microseconds, as databases store it, so that a record equals what is read
/// back.
pub(super) fn whole_micros(at: SystemTime) -> SystemTime {
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => at - Duration::from_nanos(u64::from(after.subsec_nanos() % 1000)),
        // No key begins or ends before 1970.
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
    /// A key of `consumer_id` without scopes, active at once.
    pub fn new(consumer_id: impl Into<String>, expiry: Expiry) -> Self {
        Self {
            consumer_id: consumer_id.into(),
            name: None,
            scopes: Scopes::default(),
            rate_limits: None,
            plan: None,
            metadata: Metadata::default(),
            networks: Networks::default(),
            tags: Tags::default(),
            kind: KeyKind::Secret,
            origins: WebOrigins::default(),
            created_by: None,
            not_before: None,
            expiry,
            reason: None,
            idempotency_key: None,
        }
    }

    /// A name for its owner to recognize it by.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// The scopes of the key.
    pub fn scopes(self, scopes: impl Into<Scopes>) -> Self {
        Self { scopes: scopes.into(), ..self }
    }

    /// Its own quotas, in addition to those of its plan. They replace quotas of the plan with the
    /// same name. A key with neither has the authenticator's default.
    pub fn rate_limits(self, limits: impl Into<RateLimits>) -> Self {
        Self { rate_limits: Some(limits.into()), ..self }
    }

    /// The name of its plan, a set of limits for many keys. The plan need not be defined yet.
    pub fn plan(self, name: impl Into<String>) -> Self {
        Self { plan: Some(name.into()), ..self }
    }

    /// Data of the application. Unlike scopes, expiry and limits, a calling key can grant metadata
    /// that it does not hold.
    pub fn metadata(self, metadata: Metadata) -> Self {
        Self { metadata, ..self }
    }

    /// The networks that it works from. The layer has to know
    /// [where requests come from](crate::layer::ApiKeyLayer::client_address), or it refuses the key.
    /// Default: it works from anywhere.
    pub fn networks(self, networks: Networks) -> Self {
        Self { networks, ..self }
    }

    /// Words by which people and lists find the key.
    pub fn tags(self, tags: Tags) -> Self {
        Self { tags, ..self }
    }

    /// Makes the key [publishable](KeyKind::Publishable): for pages of `origins`, of which there must
    /// be at least one. This cannot be changed later, because the key will not have been a secret.
    /// Default: the key is a secret.
    pub fn publishable(self, origins: WebOrigins) -> Self {
        Self { kind: KeyKind::Publishable, origins, ..self }
    }

    /// Makes the key a [canary](KeyKind::Canary), which is always refused: it cannot have quotas, a plan,
    /// networks or origins. This cannot be changed later. Default: the key is a secret.
    ///
    /// Issue canary keys once all nodes run a release that knows them: an earlier one answers 503
    /// where it should answer 401.
    pub fn canary(self) -> Self {
        Self { kind: KeyKind::Canary, origins: WebOrigins::default(), ..self }
    }

    /// The user or service it is issued for. Default: the [`Actor`](super::Actor).
    pub fn created_by(self, who: impl Into<String>) -> Self {
        Self { created_by: Some(who.into()), ..self }
    }

    /// When it becomes active. Default: at once.
    pub fn not_before(self, at: SystemTime) -> Self {
        Self { not_before: Some(at), ..self }
    }

    /// The reason for the audit.
    pub fn reason(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// An idempotency key for the request. If the actor repeats the request with the same
    /// idempotency key, no second key is made: it [fails](super::ManageErrorKind::Repeated) with
    /// the id of the first. 1 to 255 visible ASCII characters, kept until it is
    /// [pruned](super::KeyIssuer::prune).
    pub fn idempotency_key(self, key: impl Into<String>) -> Self {
        Self { idempotency_key: Some(key.into()), ..self }
    }

    /// Checks the request and fills in `record`. Durations count from its `created_at`; `actor` is
    /// the default of `created_by`; `resolve` computes the instant of the expiry.
    pub(super) fn fill(
        &self,
        record: &mut KeyRecord,
        actor: &str,
        resolve: impl FnOnce(Expiry, SystemTime) -> Result<Option<SystemTime>, ManageError>,
    ) -> Result<(), ManageError> {
        text::check("consumer_id", &self.consumer_id)?;
        if self.consumer_id.is_empty() {
            return Err(ManageError::invalid("consumer_id", "must not be empty"));
        }
        text::check_some("name", self.name.as_deref())?;
        self.plan.as_deref().map(PlanName::new).transpose()?;
        let created_by = self.created_by.as_deref().unwrap_or(actor);
        text::check("created_by", created_by)?;
        text::check_scopes(&self.scopes)?;
        text::check_quotas(self.rate_limits.as_ref())?;
        text::check_some("reason", self.reason.as_deref())?;
        let expires_at = resolve(self.expiry, record.created_at)?;
        if let (Some(begin), Some(end)) = (self.not_before, expires_at)
            && begin >= end
        {
            return Err(ManageError::invalid("not_before", "must be before the expiry"));
        }
        if self.not_before.is_some_and(|begin| begin > latest()) {
            return Err(ManageError::invalid("not_before", "must not be after the year 9999"));
        }
        record.name.clone_from(&self.name);
        record.scopes = self.scopes.clone();
        record.rate_limits.clone_from(&self.rate_limits);
        record.plan.clone_from(&self.plan);
        record.metadata = self.metadata.clone();
        record.networks = self.networks.clone();
        record.tags = self.tags.clone();
        record.kind = self.kind;
        record.origins = self.origins.clone();
        places::check_kind(record)?;
        record.created_by = Some(created_by.to_owned());
        record.not_before = self.not_before.map(whole_micros);
        record.expires_at = expires_at;
        Ok(())
    }

    /// A digest of the request, by which an idempotency key detects that it changed.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        let scopes: Vec<_> = self.scopes.iter().map(Scope::as_str).collect();
        let mut asked = vec![json!([
            self.consumer_id,
            self.name,
            scopes,
            self.rate_limits,
            self.plan,
            self.metadata.as_json(),
            self.created_by,
            self.not_before.map(since_epoch),
            self.expiry.describe(),
        ])];
        // A node of an earlier release, which does not know these, computes the same digest without
        // them.
        if !self.networks.is_empty() || !self.tags.is_empty() || self.kind != KeyKind::Secret {
            asked.push(json!([self.networks, self.tags, self.kind.as_str(), self.origins]));
        }
        let asked: String = asked.iter().map(ToString::to_string).collect();
        digest(&[b"issue", asked.as_bytes()])
    }
}
