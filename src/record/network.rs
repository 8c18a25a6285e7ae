//! The networks that a key works from.

use std::{error::Error, fmt, net::IpAddr, str::FromStr, sync::Arc};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

/// The bits in front of the IPv4 address in an IPv4-mapped address.
const MAPPED_BITS: u8 = 96;

/// A range of IP addresses in CIDR notation, such as `203.0.113.0/24` or `2001:db8::/32`
/// ([RFC 4632 §3.1](https://www.rfc-editor.org/rfc/rfc4632#section-3.1),
/// [RFC 4291 §2.3](https://www.rfc-editor.org/rfc/rfc4291#section-2.3)).
///
/// An address without a prefix length is a network of its own: `203.0.113.7` is `203.0.113.7/32`.
/// Bits beyond the prefix are refused, not cut off: `10.0.0.1/8` may be meant as `10.0.0.1/32`, which
/// is sixteen million times narrower. An IPv4-mapped network is the IPv4 network, and an IPv4-mapped
/// address is in it.
///
/// ```
/// use std::net::IpAddr;
/// use tower_api_key::record::Network;
///
/// let network: Network = "203.0.113.0/24".parse()?;
/// let contains = |address: &str| address.parse::<IpAddr>().is_ok_and(|ip| network.contains(ip));
/// assert!(contains("203.0.113.7") && contains("::ffff:203.0.113.7"));
/// assert!(!contains("203.0.114.7") && !contains("2001:db8::1"));
///
/// let error = "10.0.0.1/8".parse::<Network>().unwrap_err();
/// assert!(error.to_string().contains("10.0.0.0/8"));
/// # Ok::<(), tower_api_key::record::InvalidNetwork>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(IpNet);

impl Network {
    /// Whether `address` is in the network. An IPv4-mapped address counts as the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let malformed = InvalidNetwork(Problem::Malformed);
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| malformed)?;
        let network = match length {
            None => IpNet::from(address),
            Some(length) => {
                let is_number = (1..=3).contains(&length.len())
                    && length.bytes().all(|byte| byte.is_ascii_digit());
                let length = length.parse().ok().filter(|_| is_number).ok_or(malformed)?;
                IpNet::new(address, length).map_err(|_| malformed)?
            }
        };
        let first = network.trunc();
        if first != network {
            return Err(InvalidNetwork(Problem::HostBits(first)));
        }
        Ok(Self(unmapped(network)))
    }
}

/// The IPv4 network, if `network` is IPv4-mapped.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(MAPPED_BITS));
    let v4 = v4.and_then(|(address, length)| Ipv4Net::new(address, length).ok());
    v4.map_or(network, IpNet::V4)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;

    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

/// The networks that a key works from, sorted. Empty: the key works from anywhere. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Network>", into = "Vec<Network>")]
pub struct Networks(Option<Arc<[Network]>>);

impl Networks {
    /// Maximum networks per key: 64. Every request of such a key is compared with them.
    pub const MAX_NETWORKS: usize = 64;

    /// Parses each of `networks`.
    ///
    /// # Errors
    ///
    /// When one of them is not a valid [`Network`], or there are more than
    /// [`MAX_NETWORKS`](Self::MAX_NETWORKS).
    pub fn parse<S: AsRef<str>>(
        networks: impl IntoIterator<Item = S>,
    ) -> Result<Self, InvalidNetwork> {
        let networks = networks.into_iter().map(|network| network.as_ref().parse());
        Self::try_from(networks.collect::<Result<Vec<_>, _>>()?)
    }

    /// Whether there are none: the key works from anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The networks in order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Network> {
        self.0.as_deref().unwrap_or_default().iter()
    }

    /// Whether the key works from `address`: it is in one of the networks, or there are none.
    #[must_use]
    pub fn admit(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.is_empty() || self.iter().any(|network| network.0.contains(&address))
    }

    /// Whether every address that these networks admit is admitted by `bound`, too.
    pub(crate) fn is_within(&self, bound: &Self) -> bool {
        let nets = |networks: &Self| networks.iter().map(|network| network.0).collect();
        // Adjacent networks are joined, so that each network is in one of them or in none.
        let bounds = IpNet::aggregate(&nets(bound));
        let is_bounded = |net: &IpNet| bounds.iter().any(|bound| bound.contains(net));
        bound.is_empty()
            || (!self.is_empty() && IpNet::aggregate(&nets(self)).iter().all(is_bounded))
    }
}

impl TryFrom<Vec<Network>> for Networks {
    type Error = InvalidNetwork;

    fn try_from(mut networks: Vec<Network>) -> Result<Self, InvalidNetwork> {
        networks.sort_unstable();
        networks.dedup();
        match networks.len() {
            0 => Ok(Self(None)),
            1..=Self::MAX_NETWORKS => Ok(Self(Some(networks.into()))),
            _ => Err(InvalidNetwork(Problem::TooMany)),
        }
    }
}

impl From<Networks> for Vec<Network> {
    fn from(networks: Networks) -> Self {
        networks.iter().copied().collect()
    }
}

/// The text is not a network, or there are too many networks for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidNetwork(Problem);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    Malformed,
    /// The network without the bits beyond its prefix.
    HostBits(IpNet),
    TooMany,
}

impl fmt::Display for InvalidNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Problem::Malformed => f.write_str(
                "a network must be an IP address with or without a prefix length, such as \
                 203.0.113.0/24, 203.0.113.7 or 2001:db8::/32",
            ),
            Problem::HostBits(network) => {
                write!(f, "a network must not have bits beyond its prefix length: write {network}")
            }
            Problem::TooMany => f.write_str("a key has at most 64 networks"),
        }
    }
}

impl Error for InvalidNetwork {}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Networks {
        Networks::parse(texts).unwrap()
    }

    #[test]
    fn a_network_is_written_in_one_way() {
        for (text, written) in [
            ("203.0.113.0/24", "203.0.113.0/24"),
            ("203.0.113.7", "203.0.113.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:DB8:0::/32", "2001:db8::/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::/0", "::/0"),
            ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
            ("::ffff:203.0.113.7", "203.0.113.7/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), written, "{text}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_advice() {
        for text in [
            "",
            "/",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/ 8",
            "10.0.0.0/0008",
            "10.0.0/8",
            "010.0.0.0/8",
            "10.0.0.0/255.0.0.0",
            "::/129",
            "fe80::1%eth0",
            "[::1]",
            "localhost",
            "10.0.0.0/8,10.0.0.0/8",
            "10.0.0.0-10.0.0.9",
        ] {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.to_string().contains("such as 203.0.113.0/24"), "{text}: {error}");
        }
        for (text, advice) in
            [("10.0.0.1/8", "write 10.0.0.0/8"), ("2001:db8::1/32", "write 2001:db8::/32")]
        {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.to_string().ends_with(advice), "{text}: {error}");
        }
    }

    #[test]
    fn a_key_has_at_most_64_networks() {
        let names = |count: usize| (0..count).map(|at| format!("10.0.{at}.0/24"));
        assert_eq!(Networks::parse(names(64)).unwrap().iter().len(), 64);
        assert!(Networks::parse(names(64).chain(names(64))).is_ok(), "duplicates do not count");
        let error = Networks::parse(names(65)).unwrap_err();
        assert_eq!(error.to_string(), "a key has at most 64 networks");
    }

    #[test]
    fn addresses_are_in_networks_of_their_own_version_and_mapped_ones_in_ipv4() {
        let admits =
            |texts: &[&str], address: &str| networks(texts).admit(address.parse().unwrap());
        for (texts, address, is_admitted) in [
            (&[][..], "192.0.2.1", true),
            (&["192.0.2.0/24"], "192.0.2.255", true),
            (&["192.0.2.0/24"], "192.0.3.0", false),
            (&["192.0.2.0/24"], "::ffff:192.0.2.1", true),
            (&["::ffff:192.0.2.0/120"], "192.0.2.1", true),
            (&["192.0.2.1"], "::ffff:192.0.2.1", true),
            (&["0.0.0.0/0"], "2001:db8::1", false),
            (&["::/0"], "192.0.2.1", false),
            (&["::/0"], "::ffff:192.0.2.1", false),
            // Not mapped: an IPv4-compatible address, and one that a translator made.
            (&["192.0.2.1"], "::192.0.2.1", false),
            (&["192.0.2.1"], "64:ff9b::192.0.2.1", false),
            (&["2001:db8::/127", "10.0.0.0/8"], "2001:db8::1", true),
            (&["2001:db8::/127", "10.0.0.0/8"], "2001:db8::2", false),
            (&["2001:db8::/127", "10.0.0.0/8"], "10.255.255.255", true),
        ] {
            assert_eq!(admits(texts, address), is_admitted, "{texts:?} {address}");
            if let [text] = texts {
                let (network, address): (Network, _) =
                    (text.parse().unwrap(), address.parse().unwrap());
                assert_eq!(network.contains(address), is_admitted, "{text} {address}");
            }
        }
    }

    #[test]
    fn networks_are_within_others_address_by_address() {
        for (inner, outer, is_within) in [
            (&[][..], &[][..], true),
            (&["10.0.0.0/8"], &[], true),
            (&[], &["10.0.0.0/8"], false),
            (&[], &["0.0.0.0/0", "::/0"], false),
            (&["10.1.0.0/16"], &["10.0.0.0/8"], true),
            (&["10.0.0.0/8"], &["10.1.0.0/16"], false),
            (&["10.0.0.0/24", "10.0.1.0/24"], &["10.0.0.0/23"], true),
            (&["10.0.0.0/23"], &["10.0.0.0/24", "10.0.1.0/24"], true),
            (&["10.0.0.0/23"], &["10.0.0.0/24", "10.0.2.0/24"], false),
            (&["10.0.0.0/24", "2001:db8::/32"], &["10.0.0.0/24"], false),
            (&["2001:db8::1"], &["2001:db8::/64", "10.0.0.0/24"], true),
        ] {
            let (inner, outer) = (networks(inner), networks(outer));
            assert_eq!(inner.is_within(&outer), is_within, "{inner:?} {outer:?}");
        }
    }

    #[test]
    fn json_is_a_list_of_texts() {
        let networks = networks(&["2001:db8::/32", "10.0.0.0/8"]);
        let json = serde_json::to_string(&networks).unwrap();
        assert_eq!(json, r#"["10.0.0.0/8","2001:db8::/32"]"#);
        assert_eq!(serde_json::from_str::<Networks>(&json).unwrap(), networks);
        assert!(serde_json::from_str::<Networks>(r#"["10.0.0.1/8"]"#).is_err());
    }
}
