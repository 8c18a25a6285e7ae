//! The web origins that a publishable key works for.

use std::{error::Error, fmt};

use serde::{Deserialize, Serialize};

use super::words::Words;

/// The web origins that a [publishable](super::KeyKind::Publishable) key works for, sorted. Cheap to clone.
///
/// An origin is written as browsers send it in `Origin`
/// ([RFC 6454 §6.2](https://www.rfc-editor.org/rfc/rfc6454#section-6.2)): scheme, host and a port other
/// than the scheme's default, in lower case, without a path. There are no wildcards, and `null`, which
/// sandboxed pages and local files send, is not an origin.
///
/// ```
/// use tower_api_key::record::WebOrigins;
///
/// let origins = WebOrigins::parse(["https://shop.example", "http://localhost:3000"])?;
/// assert!(origins.admit(b"https://shop.example"));
/// assert!(!origins.admit(b"https://shop.example.attacker.example"));
/// assert!(WebOrigins::parse(["https://shop.example/"]).is_err());
/// # Ok::<(), tower_api_key::record::InvalidWebOrigin>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct WebOrigins(Words);

impl WebOrigins {
    /// Maximum origins per key: 32. Every request of such a key is compared with them.
    pub const MAX_ORIGINS: usize = 32;

    /// Maximum characters of an origin: 255.
    pub const MAX_LEN: usize = 255;

    /// Validates each of `origins`.
    ///
    /// # Errors
    ///
    /// When one of them is not an origin as browsers send it, or there are more than
    /// [`MAX_ORIGINS`](Self::MAX_ORIGINS).
    pub fn parse<S: Into<String>>(
        origins: impl IntoIterator<Item = S>,
    ) -> Result<Self, InvalidWebOrigin> {
        Words::collect(origins, Self::MAX_ORIGINS, is_origin).map(Self).ok_or(InvalidWebOrigin)
    }

    /// The origins in alphabetical order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter()
    }

    /// Whether there are none, as for a secret key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `origin`, the value of an `Origin` header, is one of them.
    #[must_use]
    pub fn admit(&self, origin: &[u8]) -> bool {
        self.0.contains(origin)
    }

    /// Whether each of them is in `bound`.
    pub(crate) fn is_within(&self, bound: &Self) -> bool {
        self.iter().all(|origin| bound.admit(origin.as_bytes()))
    }
}

/// Whether `text` is an origin in the form that browsers send.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte)
        });
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_label =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bracketed {
        // Browsers write an IPv6 address as Rust does: shortest, in lower case.
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok_and(|ip| ip.to_string() == v6),
        None => !host.is_empty() && host.bytes().all(is_label),
    };
    let is_default = |port: &str| matches!((scheme, port), ("http", "80") | ("https", "443"));
    let is_port = |port: &str| {
        port.parse::<u16>().is_ok_and(|number| number.to_string() == port) && !is_default(port)
    };
    text.len() <= WebOrigins::MAX_LEN && is_scheme && is_host && port.is_none_or(is_port)
}

impl TryFrom<Vec<String>> for WebOrigins {
    type Error = InvalidWebOrigin;

    fn try_from(origins: Vec<String>) -> Result<Self, InvalidWebOrigin> {
        Self::parse(origins)
    }
}

impl From<WebOrigins> for Vec<String> {
    fn from(origins: WebOrigins) -> Self {
        origins.0.into_vec()
    }
}

/// The text is not an origin as browsers send it, or there are too many origins for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidWebOrigin;

impl fmt::Display for InvalidWebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "an origin must be written as browsers send it, such as https://shop.example or \
             http://localhost:3000: in lower case, without a path, without the default port and \
             without wildcards, at most 255 characters; and a key must have at most 32 origins",
        )
    }
}

impl Error for InvalidWebOrigin {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_written_as_browsers_send_it() {
        let long = format!("https://{}", "a".repeat(248));
        for origin in [
            "",
            "null",
            "*",
            "shop.example",
            "https://",
            "https://shop.example/",
            "https://Shop.example",
            "HTTPS://shop.example",
            "https://*.example",
            "https://shop.example:443",
            "http://shop.example:80",
            "https://shop.example:",
            "https://shop.example:08443",
            "https://shop.example:65536",
            "https://user@shop.example",
            "https://shop.example?a",
            "https://shop.example#a",
            " https://shop.example",
            "https://shop.example https://other.example",
            "https://[::1",
            "https://[0:0::1]",
            "https://[::1]:443",
            "https://shöp.example",
            "1s://a",
            &long,
        ] {
            assert_eq!(WebOrigins::parse([origin]), Err(InvalidWebOrigin), "{origin:?}");
        }
        for origin in [
            "https://shop.example",
            "http://localhost:3000",
            "http://127.0.0.1:8080",
            "https://[2001:db8::1]",
            "https://[::1]:8443",
            "http://shop.example:443",
            "capacitor://localhost",
            "chrome-extension://abcdef",
            "https://xn--shp-tna.example",
        ] {
            assert!(WebOrigins::parse([origin]).is_ok(), "{origin:?}");
        }
    }

    #[test]
    fn a_key_has_at_most_32_origins_and_each_is_matched_as_a_whole() {
        let names = |count: usize| (0..count).map(|at| format!("https://s{at}.example"));
        assert!(WebOrigins::parse(names(32)).is_ok());
        assert_eq!(WebOrigins::parse(names(33)), Err(InvalidWebOrigin));
        let origins = WebOrigins::parse(["https://shop.example"]).unwrap();
        for other in [
            &b""[..],
            b"null",
            b"https://shop.exampl",
            b"https://shop.example.",
            b"shop.example",
            b"https://shop.example:8443",
            b"http://shop.example",
            b"https://shop.example\xff",
        ] {
            assert!(!origins.admit(other), "{other:?}");
        }
        assert!(origins.is_within(
            &WebOrigins::parse(names(2).chain(["https://shop.example".into()])).unwrap()
        ));
        assert!(!origins.is_within(&WebOrigins::parse(names(2)).unwrap()));
    }

    #[test]
    fn json_is_a_list_of_texts() {
        let origins = WebOrigins::parse(["https://b.example", "https://a.example"]).unwrap();
        let json = serde_json::to_string(&origins).unwrap();
        assert_eq!(json, r#"["https://a.example","https://b.example"]"#);
        assert_eq!(serde_json::from_str::<WebOrigins>(&json).unwrap(), origins);
        assert!(serde_json::from_str::<WebOrigins>(r#"["https://a.example/"]"#).is_err());
        assert!(serde_json::from_str::<WebOrigins>("[]").unwrap().is_empty());
    }
}
