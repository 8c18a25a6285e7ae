//! What is posted: the body, and the headers of the Standard Webhooks specification.

use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    record::{WebhookEndpoint, event_type, rfc3339},
    store::port::AuditLine,
};

/// An event as it is posted: the same bytes and the same id at each attempt.
pub(super) struct Message {
    pub(super) id: String,
    pub(super) body: Bytes,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'a str,
    timestamp: String,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    event_id: u64,
    key_id: Option<String>,
    consumer_id: Option<&'a str>,
    actor: &'a str,
    origin: Option<&'a str>,
    reason: Option<&'a str>,
    changes: Option<&'a RawValue>,
}

impl Message {
    /// The message of an event.
    ///
    /// The time is part of the id: after a fail-over to a standby that lacks the last events, their
    /// numbers are given again.
    pub(super) fn of(line: &AuditLine) -> Result<Self, serde_json::Error> {
        let since = line.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let id = format!("evt_{}_{}", line.id, since.as_micros());
        let changes: Option<&RawValue> =
            line.changes.as_deref().and_then(|changes| serde_json::from_str(changes).ok());
        let body = Body {
            r#type: &event_type(&line.action),
            timestamp: rfc3339(line.at),
            data: Data {
                event_id: line.id,
                key_id: line.key_id.map(|id| id.to_string()),
                consumer_id: line.consumer_id.as_deref(),
                actor: &line.actor,
                origin: line.origin.as_deref(),
                reason: line.reason.as_deref(),
                changes,
            },
        };
        Ok(Self { id, body: serde_json::to_vec(&body)?.into() })
    }

    /// A message that tests an endpoint. `nonce` makes the id unique.
    pub(super) fn test(nonce: [u8; 8], now: SystemTime) -> Self {
        let id = format!("test_{:016x}", u64::from_be_bytes(nonce));
        let timestamp = rfc3339(now);
        let body = format!(r#"{{"type":"webhook.test","timestamp":"{timestamp}","data":{{}}}}"#);
        Self { id, body: body.into() }
    }

    /// The headers of a request to `endpoint` at the time `now`, signed with each of its secrets.
    pub(super) fn headers(&self, endpoint: &WebhookEndpoint, now: SystemTime) -> HeaderMap {
        let timestamp = seconds(now);
        let mut signature = endpoint.secret.sign(&self.id, timestamp, &self.body);
        if let Some((previous, until)) = &endpoint.previous_secret
            && now < *until
        {
            signature.push(' ');
            signature.push_str(&previous.sign(&self.id, timestamp, &self.body));
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(HeaderName::from_static("webhook-timestamp"), HeaderValue::from(timestamp));
        for (name, value) in [("webhook-id", &self.id), ("webhook-signature", &signature)] {
            // Letters, digits and punctuation of base64: always a valid value.
            if let Ok(mut value) = HeaderValue::from_str(value) {
                value.set_sensitive(name == "webhook-signature");
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers
    }
}

const USER_AGENT: &str = concat!("tower-api-key/", env!("CARGO_PKG_VERSION"));

#[expect(clippy::disallowed_methods, reason = "a timestamp, not a wait")]
fn seconds(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::record::KeyId;

    #[test]
    fn a_message_says_what_the_audit_says() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_225_600_000_001);
        let line = AuditLine {
            key_id: Some(KeyId::from_bytes([7; 16])),
            consumer_id: Some("acme".into()),
            reason: Some("left the \"company\"".into()),
            changes: Some(r#"{"revoked_at":{"to":"2026-01-01T00:00:00Z"}}"#.into()),
            ..AuditLine::new(42, at, "revoked", "ops@host")
        };
        let message = Message::of(&line).unwrap();
        assert_eq!(message.id, "evt_42_1767225600000001");
        let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
        let expected = serde_json::json!({
            "type": "key.revoked",
            "timestamp": "2026-01-01T00:00:00.000001Z",
            "data": {
                "event_id": 42,
                "key_id": "07070707-0707-0707-0707-070707070707",
                "consumer_id": "acme",
                "actor": "ops@host",
                "origin": null,
                "reason": "left the \"company\"",
                "changes": { "revoked_at": { "to": "2026-01-01T00:00:00Z" } },
            },
        });
        assert_eq!(body, expected);
        assert_eq!(Message::of(&line).unwrap().body, message.body, "a retry has the same bytes");
    }

    #[test]
    fn changes_that_are_not_json_do_not_stop_the_events_after_them() {
        let line = AuditLine {
            changes: Some("{".into()),
            ..AuditLine::new(1, SystemTime::UNIX_EPOCH, "revoked", "sql")
        };
        let body = Message::of(&line).unwrap().body;
        assert!(body.ends_with(br#""changes":null}}"#), "{body:?}");
    }
}
