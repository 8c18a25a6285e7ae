//! Members: those who are signed in to the application, and manage keys there.

use std::{
    collections::BTreeSet,
    future::ready,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Redirect, Response},
};
use bytes::Bytes;
use http::{Request, StatusCode, request::Parts};
use http_body::Frame;
use serde_json::{Value, json};
use tower_api_key::{
    Authenticator,
    account::{Account, KeyView, SignIn},
    admin::Admin,
    clock::ManualClock,
    key::KeyHash,
    manage::{
        Actor, ConsumerIds, Expiry, Grant, Issued, KeyImport, KeyIssuer, KeyUpdate,
        ManageErrorKind, Member, NewKey, RevocationFilter, Rotation,
    },
    rate_limit::{Quota, RateLimits},
    record::{KeyAction, KeyId, Metadata, Networks, Scopes},
    store::{EventQuery, KeyQuery, MemoryKeyStore},
};

use crate::{
    admin_client::assert_problem,
    app::{Answer, format, send},
};

const DAY: Duration = Duration::from_secs(86_400);

fn scopes(scopes: &[&str]) -> Scopes {
    Scopes::parse(scopes.iter().copied()).unwrap()
}

fn grant() -> Grant {
    Grant::new(90 * DAY).scopes(scopes(&["orders:read"]))
}

fn ann() -> Member {
    Member::new("ann", "acme").grant(grant())
}

/// An issuer for operators.
fn issuer() -> KeyIssuer {
    let clock = ManualClock::default();
    KeyIssuer::new(MemoryKeyStore::with_clock(clock.clone()), format()).clock(clock)
}

async fn issue(issuer: &KeyIssuer, consumer: &str) -> Issued {
    issuer.issue(NewKey::new(consumer, Expiry::In(DAY))).await.unwrap()
}

/// Routes behind a login that lets everyone in as `member`.
fn settings(issuer: KeyIssuer, member: Member) -> Router {
    let account = Account::signed_in_by(issuer, move |_: &mut Parts| ready(Ok(member.clone())));
    Router::new().nest_service("/settings", account.router())
}

fn request(method: &str, path: &str, body: Option<&Value>) -> Request<Body> {
    let request = Request::builder()
        .method(method)
        .uri(format!("/settings{path}"))
        .header("host", "app.example.com")
        .header("sec-fetch-site", "same-origin");
    match body {
        None => request.body(Body::empty()).unwrap(),
        Some(body) => request
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap(),
    }
}

async fn ask(app: &Router, method: &str, path: &str, body: Option<&Value>) -> Answer {
    send(app.clone(), request(method, path, body)).await
}

#[tokio::test]
async fn a_member_looks_after_the_keys_of_its_consumer() {
    let issuer = issuer();
    let app = settings(issuer.clone(), ann());
    let new = json!({ "name": "ci", "expires": "30d", "scopes": ["orders:read"] });
    let created = ask(&app, "POST", "/api-keys", Some(&new)).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let created = created.json();
    assert_eq!(created["consumer_id"], json!("acme"));
    assert_eq!(created["created_by"], json!("member:ann"));
    let key = format!("/api-keys/{}", created["id"].as_str().unwrap());
    let changed = ask(&app, "PATCH", &key, Some(&json!({ "name": "ci 2" }))).await;
    assert_eq!(changed.json()["name"], json!("ci 2"));
    let rotated = ask(&app, "POST", &format!("{key}/rotate"), None).await;
    assert_eq!(rotated.status, 201, "{}", rotated.text());
    assert_eq!(ask(&app, "POST", &format!("{key}/revoke"), None).await.status, 200);
    assert_eq!(ask(&app, "GET", &format!("{key}/usage"), None).await.status, 200);
    let events = ask(&app, "GET", &format!("{key}/events"), None).await.json();
    let events = events["events"].as_array().unwrap();
    assert_eq!(events.len(), 4);
    assert!(events.iter().all(|event| event["actor"] == json!("member:ann")), "{events:?}");
    let list = ask(&app, "GET", "/api-keys", None).await.json();
    assert_eq!(list["keys"].as_array().unwrap().len(), 2);
    assert_eq!(ask(&app, "GET", "/rate-limit", None).await.status, 404, "a member has no quota");
}

#[tokio::test]
async fn a_member_asks_what_it_may_give() {
    let minute = Quota::per_minute(10).unwrap();
    let grant = grant().plans(["free"]).rate_limits(minute);
    let app = settings(issuer(), Member::new("ann", "acme").grant(grant));
    let answer = ask(&app, "GET", "/whoami", None).await.json();
    let quota = json!({ "name": "minute", "limit": 10, "window_ms": 60_000, "burst": 10 });
    assert_eq!(
        answer,
        json!({
            "member": "ann",
            "consumers": ["acme"],
            "grant": {
                "scopes": ["orders:read"],
                "max_lifetime_s": 90 * 86_400,
                "plans": ["free"],
                "rate_limits": [quota],
                "metadata": false,
            },
        })
    );
    let staff = Member::new("staff", ConsumerIds::all()).grant(Grant::everything());
    let answer = ask(&settings(issuer(), staff), "GET", "/whoami", None).await.json();
    assert_eq!(
        answer,
        json!({
            "member": "staff",
            "consumers": null,
            "grant": {
                "scopes": null, "max_lifetime_s": null, "plans": null, "rate_limits": [],
                "metadata": true,
            },
        })
    );
}

/// The answer to each, and the part of the request that it names.
#[tokio::test]
async fn what_a_member_may_not_give_is_refused_with_its_place() {
    let issuer = issuer();
    let app = settings(issuer.clone(), ann());
    let quota = json!([{ "name": "minute", "limit": 1, "window_ms": 60_000 }]);
    let beyond = [
        ("/scopes", json!({ "expires": "1d", "scopes": ["orders:write"] })),
        ("/expires", json!({ "expires": "never" })),
        ("/expires", json!({ "expires": "91d" })),
        ("/plan", json!({ "expires": "1d", "plan": "pro" })),
        ("/rate_limits", json!({ "expires": "1d", "rate_limits": quota })),
        ("/rate_limits", json!({ "expires": "1d", "rate_limits": [] })),
        ("/metadata", json!({ "expires": "1d", "metadata": { "role": "owner" } })),
        ("/created_by", json!({ "expires": "1d", "created_by": "bob" })),
    ];
    let attempts = beyond.len();
    for (field, body) in beyond {
        let answer = ask(&app, "POST", "/api-keys", Some(&body)).await;
        assert_problem(&answer, 403, "denied", Some(field));
    }
    assert!(issuer.list(&KeyQuery::new()).await.unwrap().keys.is_empty());
    assert_eq!(denials(&issuer).await, 5.min(attempts), "five lines a minute");

    let at_most = json!({ "expires": "90d", "scopes": ["orders:read"] });
    let created = ask(&app, "POST", "/api-keys", Some(&at_most)).await;
    assert_eq!(created.status, 201, "{}", created.text());
}

async fn denials(issuer: &KeyIssuer) -> usize {
    let page = issuer.events(&EventQuery::new().limit(1000)).await.unwrap();
    let denied = page.events.iter().filter(|event| event.entry.action == KeyAction::Denied);
    denied
        .inspect(|event| {
            assert_eq!(event.entry.actor, "member:ann");
            assert_eq!(event.entry.consumer_id.as_deref(), Some("acme"));
            assert_eq!(event.entry.key_id, None);
        })
        .count()
}

/// An import gives no more than an issue.
#[tokio::test]
async fn an_import_names_its_member_and_stays_within_the_grant() {
    let issuer = issuer();
    let member = issuer.by(Actor::member(ann()));
    let import = |at, new| member.import(vec![KeyImport::new(KeyHash::from_bytes([at; 32]), new)]);
    let new = |consumer| NewKey::new(consumer, Expiry::In(DAY));
    let beyond = [
        (new("acme").created_by("member:bob"), "created_by"),
        (NewKey::new("acme", Expiry::In(91 * DAY)), "expires_at"),
        (NewKey::new("acme", Expiry::Never), "expires_at"),
        (new("acme").scopes(scopes(&["orders:write"])), "scopes"),
    ];
    for (at, (new, field)) in (0..).zip(beyond) {
        let error = import(at, new).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ManageErrorKind::Denied, Some(field)));
    }
    let error = import(9, new("globex")).await.unwrap_err();
    assert_eq!(error.kind(), ManageErrorKind::NotFound);
    assert!(issuer.list(&KeyQuery::new()).await.unwrap().keys.is_empty());

    let imported = import(9, new("acme").scopes(scopes(&["orders:read"]))).await.unwrap();
    let key = issuer.get(imported.keys[0]).await.unwrap();
    assert_eq!(key.record.created_by.as_deref(), Some("member:ann"));
}

/// A key that holds more than the member may give is not widened, prolonged, rotated or switched on
/// by it, but revoked and narrowed.
#[tokio::test]
async fn a_key_beyond_the_grant_is_taken_from_and_never_added_to() {
    let issuer = issuer();
    let new = NewKey::new("acme", Expiry::In(DAY))
        .scopes(scopes(&["admin", "orders:read"]))
        .metadata(Metadata::from_json(r#"{"role":"owner"}"#).unwrap());
    let id = issuer.issue(new).await.unwrap().record.id;
    let member = issuer.by(Actor::member(ann()));
    let denied = async |update: KeyUpdate, field: Option<&str>| {
        let error = member.update(id, update).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ManageErrorKind::Denied, field), "{error}");
    };
    denied(KeyUpdate::new().expiry(Expiry::In(2 * DAY)), Some("scopes")).await;
    denied(KeyUpdate::new().plan(Some("pro".into())), Some("scopes")).await;
    denied(KeyUpdate::new().metadata(Metadata::default()), Some("metadata")).await;
    let error = member.rotate(id, Rotation::new()).await.unwrap_err();
    assert_eq!(error.field(), Some("scopes"));
    member.update(id, KeyUpdate::new().name(Some("old".into())).is_active(false)).await.unwrap();
    denied(KeyUpdate::new().is_active(true), Some("scopes")).await;
    member.update(id, KeyUpdate::new().scopes(scopes(&["admin"]))).await.unwrap();
    assert!(member.revoke(id, None).await.unwrap().revoked_at.is_some());
}

#[tokio::test]
async fn a_member_who_may_gives_and_changes_metadata() {
    let issuer = issuer();
    let member = Member::new("ann", "acme").grant(grant().metadata(true));
    let member = issuer.by(Actor::member(member));
    let team = |name: &str| Metadata::from_json(&format!(r#"{{"team":"{name}"}}"#)).unwrap();
    let new = NewKey::new("acme", Expiry::In(DAY)).metadata(team("a"));
    let id = member.issue(new).await.unwrap().record.id;
    member.update(id, KeyUpdate::new().metadata(team("b"))).await.unwrap();
    assert_eq!(issuer.get(id).await.unwrap().record.metadata, team("b"));
}

/// However often it is prolonged.
#[tokio::test]
async fn a_key_lives_no_longer_than_the_grant_from_its_issue_on() {
    let clock = ManualClock::default();
    let issuer =
        KeyIssuer::new(MemoryKeyStore::with_clock(clock.clone()), format()).clock(clock.clone());
    let member = issuer.by(Actor::member(ann()));
    let id = member.issue(NewKey::new("acme", Expiry::In(60 * DAY))).await.unwrap().record.id;
    clock.advance(50 * DAY);
    let prolong = |days: u32| member.update(id, KeyUpdate::new().expiry(Expiry::In(DAY * days)));
    assert_eq!(prolong(41).await.unwrap_err().field(), Some("expires_at"));
    prolong(40).await.unwrap();

    // A rotation issues a new key, by default within the grant.
    let eternal = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record.id;
    let rotated = member.rotate(eternal, Rotation::new()).await.unwrap().record;
    assert_eq!(rotated.expires_at, Some(rotated.created_at + 90 * DAY));
}

#[tokio::test]
async fn a_refusal_says_what_the_grant_allows() {
    const HOUR: Duration = Duration::from_secs(3600);
    for (longest, words) in [
        (90 * DAY, "within 90 days"),
        (36 * HOUR, "within 36 hours"),
        (HOUR + HOUR / 2, "within 5400 seconds"),
        (HOUR / 60 + Duration::from_millis(1), "within 60 seconds"),
    ] {
        let member = Member::new("ann", "acme").grant(Grant::new(longest));
        let member = issuer().by(Actor::member(member));
        let error = member.issue(NewKey::new("acme", Expiry::Never)).await.unwrap_err();
        assert!(error.detail().contains(words), "{error}");
    }
    let grant = grant().rate_limits(Quota::per_minute(10).unwrap());
    let member = issuer().by(Actor::member(Member::new("ann", "acme").grant(grant)));
    let new = NewKey::new("acme", Expiry::In(DAY)).rate_limits(Quota::per_minute(11).unwrap());
    let error = member.issue(new).await.unwrap_err();
    assert!(error.detail().contains("those that the member may grant"), "{error}");
}

#[tokio::test]
async fn without_a_grant_a_member_only_takes_away() {
    let issuer = issuer();
    let id = issue(&issuer, "acme").await.record.id;
    let member = issuer.by(Actor::member(Member::new("ann", "acme")));
    let new = NewKey::new("acme", Expiry::In(DAY));
    assert_eq!(member.issue(new).await.unwrap_err().kind(), ManageErrorKind::Denied);
    let error = member.rotate(id, Rotation::new()).await.unwrap_err();
    assert_eq!(error.kind(), ManageErrorKind::Denied);
    let prolonged = KeyUpdate::new().expiry(Expiry::In(2 * DAY));
    assert_eq!(member.update(id, prolonged).await.unwrap_err().kind(), ManageErrorKind::Denied);
    member.update(id, KeyUpdate::new().expiry(Expiry::In(DAY / 2))).await.unwrap();
    member.revoke(id, None).await.unwrap();
}

#[tokio::test]
async fn a_member_of_several_consumers_sees_theirs_and_gives_where_its_grant_says() {
    let issuer = issuer();
    let mut own = BTreeSet::new();
    for consumer in ["acme", "globex", "initech", "acme", "globex", "acme"] {
        let id = issue(&issuer, consumer).await.record.id;
        if consumer != "initech" {
            own.insert(id);
        }
    }
    let grant = grant().consumers("globex");
    let consumers = ConsumerIds::from_iter(["acme", "globex"]);
    let member = issuer.by(Actor::member(Member::new("ann", consumers).grant(grant)));
    for limit in 1..7 {
        let mut query = KeyQuery::new().limit(limit);
        let mut seen = Vec::new();
        loop {
            let page = member.list(&query).await.unwrap();
            seen.extend(page.keys.iter().map(|key| key.record.id));
            query.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        let newest_first: Vec<_> = own.iter().rev().copied().collect();
        assert_eq!(seen, newest_first, "{limit} a page");
    }
    let events = member.events(&EventQuery::new()).await.unwrap().events;
    assert_eq!(events.len(), 5);
    for (consumer, keys) in [("acme", 3), ("globex", 2), ("initech", 0)] {
        let page = member.list(&KeyQuery::new().consumer_id(consumer)).await.unwrap();
        assert_eq!(page.keys.len(), keys, "{consumer}");
    }
    member.issue(NewKey::new("globex", Expiry::In(DAY))).await.unwrap();
    let error = member.issue(NewKey::new("acme", Expiry::In(DAY))).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ManageErrorKind::Denied, Some("consumer_id")));
    let error = member.issue(NewKey::new("initech", Expiry::In(DAY))).await.unwrap_err();
    assert_eq!(error.kind(), ManageErrorKind::NotFound);

    let revoked = member.revoke_prefix("sk_test_", None).await.unwrap();
    assert_eq!(revoked.keys, 6, "those of its consumers");
    let live = issuer.list(&KeyQuery::new().consumer_id("initech")).await.unwrap();
    assert_eq!(live.keys[0].record.revoked_at, None);
}

#[tokio::test]
async fn a_key_works_only_from_networks_that_the_grant_allows() {
    let networks = |texts: &[&str]| Networks::parse(texts).unwrap();
    let issuer = KeyIssuer::new(MemoryKeyStore::new(), format());
    let grant = Grant::new(DAY).networks(networks(&["192.0.2.0/24"]));
    let member = issuer.by(Actor::member(Member::new("ann", "acme").grant(grant)));
    let new = |texts| NewKey::new("acme", Expiry::In(DAY)).networks(networks(texts));
    let key = member.issue(new(&["192.0.2.7", "192.0.2.128/25"])).await.unwrap().record;
    for beyond in [&[][..], &["198.51.100.0/24"], &["192.0.2.7", "198.51.100.7"]] {
        let error = member.issue(new(beyond)).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ManageErrorKind::Denied, Some("networks")));
        let update = KeyUpdate::new().networks(networks(beyond));
        let error = member.update(key.id, update).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ManageErrorKind::Denied, Some("networks")));
    }
    // Taking away is always allowed, from a key beyond the grant too.
    let beyond = issuer.issue(new(&["198.51.100.0/24"])).await.unwrap().record;
    let narrower = KeyUpdate::new().networks(networks(&["198.51.100.7"]));
    member.update(beyond.id, narrower).await.unwrap();
    let anywhere = Actor::member(Member::new("ann", "acme").grant(Grant::new(DAY)));
    issuer.by(anywhere).issue(new(&[])).await.unwrap();
}

/// On or off a plan, with quotas of its own or without: a key has no wider limits than the grant.
#[tokio::test]
async fn the_limits_of_a_key_are_within_the_grant() {
    let per_minute = |limit: u32| Quota::per_minute(limit).unwrap();
    let allowed =
        async |issuer: &KeyIssuer, grant: &Grant, plan: Option<&str>, limit: Option<u32>| {
            let member = issuer.by(Actor::member(Member::new("ann", "acme").grant(grant.clone())));
            let mut new = NewKey::new("acme", Expiry::In(DAY));
            if let Some(plan) = plan {
                new = new.plan(plan);
            }
            if let Some(limit) = limit {
                new = new.rate_limits(per_minute(limit));
            }
            match member.issue(new).await {
                Ok(_) => None,
                Err(error) => Some(error.field().unwrap()),
            }
        };
    let store = MemoryKeyStore::new();
    let (auth, _worker) =
        Authenticator::builder(store.clone(), format()).default_rate_limits(per_minute(5)).build();
    let unknown = KeyIssuer::new(store.clone(), format());
    let known = auth.issuer(store);
    known.set_plan("free", &per_minute(7).into()).await.unwrap();
    let (limits, plan) = (Some("rate_limits"), Some("plan"));

    let plain = Grant::new(DAY);
    for (issuer, most) in [(&known, 5), (&unknown, 5)] {
        assert_eq!(allowed(issuer, &plain, None, None).await, None);
        assert_eq!(allowed(issuer, &plain, None, Some(most)).await, limits);
        assert_eq!(allowed(issuer, &plain, Some("free"), None).await, plan);
    }
    let on_plan = Grant::new(DAY).plans(["free", "pro"]);
    assert_eq!(allowed(&known, &on_plan, Some("free"), None).await, None);
    assert_eq!(allowed(&known, &on_plan, Some("pro"), None).await, None);
    assert_eq!(allowed(&known, &on_plan, Some("free"), Some(1)).await, limits);
    assert_eq!(allowed(&known, &on_plan, Some("team"), None).await, plan);
    assert_eq!(allowed(&known, &on_plan, None, None).await, plan);

    for (most, default_fits) in [(5, true), (4, false)] {
        let limited = Grant::new(DAY).rate_limits(per_minute(most));
        assert_eq!(allowed(&known, &limited, None, Some(most)).await, None);
        assert_eq!(allowed(&known, &limited, None, Some(most + 1)).await, limits);
        let without = if default_fits { None } else { limits };
        assert_eq!(allowed(&known, &limited, None, None).await, without);
        assert_eq!(allowed(&unknown, &limited, None, None).await, limits, "it may be unlimited");
        let both = limited.plans(["free"]);
        assert_eq!(allowed(&known, &both, Some("free"), None).await, None);
        assert_eq!(allowed(&known, &both, Some("free"), Some(most)).await, None);
        assert_eq!(allowed(&known, &both, Some("free"), Some(most + 1)).await, limits);
    }
    // Not even where no default limits a key, for it may one day.
    let free = KeyIssuer::new(MemoryKeyStore::new(), format());
    let member = free.by(Actor::member(ann()).default_rate_limits(RateLimits::unlimited()));
    let id = member.issue(NewKey::new("acme", Expiry::In(DAY))).await.unwrap().record.id;
    let quotas = || KeyUpdate::new().rate_limits(Some(per_minute(1_000_000).into()));
    assert_eq!(member.update(id, quotas()).await.unwrap_err().field(), limits);
    // Quotas that an operator gave it are narrowed.
    free.update(id, quotas()).await.unwrap();
    let narrower = KeyUpdate::new().rate_limits(Some(per_minute(999_999).into()));
    member.update(id, narrower).await.unwrap();
    assert_eq!(member.update(id, quotas()).await.unwrap_err().field(), limits);

    let everything = Grant::everything();
    assert_eq!(allowed(&unknown, &everything, Some("team"), Some(1_000_000)).await, None);
}

#[tokio::test]
async fn the_bounds_of_calling_keys_hold_for_members() {
    let issuer = issuer().max_keys_per_consumer(2).max_rotations_per_hour(1);
    let member = issuer.by(Actor::member(ann()));
    let new = || NewKey::new("acme", Expiry::In(DAY));
    let id = member.issue(new()).await.unwrap().record.id;
    member.issue(new()).await.unwrap();
    assert_eq!(member.issue(new()).await.unwrap_err().kind(), ManageErrorKind::TooManyKeys);
    let id = member.rotate(id, Rotation::new()).await.unwrap().record.id;
    let error = member.rotate(id, Rotation::new()).await.unwrap_err();
    assert_eq!(error.kind(), ManageErrorKind::TooManyChanges);
}

#[tokio::test]
async fn what_only_operators_do_is_refused_to_members() {
    let issuer = issuer();
    let staff = Member::new("ann", "acme").grant(Grant::everything());
    let member = issuer.by(Actor::member(staff));
    let limits = Quota::per_minute(1).unwrap().into();
    let filter = RevocationFilter::new().consumer_id("acme");
    let errors = [
        member.set_plan("pro", &limits).await.unwrap_err(),
        member.remove_plan("pro").await.unwrap_err(),
        member.prune(std::time::SystemTime::UNIX_EPOCH, 1).await.unwrap_err(),
        member.revoke_matching(&filter, None).await.unwrap_err(),
    ];
    assert!(errors.iter().all(|error| error.kind() == ManageErrorKind::Denied), "{errors:?}");
    assert_eq!(denials(&issuer).await, 4);
}

#[tokio::test]
async fn a_name_that_the_audit_could_not_show_changes_nothing() {
    let issuer = issuer();
    for name in ["", "a\nb", "\u{202e}bob", &"x".repeat(1_020)] {
        let member = Member::new(name, "acme").grant(grant());
        let member = issuer.by(Actor::member(member));
        let error = member.issue(NewKey::new("acme", Expiry::In(DAY))).await.unwrap_err();
        assert_eq!(error.kind(), ManageErrorKind::Invalid, "{name:?}");
    }
    assert!(issuer.list(&KeyQuery::new()).await.unwrap().keys.is_empty());
}

/// What the sign-in answers is what the visitor gets, on every path.
#[tokio::test]
async fn a_visitor_gets_what_the_sign_in_says() {
    let account = Account::signed_in_by(issuer(), |_: &mut Parts| {
        ready(Err::<Member, _>(Redirect::to("/login").into_response()))
    });
    let app = Router::new().nest_service("/settings", account.router());
    for path in ["", "/nothing", "/api-keys", "/whoami", "/rate-limit", "/openapi.json"] {
        let answer = ask(&app, "GET", path, None).await;
        assert_eq!((answer.status.as_u16(), answer.header("location")), (303, Some("/login")));
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
    }
}

/// A key that an outer layer let in is not a member.
#[tokio::test]
async fn an_implementation_of_the_trait_signs_in_too() {
    struct ByHeader;

    impl SignIn for ByHeader {
        async fn member(&self, parts: &mut Parts) -> Result<Member, Response> {
            let name = parts.headers.get("x-user").and_then(|name| name.to_str().ok());
            let name = name.ok_or_else(|| StatusCode::UNAUTHORIZED.into_response())?;
            Ok(Member::new(name, name).grant(grant()))
        }
    }

    let issuer = issuer();
    issue(&issuer, "ann").await;
    let app =
        Router::new().nest_service("/settings", Account::signed_in_by(issuer, ByHeader).router());
    assert_eq!(ask(&app, "GET", "/api-keys", None).await.status, 401);
    for (name, keys) in [("ann", 1), ("bob", 0)] {
        let mut request = request("GET", "/api-keys", None);
        request.headers_mut().insert("x-user", name.parse().unwrap());
        let list = send(app.clone(), request).await.json();
        assert_eq!(list["keys"].as_array().unwrap().len(), keys, "{name}");
    }
}

/// Support staff, over the admin router.
#[tokio::test]
async fn staff_manage_the_keys_of_all_consumers_behind_their_login() {
    let issuer = issuer();
    let id = issue(&issuer, "acme").await.record.id;
    let staff = || Member::new("staff", ConsumerIds::all()).grant(grant());
    let admin = Admin::signed_in_by(issuer.clone(), move |_: &mut Parts| ready(Ok(staff())));
    let app = Router::new().nest_service("/settings", admin.router());
    let list = ask(&app, "GET", "/api-keys", None).await.json();
    assert_eq!(list["keys"][0]["id"], json!(id.to_string()));
    let new = json!({ "consumer_id": "globex", "expires": "1d" });
    assert_eq!(ask(&app, "POST", "/api-keys", Some(&new)).await.status, 201);
    let unnamed = ask(&app, "POST", "/api-keys", Some(&json!({ "expires": "1d" }))).await;
    assert_problem(&unnamed, 400, "invalid_body", Some("/consumer_id"));
    let all = json!({ "consumer_id": "acme" });
    let revoked = ask(&app, "POST", "/api-keys/revoke", Some(&all)).await;
    assert_eq!(revoked.json()["revoked"], json!(1));
}

/// The headers that browsers send with requests of pages elsewhere, and here.
#[tokio::test]
async fn pages_of_other_sites_change_nothing() {
    let issuer = issuer();
    let id = issue(&issuer, "acme").await.record.id;
    let member = ann();
    let account =
        Account::signed_in_by(issuer.clone(), move |_: &mut Parts| ready(Ok(member.clone())));
    let account = account.trusted_origin("https://other.example.com").unwrap();
    let app = Router::new().nest_service("/settings", account.router());
    let attempt = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/settings{path}"))
            .header("host", "app.example.com");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let is_json = headers
            .iter()
            .any(|(name, value)| *name == "content-type" && value.starts_with("application/json"));
        let body = if is_json { "{\"expires\":\"1d\"}" } else { "expires=1d" };
        let body = if path == "/api-keys" { Body::from(body) } else { Body::empty() };
        send(app.clone(), request.body(body).unwrap()).await
    };
    let json = ("content-type", "application/json");
    let form = ("content-type", "application/x-www-form-urlencoded");
    let revoke = format!("/api-keys/{id}/revoke");
    let rotate = format!("/api-keys/{id}/rotate");
    let foreign: [&[(&str, &str)]; 7] = [
        &[("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")],
        &[("sec-fetch-site", "same-site"), ("origin", "https://blog.example.com")],
        &[("sec-fetch-site", "cross-site")],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[("origin", "https://app.example.com.evil.example")],
        &[("origin", "https://app.example.com:8443")],
    ];
    for headers in foreign {
        for (path, kind) in [
            ("/api-keys", json),
            ("/api-keys", form),
            (revoke.as_str(), form),
            (revoke.as_str(), json),
            (rotate.as_str(), form),
            ("/nothing", form),
        ] {
            let headers: Vec<_> = headers.iter().copied().chain([kind]).collect();
            let answer = attempt("POST", path, &headers).await;
            assert_problem(&answer, 403, "cross_site_request", None);
        }
        assert_problem(&attempt("POST", &revoke, headers).await, 403, "cross_site_request", None);
        let key = format!("/api-keys/{id}");
        for method in ["PATCH", "DELETE", "PUT"] {
            let answer = attempt(method, &key, headers).await;
            assert_problem(&answer, 403, "cross_site_request", None);
        }
    }
    // A form is not JSON, even if it is empty and has none of the headers.
    for headers in [&[form][..], &[("sec-fetch-site", "same-origin"), form]] {
        for path in ["/api-keys", &revoke, &rotate] {
            let answer = attempt("POST", path, headers).await;
            assert_problem(&answer, 415, "unsupported_media_type", None);
        }
    }
    let text = ("content-type", "text/plain");
    let answer = attempt("POST", "/api-keys", &[("sec-fetch-site", "same-origin"), text]).await;
    assert_eq!(answer.status, 415);
    let keys = issuer.list(&KeyQuery::new()).await.unwrap().keys;
    assert_eq!((keys.len(), keys[0].record.revoked_at, keys[0].record.version), (1, None, 1));

    let here: [&[(&str, &str)]; 4] = [
        &[("sec-fetch-site", "same-origin")],
        &[("sec-fetch-site", "none")],
        &[("origin", "https://app.example.com")],
        &[("sec-fetch-site", "same-site"), ("origin", "https://other.example.com")],
    ];
    for headers in here {
        let headers: Vec<_> = headers.iter().copied().chain([json]).collect();
        assert_eq!(attempt("POST", "/api-keys", &headers).await.status, 201, "{headers:?}");
    }
}

#[tokio::test]
async fn an_origin_that_no_browser_sends_is_not_trusted() {
    for origin in ["app.example.com", "https://app.example.com/", "*", "null", ""] {
        let account = Account::signed_in_by(issuer(), |_: &mut Parts| ready(Ok(ann())));
        assert!(account.trusted_origin(origin).is_err(), "{origin:?}");
    }
}

/// A body whose end is held back until the session has ended.
struct SlowBody {
    parts: Vec<&'static str>,
    session: Arc<Mutex<Option<Member>>>,
}

impl http_body::Body for SlowBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.parts.len() == 1 {
            self.session.lock().unwrap().take();
        }
        Poll::Ready(
            self.parts.pop().map(|part| Ok(Frame::data(Bytes::from_static(part.as_bytes())))),
        )
    }
}

#[tokio::test]
async fn a_visitor_who_signs_out_while_the_body_is_on_its_way_changes_nothing() {
    let issuer = issuer();
    let session = Arc::new(Mutex::new(Some(ann())));
    let asked = Arc::<AtomicUsize>::default();
    let account = {
        let (session, asked) = (Arc::clone(&session), Arc::clone(&asked));
        Account::signed_in_by(issuer.clone(), move |_: &mut Parts| {
            asked.fetch_add(1, Ordering::SeqCst);
            let member: Option<Member> = session.lock().unwrap().clone();
            async move { member.ok_or_else(|| StatusCode::UNAUTHORIZED.into_response()) }
        })
    };
    let app = Router::new().nest_service("/settings", account.router());
    let body = SlowBody { parts: vec![r#""1d"}"#, r#"{"expires":"#], session };
    let (parts, _) = request("POST", "/api-keys", Some(&json!({}))).into_parts();
    let answer = send(app, Request::from_parts(parts, Body::new(body))).await;
    assert_eq!((answer.status.as_u16(), asked.load(Ordering::SeqCst)), (401, 2));
    assert!(issuer.list(&KeyQuery::new()).await.unwrap().keys.is_empty());
}

/// For handlers of the application's own.
#[tokio::test]
async fn an_error_is_a_response_and_a_record_a_view() {
    let issuer = issuer();
    let issued = issue(&issuer, "acme").await;
    let member = issuer.by(Actor::member(ann()));
    let missing = member.get(KeyId::from_bytes([1; 16])).await.unwrap_err().into_response();
    let (parts, body) = missing.into_parts();
    let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    assert_problem(&Answer::new(parts, body), 404, "not_found", None);
    let beyond = NewKey::new("acme", Expiry::Never);
    let (parts, body) = member.issue(beyond).await.unwrap_err().into_response().into_parts();
    let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    assert_problem(&Answer::new(parts, body), 403, "denied", Some("/expires"));

    let view = serde_json::to_value(KeyView::from(&issued.record)).unwrap();
    let shown = ask(
        &settings(issuer.clone(), ann()),
        "GET",
        &format!("/api-keys/{}", issued.record.id),
        None,
    )
    .await;
    let mut shown = shown.json();
    shown.as_object_mut().unwrap().remove("last_used_at");
    assert_eq!(view, shown);
    assert!(!view.to_string().contains(issued.key.expose_secret()));
}
