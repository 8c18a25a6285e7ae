use super::{
    operation::Operation,
    rehearse::Rehearse,
    sample::{EXPIRY, Sample, at},
};

use crate::{
    rate_limit::RateLimits,
    record::{KeyAction, KeyRecord, Scopes},
    store::{
        KeyPage, StoreError, StoreErrorKind,
        port::{KeyFilter, Usage},
    },
};

/// `with_key`: the sample key has been inserted. Without it, statements match nothing, but still
/// show whether the database permits them.
pub(super) async fn perform<T: Rehearse>(
    tx: &mut T,
    operation: Operation,
    sample: &Sample,
    with_key: bool,
) -> Result<(), StoreError> {
    let key = &sample.key;
    match operation {
        Operation::LookUp => {
            let found = tx.find(&key.key_hash).await?;
            expect(!with_key || is(found.as_ref(), key), "a key is not read back as written")
        }
        Operation::Get => {
            let found = tx.get(key.id).await?;
            expect(!with_key || is(found.as_ref(), key), "a key is not read back as written")
        }
        Operation::Poll => {
            let changes = tx.changes_since(None).await?;
            tx.changes_since(Some(changes.horizon)).await.map(drop)
        }
        Operation::Issue => {
            let inserted = tx.insert(std::slice::from_ref(key)).await?;
            expect(inserted == [key.id], "a new key is not stored")?;
            tx.write_audit(&[sample.entry(KeyAction::Issued)]).await
        }
        Operation::Idempotency => {
            let first = tx.claim_idempotency_key(&sample.request).await?;
            let second = tx.claim_idempotency_key(&sample.request).await?;
            let is_kept = first.is_none() && second == Some(sample.request);
            expect(is_kept, "an idempotency key is not kept")
        }
        Operation::List => {
            for query in sample.queries() {
                let page = tx.list(&query).await?;
                expect(!with_key || has(&page, key), "a list lacks a key")?;
            }
            Ok(())
        }
        Operation::ListByScope => {
            let page = tx.list(&sample.by_scope()).await?;
            expect(!with_key || has(&page, key), "api_key_scopes lacks a key's scope")?;
            let page = tx.list(&sample.by_tag()).await?;
            expect(!with_key || has(&page, key), "api_key_tags lacks a key's tag")
        }
        Operation::Audit => {
            tx.write_audit(&[sample.entry(KeyAction::Updated)]).await?;
            for query in sample.event_queries() {
                let page = tx.events(&query).await?;
                expect(!page.events.is_empty(), "the audit lacks an event that was written")?;
            }
            Ok(())
        }
        Operation::Update => {
            let mut changed = key.clone();
            changed.name = None;
            changed.scopes = Scopes::default();
            changed.expires_at = None;
            update(tx, &changed, with_key).await?;
            tx.write_audit(&[sample.entry(KeyAction::Updated)]).await
        }
        Operation::Rotate => {
            tx.lock(&[key.id]).await?;
            let inserted = tx.insert(std::slice::from_ref(&sample.successor)).await?;
            expect(inserted == [sample.successor.id], "a new key is not stored")?;
            let retired = KeyRecord { rotated_at: Some(key.created_at), ..key.clone() };
            update(tx, &retired, with_key).await?;
            tx.write_audit(&[sample.entry(KeyAction::Rotated)]).await
        }
        Operation::Revoke => {
            tx.lock_some(&KeyFilter::Consumer(key.consumer_id.clone()), &[], 1).await?;
            tx.lock_some(&KeyFilter::Prefix(key.key_prefix.clone()), &[], 1).await?;
            let revoked = tx.revoke(&[key.id], Some("trial")).await?;
            let is_revoked = revoked.iter().any(|it| it.id == key.id && it.revoked_at.is_some());
            expect(!with_key || is_revoked, "a revocation is not stored")?;
            tx.write_audit(&[sample.entry(KeyAction::Revoked)]).await
        }
        Operation::Prune => {
            // Only the sample key is this old.
            let ended = tx.lock_some(&KeyFilter::EndedBefore(at(EXPIRY + 1)), &[], 1).await?;
            expect(!with_key || ended.iter().any(|it| it.id == key.id), "ended key not found")?;
            tx.delete(&[key.id]).await?;
            expect(tx.lock(&[key.id]).await?.is_empty(), "a deleted key is still there")?;
            tx.write_audit(&[sample.entry(KeyAction::Pruned)]).await?;
            tx.delete_expired(at(0), 1).await?;
            tx.flush_usage(&sample.counted_uses()).await?;
            // Only the sample use is this old.
            let hours = tx.delete_counted_uses(at(EXPIRY), at(0), 1).await?;
            expect(hours == 1, "an old hour of counted uses is not found")
        }
        Operation::Import => {
            // The second record has the hash of the first, which exists by then.
            let mut known = sample.imported.clone();
            known.id = sample.successor.id;
            let inserted = tx.insert(&[sample.imported.clone(), known]).await?;
            expect(inserted == [sample.imported.id], "a batch is not stored as written")?;
            move_legacy_hash(tx, sample).await?;
            tx.write_audit(&[sample.entry(KeyAction::Imported)]).await
        }
        Operation::Usage => {
            tx.flush_usage(&[Usage::new(key.id, at(EXPIRY))].into()).await?;
            tx.flush_usage(&[Usage::new(key.id, at(EXPIRY + 1))].into()).await?;
            for _ in 0..2 {
                tx.flush_usage(&sample.counted_uses()).await?;
            }
            let used = tx.last_used_at(key.id).await?;
            expect(!with_key || used == Some(at(EXPIRY + 1)), "the use of a key is not stored")
        }
        Operation::Plans => {
            tx.set_plan(&sample.word, &RateLimits::unlimited()).await?;
            tx.set_plan(&sample.word, &sample.limits).await?;
            let plans = tx.plans().await?;
            let is_set = plans.iter().any(|(name, _)| *name == sample.word);
            expect(is_set, "a plan is not stored")?;
            let found = tx.find(&key.key_hash).await?;
            let has_limits = found.is_some_and(|found| found.plan_limits.is_some());
            expect(!with_key || has_limits, "a key does not have the limits of its plan")?;
            expect(tx.remove_plan(&sample.word).await?.is_some(), "a plan is not removed")
        }
    }
}

async fn move_legacy_hash<T: Rehearse>(tx: &mut T, sample: &Sample) -> Result<(), StoreError> {
    let (legacy, digest) = (&sample.legacy, sample.legacy.hash.digest());
    expect(tx.known_legacy_hashes(&[digest]).await?.is_empty(), "a legacy hash is known already")?;
    let with_hint = tx.insert_legacy_hashes(std::slice::from_ref(legacy)).await?;
    expect(with_hint == 1, "a legacy hash is not stored")?;
    let moved = tx.replace_legacy_hash(legacy.id, &digest, &legacy.hash.placeholder()).await?;
    expect(moved.is_some(), "a legacy hash is not replaced")
}

async fn update<T: Rehearse>(
    tx: &mut T,
    changed: &KeyRecord,
    with_key: bool,
) -> Result<(), StoreError> {
    match tx.update(changed).await {
        // The key was not inserted.
        Err(error) if !with_key && error.kind() == StoreErrorKind::Conflict => Ok(()),
        Err(error) => Err(error),
        Ok(updated) => {
            let is_updated = updated.version == changed.version + 1
                && updated.scopes == changed.scopes
                && updated.rotated_at == changed.rotated_at;
            expect(is_updated, "a change is not stored")
        }
    }
}

/// Fails if a statement succeeded without effect, because a trigger, rule or policy changes it.
fn expect(holds: bool, otherwise: &'static str) -> Result<(), StoreError> {
    if holds {
        return Ok(());
    }
    Err(StoreError::new(StoreErrorKind::Other).because(otherwise))
}

fn is(found: Option<&KeyRecord>, key: &KeyRecord) -> bool {
    found.is_some_and(|found| {
        let read_at = key.read_at;
        KeyRecord { read_at, plan_limits: None, ..found.clone() } == *key
    })
}

fn has(page: &KeyPage, key: &KeyRecord) -> bool {
    page.keys.iter().any(|listed| is(Some(&listed.record), key))
}
