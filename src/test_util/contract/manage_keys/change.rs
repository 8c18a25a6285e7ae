//! Inserting, updating and revoking single keys.

#![expect(clippy::missing_errors_doc, reason = "each rule fails if it is broken")]

use std::time::SystemTime;

use super::{found, inserted, is_stored, revoke, update};
use crate::{
    record::{KeyRecord, KeyStatus},
    store::{ManageKeys, StoreError, StoreErrorKind, port::KeyTransaction as _},
    test_util::contract::{
        SeedKeys as _, Violation,
        sample::{MINUTE, apart, full_record, hash, id, now, record, unread},
        violation::{equal, expect, fails, some},
    },
};

/// `get` finds by id what `find` finds by hash.
pub async fn keys_are_read_by_id<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let stored = inserted(&store, full_record()?).await?;
    is_stored(&store, &stored, "each field must be returned as it was stored").await?;
    equal(&store.get(id()?).await?, &None, "`get` must return `None` for an unknown id")?;
    let why = "`last_used_at` must return `None` for an unknown id";
    equal(&store.last_used_at(id()?).await?, &None, why)
}

/// `find_many` finds what `find` finds, in every state.
pub async fn many_hashes_find_their_keys<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let mut expected = vec![inserted(&store, full_record()?).await?];
    for _ in 0..3 {
        expected.push(inserted(&store, record()?).await?);
    }
    if let Some(key) = expected.last_mut() {
        *key = some(revoke(&store, key.id, None).await?, "a key that is stored must be revoked")?;
    }
    inserted(&store, record()?).await?;
    let mut hashes: Vec<_> = expected.iter().map(|key| key.key_hash).collect();
    hashes.extend([hash()?, hash()?]);
    let mut found = store.find_many(&hashes).await?;
    found.sort_unstable_by_key(|key| key.id);
    expected.sort_unstable_by_key(|key| key.id);
    let unread = |keys: &[KeyRecord]| keys.iter().map(unread).collect::<Vec<_>>();
    let why = "`find_many` must return the keys with these hashes, each once, and no others";
    equal(&unread(&found), &unread(&expected), why)?;
    equal(&store.find_many(&[]).await?.len(), &0, "without hashes it must return no keys")
}

/// An id identifies one key, also in the audit.
pub async fn a_taken_id_is_a_conflict<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let first = inserted(&store, full_record()?).await?;
    let mut second = record()?;
    second.id = first.id;
    let why = "`insert` must skip a key whose id exists";
    fails(&insert_one(&store, &second).await, StoreErrorKind::Conflict, why)?;
    is_stored(&store, &first, "the stored key must be left unchanged").await?;
    equal(&store.find(&second.key_hash).await?, &None, "the skipped key must not be found")
}

/// A hash identifies one key: with two, a request could be either.
pub async fn a_taken_hash_is_a_conflict<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let first = inserted(&store, full_record()?).await?;
    let mut second = record()?;
    second.key_hash = first.key_hash;
    let why = "`insert` must skip a key whose hash exists";
    fails(&insert_one(&store, &second).await, StoreErrorKind::Conflict, why)?;
    is_stored(&store, &first, "the stored key must be left unchanged").await?;
    equal(&store.get(second.id).await?, &None, "the skipped key must not be stored")
}

async fn insert_one<S: ManageKeys>(store: &S, record: &KeyRecord) -> Result<(), StoreError> {
    store.seed(record).await
}

/// An update replaces every mutable field, also by nothing, and counts the version up.
pub async fn an_update_replaces_what_may_change<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let old = inserted(&store, record()?).await?;
    let full = full_record()?;
    let mut changed = old.clone();
    changed.name = full.name;
    changed.scopes = full.scopes;
    changed.rate_limits = full.rate_limits;
    changed.plan = full.plan;
    changed.metadata = full.metadata;
    changed.networks = full.networks;
    changed.tags = full.tags;
    changed.is_active = full.is_active;
    changed.not_before = full.not_before;
    changed.expires_at = full.expires_at;
    changed.rotated_at = Some(now());

    let updated = update(&store, &changed).await?;
    changed.version = 2;
    let why = "`update` must return the record after the change, with its version counted up";
    equal(&unread(&updated), &unread(&changed), why)?;
    is_stored(&store, &changed, "the update must be stored").await?;

    let mut back = old;
    back.version = 2;
    let updated = update(&store, &back).await?;
    back.version = 3;
    let why = "`update` must also remove what a field had: no limit, expiry or scope may remain";
    equal(&unread(&updated), &unread(&back), why)
}

/// An update cannot make a key another key: its hash, its owner, its end.
pub async fn an_update_keeps_what_may_not_change<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let old = inserted(&store, record()?).await?;
    let mut changed = full_record()?;
    // A secret key has no origins.
    changed.origins = old.origins.clone();
    (changed.id, changed.version) = (old.id, old.version);

    let updated = update(&store, &changed).await?;
    let mut expected = unread(&changed);
    expected.key_hash = old.key_hash;
    expected.key_prefix.clone_from(&old.key_prefix);
    expected.key_last4.clone_from(&old.key_last4);
    expected.consumer_id.clone_from(&old.consumer_id);
    expected.kind = old.kind;
    expected.created_at = old.created_at;
    expected.created_by.clone_from(&old.created_by);
    expected.revoked_at = old.revoked_at;
    expected.revoked_reason.clone_from(&old.revoked_reason);
    expected.rotated_from = old.rotated_from;
    expected.root_id = old.root_id;
    expected.version = 2;
    let why = "`update` must keep the hash, prefix, consumer, kind, creation, revocation and \
        rotation of a key";
    equal(&unread(&updated), &expected, why)?;
    equal(&store.find(&changed.key_hash).await?, &None, "an update must not add a hash")
}

/// Two operators who read the same version cannot overwrite each other's change.
pub async fn an_update_of_an_older_version_is_a_conflict<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let old = inserted(&store, record()?).await?;
    let (mut first, mut second) = (old.clone(), old);
    first.name = Some("first".into());
    second.name = Some("second".into());

    let updated = update(&store, &first).await?;
    let why = "`update` must fail if the stored version is not that of the record: another change \
        would be lost";
    fails(&update(&store, &second).await, StoreErrorKind::Conflict, why)?;
    is_stored(&store, &updated, "the earlier change must stay").await
}

/// A deleted key does not come back.
pub async fn an_update_of_an_unknown_key_is_a_conflict<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let gone = record()?;
    let why = "`update` must fail for a key that does not exist";
    fails(&update(&store, &gone).await, StoreErrorKind::Conflict, why)?;
    equal(&store.get(gone.id).await?, &None, "`update` must not insert a key")
}

/// The version is compared and counted up in one step.
pub async fn one_of_two_concurrent_updates_wins<S: ManageKeys>(store: S) -> Result<(), Violation> {
    for _ in 0..20 {
        let old = inserted(&store, record()?).await?;
        let (one, other) = tokio::join!(update(&store, &old), update(&store, &old));
        let (won, lost) = if one.is_ok() { (one, other) } else { (other, one) };
        equal(&won?.version, &2, "the update that wins must count the version up by one")?;
        let why = "of two concurrent updates of one version, one must fail";
        fails(&lost, StoreErrorKind::Conflict, why)?;
    }
    Ok(())
}

/// The first revocation counts, with its time and its reason.
pub async fn a_revocation_is_permanent<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let old = inserted(&store, record()?).await?;
    let revoked = revoke(&store, old.id, Some("leaked")).await?;
    let first = some(revoked, "a revoked key must stay stored")?;
    equal(&first.version, &2, "a revocation must count the version up")?;
    equal(&first.revoked_reason.as_deref(), &Some("leaked"), "the reason must be stored")?;
    equal(&first.status(first.read_at), &KeyStatus::Revoked, "a revoked key must be revoked")?;
    let at = some(first.revoked_at, "a revoked key must have the time of its revocation")?;
    expect(apart(at, now()) < MINUTE, "the revocation must have the time of the store's clock")?;

    for reason in [Some("another"), None] {
        let again = some(revoke(&store, old.id, reason).await?, "the key must stay stored")?;
        let why = "a second revocation must change nothing: neither time, reason nor version";
        equal(&unread(&again), &unread(&first), why)?;
    }
    is_stored(&store, &first, "the revocation must be stored").await?;

    let unexplained = inserted(&store, record()?).await?;
    let revoked = some(revoke(&store, unexplained.id, None).await?, "the key must stay stored")?;
    equal(&revoked.revoked_reason, &None, "a revocation without a reason must have none")
}

/// A record that was read before the revocation does not undo it.
pub async fn a_revocation_survives_an_update<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let old = inserted(&store, record()?).await?;
    let revoked =
        some(revoke(&store, old.id, Some("leaked")).await?, "a revoked key must stay stored")?;
    let why = "`update` with the version before the revocation must fail";
    fails(&update(&store, &old).await, StoreErrorKind::Conflict, why)?;

    let mut renamed = revoked.clone();
    renamed.name = Some("of old".into());
    (renamed.revoked_at, renamed.revoked_reason) = (None, None);
    let updated = update(&store, &renamed).await?;
    equal(&updated.name, &renamed.name, "a revoked key may be renamed")?;
    let why = "`update` must keep the revocation, even if the record it is given has none: a \
        revoked key must never work again";
    equal(&updated.revoked_at, &revoked.revoked_at, why)?;
    equal(&updated.revoked_reason, &revoked.revoked_reason, why)?;
    equal(&found(&store, &old).await?.revoked_at, &revoked.revoked_at, why)
}

/// Whichever of both is first, the key is revoked in the end.
pub async fn a_revocation_survives_a_concurrent_update<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    for _ in 0..20 {
        let old = inserted(&store, record()?).await?;
        let mut renamed = old.clone();
        renamed.name = Some("renamed".into());
        let mut revocation = store.begin().await?;
        revocation.revoke(&[old.id], None).await?;
        let commit = async {
            // Until the update waits for this transaction, or has begun beside it.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            revocation.commit().await
        };
        let (updated, committed) = tokio::join!(update(&store, &renamed), commit);
        committed?;
        let why = "an update must fail as a conflict if the key was revoked since its version";
        fails(&updated, StoreErrorKind::Conflict, why)?;
        let found = found(&store, &old).await?;
        let why = "a key must be revoked after a revocation that ran beside an update, or a revoked \
            key works on";
        equal(&found.status(found.read_at), &KeyStatus::Revoked, why)?;
    }
    Ok(())
}

/// There is nothing to revoke.
pub async fn revoking_an_unknown_key_finds_none<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let unknown = id()?;
    let why = "revoking an unknown key must succeed and store nothing";
    equal(&revoke(&store, unknown, Some("leaked")).await?, &None, why)?;
    equal(&store.find(&hash()?).await?, &None, why)
}

/// A record that an update returns was read by it.
pub async fn writes_have_the_time_of_the_store<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let mut old = record()?;
    old.read_at = SystemTime::UNIX_EPOCH;
    let old = inserted(&store, old).await?;
    let updated = update(&store, &old).await?;
    let why = "`read_at` of an updated record must be the present time of the store's clock";
    expect(apart(updated.read_at, now()) < MINUTE, why)
}
