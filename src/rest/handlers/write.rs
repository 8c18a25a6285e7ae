//! Handlers that change keys.

use std::{borrow::Cow, time::Duration};

use axum::{extract::FromRequestParts, response::Response};
use http::{HeaderMap, HeaderValue, StatusCode, header::LOCATION, request::Parts};
use serde::Deserialize;
use serde_json::json;

use crate::rest::{
    body::{Body, Object, OptionalBody, present},
    error::{ApiError, sentence},
    handlers::read::{json, with_etag},
    params::{KeyPath, NoParams},
    quotas,
    state::WriteAccess,
    times,
    validators::if_match,
    view::{KeyView, NewKeyView},
};
use crate::{
    manage::{Expiry, InvalidExpiry, KeyUpdate, NewKey, Rotation, is_idempotency_key},
    record::{KeyRecord, Metadata, Scope, Scopes, TextRule},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::rest) struct NewKeyBody {
    #[serde(default, deserialize_with = "present")]
    consumer_id: Option<String>,
    name: Option<String>,
    #[serde(default)]
    scopes: Vec<String>,
    rate_limits: Option<Vec<Object>>,
    plan: Option<String>,
    metadata: Option<Object>,
    #[serde(default, deserialize_with = "present")]
    expires: Option<String>,
    not_before: Option<String>,
    created_by: Option<String>,
    reason: Option<String>,
}

impl NewKeyBody {
    fn read(self) -> Result<NewKey, ApiError> {
        let consumer_id = self.consumer_id.ok_or_else(|| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", "`consumer_id` is required.")
                .at("/consumer_id")
        })?;
        let expires = self.expires.ok_or_else(|| {
            let detail = "`expires` is required; use \"never\" for no expiry.";
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", detail).at("/expires")
        })?;
        let mut new = NewKey::new(name("/consumer_id", consumer_id)?, expiry(&expires)?)
            .scopes(scopes(self.scopes)?)
            .metadata(self.metadata.map(metadata).transpose()?.unwrap_or_default());
        if let Some(name) = self.name {
            new = new.name(text("/name", name)?);
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
            new = new.created_by(text("/created_by", who)?);
        }
        if let Some(reason) = self.reason {
            new = new.reason(text("/reason", reason)?);
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
    let mut new = body.read()?;
    if let Some(key) = idempotency_key {
        new = new.idempotency_key(key);
    }
    let issued = writer.issuer().issue(new).await.map_err(|error| writer.error_of(&error))?;
    let view = KeyView::from(&issued.record);
    let view = NewKeyView { key: issued.key.expose_secret(), view, previous: None };
    Ok(created(json(&view), &writer, &issued.record))
}

/// An RFC 7396 merge patch: absent members stay the same, and `null` removes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::rest) struct PatchBody {
    #[serde(default, deserialize_with = "present")]
    name: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    scopes: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    rate_limits: Option<Option<Vec<Object>>>,
    #[serde(default, deserialize_with = "present")]
    plan: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    metadata: Option<Option<Object>>,
    #[serde(default, deserialize_with = "present")]
    expires: Option<String>,
    #[serde(default, deserialize_with = "present")]
    is_active: Option<bool>,
    reason: Option<String>,
}

impl PatchBody {
    fn read(self) -> Result<KeyUpdate, ApiError> {
        let mut update = KeyUpdate::new();
        if let Some(name) = self.name {
            update = update.name(name.map(|name| text("/name", name)).transpose()?);
        }
        if let Some(names) = self.scopes {
            update = update.scopes(scopes(names)?);
        }
        if let Some(limits) = self.rate_limits {
            update = update.rate_limits(limits.map(quotas::read).transpose()?);
        }
        if let Some(plan) = self.plan {
            update = update.plan(plan);
        }
        match self.metadata {
            Some(Some(patch)) => update = update.merge_metadata(metadata(patch)?),
            Some(None) => update = update.metadata(Metadata::default()),
            None => {}
        }
        if let Some(expires) = self.expires {
            update = update.expiry(expiry(&expires)?);
        }
        if let Some(is_active) = self.is_active {
            update = update.is_active(is_active);
        }
        if let Some(reason) = self.reason {
            update = update.reason(text("/reason", reason)?);
        }
        Ok(update)
    }
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
    #[serde(default, deserialize_with = "present")]
    grace: Option<String>,
    #[serde(default, deserialize_with = "present")]
    expires: Option<String>,
    reason: Option<String>,
}

impl RotationBody {
    fn read(self) -> Result<Rotation, ApiError> {
        let mut rotation = Rotation::new();
        if let Some(grace) = self.grace {
            rotation = rotation.grace(duration(&grace)?);
        }
        if let Some(expires) = self.expires {
            rotation = rotation.expiry(expiry(&expires)?);
        }
        if let Some(reason) = self.reason {
            rotation = rotation.reason(text("/reason", reason)?);
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
    let reason = body.reason.map(|reason| text("/reason", reason)).transpose()?;
    let revoked = writer.issuer().revoke(id, reason.as_deref()).await;
    let record = revoked.map_err(|error| writer.error_of(&error))?;
    Ok(with_etag(json(&KeyView::from(&record)), &record))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::rest) struct RevocationsBody {
    #[serde(default, deserialize_with = "present")]
    consumer_id: Option<String>,
    #[serde(default, deserialize_with = "present")]
    prefix: Option<String>,
    reason: Option<String>,
}

pub(in crate::rest) async fn revoke_keys(
    writer: WriteAccess,
    _: NoParams,
    Body(body): Body<RevocationsBody>,
) -> Result<Response, ApiError> {
    let reason = body.reason.map(|reason| text("/reason", reason)).transpose()?;
    let revoked = match (body.consumer_id, body.prefix) {
        (Some(consumer), None) => {
            let consumer = name("/consumer_id", consumer)?;
            writer.issuer().revoke_consumer(&consumer, reason.as_deref()).await
        }
        (None, Some(prefix)) => {
            let prefix = name("/prefix", prefix)?;
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

fn text(field: &'static str, text: String) -> Result<String, ApiError> {
    match TextRule::SENT.check(&text) {
        Ok(()) => Ok(text),
        Err(problem) => Err(ApiError::invalid(field, sentence(problem))),
    }
}

fn name(field: &'static str, name: String) -> Result<String, ApiError> {
    if name.is_empty() {
        return Err(ApiError::invalid(field, "Must not be empty."));
    }
    text(field, name)
}

fn scopes(names: Vec<String>) -> Result<Scopes, ApiError> {
    if names.len() > Scopes::MAX_SCOPES {
        return Err(ApiError::invalid("/scopes", "A key has at most 128 scopes."));
    }
    let scope = |(at, name)| {
        Scope::new(name)
            .map_err(|error| ApiError::invalid(format!("/scopes/{at}"), error.to_string()))
    };
    names.into_iter().enumerate().map(scope).collect()
}

fn metadata(Object(members): Object) -> Result<Metadata, ApiError> {
    Metadata::new(&members).map_err(|error| invalid_metadata(&error))
}

fn invalid_metadata(error: &crate::record::InvalidMetadata) -> ApiError {
    ApiError::invalid("/metadata", error.to_string())
}

fn expiry(text: &str) -> Result<Expiry, ApiError> {
    text.parse()
        .map_err(|error: InvalidExpiry| ApiError::invalid("/expires", sentence(&error.to_string())))
}

fn duration(text: &str) -> Result<Duration, ApiError> {
    let Ok(Expiry::In(duration)) = text.parse::<Expiry>() else {
        let detail = "Must be a duration: a number and s, m, h, d or w, such as \"24h\" or \"0s\".";
        return Err(ApiError::invalid("/grace", detail));
    };
    Ok(duration)
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
