//! The tower layer: reads the key from the request, checks it and passes on the [`Consumer`].
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
//! Every default can be changed:
//!
//! ```
//! use http::{HeaderName, Response, StatusCode, request::Parts};
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
//!     .render_rejections(|rejection: &Rejection, _: &Parts| {
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
//! 1. The key is the token after `Authorization: Bearer`, or after [other schemes](Scheme); the scheme
//!    is case-insensitive
//!    ([RFC 9110 §11.1](https://www.rfc-editor.org/rfc/rfc9110#section-11.1)). A key is never read
//!    from the URL.
//! 2. A request without credentials, or with credentials of another scheme, gets 401 with a bare
//!    challenge ([RFC 6750 §3.1](https://www.rfc-editor.org/rfc/rfc6750#section-3.1)), unless the
//!    layer is [optional](ApiKeyLayer::optional). `Bearer` alone is no credentials. Each scheme that
//!    the layer reads has a challenge of its own, and each header one such as `ApiKey realm="api",
//!    header="x-api-key"`, all in one `WWW-Authenticate`.
//! 3. More than one credential, or bytes that no bearer token can have, get 400 `invalid_request`.
//!    Two `Authorization` headers that a proxy joined with a comma are two credentials. A key of
//!    this authenticator where the layer does not read one gets the same and reaches no handler: in
//!    `Authorization` without `Bearer`, with another scheme or in `Basic`; in another header whose
//!    name contains `auth`, `key` or `token`, unless that is [left to
//!    others](ApiKeyLayer::leave_header); and in the query. The `detail`, the `error_description`
//!    and [`Rejection::advice`](crate::auth::Rejection::advice) say what is wrong and how to send
//!    the key.
//! 4. A key that is malformed, unknown, revoked, expired, inactive or not yet active gets 401
//!    `invalid_token`, with the same bytes in each case, so that clients cannot tell them apart. A
//!    JSON Web Token is told that it is not a key.
//! 5. A key beyond its quota gets 429 with `Retry-After`, in whole seconds, rounded up, at least 1.
//! 6. A key that cannot be checked gets 503 with `Retry-After: 1`, never 401: clients discard keys
//!    that are called invalid.
//! 7. A key that lacks a scope gets 403 `insufficient_scope` from [`RequireScope`].
//! 8. All of these are `application/problem+json`
//!    ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)) with `Cache-Control: no-store`. Another
//!    [renderer](RejectionResponse) may change that; the layer adds any header named here that the
//!    renderer leaves out.
//! 9. An admitted request carries the [`Consumer`] in its extensions, and no longer carries the
//!    key. An inner layer replaces the consumer of an outer one. Behind an
//!    [optional](ApiKeyLayer::optional) layer, a request without credentials carries no consumer.
//!    A request that an outer layer of the same authenticator has admitted passes an inner layer
//!    without a second charge. If the outer layer has another authenticator and took the key from a
//!    header that the inner layer reads, the request gets 500.
//! 10. Responses for keys with a quota carry `RateLimit-Policy` and `RateLimit`
//!     ([draft-ietf-httpapi-ratelimit-headers-10](https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/10/)).
//!     Responses for invalid keys never do: they would disclose how much a key is used.
//! 11. Every response that passes the layer says `Vary: Authorization`.
//! 12. Responses for a key that was [rotated](crate::manage::KeyIssuer::rotate) carry `Deprecation`
//!     ([RFC 9745](https://www.rfc-editor.org/rfc/rfc9745)), the time of the rotation, and
//!     `Sunset` ([RFC 8594](https://www.rfc-editor.org/rfc/rfc8594)), the time this key stops
//!     working.
//! 13. With [failure throttling](ApiKeyLayer::throttle_failures), a key that is not in the cache
//!     gets 429 with `Retry-After` after too many unknown keys came from its network. There is no
//!     challenge, as the key may be valid, and no `RateLimit`, as the limit is not a quota of the
//!     key. Cached keys are admitted as usual. Malformed keys cost nothing and do not count.
//! 14. With the feature `grpc`, a request of `content-type: application/grpc` gets the [gRPC
//!     status](crate::manual::grpc) of its rejection in place of the HTTP status, the challenge and the
//!     problem document.
//!
//! # Long-lived responses
//!
//! A key is checked when its request begins, and the response may go on for hours. Wrapped in
//! [`UntilKeyEnds`], the response ends when the key does:
//!
//! ```
//! use axum::response::{IntoResponse, Sse, sse::Event};
//! # use {futures_util::{Stream, stream}, std::convert::Infallible};
//! use tower_api_key::{Consumer, layer::UntilKeyEnds};
//!
//! # fn orders_of(_: &str) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
//! #     stream::pending()
//! # }
//! async fn live_orders(consumer: Consumer) -> impl IntoResponse {
//!     let events = Sse::new(orders_of(consumer.id()));
//!     UntilKeyEnds::response(events.into_response(), &consumer)
//! }
//! # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(live_orders));
//! ```
//!
//! [`UntilKeyEndsLayer`] does it around routes whose handlers do not see their bodies, as those of
//! gRPC. `websocket::until_key_ends` (feature `ws`) does the same for axum's WebSockets, and
//! [`Consumer::key_ended`] for anything else. A response that uses none of them has no extra cost
//! and outlives its key.
//!
//! # Order of layers
//!
//! Outermost first, with the layers of `tower_http`:
//!
//! 1. `SetSensitiveRequestHeadersLayer` for `Authorization` and any header of your own: inner
//!    layers that log the request then show `Sensitive` instead of the key.
//! 2. `TraceLayer`: it sees rejections too. Placed outside of 1 and configured to include headers,
//!    it logs keys.
//! 3. `CorsLayer`: a preflight carries no key, and a browser may read a 401 only if it has CORS
//!    headers.
//! 4. [`ApiKeyLayer`]. From here on, the request has no key.
//! 5. [`RequireScope`], and layers that limit or buffer the handler: a rejected request releases
//!    what it reserved in them.
//!
//! Of tower's own layers, `LoadShed`, `Timeout`, `Buffer` and `ConcurrencyLimit` belong inside as
//! well. A `Retry` inside is charged once for all attempts; one around the layer is charged for each.
//! `Steer` chooses between services, of which each that needs a key has its own layer.
//!
//! See `examples/postgres.rs` for a complete service.
//!
//! # Deployment caveats
//!
//! `Router::layer` wraps only the routes that were added before it. On a route added afterwards, a
//! handler that extracts a [`Consumer`] answers 500 with an explanation; a handler that does not is
//! open to everyone.
//!
//! On an [optional](ApiKeyLayer::optional) route, credentials of another scheme belong to the
//! application. The layer recognises a key of this authenticator among them by its prefix, length
//! and checksum; a key of an [imported format](crate::key::ImportedFormat) without a prefix could be
//! anything and is recognised only in place of the scheme. A key in a path, a body or a cookie is
//! not looked for.

#[cfg(feature = "test-util")]
mod acting_as;
mod advised_rejections;
mod drain;
#[expect(clippy::module_inception, reason = "the file that holds the layer")]
mod layer;
mod limits;
mod middleware;
#[cfg(feature = "openapi")]
mod openapi;
mod request;
mod response;
pub mod service;
mod shadow;
mod short_circuit;
mod span;
mod stream;

#[cfg(feature = "openapi")]
pub use self::openapi::ApiKeySecurity;
#[cfg(feature = "axum")]
pub use self::request::{ConsumerRejection, Granted};
#[cfg(feature = "admin")]
pub(crate) use self::response::{Problem, complete, retry_after};
#[cfg(feature = "tracing")]
pub use self::span::make_span;
#[cfg(feature = "ws")]
pub use self::stream::websocket;
pub use self::{
    drain::DrainRejected,
    layer::{ApiKeyLayer, InvalidRealm},
    limits::{ConcurrencyLimit, Cost, MeteredLayer, RateClass, RequireScope},
    request::{ClientAddress, InvalidScheme, PeerAddr, Scheme},
    response::{ProblemJson, RateLimitHeaders, RejectionResponse, StatusOnly},
    stream::{KeyEndedError, UntilKeyEnds, UntilKeyEndsLayer},
};
#[cfg(doc)]
use crate::Consumer;
