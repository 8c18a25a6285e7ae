//! The cached middleware that people write by hand, as in the benchmark over HTTP, but for the
//! database: it reads a map.

use std::{
    collections::HashMap,
    convert::Infallible,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use governor::{
    RateLimiter, clock::DefaultClock, middleware::StateInformationMiddleware,
    state::keyed::DefaultKeyedStateStore,
};
use http::{HeaderValue, StatusCode, header::AUTHORIZATION};
use sha2::{Digest, Sha256};

type Hash = [u8; 32];

#[derive(Clone, Debug)]
#[expect(dead_code, reason = "handlers would read it")]
struct Caller {
    consumer: String,
    name: Option<String>,
    scopes: Vec<String>,
}

type Limiter =
    RateLimiter<String, DefaultKeyedStateStore<String>, DefaultClock, StateInformationMiddleware>;

#[derive(Clone)]
pub(crate) struct Cached {
    database: Arc<HashMap<Hash, Caller>>,
    callers: moka::future::Cache<Hash, Option<Caller>>,
    limiter: Arc<Limiter>,
}

impl Cached {
    pub(crate) fn new(key: &[u8], per_second: NonZeroU32) -> Self {
        let caller = Caller {
            consumer: "acme".into(),
            name: None,
            scopes: vec!["orders:read".into(), "orders:write".into()],
        };
        let callers = moka::future::Cache::builder()
            .max_capacity(100_000)
            .time_to_live(Duration::from_secs(60))
            .build();
        let quota = governor::Quota::per_second(per_second);
        let limiter = RateLimiter::keyed(quota).with_middleware();
        Self {
            database: Arc::new(HashMap::from([(Sha256::digest(key).into(), caller)])),
            callers,
            limiter: Arc::new(limiter),
        }
    }

    async fn find(&self, hash: Hash) -> Result<Option<Caller>, Infallible> {
        Ok(self.database.get(&hash).cloned())
    }
}

pub(crate) async fn check(
    State(cached): State<Cached>,
    mut request: Request,
    next: Next,
) -> Response {
    let key = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(key) = key.and_then(|value| value.strip_prefix("Bearer ")) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let hash = Sha256::digest(key).into();
    let caller = match cached.callers.try_get_with(hash, cached.find(hash)).await {
        Ok(Some(caller)) => caller,
        Ok(None) => return StatusCode::UNAUTHORIZED.into_response(),
        Err(_) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
    };
    let Ok(state) = cached.limiter.check_key(&caller.consumer) else {
        return StatusCode::TOO_MANY_REQUESTS.into_response();
    };
    request.extensions_mut().insert(caller);
    let mut response = next.run(request).await;
    let reset = SystemTime::now() + state.quota().replenish_interval();
    let reset = reset.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let headers = [
        ("x-ratelimit-limit", state.quota().burst_size().to_string()),
        ("x-ratelimit-remaining", state.remaining_burst_capacity().to_string()),
        ("x-ratelimit-reset", reset.to_string()),
    ];
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
