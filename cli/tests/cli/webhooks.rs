//! Webhooks by the command line, and the audit as it grows.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use axum::{Router, http::StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::place::Place;

/// A receiver that answers with the status that is set.
async fn receiver() -> (String, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(204));
    let answer = Arc::clone(&status);
    let answer = move || {
        let status = StatusCode::from_u16(answer.load(Ordering::Relaxed)).unwrap();
        async move { status }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hooks?token=canary", listener.local_addr().unwrap());
    let app = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, status)
}

const LOCAL: &str = "--allow-network 127.0.0.0/8";

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_added_tested_rotated_replayed_and_removed() {
    let (url, status) = receiver().await;
    for place in Place::all().await {
        let added = place.done(&format!("webhooks add {url} --events key.revoked,plan.* {LOCAL}"));
        let secret = added.out.trim();
        assert!(secret.starts_with("whsec_") && secret.len() == 50, "{added:?}");
        assert!(!added.err.contains("canary"), "{added:?}");

        let listed = place.done("webhooks list --json");
        let listed: Value = serde_json::from_str(&listed.out).unwrap();
        let webhook = &listed["webhooks"][0];
        let id = webhook["id"].as_str().unwrap();
        assert!(added.err.contains(id), "{added:?}");
        assert_eq!(webhook["url"], url);
        assert_eq!(webhook["events"], serde_json::json!(["key.revoked", "plan.*"]));
        assert_eq!((&webhook["state"], &webhook["failures"]), (&"active".into(), &0.into()));
        for said in [place.done("webhooks list"), place.done("webhooks list --json")] {
            assert!(!said.out.contains("whsec_"), "{said:?}");
        }

        status.store(204, Ordering::Relaxed);
        let test = place.done(&format!("webhooks test {id} {LOCAL}"));
        assert!(test.out.starts_with("status 204 after "), "{test:?}");
        status.store(500, Ordering::Relaxed);
        let test = place.run(&format!("webhooks test {id} {LOCAL} --json"));
        let said: Value = serde_json::from_str(&test.out).unwrap();
        assert_eq!((test.code, &said["status"]), (1, &500.into()));
        assert!(test.err.contains("must answer 2xx"), "{test:?}");
        let test = place.run(&format!("webhooks test {id}"));
        assert_eq!(test.code, 2, "without the network: {test:?}");

        let rotated = place.done(&format!("webhooks rotate-secret {id} --overlap 1h --json"));
        let rotated: Value = serde_json::from_str(&rotated.out).unwrap();
        assert_ne!(rotated["secret"], secret);
        assert!(rotated["previous_secret_until"].is_string());

        let replayed = place.done(&format!("webhooks replay {id} --from 1 --json"));
        let replayed: Value = serde_json::from_str(&replayed.out).unwrap();
        assert_eq!((&replayed["delivered_to"], &replayed["state"]), (&0.into(), &"active".into()));
        place.done(&format!("webhooks replay {id}"));

        place.done(&format!("webhooks remove {id}"));
        let gone = place.run(&format!("webhooks remove {id}"));
        assert_eq!(gone.code, 3, "{gone:?}");
        let events = place.done("events --json");
        let events: Value = serde_json::from_str(&events.out).unwrap();
        let actions = events["events"].as_array().unwrap().iter();
        let actions: Vec<_> = actions.map(|event| event["action"].as_str().unwrap()).collect();
        let updated = "webhook_updated";
        assert_eq!(actions, ["webhook_removed", updated, updated, updated, "webhook_added"]);
    }
}

#[tokio::test]
async fn an_invalid_webhook_is_refused_and_the_error_says_why() {
    for place in Place::all().await {
        for (line, problem) in [
            ("webhooks add http://example.com/", "https://"),
            ("webhooks add https://10.0.0.1/", "private"),
            ("webhooks add https://a:b@example.com/", "a password"),
            ("webhooks add https://example.com/ --events key.revokd", "key.revoked"),
            ("webhooks add https://example.com/ --allow-network 10.0.0.1/8", "10.0.0.0/8"),
            ("webhooks list --trust missing.pem", "--trust"),
            ("webhooks test 1", "UUID"),
            (
                "webhooks rotate-secret 018f0000-0000-7000-8000-000000000000 --overlap 31d",
                "30 days",
            ),
        ] {
            let said = place.run(line);
            assert_eq!(said.code, 2, "{line}: {said:?}");
            assert!(said.err.contains(problem), "{line}: {said:?}");
        }
    }
}

#[tokio::test]
async fn the_audit_is_followed_as_it_grows() {
    for place in Place::all().await {
        place.done("issue --consumer before --expires never");
        let mut command = place.command(&["events", "--follow", "--json", "--consumer", "acme"]);
        let mut running = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
        let (said, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            while let Some(Ok(line)) = lines.next() {
                if said.send(line).is_err() {
                    break;
                }
            }
        });
        // It begins at some time.
        let mut first = None;
        for _ in 0..100 {
            place.done("issue --consumer other --expires never");
            place.done("issue --consumer acme --expires never");
            first = heard.recv_timeout(std::time::Duration::from_millis(500)).ok();
            if first.is_some() {
                break;
            }
        }
        let first: Value = serde_json::from_str(&first.unwrap()).unwrap();
        assert_eq!((&first["action"], &first["consumer_id"]), (&"issued".into(), &"acme".into()));
        running.kill().unwrap();
        running.wait().unwrap();
    }
}
