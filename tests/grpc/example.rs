//! `examples/grpc.rs` does what it says, as a separate process.

use std::{env, path::PathBuf, process::Stdio};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
};

use crate::{grpcio::Client, tonic_client, wait::within};

/// `cargo test` builds examples beside the tests, but does not say where.
fn binary() -> PathBuf {
    let test = env::current_exe().unwrap();
    let target = test.ancestors().nth(2).unwrap();
    let binary = target.join("examples/grpc").with_extension(env::consts::EXE_EXTENSION);
    let advice = "is not there: cargo build --example grpc --all-features";
    assert!(binary.is_file(), "{} {advice}", binary.display());
    binary
}

#[tokio::test]
async fn it_serves_grpc_and_http_on_one_port() {
    let folder = tempfile::tempdir().unwrap();
    let mut example = Command::new(binary())
        .current_dir(folder.path())
        .env_clear()
        .env("BIND", "127.0.0.1:0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(example.stdout.take().unwrap()).lines();
    let mut line = async |prefix: &str| {
        let line = within(lines.next_line()).await.unwrap().unwrap();
        line.strip_prefix(prefix).unwrap_or_else(|| panic!("{line}")).to_owned()
    };
    let address = line("listening on http://").await.parse().unwrap();
    let metadata = vec![("authorization", format!("Bearer {}", line("key: ").await))];

    let mut http = TcpStream::connect(address).await.unwrap();
    let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    http.write_all(request).await.unwrap();
    let mut answer = String::new();
    within(http.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok"), "{answer}");

    let stream = tonic_client::Client::connect(address, &metadata).await.watch().await.unwrap();
    let mut client = Client::start(address, &[metadata], "example");
    // The stream has taken one of 5 requests, so the last but one is one too many.
    for (call, expected) in [
        ("reflection", json!(true)),
        ("health", json!(true)),
        ("health", json!(true)),
        ("Get", json!(7)),
        ("anonymous", json!(16)),
        ("Delete", json!(7)),
        ("Watch", json!(1)),
        ("Total", json!(3)),
        ("beyond", json!(8)),
    ] {
        let (called, seen) = client.next().await;
        let seen = seen.get("code").cloned().unwrap_or(seen);
        assert_eq!((&*called, seen), (call, expected));
    }
    client.ends().await;

    // A stream does not keep it from stopping.
    let id = example.id().unwrap().to_string();
    let killed = Command::new("sh").args(["-c", r#"kill -s TERM "$0""#, &id]).status();
    assert!(killed.await.unwrap().success());
    assert!(within(example.wait()).await.unwrap().success());
    drop(stream);
}
