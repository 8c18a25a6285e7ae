//! What the layer adds to spans and logs.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode};
use serde_json::Value;
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, RequireScope,
    layer::make_span,
    manage::{Expiry, Issued, NewKey},
};
use tower_http::trace::TraceLayer;
use tracing::{Level, subscriber::DefaultGuard};

use crate::app::{Keys, SECOND, text, unknown_key, with_key};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone());
        let guard =
            tracing::subscriber::set_default(subscriber.with_max_level(Level::DEBUG).finish());
        (log, guard)
    }

    /// The lines since the last call.
    fn take(&self) -> Vec<Value> {
        let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn warnings(&self) -> Vec<Value> {
        let warnings = self.take().into_iter().filter(|line| line["level"] == "WARN");
        warnings.map(|line| line["fields"].clone()).collect()
    }
}

async fn ask(app: &Router, request: Request<Body>) -> StatusCode {
    app.clone().oneshot(request).await.unwrap().status()
}

#[tokio::test]
async fn the_span_has_the_key_its_consumer_and_the_outcome() {
    let keys = Keys::new();
    let (log, _guard) = Log::start();
    let app = Router::new()
        .route("/", get(async || tracing::info!("handled")))
        .route("/scope", get(async || ()).layer(RequireScope::one("no").unwrap()))
        .layer(ApiKeyLayer::new(keys.auth()))
        .layer(TraceLayer::new_for_http().make_span_with(make_span));
    let issued = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    let (key, id) = (text(&issued), issued.record.id.to_string());

    // The first request waits for a look-up.
    for _ in 0..2 {
        assert_eq!(ask(&app, with_key(&key)).await, StatusCode::OK);
        let lines = log.take();
        let of = |message: &str| {
            let line = lines.iter().find(|line| line["fields"]["message"] == message);
            line.unwrap_or_else(|| panic!("{message}: {lines:?}"))["span"].clone()
        };
        let (inside, after) = (of("handled"), of("finished processing request"));
        for span in [&inside, &after] {
            assert_eq!(
                (&span["api_key.id"], &span["api_key.consumer"]),
                (&id.as_str().into(), &"acme".into())
            );
            assert_eq!((&span["method"], &span["path"]), (&"GET".into(), &"/".into()));
        }
        assert_eq!(
            (inside.get("api_key.outcome"), &after["api_key.outcome"]),
            (None, &"admitted".into())
        );
    }
    let mut scope = with_key(&key);
    *scope.uri_mut() = "/scope?secret".parse().unwrap();
    for (request, outcome, consumer) in
        [(scope, "forbidden", Some("acme")), (with_key("junk"), "rejected", None)]
    {
        ask(&app, request).await;
        let lines = log.take();
        let span = &lines.last().unwrap()["span"];
        assert_eq!(span["api_key.outcome"], outcome);
        assert_eq!(span.get("api_key.consumer").and_then(Value::as_str), consumer);
        assert!(!format!("{lines:?}").contains("secret"));
    }
}

#[tokio::test]
async fn a_span_without_these_fields_stays_as_it_is() {
    let keys = Keys::new();
    let (log, _guard) = Log::start();
    let app = Router::new()
        .route("/", get(async || ()))
        .layer(ApiKeyLayer::new(keys.auth()))
        .layer(TraceLayer::new_for_http());
    ask(&app, with_key(&keys.key().await)).await;
    let lines = log.take();
    assert!(!lines.is_empty() && !format!("{lines:?}").contains("api_key."), "{lines:?}");
}

#[tokio::test]
async fn a_revoked_or_expired_key_that_is_used_is_logged_once_a_minute() {
    let keys = Keys::new();
    let (log, _guard) = Log::start();
    let app = Router::new().route("/", get(async || ())).layer(ApiKeyLayer::new(keys.auth()));
    let revoked = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    keys.revoke(&revoked).await;
    let minute = Duration::from_secs(60);
    let expired = keys.issue(NewKey::new("acme", Expiry::In(minute))).await;
    keys.clock.advance(minute);
    // The worker was dropped without being run.
    log.take();
    for (issued, message) in [(&revoked, "revoked key used"), (&expired, "expired key used")] {
        for lines in [1, 0, 0] {
            assert_eq!(ask(&app, with_key(&text(issued))).await, StatusCode::UNAUTHORIZED);
            let warnings = log.warnings();
            assert_eq!(warnings.len(), lines, "{warnings:?}");
            for line in warnings {
                assert_eq!(line["message"], message);
                assert_eq!(line["key_id"], issued.record.id.to_string());
            }
        }
    }
    keys.clock.advance(minute - SECOND);
    ask(&app, with_key(&text(&revoked))).await;
    assert_eq!(log.warnings().len(), 0);
    keys.clock.advance(SECOND);
    ask(&app, with_key(&text(&revoked))).await;
    assert_eq!(log.warnings().len(), 1);
    for other in ["junk", &unknown_key(), &keys.key().await] {
        ask(&app, with_key(other)).await;
    }
    assert_eq!(log.warnings().len(), 0);
}

#[tokio::test]
async fn a_request_that_would_be_rejected_is_logged_once_a_minute_by_key_and_reason() {
    let keys = Keys::new();
    let (log, _guard) = Log::start();
    let app = Router::new()
        .route("/", get(async || ()))
        .route("/scope", get(async || ()).layer(RequireScope::one("no").unwrap()))
        .layer(ApiKeyLayer::new(keys.auth()).shadow(true))
        .layer(TraceLayer::new_for_http().make_span_with(make_span));
    let message = "shadow mode enabled: this API key layer rejects no request";
    let started: Vec<_> = log.warnings().into_iter().map(|line| line["message"].clone()).collect();
    assert_eq!(started.last().unwrap(), message);
    let (revoked, good) = (
        keys.issue(NewKey::new("acme", Expiry::Never)).await,
        keys.issue(NewKey::new("acme", Expiry::Never)).await,
    );
    keys.revoke(&revoked).await;
    let mut scope = with_key(&text(&good));
    *scope.uri_mut() = "/scope".parse().unwrap();
    let id = |issued: &Issued| Value::from(issued.record.id.to_string());
    for (request, outcome, reason, key_id) in [
        (with_key(&text(&revoked)), "rejected", "revoked", id(&revoked)),
        (scope, "forbidden", "insufficient_scope", id(&good)),
        (with_key(&unknown_key()), "rejected", "unknown", Value::Null),
        (with_key("junk"), "rejected", "malformed", Value::Null),
    ] {
        for lines in [1, 0] {
            let mut again = Request::new(Body::empty());
            *again.uri_mut() = request.uri().clone();
            *again.headers_mut() = request.headers().clone();
            assert_eq!(ask(&app, again).await, StatusCode::OK);
            let all = log.take();
            let span = &all.last().unwrap()["span"];
            assert_eq!(span["api_key.shadow_outcome"], outcome);
            assert_eq!(span.get("api_key.outcome"), None);
            let warnings: Vec<_> = all.iter().filter(|line| line["level"] == "WARN").collect();
            assert_eq!(warnings.len(), lines, "{warnings:?}");
            for line in warnings {
                let fields = &line["fields"];
                assert_eq!(
                    (&fields["message"], &fields["reason"]),
                    (&"request would be rejected".into(), &reason.into())
                );
                assert_eq!(fields["key_id"], key_id);
            }
        }
    }
    // Another unknown key is not another line.
    ask(&app, with_key(&unknown_key())).await;
    assert_eq!(log.warnings().len(), 0);
    keys.clock.advance(Duration::from_secs(60));
    ask(&app, with_key(&unknown_key())).await;
    assert_eq!(log.warnings().len(), 1);
    assert_eq!(ask(&app, with_key(&text(&good))).await, StatusCode::OK);
    let all = log.take();
    assert_eq!(all.last().unwrap()["span"]["api_key.shadow_outcome"], "admitted");
}
