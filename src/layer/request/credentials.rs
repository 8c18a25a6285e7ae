use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};

use super::{
    authorization::{Credential, credential, has_further_scheme},
    form::Form,
    mistake::Mistake,
    scheme::{Scheme, Schemes},
};
use crate::auth::{Authenticator, Rejection, RejectionKind};

/// The headers in which a request's key is looked for.
#[derive(Clone, Debug)]
pub(in crate::layer) struct Credentials {
    /// The schemes of `Authorization`.
    schemes: Schemes,
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
    /// Whether `key` is the base64 of a user name, which is the key, and a password.
    pub(in crate::layer) is_basic: bool,
}

impl Credentials {
    pub(in crate::layer) fn bearer() -> Self {
        Self::of(Schemes::only(Scheme::BEARER), Vec::new(), Vec::new())
    }

    /// Reads only `header`.
    pub(in crate::layer) fn only(&mut self, header: HeaderName) {
        *self = Self::of(Schemes::default(), Vec::new(), std::mem::take(&mut self.left));
        self.add(header);
    }

    /// Reads only `scheme`.
    pub(in crate::layer) fn only_scheme(&mut self, scheme: Scheme) {
        *self = Self::of(Schemes::only(scheme), Vec::new(), std::mem::take(&mut self.left));
    }

    fn of(schemes: Schemes, headers: Vec<HeaderName>, left: Vec<HeaderName>) -> Self {
        let form = Form { schemes: &schemes, headers: &headers };
        let missing =
            Rejection::advising(RejectionKind::Missing, format!("Send an API key as {form}."));
        Self { schemes, headers, left, missing }
    }

    pub(in crate::layer) fn add(&mut self, header: HeaderName) {
        if header == AUTHORIZATION {
            return self.add_scheme(Scheme::BEARER);
        }
        let Self { schemes, mut headers, left, .. } = self.clone();
        if !headers.contains(&header) {
            headers.push(header);
        }
        *self = Self::of(schemes, headers, left);
    }

    pub(in crate::layer) fn add_scheme(&mut self, scheme: Scheme) {
        let Self { mut schemes, headers, left, .. } = self.clone();
        schemes.add(scheme);
        *self = Self::of(schemes, headers, left);
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
    pub(in crate::layer) fn find<'h, 'c>(
        &'c self,
        headers: &'h HeaderMap,
    ) -> Result<Option<Found<'h, 'c>>, Mistake> {
        let mut found = None;
        if !self.schemes.is_empty()
            && let Some(value) = single(headers, &AUTHORIZATION)?
        {
            let is_sensitive = value.is_sensitive();
            found = credential(value, &self.schemes)?.map(|Credential { text, is_basic }| Found {
                key: text,
                header: &AUTHORIZATION,
                is_sensitive,
                is_basic,
            });
        }
        for header in &self.headers {
            let Some(value) = single(headers, header)? else { continue };
            let key = value.as_bytes().trim_ascii();
            let is_sensitive = value.is_sensitive();
            let in_header = Found { key, header, is_sensitive, is_basic: false };
            if !key.is_empty() && found.replace(in_header).is_some() {
                return Err(Mistake::SeveralKeys);
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
            Some(header) if header != AUTHORIZATION => mistake.advice(&Form {
                schemes: &Schemes::default(),
                headers: std::slice::from_ref(header),
            }),
            _ => mistake.advice(&Form { schemes: &self.schemes, headers: &self.headers }),
        }
    }

    /// The names of the headers that a response varies by.
    pub(in crate::layer) fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        (!self.schemes.is_empty()).then_some(&AUTHORIZATION).into_iter().chain(&self.headers)
    }

    /// The schemes that are read from `Authorization`.
    pub(in crate::layer) fn schemes(&self) -> impl Iterator<Item = &Scheme> {
        self.schemes.iter()
    }

    /// What is wrong with a key of `auth` that is not even a token, or looks like another credential.
    /// `None` if it is a token of an unknown kind.
    pub(in crate::layer) fn mistake_in(
        &self,
        found: &Found<'_, '_>,
        auth: &Authenticator,
    ) -> Option<Mistake> {
        if is_token68(found.key, |byte| auth.is_key_symbol(byte)) {
            return is_json_web_token(found.key).then_some(Mistake::JsonWebToken);
        }
        let parts = found.key.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        let is_key = |part: &[u8]| auth.recognizes(self.schemes.strip(part).unwrap_or(part));
        let keys = parts.filter(|part| is_key(part)).count();
        if keys > 1 || (found.header == AUTHORIZATION && has_further_scheme(found.key)) {
            return Some(Mistake::SeveralKeys);
        }
        Some(match self.schemes.strip(found.key) {
            Some(_) if found.header == AUTHORIZATION => Mistake::RepeatedScheme,
            Some(_) => Mistake::UnexpectedScheme,
            None => Mistake::Characters,
        })
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

/// `header.payload.signature`; the header is JSON, which begins with `{"`.
fn is_json_web_token(token: &[u8]) -> bool {
    token.starts_with(b"eyJ") && token.iter().filter(|&&byte| byte == b'.').count() == 2
}

/// `token68` (RFC 9110 §11.2), of the characters that keys may have.
fn is_token68(bytes: &[u8], is_symbol: impl Fn(u8) -> bool) -> bool {
    let padding = bytes.iter().rev().take_while(|&&byte| byte == b'=').count();
    match bytes.get(..bytes.len() - padding) {
        None | Some([]) => false,
        Some(symbols) => symbols.iter().all(|&byte| is_symbol(byte)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::is_bearer_symbol;

    #[test]
    fn a_token_is_symbols_then_padding() {
        for token in ["a", "a=", "a==", "aA0-._~+/", "sk_live_x"] {
            assert!(is_token68(token.as_bytes(), is_bearer_symbol), "{token:?}");
        }
        for token in ["", "=", "a=a", "a b", "a,b", "a%", "a\"", "\ta", "ä", "a\u{7f}", "1|a"] {
            assert!(!is_token68(token.as_bytes(), is_bearer_symbol), "{token:?}");
        }
        assert!(is_token68(b"1|a", |byte| is_bearer_symbol(byte) || byte == b'|'));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(value: Vec<u8>) {
            let _ = is_token68(&value, is_bearer_symbol);
        }
    }
}
