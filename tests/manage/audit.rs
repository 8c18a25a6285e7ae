//! The audit is reliable: denied attempts neither flood it nor reveal foreign keys, every interface
//! of the library leaves the same lines, and so do changes in SQL.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tower_api_key::{
    Consumer,
    clock::ManualClock,
    key::{KeyFormat, KeyHash},
    manage::{
        Actor, Expiry, KeyImport, KeyIssuer, KeyUpdate, ManageError, ManageErrorKind, NewKey,
        Rotation,
    },
    rate_limit::{Quota, RateLimits},
    record::{KeyAction, KeyEvent, KeyId, KeyRecord, Metadata, Scope, Scopes},
    store::{EventQuery, KeyQuery, ManageKeys},
};

const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);
const WRITE: &str = "api-keys:write";
const EVERYWHERE: &str = "api-keys:all-consumers";

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
            $(
                #[tokio::test]
                async fn $rule() {
                    let (_folder, store) = super::in_sqlite::store().await;
                    super::$rule(store).await;
                }
            )*
        }

        mod postgres {
            $(
                #[tokio::test]
                async fn $rule() {
                    let (_database, store) = super::in_postgres::store().await;
                    super::$rule(store).await;
                }
            )*
        }
    };
}

on_every_store! {
    thousands_of_denials_leave_a_few_lines_and_a_sum
    denials_that_take_a_look_at_keys_are_summed_up_too
    a_sum_is_written_with_the_next_change
    the_denials_of_one_key_use_up_none_of_another
    an_attempt_on_a_key_is_no_event_of_that_key
    an_attempt_on_a_consumer_is_no_event_of_that_consumer
    a_tenant_does_not_see_what_its_attempts_were_aimed_at
    an_attempt_on_a_foreign_key_leaves_the_line_of_one_on_no_key
    every_kind_of_attempt_on_a_foreign_key_leaves_the_same_line
    what_may_not_be_done_is_denied_before_anything_is_said_of_the_key
    metadata_are_merged_in_the_transaction
    a_merge_that_grows_too_large_changes_nothing
    one_of_several_versions_is_enough
    without_a_scope_a_key_changes_itself_and_what_it_was_rotated_to
    a_key_does_not_take_over_metadata_that_its_chain_got_later
    with_a_scope_a_key_rotates_others_of_its_consumer
    revoking_by_prefix_does_not_see_the_keys_of_others
    a_change_of_a_plan_is_in_the_audit
    a_plan_that_stays_as_it_is_leaves_no_line
    what_keys_tried_with_plans_is_in_the_audit
}

fn issuer(store: impl ManageKeys) -> KeyIssuer {
    KeyIssuer::new(store, KeyFormat::new("sk_test_").unwrap())
}

fn scopes(scopes: &[&str]) -> Scopes {
    Scopes::parse(scopes.iter().copied()).unwrap()
}

fn metadata(json: &str) -> Metadata {
    Metadata::from_json(json).unwrap()
}

async fn key(issuer: &KeyIssuer, consumer: &str, held: &[&str]) -> KeyRecord {
    let new = NewKey::new(consumer, Expiry::In(DAY)).scopes(scopes(held));
    issuer.issue(new).await.unwrap().record
}

/// A caller as the admin router creates it.
fn admin(issuer: &KeyIssuer, key: &KeyRecord) -> KeyIssuer {
    let actor = Actor::key(&Consumer::from(key.clone()))
        .required_scope(Scope::new(WRITE).unwrap())
        .all_consumers_scope(Scope::new(EVERYWHERE).unwrap())
        .origin("192.0.2.7");
    issuer.by(actor)
}

/// A caller as the account router creates it.
fn account(issuer: &KeyIssuer, key: &KeyRecord) -> KeyIssuer {
    let actor = Actor::key(&Consumer::from(key.clone()));
    issuer.by(actor.other_keys_scope(Scope::new(WRITE).unwrap()))
}

/// The audit, oldest first.
async fn events(issuer: &KeyIssuer, query: EventQuery) -> Vec<KeyEvent> {
    let mut events = issuer.events(&query.limit(1000)).await.unwrap().events;
    events.reverse();
    events
}

async fn denials(issuer: &KeyIssuer) -> Vec<KeyEvent> {
    let mut events = events(issuer, EventQuery::new()).await;
    events.retain(|event| event.entry.action == KeyAction::Denied);
    events
}

async fn lines(issuer: &KeyIssuer) -> Vec<(String, String, Value)> {
    let line = |event: &KeyEvent| {
        let entry = &event.entry;
        (entry.action.to_string(), entry.actor.clone(), changes(event))
    };
    events(issuer, EventQuery::new()).await.iter().map(line).collect()
}

fn changes(event: &KeyEvent) -> Value {
    serde_json::from_str(event.entry.changes.as_deref().unwrap_or("null")).unwrap()
}

#[track_caller]
fn is(error: &ManageError, kind: ManageErrorKind, field: Option<&str>) {
    assert_eq!((error.kind(), error.field()), (kind, field), "{error}");
}

// Denials.

async fn thousands_of_denials_leave_a_few_lines_and_a_sum(store: impl ManageKeys) {
    let clock = ManualClock::default();
    let issuer = issuer(store).clock(clock.clone());
    let target = key(&issuer, "acme", &[]).await;
    let attacker = key(&issuer, "acme", &[]).await;
    for _ in 0..11_410 {
        // A separate caller for each request, as over HTTP.
        let error = admin(&issuer, &attacker).revoke(target.id, None).await.unwrap_err();
        assert_eq!(error.required_scope(), Some(&Scope::new(WRITE).unwrap()));
    }
    assert_eq!(denials(&issuer).await.len(), 5);
    clock.advance(MINUTE);
    admin(&issuer, &attacker).revoke(target.id, None).await.unwrap_err();
    let denials = denials(&issuer).await;
    assert_eq!(denials.len(), 7);
    let sum = &denials[5].entry;
    assert_eq!((sum.key_id, sum.consumer_id.as_deref()), (Some(attacker.id), Some("acme")));
    assert_eq!(sum.actor, format!("key:{}", attacker.id));
    let reason = sum.reason.as_deref().unwrap();
    assert_eq!(reason, "and 11405 more denied attempts since 2026-01-01T00:00:00Z");
    assert_eq!(changes(&denials[5])["more"], json!(11_405));
}

async fn denials_that_take_a_look_at_keys_are_summed_up_too(store: impl ManageKeys) {
    let clock = ManualClock::default();
    let issuer = issuer(store).clock(clock.clone());
    let foreign = key(&issuer, "globex", &[]).await;
    // Measured by the store's clock, not the issuer's.
    let new = NewKey::new("acme", Expiry::Never).scopes(scopes(&[WRITE]));
    let attacker = admin(&issuer, &issuer.issue(new).await.unwrap().record);
    for _ in 0..10 {
        let beyond = NewKey::new("acme", Expiry::Never).scopes(scopes(&["beyond"]));
        is(&attacker.issue(beyond).await.unwrap_err(), ManageErrorKind::Denied, Some("scopes"));
        let error = attacker.rotate(foreign.id, Rotation::new()).await.unwrap_err();
        is(&error, ManageErrorKind::NotFound, None);
        attacker.set_plan("free", &RateLimits::unlimited()).await.unwrap_err();
    }
    assert_eq!(denials(&issuer).await.len(), 5);
    clock.advance(MINUTE);
    attacker.prune(SystemTime::UNIX_EPOCH, 1).await.unwrap_err();
    assert_eq!(changes(&denials(&issuer).await[5])["more"], json!(25));
}

async fn a_sum_is_written_with_the_next_change(store: impl ManageKeys) {
    let clock = ManualClock::default();
    let issuer = issuer(store).clock(clock.clone());
    let attacker = key(&issuer, "acme", &[]).await;
    for _ in 0..7 {
        admin(&issuer, &attacker).revoke(attacker.id, None).await.unwrap_err();
    }
    key(&issuer, "globex", &[]).await;
    assert_eq!(denials(&issuer).await.len(), 5, "the minute is not over");
    clock.advance(MINUTE);
    key(&issuer, "globex", &[]).await;
    assert_eq!(changes(&denials(&issuer).await[5])["more"], json!(2));
    key(&issuer, "globex", &[]).await;
    assert_eq!(denials(&issuer).await.len(), 6);
}

async fn the_denials_of_one_key_use_up_none_of_another(store: impl ManageKeys) {
    let issuer = issuer(store);
    let [loud, quiet] = [key(&issuer, "acme", &[]).await, key(&issuer, "acme", &[]).await];
    for _ in 0..50 {
        admin(&issuer, &loud).revoke(quiet.id, None).await.unwrap_err();
    }
    admin(&issuer, &quiet).revoke(loud.id, None).await.unwrap_err();
    let of_quiet = events(&issuer, EventQuery::new().key_id(quiet.id)).await;
    let actions: Vec<_> = of_quiet.iter().map(|event| event.entry.action).collect();
    assert_eq!(actions, [KeyAction::Issued, KeyAction::Denied]);
}

async fn an_attempt_on_a_key_is_no_event_of_that_key(store: impl ManageKeys) {
    let issuer = issuer(store);
    let victim = key(&issuer, "globex", &[WRITE, "api-keys:read"]).await;
    let attacker = key(&issuer, "acme", &[WRITE]).await;
    let caller = admin(&issuer, &attacker);
    caller.revoke(victim.id, Some("hello")).await.unwrap_err();
    caller.rotate(victim.id, Rotation::new()).await.unwrap_err();
    caller.update(victim.id, KeyUpdate::new().name(None)).await.unwrap_err();

    let owner = admin(&issuer, &victim);
    for query in [EventQuery::new(), EventQuery::new().key_id(victim.id)] {
        let seen = events(&owner, query).await;
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].entry.action, KeyAction::Issued);
        let text = format!("{seen:?}");
        assert!(!text.contains(&attacker.id.to_string()) && !text.contains("192.0.2.7"), "{text}");
    }
    // An operator sees everything.
    for event in denials(&issuer).await {
        assert_eq!(event.entry.key_id, Some(attacker.id));
        assert_eq!(event.entry.consumer_id.as_deref(), Some("acme"));
        assert_eq!(event.entry.origin.as_deref(), Some("192.0.2.7"));
        let target = json!({ "key_id": victim.id.to_string(), "consumer_id": "globex" });
        assert_eq!(changes(&event)["target"], target);
    }
    assert_eq!(denials(&issuer).await.len(), 3);
}

async fn an_attempt_on_a_consumer_is_no_event_of_that_consumer(store: impl ManageKeys) {
    let issuer = issuer(store);
    let victim = key(&issuer, "globex", &[]).await;
    let caller = admin(&issuer, &key(&issuer, "acme", &[WRITE]).await);
    let error = caller.revoke_consumer("globex", None).await.unwrap_err();
    is(&error, ManageErrorKind::NotFound, None);
    caller.issue(NewKey::new("globex", Expiry::In(MINUTE))).await.unwrap_err();
    let import =
        KeyImport::new(KeyHash::from_bytes([7; 32]), NewKey::new("globex", Expiry::In(MINUTE)));
    caller.import(vec![import]).await.unwrap_err();
    assert_eq!(events(&issuer, EventQuery::new().consumer_id("globex")).await.len(), 1);
    let denials = denials(&issuer).await;
    assert_eq!(denials.len(), 3);
    for event in denials {
        assert_eq!(changes(&event)["target"]["consumer_id"], json!("globex"));
    }
    assert!(issuer.get(victim.id).await.unwrap().record.revoked_at.is_none());
}

async fn a_tenant_does_not_see_what_its_attempts_were_aimed_at(store: impl ManageKeys) {
    let issuer = issuer(store);
    let foreign = key(&issuer, "globex", &[]).await;
    let sibling = key(&issuer, "acme", &[]).await;
    let own = key(&issuer, "acme", &[WRITE]).await;
    admin(&issuer, &own).revoke(foreign.id, None).await.unwrap_err();
    account(&issuer, &sibling).revoke(own.id, None).await.unwrap_err();

    let seen = denials(&admin(&issuer, &own)).await;
    assert_eq!(seen.len(), 2);
    assert_eq!(changes(&seen[0]), json!({ "attempt": "revoke" }));
    let target = json!({ "key_id": own.id.to_string(), "consumer_id": "acme" });
    assert_eq!(changes(&seen[1]), json!({ "attempt": "revoke", "target": target }));

    let roaming = key(&issuer, "ops", &[WRITE, EVERYWHERE]).await;
    let seen = denials(&admin(&issuer, &roaming)).await;
    assert_eq!(changes(&seen[0])["target"]["key_id"], json!(foreign.id.to_string()));
}

async fn an_attempt_on_a_foreign_key_leaves_the_line_of_one_on_no_key(store: impl ManageKeys) {
    let issuer = issuer(store);
    let foreign = key(&issuer, "globex", &[]).await;
    let own = key(&issuer, "acme", &[WRITE]).await;
    let caller = admin(&issuer, &own);
    for id in [foreign.id, KeyId::from_bytes([7; 16])] {
        let error = caller.revoke(id, None).await.unwrap_err();
        is(&error, ManageErrorKind::NotFound, None);
    }
    let seen = denials(&caller).await;
    let [foreign, absent] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!(foreign.entry, absent.entry, "the caller reads its own audit");
}

async fn every_kind_of_attempt_on_a_foreign_key_leaves_the_same_line(store: impl ManageKeys) {
    let large = format!(r#"{{"a":"{}"}}"#, "a".repeat(9000));
    let update = KeyUpdate::new;
    for attempt in [
        update().name(None),
        update().merge_metadata(metadata(r#"{"a":1}"#)),
        update().merge_metadata(metadata(&large.replace("\"a\"", "\"b\""))),
        update().merge_metadata(Metadata::default()),
        update().metadata(metadata(&large)),
        update().if_version(99).is_active(false),
        update().if_version_in([]).is_active(false),
        update().if_version_in([1, 2]).scopes(scopes(&["beyond"])),
        update().expiry(Expiry::Never),
        update().plan(Some("pro".into())),
    ] {
        let issuer = issuer(tower_api_key::store::MemoryKeyStore::new());
        let new = NewKey::new("globex", Expiry::In(DAY)).metadata(metadata(&large));
        let foreign = issuer.issue(new).await.unwrap().record;
        let caller = admin(&issuer, &key(&issuer, "acme", &[WRITE]).await);
        let error = caller.update(foreign.id, attempt).await.unwrap_err();
        is(&error, ManageErrorKind::NotFound, None);
        let denials = denials(&issuer).await;
        assert_eq!(denials.len(), 1);
        let target = json!({ "key_id": foreign.id.to_string(), "consumer_id": "globex" });
        let expected = json!({ "attempt": "update", "target": target });
        assert_eq!(changes(&denials[0]), expected);
    }
    // By metadata as well as by name.
    let issuer = issuer(store);
    let foreign = key(&issuer, "globex", &[]).await;
    let caller = admin(&issuer, &key(&issuer, "acme", &[WRITE]).await);
    let merge = update().merge_metadata(metadata(r#"{"a":1}"#));
    caller.update(foreign.id, merge).await.unwrap_err();
    caller.update(foreign.id, update().name(None)).await.unwrap_err();
    let denials = denials(&issuer).await;
    let [by_metadata, by_name] = &denials[..] else { panic!("{denials:?}") };
    assert_eq!(by_metadata.entry, by_name.entry);
}

async fn what_may_not_be_done_is_denied_before_anything_is_said_of_the_key(store: impl ManageKeys) {
    let issuer = issuer(store);
    let large = format!(r#"{{"a":"{}"}}"#, "a".repeat(16_000));
    let new = NewKey::new("acme", Expiry::In(DAY)).metadata(metadata(&large));
    let sibling = issuer.issue(new).await.unwrap().record;
    let revoked = key(&issuer, "acme", &[]).await;
    issuer.revoke(revoked.id, None).await.unwrap();
    let own = key(&issuer, "acme", &[]).await;
    let caller = account(&issuer, &own);
    let grow = metadata(&format!(r#"{{"b":"{}"}}"#, "b".repeat(1000)));
    for (id, update) in [
        (sibling.id, KeyUpdate::new().merge_metadata(grow.clone())),
        (sibling.id, KeyUpdate::new().if_version(99)),
        (sibling.id, KeyUpdate::new().name(None)),
        (revoked.id, KeyUpdate::new().name(None)),
    ] {
        let error = caller.update(id, update).await.unwrap_err();
        assert_eq!(error.required_scope(), Some(&Scope::new(WRITE).unwrap()), "{error}");
    }
    // 403 also beyond the writer's grants, whatever version, state or size the key has.
    let writer = admin(&issuer, &key(&issuer, "acme", &[WRITE]).await);
    let beyond = || KeyUpdate::new().scopes(scopes(&["beyond"]));
    for (id, update) in [
        (sibling.id, beyond().merge_metadata(grow)),
        (sibling.id, beyond().if_version(99)),
        (revoked.id, beyond()),
    ] {
        let error = writer.update(id, update).await.unwrap_err();
        is(&error, ManageErrorKind::Denied, Some("scopes"));
    }
}

// Changes that depend on the state of the key.

async fn metadata_are_merged_in_the_transaction(store: impl ManageKeys) {
    let issuer = issuer(store);
    let new =
        NewKey::new("acme", Expiry::In(DAY)).metadata(metadata(r#"{"a":{"b":1,"c":2},"d":3}"#));
    let id = issuer.issue(new).await.unwrap().record.id;
    let patch = metadata(r#"{"a":{"b":null,"e":[null]},"d":"x","f":{"g":null}}"#);
    let updated = issuer.update(id, KeyUpdate::new().merge_metadata(patch)).await.unwrap();
    let merged: Value = updated.metadata.parse().unwrap();
    assert_eq!(merged, json!({ "a": { "c": 2, "e": [null] }, "d": "x", "f": {} }));

    // Concurrent denials each add their own line.
    let mut merging = tokio::task::JoinSet::new();
    for number in 0..8 {
        let issuer = issuer.clone();
        let patch = metadata(&format!(r#"{{"n{number}":{number}}}"#));
        merging
            .spawn(async move { issuer.update(id, KeyUpdate::new().merge_metadata(patch)).await });
    }
    for outcome in merging.join_all().await {
        outcome.unwrap();
    }
    let merged: Value = issuer.get(id).await.unwrap().record.metadata.parse().unwrap();
    assert_eq!(merged.as_object().unwrap().len(), 3 + 8, "{merged}");
    // An update that changes nothing leaves no line.
    let same = KeyUpdate::new().merge_metadata(metadata(r#"{"absent":null}"#));
    assert_eq!(issuer.update(id, same).await.unwrap().version, 10);
}

async fn a_merge_that_grows_too_large_changes_nothing(store: impl ManageKeys) {
    let issuer = issuer(store);
    let half = |name: &str| metadata(&format!(r#"{{"{name}":"{}"}}"#, "x".repeat(9000)));
    let new = NewKey::new("acme", Expiry::In(DAY)).metadata(half("a"));
    let id = issuer.issue(new).await.unwrap().record.id;
    let grow = KeyUpdate::new().merge_metadata(half("b"));
    let error = issuer.update(id, grow).await.unwrap_err();
    is(&error, ManageErrorKind::Invalid, Some("metadata"));
    let exchange = format!(r#"{{"a":null,"b":"{}"}}"#, "x".repeat(9000));
    let exchange = KeyUpdate::new().merge_metadata(metadata(&exchange));
    assert_eq!(issuer.update(id, exchange).await.unwrap().version, 2);
}

async fn one_of_several_versions_is_enough(store: impl ManageKeys) {
    let issuer = issuer(store);
    let id = key(&issuer, "acme", &[]).await.id;
    let update = |versions: &[u64], name: &str| {
        KeyUpdate::new().if_version_in(versions.iter().copied()).name(Some(name.into()))
    };
    issuer.update(id, update(&[7, 1], "a")).await.unwrap();
    for versions in [&[][..], &[1], &[1, 3]] {
        let error = issuer.update(id, update(versions, "b")).await.unwrap_err();
        is(&error, ManageErrorKind::Outdated, None);
    }
    issuer.update(id, update(&[1, 2, 3], "b")).await.unwrap();
}

// Which key may change which.

async fn without_a_scope_a_key_changes_itself_and_what_it_was_rotated_to(store: impl ManageKeys) {
    let issuer = issuer(store);
    let new = NewKey::new("acme", Expiry::In(DAY)).metadata(metadata(r#"{"role":"owner"}"#));
    let owner = issuer.issue(new).await.unwrap().record;
    let new = NewKey::new("acme", Expiry::In(DAY)).metadata(metadata(r#"{"role":"viewer"}"#));
    let viewer = issuer.issue(new).await.unwrap().record;
    let caller = account(&issuer, &viewer);
    let none = issuer.by(Actor::key(&Consumer::from(viewer.clone())));
    let twin = issuer.issue(NewKey::new("acme", Expiry::In(DAY)).metadata(viewer.metadata.clone()));
    let twin = twin.await.unwrap().record;
    for target in [&owner, &twin] {
        let at_once = || Rotation::new().grace(Duration::ZERO);
        for caller in [&caller, &none] {
            for error in [
                caller.rotate(target.id, at_once()).await.unwrap_err(),
                caller.revoke(target.id, None).await.unwrap_err(),
                caller.update(target.id, KeyUpdate::new().is_active(false)).await.unwrap_err(),
                caller.revoke_consumer("acme", None).await.unwrap_err(),
                caller.revoke_prefix("sk_test_", None).await.unwrap_err(),
            ] {
                is(&error, ManageErrorKind::Denied, None);
            }
        }
        let left = issuer.get(target.id).await.unwrap().record;
        assert_eq!((left.version, left.rotated_at, left.revoked_at), (1, None, None));
    }
    let second = caller.rotate(viewer.id, Rotation::new()).await.unwrap().record;
    assert_eq!(second.metadata, viewer.metadata);
    // The response was lost: the rotated key retries.
    let third = caller.rotate(second.id, Rotation::new()).await.unwrap().record;
    account(&issuer, &third).revoke(second.id, None).await.unwrap();
    caller.revoke(third.id, None).await.unwrap();
    caller.revoke(viewer.id, None).await.unwrap();
}

async fn a_key_does_not_take_over_metadata_that_its_chain_got_later(store: impl ManageKeys) {
    let issuer = issuer(store);
    let viewer = key(&issuer, "acme", &[]).await;
    let caller = account(&issuer, &viewer);
    let second = caller.rotate(viewer.id, Rotation::new()).await.unwrap().record;
    let promotion = KeyUpdate::new().metadata(metadata(r#"{"role":"owner"}"#));
    issuer.update(second.id, promotion).await.unwrap();
    let error = caller.rotate(second.id, Rotation::new()).await.unwrap_err();
    is(&error, ManageErrorKind::Denied, Some("metadata"));
    assert!(issuer.get(second.id).await.unwrap().record.rotated_at.is_none());
    account(&issuer, &second).rotate(second.id, Rotation::new()).await.unwrap();
}

async fn with_a_scope_a_key_rotates_others_of_its_consumer(store: impl ManageKeys) {
    let issuer = issuer(store);
    let new = NewKey::new("acme", Expiry::In(DAY)).metadata(metadata(r#"{"role":"owner"}"#));
    let owner = issuer.issue(new).await.unwrap().record;
    let foreign = key(&issuer, "globex", &[]).await;
    let powerful = key(&issuer, "acme", &["beyond"]).await;
    let writer = key(&issuer, "acme", &[WRITE]).await;
    for caller in [account(&issuer, &writer), admin(&issuer, &writer)] {
        let error = caller.rotate(powerful.id, Rotation::new()).await.unwrap_err();
        is(&error, ManageErrorKind::Denied, Some("scopes"));
        let error = caller.rotate(foreign.id, Rotation::new()).await.unwrap_err();
        is(&error, ManageErrorKind::NotFound, None);
    }
    let rotated = account(&issuer, &writer).rotate(owner.id, Rotation::new()).await.unwrap();
    assert_eq!(rotated.record.metadata, owner.metadata, "who may write keys may write that");
    account(&issuer, &writer).revoke(powerful.id, None).await.unwrap();
}

async fn revoking_by_prefix_does_not_see_the_keys_of_others(store: impl ManageKeys) {
    let issuer = issuer(store);
    let foreign = key(&issuer, "globex", &[]).await;
    key(&issuer, "acme", &[]).await;
    let caller = admin(&issuer, &key(&issuer, "acme", &[WRITE]).await);
    let revoked = caller.revoke_prefix("sk_live_", None).await.unwrap();
    assert_eq!((revoked.keys, revoked.skipped.len()), (0, 0));
    let revoked = caller.revoke_prefix("sk_test_", None).await.unwrap();
    assert_eq!((revoked.keys, revoked.skipped.len()), (2, 0));
    assert!(issuer.get(foreign.id).await.unwrap().record.revoked_at.is_none());
    let roaming = admin(&issuer, &key(&issuer, "ops", &[WRITE, EVERYWHERE]).await);
    assert_eq!(roaming.revoke_prefix("sk_test_", None).await.unwrap().keys, 2);
}

// Plans.

fn per_minute(limit: u32) -> RateLimits {
    Quota::per_minute(limit).unwrap().into()
}

async fn a_change_of_a_plan_is_in_the_audit(store: impl ManageKeys) {
    let issuer = issuer(store);
    let operator = issuer.by(Actor::operator("root@db1").origin("command line"));
    operator.set_plan("pro", &per_minute(60)).await.unwrap();
    operator.set_plan("pro", &per_minute(90)).await.unwrap();
    assert!(operator.remove_plan("pro").await.unwrap());
    let events = events(&issuer, EventQuery::new()).await;
    let actions: Vec<_> = events.iter().map(|event| event.entry.action.as_str()).collect();
    assert_eq!(actions, ["plan_created", "plan_updated", "plan_removed"]);
    for event in &events {
        let entry = &event.entry;
        assert_eq!((entry.key_id, &entry.consumer_id), (None, &None));
        assert_eq!((&*entry.actor, entry.origin.as_deref()), ("root@db1", Some("command line")));
    }
    let limits = |limit| serde_json::to_value(per_minute(limit)).unwrap();
    let all: Vec<_> = events.iter().map(changes).collect();
    let expected = [
        json!({ "name": { "to": "pro" }, "rate_limits": { "to": limits(60) } }),
        json!({
            "name": { "from": "pro", "to": "pro" },
            "rate_limits": { "from": limits(60), "to": limits(90) },
        }),
        json!({ "name": { "from": "pro" }, "rate_limits": { "from": limits(90) } }),
    ];
    assert_eq!(all, expected);
    // The event belongs to no consumer.
    let tenant = admin(&issuer, &key(&issuer, "acme", &[WRITE]).await);
    let seen = tenant.events(&EventQuery::new()).await.unwrap().events;
    let seen: Vec<_> = seen.iter().map(|event| event.entry.action).collect();
    assert_eq!(seen, [KeyAction::Issued]);
}

async fn a_plan_that_stays_as_it_is_leaves_no_line(store: impl ManageKeys) {
    let issuer = issuer(store);
    issuer.set_plan("pro", &per_minute(60)).await.unwrap();
    issuer.set_plan("pro", &per_minute(60)).await.unwrap();
    assert!(!issuer.remove_plan("free").await.unwrap());
    issuer.set_plan("no plan", &per_minute(60)).await.unwrap_err();
    assert_eq!(events(&issuer, EventQuery::new()).await.len(), 1);
}

async fn what_keys_tried_with_plans_is_in_the_audit(store: impl ManageKeys) {
    let issuer = issuer(store);
    let caller = key(&issuer, "acme", &[WRITE]).await;
    admin(&issuer, &caller).set_plan("pro", &per_minute(60)).await.unwrap_err();
    admin(&issuer, &caller).remove_plan("pro").await.unwrap_err();
    let denials = denials(&issuer).await;
    let attempts: Vec<_> = denials.iter().map(|event| changes(event)["attempt"].clone()).collect();
    assert_eq!(attempts, ["set plan", "remove plan"]);
    assert!(denials.iter().all(|event| event.entry.key_id == Some(caller.id)));
    assert_eq!(issuer.plans().await.unwrap(), []);
}

// Bad rows, and changes in SQL: the same on both databases, except for the dialect.

async fn ended(issuer: &KeyIssuer, count: u32) -> Vec<KeyId> {
    let mut ended = Vec::new();
    for _ in 0..count {
        let id = key(issuer, "acme", &[]).await.id;
        issuer.revoke(id, None).await.unwrap();
        ended.push(id);
    }
    ended
}

async fn left(issuer: &KeyIssuer) -> Vec<KeyId> {
    let keys = issuer.list(&KeyQuery::new().limit(1000)).await.unwrap().keys;
    let mut ids: Vec<_> = keys.iter().map(|key| key.record.id).collect();
    ids.sort();
    ids
}

/// `referred` cannot be deleted.
async fn pruning_goes_past_what_is_referred_to(issuer: &KeyIssuer, referred: &[KeyId]) {
    let later = SystemTime::UNIX_EPOCH + 100_000 * DAY;
    let mut keys = 0;
    loop {
        let mut pruned = issuer.prune(later, 2).await.unwrap();
        assert!(pruned.keys <= 2);
        keys += pruned.keys;
        assert!(keys <= 9, "what stays is pruned");
        if pruned.is_empty() {
            pruned.skipped.sort();
            assert_eq!(pruned.skipped, referred);
            break;
        }
    }
    assert_eq!(keys, 9);
    assert_eq!(left(issuer).await, referred);
    let pruned = issuer.prune_past(later, 2, referred).await.unwrap();
    assert_eq!((pruned.keys, pruned.skipped.len()), (0, 0));
    for id in referred {
        let events = events(issuer, EventQuery::new().key_id(*id)).await;
        assert!(!events.is_empty(), "{id}");
        assert!(events.iter().all(|event| event.entry.action != KeyAction::Pruned));
    }
    let pruned = events(issuer, EventQuery::new()).await;
    let pruned = pruned.iter().filter(|event| event.entry.action == KeyAction::Pruned);
    assert_eq!(pruned.count(), 9, "a key that is deleted has its line");
}

/// The database refuses to revoke the key named `stays`, and cannot read the one named
/// `unreadable`.
async fn revoking_many_goes_past_what_is_refused(issuer: &KeyIssuer, bad: usize) {
    let revoked = issuer.revoke_consumer("acme", Some("leaked")).await.unwrap();
    assert_eq!((revoked.keys, revoked.skipped.len()), (600, bad));
    let again = issuer.revoke_prefix("", None).await.unwrap();
    assert_eq!((again.keys, again.skipped.len()), (0, bad));
    let events = events(issuer, EventQuery::new()).await;
    let revoked = events.iter().filter(|event| event.entry.action == KeyAction::Revoked);
    assert_eq!(revoked.count(), 600);
}

fn imports(numbers: std::ops::Range<u32>, name: impl Fn(u32) -> &'static str) -> Vec<KeyImport> {
    let import = |number: u32| {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        let new = NewKey::new("acme", Expiry::Never).name(name(number));
        KeyImport::new(KeyHash::from_bytes(hash), new)
    };
    numbers.map(import).collect()
}

/// The database refuses keys named `bad`.
async fn an_import_names_what_the_database_refuses(issuer: &KeyIssuer) {
    for bad in [0, 1, 7, 19] {
        let batch = imports(0..20, |number| if number == bad { "bad" } else { "good" });
        let error = issuer.import(batch).await.unwrap_err();
        is(&error, ManageErrorKind::Invalid, None);
        assert_eq!(error.index(), Some(bad as usize));
        assert!(error.to_string().contains("the database refuses this key: "), "{error}");
    }
    assert!(left(issuer).await.is_empty());
    assert!(events(issuer, EventQuery::new()).await.is_empty());
    assert_eq!(issuer.import(imports(0..20, |_| "good")).await.unwrap().keys.len(), 20);
}

/// Every kind of change by the library; each would have left an additional line as SQL.
async fn the_librarys_changes_leave_the_librarys_lines_alone(issuer: &KeyIssuer) {
    let issuer = issuer.by(Actor::operator("somebody"));
    let first = key(&issuer, "acme", &["a"]).await;
    issuer.update(first.id, KeyUpdate::new().scopes(scopes(&["b"]))).await.unwrap();
    let second = issuer.rotate(first.id, Rotation::new()).await.unwrap().record;
    issuer.import(imports(0..3, |_| "old")).await.unwrap();
    issuer.revoke(second.id, None).await.unwrap();
    issuer.revoke_consumer("acme", None).await.unwrap();
    issuer.set_plan("pro", &per_minute(1)).await.unwrap();
    issuer.set_plan("pro", &per_minute(2)).await.unwrap();
    issuer.remove_plan("pro").await.unwrap();
    assert_eq!(issuer.prune(SystemTime::UNIX_EPOCH + 100_000 * DAY, 100).await.unwrap().keys, 5);
    let lines = lines(&issuer).await;
    assert!(lines.iter().all(|(_, actor, _)| actor == "somebody"), "{lines:?}");
    let actions: Vec<_> = lines.iter().map(|(action, ..)| action.as_str()).collect();
    let expected = [
        "issued",
        "updated",
        "rotated",
        "issued",
        "imported",
        "imported",
        "imported",
        "revoked",
        "revoked",
        "revoked",
        "revoked",
        "revoked",
        "plan_created",
        "plan_updated",
        "plan_removed",
        "pruned",
        "pruned",
        "pruned",
        "pruned",
        "pruned",
    ];
    assert_eq!(actions, expected);
}

mod in_sqlite {
    use sqlx::{query, raw_sql};
    use tempfile::TempDir;
    use tower_api_key::store::SqliteKeyStore;

    use super::*;

    pub(super) async fn store() -> (TempDir, SqliteKeyStore) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/keys.db", folder.path().display());
        let store = SqliteKeyStore::connect(&url).await.unwrap();
        store.migrate().await.unwrap();
        (folder, store)
    }

    async fn run(store: &SqliteKeyStore, sql: &'static str) {
        raw_sql(sql).execute(store.pool()).await.unwrap();
    }

    #[tokio::test]
    async fn prune_goes_past_keys_that_the_application_refers_to() {
        let (_folder, store) = store().await;
        let issuer = issuer(store.clone());
        let ended = ended(&issuer, 12).await;
        run(&store, "create table apps (key_id blob not null references api_keys (id))").await;
        let mut referred = vec![ended[0], ended[1], ended[6]];
        for id in &referred {
            let insert = query("insert into apps values (?1)").bind(id.as_bytes().to_vec());
            insert.execute(store.pool()).await.unwrap();
        }
        referred.sort();
        pruning_goes_past_what_is_referred_to(&issuer, &referred).await;
    }

    #[tokio::test]
    async fn revoke_goes_past_keys_that_a_trigger_keeps_or_that_cannot_be_read() {
        let (_folder, store) = store().await;
        let issuer = issuer(store.clone());
        let batch = imports(0..602, |number| if number == 250 { "stays" } else { "goes" });
        issuer.import(batch).await.unwrap();
        run(
            &store,
            "update api_keys set scopes = '[\"a b\"]' where hex(key_hash) like '00000003%';
            create trigger stay before update of revoked_at on api_keys when old.name = 'stays'
            begin select raise(abort, 'it stays'); end",
        )
        .await;
        revoking_many_goes_past_what_is_refused(&issuer, 2).await;
    }

    #[tokio::test]
    async fn import_names_the_key_that_a_trigger_refuses() {
        let (_folder, store) = store().await;
        run(
            &store,
            "create trigger decent before insert on api_keys when new.name = 'bad'
            begin select raise(abort, 'not with that name'); end",
        )
        .await;
        an_import_names_what_the_database_refuses(&issuer(store)).await;
    }

    #[tokio::test]
    async fn the_library_marks_its_changes() {
        let (_folder, store) = store().await;
        the_librarys_changes_leave_the_librarys_lines_alone(&issuer(store.clone())).await;
        let marks = sqlx::query_scalar("select count(*) from api_key_audited");
        let marks: i64 = marks.fetch_one(store.pool()).await.unwrap();
        assert_eq!(marks, 0);
    }

    #[tokio::test]
    async fn changes_in_sql_leave_lines() {
        let (_folder, store) = store().await;
        let issuer = issuer(store.clone());
        let old = key(&issuer, "acme", &["a"]).await;
        let before = events(&issuer, EventQuery::new()).await.len();
        for (sql, action, expected) in [
            (
                r#"update api_keys set scopes = '["a","admin"]', version = version + 1"#,
                "updated",
                json!({ "scopes": { "from": ["a"], "to": ["a", "admin"] } }),
            ),
            (
                "update api_keys set key_hash = zeroblob(32)",
                "updated",
                json!({ "key_hash": { "to": "another hash" } }),
            ),
            (
                r#"update api_keys set metadata = '{"a":1}', is_active = 0"#,
                "updated",
                json!({
                    "metadata": { "from": {}, "to": { "a": 1 } },
                    "is_active": { "from": true, "to": false },
                }),
            ),
            (
                "update api_keys set revoked_at = 1767225600123000",
                "revoked",
                json!({ "revoked_at": { "from": null, "to": "2026-01-01T00:00:00.123Z" } }),
            ),
            ("delete from api_keys", "deleted", Value::Null),
            (
                "insert into api_key_plans (name, rate_limits) values ('pro', '[]')",
                "plan_created",
                json!({ "name": { "to": "pro" }, "rate_limits": { "to": [] } }),
            ),
            (
                "update api_key_plans set rate_limits = '[1]'",
                "plan_updated",
                json!({
                    "name": { "from": "pro", "to": "pro" },
                    "rate_limits": { "from": [], "to": [1] },
                }),
            ),
            (
                "delete from api_key_plans",
                "plan_removed",
                json!({ "name": { "from": "pro" }, "rate_limits": { "from": [1] } }),
            ),
        ] {
            run(&store, sql).await;
            let events = events(&issuer, EventQuery::new()).await;
            let last = events.last().unwrap();
            let entry = &last.entry;
            assert_eq!((entry.action.as_str(), &*entry.actor), (action, "sql"), "{sql}");
            assert_eq!(changes(last), expected, "{sql}");
            let of_a_key = !action.starts_with("plan");
            assert_eq!(entry.key_id, of_a_key.then_some(old.id), "{sql}");
        }
        let after = events(&issuer, EventQuery::new()).await.len();
        assert_eq!(after, before + 8, "each left one line");
    }

    const INSERT: &str = r#"into api_keys (
            id, key_hash, key_prefix, key_last4, consumer_id, scopes, metadata, is_active,
            created_at, root_id, version
        ) values (
            zeroblob(16), zeroblob(32), 'sk_', 'abcd', 'globex', '["a"]', '{}', 1, 0, zeroblob(16), 1
        )"#;

    #[tokio::test]
    async fn keys_that_come_go_or_are_replaced_in_sql_leave_lines() {
        use sqlx::AssertSqlSafe;

        let (_folder, store) = store().await;
        let issuer = issuer(store.clone());
        let run = async |sql: String| {
            raw_sql(AssertSqlSafe(sql)).execute(store.pool()).await.unwrap();
        };
        run(format!("insert {INSERT}")).await;
        // Changes nothing, although a trigger before it fires.
        run(format!("insert or ignore {INSERT}")).await;
        run("update api_keys set name = name, version = version + 1".into()).await;
        let other = format!("x'{}'", "07".repeat(16));
        run(format!("insert or replace {}", INSERT.replace("zeroblob(16)", &other))).await;
        let lines = lines(&issuer).await;
        let told: Vec<_> = lines.iter().map(|(action, actor, _)| (&**action, &**actor)).collect();
        assert_eq!(told, [("imported", "sql"), ("deleted", "sql"), ("imported", "sql")]);
        assert!(!format!("{lines:?}").contains(&"00".repeat(32)), "{lines:?}");
    }

    #[tokio::test]
    async fn a_cascade_leaves_lines() {
        let (_folder, store) = store().await;
        let issuer = issuer(store.clone());
        let [kept, gone] = [key(&issuer, "acme", &[]).await, key(&issuer, "acme", &[]).await];
        run(
            &store,
            "create table apps (id integer primary key);
            insert into apps values (1), (2);
            alter table api_keys add column app integer references apps on delete cascade",
        )
        .await;
        let own =
            query("update api_keys set app = iif(id = ?1, 1, 2)").bind(gone.id.as_bytes().to_vec());
        own.execute(store.pool()).await.unwrap();
        run(&store, "delete from apps where id = 1").await;
        let events = events(&issuer, EventQuery::new()).await;
        let last = &events.last().unwrap().entry;
        assert_eq!(
            (last.action.as_str(), last.key_id, &*last.actor),
            ("deleted", Some(gone.id), "sql")
        );
        assert_eq!(left(&issuer).await, [kept.id]);
    }

    /// A program of the previous release, which does not set the mark: its changes leave two lines.
    #[tokio::test]
    async fn a_node_of_the_release_before_goes_on_working() {
        let (_folder, store) = store().await;
        let issuer = issuer(store.clone());
        let old = key(&issuer, "acme", &[]).await;
        let mut tx = store.pool().begin_with("begin immediate").await.unwrap();
        raw_sql(
            "update api_keys set name = 'renamed', version = version + 1;
            insert into api_key_events (action, key_id, actor) select 'updated', id, 'old' from api_keys",
        )
        .execute(&mut *tx)
        .await
        .unwrap();
        tx.commit().await.unwrap();
        let lines = lines(&issuer).await;
        let actors: Vec<_> = lines.iter().map(|(_, actor, _)| &**actor).collect();
        assert_eq!(actors, ["application", "sql", "old"]);
        let events = events(&issuer, EventQuery::new().key_id(old.id)).await;
        assert_eq!(events.len(), 3);
    }

    /// A mark set by hand is worthless after the library's next transaction.
    #[tokio::test]
    async fn a_mark_that_was_left_behind_is_cleared() {
        let (_folder, store) = store().await;
        let issuer = issuer(store.clone());
        run(&store, "insert into api_key_audited values (1)").await;
        key(&issuer, "acme", &[]).await;
        run(&store, "update api_keys set name = 'a'").await;
        assert_eq!(lines(&issuer).await.last().unwrap().1, "sql");
    }

    #[tokio::test]
    async fn lines_of_a_later_release_hide_no_others() {
        let (_folder, store) = store().await;
        let issuer = issuer(store.clone());
        let old = key(&issuer, "acme", &[]).await;
        run(
            &store,
            "insert into api_key_events (action, actor, reason) values ('melted', 'a', 'b')",
        )
        .await;
        let page = issuer.events(&EventQuery::new()).await.unwrap();
        let ([issued], [later]) = (&page.events[..], &page.invalid[..]) else { panic!("{page:?}") };
        assert_eq!(issued.entry.key_id, Some(old.id));
        assert_eq!((&*later.values["action"], &*later.values["reason"]), ("melted", "b"));
    }
}

mod in_postgres {
    use sqlx::{
        AssertSqlSafe, Connection as _, PgConnection, postgres::PgPoolOptions, query, query_scalar,
        raw_sql, types::Uuid,
    };
    use tower_api_key::store::PgKeyStore;

    use super::*;
    use crate::servers::{
        pgbouncer::PgBouncer,
        postgres::{Database, Server},
        unique,
    };

    pub(super) async fn store() -> (Database, PgKeyStore) {
        let database = Server::shared().database().await;
        let store = PgKeyStore::new(database.pool().await);
        store.migrate().await.unwrap();
        (database, store)
    }

    async fn run(store: &PgKeyStore, sql: &'static str) {
        raw_sql(sql).execute(store.pool()).await.unwrap();
    }

    fn uuid(id: KeyId) -> Uuid {
        Uuid::from_bytes(*id.as_bytes())
    }

    async fn actor(store: &PgKeyStore) -> String {
        let user: String =
            query_scalar("select session_user::text").fetch_one(store.pool()).await.unwrap();
        format!("sql:{user}")
    }

    async fn prunes_past_a_foreign_key(constraint: &'static str) {
        let (_database, store) = store().await;
        let issuer = issuer(store.clone());
        let ended = ended(&issuer, 12).await;
        run(&store, constraint).await;
        let mut referred = vec![ended[0], ended[1], ended[6]];
        for id in &referred {
            let insert = query("insert into apps values ($1)").bind(uuid(*id));
            insert.execute(store.pool()).await.unwrap();
        }
        referred.sort();
        pruning_goes_past_what_is_referred_to(&issuer, &referred).await;
    }

    #[tokio::test]
    async fn prune_goes_past_keys_that_the_application_refers_to() {
        prunes_past_a_foreign_key("create table apps (key_id uuid references api_keys)").await;
    }

    #[tokio::test]
    async fn prune_goes_past_keys_whose_references_are_checked_at_the_end() {
        prunes_past_a_foreign_key(
            "create table apps (
                key_id uuid references api_keys deferrable initially deferred
            )",
        )
        .await;
    }

    #[tokio::test]
    async fn revoke_goes_past_keys_that_a_trigger_keeps_or_that_cannot_be_read() {
        let (_database, store) = store().await;
        let issuer = issuer(store.clone());
        let batch = imports(0..602, |number| if number == 250 { "stays" } else { "goes" });
        issuer.import(batch).await.unwrap();
        run(
            &store,
            "update api_keys set scopes = array['a b'] where name = 'goes'
                and key_hash = (select key_hash from api_keys order by key_hash limit 1);
            create function stay() returns trigger language plpgsql as
                $$ begin raise exception 'it stays'; end $$;
            create trigger stay before update of revoked_at on api_keys
            for each row when (old.name = 'stays') execute function stay()",
        )
        .await;
        revoking_many_goes_past_what_is_refused(&issuer, 2).await;
    }

    #[tokio::test]
    async fn import_names_the_key_that_a_constraint_refuses() {
        let (_database, store) = store().await;
        run(&store, "alter table api_keys add check (name <> 'bad')").await;
        an_import_names_what_the_database_refuses(&issuer(store)).await;
    }

    #[tokio::test]
    async fn the_library_marks_its_changes() {
        let (_database, store) = store().await;
        the_librarys_changes_leave_the_librarys_lines_alone(&issuer(store)).await;
    }

    #[tokio::test]
    async fn the_library_marks_its_changes_behind_pgbouncer_in_transaction_mode() {
        let (database, store) = store().await;
        let pgbouncer = PgBouncer::start(Server::shared(), "transaction", 1);
        let pool = PgPoolOptions::new().max_connections(1);
        let pool = pool.connect(&pgbouncer.url(database.url())).await.unwrap();
        let pooled = PgKeyStore::new(pool);
        the_librarys_changes_leave_the_librarys_lines_alone(&issuer(pooled.clone())).await;
        // The mark ends with the transaction, on the connection that the pooler shares.
        key(&issuer(store.clone()), "acme", &[]).await;
        run(&pooled, "update api_keys set name = 'by hand'").await;
        assert_eq!(lines(&issuer(store)).await.last().unwrap().0, "updated");
    }

    #[tokio::test]
    async fn changes_in_sql_leave_lines() {
        let (_database, store) = store().await;
        let issuer = issuer(store.clone());
        let old = key(&issuer, "acme", &["a"]).await;
        let actor = actor(&store).await;
        let before = events(&issuer, EventQuery::new()).await.len();
        for (sql, action, expected) in [
            (
                "update api_keys set scopes = array['a', 'admin'], version = version + 1",
                "updated",
                json!({ "scopes": { "from": ["a"], "to": ["a", "admin"] } }),
            ),
            (
                "update api_keys set key_hash = sha256('mine')",
                "updated",
                json!({ "key_hash": { "to": "another hash" } }),
            ),
            (
                r#"update api_keys set metadata = '{"a":1}', is_active = false"#,
                "updated",
                json!({
                    "metadata": { "from": {}, "to": { "a": 1 } },
                    "is_active": { "from": true, "to": false },
                }),
            ),
            (
                "set timezone = 'Asia/Tokyo'; update api_keys set revoked_at = '2026-01-01T00:00Z'",
                "revoked",
                json!({ "revoked_at": { "from": null, "to": "2026-01-01T00:00:00+00:00" } }),
            ),
            ("delete from api_keys", "deleted", Value::Null),
            (
                "insert into api_key_plans (name, rate_limits) values ('pro', '[]')",
                "plan_created",
                json!({ "name": { "to": "pro" }, "rate_limits": { "to": [] } }),
            ),
            (
                "update api_key_plans set rate_limits = '[1]'",
                "plan_updated",
                json!({
                    "name": { "from": "pro", "to": "pro" },
                    "rate_limits": { "from": [], "to": [1] },
                }),
            ),
            (
                "delete from api_key_plans",
                "plan_removed",
                json!({ "name": { "from": "pro" }, "rate_limits": { "from": [1] } }),
            ),
        ] {
            run(&store, sql).await;
            let events = events(&issuer, EventQuery::new()).await;
            let last = events.last().unwrap();
            let entry = &last.entry;
            assert_eq!((entry.action.as_str(), &entry.actor), (action, &actor), "{sql}");
            assert_eq!(changes(last), expected, "{sql}");
            let of_a_key = !action.starts_with("plan");
            assert_eq!(entry.key_id, of_a_key.then_some(old.id), "{sql}");
        }
        let after = events(&issuer, EventQuery::new()).await.len();
        assert_eq!(after, before + 8, "each left one line");
        // Statements that change nothing leave no line.
        key(&issuer, "acme", &[]).await;
        run(&store, "update api_keys set name = name, version = version + 1").await;
        assert_eq!(events(&issuer, EventQuery::new()).await.len(), after + 1);
    }

    #[tokio::test]
    async fn truncating_and_cascades_leave_lines() {
        let (_database, store) = store().await;
        let issuer = issuer(store.clone());
        let actor = actor(&store).await;
        let [kept, gone] = [key(&issuer, "acme", &[]).await, key(&issuer, "acme", &[]).await];
        run(
            &store,
            "create table apps (id int primary key); insert into apps values (1), (2);
            alter table api_keys add column app int references apps on delete cascade",
        )
        .await;
        let own = query("update api_keys set app = case id when $1 then 1 else 2 end");
        own.bind(uuid(gone.id)).execute(store.pool()).await.unwrap();
        run(&store, "delete from apps where id = 1").await;
        let last = events(&issuer, EventQuery::new()).await.pop().unwrap().entry;
        let told = (last.action.as_str(), last.key_id, &last.actor);
        assert_eq!(told, ("deleted", Some(gone.id), &actor));
        assert_eq!(left(&issuer).await, [kept.id]);

        run(&store, "truncate apps, api_keys").await;
        let last = events(&issuer, EventQuery::new()).await.pop().unwrap().entry;
        assert_eq!((last.action.as_str(), last.key_id, &last.actor), ("deleted", None, &actor));
        assert!(last.reason.unwrap().contains("truncate"));
        issuer.set_plan("pro", &per_minute(1)).await.unwrap();
        run(&store, "truncate api_key_plans").await;
        let last = events(&issuer, EventQuery::new()).await.pop().unwrap().entry;
        assert_eq!((last.action.as_str(), &last.actor), ("plan_removed", &actor));
    }

    #[tokio::test]
    async fn a_key_that_is_written_in_sql_leaves_a_line_without_its_hash() {
        let (_database, store) = store().await;
        let issuer = issuer(store.clone());
        run(
            &store,
            "insert into api_keys (
                id, key_hash, key_prefix, key_last4, consumer_id, scopes, metadata, is_active,
                created_at, root_id, version
            )
            select id, sha256('mine'), 'sk_', 'abcd', 'acme', array['admin'], '{}', true, now(), id, 1
            from (select gen_random_uuid() as id) as new",
        )
        .await;
        let events = events(&issuer, EventQuery::new()).await;
        let [event] = &events[..] else { panic!("{events:?}") };
        assert_eq!(event.entry.action, KeyAction::Imported);
        assert_eq!(event.entry.consumer_id.as_deref(), Some("acme"));
        assert_eq!(changes(event)["scopes"], json!({ "to": ["admin"] }));
        assert!(changes(event).get("key_hash").is_none());
    }

    /// Values of the setting that do not mark this transaction.
    #[tokio::test]
    async fn no_accident_silences_the_audit() {
        let (database, store) = store().await;
        let issuer = issuer(store.clone());
        key(&issuer, "acme", &[]).await;
        let mut prompt = PgConnection::connect(database.url()).await.unwrap();
        for set in [
            "set tower_api_key.audited = 'on'",
            "set tower_api_key.audited = ''",
            // The mark of an earlier transaction, but set for the session.
            "select set_config(
                'tower_api_key.audited', extract(epoch from transaction_timestamp())::text, false
            )",
        ] {
            raw_sql(set).execute(&mut prompt).await.unwrap();
            let before = events(&issuer, EventQuery::new()).await.len();
            let update = "update api_keys set name = coalesce(name, '') || 'x'";
            raw_sql(update).execute(&mut prompt).await.unwrap();
            assert_eq!(events(&issuer, EventQuery::new()).await.len(), before + 1, "{set}");
        }
    }

    /// A program of the previous release, which does not set the mark: its changes leave two lines.
    #[tokio::test]
    async fn a_node_of_the_release_before_goes_on_working() {
        let (_database, store) = store().await;
        let issuer = issuer(store.clone());
        key(&issuer, "acme", &[]).await;
        run(
            &store,
            "begin isolation level read committed;
            update api_keys set name = 'renamed', version = version + 1;
            insert into api_key_events (action, key_id, actor) select 'updated', id, 'old' from api_keys;
            commit",
        )
        .await;
        let lines = lines(&issuer).await;
        let actors: Vec<_> = lines.iter().map(|(_, actor, _)| actor.clone()).collect();
        assert_eq!(actors, ["application".to_owned(), actor(&store).await, "old".to_owned()]);
    }

    /// A role that may write keys and has no right to the audit.
    #[tokio::test]
    async fn a_role_without_rights_to_the_audit_leaves_lines_too() {
        let (_database, store) = store().await;
        let issuer = issuer(store.clone());
        key(&issuer, "acme", &[]).await;
        let role = format!("writer_{:016x}", unique());
        let sql = format!(
            "create role {role}; grant select, update on api_keys to {role};
            begin; set local role {role};
            update api_keys set scopes = array['admin']; commit;
            drop owned by {role}; drop role {role}"
        );
        raw_sql(AssertSqlSafe(sql)).execute(store.pool()).await.unwrap();
        let (action, who, _) = lines(&issuer).await.pop().unwrap();
        assert_eq!((action, who), ("updated".to_owned(), actor(&store).await));
    }

    /// A database of the previous release: the migration rewrites no row and does not wait for
    /// readers.
    #[tokio::test]
    async fn tables_of_the_release_before_are_audited_without_touching_a_key() {
        let (database, store) = store().await;
        let issuer = issuer(store.clone());
        let old = key(&issuer, "acme", &[]).await;
        run(
            &store,
            "drop function api_keys_audit() cascade; drop function api_key_plans_audit() cascade;
            delete from _api_key_migrations where version = 5",
        )
        .await;
        run(&store, "update api_keys set name = 'unseen'").await;
        assert_eq!(events(&issuer, EventQuery::new()).await.len(), 1);
        let file = "select pg_relation_filenode('api_keys')::bigint";
        let before: i64 = query_scalar(file).fetch_one(store.pool()).await.unwrap();
        let mut reader = PgConnection::connect(database.url()).await.unwrap();
        raw_sql("begin; select * from api_keys").execute(&mut reader).await.unwrap();

        store.migrate().await.unwrap();
        let after: i64 = query_scalar(file).fetch_one(store.pool()).await.unwrap();
        assert_eq!(before, after);
        run(&store, "update api_keys set name = 'seen'").await;
        let last = events(&issuer, EventQuery::new()).await.pop().unwrap();
        assert_eq!(last.entry.key_id, Some(old.id));
        assert_eq!(changes(&last), json!({ "name": { "from": "unseen", "to": "seen" } }));
    }

    /// Default privileges as on hosted databases.
    #[tokio::test]
    async fn default_privileges_of_the_public_do_not_open_the_tables() {
        let database = Server::shared().database().await;
        let store = PgKeyStore::new(database.pool().await);
        run(
            &store,
            "alter default privileges grant all on tables to public;
            alter default privileges grant all on sequences to public;
            alter default privileges grant execute on functions to public",
        )
        .await;
        store.migrate().await.unwrap();
        let open = "
            select relname::text from pg_class, aclexplode(relacl) as granted
            where relnamespace = current_schema()::regnamespace and grantee = 0
            union all
            select proname::text from pg_proc, aclexplode(proacl) as granted
            where pronamespace = current_schema()::regnamespace and grantee = 0
                and proname <> 'api_key_announce'";
        let open: Vec<String> = query_scalar(open).fetch_all(store.pool()).await.unwrap();
        assert!(open.is_empty(), "{open:?}");
        // Functions without an access list are callable by everyone. Announcing needs the right to
        // read the secret, which no function lends.
        let open = "select proname::text from pg_proc
            where pronamespace = current_schema()::regnamespace and proacl is null
                and proname <> 'api_key_announce'";
        let open: Vec<String> = query_scalar(open).fetch_all(store.pool()).await.unwrap();
        assert!(open.is_empty(), "{open:?}");
    }
}
