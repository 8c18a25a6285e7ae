use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The unit that failures are counted by: an IPv4 address or an IPv6 /64. A /64 is the smallest
/// network that a subscriber gets ([RFC 6177](https://www.rfc-editor.org/rfc/rfc6177)), so one
/// machine can use every address in it.
///
/// IPv4-mapped addresses such as `::ffff:192.0.2.1`, as seen by dual-stack sockets, and NAT64
/// addresses such as `64:ff9b::192.0.2.1` ([RFC 6052
/// §2.1](https://www.rfc-editor.org/rfc/rfc6052#section-2.1)), count as the IPv4 address.
///
/// ```
/// use std::net::IpAddr;
/// use tower_api_key::auth::ClientNetwork;
///
/// let network = |address: &str| address.parse::<IpAddr>().map(ClientNetwork::from);
/// assert_eq!(network("2001:db8::1")?, network("2001:db8::cafe")?);
/// assert_ne!(network("2001:db8::1")?, network("2001:db8:0:1::1")?);
/// assert_eq!(network("::ffff:192.0.2.1")?, network("192.0.2.1")?);
/// assert_eq!(network("2001:db8::cafe")?.to_string(), "2001:db8::/64");
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientNetwork(Network);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Network {
    V4(Ipv4Addr),
    V6([u16; 4]),
}

impl From<IpAddr> for ClientNetwork {
    fn from(address: IpAddr) -> Self {
        let v6 = match address {
            IpAddr::V4(v4) => return Self(Network::V4(v4)),
            IpAddr::V6(v6) => v6,
        };
        Self(match v6.segments() {
            [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                Network::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
            }
            [a, b, c, d, ..] => Network::V6([a, b, c, d]),
        })
    }
}

impl fmt::Display for ClientNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Network::V4(address) => write!(f, "{address}/32"),
            Network::V6([a, b, c, d]) => write!(f, "{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)),
        }
    }
}

impl fmt::Debug for ClientNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientNetwork({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_apart_by_what_one_client_has() {
        for (address, network) in [
            ("192.0.2.1", "192.0.2.1/32"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
            ("::ffff:c000:201", "192.0.2.1/32"),
            ("64:ff9b::192.0.2.1", "192.0.2.1/32"),
            ("::1", "::/64"),
            ("::192.0.2.1", "::/64"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
            ("2001:db8:1:3::", "2001:db8:1:3::/64"),
            ("64:ff9b:1::192.0.2.1", "64:ff9b:1::/64"),
        ] {
            let parsed: IpAddr = address.parse().unwrap();
            assert_eq!(ClientNetwork::from(parsed).to_string(), network, "{address}");
        }
    }
}
