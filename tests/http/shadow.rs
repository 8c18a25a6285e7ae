//! Shadow mode: what passes, what is seen of it, and what it takes.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, middleware::from_fn, response::Response, routing::get};
use http::{HeaderName, HeaderValue, Request, StatusCode};
use tokio::time::Instant;
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope,
    auth::{Builder, Event, RejectionKind},
    layer::{ConcurrencyLimit, ConsumerRejection, Cost, RateClass},
    manage::{Expiry, NewKey},
    rate_limit::Quota,
};

use crate::{
    app::{
        Answer, App, Keys, SECOND, get as request, send, text, unknown_key, with_authorization,
        with_key,
    },
    doubles::{Answers, Service},
};

const SHADOW: &str = "x-api-key-shadow";

/// What was reported of requests: of those in shadow mode, `would` and the reason.
#[derive(Clone, Default)]
struct Reported(Arc<Mutex<Vec<String>>>);

impl Reported {
    fn to(&self, builder: Builder) -> Authenticator {
        let events = Arc::clone(&self.0);
        let observer = move |event: &Event<'_>| {
            let told = match event {
                Event::Shadowed { would_reject: None, key_id, .. } => {
                    format!("would admit{}", if key_id.is_some() { " a key" } else { "" })
                }
                Event::Shadowed { would_reject: Some(kind), .. } => {
                    format!("would reject {}", kind.as_str())
                }
                Event::Admitted { .. } => "admitted".to_owned(),
                Event::Rejected { kind, .. } => format!("rejected {}", kind.as_str()),
                _ => return,
            };
            events.lock().unwrap().push(told);
        };
        let (auth, worker) = builder.observer(observer).build();
        drop(worker);
        auth
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn quota(units: u32) -> Quota {
    Quota::per_hour(units).unwrap()
}

fn to(path: &str, key: &str) -> Request<Body> {
    let mut request = with_key(key);
    *request.uri_mut() = path.parse().unwrap();
    request
}

async fn greet(consumer: Option<Consumer>) -> String {
    format!("hello {}", consumer.as_ref().map_or("stranger", Consumer::id))
}

#[tokio::test]
async fn every_request_passes_with_a_consumer_only_if_its_key_is_good() {
    let keys = Keys::new();
    let reported = Reported::default();
    let layer = ApiKeyLayer::new(reported.to(keys.builder())).shadow(true);
    let app = App::new(layer.clone());
    let telling = App::new(layer.shadow_header(true));
    let revoked = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    keys.revoke(&revoked).await;
    let expired = keys.issue(NewKey::new("acme", Expiry::In(SECOND))).await;
    keys.clock.advance(SECOND);
    let good = keys.key().await;
    let bearer = format!("Bearer {good}");
    let mistaken = "reject;status=400;code=invalid_request";
    for (make, kind, told) in [
        (&(|| with_key(&good)) as &dyn Fn() -> Request<Body>, None, "admit"),
        (&|| request("/"), Some("missing"), "reject;status=401;code=missing_api_key"),
        (&|| with_key(&unknown_key()), Some("unknown"), INVALID),
        (&|| with_key("junk"), Some("malformed"), INVALID),
        (&|| with_key(&text(&revoked)), Some("revoked"), INVALID),
        (&|| with_key(&text(&expired)), Some("expired"), INVALID),
        (&|| with_authorization([&bearer, &bearer]), Some("invalid_request"), mistaken),
        (&|| request(&format!("/?key={good}")), Some("invalid_request"), mistaken),
    ] {
        let (hello, expected) = match kind {
            None => ("hello acme", "would admit a key".to_owned()),
            Some(kind) => ("hello stranger", format!("would reject {kind}")),
        };
        let answer = app.send(make()).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, hello), "{kind:?}");
        let names: Vec<_> = answer.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["vary"], "{kind:?}: nothing else tells of the layer");
        assert_eq!(reported.take(), [expected]);
        let answer = telling.send(make()).await;
        assert_eq!((answer.status, answer.header(SHADOW)), (StatusCode::OK, Some(told)));
        reported.take();
    }
}

const INVALID: &str = "reject;status=401;code=invalid_api_key";

#[tokio::test]
async fn the_request_stays_as_it_is() {
    let keys = Keys::new();
    let x_key = HeaderName::from_static("x-key");
    let echo = async |request: Request<Body>| {
        format!("{:?}", {
            let of = |(name, value): (&HeaderName, &HeaderValue)| {
                (name.clone(), value.as_bytes().to_vec())
            };
            request.headers().iter().map(of).collect::<Vec<_>>()
        })
    };
    let layer = ApiKeyLayer::new(keys.auth()).also_header(x_key.clone());
    let bare = Router::new().route("/", get(echo));
    let shadowed = bare.clone().layer(layer.keep_credential(false).shadow(true));
    let good = keys.key().await;
    for key in [&*good, &unknown_key(), "junk"] {
        let mut in_header = request("/");
        in_header.headers_mut().insert(&x_key, key.parse().unwrap());
        let again = || {
            let mut request = Request::new(Body::empty());
            *request.headers_mut() = in_header.headers().clone();
            request
        };
        for make in [&again as &dyn Fn() -> Request<Body>, &|| with_key(key)] {
            let (without, with) =
                (send(bare.clone(), make()).await, send(shadowed.clone(), make()).await);
            assert_eq!(without.text(), with.text());
        }
    }
}

#[tokio::test]
async fn nothing_is_taken_unless_told() {
    for (charge, left, would) in [(false, "3", "would admit a key"), (true, "0", LIMITED)] {
        let keys = Keys::new();
        let reported = Reported::default();
        let auth = reported.to(keys.builder().default_rate_limits(quota(4)));
        let key = keys.key().await;
        let class = RateClass::new("search", quota(1)).unwrap();
        let app = Router::new()
            .route("/", get(greet))
            .route("/cost", get(greet).layer(Cost::new(2)))
            .route("/class", get(greet).layer(class))
            .route("/actual", get(async || (Cost::new(2), "")));
        let layer = ApiKeyLayer::new(auth.clone());
        let shadowed = app.clone().layer(layer.clone().shadow_charge(charge).shadow(true));
        for path in ["/cost", "/class", "/", "/class", "/actual", "/"] {
            let answer = send(shadowed.clone(), to(path, &key)).await;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.rate_limit_headers(), [""; 0]);
            if path == "/" {
                assert_eq!(answer.text(), "hello acme", "a key beyond its quota is good");
            }
        }
        assert_eq!(reported.take().last().unwrap(), would);
        let enforced = send(app.layer(layer), to("/", &key)).await;
        let state = enforced.header("ratelimit").unwrap();
        assert!(state.contains(&format!(";r={left}")), "{state}");
        assert_eq!(enforced.status.is_success(), !charge);
    }
}

const LIMITED: &str = "would reject rate_limited";

#[tokio::test]
async fn a_key_beyond_a_quota_that_other_routes_used_up_would_be_rejected() {
    let keys = Keys::new();
    let reported = Reported::default();
    let auth = reported.to(keys.builder().default_rate_limits(quota(1)));
    let key = keys.key().await;
    let enforced = App::new(ApiKeyLayer::new(auth.clone()));
    let shadowed = App::new(ApiKeyLayer::new(auth).shadow(true));
    assert_eq!(enforced.get(&key).await.status, StatusCode::OK);
    assert_eq!(enforced.get(&key).await.status, StatusCode::TOO_MANY_REQUESTS);
    reported.take();
    assert_eq!(shadowed.get(&key).await.text(), "hello acme");
    assert_eq!(reported.take(), [LIMITED]);
    keys.clock.advance(Duration::from_secs(3600));
    shadowed.get(&key).await;
    assert_eq!(enforced.get(&key).await.status, StatusCode::OK, "the shadow took nothing");
}

/// Responds when told.
async fn held(gate: Arc<tokio::sync::Notify>) -> &'static str {
    gate.notified().await;
    "released"
}

#[tokio::test]
async fn layers_inside_observe_and_pass() {
    let keys = Keys::new();
    let reported = Reported::default();
    let auth = reported.to(keys.builder().default_rate_limits(quota(100)));
    let other = keys.auth();
    let gate = Arc::new(tokio::sync::Notify::new());
    let waiting = Arc::clone(&gate);
    let app = Router::new()
        .route("/scope", get(greet).layer(RequireScope::one("no").unwrap()))
        .route("/other", get(greet).layer(RequireScope::one("no").unwrap().of(&other)))
        .route("/cost", get(greet).layer(Cost::new(999)))
        .route("/class", get(greet).layer(RateClass::new("few", quota(1)).unwrap()))
        .route("/held", get(move || held(Arc::clone(&waiting))))
        .route_layer(ConcurrencyLimit::per_key(1).unwrap())
        .layer(ApiKeyLayer::new(auth).shadow(true).shadow_charge(true).shadow_header(true));
    let key = keys.key().await;
    let forbidden = "reject;status=403;code=insufficient_scope";
    let limited = "reject;status=429;code=rate_limit_exceeded";
    for (path, would, told) in [
        ("/scope", "would reject insufficient_scope", forbidden),
        ("/other", "would reject layer_missing", "reject;status=500;code=internal_error"),
        ("/cost", LIMITED, limited),
        ("/class", "would admit a key", "admit"),
        ("/class", LIMITED, limited),
    ] {
        let answer = send(app.clone(), to(path, &key)).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "hello acme"), "{path}");
        assert_eq!((answer.header(SHADOW), answer.challenge()), (Some(told), None), "{path}");
        assert_eq!(reported.take(), [would], "{path}");
    }
    let first = tokio::spawn(send(app.clone(), to("/held", &key)));
    // The first response is under way once the second one is beyond the limit.
    crate::wait::eventually("one request is in flight", async || {
        send(app.clone(), to("/scope", &key)).await;
        reported.take() == [LIMITED]
    })
    .await;
    gate.notify_one();
    assert_eq!(first.await.unwrap().header(SHADOW), Some("admit"));
    // Without a key, only that is told.
    let answer = send(app, request("/scope")).await;
    assert_eq!(answer.text(), "hello stranger");
    assert_eq!(reported.take().last().unwrap(), "would reject missing");
}

#[tokio::test]
async fn a_layer_inside_that_is_not_in_shadow_mode_decides_by_itself() {
    let keys = Keys::new();
    let reported = Reported::default();
    let auth = reported.to(keys.builder().default_rate_limits(quota(2)));
    let layer = ApiKeyLayer::new(auth);
    let app = Router::new()
        .route("/", get(greet))
        .route("/scope", get(greet).layer(RequireScope::one("no").unwrap()))
        .layer(layer.clone())
        .layer(layer.shadow(true));
    let key = keys.key().await;
    for (request, status, told) in [
        (to("/", &key), 200, ["admitted", "would admit a key"]),
        (to("/scope", &key), 403, ["rejected insufficient_scope", "would admit a key"]),
        (to("/", &key), 429, ["rejected rate_limited", LIMITED]),
        (with_key(&unknown_key()), 401, ["rejected unknown", "would reject unknown"]),
        (request("/"), 401, ["rejected missing", "would reject missing"]),
    ] {
        let answer = send(app.clone(), request).await;
        assert_eq!(
            (answer.status.as_u16(), reported.take()),
            (status, told.map(String::from).into())
        );
    }
}

#[tokio::test]
async fn scopes_are_tried_out_inside_a_layer_that_checks_keys() {
    let keys = Keys::new();
    let reported = Reported::default();
    let auth = reported.to(keys.builder().default_rate_limits(quota(9)));
    let layer = ApiKeyLayer::new(auth);
    let app = Router::new()
        .route("/", get(greet))
        .layer(RequireScope::one("no").unwrap())
        .layer(layer.clone().shadow(true))
        .layer(layer);
    let key = keys.key().await;
    let answer = send(app.clone(), with_key(&key)).await;
    assert_eq!((answer.status, answer.text()), (StatusCode::OK, "hello acme"));
    assert!(answer.header("ratelimit").unwrap().contains(";r=8"), "charged once");
    assert_eq!(reported.take(), ["would reject insufficient_scope", "admitted"]);
    let answer = send(app, with_key("junk")).await;
    assert_eq!(
        (answer.status, reported.take()),
        (StatusCode::UNAUTHORIZED, vec!["rejected malformed".into()])
    );
}

#[tokio::test]
async fn a_consumer_of_an_outer_layer_stays() {
    let (old, new) = (Keys::new(), Keys::new());
    let x_new = HeaderName::from_static("x-new");
    let app = Router::new()
        .route("/", get(greet))
        .layer(ApiKeyLayer::new(new.auth()).only_header(x_new.clone()).shadow(true))
        .layer(ApiKeyLayer::new(old.auth()).leave_header(x_new.clone()));
    let (key, of_new) = (old.key().await, new.issue(NewKey::new("zeta", Expiry::Never)).await);
    for second in [Some(text(&of_new)), Some(unknown_key()), None] {
        let mut request = with_key(&key);
        if let Some(second) = second {
            request.headers_mut().insert(&x_new, second.parse().unwrap());
        }
        assert_eq!(send(app.clone(), request).await.text(), "hello acme");
    }
}

#[tokio::test]
async fn a_handler_that_needs_a_consumer_answers_as_without_shadow_mode() {
    let keys = Keys::new();
    let reported = Reported::default();
    let needing = async |consumer: Consumer| consumer.id().to_owned();
    let requiring =
        async |consumer: Consumer| -> Result<(), ConsumerRejection> { consumer.require("no") };
    let app = Router::new()
        .route("/", get(needing))
        .route("/requiring", get(requiring))
        .layer(ApiKeyLayer::new(reported.to(keys.builder())).shadow(true));
    let key = keys.key().await;
    assert_eq!(send(app.clone(), with_key(&key)).await.text(), "acme");
    reported.take();
    let answer = send(app.clone(), to("/requiring", &key)).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(reported.take(), ["rejected insufficient_scope", "would admit a key"]);
    let answer = send(app.clone(), with_key("junk")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.challenge().unwrap().contains("invalid_token"));
    assert_eq!(reported.take(), ["rejected malformed", "would reject malformed"]);
    let answer = send(app, request("/")).await;
    assert_eq!(
        (answer.status, answer.kind()),
        (StatusCode::UNAUTHORIZED, Some(RejectionKind::Missing))
    );
}

#[tokio::test]
async fn requests_without_a_key_on_optional_routes_are_not_reported() {
    let keys = Keys::new();
    let reported = Reported::default();
    let layer = ApiKeyLayer::new(reported.to(keys.builder())).optional(true);
    let app = App::new(layer.shadow(true).shadow_header(true));
    let answer = app.send(request("/")).await;
    assert_eq!((answer.text(), answer.header(SHADOW)), ("hello stranger", Some("admit")));
    assert_eq!(reported.take(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_delays_a_request_no_longer_than_one_look_up() {
    let service = Service::new();
    let (key, fresh) = (service.issue("acme").await, service.issue("acme").await);
    service.get(&key.text).await.is_for("acme");
    let layer = ApiKeyLayer::new(service.auth.clone()).shadow(true).shadow_header(true);
    let app = Router::new().route("/", get(greet)).layer(layer);
    service.store.answer(Answers::Never);
    let most = Duration::from_millis(500 + 100);
    for round in 0..20 {
        let begin = Instant::now();
        let answer = send(app.clone(), with_key(&fresh.text)).await;
        assert!(begin.elapsed() <= most, "round {round}: {:?}", begin.elapsed());
        assert_eq!(answer.text(), "hello stranger");
        assert_eq!(answer.header(SHADOW), Some("reject;status=503;code=service_unavailable"));
    }
    let begin = Instant::now();
    assert_eq!(send(app, with_key(&key.text)).await.text(), "hello acme");
    assert_eq!(begin.elapsed(), Duration::ZERO, "a cached key does not wait");
}

#[tokio::test]
async fn other_layers_see_the_response_of_the_handler() {
    let keys = Keys::new();
    let teapot = async || {
        let mut response = Response::new(Body::from("short"));
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        response
    };
    let inside = from_fn(async |request: axum::extract::Request, next: axum::middleware::Next| {
        let mut response = next.run(request).await;
        response.headers_mut().insert("www-authenticate", "Own".parse().unwrap());
        response
    });
    let app = Router::new()
        .route("/", get(teapot))
        .layer(inside)
        .layer(ApiKeyLayer::new(keys.auth()).shadow(true));
    let Answer { status, headers, .. } = send(app, request("/")).await;
    assert_eq!(
        (status, headers["www-authenticate"].as_bytes()),
        (StatusCode::IM_A_TEAPOT, &b"Own"[..])
    );
}
