//! Connections over TLS, with whichever implementation is compiled in: the system's or rustls.

#![cfg(test)]
#![cfg(all(feature = "postgres", feature = "redis", feature = "tracing"))]

#[path = "support/servers/mod.rs"]
mod servers;

use std::{
    env,
    error::Error as _,
    fs,
    io::{self, Write},
    num::NonZeroU32,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    process::Command,
    time::{Instant, interval},
};
use tower_api_key::{
    rate_limit::{
        LimiterHealth, OutagePolicy, Quota, RateLimiter, RedisRateLimiter,
        port::{Check, Subject},
    },
    store::{PgKeyStore, StoreErrorKind},
};

use self::servers::{Port, postgres, redis::Redis, tls::Authority};

#[tokio::test]
async fn a_database_by_another_name_or_of_another_authority_is_refused_by_verify_full() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = |authority: &Authority, name| {
        postgres::Server::start_with_certificate(&authority.certificate(name))
    };
    let connect = async |server: &postgres::Server, mode: &str| {
        let file = ours.file();
        let url = format!(
            "postgres://postgres@localhost:{}/postgres?sslmode={mode}&sslrootcert={}",
            server.addr().port(),
            file.display(),
        );
        PgKeyStore::connect(&url).await
    };
    let right = server(&ours, "localhost");
    connect(&right, "verify-full").await.expect("the right name");

    for (server, accepted) in [
        (server(&ours, "db.internal"), ["require", "verify-ca"].as_slice()),
        (server(&theirs, "localhost"), &["require"]),
    ] {
        let error = connect(&server, "verify-full").await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        assert!(cause.contains("certificate"), "{cause}");
        // The modes that accept this connection.
        for mode in accepted {
            connect(&server, mode).await.expect(mode);
        }
    }
}

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
        .args(["redis_is_asked_over_tls_if_it_is_who_it_says", "--exact", "--nocapture"])
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

/// This test also runs as a node, in a process of its own, if [`URL`] is set.
#[tokio::test]
async fn redis_is_asked_over_tls_if_it_is_who_it_says() {
    if let Ok(url) = env::var(URL) {
        return run_node(&url).await;
    }
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (folder, certificate) = (tempfile::tempdir().unwrap(), ours.certificate("localhost"));
    let file = |name, content| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let port = Port::reserve();
    let _redis = Redis::start_with(&[
        "--tls-port",
        &port.addr.port().to_string(),
        "--tls-cert-file",
        &file("certificate.pem", certificate.certificate),
        "--tls-key-file",
        &file("key.pem", certificate.key),
        "--tls-auth-clients",
        "no",
    ]);
    // Where both are compiled in, redis uses rustls.
    let is_native = cfg!(not(any(feature = "tls-rustls-ring", feature = "tls-rustls-aws-lc-rs")));
    let (untrusted, misnamed) = if is_native {
        ("certificate verify failed", "IP address mismatch")
    } else {
        // Both authorities have the same name.
        ("BadSignature", "not valid for name")
    };
    let at = |scheme, host| format!("{scheme}://{host}:{}", port.addr.port());
    let verdict = node(&at("rediss", "localhost"), &ours.file()).await;
    assert!(verdict.contains(SHARED), "{verdict}");
    let verdict = node(&at("rediss", "localhost"), &theirs.file()).await;
    assert!(verdict.contains(ALONE) && verdict.contains(untrusted), "{verdict}");
    let verdict = node(&at("rediss", "127.0.0.1"), &ours.file()).await;
    assert!(verdict.contains(ALONE) && verdict.contains(misnamed), "{verdict}");
    let verdict = node(&at("redis", "localhost"), &ours.file()).await;
    assert!(verdict.contains(ALONE), "it was asked without TLS: {verdict}");
}
