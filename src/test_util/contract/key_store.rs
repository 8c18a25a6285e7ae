//! The rules of a [`KeyStore`], one function for each, which fails if the rule is broken.

#![expect(clippy::missing_errors_doc, reason = "each rule fails if it is broken")]

use std::{
    collections::BTreeMap,
    future::Future,
    time::{Duration, SystemTime},
};

use super::{
    Violation,
    sample::{MINUTE, TICK, apart, full_record, hash, id, limits, now, record, unread},
    suite::suite,
    violation::{Checked, equal, expect, some},
};
use crate::{
    rate_limit::RateLimits,
    record::{KeyId, KeyRecord, KeyStatus, Metadata},
    store::{
        KeyStore, ManageKeys, StoreError, StoreErrorKind,
        port::{KeyTransaction as _, Usage},
    },
};

/// How the rules put keys into a store and read what it recorded. A store that manages keys
/// implements it already.
pub trait SeedKeys: KeyStore {
    /// Stores a new key, as whatever fills the store does.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn seed(&self, record: &KeyRecord) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// When the key was last used, as far as [recorded](KeyStore::record_usage).
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn last_use(
        &self,
        id: KeyId,
    ) -> impl Future<Output = Result<Option<SystemTime>, StoreError>> + Send;

    /// Whether it records uses at all. Default: true. A store that keeps
    /// [`record_usage`](KeyStore::record_usage)'s default returns false.
    fn records_usage(&self) -> bool {
        true
    }
}

impl<S: ManageKeys> SeedKeys for S {
    async fn seed(&self, record: &KeyRecord) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        if transaction.insert(std::slice::from_ref(record)).await?.is_empty() {
            return Err(StoreError::new(StoreErrorKind::Conflict));
        }
        transaction.commit().await
    }

    async fn last_use(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        self.last_used_at(id).await
    }
}

suite! {
    $
    /// Checks the rules of a [`KeyStore`].
    fn key_store<S: SeedKeys>(store: S) from key_store;
    /// Makes a `#[tokio::test]` of each rule of a [`KeyStore`](crate::store::KeyStore), in a module.
    ///
    /// Its arguments are the name of the module, and an async closure that makes a new, empty store,
    /// which implements [`SeedKeys`](crate::test_util::contract::SeedKeys), and a guard that lives as
    /// long: `key_store_contract!(my_store, async || (MyStore::new().await, ()));`
    macro key_store_contract;
    every_field_is_found
    the_smallest_record_is_found
    missing_limits_are_not_unlimited
    text_is_kept_as_it_is
    times_keep_their_microseconds
    keys_are_found_in_every_state
    an_unknown_key_is_absent
    one_hash_finds_one_key
    reads_have_the_time_of_the_store
    usage_is_remembered
    usage_never_moves_backwards
    usage_of_unknown_keys_is_ignored
    an_empty_batch_is_accepted
    a_large_batch_is_accepted
    look_ups_may_be_dropped
}

pub(super) async fn seeded<S: SeedKeys>(
    store: &S,
    record: KeyRecord,
) -> Result<KeyRecord, Violation> {
    store.seed(&record).await?;
    Ok(record)
}

pub(super) async fn found<S: KeyStore>(
    store: &S,
    record: &KeyRecord,
) -> Result<KeyRecord, Violation> {
    some(store.find(&record.key_hash).await?, "`find` must return a key that is stored")
}

async fn is_found_as_stored<S: SeedKeys>(store: &S, record: KeyRecord) -> Checked {
    let record = seeded(store, record).await?;
    let found = found(store, &record).await?;
    equal(&unread(&found), &unread(&record), "`find` must return each field as it was stored")
}

/// A field that is lost or changed is a key with other rights.
pub async fn every_field_is_found<S: SeedKeys>(store: S) -> Result<(), Violation> {
    is_found_as_stored(&store, full_record()?).await
}

/// Empty values are not missing values.
pub async fn the_smallest_record_is_found<S: SeedKeys>(store: S) -> Result<(), Violation> {
    let mut record = record()?;
    record.consumer_id = String::new();
    is_found_as_stored(&store, record).await
}

/// A key without limits of its own has the default; a key with unlimited limits has none.
pub async fn missing_limits_are_not_unlimited<S: SeedKeys>(store: S) -> Result<(), Violation> {
    for limits in [None, Some(RateLimits::unlimited()), Some(limits()?)] {
        let mut record = record()?;
        record.rate_limits.clone_from(&limits);
        let record = seeded(&store, record).await?;
        let why = "missing limits mean the default, and must not become `unlimited` or the reverse";
        equal(&found(&store, &record).await?.rate_limits, &limits, why)?;
    }
    Ok(())
}

/// Text is data: it is neither trimmed, normalised, interpreted nor cut.
pub async fn text_is_kept_as_it_is<S: SeedKeys>(store: S) -> Result<(), Violation> {
    for text in [
        "",
        " ",
        "Zürich 東京 🔑 \u{202e}abc",
        "e\u{301} is not \u{e9}",
        "'; drop table api_keys; --",
        "$where: {\"$ne\": null}",
        "100%_\\ \"quoted\"\r\n\t",
        "{1,2}",
        "null",
    ] {
        let mut record = full_record()?;
        record.consumer_id = text.into();
        record.name = Some(text.into());
        record.created_by = Some(text.into());
        record.revoked_reason = Some(text.into());
        record.metadata = Metadata::new(&BTreeMap::from([(text, text)]))?;
        is_found_as_stored(&store, record).await?;
    }
    Ok(())
}

/// Keys begin and end on the microsecond, also before 1970 and after the year 9999.
pub async fn times_keep_their_microseconds<S: SeedKeys>(store: S) -> Result<(), Violation> {
    let epoch = SystemTime::UNIX_EPOCH;
    let century = Duration::from_secs(100 * 365 * 86_400);
    for at in [
        epoch,
        epoch - TICK,
        epoch + Duration::from_micros(1_767_225_600_123_456),
        epoch - century + Duration::from_micros(999_999),
        // Beyond the year 9999.
        epoch + 100 * century + TICK,
    ] {
        let mut record = record()?;
        record.created_at = at;
        record.expires_at = Some(at);
        record.not_before = Some(at);
        record.revoked_at = Some(at);
        is_found_as_stored(&store, record).await?;
    }
    Ok(())
}

/// `find` returns revoked, expired and inactive keys, too: the caller decides, and tells them from
/// unknown ones.
pub async fn keys_are_found_in_every_state<S: SeedKeys>(store: S) -> Result<(), Violation> {
    let minute_ago = now() - MINUTE;
    for status in [
        KeyStatus::Active,
        KeyStatus::Inactive,
        KeyStatus::NotYetActive,
        KeyStatus::Expired,
        KeyStatus::Revoked,
    ] {
        let mut record = record()?;
        match status {
            KeyStatus::Inactive => record.is_active = false,
            KeyStatus::NotYetActive => record.not_before = Some(now() + 60 * MINUTE),
            KeyStatus::Expired => record.expires_at = Some(minute_ago),
            KeyStatus::Revoked => record.revoked_at = Some(minute_ago),
            KeyStatus::Active => {}
        }
        let record = seeded(&store, record).await?;
        let found = found(&store, &record).await?;
        let why = "`find` must return a key in every state, and the state must be the stored one";
        equal(&found.status(found.read_at), &status, why)?;
    }
    Ok(())
}

/// A missing key is `Ok(None)`, which is cached and answered with 401. An error is answered with 503.
pub async fn an_unknown_key_is_absent<S: SeedKeys>(store: S) -> Result<(), Violation> {
    seeded(&store, record()?).await?;
    let why = "`find` must return `Ok(None)` for a hash that no key has";
    equal(&store.find(&hash()?).await?, &None, why)
}

/// Keys are told apart by the whole hash.
pub async fn one_hash_finds_one_key<S: SeedKeys>(store: S) -> Result<(), Violation> {
    let one = seeded(&store, record()?).await?;
    let other = seeded(&store, record()?).await?;
    for record in [&one, &other] {
        let why = "`find` must return the key with exactly this hash";
        equal(&found(&store, record).await?.id, &record.id, why)?;
    }
    Ok(())
}

/// Expiry is measured from `read_at`, so it is the time of the read, not that of the write.
pub async fn reads_have_the_time_of_the_store<S: SeedKeys>(store: S) -> Result<(), Violation> {
    let mut old = record()?;
    old.read_at = SystemTime::UNIX_EPOCH;
    let old = seeded(&store, old).await?;
    let first = found(&store, &old).await?.read_at;
    let why = "`read_at` must be the present time of the store's clock, within a minute of this \
        machine's";
    expect(apart(first, now()) < MINUTE, why)?;
    let why = "`read_at` must not move backwards between two reads";
    expect(found(&store, &old).await?.read_at >= first, why)
}

/// The last use is what operators find unused keys by.
pub async fn usage_is_remembered<S: SeedKeys>(store: S) -> Result<(), Violation> {
    let (used, unused) = (seeded(&store, record()?).await?, seeded(&store, record()?).await?);
    let at = now();
    store.record_usage(&[Usage::new(used.id, at)].into()).await?;
    let expected = store.records_usage().then_some(at);
    equal(&store.last_use(used.id).await?, &expected, "the last use must be as recorded")?;
    equal(&store.last_use(unused.id).await?, &None, "an unused key must have no last use")?;
    let why = "recording a use must leave the record alone, its version included: an operator's \
        update must not conflict with traffic";
    equal(&unread(&found(&store, &used).await?), &unread(&used), why)
}

/// Nodes write their batches in any order.
pub async fn usage_never_moves_backwards<S: SeedKeys>(store: S) -> Result<(), Violation> {
    if !store.records_usage() {
        return Ok(());
    }
    let (one, other) = (seeded(&store, record()?).await?.id, seeded(&store, record()?).await?.id);
    let (one, other) = (one.min(other), one.max(other));
    let noon = now();
    let (before, after) = (noon - MINUTE, noon + MINUTE);
    store.record_usage(&[Usage::new(one, noon), Usage::new(other, noon)].into()).await?;
    store.record_usage(&[Usage::new(one, before), Usage::new(other, after)].into()).await?;
    let why = "an earlier use that is written later must not replace a later one";
    equal(&store.last_use(one).await?, &Some(noon), why)?;
    let why = "each key of a batch is judged by itself: the later use of the other key counts";
    equal(&store.last_use(other).await?, &Some(after), why)
}

/// A key may be deleted while its use waits to be written.
pub async fn usage_of_unknown_keys_is_ignored<S: SeedKeys>(store: S) -> Result<(), Violation> {
    let known = seeded(&store, record()?).await?.id;
    let mut keys = [id()?, known, id()?];
    keys.sort_unstable();
    let at = now();
    store.record_usage(&keys.map(|id| Usage::new(id, at)).into()).await?;
    for key in keys {
        let expected = (key == known && store.records_usage()).then_some(at);
        let why =
            "a batch with unknown keys must be recorded for the known ones, and only for them";
        equal(&store.last_use(key).await?, &expected, why)?;
    }
    Ok(())
}

/// A batch may be empty.
pub async fn an_empty_batch_is_accepted<S: SeedKeys>(store: S) -> Result<(), Violation> {
    Ok(store.record_usage(&[].into()).await?)
}

/// A busy node writes thousands of uses at once.
pub async fn a_large_batch_is_accepted<S: SeedKeys>(store: S) -> Result<(), Violation> {
    let known = seeded(&store, record()?).await?.id;
    let mut keys = vec![known];
    for _ in 1..10_000 {
        keys.push(id()?);
    }
    keys.sort_unstable();
    let at = now();
    let batch: Vec<_> = keys.into_iter().map(|id| Usage::new(id, at)).collect();
    store.record_usage(&batch.into()).await?;
    let expected = store.records_usage().then_some(at);
    equal(&store.last_use(known).await?, &expected, "a batch of 10,000 uses must be recorded")
}

/// A client may hang up, and a look-up has a deadline: its future is dropped at any point.
pub async fn look_ups_may_be_dropped<S: SeedKeys>(store: S) -> Result<(), Violation> {
    let record = seeded(&store, record()?).await?;
    for polls in 0..20 {
        let mut find = std::pin::pin!(store.find(&record.key_hash));
        for _ in 0..polls {
            let mut poll_once = std::pin::pin!(tokio::time::timeout(Duration::ZERO, find.as_mut()));
            if poll_once.as_mut().await.is_ok() {
                break;
            }
        }
    }
    let found = tokio::time::timeout(Duration::from_secs(10), found(&store, &record)).await;
    let why = "after look-ups that were dropped, the store must still answer within 10 seconds";
    equal(&some(found.ok(), why)??.id, &record.id, why)
}
