//! Handlers that read the usage ledger, as JSON or CSV.

use std::fmt::Write as _;

use axum::response::{IntoResponse, Response};
use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT, CONTENT_TYPE, VARY},
};
use serde::Serialize;

use super::read::{TEXT, TIME, json, render, text};
use crate::{
    manage::{ConsumerPermit, ManageErrorKind, UsageReport},
    rest::{
        accept::prefers_csv,
        error::{ApiError, sentence},
        params::{KeyPath, Params},
        state::ReadAccess,
        times,
    },
    store::{BucketWidth, UsageBucket, UsageQuery},
};

pub(in crate::rest) async fn get_usage(
    reader: ReadAccess,
    KeyPath(id): KeyPath,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let query = query(&reader, &mut params)?.key_id(id);
    params.finish()?;
    let (permit, usage) = read(&reader, &query).await?;
    // A pruned key has use, but no record.
    let last_used_at = match reader.issuer().get(id).await {
        Ok(key) => key.last_used_at.map(times::write),
        Err(error) if error.kind() == ManageErrorKind::NotFound => None,
        Err(error) => return Err(reader.error_of(&error)),
    };
    respond(permit, &headers, Subject::Key { key_id: id.to_string(), last_used_at }, usage).await
}

pub(in crate::rest) async fn get_total_usage(
    reader: ReadAccess,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let mut query = query(&reader, &mut params)?;
    query.consumer_id = params.take("consumer_id", text, TEXT)?;
    params.finish()?;
    let (permit, usage) = read(&reader, &query).await?;
    respond(permit, &headers, Subject::Total { consumer_id: query.consumer_id }, usage).await
}

fn query(reader: &ReadAccess, params: &mut Params) -> Result<UsageQuery, ApiError> {
    let width = params.take("by", |by| by.parse().ok(), "hour or day")?;
    let to = params.take("to", times::read, TIME)?.unwrap_or_else(|| reader.issuer().now());
    let query = UsageQuery::until(to, width.unwrap_or(BucketWidth::Day));
    Ok(match params.take("from", times::read, TIME)? {
        Some(from) => query.from(from),
        None => query,
    })
}

/// Whose use it is.
#[derive(Serialize)]
#[serde(untagged)]
enum Subject {
    Key { key_id: String, last_used_at: Option<String> },
    Total { consumer_id: Option<String> },
}

#[derive(Serialize)]
struct UsageView {
    #[serde(flatten)]
    subject: Subject,
    by: &'static str,
    from: String,
    to: String,
    buckets: Vec<BucketView>,
}

#[derive(Serialize)]
struct BucketView {
    from: String,
    admitted: i64,
    limited: i64,
    forbidden: i64,
    refused: i64,
    units: i64,
}

impl From<&UsageBucket> for BucketView {
    fn from(UsageBucket { from, counts, .. }: &UsageBucket) -> Self {
        Self {
            from: times::write(*from),
            admitted: counts.admitted,
            limited: counts.limited,
            forbidden: counts.forbidden,
            refused: counts.refused,
            units: counts.units,
        }
    }
}

async fn read(
    reader: &ReadAccess,
    query: &UsageQuery,
) -> Result<(Option<ConsumerPermit>, UsageReport), ApiError> {
    let permit = reader.issuer().page_turn().await.map_err(|error| reader.error_of(&error))?;
    let usage = reader.issuer().usage(query).await.map_err(|error| match error.field() {
        // A parameter, where other requests have a member of the body.
        Some(field) if error.kind() == ManageErrorKind::Invalid => {
            ApiError::invalid(field, sentence(error.detail()))
        }
        _ => reader.error_of(&error),
    })?;
    Ok((permit, usage))
}

async fn respond(
    permit: Option<ConsumerPermit>,
    headers: &HeaderMap,
    subject: Subject,
    usage: UsageReport,
) -> Result<Response, ApiError> {
    let is_csv = prefers_csv(headers);
    let page = move || if is_csv { csv(&usage) } else { view(subject, &usage) };
    let mut response = render(permit, page).await?;
    response.headers_mut().append(VARY, HeaderValue::from(ACCEPT));
    Ok(response)
}

fn view(subject: Subject, usage: &UsageReport) -> Response {
    let by = usage.width.as_str();
    let (from, to) = (times::write(usage.from), times::write(usage.to));
    let buckets = usage.buckets.iter().map(BucketView::from).collect();
    json(&UsageView { subject, by, from, to, buckets })
}

/// RFC 4180. No field needs quotes: they are times and numbers.
fn csv(usage: &UsageReport) -> Response {
    const TYPE: HeaderValue = HeaderValue::from_static("text/csv; charset=utf-8; header=present");
    let mut csv = String::from("from,admitted,limited,forbidden,refused,units\r\n");
    for bucket in &usage.buckets {
        let BucketView { from, admitted, limited, forbidden, refused, units } = bucket.into();
        // Writing to a `String` cannot fail.
        let _ = write!(csv, "{from},{admitted},{limited},{forbidden},{refused},{units}\r\n");
    }
    ([(CONTENT_TYPE, TYPE)], csv).into_response()
}
