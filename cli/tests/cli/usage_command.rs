//! Counted use on the command line.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tower_api_key::clock::{Clock as _, SystemClock};

use crate::place::{Place, text};

const UNKNOWN_ID: &str = "0190d4c0-0000-7000-8000-000000000000";
const DECEMBER: &str = "--from 2025-12-01 --to 2026-01-01";

/// 2025-12-01T00:00:00Z.
const FIRST: u64 = 1_764_547_200;

/// Writes what a node counted of a key in hours of December 2025, and in their days.
async fn used(place: &Place, id: &str, consumer: &str, hours: &[u64]) {
    for hour in hours {
        let seconds = FIRST + 3600 * hour;
        for (table, column, at) in [
            ("api_key_usage_hourly", "hour", seconds),
            ("api_key_usage_daily", "day", seconds - seconds % 86_400),
        ] {
            let (id, at) = if place.url.starts_with("sqlite") {
                (format!("unhex('{}')", id.replace('-', "")), format!("{at}000000"))
            } else {
                (format!("'{id}'"), format!("to_timestamp({at})"))
            };
            let insert = format!(
                "insert into {table} as stored
                 (key_id, {column}, consumer_id, admitted, limited, forbidden, refused, units)
                 values ({id}, {at}, '{consumer}', 5, 4, 3, 2, 1)
                 on conflict (key_id, {column}) do update set
                 admitted = stored.admitted + 5, limited = stored.limited + 4,
                 forbidden = stored.forbidden + 3, refused = stored.refused + 2,
                 units = stored.units + 1"
            );
            place.sql(&insert).await;
        }
    }
}

fn bucket(from: &str, times: i64) -> Value {
    json!({
        "from": from, "admitted": 5 * times, "limited": 4 * times, "forbidden": 3 * times,
        "refused": 2 * times, "units": times,
    })
}

#[tokio::test]
async fn the_use_of_a_key_a_consumer_and_all_keys_is_shown() {
    for place in Place::all().await {
        let [(_, a), (_, b)] = [place.issue("--expires 30d"), place.issue("--expires 30d")];
        used(&place, &a, "acme", &[12, 13, 36]).await;
        used(&place, &b, "acme", &[12]).await;
        used(&place, UNKNOWN_ID, "globex", &[12]).await;
        let (day, next) = ("2025-12-01T00:00:00Z", "2025-12-02T00:00:00Z");

        let of_key = place.json(&format!("usage {a} --by day {DECEMBER}"));
        assert_eq!(of_key, json!({ "id": a, "buckets": [bucket(day, 2), bucket(next, 1)] }));
        let by_hour = place.json(&format!("usage {b} --by hour --from 2025-12-01 --to 2025-12-02"));
        assert_eq!(by_hour, json!({ "id": b, "buckets": [bucket("2025-12-01T12:00:00Z", 1)] }));
        let of_consumer = place.json(&format!("usage --consumer acme {DECEMBER}"));
        assert_eq!(
            of_consumer,
            json!({ "consumer_id": "acme", "buckets": [bucket(day, 3), bucket(next, 1)] })
        );
        let of_all = place.json(&format!("usage --all {DECEMBER}"));
        assert_eq!(of_all, json!({ "buckets": [bucket(day, 4), bucket(next, 1)] }));
        let lately = place.json(&format!("usage {a}"));
        assert!(lately["buckets"].is_array(), "{lately}");

        let table = place.done(&format!("usage {a} {DECEMBER}")).out;
        let rows: Vec<Vec<_>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["FROM", "ADMITTED", "LIMITED", "FORBIDDEN", "REFUSED", "UNITS"]);
        assert_eq!(rows[1], [day, "10", "8", "6", "4", "2"]);
        assert_eq!(rows[3], ["total", "15", "12", "9", "6", "3"]);
        let csv = place.done(&format!("usage {a} {DECEMBER} --csv")).out;
        assert_eq!(
            csv,
            format!(
                "from,admitted,limited,forbidden,refused,units\n{day},10,8,6,4,2\n{next},5,4,3,2,1\n"
            )
        );
    }
}

#[tokio::test]
async fn mistakes_in_a_question_for_use_are_told() {
    for place in Place::all().await {
        let (_, id) = place.issue("--expires 30d");
        assert_eq!(place.run(&format!("usage {UNKNOWN_ID}")).code, 3);
        for (arguments, names) in [
            (String::new(), "--consumer"),
            (format!("{id} --all"), "--all"),
            (format!("{id} --by week"), "hour"),
            (format!("{id} --from yesterday"), "--from"),
            (format!("{id} --by hour --from 36d"), "--from: must be at most 35 days"),
            (format!("{id} --from 1d --to 2d"), "--from: must be before `to`"),
            (format!("{id} --csv --json"), "--csv"),
            (format!("{id} --source /a"), "--export"),
            ("--export".to_owned(), "--from"),
            ("--export --from 1d --by hour".to_owned(), "--by"),
        ] {
            let said = place.run(&format!("usage {arguments}"));
            assert_eq!(said.code, 2, "{arguments}: {said:?}");
            assert!(said.err.contains(names), "{arguments}: {said:?}");
        }
    }
}

#[tokio::test]
async fn use_is_exported_once_per_key_and_hour() {
    for place in Place::all().await {
        let ids: Vec<_> =
            (0..3).map(|number| format!("0190d4c0-0000-7000-8000-00000000000{number}")).collect();
        for (id, consumer) in ids.iter().zip(["acme", "globex", "acme"]) {
            used(&place, id, consumer, &[0, 1, 743, 744]).await;
        }
        let export = format!("usage --export {DECEMBER} --source https://api.example.com");
        let said = place.done(&export);
        let events: Vec<Value> =
            said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let keys = || ids.iter();
        let expected: Vec<_> = ["2025-12-01T00", "2025-12-01T01", "2025-12-31T23"]
            .iter()
            .flat_map(|hour| keys().map(move |id| format!("{id}/{hour}:00:00Z")))
            .collect();
        let found: Vec<_> = events.iter().map(|event| text(event, "id")).collect();
        assert_eq!(found, expected);
        let first = &events[0];
        for (member, value) in [
            ("specversion", "1.0"),
            ("source", "https://api.example.com"),
            ("type", "io.github.tower-api-key.usage.hour"),
            ("time", "2025-12-01T00:00:00Z"),
            ("subject", "acme"),
        ] {
            assert_eq!(first[member], value);
        }
        let data = json!({
            "consumer_id": "acme", "key_id": ids[0], "from": "2025-12-01T00:00:00Z",
            "to": "2025-12-01T01:00:00Z",
            "admitted": 5, "limited": 4, "forbidden": 3, "refused": 2, "units": 1,
        });
        assert_eq!(first["data"], data);
        assert_eq!(place.done(&export).out, said.out, "the same events each time");

        assert!(said.err.contains("next export: --from 2026-01-01T00:00:00Z"), "{said:?}");
        let next = place.done("usage --export --from 2026-01-01T00:00:00Z --to 2026-01-02");
        assert_eq!(next.out.lines().count(), 3, "{next:?}");
    }
}

/// The present hour may still grow.
#[tokio::test]
async fn an_hour_that_has_not_settled_is_not_exported() {
    let place = Place::sqlite();
    place.done("migrate");
    let first = SystemTime::UNIX_EPOCH + Duration::from_secs(FIRST);
    let passed = SystemClock::new().now().duration_since(first).unwrap();
    let present = u64::try_from(passed.as_millis() / 3_600_000).unwrap();
    used(&place, UNKNOWN_ID, "acme", &[present - 3, present]).await;
    let said = place.done("usage --export --from 5h");
    assert_eq!(said.out.lines().count(), 1, "{said:?}");
    let said = place.done("usage --export --from 5h --settled-after 24h");
    assert_eq!(said.out, "");
}

/// More than a page of events.
#[tokio::test]
async fn a_long_export_is_read_in_pages() {
    for place in Place::all().await {
        let insert = if place.url.starts_with("sqlite") {
            "with recursive number(n) as (select 0 union all select n + 1 from number where n < 2499)
             insert into api_key_usage_hourly
             select unhex(printf('%032x', n + 1)), 1764547200000000, 'acme', 1, 0, 0, 0, 1 from number"
        } else {
            "insert into api_key_usage_hourly
                 (key_id, hour, consumer_id, admitted, limited, forbidden, refused, units)
             select lpad(to_hex(n + 1), 32, '0')::uuid, to_timestamp(1764547200), 'acme', 1, 0, 0, 0, 1
             from generate_series(0, 2499) as n"
        };
        place.sql(insert).await;
        let said = place.done("usage --export --from 2025-12-01");
        let mut ids: Vec<_> =
            said.out.lines().map(|line| text(&serde_json::from_str(line).unwrap(), "id")).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 2500);
    }
}
