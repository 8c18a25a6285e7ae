//! A real server on a port chosen by the system, and clients for it.

use std::{net::SocketAddr, time::Duration};

use axum::Router;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::Answer;

/// A test that takes this long has failed: nothing here takes a second.
const DEADLINE: Duration = Duration::from_secs(30);

/// Serves `app` over HTTP/1 and HTTP/2 until the test's runtime ends.
pub async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(app.clone());
            tokio::spawn(async move {
                let mut server = auto::Builder::new(TokioExecutor::new());
                // WebSockets over HTTP/2, as axum's own server has them.
                server.http2().enable_connect_protocol();
                let connection = TokioIo::new(connection);
                // A client that hangs up early is an error here, but not a failure of the test.
                let _ = server.serve_connection_with_upgrades(connection, service).await;
            });
        }
    });
    address
}

/// Sends `bytes` and returns everything received until the server closes the connection.
pub async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let exchange = async {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    timeout(DEADLINE, exchange).await.expect("the server answers and closes the connection")
}

/// One request over HTTP/1.1.
pub async fn http1(address: SocketAddr, request: Request<Empty<Bytes>>) -> Response<Incoming> {
    let exchange = async {
        let connection = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(connection).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.unwrap()
    };
    timeout(DEADLINE, exchange).await.expect("the server answers")
}

/// One request over HTTP/2 with prior knowledge.
pub async fn http2(address: SocketAddr, request: Request<Empty<Bytes>>) -> Response<Incoming> {
    let exchange = async {
        let connection = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), connection).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    };
    timeout(DEADLINE, exchange).await.expect("the server answers")
}

pub async fn collect(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = timeout(DEADLINE, body.collect()).await.expect("the body ends").unwrap().to_bytes();
    Answer::new(parts, body)
}
