//! Uploads that are rejected while the client still sends them.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, extract::DefaultBodyLimit, routing::post};
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tower_api_key::{ApiKeyLayer, layer::DrainRejected};

use crate::{
    app::{Keys, server},
    wait::within,
};

/// More than the buffers of a connection over the loopback interface hold.
const LARGE: usize = 16 * 1024 * 1024;
const NEVER: Duration = Duration::from_secs(3600);

async fn serve(keys: &Keys, drain: DrainRejected) -> SocketAddr {
    let app = Router::new()
        .route("/", post(async |upload: String| upload.len().to_string()))
        .layer(ApiKeyLayer::new(keys.auth()))
        .layer(drain)
        .layer(DefaultBodyLimit::disable());
    server::serve(app).await
}

fn head(key: Option<&str>, more: &str) -> String {
    let key = key.map_or_else(String::new, |key| format!("Authorization: Bearer {key}\r\n"));
    format!("POST / HTTP/1.1\r\nHost: a\r\n{key}{more}\r\n")
}

/// Reads until the response's head is complete, and returns its first line.
async fn status_line(connection: &mut TcpStream) -> String {
    let read = async {
        let mut answer = Vec::new();
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
            answer.push(connection.read_u8().await.expect("the response comes"));
        }
        String::from_utf8(answer).unwrap().lines().next().unwrap().to_owned()
    };
    within(read).await
}

#[tokio::test]
async fn a_client_that_sends_all_of_its_upload_reads_the_rejection_and_keeps_its_connection() {
    let keys = Keys::new();
    let drain = DrainRejected::new().max_bytes(LARGE as u64).max_time(NEVER);
    let address = serve(&keys, drain).await;
    let exchange = async {
        let mut connection = TcpStream::connect(address).await.unwrap();
        let upload = "x".repeat(LARGE);
        let length = format!("Content-Length: {LARGE}\r\n");
        connection.write_all(head(None, &length).as_bytes()).await.unwrap();
        connection.write_all(upload.as_bytes()).await.expect("the server reads it");
        // The same connection, with a key.
        let key = keys.key().await;
        let close = format!("{length}Connection: close\r\n");
        connection.write_all(head(Some(&key), &close).as_bytes()).await.unwrap();
        connection.write_all(upload.as_bytes()).await.unwrap();
        let mut answers = String::new();
        connection.read_to_string(&mut answers).await.unwrap();
        answers
    };
    let answers = within(exchange).await;
    assert!(answers.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{answers}");
    assert!(answers.contains("HTTP/1.1 200 OK\r\n"), "{answers}");
    assert!(answers.ends_with(&LARGE.to_string()), "{answers}");
}

#[tokio::test]
async fn a_longer_upload_is_answered_at_once() {
    let keys = Keys::new();
    let address = serve(&keys, DrainRejected::new().max_bytes(10).max_time(NEVER)).await;
    // Neither client sends the end of its upload.
    for (more, sent) in
        [("Content-Length: 11\r\n", ""), ("Transfer-Encoding: chunked\r\n", "b\r\n01234567890\r\n")]
    {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(format!("{}{sent}", head(None, more)).as_bytes()).await.unwrap();
        assert_eq!(status_line(&mut connection).await, "HTTP/1.1 401 Unauthorized", "{more}");
    }
}

#[tokio::test]
async fn a_stalled_upload_is_answered_when_the_time_is_over() {
    let keys = Keys::new();
    let address = serve(&keys, DrainRejected::new().max_time(Duration::from_millis(20))).await;
    let mut connection = TcpStream::connect(address).await.unwrap();
    let begun = head(None, "Content-Length: 100\r\n") + "x";
    connection.write_all(begun.as_bytes()).await.unwrap();
    assert_eq!(status_line(&mut connection).await, "HTTP/1.1 401 Unauthorized");
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_is_answered_at_once() {
    let keys = Keys::new();
    let address = serve(&keys, DrainRejected::new().max_time(NEVER)).await;
    let expecting = "Content-Length: 100\r\nExpect: 100-continue\r\n";
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(head(None, expecting).as_bytes()).await.unwrap();
    assert_eq!(status_line(&mut connection).await, "HTTP/1.1 401 Unauthorized");

    let mut connection = TcpStream::connect(address).await.unwrap();
    let key = keys.key().await;
    connection.write_all(head(Some(&key), expecting).as_bytes()).await.unwrap();
    assert_eq!(status_line(&mut connection).await, "HTTP/1.1 100 Continue");
}

#[tokio::test]
async fn what_a_handler_leaves_of_an_admitted_upload_is_not_read() {
    let keys = Keys::new();
    let app = Router::new()
        .route("/", post(async || StatusCode::NO_CONTENT))
        .layer(ApiKeyLayer::new(keys.auth()))
        .layer(DrainRejected::new().max_time(NEVER));
    let address = server::serve(app).await;
    let mut connection = TcpStream::connect(address).await.unwrap();
    let key = keys.key().await;
    let head = head(Some(&key), "Content-Length: 100\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(status_line(&mut connection).await, "HTTP/1.1 204 No Content");
}
