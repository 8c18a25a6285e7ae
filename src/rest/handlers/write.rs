//! Handlers that change keys.

use std::borrow::Cow;

use axum::{extract::FromRequestParts, response::Response};
use http::{HeaderMap, HeaderValue, StatusCode, header::LOCATION, request::Parts};
use serde::Deserialize;
use serde_json::json;

use crate::rest::{
    body::{Body, Object, OptionalBody},
    error::ApiError,
    fields,
    handlers::read::{json, with_etag},
    merge_patch::PatchBody,
    params::{KeyPath, NoParams},
    places, quotas,
    state::WriteAccess,
    times,
    validators::if_match,
    view::{KeyView, NewKeyView},
};
use crate::{
    manage::{NewKey, Rotation, is_idempotency_key},
    record::KeyRecord,
};

/// `null` is the same as leaving a member out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::rest) struct NewKeyBody {
    consumer_id: Option<String>,
    name: Option<String>,
    scopes: Option<Vec<String>>,
    rate_limits: Option<Vec<Object>>,
    plan: Option<String>,
    metadata: Option<Object>,
    networks: Option<Vec<String>>,
    tags: Option<Vec<String>>,
    kind: Option<String>,
    origins: Option<Vec<String>>,
    expires: Option<String>,
    not_before: Option<String>,
    created_by: Option<String>,
    reason: Option<String>,
}

impl NewKeyBody {
    /// `own` is the consumer of a key for which the request names none.
    fn read(self, own: Option<&str>) -> Result<NewKey, ApiError> {
        let consumer_id = self.consumer_id.or_else(|| own.map(str::to_owned));
        let consumer_id = consumer_id.ok_or_else(|| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", "`consumer_id` is required.")
                .at("/consumer_id")
        })?;
        let expires = self.expires.ok_or_else(|| {
            let detail = "`expires` is required; use \"never\" for no expiry.";
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", detail).at("/expires")
        })?;
        let consumer_id = fields::text("/consumer_id", consumer_id)?;
        let mut new = NewKey::new(consumer_id, fields::lifetime(&expires)?)
            .scopes(self.scopes.map(fields::scopes).transpose()?.unwrap_or_default())
            .metadata(self.metadata.map(fields::metadata).transpose()?.unwrap_or_default())
            .networks(self.networks.map(places::networks).transpose()?.unwrap_or_default())
            .tags(self.tags.map(places::tags).transpose()?.unwrap_or_default());
        new = places::with_kind(new, self.kind, self.origins)?;
        if let Some(name) = self.name {
            new = new.name(fields::optional_text("/name", name)?);
        }
        if let Some(limits) = self.rate_limits {
            new = new.rate_limits(quotas::read(limits)?);
        }
        if let Some(plan) = self.plan {
            new = new.plan(plan);
        }
        if let Some(at) = self.not_before {
            let at = times::read(&at).ok_or_else(|| {
                ApiError::invalid("/not_before", "Must be an RFC 3339 date and time.")
            })?;
            new = new.not_before(at);
        }
        if let Some(who) = self.created_by {
            new = new.created_by(fields::optional_text("/created_by", who)?);
        }
        if let Some(reason) = self.reason {
            new = new.reason(fields::optional_text("/reason", reason)?);
        }
        Ok(new)
    }
}

pub(in crate::rest) async fn issue_key(
    writer: WriteAccess,
    _: NoParams,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    Body(body): Body<NewKeyBody>,
) -> Result<Response, ApiError> {
    let mut new = body.read(writer.own_consumer())?;
    if let Some(key) = idempotency_key {
        new = new.idempotency_key(key);
    }
    let issued = writer.issuer().issue(new).await.map_err(|error| writer.error_of(&error))?;
    let view = KeyView::from(&issued.record);
    let view = NewKeyView { key: issued.key.expose_secret(), view, previous: None };
    Ok(created(json(&view), &writer, &issued.record))
}

pub(in crate::rest) async fn update_key(
    writer: WriteAccess,
    KeyPath(id): KeyPath,
    _: NoParams,
    headers: HeaderMap,
    Body(body): Body<PatchBody>,
) -> Result<Response, ApiError> {
    let mut update = body.read()?;
    if let Some(versions) = if_match(&headers) {
        update = update.if_version_in(versions);
    }
    let updated = writer.issuer().update(id, update).await;
    let record = updated.map_err(|error| writer.error_of(&error))?;
    Ok(with_etag(json(&KeyView::from(&record)), &record))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::rest) struct RotationBody {
    grace: Option<String>,
    expires: Option<String>,
    reason: Option<String>,
}

impl RotationBody {
    fn read(self) -> Result<Rotation, ApiError> {
        let mut rotation = Rotation::new();
        if let Some(grace) = self.grace {
            rotation = rotation.grace(fields::grace(&grace)?);
        }
        if let Some(expires) = self.expires {
            rotation = rotation.expiry(fields::lifetime(&expires)?);
        }
        if let Some(reason) = self.reason {
            rotation = rotation.reason(fields::optional_text("/reason", reason)?);
        }
        Ok(rotation)
    }
}

pub(in crate::rest) async fn rotate_key(
    writer: WriteAccess,
    KeyPath(id): KeyPath,
    _: NoParams,
    IdempotencyKey(idempotency_key): IdempotencyKey,
    OptionalBody(body): OptionalBody<RotationBody>,
) -> Result<Response, ApiError> {
    let mut rotation = body.read()?;
    if let Some(key) = idempotency_key {
        rotation = rotation.idempotency_key(key);
    }
    let rotated =
        writer.issuer().rotate(id, rotation).await.map_err(|error| writer.error_of(&error))?;
    let view = NewKeyView {
        key: rotated.key.expose_secret(),
        view: KeyView::from(&rotated.record),
        previous: Some(KeyView::from(&rotated.previous)),
    };
    Ok(created(json(&view), &writer, &rotated.record))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::rest) struct RevocationBody {
    reason: Option<String>,
}

pub(in crate::rest) async fn revoke_key(
    writer: WriteAccess,
    KeyPath(id): KeyPath,
    _: NoParams,
    OptionalBody(body): OptionalBody<RevocationBody>,
) -> Result<Response, ApiError> {
    let reason = body.reason.map(|reason| fields::optional_text("/reason", reason)).transpose()?;
    let revoked = writer.issuer().revoke(id, reason.as_deref()).await;
    let record = revoked.map_err(|error| writer.error_of(&error))?;
    Ok(with_etag(json(&KeyView::from(&record)), &record))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::rest) struct RevocationsBody {
    consumer_id: Option<String>,
    prefix: Option<String>,
    reason: Option<String>,
}

pub(in crate::rest) async fn revoke_keys(
    writer: WriteAccess,
    _: NoParams,
    Body(body): Body<RevocationsBody>,
) -> Result<Response, ApiError> {
    let reason = body.reason.map(|reason| fields::optional_text("/reason", reason)).transpose()?;
    let revoked = match (body.consumer_id, body.prefix) {
        (Some(consumer), None) => {
            let consumer = fields::text("/consumer_id", consumer)?;
            writer.issuer().revoke_consumer(&consumer, reason.as_deref()).await
        }
        (None, Some(prefix)) => {
            let prefix = fields::text("/prefix", prefix)?;
            writer.issuer().revoke_prefix(&prefix, reason.as_deref()).await
        }
        _ => {
            let detail = "Send exactly one of `consumer_id` and `prefix`.";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", detail).at(""));
        }
    };
    let revoked = revoked.map_err(|error| writer.error_of(&error))?;
    Ok(json(&json!({ "revoked": revoked.keys, "skipped": revoked.skipped.len() })))
}

fn created(mut response: Response, writer: &WriteAccess, record: &KeyRecord) -> Response {
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(location) = HeaderValue::try_from(writer.locate(record.id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    with_etag(response, record)
}

/// The `Idempotency-Key` header, if it was sent.
pub(in crate::rest) struct IdempotencyKey(Option<String>);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut values = parts.headers.get_all("idempotency-key").iter();
        let key = match (values.next(), values.next()) {
            (None, _) => return Ok(Self(None)),
            (Some(value), None) => String::from_utf8(value.as_bytes().to_vec()).ok(),
            (Some(_), Some(_)) => None,
        };
        let detail: Cow<'static, str> =
            "Must be sent once, with 1 to 255 visible ASCII characters.".into();
        match key.filter(|key| is_idempotency_key(key)) {
            Some(key) => Ok(Self(Some(key))),
            None => Err(ApiError::header("Idempotency-Key", detail)),
        }
    }
}
