//! Nothing is issued or changed beyond the issue policy, except by an operator who says why.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tower_api_key::{
    ApiKeys, Consumer,
    clock::ManualClock,
    key::{KeyFormat, KeyHash},
    manage::{
        Actor, Expiry, Grant, IssuePolicy, IssueRules, KeyImport, KeyIssuer, KeyUpdate,
        ManageError, ManageErrorKind, Member, NeverExpires, NewKey, Rotation,
    },
    record::{KeyAction, KeyId, KeyRecord, Networks, Scope, Scopes},
    store::{EventQuery, ManageKeys, MemoryKeyStore, PgKeyStore, SqliteKeyStore},
};

use crate::{
    admin_client::{Desk, assert_problem},
    app::format,
    servers::postgres::Server,
};

const DAY: Duration = Duration::from_secs(86_400);
const WRITE: &str = "api-keys:write";

fn scopes(scopes: &[&str]) -> Scopes {
    Scopes::parse(scopes.iter().copied()).unwrap()
}

fn acme(days: u32) -> NewKey {
    NewKey::new("acme", Expiry::In(DAY * days))
}

/// An operator's issuer without a policy, and its clock.
fn operator() -> (KeyIssuer, ManualClock) {
    let clock = ManualClock::default();
    let store = MemoryKeyStore::with_clock(clock.clone());
    (KeyIssuer::new(store, format()).clock(clock.clone()), clock)
}

/// The policy of most tests.
fn strict() -> IssueRules {
    IssueRules::new()
        .max_lifetime(DAY * 90)
        .allowed_scopes(scopes(&["a", "b", WRITE]))
        .requires_name(true)
}

#[track_caller]
fn exceeds(error: &ManageError, field: &str, bound: &str) {
    assert_eq!(error.kind(), ManageErrorKind::ExceedsPolicy, "{error}");
    assert_eq!(error.field(), Some(field), "{error}");
    assert!(error.detail().contains(bound), "{error}");
}

/// `issuer` for a new key of `acme` that may do everything.
async fn calling_key(issuer: &KeyIssuer) -> KeyIssuer {
    let free = issuer.clone().policy(IssueRules::new());
    let all = NewKey::new("acme", Expiry::Never).scopes(scopes(&["a", "b", "c", WRITE]));
    let key = free.issue(all.name("caller")).await.unwrap().record;
    issuer.by(Actor::key(&Consumer::from(key)).required_scope(Scope::new(WRITE).unwrap()))
}

#[tokio::test]
async fn a_refusal_names_at_most_sixteen_scopes_or_networks() {
    for (count, is_cut) in [(1_u8, false), (16, false), (17, true)] {
        let allowed: Vec<_> = (0..count).map(|n| format!("scope{n:02}")).collect();
        let rules = IssueRules::new().allowed_scopes(Scopes::parse(&allowed).unwrap());
        let new = acme(1).scopes(scopes(&["other"]));
        let error = operator().0.policy(rules).issue(new).await.unwrap_err();
        let named = error.detail().matches("scope").count();
        assert_eq!(
            (named, error.detail().contains('…')),
            (count.min(16).into(), is_cut),
            "{error}"
        );

        let allowed: Vec<_> = (0..count).map(|n| format!("192.0.{n}.0/24")).collect();
        let rules = IssueRules::new().allowed_networks(Networks::parse(&allowed).unwrap());
        let error = operator().0.policy(rules).issue(acme(1)).await.unwrap_err();
        let named = error.detail().matches("/24").count();
        assert_eq!(
            (named, error.detail().contains('…')),
            (count.min(16).into(), is_cut),
            "{error}"
        );
    }
}

#[tokio::test]
async fn each_breach_names_its_field_and_its_bound_for_every_actor() {
    let (operator, _) = operator();
    let operator = operator.policy(strict());
    let named = |days| acme(days).name("ci");
    for issuer in [operator.clone(), calling_key(&operator).await] {
        issuer.issue(named(90).scopes(scopes(&["a", "b"]))).await.unwrap();
        let refused = async |new| issuer.issue(new).await.unwrap_err();
        exceeds(&refused(named(91)).await, "expires_at", "at most 90d");
        let never = NewKey::new("acme", Expiry::Never).name("ci");
        exceeds(&refused(never).await, "expires_at", "at most 90d");
        let c = named(1).scopes(scopes(&["a", "c"]));
        exceeds(&refused(c).await, "scopes", "does not allow `c`, only: a, api-keys:write, b");
        exceeds(&refused(acme(1)).await, "name", "requires a name");
        exceeds(&refused(acme(1).name("")).await, "name", "requires a name");
    }
}

#[tokio::test]
async fn a_key_is_restricted_to_networks_of_the_policy() {
    let networks = |texts: &[&str]| Networks::parse(texts).unwrap();
    let (free, _) = operator();
    let anywhere = free.issue(acme(1)).await.unwrap().record;
    let rules = IssueRules::new().allowed_networks(networks(&["192.0.2.0/24", "2001:db8::/32"]));
    let operator = free.policy(rules);
    for issuer in [operator.clone(), calling_key(&operator).await] {
        let within = acme(1).networks(networks(&["192.0.2.7", "2001:db8:1::/48"]));
        let key = issuer.issue(within).await.unwrap().record;
        for beyond in [&[][..], &["192.0.2.0/23"], &["192.0.2.7", "198.51.100.7"]] {
            let error = issuer.issue(acme(1).networks(networks(beyond))).await.unwrap_err();
            exceeds(&error, "networks", "within: 192.0.2.0/24, 2001:db8::/32");
            let update = KeyUpdate::new().networks(networks(beyond));
            exceeds(&issuer.update(key.id, update).await.unwrap_err(), "networks", "192.0.2.0/24");
        }
        let wider = KeyUpdate::new().networks(networks(&["192.0.2.0/24"]));
        issuer.update(key.id, wider).await.unwrap();
        // From before the policy.
        let renamed = KeyUpdate::new().name(Some("ci".into()));
        issuer.update(anywhere.id, renamed).await.unwrap();
        let rotated = issuer.rotate(anywhere.id, Rotation::new()).await.unwrap_err();
        exceeds(&rotated, "networks", "192.0.2.0/24");
    }
}

#[tokio::test]
async fn a_key_that_never_expires_needs_a_reason_if_the_policy_says_so() {
    let (operator, _) = operator();
    let rules = IssueRules::new().never_expires(NeverExpires::WithReason);
    let operator = operator.policy(rules.clone().max_lifetime(DAY * 90));
    let never = || NewKey::new("acme", Expiry::Never);
    exceeds(&operator.issue(never()).await.unwrap_err(), "reason", "never expires");
    exceeds(&operator.issue(never().reason("")).await.unwrap_err(), "reason", "never expires");
    exceeds(&operator.issue(acme(91)).await.unwrap_err(), "expires_at", "90d");
    let key = operator.issue(never().reason("burned into a device")).await.unwrap().record;

    let rotated = operator.rotate(key.id, Rotation::new()).await.unwrap_err();
    exceeds(&rotated, "reason", "never expires");
    let rotation = Rotation::new().reason("still a device");
    let rotated = operator.rotate(key.id, rotation).await.unwrap().record;
    assert_eq!(rotated.expires_at, None);

    let key = operator.issue(acme(1)).await.unwrap().record;
    let update = || KeyUpdate::new().expiry(Expiry::Never);
    exceeds(&operator.update(key.id, update()).await.unwrap_err(), "reason", "never expires");
    operator.update(key.id, update().reason("a device")).await.unwrap();
    // It never expires already.
    operator.update(key.id, update().name(Some("x".into()))).await.unwrap();

    let without = operator.policy(rules.never_expires(NeverExpires::Refused));
    let error = without.issue(never().reason("please")).await.unwrap_err();
    exceeds(&error, "expires_at", "requires an expiry");
}

#[tokio::test]
async fn a_change_may_narrow_a_key_and_widen_it_within_the_policy_only() {
    let (free, clock) = operator();
    // From before the policy.
    let new = acme(365).scopes(scopes(&["a", "x", "y"]));
    let key = free.issue(new).await.unwrap().record;
    let operator = free.policy(strict());
    let update = async |update: KeyUpdate| operator.update(key.id, update).await;

    update(KeyUpdate::new().name(Some("ci".into()))).await.unwrap();
    let error = update(KeyUpdate::new().name(None)).await.unwrap_err();
    exceeds(&error, "name", "requires a name");
    update(KeyUpdate::new().scopes(scopes(&["a", "b", "x"]))).await.unwrap();
    let error = update(KeyUpdate::new().scopes(scopes(&["a", "x", "y"]))).await.unwrap_err();
    exceeds(&error, "scopes", "`y`");
    update(KeyUpdate::new().expiry(Expiry::In(DAY * 300))).await.unwrap();
    let error = update(KeyUpdate::new().expiry(Expiry::In(DAY * 301))).await.unwrap_err();
    exceeds(&error, "expires_at", "at most 90d");
    update(KeyUpdate::new().expiry(Expiry::In(DAY * 10))).await.unwrap();
    // The lifetime counts from the creation, so that changes do not extend it for ever.
    clock.advance(DAY * 9);
    update(KeyUpdate::new().expiry(Expiry::In(DAY * 81))).await.unwrap();
    let error = update(KeyUpdate::new().expiry(Expiry::In(DAY * 82))).await.unwrap_err();
    exceeds(&error, "expires_at", "at most 90d");
}

#[tokio::test]
async fn a_key_that_is_activated_or_moved_to_another_plan_meets_all_rules() {
    let (free, _) = operator();
    let key = free.issue(acme(30).scopes(scopes(&["x"])).name("ci")).await.unwrap().record;
    let policy =
        IssuePolicy::default().for_plan("short", IssueRules::new().max_lifetime(DAY * 7)).unwrap();
    let operator = free.clone().policy(policy);
    let to_short = || KeyUpdate::new().plan(Some("short".into()));
    let error = operator.update(key.id, to_short()).await.unwrap_err();
    exceeds(&error, "expires_at", "at most 7d");
    operator.update(key.id, to_short().expiry(Expiry::In(DAY * 7))).await.unwrap();
    let error = operator.update(key.id, KeyUpdate::new().expiry(Expiry::In(DAY * 8))).await;
    exceeds(&error.unwrap_err(), "expires_at", "at most 7d");

    let operator = free.policy(strict());
    operator.update(key.id, KeyUpdate::new().is_active(false)).await.unwrap();
    let error = operator.update(key.id, KeyUpdate::new().is_active(true)).await.unwrap_err();
    exceeds(&error, "scopes", "`x`");
    let update = KeyUpdate::new().is_active(true).scopes(scopes(&["a"]));
    operator.update(key.id, update).await.unwrap();
}

#[tokio::test]
async fn a_rotation_shortens_the_lifetime_and_refuses_a_longer_one() {
    let (free, clock) = operator();
    let year = free.issue(acme(365).name("ci")).await.unwrap().record;
    let never = NewKey::new("acme", Expiry::Never).name("ci");
    let never = free.issue(never).await.unwrap().record;
    let month = free.issue(acme(30).name("ci")).await.unwrap().record;
    let unnamed = free.issue(acme(30)).await.unwrap().record;
    let scoped = free.issue(acme(30).name("ci").scopes(scopes(&["x"]))).await.unwrap().record;
    let operator = free.clone().policy(strict());
    clock.advance(DAY);
    let rotate = async |key: &KeyRecord, rotation| {
        operator.rotate(key.id, rotation).await.map(|rotated| rotated.record)
    };
    let longer = Rotation::new().expiry(Expiry::In(DAY * 91));
    exceeds(&rotate(&year, longer.clone()).await.unwrap_err(), "expires_at", "at most 90d");
    for (key, days) in [(&year, 90), (&never, 90), (&month, 30)] {
        let new = rotate(key, Rotation::new()).await.unwrap();
        assert_eq!(new.expires_at, Some(new.created_at + DAY * days));
    }
    exceeds(&rotate(&unnamed, Rotation::new()).await.unwrap_err(), "name", "requires a name");
    exceeds(&rotate(&scoped, Rotation::new()).await.unwrap_err(), "scopes", "`x`");

    // Without a longest lifetime there is none to fall back to.
    let other = free.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record;
    let refusing = free.policy(IssueRules::new().never_expires(NeverExpires::Refused));
    let error = refusing.rotate(other.id, Rotation::new()).await.unwrap_err();
    exceeds(&error, "expires_at", "requires an expiry");
    refusing.rotate(other.id, Rotation::new().expiry(Expiry::In(DAY))).await.unwrap();
}

#[tokio::test]
async fn an_import_meets_all_rules_but_the_number_of_keys() {
    let (operator, _) = operator();
    let operator = operator.policy(strict().max_live_keys(1));
    let import = |number, new| KeyImport::new(KeyHash::from_bytes([number; 32]), new);
    let long_ago = SystemTime::UNIX_EPOCH + DAY;
    let good = |number| import(number, acme(90).name("ci")).created_at(long_ago);
    let imported = operator.import(vec![good(1), good(2), good(3)]).await.unwrap();
    assert_eq!(imported.keys.len(), 3, "they exist elsewhere, and their lifetime counts from now");
    for (bad, field) in [
        (import(4, acme(91).name("ci")), "expires_at"),
        (import(4, acme(1)), "name"),
        (import(4, acme(1).name("ci").scopes(scopes(&["x"]))), "scopes"),
    ] {
        let error = operator.import(vec![good(5), bad]).await.unwrap_err();
        exceeds(&error, field, "the issue policy");
        assert_eq!(error.index(), Some(1));
    }
    // What was imported is extended from its import on, not from its creation.
    let [id, ..] = imported.keys[..] else { panic!("no key") };
    let update = KeyUpdate::new().expiry(Expiry::In(DAY * 80));
    operator.update(id, update).await.unwrap();
    let update = KeyUpdate::new().expiry(Expiry::In(DAY * 90));
    operator.update(id, update).await.unwrap();
}

#[tokio::test]
async fn the_rules_of_prefix_and_plan_apply_to_their_keys() {
    let (operator, _) = operator();
    let policy = IssuePolicy::new(IssueRules::new().max_lifetime(DAY * 90))
        .for_prefix(&format(), IssueRules::new().max_lifetime(DAY * 7))
        .for_plan("device", IssueRules::new().max_lifetime(DAY * 365))
        .unwrap();
    let test = operator.policy(policy.clone());
    exceeds(&test.issue(acme(8)).await.unwrap_err(), "expires_at", "7d");
    exceeds(&test.issue(acme(8).plan("device")).await.unwrap_err(), "expires_at", "7d");
    let live = KeyFormat::new("sk_live_").unwrap();
    let live = KeyIssuer::new(MemoryKeyStore::new(), live).policy(policy);
    exceeds(&live.issue(acme(91)).await.unwrap_err(), "expires_at", "90d");
    live.issue(acme(365).plan("device")).await.unwrap();
    assert_eq!(live.issue_policy().rules_for("sk_live_", None).longest(), Some(DAY * 90));
}

mod live_keys {
    use super::*;

    #[track_caller]
    fn too_many(error: &ManageError, most: usize) {
        assert_eq!(error.kind(), ManageErrorKind::TooManyKeys, "{error}");
        assert_eq!(error.field(), Some("consumer_id"));
        assert!(error.detail().contains(&format!("at most {most} keys")), "{error}");
    }

    #[tokio::test]
    async fn a_consumer_gets_no_more_of_them_from_any_actor() {
        let (operator, clock) = operator();
        let operator = operator.policy(IssueRules::new().max_live_keys(3));
        let caller = calling_key(&operator).await;
        let short = operator.issue(acme(1)).await.unwrap().record;
        caller.issue(acme(9)).await.unwrap();
        too_many(&operator.issue(acme(1)).await.unwrap_err(), 3);
        too_many(&caller.issue(acme(1)).await.unwrap_err(), 3);
        operator.issue(NewKey::new("other", Expiry::Never)).await.unwrap();

        clock.advance(DAY * 2);
        let new = operator.issue(acme(9)).await.unwrap().record;
        let revive = KeyUpdate::new().expiry(Expiry::In(DAY));
        too_many(&operator.update(short.id, revive.clone()).await.unwrap_err(), 3);
        operator.revoke(new.id, None).await.unwrap();
        operator.update(short.id, revive).await.unwrap();
        too_many(&operator.issue(acme(1)).await.unwrap_err(), 3);
    }

    #[tokio::test]
    async fn each_key_can_be_rotated_and_the_old_one_counts_until_it_ends() {
        let (operator, clock) = operator();
        let operator = operator.policy(IssueRules::new().max_live_keys(1));
        let first = operator.issue(acme(9)).await.unwrap().record;
        let second = operator.rotate(first.id, Rotation::new().grace(DAY)).await.unwrap().record;
        let third = operator.rotate(second.id, Rotation::new().grace(DAY)).await;
        too_many(&third.unwrap_err(), 2);
        too_many(&operator.issue(acme(1)).await.unwrap_err(), 1);
        clock.advance(DAY);
        operator.rotate(second.id, Rotation::new()).await.unwrap();
    }

    #[tokio::test]
    async fn a_consumer_with_too_many_keys_does_not_move_to_a_plan() {
        let (operator, _) = operator();
        let few = IssuePolicy::default().for_plan("free", IssueRules::new().max_live_keys(1));
        let operator = operator.policy(few.unwrap());
        let one = operator.issue(acme(9)).await.unwrap().record;
        let other = operator.issue(acme(9)).await.unwrap().record;
        let to_free = || KeyUpdate::new().plan(Some("free".into()));
        too_many(&operator.update(one.id, to_free()).await.unwrap_err(), 1);
        operator.revoke(other.id, None).await.unwrap();
        operator.update(one.id, to_free()).await.unwrap();
    }

    /// The count and the new key are one transaction.
    async fn two_requests_at_once_do_not_both_get_the_last(store: impl ManageKeys) {
        let issuer = KeyIssuer::new(store, format()).policy(IssueRules::new().max_live_keys(4));
        let issuing = (0..8).map(|_| {
            let issuer = issuer.clone();
            async move { issuer.issue(acme(1)).await }
        });
        let outcomes = futures_util::future::join_all(issuing).await;
        let refused: Vec<_> = outcomes.iter().filter_map(|it| it.as_ref().err()).collect();
        assert_eq!(refused.len(), 4, "{refused:?}");
        refused.into_iter().for_each(|error| too_many(error, 4));
    }

    #[tokio::test]
    async fn on_every_store_two_requests_at_once_do_not_both_get_the_last() {
        two_requests_at_once_do_not_both_get_the_last(MemoryKeyStore::new()).await;
        let store = SqliteKeyStore::in_memory().await.unwrap();
        store.migrate().await.unwrap();
        two_requests_at_once_do_not_both_get_the_last(store).await;
        let database = Server::shared().database().await;
        let store = PgKeyStore::connect(database.url()).await.unwrap();
        store.migrate().await.unwrap();
        two_requests_at_once_do_not_both_get_the_last(store).await;
    }
}

mod overriding {
    use super::*;

    const REASON: &str = "contract 7 until May";

    /// The events of a key, oldest first: action, and `policy_override` of the changes.
    async fn overrides(issuer: &KeyIssuer, id: KeyId) -> Vec<(KeyAction, Value)> {
        let page = issuer.events(&EventQuery::new().key_id(id)).await.unwrap();
        let of_event = |entry: &tower_api_key::record::AuditEntry| {
            let changes: Value = entry
                .changes
                .as_deref()
                .map_or_else(|| json!({}), |it| serde_json::from_str(it).unwrap());
            (entry.action, changes["policy_override"].clone())
        };
        page.events.iter().rev().map(|event| of_event(&event.entry)).collect()
    }

    fn exceeded(value: &Value) -> Vec<&str> {
        assert_eq!(value["to"]["reason"], json!(REASON), "{value}");
        let exceeded = value["to"]["exceeded"].as_array().unwrap();
        exceeded.iter().map(|it| it.as_str().unwrap().split(':').next().unwrap()).collect()
    }

    async fn an_operator_overrides_and_the_audit_keeps_why(store: impl ManageKeys) {
        let issuer = KeyIssuer::new(store, format()).policy(strict().max_live_keys(1));
        let operator = issuer.clone().override_policy(REASON);
        let new = acme(365).scopes(scopes(&["x"]));
        let key = operator.issue(new).await.unwrap().record;
        let [(KeyAction::Issued, issued)] = &overrides(&issuer, key.id).await[..] else {
            panic!("not one event")
        };
        assert_eq!(exceeded(issued), ["expires_at", "scopes", "name"]);

        let update = KeyUpdate::new().expiry(Expiry::In(DAY * 400));
        operator.update(key.id, update).await.unwrap();
        let rotated = operator.rotate(key.id, Rotation::new()).await.unwrap().record;
        let [_, (KeyAction::Updated, updated), (KeyAction::Rotated, Value::Null)] =
            &overrides(&issuer, key.id).await[..]
        else {
            panic!("not three events")
        };
        assert_eq!(exceeded(updated), ["expires_at"]);
        let [(KeyAction::Issued, issued)] = &overrides(&issuer, rotated.id).await[..] else {
            panic!("not one event")
        };
        // The lifetime was shortened.
        assert_eq!(exceeded(issued), ["scopes", "name"]);

        let second = operator.issue(acme(1).name("ci")).await.unwrap().record;
        let [(_, issued)] = &overrides(&issuer, second.id).await[..] else { panic!("not one") };
        assert_eq!(exceeded(issued), ["consumer_id"]);

        let import = KeyImport::new(KeyHash::from_bytes([9; 32]), acme(1));
        let id = operator.import(vec![import]).await.unwrap().keys[0];
        let [(KeyAction::Imported, imported)] = &overrides(&issuer, id).await[..] else {
            panic!("not one event")
        };
        assert_eq!(exceeded(imported), ["name"]);
    }

    #[tokio::test]
    async fn on_every_store_an_operator_overrides_and_the_audit_keeps_why() {
        an_operator_overrides_and_the_audit_keeps_why(MemoryKeyStore::new()).await;
        let store = SqliteKeyStore::in_memory().await.unwrap();
        store.migrate().await.unwrap();
        an_operator_overrides_and_the_audit_keeps_why(store).await;
        let database = Server::shared().database().await;
        let store = PgKeyStore::connect(database.url()).await.unwrap();
        store.migrate().await.unwrap();
        an_operator_overrides_and_the_audit_keeps_why(store).await;
    }

    #[tokio::test]
    async fn what_meets_the_policy_overrides_nothing() {
        let (operator, _) = operator();
        let operator = operator.policy(strict()).override_policy(REASON);
        let key = operator.issue(acme(1).name("ci")).await.unwrap().record;
        let events = overrides(&operator, key.id).await;
        assert_eq!(events, [(KeyAction::Issued, Value::Null)]);
    }

    #[tokio::test]
    async fn a_calling_key_or_a_member_never_overrides() {
        let (operator, _) = operator();
        let operator = operator.policy(strict()).override_policy(REASON);
        // Whichever of the two is said first.
        let member = Member::new("ann", "acme").grant(Grant::everything());
        for by in [calling_key(&operator).await, operator.by(Actor::member(member))] {
            for caller in [by.clone(), by.override_policy(REASON)] {
                let error = caller.issue(acme(91).name("ci")).await.unwrap_err();
                exceeds(&error, "expires_at", "90d");
            }
        }
        let another = operator.by(Actor::operator("another"));
        let error = another.issue(acme(91).name("ci")).await.unwrap_err();
        exceeds(&error, "expires_at", "90d");
    }

    #[tokio::test]
    async fn an_override_needs_a_reason_that_the_audit_can_show() {
        let (operator, _) = operator();
        let operator = operator.policy(strict());
        for reason in ["", "a\nb", "\u{1b}[31m"] {
            let overriding = operator.clone().override_policy(reason);
            let error = overriding.issue(acme(91)).await.unwrap_err();
            assert_eq!(error.kind(), ManageErrorKind::Invalid, "{error}");
            assert_eq!(error.field(), Some("policy_override"));
        }
    }
}

#[tokio::test]
async fn over_http_a_breach_is_422_and_names_the_member() {
    let admin = |issuer: KeyIssuer, auth| {
        tower_api_key::admin::router(issuer.policy(strict().max_live_keys(3)), auth)
    };
    let desk = Desk::new("/admin", admin);
    let (caller, _) = desk.key("acme", &["api-keys:read", WRITE, "a", "x"]).await;
    let mut ids = Vec::new();
    let new = json!({ "consumer_id": "acme", "expires": "90d", "name": "ci", "scopes": ["a"] });
    for (member, value, code, field) in [
        ("expires", json!("91d"), 422, "/expires"),
        ("expires", json!("never"), 422, "/expires"),
        ("name", Value::Null, 422, "/name"),
        ("scopes", json!(["x"]), 422, "/scopes"),
        ("name", json!("first"), 201, ""),
        ("name", json!("second"), 201, ""),
    ] {
        let mut new = new.clone();
        new[member] = value;
        let answer = desk.send(&caller, "POST", "/api-keys", Some(&new)).await;
        if code == 201 {
            assert_eq!(answer.status, code, "{}", answer.text());
            ids.push(answer.json()["id"].as_str().unwrap().to_owned());
        } else {
            assert_problem(&answer, code, "exceeds_policy", Some(field));
        }
    }
    let answer = desk.send(&caller, "POST", "/api-keys", Some(&new)).await;
    assert_problem(&answer, 409, "too_many_keys", Some("/consumer_id"));

    let path = format!("/api-keys/{}", ids[0]);
    let patch = json!({ "expires": "91d" });
    let answer = desk.send(&caller, "PATCH", &path, Some(&patch)).await;
    assert_problem(&answer, 422, "exceeds_policy", Some("/expires"));
    let answer = desk.send(&caller, "POST", &format!("{path}/rotate"), Some(&patch)).await;
    assert_problem(&answer, 422, "exceeds_policy", Some("/expires"));
    assert_eq!(desk.denials().await, 0, "a breach is no denial");
}

#[tokio::test]
async fn the_policy_of_api_keys_is_that_of_its_issuer() {
    let keys = ApiKeys::in_memory("sk_test_").issue_policy(strict()).await.unwrap();
    let error = keys.issuer().issue(acme(91).name("ci")).await.unwrap_err();
    exceeds(&error, "expires_at", "90d");
    keys.stop().await;
}

mod property {
    use std::sync::{Arc, Mutex};

    use proptest::{
        collection::vec,
        option,
        prelude::*,
        sample::{Index, select, subsequence},
        test_runner::TestRunner,
    };
    use tower_api_key::{clock::Clock as _, store::KeyQuery};

    use super::*;

    const SCOPES: [&str; 4] = ["a", "b", "c", WRITE];
    const PLANS: [&str; 2] = ["free", "pro"];
    const HOUR: Duration = Duration::from_secs(3600);

    /// Rules as plain values, and compared with keys independently of the library.
    #[derive(Clone, Debug, Default)]
    struct Rules {
        hours: Option<u32>,
        never: Option<NeverExpires>,
        live_keys: Option<usize>,
        scopes: Option<Vec<&'static str>>,
        named: Option<bool>,
    }

    impl Rules {
        fn build(&self) -> IssueRules {
            let mut rules = IssueRules::new();
            if let Some(hours) = self.hours {
                rules = rules.max_lifetime(HOUR * hours);
            }
            if let Some(never) = self.never {
                rules = rules.never_expires(never);
            }
            if let Some(keys) = self.live_keys {
                rules = rules.max_live_keys(keys);
            }
            if let Some(allowed) = &self.scopes {
                rules = rules.allowed_scopes(scopes(allowed));
            }
            if let Some(named) = self.named {
                rules = rules.requires_name(named);
            }
            rules
        }
    }

    #[derive(Debug)]
    struct Policy {
        all: Rules,
        prefix: Rules,
        plans: BTreeMap<&'static str, Rules>,
    }

    impl Policy {
        fn build(&self) -> IssuePolicy {
            let policy = IssuePolicy::new(self.all.build());
            let policy = policy.for_prefix(&format(), self.prefix.build());
            self.plans
                .iter()
                .fold(policy, |policy, (plan, rules)| policy.for_plan(plan, rules.build()).unwrap())
        }

        /// The values of a rule that a key has to meet.
        fn rule<T: Clone>(&self, key: &KeyRecord, rule: impl Fn(&Rules) -> Option<T>) -> Vec<T> {
            let plan = key.plan.as_ref().and_then(|plan| self.plans.get(&**plan));
            let own: Vec<T> =
                [Some(&self.prefix), plan].into_iter().flatten().filter_map(&rule).collect();
            if own.is_empty() { rule(&self.all).into_iter().collect() } else { own }
        }

        fn live_keys(&self, key: &KeyRecord) -> usize {
            self.rule(key, |rules| rules.live_keys).into_iter().min().unwrap_or(usize::MAX)
        }

        /// What of `key`, other than what it had as `before`, exceeds the policy.
        fn breach(
            &self,
            before: Option<&KeyRecord>,
            key: &KeyRecord,
            reasoned: bool,
        ) -> Option<String> {
            let before = before
                .filter(|before| before.plan == key.plan && (before.is_active || !key.is_active));
            let had =
                |scope: &Scope| before.is_some_and(|before| before.scopes.contains(scope.as_str()));
            for allowed in self.rule(key, |rules| rules.scopes.clone()) {
                let is_beyond = |scope: &&Scope| !allowed.contains(&scope.as_str()) && !had(scope);
                if let Some(scope) = key.scopes.iter().find(is_beyond) {
                    return Some(format!("the scope {scope}"));
                }
            }
            let far = SystemTime::UNIX_EPOCH + HOUR * 100_000_000;
            let end = |key: &KeyRecord| key.expires_at.unwrap_or(far);
            if before.is_none_or(|before| end(key) > end(before)) {
                let never = |rules: &Rules| {
                    rules.never.or_else(|| rules.hours.map(|_| NeverExpires::Refused))
                };
                match key.expires_at {
                    Some(end) => {
                        for hours in self.rule(key, |rules| rules.hours) {
                            if end > key.created_at + HOUR * hours {
                                return Some(format!("it ends after {hours} hours"));
                            }
                        }
                    }
                    None => match self.rule(key, never).into_iter().max() {
                        Some(NeverExpires::Refused) => return Some("it never ends".into()),
                        Some(NeverExpires::WithReason) if !reasoned => {
                            return Some("it never ends, without a reason".into());
                        }
                        _ => {}
                    },
                }
            }
            let is_named = |key: &KeyRecord| key.name.is_some();
            if self.rule(key, |rules| rules.named).contains(&true)
                && !is_named(key)
                && before.is_none_or(is_named)
            {
                return Some("it has no name".into());
            }
            None
        }
    }

    #[derive(Clone, Debug)]
    struct Wish {
        scopes: Vec<&'static str>,
        hours: Option<u32>,
        named: bool,
        plan: Option<&'static str>,
        reasoned: bool,
    }

    impl Wish {
        fn expiry(&self) -> Expiry {
            self.hours.map_or(Expiry::Never, |hours| Expiry::In(HOUR * hours))
        }

        fn new_key(&self) -> NewKey {
            let mut new = NewKey::new("acme", self.expiry()).scopes(scopes(&self.scopes));
            if self.named {
                new = new.name("ci");
            }
            if let Some(plan) = self.plan {
                new = new.plan(plan);
            }
            if self.reasoned { new.reason("why") } else { new }
        }
    }

    #[derive(Clone, Debug)]
    enum Request {
        Issue(Wish),
        Import(Wish),
        Rotate { wish: Wish, inherits: bool, grace_hours: u32 },
        Update { wish: Wish, fields: [bool; 4], is_active: Option<bool> },
        Revoke,
    }

    fn rules() -> impl Strategy<Value = Rules> {
        let never =
            select(vec![NeverExpires::Allowed, NeverExpires::WithReason, NeverExpires::Refused]);
        (
            option::of(1..30_u32),
            option::of(never),
            option::of(1..5_usize),
            option::of(subsequence(SCOPES.to_vec(), 1..=SCOPES.len())),
            option::of(any::<bool>()),
        )
            .prop_map(|(hours, never, live_keys, scopes, named)| Rules {
                hours,
                never,
                live_keys,
                scopes,
                named,
            })
    }

    fn wish() -> impl Strategy<Value = Wish> {
        (
            subsequence(SCOPES.to_vec(), 0..=2),
            option::weighted(0.8, 1..40_u32),
            prop::bool::weighted(0.7),
            option::of(select(PLANS.to_vec())),
            any::<bool>(),
        )
            .prop_map(|(scopes, hours, named, plan, reasoned)| Wish {
                scopes,
                hours,
                named,
                plan,
                reasoned,
            })
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            4 => wish().prop_map(Request::Issue),
            1 => wish().prop_map(Request::Import),
            2 => (wish(), any::<bool>(), 0..30_u32).prop_map(|(wish, inherits, grace_hours)| {
                Request::Rotate { wish, inherits, grace_hours }
            }),
            5 => (wish(), any::<[bool; 4]>(), any::<Option<bool>>())
                .prop_map(|(wish, fields, is_active)| Request::Update { wish, fields, is_active }),
            1 => Just(Request::Revoke),
        ]
    }

    async fn keys(issuer: &KeyIssuer) -> Vec<KeyRecord> {
        let page = issuer.list(&KeyQuery::new().limit(1000)).await.unwrap();
        page.keys.into_iter().map(|key| key.record).collect()
    }

    /// Carries a request out; whether it had a reason, and by how much it may exceed the number of
    /// live keys.
    async fn ask(
        issuer: &KeyIssuer,
        target: KeyId,
        request: Request,
        hash: u8,
    ) -> (&'static str, Result<(), ManageError>, bool, Option<usize>) {
        match request {
            Request::Issue(wish) => {
                let issued = issuer.issue(wish.new_key()).await.map(|_| ());
                ("issue", issued, wish.reasoned, Some(1))
            }
            Request::Import(wish) => {
                let import = KeyImport::new(KeyHash::from_bytes([hash; 32]), wish.new_key())
                    .hint(crate::app::PREFIX, "");
                ("import", issuer.import(vec![import]).await.map(|_| ()), wish.reasoned, None)
            }
            Request::Rotate { wish, inherits, grace_hours } => {
                let mut rotation = Rotation::new().grace(HOUR * grace_hours);
                if !inherits {
                    rotation = rotation.expiry(wish.expiry());
                }
                if wish.reasoned {
                    rotation = rotation.reason("why");
                }
                let rotated = issuer.rotate(target, rotation).await.map(|_| ());
                ("rotate", rotated, wish.reasoned, Some(2))
            }
            Request::Update { wish, fields: [named, scoped, expires, planned], is_active } => {
                let mut update = KeyUpdate::new();
                if named {
                    update = update.name(wish.named.then(|| "ci".into()));
                }
                if scoped {
                    update = update.scopes(scopes(&wish.scopes));
                }
                if expires {
                    update = update.expiry(wish.expiry());
                }
                if planned {
                    update = update.plan(wish.plan.map(Into::into));
                }
                if let Some(is_active) = is_active {
                    update = update.is_active(is_active);
                }
                if wish.reasoned {
                    update = update.reason("why");
                }
                let updated = issuer.update(target, update).await.map(|_| ());
                ("update", updated, wish.reasoned, Some(1))
            }
            Request::Revoke => {
                ("revoke", issuer.revoke(target, None).await.map(|_| ()), false, None)
            }
        }
    }

    #[test]
    fn nothing_issued_or_changed_exceeds_the_policy() {
        const STORIES: u32 = 1024;
        let parts = (
            (rules(), rules(), [rules(), rules()]),
            vec(wish(), 1..3),
            vec((any::<Index>(), any::<bool>(), 0..6_u32, request()), 1..14),
        );
        let config =
            ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(STORIES) };
        let tally = Arc::<Mutex<BTreeMap<(&str, String), u32>>>::default();
        let outcome = TestRunner::new(config).run(&parts, |(rules, legacy, requests)| {
            let (all, prefix, plans) = rules;
            let plans = PLANS.into_iter().zip(plans).collect();
            let policy = Policy { all, prefix, plans };
            let tally = Arc::clone(&tally);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (free, clock) = operator();
                // The calling key and the keys from before the policy exceed it as they like.
                let caller = NewKey::new("acme", Expiry::Never).scopes(scopes(&SCOPES));
                let caller = free.issue(caller.name("caller")).await.unwrap().record;
                for wish in legacy {
                    free.issue(wish.new_key()).await.unwrap();
                }
                let operator = free.policy(policy.build());
                let actor = Actor::key(&Consumer::from(caller.clone()));
                let caller_issuer = operator.by(actor.required_scope(Scope::new(WRITE).unwrap()));
                for (hash, (to, by_operator, hours, request)) in (1..).zip(requests) {
                    clock.advance(HOUR * hours + Duration::from_secs(1));
                    let before = keys(&operator).await;
                    let others: Vec<_> = before.iter().filter(|key| key.id != caller.id).collect();
                    let target = to.get(&others).id;
                    let issuer = if by_operator { &operator } else { &caller_issuer };
                    let (what, done, reasoned, times) = ask(issuer, target, request, hash).await;
                    let outcome = match &done {
                        Ok(()) => "done".to_owned(),
                        Err(error) => format!("{:?}", error.kind()),
                    };
                    *tally.lock().unwrap().entry((what, outcome)).or_default() += 1;
                    let now = clock.now();
                    let is_live = |key: &KeyRecord| {
                        key.revoked_at.is_none() && key.expires_at.is_none_or(|end| end > now)
                    };
                    let after = keys(&operator).await;
                    let live = after.iter().filter(|key| is_live(key)).count();
                    for key in &after {
                        let earlier = before.iter().find(|earlier| earlier.id == key.id);
                        if earlier == Some(key) {
                            continue;
                        }
                        prop_assert!(done.is_ok(), "{:?} changed {:?}", done, key);
                        // A revocation, and the old key of a rotation, only take away.
                        prop_assert_eq!(policy.breach(earlier, key, reasoned), None, "{:?}", key);
                        let adds = is_live(key)
                            && earlier.is_none_or(|earlier| {
                                !is_live(earlier) || earlier.plan != key.plan
                            });
                        if let Some(times) = times.filter(|_| adds) {
                            let most = policy.live_keys(key).saturating_mul(times);
                            prop_assert!(live <= most, "{} keys of {}: {:?}", live, most, key);
                        }
                    }
                }
                Ok(())
            })
        });
        outcome.unwrap_or_else(|error| panic!("{error}"));

        // If everything were refused, or nothing, all of this would hold trivially.
        let tally = tally.lock().unwrap();
        println!("{tally:#?}");
        for what in ["issue", "import", "rotate", "update"] {
            for outcome in ["done", "ExceedsPolicy"] {
                let times = tally.get(&(what, outcome.to_owned())).copied().unwrap_or_default();
                assert!(times >= 20, "{what}: {outcome} {times} times in {tally:#?}");
            }
        }
        for what in ["issue", "rotate", "update"] {
            let times = tally.get(&(what, "TooManyKeys".to_owned())).copied().unwrap_or_default();
            assert!(times >= 5, "{what}: too many keys {times} times in {tally:#?}");
        }
    }
}
