use axum::extract::{FromRequestParts, Path};
use http::request::Parts;
use percent_encoding::percent_decode_str;

use super::error::ApiError;
use crate::record::KeyId;

/// More parameters than any route has.
const MAX_PARAMS: usize = 32;

/// The query parameters. Handlers take them one by one, then call `finish`.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Removes and parses the parameter `name`, if it was sent.
    pub(super) fn take<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
        expected: &'static str,
    ) -> Result<Option<T>, ApiError> {
        let Some(at) = self.0.iter().position(|(given, _)| given == name) else { return Ok(None) };
        let (_, value) = self.0.swap_remove(at);
        if self.0.iter().any(|(given, _)| given == name) {
            return Err(ApiError::query(name, "This parameter must not be repeated."));
        }
        let value = read(&value);
        value.map(Some).ok_or_else(|| ApiError::query(name, format!("Must be {expected}.")))
    }

    /// Refuses parameters that no handler took.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::query(cut(name), "Unknown parameter.")),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let pairs =
            parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        if pairs.clone().count() > MAX_PARAMS {
            return Err(ApiError::query("query", "There must not be more than 32 parameters."));
        }
        let params = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(|| undecodable("query"))?;
            let value = decode(value).ok_or_else(|| undecodable(&name))?;
            Ok((name, value))
        });
        params.collect::<Result<_, _>>().map(Self)
    }
}

/// Cuts the name of a parameter to a length that is enough to recognize it in an error.
fn cut(mut name: String) -> String {
    const MAX_LEN: usize = 64;
    name.truncate(name.floor_char_boundary(MAX_LEN));
    name
}

fn undecodable(name: &str) -> ApiError {
    ApiError::query(cut(name.to_owned()), "Must be valid UTF-8.")
}

/// Decodes `application/x-www-form-urlencoded`, in which `+` is a space.
fn decode(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(Into::into)
}

/// Refuses any query parameter.
pub(super) struct NoParams;

impl<S: Sync> FromRequestParts<S> for NoParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Params::from_request_parts(parts, state).await?.finish()?;
        Ok(Self)
    }
}

/// The id of the key in the path. An invalid id gets 404, like an unknown one.
pub(super) struct KeyPath(pub(super) KeyId);

impl<S: Send + Sync> FromRequestParts<S> for KeyPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = Path::<String>::from_request_parts(parts, state).await.ok();
        let id = id.and_then(|Path(id)| id.parse().ok());
        id.map(Self).ok_or_else(ApiError::no_such_key)
    }
}
