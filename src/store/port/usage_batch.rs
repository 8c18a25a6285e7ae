use std::time::SystemTime;

use crate::record::KeyId;

/// The use of keys, as a node writes it: when they were last used, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageBatch {
    /// When keys were last used, sorted by key. It has each key once.
    pub last_uses: Vec<Usage>,
    /// How often keys were used since the node's last batch. A store may ignore it.
    pub counted: Option<CountedUses>,
}

impl UsageBatch {
    /// A batch without counts.
    #[must_use]
    pub const fn new(last_uses: Vec<Usage>) -> Self {
        Self { last_uses, counted: None }
    }

    /// The batch with these counts.
    #[must_use]
    pub fn counted(self, counted: CountedUses) -> Self {
        Self { counted: Some(counted), ..self }
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last_uses.is_empty() && self.counted.is_none()
    }
}

impl From<Vec<Usage>> for UsageBatch {
    fn from(last_uses: Vec<Usage>) -> Self {
        Self::new(last_uses)
    }
}

impl<const N: usize> From<[Usage; N]> for UsageBatch {
    fn from(last_uses: [Usage; N]) -> Self {
        Self::new(last_uses.into())
    }
}

/// When a key was last used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// The key.
    pub key_id: KeyId,
    /// The time of use, by the wall clock of the node that served the request.
    pub last_used_at: SystemTime,
}

impl Usage {
    /// `key_id` was used at `last_used_at`.
    #[must_use]
    pub const fn new(key_id: KeyId, last_used_at: SystemTime) -> Self {
        Self { key_id, last_used_at }
    }
}

/// How often keys were used.
///
/// A store adds these counts to those that it has, so it must add each batch only once, although
/// the node sends it again if it does not learn of the outcome. `writer` and `sequence` identify
/// the batch: a batch whose `sequence` is not greater than that of the last batch added for
/// `writer` was added already.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CountedUses {
    /// The node's process, by a random id.
    pub writer: [u8; 16],
    /// The number of the batch. It grows from one batch of a writer to the next.
    pub sequence: u64,
    /// The counts, sorted by key and hour. It has each pair of them once.
    pub hours: Vec<HourlyUse>,
}

impl CountedUses {
    /// The batch `sequence` of `writer`.
    #[must_use]
    pub const fn new(writer: [u8; 16], sequence: u64, hours: Vec<HourlyUse>) -> Self {
        Self { writer, sequence, hours }
    }
}

/// How often a key was used in an hour.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HourlyUse {
    /// The key. It may be deleted by now.
    pub key_id: KeyId,
    /// The consumer of the key.
    pub consumer_id: String,
    /// The beginning of the hour, by the wall clock of the node that served the requests.
    pub hour: SystemTime,
    /// What is to be added to the counts of the hour, and of its day in UTC.
    pub counts: UseCounts,
}

impl HourlyUse {
    /// `key_id` of `consumer_id` was used this often in the hour that begins at `hour`.
    #[must_use]
    pub const fn new(
        key_id: KeyId,
        consumer_id: String,
        hour: SystemTime,
        counts: UseCounts,
    ) -> Self {
        Self { key_id, consumer_id, hour, counts }
    }
}

/// How many requests had a key, by outcome, and what they cost.
///
/// A request is counted when its key is checked, and counted differently when it turns out later
/// that it is rejected or costs more or less than one unit. Such a correction is part of the hour in
/// which it is made, so counts of a short time can be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UseCounts {
    /// Requests that were let in and not rejected further inside.
    pub admitted: i64,
    /// Requests beyond a quota or a limit: 429.
    pub limited: i64,
    /// Requests for which the key lacks a scope, or from where it does not work: 403.
    pub forbidden: i64,
    /// Requests while the key was revoked, expired, inactive or not yet active: 401.
    pub refused: i64,
    /// The cost of the requests, in units of the key's quotas, whether or not the key has quotas.
    pub units: i64,
}

impl UseCounts {
    /// These counts.
    #[must_use]
    pub const fn new(
        admitted: i64,
        limited: i64,
        forbidden: i64,
        refused: i64,
        units: i64,
    ) -> Self {
        Self { admitted, limited, forbidden, refused, units }
    }

    /// Whether all counts are zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// The sums of these and `other` counts.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            admitted: self.admitted.saturating_add(other.admitted),
            limited: self.limited.saturating_add(other.limited),
            forbidden: self.forbidden.saturating_add(other.forbidden),
            refused: self.refused.saturating_add(other.refused),
            units: self.units.saturating_add(other.units),
        }
    }
}
