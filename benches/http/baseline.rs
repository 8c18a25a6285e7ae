//! What is written without a library: a page of middleware with `from_fn`.

use std::{
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
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{AUTHORIZATION, VARY},
};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;
use sqlx::{PgPool, query_as};
use tower_api_key::{
    Authenticator,
    auth::{Attempt, RateLimitStatus, RejectionKind},
    rate_limit::Quota,
};
use tower_governor::{GovernorError, key_extractor::KeyExtractor};

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// The caller, as handlers see it.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "handlers would read it")]
pub(crate) struct Caller {
    pub(crate) consumer: String,
    pub(crate) name: Option<String>,
    pub(crate) scopes: Vec<String>,
}

/// The source of the records.
pub(crate) trait Database: Clone + Send + Sync + 'static {
    type Error: Send + Sync + 'static;

    fn find(
        &self,
        hash: [u8; 32],
    ) -> impl Future<Output = Result<Option<Caller>, Self::Error>> + Send;
}

type Row = (String, Option<String>, Vec<String>);

impl Database for PgPool {
    type Error = sqlx::Error;

    async fn find(&self, hash: [u8; 32]) -> sqlx::Result<Option<Caller>> {
        let row: Option<Row> = query_as(
            "select consumer_id, name, scopes from api_keys
            where key_hash = $1 and is_active and revoked_at is null
                and (expires_at is null or expires_at > now())",
        )
        .bind(hash)
        .fetch_optional(self)
        .await?;
        Ok(row.map(|(consumer, name, scopes)| Caller { consumer, name, scopes }))
    }
}

/// A query per request.
pub(crate) async fn queried(
    State(pool): State<PgPool>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(key) = bearer(request.headers()) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    match pool.find(Sha256::digest(key).into()).await {
        Ok(Some(caller)) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Ok(None) => StatusCode::UNAUTHORIZED.into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

type Limiter =
    RateLimiter<String, DefaultKeyedStateStore<String>, DefaultClock, StateInformationMiddleware>;

/// Records cached for a minute, and a limiter per consumer.
#[derive(Clone)]
pub(crate) struct Cache<D> {
    database: D,
    callers: moka::future::Cache<[u8; 32], Option<Caller>>,
    limiter: Arc<Limiter>,
}

impl<D: Database> Cache<D> {
    pub(crate) fn new(database: D, per_second: u32) -> Self {
        let callers = moka::future::Cache::builder()
            .max_capacity(100_000)
            .time_to_live(Duration::from_secs(60))
            .build();
        let quota = per_second.try_into().map_or_else(
            |_| governor::Quota::per_second(std::num::NonZeroU32::MIN),
            governor::Quota::per_second,
        );
        let limiter = RateLimiter::keyed(quota).with_middleware();
        Self { database, callers, limiter: Arc::new(limiter) }
    }
}

/// A cache, a limiter, and headers.
pub(crate) async fn cached<D: Database>(
    State(cache): State<Cache<D>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(key) = bearer(request.headers()) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let hash: [u8; 32] = Sha256::digest(key).into();
    let caller = match cache.callers.try_get_with(hash, cache.database.find(hash)).await {
        Ok(Some(caller)) => caller,
        Ok(None) => return StatusCode::UNAUTHORIZED.into_response(),
        Err(_) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
    };
    let Ok(state) = cache.limiter.check_key(&caller.consumer) else {
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

/// What [`attempt`] needs.
#[derive(Clone)]
pub(crate) struct Gate {
    auth: Authenticator,
    policy: HeaderValue,
}

impl Gate {
    pub(crate) fn new(auth: Authenticator, quota: &Quota) -> Self {
        let (name, burst, window) = (quota.name(), quota.burst_size(), quota.window().as_secs());
        let policy = format!("\"{name}\";q={burst};w={window}");
        let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static(""));
        Self { auth, policy }
    }
}

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The library makes the decision, caches, limits and formats the headers; only the service around
/// it is `from_fn`'s.
pub(crate) async fn attempt(
    State(gate): State<Gate>,
    mut request: Request,
    next: Next,
) -> Response {
    let mut keys = request.headers().get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (keys.next(), keys.next()) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let Some((b"Bearer ", key)) = value.as_bytes().split_at_checked(7) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let outcome = match gate.auth.check(key).try_now() {
        Attempt::Admit(admission) => Ok(admission),
        Attempt::Reject(rejection) => Err(rejection),
        Attempt::Pending(lookup) => lookup.await,
    };
    let admission = match outcome {
        Ok(admission) => admission,
        Err(rejection) => {
            return match rejection.kind() {
                RejectionKind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
                RejectionKind::StoreUnavailable | RejectionKind::Overloaded => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
                _ => StatusCode::UNAUTHORIZED,
            }
            .into_response();
        }
    };
    request.headers_mut().remove(AUTHORIZATION);
    request.extensions_mut().insert(admission.consumer().clone());
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(RATE_LIMIT_POLICY, gate.policy);
    if let Ok(state) = HeaderValue::from_bytes(&state(admission.rate_limit_status())) {
        headers.insert(RATE_LIMIT, state);
    }
    headers.append(VARY, HeaderValue::from_static("Authorization"));
    response
}

/// `"minute";r=599;t=1`
fn state(rate_limit_status: &RateLimitStatus) -> SmallVec<[u8; 96]> {
    let mut text = SmallVec::new();
    for (quota, decision) in rate_limit_status.iter() {
        let wait = decision.next_unit_in();
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        text.push(b'"');
        text.extend_from_slice(quota.name().as_bytes());
        text.extend_from_slice(b"\";r=");
        text.extend_from_slice(itoa::Buffer::new().format(decision.remaining()).as_bytes());
        text.extend_from_slice(b";t=");
        text.extend_from_slice(itoa::Buffer::new().format(seconds).as_bytes());
    }
    text
}

/// What tower_governor counts by: the key itself, because it has no records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BearerKey;

impl KeyExtractor for BearerKey {
    type Key = String;

    fn extract<T>(&self, request: &Request<T>) -> Result<String, GovernorError> {
        bearer(request.headers()).map(str::to_owned).ok_or(GovernorError::UnableToExtractKey)
    }
}
