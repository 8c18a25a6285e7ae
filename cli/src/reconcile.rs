use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read},
};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tower_api_key::{
    manage::{AuditHistory, ReconcileOutcome, ReconciledKey},
    record::{AuditEntry, KeyAction, KeyEvent, KeyId},
};

use super::{failure::Failure, output, revoke::confirm, session::Session};

/// Revoke again the keys that an exported audit shows as revoked
///
/// For a database that was restored to an earlier time, where keys that were revoked since work
/// again. FILE is the earlier output of `events --json`, any number of pages in any order, or one
/// event per line:
///
///   api-key reconcile audit.jsonl --dry-run
///   api-key reconcile audit.jsonl --yes
///
/// It deletes nothing and changes nothing else. It reports keys that differ from the audit in what
/// they may do. It may be repeated: revoked keys stay as they are.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Reconcile {
    /// The export, or - for standard input
    file: String,

    /// Print what would be done, without doing it
    #[arg(long)]
    dry_run: bool,

    /// Revoke without asking
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(reconcile: Reconcile, session: &Session) -> Result<(), Failure> {
    let issuer = session.issuer()?;
    let export = Export::read(&reconcile.file)?;
    let keys = if reconcile.dry_run {
        issuer.compare(&export.history).await?
    } else {
        let which = format!("all keys that were revoked according to {}", reconcile.file);
        confirm(&which, reconcile.yes)?;
        issuer.reconcile(&export.history).await?
    };
    if session.global.json {
        output::line(&as_json(&keys, &export, reconcile.dry_run).to_string())?;
    } else {
        let rows =
            keys.iter().map(|key| vec![key.id.to_string(), text(&key.outcome, reconcile.dry_run)]);
        output::line(&output::table(&["ID", "OUTCOME"], rows))?;
        let revoked = count(&keys, &ReconcileOutcome::Revoked);
        let verb = if reconcile.dry_run { "would revoke" } else { "revoked" };
        let known = export.history.len();
        output::note(&format!("{verb} {revoked} of {known} keys in the exported audit"));
    }
    if export.invalid > 0 {
        output::warn(&format!(
            "{} events of the export cannot be read by this version of api-key and may be \
            revocations: use the version that exported them, or inspect them",
            export.invalid
        ));
    }
    let skipped = count(&keys, &ReconcileOutcome::Skipped);
    if skipped > 0 {
        return Err(Failure::new(format!(
            "{skipped} keys are not revoked: a constraint or trigger of the database refuses it, \
            or their rows cannot be read; `api-key revoke ID` says why"
        )));
    }
    Ok(())
}

fn count(keys: &[ReconciledKey], outcome: &ReconcileOutcome) -> usize {
    keys.iter().filter(|key| key.outcome == *outcome).count()
}

fn text(outcome: &ReconcileOutcome, is_dry_run: bool) -> String {
    match outcome {
        ReconcileOutcome::Revoked if is_dry_run => "would be revoked".to_owned(),
        ReconcileOutcome::AlreadyRevoked => "already revoked".to_owned(),
        ReconcileOutcome::Deleted => "was deleted, exists again: unchanged".to_owned(),
        ReconcileOutcome::Differs(fields) => {
            format!("differs in {}: unchanged", fields.join(", "))
        }
        ReconcileOutcome::Missing => "missing: rejected as unknown".to_owned(),
        other => other.as_str().to_owned(),
    }
}

fn as_json(keys: &[ReconciledKey], export: &Export, is_dry_run: bool) -> Value {
    let mut counts = BTreeMap::new();
    for key in keys {
        *counts.entry(key.outcome.as_str()).or_insert(0_u64) += 1;
    }
    let keys: Vec<_> = keys
        .iter()
        .map(|key| {
            let mut value = json!({ "id": key.id.to_string(), "outcome": key.outcome.as_str() });
            if let ReconcileOutcome::Differs(fields) = &key.outcome {
                output::set(&mut value, "fields", json!(fields));
            }
            value
        })
        .collect();
    json!({
        "dry_run": is_dry_run,
        "known": export.history.len(),
        "invalid": export.invalid,
        "counts": counts,
        "keys": keys,
    })
}

/// The contents of an exported file.
struct Export {
    history: AuditHistory,
    /// Events that this version does not understand.
    invalid: usize,
}

impl Export {
    fn read(name: &str) -> Result<Self, Failure> {
        let reader: Box<dyn Read> = if name == "-" {
            Box::new(io::stdin().lock())
        } else {
            Box::new(File::open(name).map_err(|error| Failure::new(name).because(&error))?)
        };
        let mut export = Self { history: AuditHistory::new(), invalid: 0 };
        let values = serde_json::Deserializer::from_reader(BufReader::new(reader));
        for value in values.into_iter::<Map<String, Value>>() {
            let value = value.map_err(|error| {
                let failure = if error.is_io() { Failure::new(name) } else { Failure::usage(name) };
                failure.because(&error).advise("Give output of `api-key events --json`")
            })?;
            export.add(&value);
        }
        if export.history.is_empty() && export.invalid == 0 {
            let problem = format!("{name} has no event of a key");
            return Err(Failure::usage(problem).advise("Give output of `api-key events --json`"));
        }
        Ok(export)
    }

    /// Adds a page of events, or one event.
    fn add(&mut self, value: &Map<String, Value>) {
        match value.get("events").and_then(Value::as_array) {
            Some(events) => {
                events.iter().for_each(|event| self.add_event(event.as_object()));
                let invalid = value.get("invalid").and_then(Value::as_array);
                self.invalid += invalid.map_or(0, Vec::len);
            }
            None => self.add_event(Some(value)),
        }
    }

    fn add_event(&mut self, event: Option<&Map<String, Value>>) {
        match event.and_then(parse) {
            Some(event) => self.history.add(&event),
            None => self.invalid += 1,
        }
    }
}

fn parse(event: &Map<String, Value>) -> Option<KeyEvent> {
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    let at: Timestamp = text("at")?.parse().ok()?;
    let action: KeyAction = text("action")?.parse().ok()?;
    let mut entry = AuditEntry::new(action, text("actor").unwrap_or_default());
    entry.key_id = match event.get("key_id") {
        None | Some(Value::Null) => None,
        Some(id) => Some(id.as_str()?.parse::<KeyId>().ok()?),
    };
    entry.reason = text("reason").map(str::to_owned);
    entry.changes =
        event.get("changes").filter(|changes| changes.is_object()).map(Value::to_string);
    Some(KeyEvent::new(event.get("id").and_then(Value::as_u64)?, at.try_into().ok()?, entry))
}
