use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};

const SCHEME: &[u8] = b"Bearer";

/// The headers in which a request's key is looked for.
#[derive(Clone, Debug)]
pub(in crate::layer) struct Credentials {
    authorization: bool,
    headers: Vec<HeaderName>,
}

/// A key, and the header it was found in.
pub(in crate::layer) struct Found<'h, 'c> {
    pub(in crate::layer) key: &'h [u8],
    pub(in crate::layer) header: &'c HeaderName,
}

/// More than one credential, or a malformed one.
#[derive(Debug, PartialEq)]
pub(in crate::layer) struct Ambiguous;

impl Credentials {
    pub(in crate::layer) const BEARER: Self = Self { authorization: true, headers: Vec::new() };

    pub(in crate::layer) fn only(header: HeaderName) -> Self {
        let mut credentials = Self { authorization: false, headers: Vec::new() };
        credentials.add(header);
        credentials
    }

    pub(in crate::layer) fn add(&mut self, header: HeaderName) {
        if header == AUTHORIZATION {
            self.authorization = true;
        } else if !self.headers.contains(&header) {
            self.headers.push(header);
        }
    }

    /// The key of a request; `None` if it has no credentials for this layer.
    ///
    /// Of two keys, neither is used: a proxy may have checked the other one.
    pub(in crate::layer) fn find<'h, 'c>(
        &'c self,
        headers: &'h HeaderMap,
    ) -> Result<Option<Found<'h, 'c>>, Ambiguous> {
        let mut found = None;
        if self.authorization
            && let Some(value) = single(headers, &AUTHORIZATION)?
        {
            found = bearer(value)?.map(|key| Found { key, header: &AUTHORIZATION });
        }
        for header in &self.headers {
            let key = single(headers, header)?.map(|value| value.as_bytes().trim_ascii());
            if let Some(key) = key.filter(|key| !key.is_empty())
                && found.replace(Found { key, header }).is_some()
            {
                return Err(Ambiguous);
            }
        }
        Ok(found)
    }

    /// The names of the headers that a response varies by.
    pub(in crate::layer) fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.authorization.then_some(&AUTHORIZATION).into_iter().chain(&self.headers)
    }
}

fn single<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'h HeaderValue>, Ambiguous> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Ambiguous),
        (first, None) => Ok(first),
    }
}

/// The token after `Bearer` and spaces (RFC 6750 §2.1); `None` if empty or of another scheme.
fn bearer(value: &HeaderValue) -> Result<Option<&[u8]>, Ambiguous> {
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
        return match rest.get(spaces..) {
            None | Some([]) => Err(Ambiguous),
            key => Ok(key),
        };
    }
    let is_another_scheme = scheme.iter().all(|&byte| is_token(byte)) && !hides_a_key(rest);
    if is_another_scheme { Ok(None) } else { Err(Ambiguous) }
}

/// Whether a proxy has appended a bearer token to the credentials of another scheme.
fn hides_a_key(credentials: &[u8]) -> bool {
    credentials.split(|&byte| byte == b',').skip(1).any(|joined| {
        let joined = joined.trim_ascii();
        joined.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
            && joined.get(SCHEME.len()).is_none_or(|&byte| byte == b' ')
    })
}

/// `tchar` (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// `b64token` (RFC 6750 §2.1); every key format is a subset of it.
pub(in crate::layer) fn is_b64token(bytes: &[u8]) -> bool {
    let padding = bytes.iter().rev().take_while(|&&byte| byte == b'=').count();
    let symbol = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    match bytes.get(..bytes.len() - padding) {
        None | Some([]) => false,
        Some(symbols) => symbols.iter().all(symbol),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(value: &[u8]) -> Result<Option<Vec<u8>>, Ambiguous> {
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
        ] {
            assert_eq!(read(value.as_bytes()), Ok(None), "{value:?}");
        }
    }

    #[test]
    fn a_scheme_without_a_key_or_that_is_no_token_is_ambiguous() {
        for value in [
            "Basic dTpw, Bearer k",
            "Basic dTpw,bearer k",
            "Bearer",
            "Bearer   ",
            "Bearer,k",
            "Bearer=k",
            "\u{fffd} k",
            "\"Bearer\" k",
        ] {
            assert_eq!(read(value.as_bytes()), Err(Ambiguous), "{value:?}");
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
