//! Signatures, verified by the libraries that receivers use.

use std::{
    env, fs,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use standardwebhooks::Webhook;
use tokio::{io::AsyncWriteExt as _, process::Command};
use tower_api_key::{
    clock::{Clock, SystemClock},
    record::EventFilter,
};

use crate::{
    databases::{Place, Running},
    receiver::{Received, Receiver},
};

/// The system's clock, ahead by some seconds.
#[derive(Clone)]
struct Ahead(SystemClock, Arc<AtomicU64>);

impl Clock for Ahead {
    fn now(&self) -> SystemTime {
        self.0.now() + Duration::from_secs(self.1.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic() + Duration::from_secs(self.1.load(Ordering::Relaxed))
    }
}

fn verifies(request: &Received, secret: &str) -> bool {
    Webhook::new(secret).unwrap().verify(&request.body, &request.headers).is_ok()
}

#[tokio::test]
async fn signatures_verify_by_the_rust_library_and_with_both_secrets_while_rotating() {
    for place in Place::all().await {
        let ahead = Ahead(SystemClock::new(), Arc::default());
        let webhooks = place.webhooks().clock(ahead.clone());
        let receiver = Receiver::start().await;
        let endpoint = webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
        let first = endpoint.secret.expose_secret();
        let running = Running::start(&webhooks);
        place.issue().await;
        receiver.has(2).await;
        for request in receiver.received() {
            assert!(verifies(&request, first));
            let mut forged = request.clone();
            forged.body = [&forged.body, " ".as_bytes()].concat().into();
            assert!(!verifies(&forged, first), "another body has the same signature");
        }

        let rotated = webhooks.rotate_secret(endpoint.id, Duration::from_secs(100)).await.unwrap();
        let second = rotated.secret.expose_secret();
        assert_ne!(first, second);
        place.issue().await;
        receiver.has(4).await;
        let last = receiver.received().pop().unwrap();
        assert!(verifies(&last, first) && verifies(&last, second));
        let signatures = last.headers["webhook-signature"].to_str().unwrap();
        assert_eq!(signatures.split(' ').count(), 2);

        // A minute later than the overlap, but near enough to now for the library.
        ahead.1.store(160, Ordering::Relaxed);
        place.issue().await;
        receiver.has(5).await;
        let last = receiver.received().pop().unwrap();
        assert!(!verifies(&last, first) && verifies(&last, second));
        running.stop().await;

        webhooks.test(endpoint.id).await.unwrap();
        let test = receiver.received().pop().unwrap();
        assert!(verifies(&test, second));
    }
}

/// A script for Node.js that verifies what it reads.
const SCRIPT: &str = r#"
const { Webhook } = require('standardwebhooks');
const { secret, body, headers } = JSON.parse(require('node:fs').readFileSync(0, 'utf8'));
const event = new Webhook(secret).verify(body, headers);
let forged = false;
try { new Webhook(secret).verify(body + ' ', headers); forged = true; } catch {}
process.stdout.write(JSON.stringify({ type: event.type, forged }));
"#;

#[tokio::test]
async fn signatures_verify_by_the_javascript_library() {
    let installed = env::var_os("MOVING_IN");
    let installed: PathBuf = installed.expect("tests/run installs Node.js and names it").into();
    let place = Place::sqlite().await;
    let (receiver, webhooks) = (Receiver::start().await, place.webhooks());
    let endpoint = webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
    let running = Running::start(&webhooks);
    receiver.has(1).await;
    running.stop().await;
    let request = receiver.received().pop().unwrap();
    let header = |name: &str| request.headers[name].to_str().unwrap().to_owned();
    let input = serde_json::json!({
        "secret": endpoint.secret.expose_secret(),
        "body": String::from_utf8(request.body.to_vec()).unwrap(),
        "headers": {
            "webhook-id": header("webhook-id"),
            "webhook-timestamp": header("webhook-timestamp"),
            "webhook-signature": header("webhook-signature"),
        },
    });
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("verify.js");
    fs::write(&script, SCRIPT).unwrap();
    let mut node = Command::new(installed.join("bin/node"))
        .arg(&script)
        .env("NODE_PATH", installed.join("node_modules"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = node.stdin.take().unwrap();
    stdin.write_all(input.to_string().as_bytes()).await.unwrap();
    drop(stdin);
    let output = node.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, r#"{"type":"webhook.added","forged":false}"#);
}
