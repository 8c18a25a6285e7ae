//! Members of request bodies, from JSON to the types of `manage`.

use std::time::Duration;

use super::{
    body::Object,
    error::{ApiError, sentence},
};
use crate::{
    manage::{Expiry, InvalidExpiry},
    record::{Metadata, Scope, Scopes, TextRule},
};

/// A text that must not be empty.
pub(super) fn text(field: &'static str, text: String) -> Result<String, ApiError> {
    text_or(field, text, "Must not be empty.")
}

/// A text that can be left out, but must not be empty.
pub(super) fn optional_text(field: &'static str, text: String) -> Result<String, ApiError> {
    text_or(field, text, "Must not be empty: leave it out, or send null.")
}

/// A text that `null` removes. It must not be empty.
pub(super) fn removable_text(field: &'static str, text: String) -> Result<String, ApiError> {
    text_or(field, text, "Must not be empty: send null to remove it.")
}

fn text_or(field: &'static str, text: String, if_empty: &'static str) -> Result<String, ApiError> {
    if text.is_empty() {
        return Err(ApiError::invalid(field, if_empty));
    }
    match TextRule::SENT.check(&text) {
        Ok(()) => Ok(text),
        Err(problem) => Err(ApiError::invalid(field, sentence(problem))),
    }
}

/// Scopes of a key. A comma is allowed in a scope, but here it is a list sent as one string.
pub(super) fn scopes(names: Vec<String>) -> Result<Scopes, ApiError> {
    if names.len() > Scopes::MAX_SCOPES {
        return Err(ApiError::invalid("/scopes", "A key has at most 128 scopes."));
    }
    let scope = |(at, name): (usize, String)| {
        let invalid = |detail: String| ApiError::invalid(format!("/scopes/{at}"), detail);
        if name.contains(',') {
            let detail = "A scope must not contain a comma: send several scopes as separate \
                strings, such as [\"orders:read\", \"orders:write\"].";
            return Err(invalid(detail.to_owned()));
        }
        Scope::new(name).map_err(|error| invalid(error.to_string()))
    };
    names.into_iter().enumerate().map(scope).collect()
}

pub(super) fn metadata(Object(members): Object) -> Result<Metadata, ApiError> {
    Metadata::new(&members).map_err(|error| ApiError::invalid("/metadata", error.to_string()))
}

/// The expiry of a present key, which may end at once.
pub(super) fn expiry(text: &str) -> Result<Expiry, ApiError> {
    text.parse()
        .map_err(|error: InvalidExpiry| ApiError::invalid("/expires", sentence(&error.to_string())))
}

/// The expiry of a new key, whose lifetime must not be zero.
pub(super) fn lifetime(text: &str) -> Result<Expiry, ApiError> {
    match expiry(text)? {
        Expiry::In(lifetime) if lifetime.is_zero() => {
            let detail = "A new key must have a lifetime longer than zero, such as \"30d\".";
            Err(ApiError::invalid("/expires", detail))
        }
        expiry => Ok(expiry),
    }
}

/// How long a rotated key goes on working; may be zero.
pub(super) fn grace(text: &str) -> Result<Duration, ApiError> {
    let Ok(Expiry::In(duration)) = text.parse::<Expiry>() else {
        let detail = "Must be a duration: a number and s, m, h, d or w, such as \"24h\" or \"0s\".";
        return Err(ApiError::invalid("/grace", detail));
    };
    Ok(duration)
}
