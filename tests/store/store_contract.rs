//! The contract of every store, checked on all of them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::time::{Duration, SystemTime};

use tower_api_key::{
    clock::{Clock, SystemClock},
    key::{KeyFormat, KeyHash, SystemEntropy},
    rate_limit::{Quota, RateLimits},
    record::{
        AuditEntry, KeyAction, KeyId, KeyKind, KeyRecord, KeyStatus, Metadata, Networks, Scope,
        Scopes, Tags, WebOrigins,
    },
    store::{
        EventQuery, KeyQuery, ManageKeys, StoreErrorKind,
        port::{IdempotencyRecord, KeyFilter, KeyTransaction, Usage},
    },
};

use crate::raw_store::ByHand as _;

/// Runs each rule on a new store of each kind.
macro_rules! contract {
    ($($rule:ident)*) => {
        mod memory {
            use tower_api_key::store::MemoryKeyStore;

            $(
                #[tokio::test]
                async fn $rule() {
                    super::$rule(&MemoryKeyStore::new()).await;
                }
            )*
        }

        mod sqlite_in_memory {
            use tower_api_key::store::SqliteKeyStore;

            $(
                #[tokio::test]
                async fn $rule() {
                    let store = SqliteKeyStore::connect("sqlite::memory:").await.unwrap();
                    store.migrate().await.unwrap();
                    super::$rule(&store).await;
                }
            )*
        }

        mod sqlite_file {
            use tower_api_key::store::SqliteKeyStore;

            $(
                #[tokio::test]
                async fn $rule() {
                    let folder = tempfile::tempdir().unwrap();
                    let url = format!("sqlite://{}/keys.db", folder.path().display());
                    let store = SqliteKeyStore::connect(&url).await.unwrap();
                    store.migrate().await.unwrap();
                    super::$rule(&store).await;
                }
            )*
        }

        mod postgres {
            use tower_api_key::store::PgKeyStore;

            use crate::servers::postgres::Server;

            $(
                #[tokio::test]
                async fn $rule() {
                    let database = Server::shared().database().await;
                    let store = PgKeyStore::connect(database.url()).await.unwrap();
                    store.migrate().await.unwrap();
                    super::$rule(&store).await;
                }
            )*
        }
    };
}

contract! {
    every_field_comes_back
    the_smallest_record_comes_back
    no_limits_of_its_own_is_not_unlimited
    text_is_kept_as_it_is
    times_keep_their_microseconds
    a_key_is_found_in_every_state
    what_is_unknown_is_absent
    a_taken_id_is_a_conflict
    a_taken_hash_is_a_conflict
    an_update_replaces_what_may_change
    an_update_keeps_what_may_not_change
    an_update_of_an_older_version_is_a_conflict
    an_update_of_an_unknown_key_is_a_conflict
    of_two_updates_at_once_one_wins
    a_revocation_is_for_good
    a_revocation_outlives_an_update
    revoking_an_unknown_key_finds_none
    the_read_is_dated_by_the_store
    usage_is_remembered
    usage_never_goes_backwards
    usage_of_unknown_keys_is_ignored
    an_empty_batch_is_fine
    a_large_batch_is_fine
    a_transaction_that_is_dropped_leaves_nothing
    a_transaction_changes_all_at_once
    an_insertion_leaves_out_what_is_known
    a_batch_is_revoked_once
    a_key_that_is_deleted_is_gone
    events_are_kept_in_order_and_read_by_the_page
    a_request_is_claimed_once
    of_two_claims_at_once_one_wins
    old_claims_are_swept
    pages_have_each_key_once_while_keys_are_added
    every_filter_finds_what_it_should
    an_end_in_time_is_exclusive
    a_plan_is_set_changed_and_removed
    plans_are_ordered_by_their_bytes
    a_plan_without_a_decent_name_is_refused
    every_read_of_a_key_has_what_its_plan_is_now
    a_plan_that_nobody_defined_has_no_limits_here
    a_plan_is_no_part_of_a_key
}

fn now() -> SystemTime {
    let micros = SystemClock::new().now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros.as_micros().try_into().unwrap())
}

fn id() -> KeyId {
    KeyId::generate(now(), &SystemEntropy).unwrap()
}

fn hash() -> KeyHash {
    KeyFormat::new("test_").unwrap().generate().unwrap().hash()
}

fn record() -> KeyRecord {
    KeyRecord::new(id(), hash(), "acme", now())
}

const MINUTE: Duration = Duration::from_secs(60);

/// A record without default values.
fn full_record() -> KeyRecord {
    let mut record = record();
    record.key_prefix = "sk_live_".into();
    record.key_last4 = "Zq0Q".into();
    record.name = Some("nightly export".into());
    record.scopes = Scopes::parse(["reports:write", "reports:read"]).unwrap();
    record.rate_limits = Some(limits());
    record.plan = Some("Team-5_eu.v2".into());
    record.metadata = Metadata::from_json(r#"{"plan":"pro","seats":[1,2.5,null]}"#).unwrap();
    record.networks = Networks::parse(["2001:db8::/32", "10.0.0.0/8", "192.0.2.1"]).unwrap();
    record.tags = Tags::parse(["team:billing", "mobile"]).unwrap();
    record.kind = KeyKind::Publishable;
    record.origins = WebOrigins::parse(["https://shop.example", "http://localhost:3000"]).unwrap();
    record.is_active = false;
    record.created_by = Some("alice".into());
    record.not_before = Some(record.created_at + MINUTE);
    record.expires_at = Some(record.created_at + 2 * MINUTE);
    record.revoked_at = Some(record.created_at - MINUTE);
    record.revoked_reason = Some("leaked".into());
    record.rotated_from = Some(id());
    record.root_id = id();
    record.version = 7;
    record
}

fn limits() -> RateLimits {
    let burst = Quota::per_second(10).unwrap().burst(20).unwrap();
    let strict = Quota::at_most(1000, 1440 * MINUTE).unwrap().named("day").unwrap();
    RateLimits::new([strict, burst]).unwrap()
}

async fn inserted(store: &impl ManageKeys, record: KeyRecord) -> KeyRecord {
    store.insert(&record).await.unwrap();
    record
}

async fn found(store: &impl ManageKeys, record: &KeyRecord) -> KeyRecord {
    let found = store.find(&record.key_hash).await.unwrap().unwrap();
    let got = store.get(record.id).await.unwrap().unwrap();
    assert_eq!(unread(&found), unread(&got));
    found
}

/// A record without the time it was read at.
fn unread(record: &KeyRecord) -> KeyRecord {
    let mut unread = record.clone();
    unread.read_at = SystemTime::UNIX_EPOCH;
    unread
}

async fn comes_back(store: &impl ManageKeys, record: KeyRecord) {
    let record = inserted(store, record).await;
    assert_eq!(unread(&found(store, &record).await), unread(&record));
}

async fn every_field_comes_back(store: &impl ManageKeys) {
    comes_back(store, full_record()).await;
}

async fn the_smallest_record_comes_back(store: &impl ManageKeys) {
    let mut record = record();
    record.consumer_id = String::new();
    comes_back(store, record).await;
}

async fn no_limits_of_its_own_is_not_unlimited(store: &impl ManageKeys) {
    for limits in [None, Some(RateLimits::unlimited()), Some(limits())] {
        let mut record = record();
        record.rate_limits = limits.clone();
        store.insert(&record).await.unwrap();
        assert_eq!(found(store, &record).await.rate_limits, limits);
    }
}

async fn text_is_kept_as_it_is(store: &impl ManageKeys) {
    for text in [
        "",
        " ",
        "Zürich 東京 🔑 \u{202e}abc",
        "e\u{301} is not \u{e9}",
        "'; drop table api_keys; --",
        "100%_\\ \"quoted\"\r\n\t",
        "{1,2}",
        "null",
    ] {
        let mut record = full_record();
        record.consumer_id = text.into();
        record.name = Some(text.into());
        record.created_by = Some(text.into());
        record.revoked_reason = Some(text.into());
        record.metadata = Metadata::new(&[(text, text)].into_iter().collect::<Map>()).unwrap();
        comes_back(store, record).await;
    }
}

type Map = std::collections::BTreeMap<&'static str, &'static str>;

async fn times_keep_their_microseconds(store: &impl ManageKeys) {
    let epoch = SystemTime::UNIX_EPOCH;
    let century = Duration::from_secs(100 * 365 * 86_400);
    for at in [
        epoch,
        epoch - Duration::from_micros(1),
        epoch + Duration::from_micros(1_767_225_600_123_456),
        epoch - century + Duration::from_micros(999_999),
        // Beyond the year 9999.
        epoch + 100 * century + Duration::from_micros(1),
    ] {
        let mut record = record();
        record.created_at = at;
        record.expires_at = Some(at);
        record.not_before = Some(at);
        record.revoked_at = Some(at);
        comes_back(store, record).await;
    }
}

async fn a_key_is_found_in_every_state(store: &impl ManageKeys) {
    type Change = fn(&mut KeyRecord);
    let states: [(KeyStatus, Change); 5] = [
        (KeyStatus::Active, |_| {}),
        (KeyStatus::Inactive, |record| record.is_active = false),
        (KeyStatus::NotYetActive, |record| record.not_before = Some(now() + 60 * MINUTE)),
        (KeyStatus::Expired, |record| record.expires_at = Some(now() - MINUTE)),
        (KeyStatus::Revoked, |record| record.revoked_at = Some(now() - MINUTE)),
    ];
    for (status, change) in states {
        let mut record = record();
        change(&mut record);
        store.insert(&record).await.unwrap();
        let found = found(store, &record).await;
        assert_eq!(found.status(found.read_at), status);
    }
}

async fn what_is_unknown_is_absent(store: &impl ManageKeys) {
    store.insert(&record()).await.unwrap();
    assert_eq!(store.find(&hash()).await.unwrap(), None);
    assert_eq!(store.get(id()).await.unwrap(), None);
    assert_eq!(store.last_used_at(id()).await.unwrap(), None);
}

async fn a_taken_id_is_a_conflict(store: &impl ManageKeys) {
    let first = inserted(store, full_record()).await;
    let mut second = record();
    second.id = first.id;
    let error = store.insert(&second).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Conflict);
    assert_eq!(unread(&found(store, &first).await), unread(&first));
    assert_eq!(store.find(&second.key_hash).await.unwrap(), None);
}

async fn a_taken_hash_is_a_conflict(store: &impl ManageKeys) {
    let first = inserted(store, full_record()).await;
    let mut second = record();
    second.key_hash = first.key_hash;
    let error = store.insert(&second).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Conflict);
    assert_eq!(unread(&found(store, &first).await), unread(&first));
    assert_eq!(store.get(second.id).await.unwrap(), None);
}

async fn an_update_replaces_what_may_change(store: &impl ManageKeys) {
    let old = inserted(store, record()).await;
    let full = full_record();
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

    let updated = store.update(&changed).await.unwrap();
    changed.version = 2;
    assert_eq!(unread(&updated), unread(&changed));
    assert_eq!(unread(&found(store, &old).await), unread(&changed));

    let mut back = old.clone();
    back.version = 2;
    let updated = store.update(&back).await.unwrap();
    back.version = 3;
    assert_eq!(unread(&updated), unread(&back));
}

async fn an_update_keeps_what_may_not_change(store: &impl ManageKeys) {
    let old = inserted(store, record()).await;
    let mut changed = full_record();
    // A secret key has no origins.
    changed.origins = old.origins.clone();
    (changed.id, changed.version) = (old.id, old.version);

    let updated = store.update(&changed).await.unwrap();
    assert_eq!(updated.key_hash, old.key_hash);
    assert_eq!(updated.key_prefix, old.key_prefix);
    assert_eq!(updated.key_last4, old.key_last4);
    assert_eq!(updated.consumer_id, old.consumer_id);
    assert_eq!(updated.kind, old.kind);
    assert_eq!(updated.created_at, old.created_at);
    assert_eq!(updated.created_by, old.created_by);
    assert_eq!(updated.revoked_at, old.revoked_at);
    assert_eq!(updated.revoked_reason, old.revoked_reason);
    assert_eq!(updated.rotated_from, old.rotated_from);
    assert_eq!(updated.root_id, old.root_id);
    assert_eq!(store.find(&changed.key_hash).await.unwrap(), None);
}

async fn an_update_of_an_older_version_is_a_conflict(store: &impl ManageKeys) {
    let old = inserted(store, record()).await;
    let mut first = old.clone();
    first.name = Some("first".into());
    let mut second = old.clone();
    second.name = Some("second".into());

    let updated = store.update(&first).await.unwrap();
    let error = store.update(&second).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Conflict);
    assert_eq!(unread(&found(store, &old).await), unread(&updated));
}

async fn an_update_of_an_unknown_key_is_a_conflict(store: &impl ManageKeys) {
    let error = store.update(&record()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Conflict);
}

async fn of_two_updates_at_once_one_wins(store: &impl ManageKeys) {
    for _ in 0..20 {
        let old = inserted(store, record()).await;
        let (one, other) = tokio::join!(store.update(&old), store.update(&old));
        let (won, lost) = if one.is_ok() { (one, other) } else { (other, one) };
        assert_eq!(won.unwrap().version, 2);
        assert_eq!(lost.unwrap_err().kind(), StoreErrorKind::Conflict);
    }
}

async fn a_revocation_is_for_good(store: &impl ManageKeys) {
    let old = inserted(store, record()).await;
    let first = store.revoke(old.id, Some("leaked")).await.unwrap().unwrap();
    assert_eq!(first.version, 2);
    assert_eq!(first.revoked_reason.as_deref(), Some("leaked"));
    assert_eq!(first.status(first.read_at), KeyStatus::Revoked);
    assert!(apart(first.revoked_at.unwrap(), now()) < MINUTE);

    for reason in [Some("another"), None] {
        let again = store.revoke(old.id, reason).await.unwrap().unwrap();
        assert_eq!(unread(&again), unread(&first));
    }
    assert_eq!(unread(&found(store, &old).await), unread(&first));

    let unexplained = inserted(store, record()).await;
    let revoked = store.revoke(unexplained.id, None).await.unwrap().unwrap();
    assert_eq!(revoked.revoked_reason, None);
}

async fn a_revocation_outlives_an_update(store: &impl ManageKeys) {
    let old = inserted(store, record()).await;
    let revoked = store.revoke(old.id, Some("leaked")).await.unwrap().unwrap();
    let stale = store.update(&old).await.unwrap_err();
    assert_eq!(stale.kind(), StoreErrorKind::Conflict);

    let mut renamed = revoked.clone();
    renamed.name = Some("of old".into());
    (renamed.revoked_at, renamed.revoked_reason) = (None, None);
    let updated = store.update(&renamed).await.unwrap();
    assert_eq!(updated.name, renamed.name);
    assert_eq!(updated.revoked_at, revoked.revoked_at);
    assert_eq!(updated.revoked_reason, revoked.revoked_reason);
}

async fn revoking_an_unknown_key_finds_none(store: &impl ManageKeys) {
    assert_eq!(store.revoke(id(), Some("leaked")).await.unwrap(), None);
}

async fn the_read_is_dated_by_the_store(store: &impl ManageKeys) {
    let mut old = record();
    old.read_at = SystemTime::UNIX_EPOCH;
    store.insert(&old).await.unwrap();
    let found = found(store, &old).await;
    assert!(apart(found.read_at, now()) < MINUTE);
    let updated = store.update(&old).await.unwrap();
    assert!(apart(updated.read_at, now()) < MINUTE);
    assert!(store.get(old.id).await.unwrap().unwrap().read_at >= found.read_at);
}

fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}

async fn usage_is_remembered(store: &impl ManageKeys) {
    let used = inserted(store, record()).await;
    let unused = inserted(store, record()).await;
    let at = now();
    store.record_usage(&[Usage::new(used.id, at)]).await.unwrap();
    assert_eq!(store.last_used_at(used.id).await.unwrap(), Some(at));
    assert_eq!(store.last_used_at(unused.id).await.unwrap(), None);
    assert_eq!(unread(&found(store, &used).await), unread(&used), "the record is left alone");
}

async fn usage_never_goes_backwards(store: &impl ManageKeys) {
    let mut keys = [inserted(store, record()).await.id, inserted(store, record()).await.id];
    keys.sort();
    let [one, other] = keys;
    let noon = now();
    let (before, after) = (noon - MINUTE, noon + MINUTE);
    store.record_usage(&[Usage::new(one, noon), Usage::new(other, noon)]).await.unwrap();
    store.record_usage(&[Usage::new(one, before), Usage::new(other, after)]).await.unwrap();
    assert_eq!(store.last_used_at(one).await.unwrap(), Some(noon));
    assert_eq!(store.last_used_at(other).await.unwrap(), Some(after));
}

async fn usage_of_unknown_keys_is_ignored(store: &impl ManageKeys) {
    let known = inserted(store, record()).await.id;
    let mut keys = [id(), known, id()];
    keys.sort();
    let at = now();
    store.record_usage(&keys.map(|id| Usage::new(id, at))).await.unwrap();
    for key in keys {
        let expected = (key == known).then_some(at);
        assert_eq!(store.last_used_at(key).await.unwrap(), expected);
    }
}

async fn an_empty_batch_is_fine(store: &impl ManageKeys) {
    store.record_usage(&[]).await.unwrap();
}

async fn a_large_batch_is_fine(store: &impl ManageKeys) {
    let known = inserted(store, record()).await.id;
    let mut keys: Vec<_> = (1..10_000).map(|_| id()).chain([known]).collect();
    keys.sort();
    let at = now();
    let batch: Vec<_> = keys.iter().map(|id| Usage::new(*id, at)).collect();
    store.record_usage(&batch).await.unwrap();
    assert_eq!(store.last_used_at(known).await.unwrap(), Some(at));
}

async fn a_transaction_that_is_dropped_leaves_nothing(store: &impl ManageKeys) {
    let kept = inserted(store, record()).await;
    let added = record();
    let mut transaction = store.begin().await.unwrap();
    transaction.insert(std::slice::from_ref(&added)).await.unwrap();
    transaction.revoke(&[kept.id], None).await.unwrap();
    transaction.write_audit(&[entry(&kept)]).await.unwrap();
    transaction.claim_idempotency_key(&claim(1, 1)).await.unwrap();
    drop(transaction);

    assert_eq!(store.get(added.id).await.unwrap(), None);
    assert_eq!(unread(&found(store, &kept).await), unread(&kept));
    assert!(store.events(&EventQuery::new()).await.unwrap().events.is_empty());
    let mut next = store.begin().await.unwrap();
    assert_eq!(next.claim_idempotency_key(&claim(1, 2)).await.unwrap(), None);
}

async fn a_transaction_changes_all_at_once(store: &impl ManageKeys) {
    let old = inserted(store, record()).await;
    let new = record();
    let mut transaction = store.begin().await.unwrap();
    let locked = transaction.lock(&[old.id, id(), old.id]).await.unwrap();
    assert_eq!(locked.iter().map(unread).collect::<Vec<_>>(), [unread(&old)]);
    let mut retired = old.clone();
    retired.rotated_at = Some(now());
    let retired = transaction.update(&retired).await.unwrap();
    assert_eq!(transaction.insert(std::slice::from_ref(&new)).await.unwrap(), [new.id]);
    transaction.commit().await.unwrap();
    assert!(retired.rotated_at.is_some());
    assert_eq!(unread(&found(store, &old).await), unread(&retired));
    assert_eq!(unread(&found(store, &new).await), unread(&new));
}

async fn an_insertion_leaves_out_what_is_known(store: &impl ManageKeys) {
    let known = inserted(store, full_record()).await;
    let (mut same_id, mut same_hash, new) = (record(), record(), record());
    same_id.id = known.id;
    same_hash.key_hash = known.key_hash;
    let mut twin = record();
    twin.key_hash = new.key_hash;
    let mut transaction = store.begin().await.unwrap();
    let batch = [same_id, same_hash, new.clone(), twin];
    assert_eq!(transaction.insert(&batch).await.unwrap(), [new.id]);
    assert!(transaction.insert(&batch).await.unwrap().is_empty());
    transaction.commit().await.unwrap();
    assert_eq!(unread(&found(store, &known).await), unread(&known));
    assert_eq!(unread(&found(store, &new).await), unread(&new));
}

async fn a_batch_is_revoked_once(store: &impl ManageKeys) {
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(inserted(store, record()).await.id);
    }
    ids.sort_unstable();
    let backwards: Vec<_> = ids.iter().rev().copied().collect();
    let mut transaction = store.begin().await.unwrap();
    let revoked = transaction.revoke(&backwards, Some("leaked")).await.unwrap();
    assert_eq!(revoked.iter().map(|record| record.id).collect::<Vec<_>>(), ids);
    assert!(revoked.iter().all(|record| record.version == 2 && record.revoked_at.is_some()));
    assert!(transaction.revoke(&ids, None).await.unwrap().is_empty());
    let live = KeyFilter::Consumer("acme".into());
    assert!(transaction.lock_some(&live, &[], 100).await.unwrap().is_empty());
    let ended = KeyFilter::EndedBefore(now() + MINUTE);
    assert_eq!(transaction.lock_some(&ended, &[], 7).await.unwrap().len(), 7);
}

async fn a_key_that_is_deleted_is_gone(store: &impl ManageKeys) {
    let gone = inserted(store, full_record()).await;
    store.record_usage(&[Usage::new(gone.id, now())]).await.unwrap();
    let mut transaction = store.begin().await.unwrap();
    transaction.delete(&[gone.id]).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(store.find(&gone.key_hash).await.unwrap(), None);
    assert_eq!(store.last_used_at(gone.id).await.unwrap(), None);
}

fn entry(record: &KeyRecord) -> AuditEntry {
    let mut entry = AuditEntry::new(KeyAction::Updated, "operator");
    entry.key_id = Some(record.id);
    entry.consumer_id = Some(record.consumer_id.clone());
    entry
}

async fn events_are_kept_in_order_and_read_by_the_page(store: &impl ManageKeys) {
    let (one, mut other) = (record(), record());
    other.consumer_id = "globex".into();
    let entries: Vec<_> = (0..25)
        .map(|number: u32| {
            let mut entry = entry(if number.is_multiple_of(5) { &other } else { &one });
            entry.reason = Some(number.to_string());
            entry
        })
        .collect();
    let mut transaction = store.begin().await.unwrap();
    transaction.write_audit(&entries).await.unwrap();
    transaction.commit().await.unwrap();

    for (key_id, consumer_id) in
        [(None, None), (Some(other.id), None), (None, Some("globex".to_owned()))]
    {
        let all = key_id.is_none() && consumer_id.is_none();
        let mut query = EventQuery::new();
        (query.key_id, query.consumer_id, query.limit) = (key_id, consumer_id, 2);
        let mut found = Vec::new();
        loop {
            let page = store.events(&query).await.unwrap();
            found.extend(page.events);
            assert!(found.len() <= entries.len(), "the pages do not end");
            query.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        assert!(found.is_sorted_by(|newer, older| newer.id > older.id));
        found.reverse();
        let expected = entries.iter().filter(|entry| all || entry.key_id == Some(other.id));
        assert!(found.iter().map(|event| &event.entry).eq(expected));
        assert!(found.iter().all(|event| apart(event.at, now()) < MINUTE));
    }
}

fn claim(request: u8, key: u8) -> IdempotencyRecord {
    IdempotencyRecord::new([request; 32], [7; 32], KeyId::from_bytes([key; 16]))
}

async fn a_request_is_claimed_once(store: &impl ManageKeys) {
    for (key, earlier) in [(1, None), (2, Some(claim(1, 1)))] {
        let mut transaction = store.begin().await.unwrap();
        assert_eq!(transaction.claim_idempotency_key(&claim(1, key)).await.unwrap(), earlier);
        transaction.commit().await.unwrap();
    }
}

async fn of_two_claims_at_once_one_wins(store: &impl ManageKeys) {
    let carry_out = async |key| {
        let mut transaction = store.begin().await.unwrap();
        let earlier = transaction.claim_idempotency_key(&claim(1, key)).await.unwrap();
        transaction.commit().await.unwrap();
        earlier
    };
    let (one, other) = tokio::join!(carry_out(1), carry_out(2));
    assert!(matches!((one, other), (None, Some(_)) | (Some(_), None)), "{one:?} {other:?}");
}

async fn old_claims_are_swept(store: &impl ManageKeys) {
    for request in 1..=5 {
        let mut transaction = store.begin().await.unwrap();
        transaction.claim_idempotency_key(&claim(request, 1)).await.unwrap();
        transaction.commit().await.unwrap();
    }
    for (before, swept) in [(now() - MINUTE, 0), (now() + MINUTE, 3), (now() + MINUTE, 2)] {
        let mut transaction = store.begin().await.unwrap();
        assert_eq!(transaction.delete_expired(before, 3).await.unwrap(), swept);
        transaction.commit().await.unwrap();
    }
}

/// All pages of a query.
async fn listed(store: &impl ManageKeys, mut query: KeyQuery) -> Vec<KeyId> {
    let mut found = Vec::new();
    loop {
        let page = store.list(&query).await.unwrap();
        found.extend(page.keys.iter().map(|key| key.record.id));
        assert!(found.len() <= 1_000, "the pages do not end");
        query.after = page.next;
        if page.next.is_none() {
            return found;
        }
    }
}

async fn pages_have_each_key_once_while_keys_are_added(store: &impl ManageKeys) {
    let mut before = Vec::new();
    for _ in 0..11 {
        before.push(inserted(store, record()).await.id);
    }
    before.sort_unstable_by(|one, other| other.cmp(one));
    let mut query = KeyQuery::new();
    query.limit = 3;
    let mut found = Vec::new();
    loop {
        let page = store.list(&query).await.unwrap();
        found.extend(page.keys.iter().map(|key| key.record.id));
        assert!(found.len() <= 1_000, "the pages do not end");
        query.after = page.next;
        if page.next.is_none() {
            break;
        }
        inserted(store, record()).await;
    }
    found.retain(|id| before.contains(id));
    assert_eq!(found, before);
}

async fn every_filter_finds_what_it_should(store: &impl ManageKeys) {
    type Change = fn(&mut KeyRecord);
    type Ask = fn(&mut KeyQuery);
    let kinds: [(Change, Ask); 10] = [
        (|key| key.consumer_id = "globex".into(), |ask| ask.consumer_id = Some("globex".into())),
        (|key| key.key_prefix = "x_".into(), |ask| ask.key_prefix = Some("x_".into())),
        (
            |key| key.tags = Tags::parse(["rare", "other"]).unwrap(),
            |ask| ask.tag = Some("rare".into()),
        ),
        (
            |key| key.scopes = Scopes::parse(["rare", "other"]).unwrap(),
            |ask| ask.scope = Some(Scope::new("rare").unwrap()),
        ),
        (|key| key.is_active = false, |ask| ask.status = Some(KeyStatus::Inactive)),
        (
            |key| key.not_before = Some(now() + MINUTE),
            |ask| ask.status = Some(KeyStatus::NotYetActive),
        ),
        (|key| key.expires_at = Some(now() - MINUTE), |ask| ask.status = Some(KeyStatus::Expired)),
        (|key| key.revoked_at = Some(now()), |ask| ask.status = Some(KeyStatus::Revoked)),
        (
            |key| key.expires_at = Some(now() + MINUTE),
            |ask| {
                ask.expires_before = Some(now() + 2 * MINUTE);
                ask.status = Some(KeyStatus::Active);
            },
        ),
        (|key| key.created_at = now() - MINUTE, |ask| ask.unused_since = Some(now() - MINUTE / 2)),
    ];
    for (change, ask) in kinds {
        inserted(store, record()).await;
        let mut one = record();
        change(&mut one);
        let one = inserted(store, one).await;
        inserted(store, record()).await;
        let mut query = KeyQuery::new();
        ask(&mut query);
        assert_eq!(listed(store, query).await, [one.id]);
    }
}

/// Times are stored in microseconds.
async fn an_end_in_time_is_exclusive(store: &impl ManageKeys) {
    let (end, tick) = (now() - MINUTE, Duration::from_micros(1));
    let mut expired = record();
    (expired.created_at, expired.expires_at) = (end, Some(end));
    let mut used = record();
    used.created_at = end - MINUTE;
    let mut revoked = record();
    revoked.revoked_at = Some(end);
    let [expired, used, revoked] = [
        inserted(store, expired).await,
        inserted(store, used).await,
        inserted(store, revoked).await,
    ];
    store.record_usage(&[Usage::new(used.id, end)]).await.unwrap();

    for (end, finds) in [(end, false), (end + tick, true)] {
        let ids = |expected: &[KeyId]| if finds { expected.to_vec() } else { Vec::new() };
        let mut query = KeyQuery::new();
        query.expires_before = Some(end);
        assert_eq!(listed(store, query).await, ids(&[expired.id]));
        let mut query = KeyQuery::new();
        query.unused_since = Some(end);
        let mut both = [expired.id, used.id];
        both.sort_unstable_by(|one, other| other.cmp(one));
        assert_eq!(listed(store, query).await, ids(&both));
        let mut transaction = store.begin().await.unwrap();
        let ended = KeyFilter::EndedBefore(end);
        let mut both = [expired.id, revoked.id];
        both.sort_unstable();
        let mut selected = transaction.select_some(&ended, &[], 9).await.unwrap();
        selected.sort_unstable();
        assert_eq!(selected, ids(&both));
        let locked = transaction.lock_some(&ended, &[], 9).await.unwrap();
        let mut locked: Vec<_> = locked.iter().map(|record| record.id).collect();
        locked.sort_unstable();
        assert_eq!(locked, ids(&both));
        let one_more = transaction.select_some(&ended, &[both[0]], 1).await.unwrap();
        assert_eq!(one_more, ids(&both[1..]));
    }
}

async fn a_plan_is_set_changed_and_removed(store: &impl ManageKeys) {
    assert_eq!(store.plans().await.unwrap(), []);
    for limits in [limits(), RateLimits::unlimited(), limits(), limits()] {
        store.set_plan("pro", &limits).await.unwrap();
        assert_eq!(store.plans().await.unwrap(), [("pro".to_owned(), limits)]);
    }
    assert!(!store.remove_plan("Pro").await.unwrap());
    assert!(store.remove_plan("pro").await.unwrap());
    assert!(!store.remove_plan("pro").await.unwrap());
    assert_eq!(store.plans().await.unwrap(), []);
}

async fn plans_are_ordered_by_their_bytes(store: &impl ManageKeys) {
    let ordered = ["-", ".", "10", "2", "B", "_", "a", "ab", "b"];
    for name in ["b", "_", "a", "2", "B", ".", "-", "10", "ab"] {
        store.set_plan(name, &limits()).await.unwrap();
    }
    let plans = store.plans().await.unwrap();
    assert_eq!(plans.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ordered);
}

async fn a_plan_without_a_decent_name_is_refused(store: &impl ManageKeys) {
    let (long, longer) = ("x".repeat(64), "x".repeat(65));
    for name in ["", " ", "a b", "a/b", "pro\n", "a\0", "é", "'", &longer] {
        let error = store.set_plan(name, &limits()).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Other, "{name:?}");
        assert!(format!("{error:?}").contains("1 to 64 letters"), "{error:?}");
    }
    store.set_plan(&long, &limits()).await.unwrap();
    assert_eq!(store.plans().await.unwrap().len(), 1);
}

/// All operations of a store that return a record, except writes.
async fn reads(store: &impl ManageKeys, record: &KeyRecord) -> Vec<KeyRecord> {
    let mut tx = store.begin().await.unwrap();
    let mut reads = tx.lock(&[record.id]).await.unwrap();
    let consumer = KeyFilter::Consumer(record.consumer_id.clone());
    let prefix = KeyFilter::Prefix(record.key_prefix.clone());
    for selection in [consumer, prefix, KeyFilter::EndedBefore(now() + 60 * MINUTE)] {
        reads.extend(tx.lock_some(&selection, &[], 10).await.unwrap());
    }
    drop(tx);
    let scope = Scope::new("reports:read").unwrap();
    for query in [
        KeyQuery::new(),
        KeyQuery::new().consumer_id(record.consumer_id.clone()),
        KeyQuery::new().key_prefix(record.key_prefix.clone()),
        KeyQuery::new().scope(scope),
        KeyQuery::new().tag("mobile"),
        KeyQuery::new().status(KeyStatus::Active),
    ] {
        let page = store.list(&query).await.unwrap();
        reads.extend(page.keys.into_iter().map(|key| key.record));
    }
    reads.push(store.find(&record.key_hash).await.unwrap().unwrap());
    reads.push(store.get(record.id).await.unwrap().unwrap());
    assert_eq!(reads.len(), 12, "each finds the one key");
    reads
}

async fn every_read_of_a_key_has_what_its_plan_is_now(store: &impl ManageKeys) {
    let mut record = full_record();
    (record.is_active, record.not_before, record.revoked_at) = (true, None, None);
    (record.revoked_reason, record.plan) = (None, Some("pro".into()));
    let mut record = inserted(store, record).await;
    store.set_plan("other", &limits()).await.unwrap();
    for limits in [RateLimits::unlimited(), limits()] {
        store.set_plan("pro", &limits).await.unwrap();
        for read in reads(store, &record).await {
            assert_eq!(
                (read.plan.as_deref(), read.plan_limits),
                (Some("pro"), Some(limits.clone()))
            );
        }
    }
    // Those that write it, too.
    for (plan, expected) in
        [("undefined", None), ("other", Some(limits())), ("pro", Some(limits()))]
    {
        record.plan = Some(plan.into());
        let mut tx = store.begin().await.unwrap();
        let updated = tx.update(&record).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!((updated.plan.as_deref(), &updated.plan_limits), (Some(plan), &expected));
        assert_eq!(unread(&found(store, &record).await), unread(&updated));
        record.version = updated.version;
    }
    let mut tx = store.begin().await.unwrap();
    let revoked = tx.revoke(&[record.id], None).await.unwrap();
    assert_eq!(revoked.first().unwrap().plan_limits, Some(limits()));
}

async fn a_plan_that_nobody_defined_has_no_limits_here(store: &impl ManageKeys) {
    let mut record = record();
    record.plan = Some("elsewhere".into());
    comes_back(store, record.clone()).await;
    store.set_plan("elsewhere", &limits()).await.unwrap();
    assert_eq!(found(store, &record).await.plan_limits, Some(limits()));
    store.remove_plan("elsewhere").await.unwrap();
    let found = found(store, &record).await;
    assert_eq!((found.plan.as_deref(), found.plan_limits), (Some("elsewhere"), None));
}

/// Limits read from the plan are not written back to the key.
async fn a_plan_is_no_part_of_a_key(store: &impl ManageKeys) {
    let mut record = record();
    record.plan = Some("pro".into());
    record.plan_limits = Some(RateLimits::unlimited());
    let stored = inserted(store, record).await;
    assert_eq!(found(store, &stored).await.plan_limits, None);
    store.update(&stored).await.unwrap();
    assert_eq!(found(store, &stored).await.plan_limits, None);
    assert_eq!(store.plans().await.unwrap(), []);
}
