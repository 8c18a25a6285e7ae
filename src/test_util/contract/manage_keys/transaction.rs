//! Transactions over several keys, the audit, and claims of requests.

#![expect(clippy::missing_errors_doc, reason = "each rule fails if it is broken")]

use std::{slice, time::Duration};

use super::{inserted, is_stored};
use crate::{
    key::SystemEntropy,
    record::{AuditEntry, KeyAction, KeyId, KeyRecord},
    store::{
        EventQuery, ManageKeys,
        port::{
            IdempotencyRecord, KeyCountQuery, KeyCounts, KeyFilter, KeyTransaction as _, Usage,
        },
    },
    test_util::contract::{
        Violation,
        sample::{MINUTE, apart, full_record, id, now, record, unread},
        violation::{equal, expect},
    },
};

/// An error in the middle of a change undoes its beginning.
pub async fn a_dropped_transaction_leaves_nothing<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let kept = inserted(&store, record()?).await?;
    let added = record()?;
    let mut transaction = store.begin().await?;
    transaction.insert(slice::from_ref(&added)).await?;
    transaction.revoke(&[kept.id], None).await?;
    transaction.write_audit(&[entry(&kept)]).await?;
    transaction.claim_idempotency_key(&claim(1, 1)).await?;
    drop(transaction);

    let why = "a transaction that is dropped before `commit` must leave nothing behind";
    equal(&store.get(added.id).await?, &None, why)?;
    is_stored(&store, &kept, why).await?;
    equal(&store.events(&EventQuery::new()).await?.events.len(), &0, why)?;
    let mut next = store.begin().await?;
    equal(&next.claim_idempotency_key(&claim(1, 2)).await?, &None, why)
}

/// A rotation retires a key and makes its successor, or does neither.
pub async fn a_transaction_changes_all_at_once<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let old = inserted(&store, record()?).await?;
    let new = record()?;
    let mut transaction = store.begin().await?;
    let locked = transaction.lock(&[old.id, id()?, old.id]).await?;
    let locked: Vec<_> = locked.iter().map(unread).collect();
    let why = "`lock` must return each key that exists, once";
    equal(&locked, &vec![unread(&old)], why)?;
    let mut retired = old;
    retired.rotated_at = Some(now());
    let retired = transaction.update(&retired).await?;
    let inserted = transaction.insert(slice::from_ref(&new)).await?;
    equal(&inserted, &vec![new.id], "`insert` must return the ids it inserted")?;
    transaction.commit().await?;
    expect(retired.rotated_at.is_some(), "`update` must store the time of a rotation")?;
    let why = "`commit` must store every change of the transaction";
    is_stored(&store, &retired, why).await?;
    is_stored(&store, &new, why).await
}

/// An import may be repeated.
pub async fn an_insertion_skips_known_keys<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let known = inserted(&store, full_record()?).await?;
    let (mut same_id, mut same_hash, new) = (record()?, record()?, record()?);
    same_id.id = known.id;
    same_hash.key_hash = known.key_hash;
    let mut twin = record()?;
    twin.key_hash = new.key_hash;
    let mut transaction = store.begin().await?;
    let batch = [same_id, same_hash, new.clone(), twin];
    let why = "`insert` must skip keys whose id or hash exists, also earlier in the same batch, and \
        insert the others";
    equal(&transaction.insert(&batch).await?, &vec![new.id], why)?;
    let why = "`insert` must see the keys that its own transaction inserted";
    equal(&transaction.insert(&batch).await?, &Vec::new(), why)?;
    transaction.commit().await?;
    is_stored(&store, &known, "a key that exists must be left unchanged").await?;
    is_stored(&store, &new, "the new key must be stored").await
}

/// A transaction sees its own revocations.
pub async fn a_batch_is_revoked_once<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(inserted(&store, record()?).await?.id);
    }
    ids.sort_unstable();
    let backwards: Vec<_> = ids.iter().rev().copied().collect();
    let mut transaction = store.begin().await?;
    let revoked = transaction.revoke(&backwards, Some("leaked")).await?;
    let why = "`revoke` must return the revoked records, ordered by id";
    equal(&ids_of(&revoked), &ids, why)?;
    let all = revoked.iter().all(|record| record.version == 2 && record.revoked_at.is_some());
    expect(all, "the records that `revoke` returns must be revoked, with the version counted up")?;
    let again = transaction.revoke(&ids, None).await?;
    equal(&ids_of(&again), &Vec::new(), "`revoke` must leave out keys that were revoked before")?;
    let live = KeyFilter::Consumer("acme".into());
    let why = "a filter of keys that are not revoked must see the revocations of its transaction";
    equal(&ids_of(&transaction.lock_some(&live, &[], 100).await?), &Vec::new(), why)?;
    let ended = KeyFilter::EndedBefore(now() + MINUTE);
    let locked = transaction.lock_some(&ended, &[], 7).await?.len();
    equal(&locked, &7, "`lock_some` must lock as many as there are, up to its limit")
}

fn ids_of(records: &[KeyRecord]) -> Vec<KeyId> {
    records.iter().map(|record| record.id).collect()
}

/// A deleted key is unknown, and its last use is deleted with it.
pub async fn a_deleted_key_is_gone<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let gone = inserted(&store, full_record()?).await?;
    store.record_usage(&[Usage::new(gone.id, now())].into()).await?;
    let mut transaction = store.begin().await?;
    transaction.delete(&[gone.id]).await?;
    transaction.commit().await?;
    equal(&store.find(&gone.key_hash).await?, &None, "a deleted key must not be found")?;
    equal(&store.get(gone.id).await?, &None, "a deleted key must not be found by its id")?;
    let why = "the last use of a deleted key must be deleted";
    equal(&store.last_used_at(gone.id).await?, &None, why)
}

/// Limits on the number of keys count neither ended keys nor those of others.
pub async fn keys_of_a_consumer_are_counted<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let mut keys = Vec::new();
    for minute in 0..7 {
        let mut record = record()?;
        // Ids of one millisecond are in no order.
        record.id = KeyId::generate(now() + MINUTE * minute, &SystemEntropy)?;
        keys.push(record);
    }
    let recent_from = keys.get(2).map_or(KeyId::from_bytes([0; 16]), |third| third.id);
    let Some(added) = keys.pop() else { return Ok(()) };
    for (number, mut record) in keys.into_iter().enumerate() {
        match number {
            1 => record.expires_at = Some(now() + 60 * MINUTE),
            2 => record.expires_at = Some(now() - MINUTE),
            3 => record.is_active = false,
            4 => record.revoked_at = Some(now()),
            5 => record.consumer_id = "globex".into(),
            _ => {}
        }
        inserted(&store, record).await?;
    }

    let mut transaction = store.begin().await?;
    let count = KeyCountQuery::new("acme".into(), recent_from, 10);
    let counts = transaction.count_keys(&count).await?;
    let why = "of the consumer's 5 keys, 3 are neither revoked nor expired (an inactive one counts), \
        and 3 have an id from the third on";
    equal(&counts, &KeyCounts::new(3, 3), why)?;
    transaction.insert(slice::from_ref(&added)).await?;
    let counts = transaction.count_keys(&count).await?;
    let why = "`count_keys` must see the keys that its own transaction inserted";
    equal(&counts, &KeyCounts::new(4, 4), why)?;
    let count = KeyCountQuery::new("acme".into(), recent_from, 2);
    let counts = transaction.count_keys(&count).await?;
    equal(&counts, &KeyCounts::new(2, 2), "`count_keys` must stop at its limit")
}

/// The number of rotations in an hour is limited by the time of the nth newest.
pub async fn rotations_are_counted_from_the_newest<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let first = inserted(&store, record()?).await?;
    let begin = first.created_at;
    let mut before = first.clone();
    for minutes in 1..=3 {
        let mut next = record()?;
        next.root_id = first.id;
        next.rotated_from = Some(before.id);
        next.created_at = begin + MINUTE * minutes;
        before = inserted(&store, next).await?;
    }
    let mut transaction = store.begin().await?;
    for (nth, minutes) in [(1, Some(3)), (2, Some(2)), (3, Some(1)), (4, None)] {
        let expected = minutes.map(|minutes: u32| begin + MINUTE * minutes);
        let why = "`nth_rotation` must count the replacement keys of the chain from the newest on, \
            without its first key";
        equal(&transaction.nth_rotation(first.id, nth).await?, &expected, why)?;
    }
    Ok(())
}

fn entry(record: &KeyRecord) -> AuditEntry {
    let mut entry = AuditEntry::new(KeyAction::Updated, "operator");
    entry.key_id = Some(record.id);
    entry.consumer_id = Some(record.consumer_id.clone());
    entry
}

/// The audit loses nothing, and tells what happened in which order.
pub async fn events_are_read_newest_first_by_the_page<S: ManageKeys>(
    store: S,
) -> Result<(), Violation> {
    let (one, mut other) = (record()?, record()?);
    other.consumer_id = "globex".into();
    let entries: Vec<_> = (0..25)
        .map(|number: u32| {
            let mut entry = entry(if number.is_multiple_of(5) { &other } else { &one });
            entry.reason = Some(number.to_string());
            entry
        })
        .collect();
    let mut transaction = store.begin().await?;
    transaction.write_audit(&entries).await?;
    transaction.commit().await?;

    for (key_id, consumer_id) in
        [(None, None), (Some(other.id), None), (None, Some("globex".to_owned()))]
    {
        let all = key_id.is_none() && consumer_id.is_none();
        let mut query = EventQuery::new();
        (query.key_id, query.consumer_id, query.limit) = (key_id, consumer_id, 2);
        let mut found = Vec::new();
        loop {
            let page = store.events(&query).await?;
            found.extend(page.events);
            expect(found.len() <= entries.len(), "the pages of the audit must end")?;
            query.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        let why = "`events` must return the newest first, by ids that rise with time";
        expect(found.is_sorted_by(|newer, older| newer.id > older.id), why)?;
        found.reverse();
        let expected: Vec<_> =
            entries.iter().filter(|entry| all || entry.key_id == Some(other.id)).collect();
        let entries: Vec<_> = found.iter().map(|event| &event.entry).collect();
        let why = "the pages must have each matching event once, in the order of writing";
        equal(&entries, &expected, why)?;
        let timely = found.iter().all(|event| apart(event.at, now()) < MINUTE);
        expect(timely, "an event must have the time at which it was written")?;
    }
    Ok(())
}

fn claim(request: u8, key: u8) -> IdempotencyRecord {
    IdempotencyRecord::new([request; 32], [7; 32], KeyId::from_bytes([key; 16]))
}

/// A request that is repeated makes no second key.
pub async fn a_request_is_claimed_once<S: ManageKeys>(store: S) -> Result<(), Violation> {
    for (key, earlier) in [(1, None), (2, Some(claim(1, 1)))] {
        let mut transaction = store.begin().await?;
        let found = transaction.claim_idempotency_key(&claim(1, key)).await?;
        let why = "`claim_idempotency_key` must return the record of an earlier, committed claim";
        equal(&found, &earlier, why)?;
        let again = transaction.claim_idempotency_key(&claim(1, key)).await?;
        let why = "a transaction must see the claims that it made itself";
        equal(&again, &Some(claim(1, 1)), why)?;
        transaction.commit().await?;
    }
    Ok(())
}

/// A client that retries before the first request has ended makes no second key either.
pub async fn one_of_two_concurrent_claims_wins<S: ManageKeys>(store: S) -> Result<(), Violation> {
    let carry_out = async |key| -> Result<_, Violation> {
        let mut transaction = store.begin().await?;
        let earlier = transaction.claim_idempotency_key(&claim(1, key)).await?;
        transaction.commit().await?;
        Ok(earlier)
    };
    let both = async { tokio::join!(carry_out(1), carry_out(2)) };
    let Ok((one, other)) = tokio::time::timeout(Duration::from_secs(30), both).await else {
        return Err(Violation::new("two concurrent claims must not wait for each other"));
    };
    let is_one = matches!((one?, other?), (None, Some(_)) | (Some(_), None));
    let why =
        "of two concurrent claims of one request, one must wait and return the other's record";
    expect(is_one, why)
}

/// Claims are kept for a while, and not forever.
pub async fn old_claims_are_deleted<S: ManageKeys>(store: S) -> Result<(), Violation> {
    for request in 1..=5 {
        let mut transaction = store.begin().await?;
        transaction.claim_idempotency_key(&claim(request, 1)).await?;
        transaction.commit().await?;
    }
    for (before, deleted) in [(now() - MINUTE, 0), (now() + MINUTE, 3), (now() + MINUTE, 2)] {
        let mut transaction = store.begin().await?;
        let found = transaction.delete_expired(before, 3).await?;
        let why = "`delete_expired` must delete the claims before the given time, up to its limit, \
            and say how many";
        equal(&found, &deleted, why)?;
        transaction.commit().await?;
    }
    Ok(())
}
