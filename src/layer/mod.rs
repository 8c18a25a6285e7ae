//! The tower layer: reads the key out of the request, answers for it, hands on the [`Consumer`].
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_api_key::{ApiKeyLayer, Authenticator, Consumer, RequireScope};
//! # use tower_api_key::{key::KeyFormat, store::MemoryKeyStore};
//!
//! async fn orders(consumer: Consumer) -> String {
//!     format!("orders of {}", consumer.id())
//! }
//!
//! async fn reports() -> &'static str {
//!     "for those who may read them"
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (auth, worker) =
//! #     Authenticator::builder(MemoryKeyStore::new(), KeyFormat::new("sk_live_")?).build();
//! # drop(worker);
//! let app: Router = Router::new()
//!     .route("/reports", get(reports).layer(RequireScope::one("reports:read")?))
//!     .route("/orders", get(orders))
//!     .layer(ApiKeyLayer::new(auth));
//! # Ok(())
//! # }
//! ```
//!
//! Everything about it can be changed:
//!
//! ```
//! use http::{HeaderName, Response, StatusCode};
//! use tower_api_key::{ApiKeyLayer, layer::RateLimitHeaders};
//! # use tower_api_key::{Authenticator, auth::Rejection, key::KeyFormat, store::MemoryKeyStore};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (auth, worker) =
//! #     Authenticator::builder(MemoryKeyStore::new(), KeyFormat::new("sk_live_")?).build();
//! # drop(worker);
//! let layer = ApiKeyLayer::new(auth)
//!     .realm("orders")?
//!     .also_header(HeaderName::from_static("x-api-key"))
//!     .optional(true)
//!     .rate_limit_headers(RateLimitHeaders::Both)
//!     .render_rejections(|rejection: &Rejection| {
//!         let mut response = Response::new(format!("{rejection}\n"));
//!         *response.status_mut() = StatusCode::IM_A_TEAPOT;
//!         response
//!     });
//! # drop(layer);
//! # Ok(())
//! # }
//! ```
//!
//! # Rules
//!
//! 1. The key is what follows `Authorization: Bearer`, whose scheme is case-insensitive
//!    ([RFC 9110 §11.1](https://www.rfc-editor.org/rfc/rfc9110#section-11.1)). It is never taken
//!    from the URL.
//! 2. A request without credentials, or with those of another scheme, gets 401 with a bare
//!    challenge ([RFC 6750 §3.1](https://www.rfc-editor.org/rfc/rfc6750#section-3.1)), unless the
//!    layer is [optional](ApiKeyLayer::optional).
//! 3. More than one credential, or bytes no bearer token can have, get 400 `invalid_request`. Two
//!    `Authorization` headers that a proxy joined with a comma are two credentials.
//! 4. A key that is malformed, unknown, revoked, expired, inactive or not yet active gets 401
//!    `invalid_token`: the same bytes for each, as the difference is nobody's business.
//! 5. A key beyond its quota gets 429 with `Retry-After`, in whole seconds, rounded up, at least 1.
//! 6. A key that cannot be judged gets 503 with `Retry-After: 1`, never 401: clients throw keys
//!    away that are called invalid.
//! 7. A key that lacks a scope gets 403 `insufficient_scope` from [`RequireScope`].
//! 8. All of these are `application/problem+json`
//!    ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)) with `Cache-Control: no-store`. Another
//!    [renderer](RejectionResponse) may change that; what it leaves out of the headers named here
//!    is added.
//! 9. A request let in carries the [`Consumer`] in its extensions, and no longer carries the key. A
//!    layer replaces the consumer that a layer further out has found; behind an
//!    [optional](ApiKeyLayer::optional) one, a request without credentials carries none.
//! 10. Answers to keys with a quota carry `RateLimit-Policy` and `RateLimit`
//!     ([draft-ietf-httpapi-ratelimit-headers-10](https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/10/)).
//!     Answers to keys that were not let in never do: they would tell a stranger of a key's use.
//! 11. Whatever passed the layer says `Vary: Authorization`.
//! 12. Answers to a key that was [rotated](crate::manage::KeyIssuer::rotate) carry `Deprecation`
//!     ([RFC 9745](https://www.rfc-editor.org/rfc/rfc9745)), since when there is another one, and
//!     `Sunset` ([RFC 8594](https://www.rfc-editor.org/rfc/rfc8594)), when this one stops working.
//! 13. Where [failures are throttled](ApiKeyLayer::throttle_failures), a key that is not in the
//!     cache gets 429 with `Retry-After` while too many unknown ones came from its network: no
//!     challenge, as it may be valid, and no `RateLimit`, as that is not about keys. A key in the
//!     cache gets in as ever. Malformed keys cost nothing, and do not count.
//!
//! # Answers that go on
//!
//! A key is judged when its request begins, and an answer may go on for hours. Wrapped in
//! [`UntilRevoked`], it ends when the key does:
//!
//! ```
//! use axum::response::{IntoResponse, Sse, sse::Event};
//! # use {futures_util::{Stream, stream}, std::convert::Infallible};
//! use tower_api_key::{Consumer, layer::UntilRevoked};
//!
//! # fn orders_of(_: &str) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
//! #     stream::pending()
//! # }
//! async fn live_orders(consumer: Consumer) -> impl IntoResponse {
//!     let events = Sse::new(orders_of(consumer.id()));
//!     UntilRevoked::response(events.into_response(), &consumer)
//! }
//! # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(live_orders));
//! ```
//!
//! `websocket::until_revoked`, behind the feature `ws`, does so for the WebSockets of axum, and
//! [`Consumer::revoked`] is there for anything else. An answer that asks none of them costs nothing
//! more, and goes on.
//!
//! # Among other layers
//!
//! Outermost first, with those of `tower_http`:
//!
//! 1. `SetSensitiveRequestHeadersLayer` for `Authorization`, and for a header of your own: whatever
//!    logs a request further in shows `Sensitive` instead of the key.
//! 2. `TraceLayer`: it sees rejections too. Outside of 1 and told to include headers, it logs keys.
//! 3. `CorsLayer`: a preflight carries no key, and a browser may read a 401 only if it has CORS
//!    headers.
//! 4. [`ApiKeyLayer`]. From here on the request has no key.
//! 5. [`RequireScope`], and what limits or buffers the handler: a request that is turned away gives
//!    back what it took of it.
//!
//! `examples/postgres.rs` is such a service.
//!
//! # Deployment caveats
//!
//! `Router::layer` wraps only the routes that were added before it. A handler of a route added
//! afterwards that asks for a [`Consumer`] answers 500 and says so; one that does not ask is open.
//!
//! On an [optional](ApiKeyLayer::optional) route, credentials of another scheme are the
//! application's: a key sent as `Token …` by mistake stays in the request.

mod caller;
mod client_address;
mod credentials;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod gate;
mod headers;
#[expect(clippy::module_inception, reason = "the file that holds the layer")]
mod layer;
mod limits;
mod peer;
mod require_scope;
mod response;
mod service;
mod tally;
mod until_revoked;
#[cfg(feature = "ws")]
pub mod websocket;

#[cfg(feature = "axum")]
pub use self::extract::ConsumerRejection;
#[cfg(feature = "admin")]
pub(crate) use self::headers::retry_after;
#[cfg(feature = "admin")]
pub(crate) use self::response::{Problem, complete};
pub use self::{
    client_address::ClientAddress,
    future::ResponseFuture,
    headers::RateLimitHeaders,
    layer::{ApiKeyLayer, InvalidRealm},
    limits::{
        ConcurrencyLimit, ConcurrencyLimitBody, ConcurrencyLimitFuture, ConcurrencyLimitService,
        Cost, MeteredFuture, MeteredLayer, MeteredService, RateClass,
    },
    peer::PeerAddr,
    require_scope::{RequireScope, RequireScopeFuture, RequireScopeService},
    response::{ProblemJson, RejectionResponse, StatusOnly},
    service::ApiKeyService,
    until_revoked::{KeyRevoked, UntilRevoked},
};
#[cfg(doc)]
use crate::Consumer;
