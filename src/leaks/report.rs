//! `POST /report`: a leaked key, reported by a key with the scope.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::request::Parts;
use serde::Deserialize;
use serde_json::json;

use crate::{
    manage::{Actor, KeyIssuer, LeakPolicy, LeakReport},
    record::Consumer,
    rest::{ApiError, Body, Origin, printable},
};

/// What reports are handled by.
#[derive(Clone)]
pub(super) struct Reports {
    pub(super) issuer: KeyIssuer,
    pub(super) policy: LeakPolicy,
    pub(super) origin: Origin,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReportBody {
    token: String,
    source: Option<String>,
    url: Option<String>,
}

pub(super) async fn report(
    State(reports): State<Reports>,
    reporter: Consumer,
    parts: Parts,
    Body(body): Body<ReportBody>,
) -> Result<Response, ApiError> {
    let mut actor = Actor::operator(format!("leaks:key:{}", reporter.key_id()));
    if let Some(origin) = (reports.origin)(&parts) {
        actor = actor.origin(printable(&origin));
    }
    let mut report = LeakReport::new(body.token.as_bytes());
    if let Some(source) = &body.source {
        report = report.source(source);
    }
    if let Some(url) = &body.url {
        report = report.url(url);
    }
    let outcomes = reports.issuer.by(actor).report_leaks(&[report], &reports.policy).await;
    match outcomes {
        Ok(outcomes) => {
            let was_active = outcomes.iter().any(|outcome| outcome.was_live());
            Ok(Json(json!({ "was_active": was_active })).into_response())
        }
        Err(error) => Ok(error.into_response()),
    }
}
