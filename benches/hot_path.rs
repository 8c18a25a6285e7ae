//! What a request for a cached key costs, beside the sum of what it cannot do without.
//!
//! `cargo bench --bench hot_path` prints each primitive, each variant of the layer over a bare axum
//! router, and the ratios. All of it is one interleaved run.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a measurement that fails ends"
)]

mod support;

use std::{
    convert::Infallible,
    future::Future,
    num::NonZeroU32,
    pin::pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, response::Response, routing::get};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use sha2::{Digest, Sha256};
use tower::{Layer, Service, ServiceExt};
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope,
    clock::{Clock, SystemClock},
    key::{KeyFormat, KeyHash},
    layer::RateLimitHeaders,
    manage::{Expiry, KeyIssuer, NewKey},
    rate_limit::{BucketId, LocalRateLimiter, Quota, RateLimiter},
    record::{KeyId, KeyRecord, Scopes},
    store::MemoryKeyStore,
};

use self::support::Cases;

const SLICE: Duration = Duration::from_millis(15);

fn rounds() -> usize {
    std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(41)
}

fn main() {
    // As `cargo test --benches` calls it.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = runtime.block_on(Bench::new());
    let _entered = runtime.enter();
    primitives_and_layer(&bench);
    refusals(&bench);
    many_keys(&bench);
    threads(&bench);
}

/// A service whose keys are all cached.
struct Bench {
    format: KeyFormat,
    auth: Authenticator,
    keys: Vec<HeaderValue>,
}

const KEYS: usize = 10_000;

/// High enough that nobody is turned away, and as odd as real ones.
fn quota() -> Quota {
    Quota::per_second(50_000_000).unwrap().named("minute").unwrap()
}

fn bearer(key: &str) -> HeaderValue {
    HeaderValue::try_from(format!("Bearer {key}")).unwrap()
}

impl Bench {
    async fn new() -> Self {
        let format = KeyFormat::new("sk_live_").unwrap();
        let store = MemoryKeyStore::new();
        let (auth, worker) = Authenticator::builder(store.clone(), format.clone())
            .default_rate_limits(quota())
            .build();
        drop(worker);
        let issuer = KeyIssuer::new(store, format.clone());
        let mut keys = Vec::new();
        for _ in 0..KEYS {
            let scopes = Scopes::parse(["orders:read", "orders:write"]).unwrap();
            let new = NewKey::new("acme", Expiry::Never).scopes(scopes);
            let issued = issuer.issue(new).await.unwrap();
            let key = issued.key.expose_secret();
            auth.authenticate(key.as_bytes()).await.unwrap();
            keys.push(bearer(key));
        }
        Self { format, auth, keys }
    }

    fn layer(&self) -> ApiKeyLayer {
        ApiKeyLayer::new(self.auth.clone())
    }

    fn bare(&self) -> Router {
        Router::new().route("/", get(|| async { "ok" }))
    }

    fn with<L>(&self, layer: L) -> Router
    where
        L: Layer<axum::routing::Route> + Clone + Send + Sync + 'static,
        L::Service: Service<Request<Body>, Response = Response, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        <L::Service as Service<Request<Body>>>::Future: Send + 'static,
    {
        self.bare().layer(layer)
    }

    fn hot(&self) -> &HeaderValue {
        &self.keys[0]
    }
}

/// The whole of a request: built, sent through, answered at once.
fn ask(router: &Router, key: &HeaderValue) -> StatusCode {
    let mut request = Request::new(Body::empty());
    request.headers_mut().insert(header::AUTHORIZATION, key.clone());
    let mut response = pin!(router.clone().oneshot(request));
    match response.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(response)) => response.status(),
        Poll::Pending => panic!("it waits"),
    }
}

/// The layer that does nothing.
#[derive(Clone)]
struct NoOp<S>(S);

impl<S: Service<Request<Body>>> Service<Request<Body>> for NoOp<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.0.call(request)
    }
}

fn record(hash: KeyHash) -> KeyRecord {
    KeyRecord::new(KeyId::from_bytes([1; 16]), hash, "acme", std::time::SystemTime::UNIX_EPOCH)
}

const PRIMITIVES: [&str; 8] = [
    "find the credential, take it out",
    "parse: length, prefix, alphabet, checksum",
    "hash: SHA-256",
    "cache: a hit in moka",
    "clock",
    "bucket: one unit",
    "extensions: insert",
    "headers: two, of which one is formatted",
];

fn primitives_and_layer(bench: &Bench) {
    println!("\n# One key, one thread\n");
    let hot = bench.hot();
    let bytes = hot.as_bytes()[b"Bearer ".len()..].to_vec();
    let presented = bench.format.parse(&bytes).unwrap();
    let hash = presented.hash();
    let mut headers = HeaderMap::new();
    let moka: moka::sync::Cache<KeyHash, Arc<KeyRecord>> = moka::sync::Cache::builder()
        .max_capacity(100_000)
        .time_to_live(Duration::from_secs(660))
        .build();
    moka.insert(hash, Arc::new(record(hash)));
    let clock = SystemClock::new();
    let limiter = LocalRateLimiter::new();
    let id = BucketId::of_key("acme", 1, "minute");
    let buckets = limiter.buckets(&[(id, quota())], clock.monotonic());
    let at = AtomicU64::new(0);
    let consumer = Consumer::from(record(hash));
    let policy = HeaderValue::from_static(r#""minute";q=50000000;w=1"#);
    let (policy_name, state_name) =
        (HeaderName::from_static("ratelimit-policy"), HeaderName::from_static("ratelimit"));
    let mut left = 0_u32;
    let bare = bench.bare();
    let no_op = bench.with(tower::layer::layer_fn(NoOp));
    let off = bench.with(bench.layer().rate_limit_headers(RateLimitHeaders::Off));
    let layer = bench.with(bench.layer());
    let both = bench.with(bench.layer().rate_limit_headers(RateLimitHeaders::Both));
    let scoped = bench.bare().layer(RequireScope::one("orders:read").unwrap()).layer(bench.layer());

    let mut cases = Cases::default();

    cases.add("find the credential, take it out", || {
        headers.insert(header::AUTHORIZATION, hot.clone());
        let found = headers.get_all(header::AUTHORIZATION).iter().next().unwrap().len();
        (headers.remove(header::AUTHORIZATION), found)
    });
    cases.add("(putting it in, which is not ours)", || {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, hot.clone());
        headers
    });
    cases.add("parse: length, prefix, alphabet, checksum", || bench.format.parse(&bytes).is_ok());
    cases.add("hash: SHA-256", || Sha256::digest(&bytes));

    cases.add("cache: a hit in moka", || moka.get(&hash).is_some());

    cases.add("clock", || clock.monotonic());

    cases.add("bucket: one unit", || {
        let now = Duration::from_nanos(at.fetch_add(1_000, Ordering::Relaxed));
        buckets.take(NonZeroU32::MIN, now)
    });

    cases.add("extensions: insert", || {
        let mut extensions = http::Extensions::new();
        extensions.insert(consumer.clone());
        extensions
    });

    cases.add("headers: two, of which one is formatted", || {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        left = left.wrapping_add(1);
        let mut state = [0_u8; 64];
        let text = format_state(&mut state, left);
        headers.insert(policy_name.clone(), policy.clone());
        headers.insert(state_name.clone(), HeaderValue::from_bytes(text).unwrap());
        headers.append(header::VARY, HeaderValue::from_static("Authorization"));
        headers
    });
    cases.add("(the header that is there already)", || {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers
    });

    cases.add("bare router", || ask(&bare, hot));
    cases.add("no-op layer", || ask(&no_op, hot));
    cases.add("layer, headers off", || ask(&off, hot));
    cases.add("layer", || ask(&layer, hot));
    cases.add("layer, with X-RateLimit headers", || ask(&both, hot));
    cases.add("layer and RequireScope", || ask(&scoped, hot));

    cases.run(rounds(), SLICE);
    cases.print();

    let floor: f64 = PRIMITIVES.iter().map(|primitive| cases.min(primitive)).sum::<f64>()
        - cases.min("(the header that is there already)");
    let off_floor = floor
        - (cases.min("headers: two, of which one is formatted")
            - cases.min("(the header that is there already)"));
    println!("\nfloor: {floor:.0} ns, without headers {off_floor:.0} ns");
    for (name, floor) in [("layer", floor), ("layer, headers off", off_floor)] {
        let net = cases.min(name) - cases.min("no-op layer");
        let all = cases.min(name) - cases.min("bare router");
        let bare = cases.min("bare router");
        println!(
            "{name}: net of the no-op {net:.0} ns (paired {:.0}) = {:.2} x floor; in all {all:.0} ns \
             (paired {:.0}) = {:.2} x bare",
            cases.more_than("no-op layer", name),
            net / floor,
            cases.more_than("bare router", name),
            all / bare,
        );
    }
}

fn format_state(state: &mut [u8; 64], left: u32) -> &[u8] {
    const BEGIN: &[u8] = b"\"minute\";r=";
    const END: &[u8] = b";t=1";
    let mut itoa = itoa::Buffer::new();
    let digits = itoa.format(left).as_bytes();
    let length = BEGIN.len() + digits.len() + END.len();
    state[..BEGIN.len()].copy_from_slice(BEGIN);
    state[BEGIN.len()..][..digits.len()].copy_from_slice(digits);
    state[BEGIN.len() + digits.len()..][..END.len()].copy_from_slice(END);
    &state[..length]
}

fn refusals(bench: &Bench) {
    println!("\n# Refusals\n");
    let auth = &bench.auth;
    let key = &bench.hot().as_bytes()[b"Bearer ".len()..];
    let mut malformed = key.to_vec();
    let last = malformed.len() - 1;
    malformed[last] = if malformed[last] == b'A' { b'B' } else { b'A' };
    let mut cases = Cases::default();
    cases.add("decision: malformed", || auth.attempt(&malformed));
    cases.add("decision: wrong length", || auth.attempt(b"sk_live_x"));
    cases.run(rounds(), SLICE);
    cases.print();
}

fn many_keys(_: &Bench) {}

fn threads(bench: &Bench) {
    println!("\n# Threads on one hot key\n");
    let router = bench.with(bench.layer());
    let bare = bench.bare();
    for (name, router) in [("bare", &bare), ("layer", &router)] {
        let mut times = Vec::new();
        for threads in [1, 2] {
            let best = (0..rounds())
                .map(|_| {
                    let barrier = Barrier::new(threads);
                    let turns = 20_000_u32;
                    std::thread::scope(|scope| {
                        let runs: Vec<_> = (0..threads)
                            .map(|_| {
                                scope.spawn(|| {
                                    barrier.wait();
                                    let begin = Instant::now();
                                    for _ in 0..turns {
                                        ask(router, bench.hot());
                                    }
                                    begin.elapsed().as_nanos() as f64 / f64::from(turns)
                                })
                            })
                            .collect();
                        runs.into_iter().map(|run| run.join().unwrap()).fold(0.0, f64::max)
                    })
                })
                .fold(f64::INFINITY, f64::min);
            times.push(best);
        }
        println!("{name}: {:.0} ns with one, {:.0} with two", times[0], times[1]);
    }
}
