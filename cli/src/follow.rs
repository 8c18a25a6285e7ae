use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::interval;
use tower_api_key::{record::KeyId, store::port::AuditLine};

use super::{failure::Failure, output, session::Session};

const INTERVAL: Duration = Duration::from_secs(1);
const BATCH: usize = 100;

/// Which events are printed.
pub(crate) struct Filter {
    pub(crate) id: Option<KeyId>,
    pub(crate) consumer: Option<String>,
}

/// Prints the events that are written from now on, until the program is ended.
pub(crate) async fn follow(filter: &Filter, session: &Session) -> Result<(), Failure> {
    let webhooks = session.webhooks();
    let end = webhooks.tail(0).end().await?;
    let mut tail = webhooks.tail(end);
    let mut rounds = interval(INTERVAL);
    loop {
        rounds.tick().await;
        loop {
            let lines = tail.next(BATCH).await?;
            for line in lines.iter().filter(|line| filter.admits(line)) {
                let text = if session.global.json { as_json(line).to_string() } else { text(line) };
                output::line(&text)?;
            }
            if lines.len() < BATCH {
                break;
            }
        }
    }
}

impl Filter {
    fn admits(&self, line: &AuditLine) -> bool {
        self.id.is_none_or(|id| line.key_id == Some(id))
            && (self.consumer.is_none() || self.consumer == line.consumer_id)
    }
}

fn as_json(line: &AuditLine) -> Value {
    json!({
        "id": line.id,
        "at": output::exact(line.at),
        "action": line.action,
        "key_id": line.key_id.map(|id| id.to_string()),
        "consumer_id": line.consumer_id,
        "actor": line.actor,
        "origin": line.origin,
        "reason": line.reason,
        "changes": line.changes.as_deref().map(output::json_or_text),
    })
}

fn text(line: &AuditLine) -> String {
    let key = line.key_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    let parts = [
        Some(output::time(line.at)),
        Some(line.action.clone()),
        Some(key),
        Some(line.actor.clone()),
        line.reason.clone(),
        line.changes.clone(),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().map(|part| output::printable(&part)).collect();
    parts.join("  ")
}
