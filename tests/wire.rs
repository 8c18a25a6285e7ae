//! On the wire: ambiguous requests, endless request heads, slow clients, and the connection to the
//! database.
//!
//! Both servers of the manual are tested: `axum::serve`, and the one of `examples/shared/timed.rs`.

#![cfg(test)]
#![cfg(all(feature = "axum", feature = "postgres", feature = "test-util"))]

#[path = "support/app/mod.rs"]
mod app;
#[path = "support/http2/mod.rs"]
mod frames;
#[path = "support/raw_store/mod.rs"]
mod raw_store;
#[path = "../examples/shared/timed.rs"]
mod timed;

use std::{
    future::pending,
    io::{Read as _, Write as _},
    iter,
    net::{SocketAddr, TcpStream as BlockingStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use allocation_counter::{AllocationInfo, measure};
use axum::{Router, body::Bytes, extract::Request, response::IntoResponse};
use http::{StatusCode, Version, header};
use http_body_util::{BodyExt as _, Empty};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    task::{JoinHandle, spawn_blocking, yield_now},
    time::{Instant, advance, pause, timeout},
};
use tower_api_key::ApiKeyLayer;

use self::app::{Keys, SECOND, server};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Axum,
    Timed,
}

const SERVERS: [Server; 2] = [Server::Axum, Server::Timed];

/// A service that requires a key on every route, and its valid key.
struct Service {
    address: SocketAddr,
    key: String,
    /// The paths for which the handler was called.
    calls: Arc<Mutex<Vec<String>>>,
}

impl Service {
    async fn start(server: Server) -> Self {
        let keys = Keys::new();
        let (key, calls) = (keys.key().await, Arc::<Mutex<Vec<String>>>::default());
        let called = Arc::clone(&calls);
        let handler = async move |request: Request| {
            called.lock().unwrap().push(request.uri().path().to_owned());
            match request.into_body().collect().await {
                Ok(body) => format!("{} bytes", body.to_bytes().len()).into_response(),
                Err(_) => StatusCode::BAD_REQUEST.into_response(),
            }
        };
        let app = Router::new().fallback(handler).layer(ApiKeyLayer::new(keys.auth()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        match server {
            Server::Axum => drop(tokio::spawn(axum::serve(listener, app).into_future())),
            Server::Timed => drop(tokio::spawn(timed::serve(listener, app, pending()))),
        }
        Self { address, key, calls }
    }

    /// The header with the valid key.
    fn authorization(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.key)
    }

    /// A request with the valid key that closes the connection.
    fn good(&self, path: &str) -> String {
        format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}\r\n",
            self.authorization()
        )
    }

    /// The paths for which the handler was called since the last call.
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

/// Sends until the server closes the connection, and returns the server's bytes. The server may
/// close with unread bytes, which resets the connection.
async fn exchange<B: AsRef<[u8]>>(
    address: SocketAddr,
    pieces: impl IntoIterator<Item = B>,
) -> Vec<u8> {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let (mut from, mut to) = connection.split();
    let mut answer = Vec::new();
    let reading = async { while matches!(from.read_buf(&mut answer).await, Ok(1..)) {} };
    let writing = async {
        for piece in pieces {
            if to.write_all(piece.as_ref()).await.is_err() {
                break;
            }
        }
        pending::<()>().await;
    };
    let both = async {
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
    };
    timeout(PATIENCE, both).await.expect("the server closes the connection");
    answer
}

/// The statuses of all responses on a connection.
async fn statuses(address: SocketAddr, sent: &str) -> Vec<u16> {
    let answers = String::from_utf8(exchange(address, [sent]).await).unwrap();
    let heads = answers.split("HTTP/1.1 ").skip(1);
    heads.map(|head| head[..3].parse().unwrap()).collect()
}

mod smuggling {
    use super::*;

    /// Sends a request with the valid key and these `headers`, followed by another request with the
    /// valid key, which is served only by a server that disagrees about the end of the first.
    async fn told(service: &Service, version: &str, headers: &str, body: &str) -> Vec<u16> {
        let sent = format!(
            "POST /first {version}\r\nHost: a\r\n{}{headers}\r\n{body}{}",
            service.authorization(),
            service.good("/smuggled"),
        );
        statuses(service.address, &sent).await
    }

    /// The control for the following tests: if the first request is in order, both are served.
    #[tokio::test]
    async fn a_request_behind_another_one_is_served() {
        for server in SERVERS {
            let service = Service::start(server).await;
            for (headers, body) in [
                ("Content-Length: 5\r\n", "hello"),
                ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
                ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
                ("Content-Length: 0\r\n", ""),
            ] {
                let told = told(&service, "HTTP/1.1", headers, body).await;
                assert_eq!(told, [200, 200], "{server:?}: {headers:?}");
                assert_eq!(service.calls(), ["/first", "/smuggled"], "{server:?}: {headers:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_request_of_two_lengths_is_refused_before_the_handler() {
        for server in SERVERS {
            let service = Service::start(server).await;
            for headers in [
                "Content-Length: 0\r\nContent-Length: 5\r\n",
                "Content-Length: 5\r\nContent-Length: 0\r\n",
                "Content-Length: 5\r\nX: y\r\ncontent-length: 6\r\n",
                "Content-Length: 0, 5\r\n",
                "Content-Length: 5, 5\r\n",
                "Content-Length: 5 5\r\n",
                "Content-Length: +5\r\n",
                "Content-Length: -5\r\n",
                "Content-Length: 0x5\r\n",
                "Content-Length: 5.0\r\n",
                "Content-Length: \r\n",
                "Content-Length: 18446744073709551616\r\n",
                "Content-Length : 5\r\n",
                "Content-Length\t: 5\r\n",
            ] {
                let told = told(&service, "HTTP/1.1", headers, "hello").await;
                assert_eq!(told, [400], "{server:?}: {headers:?}");
                assert_eq!(service.calls(), [""; 0], "{server:?}: {headers:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_transfer_encoding_that_does_not_say_where_the_body_ends_is_refused_before_the_handler()
     {
        for server in SERVERS {
            let service = Service::start(server).await;
            for (version, headers) in [
                ("HTTP/1.1", "Transfer-Encoding: identity\r\n"),
                ("HTTP/1.1", "Transfer-Encoding: xchunked\r\n"),
                ("HTTP/1.1", "Transfer-Encoding: chunked, identity\r\n"),
                ("HTTP/1.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"),
                ("HTTP/1.1", "Content-Length: 5\r\nTransfer-Encoding: identity\r\n"),
                ("HTTP/1.1", "Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n"),
                ("HTTP/1.1", "Transfer-Encoding : chunked\r\n"),
                ("HTTP/1.1", "Transfer-Encoding\t: chunked\r\nContent-Length: 5\r\n"),
                ("HTTP/1.1", "Transfer-Encoding:\r\n chunked\r\n"),
                ("HTTP/1.1", "Content-Length: 5\r\nTransfer-Encoding:\x0bchunked\r\n"),
                ("HTTP/1.0", "Transfer-Encoding: chunked\r\n"),
                ("HTTP/1.0", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            ] {
                let told = told(&service, version, headers, "5\r\nhello\r\n0\r\n\r\n").await;
                assert_eq!(told, [400], "{server:?}: {version} {headers:?}");
                assert_eq!(service.calls(), [""; 0], "{server:?}: {version} {headers:?}");
            }
        }
    }

    /// RFC 9112, section 6.1: such a request is read by its transfer encoding alone, and ends the
    /// connection, so that nothing behind it is read as a request.
    #[tokio::test]
    async fn a_length_beside_a_transfer_encoding_counts_for_nothing_and_ends_the_connection() {
        for server in SERVERS {
            let service = Service::start(server).await;
            for headers in [
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                "Content-Length: 0\r\nX: y\r\ntransfer-encoding: CHUNKED\r\n",
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\nConnection: keep-alive\r\n",
            ] {
                let told = told(&service, "HTTP/1.1", headers, "3\r\nabc\r\n0\r\n\r\n").await;
                assert_eq!(told, [200], "{server:?}: {headers:?}");
                assert_eq!(service.calls(), ["/first"], "{server:?}: {headers:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_chunk_without_a_decent_size_ends_the_connection() {
        for server in SERVERS {
            let service = Service::start(server).await;
            for body in [
                "-5\r\nhello\r\n0\r\n\r\n",
                "0x5\r\nhello\r\n0\r\n\r\n",
                "5 5\r\nhello\r\n0\r\n\r\n",
                "10000000000000005\r\nhello\r\n0\r\n\r\n",
                "\r\n5\r\nhello\r\n0\r\n\r\n",
                "5\r\nhello!\r\n0\r\n\r\n",
                "5;\nX\r\nhello\r\n0\r\n\r\n",
            ] {
                let headers = "Transfer-Encoding: chunked\r\n";
                let told = told(&service, "HTTP/1.1", headers, body).await;
                assert_eq!(told, [400], "{server:?}: {body:?}");
                // The head was valid, so the handler gets an error instead of the body.
                assert_eq!(service.calls(), ["/first"], "{server:?}: {body:?}");
            }
        }
    }

    /// A proxy that joins the lines would see a key where another would not.
    #[tokio::test]
    async fn a_key_in_a_folded_or_spoilt_header_is_refused_before_the_handler() {
        for server in SERVERS {
            let service = Service::start(server).await;
            let key = &service.key;
            for header in [
                format!("Authorization: Bearer\r\n {key}\r\n"),
                format!("Authorization: Bearer\r\n\t{key}\r\n"),
                format!("Authorization:\r\n Bearer {key}\r\n"),
                format!("X: y\r\n Authorization: Bearer {key}\r\n"),
                format!(" Authorization: Bearer {key}\r\n"),
                format!("Authorization: Bearer {}\r\n {}\r\n", &key[..20], &key[20..]),
                format!("Authorization : Bearer {key}\r\n"),
                format!("Authorization\x00: Bearer {key}\r\n"),
                format!("Authorization: Bearer {key}\x00\r\n"),
                format!("X: y\rAuthorization: Bearer {key}\r\n"),
                format!("Authorization: Bearer {key}\r\rX: y\r\n"),
            ] {
                let sent = format!("GET / HTTP/1.1\r\nHost: a\r\n{header}\r\n");
                let sent = format!("{sent}{}", service.good("/smuggled"));
                let told = statuses(service.address, &sent).await;
                assert_eq!(told, [400], "{server:?}: {header:?}");
                assert_eq!(service.calls(), [""; 0], "{server:?}: {header:?}");
            }
        }
    }

    /// The layer responds without reading the body.
    #[tokio::test]
    async fn the_body_of_a_request_that_the_layer_refuses_is_not_read_as_a_request() {
        for server in SERVERS {
            let service = Service::start(server).await;
            let smuggled = service.good("/smuggled");
            let many = smuggled.repeat(20_000);
            for body in [&smuggled, &many] {
                for framed in [
                    format!("Content-Length: {}\r\n\r\n{body}", body.len()),
                    format!(
                        "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                        body.len()
                    ),
                ] {
                    for credential in ["", "Authorization: Bearer junk\r\n"] {
                        let last = "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
                        let sent =
                            format!("POST / HTTP/1.1\r\nHost: a\r\n{credential}{framed}{last}");
                        let told = statuses(service.address, &sent).await;
                        // A body that is too long to be skipped closes the connection.
                        assert!(
                            told == [401] || told == [401, 401],
                            "{server:?}, {credential:?}, {}: {told:?}",
                            body.len()
                        );
                        assert_eq!(service.calls(), [""; 0], "{server:?}, {credential:?}");
                    }
                }
            }
            // The control: the requests are valid.
            assert_eq!(statuses(service.address, &smuggled).await, [200]);
            assert_eq!(service.calls(), ["/smuggled"]);
        }
    }
}

mod heads {
    use super::*;

    #[tokio::test]
    async fn the_101st_header_is_too_many() {
        for server in SERVERS {
            let service = Service::start(server).await;
            for (number, status) in [(100, 200), (101, 431), (1_000, 431)] {
                // Three headers are there already.
                let more: String = (3..number).map(|it| format!("X-{it}: y\r\n")).collect();
                let sent = service.good("/").replace("Host: a\r\n", &format!("Host: a\r\n{more}"));
                assert_eq!(
                    statuses(service.address, &sent).await,
                    [status],
                    "{server:?}: {number}"
                );
                assert_eq!(service.calls().len(), usize::from(status == 200), "{number}");
            }
        }
    }

    #[tokio::test]
    async fn a_target_beyond_64_kib_is_too_long() {
        for server in SERVERS {
            let service = Service::start(server).await;
            for (length, status) in [(60_000, 200), (70_000, 414)] {
                let sent = service.good(&format!("/{}", "x".repeat(length)));
                assert_eq!(
                    statuses(service.address, &sent).await,
                    [status],
                    "{server:?}: {length}"
                );
                assert_eq!(service.calls().len(), usize::from(status == 200), "{length}");
            }
        }
    }

    fn request(service: &Service, value: usize) -> Request<Empty<Bytes>> {
        Request::get(format!("http://{}/", service.address))
            .header(header::AUTHORIZATION, format!("Bearer {}", service.key))
            .header("x-long", "x".repeat(value))
            .body(Empty::new())
            .unwrap()
    }

    #[tokio::test]
    async fn a_list_of_headers_beyond_16_kib_is_too_large_for_http_2() {
        for server in SERVERS {
            let service = Service::start(server).await;
            for (length, status) in [(15_000, 200), (16_384, 431), (50_000, 431)] {
                let answer = server::http2(service.address, request(&service, length)).await;
                assert_eq!(answer.version(), Version::HTTP_2);
                assert_eq!(answer.status().as_u16(), status, "{server:?}: {length}");
                assert_eq!(service.calls().len(), usize::from(status == 200), "{length}");
            }
        }
    }
}

mod memory {
    use super::{
        frames::{CONTINUATION, END_HEADERS, END_STREAM, HEADERS, frame, get, literal, opening},
        *,
    };

    const ROUNDS: usize = 15;
    const MIB: u64 = 1024 * 1024;

    /// Server and clients run on this thread, whose memory is counted.
    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// The memory of a server while clients act, one after the other.
    fn held(server: Server, attack: &impl AsyncFn(&Service)) -> AllocationInfo {
        let runtime = runtime();
        let service = runtime.block_on(Service::start(server));
        let idle = runtime.metrics().num_alive_tasks();
        let rounds = |number| {
            runtime.block_on(async {
                for _ in 0..number {
                    attack(&service).await;
                    let ended = async {
                        while runtime.metrics().num_alive_tasks() > idle {
                            yield_now().await;
                        }
                    };
                    timeout(PATIENCE, ended).await.expect("a connection ends with its client");
                }
            });
        };
        // One-time allocations.
        rounds(2);
        let info = measure(|| rounds(ROUNDS));
        assert_eq!(service.calls(), [""; 0], "{server:?}");
        assert!(info.bytes_max < 3 * MIB, "{server:?}: {info:?}");
        assert!(info.bytes_current < 256 * 1024, "{server:?}: {info:?}");
        info
    }

    #[test]
    fn a_head_that_does_not_end_takes_half_a_mebibyte_at_most() {
        for server in SERVERS {
            let info = held(server, &async |service| {
                let head = format!("GET / HTTP/1.1\r\n{}X: ", service.authorization());
                let endless = iter::once(head.into_bytes())
                    .chain(iter::repeat_n(vec![b'x'; 16 * 1024], 4_096));
                let said = exchange(service.address, endless).await;
                let said = String::from_utf8(said).unwrap();
                assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
            });
            // The control: the server has buffered its limit.
            assert!(info.bytes_max > 256 * 1024, "{info:?}");
        }
    }

    #[test]
    fn headers_without_end_take_no_memory() {
        for server in SERVERS {
            held(server, &async |service| {
                let head = format!("GET / HTTP/1.1\r\n{}", service.authorization());
                let lines = (0..1_000).map(|it| format!("X-{it}: y\r\n")).collect::<String>();
                let endless = [head.as_str()].into_iter().chain(iter::repeat_n(&*lines, 10_000));
                let said = exchange(service.address, endless).await;
                let said = String::from_utf8(said).unwrap();
                assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
            });
        }
    }

    #[test]
    fn frames_of_headers_without_end_take_no_memory() {
        for server in SERVERS {
            held(server, &async |service| {
                let begun = frame(HEADERS, END_STREAM, 1, &get(&service.key));
                let more = frame(CONTINUATION, 0, 1, &literal(0, "x", &"y".repeat(16_000)));
                let endless = [opening(), begun].into_iter().chain(iter::repeat_n(more, 10_000));
                let said = exchange(service.address, endless).await;
                assert_eq!(frames::goaway(&said), Some(frames::ENHANCE_YOUR_CALM), "{said:x?}");
            });
        }
    }

    /// A kilobyte that expands to four megabytes, and a smaller one that is merely too large.
    #[test]
    fn headers_that_are_compressed_take_no_more_than_they_may_uncompressed() {
        for server in SERVERS {
            held(server, &async |service| {
                for (times, status) in [(1_000, None), (8, Some(431))] {
                    let mut block = get(&service.key);
                    block.extend(literal(0x40, "x", &"y".repeat(4_000)));
                    // The newest entry of the table.
                    block.extend(iter::repeat_n(0xbe, times));
                    let bomb = frame(HEADERS, END_STREAM | END_HEADERS, 1, &block);
                    let mut connection = TcpStream::connect(service.address).await.unwrap();
                    connection.write_all(&[opening(), bomb].concat()).await.unwrap();
                    let mut said = Vec::new();
                    let answered = async {
                        while frames::status(&said).is_none()
                            && matches!(connection.read_buf(&mut said).await, Ok(1..))
                        {
                        }
                    };
                    timeout(PATIENCE, answered).await.unwrap();
                    assert_eq!(frames::status(&said), status, "{times}: {said:x?}");
                    let calm = status.is_none().then_some(frames::ENHANCE_YOUR_CALM);
                    assert_eq!(frames::goaway(&said), calm, "{said:x?}");
                }
            });
        }
    }
}

mod slow_clients {
    use super::{
        frames::{CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame, get},
        *,
    };

    /// The rest of `opening`.
    fn settings() -> Vec<u8> {
        frame(SETTINGS, 0, 0, &[])
    }

    /// The bytes of a client before it goes silent, and the rest.
    struct Story {
        name: &'static str,
        begun: Vec<u8>,
        rest: Vec<u8>,
        is_http_2: bool,
    }

    fn stories(service: &Service) -> Vec<Story> {
        let good = service.good("/").into_bytes();
        let (head, rest_of_head) = good.split_at(40);
        let (preface, rest_of_preface) = PREFACE.as_bytes().split_at(10);
        let block = get(&service.key);
        let (block, rest_of_block) = block.split_at(20);
        let whole = frame(HEADERS, END_STREAM | END_HEADERS, 1, &get(&service.key));
        let begun = frame(HEADERS, END_STREAM, 1, block);
        let ended = frame(CONTINUATION, END_HEADERS, 1, rest_of_block);
        let first = format!("GET /first HTTP/1.1\r\nHost: a\r\n{}\r\n", service.authorization());
        let story = |name, begun: &[&[u8]], rest: &[&[u8]], is_http_2| {
            let (begun, rest) = (begun.concat(), rest.concat());
            Story { name, begun, rest, is_http_2 }
        };
        vec![
            story("nothing", &[], &[&good], false),
            story("half a head", &[head], &[rest_of_head], false),
            story("a second request", &[first.as_bytes()], &[&good], false),
            story("half a second head", &[first.as_bytes(), head], &[rest_of_head], false),
            story("half a preface", &[preface], &[rest_of_preface, &settings(), &whole], true),
            story("a preface", &[PREFACE.as_bytes(), &settings()], &[&whole], true),
            story(
                "half a block of headers",
                &[PREFACE.as_bytes(), &settings(), &begun],
                &[&ended],
                true,
            ),
        ]
    }

    /// A client on its own thread, in real time.
    async fn client<T: Send + 'static>(does: impl FnOnce() -> T + Send + 'static) -> T {
        spawn_blocking(does).await.unwrap()
    }

    async fn begin(address: SocketAddr, begun: Vec<u8>) -> BlockingStream {
        client(move || {
            let mut connection = BlockingStream::connect(address).unwrap();
            connection.set_read_timeout(Some(PATIENCE)).unwrap();
            connection.write_all(&begun).unwrap();
            connection
        })
        .await
    }

    /// Reads until the connection ends.
    fn end(mut connection: BlockingStream) -> JoinHandle<std::io::Result<Vec<u8>>> {
        spawn_blocking(move || {
            let mut said = Vec::new();
            connection.read_to_end(&mut said).map(|_| said)
        })
    }

    /// Reads until all requests are answered.
    async fn answered(mut connection: BlockingStream, story: &Story) -> bool {
        let (rest, is_http_2) = (story.rest.clone(), story.is_http_2);
        let answers = if story.begun.starts_with(b"GET /first") { 2 } else { 1 };
        client(move || {
            connection.write_all(&rest).unwrap();
            let mut said = Vec::new();
            let mut some = [0; 1024];
            loop {
                if is_http_2 && frames::status(&said).is_some() {
                    return frames::status(&said) == Some(200);
                }
                let text = String::from_utf8_lossy(&said);
                if text.matches("HTTP/1.1 200 OK").count() == answers {
                    return true;
                }
                match connection.read(&mut some) {
                    Ok(0) | Err(_) => return false,
                    Ok(read) => said.extend(&some[..read]),
                }
            }
        })
        .await
    }

    /// Advances the time of this runtime, and returns how long `event` took by it.
    async fn passes<T>(event: JoinHandle<T>) -> (T, Duration) {
        let (_waiting, end) = std::sync::mpsc::channel::<()>();
        let late = spawn_blocking(move || end.recv_timeout(2 * PATIENCE));
        let begun = Instant::now();
        while !event.is_finished() {
            assert!(!late.is_finished(), "it should have happened by now");
            advance(SECOND).await;
            yield_now().await;
        }
        let took = begun.elapsed();
        (event.await.unwrap(), took)
    }

    #[tokio::test]
    async fn the_timed_server_closes_their_connections_and_axums_own_does_not() {
        pause();
        // The paused time does not advance by itself while a thread is busy, only by `advance`.
        let (_busy, idle) = std::sync::mpsc::channel::<()>();
        spawn_blocking(move || idle.recv());

        let (timed, axum) =
            (Service::start(Server::Timed).await, Service::start(Server::Axum).await);
        for (story, same) in stories(&timed).into_iter().zip(stories(&axum)) {
            let name = story.name;
            let waiting = begin(axum.address, same.begun.clone()).await;
            let closed = end(begin(timed.address, story.begun.clone()).await);
            let (closed, took) = passes(closed).await;
            assert!(closed.is_ok(), "{name}: not closed, {closed:?}");
            assert!(took >= timed::HEAD, "{name}: closed after {took:?}");
            // Another day.
            for _ in 0..24 {
                advance(3_600 * SECOND).await;
                yield_now().await;
            }
            assert!(
                answered(waiting, &same).await,
                "{name}: axum closes the connection by now: say so in the manual"
            );

            // The control: a client that is in time gets a response from the timed server, too.
            let connection = begin(timed.address, story.begun.clone()).await;
            assert!(answered(connection, &story).await, "{name}");
        }
        // Late requests were not served: two of the cases have a first request.
        let calls = [timed.calls().len(), axum.calls().len()];
        assert_eq!(calls, [7 + 2 + 2, 7 + 2]);
    }

    #[tokio::test]
    async fn half_a_head_holds_up_the_end_of_axums_own_server_and_not_of_the_timed_one() {
        pause();
        let (_busy, idle) = std::sync::mpsc::channel::<()>();
        spawn_blocking(move || idle.recv());
        for server in SERVERS {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let app = Router::new().fallback(async || "served");
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let end = async move { drop(stopped.await) };
            let served = match server {
                Server::Axum => tokio::spawn(async move {
                    axum::serve(listener, app).with_graceful_shutdown(end).await.unwrap();
                }),
                Server::Timed => tokio::spawn(timed::serve(listener, app, end)),
            };
            let half = begin(address, b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec()).await;
            // Later clients get responses, so the server has read the earlier half.
            let good = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            assert_eq!(statuses(address, good).await, [200]);

            drop(stop);
            if server == Server::Timed {
                let ((), took) = passes(served).await;
                assert!(took >= timed::HEAD - SECOND, "{took:?}");
                continue;
            }
            for _ in 0..24 {
                advance(3_600 * SECOND).await;
                yield_now().await;
            }
            assert!(!served.is_finished(), "axum ends by now: say so in the manual");
            drop(half);
            passes(served).await;
        }
    }
}

mod database {
    use std::error::Error as _;

    use tokio::sync::mpsc;
    use tower_api_key::{
        key::KeyHash,
        store::{KeyStore as _, PgKeyStore, StoreError, StoreErrorKind, port::ChangeFeed as _},
    };

    use super::*;

    /// A proxy between a node and its database that claims the database has no TLS. For each
    /// connection it reports the bytes after that.
    async fn denier() -> (SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
        /// The length and code of the TLS request.
        const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, heard) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut asked = [0; 8];
                connection.read_exact(&mut asked).await.unwrap();
                assert_eq!(asked, SSL_REQUEST);
                connection.write_all(b"N").await.unwrap();
                let mut said = Vec::new();
                // The end, or another message.
                let _ = connection.read_buf(&mut said).await;
                told.send(said).unwrap();
            }
        });
        (address, heard)
    }

    fn has_no_tls(error: &StoreError) -> bool {
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        error.kind() == StoreErrorKind::Unavailable && cause.contains("does not support TLS")
    }

    #[tokio::test]
    async fn a_database_that_denies_tls_hears_nothing_where_tls_is_required() {
        let (address, mut heard) = denier().await;
        let url = move |mode| format!("postgres://app:hunter2@{address}/app?sslmode={mode}");
        for mode in ["require", "verify-ca", "verify-full"] {
            let url = url(mode);
            for error in [
                PgKeyStore::connect(&url).await.unwrap_err(),
                PgKeyStore::connect_briefly(&url).await.unwrap_err(),
            ] {
                assert!(has_no_tls(&error), "{mode}: {error:?}");
            }
            let lazy = PgKeyStore::connect_lazy(&url).unwrap();
            let hash = KeyHash::from_bytes([1; 32]);
            for error in [
                lazy.find(&hash).await.unwrap_err(),
                lazy.migrate().await.unwrap_err(),
                lazy.change_feed().connect().await.unwrap_err(),
            ] {
                assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{mode}: {error:?}");
            }
            drop(lazy);
            // At least one for each attempt.
            for _ in 0..5 {
                let said = timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
                assert_eq!(String::from_utf8_lossy(&said), "", "{mode}");
            }
        }
        // The control, and the reason why the manual recommends more than the default.
        let control = tokio::spawn(async move { PgKeyStore::connect(&url("prefer")).await });
        let said = async {
            loop {
                // From earlier attempts.
                let said = heard.recv().await.unwrap();
                if !said.is_empty() {
                    return said;
                }
            }
        };
        let said = timeout(PATIENCE, said).await.unwrap();
        assert!(String::from_utf8_lossy(&said).contains("user\0app\0"), "{said:?}");
        assert!(control.await.unwrap().is_err());
    }
}
