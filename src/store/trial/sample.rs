use std::time::{Duration, SystemTime};

use crate::{
    key::{KeyHash, LegacyHash, SystemEntropy},
    rate_limit::{Quota, RateLimits},
    record::{AuditEntry, KeyAction, KeyId, KeyRecord, KeyStatus, Networks, Scope, Scopes, Tags},
    store::{
        EventQuery, KeyQuery, StoreError, StoreErrorKind,
        port::{CountedUses, HourlyUse, IdempotencyRecord, LegacyKey, UsageBatch, UseCounts},
    },
};

/// When the sample key expired, in seconds since 1970: earlier than any real key.
pub(super) const EXPIRY: u64 = 2;

pub(super) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Rows that no other trial writes.
pub(super) struct Sample {
    pub(super) key: KeyRecord,
    pub(super) successor: KeyRecord,
    pub(super) imported: KeyRecord,
    /// The legacy hash of `imported`.
    pub(super) legacy: LegacyKey,
    pub(super) request: IdempotencyRecord,
    /// The key's consumer, prefix, scope, tag and plan name.
    pub(super) word: String,
    pub(super) scope: Scope,
    pub(super) limits: RateLimits,
}

impl Sample {
    pub(super) fn new() -> Result<Self, StoreError> {
        let word = format!("doctor.{}", id()?);
        let scope = Scope::new(word.clone()).map_err(unfit)?;
        let limits = RateLimits::new([Quota::per_minute(60).map_err(unfit)?]).map_err(unfit)?;
        let mut key = record(&word)?;
        key.key_prefix.clone_from(&word);
        key.name = Some("trial".into());
        key.scopes = Scopes::parse([word.clone()]).map_err(unfit)?;
        key.rate_limits = Some(limits.clone());
        key.plan = Some(word.clone());
        key.networks = Networks::parse(["192.0.2.0/24"]).map_err(unfit)?;
        key.tags = Tags::parse([word.clone()]).map_err(unfit)?;
        key.created_by = Some("doctor".into());
        key.expires_at = Some(at(EXPIRY));
        let mut successor = record(&word)?;
        successor.rotated_from = Some(key.id);
        successor.root_id = key.root_id;
        let imported = record(&word)?;
        let legacy = LegacyKey::new(imported.id, Some(word.clone()), legacy_hash(imported.id)?);
        let hash = |record: &KeyRecord| *record.key_hash.as_bytes();
        let request = IdempotencyRecord::new(hash(&successor), hash(&imported), key.id);
        Ok(Self { key, successor, imported, legacy, request, word, scope, limits })
    }

    pub(super) fn entry(&self, action: KeyAction) -> AuditEntry {
        AuditEntry {
            key_id: Some(self.key.id),
            consumer_id: Some(self.word.clone()),
            origin: Some("trial".into()),
            reason: Some("trial".into()),
            changes: Some(r#"{"name":{"from":null,"to":"trial"}}"#.into()),
            ..AuditEntry::new(action, "doctor")
        }
    }

    /// Counts of the first hour of 1970.
    pub(super) fn counted_uses(&self) -> UsageBatch {
        let counts = UseCounts::new(1, 1, 1, 1, 1);
        let hour = HourlyUse::new(self.key.id, self.word.clone(), at(0), counts);
        let counted = CountedUses::new(*self.successor.id.as_bytes(), 1, vec![hour]);
        UsageBatch::default().counted(counted)
    }

    /// One query for each list filter, and for each index that only a filter reads.
    pub(super) fn queries(&self) -> Vec<KeyQuery> {
        let of_consumer = || KeyQuery::new().consumer_id(self.word.clone());
        let of_prefix = || KeyQuery::new().key_prefix(self.word.clone());
        vec![
            of_consumer(),
            of_prefix(),
            of_consumer().status(KeyStatus::Expired),
            of_prefix().status(KeyStatus::Expired),
            of_consumer().unused_since(at(EXPIRY)),
            of_consumer().expires_before(at(EXPIRY + 1)),
        ]
    }

    pub(super) fn by_scope(&self) -> KeyQuery {
        KeyQuery::new().scope(self.scope.clone())
    }

    pub(super) fn by_tag(&self) -> KeyQuery {
        KeyQuery::new().tag(self.word.clone())
    }

    pub(super) fn event_queries(&self) -> [EventQuery; 2] {
        [
            EventQuery::new().key_id(self.key.id).limit(1),
            EventQuery::new().consumer_id(self.word.clone()).limit(1),
        ]
    }
}

fn id() -> Result<KeyId, StoreError> {
    KeyId::generate(at(0), &SystemEntropy).map_err(unfit)
}

/// One that no other trial has.
fn legacy_hash(id: KeyId) -> Result<LegacyHash, StoreError> {
    let salt = id.to_string().replace('-', "");
    format!("pbkdf2_sha256$1${salt}${salt}").parse().map_err(unfit)
}

fn record(consumer_id: &str) -> Result<KeyRecord, StoreError> {
    let id = id()?;
    let mut hash = [0; 32];
    let (left, right) = hash.split_at_mut(16);
    left.copy_from_slice(id.as_bytes());
    right.copy_from_slice(id.as_bytes());
    Ok(KeyRecord::new(id, KeyHash::from_bytes(hash), consumer_id, at(1)))
}

fn unfit(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::new(StoreErrorKind::Other).because(error)
}
