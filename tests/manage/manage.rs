//! The life of a key, on every store: the rules of issuing, changing, rotating, revoking, importing
//! and pruning, and of the audit.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};
use tower_api_key::{
    Consumer,
    clock::{Clock as _, SystemClock},
    key::{AcceptedFormat, KeyFormat, KeyHash},
    manage::{
        Actor, Expiry, IssuePolicy, Issued, KeyImport, KeyIssuer, KeyUpdate, ManageError,
        ManageErrorKind, NewKey, RevocationFilter, Revocations, Rotation,
    },
    rate_limit::{Quota, RateLimits},
    record::{KeyAction, KeyEvent, KeyId, KeyRecord, KeyStatus, Metadata, Scope, Scopes, TextRule},
    store::{
        EventQuery, KeyQuery, ManageKeys, MemoryKeyStore,
        port::{
            CountedUses, HourlyUse, Invalidate, KeyTransaction as _, Usage, UsageBatch, UseCounts,
        },
    },
};

use crate::wait::eventually;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs each rule on a new store of each kind.
macro_rules! on_every_store {
    ($($rule:ident)*) => {
        mod memory {
            use tower_api_key::store::MemoryKeyStore;

            $(
                #[tokio::test]
                async fn $rule() {
                    super::$rule(MemoryKeyStore::new()).await;
                }
            )*
        }

        mod sqlite {
            use tower_api_key::store::SqliteKeyStore;

            $(
                #[tokio::test]
                async fn $rule() {
                    let folder = tempfile::tempdir().unwrap();
                    let url = format!("sqlite://{}/keys.db", folder.path().display());
                    let store = SqliteKeyStore::connect(&url).await.unwrap();
                    store.migrate().await.unwrap();
                    super::$rule(store).await;
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
                    super::$rule(store).await;
                }
            )*
        }
    };
}

on_every_store! {
    a_key_is_issued_with_its_line_in_the_audit
    texts_are_stored_as_they_are_or_refused
    a_change_is_written_down_field_by_field
    a_change_that_changes_nothing_is_none
    an_outdated_change_is_refused
    a_revoked_key_stays_as_it_is
    a_rotated_key_goes_on_working_for_a_while
    a_rotation_never_prolongs_the_old_key
    the_new_key_takes_everything_over
    the_new_key_of_one_that_does_not_work_yet_does_not_either
    metadata_are_replaced_or_merged
    the_new_key_lasts_as_long_as_the_old_one_was_meant_to
    a_key_is_rotated_once
    a_repeated_request_makes_no_second_key
    of_requests_that_are_repeated_at_once_one_makes_a_key
    an_idempotency_key_stands_for_one_request
    revoking_twice_keeps_the_first_reason
    all_keys_of_a_consumer_are_revoked
    all_keys_of_a_prefix_are_revoked
    the_keys_that_match_every_condition_are_revoked
    a_key_is_imported_by_its_hash
    an_import_that_was_interrupted_begins_again
    an_import_with_a_mistake_names_it_and_changes_nothing
    an_imported_key_keeps_its_id_and_a_conflict_is_named
    an_imported_key_that_has_ended_stays_ended
    the_clock_of_the_other_system_may_be_a_little_ahead
    an_import_is_tried_without_storing_anything
    what_has_ended_is_pruned_in_batches
    hours_of_use_are_pruned_in_batches_by_operators_alone
    a_caller_grants_what_it_holds
    a_caller_grants_no_more_than_it_holds
    a_caller_changes_a_key_within_what_it_holds
    a_caller_may_take_away_from_a_key_that_holds_more
    a_caller_does_not_see_the_keys_of_others
    what_is_denied_is_in_the_audit
    a_caller_that_was_revoked_meanwhile_changes_nothing
    a_caller_that_lost_its_scope_meanwhile_changes_nothing
    a_caller_that_is_being_revoked_waits_and_changes_nothing
    a_change_that_nobody_waits_for_is_carried_through
    caches_are_told_of_every_change
    a_key_is_put_on_a_plan_and_taken_off
    a_plan_that_is_none_is_refused
    a_key_is_imported_onto_a_plan
    an_idempotency_key_stands_for_one_plan
    a_caller_grants_its_own_plan
    a_caller_that_nothing_limits_grants_any_plan
    a_caller_without_its_own_plan_grants_none
    a_caller_does_not_move_a_key_to_a_plan_it_is_not_on
    plans_are_for_operators
    caches_are_told_when_a_plan_changes
}

/// A store that can show that a change waits for a transaction.
trait Waits: ManageKeys {
    /// By default: looks keys up so often that a change that need not wait would be done.
    async fn is_waited_for(&self) {
        for _ in 0..200 {
            self.get(KeyId::from_bytes([0; 16])).await.unwrap();
            tokio::task::yield_now().await;
        }
    }
}

impl Waits for MemoryKeyStore {}

impl Waits for tower_api_key::store::SqliteKeyStore {}

impl Waits for tower_api_key::store::PgKeyStore {
    async fn is_waited_for(&self) {
        let waiting = "select exists (select from pg_stat_activity \
                       where datname = current_database() and wait_event_type = 'Lock')";
        eventually("a change waits for the lock of a row", async || {
            sqlx::query_scalar::<_, bool>(waiting).fetch_one(self.pool()).await.unwrap()
        })
        .await;
    }
}

fn issuer(store: impl ManageKeys) -> KeyIssuer {
    KeyIssuer::new(store, KeyFormat::new("sk_test_").unwrap())
}

fn scopes(scopes: &[&str]) -> Scopes {
    Scopes::parse(scopes.iter().copied()).unwrap()
}

fn scope(scope: &str) -> Scope {
    Scope::new(scope).unwrap()
}

fn new() -> NewKey {
    NewKey::new("acme", Expiry::In(DAY))
}

/// The whole audit, oldest first.
async fn audit(issuer: &KeyIssuer) -> Vec<KeyEvent> {
    let query = EventQuery::new().limit(1000);
    let mut events = issuer.events(&query).await.unwrap().events;
    events.reverse();
    events
}

async fn actions(issuer: &KeyIssuer) -> Vec<KeyAction> {
    audit(issuer).await.iter().map(|event| event.entry.action).collect()
}

fn changes(event: &KeyEvent) -> Value {
    serde_json::from_str(event.entry.changes.as_deref().unwrap_or("null")).unwrap()
}

async fn all(issuer: &KeyIssuer) -> Vec<KeyRecord> {
    let query = KeyQuery::new().limit(1000);
    issuer.list(&query).await.unwrap().keys.into_iter().map(|key| key.record).collect()
}

fn is(error: &ManageError, kind: ManageErrorKind, field: Option<&str>) {
    assert_eq!((error.kind(), error.field()), (kind, field), "{error}");
}

// Databases store microseconds.
fn micros(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros()
}

// Issuing.

async fn a_key_is_issued_with_its_line_in_the_audit(store: impl ManageKeys) {
    let issuer = issuer(store);
    let operator = issuer.by(Actor::operator("root@db1").origin("command line"));
    let new = new()
        .name("nightly export")
        .scopes(scopes(&["reports:read"]))
        .rate_limits(Quota::per_minute(60).unwrap())
        .reason("ticket 7");
    let Issued { key, record, .. } = operator.issue(new).await.unwrap();
    let stored = issuer.get(record.id).await.unwrap();
    assert_eq!(stored.record.key_hash, key.hash());
    assert_eq!(stored.record.created_by.as_deref(), Some("root@db1"));
    assert_eq!(stored.record.key_prefix, "sk_test_");
    assert!(key.expose_secret().ends_with(&stored.record.key_last4));
    assert_eq!(stored.last_used_at, None);

    let mut read_again = stored.record.clone();
    read_again.read_at = record.read_at;
    assert_eq!(read_again, record);

    let [event] = &audit(&issuer).await[..] else { panic!("one event") };
    assert_eq!(event.entry.action, KeyAction::Issued);
    assert_eq!(event.entry.key_id, Some(record.id));
    assert_eq!(event.entry.consumer_id.as_deref(), Some("acme"));
    assert_eq!(event.entry.actor, "root@db1");
    assert_eq!(event.entry.origin.as_deref(), Some("command line"));
    assert_eq!(event.entry.reason.as_deref(), Some("ticket 7"));
    let changes = changes(event);
    assert_eq!(changes["scopes"], json!({ "to": ["reports:read"] }));
    assert_eq!(changes["name"], json!({ "to": "nightly export" }));
    assert!(changes["expires_at"]["to"].is_string(), "{changes}");
}

async fn texts_are_stored_as_they_are_or_refused(store: impl ManageKeys) {
    let issuer = issuer(store);
    for name in ["żółć 🔑", "a'; drop table api_keys; --", "%s {} \\u0000 \"", " "] {
        let issued = issuer.issue(new().name(name)).await.unwrap();
        let stored = issuer.get(issued.record.id).await.unwrap();
        assert_eq!(stored.record.name.as_deref(), Some(name));
    }
    // Characters of all planes, as many at once as a name may have.
    let is_plain = |it: &char| TextRule::STORED.check(it.encode_utf8(&mut [0; 4])).is_ok();
    let characters: Vec<char> = ('\0'..=char::MAX).step_by(257).filter(is_plain).collect();
    assert!(characters.len() > 4_000);
    for name in characters.chunks(256).map(|some| some.iter().collect::<String>()) {
        let issued = issuer.issue(new().name(&*name)).await.unwrap();
        let stored = issuer.get(issued.record.id).await.unwrap();
        assert_eq!(stored.record.name, Some(name));
    }
    for name in ["a\nb", "\u{1b}[2J", "a\0b", "\u{202e}evil"] {
        is(
            &issuer.issue(new().name(name)).await.unwrap_err(),
            ManageErrorKind::Invalid,
            Some("name"),
        );
    }
    assert!(Metadata::from_json(r#"{"a":"\u0000"}"#).is_err(), "PostgreSQL does not store it");
    assert!(Metadata::from_json(r#"{"\u0000":{}}"#).is_err(), "PostgreSQL does not store it");
    let metadata = Metadata::from_json(r#"{"a":"\\u0000"}"#).unwrap();
    let issued = issuer.issue(new().metadata(metadata.clone())).await.unwrap();
    assert_eq!(issuer.get(issued.record.id).await.unwrap().record.metadata, metadata);
}

// Changing.

async fn a_change_is_written_down_field_by_field(store: impl ManageKeys) {
    let issuer = issuer(store);
    let key = issuer.issue(new().name("old").scopes(scopes(&["a"]))).await.unwrap().record;
    let update = KeyUpdate::new()
        .if_version(1)
        .name(Some("new".into()))
        .scopes(scopes(&["a", "b"]))
        .is_active(false)
        .expiry(Expiry::Never)
        .reason("why not");
    let changed = issuer.update(key.id, update).await.unwrap();
    assert_eq!((changed.version, changed.name.as_deref()), (2, Some("new")));
    assert_eq!((changed.is_active, changed.expires_at), (false, None));
    assert_eq!(issuer.get(key.id).await.unwrap().record.scopes, scopes(&["a", "b"]));

    let events = audit(&issuer).await;
    let event = events.last().unwrap();
    assert_eq!(event.entry.action, KeyAction::Updated);
    assert_eq!(event.entry.reason.as_deref(), Some("why not"));
    let changes = changes(event);
    assert_eq!(changes["name"], json!({ "from": "old", "to": "new" }));
    assert_eq!(changes["scopes"], json!({ "from": ["a"], "to": ["a", "b"] }));
    assert_eq!(changes["is_active"], json!({ "from": true, "to": false }));
    assert_eq!(changes["expires_at"]["to"], Value::Null);
    assert_eq!(changes.as_object().unwrap().len(), 4, "{changes}");
}

async fn a_change_that_changes_nothing_is_none(store: impl ManageKeys) {
    let issuer = issuer(store);
    let key = issuer.issue(new().name("old")).await.unwrap().record;
    let update = KeyUpdate::new().name(Some("old".into())).is_active(true);
    assert_eq!(issuer.update(key.id, update).await.unwrap().version, 1);
    assert_eq!(actions(&issuer).await, [KeyAction::Issued]);
}

async fn an_outdated_change_is_refused(store: impl ManageKeys) {
    let issuer = issuer(store);
    let key = issuer.issue(new()).await.unwrap().record;
    let update = |name: &str| KeyUpdate::new().if_version(1).name(Some(name.into()));
    issuer.update(key.id, update("first")).await.unwrap();
    let error = issuer.update(key.id, update("second")).await.unwrap_err();
    is(&error, ManageErrorKind::Outdated, None);
    assert_eq!(issuer.get(key.id).await.unwrap().record.name.as_deref(), Some("first"));
}

async fn a_revoked_key_stays_as_it_is(store: impl ManageKeys) {
    let issuer = issuer(store);
    let key = issuer.issue(new()).await.unwrap().record;
    issuer.revoke(key.id, None).await.unwrap();
    let update = KeyUpdate::new().expiry(Expiry::Never).is_active(true);
    is(&issuer.update(key.id, update).await.unwrap_err(), ManageErrorKind::Conflict, None);
    let error = issuer.rotate(key.id, Rotation::new()).await.unwrap_err();
    is(&error, ManageErrorKind::Conflict, None);
    assert_eq!(all(&issuer).await.len(), 1);
    assert_eq!(actions(&issuer).await, [KeyAction::Issued, KeyAction::Revoked]);
}

// Rotating.

async fn a_rotated_key_goes_on_working_for_a_while(store: impl ManageKeys) {
    let issuer = issuer(store);
    let old = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record;
    let rotated = issuer.rotate(old.id, Rotation::new().reason("quarterly")).await.unwrap();
    let previous = issuer.get(old.id).await.unwrap().record;
    let (since, end) = (previous.rotated_at.unwrap(), previous.expires_at.unwrap());
    assert_eq!(end.duration_since(since).unwrap(), DAY);
    assert_eq!(previous.status(since + DAY - Duration::from_micros(1)), KeyStatus::Active);
    assert_eq!(previous.status(since + DAY), KeyStatus::Expired);
    assert_eq!(rotated.previous.expires_at.map(micros), Some(micros(end)));
    assert_ne!(rotated.record.key_hash, old.key_hash);
    assert_eq!(rotated.key.hash(), rotated.record.key_hash);

    let events = audit(&issuer).await;
    let told: Vec<_> =
        events.iter().map(|event| (event.entry.action, event.entry.key_id)).collect();
    let new = rotated.record.id;
    assert_eq!(
        told,
        [
            (KeyAction::Issued, Some(old.id)),
            (KeyAction::Rotated, Some(old.id)),
            (KeyAction::Issued, Some(new)),
        ]
    );
    assert_eq!(changes(&events[2])["rotated_from"], json!({ "to": old.id.to_string() }));
    let reasons: Vec<_> = events.iter().map(|event| event.entry.reason.as_deref()).collect();
    assert_eq!(reasons, [None, Some("quarterly"), Some("quarterly")]);

    // At once.
    let rotation = Rotation::new().grace(Duration::ZERO);
    let again = issuer.rotate(new, rotation).await.unwrap();
    let ended = issuer.get(new).await.unwrap().record;
    assert_eq!(ended.status(ended.read_at), KeyStatus::Expired);
    assert_eq!(again.record.status(again.previous.read_at), KeyStatus::Active);
}

async fn a_rotation_never_prolongs_the_old_key(store: impl ManageKeys) {
    let issuer = issuer(store);
    let old = issuer.issue(NewKey::new("acme", Expiry::In(HOUR))).await.unwrap().record;
    let rotated = issuer.rotate(old.id, Rotation::new().grace(30 * DAY)).await.unwrap();
    assert_eq!(rotated.previous.expires_at.map(micros), old.expires_at.map(micros));

    // No longer, but also no shorter, is no change.
    let same = Expiry::At(rotated.previous.expires_at.unwrap());
    issuer.update(old.id, KeyUpdate::new().expiry(same)).await.unwrap();
    let longer = KeyUpdate::new().expiry(Expiry::In(2 * HOUR));
    let error = issuer.update(old.id, longer).await.unwrap_err();
    is(&error, ManageErrorKind::Invalid, Some("expires_at"));
    let never = KeyUpdate::new().expiry(Expiry::Never);
    let error = issuer.update(old.id, never).await.unwrap_err();
    is(&error, ManageErrorKind::Invalid, Some("expires_at"));
    issuer.update(old.id, KeyUpdate::new().expiry(Expiry::In(HOUR / 2))).await.unwrap();
}

async fn the_new_key_takes_everything_over(store: impl ManageKeys) {
    let issuer = issuer(store);
    let metadata = Metadata::from_json(r#"{"plan":"pro"}"#).unwrap();
    let new = NewKey::new("acme", Expiry::Never)
        .name("nightly export")
        .scopes(scopes(&["a", "b"]))
        .rate_limits(Quota::per_minute(60).unwrap())
        .plan("pro")
        .metadata(metadata);
    let old = issuer.issue(new).await.unwrap().record;
    let first = issuer.rotate(old.id, Rotation::new()).await.unwrap().record;
    let second = issuer.rotate(first.id, Rotation::new()).await.unwrap().record;
    let second = issuer.get(second.id).await.unwrap().record;
    assert_eq!(second.root_id, old.id, "the chain shares its buckets");
    assert_eq!(second.rotated_from, Some(first.id));
    assert_eq!(
        (second.consumer_id, second.name, second.scopes, second.rate_limits, second.metadata),
        (old.consumer_id, old.name, old.scopes, old.rate_limits, old.metadata)
    );
    assert_eq!(second.plan.as_deref(), Some("pro"));
    assert_eq!((second.rotated_at, second.expires_at), (None, None));
}

async fn the_new_key_of_one_that_does_not_work_yet_does_not_either(store: impl ManageKeys) {
    let issuer = issuer(store);
    let by = issuer.by(Actor::operator("root"));
    let inactive = issuer.issue(new()).await.unwrap().record;
    let now = inactive.read_at;
    let early = issuer.issue(new().not_before(now + DAY)).await.unwrap().record;
    issuer.update(inactive.id, KeyUpdate::new().is_active(false)).await.unwrap();
    for (old, status) in [(&early, KeyStatus::NotYetActive), (&inactive, KeyStatus::Inactive)] {
        let new = by.rotate(old.id, Rotation::new()).await.unwrap().record;
        let stored = issuer.get(new.id).await.unwrap().record;
        for new in [new, stored] {
            assert_eq!(new.status(now), status);
            assert_eq!(new.not_before.map(micros), old.not_before.map(micros));
            assert_eq!(new.created_by.as_deref(), Some("root"));
        }
    }
    let old = issuer.issue(new()).await.unwrap().record;
    issuer.set_plan("pro", &per_minute(60)).await.unwrap();
    issuer.update(old.id, KeyUpdate::new().plan(Some("pro".into()))).await.unwrap();
    let rotated = issuer.rotate(old.id, Rotation::new()).await.unwrap();
    assert_eq!(rotated.record.plan_limits, Some(per_minute(60)));
}

/// The last of both calls counts.
async fn metadata_are_replaced_or_merged(store: impl ManageKeys) {
    let issuer = issuer(store);
    let json = |text| Metadata::from_json(text).unwrap();
    let key = issuer.issue(new().metadata(json(r#"{"a":1}"#))).await.unwrap().record;
    let [merge, replace] = [json(r#"{"b":2}"#), json(r#"{"c":3}"#)];
    let update = KeyUpdate::new().metadata(replace.clone()).merge_metadata(merge.clone());
    let merged = issuer.update(key.id, update).await.unwrap();
    assert_eq!(merged.metadata, json(r#"{"a":1,"b":2}"#));
    let update = KeyUpdate::new().merge_metadata(merge).metadata(replace.clone());
    assert_eq!(issuer.update(key.id, update).await.unwrap().metadata, replace);
}

async fn the_new_key_lasts_as_long_as_the_old_one_was_meant_to(store: impl ManageKeys) {
    let issuer = issuer(store);
    let old = issuer.issue(NewKey::new("acme", Expiry::In(10 * DAY))).await.unwrap().record;
    let new = issuer.rotate(old.id, Rotation::new()).await.unwrap().record;
    assert_eq!(new.expires_at.unwrap().duration_since(new.created_at).unwrap(), 10 * DAY);

    let rotation = Rotation::new().expiry(Expiry::In(HOUR));
    let new = issuer.rotate(new.id, rotation).await.unwrap().record;
    assert_eq!(new.expires_at.unwrap().duration_since(new.created_at).unwrap(), HOUR);
}

async fn a_key_is_rotated_once(store: impl ManageKeys) {
    let issuer = issuer(store);
    let old = issuer.issue(new()).await.unwrap().record;
    issuer.rotate(old.id, Rotation::new()).await.unwrap();
    let error = issuer.rotate(old.id, Rotation::new()).await.unwrap_err();
    is(&error, ManageErrorKind::Conflict, None);
    assert!(error.to_string().contains("already rotated"), "{error}");
    assert_eq!(all(&issuer).await.len(), 2);

    let ended = issuer.issue(new()).await.unwrap().record;
    issuer.rotate(ended.id, Rotation::new().grace(Duration::ZERO)).await.unwrap();
    let error = issuer.rotate(ended.id, Rotation::new()).await.unwrap_err();
    is(&error, ManageErrorKind::Conflict, None);
    assert!(error.to_string().contains("expired"), "{error}");
}

// Repeating.

async fn a_repeated_request_makes_no_second_key(store: impl ManageKeys) {
    let issuer = issuer(store);
    let issue = || issuer.issue(new().idempotency_key("one"));
    let first = issue().await.unwrap().record;
    let error = issue().await.unwrap_err();
    is(&error, ManageErrorKind::Repeated, None);
    assert_eq!(error.key_id(), Some(first.id));

    let rotate = || issuer.rotate(first.id, Rotation::new().idempotency_key("two"));
    let second = rotate().await.unwrap().record;
    let error = rotate().await.unwrap_err();
    is(&error, ManageErrorKind::Repeated, None);
    assert_eq!(error.key_id(), Some(second.id));
    assert_eq!(all(&issuer).await.len(), 2);

    // For another caller it is another request.
    issuer.by(Actor::operator("eve")).issue(new().idempotency_key("one")).await.unwrap();
}

async fn of_requests_that_are_repeated_at_once_one_makes_a_key(store: impl ManageKeys) {
    let issuer = issuer(store);
    let mut requests = JoinSet::new();
    for _ in 0..8 {
        let issuer = issuer.clone();
        requests.spawn(async move { issuer.issue(new().idempotency_key("one")).await });
    }
    let outcomes = timeout(DEADLINE, requests.join_all()).await.unwrap();
    let (made, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(made.len(), 1);
    for error in refused {
        is(&error.unwrap_err(), ManageErrorKind::Repeated, None);
    }
    assert_eq!(all(&issuer).await.len(), 1);
}

async fn an_idempotency_key_stands_for_one_request(store: impl ManageKeys) {
    let issuer = issuer(store);
    let key = issuer.issue(new().idempotency_key("one")).await.unwrap().record;
    let other = new().name("another").idempotency_key("one");
    let error = issuer.issue(other).await.unwrap_err();
    is(&error, ManageErrorKind::IdempotencyKeyReused, Some("idempotency_key"));
    let error = issuer.rotate(key.id, Rotation::new().idempotency_key("one")).await.unwrap_err();
    is(&error, ManageErrorKind::IdempotencyKeyReused, Some("idempotency_key"));
    for junk in ["", "a b", "a\r\n", "ä", &"x".repeat(256)] {
        let error = issuer.issue(new().idempotency_key(junk)).await.unwrap_err();
        is(&error, ManageErrorKind::Invalid, Some("idempotency_key"));
    }
    assert_eq!(all(&issuer).await.len(), 1);
}

// Revoking.

async fn revoking_twice_keeps_the_first_reason(store: impl ManageKeys) {
    let issuer = issuer(store);
    let key = issuer.issue(new()).await.unwrap().record;
    let first = issuer.revoke(key.id, Some("leaked")).await.unwrap();
    let second = issuer.revoke(key.id, Some("again")).await.unwrap();
    assert_eq!(second.revoked_reason.as_deref(), Some("leaked"));
    assert_eq!(second.revoked_at.map(micros), first.revoked_at.map(micros));
    assert_eq!(actions(&issuer).await, [KeyAction::Issued, KeyAction::Revoked]);
    let absent = KeyId::from_bytes([7; 16]);
    is(&issuer.revoke(absent, None).await.unwrap_err(), ManageErrorKind::NotFound, None);
}

async fn all_keys_of_a_consumer_are_revoked(store: impl ManageKeys) {
    let issuer = issuer(store);
    let other = issuer.issue(NewKey::new("other", Expiry::Never)).await.unwrap().record;
    // More keys than a batch.
    let keys: Vec<_> = (0..1001_u32).map(|number| imported(number, "acme")).collect();
    issuer.import(keys).await.unwrap();
    assert_eq!(issuer.revoke_consumer("acme", Some("left")).await.unwrap().keys, 1001);
    assert_eq!(issuer.revoke_consumer("acme", None).await.unwrap(), Revocations::default());
    assert_eq!(issuer.revoke_consumer("nobody", None).await.unwrap(), Revocations::default());
    assert!(issuer.get(other.id).await.unwrap().record.revoked_at.is_none());

    let live = KeyQuery::new().status(KeyStatus::Active).limit(1000);
    assert_eq!(issuer.list(&live).await.unwrap().keys.len(), 1);
    let query = EventQuery::new().consumer_id("acme").limit(1000);
    let page = issuer.events(&query).await.unwrap();
    let revoked = |event: &KeyEvent| {
        event.entry.action == KeyAction::Revoked && event.entry.reason.as_deref() == Some("left")
    };
    assert_eq!(page.events.len(), 1000);
    assert!(page.events.iter().all(revoked));
    assert!(page.next.is_some(), "there is one more");
}

async fn all_keys_of_a_prefix_are_revoked(store: impl ManageKeys + Clone) {
    let test = issuer(store.clone());
    let live = KeyIssuer::new(store, KeyFormat::new("sk_live_").unwrap());
    for issuer in [&test, &test, &live] {
        issuer.issue(new()).await.unwrap();
    }
    assert_eq!(test.revoke_prefix("sk_test_", None).await.unwrap().keys, 2);
    let revoked = KeyQuery::new().status(KeyStatus::Revoked);
    let revoked = test.list(&revoked).await.unwrap();
    assert!(revoked.keys.iter().all(|key| key.record.key_prefix == "sk_test_"));
    assert_eq!(revoked.keys.len(), 2);
}

async fn the_keys_that_match_every_condition_are_revoked(store: impl ManageKeys + Clone) {
    let issuer = issuer(store.clone());
    let other = KeyIssuer::new(store.clone(), KeyFormat::new("sk_live_").unwrap());
    let early = issuer.issue(new()).await.unwrap().record;
    let used = issuer.issue(new()).await.unwrap().record;
    let consumer = issuer.issue(NewKey::new("beta", Expiry::Never)).await.unwrap().record;
    let prefix = other.issue(new()).await.unwrap().record;
    let revoked = issuer.issue(new()).await.unwrap().record;
    issuer.revoke(revoked.id, None).await.unwrap();
    let last = prefix.created_at.max(used.created_at) + HOUR;
    store.record_usage(&[Usage::new(used.id, last)].into()).await.unwrap();
    store.record_usage(&[Usage::new(early.id, last - HOUR)].into()).await.unwrap();

    let filter = RevocationFilter::new;
    let end = last + HOUR;
    for (filter, expected) in [
        (filter().consumer_id("beta"), vec![consumer.id]),
        (filter().key_prefix("sk_live_"), vec![prefix.id]),
        (filter().used_since(last), vec![used.id]),
        (filter().used_since(last + Duration::from_micros(1)), vec![]),
        (filter().used_since(last - HOUR), vec![used.id, early.id]),
        (filter().used_since(last).consumer_id("beta"), vec![]),
        (filter().created_before(early.created_at), vec![]),
        (filter().created_before(end).key_prefix("sk_live_"), vec![prefix.id]),
        (filter().created_before(end), vec![prefix.id, consumer.id, used.id, early.id]),
    ] {
        // Keys of one millisecond come in any order.
        let matching: BTreeSet<_> = issuer.matching(&filter).await.unwrap().into_iter().collect();
        assert_eq!(matching, BTreeSet::from_iter(expected), "{filter:?}");
    }
    is(&issuer.matching(&filter()).await.unwrap_err(), ManageErrorKind::Invalid, Some("filter"));
    let invalid = issuer.revoke_matching(&filter().consumer_id("\0"), None).await.unwrap_err();
    is(&invalid, ManageErrorKind::Invalid, Some("consumer_id"));

    let done = issuer.revoke_matching(&filter().used_since(last), Some("leaked")).await.unwrap();
    assert_eq!((done.keys, done.skipped), (1, vec![]));
    let used = issuer.get(used.id).await.unwrap().record;
    assert_eq!(used.revoked_reason.as_deref(), Some("leaked"));
    let active = all(&issuer).await.iter().filter(|key| key.revoked_at.is_none()).count();
    assert_eq!(active, 3, "the others are left alone");
}

// Importing.

/// A key that was issued elsewhere.
fn imported(number: u32, consumer: &str) -> KeyImport {
    imported_as(number, NewKey::new(consumer, Expiry::Never))
}

fn imported_as(number: u32, new: NewKey) -> KeyImport {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&number.to_be_bytes());
    KeyImport::new(KeyHash::from_bytes(hash), new)
}

async fn a_key_is_imported_by_its_hash(store: impl ManageKeys + Clone) {
    let issuer = issuer(store.clone());
    let old = KeyFormat::new("old_").unwrap().generate().unwrap();
    let new = new().name("from the old system").scopes(scopes(&["a"]));
    let import = KeyImport::new(old.hash(), new).hint("old_", "9xYz");
    let imported = issuer.import(vec![import]).await.unwrap();
    let [id] = imported.keys[..] else { panic!("one key") };
    let found = store.find(&old.hash()).await.unwrap().unwrap();
    assert_eq!(
        (found.id, found.key_prefix.as_str(), found.key_last4.as_str()),
        (id, "old_", "9xYz")
    );
    assert_eq!(actions(&issuer).await, [KeyAction::Imported]);
}

async fn an_import_that_was_interrupted_begins_again(store: impl ManageKeys) {
    let issuer = issuer(store);
    let first = issuer.import((0..3).map(|n| imported(n, "acme")).collect()).await.unwrap();
    assert_eq!((first.keys.len(), first.known), (3, 0));
    // Also twice in one batch.
    let again = [0, 1, 2, 3, 3].map(|n| imported(n, "somebody else"));
    let again = issuer.import(again.into()).await.unwrap();
    assert_eq!((again.keys.len(), again.known), (1, 4));
    let keys = all(&issuer).await;
    assert_eq!(keys.iter().filter(|key| key.consumer_id == "acme").count(), 3);
    assert_eq!(actions(&issuer).await, [KeyAction::Imported; 4]);

    // A key revoked since stays revoked.
    issuer.revoke(first.keys[0], None).await.unwrap();
    let again = issuer.import(vec![imported(0, "acme"), imported(4, "acme")]).await.unwrap();
    assert_eq!((again.keys.len(), again.known), (1, 1));
    assert!(issuer.get(first.keys[0]).await.unwrap().record.revoked_at.is_some());
}

async fn an_import_with_a_mistake_names_it_and_changes_nothing(store: impl ManageKeys) {
    let issuer = issuer(store);
    for (wrong, field) in [
        (imported(1, ""), "consumer_id"),
        (imported(1, "acme").hint("old_", "12345"), "key_last4"),
        (imported(1, "acme").hint("a\n", ""), "key_prefix"),
    ] {
        let error = issuer.import(vec![imported(0, "acme"), wrong]).await.unwrap_err();
        is(&error, ManageErrorKind::Invalid, Some(field));
        assert_eq!(error.index(), Some(1));
    }
    assert!(all(&issuer).await.is_empty());
    assert!(audit(&issuer).await.is_empty());
}

async fn an_imported_key_keeps_its_id_and_a_conflict_is_named(store: impl ManageKeys) {
    let issuer = issuer(store);
    // Of version 4, as other systems have them.
    let id: KeyId = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff".parse().unwrap();
    let first = issuer.import(vec![imported(1, "acme").id(id)]).await.unwrap();
    assert_eq!(first.keys, [id]);
    let record = issuer.get(id).await.unwrap().record;
    assert_eq!((record.id, record.root_id), (id, id));
    let again = issuer.import(vec![imported(1, "acme").id(id)]).await.unwrap();
    assert_eq!((again.keys.len(), again.known), (0, 1));

    let other: KeyId = "6f9619ff-8b86-4d01-b42d-00cf4fc964fe".parse().unwrap();
    for batch in [
        vec![imported(1, "acme"), imported(2, "acme").id(id)],
        vec![imported(2, "acme").id(other), imported(3, "acme").id(other)],
        vec![imported(3, "acme").id(other), imported(2, "acme").id(other)],
    ] {
        let error = issuer.import(batch.clone()).await.unwrap_err();
        is(&error, ManageErrorKind::Conflict, Some("id"));
        assert_eq!(error.index(), Some(1));
        let error = issuer.try_import(batch).await.unwrap_err();
        is(&error, ManageErrorKind::Conflict, Some("id"));
    }
    assert_eq!(all(&issuer).await.len(), 1);
    let zero = KeyId::from_bytes([0; 16]);
    let error = issuer.import(vec![imported(2, "acme").id(zero)]).await.unwrap_err();
    is(&error, ManageErrorKind::Invalid, Some("id"));
}

async fn an_imported_key_that_has_ended_stays_ended(store: impl ManageKeys) {
    let policy: Result<IssuePolicy, _> = r#"{ "rules": { "never_expires": "refused" } }"#.parse();
    let issuer = issuer(store).policy(policy.unwrap());
    let now = SystemClock::new().now();
    let refused = issuer.import(vec![imported(1, "acme")]).await.unwrap_err();
    is(&refused, ManageErrorKind::ExceedsPolicy, Some("expires_at"));
    let at = SystemTime::UNIX_EPOCH + HOUR;
    let keys = vec![
        imported(1, "acme").revoked(Some(at), Some("leaked")),
        imported(2, "acme").revoked(None, None),
        imported_as(3, NewKey::new("acme", Expiry::At(at))),
    ];
    let imported_keys = issuer.import(keys).await.unwrap().keys;
    let mut records = Vec::new();
    for id in imported_keys {
        records.push(issuer.get(id).await.unwrap().record);
    }
    assert_eq!(records[0].revoked_at, Some(at));
    assert_eq!(records[0].revoked_reason.as_deref(), Some("leaked"));
    assert!(records[1].revoked_at.unwrap() >= now - HOUR);
    assert_eq!((records[2].revoked_at, records[2].expires_at), (None, Some(at)));
    assert_eq!(records[2].status(now), KeyStatus::Expired);
    let event = audit(&issuer).await.into_iter().find(|e| e.entry.key_id == Some(records[0].id));
    let entry = event.unwrap().entry;
    assert_eq!(entry.action, KeyAction::Imported);
    let changes: Value = serde_json::from_str(&entry.changes.unwrap()).unwrap();
    assert_eq!(changes["revoked_at"], json!({ "to": "1970-01-01T01:00:00Z" }));
    for (key, field) in [
        (imported(4, "acme").revoked(Some(now + 10_000 * HOUR), None), "revoked_at"),
        (imported(4, "acme").revoked(None, Some("a\0b")), "revoked_reason"),
    ] {
        is(&issuer.import(vec![key]).await.unwrap_err(), ManageErrorKind::Invalid, Some(field));
    }
}

async fn the_clock_of_the_other_system_may_be_a_little_ahead(store: impl ManageKeys) {
    let issuer = issuer(store);
    let now = SystemClock::new().now();
    let ahead = now + Duration::from_secs(240);
    let key = imported(1, "acme").created_at(ahead).last_used_at(ahead).revoked(Some(ahead), None);
    let id = issuer.import(vec![key]).await.unwrap().keys[0];
    let info = issuer.get(id).await.unwrap();
    for at in [Some(info.record.created_at), info.record.revoked_at, info.last_used_at] {
        assert!(at.is_some_and(|at| at < ahead), "{info:?}");
    }
    let far = now + HOUR;
    for (key, field) in [
        (imported(2, "acme").created_at(far), "created_at"),
        (imported(2, "acme").last_used_at(far), "last_used_at"),
        (imported(2, "acme").revoked(Some(far), None), "revoked_at"),
    ] {
        is(&issuer.import(vec![key]).await.unwrap_err(), ManageErrorKind::Invalid, Some(field));
    }
}

async fn an_import_is_tried_without_storing_anything(store: impl ManageKeys) {
    let issuer = issuer(store);
    issuer.import(vec![imported(0, "acme")]).await.unwrap();
    let (keys, events) = (all(&issuer).await, audit(&issuer).await);
    let at = SystemTime::UNIX_EPOCH + HOUR;
    let batch = vec![imported(0, "acme"), imported(1, "acme").last_used_at(at)];
    let tried = issuer.try_import(batch.clone()).await.unwrap();
    assert_eq!((tried.keys.len(), tried.known), (1, 1));
    let error = issuer.try_import(vec![imported(2, "acme"), imported(3, "")]).await.unwrap_err();
    is(&error, ManageErrorKind::Invalid, Some("consumer_id"));
    assert_eq!(error.index(), Some(1));
    assert_eq!(all(&issuer).await.len(), keys.len());
    assert_eq!(audit(&issuer).await, events);
    assert_eq!(issuer.import(batch).await.unwrap().keys.len(), 1);
}

#[test]
fn a_key_is_imported_as_it_is_without_being_kept() {
    let key = "old_0123456789abcdefABCDEF";
    let import = KeyImport::from_key(key, "old_", &[], new()).unwrap();
    assert!(!format!("{import:?}").contains("0123456789abcdef"), "{import:?}");
    for (key, prefix, problem) in [
        ("0123456789abcdefABCDE", "", "at least 22"),
        (&*"k".repeat(257), "", "256"),
        ("0123456789abcdef ABCDEF", "", "visible ASCII"),
        (key, "new_", "must begin with its prefix"),
    ] {
        let error = KeyImport::from_key(key, prefix, &[], new()).unwrap_err();
        is(&error, ManageErrorKind::Invalid, Some("key"));
        assert!(error.to_string().contains(problem), "{error}");
        assert!(!error.to_string().contains(key), "{error}");
    }
    let format: AcceptedFormat = "hex:32".parse().unwrap();
    let error = KeyImport::from_key(key, "", &[format], new()).unwrap_err();
    is(&error, ManageErrorKind::Invalid, Some("key"));
    assert!(error.to_string().contains("a format that the service accepts"), "{error}");
}

// Pruning.

async fn what_has_ended_is_pruned_in_batches(store: impl ManageKeys + Clone) {
    let issuer = issuer(store.clone());
    let mut ended = BTreeSet::new();
    for number in 0..5 {
        let key = issuer.issue(new().idempotency_key(format!("{number}"))).await.unwrap().record;
        store.record_usage(&[Usage::new(key.id, key.created_at)].into()).await.unwrap();
        if number < 3 {
            issuer.revoke(key.id, None).await.unwrap();
            ended.insert(key.id);
        }
    }
    let now = issuer.get(*ended.first().unwrap()).await.unwrap().record.read_at;
    assert!(issuer.prune(now - HOUR, 10).await.unwrap().is_empty(), "nothing is that old");

    let later = now + HOUR;
    assert_eq!(issuer.prune(later, 2).await.unwrap().keys, 2);
    let mut leftovers = 0;
    for _ in 0..10 {
        let pruned = issuer.prune(later, 2).await.unwrap();
        leftovers += pruned.leftovers;
        if pruned.is_empty() {
            break;
        }
    }
    assert!(leftovers >= 5 - 2, "{leftovers}");
    let left = all(&issuer).await;
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|key| !ended.contains(&key.id)));
    for id in &ended {
        is(&issuer.get(*id).await.unwrap_err(), ManageErrorKind::NotFound, None);
        assert_eq!(store.last_used_at(*id).await.unwrap(), None);
        let query = EventQuery::new().key_id(*id);
        let life: Vec<_> = (issuer.events(&query).await.unwrap().events.iter())
            .map(|event| event.entry.action)
            .collect();
        assert_eq!(life, [KeyAction::Pruned, KeyAction::Revoked, KeyAction::Issued]);
    }
    // Its idempotency key is forgotten.
    issuer.issue(new().idempotency_key("0")).await.unwrap();
}

async fn hours_of_use_are_pruned_in_batches_by_operators_alone(store: impl ManageKeys + Clone) {
    let issuer = issuer(store.clone());
    let key = issuer.issue(new()).await.unwrap().record;
    let begin = SystemTime::UNIX_EPOCH + 24 * HOUR;
    let hours = (0..5).map(|hour| {
        let counts = UseCounts::new(1, 0, 0, 0, 1);
        HourlyUse::new(key.id, "acme".into(), begin + hour * HOUR, counts)
    });
    let counted = CountedUses::new([1; 16], 1, hours.collect());
    store.record_usage(&UsageBatch::default().counted(counted)).await.unwrap();
    let error = caller(&issuer, &key).prune_usage(begin + 9 * HOUR, 9).await.unwrap_err();
    is(&error, ManageErrorKind::Denied, None);
    let mut deleted = Vec::new();
    for _ in 0..3 {
        deleted.push(issuer.prune_usage(begin + 3 * HOUR, 2).await.unwrap());
    }
    assert_eq!(deleted, [2, 1, 0]);
    assert_eq!(issuer.prune_usage(begin + 9 * HOUR, 9).await.unwrap(), 2);
}

// Callers.

const WRITE: &str = "api-keys:write";
const EVERYWHERE: &str = "api-keys:all-consumers";

/// The consumer of a key, as from the layer.
fn caller(issuer: &KeyIssuer, key: &KeyRecord) -> KeyIssuer {
    let actor = Actor::key(&Consumer::from(key.clone()))
        .required_scope(scope(WRITE))
        .all_consumers_scope(scope(EVERYWHERE))
        .origin("192.0.2.7");
    issuer.by(actor)
}

async fn admin(issuer: &KeyIssuer) -> (KeyRecord, KeyIssuer) {
    let new = new()
        .scopes(scopes(&[WRITE, "a", "b"]))
        .rate_limits(Quota::per_minute(60).unwrap().burst(10).unwrap());
    let admin = issuer.issue(new).await.unwrap().record;
    let caller = caller(issuer, &admin);
    (admin, caller)
}

/// A key that [`admin`] may issue.
fn within() -> NewKey {
    NewKey::new("acme", Expiry::In(HOUR))
        .scopes(scopes(&["a"]))
        .rate_limits(Quota::per_minute(6).unwrap())
}

async fn a_caller_grants_what_it_holds(store: impl ManageKeys) {
    let issuer = issuer(store);
    let (admin, caller) = admin(&issuer).await;
    let same = NewKey::new("acme", Expiry::At(admin.expires_at.unwrap()))
        .scopes(admin.scopes.clone())
        .rate_limits(admin.rate_limits.clone().unwrap());
    for new in [within(), same] {
        let key = caller.issue(new).await.unwrap().record;
        assert_eq!(key.created_by, Some(format!("key:{}", admin.id)));
        caller.update(key.id, KeyUpdate::new().name(Some("mine".into()))).await.unwrap();
        let rotated = caller.rotate(key.id, Rotation::new()).await.unwrap().record;
        caller.revoke(rotated.id, None).await.unwrap();
    }
    let events = audit(&issuer).await;
    // Its own event, and those of each key: issued, updated, rotated, issued anew and revoked.
    assert_eq!(events.len(), 1 + 2 * 5);
    assert!(events.iter().skip(1).all(|event| {
        event.entry.actor == format!("key:{}", admin.id)
            && event.entry.origin.as_deref() == Some("192.0.2.7")
    }));
    // It rotates itself: the new key ends no later.
    let next = caller.rotate(admin.id, Rotation::new()).await.unwrap();
    assert!(next.record.expires_at.map(micros) <= admin.expires_at.map(micros));
}

async fn a_caller_grants_no_more_than_it_holds(store: impl ManageKeys) {
    let issuer = issuer(store);
    let (admin, caller) = admin(&issuer).await;
    let end = admin.expires_at.unwrap();
    let wider: RateLimits = Quota::per_minute(61).unwrap().burst(10).unwrap().into();
    for (new, field) in [
        (within().scopes(scopes(&["a", "c"])), "scopes"),
        (NewKey::new("acme", Expiry::Never).scopes(scopes(&["a"])), "expires_at"),
        (NewKey::new("acme", Expiry::At(end + Duration::from_micros(1))), "expires_at"),
        (within().rate_limits(wider), "rate_limits"),
        (within().rate_limits(RateLimits::unlimited()), "rate_limits"),
        (NewKey::new("acme", Expiry::In(HOUR)), "rate_limits"),
    ] {
        is(&caller.issue(new).await.unwrap_err(), ManageErrorKind::Denied, Some(field));
    }
    let foreign = NewKey::new("other", Expiry::In(HOUR)).rate_limits(Quota::per_minute(1).unwrap());
    is(&caller.issue(foreign).await.unwrap_err(), ManageErrorKind::NotFound, None);
    assert_eq!(all(&issuer).await.len(), 1);

    // A key that holds more cannot be rotated.
    let powerful = issuer.issue(new().scopes(scopes(&["c"]))).await.unwrap().record;
    let error = caller.rotate(powerful.id, Rotation::new()).await.unwrap_err();
    is(&error, ManageErrorKind::Denied, Some("scopes"));
    assert_eq!(all(&issuer).await.len(), 2);
}

async fn a_caller_changes_a_key_within_what_it_holds(store: impl ManageKeys) {
    let issuer = issuer(store);
    let (admin, caller) = admin(&issuer).await;
    let key = caller.issue(within()).await.unwrap().record;
    let update = KeyUpdate::new;
    for (update, field) in [
        (update().scopes(scopes(&["c"])), "scopes"),
        (update().expiry(Expiry::Never), "expires_at"),
        (update().rate_limits(None), "rate_limits"),
        (update().rate_limits(Some(RateLimits::unlimited())), "rate_limits"),
    ] {
        let error = caller.update(key.id, update.clone()).await.unwrap_err();
        is(&error, ManageErrorKind::Denied, Some(field));
        let error = caller.update(admin.id, update).await.unwrap_err();
        is(&error, ManageErrorKind::Denied, Some(field));
    }
    caller.update(key.id, update().scopes(scopes(&["b"]))).await.unwrap();
    assert_eq!(issuer.get(admin.id).await.unwrap().record.version, 1);
}

async fn a_caller_may_take_away_from_a_key_that_holds_more(store: impl ManageKeys) {
    let issuer = issuer(store);
    let (_, caller) = admin(&issuer).await;
    let new = NewKey::new("acme", Expiry::Never).scopes(scopes(&["c", "d"]));
    let powerful = issuer.issue(new).await.unwrap().record;
    caller.update(powerful.id, KeyUpdate::new().scopes(scopes(&["d"]))).await.unwrap();
    caller.update(powerful.id, KeyUpdate::new().name(Some("less".into()))).await.unwrap();
    caller.update(powerful.id, KeyUpdate::new().is_active(false)).await.unwrap();
    let error = caller.update(powerful.id, KeyUpdate::new().is_active(true)).await.unwrap_err();
    is(&error, ManageErrorKind::Denied, Some("scopes"));
    caller.revoke(powerful.id, Some("too much")).await.unwrap();
}

async fn a_caller_does_not_see_the_keys_of_others(store: impl ManageKeys) {
    let issuer = issuer(store);
    let (own, caller) = admin(&issuer).await;
    let foreign = issuer.issue(NewKey::new("other", Expiry::Never)).await.unwrap().record;
    let absent = KeyId::from_bytes([7; 16]);
    let update = || KeyUpdate::new().name(None);
    for (foreign, absent) in [
        (caller.get(foreign.id).await.err(), caller.get(absent).await.err()),
        (
            caller.update(foreign.id, update()).await.err(),
            caller.update(absent, update()).await.err(),
        ),
        (
            caller.rotate(foreign.id, Rotation::new()).await.err(),
            caller.rotate(absent, Rotation::new()).await.err(),
        ),
        (caller.revoke(foreign.id, None).await.err(), caller.revoke(absent, None).await.err()),
    ] {
        let [foreign, absent] = [foreign, absent].map(Option::unwrap);
        is(&foreign, ManageErrorKind::NotFound, None);
        assert_eq!(format!("{foreign:?}"), format!("{absent:?}"));
    }
    for id in [foreign.id, absent] {
        let query = EventQuery::new().key_id(id);
        let unseen = caller
            .events(&query)
            .await
            .is_err_and(|error| error.kind() == ManageErrorKind::NotFound);
        assert!(unseen, "{id}");
    }
    is(&caller.revoke_consumer("other", None).await.unwrap_err(), ManageErrorKind::NotFound, None);
    let seen: Vec<_> = all(&caller).await.iter().map(|key| key.id).collect();
    assert_eq!(seen, [own.id]);
    let query = KeyQuery::new().consumer_id("other");
    assert!(caller.list(&query).await.unwrap().keys.is_empty());
    assert!(issuer.get(foreign.id).await.unwrap().record.revoked_at.is_none());

    // Unless it holds the scope.
    let scopes = scopes(&[WRITE, EVERYWHERE]);
    let roaming = issuer.issue(NewKey::new("ops", Expiry::Never).scopes(scopes)).await.unwrap();
    let roaming = self::caller(&issuer, &roaming.record);
    assert_eq!(all(&roaming).await.len(), 3);
    roaming.revoke(foreign.id, None).await.unwrap();
    roaming.issue(NewKey::new("third", Expiry::Never)).await.unwrap();
}

async fn what_is_denied_is_in_the_audit(store: impl ManageKeys) {
    let issuer = issuer(store);
    let (own, caller) = admin(&issuer).await;
    let foreign = issuer.issue(NewKey::new("other", Expiry::Never)).await.unwrap().record;
    let reader = issuer.issue(new().scopes(scopes(&["a"]))).await.unwrap().record;
    let (reader_id, reader) = (reader.id, self::caller(&issuer, &reader));
    caller.issue(within().scopes(scopes(&["c"]))).await.unwrap_err();
    caller.revoke(foreign.id, None).await.unwrap_err();
    let lacks = reader.revoke(own.id, None).await.unwrap_err();
    is(&lacks, ManageErrorKind::Denied, None);
    assert_eq!(lacks.required_scope(), Some(&scope(WRITE)));
    caller.prune(SystemTime::UNIX_EPOCH, 1).await.unwrap_err();

    let events = audit(&issuer).await;
    let denied: Vec<_> = (events.iter())
        .filter(|event| event.entry.action == KeyAction::Denied)
        .map(|event| {
            let changes = changes(event);
            (event.entry.key_id.unwrap(), changes["attempt"].clone(), changes["target"].clone())
        })
        .collect();
    let target = |id: Option<KeyId>, consumer: Option<&str>| json!({ "key_id": id.map(|id| id.to_string()), "consumer_id": consumer });
    assert_eq!(
        denied,
        [
            (own.id, json!("issue"), target(None, None)),
            (own.id, json!("revoke"), target(Some(foreign.id), Some("other"))),
            // The target key was not read.
            (reader_id, json!("revoke"), target(Some(own.id), None)),
            (own.id, json!("prune"), target(None, None)),
        ]
    );
    assert!(events.iter().all(|event| event.entry.consumer_id.is_some()));
    let first = events.iter().find(|event| event.entry.action == KeyAction::Denied).unwrap();
    assert_eq!(first.entry.actor, format!("key:{}", own.id));
    assert!(first.entry.reason.as_deref().unwrap().contains("`c`"), "{first:?}");
    assert_eq!(all(&issuer).await.len(), 3);
}

/// The layer admitted the key while it still had the scope.
async fn a_caller_that_lost_its_scope_meanwhile_changes_nothing(store: impl ManageKeys) {
    let issuer = issuer(store);
    let (admin, caller) = admin(&issuer).await;
    let key = issuer.issue(within()).await.unwrap().record;
    issuer.update(admin.id, KeyUpdate::new().scopes(scopes(&["a", "b"]))).await.unwrap();
    for denied in [
        caller.issue(within()).await.map(drop),
        caller.update(key.id, KeyUpdate::new().name(Some("mine".into()))).await.map(drop),
        caller.rotate(key.id, Rotation::new()).await.map(drop),
        caller.revoke(key.id, None).await.map(drop),
    ] {
        let error = denied.unwrap_err();
        assert_eq!(error.kind(), ManageErrorKind::Denied, "{error}");
        assert_eq!(error.required_scope(), Some(&scope(WRITE)), "{error}");
    }
    assert_eq!(issuer.get(key.id).await.unwrap().record.revoked_at, None);
    assert_eq!(all(&issuer).await.len(), 2);
}

async fn a_caller_that_was_revoked_meanwhile_changes_nothing(store: impl ManageKeys) {
    let issuer = issuer(store);
    let (own, caller) = admin(&issuer).await;
    let key = caller.issue(within()).await.unwrap().record;
    issuer.revoke(own.id, None).await.unwrap();
    for error in [
        caller.issue(within()).await.unwrap_err(),
        caller.rotate(key.id, Rotation::new()).await.unwrap_err(),
        caller.update(key.id, KeyUpdate::new().name(None)).await.unwrap_err(),
        caller.revoke(key.id, None).await.unwrap_err(),
    ] {
        is(&error, ManageErrorKind::CallerEnded, None);
    }
    assert_eq!(all(&issuer).await.len(), 2);
    let denied = |action: &&KeyAction| **action == KeyAction::Denied;
    assert_eq!(actions(&issuer).await.iter().filter(denied).count(), 4);
}

async fn a_caller_that_is_being_revoked_waits_and_changes_nothing(store: impl Waits + Clone) {
    let issuer = issuer(store.clone());
    let (own, caller) = admin(&issuer).await;
    let mut revoking = store.begin().await.unwrap();
    revoking.revoke(&[own.id], None).await.unwrap();
    let minting = tokio::spawn(async move { caller.issue(within()).await });
    // Nothing is decided until it is known whether the caller is revoked.
    store.is_waited_for().await;
    assert!(!minting.is_finished());
    revoking.commit().await.unwrap();
    let error = timeout(DEADLINE, minting).await.unwrap().unwrap().unwrap_err();
    is(&error, ManageErrorKind::CallerEnded, None);
    assert_eq!(all(&issuer).await.len(), 1);
}

// Rules of every change.

async fn a_change_that_nobody_waits_for_is_carried_through(store: impl ManageKeys) {
    let issuer = issuer(store);
    let key = issuer.issue(new()).await.unwrap().record;
    let told = Told::default();
    let telling = issuer.clone().invalidates(told.clone());
    let mut revoking = Box::pin(telling.revoke(key.id, None));
    let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(revoking.as_mut().poll(cx)));
    assert!(polled.await.is_pending(), "it takes a while");
    drop(revoking);
    let told = async {
        while told.0.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, told).await.unwrap();
    assert!(issuer.get(key.id).await.unwrap().record.revoked_at.is_some());
}

/// Hashes; `None` for all keys.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Option<KeyHash>>>>);

impl Told {
    fn take(&self) -> Vec<Option<KeyHash>> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Invalidate for Told {
    fn invalidate(&self, hash: &KeyHash) {
        self.0.lock().unwrap().push(Some(*hash));
    }

    fn invalidate_all(&self) {
        self.0.lock().unwrap().push(None);
    }
}

async fn caches_are_told_of_every_change(store: impl ManageKeys) {
    let told = Told::default();
    let issuer = issuer(store).invalidates(told.clone());
    let key = issuer.issue(new()).await.unwrap().record;
    assert_eq!(told.take(), [Some(key.key_hash)]);
    issuer.update(key.id, KeyUpdate::new().is_active(false)).await.unwrap();
    assert_eq!(told.take(), [Some(key.key_hash)]);
    let rotated = issuer.rotate(key.id, Rotation::new()).await.unwrap().record;
    assert_eq!(told.take(), [Some(key.key_hash), Some(rotated.key_hash)]);
    issuer.revoke(key.id, None).await.unwrap();
    assert_eq!(told.take(), [Some(key.key_hash)]);
    issuer.revoke_consumer("acme", None).await.unwrap();
    assert_eq!(told.take(), [Some(rotated.key_hash)]);
    issuer.import(vec![imported(1, "acme")]).await.unwrap();
    assert_eq!(told.take().len(), 1);
    issuer.issue(new().scopes(scopes(&["a"])).name("a\n")).await.unwrap_err();
    assert_eq!(told.take(), []);
    let later = SystemTime::UNIX_EPOCH + 100_000 * DAY;
    issuer.prune(later, 10).await.unwrap();
    assert_eq!(told.take().len(), 2);
}

// Plans.

fn per_minute(limit: u32) -> RateLimits {
    Quota::per_minute(limit).unwrap().into()
}

async fn a_key_is_put_on_a_plan_and_taken_off(store: impl ManageKeys) {
    let issuer = issuer(store);
    issuer.set_plan("pro", &per_minute(60)).await.unwrap();
    let key = issuer.issue(new().plan("free")).await.unwrap().record;
    assert_eq!(issuer.get(key.id).await.unwrap().record.plan.as_deref(), Some("free"));
    let on = issuer.update(key.id, KeyUpdate::new().plan(Some("pro".into()))).await.unwrap();
    assert_eq!((on.version, on.plan.as_deref()), (2, Some("pro")));
    assert_eq!(on.plan_limits, Some(per_minute(60)));
    let same = issuer.update(key.id, KeyUpdate::new().plan(Some("pro".into()))).await.unwrap();
    assert_eq!(same.version, 2, "nothing has changed");
    let other = issuer.update(key.id, KeyUpdate::new().name(Some("a".into()))).await.unwrap();
    assert_eq!((other.plan.as_deref(), other.plan_limits), (Some("pro"), Some(per_minute(60))));
    let off = issuer.update(key.id, KeyUpdate::new().plan(None)).await.unwrap();
    assert_eq!((off.plan, off.plan_limits), (None, None));

    let said: Vec<_> =
        audit(&issuer).await.iter().skip(1).map(|event| changes(event)["plan"].clone()).collect();
    let expected = [
        json!({ "to": "free" }),
        json!({ "from": "free", "to": "pro" }),
        Value::Null,
        json!({ "from": "pro", "to": null }),
    ];
    assert_eq!(said, expected);
}

async fn a_plan_that_is_none_is_refused(store: impl ManageKeys) {
    let issuer = issuer(store);
    let key = issuer.issue(new()).await.unwrap().record;
    let long = "x".repeat(65);
    for name in ["", "a b", "a\n", "é", &long] {
        let update = KeyUpdate::new().plan(Some(name.into()));
        let import = imported(1, "acme");
        let refusals = [
            issuer.issue(new().plan(name)).await.unwrap_err(),
            issuer.update(key.id, update).await.unwrap_err(),
            issuer.set_plan(name, &per_minute(1)).await.unwrap_err(),
            issuer.import(vec![import, imported_as(2, new().plan(name))]).await.unwrap_err(),
        ];
        for error in refusals {
            is(&error, ManageErrorKind::Invalid, Some("plan"));
            assert!(error.to_string().contains("1 to 64 letters"), "{error}");
        }
        assert!(!issuer.remove_plan(name).await.unwrap());
    }
    assert_eq!(all(&issuer).await.len(), 1);
    assert_eq!(issuer.plans().await.unwrap(), []);
}

async fn a_key_is_imported_onto_a_plan(store: impl ManageKeys) {
    let issuer = issuer(store);
    issuer.import(vec![imported_as(1, new().plan("pro"))]).await.unwrap();
    let key = all(&issuer).await.remove(0);
    assert_eq!(key.plan.as_deref(), Some("pro"));
    assert_eq!(changes(&audit(&issuer).await[0])["plan"], json!({ "to": "pro" }));
}

async fn an_idempotency_key_stands_for_one_plan(store: impl ManageKeys) {
    let issuer = issuer(store);
    let request = |plan: &str| NewKey::new("acme", Expiry::Never).plan(plan).idempotency_key("one");
    issuer.issue(request("free")).await.unwrap();
    let error = issuer.issue(request("free")).await.unwrap_err();
    is(&error, ManageErrorKind::Repeated, None);
    let error = issuer.issue(request("pro")).await.unwrap_err();
    is(&error, ManageErrorKind::IdempotencyKeyReused, Some("idempotency_key"));
}

/// A caller on `plan`, with limits of its own or without.
async fn on_plan(
    issuer: &KeyIssuer,
    plan: Option<&str>,
    limits: Option<RateLimits>,
) -> (KeyRecord, KeyIssuer) {
    let mut new = new().scopes(scopes(&[WRITE]));
    if let Some(plan) = plan {
        new = new.plan(plan);
    }
    if let Some(limits) = limits {
        new = new.rate_limits(limits);
    }
    let key = issuer.issue(new).await.unwrap().record;
    let caller = caller(issuer, &key);
    (key, caller)
}

fn asked(plan: Option<&str>, limits: Option<RateLimits>) -> NewKey {
    let mut new = NewKey::new("acme", Expiry::In(HOUR));
    if let Some(plan) = plan {
        new = new.plan(plan);
    }
    match limits {
        Some(limits) => new.rate_limits(limits),
        None => new,
    }
}

/// The plan `pro` of the store means 60 a minute; `team` is defined elsewhere.
async fn a_caller_grants_its_own_plan(store: impl ManageKeys) {
    let issuer = issuer(store);
    issuer.set_plan("pro", &per_minute(60)).await.unwrap();
    issuer.set_plan("free", &per_minute(1)).await.unwrap();
    let (limits, plan) = (Some("rate_limits"), Some("plan"));
    let own = |limit| Some(per_minute(limit));
    let hourly = || Some(RateLimits::from(Quota::per_hour(500).unwrap()));
    let both = |limit| Some(per_minute(limit).and(&hourly().unwrap()));
    for (held, granted, refused) in [
        // On a plan of the store.
        ((Some("pro"), None), (Some("pro"), None), None),
        ((Some("pro"), None), (Some("pro"), own(60)), None),
        ((Some("pro"), None), (Some("pro"), own(61)), limits),
        ((Some("pro"), None), (Some("pro"), Some(RateLimits::unlimited())), limits),
        // No plan counts as another plan.
        ((Some("pro"), None), (None, None), plan),
        ((Some("pro"), None), (None, own(1)), plan),
        // So does any other plan, whatever it means today.
        ((Some("pro"), None), (Some("free"), None), plan),
        ((Some("pro"), None), (Some("free"), own(1)), plan),
        ((Some("pro"), None), (Some("team"), None), plan),
        // Its own limits apply in addition to the plan's, and replace those of the same name.
        ((Some("pro"), own(10)), (Some("pro"), own(10)), None),
        ((Some("pro"), own(10)), (Some("pro"), own(9)), None),
        ((Some("pro"), own(10)), (Some("pro"), hourly()), limits),
        ((Some("pro"), None), (Some("pro"), hourly()), None),
        ((Some("pro"), hourly()), (Some("pro"), own(60)), limits),
        ((Some("pro"), hourly()), (Some("pro"), None), limits),
        ((Some("pro"), own(10)), (None, own(10)), plan),
        ((Some("pro"), own(10)), (Some("pro"), own(11)), limits),
        ((Some("pro"), own(10)), (Some("pro"), None), limits),
        ((Some("pro"), own(100)), (Some("free"), own(1)), plan),
        // On a plan that only the service defines.
        ((Some("team"), None), (Some("team"), None), None),
        ((Some("team"), None), (Some("team"), own(1)), limits),
        ((Some("team"), None), (None, own(1)), plan),
        ((Some("team"), None), (None, None), plan),
        ((Some("team"), own(10)), (Some("team"), None), limits),
        ((Some("team"), own(10)), (Some("team"), own(10)), None),
        ((Some("team"), own(10)), (Some("team"), own(9)), None),
        ((Some("team"), own(10)), (Some("team"), own(11)), limits),
        // A limit of another name might replace a narrower one of the plan.
        ((Some("team"), own(10)), (Some("team"), both(10)), limits),
        ((Some("team"), Some(RateLimits::unlimited())), (Some("pro"), own(1)), plan),
        ((Some("team"), Some(RateLimits::unlimited())), (Some("team"), None), limits),
        // A key that left its plan could grant any plan.
        ((Some("team"), Some(RateLimits::unlimited())), (None, None), plan),
    ] {
        let case = format!("{held:?} grants {granted:?}");
        let (_, caller) = on_plan(&issuer, held.0, held.1).await;
        let outcome = caller.issue(asked(granted.0, granted.1)).await;
        match refused {
            None => {
                let key = outcome.unwrap_or_else(|error| panic!("{case}: {error}")).record;
                assert_eq!(key.plan.as_deref(), granted.0);
                caller.rotate(key.id, Rotation::new()).await.unwrap();
            }
            field => {
                let error = outcome.map(|issued| issued.record).unwrap_err();
                assert_eq!(
                    (error.kind(), error.field()),
                    (ManageErrorKind::Denied, field),
                    "{case}"
                );
            }
        }
    }
}

async fn a_caller_that_nothing_limits_grants_any_plan(store: impl ManageKeys) {
    let issuer = issuer(store);
    issuer.set_plan("pro", &per_minute(60)).await.unwrap();
    for limits in [None, Some(RateLimits::unlimited())] {
        let (_, caller) = on_plan(&issuer, None, limits).await;
        for plan in ["pro", "team"] {
            let key = caller.issue(asked(Some(plan), None)).await.unwrap().record;
            let update = KeyUpdate::new().plan(Some("another".into()));
            caller.update(key.id, update).await.unwrap();
            caller.update(key.id, KeyUpdate::new().plan(None)).await.unwrap();
        }
    }
}

async fn a_caller_without_its_own_plan_grants_none(store: impl ManageKeys) {
    let issuer = issuer(store);
    issuer.set_plan("free", &per_minute(1)).await.unwrap();
    // By limits of its own, or by the default.
    let (limited, caller) = on_plan(&issuer, None, Some(per_minute(60))).await;
    let (key, _) = on_plan(&issuer, None, None).await;
    let by_default = Actor::key(&Consumer::from(key)).default_rate_limits(per_minute(60));
    for caller in [caller, issuer.by(by_default)] {
        for new in [asked(Some("free"), None), asked(Some("free"), Some(per_minute(1)))] {
            let error = caller.issue(new).await.unwrap_err();
            is(&error, ManageErrorKind::Denied, Some("plan"));
        }
        caller.issue(asked(None, Some(per_minute(1)))).await.unwrap();
    }
    assert_eq!(issuer.get(limited.id).await.unwrap().record.plan, None);
}

async fn a_caller_does_not_move_a_key_to_a_plan_it_is_not_on(store: impl ManageKeys) {
    let issuer = issuer(store);
    issuer.set_plan("pro", &per_minute(60)).await.unwrap();
    let (own, caller) = on_plan(&issuer, Some("pro"), None).await;
    let unlimited = issuer.issue(NewKey::new("acme", Expiry::In(HOUR))).await.unwrap().record;
    let other = asked(Some("other"), None);
    let other = issuer.issue(other).await.unwrap().record;
    let to = |plan: Option<&str>| KeyUpdate::new().plan(plan.map(Into::into));
    for (key, plan, field) in [
        // Not even for a key that was unlimited, or onto another key's plan.
        (&unlimited, Some("other"), "plan"),
        (&other, Some("enterprise"), "plan"),
        (&own, Some("other"), "plan"),
        (&own, None, "plan"),
        (&other, None, "plan"),
    ] {
        let error = caller.update(key.id, to(plan)).await.unwrap_err();
        is(&error, ManageErrorKind::Denied, Some(field));
    }
    // The caller's own grants, and revoking.
    caller.update(unlimited.id, to(Some("pro"))).await.unwrap();
    caller.update(other.id, KeyUpdate::new().name(Some("less".into()))).await.unwrap();
    caller.update(other.id, KeyUpdate::new().is_active(false)).await.unwrap();
    let error = caller.update(other.id, KeyUpdate::new().is_active(true)).await.unwrap_err();
    is(&error, ManageErrorKind::Denied, Some("plan"));
    let error = caller.rotate(other.id, Rotation::new()).await.unwrap_err();
    is(&error, ManageErrorKind::Denied, Some("plan"));
    caller.update(other.id, to(Some("pro"))).await.unwrap();
}

async fn plans_are_for_operators(store: impl ManageKeys) {
    let issuer = issuer(store);
    let (_, caller) = on_plan(&issuer, None, None).await;
    issuer.set_plan("pro", &per_minute(60)).await.unwrap();
    let error = caller.set_plan("pro", &RateLimits::unlimited()).await.unwrap_err();
    is(&error, ManageErrorKind::Denied, None);
    let error = caller.remove_plan("pro").await.unwrap_err();
    is(&error, ManageErrorKind::Denied, None);
    assert_eq!(issuer.plans().await.unwrap(), [("pro".to_owned(), per_minute(60))]);
    let made = [KeyAction::Issued, KeyAction::PlanCreated];
    assert_eq!(actions(&issuer).await, [made, [KeyAction::Denied; 2]].concat());
    assert!(issuer.remove_plan("pro").await.unwrap());
    assert!(!issuer.remove_plan("pro").await.unwrap());
}

async fn caches_are_told_when_a_plan_changes(store: impl ManageKeys) {
    let told = Told::default();
    let issuer = issuer(store).invalidates(told.clone());
    issuer.set_plan("pro", &per_minute(60)).await.unwrap();
    assert_eq!(told.take(), [None]);
    issuer.remove_plan("pro").await.unwrap();
    assert_eq!(told.take(), [None]);
    issuer.set_plan("no plan", &per_minute(60)).await.unwrap_err();
    issuer.plans().await.unwrap();
    assert_eq!(told.take(), []);
    let key = issuer.issue(new()).await.unwrap().record;
    issuer.update(key.id, KeyUpdate::new().plan(Some("pro".into()))).await.unwrap();
    assert_eq!(told.take(), [Some(key.key_hash), Some(key.key_hash)]);
}
