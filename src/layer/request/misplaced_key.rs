//! Finds a key that a client sent where the layer does not read one. On an optional route the
//! request would otherwise pass as anonymous, with the key in it.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, Request, header::AUTHORIZATION};

use super::{credentials::Credentials, mistake::Mistake};
use crate::auth::Authenticator;

/// Headers that a client may take for the one with the key: those whose names contain one of these.
const SUSPECTS: [&str; 3] = ["auth", "key", "token"];

/// The mistake of a request in which `credentials` found no key, if it has a key of `auth`
/// elsewhere: in `Authorization` without `Bearer`, in another header, or in the query.
pub(in crate::layer) fn find_misplaced<B>(
    request: &Request<B>,
    credentials: &Credentials,
    auth: &Authenticator,
) -> Option<Mistake> {
    let is_read = |name: &HeaderName| credentials.headers().any(|read| read == name);
    if is_read(&AUTHORIZATION)
        && let Some(mistake) = in_authorization(request.headers(), auth)
    {
        return Some(mistake);
    }
    let mut others = request.headers().iter().filter(|(name, _)| {
        SUSPECTS.iter().any(|part| name.as_str().contains(part))
            && !is_read(name)
            && !credentials.leaves(name)
    });
    if others.any(|(_, value)| holds_key(value.as_bytes(), auth)) {
        return Some(Mistake::OtherHeader);
    }
    let query = request.uri().query().unwrap_or_default();
    has_key(query.as_bytes(), auth).then_some(Mistake::Url)
}

fn in_authorization(headers: &HeaderMap, auth: &Authenticator) -> Option<Mistake> {
    let value = headers.get(AUTHORIZATION)?.as_bytes().trim_ascii();
    // A scheme never looks like a key, so here a key may also be incomplete, or of a format that
    // has no prefix.
    if auth.resembles(value) {
        return Some(Mistake::NoScheme);
    }
    holds_key(value, auth).then_some(Mistake::OtherScheme)
}

/// Whether a header's value contains a key, plain or as the user or password of `Basic`.
fn holds_key(value: &[u8], auth: &Authenticator) -> bool {
    has_key(value, auth) || basic(value).is_some_and(|decoded| has_key(&decoded, auth))
}

/// Whether a word of `text` is a key. A word may end in padding, as keys in base64 do.
fn has_key(text: &[u8], auth: &Authenticator) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = split_where(rest, |byte| !auth.is_key_symbol(byte));
        let (padding, after) = split_where(after, |byte| byte != b'=');
        let padded = rest.get(..word.len() + padding.len()).unwrap_or_default();
        if !word.is_empty() && (auth.recognizes(word) || auth.recognizes(padded)) {
            return true;
        }
        // Between two words is at least one other character.
        rest = if padded.is_empty() { after.get(1..).unwrap_or_default() } else { after };
    }
    false
}

/// `text` before and from the first byte that is `other`.
fn split_where(text: &[u8], other: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    let end = text.iter().position(|&byte| other(byte)).unwrap_or(text.len());
    text.split_at(end)
}

/// The user and password of `Basic`.
pub(super) fn basic(value: &[u8]) -> Option<Vec<u8>> {
    let (scheme, credentials) = value.split_at_checked("Basic ".len())?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    STANDARD.decode(credentials.trim_ascii()).ok()
}
