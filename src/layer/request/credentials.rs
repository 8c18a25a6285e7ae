use std::fmt;

use http::{
    HeaderMap, HeaderName, HeaderValue, Request,
    header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL},
};

use super::{mistake::Mistake, websocket_protocol};
use crate::{
    auth::{Rejection, RejectionKind},
    key::is_bearer_symbol,
};

const SCHEME: &[u8] = b"Bearer";

/// The headers in which a request's key is looked for.
#[derive(Clone, Debug)]
pub(in crate::layer) struct Credentials {
    authorization: bool,
    headers: Vec<HeaderName>,
    /// Headers whose keys are for others.
    left: Vec<HeaderName>,
    missing: Rejection,
}

/// A key, and the header it was found in.
#[derive(Clone, Copy)]
pub(in crate::layer) struct Found<'h, 'c> {
    pub(in crate::layer) key: &'h [u8],
    pub(in crate::layer) header: &'c HeaderName,
    /// Whether the header is marked as sensitive, as by an outer layer that keeps the key.
    pub(in crate::layer) is_sensitive: bool,
}

impl Credentials {
    pub(in crate::layer) fn bearer() -> Self {
        Self::of(true, Vec::new(), Vec::new())
    }

    /// Reads only `header`.
    pub(in crate::layer) fn only(&mut self, header: HeaderName) {
        *self = Self::of(false, Vec::new(), std::mem::take(&mut self.left));
        self.add(header);
    }

    fn of(authorization: bool, headers: Vec<HeaderName>, left: Vec<HeaderName>) -> Self {
        let form = Form { authorization, headers: &headers };
        let missing =
            Rejection::advising(RejectionKind::Missing, format!("Send an API key as {form}."));
        Self { authorization, headers, left, missing }
    }

    pub(in crate::layer) fn add(&mut self, header: HeaderName) {
        let Self { mut authorization, mut headers, left, .. } = self.clone();
        if header == AUTHORIZATION {
            authorization = true;
        } else if !headers.contains(&header) {
            headers.push(header);
        }
        *self = Self::of(authorization, headers, left);
    }

    /// Leaves a key in `header` to others.
    pub(in crate::layer) fn leave(&mut self, header: HeaderName) {
        self.left.push(header);
    }

    /// Whether a key in `header` is for others.
    pub(super) fn leaves(&self, header: &HeaderName) -> bool {
        self.left.contains(header)
    }

    /// The key of a request; `None` if it has no credentials for this layer.
    ///
    /// Of two keys, neither is used: a proxy may have checked the other one.
    ///
    /// `is_key` recognizes keys.
    pub(in crate::layer) fn find<'h, 'c, B>(
        &'c self,
        request: &'h Request<B>,
        is_key: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Found<'h, 'c>>, Mistake> {
        let headers = request.headers();
        let mut found = None;
        if self.authorization
            && let Some(value) = single(headers, &AUTHORIZATION)?
        {
            let is_sensitive = value.is_sensitive();
            found = bearer(value)?.map(|key| Found { key, header: &AUTHORIZATION, is_sensitive });
        }
        for header in &self.headers {
            let more = if *header == SEC_WEBSOCKET_PROTOCOL {
                websocket_protocol::find(request, &is_key)
            } else {
                bare(headers, header)
            };
            match more {
                Ok(None) => {}
                Ok(Some((key, is_sensitive))) if found.is_none() => {
                    found = Some(Found { key, header, is_sensitive });
                }
                Err(mistake) if found.is_none() => return Err(mistake),
                _ => return Err(Mistake::SeveralKeys),
            }
        }
        Ok(found)
    }

    /// The rejection of a request without credentials.
    pub(in crate::layer) fn missing(&self) -> &Rejection {
        &self.missing
    }

    /// The advice for `mistake`, made in `header` if that is known.
    pub(in crate::layer) fn advice(&self, mistake: Mistake, header: Option<&HeaderName>) -> String {
        match header {
            Some(header) if header != AUTHORIZATION => mistake
                .advice(&Form { authorization: false, headers: std::slice::from_ref(header) }),
            _ => {
                mistake.advice(&Form { authorization: self.authorization, headers: &self.headers })
            }
        }
    }

    /// The names of the headers that a response varies by.
    pub(in crate::layer) fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.authorization.then_some(&AUTHORIZATION).into_iter().chain(&self.headers)
    }
}

impl Found<'_, '_> {
    /// What is wrong with a key that is not even a bearer token, or looks like another credential.
    /// `is_key` recognises keys. `None` if it is a token of an unknown kind.
    pub(in crate::layer) fn mistake(&self, is_key: impl Fn(&[u8]) -> bool) -> Option<Mistake> {
        if is_b64token(self.key) {
            return is_json_web_token(self.key).then_some(Mistake::JsonWebToken);
        }
        let parts = self.key.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        let keys = parts.filter(|part| is_key(strip_scheme(part).unwrap_or(part))).count();
        if keys > 1 || (self.header == AUTHORIZATION && has_further_scheme(self.key)) {
            return Some(Mistake::SeveralKeys);
        }
        Some(match strip_scheme(self.key) {
            Some(_) if self.header == AUTHORIZATION => Mistake::RepeatedScheme,
            Some(_) => Mistake::UnexpectedScheme,
            None => Mistake::Characters,
        })
    }
}

/// Removes the key that was found in `header`.
pub(in crate::layer) fn remove_key(headers: &mut HeaderMap, header: &HeaderName) {
    if *header == SEC_WEBSOCKET_PROTOCOL {
        websocket_protocol::remove_key(headers);
    } else {
        headers.remove(header);
    }
}

/// Marks the key that was found in `header` as sensitive.
pub(in crate::layer) fn mark_sensitive(headers: &mut HeaderMap, header: &HeaderName) {
    for (_, value) in headers.iter_mut().filter(|(name, _)| *name == header) {
        value.set_sensitive(true);
    }
}

/// How a client sends a key: one form for each header.
struct Form<'a> {
    authorization: bool,
    headers: &'a [HeaderName],
}

impl fmt::Display for Form<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if self.authorization {
            f.write_str("`Authorization: Bearer <key>`")?;
            separator = " or ";
        }
        for header in self.headers {
            f.write_str(separator)?;
            if *header == SEC_WEBSOCKET_PROTOCOL {
                let list = "`Sec-WebSocket-Protocol: bearer, <key>, <protocol>`";
                write!(f, "{list} of a WebSocket handshake")?;
            } else {
                write!(f, "`{header}: <key>`")?;
            }
            separator = " or ";
        }
        Ok(())
    }
}

fn single<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'h HeaderValue>, Mistake> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Mistake::SeveralKeys),
        (first, None) => Ok(first),
    }
}

/// The key that is the value of a header, and whether that is marked as sensitive.
fn bare<'h>(
    headers: &'h HeaderMap,
    header: &HeaderName,
) -> Result<Option<(&'h [u8], bool)>, Mistake> {
    let Some(value) = single(headers, header)? else { return Ok(None) };
    let key = value.as_bytes().trim_ascii();
    Ok((!key.is_empty()).then(|| (key, value.is_sensitive())))
}

/// The token after `Bearer` and spaces (RFC 6750 §2.1); `None` without a token, or of another
/// scheme.
fn bearer(value: &HeaderValue) -> Result<Option<&[u8]>, Mistake> {
    // The common spelling, without a case-insensitive search.
    if let Some(key @ [first, .., last]) = value.as_bytes().strip_prefix(b"Bearer ")
        && first.is_ascii_graphic()
        && last.is_ascii_graphic()
    {
        return Ok(Some(key));
    }
    let value = value.as_bytes().trim_ascii();
    let end = value.iter().position(|&byte| byte == b' ' || byte == b'\t').unwrap_or(value.len());
    let (scheme, rest) = value.split_at(end);
    if scheme.eq_ignore_ascii_case(SCHEME) {
        let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
        return Ok(rest.get(spaces..).filter(|key| !key.is_empty()));
    }
    if !scheme.iter().all(|&byte| is_token(byte)) {
        return Err(Mistake::Characters);
    }
    if hides_a_key(rest) { Err(Mistake::SeveralKeys) } else { Ok(None) }
}

/// Whether a proxy has appended a bearer token to the credentials of another scheme.
fn hides_a_key(credentials: &[u8]) -> bool {
    credentials.split(|&byte| byte == b',').skip(1).any(|joined| {
        let joined = joined.trim_ascii();
        joined.eq_ignore_ascii_case(SCHEME) || strip_scheme(joined).is_some()
    })
}

/// Whether a proxy has appended the credentials of any scheme to a bearer token.
fn has_further_scheme(credentials: &[u8]) -> bool {
    credentials.split(|&byte| byte == b',').skip(1).any(|joined| {
        let joined = joined.trim_ascii();
        let scheme = joined.split(|&byte| byte == b' ').next().unwrap_or_default();
        !scheme.is_empty() && scheme.len() < joined.len() && scheme.iter().all(|&b| is_token(b))
    })
}

/// What follows `Bearer` and spaces.
fn strip_scheme(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = credentials.split_at_checked(SCHEME.len())?;
    let follows = scheme.eq_ignore_ascii_case(SCHEME) && key.starts_with(b" ");
    follows.then(|| key.trim_ascii_start())
}

/// `header.payload.signature`; the header is JSON, which begins with `{"`.
fn is_json_web_token(token: &[u8]) -> bool {
    token.starts_with(b"eyJ") && token.iter().filter(|&&byte| byte == b'.').count() == 2
}

/// `tchar` (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// `b64token` (RFC 6750 §2.1); every key format is a subset of it.
fn is_b64token(bytes: &[u8]) -> bool {
    let padding = bytes.iter().rev().take_while(|&&byte| byte == b'=').count();
    match bytes.get(..bytes.len() - padding) {
        None | Some([]) => false,
        Some(symbols) => symbols.iter().all(|&byte| is_bearer_symbol(byte)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(value: &[u8]) -> Result<Option<Vec<u8>>, Mistake> {
        let value = HeaderValue::from_bytes(value).unwrap();
        bearer(&value).map(|key| key.map(<[u8]>::to_vec))
    }

    #[test]
    fn the_key_follows_the_scheme_and_spaces() {
        for value in ["Bearer k", "bearer k", "BEARER   k", " bEaReR k "] {
            assert_eq!(read(value.as_bytes()), Ok(Some(b"k".to_vec())), "{value:?}");
        }
    }

    #[test]
    fn nothing_and_other_schemes_are_no_credentials_of_ours() {
        for value in [
            "",
            "  ",
            "Basic dTpw",
            "Digest a=\"b\", c=d",
            "Token k",
            "Bearerk",
            "k",
            "Basic dTpw, Bearers k",
            "Basic dTpw, Digest k",
            "Bearer",
            "Bearer   ",
        ] {
            assert_eq!(read(value.as_bytes()), Ok(None), "{value:?}");
        }
    }

    #[test]
    fn a_scheme_that_is_not_a_token_is_a_mistake() {
        for value in ["Bearer,k", "Bearer=k", "\u{fffd} k", "\"Bearer\" k"] {
            assert_eq!(read(value.as_bytes()), Err(Mistake::Characters), "{value:?}");
        }
    }

    #[test]
    fn a_joined_bearer_token_is_a_mistake() {
        for value in ["Basic dTpw, Bearer k", "Basic dTpw,bearer k", "Basic dTpw, Bearer"] {
            assert_eq!(read(value.as_bytes()), Err(Mistake::SeveralKeys), "{value:?}");
        }
    }

    #[test]
    fn a_token_is_symbols_then_padding() {
        for token in ["a", "a=", "a==", "aA0-._~+/", "sk_live_x"] {
            assert!(is_b64token(token.as_bytes()), "{token:?}");
        }
        for token in ["", "=", "a=a", "a b", "a,b", "a%", "a\"", "\ta", "ä", "a\u{7f}"] {
            assert!(!is_b64token(token.as_bytes()), "{token:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(value: Vec<u8>) {
            let _ = is_b64token(&value);
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let _ = bearer(&value);
            }
        }
    }
}
