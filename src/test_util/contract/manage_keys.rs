//! The rules of a store that manages keys, one function for each, which fails if the rule is broken.
//! Those of [`key_store`](super::key_store()) are among them.

mod change;
mod list;
mod plan;
mod transaction;

use std::slice;

pub use self::{change::*, list::*, plan::*, transaction::*};
pub use super::key_store::{
    a_large_batch_is_accepted, an_empty_batch_is_accepted, an_unknown_key_is_absent,
    every_field_is_found, keys_are_found_in_every_state, look_ups_may_be_dropped,
    missing_limits_are_not_unlimited, one_hash_finds_one_key, reads_have_the_time_of_the_store,
    text_is_kept_as_it_is, the_smallest_record_is_found, times_keep_their_microseconds,
    usage_is_remembered, usage_never_moves_backwards, usage_of_unknown_keys_is_ignored,
};
use super::{
    Violation,
    key_store::found as found_by_hash,
    sample::unread,
    suite::suite,
    violation::{equal, some},
};
use crate::{
    record::{KeyId, KeyRecord},
    store::{ManageKeys, StoreError, port::KeyTransaction as _},
};

suite! {
    $
    /// Checks the rules of a store that manages keys, including those of
    /// [`key_store`](super::key_store()).
    fn manage_keys<S: ManageKeys>(store: S) from manage_keys;
    /// Makes a `#[tokio::test]` of each rule of a store that
    /// [manages keys](crate::store::ManageKeys), in a module.
    ///
    /// Its arguments are the name of the module, and an async closure that makes a new, empty store
    /// and a guard that lives as long:
    /// `manage_keys_contract!(my_store, async || (MyStore::new().await, ()));`
    macro manage_keys_contract;
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
    keys_are_read_by_id
    many_hashes_find_their_keys
    a_taken_id_is_a_conflict
    a_taken_hash_is_a_conflict
    an_update_replaces_what_may_change
    an_update_keeps_what_may_not_change
    an_update_of_an_older_version_is_a_conflict
    an_update_of_an_unknown_key_is_a_conflict
    one_of_two_concurrent_updates_wins
    a_revocation_is_permanent
    a_revocation_survives_an_update
    a_revocation_survives_a_concurrent_update
    revoking_an_unknown_key_finds_none
    writes_have_the_time_of_the_store
    a_dropped_transaction_leaves_nothing
    a_transaction_changes_all_at_once
    an_insertion_skips_known_keys
    a_batch_is_revoked_once
    a_deleted_key_is_gone
    keys_of_a_consumer_are_counted
    rotations_are_counted_from_the_newest
    events_are_read_newest_first_by_the_page
    a_request_is_claimed_once
    one_of_two_concurrent_claims_wins
    old_claims_are_deleted
    pages_have_each_key_once
    pages_have_each_key_once_while_keys_are_added
    every_filter_finds_its_keys
    an_end_in_time_is_exclusive
    a_plan_is_set_changed_and_removed
    plans_are_in_byte_order
    an_invalid_plan_name_is_refused
    every_read_has_the_limits_of_the_plan
    an_undefined_plan_has_no_limits
    limits_of_a_plan_are_not_stored_with_the_key
}

/// Changes one key in a transaction of its own.
async fn inserted<S: ManageKeys>(store: &S, record: KeyRecord) -> Result<KeyRecord, Violation> {
    super::key_store::seeded(store, record).await
}

async fn update<S: ManageKeys>(store: &S, record: &KeyRecord) -> Result<KeyRecord, StoreError> {
    let mut transaction = store.begin().await?;
    let updated = transaction.update(record).await?;
    transaction.commit().await?;
    Ok(updated)
}

/// The record after the revocation; `None` if there is no such key.
async fn revoke<S: ManageKeys>(
    store: &S,
    id: KeyId,
    reason: Option<&str>,
) -> Result<Option<KeyRecord>, StoreError> {
    let mut transaction = store.begin().await?;
    transaction.revoke(slice::from_ref(&id), reason).await?;
    transaction.commit().await?;
    store.get(id).await
}

/// The record by its hash, which must be the same by its id.
async fn found<S: ManageKeys>(store: &S, record: &KeyRecord) -> Result<KeyRecord, Violation> {
    let found = found_by_hash(store, record).await?;
    let got = some(store.get(record.id).await?, "`get` must return a key that is stored")?;
    equal(&unread(&got), &unread(&found), "`get` and `find` must return the same record")?;
    Ok(found)
}

async fn is_stored<S: ManageKeys>(
    store: &S,
    expected: &KeyRecord,
    why: &str,
) -> Result<(), Violation> {
    equal(&unread(&found(store, expected).await?), &unread(expected), why)
}
