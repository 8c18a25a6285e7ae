//! The proxy that other tests rely on does what it says.

use std::{io::ErrorKind, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::{Instant, timeout},
};

use crate::servers::proxy::{Fault, FaultProxy};

const SOON: Duration = Duration::from_secs(10);

/// A proxy in front of an echo server.
async fn echo_proxy() -> FaultProxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = client.split();
                let _ = copy(&mut from, &mut to).await;
            });
        }
    });
    FaultProxy::start(upstream).await
}

async fn connect(proxy: &FaultProxy) -> TcpStream {
    TcpStream::connect(proxy.addr()).await.unwrap()
}

async fn says_back(client: &mut TcpStream, word: &[u8]) {
    client.write_all(word).await.unwrap();
    let mut answer = vec![0; word.len()];
    timeout(SOON, client.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert_eq!(answer, word);
}

fn says_nothing(client: &TcpStream) {
    let error = client.try_read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

async fn open_connections(proxy: &FaultProxy, count: u64) {
    let reached = async {
        while proxy.open_connections() != count {
            yield_now().await;
        }
    };
    timeout(SOON, reached).await.unwrap_or_else(|_| panic!("{count} connections are open"));
}

/// Everything until the end of the connection.
async fn rest(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut rest = Vec::new();
    timeout(SOON, client.read_to_end(&mut rest)).await.expect("an end").map(|_| rest)
}

#[tokio::test]
async fn passes_and_counts() {
    let proxy = echo_proxy().await;
    let mut client = connect(&proxy).await;
    says_back(&mut client, b"hello").await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await.unwrap(), b"");
    assert_eq!((proxy.connections(), proxy.bytes_from_server()), (1, 5));
}

#[tokio::test]
async fn refuses_until_told_otherwise() {
    let proxy = echo_proxy().await;
    let mut client = connect(&proxy).await;
    says_back(&mut client, b"hello").await;

    for _ in 0..3 {
        proxy.set(Fault::Refuse).await;
        let refused = TcpStream::connect(proxy.addr()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

        proxy.set(Fault::Pass).await;
        says_back(&mut connect(&proxy).await, b"again").await;
    }
    let _ = rest(&mut client).await;
}

#[tokio::test]
async fn a_black_hole_keeps_what_it_swallowed() {
    let proxy = echo_proxy().await;
    let mut old = connect(&proxy).await;
    says_back(&mut old, b"hello").await;

    proxy.set(Fault::BlackHole).await;
    let mut new = connect(&proxy).await;
    for client in [&mut old, &mut new] {
        client.write_all(b"is it on").await.unwrap();
    }
    proxy.set(Fault::Pass).await;
    says_back(&mut connect(&proxy).await, b"hello").await;
    says_nothing(&old);

    proxy.set(Fault::Fin).await;
    assert_eq!(rest(&mut old).await.unwrap(), b"");
}

#[tokio::test]
async fn delays_answers() {
    let proxy = echo_proxy().await;
    let mut client = connect(&proxy).await;
    says_back(&mut client, b"hello").await;

    let delay = Duration::from_millis(50);
    proxy.set(Fault::Delay(delay)).await;
    let asked = Instant::now();
    says_back(&mut client, b"hello").await;
    assert!(asked.elapsed() >= delay);
}

#[tokio::test]
async fn delays_each_part_of_the_answers_by_another_time() {
    let proxy = echo_proxy().await;
    let mut client = connect(&proxy).await;
    let eighth = Duration::from_millis(10);
    proxy.set(Fault::Jitter(8 * eighth)).await;
    let mut begun = Instant::now();
    for eighths in [4, 7, 2, 5, 8, 3, 6, 1, 4] {
        says_back(&mut client, b"hello").await;
        assert!(begun.elapsed() >= eighth * eighths, "{eighths}");
        begun = Instant::now();
    }
}

#[tokio::test]
async fn cuts_after_exactly_so_many_bytes() {
    let proxy = echo_proxy().await;
    for (limit, last_words) in [(1, ""), (5, ""), (6, "w"), (9, "worl")] {
        proxy.set(Fault::Pass).await;
        let mut client = connect(&proxy).await;
        says_back(&mut client, b"hello").await;
        proxy.set(Fault::CutAfter(limit)).await;
        client.write_all(b"world").await.unwrap();
        assert_eq!(rest(&mut client).await.unwrap(), last_words.as_bytes());
    }
}

#[tokio::test]
async fn corrupts_exactly_one_byte_of_a_connection() {
    let proxy = echo_proxy().await;
    for (at, heard) in
        [(4, "hello world"), (5, "hello!world"), (6, "hello vorld"), (11, "hello world")]
    {
        proxy.set(Fault::Pass).await;
        let mut client = connect(&proxy).await;
        says_back(&mut client, b"hello").await;
        proxy.set(Fault::Corrupt(at)).await;
        client.write_all(b" world").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(
            format!("hello{}", String::from_utf8(rest(&mut client).await.unwrap()).unwrap()),
            heard
        );
    }
}

#[tokio::test]
async fn a_mute_server_still_hears() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = FaultProxy::start(listener.local_addr().unwrap()).await;
    let mut client = connect(&proxy).await;
    let (mut server, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    proxy.set(Fault::Mute).await;
    server.write_all(b"hello").await.unwrap();
    client.write_all(b"is it on").await.unwrap();
    let mut heard = [0; 8];
    timeout(SOON, server.read_exact(&mut heard)).await.expect("the client's words").unwrap();
    assert_eq!(&heard, b"is it on");

    server.write_all(b"and again").await.unwrap();
    proxy.set(Fault::Pass).await;
    drop(server);
    says_nothing(&client);
    proxy.set(Fault::Fin).await;
    assert_eq!(rest(&mut client).await.unwrap(), b"");
}

#[tokio::test]
async fn knows_how_many_connections_are_open() {
    let proxy = echo_proxy().await;
    let (mut first, mut second) = (connect(&proxy).await, connect(&proxy).await);
    says_back(&mut first, b"hello").await;
    says_back(&mut second, b"hello").await;
    assert_eq!(proxy.open_connections(), 2);
    first.shutdown().await.unwrap();
    assert_eq!(rest(&mut first).await.unwrap(), b"");
    drop(first);
    open_connections(&proxy, 1).await;
    proxy.set(Fault::Refuse).await;
    open_connections(&proxy, 0).await;
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn ends_connections_in_order_or_not() {
    let proxy = echo_proxy().await;
    for fault in [Fault::Fin, Fault::Rst] {
        proxy.set(Fault::Pass).await;
        let mut old = connect(&proxy).await;
        says_back(&mut old, b"hello").await;
        proxy.set(fault).await;
        let mut new = connect(&proxy).await;
        for client in [&mut old, &mut new] {
            match (fault, rest(client).await) {
                (Fault::Fin, Ok(rest)) => assert_eq!(rest, b""),
                (_, Err(error)) => {
                    assert_eq!((fault, error.kind()), (Fault::Rst, ErrorKind::ConnectionReset));
                }
                (_, Ok(_)) => panic!("{fault:?} must reset the connection"),
            }
        }
    }
}

#[tokio::test]
async fn rewrites_the_host_of_a_url() {
    let proxy = echo_proxy().await;
    let addr = proxy.addr();
    for (url, through) in [
        ("postgres://localhost/db", format!("postgres://{addr}/db")),
        ("postgres://u:p%40ss@host:5432/db?a=b@c", format!("postgres://u:p%40ss@{addr}/db?a=b@c")),
        ("postgres://u@host", format!("postgres://u@{addr}")),
    ] {
        assert_eq!(proxy.url(url), through);
    }
}

#[tokio::test]
async fn what_is_unplugged_neither_accepts_nor_refuses() {
    const WHILE: Duration = Duration::from_millis(300);
    let proxy = echo_proxy().await;
    let mut old = connect(&proxy).await;
    says_back(&mut old, b"hello").await;

    for _ in 0..2 {
        proxy.set(Fault::Unplugged).await;
        old.write_all(b"is it on").await.unwrap();
        let mut attempts = Vec::new();
        for _ in 0..4 {
            let mut attempt = Box::pin(TcpStream::connect(proxy.addr()));
            assert!(timeout(WHILE, &mut attempt).await.is_err(), "it is neither one nor the other");
            attempts.push(attempt);
        }
        says_nothing(&old);

        proxy.set(Fault::Pass).await;
        says_back(&mut connect(&proxy).await, b"hello").await;
        // A client that retried all the time gets through.
        for attempt in attempts {
            let mut late = timeout(SOON, attempt).await.expect("a connection").unwrap();
            says_back(&mut late, b"late").await;
        }
        says_nothing(&old);
    }
}
