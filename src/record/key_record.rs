use std::{error::Error, fmt, str::FromStr, time::SystemTime};

use uuid::Uuid;

use super::{
    KeyKind, KeyStatus, Metadata, Networks, Scopes, Tags, WebOrigins, key_status::Validity,
};
use crate::{
    key::{EntropySource, KeyHash, RngError},
    rate_limit::RateLimits,
};

/// The public id of a key: a version 7 UUID.
///
/// Safe to log and show; it grants no access. Ids sort roughly by creation time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Uuid);

impl KeyId {
    /// Generates an id with the timestamp `now`.
    ///
    /// # Errors
    ///
    /// When the source of randomness fails.
    pub fn generate(
        now: SystemTime,
        entropy: &(impl EntropySource + ?Sized),
    ) -> Result<Self, RngError> {
        let mut random = [0; 10];
        entropy.fill(&mut random)?;
        let millis = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        Ok(Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()))
    }

    /// The lowest possible id with the timestamp `at`.
    pub(crate) fn first_of(at: SystemTime) -> Self {
        let millis = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        Self(Uuid::from_u128(u128::from(millis) << 80))
    }

    /// When it was generated, to the millisecond; `None` for an id that is not of version 7.
    pub(crate) fn made_at(&self) -> Option<SystemTime> {
        let number = self.as_u128();
        if (number >> 76) & 0xf != 7 {
            return None;
        }
        let millis = u64::try_from(number >> 80).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(millis))
    }

    /// An id as read by a store.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id as a number, for example for a [`Subject`](crate::rate_limit::port::Subject).
    #[must_use]
    pub const fn as_u128(&self) -> u128 {
        self.0.as_u128()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({})", self.0)
    }
}

impl FromStr for KeyId {
    type Err = InvalidKeyId;

    fn from_str(id: &str) -> Result<Self, InvalidKeyId> {
        Uuid::try_parse(id).map(Self).map_err(|_| InvalidKeyId)
    }
}

/// The text is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidKeyId;

impl fmt::Display for InvalidKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key id must be a UUID")
    }
}

impl Error for InvalidKeyId {}

/// The stored record of a key, in any state.
///
/// Create it with [`new`](Self::new), then set individual fields.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyRecord {
    /// The public id of the key.
    pub id: KeyId,
    /// SHA-256 of the key.
    pub key_hash: KeyHash,
    /// The prefix of the key, for display.
    pub key_prefix: String,
    /// The last four characters of the key, for display.
    pub key_last4: String,
    /// The consumer the key was issued to.
    pub consumer_id: String,
    /// The owner's name for the key.
    pub name: Option<String>,
    /// The key's scopes.
    pub scopes: Scopes,
    /// The key's own rate limits, in addition to those of its plan. With `None` and no plan, the
    /// default of the [`Authenticator`](crate::auth::Authenticator) applies;
    /// [`RateLimits::unlimited`] means no limit.
    pub rate_limits: Option<RateLimits>,
    /// The name of the key's plan: limits shared by many keys.
    pub plan: Option<String>,
    /// The limits of that plan, as of when the record was read. `None` if the store does not define
    /// the plan, or if the record was not read from a store.
    pub plan_limits: Option<RateLimits>,
    /// The application's metadata.
    pub metadata: Metadata,
    /// The networks that the key works from; empty means from anywhere.
    pub networks: Networks,
    /// Words for people and lists. They grant nothing.
    pub tags: Tags,
    /// Whether the key is a secret. It never changes.
    pub kind: KeyKind,
    /// The web origins that a [publishable](KeyKind::Publishable) key works for: at least one. A secret
    /// key has none.
    pub origins: WebOrigins,
    /// Whether the key is switched on. Unlike a revocation, switching off can be undone.
    pub is_active: bool,
    /// When it was issued.
    pub created_at: SystemTime,
    /// The actor who issued it.
    pub created_by: Option<String>,
    /// When it starts to work; `None` means from the start.
    pub not_before: Option<SystemTime>,
    /// When it stops working: at this instant it is already expired. `None` means never.
    pub expires_at: Option<SystemTime>,
    /// When it was revoked. Revocations are permanent.
    pub revoked_at: Option<SystemTime>,
    /// Why it was revoked.
    pub revoked_reason: Option<String>,
    /// The key it replaces.
    pub rotated_from: Option<KeyId>,
    /// When its replacement was issued. The key keeps working until it expires, and responses to it
    /// say that it is being phased out.
    pub rotated_at: Option<SystemTime>,
    /// The first key in its chain of rotations; its own id if it was not rotated from another key.
    /// Rate limits are counted by this id, so a rotated key continues with the quota of the old
    /// one. Keys in a chain should have the same limits: quotas with the same name share a bucket,
    /// which takes the limits of the key loaded last.
    pub root_id: KeyId,
    /// The number of the record's revision, starting at 1.
    pub version: u64,
    /// The store's clock when the record was read.
    ///
    /// Deadlines are measured from here, not from the clock of the node that checks them: a node
    /// whose clock is wrong admits the same keys as the other nodes.
    pub read_at: SystemTime,
}

impl KeyRecord {
    /// An active key of `consumer_id` at `now`, without scopes, expiry or limits of its own.
    #[must_use]
    pub fn new(
        id: KeyId,
        key_hash: KeyHash,
        consumer_id: impl Into<String>,
        now: SystemTime,
    ) -> Self {
        Self {
            id,
            key_hash,
            key_prefix: String::new(),
            key_last4: String::new(),
            consumer_id: consumer_id.into(),
            name: None,
            scopes: Scopes::default(),
            rate_limits: None,
            plan: None,
            plan_limits: None,
            metadata: Metadata::default(),
            networks: Networks::default(),
            tags: Tags::default(),
            kind: KeyKind::Secret,
            origins: WebOrigins::default(),
            is_active: true,
            created_at: now,
            created_by: None,
            not_before: None,
            expires_at: None,
            revoked_at: None,
            revoked_reason: None,
            rotated_from: None,
            rotated_at: None,
            root_id: id,
            version: 1,
            read_at: now,
        }
    }

    /// Whether the key may be used at `now` by the store's clock.
    ///
    /// Permanent states take precedence: revoked, then expired.
    #[must_use]
    pub fn status(&self, now: SystemTime) -> KeyStatus {
        self.validity().status(&now)
    }

    /// When its replacement was issued, and when it stops working.
    pub(crate) fn retirement(&self) -> Option<Retirement> {
        Some(Retirement { since: self.rotated_at?, ends_at: self.expires_at })
    }

    /// The facts that [`status`](Self::status) evaluates.
    pub(crate) fn validity(&self) -> Validity {
        Validity {
            is_revoked: self.revoked_at.is_some(),
            is_active: self.is_active,
            not_before: self.not_before,
            expires_at: self.expires_at,
        }
    }
}

/// A key that was rotated. It keeps working for a while so that its owner can switch to the new
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retirement {
    /// When the replacement was issued.
    pub since: SystemTime,
    /// When it stops working.
    pub ends_at: Option<SystemTime>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ids_sort_by_the_time_they_were_made() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let make = |at| KeyId::generate(at, &crate::key::SystemEntropy).unwrap();
        assert!(make(now) < make(now + Duration::from_millis(1)));
        let id = make(now);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("42".parse::<KeyId>().is_err());
    }
}
