//! Allocations of a request, counted per thread, beyond those of a no-op layer.

#![cfg(test)]
#![cfg(all(feature = "axum", feature = "test-util"))]

#[path = "support/app/mod.rs"]
mod app;
#[path = "support/raw_store/mod.rs"]
mod raw_store;

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    net::IpAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::{AllocationInfo, measure};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use tower::{Layer, Service};
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    auth::{Attempt, ClientNetwork, Event, RejectionKind, Worker},
    layer::{ClientAddress, RateLimitHeaders},
    manage::{Expiry, NewKey},
    rate_limit::{Quota, RateLimits},
    record::Networks,
};

use self::app::{Keys, unknown_key};

/// Enough requests that in some of them moka, which runs its maintenance in every 64th or so, has
/// nothing to do.
const RUNS: usize = 500;

/// Responds without allocating anything but the response's own headers.
#[derive(Clone)]
struct Inner {
    headers: bool,
}

impl Service<Request<String>> for Inner {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<String>) -> Self::Future {
        let mut response = Response::new(String::new());
        if self.headers {
            let text = HeaderValue::from_static("text/plain");
            response.headers_mut().insert(header::CONTENT_TYPE, text);
        }
        ready(Ok(response))
    }
}

/// A no-op layer.
#[derive(Clone)]
struct Bare<S>(S);

impl<S: Service<Request<String>>> Service<Request<String>> for Bare<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        self.0.call(request)
    }
}

/// A request as a server creates it: with extensions, or without.
fn request(authorization: &[u8], extensions: bool) -> Request<String> {
    let mut request = Request::new(String::new());
    let value = HeaderValue::from_bytes(authorization).unwrap();
    request.headers_mut().insert(header::AUTHORIZATION, value);
    if extensions {
        request.extensions_mut().insert(7_u8);
    }
    request
}

fn with_key(key: &str, extensions: bool) -> Request<String> {
    request(format!("Bearer {key}").as_bytes(), extensions)
}

/// The least allocations of one call.
fn cost<S>(
    service: &mut S,
    request: impl Fn() -> Request<String>,
    status: StatusCode,
) -> AllocationInfo
where
    S: Service<Request<String>, Response = Response<String>, Error = Infallible>,
{
    let cost = || {
        let request = request();
        let mut response = None;
        let cost = measure(|| {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(service.poll_ready(&mut cx).is_ready());
            let Poll::Ready(Ok(answer)) = pin!(service.call(request)).poll(&mut cx) else {
                panic!("the request is answered at once");
            };
            response = Some(answer);
        });
        assert_eq!(response.unwrap().status(), status);
        cost
    };
    std::iter::repeat_with(cost).take(RUNS).min_by_key(|cost| cost.count_total).unwrap()
}

fn cheapest(mut work: impl FnMut()) -> u64 {
    let cost = || measure(&mut work).count_total;
    std::iter::repeat_with(cost).take(RUNS).min().unwrap()
}

/// An authenticator that has cached a key, its running worker, and the key.
async fn warm(limits: impl Into<RateLimits>) -> (Authenticator, Worker, String) {
    let keys = Keys::new();
    let (auth, worker) = keys.builder().default_rate_limits(limits).build();
    let key = keys.key().await;
    auth.check(key.as_bytes()).await.unwrap();
    (auth, worker, key)
}

fn plenty() -> Quota {
    Quota::per_second(1_000_000).unwrap()
}

/// Allocations of one admitted request beyond those of the bare layer.
async fn beyond_bare(
    headers: RateLimitHeaders,
    limits: impl Into<RateLimits>,
    extensions: bool,
    response_headers: bool,
) -> u64 {
    let (auth, _worker, key) = warm(limits).await;
    let inner = Inner { headers: response_headers };
    let request = || with_key(&key, extensions);
    let bare = cost(&mut Bare(inner.clone()), request, StatusCode::OK);
    let layer = ApiKeyLayer::new(auth).rate_limit_headers(headers);
    let ours = cost(&mut layer.layer(inner), request, StatusCode::OK);
    ours.count_total - bare.count_total
}

mod a_cached_key {
    use super::*;

    #[tokio::test]
    async fn costs_the_place_of_its_consumer_among_the_requests_extensions() {
        assert_eq!(beyond_bare(RateLimitHeaders::Off, plenty(), true, true).await, 1);
        let unlimited = RateLimits::unlimited();
        assert_eq!(beyond_bare(RateLimitHeaders::Standard, unlimited, true, true).await, 1);
    }

    /// The map of extensions is a box with a table, in which each value has a box of its own.
    #[tokio::test]
    async fn costs_two_more_where_the_request_has_no_extensions_yet() {
        assert_eq!(beyond_bare(RateLimitHeaders::Off, plenty(), false, true).await, 3);
    }

    /// `Vary` needs memory: a header map is a list and its index.
    #[tokio::test]
    async fn costs_two_more_where_the_response_has_no_headers_yet() {
        assert_eq!(beyond_bare(RateLimitHeaders::Off, plenty(), true, false).await, 3);
    }

    /// `RateLimit` is formatted each time; `RateLimit-Policy` is shared.
    #[tokio::test]
    async fn costs_one_more_for_the_rate_limit_headers() {
        let standard = RateLimitHeaders::Standard;
        assert_eq!(beyond_bare(standard, plenty(), true, true).await, 2);
        assert_eq!(beyond_bare(standard, plenty(), false, false).await, 6);
    }

    #[tokio::test]
    async fn costs_one_more_for_all_its_further_quotas() {
        let two = [plenty(), Quota::per_hour(4_000_000_000).unwrap()];
        let two = RateLimits::new(two).unwrap();
        assert_eq!(beyond_bare(RateLimitHeaders::Off, two, true, true).await, 2);
    }

    /// The client's address is not read.
    #[tokio::test]
    async fn costs_no_more_where_failures_are_throttled() {
        let (auth, _worker, key) = warm(plenty()).await;
        let request = || {
            let mut request = with_key(&key, true);
            let forwarded = HeaderValue::from_static("for=\"[2001:db8::1]:4711\";proto=https");
            request.headers_mut().insert(header::FORWARDED, forwarded);
            request
        };
        let inner = Inner { headers: true };
        let bare = cost(&mut Bare(inner.clone()), request, StatusCode::OK);
        let layer = ApiKeyLayer::new(auth).rate_limit_headers(RateLimitHeaders::Off);
        let layer = layer.throttle_failures(ClientAddress::forwarded(1));
        let ours = cost(&mut layer.layer(inner), request, StatusCode::OK);
        assert_eq!(ours.count_total - bare.count_total, 1);
    }

    /// The addresses and the origin are compared where they are; the date is written once.
    #[tokio::test]
    async fn costs_one_more_where_it_has_networks_and_expires_soon() {
        let keys = Keys::new();
        let (auth, _worker) = keys.builder().default_rate_limits(plenty()).build();
        let new = NewKey::new("acme", Expiry::In(Duration::from_secs(86_400)))
            .networks(Networks::parse(["10.0.0.0/8", "2001:db8::/32"]).unwrap());
        let key = app::text(&keys.issue(new).await);
        let address = IpAddr::from([10, 0, 0, 1]);
        auth.check(key.as_bytes()).address(address).await.unwrap();
        let check = || auth.check(key.as_bytes()).address(address).try_now();
        assert_eq!(cheapest(|| assert!(matches!(check(), Attempt::Admit(_)))), 0);
        let request = || {
            let mut request = with_key(&key, true);
            let forwarded = HeaderValue::from_static("10.0.0.1");
            request.headers_mut().insert("x-forwarded-for", forwarded);
            request
        };
        let inner = Inner { headers: true };
        let bare = cost(&mut Bare(inner.clone()), request, StatusCode::OK);
        let layer = ApiKeyLayer::new(auth).rate_limit_headers(RateLimitHeaders::Off);
        let layer = layer.client_address(ClientAddress::x_forwarded_for(1));
        let ours = cost(&mut layer.layer(inner), request, StatusCode::OK);
        assert_eq!(ours.count_total - bare.count_total, 2, "the value of `X-Api-Key-Expires`");
    }

    #[tokio::test]
    async fn costs_no_more_where_it_is_observed() {
        let (keys, seen) = (Keys::new(), Arc::new(AtomicUsize::new(0)));
        let observer = {
            let seen = Arc::clone(&seen);
            move |event: &Event<'_>| {
                if matches!(event, Event::Admitted { .. }) {
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let builder = keys.builder().default_rate_limits(plenty()).observer(observer);
        #[cfg(not(feature = "metrics"))]
        let (auth, _worker) = builder.build();
        #[cfg(feature = "metrics")]
        let (auth, _worker) = {
            let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
            metrics::with_local_recorder(&recorder, || builder.build())
        };
        let key = keys.key().await;
        auth.check(key.as_bytes()).await.unwrap();
        let request = || with_key(&key, true);
        let inner = Inner { headers: true };
        let bare = cost(&mut Bare(inner.clone()), request, StatusCode::OK);
        let layer = ApiKeyLayer::new(auth).rate_limit_headers(RateLimitHeaders::Off);
        let ours = cost(&mut layer.layer(inner), request, StatusCode::OK);
        assert_eq!(ours.count_total - bare.count_total, 1);
        assert_eq!(seen.load(Ordering::Relaxed), 1 + RUNS);
    }

    #[tokio::test]
    async fn costs_nothing_before_it_is_handed_over() {
        let (auth, _worker, key) = warm(plenty()).await;
        let cost = cheapest(|| {
            let attempt = auth.check(key.as_bytes()).try_now();
            assert!(matches!(attempt, Attempt::Admit(_)));
        });
        assert_eq!(cost, 0);
    }

    /// moka logs reads and processes the log in some of them. Averaged over many, that is nothing.
    #[tokio::test]
    async fn costs_less_than_one_in_fifty_requests_for_tidying_up() {
        const MANY: u64 = 100_000;
        let (auth, _worker, key) = warm(plenty()).await;
        let cost = measure(|| {
            for _ in 0..MANY {
                let attempt = auth.check(key.as_bytes()).try_now();
                assert!(matches!(attempt, Attempt::Admit(_)));
            }
        });
        assert!(cost.count_total < MANY / 50, "{cost:?}");
    }
}

mod a_refused_key {
    use super::*;

    /// The allocations of the decision to refuse a key.
    fn attempt(auth: &Authenticator, key: &[u8], kind: RejectionKind) -> u64 {
        cheapest(|| match auth.check(key).try_now() {
            Attempt::Reject(rejection) => assert_eq!(rejection.kind(), kind),
            other => panic!("{other:?}"),
        })
    }

    #[tokio::test]
    async fn costs_nothing_where_it_is_malformed() {
        let (auth, _worker, key) = warm(plenty()).await;
        let malformed = |key: &[u8]| attempt(&auth, key, RejectionKind::Malformed);
        assert_eq!(malformed(b""), 0);
        assert_eq!(malformed(b"junk"), 0);
        assert_eq!(malformed(&[0xff; 64 * 1024]), 0);
        assert_eq!(malformed(&key.as_bytes()[1..]), 0);
        assert_eq!(malformed(key.replace('t', "T").as_bytes()), 0);
    }

    #[tokio::test]
    async fn costs_nothing_where_it_is_known_to_be_unknown() {
        let (auth, _worker, _) = warm(plenty()).await;
        let unknown = unknown_key();
        auth.check(unknown.as_bytes()).await.unwrap_err();
        assert_eq!(attempt(&auth, unknown.as_bytes(), RejectionKind::Unknown), 0);
    }

    #[tokio::test]
    async fn costs_nothing_where_it_counts_as_a_failure() {
        let keys = Keys::new();
        let often = keys.builder().failure_limit(u32::MAX, Duration::from_nanos(1));
        let (auth, _worker) = often.build();
        let unknown = unknown_key();
        let network = ClientNetwork::from(IpAddr::from([192, 0, 2, 1]));
        auth.check(unknown.as_bytes()).from(network).await.unwrap_err();
        let cost = cheapest(|| match auth.check(unknown.as_bytes()).from(network).try_now() {
            Attempt::Reject(rejection) => assert_eq!(rejection.kind(), RejectionKind::Unknown),
            other => panic!("{other:?}"),
        });
        assert_eq!(cost, 0);
    }

    /// The details of a rejection share one allocation.
    #[tokio::test]
    async fn costs_one_where_it_is_one_of_ours() {
        let (auth, _worker, key) = warm(Quota::per_hour(1).unwrap()).await;
        assert_eq!(attempt(&auth, key.as_bytes(), RejectionKind::RateLimited), 1);
    }

    /// Including the response.
    #[tokio::test]
    async fn costs_the_same_memory_whatever_its_length() {
        let (auth, _worker, _) = warm(plenty()).await;
        let mut service = ApiKeyLayer::new(auth).layer(Inner { headers: true });
        let mut bytes = |authorization: &[u8], status| {
            cost(&mut service, || request(authorization, true), status).bytes_total
        };
        let beyond_ascii = |len| [b"Bearer ", vec![0xff; len].as_slice()].concat();
        let token = |len| [b"Bearer ", vec![b'a'; len].as_slice()].concat();

        let short = bytes(&beyond_ascii(1), StatusCode::BAD_REQUEST);
        assert!(short < 1500, "{short}");
        assert_eq!(bytes(&beyond_ascii(64 * 1024), StatusCode::BAD_REQUEST), short);
        let short = bytes(&token(1), StatusCode::UNAUTHORIZED);
        assert!(short < 1500, "{short}");
        assert_eq!(bytes(&token(257), StatusCode::UNAUTHORIZED), short);
        assert_eq!(bytes(&token(400 * 1024), StatusCode::UNAUTHORIZED), short);
    }

    /// Body and challenge say what the mistake was.
    #[tokio::test]
    async fn costs_no_more_where_the_mistake_is_named() {
        let (auth, _worker, key) = warm(plenty()).await;
        let layer = ApiKeyLayer::new(auth).also_header(HeaderName::from_static("x-api-key"));
        let mut service = layer.layer(Inner { headers: true });
        let sent = |name: &'static str, value: &str| {
            let mut request = Request::new(String::new());
            request.extensions_mut().insert(7_u8);
            let value = HeaderValue::try_from(value).unwrap();
            request.headers_mut().append(HeaderName::from_static(name), value);
            request
        };
        let authorization = |value: &str| sent("authorization", value);
        let mut twice = authorization(&format!("Bearer {key}"));
        let again = twice.headers()[header::AUTHORIZATION].clone();
        twice.headers_mut().append(header::AUTHORIZATION, again);
        let mut in_url = Request::new(String::new());
        *in_url.uri_mut() = format!("/?key={key}").parse().unwrap();
        let mistakes = [
            ("more than one", twice),
            ("characters", authorization(&format!("Bearer \"{key}\""))),
            ("comes twice", authorization(&format!("Bearer Bearer {key}"))),
            ("key alone", sent("x-api-key", &format!("Bearer {key}"))),
            ("no `Bearer`", authorization(&key)),
            ("another scheme", authorization(&format!("Token {key}"))),
            ("a header that is not read", sent("x-auth-token", &key)),
            ("in the URL", in_url),
            ("JSON Web Token", authorization("Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.c2ln")),
        ];
        for (mistake, request) in mistakes {
            let mut cx = Context::from_waker(Waker::noop());
            let Poll::Ready(Ok(answer)) = pin!(service.call(request.clone())).poll(&mut cx) else {
                panic!("the request is answered at once");
            };
            assert!(answer.body().contains(mistake), "{mistake}: {}", answer.body());
            let cost = cost(&mut service, || request.clone(), answer.status());
            assert!(cost.bytes_total < 1500, "{mistake}: {cost:?}");
        }
    }
}
