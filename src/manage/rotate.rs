use std::time::{Duration, SystemTime};

use super::{Expiry, Issued, KeyIssuer, ManageError, change::Change, new_key::whole_micros, text};
use crate::{
    key::{ApiKey, digest},
    record::{KeyAction, KeyId, KeyRecord, KeyStatus},
};

/// A day for clients to switch to the new key.
const GRACE: Duration = Duration::from_secs(86_400);

/// The options of a rotation.
#[derive(Clone, Debug)]
#[must_use]
pub struct Rotation {
    grace: Duration,
    expiry: Option<Expiry>,
    reason: Option<String>,
    idempotency_key: Option<String>,
}

impl Rotation {
    /// The new key has the same lifetime as the old one, which keeps working for 24 hours.
    pub const fn new() -> Self {
        Self { grace: GRACE, expiry: None, reason: None, idempotency_key: None }
    }

    /// How long the old key keeps working, but never past its own expiry. Zero ends it at once, for
    /// keys that leaked. Default: 24 h, enough for a deployment and short enough not to be
    /// forgotten. Partners need 7 to 14 days, keys built into devices 30.
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// When the new key expires. Default: it has the lifetime of the old key, from issue to expiry,
    /// but does not outlive the calling key if a [caller](super::Actor::key) rotates it, nor the
    /// [grant](super::Grant) of a [member](super::Actor::member), nor the
    /// [longest lifetime](super::IssueRules::max_lifetime).
    pub fn expiry(self, expiry: Expiry) -> Self {
        Self { expiry: Some(expiry), ..self }
    }

    /// The reason for the audit.
    pub fn reason(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// An idempotency key, as for a [new key](super::NewKey::idempotency_key).
    pub fn idempotency_key(self, key: impl Into<String>) -> Self {
        Self { idempotency_key: Some(key.into()), ..self }
    }

    fn fingerprint(&self, id: KeyId) -> [u8; 32] {
        let asked = format!("{:?} {:?}", self.grace, self.expiry);
        digest(&[b"rotate", id.as_bytes(), asked.as_bytes()])
    }
}

impl Default for Rotation {
    fn default() -> Self {
        Self::new()
    }
}

/// The result of a rotation.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rotated {
    /// The new key, for its owner. This is the only copy.
    pub key: ApiKey,
    /// Its record.
    pub record: KeyRecord,
    /// The old key's record. It works until its `expires_at`.
    pub previous: KeyRecord,
}

impl KeyIssuer {
    /// Issues a key to replace the key `id`: for the same consumer, with the same name, scopes,
    /// limits, plan, metadata, networks, tags and origins, and sharing its rate-limit buckets. The old key keeps working for
    /// a [grace period](Rotation::grace), during which responses to it announce its end.
    ///
    /// A [caller](super::Actor::key) can rotate itself and the keys of its own rotation chain.
    /// With the [scope](super::Actor::other_keys_scope) for other keys, it can rotate keys that it
    /// could have issued, and so can a [member](super::Actor::member).
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::ManageErrorKind::NotFound) when the key does not exist,
    /// [`Conflict`](super::ManageErrorKind::Conflict) when it is revoked, has expired or was
    /// already rotated, [`TooManyChanges`](super::ManageErrorKind::TooManyChanges) and
    /// [`TooManyKeys`](super::ManageErrorKind::TooManyKeys) to a caller beyond its
    /// [bounds](Self::max_rotations_per_hour), or when the request is invalid or denied, or the
    /// random number generator or the store fails.
    pub async fn rotate(&self, id: KeyId, rotation: Rotation) -> Result<Rotated, ManageError> {
        self.detached(self.clone().rotate_now(id, rotation)).await
    }

    async fn rotate_now(self, id: KeyId, rotation: Rotation) -> Result<Rotated, ManageError> {
        text::check_some("reason", rotation.reason.as_deref())?;
        // Generated before the transaction, so that no key is locked while waiting for randomness.
        let Issued { key, record } = self.make("")?;
        let fingerprint = rotation.fingerprint(id);
        let claim = self.claim(rotation.idempotency_key.as_deref(), fingerprint, record.id)?;
        let created_by = self.actor.name.clone();
        let (record, previous) = self
            .change("rotate", vec![id], async move |change, locked| {
                let old = change.target(locked)?;
                change.check_takeover(&old)?;
                let new = KeyRecord { created_by: Some(created_by), ..record };
                let new = succeed(change, &old, new, rotation.expiry)?;
                change.check_grant(&new)?;
                change.check_policy(&new, rotation.reason.as_deref())?;
                change.claim(claim).await?;
                check_state(&old)?;
                let end = grace_end(&old, rotation.grace);
                let retired = KeyRecord {
                    rotated_at: Some(whole_micros(old.read_at)),
                    expires_at: Some(end),
                    ..old.clone()
                };
                change.insert(&new).await?;
                let previous = change.tx.update(&retired).await?;
                change.check_rotation(&new).await?;
                let reason = rotation.reason.as_deref();
                change.note(KeyAction::Rotated, Some(&old), &previous, reason);
                change.note(KeyAction::Issued, None, &new, reason);
                Ok((new, previous))
            })
            .await?;
        Ok(Rotated { key, record, previous })
    }
}

fn check_state(old: &KeyRecord) -> Result<(), ManageError> {
    match old.status(old.read_at) {
        KeyStatus::Revoked => Err(ManageError::conflict("the key is revoked: issue another one")),
        KeyStatus::Expired => Err(ManageError::conflict("the key has expired: issue another one")),
        _ if old.rotated_at.is_some() => {
            let detail = "the key was already rotated: rotate the key that replaced it";
            Err(ManageError::conflict(detail))
        }
        _ => Ok(()),
    }
}

/// Fills in what `new` inherits from `old`.
fn succeed(
    change: &Change,
    old: &KeyRecord,
    new: KeyRecord,
    expiry: Option<Expiry>,
) -> Result<KeyRecord, ManageError> {
    let now = whole_micros(old.read_at);
    let expires_at = match expiry {
        Some(expiry) => expiry.resolve_at(now)?,
        None => {
            let end = match old.expires_at.map(|end| (end, end.duration_since(old.created_at))) {
                Some((_, Ok(lifetime))) => Expiry::In(lifetime).resolve_at(now)?,
                // A creation time after the expiry, set in SQL, must not make a key without expiry.
                Some((end, Err(_))) => Some(end),
                None => None,
            };
            [end, change.latest_expiry(now)].into_iter().flatten().min()
        }
    };
    let is_inherited = expiry.is_none();
    let new = KeyRecord {
        consumer_id: old.consumer_id.clone(),
        name: old.name.clone(),
        scopes: old.scopes.clone(),
        rate_limits: old.rate_limits.clone(),
        plan: old.plan.clone(),
        plan_limits: old.plan_limits.clone(),
        metadata: old.metadata.clone(),
        networks: old.networks.clone(),
        tags: old.tags.clone(),
        kind: old.kind,
        origins: old.origins.clone(),
        is_active: old.is_active,
        created_at: now,
        not_before: old.not_before,
        expires_at,
        rotated_from: Some(old.id),
        root_id: old.root_id,
        ..new
    };
    let end = change.policy_end(&new, now).filter(|_| is_inherited);
    Ok(KeyRecord { expires_at: [new.expires_at, end].into_iter().flatten().min(), ..new })
}

fn grace_end(old: &KeyRecord, grace: Duration) -> SystemTime {
    let now = whole_micros(old.read_at);
    let end = now.checked_add(grace).map(whole_micros);
    [end, old.expires_at].into_iter().flatten().min().unwrap_or(now)
}
