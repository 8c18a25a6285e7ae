//! What the catalogue of scopes means where keys are issued: which exist, and which contain others.

use std::time::Duration;

use proptest::{prelude::*, sample::subsequence};
use serde_json::{Value, json};
use tower_api_key::{
    Authenticator, Consumer, account, admin,
    manage::{
        Actor, Expiry, Grant, IssueRules, KeyImport, KeyIssuer, KeyUpdate, ManageErrorKind, Member,
        NewKey, Rotation,
    },
    record::{Scope, ScopeCatalog, Scopes},
    store::MemoryKeyStore,
};

use crate::{
    admin_client::{Desk, assert_problem},
    app::format,
};

tower_api_key::scopes! {
    enum Permission {
        /// Read orders.
        OrdersRead = "orders:read",
        /// Create and change orders.
        OrdersWrite = "orders:write" implies OrdersRead,
        /// Everything about orders.
        Orders = "orders:*",
        BooksRead = "books:read",
        /// Close the books
        /// of a month.
        BooksClose = "books:close" implies BooksRead + OrdersRead,
        KeysWrite = "api-keys:write",
        Keys = "api-keys:*",
    }
}

const DAY: Duration = Duration::from_secs(86_400);

fn scopes(scopes: &[&str]) -> Scopes {
    Scopes::parse(scopes.iter().copied()).unwrap()
}

fn new(held: &[&str]) -> NewKey {
    NewKey::new("acme", Expiry::In(DAY)).scopes(scopes(held))
}

/// It outlives what it issues.
fn lasting(held: &[&str]) -> NewKey {
    NewKey::new("acme", Expiry::Never).scopes(scopes(held))
}

/// An issuer without the catalogue, and one with it.
fn operators() -> (KeyIssuer, KeyIssuer) {
    let free = KeyIssuer::new(MemoryKeyStore::new(), format());
    (free.clone(), free.scopes(Permission::catalog()))
}

/// What the key with the scopes `held` does.
async fn calling_key(free: &KeyIssuer, issuer: &KeyIssuer, held: &[&str]) -> KeyIssuer {
    let key = free.issue(lasting(held)).await.unwrap().record;
    issuer
        .by(Actor::key(&Consumer::from(key)).required_scope(Scope::new("api-keys:write").unwrap()))
}

#[test]
fn the_catalogue_of_an_enum_is_the_one_in_its_file() {
    let catalog = Permission::catalog();
    let json = catalog.to_json();
    assert_eq!(json.parse::<ScopeCatalog>().unwrap(), catalog);
    let close = catalog.get("books:close").unwrap();
    assert_eq!(close.description(), "Close the books of a month.");
    assert_eq!(close.implies(), &scopes(&["books:read", "orders:read"]));
    assert!(catalog.get("orders:*").unwrap().is_wildcard() && !close.is_wildcard());
    assert_eq!(Permission::ALL.len(), catalog.iter().len());
    for scope in Permission::ALL {
        assert_eq!(scope.to_string().parse(), Ok(*scope));
        assert_eq!(catalog.get(scope.as_str()).unwrap().description(), scope.description());
    }
    let unknown = "orders:raed".parse::<Permission>().unwrap_err();
    assert!(unknown.to_string().contains("orders:read, orders:write"), "{unknown}");
    for (wrong, says) in [
        (r#"{"scopes": [{"name": "a"}, {"name": "a"}]}"#, "twice"),
        (r#"{"scopes": [{"name": "a", "implies": ["a"]}]}"#, "implies itself"),
        (r#"{"scopes": [{"name": "a", "implies": ["b"]}]}"#, "implies `b`, which is not there"),
        (r#"{"scopes": [{"name": "a*"}]}"#, "at the end"),
        (r#"{"scopes": [{"name": "a:*"}]}"#, "covers none"),
        (r#"{"scopes": [{"name": "a b"}]}"#, "printable ASCII"),
        (r#"{"scopes": [], "more": 1}"#, "more"),
    ] {
        let error = wrong.parse::<ScopeCatalog>().unwrap_err().to_string();
        assert!(error.contains(says), "{wrong}: {error}");
    }
    let names: Vec<_> = (0..257).map(|at| format!(r#"{{"name": "s{at}"}}"#)).collect();
    let many = format!(r#"{{"scopes": [{}]}}"#, names.join(","));
    assert!(many.parse::<ScopeCatalog>().unwrap_err().to_string().contains("at most 256"));
}

#[tokio::test]
async fn a_scope_that_the_catalogue_lacks_is_refused_and_the_error_says_which_exist() {
    let (free, operator) = operators();
    let caller = calling_key(&free, &operator, &["orders:raed", "api-keys:write"]).await;
    let key = free.issue(new(&["legacy", "orders:raed"])).await.unwrap().record;
    let hash = format().generate().unwrap().hash();
    for issuer in [operator.clone(), caller, operator.clone().override_policy("because")] {
        let issued = issuer.issue(new(&["orders:raed"])).await.unwrap_err();
        let imported = KeyImport::new(hash, new(&["orders:raed"]));
        let imported = issuer.import(vec![imported]).await.unwrap_err();
        let update = KeyUpdate::new().scopes(scopes(&["legacy", "nothing"]));
        let updated = issuer.update(key.id, update).await.unwrap_err();
        for (error, scope) in
            [(issued, "orders:raed"), (imported, "orders:raed"), (updated, "nothing")]
        {
            assert_eq!((error.kind(), error.field()), (ManageErrorKind::Invalid, Some("scopes")));
            let says = format!("`{scope}` is not a scope of this service, which has: orders:read");
            assert!(error.detail().starts_with(&says), "{error}");
        }
    }
    // What a key has, it keeps, and it shows what was stored.
    let update = KeyUpdate::new().scopes(scopes(&["legacy", "orders:write"]));
    let updated = operator.update(key.id, update).await.unwrap();
    let rotated = operator.rotate(key.id, Rotation::new()).await.unwrap().record;
    for record in [updated, rotated.clone(), operator.get(rotated.id).await.unwrap().record] {
        assert_eq!(record.scopes, scopes(&["legacy", "orders:write"]));
    }
}

#[tokio::test]
async fn over_http_a_scope_that_the_catalogue_lacks_is_422_at_its_member() {
    let is_refused = async |desk: &Desk, method: &str, path: &str, body: &Value| {
        let (caller, _) = desk.key("acme", &["api-keys:*", "orders:*", "orders:raed"]).await;
        let answer = desk.send(&caller, method, path, Some(body)).await;
        assert_problem(&answer, 422, "invalid", Some("/scopes"));
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with("`orders:raed` is not a scope of this service"), "{detail}");
        assert!(detail.contains("which has: orders:read, orders:write"), "{detail}");
    };
    let catalog = || Permission::catalog();
    for desk in [
        Desk::new("/admin", |issuer, auth| admin::router(issuer.scopes(catalog()), auth)),
        Desk::new("/account", |issuer, auth| account::router(issuer.scopes(catalog()), auth)),
    ] {
        let wrong = json!(["orders:read", "orders:raed"]);
        let new = json!({ "consumer_id": "acme", "expires": "1d", "scopes": wrong });
        is_refused(&desk, "POST", "/api-keys", &new).await;
        let (_, id) = desk.key("acme", &[]).await;
        let change = json!({ "scopes": wrong });
        is_refused(&desk, "PATCH", &format!("/api-keys/{id}"), &change).await;
        assert!(desk.issuer.get(id).await.unwrap().record.scopes.is_empty());
    }
}

#[tokio::test]
async fn an_issuer_of_an_authenticator_has_its_catalogue() {
    let store = MemoryKeyStore::new();
    let builder = Authenticator::builder(store.clone(), format()).scopes(Permission::catalog());
    let issuer = builder.build().0.issuer(store);
    let error = issuer.issue(new(&["orders:raed"])).await.unwrap_err();
    assert_eq!(error.field(), Some("scopes"));
}

#[tokio::test]
async fn a_key_grants_what_its_scopes_contain_and_a_wildcard_only_if_it_has_it() {
    let (free, issuer) = operators();
    for (held, asked, is_granted) in [
        ("orders:write", "orders:read", true),
        ("orders:read", "orders:write", false),
        ("orders:*", "orders:write", true),
        ("orders:*", "orders:*", true),
        ("orders:*", "books:read", false),
        ("books:close", "orders:read", true),
    ] {
        let caller = calling_key(&free, &issuer, &[held, "api-keys:*"]).await;
        assert_eq!(caller.issue(new(&[asked])).await.is_ok(), is_granted, "{held} {asked}");
        let member = Member::new("ada", "acme");
        let member =
            issuer.by(Actor::member(member.grant(Grant::new(DAY).scopes(scopes(&[held])))));
        assert_eq!(member.issue(new(&[asked])).await.is_ok(), is_granted, "{held} {asked}");
        let policy = IssueRules::new().allowed_scopes(scopes(&[held]));
        let policy = issuer.clone().policy(policy);
        assert_eq!(policy.issue(new(&[asked])).await.is_ok(), is_granted, "{held} {asked}");
        // Without a catalogue, each scope is only itself.
        let caller = calling_key(&free, &free, &[held, "api-keys:write"]).await;
        assert_eq!(caller.issue(new(&[asked])).await.is_ok(), held == asked, "{held} {asked}");
    }
    let caller = calling_key(&free, &issuer, &["orders:read", "orders:write", "api-keys:write"]);
    let caller = caller.await;
    let error = caller.issue(new(&["orders:*"])).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ManageErrorKind::Denied, Some("scopes")));
}

const NAMES: [&str; 6] = ["a:x", "a:y", "a:*", "b:x", "b:y", "b:*"];

prop_compose! {
    fn catalog()(edges in proptest::collection::vec((0..6_usize, 0..6_usize), 0..10)) -> ScopeCatalog {
        let scopes: Vec<_> = NAMES.iter().enumerate().map(|(at, name)| {
            let implied = edges.iter().filter(|(from, to)| *from == at && *to != at);
            let implied: Vec<_> = implied.map(|(_, to)| NAMES[*to]).collect();
            serde_json::json!({ "name": name, "implies": implied })
        }).collect();
        serde_json::json!({ "scopes": scopes }).to_string().parse().unwrap()
    }
}

fn is_within(one: &Scopes, other: &Scopes) -> bool {
    one.iter().all(|scope| other.contains(scope.as_str()))
}

proptest! {
    #[test]
    fn expansion_is_monotone_and_idempotent(
        catalog in catalog(),
        less in subsequence(&NAMES, 0..=6),
        more in subsequence(&NAMES, 0..=6),
    ) {
        let less = scopes(&[&less[..], &["unknown"]].concat());
        let more: Scopes = less.iter().cloned().chain(scopes(&more).iter().cloned()).collect();
        let (expanded, wider) = (catalog.expand(&less), catalog.expand(&more));
        prop_assert!(is_within(&less, &expanded) && is_within(&expanded, &wider));
        prop_assert_eq!(&catalog.expand(&expanded), &expanded);
    }

    #[test]
    fn what_a_key_grants_contains_nothing_beyond_what_its_own_scopes_contain(
        catalog in catalog(),
        held in subsequence(&NAMES, 0..=6),
        asked in subsequence(&NAMES, 0..=6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let free = KeyIssuer::new(MemoryKeyStore::new(), format());
            let key = free.issue(lasting(&held)).await.unwrap().record;
            let caller = free.scopes(catalog.clone()).by(Actor::key(&Consumer::from(key)));
            let granted = caller.issue(new(&asked)).await.is_ok();
            let (held, asked) = (catalog.expand(&scopes(&held)), scopes(&asked));
            prop_assert_eq!(granted, is_within(&asked, &held));
            prop_assert!(!granted || is_within(&catalog.expand(&asked), &held));
            Ok(())
        })?;
    }
}
