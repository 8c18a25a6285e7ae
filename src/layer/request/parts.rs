//! What the renderer of a rejection sees of the request: everything but its body and its key.

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Uri,
    header::AUTHORIZATION,
    request::Parts,
    uri::{Parts as UriParts, PathAndQuery},
};

use super::{caller::noted_header, credentials::Credentials, misplaced_key::basic};
use crate::{auth::Authenticator, key::KeyMask};

/// The parts of a request that a layer of `auth` rejected. The key may be anywhere in it: the
/// request may have been rejected for that.
pub(in crate::layer) fn parts_without_keys<B>(
    request: Request<B>,
    credentials: &Credentials,
    auth: &Authenticator,
) -> Parts {
    let (mut parts, _) = request.into_parts();
    let mask = auth.mask();
    let has_key = |text: &[u8]| mask.finds_distinctive(text);
    if !parts.headers.is_empty() {
        parts.headers.remove(AUTHORIZATION);
        for name in credentials.headers() {
            parts.headers.remove(name);
        }
        remove_headers(&mut parts.headers, |value| {
            let value = value.as_bytes();
            has_key(value) || basic(value).is_some_and(|decoded| has_key(&decoded))
        });
    }
    if let Some(masked) = masked_uri(&parts.uri, mask) {
        parts.uri = masked;
    }
    #[cfg(feature = "axum")]
    super::original_uri::mask_original_uri(&mut parts.extensions, |uri| masked_uri(uri, mask));
    parts
}

/// The parts of a request that passed a layer, which may have left the key in it.
pub(in crate::layer) fn parts_without_key<B>(request: Request<B>) -> Parts {
    let (mut parts, _) = request.into_parts();
    parts.headers.remove(AUTHORIZATION);
    let noted = noted_header(&parts.extensions).clone();
    parts.headers.remove(noted);
    remove_headers(&mut parts.headers, HeaderValue::is_sensitive);
    parts
}

fn remove_headers(headers: &mut HeaderMap, has_key: impl Fn(&HeaderValue) -> bool) {
    let names = headers.iter().filter(|(_, value)| has_key(value));
    // Usually empty, and then it takes no memory.
    let names: Vec<HeaderName> = names.map(|(name, _)| name.clone()).collect();
    for name in names {
        headers.remove(name);
    }
}

/// `uri` with its keys masked; `None` if it has none.
fn masked_uri(uri: &Uri, mask: &KeyMask) -> Option<Uri> {
    let path = uri.path_and_query().map_or("", PathAndQuery::as_str);
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let in_authority = mask.finds_distinctive(authority.as_bytes());
    if !in_authority && !mask.finds_distinctive(path.as_bytes()) {
        return None;
    }
    // A URI is ASCII.
    let masked = mask.mask(path).replace('…', "...");
    let path = PathAndQuery::try_from(masked).unwrap_or(PathAndQuery::from_static("/"));
    let mut parts = if in_authority { UriParts::default() } else { uri.clone().into_parts() };
    parts.path_and_query = Some(path);
    Some(Uri::from_parts(parts).unwrap_or_default())
}
