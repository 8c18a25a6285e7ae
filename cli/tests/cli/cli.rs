//! The command line: the real program on real databases.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection, raw_sql};

use crate::place::{Place, Said, count, hash, import_line, said, text};
use crate::servers::{pgbouncer::PgBouncer, postgres::Server, unique};
use crate::wait::eventually;

const UNKNOWN_ID: &str = "0190d4c0-0000-7000-8000-000000000000";

#[tokio::test]
async fn a_key_goes_through_its_whole_life() {
    for place in Place::all().await {
        let said = place.done(
            "issue --consumer acme --name ci --scope orders:read --expires 30d \
             --rate-limit 600/min:20 --rate-limit 1000/day --metadata {\"plan\":\"pro\"} \
             --key-prefix sk_test_ --reason first",
        );
        let key = said.out.strip_suffix('\n').unwrap();
        assert_eq!(key.len(), "sk_test_".len() + 49, "the key alone: {said:?}");
        assert!(!said.err.contains(key), "{said:?}");

        let keys = place.json("list --consumer acme");
        let listed = &keys["keys"][0];
        let id = text(listed, "id");
        assert!(said.err.contains(&id), "{said:?}");
        assert_eq!(listed["name"], "ci");
        assert_eq!(listed["metadata"]["plan"], "pro");
        assert_eq!(listed["rate_limits"][0]["burst"], 20);
        assert_eq!(listed["rate_limits"][1]["name"], "day");
        assert_eq!(listed["status"], "active");
        assert_eq!(keys["next"], Value::Null);
        assert!(place.done("list").out.contains(&id));
        assert!(place.done(&format!("show {id}")).out.contains("orders:read"));

        let verified = place.fed("verify --key-prefix sk_test_ --scope orders:read --json", key);
        assert_eq!(verified.code, 0, "{verified:?}");
        let verdict: Value = serde_json::from_str(&verified.out).unwrap();
        assert_eq!(
            (&verdict["admitted"], &verdict["record"]["id"]),
            (&true.into(), &id.as_str().into())
        );
        let verified = place.fed("verify --key-prefix sk_test_ --scope orders:write", key);
        assert_eq!(verified.code, 5, "{verified:?}");
        assert!(verified.out.contains("403"), "{verified:?}");
        let unused = place.json(&format!("show {id}"));
        assert_eq!(unused["last_used_at"], Value::Null, "a verified key was not used");

        let version = unused["version"].as_u64().unwrap();
        let changed =
            place.json(&format!("update {id} --name two --no-scopes --if-version {version}"));
        assert_eq!((&changed["name"], &changed["scopes"]), (&"two".into(), &Value::Array(vec![])));
        let outdated = place.run(&format!("update {id} --name three --if-version {version}"));
        assert_eq!(outdated.code, 4, "{outdated:?}");

        let rotated = place.json(&format!("rotate {id} --grace 1h"));
        assert_eq!(rotated["rotated_from"], id.as_str());
        assert_eq!(rotated["key_prefix"], "sk_test_", "the prefix stays");
        assert_ne!(rotated["previous"]["expires_at"], Value::Null);
        assert_eq!(place.run(&format!("rotate {id}")).code, 4, "it was rotated before");

        let revoked = place.json(&format!("revoke {id} --reason leaked"));
        assert_eq!(revoked["revoked_reason"], "leaked");
        assert_eq!(place.run(&format!("update {id} --name four")).code, 4, "it is revoked");

        let events = place.json(&format!("events {id}"));
        let actions: Vec<_> =
            events["events"].as_array().unwrap().iter().map(|e| &e["action"]).collect();
        assert_eq!(actions, ["revoked", "rotated", "updated", "issued"]);
        let last = &events["events"][0];
        assert!(text(last, "actor").starts_with("ann@"), "{last}");
        assert!(text(last, "origin").starts_with("command line on "), "{last}");
        let by = place.done(&format!("revoke {} --actor robot", text(&rotated, "id")));
        assert!(by.out.is_empty(), "{by:?}");
        assert!(place.done("events").out.contains("robot"));

        // Expired keys cannot be created, so revoked ones show that it deletes.
        let pruned = place.json("prune --ended-before 0s");
        assert_eq!(pruned["keys"], 2, "{pruned}");
        assert_eq!(place.run(&format!("show {id}")).code, 3);
    }
}

#[tokio::test]
async fn verify_says_why() {
    for place in Place::all().await {
        let (key, id) = place.issue("--expires 30d");
        let (code, verdict) = place.verify(&key);
        assert_eq!((code, &verdict["admitted"]), (0, &true.into()));

        place.done(&format!("update {id} --deactivate"));
        let (code, verdict) = place.verify(&key);
        assert_eq!((code, &verdict["reason"]), (5, &"inactive".into()));

        place.done(&format!("revoke {id}"));
        let (code, verdict) = place.verify(&key);
        assert_eq!(
            (code, &verdict["reason"], &verdict["http_status"]),
            (5, &"revoked".into(), &401.into())
        );
        assert_eq!(verdict["key_id"], id.as_str());

        let (expired, id) = place.issue("--expires 30d");
        place.done(&format!("rotate {id} --grace 0s"));
        assert_eq!(place.verify(&expired).1["reason"], "expired");
        let (later, _) = place.issue("--expires 30d --not-before 1d");
        assert_eq!(place.verify(&later).1["reason"], "not_yet_active");

        let other = Place::sqlite();
        other.done("migrate");
        let (unknown, _) = other.issue("--expires never");
        assert_eq!(place.verify(&unknown).1["reason"], "unknown");
        assert_eq!(place.verify("sk_live_nonsense").1["reason"], "malformed");
        assert_eq!(place.fed("verify", "\n").code, 2);

        // A key as an argument is refused, and not repeated.
        for command in ["verify", "show", "rotate", "import --consumer a --expires 1d --hash"] {
            let said = place.run(&format!("{command} {unknown}"));
            assert_eq!(said.code, 2, "{said:?}");
            assert!(!said.err.contains(&unknown), "{said:?}");
        }
        let said = place.run(&format!("show --key={unknown}"));
        assert!(said.code == 2 && !said.err.contains(&unknown), "{said:?}");
    }
}

/// Presented on the command line, a canary key is an unknown one, too.
#[tokio::test]
async fn a_canary_key_is_issued_and_unknown_to_verify() {
    for place in Place::all().await {
        let (canary, id) = place.issue("--expires never --canary");
        let (secret, _) = place.issue("--expires never");
        place.done(&format!("revoke {}", place.issue("--expires never").1));
        let (code, verdict) = place.verify(&canary);
        assert_eq!((code, &verdict["reason"]), (5, &"unknown".into()), "{verdict}");
        assert_eq!((&verdict["key_id"], &verdict["http_status"]), (&Value::Null, &401.into()));
        assert_eq!(place.verify(&secret).0, 0);
        assert_eq!(place.json(&format!("show {id}"))["kind"], "canary");
        assert!(place.done(&format!("show {id}")).out.contains("canary: always refused"));
        for refused in ["--plan gold", "--rate-limit 1/s", "--network 203.0.113.0/24"] {
            let said =
                place.run(&format!("issue --consumer acme --expires never --canary {refused}"));
            assert_ne!(said.code, 0, "{said:?}");
        }
        assert_eq!(place.run("doctor").code, 0, "{:?}", place.run("doctor"));
    }
}

#[test]
fn verify_names_the_formats_that_it_checks() {
    let place = Place::sqlite();
    place.done("migrate");
    let (key, _) = place.issue("--expires 1d");
    let verified = place.fed("verify --key-prefix sk_live_ --accept hex:64:old-", &key);
    assert_eq!(verified.code, 0, "{verified:?}");
    let by = "accepted by a service whose formats are sk_live_, hex:64:old-";
    assert!(verified.out.contains(by), "{verified:?}");
    assert_eq!(place.verify(&key).1["accepted_formats"], json!(["sk_live_"]));

    let (key, _) = place.issue("--expires 1d --key-prefix acme_test_");
    let rejected = place.fed("verify", &key);
    assert_eq!(rejected.code, 5, "{rejected:?}");
    for text in ["the prefix acme_test_,", "checked are sk_live_:", "--key-prefix acme_test_"] {
        assert!(rejected.out.contains(text), "{rejected:?}");
    }
    assert_eq!(place.verify(&key).1["key_prefix"], "acme_test_");
    // What is mistyped may be a part of a secret.
    let mistyped = key.replace("acme_", "acmd_");
    assert_eq!(place.verify(&mistyped).1["key_prefix"], Value::Null);
    assert!(!place.fed("verify", &mistyped).out.contains("acmd"));
}

/// What `sh` makes of a command with `key` as `$0`.
fn hashed(command: &str, key: &str) -> String {
    let output = Command::new("sh").args(["-c", command, key]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Keys as other systems make them are verified as by a service that accepts their format.
#[test]
fn verify_decides_by_the_formats_of_other_systems() {
    let place = Place::sqlite();
    place.done("migrate");
    let whole = r#"printf %s "$0" | sha256sum"#;
    let secret = r#"printf %s "${0#*|}" | sha256sum"#;
    let sha512 = r#"printf %s "$0" | openssl dgst -sha512 -binary | sha256sum"#;
    let alnum = "Ab3dEf9hZ0".repeat(4);
    let uuid = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
    for (format, key, hash) in [
        ("hex:64", "0f".repeat(32), whole),
        ("hex:32:old-", format!("old-{}", "0f".repeat(16)), whole),
        ("base64url:43", format!("{alnum}-_a"), whole),
        ("base64:43=", format!("{alnum}+/a="), whole),
        ("alnum:40", alnum.clone(), whole),
        ("[A-Za-z0-9]:40", format!("{}x", &alnum[1..]), whole),
        ("uuid", uuid.to_owned(), whole),
        ("uuid", uuid.to_uppercase(), whole),
        ("sanctum", "17|AbCdEfGhIjKlMnOpQrStUvWxYz0123456789abcdf8c8ab1e".to_owned(), secret),
        ("alnum:40,id=digits:|,hash=secret", format!("3|{alnum}"), secret),
        ("alnum:32,id=alnum:8:.,digest=sha512", format!("Ab3dEf9h.{}", &alnum[8..]), sha512),
    ] {
        let hash = hashed(hash, &key);
        // Two keys are hashed alike, and one of them is known then.
        place.done(&format!("import --hash {hash} --consumer acme --expires 1d"));
        let verify = |options: &str, key: &str| place.fed(&format!("verify {options}"), key).code;
        assert_eq!(verify(&format!("--accept {format}"), &key), 0, "{format}");
        assert_eq!(verify(&format!("--accept hex:40 --accept {format}"), &key), 0, "{format}");
        assert_eq!(verify("", &key), 5, "{format} is not accepted");
        let longer = format!("{key}0");
        assert_eq!(verify(&format!("--accept {format}"), &longer), 5, "{format}");
        let mut other = key.clone();
        let last = other.rfind(['a', '0', 'D', '9', 'h', 'f']).unwrap();
        other.replace_range(last..=last, "1");
        assert_eq!(verify(&format!("--accept {format}"), &other), 5, "{format}: unknown");
    }
    for (format, why) in [
        ("hex:31", "fewer than 128 bits"),
        ("alnum:21", "fewer than 128 bits"),
        ("hex", "unknown alphabet"),
        ("hex:64,digest=md5", "unknown option"),
        ("hex:64:a,b", "unknown option"),
        ("base64:41=", "only base64 is padded"),
    ] {
        let said = place.fed(&format!("verify --accept {format}"), "key");
        assert!(said.code == 2 && said.err.contains(why), "{said:?}");
    }
}

#[test]
fn import_takes_the_digests_of_accepted_formats_and_refuses_what_none_of_them_has() {
    let place = Place::sqlite();
    place.done("migrate");
    let django = format!("Ab3dEf9h.{}", "Ab3dEf9hZ0aB1cD2".repeat(2));
    let sha512 = hashed(r#"printf %s "$0" | sha512sum"#, &django);
    let line = |hash: &str, shows: &str| {
        format!(r#"{{"hash": "{hash}", "consumer_id": "acme", "expires": "1d"{shows}}}"#)
    };
    let accept = "--accept alnum:32,id=alnum:8:.,digest=sha512";
    let import = |accept: &str, line: &str| place.fed(&format!("import - {accept}"), line);

    for (shows, why) in [
        (r#", "prefix": "sk_live_""#, "no key of a format that --accept names"),
        (r#", "prefix": "Ab3dEf9h", "last4": "c.D2""#, "no key of a format that --accept names"),
    ] {
        let said = import(accept, &line(&sha512, shows));
        assert!(said.code == 2 && said.err.contains(why), "{said:?}");
    }
    let said = import(accept, &line(&sha512[..64], ""));
    assert!(said.code == 2 && said.err.contains("must be 64 bytes"), "{said:?}");
    let both = "--accept hex:32,digest=double-sha256 --accept alnum:32,digest=sha512";
    let said = import(both, &line(&sha512[..64], ""));
    assert_eq!(said.code, 0, "the length tells which of both it is: {said:?}");
    let custom = "--accept hex:32 --accept alnum:32 --accept sk_live_";
    assert_eq!(import(custom, &line(&"a".repeat(64), "")).code, 0, "all have the same digest");
    assert_eq!(place.fed(&format!("verify {accept}"), &django).code, 5, "nothing was imported");

    let shows = r#", "prefix": "Ab3dEf9h", "last4": "1cD2""#;
    assert_eq!(import(accept, &line(&sha512, shows)).code, 0);
    assert_eq!(place.fed(&format!("verify {accept}"), &django).code, 0);

    let one = format!("import --hash {sha512} --consumer acme --expires 1d --prefix sk_");
    let said = place.run(&format!("{one} {accept}"));
    assert!(said.code == 2 && said.err.contains("no key of a format"), "{said:?}");
}

#[tokio::test]
async fn a_key_goes_to_a_file_that_only_its_owner_reads() {
    for place in Place::all().await {
        let said = place.done("issue --consumer acme --expires 1d --out acme.key");
        assert!(said.out.is_empty(), "{said:?}");
        let key = place.read("acme.key");
        assert_eq!(key.len(), 58, "{key:?}");
        let mode = fs::metadata(place.folder.path().join("acme.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(place.verify(key.trim()).0, 0);

        let before = count(&place);
        for out in ["acme.key", "no/such/folder.key"] {
            let said = place.run(&format!("issue --consumer acme --expires 1d --out {out}"));
            assert_eq!(said.code, 1, "{said:?}");
            assert!(said.err.contains(out), "{said:?}");
        }
        assert_eq!(place.read("acme.key"), key);
        assert_eq!(count(&place), before, "no key was issued");

        // A refusal leaves no file behind.
        assert_eq!(
            place.run(&format!("rotate {UNKNOWN_ID} --key-prefix a_ --out new.key")).code,
            3
        );
        assert!(!place.folder.path().join("new.key").exists());

        let answer = place.done("issue --consumer acme --expires 1d --out acme.json --json");
        assert!(answer.out.is_empty(), "{answer:?}");
        let answer: Value = serde_json::from_str(&place.read("acme.json")).unwrap();
        assert_eq!(place.verify(&text(&answer, "key")).0, 0);
    }
}

#[tokio::test]
async fn a_key_that_nobody_would_see_is_not_issued() {
    let place = Place::sqlite();
    place.done("migrate");
    let issue = ["issue", "--consumer", "acme", "--expires", "1d"];
    let output = place.command(&issue).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let output = said(output.unwrap());
    assert_eq!(output.code, 1, "{output:?}");
    let closed = Command::new("/bin/sh")
        .args(["-c", r#"exec "$@" >&-"#, "sh", env!("CARGO_BIN_EXE_api-key")])
        .args(issue)
        .env("DATABASE_URL", &place.url)
        .output();
    assert_eq!(closed.unwrap().status.code(), Some(1));
    assert_eq!(count(&place), 0);

    // Only writing shows that this device is full.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = place.command(&issue).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let output = said(output);
    assert_eq!(output.code, 1, "{output:?}");
    let id = text(&place.json("list")["keys"][0], "id");
    assert!(output.err.contains(&format!("api-key revoke {id}")), "{output:?}");
}

#[tokio::test]
async fn limits_of_every_kind_are_written_in_one_word() {
    let place = Place::sqlite();
    place.done("migrate");
    place.done(
        "plan set pro 600/min:20 10/s 1000/day:strict 100/hour:strict,10,name=h \
         5000/d:sliding:per-consumer:name=team",
    );
    let plan = place.json("plan list");
    assert_eq!(
        plan["plans"][0]["rate_limits"],
        serde_json::json!([
            { "name": "second", "limit": 10, "window_ms": 1_000, "burst": 10 },
            { "name": "minute", "limit": 600, "window_ms": 60_000, "burst": 20 },
            { "name": "h", "limit": 100, "window_ms": 3_600_000, "burst": 10, "strict": true },
            { "name": "day", "limit": 1_000, "window_ms": 86_400_000, "burst": 100, "strict": true },
            { "name": "team", "limit": 5_000, "window_ms": 86_400_000, "sliding": true,
              "counted_per": "consumer" },
        ])
    );
    let shown = place.done("plan list").out;
    for limit in [
        "10 in 1s; 600 in 60s, 20 at once; 100 in 3600s, 10 at once",
        "5000 in 86400s, sliding, all keys of the consumer together",
    ] {
        assert!(shown.contains(limit), "{shown}");
    }
}

#[tokio::test]
async fn what_is_beyond_its_bounds_is_refused_with_the_bound() {
    let place = Place::sqlite();
    place.done("migrate");
    let nine: String = (1..=9).map(|at| format!(" --rate-limit {at}/min:name=q{at}")).collect();
    let metadata = format!("{}1{}", r#"{"a":"#.repeat(33), "}".repeat(33));
    let networks = (0..65).map(|at| format!("10.0.{at}.0/24")).collect::<Vec<_>>().join(",");
    let tags = (0..33).map(|at| format!("t{at}")).collect::<Vec<_>>().join(",");
    let (_, id) = place.issue("--expires 1d");
    for (line, bound) in [
        (format!("issue --consumer acme --expires 1d{nine}"), "at most 8 quotas"),
        (format!("update {id}{nine}"), "at most 8 quotas"),
        (format!("plan set pro{}", nine.replace(" --rate-limit", "")), "at most 8 quotas"),
        ("issue --consumer acme --expires 1d --rate-limit 1/day:500".to_owned(), "400 days"),
        (format!("issue --consumer acme --expires 1d --metadata {metadata}"), "32 levels"),
        (format!("issue --consumer acme --expires 1d --network {networks}"), "at most 64 networks"),
        (format!("update {id} --tag {tags}"), "at most 32 tags"),
        ("issue --consumer acme --expires 1d --network 10.0.0.1/8".to_owned(), "write 10.0.0.0/8"),
        ("issue --consumer acme --expires 1d --origin https://a".to_owned(), "--publishable"),
        ("issue --consumer acme --expires 1d --publishable".to_owned(), "--origin"),
        (format!("update {id} --origin https://a"), "only a publishable key has origins"),
    ] {
        let said = place.run(&line);
        assert_eq!(said.code, 2, "{line}: {said:?}");
        assert!(said.err.contains(bound), "{line}: {said:?}");
    }
    let window = |window: u64, count: usize| {
        let quota = |at| json!({ "name": format!("q{at}"), "limit": 1, "window_ms": window });
        (0..count).map(quota).collect::<Value>()
    };
    let levels: Value = serde_json::from_str(&metadata).unwrap();
    for (field, value, bound) in [
        ("rate_limits", window(1_000, 9), "at most 8 quotas"),
        ("rate_limits", window(401 * 86_400_000, 1), "400 days"),
        ("metadata", levels, "32 levels"),
        ("networks", json!(["10.0.0.1/8"]), "write 10.0.0.0/8"),
        ("networks", json!("10.0.0.0/8"), "must be a list"),
        ("tags", json!(["two words"]), "at most 32 tags"),
        ("origins", json!(["https://shop.example"]), "of the kind"),
        ("kind", json!("public"), "secret, publishable or canary"),
    ] {
        let mut line = json!({ "hash": hash(1), "consumer_id": "acme", "expires": "1d" });
        line[field] = value;
        let said = place.fed("import -", &format!("{line}\n"));
        assert_eq!(said.code, 2, "{field}: {said:?}");
        assert!(said.err.contains("line 1") && said.err.contains(bound), "{field}: {said:?}");
    }
    let long = json!({ "hash": hash(1), "consumer_id": "x".repeat(300_000), "expires": "1d" });
    let said = place.fed("import -", &format!("{long}\n"));
    assert!(said.code == 2 && said.err.contains("longer than 256 KiB"), "{}", said.code);
    assert_eq!(count(&place), 1);
}

#[tokio::test]
async fn a_key_is_bound_to_networks_and_origins_and_found_by_its_tags() {
    let place = Place::sqlite();
    place.done("migrate");
    let (key, id) = place
        .issue("--expires 1d --network 10.0.0.0/8,2001:db8::1 --tag mobile --tag team:billing");
    let shown = place.json(&format!("show {id}"));
    assert_eq!(shown["networks"], json!(["10.0.0.0/8", "2001:db8::1/128"]));
    assert_eq!(
        (&shown["tags"], &shown["kind"]),
        (&json!(["mobile", "team:billing"]), &json!("secret"))
    );
    let table = place.done(&format!("show {id}")).out;
    assert!(table.contains("10.0.0.0/8 2001:db8::1/128") && table.contains("mobile"), "{table}");

    let listed =
        |tag: &str| place.json(&format!("list --tag {tag}"))["keys"].as_array().unwrap().len();
    assert_eq!((listed("mobile"), listed("team:billing"), listed("other")), (1, 1, 0));
    place.done(&format!("update {id} --no-networks --tag other"));
    assert_eq!((listed("mobile"), listed("other")), (0, 1));
    assert_eq!(place.json(&format!("show {id}"))["networks"], json!([]));
    place.done(&format!("update {id} --network 192.0.2.0/24 --no-tags"));
    assert_eq!(place.json(&format!("show {id}"))["tags"], json!([]));

    let verify = |key: &str, options: &str| place.fed(&format!("verify {options}"), key);
    let said = verify(&key, "");
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.out.contains("--address"), "{said:?}");
    assert_eq!(verify(&key, "--address 192.0.2.7").code, 0);
    assert_eq!(verify(&key, "--address 10.0.0.7").code, 5);

    let (public, id) = place.issue("--expires 1d --publishable --origin https://shop.example");
    assert_eq!(place.json(&format!("show {id}"))["kind"], "publishable");
    assert_eq!(verify(&public, "").code, 5);
    assert_eq!(verify(&public, "--origin https://shop.example").code, 0);
    place.done(&format!("update {id} --origin https://other.example"));
    let said = verify(&public, "--origin https://shop.example --json");
    assert_eq!(said.code, 5);
    let said: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(
        (&said["reason"], &said["http_status"]),
        (&json!("origin_not_allowed"), &json!(403))
    );
    let line = json!({
        "hash": hash(9), "consumer_id": "acme", "expires": "1d", "networks": ["192.0.2.1"],
        "tags": ["old"], "kind": "publishable", "origins": ["https://shop.example"],
    });
    assert_eq!(place.fed("import -", &format!("{line}\n")).code, 0);
    assert_eq!(listed("old"), 1);
}

#[tokio::test]
async fn rows_that_cannot_be_read_are_told_of_and_shown() {
    let place = Place::sqlite();
    place.done("migrate");
    let ids = [0; 3].map(|_| place.issue("--expires 1d").1);
    let deep = format!("{}1{}", r#"{"a":"#.repeat(40), "}".repeat(40));
    let mut connection = SqliteConnection::connect(&place.url).await.unwrap();
    let spoil = format!(
        "update api_keys set metadata = '{deep}' where id = unhex('{}', '-');
        insert into api_key_events (action, actor, changes) values ('frozen', 'later', '{{}}')",
        ids[1]
    );
    raw_sql(AssertSqlSafe(spoil)).execute(&mut connection).await.unwrap();
    for (command, rows, bad) in [("list", "keys", &*ids[1]), ("events", "events", "frozen")] {
        let said = place.done(command);
        assert!(said.err.contains("left out of the table"), "{said:?}");
        let answer = place.json(command);
        let [row] = &answer["invalid"].as_array().unwrap()[..] else { panic!("{answer}") };
        assert!(row.to_string().contains(bad), "{row}");
        let shown = answer[rows].as_array().unwrap().len();
        // Three keys were issued, and one was changed in SQL.
        assert_eq!(shown, if command == "list" { 2 } else { 4 });
    }
}

#[tokio::test]
async fn mistakes_are_named_with_an_example() {
    let place = Place::sqlite();
    place.done("migrate");
    for (line, example) in [
        ("issue --consumer acme", "--expires"),
        ("issue --consumer acme --expires soon", "30d"),
        ("issue --consumer acme --expires 2026-13-31", "2026-12-31"),
        ("issue --consumer acme --expires 3mo", "30d"),
        ("issue --consumer acme --expires=-1d", "30d"),
        ("issue --consumer acme --expires 0d", "a lifetime longer than zero"),
        ("rotate 0190d4c0-0000-7000-8000-000000000000 --expires 0s", "a lifetime longer than zero"),
        ("issue --consumer acme --expires 2020-01-01", "--expires: must not be in the past"),
        ("issue --consumer acme --expires 1d --scope a\"b", "--scope"),
        ("issue --consumer acme --expires 1d --rate-limit many", "600/min"),
        ("issue --consumer acme --expires 1d --rate-limit 0/s", "zero"),
        ("issue --consumer acme --expires 1d --rate-limit 1/s --rate-limit 2/s", "1000/day"),
        ("issue --consumer acme --expires 1d --rate-limit 9/s:often", "1000/day:sliding"),
        ("issue --consumer acme --expires 1d --rate-limit 9/s:strict:10", "at most its limit"),
        (
            "issue --consumer acme --expires 1d --rate-limit 9/s:sliding:8",
            "burst equal to its limit",
        ),
        ("issue --consumer acme --expires 1d --rate-limit 9/s:sliding,strict", "sliding or strict"),
        ("issue --consumer acme --expires 1d --rate-limit 9/s:name=a/b", "1 to 64 letters"),
        ("issue --consumer acme --expires 1d --metadata []", "plan"),
        ("issue --consumer acme --expires 1d --plan a/b", "--plan: a plan name must be 1 to 64"),
        ("plan", "set"),
        ("plan set pro", "LIMIT"),
        ("plan set pro many", "600/min"),
        ("plan set pro 1/s 2/s", "1000/day"),
        ("plan set pro 1/s unlimited", "\"unlimited\" excludes other limits"),
        ("plan set a/b 1/s", "1 to 64 letters"),
        ("plan remove", "NAME"),
        ("issue --consumer acme --expires 1d --key-prefix sk-live", "sk_live_"),
        ("issue --consumer acme --expires 1d --scope a,,b", "--scope"),
        ("list --scope a,b", "one scope"),
        ("list --status odd", "active"),
        ("list --limit 0", "1,000"),
        ("show 42", "UUID"),
        ("revoke", "--consumer"),
        ("revoke --consumer acme", "--yes"),
        ("update 0190d4c0-0000-7000-8000-000000000000", "--name"),
        ("prune", "--ended-before"),
        ("issue --consumer a --expires 1d --database-url mysql://a:geheim@b", "postgres://"),
    ] {
        let said = place.run(line);
        assert_eq!(said.code, 2, "{line}: {said:?}");
        assert!(said.err.contains(example), "{line}: {said:?}");
        assert!(said.out.is_empty() && !said.err.contains("geheim"), "{line}: {said:?}");
    }
    assert_eq!(place.run(&format!("show {UNKNOWN_ID}")).code, 3);
    assert_eq!(place.run("migrate --database-url").code, 2);
    assert_eq!(count(&place), 0);
}

#[test]
fn scopes_are_separated_by_commas() {
    let place = Place::sqlite();
    place.done("migrate");
    let (key, id) = place.issue("--expires 1d --scope orders:read,orders:write --scope admin");
    let scopes = json!(["admin", "orders:read", "orders:write"]);
    assert_eq!(place.json(&format!("show {id}"))["scopes"], scopes);
    assert_eq!(place.fed("verify --scope orders:read,admin", &key).code, 0);
    let lacking = place.fed("verify --scope admin,orders:delete", &key);
    assert!(lacking.code == 5 && lacking.out.contains("orders:delete"), "{lacking:?}");
    assert_eq!(place.json(&format!("update {id} --scope b,a"))["scopes"], json!(["a", "b"]));

    let mut line = json!({ "hash": hash(1), "consumer_id": "acme", "expires": "1d" });
    line["scopes"] = json!(["orders:read,orders:write"]);
    let said = place.fed("import -", &format!("{line}\n"));
    assert!(said.code == 2 && said.err.contains("scopes: must be separate"), "{said:?}");
}

#[tokio::test]
async fn times_are_written_as_people_write_them() {
    let place = Place::sqlite();
    place.done("migrate");
    for (written, meant) in [
        ("2126-12-31", "2126-12-31T00:00:00Z"),
        ("2126-12-31T12:00Z", "2126-12-31T12:00:00Z"),
        ("2126-12-31T12:00+02:00", "2126-12-31T10:00:00Z"),
        ("2126-12-31T12:00:01", "2126-12-31T12:00:01Z"),
        ("9999-12-31", "9999-12-31T00:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
    ] {
        let answer = place.json(&format!("issue --consumer acme --expires {written}"));
        assert_eq!(answer["expires_at"], meant);
    }
    assert!(place.done("list").out.contains("9999-12-31T23:59:59Z"));
    let beyond = place.run("issue --consumer acme --expires 9999-12-31T23:59:59.5Z");
    assert!(beyond.code == 2 && beyond.err.contains("year 9999"), "{beyond:?}");
    for written in ["90d", "12h", "1w", "10m"] {
        assert_ne!(
            place.json(&format!("issue --consumer a --expires {written}"))["expires_at"],
            Value::Null
        );
    }
    assert_eq!(place.json("issue --consumer a --expires never")["expires_at"], Value::Null);
}

#[tokio::test]
async fn the_database_is_named_by_option_environment_or_file() {
    let place = Place::sqlite();
    let mut bare = place.command(&["list"]);
    let none = said(bare.env_remove("DATABASE_URL").output().unwrap());
    assert_eq!(none.code, 2, "{none:?}");
    assert!(none.err.contains("DATABASE_URL"), "{none:?}");

    place.write(".env", "API_KEY_PREFIX=sk_env_\nDATABASE_URL=sqlite:from-file.db\n");
    let migrated = place.command(&["migrate"]).env_remove("DATABASE_URL").output().unwrap();
    assert_eq!(said(migrated).code, 0);
    assert!(place.folder.path().join("from-file.db").exists());
    let issued = place
        .command(&["issue", "--consumer", "a", "--expires", "1d"])
        .env_remove("DATABASE_URL")
        .output()
        .unwrap();
    assert!(said(issued).out.starts_with("sk_env_"));

    place.write(".env", "DATABASE_URL = postgres://a:geheim@b/c d\n");
    let said = said(place.command(&["list"]).output().unwrap());
    assert!(said.code == 1 && !said.err.contains("geheim"), "{said:?}");

    // No error contains a password.
    place.write(".env", "");
    let said = place.run("list --database-url postgres://a:geheim@127.0.0.1:1/c");
    assert!(said.code == 1 && !said.err.contains("geheim"), "{said:?}");
    assert!(!place.done("--help").out.contains(&place.url), "help shows no URL");
    // A missing file is not created by mistake.
    assert_eq!(place.run("list --database-url sqlite:typo.db").code, 1);
    assert!(!place.folder.path().join("typo.db").exists());
}

#[test]
fn a_file_of_settings_is_named_and_only_that_of_the_user_or_root_is_read() {
    let place = Place::sqlite();
    let settings = place.folder.path().join(".env");
    place.write(".env", "DATABASE_URL=sqlite:from-file.db\n");
    let below = place.folder.path().join("below");
    fs::create_dir(&below).unwrap();
    let run = || {
        let mut command = place.command(&["migrate"]);
        said(command.env_remove("DATABASE_URL").current_dir(&below).output().unwrap())
    };
    let read = run();
    assert_eq!(read.code, 0, "{read:?}");
    let name = settings.canonicalize().unwrap().display().to_string();
    assert!(read.err.contains(&format!("settings read from {name}")), "{read:?}");
    assert!(below.join("from-file.db").exists());
    // A file that sets nothing is not mentioned.
    assert!(!place.done("migrate").err.contains(".env"));

    // Only root can give a file to another user.
    if chown(&settings, Some(65_534), None).is_ok() {
        let foreign = run();
        assert_eq!(foreign.code, 2, "{foreign:?}");
        let ignored = format!("ignored {name}: it belongs to another user");
        assert!(foreign.err.contains(&ignored), "{foreign:?}");
    }
}

#[test]
fn a_new_database_file_is_readable_by_its_owner_alone() {
    let place = Place::sqlite();
    for url in ["sqlite:plain.db", "sqlite:with%20space.db", "sqlite:named.db?mode=rwc"] {
        place.done(&format!("migrate --database-url {url}"));
        place.done(&format!("issue --consumer acme --expires 1d --database-url {url}"));
    }
    let files: Vec<_> = fs::read_dir(place.folder.path()).unwrap().map(Result::unwrap).collect();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
}

#[test]
fn an_error_of_a_migration_does_not_advise_a_migration() {
    let place = Place::sqlite();
    let failed = place.run("migrate --database-url sqlite:no/such/folder/keys.db");
    assert!(failed.code == 1 && failed.err.contains("Does the folder exist"), "{failed:?}");
    assert!(!failed.err.contains("api-key migrate"), "{failed:?}");
    let missing = place.run("list --database-url sqlite:keys.db");
    assert!(missing.code == 1 && missing.err.contains("`api-key migrate` creates"), "{missing:?}");
}

#[test]
fn the_audit_has_the_name_of_the_user() {
    let place = Place::sqlite();
    place.done("migrate");
    let mut issue = place.command(&["issue", "--consumer", "acme", "--expires", "1d"]);
    assert_eq!(said(issue.env_remove("USER").output().unwrap()).code, 0);
    let user = Command::new("id").arg("-un").output().unwrap().stdout;
    let user = String::from_utf8(user).unwrap();
    let actor = text(&place.json("events")["events"][0], "actor");
    assert_eq!(actor.split('@').next(), Some(user.trim()));
}

#[tokio::test]
async fn keys_that_the_application_refers_to_are_left_out_and_counted() {
    for place in Place::all().await {
        let ids = [0, 1, 2].map(|_| place.issue("--expires 1d").1);
        place.done("revoke --consumer acme --yes");
        let key_id = if place.url.starts_with("sqlite") { "blob" } else { "uuid" };
        let literal = if key_id == "blob" {
            format!("x'{}'", ids[0].replace('-', ""))
        } else {
            format!("'{}'", ids[0])
        };
        place
            .sql(&format!(
                "create table apps (key_id {key_id} references api_keys (id));
                insert into apps values ({literal})"
            ))
            .await;
        let said = place.done("prune --ended-before 0s");
        assert!(said.err.contains("deleted 2 keys"), "{said:?}");
        assert!(said.err.contains("1 ended keys were not deleted"), "{said:?}");
        let pruned = place.json("prune --ended-before 0s");
        assert_eq!((&pruned["keys"], &pruned["skipped"]), (&0.into(), &1.into()), "{pruned}");
        place.sql("delete from apps").await;
        let pruned = place.json("prune --ended-before 0s");
        assert_eq!((&pruned["keys"], &pruned["skipped"]), (&1.into(), &0.into()), "{pruned}");
    }
}

#[tokio::test]
async fn hours_of_use_are_pruned_after_35_days_or_another_age() {
    for place in Place::all().await {
        let (hour, days_ago) = match place.url.starts_with("sqlite") {
            true => ("zeroblob(16)", "(unixepoch() - {} * 86400) * 1000000"),
            false => ("gen_random_uuid()", "now() - interval '{} days'"),
        };
        for age in [1, 34, 36, 90] {
            let values = format!(
                "values ({hour}, {}, 'acme', 1, 0, 0, 0, 1)",
                days_ago.replace("{}", &age.to_string())
            );
            place.sql(&format!("insert into api_key_usage_hourly {values}")).await;
        }
        assert_eq!(place.json("prune --ended-before 1d")["hours"], 2);
        assert_eq!(place.json("prune --ended-before 1d")["hours"], 0);
        let said = place.done("prune --ended-before 1d --hours-before 30d");
        assert!(said.err.contains("deleted 1 rows of hourly use"), "{said:?}");
    }
}

#[tokio::test]
async fn a_plan_that_is_changed_is_in_the_audit() {
    for place in Place::all().await {
        place.done("plan set pro 60/min");
        place.done("plan set pro 90/min");
        place.done("plan remove pro");
        let events = place.json("events");
        let actions: Vec<_> =
            events["events"].as_array().unwrap().iter().map(|e| &e["action"]).collect();
        assert_eq!(actions, ["plan_removed", "plan_updated", "plan_created"]);
        assert!(text(&events["events"][0], "actor").starts_with("ann@"), "{events}");
    }
}

#[tokio::test]
async fn many_are_revoked_at_once() {
    for place in Place::all().await {
        place.issue("--expires 1d");
        place.issue("--expires 1d --key-prefix sk_test_");
        place.done("issue --consumer other --expires 1d");
        assert_eq!(place.json("revoke --prefix sk_test_ --yes")["revoked"], 1);
        assert_eq!(place.json("revoke --consumer acme --yes")["revoked"], 1);
        assert_eq!(place.json("list --status active")["keys"].as_array().unwrap().len(), 1);
        let page = place.json("list --limit 2");
        let rest = place.json(&format!("list --limit 2 --after {}", text(&page, "next")));
        assert_eq!(rest["keys"].as_array().unwrap().len(), 1);
    }
}

const POLICY: &str = r#"{
    "rules": { "max_lifetime": "90d", "allowed_scopes": ["a", "b"] },
    "plans": { "free": { "max_live_keys": 1 } }
}"#;

#[tokio::test]
async fn a_key_beyond_the_issue_policy_needs_a_reason_that_the_audit_keeps() {
    for place in Place::all().await {
        place.write("policy.json", POLICY);
        let (_, old) = place.issue("--expires 365d --name old --scope x");
        // As an option, from the environment, and from a file `.env`.
        let option = place.run("issue --consumer acme --expires 91d --policy policy.json");
        let mut command = place.command(&["issue", "--consumer", "acme", "--expires", "91d"]);
        let environment = said(command.env("API_KEY_POLICY", "policy.json").output().unwrap());
        place.write(".env", "API_KEY_POLICY=policy.json\n");
        let file = place.run("issue --consumer acme --expires 91d");
        for refused in [option, environment, file] {
            assert_eq!((refused.code, &*refused.out), (2, ""), "{refused:?}");
            assert!(refused.err.contains("--expires: the issue policy allows"), "{refused:?}");
            assert!(refused.err.contains("at most 90d"), "{refused:?}");
            assert!(refused.err.contains("--override REASON"), "{refused:?}");
        }
        place.write("import.jsonl", &import_line(1).replace("30d", "91d"));
        for (line, option) in [
            ("issue --consumer acme --expires 1d --scope x", "--scope"),
            (&format!("update {old} --expires 366d"), "--expires"),
            (&format!("rotate {old}"), "--scope"),
            ("import import.jsonl", "line 1: expires_at"),
        ] {
            let refused = place.run(line);
            assert_eq!(refused.code, 2, "{line}: {refused:?}");
            assert!(refused.err.contains(option), "{line}: {refused:?}");
        }
        place.done("issue --consumer acme --expires 90d --scope a,b");

        let answer = place.json("issue --consumer new --expires 91d --override contract-7");
        let id = text(&answer, "id");
        let events = place.json(&format!("events {id}"));
        let overridden = &events["events"][0]["changes"]["policy_override"]["to"];
        assert_eq!(overridden["reason"], json!("contract-7"), "{events}");
        assert!(overridden["exceeded"][0].as_str().unwrap().contains("at most 90d"), "{events}");
        place.done(&format!("update {old} --expires 366d --override contract-7"));
        place.done(&format!("rotate {old} --override contract-7"));
        place.done("import import.jsonl --override contract-7");

        place.done("issue --consumer b --expires 1d --plan free");
        let second = place.run("issue --consumer b --expires 1d --plan free");
        assert_eq!(second.code, 4, "{second:?}");
        assert!(second.err.contains("at most 1 keys"), "{second:?}");
        assert!(second.err.contains("--override REASON"), "{second:?}");
        // Commands that give nothing do not read it.
        place.write("policy.json", "{");
        place.done("list");
    }
}

const SCOPES: &str = r#"{"scopes": [
    { "name": "orders:read", "description": "Read orders." },
    { "name": "orders:write", "implies": ["orders:read"] }
]}"#;

#[tokio::test]
async fn a_scope_that_the_service_lacks_is_refused_and_the_error_says_which_it_has() {
    for place in Place::all().await {
        place.write("scopes.json", SCOPES);
        let (_, old) = place.issue("--expires 30d --scope legacy");
        place.write("import.jsonl", &import_line(1));
        let issue = "issue --consumer acme --expires 1d --scope orders:raed";
        // As an option, from the environment, and from a file `.env`.
        let option = place.run(&format!("{issue} --scope-catalog scopes.json"));
        let words: Vec<_> = issue.split(' ').collect();
        let mut command = place.command(&words);
        let environment = said(command.env("API_KEY_SCOPES", "scopes.json").output().unwrap());
        place.write(".env", "API_KEY_SCOPES=scopes.json\n");
        let update = place.run(&format!("update {old} --scope legacy,orders:raed"));
        for refused in [option, environment, place.run(issue), update] {
            assert_eq!((refused.code, &*refused.out), (2, ""), "{refused:?}");
            let says = "--scope: `orders:raed` is not a scope of this service, which has: \
                orders:read, orders:write";
            assert!(refused.err.contains(says), "{refused:?}");
        }
        let overridden = place.run(&format!("{issue} --override because"));
        assert_eq!(overridden.code, 2, "{overridden:?}");
        place.done("issue --consumer acme --expires 1d --scope orders:write");
        // What it has, it keeps.
        place.done(&format!("update {old} --scope legacy,orders:read"));
        place.done(&format!("rotate {old}"));
        place.write("scopes.json", r#"{"scopes": [{ "name": "a", "implies": ["a"] }]}"#);
        let unreadable = place.run("issue --consumer acme --expires 1d");
        assert_eq!(unreadable.code, 2, "{unreadable:?}");
        let says = "--scope-catalog: scopes.json: not a scope catalogue: the scope `a` implies";
        assert!(unreadable.err.contains(says), "{unreadable:?}");
    }
}

#[test]
fn a_policy_that_cannot_be_read_issues_nothing() {
    let place = Place::sqlite();
    place.done("migrate");
    place.write("policy.json", r#"{"rules": {"max_livetime": "90d"}}"#);
    for (options, code, says) in [
        ("--policy missing.json", 1, "--policy: cannot read missing.json"),
        ("--policy policy.json", 2, "--policy: policy.json: not an issue policy"),
        ("--override because", 2, "there is no policy to override"),
        ("--policy policy.json --override=", 2, "must not be empty"),
    ] {
        let refused = place.run(&format!("issue --consumer acme --expires 1d {options}"));
        assert_eq!(refused.code, code, "{refused:?}");
        assert!(refused.err.contains(says), "{refused:?}");
    }
    let empty = {
        let mut command = place.command(&["issue", "--consumer", "acme", "--expires", "1d"]);
        said(command.env("API_KEY_POLICY", "").output().unwrap())
    };
    assert_eq!(empty.code, 0, "{empty:?}");
    assert_eq!(count(&place), 1);
}

#[tokio::test]
async fn a_plan_is_defined_given_changed_and_removed() {
    for place in Place::all().await {
        assert_eq!(place.json("plan list"), json!({ "plans": [] }));
        let free = place.json("plan set free 10/min");
        let of_free = json!([{ "name": "minute", "limit": 10, "window_ms": 60_000, "burst": 10 }]);
        assert_eq!(free, json!({ "name": "free", "rate_limits": of_free }));
        place.done("plan set pro 600/min:20 100000/day");
        place.done("plan set Staff unlimited");
        let listed = place.done("plan list").out;
        let names: Vec<_> =
            listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(names, ["NAME", "Staff", "free", "pro"], "{listed}");
        assert!(listed.contains("unlimited") && listed.contains("20 at once"), "{listed}");

        let (_, id) = place.issue("--expires 1d --plan free");
        assert_eq!(place.json(&format!("show {id}"))["plan"], "free");
        let shown = place.done(&format!("show {id}")).out;
        assert!(shown.contains("free: 10 in 60s"), "{shown}");
        place.done("plan set free 20/min");
        let shown = place.done(&format!("show {id}")).out;
        assert!(shown.contains("free: 20 in 60s"), "{shown}");
        let listed = place.done("list").out;
        assert!(listed.contains("PLAN") && listed.contains("free"), "{listed}");

        assert_eq!(place.json(&format!("update {id} --plan other"))["plan"], "other");
        let shown = place.done(&format!("show {id}")).out;
        assert!(shown.contains("other: not defined here"), "{shown}");
        assert_eq!(place.json(&format!("update {id} --name ci"))["plan"], "other");
        assert_eq!(place.json(&format!("update {id} --no-plan"))["plan"], Value::Null);
        assert_eq!(place.json(&format!("update {id} --plan pro"))["plan"], "pro");
        let rotated = place.json(&format!("rotate {id}"));
        assert_eq!(
            (&rotated["plan"], &rotated["previous"]["plan"]),
            (&"pro".into(), &"pro".into())
        );

        let line = format!(
            "{{\"hash\":\"{}\",\"consumer_id\":\"old\",\"expires\":\"1d\",\"plan\":\"pro\"}}\n",
            hash(1)
        );
        assert_eq!(place.fed("import -", &line).code, 0);
        let one = format!("import --hash {} --consumer old --expires 1d --plan free", hash(2));
        place.done(&one);
        let imported = place.json("list --consumer old");
        let plans: Vec<_> =
            imported["keys"].as_array().unwrap().iter().map(|key| &key["plan"]).collect();
        assert_eq!(plans, ["free", "pro"]);

        assert_eq!(place.json("plan remove Staff"), json!({ "removed": true }));
        place.done("plan remove free");
        let again = place.run("plan remove free");
        assert_eq!((again.code, again.out.as_str()), (3, ""), "{again:?}");
        assert!(again.err.contains("no such plan"), "{again:?}");
        assert_eq!(place.json("plan list")["plans"].as_array().unwrap().len(), 1);
    }
}

/// The severity of each check of the doctor, and its exit code.
fn doctor(place: &Place) -> (i32, Vec<(String, String, String)>) {
    let said = place.run("doctor --json");
    let answer: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
    let findings = answer["findings"].as_array().unwrap().iter();
    let findings = findings.map(|finding| {
        assert_eq!(finding["severity"] == "ok", finding["advice"].is_null(), "{finding}");
        (text(finding, "check"), text(finding, "severity"), text(finding, "detail"))
    });
    (said.code, findings.collect())
}

/// The details of the findings that are not fine.
fn complaints(place: &Place) -> (i32, String) {
    let (code, findings) = doctor(place);
    let complaints = findings.into_iter().filter(|(_, severity, _)| severity != "ok");
    (
        code,
        complaints
            .map(|(check, severity, detail)| format!("{severity} {check} {detail};"))
            .collect(),
    )
}

#[tokio::test]
async fn the_doctor_finds_what_is_missing() {
    for place in [Place::sqlite(), Place::postgres().await] {
        place.write("keys.db", "");
        let (code, complaint) = complaints(&place);
        assert_eq!(code, 6);
        assert!(complaint.contains("problem schema there are no tables"), "{complaint}");
        place.done("migrate");
        assert_eq!(complaints(&place), (0, String::new()));
        assert!(place.done("doctor").out.starts_with("ok: "));

        place.sql("drop index api_keys_by_expiry").await;
        let (code, complaint) = complaints(&place);
        assert_eq!(code, 6);
        assert!(
            complaint.contains("problem indexes") && complaint.contains("api_keys_by_expiry"),
            "{complaint}"
        );

        let sqlite = place.url.starts_with("sqlite");
        let (trigger, drop) = if sqlite {
            ("api_keys_tell_delete", "drop trigger api_keys_tell_delete")
        } else {
            ("api_keys_tell_truncate", "drop trigger api_keys_tell_truncate on api_keys")
        };
        place.sql(drop).await;
        let (_, complaint) = complaints(&place);
        assert!(
            complaint.contains("problem triggers") && complaint.contains(trigger),
            "{complaint}"
        );

        place.sql("update _api_key_migrations set checksum = 1 where version = 2").await;
        let (code, complaint) = complaints(&place);
        assert_eq!(code, 6);
        assert!(complaint.contains("was changed"), "{complaint}");
    }
}

#[tokio::test]
async fn the_doctor_knows_every_part_of_the_tables() {
    for place in Place::all().await {
        // Without the indexes of primary keys and other constraints, which belong to the tables.
        let found: Vec<String> = if place.url.starts_with("sqlite") {
            let parts = "select type from sqlite_schema
                where sql is not null and type in ('trigger', 'index')";
            let mut connection = SqliteConnection::connect(&place.url).await.unwrap();
            sqlx::query_scalar(parts).fetch_all(&mut connection).await.unwrap()
        } else {
            let parts = "select 'trigger' from pg_trigger where not tgisinternal
                union all
                select 'function' from pg_proc where pronamespace = current_schema()::regnamespace
                union all
                select 'index' from pg_indexes where schemaname = current_schema()
                    and indexname not in (select conname from pg_constraint)";
            let mut connection = PgConnection::connect(&place.url).await.unwrap();
            sqlx::query_scalar(parts).fetch_all(&mut connection).await.unwrap()
        };
        let findings = doctor(&place).1;
        let checks: &[_] = if place.url.starts_with("sqlite") {
            &[("triggers", "trigger"), ("indexes", "index")]
        } else {
            &[("triggers", "trigger"), ("functions", "function"), ("indexes", "index")]
        };
        for (check, part) in checks {
            let there = found.iter().filter(|it| it == part).count();
            assert!(there > 0, "no {check} at {}", place.url);
            let (.., all) = findings.iter().find(|(name, ..)| name == check).unwrap();
            assert!(all.starts_with(&format!("all {there} ")), "{there} {check}: {all}");
        }
    }
}

#[tokio::test]
async fn the_doctor_finds_what_is_switched_off() {
    let place = Place::postgres().await;
    place.done("migrate");
    place.sql("alter table api_key_events disable trigger api_key_events_stay").await;
    let (code, complaint) = complaints(&place);
    assert_eq!(code, 6);
    assert!(complaint.contains("api_key_events_stay"), "{complaint}");
}

#[tokio::test]
async fn the_doctor_finds_what_a_role_may_not_do() {
    let place = Place::postgres().await;
    place.done("migrate");
    let role = format!("looks_keys_up_{:016x}", unique());
    let right =
        format!("create role {role}; grant select on api_keys, _api_key_migrations to {role}");
    place.sql(&right).await;
    let by_role = format!("doctor --database-url {}?options=-crole={role}", place.url);
    let lacking = place.run(&by_role);
    place.sql(&format!("grant select on api_key_plans to {role}")).await;
    let enough = place.run(&by_role);
    place.sql(&format!("drop owned by {role}; drop role {role}")).await;

    assert!(lacking.out.contains("problem: rights"), "{lacking:?}");
    let grant = format!("grant select on public.api_key_plans to {role}");
    assert!(lacking.code == 6 && lacking.out.contains(&grant), "{lacking:?}");
    assert!(enough.out.contains("warning: rights"), "{enough:?}");
}

#[tokio::test]
async fn the_doctor_recognises_a_pooler() {
    let mut place = Place::postgres().await;
    place.done("migrate");
    let direct = place.url.clone();
    let tracking = PgBouncer::start_with_prepared_statements(Server::shared(), 1);
    let whichever = PgBouncer::start(Server::shared(), "transaction", 1);
    for (pooler, tracks_statements) in [(tracking, true), (whichever, false)] {
        place.url = pooler.url(&direct);
        let (code, complaint) = complaints(&place);
        assert!(complaint.contains("warning listener notifications do not arrive"), "{complaint}");
        if code == 0 {
            assert!(complaint.contains("warning pooler"), "{complaint}");
            let (key, id) = place.issue("--expires 1d");
            assert_eq!(place.verify(&key).0, 0);
            place.done(&format!("revoke {id}"));
        } else {
            // Before 1.21, the two connections of the doctor prepare statements of the same name.
            assert!(code == 6 && !tracks_statements, "{complaint}");
            assert!(complaint.contains("problem pooler"), "{complaint}");
        }
    }
}

#[tokio::test]
async fn no_list_of_processes_shows_a_key() {
    let place = Place::postgres().await;
    place.done("migrate");
    // It waits for the lock of the table, so that the test can look at it after it has issued a
    // key.
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    raw_sql("lock table api_keys in access exclusive mode")
        .execute(&mut *transaction)
        .await
        .unwrap();
    let mut running = place.command(&["issue", "--consumer", "acme", "--expires", "1d"]);
    let running = running.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let waits = "select count(*) from pg_locks where not granted
        and relation = 'api_keys'::regclass";
    eventually("the command waits for the lock of the table", async || {
        sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut *transaction).await.unwrap() > 0
    })
    .await;
    let process = Path::new("/proc").join(running.id().to_string());
    let shown =
        [fs::read(process.join("cmdline")).unwrap(), fs::read(process.join("environ")).unwrap()];
    transaction.rollback().await.unwrap();
    let output = said(running.wait_with_output().unwrap());
    assert_eq!(output.code, 0, "{output:?}");
    let shown = String::from_utf8_lossy(&shown.concat()).into_owned();
    assert!(shown.contains("acme") && !shown.contains(output.out.trim()), "{shown}");
}

/// The output of a command whose reader has ended before the command writes.
fn unread(place: &Place, arguments: &[&str]) -> Said {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = place.command(arguments).stdout(writer).stderr(Stdio::piped()).output();
    said(output.unwrap())
}

#[test]
fn a_reader_that_ends_early_is_not_an_error_unless_a_key_is_lost() {
    let place = Place::sqlite();
    place.done("migrate");
    place.issue("--expires 1d");
    for command in ["list", "list --json", "events", "doctor", "man", "completions bash"] {
        let arguments: Vec<_> = command.split_whitespace().collect();
        let said = unread(&place, &arguments);
        assert_eq!((said.code, said.err.as_str()), (141, ""), "{command}");
    }
    let said = unread(&place, &["issue", "--consumer", "acme", "--expires", "1d"]);
    assert!(said.code == 1 && said.err.contains("The key is lost"), "{said:?}");
}

#[test]
fn completions_and_manual_are_made_from_the_same_definitions() {
    let place = Place::sqlite();
    for shell in ["bash", "zsh", "fish"] {
        let script = place.done(&format!("completions {shell}")).out;
        for word in ["issue", "rotate", "ended-before"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        if shell == "bash" {
            place.write("completions", &script);
            let parsed = Command::new("bash")
                .arg("-n")
                .arg("completions")
                .current_dir(place.folder.path())
                .status();
            assert!(parsed.unwrap().success());
        }
    }
    let page = place.done("man").out;
    for part in [".TH", "API\\-KEY ISSUE", "DATABASE_URL", "Exit codes", "grace"] {
        assert!(page.contains(part) || page.contains(&part.replace("\\-", "-")), "{part}: {page}");
    }
    let help = place.done("--help").out;
    for code in ["  3  ", "  4  ", "  5  ", "  6  "] {
        assert!(help.contains(code), "{help}");
    }
    for command in [
        "migrate",
        "issue",
        "list",
        "show",
        "update",
        "rotate",
        "revoke",
        "reconcile",
        "import",
        "plan",
        "prune",
        "verify",
        "doctor",
        "events",
        "completions",
        "man",
    ] {
        assert!(help.contains(command), "{command}");
        assert!(!place.done(&format!("{command} --help")).out.is_empty());
    }
}
