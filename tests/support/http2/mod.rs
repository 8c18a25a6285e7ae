//! HTTP/2 frames by hand, which no regular client would send.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;

pub const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;
pub const PROTOCOL_ERROR: u8 = 1;
pub const CANCEL: u8 = 8;
pub const ENHANCE_YOUR_CALM: u8 = 11;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The preface and empty settings.
pub fn opening() -> Vec<u8> {
    [PREFACE.as_bytes(), &frame(SETTINGS, 0, 0, &[])].concat()
}

/// The same, from a client that has no dynamic table, so that responses can be read by themselves.
pub fn opening_without_table() -> Vec<u8> {
    [PREFACE.as_bytes(), &frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0])].concat()
}

/// `GET http://a/`, as a block of headers.
pub fn get_without_key() -> Vec<u8> {
    // From the static table: `GET`, `http` and `/`. Its first entry is `:authority`.
    vec![0x82, 0x86, 0x84, 0x01, 1, b'a']
}

/// `GET http://a/` by `key`, as a block of headers.
pub fn get(key: &str) -> Vec<u8> {
    let mut block = get_without_key();
    block.extend(literal(0x00, "authorization", &format!("Bearer {key}")));
    block
}

/// An extended `CONNECT http://a/` (RFC 8441), which opens a WebSocket, as a block of headers.
pub fn websocket() -> Vec<u8> {
    let mut block = vec![0x02, 7];
    block.extend(b"CONNECT");
    block.extend(literal(0x00, ":protocol", "websocket"));
    block.extend([0x86, 0x84, 0x01, 1, b'a']);
    block.extend(literal(0x00, "sec-websocket-version", "13"));
    block
}

/// A header that is not in the table. `kind` is 0x40 to add it.
pub fn literal(kind: u8, name: &str, value: &str) -> Vec<u8> {
    let mut literal = vec![kind];
    for text in [name, value] {
        // Without Huffman coding, so the prefix has seven bits.
        let mut length = text.len();
        if length >= 127 {
            literal.push(127);
            length -= 127;
            while length >= 128 {
                literal.push(u8::try_from(length % 128).unwrap() | 128);
                length /= 128;
            }
        }
        literal.push(u8::try_from(length).unwrap());
        literal.extend(text.as_bytes());
    }
    literal
}

/// Why the server ended the connection, if it did.
pub fn goaway(said: &[u8]) -> Option<u8> {
    let (.., payload) = frames(said).find(|(kind, ..)| *kind == GOAWAY)?;
    payload.get(4..8).and_then(|code| code.last().copied())
}

/// The frames: their kinds, streams and payloads.
fn frames(mut said: &[u8]) -> impl Iterator<Item = (u8, u32, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = said.split_at_checked(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (payload, rest) = rest.split_at_checked(length)?;
        said = rest;
        Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    })
}

/// The status of the first response, if its frame has arrived.
pub fn status(said: &[u8]) -> Option<u16> {
    let (.., payload) = frames(said).find(|(kind, ..)| *kind == HEADERS)?;
    Some(status_of(payload))
}

/// The statuses of all responses whose frames have arrived, and 0 for a stream that was reset.
pub fn statuses(said: &[u8]) -> BTreeMap<u32, u16> {
    let mut statuses = BTreeMap::new();
    for (kind, stream, payload) in frames(said) {
        match kind {
            HEADERS => drop(statuses.entry(stream).or_insert_with(|| status_of(payload))),
            RST_STREAM => drop(statuses.entry(stream).or_insert(0)),
            _ => {}
        }
    }
    statuses
}

/// The first header is the status: of the static table, or its digits in Huffman coding.
fn status_of(payload: &[u8]) -> u16 {
    // The client has forbidden the dynamic table, which the server confirms with a first byte.
    match payload.strip_prefix(&[0x20]).unwrap_or(payload) {
        [0x88, ..] => 200,
        [0x8c, ..] => 400,
        [_, 0x82, 0x68, 0x01, ..] => 401,
        [_, 0x83, 0x68, 0x4f, 0xff, ..] => 429,
        [_, 0x83, 0x69, 0x90, 0xff, ..] => 431,
        _ => panic!("another status: {payload:x?}"),
    }
}
