//! Restored backups, in which keys revoked since are valid again: the manual's advice, with the
//! real programs.

use std::{
    fs,
    process::{Command, Output, Stdio},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection, raw_sql};
use tempfile::TempDir;
use tower_api_key::{
    Consumer,
    clock::{Clock as _, SystemClock},
    key::KeyFormat,
    manage::{
        Actor, AuditHistory, Expiry, KeyIssuer, KeyUpdate, ManageErrorKind, NewKey,
        ReconcileOutcome, RevocationFilter, Rotation,
    },
    record::{AuditEntry, KeyAction, KeyEvent, KeyId, Metadata, Scopes},
    store::{EventQuery, MemoryKeyStore},
};

use crate::servers::postgres::{Database, Server, client};

const DAY: Duration = Duration::from_secs(86_400);

/// The command line, on a database.
struct Place {
    folder: TempDir,
    url: String,
    database: Option<Database>,
}

impl Place {
    fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/keys.db", folder.path().display());
        Self { folder, url, database: None }
    }

    async fn postgres() -> Self {
        let database = Server::shared().database().await;
        let (folder, url) = (tempfile::tempdir().unwrap(), database.url().to_owned());
        Self { folder, url, database: Some(database) }
    }

    /// One database of each kind, with its tables.
    async fn all() -> [Self; 2] {
        let all = [Self::sqlite(), Self::postgres().await];
        all.iter().for_each(|place| drop(place.done("migrate", "")));
        all
    }

    fn run(&self, line: &str, input: &str) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_api-key"));
        command.args(line.split_whitespace()).current_dir(self.folder.path());
        command.env_clear().env("USER", "ann").env("DATABASE_URL", &self.url);
        fs::write(self.folder.path().join("input"), input).unwrap();
        let input = fs::File::open(self.folder.path().join("input")).unwrap();
        let output = command.stdin(Stdio::from(input)).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
        (output.status.code().unwrap_or(-1), out, err)
    }

    fn done(&self, line: &str, input: &str) -> String {
        let (code, out, err) = self.run(line, input);
        assert_eq!(code, 0, "{line}: {out}{err}");
        out
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.done(&format!("{line} --json"), "")).unwrap()
    }

    fn issue(&self, options: &str) -> Key {
        let issued = self.json(&format!("issue --consumer acme --expires 30d {options}"));
        Key { id: text(&issued, "id"), text: text(&issued, "key") }
    }

    /// Whether a service with this database lets the key in.
    fn admits(&self, key: &Key) -> bool {
        match self.run("verify", &key.text) {
            (0, ..) => true,
            (5, ..) => false,
            other => panic!("{other:?}"),
        }
    }

    /// Exports the audit as the manual says, two events a page, into `audit.jsonl`.
    fn export(&self) {
        let (mut pages, mut after) = (String::new(), String::new());
        loop {
            let page = self.done(&format!("events --json --limit 2{after}"), "");
            pages += &page;
            let page: Value = serde_json::from_str(&page).unwrap();
            if page["next"].is_null() {
                break;
            }
            after = format!(" --after {}", page["next"]);
        }
        assert!(pages.lines().count() > 1, "one page only: {pages}");
        fs::write(self.folder.path().join("audit.jsonl"), pages).unwrap();
    }

    async fn sql(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        if self.url.starts_with("sqlite") {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            raw_sql(sql).execute(&mut connection).await.unwrap();
        } else {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            raw_sql(sql).execute(&mut connection).await.unwrap();
        }
    }

    /// Sets when keys were created and used, as services and time would.
    async fn date(&self, key: &Key, created_hours_ago: i64, used_hours_ago: Option<i64>) {
        let id = &key.id;
        let (key_id, at): (String, fn(i64) -> String) = if self.database.is_some() {
            (format!("'{id}'"), |hours| format!("now() - interval '{hours} hours'"))
        } else {
            (format!("unhex('{id}', '-')"), |hours| {
                format!("(unixepoch() - {hours} * 3600) * 1000000")
            })
        };
        let created = at(created_hours_ago);
        self.sql(&format!("update api_keys set created_at = {created} where id = {key_id}")).await;
        if let Some(hours) = used_hours_ago {
            let used = at(hours);
            let usage = "api_key_usage (key_id, last_used_at)";
            self.sql(&format!("insert into {usage} values ({key_id}, {used})")).await;
        }
    }

    /// Makes a backup.
    async fn back_up(&self) {
        if self.database.is_some() {
            let dump = self.folder.path().join("dump");
            succeeded(client("pg_dump").args(["-Fc", "-d", &self.url, "-f"]).arg(dump).output());
        } else {
            // A copy of the file alone may lack data that is still in the write-ahead log.
            let dump = self.folder.path().join("dump");
            let _ = fs::remove_file(&dump);
            self.sql(&format!("vacuum into '{}'", dump.display())).await;
        }
    }

    /// Restores the backup over the database, including its audit.
    async fn restore(&mut self) {
        let dump = self.folder.path().join("dump");
        if self.database.is_some() {
            let database = Server::shared().database().await;
            let url = database.url();
            let mut restore = client("pg_restore");
            succeeded(restore.args(["--exit-on-error", "-d", url]).arg(dump).output());
            (self.url, self.database) = (url.to_owned(), Some(database));
        } else {
            for leftover in ["keys.db-wal", "keys.db-shm"] {
                let _ = fs::remove_file(self.folder.path().join(leftover));
            }
            fs::copy(dump, self.folder.path().join("keys.db")).unwrap();
        }
    }
}

struct Key {
    id: String,
    text: String,
}

fn succeeded(output: std::io::Result<Output>) {
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("no `{field}` in {value}")).to_owned()
}

/// The outcome for each key in the output of `reconcile --json`.
fn outcomes(answer: &Value) -> Vec<(String, String)> {
    let keys = answer["keys"].as_array().unwrap();
    keys.iter().map(|key| (text(key, "id"), text(key, "outcome"))).collect()
}

fn sorted<const N: usize>(pairs: [(&Key, &str); N]) -> Vec<(String, String)> {
    let mut pairs: Vec<_> =
        pairs.into_iter().map(|(key, outcome)| (key.id.clone(), outcome.to_owned())).collect();
    pairs.sort();
    pairs
}

#[tokio::test]
async fn keys_that_a_restored_backup_has_brought_back_are_revoked_again_by_the_exported_audit() {
    for mut place in Place::all().await {
        let [kept, leaked, by_hand, deleted, narrowed] =
            [0; 5].map(|_| place.issue("--scope orders:read --scope orders:write"));
        let gone_before = place.issue("");
        place.done(&format!("revoke {} --reason early", gone_before.id), "");
        // Triggers format times and limits differently.
        let sooner = if place.database.is_some() {
            "expires_at - interval '1 day'"
        } else {
            "expires_at - 86400000000"
        };
        let limits = r#"[{"window_ms":60000,"limit":60,"name":"minute"}]"#;
        place
            .sql(&format!("update api_keys set expires_at = {sooner}, rate_limits = '{limits}'"))
            .await;
        place.back_up().await;
        place.done(&format!("revoke {} --reason leaked", leaked.id), "");
        let now = if place.database.is_some() { "now()" } else { "unixepoch() * 1000000" };
        let id = |key: &Key| match place.database {
            Some(_) => format!("'{}'", key.id),
            None => format!("unhex('{}', '-')", key.id),
        };
        let (revoked_row, deleted_row) = (id(&by_hand), id(&deleted));
        place
            .sql(&format!("update api_keys set revoked_at = {now} where id = {revoked_row}"))
            .await;
        place.sql(&format!("delete from api_keys where id = {deleted_row}")).await;
        place.done(&format!("update {} --scope orders:read", narrowed.id), "");
        let later = place.issue("");
        place.export();

        place.restore().await;
        for key in [&kept, &leaked, &by_hand, &deleted, &narrowed] {
            assert!(place.admits(key), "the backup has all that was live");
        }

        let expected = sorted([
            (&leaked, "revoked"),
            (&by_hand, "revoked"),
            (&gone_before, "already_revoked"),
            (&deleted, "deleted"),
            (&narrowed, "differs"),
            (&later, "missing"),
        ]);
        let answer = place.json("reconcile audit.jsonl --dry-run");
        assert_eq!(outcomes(&answer), expected);
        assert!(place.admits(&leaked) && place.admits(&by_hand), "a dry run changes nothing");
        let (code, _, err) = place.run("reconcile audit.jsonl", "");
        assert!(code == 2 && err.contains("--yes"), "{err}");
        assert!(place.admits(&leaked), "without --yes nothing is revoked");

        let answer = place.json("reconcile audit.jsonl --yes");
        assert_eq!(outcomes(&answer), expected);
        let counts = json!({
            "revoked": 2, "already_revoked": 1, "deleted": 1, "differs": 1, "missing": 1
        });
        assert_eq!(answer["counts"], counts);
        let differs = answer["keys"].as_array().unwrap();
        let differs = differs.iter().find(|key| key["outcome"] == "differs").unwrap();
        assert_eq!(differs["fields"], json!(["scopes"]));
        assert!(!place.admits(&leaked) && !place.admits(&by_hand));
        for key in [&kept, &deleted, &narrowed] {
            assert!(place.admits(key), "it deletes and revokes nothing else");
        }
        let shown = place.json(&format!("show {}", leaked.id));
        let reason = text(&shown, "revoked_reason");
        assert!(reason.starts_with("revoked before, at 20"), "{reason}");
        assert!(reason.ends_with(": leaked"), "{reason}");
        let events = place.json(&format!("events {}", leaked.id));
        assert_eq!(events["events"][0]["action"], "revoked", "it is in the audit");
        assert!(text(&events["events"][0], "actor").starts_with("ann@"));

        // A second run changes nothing.
        let before = place.json("events --limit 1")["events"][0]["id"].clone();
        let again = place.json("reconcile audit.jsonl --yes");
        assert_eq!(again["counts"]["revoked"], Value::Null, "{again}");
        assert_eq!(again["counts"]["already_revoked"], 3, "{again}");
        assert_eq!(place.json("events --limit 1")["events"][0]["id"], before);
        assert_eq!(text(&place.json(&format!("show {}", leaked.id)), "revoked_reason"), reason);
    }
}

#[tokio::test]
async fn without_an_export_all_that_was_issued_before_the_backup_is_revoked() {
    for mut place in Place::all().await {
        let [old, used] = [0; 2].map(|_| place.issue(""));
        place.date(&old, 48, Some(30)).await;
        place.date(&used, 48, Some(1)).await;
        place.back_up().await;
        place.done(&format!("revoke {}", used.id), "");
        place.restore().await;
        let new = place.issue("");
        assert!(place.admits(&used), "the backup has it");

        // The keys used since.
        let answer = place.json("revoke --created-before 1d --used-since 2h --dry-run");
        assert_eq!(answer["would_revoke"], json!([used.id]));
        assert!(place.admits(&used), "a dry run changes nothing");
        let (code, _, err) = place.run("revoke --created-before 1d", "");
        assert!(code == 2 && err.contains("created before") && err.contains("--yes"), "{err}");
        let answer =
            place.json("revoke --created-before 1d --used-since 2h --reason restored --yes");
        assert_eq!(answer, json!({ "revoked": 1, "skipped": 0 }));
        assert!(!place.admits(&used) && place.admits(&old) && place.admits(&new));

        // All keys.
        assert_eq!(place.json("revoke --created-before 1d --yes")["revoked"], 1);
        assert!(!place.admits(&old) && place.admits(&new));
        assert_eq!(place.json("revoke --created-before 1d --yes")["revoked"], 0);
        let shown = place.json(&format!("show {}", used.id));
        assert_eq!(shown["revoked_reason"], "restored", "the first reason stays");
    }
}

#[tokio::test]
async fn conditions_of_a_revocation_are_all_met_by_what_is_revoked() {
    for place in Place::all().await {
        let [acme, other] = [place.issue(""), place.issue("--key-prefix sk_test_")];
        let globex = place.json("issue --consumer globex --expires 30d");
        let globex = Key { id: text(&globex, "id"), text: text(&globex, "key") };
        for key in [&acme, &other, &globex] {
            place.date(key, 48, Some(1)).await;
        }
        let never_used = place.issue("");
        place.date(&never_used, 48, None).await;
        for (conditions, expected) in [
            ("--consumer acme --created-before 1d", vec![&never_used, &other, &acme]),
            ("--consumer acme --used-since 2h", vec![&other, &acme]),
            ("--prefix sk_test_ --used-since 2h", vec![&other]),
            ("--consumer globex --prefix sk_test_", vec![]),
            ("--consumer acme --prefix sk_test_", vec![&other]),
            ("--consumer acme --created-before 3d", vec![]),
            ("--used-since 30m", vec![]),
        ] {
            let answer = place.json(&format!("revoke {conditions} --dry-run"));
            let mut found: Vec<String> =
                serde_json::from_value(answer["would_revoke"].clone()).unwrap();
            let mut expected: Vec<_> = expected.iter().map(|key| key.id.clone()).collect();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{conditions}");
        }
        for nonsense in [
            format!("revoke {} --created-before 1d", acme.id),
            format!("revoke {} --dry-run", acme.id),
            "revoke --dry-run".to_owned(),
            "revoke --yes".to_owned(),
            "revoke --created-before tomorrow --yes".to_owned(),
        ] {
            let (code, out, err) = place.run(&nonsense, "");
            assert_eq!(code, 2, "{nonsense}: {out}{err}");
        }
        assert!(place.admits(&acme), "nothing was revoked");
        assert_eq!(place.json("revoke --consumer acme --prefix sk_test_ --yes")["revoked"], 1);
        assert!(!place.admits(&other) && place.admits(&acme) && place.admits(&globex));
    }
}

#[tokio::test]
async fn an_export_that_makes_no_sense_revokes_nothing_and_is_told_of() {
    let place = Place::sqlite();
    place.done("migrate", "");
    let key = place.issue("");
    let event = |action: &str| json!({ "id": 1, "at": "2026-01-01T00:00:00Z", "action": action, "key_id": key.id });
    for (input, complaint) in [
        (String::new(), "has no event"),
        ("{}".to_owned(), "cannot be read"),
        ("sk_live_secret".to_owned(), "api-key events --json"),
        (format!("{}\n{{\"id\":", event("revoked")), "api-key events --json"),
        (event("frozen").to_string(), "1 events of the export cannot be read"),
        (json!({ "events": [], "invalid": [{}] }).to_string(), "1 events of the export"),
    ] {
        let (_, _, err) = place.run("reconcile - --yes", &input);
        assert!(err.contains(complaint), "{input}: {err}");
        assert!(!err.contains("sk_live_secret"), "{err}");
        assert!(place.admits(&key), "{input}");
    }
    // One event per line, as a log collector stores them.
    let lines = format!("{}\n{}\n", event("issued"), event("revoked"));
    place.done("reconcile - --yes", &lines);
    assert!(!place.admits(&key));
}

#[tokio::test]
async fn a_key_that_the_database_refuses_to_revoke_is_named_and_the_others_are_revoked() {
    let place = Place::postgres().await;
    place.done("migrate", "");
    let keys = [0; 5].map(|_| place.issue(""));
    let history: String = keys
        .iter()
        .map(|key| {
            let at = "2026-01-01T00:00:00Z";
            let event = json!({ "id": 1, "at": at, "action": "revoked", "key_id": key.id });
            format!("{event}\n")
        })
        .collect();
    let rule = format!("check (revoked_at is null or id <> '{}')", keys[2].id);
    place.sql(&format!("alter table api_keys add constraint kept {rule}")).await;
    let (code, out, err) = place.run("reconcile - --yes --json", &history);
    assert!(code == 1 && err.contains("1 keys are not revoked"), "{err}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    let outcome = |key: usize| if key == 2 { "skipped" } else { "revoked" };
    let expected: Vec<_> = (0..5).map(|at| (keys[at].id.clone(), outcome(at).to_owned())).collect();
    assert_eq!(outcomes(&answer), expected);
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(place.admits(key), at == 2);
    }
}

fn issuer() -> KeyIssuer {
    KeyIssuer::new(MemoryKeyStore::new(), KeyFormat::new("sk_test_").unwrap())
}

async fn history_of(issuer: &KeyIssuer, order: impl Fn(&mut Vec<KeyEvent>)) -> AuditHistory {
    let mut events = issuer.events(&EventQuery::new().limit(1000)).await.unwrap().events;
    order(&mut events);
    let mut history = AuditHistory::new();
    // A second time makes no difference.
    events.iter().chain(&events).for_each(|event| history.add(event));
    history
}

#[tokio::test]
async fn a_database_that_lost_nothing_agrees_with_its_own_audit_in_any_order() {
    let issuer = issuer();
    let new = || {
        let scopes = Scopes::parse(["a", "b"]).unwrap();
        NewKey::new("acme", Expiry::In(30 * DAY)).scopes(scopes)
    };
    let [first, second, third] =
        [issuer.issue(new()).await, issuer.issue(new()).await, issuer.issue(new()).await]
            .map(|issued| issued.unwrap().record.id);
    for scopes in [["a"], ["b"]] {
        let update = KeyUpdate::new().scopes(Scopes::parse(scopes).unwrap());
        let update = update.metadata(Metadata::from_json(r#"{"n":1}"#).unwrap());
        let update = update.expiry(Expiry::In(7 * DAY)).is_active(scopes == ["a"]);
        issuer.update(first, update).await.unwrap();
    }
    issuer.rotate(second, Rotation::new().grace(DAY)).await.unwrap();
    issuer.revoke(third, Some("done with")).await.unwrap();
    for order in [|_: &mut Vec<KeyEvent>| {}, |events: &mut Vec<KeyEvent>| events.reverse()] {
        let history = history_of(&issuer, order).await;
        assert_eq!(history.len(), 4);
        let keys = issuer.reconcile(&history).await.unwrap();
        let [key] = &keys[..] else { panic!("{keys:?}") };
        assert_eq!((key.id, &key.outcome), (third, &ReconcileOutcome::AlreadyRevoked));
    }
}

#[tokio::test]
async fn thousands_of_keys_are_reconciled() {
    let issuer = issuer();
    let mut history = AuditHistory::new();
    let mut ids = Vec::new();
    for _ in 0..1_201 {
        let id = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record.id;
        history.add(&revocation(id));
        ids.push(id);
    }
    let bystander = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record.id;
    let keys = issuer.reconcile(&history).await.unwrap();
    assert!(keys.iter().all(|key| key.outcome == ReconcileOutcome::Revoked));
    ids.sort();
    assert_eq!(keys.iter().map(|key| key.id).collect::<Vec<_>>(), ids);
    for id in ids {
        let record = issuer.get(id).await.unwrap().record;
        assert!(record.revoked_at.is_some());
        assert!(record.revoked_reason.unwrap().len() <= 1_024, "a reason is no longer than that");
    }
    assert!(issuer.get(bystander).await.unwrap().record.revoked_at.is_none());
    let filter = RevocationFilter::new().created_before(SystemClock::new().now() + DAY);
    assert_eq!(issuer.matching(&filter).await.unwrap(), [bystander]);
}

fn revocation(id: KeyId) -> KeyEvent {
    let mut entry = AuditEntry::new(KeyAction::Revoked, "ann");
    entry.key_id = Some(id);
    // The content of an edited file, with a reason that is too long.
    entry.reason = Some("é".repeat(2_000));
    KeyEvent::new(1, SystemTime::UNIX_EPOCH, entry)
}

#[tokio::test]
async fn a_denied_attempt_in_the_audit_revokes_nothing() {
    let issuer = issuer();
    let id = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record.id;
    let mut entry = AuditEntry::new(KeyAction::Denied, format!("key:{id}"));
    entry.key_id = Some(id);
    entry.changes =
        Some(r#"{"attempt":"revoke","revoked_at":{"to":"2026-01-01T00:00:00Z"}}"#.into());
    let mut history = AuditHistory::new();
    history.add(&KeyEvent::new(1, SystemTime::UNIX_EPOCH, entry));
    assert!(history.is_empty());
    assert_eq!(issuer.reconcile(&history).await.unwrap(), []);
}

#[tokio::test]
async fn a_key_may_neither_reconcile_nor_revoke_by_time() {
    let issuer = issuer();
    let new = || NewKey::new("acme", Expiry::Never);
    let caller = issuer.issue(new()).await.unwrap().record;
    let id = issuer.issue(new()).await.unwrap().record.id;
    let by_key = issuer.by(Actor::key(&Consumer::from(caller)));
    let mut history = AuditHistory::new();
    history.add(&revocation(id));
    let filter = RevocationFilter::new().consumer_id("acme");
    for denied in [
        by_key.reconcile(&history).await.unwrap_err(),
        by_key.compare(&history).await.unwrap_err(),
        by_key.matching(&filter).await.unwrap_err(),
        by_key.revoke_matching(&filter, None).await.unwrap_err(),
    ] {
        assert_eq!(denied.kind(), ManageErrorKind::Denied);
    }
    assert!(issuer.get(id).await.unwrap().record.revoked_at.is_none());
}

#[tokio::test]
async fn a_filter_without_conditions_is_refused() {
    let issuer = issuer();
    let id = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record.id;
    let refused = issuer.revoke_matching(&RevocationFilter::new(), None).await.unwrap_err();
    assert_eq!(refused.kind(), ManageErrorKind::Invalid);
    assert!(issuer.get(id).await.unwrap().record.revoked_at.is_none());
}
