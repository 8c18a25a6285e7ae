//! Imports: the real program on real databases.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::place::{Place, count, hash, import_line, text};
use crate::wait::Deadline;

#[tokio::test]
async fn an_import_steps_over_what_the_database_refuses() {
    for place in Place::all().await {
        let refuse = if place.url.starts_with("sqlite") {
            "create trigger decent before insert on api_keys when new.consumer_id = 'bad'
            begin select raise(abort, 'not that one'); end"
        } else {
            "alter table api_keys add constraint not_that_one check (consumer_id <> 'bad')"
        };
        place.sql(refuse).await;
        let lines: Vec<_> = (0..9)
            .map(|number| match number {
                3 | 7 => import_line(number).replace("acme", "bad"),
                _ => import_line(number),
            })
            .collect();
        place.write("keys.ndjson", &lines.concat());
        let said = place.run("import keys.ndjson");
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.err.contains("line 4: ") && said.err.contains("3 imported"), "{said:?}");
        let said = place.done("import keys.ndjson --skip-invalid");
        assert!(said.err.contains("line 8: the database refuses this key"), "{said:?}");
        assert!(said.err.contains("imported 4 keys"), "{said:?}");
    }
}

#[tokio::test]
async fn an_import_stops_at_what_makes_no_sense_and_can_be_begun_again() {
    for place in Place::all().await {
        let secret = "old_0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefg";
        let good: String = (0..2500).map(import_line).collect();
        let bad = format!("{{\"hash\":\"{secret}\",\"consumer_id\":\"a\",\"expires\":\"1d\"}}\n");
        place.write("keys", &format!("{good}{bad}{}", import_line(2500)));
        let said = place.run("import keys");
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.err.contains("line 2501") && said.err.contains("2500 imported"), "{said:?}");
        assert!(said.err.contains("sha256sum") && !said.err.contains(secret), "{said:?}");

        let rest = place.json("import keys --skip-invalid");
        assert_eq!(rest, serde_json::json!({ "imported": 1, "known": 2500, "invalid": 1 }));

        for (line, problem) in [
            ("{\"hash\":\"00\"}", "hash"),
            ("{\"consumer_id\":\"a\",\"expires\":\"1d\"}", "`hash` is missing"),
            (
                &format!("{{\"hash\":\"{}\",\"consumer_id\":\"a\"}}", hash(1)),
                "`expires` is missing",
            ),
            ("{\"color\":1}", "`color`"),
            (&format!("{{\"{secret}\":1}}"), "one of its fields"),
            (&import_line(1).replace("\"30d\"}\n", "\"30d\",\"is_active\":2}"), "is_active"),
            ("nonsense", "column"),
            (
                &import_line(1).trim().replace("30d", "0d"),
                "expires: a new key must have a lifetime",
            ),
            (
                &format!(
                    "{{\"hash\":\"{}\",\"consumer_id\":\"a\",\"expires\":\"1d\",\"plan\":\"a b\"}}",
                    hash(9998)
                ),
                "plan",
            ),
            (
                &format!("{{\"hash\":\"{}\",\"consumer_id\":\"\",\"expires\":\"1d\"}}", hash(9999)),
                "consumer_id",
            ),
        ] {
            let said = place.fed("import -", &format!("\n{}{line}\n", import_line(3000)));
            assert_eq!(said.code, 2, "{said:?}");
            assert!(said.err.contains("line 3") && said.err.contains(problem), "{said:?}");
            assert!(!said.err.contains(secret), "{said:?}");
        }
        // The keys before it are there.
        assert_eq!(
            place.fed("import - --json", &import_line(3000)).out,
            "{\"imported\":0,\"invalid\":0,\"known\":1}\n"
        );

        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let one = format!(
            "import --hash {sha} --consumer acme --expires never --name old --prefix old_ --last4 wxyz"
        );
        assert_eq!(place.json(&one)["imported"], 1);
        assert_eq!(place.json(&one)["known"], 1);
        assert_eq!(place.json("list --limit 1")["keys"][0]["key_last4"], "wxyz");
    }
}

#[tokio::test]
async fn a_key_that_was_imported_is_verified_and_rotated() {
    let place = Place::sqlite();
    place.done("migrate");
    // SHA-256 of 64 times `7`, by another program.
    let key = "7".repeat(64);
    let output = Command::new("sh").args(["-c", "printf %s \"$0\" | sha256sum", &key]).output();
    let hash = String::from_utf8(output.unwrap().stdout).unwrap();
    let hash = hash.split_whitespace().next().unwrap();
    place.done(&format!("import --hash {hash} --consumer acme --expires 1d"));
    assert_eq!(place.fed("verify", &key).code, 5, "not a format that is let in");
    assert_eq!(place.fed("verify --accept hex:64", &key).code, 0);
    let id = text(&place.json("list")["keys"][0], "id");
    assert!(text(&place.json(&format!("rotate {id}")), "key").starts_with("sk_live_"));
}

#[test]
fn an_import_keeps_when_a_key_was_issued_and_last_used() {
    let place = Place::sqlite();
    place.done("migrate");
    let mut line = json!({ "hash": hash(1), "consumer_id": "acme", "expires": "30d" });
    line["created_at"] = "2020-01-02T03:04:05Z".into();
    line["last_used_at"] = "2021-01-01".into();
    assert_eq!(place.fed("import -", &format!("{line}\n")).code, 0);
    let key = &place.json("list")["keys"][0];
    assert_eq!(key["created_at"], "2020-01-02T03:04:05Z");
    assert_eq!(key["last_used_at"], "2021-01-01T00:00:00Z");
    assert_eq!(key["status"], "active", "the lifetime counts from the import");
}

#[test]
fn an_import_refuses_what_cannot_be_with_advice() {
    let place = Place::sqlite();
    place.done("migrate");
    for (field, value, problem) in [
        ("created_at", json!("2999-01-01"), "created_at: must not be in the future"),
        ("last_used_at", json!("2999-01-01"), "last_used_at: must not be in the future"),
        ("created_at", json!("soon"), "created_at: not a time"),
        ("created_at", json!(30), "created_at: a number counts seconds"),
        ("revoked_at", json!("2999-01-01"), "revoked_at: must not be in the future"),
        ("id", json!([42]), "id: must be a string"),
        ("id", json!("00000000-0000-0000-0000-000000000000"), "must not be the zero UUID"),
        ("key", json!("a"), "give --plaintext"),
        ("prefix", json!("12|"), "no request can carry a key with others"),
        ("last4", json!("a b"), "no request can carry a key with others"),
    ] {
        let mut line = json!({ "hash": hash(1), "consumer_id": "acme", "expires": "30d" });
        line[field] = value;
        let said = place.fed("import -", &format!("{line}\n"));
        assert!(said.code == 2 && said.err.contains(problem), "{said:?}");
    }
    assert_eq!(place.json("list")["keys"], json!([]));
}

#[test]
fn null_is_left_out_of_an_import_and_a_key_can_be_imported_inactive() {
    let place = Place::sqlite();
    place.done("migrate");
    let optional = [
        "name",
        "scopes",
        "rate_limits",
        "plan",
        "metadata",
        "not_before",
        "created_by",
        "prefix",
        "last4",
        "is_active",
        "created_at",
        "last_used_at",
    ];
    let mut line = json!({ "hash": hash(1), "consumer_id": "acme", "expires": "1d" });
    for field in optional {
        line[field] = Value::Null;
    }
    let said = place.fed("import -", &format!("{line}\n"));
    assert_eq!(said.code, 0, "{said:?}");
    let key = &place.json("list")["keys"][0];
    assert_eq!((&key["scopes"], &key["is_active"]), (&json!([]), &true.into()));

    for (number, is_active, status) in [(2, true, "active"), (3, false, "inactive")] {
        line["hash"] = hash(number).into();
        line["is_active"] = is_active.into();
        let said = place.fed("import -", &format!("{line}\n"));
        assert_eq!(said.code, 0, "{said:?}");
        assert_eq!(place.json("list")["keys"][0]["status"], status);
    }
}

#[tokio::test]
async fn an_import_that_is_killed_is_begun_again() {
    for place in Place::all().await {
        let lines = 20_000;
        place.write("keys", &(0..lines).map(import_line).collect::<String>());
        // Fed line by line, so that it is certainly in the middle.
        let mut running = place.command(&["import", "-"]);
        let mut running = running.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = running.stdin.take().unwrap();
        let half: String = (0..5500).map(import_line).collect();
        stdin.write_all(half.as_bytes()).unwrap();
        let deadline = Deadline::of("a batch is imported");
        while count(&place) < 1000 {
            deadline.check();
            tokio::task::yield_now().await;
        }
        running.kill().unwrap();
        running.wait().unwrap();

        let rest = place.json("import keys");
        let (imported, known) =
            (rest["imported"].as_u64().unwrap(), rest["known"].as_u64().unwrap());
        assert_eq!(imported + known, lines as u64, "{rest}");
        assert!(known >= 1000 && known.is_multiple_of(1000), "whole batches: {rest}");
    }
}

#[tokio::test]
async fn an_import_takes_no_more_memory_the_longer_it_is() {
    let place = Place::postgres().await;
    place.done("migrate");
    let mut running = place.command(&["import", "-"]);
    let mut running = running.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = running.stdin.take().unwrap();
    let mut progress = BufReader::new(running.stderr.take().unwrap()).lines();
    let feed = move |numbers: std::ops::Range<usize>, stdin: &mut std::process::ChildStdin| {
        let mut stdin = std::io::BufWriter::new(stdin);
        for number in numbers {
            stdin.write_all(import_line(number).as_bytes()).unwrap();
        }
    };
    feed(0..102_000, &mut stdin);
    assert!(progress.next().unwrap().unwrap().starts_with("100000 keys"));
    let early = peak_memory(running.id());
    feed(102_000..204_000, &mut stdin);
    assert!(progress.next().unwrap().unwrap().starts_with("200000 keys"));
    let late = peak_memory(running.id());
    drop(stdin);
    assert!(progress.next().unwrap().unwrap().starts_with("imported 204000 keys"));
    assert!(running.wait().unwrap().success());
    assert!(late < early + 4096, "{early} KiB at first, {late} KiB in the end");
    assert!(late < 64 * 1024, "{late} KiB");
}

#[test]
fn reading_csv_takes_no_more_memory_the_longer_it_is() {
    let place = Place::sqlite();
    place.done("migrate");
    let mut running = place.command(&["import", "-", "--format", "csv", "--skip-invalid"]);
    let mut running = running.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = running.stdin.take().unwrap();
    stdin.write_all(b"hash,consumer_id,expires,name\n").unwrap();
    let record = format!("no hash,acme,30d,\"{}\"\n", "long\n".repeat(20_000));
    // A pipe holds 64 KiB, so all but the last record has been read.
    let mut peak = |records| {
        (0..records).for_each(|_| stdin.write_all(record.as_bytes()).unwrap());
        peak_memory(running.id())
    };
    let (early, late) = (peak(50), peak(500));
    assert!(late < early + 4096, "{early} KiB at first, {late} KiB in the end");
    running.kill().unwrap();
    running.wait().unwrap();
}

/// In KiB.
fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let status = status.unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A table of keys as widespread tutorials have it, exported by `psql`.
const TUTORIAL: &str = "\
id,key_hash,user_id,name,created_at,last_used,is_active,rate_limit
1,HASH1,17,\"Laptop, \"\"old\"\"\",2024-03-01 10:00:00.25+00,2026-01-02 03:04:05+00,t,1000
2,HASH2,18,,2024-03-02 10:00:00+02,,f,
3,HASH3,17,ci,1709294400,1709294400000,1,50
";

const MAPPED: &str = "--expires never --rate-limit-window hour --map key_hash=hash \
    --map user_id=consumer_id --map last_used=last_used_at --map rate_limit=rate_limits";

fn tutorial() -> String {
    (1..=3).fold(TUTORIAL.to_owned(), |text, number| {
        text.replace(&format!("HASH{number}"), &hash(number))
    })
}

#[tokio::test]
async fn a_table_of_another_service_is_imported_by_a_mapping_of_its_columns() {
    for place in Place::all().await {
        place.write("keys.csv", &tutorial());
        let trial = place.json(&format!("import keys.csv --dry-run {MAPPED}"));
        assert_eq!((&trial["imported"], count(&place)), (&3.into(), 0), "{trial}");
        assert_eq!(place.json(&format!("import keys.csv {MAPPED}"))["imported"], 3);
        let again = place.json(&format!("import keys.csv {MAPPED}"));
        assert_eq!(again, json!({ "imported": 0, "known": 3, "invalid": 0 }));

        let mut keys = place.json("list --consumer 17")["keys"].as_array().unwrap().clone();
        // Of one millisecond, so in any order.
        keys.sort_by_key(|key| text(key, "name"));
        let [laptop, ci] = &keys[..] else { panic!("{keys:?}") };
        assert_eq!(laptop["name"], "Laptop, \"old\"");
        assert_eq!(laptop["metadata"], json!({ "old_id": "1" }));
        assert_eq!(laptop["created_at"], "2024-03-01T10:00:00.25Z");
        assert_eq!(laptop["last_used_at"], "2026-01-02T03:04:05Z");
        assert_eq!(laptop["expires_at"], Value::Null);
        let limit = &laptop["rate_limits"][0];
        assert_eq!((&limit["limit"], &limit["name"]), (&1000.into(), &"hour".into()), "{laptop}");
        assert_eq!(ci["created_at"], "2024-03-01T12:00:00Z");
        assert_eq!(ci["last_used_at"], "2024-03-01T12:00:00Z");

        let other = &place.json("list --consumer 18")["keys"][0];
        assert_eq!((&other["status"], &other["name"]), (&"inactive".into(), &Value::Null));
        assert_eq!(other["created_at"], "2024-03-02T08:00:00Z");
        assert_eq!(other["rate_limits"], Value::Null);
    }
}

#[tokio::test]
async fn a_dry_run_stores_nothing_and_says_what_is_wrong_with_which_lines() {
    for place in Place::all().await {
        assert_eq!(place.fed("import -", &import_line(0)).code, 0);
        let events = place.json("events");
        let mut lines: Vec<_> = (0..1030).map(import_line).collect();
        lines[3] = lines[3].replace("30d", "soon");
        lines[4] = lines[4].replace("acme", "");
        for line in &mut lines[1001..1031 - 1] {
            *line = "{\n".to_owned();
        }
        let said = place.fed("import - --dry-run --json", &lines.concat());
        assert_eq!(said.code, 2, "{said:?}");
        let report: Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(report["dry_run"], true);
        assert_eq!(
            [&report["imported"], &report["known"], &report["invalid"]],
            [998, 1, 31],
            "{report}"
        );
        assert_eq!(report["kinds"], json!({ "consumer_id": 1, "expires": 1, "line": 29 }));
        let problems = report["problems"].as_array().unwrap();
        assert_eq!(problems.len(), 20, "the first ones");
        assert_eq!((&problems[0]["line"], &problems[0]["kind"]), (&4.into(), &"expires".into()));
        assert!(text(&problems[0], "problem").starts_with("expires: not a time"), "{report}");
        assert_eq!(said.err.matches("warning:").count(), 20, "{said:?}");
        assert!(said.err.contains("31 lines are invalid: 1 consumer_id, 1 expires, 29 line"));

        assert_eq!(count(&place), 1);
        assert_eq!(place.json("events"), events);
        let said = place.done("import /dev/null --dry-run");
        assert!(said.err.contains("nothing was stored: would import 0 keys"), "{said:?}");
    }
}

#[tokio::test]
async fn keys_in_plaintext_are_hashed_at_once_and_never_shown() {
    for place in Place::all().await {
        let (hex, prefixed) = ("0123456789abcdef".repeat(4), "old_ABCDEFGHIJKLMNOPQRSTUVW");
        let mut lines = String::new();
        for key in [&*hex, prefixed] {
            lines += &format!("{}\n", json!({ "key": key, "consumer_id": 7, "expires": "30d" }));
        }
        for from in ["-", "keys.csv"] {
            place.write("keys.csv", &format!("key,consumer_id\n{hex},7\n{prefixed},7\n"));
            let command = format!("import {from} --plaintext --expires 30d --prefix old_ --json");
            let said = place.fed(&command, &lines);
            assert_eq!(said.code, 0, "{said:?}");
            let known = if from == "-" { 0 } else { 2 };
            assert!(said.out.contains(&format!("\"known\":{known}")), "{said:?}");
        }
        assert_eq!(place.fed("verify --accept hex:64", &hex).code, 0);
        assert_eq!(place.fed("verify --accept base62:23:old_", prefixed).code, 0);
        let keys = place.json("list")["keys"].clone();
        let hints = keys.as_array().unwrap().iter();
        let mut hints: Vec<_> =
            hints.map(|k| (k["key_prefix"].clone(), k["key_last4"].clone())).collect();
        hints.sort_by_key(|(prefix, _)| prefix.to_string());
        assert_eq!(hints, [("".into(), "cdef".into()), ("old_".into(), "TUVW".into())]);
        let all = [place.json("list"), place.json("events")].map(|answer| answer.to_string());
        assert!(!all.iter().any(|answer| answer.contains(&hex) || answer.contains(prefixed)));

        let long = "k".repeat(257);
        for (key, problem) in [
            (json!("only-twenty-one-chars"), "must have at least 22 characters"),
            (json!("key with spaces in it, and a comma"), "must consist of visible ASCII"),
            (json!(long), "must not have more than 256"),
            (json!(["0123456789abcdef0123456789abcdef"]), "key: must be a string"),
            (Value::Null, "`key` is missing"),
        ] {
            let line = json!({ "key": key, "consumer_id": "a", "expires": "1d" });
            for options in ["", "--dry-run --json", "--skip-invalid"] {
                let said = place.fed(&format!("import - --plaintext {options}"), &line.to_string());
                assert!(said.err.contains(problem), "{said:?}");
                if let Some(key) = key.as_str() {
                    assert!(!said.err.contains(key) && !said.out.contains(key), "{said:?}");
                }
            }
        }
        let wrong = json!({ "key": hex, "prefix": "new_", "consumer_id": "a", "expires": "1d" });
        let said = place.fed("import - --plaintext", &wrong.to_string());
        assert!(said.err.contains("must begin with its prefix"), "{said:?}");
    }
}

#[tokio::test]
async fn a_uuid_stays_the_id_of_a_key_and_a_conflict_is_told() {
    for place in Place::all().await {
        let id = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
        let line = |number: usize, id: Value| {
            let mut line: Value = serde_json::from_str(&import_line(number)).unwrap();
            line["id"] = id;
            format!("{line}\n")
        };
        assert_eq!(place.fed("import -", &line(1, id.into())).code, 0);
        assert_eq!(place.json(&format!("show {id}"))["id"], id);
        // The same key again is known, another one with its id is not.
        let said = place.fed("import - --json", &line(1, id.into()));
        assert_eq!(said.out, "{\"imported\":0,\"invalid\":0,\"known\":1}\n");
        for options in ["", "--dry-run"] {
            let lines = line(2, Value::Null) + &line(3, id.into());
            let said = place.fed(&format!("import - {options}"), &lines);
            assert_eq!(said.code, 2, "{said:?}");
            assert!(said.err.contains("line 2: id: another key has the id 6f9619ff"), "{said:?}");
        }
        assert_eq!(count(&place), 2);
        for (number, old) in [(4, json!("key_42")), (5, json!(42))] {
            assert_eq!(place.fed("import -", &line(number, old.clone())).code, 0);
            let keys = place.json("list")["keys"].clone();
            let metadata = json!({ "old_id": old });
            assert!(keys.as_array().unwrap().iter().any(|key| key["metadata"] == metadata));
        }
        // Rotations, and all that goes by the id, work.
        place.done(&format!("rotate {id}"));
    }
}

#[tokio::test]
async fn a_key_that_has_ended_stays_ended() {
    for place in Place::all().await {
        let policy = r#"{ "rules": { "never_expires": "refused" } }"#;
        place.write("policy.json", policy);
        for (number, field, value, reason) in [
            (1, "revoked_at", json!("2025-01-02 03:04:05"), "revoked"),
            (2, "revoked", json!(true), "revoked"),
            (3, "expires", json!("2025-01-02T03:04:05Z"), "expired"),
        ] {
            let key = format!("{number}").repeat(64);
            let mut line = json!({ "key": key, "consumer_id": "acme", "expires": "never" });
            line[field] = value;
            let command = "import - --plaintext --policy policy.json";
            let said = place.fed(command, &line.to_string());
            assert_eq!(said.code, 0, "{said:?}");
            let said = place.fed("verify --json --accept hex:64", &key);
            let verdict: Value = serde_json::from_str(&said.out).unwrap();
            assert_eq!((said.code, &verdict["reason"]), (5, &reason.into()), "{verdict}");
        }
        let key = &place.json("list")["keys"][2];
        assert_eq!(key["revoked_at"], "2025-01-02T03:04:05Z");
        let event = &place.json(&format!("events {}", text(key, "id")))["events"][0];
        assert_eq!(event["action"], "imported");
        assert_eq!(event["changes"]["revoked_at"]["to"], "2025-01-02T03:04:05Z", "{event}");
        let mut line = json!({ "hash": hash(9), "consumer_id": "acme", "expires": "never" });
        let said = place.fed("import - --policy policy.json", &line.to_string());
        assert_eq!(said.code, 2, "a key that works has to keep the policy: {said:?}");
        line["revoked"] = false.into();
        line["revoked_at"] = "2025-01-01".into();
        let said = place.fed("import -", &line.to_string());
        assert!(said.err.contains("revoked: must not be false"), "{said:?}");
    }
}

#[test]
fn times_are_read_as_databases_print_them() {
    let place = Place::sqlite();
    place.done("migrate");
    let instant = "2026-01-02T03:04:05Z";
    for (number, (printed, expected)) in [
        (json!("2026-01-02 03:04:05+00"), instant),
        (json!("2026-01-02 03:04:05.000+00:00"), instant),
        (json!("2026-01-02 05:04:05+0200"), instant),
        (json!("2026-01-02 08:34:05+05:30"), instant),
        (json!("2026-01-02T03:04:05.000Z"), instant),
        (json!("2026-01-02 03:04:05"), instant),
        (json!("2026-01-02 03:04:05 UTC"), instant),
        (json!("2026-01-02 03:04:05.123456"), "2026-01-02T03:04:05.123456Z"),
        (json!(1_767_323_045), instant),
        (json!("1767323045"), instant),
        (json!(1_767_323_045_123_u64), "2026-01-02T03:04:05.123Z"),
        (json!(1_767_323_045_123_456_u64), "2026-01-02T03:04:05.123456Z"),
        (json!(1_767_323_045.123_456), "2026-01-02T03:04:05.123456Z"),
        (json!("2026-01-02"), "2026-01-02T00:00:00Z"),
        (json!("20260102"), "2026-01-02T00:00:00Z"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut line = json!({ "hash": hash(number), "consumer_id": "a", "expires": "infinity" });
        line["created_at"] = printed;
        let said = place.fed("import -", &line.to_string());
        assert_eq!(said.code, 0, "{line}: {said:?}");
        let key = &place.json("list --limit 1")["keys"][0];
        assert_eq!((&key["created_at"], &key["expires_at"]), (&expected.into(), &Value::Null));
    }
    for wrong in [json!("0000-00-00 00:00:00"), json!("30"), json!(1e30), json!(-5), json!(true)] {
        let mut line = json!({ "hash": hash(99), "consumer_id": "a", "expires": "1d" });
        line["created_at"] = wrong;
        let said = place.fed("import -", &line.to_string());
        assert!(said.code == 2 && said.err.contains("created_at: "), "{line}: {said:?}");
    }
}

#[test]
fn limits_are_read_as_other_services_write_them() {
    let place = Place::sqlite();
    place.done("migrate");
    for (number, (fields, limit, window, name)) in [
        (json!({ "rate_limits": "1000/hour" }), 1000, 3600, "hour"),
        (json!({ "rate_limits": "1000 per hour" }), 1000, 3600, "hour"),
        (json!({ "rate_limits": "1,000 requests per minute" }), 1000, 60, "minute"),
        (json!({ "rate_limits": "5 per 10 minutes" }), 5, 600, "600s"),
        (json!({ "rate_limits": ["10 per second"] }), 10, 1, "second"),
        (json!({ "rate_limits": 70 }), 70, 86_400, "day"),
        (json!({ "rate_limits": "70" }), 70, 86_400, "day"),
        (json!({ "rate_limits": 70, "rate_limit_window": "minute" }), 70, 60, "minute"),
        (json!({ "rate_limits": 70, "rate_limit_window": 90 }), 70, 90, "90s"),
        (json!({ "rate_limits": 70, "rate_limit_window_ms": 60000 }), 70, 60, "minute"),
        (json!({ "rate_limits": { "limit": 7, "window": "week" } }), 7, 604_800, "604800s"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut line = json!({ "hash": hash(number), "consumer_id": "a", "expires": "1d" });
        line.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let said = place.fed("import - --rate-limit-window day", &line.to_string());
        assert_eq!(said.code, 0, "{line}: {said:?}");
        let found = &place.json("list --limit 1")["keys"][0]["rate_limits"][0];
        assert_eq!((&found["limit"], &found["name"]), (&limit.into(), &name.into()), "{line}");
        assert_eq!(found["window_ms"], window * 1000, "{found}");
    }
    for wrong in [json!(0), json!(-1), json!(1.5), json!("many"), json!("5 per moon"), json!(true)]
    {
        let mut line = json!({ "hash": hash(99), "consumer_id": "a", "expires": "1d" });
        line["rate_limits"] = wrong;
        let said = place.fed("import - --rate-limit-window day", &line.to_string());
        assert!(said.code == 2 && said.err.contains("rate_limits: "), "{line}: {said:?}");
    }
    let line = json!({ "hash": hash(99), "consumer_id": "a", "expires": "1d", "rate_limits": 5 });
    let said = place.fed("import -", &line.to_string());
    assert!(said.err.contains("--rate-limit-window"), "{said:?}");
}

#[test]
fn a_field_of_another_name_needs_a_mapping() {
    let place = Place::sqlite();
    place.done("migrate");
    let line = json!({
        "digest": hash(1), "owner": 5, "until": "1d", "tier": "pro", "email": "a@b.example",
        "metadata": { "a": 1 },
    });
    let said = place.fed("import -", &line.to_string());
    assert!(said.err.contains("the field `digest` is unknown; --map digest=OURS"), "{said:?}");
    let map = "--map digest=hash --map owner=consumer_id --map until=expires \
        --map tier=metadata.tier --map email=-";
    let said = place.fed(&format!("import - {map}"), &line.to_string());
    assert_eq!(said.code, 0, "{said:?}");
    let key = &place.json("list")["keys"][0];
    assert_eq!(key["consumer_id"], "5");
    assert_eq!(key["metadata"], json!({ "a": 1, "tier": "pro" }));
    // Fields may change their names with each other.
    let swapped = json!({ "hash": "acme", "consumer_id": hash(2), "expires": "1d" });
    let swap = "--map hash=consumer_id --map consumer_id=hash";
    assert_eq!(place.fed(&format!("import - {swap}"), &swapped.to_string()).code, 0);
    let twice = json!({ "hash": hash(3), "digest": hash(4), "consumer_id": "a", "expires": "1d" });
    let said = place.fed("import - --map digest=hash", &twice.to_string());
    assert!(said.code == 2 && said.err.contains("hash: there are two of this field"), "{said:?}");
    for (map, problem) in [
        ("digest", "write it as THEIRS=OURS"),
        ("=hash", "write it as THEIRS=OURS"),
        ("digest=color", "no such field of ours"),
    ] {
        let said = place.fed(&format!("import - --map {map}"), "");
        assert!(said.code == 2 && said.err.contains(problem), "{said:?}");
    }
}

#[test]
fn a_csv_file_is_read_as_it_is_written() {
    let place = Place::sqlite();
    place.done("migrate");
    // With a byte order mark, as spreadsheets write it, CRLF, line breaks in fields, blank lines.
    let csv = format!(
        "\u{feff}hash,consumer_id,expires,scopes,tags,metadata,networks,name\r\n\
        {},acme,1d,\"orders:read,orders:write\",\"{{a,b}}\",\"{{\"\"n\"\":1}}\",\"[\"\"203.0.113.0/24\"\"]\",\
        \"two\r\nlines\"\r\n\r\n\r\n\
        {},acme,1d,orders:read orders:write,NULL,\\N,,NULL\r\n",
        hash(1),
        hash(2),
    );
    let said = place.fed("import - --format csv", &csv);
    assert_eq!(said.code, 2, "a name has no line break: {said:?}");
    assert!(said.err.contains("line 2: name"), "{said:?}");
    let said = place.fed("import - --format csv", &csv.replace("two\r\nlines", "one line"));
    assert_eq!(said.code, 0, "{said:?}");
    let mut keys = place.json("list")["keys"].as_array().unwrap().clone();
    // Of one millisecond, so in any order.
    keys.sort_by_key(|key| key["tags"].as_array().unwrap().len());
    assert_eq!(keys[0]["scopes"], json!(["orders:read", "orders:write"]));
    assert_eq!((&keys[0]["tags"], &keys[0]["metadata"]), (&json!([]), &json!({})));
    assert_eq!(keys[1]["scopes"], json!(["orders:read", "orders:write"]));
    assert_eq!(keys[1]["tags"], json!(["a", "b"]));
    assert_eq!(keys[1]["metadata"], json!({ "n": 1 }));
    assert_eq!(keys[1]["networks"], json!(["203.0.113.0/24"]));

    let header = "hash,consumer_id,expires\r\n";
    let broken = format!("{header}\r\n\"{}\",acme,\"\r\n\"\r\n\r\nx,acme,1d\r\n", hash(3));
    let said = place.fed("import - --format csv --skip-invalid", &broken);
    assert!(said.err.contains("line 3: `expires` is missing"), "{said:?}");
    assert!(said.err.contains("line 6: hash: not a SHA-256"), "{said:?}");
}

#[test]
fn fields_of_csv_are_bounded_and_errors_quote_none() {
    let place = Place::sqlite();
    place.done("migrate");
    let header = "hash,consumer_id,expires\n";
    let secret = "S3CR3T".repeat(60_000);
    let good = format!("{},acme,1d\n", hash(1));
    let long = format!("{header}{secret},a,1d\n{}{good}", "\n".repeat(3));
    let wide = format!("{header}{}\n{good}", ",".repeat(1000));
    let short = format!("{header}S3CR3T,a\n{good}");
    let json = "hash,consumer_id,expires,metadata\nS3CR3T,a,1d,{S3CR3T\n".to_owned();
    for (csv, line, problem) in [
        (&long, 2, "longer than 256 KiB"),
        (&wide, 2, "more than 256 columns"),
        (&short, 2, "2 columns instead of the 3 of the header"),
        (&json, 2, "a field that looks like JSON is not"),
    ] {
        let said = place.fed("import - --format csv --skip-invalid", csv);
        assert!(said.err.contains(&format!("line {line}: {problem}")), "{said:?}");
        assert!(!said.err.contains("S3CR3T"), "{said:?}");
        assert_eq!(count(&place), usize::from(csv != &json), "the next record is read");
        place.done("revoke --consumer acme --yes");
        place.done("prune --ended-before 0s");
    }
    // A file without a header begins with a key.
    for (csv, problem) in [
        (format!("{},acme,1d\n", hash(77)), "the header, line 1: one of its fields is unknown"),
        ("hash,kunde\n".to_owned(), "the header, line 1: the field `kunde` is unknown"),
        (String::new(), "no header"),
        (format!("{secret}\n"), "the header, line 1: longer than 256 KiB"),
    ] {
        let said = place.fed("import - --format csv --skip-invalid", &csv);
        assert!(said.code == 2 && said.err.contains(problem), "{said:?}");
        assert!(!said.err.contains(&hash(77)) && !said.err.contains("S3CR3T"), "{said:?}");
    }
}

/// bcrypt of 64 times `7` with cost 4, by the C library.
const BCRYPT: &str = "$2b$04$abcdefghijklmnopqrstuuEhKZH5.o3OfGP.ZQrhPlRh4bHWpf3UW";

#[tokio::test]
async fn a_verifier_may_stand_in_place_of_a_hash() {
    for place in Place::all().await {
        let id = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
        let line = json!({
            "verifier": BCRYPT, "hint": "77777777", "consumer_id": "acme", "expires": "never",
            "created_at": "2024-01-01", "last_used_at": "2025-01-01", "is_active": true, "id": id,
        });
        let said = place.fed("import - --json", &line.to_string());
        assert_eq!(said.out, "{\"imported\":1,\"invalid\":0,\"known\":0}\n", "{said:?}");
        place.write(
            "keys.csv",
            &format!("verifier,hint,consumer_id,id\n{BCRYPT},77777777,acme,{id}\n"),
        );
        assert_eq!(place.json("import keys.csv --expires never")["known"], 1);
        let store = place.json("list").to_string() + &place.json("events").to_string();
        assert!(!store.contains(BCRYPT), "{store}");

        for (field, value, problem) in [
            ("verifier", "$2b$10$short", "verifier: "),
            ("verifier", "5f4dcc3b5aa765d61d8327deb882cf99", "verifier: "),
            ("hash", &*hash(1), "a key has this or `hash`, not both"),
        ] {
            let mut line = line.clone();
            line[field] = value.into();
            let said = place.fed("import -", &line.to_string());
            assert!(said.code == 2 && said.err.contains(problem), "{said:?}");
            assert!(!said.err.contains(value) && !said.err.contains(BCRYPT), "{said:?}");
        }
        let mut line = line.clone();
        line["verifier"] = Value::Null;
        line["hash"] = hash(1).into();
        let said = place.fed("import -", &line.to_string());
        assert!(said.code == 2 && said.err.contains("hint: "), "{said:?}");
    }
}

#[test]
fn keys_in_plaintext_are_hashed_as_their_format_is() {
    let place = Place::sqlite();
    place.done("migrate");
    let padded = "Ab3dEf9hZ0".repeat(4) + "+/a=";
    let sanctum = "17|AbCdEfGhIjKlMnOpQrStUvWxYz0123456789abcdf8c8ab1e";
    let accept = "--accept base64:43= --accept sanctum";
    for key in [&*padded, sanctum] {
        let line = json!({ "key": key, "consumer_id": "acme", "expires": "1d" }).to_string();
        let said = place.fed(&format!("import - --plaintext {accept}"), &line);
        assert_eq!(said.code, 0, "{said:?}");
        assert_eq!(place.fed(&format!("verify {accept}"), key).code, 0, "{key}");
    }
    // The secret alone is hashed.
    let same = sanctum.replace("17|", "18|");
    assert_eq!(place.fed(&format!("verify {accept}"), &same).code, 0);
    let other = json!({ "key": "0f".repeat(32), "consumer_id": "acme", "expires": "1d" });
    let said = place.fed(&format!("import - --plaintext {accept}"), &other.to_string());
    assert!(said.code == 2 && said.err.contains("a format that the service accepts"), "{said:?}");

    let line = json!({
        "verifier": BCRYPT, "hint": "77777777", "consumer_id": "acme", "expires": "1d",
    });
    let import = |accept: &str| place.fed(&format!("import - {accept}"), &line.to_string());
    let said = import("--accept sk_live_ --accept hex:64:old-");
    assert!(said.code == 2 && said.err.contains("no key of a format that --accept"), "{said:?}");
    assert_eq!(import("--accept sk_live_ --accept hex:64").code, 0);
}
