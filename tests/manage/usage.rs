//! Counted use over HTTP and in code: who reads whose, in which form, and its export.

use std::{
    future::ready,
    time::{Duration, SystemTime},
};

use axum::Router;
use http::request::Parts;
use serde_json::{Value, json};
use tower_api_key::{
    Authenticator,
    account::{self, Account},
    admin,
    clock::{Clock as _, ManualClock, SystemClock},
    manage::{Actor, ConsumerIds, Expiry, KeyIssuer, ManageErrorKind, Member, NewKey, UsageExport},
    record::{KeyAction, KeyId},
    store::{
        BucketWidth, EventQuery, KeyStore as _, MemoryKeyStore, UsageCursor, UsageQuery,
        port::{CountedUses, HourlyUse, Usage, UsageBatch, UseCounts},
    },
};

use crate::{
    admin_client::{Desk, assert_problem},
    app::{format, get, send},
    doubles::FakeStore,
};

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const READ: &str = "api-keys:read";
const ALL: &str = "api-keys:all-consumers";
/// Two days of hours.
const HOURS: &str = "by=hour&from=2026-01-01T00:00:00Z&to=2026-01-03T00:00:00Z";
const DAYS: &str = "by=day&from=2026-01-01T00:00:00Z&to=2026-01-03T00:00:00Z";

/// An hour of 2026.
fn hour(number: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600) + HOUR * number
}

/// Counts as often as it is asked to.
async fn used(store: &MemoryKeyStore, sequence: u64, key: KeyId, consumer: &str, hours: &[u32]) {
    used_at(store, sequence, key, consumer, hours.iter().copied().map(hour)).await;
}

async fn used_at(
    store: &MemoryKeyStore,
    sequence: u64,
    key: KeyId,
    consumer: &str,
    hours: impl IntoIterator<Item = SystemTime>,
) {
    let counts = UseCounts::new(5, 4, 3, 2, 1);
    let used = |hour| HourlyUse::new(key, consumer.to_owned(), hour, counts);
    let counted = CountedUses::new([7; 16], sequence, hours.into_iter().map(used).collect());
    let last_use = Usage::new(key, hour(0));
    let batch = UsageBatch::new(vec![last_use]).counted(counted);
    store.record_usage(&batch).await.unwrap();
}

/// A bucket with as many times the counts.
fn bucket(from: &str, times: i64) -> Value {
    json!({
        "from": from, "admitted": 5 * times, "limited": 4 * times, "forbidden": 3 * times,
        "refused": 2 * times, "units": times,
    })
}

#[tokio::test]
async fn the_use_of_a_key_is_shown_by_hour_and_by_day() {
    let desk = Desk::new("/admin", admin::router);
    let (admin, _) = desk.key("ops", &[READ, ALL]).await;
    let (_, id) = desk.key("acme", &[]).await;
    used(&desk.store, 1, id, "acme", &[0, 23, 24]).await;
    let answer = desk.send(&admin, "GET", &format!("/api-keys/{id}/usage?{HOURS}"), None).await;
    let expected = json!({
        "key_id": id.to_string(), "last_used_at": "2026-01-01T00:00:00Z",
        "by": "hour", "from": "2026-01-01T00:00:00Z", "to": "2026-01-03T00:00:00Z",
        "buckets": [
            bucket("2026-01-01T00:00:00Z", 1), bucket("2026-01-01T23:00:00Z", 1),
            bucket("2026-01-02T00:00:00Z", 1),
        ],
    });
    assert_eq!(answer.json(), expected);
    assert!(answer.headers.get_all("vary").iter().any(|vary| vary == "accept"));
    let answer = desk.send(&admin, "GET", &format!("/api-keys/{id}/usage?{DAYS}"), None).await;
    let expected = json!([bucket("2026-01-01T00:00:00Z", 2), bucket("2026-01-02T00:00:00Z", 1)]);
    assert_eq!(answer.json()["buckets"], expected);
}

#[tokio::test]
async fn without_a_range_the_last_thirty_days_or_a_day_of_hours_are_shown() {
    let desk = Desk::new("/account", account::router);
    let (caller, id) = desk.key("acme", &[]).await;
    let now = SystemClock::new().now();
    let ago = [Duration::ZERO, 20 * HOUR, 30 * HOUR, 29 * 24 * HOUR, 32 * 24 * HOUR];
    let hours = ago.map(|ago| BucketWidth::Hour.start(now - ago));
    used_at(&desk.store, 1, id, "acme", hours).await;
    for (query, number) in [("", 20), ("?by=day", 20), ("?by=hour", 10)] {
        let answer = desk.send(&caller, "GET", &format!("/usage{query}"), None).await.json();
        let buckets = answer["buckets"].as_array().unwrap().iter();
        let admitted: i64 = buckets.map(|bucket| bucket["admitted"].as_i64().unwrap()).sum();
        assert_eq!(admitted, number, "{query}: {answer}");
    }
}

#[tokio::test]
async fn a_range_is_rounded_to_whole_buckets() {
    let desk = Desk::new("/account", account::router);
    let (caller, id) = desk.key("acme", &[]).await;
    used(&desk.store, 1, id, "acme", &[0, 1, 2, 3]).await;
    let range = "by=hour&from=2026-01-01T01:59:59.999Z&to=2026-01-01T02:00:00.001Z";
    let answer = desk.send(&caller, "GET", &format!("/usage?{range}"), None).await.json();
    assert_eq!(answer["from"], json!("2026-01-01T01:00:00Z"));
    assert_eq!(answer["to"], json!("2026-01-01T03:00:00Z"));
    let expected = json!([bucket("2026-01-01T01:00:00Z", 1), bucket("2026-01-01T02:00:00Z", 1)]);
    assert_eq!(answer["buckets"], expected);
}

#[tokio::test]
async fn use_is_csv_to_a_client_that_prefers_it() {
    let desk = Desk::new("/account", account::router);
    let (caller, id) = desk.key("acme", &[]).await;
    used(&desk.store, 1, id, "acme", &[0, 23]).await;
    for path in [format!("/api-keys/{id}/usage?{HOURS}"), format!("/usage?{HOURS}")] {
        for (accept, is_csv) in [("text/csv", true), ("application/json", false), ("*/*", false)] {
            let mut request = desk.request(&caller, "GET", &path, None);
            request.headers_mut().insert("accept", accept.parse().unwrap());
            let answer = send(desk.app.clone(), request).await;
            if !is_csv {
                assert_eq!(answer.header("content-type"), Some("application/json"), "{accept}");
                continue;
            }
            let media_type = "text/csv; charset=utf-8; header=present";
            assert_eq!(answer.header("content-type"), Some(media_type));
            assert_eq!(
                answer.text(),
                "from,admitted,limited,forbidden,refused,units\r\n\
                 2026-01-01T00:00:00Z,5,4,3,2,1\r\n2026-01-01T23:00:00Z,5,4,3,2,1\r\n"
            );
        }
    }
}

#[tokio::test]
async fn a_wrong_parameter_is_named() {
    let desk = Desk::new("/account", account::router);
    let (caller, id) = desk.key("acme", &[]).await;
    let hours = |from: &str| format!("by=hour&from={from}&to=2026-02-05T00:00:00Z");
    for (query, field) in [
        ("by=week", "by"),
        ("by=Hour", "by"),
        ("by=", "by"),
        ("from=2026-01-01", "from"),
        ("to=now", "to"),
        ("to=2026-01-01T00:00:00Z&to=2026-01-01T00:00:00Z", "to"),
        ("limit=5", "limit"),
    ] {
        for path in [format!("/api-keys/{id}/usage"), "/usage".to_owned()] {
            let answer = desk.send(&caller, "GET", &format!("{path}?{query}"), None).await;
            assert_problem(&answer, 400, "invalid_query", Some(field));
        }
    }
    for query in [
        "from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:00Z",
        "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
        hours("2025-12-31T23:59:59Z").as_str(),
        "from=0001-01-01T00:00:00Z",
        "to=9999-01-01T00:00:00Z&from=2026-01-01T00:00:00Z",
    ] {
        for path in [format!("/api-keys/{id}/usage"), "/usage".to_owned()] {
            let answer = desk.send(&caller, "GET", &format!("{path}?{query}"), None).await;
            assert_problem(&answer, 422, "invalid", Some("from"));
        }
    }
    for query in [
        hours("2026-01-01T00:00:00Z").as_str(),
        "to=0001-01-01T00:00:00Z",
        "to=9999-01-01T00:00:00Z",
        "by=day&from=2026-01-01T00:00:00Z&to=2036-01-09T00:00:00Z",
    ] {
        let answer = desk.send(&caller, "GET", &format!("/usage?{query}"), None).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    }
}

/// To a caller, the use of another consumer is as that of one that does not exist.
#[tokio::test]
async fn a_consumer_reads_its_own_use_and_no_other() {
    for (mount, is_admin) in [("/account", false), ("/admin", true)] {
        let desk = Desk::new(mount, if is_admin { admin::router } else { account::router });
        let (caller, own) = desk.key("acme", &[READ]).await;
        let (_, other) = desk.key("acme", &[]).await;
        let (_, foreign) = desk.key("globex", &[]).await;
        used(&desk.store, 1, own, "acme", &[0]).await;
        used(&desk.store, 2, other, "acme", &[0]).await;
        used(&desk.store, 3, foreign, "globex", &[0]).await;
        let read = async |path: &str| desk.send(&caller, "GET", path, None).await;

        let total = read(&format!("/usage?{HOURS}")).await.json();
        assert_eq!(total["consumer_id"], json!(null));
        assert_eq!(total["buckets"], json!([bucket("2026-01-01T00:00:00Z", 2)]));
        let total = read(&format!("/usage?consumer_id=acme&{HOURS}")).await.json();
        assert_eq!(total["consumer_id"], json!("acme"));
        assert_eq!(total["buckets"], json!([bucket("2026-01-01T00:00:00Z", 2)]));
        let of_other = read(&format!("/api-keys/{other}/usage?{HOURS}")).await.json();
        assert_eq!(of_other["buckets"], json!([bucket("2026-01-01T00:00:00Z", 1)]));

        let unknown = KeyId::from_bytes([9; 16]);
        let [foreign, unknown] =
            [foreign, unknown].map(|id| format!("/api-keys/{id}/usage?{HOURS}"));
        let (foreign, unknown) = (read(&foreign).await, read(&unknown).await);
        assert_problem(&foreign, 404, "not_found", None);
        assert_eq!(foreign.json(), unknown.json());
        for consumer in ["globex", "nobody"] {
            let total = read(&format!("/usage?consumer_id={consumer}&{HOURS}")).await;
            assert_eq!(total.json()["buckets"], json!([]), "{consumer}");
        }
    }
}

#[tokio::test]
async fn a_key_for_all_consumers_reads_the_use_of_each_and_of_all() {
    let desk = Desk::new("/admin", admin::router);
    let (admin, _) = desk.key("ops", &[READ, ALL]).await;
    for (sequence, consumer) in [(1, "acme"), (2, "globex"), (3, "globex")] {
        let (_, id) = desk.key(consumer, &[]).await;
        used(&desk.store, sequence, id, consumer, &[0]).await;
    }
    for (query, times) in [("", 3), ("consumer_id=acme&", 1), ("consumer_id=globex&", 2)] {
        let answer = desk.send(&admin, "GET", &format!("/usage?{query}{HOURS}"), None).await;
        let expected = json!([bucket("2026-01-01T00:00:00Z", times)]);
        assert_eq!(answer.json()["buckets"], expected, "{query}");
    }
}

#[tokio::test]
async fn a_member_reads_the_use_of_its_consumers_together() {
    let store = MemoryKeyStore::new();
    let issuer = KeyIssuer::new(store.clone(), format());
    let mut ids = Vec::new();
    for (sequence, consumer) in [(1, "acme"), (2, "globex"), (3, "initech")] {
        let issued = issuer.issue(NewKey::new(consumer, Expiry::Never)).await.unwrap();
        used(&store, sequence, issued.record.id, consumer, &[0, 1]).await;
        ids.push(issued.record.id);
    }
    let member = Member::new("ann", ConsumerIds::from_iter(["acme", "globex"]));
    let account = Account::signed_in_by(issuer, move |_: &mut Parts| ready(Ok(member.clone())));
    let app = Router::new().nest_service("/settings", account.router());
    let read = async |path: &str| send(app.clone(), get(&format!("/settings{path}"))).await;

    let all = read(&format!("/usage?{DAYS}")).await.json();
    assert_eq!(all["buckets"], json!([bucket("2026-01-01T00:00:00Z", 4)]));
    let one = read(&format!("/usage?consumer_id=globex&{DAYS}")).await.json();
    assert_eq!(one["buckets"], json!([bucket("2026-01-01T00:00:00Z", 2)]));
    let other = read(&format!("/usage?consumer_id=initech&{DAYS}")).await.json();
    assert_eq!(other["buckets"], json!([]));
    let key = read(&format!("/api-keys/{}/usage?{DAYS}", ids[1])).await.json();
    assert_eq!(key["buckets"], json!([bucket("2026-01-01T00:00:00Z", 2)]));
    let foreign = read(&format!("/api-keys/{}/usage?{DAYS}", ids[2])).await;
    assert_problem(&foreign, 404, "not_found", None);
}

#[tokio::test]
async fn the_use_of_a_pruned_key_is_read_by_those_who_could_read_it_before() {
    let desk = Desk::new("/account", account::router);
    let (caller, _) = desk.key("acme", &[]).await;
    let (stranger, _) = desk.key("globex", &[]).await;
    let (_, id) = desk.key("acme", &[]).await;
    used(&desk.store, 1, id, "acme", &[0]).await;
    desk.issuer.revoke(id, None).await.unwrap();
    let later = SystemClock::new().now() + HOUR;
    assert_eq!(desk.issuer.prune(later, 10).await.unwrap().keys, 1);

    let path = format!("/api-keys/{id}/usage?{HOURS}");
    let answer = desk.send(&caller, "GET", &path, None).await.json();
    assert_eq!(answer["buckets"], json!([bucket("2026-01-01T00:00:00Z", 1)]));
    assert_eq!(answer["last_used_at"], json!(null));
    assert_problem(&desk.send(&stranger, "GET", &path, None).await, 404, "not_found", None);
}

#[tokio::test]
async fn a_store_that_keeps_no_use_says_so() {
    let clock = ManualClock::default();
    let store = FakeStore::new(&clock);
    let auth = Authenticator::builder(store.clone(), format()).clock(clock);
    let (auth, _worker) = auth.build();
    let issuer = auth.issuer(store);
    let issued = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
    let app = Router::new().nest_service("/account", account::router(issuer, auth));
    let mut request = get("/account/usage");
    let value = format!("Bearer {}", issued.key.expose_secret()).parse().unwrap();
    request.headers_mut().insert(http::header::AUTHORIZATION, value);
    assert_problem(&send(app, request).await, 501, "not_supported", None);
}

/// An issuer whose clock a test moves.
fn issuer(clock: &ManualClock) -> (MemoryKeyStore, KeyIssuer) {
    let store = MemoryKeyStore::with_clock(clock.clone());
    (store.clone(), KeyIssuer::new(store, format()).clock(clock.clone()))
}

fn keys() -> [KeyId; 3] {
    [1, 2, 3].map(|byte| KeyId::from_bytes([byte; 16]))
}

async fn exported(issuer: &KeyIssuer, mut export: UsageExport) -> (Vec<String>, UsageCursor) {
    let mut ids = Vec::new();
    loop {
        let page = issuer.export_usage(&export).await.unwrap();
        assert!(page.hours.len() <= export.limit);
        ids.extend(page.hours.iter().map(HourlyUse::event_id));
        export.after = page.next;
        if page.is_last {
            return (ids, page.next);
        }
    }
}

#[tokio::test]
async fn an_export_has_each_settled_hour_of_each_key_once() {
    let clock = ManualClock::at(hour(3) + 14 * MINUTE);
    let (store, issuer) = issuer(&clock);
    for (sequence, key) in (1..).zip(keys()) {
        used(&store, sequence, key, "acme", &[0, 1, 2, 3]).await;
    }
    let ids_of = |hours: std::ops::Range<u32>| -> Vec<_> {
        let id = |hour| move |key| format!("{key}/2026-01-01T{hour:02}:00:00Z");
        hours.flat_map(|hour| keys().map(id(hour))).collect()
    };
    for limit in [1, 2, 3, 4, 6, 7, 1000] {
        let export = UsageExport::after(UsageCursor::at(hour(0))).limit(limit);
        let (ids, next) = exported(&issuer, export.clone()).await;
        assert_eq!(ids, ids_of(0..2), "the hour that ended 14 minutes ago may still grow");
        assert_eq!(next, UsageCursor::at(hour(2)));

        let (again, _) = exported(&issuer, export).await;
        assert_eq!(again, ids, "the ids are the same each time");
    }
    clock.advance(MINUTE);
    let rest = UsageExport::after(UsageCursor::at(hour(2)));
    let (ids, next) = exported(&issuer, rest.clone()).await;
    assert_eq!((ids, next), (ids_of(2..3), UsageCursor::at(hour(3))));
    let (ids, next) = exported(&issuer, rest.clone().settled_after(HOUR)).await;
    assert_eq!((ids, next), (vec![], UsageCursor::at(hour(2))));
    let some = UsageExport::after(UsageCursor::after(hour(0), keys()[1])).to(hour(1) + MINUTE);
    let (ids, next) = exported(&issuer, some).await;
    assert_eq!((ids.as_slice(), next), (&ids_of(0..1)[2..], UsageCursor::at(hour(1))));
    // A position in the future is kept.
    let ahead = UsageCursor::at(hour(9));
    assert_eq!(exported(&issuer, UsageExport::after(ahead)).await, (vec![], ahead));
}

#[tokio::test]
async fn only_an_operator_exports_use() {
    let clock = ManualClock::default();
    let (_, issuer) = issuer(&clock);
    let export = UsageExport::after(UsageCursor::at(hour(0)));
    let ann = issuer.by(Actor::member(Member::new("ann", ConsumerIds::all())));
    let error = ann.export_usage(&export).await.unwrap_err();
    assert_eq!(error.kind(), ManageErrorKind::Denied);
    let events = issuer.events(&EventQuery::new()).await.unwrap().events;
    assert_eq!(events[0].entry.action, KeyAction::Denied);
    for limit in [0, 1001] {
        let error = issuer.export_usage(&export.clone().limit(limit)).await.unwrap_err();
        assert_eq!(error.kind(), ManageErrorKind::Invalid);
    }
}

#[tokio::test]
async fn the_total_of_a_report_is_the_sum_of_its_buckets() {
    let clock = ManualClock::default();
    let (store, issuer) = issuer(&clock);
    used(&store, 1, keys()[0], "acme", &[0, 1, 2]).await;
    let query = UsageQuery::until(hour(2), BucketWidth::Hour);
    let report = issuer.usage(&query).await.unwrap();
    assert_eq!(report.total(), UseCounts::new(10, 8, 6, 4, 2));
}
