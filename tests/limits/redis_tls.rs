//! Limits that a fleet shares, over TLS.

use std::{
    env,
    io::{self, Write},
    num::NonZeroU32,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::servers::{Port, redis::Redis};
use tokio::{
    process::Command,
    time::{Instant, interval},
};
use tower_api_key::rate_limit::{
    LimiterHealth, OutagePolicy, Quota, RateLimiter, RedisRateLimiter,
    port::{Check, Subject},
};

const URL: &str = "REDIS_OVER_TLS";
const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(20);
/// Printed by a node before its result.
const VERDICT: &str = "verdict: ";
const SHARED: &str = "redis connected; rate limits are shared";
const ALONE: &str = "redis unavailable; outage policy applies";

/// Runs a node, which asks once and prints whether Redis decided, with the logged reason.
async fn run_node(url: &str) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer({
        let log = log.clone();
        move || log.clone()
    });
    let _logging = tracing::subscriber::set_default(subscriber.finish());
    let builder = RedisRateLimiter::builder(url).when_unavailable(OutagePolicy::Deny);
    let limiter = builder.deadline(SECOND).build().unwrap();
    let quota = Quota::per_minute(5).unwrap();
    let buckets = limiter.buckets(&Subject::of_key("acme", 1), &quota.into(), SECOND);
    let Check::Pending(decisions) = buckets.take(NonZeroU32::MIN, SECOND) else { panic!() };
    let is_admitted = decisions.await.is_admitted();

    let (begun, mut again) = (Instant::now(), interval(Duration::from_millis(5)));
    let verdict = loop {
        let verdict = log.find(if is_admitted { SHARED } else { ALONE });
        if let Some(verdict) = verdict {
            break verdict;
        }
        assert!(begun.elapsed() < PATIENCE, "no verdict");
        again.tick().await;
    };
    assert_eq!(limiter.is_shared(), is_admitted);
    let health = if is_admitted { LimiterHealth::Shared } else { LimiterHealth::Down };
    assert_eq!(limiter.health(), health);
    writeln!(io::stdout(), "\n{VERDICT}{verdict}").unwrap();
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The line that contains this text.
    fn find(&self, text: &str) -> Option<String> {
        let log = self.0.lock().unwrap();
        let log = String::from_utf8_lossy(&log);
        log.lines().find(|line| line.contains(text)).map(str::to_owned)
    }
}

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The result of a node in a process of its own, because trust is configured per process.
async fn node(url: &str, trusted: &Path) -> String {
    let output = Command::new(env::current_exe().unwrap())
        .args(["redis_tls::redis_is_asked_over_tls_if_it_is_who_it_says", "--exact", "--nocapture"])
        .env(URL, url)
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .kill_on_drop(true)
        .output();
    let output = output.await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{complained}");
    let verdict = printed.lines().find_map(|line| line.strip_prefix(VERDICT));
    verdict.unwrap_or_else(|| panic!("the node did not run: {printed}")).to_owned()
}

fn openssl(folder: &Path, arguments: &str) {
    let output = std::process::Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output();
    let output = output.expect("openssl: install it, or run the tests through `tests/run`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// This test also runs as a node, in a process of its own, if [`URL`] is set.
#[tokio::test]
async fn redis_is_asked_over_tls_if_it_is_who_it_says() {
    if let Ok(url) = env::var(URL) {
        return run_node(&url).await;
    }
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
    let verdict = node(&url, &ours).await;
    assert!(verdict.contains(SHARED), "{verdict}");
    let verdict = node(&url, &theirs).await;
    assert!(verdict.contains(ALONE) && verdict.contains("UnknownIssuer"), "{verdict}");
    let elsewhere = format!("rediss://127.0.0.1:{}", port.addr.port());
    let verdict = node(&elsewhere, &ours).await;
    assert!(verdict.contains(ALONE) && verdict.contains("not valid for name"), "{verdict}");
    let plain = format!("redis://localhost:{}", port.addr.port());
    let verdict = node(&plain, &ours).await;
    assert!(verdict.contains(ALONE), "it was asked without TLS: {verdict}");
    println!("{verdict}");
}
