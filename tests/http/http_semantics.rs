//! Methods, versions, CORS, caching, headers and bodies.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
    routing::{any, get},
};
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header, request::Parts};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::{Layer, ServiceExt, service_fn};
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer,
    auth::{Event, Rejection, RejectionKind},
    key::KeyHash,
    layer::{ProblemJson, RateLimitHeaders, RejectionResponse, StatusOnly},
    manage::{Expiry, NewKey},
    rate_limit::Quota,
    record::KeyRecord,
    store::{KeyStore, StoreError, StoreErrorKind},
};
use tower_http::cors::{Any, CorsLayer};

use crate::app::{
    Answer, App, INVALID_TOKEN, Keys, MISSING, MISSING_IN_HEADER, PREFIX, SEVERAL_KEYS,
    WRONG_CHARACTERS, send, server, text, unknown_key, with_authorization, with_key,
};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

async fn whoami(consumer: Consumer) -> String {
    format!("hello {}", consumer.id())
}

fn with_header(name: HeaderName, value: &str) -> Request {
    let mut request = crate::app::get("/");
    request.headers_mut().insert(name, HeaderValue::try_from(value).unwrap());
    request
}

mod methods_and_versions {
    use super::*;

    fn request(method: Method, uri: String, key: &str) -> http::Request<Empty<bytes::Bytes>> {
        http::Request::builder()
            .method(method)
            .uri(uri)
            .header(header::AUTHORIZATION, format!("Bearer {key}"))
            .body(Empty::new())
            .unwrap()
    }

    #[tokio::test]
    async fn head_gets_the_status_and_headers_of_get_without_a_body() {
        let keys = Keys::new();
        let app = Router::new().route("/", get(whoami)).layer(ApiKeyLayer::new(keys.auth()));
        let address = server::serve(app).await;
        for key in [keys.key().await, unknown_key(), "junk".to_owned()] {
            let [get, head] = [Method::GET, Method::HEAD]
                .map(|method| server::http1(address, request(method, "/".to_owned(), &key)));
            let (get, head) = (server::collect(get.await).await, server::collect(head.await).await);
            assert_eq!(get.status, head.status);
            assert!(!get.body.is_empty());
            assert!(head.body.is_empty());
            let names = |answer: &Answer| {
                let mut headers = answer.headers.clone();
                headers.remove("date");
                headers
            };
            assert_eq!(names(&get), names(&head));
        }
    }

    #[tokio::test]
    async fn every_method_is_judged_alike() {
        let keys = Keys::new();
        let app = App::new(ApiKeyLayer::new(keys.auth()));
        let key = keys.key().await;
        let get = app.send(crate::app::get("/")).await.wire();
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "PURGE"] {
            let method: Method = method.parse().unwrap();
            let mut stranger = crate::app::get("/");
            *stranger.method_mut() = method.clone();
            assert_eq!(app.send(stranger).await.wire(), get, "{method}");
            let mut consumer = with_key(&key);
            *consumer.method_mut() = method.clone();
            assert_eq!(app.send(consumer).await.status, StatusCode::OK, "{method}");
        }
    }

    #[tokio::test]
    async fn connect_is_judged_before_a_tunnel_is_opened() {
        let keys = Keys::new();
        let app = Router::new()
            .fallback(async |consumer: Consumer| format!("tunnel of {}", consumer.id()))
            .layer(ApiKeyLayer::new(keys.auth()));
        let address = server::serve(app).await;
        let connect = |key: &str| request(Method::CONNECT, "db.internal:5432".to_owned(), key);
        let refused = server::http1(address, connect(&unknown_key())).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(refused.headers()[header::WWW_AUTHENTICATE], INVALID_TOKEN);
        let opened = server::http1(address, connect(&keys.key().await)).await;
        assert_eq!(opened.status(), StatusCode::OK);
    }

    /// Switches to a protocol that echoes what it receives.
    async fn switch(mut request: Request) -> Response {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut connection = TokioIo::new(upgrade.await.unwrap());
            let mut bytes = [0; 4];
            connection.read_exact(&mut bytes).await.unwrap();
            connection.write_all(&bytes).await.unwrap();
            connection.shutdown().await.unwrap();
        });
        (
            StatusCode::SWITCHING_PROTOCOLS,
            [(header::CONNECTION, "upgrade"), (header::UPGRADE, "websocket")],
        )
            .into_response()
    }

    #[tokio::test]
    async fn an_upgrade_happens_with_a_valid_key_only() {
        let keys = Keys::new();
        let app = Router::new().route("/", get(switch)).layer(ApiKeyLayer::new(keys.auth()));
        let address = server::serve(app).await;
        let upgrade = |key: &str| {
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 Authorization: Bearer {key}\r\n\r\nping"
            )
        };
        let opened = server::raw(address, upgrade(&keys.key().await).as_bytes()).await;
        assert!(opened.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{opened}");
        assert!(opened.ends_with("\r\n\r\nping"), "{opened}");

        let mut refused = upgrade(&unknown_key()).replace("ping", "").into_bytes();
        // The connection stays an HTTP connection: a second request on it is answered.
        refused.extend_from_slice(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let refused = server::raw(address, &refused).await;
        assert_eq!(refused.matches("HTTP/1.1 401 Unauthorized\r\n").count(), 2, "{refused}");
    }

    #[tokio::test]
    async fn http_2_gets_the_same_answers() {
        let keys = Keys::new();
        let quota = Quota::per_minute(10).unwrap();
        let (auth, _) = keys.builder().default_rate_limits(quota).build();
        let app = Router::new().route("/", get(whoami)).layer(ApiKeyLayer::new(auth));
        let address = server::serve(app).await;
        let uri = format!("http://{address}/");
        let expired = keys.issue(NewKey::new("acme", Expiry::In(crate::app::MILLI))).await;
        keys.clock.advance(crate::app::SECOND);
        for key in [text(&expired), unknown_key(), "jun k".to_owned()] {
            let old = server::http1(address, request(Method::GET, uri.clone(), &key)).await;
            let new = server::http2(address, request(Method::GET, uri.clone(), &key)).await;
            assert_eq!((old.version(), new.version()), (Version::HTTP_11, Version::HTTP_2));
            let (old, new) = (server::collect(old).await, server::collect(new).await);
            assert_eq!((old.status, old.challenge()), (new.status, new.challenge()));
            assert_eq!(old.body, new.body);
        }
        let answer = server::http2(address, request(Method::GET, uri, &keys.key().await)).await;
        let answer = server::collect(answer).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "hello acme"));
        assert_eq!(answer.header("ratelimit"), Some(r#""minute";r=9;t=6"#));
    }
}

mod cors {
    use super::*;

    const ORIGIN: &str = "https://app.example";

    fn preflight() -> Request {
        http::Request::options("/")
            .header(header::ORIGIN, ORIGIN)
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "GET")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization")
            .body(Body::empty())
            .unwrap()
    }

    fn allow() -> CorsLayer {
        CorsLayer::new().allow_origin(Any).allow_headers([header::AUTHORIZATION])
    }

    #[track_caller]
    fn assert_answered_by_cors(answer: &Answer) {
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(answer.header("access-control-allow-headers"), Some("authorization"));
        assert_eq!(answer.text(), "");
    }

    #[tokio::test]
    async fn outside_the_layer_it_answers_preflights_and_lets_browsers_read_refusals() {
        let keys = Keys::new();
        let app = App::new((allow(), ApiKeyLayer::new(keys.auth())));
        assert_answered_by_cors(&app.send(preflight()).await);
        let mut refused = with_key(&unknown_key());
        refused.headers_mut().insert(header::ORIGIN, HeaderValue::from_static(ORIGIN));
        let answer = app.send(refused).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(app.calls(), 0);
    }

    #[tokio::test]
    async fn inside_the_layer_preflights_do_not_reach_it() {
        let keys = Keys::new();
        let app = App::new((ApiKeyLayer::new(keys.auth()), allow()));
        let answer = app.send(preflight()).await;
        assert_eq!((answer.status, answer.challenge()), (StatusCode::UNAUTHORIZED, Some(MISSING)));
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }

    #[tokio::test]
    async fn inside_the_layer_preflights_reach_it_where_they_may_pass() {
        let keys = Keys::new();
        let app = App::new((ApiKeyLayer::new(keys.auth()).pass_preflight(true), allow()));
        let answer = app.send(preflight()).await;
        assert_answered_by_cors(&answer);
        assert_eq!(app.calls(), 0);
    }

    #[tokio::test]
    async fn only_a_true_preflight_passes() {
        let keys = Keys::new();
        let app = App::new(ApiKeyLayer::new(keys.auth()).pass_preflight(true));
        let without = |name: HeaderName| {
            let mut request = preflight();
            request.headers_mut().remove(name);
            request
        };
        let mut plain = crate::app::get("/");
        *plain.method_mut() = Method::OPTIONS;
        let mut get = preflight();
        *get.method_mut() = Method::GET;
        for request in
            [plain, get, without(header::ORIGIN), without(header::ACCESS_CONTROL_REQUEST_METHOD)]
        {
            let answer = app.send(request).await;
            assert_eq!(
                (answer.status, answer.challenge()),
                (StatusCode::UNAUTHORIZED, Some(MISSING))
            );
        }
        assert_eq!(app.calls(), 0);
    }

    #[tokio::test]
    async fn a_preflight_with_a_key_is_judged_by_it() {
        let keys = Keys::new();
        for (layer, name, value) in [
            (
                ApiKeyLayer::new(keys.auth()),
                header::AUTHORIZATION,
                format!("Bearer {}", unknown_key()),
            ),
            (ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY), X_API_KEY, unknown_key()),
            (ApiKeyLayer::new(keys.auth()).only_header(X_API_KEY), X_API_KEY, unknown_key()),
        ] {
            let app = App::new(layer.pass_preflight(true));
            let mut request = preflight();
            request.headers_mut().insert(name.clone(), HeaderValue::try_from(value).unwrap());
            assert_eq!(app.send(request).await.kind(), Some(RejectionKind::Unknown), "{name}");
            assert_eq!(app.calls(), 0);
        }
    }

    #[tokio::test]
    async fn a_preflight_that_passes_has_no_consumer() {
        let keys = Keys::new();
        let app = Router::new()
            .route("/", any(whoami))
            .layer(ApiKeyLayer::new(keys.auth()).pass_preflight(true));
        assert_eq!(send(app, preflight()).await.status, StatusCode::UNAUTHORIZED);
    }
}

mod caching {
    use super::*;

    /// The `Cache-Control` and `Vary` lines of a handler's response after the layer.
    async fn passed(name: HeaderName, lines: &[&'static str]) -> Vec<String> {
        let keys = Keys::new();
        let response = lines.iter().map(|&line| (name.clone(), line)).collect::<Vec<_>>();
        let handler = async move || {
            let mut answer = "hello".into_response();
            for (name, line) in response {
                answer.headers_mut().append(name, HeaderValue::from_static(line));
            }
            answer
        };
        let app = Router::new().route("/", get(handler)).layer(ApiKeyLayer::new(keys.auth()));
        let answer = send(app, with_key(&keys.key().await)).await;
        assert_eq!(answer.status, StatusCode::OK);
        let names = [header::CACHE_CONTROL, header::VARY];
        let lines = names.iter().flat_map(|name| answer.headers.get_all(name));
        lines.map(|line| line.to_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_response_varies_by_the_header_of_the_key() {
        assert_eq!(passed(header::VARY, &[]).await, ["Authorization"]);
    }

    #[tokio::test]
    async fn a_response_that_the_handler_calls_public_varies_once() {
        assert_eq!(passed(header::CACHE_CONTROL, &["public"]).await, ["public", "Authorization"]);
    }

    #[tokio::test]
    async fn a_handlers_vary_is_kept_and_not_repeated() {
        let passed = async |lines: &[&'static str]| passed(header::VARY, lines).await;
        assert_eq!(passed(&["accept"]).await, ["accept", "Authorization"]);
        assert_eq!(passed(&["Authorization"]).await, ["Authorization"]);
        assert_eq!(
            passed(&["accept", "origin, AUTHORIZATION"]).await,
            ["accept", "origin, AUTHORIZATION"]
        );
        assert_eq!(passed(&["*"]).await, ["*"]);
        assert_eq!(passed(&["x-authorization"]).await, ["x-authorization", "Authorization"]);
    }

    #[tokio::test]
    async fn a_response_to_a_stranger_on_an_optional_route_varies_too() {
        let keys = Keys::new();
        let app = App::new(ApiKeyLayer::new(keys.auth()).optional(true));
        let answer = app.send(crate::app::get("/")).await;
        assert_eq!((answer.status, answer.header("vary")), (StatusCode::OK, Some("Authorization")));
    }

    #[tokio::test]
    async fn a_response_varies_by_every_header_that_may_carry_the_key() {
        let keys = Keys::new();
        let key = keys.key().await;
        for (layer, expected) in [
            (
                ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY),
                vec!["Authorization", "x-api-key"],
            ),
            (ApiKeyLayer::new(keys.auth()).only_header(X_API_KEY), vec!["x-api-key"]),
        ] {
            let app = App::new(layer);
            let admitted = app.send(with_header(X_API_KEY, &key)).await;
            let refused = app.send(crate::app::get("/")).await;
            assert_eq!(
                (admitted.status, refused.status),
                (StatusCode::OK, StatusCode::UNAUTHORIZED)
            );
            for answer in [admitted, refused] {
                let vary = answer.headers.get_all("vary").iter();
                assert_eq!(vary.collect::<Vec<_>>(), expected);
            }
        }
    }
}

mod realm {
    use super::*;

    #[tokio::test]
    async fn it_is_in_every_challenge() {
        let keys = Keys::new();
        let layer = ApiKeyLayer::new(keys.auth()).realm("Orders & Reports, v2").unwrap();
        let app = App::new(layer);
        for request in [crate::app::get("/"), with_key("a b"), with_key(&unknown_key())] {
            let answer = app.send(request).await;
            let challenge = answer.challenge().unwrap();
            assert!(challenge.starts_with(r#"Bearer realm="Orders & Reports, v2""#), "{challenge}");
        }
    }

    #[test]
    fn what_does_not_fit_between_quotes_is_an_error() {
        let keys = Keys::new();
        for realm in ["a\"b", "\"", "a\\", "a\r\nX-Evil: 1", "a\nb", "a\0b", "\u{7f}", "é", "\t"] {
            assert!(ApiKeyLayer::new(keys.auth()).realm(realm).is_err(), "{realm:?}");
        }
    }
}

mod credentials {
    use super::*;

    #[tokio::test]
    async fn also_header_finds_the_key_in_either() {
        let keys = Keys::new();
        let app = App::new(ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY));
        let key = keys.key().await;
        assert_eq!(app.get(&key).await.text(), "hello acme");
        assert_eq!(app.send(with_header(X_API_KEY, &key)).await.text(), "hello acme");
        assert_eq!(
            app.send(with_header(X_API_KEY, &format!("  {key} "))).await.text(),
            "hello acme"
        );
    }

    #[tokio::test]
    async fn headers_add_up_and_only_header_is_not_undone() {
        const X_TOKEN: HeaderName = HeaderName::from_static("x-token");
        let keys = Keys::new();
        let key = keys.key().await;
        let layer = || ApiKeyLayer::new(keys.auth());
        let status = async |layer: ApiKeyLayer, name: HeaderName| {
            let value =
                if name == header::AUTHORIZATION { format!("Bearer {key}") } else { key.clone() };
            App::new(layer).send(with_header(name, &value)).await.status
        };

        for name in [X_API_KEY, X_TOKEN, header::AUTHORIZATION] {
            let both = layer().also_header(X_API_KEY).also_header(X_TOKEN);
            assert_eq!(status(both, name).await, StatusCode::OK);
        }
        for name in [X_API_KEY, X_TOKEN] {
            let both = layer().only_header(X_API_KEY).also_header(X_TOKEN);
            assert_eq!(status(both, name).await, StatusCode::OK);
        }
        let without = layer().only_header(X_API_KEY).also_header(X_TOKEN);
        assert_eq!(status(without, header::AUTHORIZATION).await, StatusCode::BAD_REQUEST);
        let twice = layer().also_header(header::AUTHORIZATION);
        assert_eq!(status(twice, header::AUTHORIZATION).await, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_key_that_a_proxy_joined_to_other_credentials_does_not_get_through() {
        let keys = Keys::new();
        let app = App::new(ApiKeyLayer::new(keys.auth()).optional(true));
        let joined = format!("Basic dXNlcjpwYXNz, Bearer {}", keys.key().await);
        let answer = app.send(with_authorization([&*joined])).await;
        assert_eq!((answer.challenge(), app.calls()), (Some(SEVERAL_KEYS), 0));
    }

    #[tokio::test]
    async fn layers_around_each_other_tell_of_a_rejection_once() {
        let keys = Keys::new();
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        let (auth, _) = keys
            .builder()
            .observer(move |_: &Event<'_>| {
                count.fetch_add(1, Ordering::SeqCst);
            })
            .build();
        let around = ApiKeyLayer::new(auth.clone()).optional(true);
        let app = App::new((around, ApiKeyLayer::new(auth)));
        assert_eq!(app.send(with_authorization::<&str>([])).await.challenge(), Some(MISSING));
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_header_of_ones_own_takes_no_scheme() {
        let keys = Keys::new();
        let app = App::new(ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY));
        let key = format!("Bearer {}", keys.key().await);
        let answer = app.send(with_header(X_API_KEY, &key)).await;
        assert!(answer.is_invalid_request());
    }

    #[tokio::test]
    async fn a_header_of_ones_own_counts_beside_an_authorization_of_another_scheme() {
        let keys = Keys::new();
        let app = App::new(ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY));
        let mut request = with_authorization(["Basic dXNlcjpwYXNz"]);
        let key = HeaderValue::try_from(keys.key().await).unwrap();
        request.headers_mut().insert(X_API_KEY, key);
        assert_eq!(app.send(request).await.text(), "hello acme");
    }

    #[tokio::test]
    async fn a_header_of_ones_own_that_comes_twice_is_an_invalid_request() {
        let keys = Keys::new();
        let key = keys.key().await;
        for (layer, challenge) in [
            (ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY), MISSING),
            (ApiKeyLayer::new(keys.auth()).only_header(X_API_KEY), MISSING_IN_HEADER),
        ] {
            let app = App::new(layer);
            let mut request = with_header(X_API_KEY, &key);
            request.headers_mut().append(X_API_KEY, HeaderValue::try_from(&key).unwrap());
            assert!(app.send(request).await.is_invalid_request_of(challenge));
            let joined = format!("{key}, {key}");
            let answer = app.send(with_header(X_API_KEY, &joined)).await;
            assert!(answer.is_invalid_request_of(challenge));
            assert_eq!(app.calls(), 0);
        }
        assert_eq!(keys.queries(), 0);
    }

    #[tokio::test]
    async fn an_empty_header_of_ones_own_is_no_credential() {
        let keys = Keys::new();
        let app = App::new(ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY));
        let challenges = format!("{MISSING}, {MISSING_IN_HEADER}");
        assert_eq!(app.send(with_header(X_API_KEY, "")).await.challenge(), Some(&*challenges));
    }

    #[tokio::test]
    async fn only_header_leaves_authorization_to_the_application() {
        async fn handler(request: Request) -> String {
            assert!(!request.headers().contains_key(X_API_KEY));
            request.headers()[header::AUTHORIZATION].to_str().unwrap().to_owned()
        }

        let keys = Keys::new();
        let layer = ApiKeyLayer::new(keys.auth()).only_header(X_API_KEY);
        let app = Router::new().route("/", get(handler)).layer(layer);
        let key = keys.key().await;
        let other = with_authorization(["Bearer of-the-application"]);
        let refused = send(app.clone(), other).await;
        assert_eq!(
            (refused.status, refused.challenge()),
            (StatusCode::UNAUTHORIZED, Some(MISSING_IN_HEADER))
        );

        let mut request = with_header(X_API_KEY, &key);
        let other = HeaderValue::from_static("Bearer of-the-application");
        request.headers_mut().insert(header::AUTHORIZATION, other);
        assert_eq!(send(app, request).await.text(), "Bearer of-the-application");
    }

    /// Captures a request, for a cached or uncached key, as the handler sees it.
    async fn seen(layer: ApiKeyLayer, requests: [Request; 2]) -> Vec<http::HeaderMap> {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let handler = service_fn(move |request: Request| {
            sender.send(request.headers().clone()).unwrap();
            async { Ok::<_, Infallible>(Response::new(Body::empty())) }
        });
        for request in requests {
            assert_eq!(send(layer.layer(handler.clone()), request).await.status, StatusCode::OK);
        }
        drop(handler);
        let mut seen = Vec::new();
        while let Ok(headers) = receiver.try_recv() {
            seen.push(headers);
        }
        assert_eq!(seen.len(), 2);
        seen
    }

    #[tokio::test]
    async fn the_key_is_taken_out_of_the_request_and_nothing_else() {
        let keys = Keys::new();
        let key = keys.key().await;
        let request = || {
            let mut request = with_key(&key);
            request.headers_mut().insert("x-other", HeaderValue::from_static("1"));
            request
        };
        for headers in seen(ApiKeyLayer::new(keys.auth()), [request(), request()]).await {
            assert_eq!(headers.len(), 1);
            assert_eq!(headers["x-other"], "1");
        }
        let layer = || ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY);
        let request = || with_header(X_API_KEY, &key);
        for headers in seen(layer(), [request(), request()]).await {
            assert!(headers.is_empty());
        }
    }

    #[tokio::test]
    async fn credentials_of_another_scheme_stay_in_the_request() {
        let keys = Keys::new();
        let key = keys.key().await;
        let request = || {
            let mut request = with_authorization(["Basic dXNlcjpwYXNz"]);
            request.headers_mut().insert(X_API_KEY, HeaderValue::try_from(&key).unwrap());
            request
        };
        let layer = ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY);
        for headers in seen(layer, [request(), request()]).await {
            assert_eq!(headers.len(), 1);
            assert_eq!(headers[header::AUTHORIZATION], "Basic dXNlcjpwYXNz");
        }
    }

    #[tokio::test]
    async fn a_key_that_is_kept_is_marked_sensitive() {
        let keys = Keys::new();
        let key = keys.key().await;
        let layer = || ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY).keep_credential(true);
        for headers in seen(layer(), [with_key(&key), with_key(&key)]).await {
            let value = &headers[header::AUTHORIZATION];
            assert_eq!(value, &format!("Bearer {key}"));
            assert!(value.is_sensitive());
        }
        let request = || with_header(X_API_KEY, &key);
        for headers in seen(layer(), [request(), request()]).await {
            assert!(headers[X_API_KEY].is_sensitive());
        }
    }

    #[tokio::test]
    async fn a_stranger_passes_where_the_key_is_optional() {
        let keys = Keys::new();
        let app = App::new(ApiKeyLayer::new(keys.auth()).optional(true));
        for request in [crate::app::get("/"), with_authorization(["Basic dXNlcjpwYXNz"])] {
            let answer = app.send(request).await;
            assert_eq!((answer.status, answer.text()), (StatusCode::OK, "hello stranger"));
            assert_eq!(answer.rate_limit_headers(), [""; 0]);
        }
        assert_eq!(app.get(&keys.key().await).await.text(), "hello acme");
    }

    #[tokio::test]
    async fn a_wrong_key_is_turned_away_even_where_it_is_optional() {
        let keys = Keys::new();
        let app = App::new(ApiKeyLayer::new(keys.auth()).optional(true));
        let (valid, unknown) = (keys.key().await, unknown_key());
        for (request, challenge) in [
            (with_key(&unknown), INVALID_TOKEN),
            (with_key("junk"), INVALID_TOKEN),
            (with_key(&format!("{valid}A")), INVALID_TOKEN),
            (with_key("a b"), WRONG_CHARACTERS),
            (with_authorization([format!("Bearer {valid}"), String::new()]), SEVERAL_KEYS),
        ] {
            assert_eq!(app.send(request).await.challenge(), Some(challenge));
        }
        assert_eq!(app.calls(), 0);
    }
}

mod rejections {
    use super::*;

    /// A store that is down.
    struct Down;

    impl KeyStore for Down {
        async fn find(&self, _: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
            Err(StoreError::new(StoreErrorKind::Unavailable).because("connection refused"))
        }
    }

    const KINDS: [(RejectionKind, u16, &str); 16] = [
        (RejectionKind::Missing, 401, "missing_api_key"),
        (RejectionKind::InvalidRequest, 400, "invalid_request"),
        (RejectionKind::Malformed, 401, "invalid_api_key"),
        (RejectionKind::Unknown, 401, "invalid_api_key"),
        (RejectionKind::Revoked, 401, "invalid_api_key"),
        (RejectionKind::Expired, 401, "invalid_api_key"),
        (RejectionKind::Inactive, 401, "invalid_api_key"),
        (RejectionKind::NotYetActive, 401, "invalid_api_key"),
        (RejectionKind::InsufficientScope, 403, "insufficient_scope"),
        (RejectionKind::RateLimited, 429, "rate_limit_exceeded"),
        (RejectionKind::TooManyFailures, 429, "too_many_failures"),
        (RejectionKind::StoreUnavailable, 503, "service_unavailable"),
        (RejectionKind::Overloaded, 503, "service_unavailable"),
        (RejectionKind::LayerMissing, 500, "internal_error"),
        (RejectionKind::ForeignLayer, 500, "internal_error"),
        (RejectionKind::Internal, 500, "internal_error"),
    ];

    fn parts() -> Parts {
        http::Request::new(()).into_parts().0
    }

    #[test]
    fn every_problem_says_what_its_status_says() {
        for (kind, status, code) in KINDS {
            let response: http::Response<String> =
                ProblemJson::default().response(&Rejection::new(kind), &parts());
            assert_eq!(response.status(), status, "{kind:?}");
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
            let problem: serde_json::Value = serde_json::from_str(response.body()).unwrap();
            let problem = problem.as_object().unwrap();
            assert_eq!(problem["status"], status, "{kind:?}");
            assert_eq!(problem["code"], code, "{kind:?}");
            for member in ["type", "title", "detail"] {
                assert!(!problem[member].as_str().unwrap().is_empty(), "{kind:?}: {member}");
            }
            assert_eq!(problem.len(), 5, "{kind:?}: {problem:?}");
        }
    }

    #[test]
    fn a_reason_is_disclosed_to_those_who_asked_for_it() {
        let problem = ProblemJson::default().danger_disclose_reason();
        for (kind, _, code) in KINDS {
            let response: http::Response<String> =
                problem.response(&Rejection::new(kind), &parts());
            let problem: serde_json::Value = serde_json::from_str(response.body()).unwrap();
            let reason = problem.get("reason").map(|reason| reason.as_str().unwrap());
            let expected = match kind {
                RejectionKind::Malformed => Some("malformed"),
                RejectionKind::Unknown => Some("unknown"),
                RejectionKind::Revoked => Some("revoked"),
                RejectionKind::Expired => Some("expired"),
                RejectionKind::Inactive => Some("inactive"),
                RejectionKind::NotYetActive => Some("not_yet_active"),
                _ => None,
            };
            assert_eq!(reason, expected, "{kind:?}");
            assert_eq!(reason.is_some(), code == "invalid_api_key", "{kind:?}");
        }
    }

    #[tokio::test]
    async fn the_status_alone_serves_bodies_that_cannot_be_made_from_text() {
        #[derive(Debug, Default, PartialEq)]
        struct Opaque(u8);

        let keys = Keys::new();
        let layer = ApiKeyLayer::new(keys.auth()).render_rejections(StatusOnly);
        let inner =
            async |_: http::Request<()>| Ok::<_, Infallible>(http::Response::new(Opaque(1)));
        let service = layer.layer(service_fn(inner));
        let Ok(refused) = service.clone().oneshot(http::Request::new(())).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(refused.headers()[header::WWW_AUTHENTICATE], MISSING);
        assert_eq!(refused.headers()[header::CACHE_CONTROL], "no-store");
        assert_eq!(refused.body(), &Opaque(0));

        let mut request = http::Request::new(());
        let key = format!("Bearer {}", keys.key().await);
        request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::try_from(key).unwrap());
        let Ok(admitted) = service.oneshot(request).await;
        assert_eq!(admitted.body(), &Opaque(1));
    }

    /// An app with an empty renderer, and a key with a quota of one request.
    async fn terse(keys: &Keys) -> (App, String) {
        let quota = Quota::per_minute(1).unwrap();
        let (auth, _) = keys.builder().default_rate_limits(quota).build();
        let renderer = |_: &Rejection, _: &Parts| Response::new(Body::from("no"));
        (App::new(ApiKeyLayer::new(auth).render_rejections(renderer)), keys.key().await)
    }

    #[tokio::test]
    async fn what_a_renderer_forgets_is_added() {
        let keys = Keys::new();
        let (app, key) = terse(&keys).await;
        for (request, challenge, kind) in [
            (crate::app::get("/"), MISSING, RejectionKind::Missing),
            (with_key("a b"), WRONG_CHARACTERS, RejectionKind::InvalidRequest),
            (with_key("junk"), INVALID_TOKEN, RejectionKind::Malformed),
            (with_key(&unknown_key()), INVALID_TOKEN, RejectionKind::Unknown),
        ] {
            let answer = app.send(request).await;
            assert_eq!((answer.text(), answer.challenge()), ("no", Some(challenge)));
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            assert_eq!(answer.header("vary"), Some("Authorization"));
            assert_eq!(answer.kind(), Some(kind));
        }
        assert_eq!(app.get(&key).await.status, StatusCode::OK);
        let answer = app.get(&key).await;
        assert_eq!((answer.text(), answer.challenge()), ("no", None));
        assert_eq!(answer.header("retry-after"), Some("60"));
        assert_eq!(answer.header("ratelimit"), Some(r#""minute";r=0;t=60"#));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.kind(), Some(RejectionKind::RateLimited));
    }

    #[tokio::test]
    async fn what_a_renderer_says_is_kept() {
        let keys = Keys::new();
        let renderer = |rejection: &Rejection, _: &Parts| {
            let headers = [
                (header::WWW_AUTHENTICATE, "Bearer realm=\"mine\""),
                (header::CACHE_CONTROL, "private"),
                (header::VARY, "authorization, accept"),
            ];
            let body = format!("{:?}", rejection.kind());
            (StatusCode::IM_A_TEAPOT, headers, body).into_response()
        };
        let app = App::new(ApiKeyLayer::new(keys.auth()).render_rejections(renderer));
        let answer = app.get(&unknown_key()).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::IM_A_TEAPOT, "Unknown"));
        assert_eq!(answer.challenge(), Some("Bearer realm=\"mine\""));
        assert_eq!(answer.header("cache-control"), Some("private"));
        assert_eq!(answer.header("vary"), Some("authorization, accept"));
    }

    #[tokio::test]
    async fn a_renderer_learns_the_key_but_clients_do_not() {
        let keys = Keys::new();
        let issued = keys.issue(NewKey::new("acme", Expiry::Never)).await;
        keys.revoke(&issued).await;
        let app = App::new(ApiKeyLayer::new(keys.auth()));
        let answer = app.get(&text(&issued)).await;
        assert_eq!(answer.rejection.as_ref().and_then(Rejection::key_id), Some(issued.record.id));
        let wire = answer.wire();
        for secret in [&issued.record.id.to_string(), "acme", PREFIX, &issued.record.key_last4] {
            assert!(!wire.contains(secret), "{wire}");
        }
    }

    #[tokio::test]
    async fn a_store_that_is_down_is_503_and_never_401() {
        let (auth, _) = Authenticator::builder(Down, crate::app::format()).build();
        let app = App::new(ApiKeyLayer::new(auth));
        for _ in 0..10 {
            let answer = app.get(&unknown_key()).await;
            assert_eq!(
                answer.wire(),
                "503 Service Unavailable\n\
                 content-type: application/problem+json\n\
                 cache-control: no-store\n\
                 retry-after: 1\n\
                 vary: Authorization\n\
                 \n\
                 {\"type\":\"https://iana.org/assignments/http-problem-types#temporary-reduced-capacity\",\
                 \"title\":\"Request cannot be satisfied due to temporary server capacity constraints\",\
                 \"status\":503,\
                 \"detail\":\"The API key cannot be checked right now. Keep it and try again.\",\
                 \"code\":\"service_unavailable\"}"
            );
        }
        assert_eq!(app.calls(), 0);
    }

    #[tokio::test]
    async fn settings_survive_a_change_of_the_renderer() {
        let keys = Keys::new();
        let (auth, _) = keys.builder().default_rate_limits(Quota::per_minute(10).unwrap()).build();
        let layer = ApiKeyLayer::new(auth)
            .realm("orders")
            .unwrap()
            .also_header(X_API_KEY)
            .rate_limit_headers(RateLimitHeaders::Legacy)
            .render_rejections(ProblemJson::default().danger_disclose_reason());
        let app = App::new(layer);
        let refused = app.send(with_header(X_API_KEY, &unknown_key())).await;
        assert!(refused.challenge().unwrap().contains("realm=\"orders\""));
        assert_eq!(refused.json()["reason"], "unknown");
        let admitted = app.send(with_header(X_API_KEY, &keys.key().await)).await;
        assert_eq!(admitted.header("x-ratelimit-limit"), Some("10"));
        assert_eq!(admitted.header("ratelimit"), None);
    }
}
