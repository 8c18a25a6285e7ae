//! Handlers that only read.

use axum::response::{IntoResponse, Response};
use http::{
    HeaderMap, HeaderValue, StatusCode, Uri,
    header::{CONTENT_TYPE, ETAG, LINK},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use crate::rest::{
    error::ApiError,
    params::{KeyPath, NoParams, Params},
    state::ReadAccess,
    times,
    validators::{etag, is_known},
    view::{EventView, InvalidView, KeyView, PageView},
};
use crate::{
    manage::{ConsumerPermit, is_page_limit},
    record::{KeyRecord, Scope, Tags, TextRule},
    store::{EventQuery, KeyQuery},
};

const LIMIT: &str = "a number from 1 to 1000";
pub(super) const TIME: &str = "an RFC 3339 date and time, such as 2026-01-31T12:00:00Z";
const CURSOR: &str = "a cursor from `next` of the previous page";
pub(super) const TEXT: &str = "1 to 1,024 characters without control characters";
/// The longest `Link` that is sent. Proxies reject responses with more than 4 to 8 KiB of headers.
const MAX_LINK: usize = 2048;

pub(in crate::rest) async fn get_key(
    reader: ReadAccess,
    KeyPath(id): KeyPath,
    _: NoParams,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = reader.issuer().get(id).await.map_err(|error| reader.error_of(&error))?;
    let response = if is_known(&headers, key.record.version) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        json(&KeyView::from(&key))
    };
    Ok(with_etag(response, &key.record))
}

pub(in crate::rest) async fn list_keys(
    reader: ReadAccess,
    mut params: Params,
    uri: Uri,
) -> Result<Response, ApiError> {
    let mut query = KeyQuery::new();
    query.consumer_id = params.take("consumer_id", text, TEXT)?;
    query.status = params.take(
        "status",
        |name| name.parse().ok(),
        "active, inactive, not_yet_active, expired or revoked",
    )?;
    query.scope = params.take("scope", |scope| Scope::new(scope).ok(), "a scope")?;
    query.tag = params.take("tag", tag, "a tag")?;
    query.key_prefix = params.take("prefix", text, TEXT)?;
    query.unused_since = params.take("unused_since", times::read, TIME)?;
    query.expires_before = params.take("expires_before", times::read, TIME)?;
    query.limit = params.take("limit", limit, LIMIT)?.unwrap_or(query.limit);
    query.after = params.take("cursor", |cursor| cursor.parse().ok(), CURSOR)?;
    params.finish()?;

    let error_of = |error| reader.error_of(&error);
    let permit = reader.issuer().page_turn().await.map_err(error_of)?;
    let page = reader.issuer().list(&query).await.map_err(error_of)?;
    render(permit, move || {
        let keys = Some(page.keys.iter().map(KeyView::from).collect());
        let invalid = page.invalid.iter().map(InvalidView::from).collect();
        let next = page.next.map(|next| next.to_string());
        let next = next.as_deref();
        with_next_link(json(&PageView { keys, events: None, invalid, next }), &uri, next)
    })
    .await
}

pub(in crate::rest) async fn list_events(
    reader: ReadAccess,
    KeyPath(id): KeyPath,
    mut params: Params,
    uri: Uri,
) -> Result<Response, ApiError> {
    let mut query = EventQuery::new();
    query.key_id = Some(id);
    query.limit = params.take("limit", limit, LIMIT)?.unwrap_or(query.limit);
    query.after = params.take("cursor", event, CURSOR)?;
    params.finish()?;

    let error_of = |error| reader.error_of(&error);
    let permit = reader.issuer().page_turn().await.map_err(error_of)?;
    let page = reader.issuer().events(&query).await.map_err(error_of)?;
    render(permit, move || {
        let events = Some(page.events.iter().map(EventView::from).collect());
        let invalid = page.invalid.iter().map(InvalidView::from).collect();
        let next = page.next.map(|next| next.to_string());
        let next = next.as_deref();
        with_next_link(json(&PageView { keys: None, events, invalid, next }), &uri, next)
    })
    .await
}

/// Renders a page on a blocking thread: a page of 1 MiB takes milliseconds, which would delay the
/// requests of other consumers. The permit is held until it is done, even if the client
/// disconnects.
pub(super) async fn render(
    permit: Option<ConsumerPermit>,
    page: impl FnOnce() -> Response + Send + 'static,
) -> Result<Response, ApiError> {
    let page = move || {
        let _turn = permit;
        page()
    };
    tokio::task::spawn_blocking(page).await.map_err(|_| ApiError::internal())
}

pub(super) fn text(value: &str) -> Option<String> {
    let fits = !value.is_empty() && TextRule::SEARCHED.check(value).is_ok();
    fits.then(|| value.to_owned())
}

fn tag(value: &str) -> Option<String> {
    Tags::parse([value]).is_ok().then(|| value.to_owned())
}

fn limit(value: &str) -> Option<usize> {
    number(value).filter(|limit| is_page_limit(*limit))
}

/// The id of an event. Databases store it as a signed 64-bit integer.
fn event(value: &str) -> Option<u64> {
    number(value).filter(|event| i64::try_from(*event).is_ok())
}

fn number<N: std::str::FromStr>(value: &str) -> Option<N> {
    value.parse().ok().filter(|_| value.bytes().all(|byte| byte.is_ascii_digit()))
}

pub(in crate::rest) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(json) => {
            ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response()
        }
        // Cannot happen: the views have only strings, numbers, lists and objects with string keys.
        Err(_) => ApiError::internal().into_response(),
    }
}

/// Adds an `ETag` with the key's version.
pub(in crate::rest) fn with_etag(mut response: Response, record: &KeyRecord) -> Response {
    if let Some(tag) = etag(record.version) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// Adds a `Link` to the next page (RFC 8288): the same query with the next cursor. A link too long
/// for proxies is left out; the body has the cursor too.
fn with_next_link(mut response: Response, uri: &Uri, next: Option<&str>) -> Response {
    let Some(next) = next else { return response };
    let is_other = |pair: &&str| !pair.is_empty() && pair.split('=').next() != Some("cursor");
    let others = uri.query().unwrap_or_default().split('&').filter(is_other);
    let cursor = format!("cursor={}", utf8_percent_encode(next, NON_ALPHANUMERIC));
    let query: Vec<_> = others.chain([cursor.as_str()]).collect();
    let link = format!("<?{}>; rel=\"next\"", query.join("&"));
    if link.len() <= MAX_LINK
        && let Ok(link) = HeaderValue::try_from(link)
    {
        response.headers_mut().insert(LINK, link);
    }
    response
}
