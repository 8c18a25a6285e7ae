//! Networks, tags and origins in request bodies.

use super::error::{ApiError, sentence};
use crate::{
    manage::NewKey,
    record::{InvalidKeyKind, InvalidNetwork, KeyKind, Network, Networks, Tags, WebOrigins},
};

/// The networks that a key works from.
pub(super) fn networks(texts: Vec<String>) -> Result<Networks, ApiError> {
    bounded("/networks", texts.len(), Networks::MAX_NETWORKS, "A key has at most 64 networks.")?;
    let network = |(at, text): (usize, String)| {
        text.parse::<Network>()
            .map_err(|error| ApiError::invalid(format!("/networks/{at}"), error.to_string()))
    };
    let networks = texts.into_iter().enumerate().map(network).collect::<Result<Vec<_>, _>>()?;
    networks
        .try_into()
        .map_err(|error: InvalidNetwork| ApiError::invalid("/networks", error.to_string()))
}

/// The tags of a key.
pub(super) fn tags(texts: Vec<String>) -> Result<Tags, ApiError> {
    bounded("/tags", texts.len(), Tags::MAX_TAGS, "A key has at most 32 tags.")?;
    let one = |text: &String| Tags::parse([text.as_str()]).map_err(|error| error.to_string());
    each("/tags", &texts, one)?;
    Tags::parse(texts).map_err(|error| ApiError::invalid("/tags", error.to_string()))
}

/// The origins of a publishable key.
pub(super) fn origins(texts: Vec<String>) -> Result<WebOrigins, ApiError> {
    let detail = "A key has at most 32 origins.";
    bounded("/origins", texts.len(), WebOrigins::MAX_ORIGINS, detail)?;
    let one = |text: &String| WebOrigins::parse([text.as_str()]).map_err(|error| error.to_string());
    each("/origins", &texts, one)?;
    WebOrigins::parse(texts).map_err(|error| ApiError::invalid("/origins", error.to_string()))
}

/// The kind of a new key, with its origins.
pub(super) fn with_kind(
    new: NewKey,
    kind: Option<String>,
    origins: Option<Vec<String>>,
) -> Result<NewKey, ApiError> {
    let kind = kind.map(|kind| kind.parse()).transpose();
    let kind = kind.map_err(|error: InvalidKeyKind| {
        ApiError::invalid("/kind", sentence(&error.to_string()))
    })?;
    match (kind.unwrap_or_default(), self::origins(origins.unwrap_or_default())?) {
        (KeyKind::Publishable, origins) => Ok(new.publishable(origins)),
        (KeyKind::Canary, origins) if origins.is_empty() => Ok(new.canary()),
        (_, origins) if origins.is_empty() => Ok(new),
        _ => {
            let detail = "Only a publishable key has origins: send \"kind\": \"publishable\", too.";
            Err(ApiError::invalid("/origins", detail))
        }
    }
}

fn bounded(
    field: &'static str,
    len: usize,
    max: usize,
    detail: &'static str,
) -> Result<(), ApiError> {
    if len > max { Err(ApiError::invalid(field, detail)) } else { Ok(()) }
}

/// Names the first text that is not valid.
fn each<T>(
    field: &'static str,
    texts: &[String],
    parse: impl Fn(&String) -> Result<T, String>,
) -> Result<(), ApiError> {
    for (at, text) in texts.iter().enumerate() {
        parse(text).map_err(|problem| ApiError::invalid(format!("{field}/{at}"), problem))?;
    }
    Ok(())
}
