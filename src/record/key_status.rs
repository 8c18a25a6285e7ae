use std::{error::Error, fmt, str::FromStr, time::SystemTime};

/// When a key may be used: the part of its record that every request evaluates, generic over the
/// clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validity<T = SystemTime> {
    pub(super) is_revoked: bool,
    pub(super) is_active: bool,
    pub(crate) not_before: Option<T>,
    pub(crate) expires_at: Option<T>,
}

impl<T: Ord> Validity<T> {
    /// Converts the times to those of another clock.
    pub(crate) fn on<U>(self, not_before: Option<U>, expires_at: Option<U>) -> Validity<U> {
        let Self { is_revoked, is_active, .. } = self;
        Validity { is_revoked, is_active, not_before, expires_at }
    }

    pub(crate) fn status(&self, now: &T) -> KeyStatus {
        if self.is_revoked {
            KeyStatus::Revoked
        } else if self.expires_at.as_ref().is_some_and(|expires_at| expires_at <= now) {
            KeyStatus::Expired
        } else if !self.is_active {
            KeyStatus::Inactive
        } else if self.not_before.as_ref().is_some_and(|not_before| now < not_before) {
            KeyStatus::NotYetActive
        } else {
            KeyStatus::Active
        }
    }
}

/// Whether a key may be used, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyStatus {
    /// Usable.
    Active,
    /// Switched off for now.
    Inactive,
    /// Its `not_before` is in the future.
    NotYetActive,
    /// Its `expires_at` has passed.
    Expired,
    /// Permanently revoked.
    Revoked,
}

impl KeyStatus {
    /// All states.
    pub const ALL: [Self; 5] =
        [Self::Active, Self::Inactive, Self::NotYetActive, Self::Expired, Self::Revoked];

    /// The state's name, such as `not_yet_active`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::NotYetActive => "not_yet_active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl fmt::Display for KeyStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyStatus {
    type Err = InvalidStatus;

    fn from_str(name: &str) -> Result<Self, InvalidStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == name).ok_or(InvalidStatus)
    }
}

/// The text does not name a [`KeyStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidStatus;

impl fmt::Display for InvalidStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be active, inactive, not_yet_active, expired or revoked")
    }
}

impl Error for InvalidStatus {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        key::KeyHash,
        record::{KeyId, KeyRecord},
    };

    const MILLI: Duration = Duration::from_millis(1);

    fn record() -> (KeyRecord, SystemTime) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let record =
            KeyRecord::new(KeyId::from_bytes([1; 16]), KeyHash::from_bytes([2; 32]), "acme", now);
        (record, now)
    }

    #[test]
    fn a_key_works_until_just_before_it_expires() {
        let (mut record, now) = record();
        record.expires_at = Some(now);
        assert_eq!(record.status(now - MILLI), KeyStatus::Active);
        assert_eq!(record.status(now), KeyStatus::Expired);
        assert_eq!(record.status(now + MILLI), KeyStatus::Expired);
    }

    #[test]
    fn a_key_works_from_its_not_before_on() {
        let (mut record, now) = record();
        record.not_before = Some(now);
        assert_eq!(record.status(now - MILLI), KeyStatus::NotYetActive);
        assert_eq!(record.status(now), KeyStatus::Active);
    }

    #[test]
    fn what_is_final_is_said_first() {
        let (mut record, now) = record();
        record.is_active = false;
        record.not_before = Some(now + MILLI);
        assert_eq!(record.status(now), KeyStatus::Inactive);
        record.expires_at = Some(now);
        assert_eq!(record.status(now), KeyStatus::Expired);
        record.revoked_at = Some(now + MILLI);
        assert_eq!(record.status(now), KeyStatus::Revoked);
    }
}
