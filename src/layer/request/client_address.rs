use std::{
    iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use http::{Extensions, HeaderMap, HeaderName, header::FORWARDED};

use super::peer::peer;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How to find a client's address, for [`client_address`](crate::layer::ApiKeyLayer::client_address)
/// and [`throttle_failures`](crate::layer::ApiKeyLayer::throttle_failures).
///
/// Clients can write anything into a forwarding header, and proxies append to it. So addresses are
/// counted from the right, one for each trusted proxy: the client's address is the one that the
/// outermost trusted proxy saw. Anything to the left of it is never read. If the header has fewer
/// addresses than there are proxies, or anything else in that place, the address is unknown.
///
/// ```
/// use tower_api_key::{ApiKeyLayer, layer::ClientAddress};
/// # use tower_api_key::{Authenticator, key::KeyFormat, store::MemoryKeyStore};
///
/// # let format = KeyFormat::new("sk_live_").unwrap();
/// # let (auth, worker) = Authenticator::builder(MemoryKeyStore::new(), format).build();
/// # drop(worker);
/// // Behind a CDN and a load balancer.
/// let layer = ApiKeyLayer::new(auth).throttle_failures(ClientAddress::x_forwarded_for(2));
/// # drop(layer);
/// ```
///
/// # Security
///
/// The number of proxies must be exact. If it is too high, or if clients can bypass a proxy, they
/// can forge their address; if it is too low, all clients appear to be the proxy.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(Source);

#[derive(Clone, Copy, Debug)]
enum Source {
    Peer,
    /// The header, and how many trusted proxies append to it.
    Header(Header, usize),
}

#[derive(Clone, Copy, Debug)]
enum Header {
    Forwarded,
    XForwardedFor,
}

impl ClientAddress {
    /// The peer of the connection, for services without a proxy.
    ///
    /// It is read from the request's extensions: from axum's `ConnectInfo<SocketAddr>` (feature
    /// `axum`), which `Router::into_make_service_with_connect_info` inserts, or from
    /// [`PeerAddr`](crate::layer::PeerAddr). If both are missing, a warning is logged once.
    #[must_use]
    pub const fn peer() -> Self {
        Self(Source::Peer)
    }

    /// `for=` of [`Forwarded`](https://www.rfc-editor.org/rfc/rfc7239#section-4), to which each of
    /// `trusted_proxies` appends an element. With 0 proxies, the same as [`peer`](Self::peer).
    ///
    /// An identifier that is not an address, such as `unknown` or `_hidden`, makes the address
    /// unknown.
    #[must_use]
    pub const fn forwarded(trusted_proxies: usize) -> Self {
        Self::header(Header::Forwarded, trusted_proxies)
    }

    /// `X-Forwarded-For`, to which each of `trusted_proxies` appends an address, with or without a
    /// port. With 0 proxies, the same as [`peer`](Self::peer).
    #[must_use]
    pub const fn x_forwarded_for(trusted_proxies: usize) -> Self {
        Self::header(Header::XForwardedFor, trusted_proxies)
    }

    const fn header(header: Header, trusted_proxies: usize) -> Self {
        match trusted_proxies {
            0 => Self::peer(),
            _ => Self(Source::Header(header, trusted_proxies)),
        }
    }

    /// The address; `None` if the request has none that can be trusted.
    pub(in crate::layer) fn address(
        self,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Option<IpAddr> {
        match self.0 {
            Source::Peer => peer(extensions),
            Source::Header(Header::Forwarded, proxies) => {
                node(for_of(nth_from_right(headers, &FORWARDED, proxies)?)?)
            }
            Source::Header(Header::XForwardedFor, proxies) => {
                node(nth_from_right(headers, &X_FORWARDED_FOR, proxies)?)
            }
        }
    }
}

/// Several lines form one list (RFC 9110 §5.3); empty elements do not count (§5.6.1.2).
fn nth_from_right<'h>(headers: &'h HeaderMap, name: &HeaderName, n: usize) -> Option<&'h [u8]> {
    let lines = headers.get_all(name).iter().rev();
    let elements = lines.flat_map(|line| split_from_right(line.as_bytes(), b','));
    elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty()).nth(n.checked_sub(1)?)
}

/// Splits at separators outside of quotes, from right to left: in the other direction, a quote
/// opened by the client would swallow the elements added by proxies.
fn split_from_right(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    iter::from_fn(move || {
        let text = rest?;
        let mut in_quotes = false;
        let at = text.iter().enumerate().rev().find(|&(at, &byte)| {
            if byte == b'"' && !(in_quotes && is_escaped(text, at)) {
                in_quotes = !in_quotes;
            }
            byte == separator && !in_quotes
        });
        rest = at.and_then(|(at, _)| text.get(..at));
        match at {
            Some((at, _)) => text.get(at + 1..),
            None => Some(text),
        }
    })
}

/// An odd number of preceding backslashes escapes the byte: even ones escape each other.
fn is_escaped(text: &[u8], at: usize) -> bool {
    let before = text.iter().take(at).rev();
    before.take_while(|&&byte| byte == b'\\').count() % 2 == 1
}

/// The `for` parameter of an element (RFC 7239 §4), without quotes; `None` if there are several.
fn for_of(element: &[u8]) -> Option<&[u8]> {
    let mut values = split_from_right(element, b';').filter_map(|pair| {
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        let (name, value) = (pair.get(..equals)?, pair.get(equals + 1..)?);
        name.trim_ascii().eq_ignore_ascii_case(b"for").then(|| value.trim_ascii())
    });
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    Some(unquoted.unwrap_or(value))
}

/// The address of a node (RFC 7239 §6). IPv6 may lack brackets, as it does in `X-Forwarded-For`.
fn node(node: &[u8]) -> Option<IpAddr> {
    let node = str::from_utf8(node).ok()?;
    if let Some(bracketed) = node.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        return (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
            .then_some(address.into());
    }
    match node.split_once(':') {
        Some((address, port)) if is_port(port) => {
            address.parse::<Ipv4Addr>().ok().map(IpAddr::from).or_else(|| node.parse().ok())
        }
        _ => node.parse().ok(),
    }
}

/// A numeric or an obfuscated port (RFC 7239 §6.2).
fn is_port(port: &str) -> bool {
    let is_number = || (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    port.starts_with('_') || is_number()
}

#[cfg(test)]
mod tests;
