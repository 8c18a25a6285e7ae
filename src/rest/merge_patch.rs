//! The body of `PATCH`.

use http::StatusCode;
use serde::Deserialize;

use super::{
    body::{Object, present},
    error::ApiError,
    fields, places, quotas,
};
use crate::{manage::KeyUpdate, record::Metadata};

/// An RFC 7396 merge patch: absent members stay the same, and `null` removes. Members that every key
/// has cannot be removed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PatchBody {
    #[serde(default, deserialize_with = "present")]
    name: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    scopes: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "present")]
    rate_limits: Option<Option<Vec<Object>>>,
    #[serde(default, deserialize_with = "present")]
    plan: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    metadata: Option<Option<Object>>,
    #[serde(default, deserialize_with = "present")]
    networks: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "present")]
    tags: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "present")]
    origins: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "present")]
    expires: Option<Option<String>>,
    #[serde(default, deserialize_with = "present")]
    is_active: Option<Option<bool>>,
    reason: Option<String>,
}

impl PatchBody {
    pub(super) fn read(self) -> Result<KeyUpdate, ApiError> {
        let mut update = KeyUpdate::new();
        if let Some(name) = self.name {
            update =
                update.name(name.map(|name| fields::removable_text("/name", name)).transpose()?);
        }
        if let Some(names) = self.scopes {
            let names = names.ok_or_else(|| {
                not_null("/scopes", "Must not be null: send [] to remove all scopes.")
            })?;
            update = update.scopes(fields::scopes(names)?);
        }
        if let Some(limits) = self.rate_limits {
            update = update.rate_limits(limits.map(quotas::read).transpose()?);
        }
        if let Some(plan) = self.plan {
            update = update.plan(plan);
        }
        match self.metadata {
            Some(Some(patch)) => update = update.merge_metadata(fields::metadata(patch)?),
            Some(None) => update = update.metadata(Metadata::default()),
            None => {}
        }
        if let Some(networks) = self.networks {
            let networks = networks.ok_or_else(|| {
                let detail = "Must not be null: send [] to let the key work from anywhere.";
                not_null("/networks", detail)
            })?;
            update = update.networks(places::networks(networks)?);
        }
        if let Some(tags) = self.tags {
            let tags = tags.ok_or_else(|| {
                not_null("/tags", "Must not be null: send [] to remove all tags.")
            })?;
            update = update.tags(places::tags(tags)?);
        }
        if let Some(origins) = self.origins {
            let origins = origins.ok_or_else(|| {
                not_null("/origins", "Must not be null: a publishable key has at least one.")
            })?;
            update = update.origins(places::origins(origins)?);
        }
        if let Some(expires) = self.expires {
            let expires = expires.ok_or_else(|| {
                not_null("/expires", "Must not be null: send \"never\" for no expiry.")
            })?;
            update = update.expiry(fields::expiry(&expires)?);
        }
        if let Some(is_active) = self.is_active {
            let is_active = is_active
                .ok_or_else(|| not_null("/is_active", "Must not be null: send true or false."))?;
            update = update.is_active(is_active);
        }
        if let Some(reason) = self.reason {
            update = update.reason(fields::optional_text("/reason", reason)?);
        }
        Ok(update)
    }
}

fn not_null(field: &'static str, detail: &'static str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", detail).at(field)
}
