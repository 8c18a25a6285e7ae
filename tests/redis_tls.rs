//! Limits that a fleet shares, over TLS.

#![cfg(test)]

mod harness;

use std::{env, num::NonZeroU32, path::Path, process::Command, time::Duration};

use harness::{Port, redis::Redis};
use tower_api_key::rate_limit::{
    Check, Quota, RateLimiter, RedisRateLimiter, Subject, Unavailable,
};

const URL: &str = "REDIS_OVER_TLS";
const SECOND: Duration = Duration::from_secs(1);

/// Where [`URL`] says so, a node; it succeeds if Redis decides.
#[tokio::test]
async fn a_node_asks_over_tls() {
    let Ok(url) = env::var(URL) else { return };
    let builder = RedisRateLimiter::builder(&url).when_unavailable(Unavailable::Deny);
    let limiter = builder.deadline(SECOND).build().unwrap();
    let quota = Quota::per_minute(5).unwrap();
    let buckets = limiter.buckets(&Subject::of_key("acme", 1), &quota.into(), SECOND);
    let Check::Pending(decisions) = buckets.take(NonZeroU32::MIN, SECOND) else { panic!() };
    assert!(decisions.await.is_admitted());
    assert!(limiter.is_shared());
}

/// What is trusted is said to a whole process.
fn node(url: &str, trusted: &Path) -> bool {
    let output = Command::new(env::current_exe().unwrap())
        .args(["a_node_asks_over_tls", "--exact"])
        .env(URL, url)
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .output();
    output.unwrap().status.success()
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
    let output = output.expect("openssl: install it, or run the tests through `tests/run`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn redis_is_asked_over_tls_if_it_is_who_it_says() {
    let folder = tempfile::tempdir().unwrap();
    for authority in ["ours", "theirs"] {
        let files = format!("-keyout {authority}.key -out {authority}.pem");
        openssl(
            folder.path(),
            &format!("req -x509 -newkey rsa:2048 -nodes {files} -days 2 -subj /CN={authority}"),
        );
    }
    let request = "req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=redis";
    openssl(folder.path(), &format!("{request} -addext subjectAltName=DNS:localhost"));
    let sign = "x509 -req -in request.pem -CA ours.pem -CAkey ours.key -CAcreateserial -days 2";
    openssl(folder.path(), &format!("{sign} -copy_extensions copy -out cert.pem"));

    let (port, path) = (Port::reserve(), |name| folder.path().join(name).display().to_string());
    let _redis = Redis::start_with(&[
        "--tls-port",
        &port.addr.port().to_string(),
        "--tls-cert-file",
        &path("cert.pem"),
        "--tls-key-file",
        &path("key.pem"),
        "--tls-auth-clients",
        "no",
    ]);
    let (ours, theirs) = (folder.path().join("ours.pem"), folder.path().join("theirs.pem"));
    let url = format!("rediss://localhost:{}", port.addr.port());
    assert!(node(&url, &ours));
    assert!(!node(&url, &theirs), "it trusted somebody else");
    let elsewhere = format!("rediss://127.0.0.1:{}", port.addr.port());
    assert!(!node(&elsewhere, &ours), "it did not look at the name");
    let plain = format!("redis://localhost:{}", port.addr.port());
    assert!(!node(&plain, &ours), "it was asked without TLS");
}
