//! A key among the protocols that a WebSocket handshake offers, where a browser can put one:
//! `Sec-WebSocket-Protocol: bearer, <key>, chat.v1`.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request,
    header::{SEC_WEBSOCKET_PROTOCOL, UPGRADE},
};

use super::mistake::Mistake;

/// The protocol before the key, as the scheme is in `Authorization`.
const BEARER: &[u8] = b"bearer";

/// The key of a WebSocket handshake, and whether its header is marked as sensitive; `None` if it
/// offers no `bearer`, or the request is not a handshake. `is_key` recognizes keys.
pub(super) fn find<B>(
    request: &Request<B>,
    is_key: impl Fn(&[u8]) -> bool,
) -> Result<Option<(&[u8], bool)>, Mistake> {
    if !is_handshake(request) {
        return Ok(None);
    }
    let mut offered = offered(request.headers());
    let mut found = None;
    let (mut has_bearer, mut has_stray_key, mut has_protocol) = (false, false, false);
    while let Some((protocol, _)) = offered.next() {
        if !is_bearer(protocol) {
            has_protocol = true;
            has_stray_key |= is_key(protocol);
        } else if has_bearer {
            return Err(Mistake::RepeatedScheme);
        } else {
            has_bearer = true;
            found = offered.next();
        }
    }
    match found {
        Some((key, _)) if is_bearer(key) => Err(Mistake::RepeatedScheme),
        Some(_) if has_stray_key => Err(Mistake::SeveralKeys),
        None if has_stray_key => Err(Mistake::NoScheme),
        Some(_) if !has_protocol => Err(Mistake::NoProtocol),
        found => Ok(found),
    }
}

/// Removes `bearer` and the key after it. The header lists the other protocols then, in one line.
pub(super) fn remove_key(headers: &mut HeaderMap) {
    match other_protocols(headers) {
        Some(others) => headers.insert(SEC_WEBSOCKET_PROTOCOL, others),
        None => headers.remove(SEC_WEBSOCKET_PROTOCOL),
    };
}

fn other_protocols(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut others = Vec::new();
    let mut offered = offered(headers);
    while let Some((protocol, _)) = offered.next() {
        if is_bearer(protocol) {
            offered.next();
        } else {
            others.push(protocol);
        }
    }
    HeaderValue::try_from(others.join(&b", "[..])).ok().filter(|others| !others.is_empty())
}

/// `GET` with `Upgrade: websocket` (RFC 6455 §4.1), or an extended `CONNECT` (RFC 8441 §5).
///
/// Its `:protocol` is in a type of the server's crate. A `CONNECT` without one means nothing by this
/// header, and a key in it is checked as any other.
fn is_handshake<B>(request: &Request<B>) -> bool {
    if request.method() != Method::GET {
        return request.method() == Method::CONNECT;
    }
    list(request.headers(), &UPGRADE).any(|(name, _)| name.eq_ignore_ascii_case(b"websocket"))
}

fn is_bearer(protocol: &[u8]) -> bool {
    protocol.eq_ignore_ascii_case(BEARER)
}

fn offered(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], bool)> {
    list(headers, &SEC_WEBSOCKET_PROTOCOL)
}

/// The elements of a list in one or several lines (RFC 9110 §5.6.1), and whether the line of each is
/// marked as sensitive.
fn list<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = (&'h [u8], bool)> + use<'h> {
    headers.get_all(name).into_iter().flat_map(|line| {
        let elements = line.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        elements.filter(|it| !it.is_empty()).map(|element| (element, line.is_sensitive()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn handshake(lines: &[String]) -> Request<()> {
        let mut request = Request::new(());
        request.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        for line in lines {
            let line = HeaderValue::from_str(line).unwrap();
            request.headers_mut().append(SEC_WEBSOCKET_PROTOCOL, line);
        }
        request
    }

    fn is_key(protocol: &[u8]) -> bool {
        protocol.starts_with(b"sk")
    }

    fn key(request: &Request<()>) -> Result<Option<String>, Mistake> {
        let found = find(request, is_key)?;
        Ok(found.map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()))
    }

    fn line() -> impl Strategy<Value = String> {
        let protocol = prop::sample::select(vec!["bearer", "Bearer", "sk1", "sk2", "a", "b", ""]);
        vec(protocol, 0..5).prop_map(|list| list.join(", "))
    }

    proptest! {
        #[test]
        fn of_a_list_with_one_key_the_others_remain_in_order(lines in vec(line(), 0..4)) {
            let mut request = handshake(&lines);
            let Ok(Some(key)) = key(&request) else { return Ok(()) };
            let joined = lines.join(", ");
            let offered = joined.split(", ").filter(|it| !it.is_empty());
            let others: Vec<_> =
                offered.filter(|it| !it.eq_ignore_ascii_case("bearer") && *it != key).collect();
            remove_key(request.headers_mut());
            let left: Vec<_> =
                request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).iter().collect();
            // The key may be the name of a protocol, if it is none of a key.
            if is_key(key.as_bytes()) {
                prop_assert_eq!(left, [&others.join(", ")]);
                prop_assert!(others.iter().all(|it| !is_key(it.as_bytes())));
            }
            prop_assert_eq!(find(&request, is_key), Ok(None));
        }

        #[test]
        fn lines_are_one_list_however_it_is_cut(lines in vec(line(), 0..4)) {
            let (mut cut, mut whole) = (handshake(&lines), handshake(&[lines.join(",")]));
            prop_assert_eq!(key(&cut), key(&whole));
            if let Ok(Some(_)) = key(&cut) {
                remove_key(cut.headers_mut());
                remove_key(whole.headers_mut());
                prop_assert_eq!(cut.headers(), whole.headers());
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(line: Vec<u8>) {
            if let Ok(line) = HeaderValue::from_bytes(&line) {
                let mut request = handshake(&[]);
                request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, line);
                let _ = find(&request, is_key);
                remove_key(request.headers_mut());
            }
        }
    }
}
