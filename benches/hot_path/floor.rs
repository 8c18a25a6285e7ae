//! One cached key on one thread: what the layer adds, compared with the sum of its necessary parts.

use std::{
    num::NonZeroU32,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use axum::body::Body;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tower::layer::layer_fn;
use tower_api_key::{
    Consumer, RequireScope,
    clock::{Clock, SystemClock},
    key::KeyHash,
    layer::RateLimitHeaders,
    rate_limit::{LocalRateLimiter, RateLimiter, port::Subject},
    record::{KeyId, KeyRecord},
};

use crate::{
    run,
    service::{self, Service, ask, key_of},
    support::Cases,
};

/// The parts of every request, except finding the record.
const STEPS: [&str; 6] = [
    "find the credential, take it out",
    "parse: length, prefix, alphabet, checksum",
    "hash: SHA-256",
    "clock",
    "bucket: one unit",
    "extensions: insert",
];
const MOKA: &str = "cache: a hit in moka";
const SLOT: &str = "cache: load an ArcSwapOption, compare the hash";
const HEADERS: &str = "headers: two, of which one is formatted";
const HEADER_BEFORE: &str = "(the header that is there already)";

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

pub(crate) fn measure(runtime: &Runtime) {
    let service = Service::new(runtime, 1, service::roomy());
    let mut cases = Cases::default();
    add_primitives(&mut cases, &service);
    add_requests(&mut cases, &service);
    run(&mut cases);

    let headers = cases.min(HEADERS) - cases.min(HEADER_BEFORE);
    let steps: f64 = STEPS.iter().map(|step| cases.min(step)).sum();
    for (name, headers) in [("layer", headers), ("layer, headers off", 0.0)] {
        let more_than = |base| (cases.min(name) - cases.min(base), cases.more_than(base, name));
        let (added, paired) = more_than("bare router");
        let share = added / cases.min("bare router");
        println!("{name}: adds {added:.0} ns (paired {paired:.0}) = {share:.2} x bare");
        let (net, paired) = more_than("no-op layer");
        println!("  net of a no-op layer {net:.0} ns (paired {paired:.0})");
        for (cache, meaning) in [
            (MOKA, "with moka's `get`: beside a plain assembly of its parts"),
            (SLOT, "with one slot: beside the least that could find a record"),
        ] {
            let parts = steps + cases.min(cache) + headers;
            println!("  = {:.2} x {parts:.0} ns, the parts {meaning}", net / parts);
        }
    }
}

fn add_requests<'a>(cases: &mut Cases<'a>, service: &'a Service) {
    let (bare, layer) = (service::bare(), service.layer());
    let off = layer.clone().rate_limit_headers(RateLimitHeaders::Off);
    let both = layer.clone().rate_limit_headers(RateLimitHeaders::Both);
    let scope = RequireScope::one("orders:read").unwrap();
    let routers = [
        ("no-op layer", bare.clone().layer(layer_fn(NoOp))),
        ("layer, headers off", bare.clone().layer(off)),
        ("layer", bare.clone().layer(layer.clone())),
        ("layer, with X-RateLimit headers", bare.clone().layer(both)),
        ("layer and RequireScope", bare.clone().layer(scope).layer(layer)),
        ("bare router", bare),
    ];
    for (name, router) in routers {
        cases.add(name, move || assert_eq!(ask(&router, service.hot()), StatusCode::OK));
    }
}

fn add_primitives<'a>(cases: &mut Cases<'a>, service: &'a Service) {
    let hot = service.hot();
    let key = key_of(hot);
    let hash = service.format.parse(key).unwrap().hash();

    let mut headers = HeaderMap::new();
    cases.add("find the credential, take it out", move || {
        headers.insert(header::AUTHORIZATION, hot.clone());
        let found = headers.get_all(header::AUTHORIZATION).iter().next().unwrap().len();
        (headers.remove(header::AUTHORIZATION), found)
    });
    cases.add("(putting it in, which is not ours)", move || {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, hot.clone());
        headers
    });
    cases.add("parse: length, prefix, alphabet, checksum", move || {
        service.format.parse(key).is_ok()
    });
    cases.add("hash: SHA-256", move || Sha256::digest(key));

    let moka: moka::sync::Cache<KeyHash, Arc<KeyRecord>> = moka::sync::Cache::builder()
        .max_capacity(100_000)
        .time_to_live(Duration::from_secs(660))
        .build();
    moka.insert(hash, Arc::new(record(hash)));
    cases.add(MOKA, move || moka.get(&hash).is_some());
    let slot = ArcSwapOption::from_pointee((hash, record(hash)));
    cases.add(SLOT, move || slot.load().as_ref().is_some_and(|entry| entry.0 == hash));

    let clock = SystemClock::new();
    let started = clock.monotonic();
    cases.add("clock", move || clock.monotonic());

    let (subject, limits) = (Subject::of_key("acme", 1), service::roomy().into());
    let buckets = LocalRateLimiter::new().buckets(&subject, &limits, started);
    let mut now = started;
    cases.add("bucket: one unit", move || {
        now += Duration::from_micros(1);
        buckets.take(NonZeroU32::MIN, now)
    });

    let consumer = Consumer::from(record(hash));
    cases.add("extensions: insert", move || {
        let mut extensions = Extensions::new();
        extensions.insert(consumer.clone());
        extensions
    });

    let policy = HeaderValue::from_static(r#""minute";q=50000000;w=1"#);
    let mut left = 0_u32;
    cases.add(HEADERS, move || {
        let mut headers = headers_of_handler();
        left = left.wrapping_add(1);
        headers.insert(RATE_LIMIT_POLICY, policy.clone());
        headers.insert(RATE_LIMIT, state(left));
        headers.append(header::VARY, HeaderValue::from_static("Authorization"));
        headers
    });
    cases.add(HEADER_BEFORE, headers_of_handler);
}

fn record(hash: KeyHash) -> KeyRecord {
    KeyRecord::new(KeyId::from_bytes([1; 16]), hash, "acme", SystemTime::UNIX_EPOCH)
}

fn headers_of_handler() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers
}

/// `"minute";r=599;t=1`
fn state(left: u32) -> HeaderValue {
    let mut text = [0_u8; 64];
    let mut length = 0;
    let mut digits = itoa::Buffer::new();
    for part in ["\"minute\";r=", digits.format(left), ";t=1"] {
        text[length..][..part.len()].copy_from_slice(part.as_bytes());
        length += part.len();
    }
    HeaderValue::from_bytes(&text[..length]).unwrap()
}

/// A no-op layer.
#[derive(Clone)]
struct NoOp<S>(S);

impl<S: tower::Service<Request<Body>>> tower::Service<Request<Body>> for NoOp<S> {
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
