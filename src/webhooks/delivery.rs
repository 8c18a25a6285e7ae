//! Delivers events to one endpoint, one after the other.
//!
//! The next event is posted only after the store has noted that the one before it was delivered, and
//! the store notes that only on the version of the endpoint that was read. So events arrive in order
//! also from two nodes that both believe it is their turn: all that can happen is that one arrives
//! again.

use std::{sync::atomic::Ordering, time::SystemTime};

use http::StatusCode;
use serde_json::json;

use super::{
    message::Message,
    outcome::Outcome,
    schedule::{MAX_FAILURES, wait},
    shared::Shared,
};
use crate::{
    record::{AuditEntry, KeyAction, WebhookEndpoint, WebhookState, event_type},
    store::{StoreError, port::AuditLine},
    trace,
};

/// Events that are read at once.
const BATCH: usize = 32;
/// Bounds what the store keeps of an error.
const MAX_ERROR: usize = 256;

/// What is left after a batch.
#[derive(Default)]
pub(super) struct Rest {
    /// Whether more events can be delivered at once.
    pub(super) has_more: bool,
    /// The time of the oldest event that is not delivered.
    pub(super) oldest: Option<SystemTime>,
}

/// Delivers a batch of events up to the event `until`.
pub(super) async fn deliver(
    shared: &Shared,
    mut endpoint: WebhookEndpoint,
    until: u64,
) -> Result<Rest, StoreError> {
    let store = &shared.settings.store;
    let lines = store.after(endpoint.delivered_to, until, BATCH).await?;
    let is_full = lines.len() == BATCH;
    let mut is_noted = true;
    for line in &lines {
        if shared.is_stopping.load(Ordering::Relaxed) {
            break;
        }
        if !endpoint.events.admits(&event_type(&line.action)) {
            endpoint.delivered_to = line.id;
            is_noted = false;
            continue;
        }
        let before = endpoint.state;
        attempt(shared, &mut endpoint, line).await;
        is_noted = true;
        if !store.update(&endpoint, parked(before, &endpoint)).await? {
            // Changed by an operator or another node: it is read again.
            return Ok(Rest { has_more: true, oldest: Some(line.at) });
        }
        endpoint.version = endpoint.version.saturating_add(1);
        if endpoint.delivered_to != line.id {
            return Ok(Rest { has_more: false, oldest: Some(line.at) });
        }
    }
    if !is_noted {
        store.update(&endpoint, None).await?;
    }
    // A page of less than the batch may have been full at its bytes.
    let has_more = is_full || endpoint.delivered_to < until && !lines.is_empty();
    Ok(Rest { has_more, oldest: None })
}

/// Posts one event, and notes in `endpoint` what came of it.
async fn attempt(shared: &Shared, endpoint: &mut WebhookEndpoint, line: &AuditLine) {
    let settings = &shared.settings;
    let now = settings.clock.now();
    let posted = match (Message::of(line), settings.targets.parse(&endpoint.url)) {
        (Ok(message), Ok(target)) => {
            let headers = message.headers(endpoint, now);
            let posted = settings.client.post(&settings.targets, &target, headers, message.body);
            posted.await.map_err(|problem| problem.to_string())
        }
        (Err(error), _) => Err(error.to_string()),
        (_, Err(error)) => Err(error.to_string()),
    };
    let now = settings.clock.now();
    let (outcome, problem) = match posted {
        Ok(status) if status.is_success() => (Outcome::Delivered, None),
        Ok(StatusCode::GONE) => (Outcome::Gone, Some("status 410".to_owned())),
        Ok(status) => (Outcome::Rejected, Some(format!("status {}", status.as_u16()))),
        Err(problem) => (Outcome::Failed, Some(problem)),
    };
    shared.metrics.count(outcome);
    endpoint.last_error = problem.map(shortened);
    if outcome == Outcome::Delivered {
        endpoint.delivered_to = line.id;
        endpoint.failures = 0;
        endpoint.next_attempt_at = None;
        endpoint.last_delivered_at = Some(now);
        return;
    }
    endpoint.failures = endpoint.failures.saturating_add(1);
    endpoint.next_attempt_at = now.checked_add(wait(endpoint.failures, &*settings.entropy));
    let (webhook, failures) = (endpoint.id, endpoint.failures);
    let problem = endpoint.last_error.as_deref().unwrap_or_default();
    if outcome == Outcome::Gone {
        endpoint.state = WebhookState::Unsubscribed;
        trace::warn!(%webhook, problem, "webhook unsubscribed by its receiver");
    } else if failures >= MAX_FAILURES {
        endpoint.state = WebhookState::Parked;
        trace::warn!(%webhook, problem, failures, "webhook parked");
    } else {
        trace::info!(%webhook, problem, failures, event = line.id, "webhook delivery failed");
    }
    let _ = (webhook, problem);
}

/// The audit of an endpoint that stopped. Other endpoints are told.
fn parked(before: WebhookState, endpoint: &WebhookEndpoint) -> Option<AuditEntry> {
    let changes = json!({
        "webhook": { "to": endpoint.id.to_string() },
        "state": { "from": before.as_str(), "to": endpoint.state.as_str() },
    });
    (before != endpoint.state).then(|| AuditEntry {
        reason: endpoint.last_error.clone(),
        changes: Some(changes.to_string()),
        ..AuditEntry::new(KeyAction::WebhookUpdated, "system")
    })
}

fn shortened(mut problem: String) -> String {
    problem.truncate(problem.floor_char_boundary(MAX_ERROR));
    problem
}
