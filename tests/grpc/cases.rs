//! Every way to be rejected: what a client sends, and what it must see.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;
use tower_api_key::{
    manage::{Expiry, NewKey},
    rate_limit::{Quota, RateLimits},
    record::{Networks, Scopes},
    store::StoreErrorKind,
};

use crate::{
    demo::Order,
    doubles::{Answers, DOWN, Key, Service, unknown_key, within},
    orders::{Host, Running, serve},
    raw_store::ByHand as _,
    tonic_client::Client,
};

const ADDRESS: &str = "198.51.100.1";

type Metadata = Vec<(&'static str, String)>;

/// A running service, the metadata to send, and what the client must see.
pub(crate) struct Case {
    pub(crate) address: SocketAddr,
    pub(crate) metadata: Metadata,
    /// Whether each call has an unknown key of its own.
    has_new_keys: bool,
    pub(crate) expected: Seen,
    pub(crate) service: Service,
    pub(crate) running: Running,
    /// A stream that must go on meanwhile.
    held: Option<Streaming<Order>>,
}

/// What a client sees of a status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Seen {
    pub(crate) code: i32,
    pub(crate) message: String,
    pub(crate) reason: String,
    pub(crate) domain: String,
    pub(crate) details: BTreeMap<String, String>,
    /// The delay of `RetryInfo`, in milliseconds.
    pub(crate) retry: Option<u64>,
    /// `grpc-retry-pushback-ms`.
    pub(crate) pushback: Option<u64>,
    /// Whether it came with `RateLimit`.
    pub(crate) has_rate_limit: bool,
    /// Headers of HTTP that are not for gRPC clients.
    pub(crate) superfluous: Vec<String>,
}

impl Seen {
    pub(crate) fn new(code: Code, reason: &str, message: &str) -> Self {
        let (message, reason) = (message.to_owned(), reason.to_owned());
        let domain = "tower-api-key".to_owned();
        Self { code: code.into(), message, reason, domain, ..Self::default() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.details.insert(name.to_owned(), value.to_owned());
        self
    }

    fn retry(self, millis: u64) -> Self {
        Self { retry: Some(millis), pushback: Some(millis), ..self }
    }

    fn invalid_key() -> Self {
        Self::new(Code::Unauthenticated, "INVALID_API_KEY", "The API key is not valid.")
    }

    /// Of a stream that ends with its key.
    pub(crate) fn key_ended() -> Self {
        let message = "the API key ended before the response was complete";
        Self { message: message.to_owned(), ..Self::invalid_key() }
    }

    /// Of a request that ends with its key.
    pub(crate) fn key_ended_before_response() -> Self {
        Self::invalid_key()
    }

    pub(crate) fn of(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().cloned();
        let retry = details.retry_info().and_then(|retry| retry.retry_delay);
        let metadata = status.metadata();
        let pushback = metadata.get("grpc-retry-pushback-ms");
        let for_http = ["www-authenticate", "retry-after"];
        let superfluous = for_http.into_iter().filter(|name| metadata.contains_key(*name));
        let (reason, domain, details) = info
            .map(|info| (info.reason, info.domain, info.metadata.into_iter().collect()))
            .unwrap_or_default();
        Self {
            code: status.code().into(),
            message: status.message().to_owned(),
            reason,
            domain,
            details,
            retry: retry.map(|delay| delay.as_millis().try_into().unwrap()),
            pushback: pushback.map(|it| it.to_str().unwrap().parse().unwrap()),
            has_rate_limit: metadata.contains_key("ratelimit"),
            superfluous: superfluous.map(str::to_owned).collect(),
        }
    }
}

fn bearer(key: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {key}"))
}

pub(crate) fn reader() -> NewKey {
    NewKey::new("acme", Expiry::Never).scopes(Scopes::parse(["orders:read"]).unwrap())
}

fn service() -> Service {
    Service::with(|builder| builder.failure_limit(1, Duration::from_secs(60)))
}

impl Case {
    async fn new(
        host: Host,
        service: Service,
        metadata: impl IntoIterator<Item = (&'static str, String)>,
        expected: Seen,
    ) -> Self {
        let running = serve(host, &service.auth).await;
        let (address, metadata) = (running.address, metadata.into_iter().collect());
        Self { address, metadata, has_new_keys: false, expected, service, running, held: None }
    }

    /// The metadata of the next call.
    pub(crate) fn metadata(&self) -> Metadata {
        let new_key = self.has_new_keys.then(|| bearer(&unknown_key()));
        self.metadata.iter().cloned().chain(new_key).collect()
    }

    /// Waits until `Total` has received a request.
    pub(crate) async fn total_begins(&self) {
        within(self.running.totals.subscribe().wait_for(|totals| *totals > 0)).await.unwrap();
    }

    async fn of_key(host: Host, service: Service, key: &Key, expected: Seen) -> Self {
        Self::new(host, service, [bearer(&key.text)], expected).await
    }
}

pub(crate) async fn missing(host: Host) -> Case {
    let message = "Send an API key as `Authorization: Bearer <key>`.";
    let expected = Seen::new(Code::Unauthenticated, "MISSING_API_KEY", message);
    Case::new(host, service(), [], expected).await
}

pub(crate) async fn two_keys(host: Host) -> Case {
    let message = "The request has more than one API key: send exactly one, as `Authorization: \
                   Bearer <key>`.";
    let expected = Seen::new(Code::InvalidArgument, "INVALID_REQUEST", message);
    Case::new(host, service(), [bearer("one"), bearer("two")], expected).await
}

pub(crate) async fn malformed(host: Host) -> Case {
    Case::new(host, service(), [bearer("hello")], Seen::invalid_key()).await
}

pub(crate) async fn unknown(host: Host) -> Case {
    Case::new(host, service(), [bearer(&unknown_key())], Seen::invalid_key()).await
}

pub(crate) async fn revoked(host: Host) -> Case {
    let service = service();
    let key = service.issue_new(reader()).await;
    service.revoke(&key).await;
    Case::of_key(host, service, &key, Seen::invalid_key()).await
}

pub(crate) async fn expired(host: Host) -> Case {
    let service = service();
    let mut key = service.issue_new(reader()).await;
    key.record.expires_at = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    service.store.update(&key.record).await.unwrap();
    Case::of_key(host, service, &key, Seen::invalid_key()).await
}

pub(crate) async fn insufficient_scope(host: Host) -> Case {
    let service = service();
    let key = service.issue("acme").await;
    let message = "The API key lacks a scope that this method requires: orders:read";
    let expected = Seen::new(Code::PermissionDenied, "INSUFFICIENT_SCOPE", message);
    // Of the limit on requests in flight.
    let expected = Seen { has_rate_limit: true, ..expected.with("scope", "orders:read") };
    Case::of_key(host, service, &key, expected).await
}

pub(crate) async fn other_network(host: Host) -> Case {
    let service = service();
    let key = service.issue_new(reader().networks(Networks::parse(["192.0.2.0/24"]).unwrap()));
    let key = key.await;
    let message = "The API key does not work from this address.";
    let expected = Seen::new(Code::PermissionDenied, "NETWORK_NOT_ALLOWED", message);
    let metadata = [bearer(&key.text), ("x-forwarded-for", ADDRESS.to_owned())];
    Case::new(host, service, metadata, expected).await
}

pub(crate) async fn rate_limited(host: Host) -> Case {
    let service = service();
    let quota = Quota::per_hour(1).unwrap();
    let key = service.issue_new(reader().rate_limits(RateLimits::from(quota))).await;
    service.auth.check(key.text.as_bytes()).await.unwrap();
    let message = "The API key has used up a quota. Retry in 3600 s.";
    let expected = Seen::new(Code::ResourceExhausted, "RATE_LIMIT_EXCEEDED", message);
    let expected = Seen { has_rate_limit: true, ..expected.retry(3_600_000) };
    Case::of_key(host, service, &key, expected.with("violated-policies", "hour")).await
}

pub(crate) async fn concurrent(host: Host) -> Case {
    let service = service();
    let key = service.issue_new(reader().plan("single")).await;
    let message = "The API key has used up a quota. Retry in 1 s.";
    let expected = Seen::new(Code::ResourceExhausted, "RATE_LIMIT_EXCEEDED", message);
    let expected = Seen { has_rate_limit: true, ..expected.retry(1000) };
    let expected = expected.with("violated-policies", "concurrent");
    let mut case = Case::of_key(host, service, &key, expected).await;
    let client = Client::connect(case.address, &case.metadata).await;
    case.held = Some(client.watch().await.unwrap());
    case
}

pub(crate) async fn too_many_failures(host: Host) -> Case {
    let service = service();
    let message = "Too many unknown API keys came from your network. If yours is valid, keep it \
                   and retry in 60 s.";
    let expected = Seen::new(Code::ResourceExhausted, "TOO_MANY_FAILURES", message);
    let address = ("x-forwarded-for", ADDRESS.to_owned());
    let mut case = Case::new(host, service, [address], expected.retry(60_000)).await;
    case.has_new_keys = true;
    let first = Client::connect(case.address, &case.metadata()).await;
    assert_eq!(first.get().await.unwrap_err().code(), Code::Unauthenticated);
    case
}

async fn store_fails(host: Host, answers: Answers) -> Case {
    let service = service();
    let key = service.issue_new(reader()).await;
    service.store.answer(answers);
    let message = "The API key cannot be checked right now. Keep it and try again.";
    let expected = Seen::new(Code::Unavailable, "SERVICE_UNAVAILABLE", message).retry(1000);
    Case::of_key(host, service, &key, expected).await
}

pub(crate) async fn outage(host: Host) -> Case {
    store_fails(host, DOWN).await
}

pub(crate) async fn overloaded(host: Host) -> Case {
    store_fails(host, Answers::With(StoreErrorKind::Overloaded)).await
}

pub(crate) async fn internal(host: Host) -> Case {
    let host = match host {
        Host::Axum => Host::AxumWithoutLayer,
        _ => Host::TonicWithoutLayer,
    };
    let service = service();
    let key = service.issue_new(reader()).await;
    let message = "The request has no consumer. Is `ApiKeyLayer` applied to this route?";
    let expected = Seen::new(Code::Internal, "INTERNAL_ERROR", message);
    Case::of_key(host, service, &key, expected).await
}

/// A valid key, which the test may end.
pub(crate) async fn valid(host: Host) -> (Case, Key) {
    let service = service();
    let key = service.issue_new(reader()).await;
    (Case::of_key(host, service, &key, Seen::default()).await, key)
}
