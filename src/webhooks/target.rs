//! The address of an endpoint, and whether it may be connected to.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderValue, Uri, uri::Scheme};

use super::{WebhookError, address::is_public};
use crate::record::Network;

/// Maximum length of a URL in bytes.
const MAX_URL: usize = 2048;

/// The networks that deliveries may reach although they are not public, also without TLS.
#[derive(Clone, Debug, Default)]
pub(super) struct Targets {
    allowed: Vec<Network>,
}

impl Targets {
    pub(super) fn allow(&mut self, network: Network) {
        self.allowed.push(network);
    }

    /// Whether a connection to this address is permitted. Checked at each connection, because a name
    /// may resolve to another address each time.
    pub(super) fn permit(&self, address: IpAddr, is_secure: bool) -> bool {
        let is_allowed = self.allowed.iter().any(|network| network.contains(address));
        is_allowed || (is_secure && is_public(address))
    }

    /// Parses a URL.
    pub(super) fn parse(&self, url: &str) -> Result<Target, WebhookError> {
        let invalid = WebhookError::invalid;
        if url.len() > MAX_URL {
            return Err(invalid("the URL must have at most 2048 characters"));
        }
        if url.contains('#') {
            return Err(invalid("the URL must not have a fragment"));
        }
        let malformed = "not a URL: write it as https://example.com/hooks, a name with other \
            letters than ASCII in Punycode";
        let uri: Uri = url.parse().map_err(|_| invalid(malformed))?;
        let is_secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP && !self.allowed.is_empty() => false,
            Some(scheme) if *scheme == Scheme::HTTP => {
                let problem = "the URL must begin with https://; http:// is for networks that are \
                    allowed by name";
                return Err(invalid(problem));
            }
            _ => return Err(invalid(malformed)),
        };
        let authority = uri.authority().ok_or_else(|| invalid(malformed))?;
        if authority.as_str().contains('@') {
            let problem = "the URL must not have a user or a password: the receiver checks the \
                signature";
            return Err(invalid(problem));
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.len() > 253 {
            return Err(invalid(malformed));
        }
        let has_port = authority.as_str().len() > authority.host().len();
        let port = authority.port_u16();
        if has_port && port.is_none_or(|port| port == 0) {
            return Err(invalid("the URL must have a port from 1 to 65535, or none"));
        }
        let header = HeaderValue::from_str(authority.as_str()).map_err(|_| invalid(malformed))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let target = Target {
            is_secure,
            host: host.to_owned(),
            port: port.unwrap_or(if is_secure { 443 } else { 80 }),
            header,
            path: path.to_owned(),
        };
        if let Some(address) = target.literal()
            && !self.permit(address, is_secure)
        {
            return Err(invalid(REFUSED));
        }
        Ok(target)
    }

    /// The addresses among `resolved` that may be connected to.
    pub(super) fn permitted(
        &self,
        target: &Target,
        resolved: impl Iterator<Item = SocketAddr>,
    ) -> Vec<SocketAddr> {
        resolved.filter(|address| self.permit(address.ip(), target.is_secure)).collect()
    }
}

/// Says nothing of the address, which may be one of an internal name server.
pub(super) const REFUSED: &str =
    "the address is private, reserved or local: allow its network if that is on purpose";

/// A parsed URL.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) is_secure: bool,
    /// A name, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The value of `Host`.
    pub(super) header: HeaderValue,
    pub(super) path: String,
}

impl Target {
    /// The address, if the host is one.
    pub(super) fn literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_https_without_credentials_or_private_addresses() {
        let targets = Targets::default();
        for (url, host, port, path) in [
            ("https://example.com", "example.com", 443, "/"),
            ("https://example.com:8443/a/b?c=d", "example.com", 8443, "/a/b?c=d"),
            ("HTTPS://EXAMPLE.com/x", "EXAMPLE.com", 443, "/x"),
            ("https://[2606:4700::1111]:444/", "2606:4700::1111", 444, "/"),
            ("https://1.1.1.1/", "1.1.1.1", 443, "/"),
        ] {
            let target = targets.parse(url).unwrap();
            let found = (&*target.host, target.port, &*target.path, target.is_secure);
            assert_eq!(found, (host, port, path, true), "{url}");
        }
        let long = format!("https://example.com/{}", "a".repeat(2048));
        for url in [
            "http://example.com/",
            "ftp://example.com/",
            "example.com",
            "/hooks",
            "https://",
            "https:///x",
            "https://user:password@example.com/",
            "https://token@example.com/",
            "https://example.com:0/",
            "https://example.com:99999/",
            "https://example.com/#x",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://169.254.169.254/latest/meta-data/",
            "https://bücher.example/",
            "",
            &long,
        ] {
            assert!(targets.parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn an_allowed_network_is_reached_also_without_tls_and_no_other() {
        let mut targets = Targets::default();
        targets.allow("10.1.0.0/16".parse().unwrap());
        for (address, secure, plain) in [
            ("10.1.2.3", true, true),
            ("::ffff:10.1.2.3", true, true),
            ("10.2.0.1", false, false),
            ("127.0.0.1", false, false),
            ("1.1.1.1", true, false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            let found = (targets.permit(address, true), targets.permit(address, false));
            assert_eq!(found, (secure, plain), "{address}");
        }
        assert!(targets.parse("http://10.1.2.3/").is_ok());
        assert!(targets.parse("http://10.2.0.1/").is_err());
        // A name is resolved at each connection.
        assert!(targets.parse("http://hooks.internal/").is_ok());
    }

    #[test]
    fn a_name_may_resolve_to_anything_and_only_permitted_addresses_are_used() {
        let targets = Targets::default();
        let target = targets.parse("https://rebinding.example/").unwrap();
        let resolved = ["169.254.169.254:443", "[::1]:443", "1.1.1.1:443", "10.0.0.1:443"];
        let resolved = resolved.map(|address| address.parse().unwrap());
        let permitted = targets.permitted(&target, resolved.into_iter());
        assert_eq!(permitted, ["1.1.1.1:443".parse().unwrap()]);
    }
}
