use http::{Extensions, HeaderValue};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{auth::ClientNetwork, layer::PeerAddr};

fn seen(address: ClientAddress, header: &HeaderName, lines: &[&[u8]]) -> Option<String> {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(header, HeaderValue::from_bytes(line).unwrap());
    }
    let address = address.address(&headers, &Extensions::new());
    address.map(|address| ClientNetwork::from(address).to_string())
}

fn x_forwarded_for(proxies: usize, lines: &[&str]) -> Option<String> {
    let lines: Vec<_> = lines.iter().map(|line| line.as_bytes()).collect();
    seen(ClientAddress::x_forwarded_for(proxies), &X_FORWARDED_FOR, &lines)
}

fn forwarded(proxies: usize, lines: &[&str]) -> Option<String> {
    let lines: Vec<_> = lines.iter().map(|line| line.as_bytes()).collect();
    seen(ClientAddress::forwarded(proxies), &FORWARDED, &lines)
}

#[test]
fn addresses_are_counted_from_the_right_over_all_lines() {
    for lines in [
        &["192.0.2.3, 192.0.2.2, 192.0.2.1"][..],
        &["192.0.2.3,192.0.2.2 ,\t192.0.2.1"],
        &["192.0.2.3", "192.0.2.2", "192.0.2.1"],
        &["192.0.2.3, 192.0.2.2", "192.0.2.1"],
        &["192.0.2.3, 192.0.2.2,, ", "", ", 192.0.2.1,"],
    ] {
        for proxies in 1..=3 {
            let expected = Some(format!("192.0.2.{proxies}/32"));
            assert_eq!(x_forwarded_for(proxies, lines), expected, "{lines:?}");
            let elements: Vec<_> =
                lines.iter().map(|line| line.replace("192", "for=192")).collect();
            let elements: Vec<_> = elements.iter().map(String::as_str).collect();
            assert_eq!(forwarded(proxies, &elements), expected, "{lines:?}");
        }
        for proxies in [4, usize::MAX] {
            assert_eq!(x_forwarded_for(proxies, lines), None, "{lines:?}");
        }
    }
    for nothing in [&[][..], &[""], &[" , ,"]] {
        assert_eq!(x_forwarded_for(1, nothing), None);
        assert_eq!(forwarded(1, nothing), None);
    }
}

#[test]
fn only_the_header_that_was_named_is_read() {
    let line = b"192.0.2.1".as_slice();
    assert_eq!(seen(ClientAddress::forwarded(1), &X_FORWARDED_FOR, &[b"for=192.0.2.1"]), None);
    assert_eq!(seen(ClientAddress::x_forwarded_for(1), &FORWARDED, &[line]), None);
    assert_eq!(seen(ClientAddress::peer(), &X_FORWARDED_FOR, &[line]), None);
}

/// Includes the examples of RFC 7239 §§4, 6 and 7.4.
#[test]
fn an_element_says_for_whom() {
    for (element, network) in [
        ("for=192.0.2.43", "192.0.2.43/32"),
        ("For=192.0.2.43;by=203.0.113.60", "192.0.2.43/32"),
        ("proto=http;by=203.0.113.60;FOR=192.0.2.43", "192.0.2.43/32"),
        ("for=\"192.0.2.43:47011\"", "192.0.2.43/32"),
        ("for=192.0.2.43:47011", "192.0.2.43/32"),
        ("for=\"192.0.2.43:_port\"", "192.0.2.43/32"),
        ("for = \"192.0.2.43\" ; host=a", "192.0.2.43/32"),
        ("for=\"[2001:db8:cafe::17]\"", "2001:db8:cafe::/64"),
        ("for=\"[2001:db8:cafe::17]:4711\";proto=https", "2001:db8:cafe::/64"),
        ("for=\"[::ffff:192.0.2.43]\"", "192.0.2.43/32"),
        ("host=\"a;for=192.0.2.1\";for=192.0.2.43", "192.0.2.43/32"),
        ("for=192.0.2.43;host=\"a\\\";for=192.0.2.1, for=192.0.2.2\"", "192.0.2.43/32"),
        ("for=192.0.2.43;host=\"a\\\\\"", "192.0.2.43/32"),
    ] {
        assert_eq!(forwarded(1, &[element]).as_deref(), Some(network), "{element}");
        let behind_others = format!("for=\"192.0.2.9, {element}");
        assert_eq!(forwarded(1, &[&behind_others]).as_deref(), Some(network), "{element}");
    }
    for element in [
        "for=unknown",
        "for=_hidden",
        "for=\"_SEVKISEK\"",
        "for=\"unknown:80\"",
        "for=",
        "for=\"\"",
        "for",
        "192.0.2.43",
        "by=192.0.2.43",
        "xfor=192.0.2.43",
        "for=192.0.2.43;for=192.0.2.44",
        "for=192.0.2.43 192.0.2.44",
        "for=\"192.0.2.43",
        "for='192.0.2.43'",
        "for=192.0.2.256",
        "for=192.0.2.43:port",
        "for=192.0.2.43:123456",
        "for=192.0.2.43:",
        "for=\"[192.0.2.43]\"",
        "for=\"[2001:db8::1]x\"",
        "for=\"[2001:db8::1\"",
        "for=\"2001:db8::1]\"",
        "for=\"[]\"",
        "for=\"[fe80::1%eth0]\"",
        "for=\"192.0.2.4\\3\"",
    ] {
        assert_eq!(forwarded(1, &[element]), None, "{element}");
    }
}

#[test]
fn proxies_write_addresses_in_several_ways() {
    for (entry, network) in [
        ("192.0.2.43", Some("192.0.2.43/32")),
        ("192.0.2.43:47011", Some("192.0.2.43/32")),
        ("2001:db8:cafe::17", Some("2001:db8:cafe::/64")),
        ("[2001:db8:cafe::17]", Some("2001:db8:cafe::/64")),
        ("[2001:db8:cafe::17]:4711", Some("2001:db8:cafe::/64")),
        ("::ffff:192.0.2.43", Some("192.0.2.43/32")),
        ("::1", Some("::/64")),
        ("unknown", None),
        ("localhost", None),
        ("192.0.2.43 192.0.2.44", None),
        ("\"192.0.2.43\"", None),
    ] {
        assert_eq!(x_forwarded_for(1, &[entry]).as_deref(), network, "{entry}");
    }
}

#[test]
fn without_proxies_and_without_an_address_of_the_peer_nothing_is_known() {
    let peer = "192.0.2.1".parse().unwrap();
    let mut extensions = Extensions::new();
    let (headers, none) = (HeaderMap::new(), Extensions::new());
    extensions.insert(PeerAddr(peer));
    for address in
        [ClientAddress::peer(), ClientAddress::forwarded(0), ClientAddress::x_forwarded_for(0)]
    {
        assert_eq!(address.address(&headers, &extensions), Some(peer));
        assert_eq!(address.address(&headers, &none), None);
    }
    assert_eq!(ClientAddress::x_forwarded_for(1).address(&headers, &extensions), None);
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

/// Any header value that HTTP allows, with the relevant bytes over-represented.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        vec(prop_oneof![Just(b'\t'), 0x20..0x7f_u8, 0x80..=0xff_u8], 0..8),
        Just(b"\"".to_vec()),
        Just(b"\\".to_vec()),
        Just(b",".to_vec()),
        Just(b";".to_vec()),
        Just(b"for=".to_vec()),
        address().prop_map(|address| address.to_string().into_bytes()),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// An element in the style of one of several proxies.
fn element(address: IpAddr, make: u8) -> String {
    let with_port = make & 1 == 1;
    let node = match address {
        IpAddr::V4(v4) if with_port => format!("\"{v4}:4711\""),
        IpAddr::V4(v4) => format!("{v4}"),
        IpAddr::V6(v6) if with_port => format!("\"[{v6}]:4711\""),
        IpAddr::V6(v6) => format!("\"[{v6}]\""),
    };
    match make % 3 {
        0 => format!("for={node}"),
        1 => format!("by=_proxy;for={node};proto=https"),
        _ => format!("For={node};host=\"a, b\\\\\\\";for=192.0.2.1\""),
    }
}

/// The lines that arrive after each proxy has appended its element to the last line, or added a new
/// line.
fn arrives(written: &[Vec<u8>], added: &[(String, bool)]) -> Vec<Vec<u8>> {
    let mut lines = written.to_vec();
    for (element, is_new_line) in added {
        match lines.last_mut() {
            Some(last) if !is_new_line => last.extend([b", ", element.as_bytes()].concat()),
            _ => lines.push(element.clone().into_bytes()),
        }
    }
    lines
}

proptest! {
    #[test]
    fn whatever_a_client_writes_its_network_is_what_the_outermost_proxy_saw(
        written in vec(anything(), 0..4),
        client in address(),
        proxies in vec((address(), any::<u8>(), any::<bool>()), 1..4),
    ) {
        let saw = [client].into_iter().chain(proxies.iter().map(|(address, ..)| *address));
        let saw: Vec<_> = saw.zip(&proxies).map(|(seen, (_, make, line))| (seen, *make, *line)).collect();
        let expected = Some(ClientNetwork::from(client).to_string());
        let read = |address, header: &HeaderName, added: &[(String, bool)]| {
            let lines = arrives(&written, added);
            let lines: Vec<_> = lines.iter().map(Vec::as_slice).collect();
            seen(address, header, &lines)
        };

        let elements: Vec<_> = saw.iter().map(|(seen, make, line)| (element(*seen, *make), *line)).collect();
        let address = ClientAddress::forwarded(saw.len());
        prop_assert_eq!(&read(address, &FORWARDED, &elements), &expected);

        let entries: Vec<_> = saw.iter().map(|(seen, _, line)| (seen.to_string(), *line)).collect();
        let address = ClientAddress::x_forwarded_for(saw.len());
        prop_assert_eq!(&read(address, &X_FORWARDED_FOR, &entries), &expected);
    }

    #[test]
    fn anything_is_read_without_a_panic(lines in vec(anything(), 0..4), proxies in 0_usize..4) {
        let lines: Vec<_> = lines.iter().map(Vec::as_slice).collect();
        let _ = seen(ClientAddress::forwarded(proxies), &FORWARDED, &lines);
        let _ = seen(ClientAddress::x_forwarded_for(proxies), &X_FORWARDED_FOR, &lines);
    }
}
