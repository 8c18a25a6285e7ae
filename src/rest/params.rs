use axum::extract::{FromRequestParts, Path};
use http::request::Parts;
use percent_encoding::percent_decode_str;

use super::refusal::Refusal;
use crate::record::KeyId;

/// More parameters than any route has.
const MAX_PARAMS: usize = 32;

/// The parameters of a query, to be taken out one by one.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// `T` of the parameter called `name`, if it is there.
    pub(super) fn take<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
        expected: &'static str,
    ) -> Result<Option<T>, Refusal> {
        let Some(at) = self.0.iter().position(|(given, _)| given == name) else { return Ok(None) };
        let (_, value) = self.0.swap_remove(at);
        if self.0.iter().any(|(given, _)| given == name) {
            return Err(Refusal::query(name, "This parameter comes more than once."));
        }
        let value = read(&value);
        value.map(Some).ok_or_else(|| Refusal::query(name, format!("That is not {expected}.")))
    }

    /// Nothing may be left.
    pub(super) fn finish(self) -> Result<(), Refusal> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => Err(Refusal::query(cut(name), "There is no such parameter.")),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let pairs =
            parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        if pairs.clone().count() > MAX_PARAMS {
            return Err(Refusal::query("query", "There are more than 32 parameters."));
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

/// What a client called a parameter, of which there need not be more to recognise it.
fn cut(mut name: String) -> String {
    const MAX_LEN: usize = 64;
    name.truncate(name.floor_char_boundary(MAX_LEN));
    name
}

fn undecodable(name: &str) -> Refusal {
    Refusal::query(cut(name.to_owned()), "That is no UTF-8.")
}

/// As forms are encoded: `+` is a space.
fn decode(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(Into::into)
}

/// There is no query.
pub(super) struct NoParams;

impl<S: Sync> FromRequestParts<S> for NoParams {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        Params::from_request_parts(parts, state).await?.finish()?;
        Ok(Self)
    }
}

/// The key that the path names. What is no id names no key.
pub(super) struct KeyPath(pub(super) KeyId);

impl<S: Send + Sync> FromRequestParts<S> for KeyPath {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let id = Path::<String>::from_request_parts(parts, state).await.ok();
        let id = id.and_then(|Path(id)| id.parse().ok());
        id.map(Self).ok_or_else(Refusal::no_such_key)
    }
}
