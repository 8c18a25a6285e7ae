//! `POST /`: a delivery of GitHub's secret scanning.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, StatusCode, request::Parts};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::timeout,
};

use super::{PublicKey, public_keys::DynPublicKeys};
use crate::{
    key::KeyHash,
    manage::{Actor, KeyIssuer, LeakOutcome, LeakPolicy, LeakReport},
    rest::{ApiError, Origin, bytes_up_to, printable},
    trace,
};

const IDENTIFIER: &str = "github-public-key-identifier";
const SIGNATURE: &str = "github-public-key-signature";

/// Tokens of a delivery, whose records and audit entries are in memory at once.
const MAX_TOKENS: usize = 10_000;
/// How long a delivery may take to arrive. GitHub waits at most 30 seconds for the answer.
const READ_DEADLINE: Duration = Duration::from_secs(20);
/// How long a delivery waits while others are handled.
const TURN_DEADLINE: Duration = Duration::from_secs(5);
/// How long the public keys may take.
const KEYS_DEADLINE: Duration = Duration::from_secs(10);

/// What deliveries are handled by.
#[derive(Clone)]
pub(super) struct Deliveries {
    pub(super) issuer: KeyIssuer,
    pub(super) policy: LeakPolicy,
    pub(super) public_keys: Arc<dyn DynPublicKeys>,
    pub(super) max_body: usize,
    pub(super) turns: Arc<Semaphore>,
    pub(super) origin: Origin,
    pub(super) errors: Arc<trace::ErrorLog>,
}

/// A token that was found. Other members are ignored: GitHub may add some.
#[derive(Deserialize)]
struct Found {
    token: String,
    #[serde(rename = "type", default)]
    token_type: Option<String>,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    source: Option<String>,
}

/// Feedback on a token, by its hash, so that no response contains one.
#[derive(Serialize)]
struct Feedback {
    token_hash: String,
    token_type: String,
    label: &'static str,
}

pub(super) async fn deliver(
    State(deliveries): State<Deliveries>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let (key, signature) = deliveries.signer(&parts.headers).await?;
    let _turn = deliveries.turn().await?;
    let too_long = "The delivery is longer than this service accepts.";
    let body = timeout(READ_DEADLINE, bytes_up_to(body, deliveries.max_body, too_long)).await;
    let body = body.map_err(|_| {
        let detail = "The delivery did not arrive in time.";
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail)
    })??;
    verify(key, body.clone(), signature).await?;
    let found = parse(&body)?;
    let reports = found.iter().map(|found| {
        let mut report = LeakReport::new(found.token.as_bytes());
        if let Some(source) = &found.source {
            report = report.source(source);
        }
        if let Some(url) = &found.url {
            report = report.url(url);
        }
        if let Some(token_type) = &found.token_type {
            report = report.token_type(token_type);
        }
        report
    });
    let reports: Vec<_> = reports.collect();
    let issuer = deliveries.issuer.by(deliveries.actor(&parts));
    match issuer.report_leaks(&reports, &deliveries.policy).await {
        Ok(outcomes) => Ok(Json(feedback(&found, &outcomes)).into_response()),
        Err(error) => Ok(error.into_response()),
    }
}

impl Deliveries {
    /// The public key that the delivery names, and its signature, before the body is read.
    async fn signer(&self, headers: &HeaderMap) -> Result<(PublicKey, Vec<u8>), ApiError> {
        let identifier = only(headers, IDENTIFIER).and_then(|value| str::from_utf8(value).ok());
        let (Some(identifier), Some(signature)) = (identifier, only(headers, SIGNATURE)) else {
            return Err(invalid_signature());
        };
        let found = timeout(KEYS_DEADLINE, self.public_keys.find(identifier)).await;
        let found = found.unwrap_or_else(|late| {
            let error = super::PublicKeysErrorKind::Unavailable;
            Err(super::PublicKeysError::new(error).because(late))
        });
        match found {
            Ok(Some(key)) => Ok((key, signature.to_vec())),
            Ok(None) => Err(invalid_signature()),
            Err(error) => {
                let now = self.issuer.monotonic();
                self.errors.warn("public keys of leak deliveries unavailable", &error, now);
                Err(unavailable("The signature cannot be checked right now. Try again."))
            }
        }
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let turn = timeout(TURN_DEADLINE, Arc::clone(&self.turns).acquire_owned()).await;
        match turn {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(unavailable("Too many deliveries at once. Try again.")),
        }
    }

    fn actor(&self, parts: &Parts) -> Actor {
        let actor = Actor::operator("leaks:github");
        match (self.origin)(parts) {
            Some(origin) => actor.origin(printable(&origin)),
            None => actor,
        }
    }
}

/// The value of a header that is there once.
fn only<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
}

/// Hashing the largest delivery takes milliseconds, which no other task should wait for.
async fn verify(key: PublicKey, body: Bytes, signature: Vec<u8>) -> Result<(), ApiError> {
    let verified = spawn_blocking(move || key.verifies(&body, &signature)).await;
    match verified {
        Ok(true) => Ok(()),
        Ok(false) => Err(invalid_signature()),
        Err(_) => Err(unavailable("The signature cannot be checked right now. Try again.")),
    }
}

fn parse(body: &[u8]) -> Result<Vec<Found>, ApiError> {
    let found: Vec<Found> = serde_json::from_slice(body).map_err(|_| {
        let detail = "The body must be a JSON array of objects, each with a `token`.";
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", detail)
    })?;
    if found.len() > MAX_TOKENS {
        let detail = "The delivery has more than 10,000 tokens.";
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail));
    }
    Ok(found)
}

fn feedback(found: &[Found], outcomes: &[LeakOutcome]) -> Vec<Feedback> {
    let feedback = |(found, outcome): (&Found, &LeakOutcome)| Feedback {
        token_hash: STANDARD.encode(KeyHash::of(found.token.as_bytes()).as_bytes()),
        token_type: found.token_type.clone().unwrap_or_default(),
        label: if outcome.is_key() { "true_positive" } else { "false_positive" },
    };
    found.iter().zip(outcomes).map(feedback).collect()
}

/// The same for each reason, of which a forger should learn nothing.
fn invalid_signature() -> ApiError {
    let detail = "The delivery is not signed by one of the public keys of its sender.";
    ApiError::new(StatusCode::FORBIDDEN, "invalid_signature", detail)
}

fn unavailable(detail: &'static str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", detail)
}
