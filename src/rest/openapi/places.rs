//! Schemas of networks, tags and origins.

use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder};

use super::types::{string, tag};
use crate::record::{KeyKind, Networks, Tags, WebOrigins};

/// The characters of a network. Which of these texts are networks is more than a pattern can say.
const NETWORK: &str = "^[0-9A-Fa-f.:]{2,45}(/[0-9]{1,3})?$";
const ORIGIN: &str = r"^[a-z][a-z0-9+.-]*://[^\s/]{1,247}$";

pub(super) fn networks() -> ArrayBuilder {
    let network = string().pattern(Some(NETWORK)).examples(["203.0.113.0/24", "2001:db8::/32"]);
    ArrayBuilder::new().items(network).max_items(Some(Networks::MAX_NETWORKS)).description(Some(
        "The networks that the key works from, in CIDR notation without bits beyond the prefix \
         length. An empty list: from anywhere.",
    ))
}

pub(super) fn tags() -> ArrayBuilder {
    ArrayBuilder::new()
        .items(tag())
        .max_items(Some(Tags::MAX_TAGS))
        .description(Some("Words by which people and lists find the key. They grant nothing."))
}

pub(super) fn origins() -> ArrayBuilder {
    let origin = string()
        .pattern(Some(ORIGIN))
        .max_length(Some(WebOrigins::MAX_LEN))
        .examples(["https://shop.example"]);
    ArrayBuilder::new().items(origin).max_items(Some(WebOrigins::MAX_ORIGINS)).description(Some(
        "The web origins that a publishable key works for, as browsers send them in `Origin`. A \
         secret key has none.",
    ))
}

pub(super) fn kind() -> ObjectBuilder {
    let kinds = KeyKind::ALL.map(KeyKind::as_str);
    string().enum_values(Some(kinds)).description(Some(
        "Whether the key is a secret, publishable: for pages that everyone can read, or a canary: \
         it is always refused, and its use is in its audit. It cannot be changed.",
    ))
}
