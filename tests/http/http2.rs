//! HTTP/2 clients that attack: header blocks in pieces, shared header tables, resets, and many
//! streams on one connection.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, routing::any};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, header::AUTHORIZATION};
use http_body_util::Empty;
use hyper::{client::conn::http2::SendRequest, ext::Protocol};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
};
use tower_api_key::{
    ApiKeyLayer,
    auth::Event,
    layer::ConcurrencyLimit,
    manage::{Expiry, NewKey},
    rate_limit::Quota,
};

use crate::{
    app::{Keys, server, text, unknown_key},
    frames::{
        CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS,
        PROTOCOL_ERROR, RST_STREAM, frame, get as get_with, get_without_key, goaway, literal,
        opening_without_table, statuses, websocket,
    },
    wait::{eventually, within},
};

/// Counts the requests that reach the handler.
#[derive(Clone, Default)]
struct Calls(Arc<AtomicUsize>);

impl Calls {
    fn app(&self) -> Router {
        let calls = Arc::clone(&self.0);
        let handler = async move || {
            calls.fetch_add(1, Ordering::SeqCst);
        };
        Router::new().route("/", any(handler))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A client that writes its frames by hand.
struct RawClient {
    connection: TcpStream,
    received: Vec<u8>,
}

impl RawClient {
    async fn connect(address: SocketAddr) -> Self {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(&opening_without_table()).await.unwrap();
        Self { connection, received: Vec::new() }
    }

    /// Sends frames, and returns the status of `stream`, 0 if it was reset, alone or with the
    /// connection.
    async fn status(&mut self, sent: &[Vec<u8>], stream: u32) -> u16 {
        self.connection.write_all(&sent.concat()).await.unwrap();
        within(async {
            loop {
                if let Some(status) = statuses(&self.received).get(&stream) {
                    return *status;
                }
                if goaway(&self.received) == Some(PROTOCOL_ERROR) {
                    return 0;
                }
                let more = self.connection.read_buf(&mut self.received).await.unwrap();
                assert_ne!(more, 0, "the connection ended: {:?}", goaway(&self.received));
            }
        })
        .await
    }

    /// Sends frames, and returns why the server ended the connection.
    async fn end(mut self, sent: &[Vec<u8>]) -> (Option<u8>, Vec<u16>) {
        // The server may close it while the client writes.
        let _ = self.connection.write_all(&sent.concat()).await;
        within(async {
            while matches!(self.connection.read_buf(&mut self.received).await, Ok(1..)) {}
        })
        .await;
        (goaway(&self.received), statuses(&self.received).into_values().collect())
    }
}

/// A request in one frame.
fn request(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, block)
}

async fn hyper_client(address: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let connection = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), connection).await.unwrap();
    tokio::spawn(connection);
    client
}

fn with_key(key: &str) -> Request<Empty<Bytes>> {
    let request = Request::get("http://a/").header(AUTHORIZATION, format!("Bearer {key}"));
    request.body(Empty::new()).unwrap()
}

/// An extended `CONNECT` (RFC 8441), which opens a WebSocket.
fn websocket_with_key(key: &str) -> Request<Empty<Bytes>> {
    let mut request = with_key(key);
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request
}

/// The status of a request on a connection of its own.
async fn status(address: SocketAddr, key: &str) -> u16 {
    server::http2(address, with_key(key)).await.status().as_u16()
}

#[tokio::test]
async fn a_header_block_in_two_frames_is_one_wherever_it_is_cut() {
    let (keys, calls) = (Keys::new(), Calls::default());
    let address = server::serve(calls.app().layer(ApiKeyLayer::new(keys.auth()))).await;
    let mut client = RawClient::connect(address).await;
    let mut stream = 1;
    for (key, expected) in [(keys.key().await, 200), (unknown_key(), 401)] {
        let block = get_with(&key);
        for cut in 0..=block.len() {
            let (begun, rest) = block.split_at(cut);
            let sent = [
                frame(HEADERS, END_STREAM, stream, begun),
                frame(CONTINUATION, END_HEADERS, stream, rest),
            ];
            assert_eq!(client.status(&sent, stream).await, expected, "cut at {cut}");
            stream += 2;
        }
    }
    assert_eq!(calls.count(), get_with(&unknown_key()).len() + 1);
}

/// RFC 9113 §6.10: a header block is contiguous.
#[tokio::test]
async fn frames_between_the_pieces_of_a_header_block_end_the_connection_before_the_handler() {
    let (keys, calls) = (Keys::new(), Calls::default());
    let address = server::serve(calls.app().layer(ApiKeyLayer::new(keys.auth()))).await;
    let key = keys.key().await;
    let (good, anonymous) = (get_with(&key), get_without_key());
    let begun = || frame(HEADERS, END_STREAM, 1, &anonymous);
    let header = literal(0, "authorization", &format!("Bearer {key}"));
    for sent in [
        vec![begun(), request(3, &good)],
        vec![begun(), frame(CONTINUATION, END_HEADERS, 3, &header)],
        vec![begun(), frame(DATA, 0, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, &header)],
        vec![frame(CONTINUATION, END_HEADERS, 1, &good)],
        vec![request(1, &anonymous), frame(CONTINUATION, END_HEADERS, 1, &header)],
    ] {
        let client = RawClient::connect(address).await;
        let (reason, statuses) = client.end(&sent).await;
        assert_eq!(reason, Some(PROTOCOL_ERROR));
        assert!(statuses.iter().all(|status| *status != 200), "{statuses:?}");
    }
    assert_eq!(calls.count(), 0);
    assert_eq!(status(address, &key).await, 200);
}

/// The header table belongs to the connection, and the key to the request that names it.
#[tokio::test]
async fn a_key_in_the_header_table_counts_for_the_streams_that_name_it_alone() {
    let (keys, calls) = (Keys::new(), Calls::default());
    let address = server::serve(calls.app().layer(ApiKeyLayer::new(keys.auth()))).await;
    let mut client = RawClient::connect(address).await;
    let with = |header: &[u8]| [&get_without_key()[..], header].concat();
    let indexed = |key: &str| literal(0x40, "authorization", &format!("Bearer {key}"));
    for (stream, block, expected) in [
        (1, with(&indexed(&keys.key().await)), 200),
        (3, get_without_key(), 401),
        // The newest entry of the table.
        (5, with(&[0xbe]), 200),
        (7, with(&indexed(&unknown_key())), 401),
        (9, with(&[0xbe]), 401),
        // The second newest.
        (11, with(&[0xbf]), 200),
        (13, with(&[0xbe, 0xbf]), 400),
        (15, get_without_key(), 401),
    ] {
        assert_eq!(client.status(&[request(stream, &block)], stream).await, expected, "{stream}");
    }
    assert_eq!(calls.count(), 3);
}

#[tokio::test]
async fn a_request_with_two_keys_or_a_malformed_header_never_reaches_the_handler() {
    let (keys, calls) = (Keys::new(), Calls::default());
    let address = server::serve(calls.app().layer(ApiKeyLayer::new(keys.auth()))).await;
    let key = keys.key().await;
    let value = format!("Bearer {key}");
    let header = |name: &str, value: &str| literal(0, name, value);
    for (more, expected) in [
        (header("authorization", &value), 400),
        (header("authorization", &format!("Bearer {}", unknown_key())), 400),
        (header("authorization", ""), 400),
        // Malformed (RFC 9113 §8.2).
        (header("Authorization", &value), 0),
        (header("authorization", &format!("{value}\r\nx: y")), 0),
        (header(":authorization", &value), 0),
        (header("connection", "authorization"), 0),
    ] {
        let block = [get_with(&key), more.clone()].concat();
        let mut client = RawClient::connect(address).await;
        let answered = client.status(&[request(1, &block)], 1).await;
        assert_eq!(answered, expected, "{}", more.escape_ascii());
    }
    assert_eq!(calls.count(), 0);
    assert_eq!(status(address, &key).await, 200);
}

#[tokio::test]
async fn an_extended_connect_needs_a_key_as_any_request_does() {
    let (keys, calls) = (Keys::new(), Calls::default());
    let layer = ApiKeyLayer::new(keys.auth()).also_websocket_protocol();
    let address = server::serve(calls.app().layer(layer)).await;
    let (key, unknown) = (keys.key().await, unknown_key());
    let bearer = |key: &str| literal(0, "authorization", &format!("Bearer {key}"));
    let offered = |list: &str| literal(0, "sec-websocket-protocol", list);
    let pair = |key: &str| offered(&format!("bearer, {key}, chat.v1"));
    // Not an extended one: it has neither `:protocol` nor a path.
    let connect = [&[0x02, 7][..], b"CONNECT", &[0x01, 1, b'a']].concat();
    let upgrade = [get_without_key(), literal(0, "upgrade", "websocket")].concat();
    let protocol = literal(0, ":protocol", "websocket");
    for (block, expected) in [
        ([websocket(), bearer(&key)].concat(), 200),
        ([websocket(), pair(&key)].concat(), 200),
        ([websocket(), offered("chat.v1, bearer"), offered(&key)].concat(), 200),
        (websocket(), 401),
        ([websocket(), offered("chat.v1")].concat(), 401),
        ([websocket(), offered("bearer, websocket, chat.v1")].concat(), 401),
        ([websocket(), bearer(&unknown)].concat(), 401),
        ([websocket(), pair(&unknown)].concat(), 401),
        ([websocket(), offered(&format!("bearer, {key}"))].concat(), 400),
        ([websocket(), bearer(&key), pair(&key)].concat(), 400),
        ([websocket(), pair(&key), pair(&key)].concat(), 400),
        ([get_without_key(), pair(&key)].concat(), 400),
        (connect.clone(), 401),
        ([connect, pair(&unknown)].concat(), 401),
        // Malformed (RFC 8441 §4, RFC 9113 §8.2.2).
        ([get_without_key(), protocol].concat(), 0),
        ([upgrade, pair(&key)].concat(), 0),
    ] {
        let mut client = RawClient::connect(address).await;
        let answered = client.status(&[request(1, &block)], 1).await;
        assert_eq!(answered, expected, "{}", block.escape_ascii());
    }
    assert_eq!(calls.count(), 3);
}

/// Rapid reset (CVE-2023-44487), with a look-up for each request.
#[tokio::test]
async fn requests_that_are_reset_at_once_end_their_connection_and_block_no_other() {
    let (keys, calls) = (Keys::new(), Calls::default());
    let address = server::serve(calls.app().layer(ApiKeyLayer::new(keys.auth()))).await;
    for _ in 0..2 {
        let mut sent = Vec::new();
        for stream in (1..20_001).step_by(2) {
            sent.push(request(stream, &get_with(&unknown_key())));
            sent.push(frame(RST_STREAM, 0, stream, &u32::from(CANCEL).to_be_bytes()));
        }
        let client = RawClient::connect(address).await;
        let (reason, _) = client.end(&sent).await;
        assert_eq!(reason, Some(ENHANCE_YOUR_CALM));
    }
    assert_eq!(calls.count(), 0);
    for _ in 0..50 {
        assert_eq!(status(address, &keys.key().await).await, 200, "a key that is not cached");
    }
}

#[tokio::test]
async fn a_request_that_is_reset_gives_its_place_back() {
    const PLACES: u32 = 2;
    let keys = Keys::new();
    let entered = Arc::new(Semaphore::new(0));
    let enters = Arc::clone(&entered);
    let handler = async move || {
        enters.add_permits(1);
        pending::<()>().await;
    };
    let app = Router::new()
        .route("/", any(handler))
        .layer(ConcurrencyLimit::per_key(PLACES).unwrap())
        .layer(ApiKeyLayer::new(keys.auth()));
    let address = server::serve(app).await;
    let key = keys.key().await;
    let mut client = hyper_client(address).await;
    for request in [with_key, websocket_with_key].into_iter().cycle().take(50) {
        let mut waiting = Vec::new();
        // A place is free again soon after the reset, and the first attempts may come too early.
        eventually("all places are taken", async || {
            while waiting.len() < PLACES as usize {
                let mut response = tokio::spawn(client.send_request(request(&key)));
                tokio::select! {
                    permit = entered.acquire() => {
                        permit.unwrap().forget();
                        waiting.push(response);
                    }
                    refused = &mut response => {
                        assert_eq!(refused.unwrap().unwrap().status(), 429);
                        return false;
                    }
                }
            }
            true
        })
        .await;
        let refused = within(client.send_request(request(&key))).await.unwrap();
        assert_eq!(refused.status(), 429);
        // A response that is no longer awaited resets its stream.
        for response in waiting {
            response.abort();
        }
    }
}

#[tokio::test]
async fn many_streams_of_one_connection_share_the_quota_of_their_key() {
    const LIMIT: u32 = 10;
    let (keys, calls) = (Keys::new(), Calls::default());
    let observed = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let observer = Arc::clone(&observed);
    let auth = keys.builder().observer(move |event: &Event<'_>| {
        let counter = match event {
            Event::Admitted { .. } => &observer[0],
            Event::Rejected { .. } => &observer[1],
            _ => return,
        };
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let address = server::serve(calls.app().layer(ApiKeyLayer::new(auth.build().0))).await;
    let quota = Quota::per_minute(LIMIT).unwrap();
    let key = text(&keys.issue(NewKey::new("acme", Expiry::Never).rate_limits(quota)).await);
    let mut client = hyper_client(address).await;
    let requests: Vec<_> = (0..150).map(|_| client.send_request(with_key(&key))).collect();
    let responses = within(join_all(requests)).await;
    let statuses: Vec<_> = responses.into_iter().map(|it| it.unwrap().status().as_u16()).collect();
    let count = |status| statuses.iter().filter(|it| **it == status).count();
    assert_eq!((count(200), count(429)), (LIMIT as usize, 150 - LIMIT as usize));
    assert_eq!(calls.count(), LIMIT as usize);
    let observed = observed.each_ref().map(|count| count.load(Ordering::SeqCst));
    assert_eq!(observed, [LIMIT as usize, 150 - LIMIT as usize]);
}
