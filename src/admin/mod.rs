//! A router to manage keys with: JSON over HTTP, behind keys with certain scopes.
//!
//! ```
//! use axum::Router;
//! use tower_api_key::{Authenticator, admin, key::KeyFormat, manage::KeyIssuer};
//! # use tower_api_key::store::MemoryKeyStore;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let store = MemoryKeyStore::new();
//! let format = KeyFormat::new("sk_live_")?;
//! let (auth, worker) = Authenticator::builder(store.clone(), format.clone()).build();
//! # drop(worker);
//! let issuer = KeyIssuer::new(store, format);
//! let app: Router = Router::new().nest_service("/admin", admin::router(issuer, auth));
//! # Ok(())
//! # }
//! ```
//!
//! There is no router without saying who may use it. This does not compile:
//!
//! ```compile_fail,E0061
//! # fn open(issuer: tower_api_key::manage::KeyIssuer, auth: tower_api_key::Authenticator) {
//! let routes = tower_api_key::admin::router(issuer);
//! # }
//! ```
//!
//! and this does:
//!
//! ```
//! # fn open(issuer: tower_api_key::manage::KeyIssuer, auth: tower_api_key::Authenticator) {
//! let routes = tower_api_key::admin::router(issuer, auth);
//! # }
//! ```
//!
//! | | | scope |
//! |---|---|---|
//! | `POST /api-keys` | issues a key | `api-keys:write` |
//! | `GET /api-keys` | lists keys | `api-keys:read` |
//! | `GET /api-keys/{id}` | a key | `api-keys:read` |
//! | `PATCH /api-keys/{id}` | changes a key | `api-keys:write` |
//! | `POST /api-keys/{id}/rotate` | issues a key to replace another | `api-keys:write` |
//! | `POST /api-keys/{id}/revoke` | ends a key for good | `api-keys:write` |
//! | `POST /api-keys/revoke` | ends all keys of a consumer or with a prefix | `api-keys:write` |
//! | `GET /api-keys/{id}/events` | the audit of a key | `api-keys:read` |
//! | `GET /api-keys/{id}/usage` | when a key was last used | `api-keys:read` |
//! | `GET /openapi.json`, `GET /docs` | all of this in detail, with the feature `openapi` | any key |
//!
//! # Rules
//!
//! 1. All of it is behind an [`ApiKeyLayer`](crate::ApiKeyLayer): what does not exist too. The
//!    document can be [opened](Admin::open_document).
//! 2. A key manages those of its own consumer. One with `api-keys:all-consumers` manages them all.
//!    To others, foreign keys do not exist.
//! 3. No key can grant more than it holds: scopes, expiry, limits, its plan. The write scope, and what the
//!    calling key holds, are judged in the transaction of the change (the scope before it, too). What is
//!    denied is in the audit, under the calling key; beyond five lines a minute it is summed up.
//! 4. A new key is shown once, in the answer to the request that made it. No answer has its hash.
//! 5. When a key expires is a decision: `expires` is `"never"`, a date and time (RFC 3339), or a
//!    duration, a number and one of `s`, `m`, `h`, `d`, `w`, such as `"30d"`. A day is 24 hours.
//! 6. A change is a merge patch ([RFC 7396](https://www.rfc-editor.org/rfc/rfc7396)): what is left
//!    out stays; `null` takes away name, limits, plan or metadata. Metadata is merged, the rest replaced.
//! 7. `ETag` is the key's version. It does not tell of what time alone changes: `status`,
//!    `last_used_at`. `PATCH` heeds `If-Match`, `GET` heeds `If-None-Match`.
//! 8. The two requests that make keys take an `Idempotency-Key`. Sent again they make no second key,
//!    but get 409 with the `key_id` of the first.
//! 9. Every error is `application/problem+json` with a stable `code`, and with the `field` that was
//!    wrong: a JSON pointer into the body, or the name of a parameter or header. 400 is for what
//!    has the wrong shape, 422 for what has the right one and makes no sense.
//! 10. No answer may be stored by caches.
//! 11. What a key can ask for is [bounded](crate::manual::bounds): 8 quotas with windows of at most 400
//!     days, 128 scopes, metadata of 16 KiB and 32 levels, 1,000 keys of a consumer (409
//!     `too_many_keys`) and as many new ones an hour, 10 rotations of a key an hour (429
//!     `too_many_changes` with `Retry-After`). A page ends at 1 MiB, with a `next`.
//!
//! # Deployment caveats
//!
//! The audit names the address of the peer where the server tells it
//! (`into_make_service_with_connect_info`), and never what a header claims. Behind a proxy that is
//! the proxy's: [`origin`](Admin::origin) is for who knows which header to believe.

use std::sync::Arc;

use http::request::Parts;

pub use crate::rest::GuardedRoutes;
use crate::{
    auth::Authenticator,
    manage::KeyIssuer,
    record::{InvalidScope, Scope},
    rest::{Desk, DocumentSettings, Operation, guard},
};

const OPERATIONS: &[Operation] = &[
    Operation::IssueKey,
    Operation::ListKeys,
    Operation::RevokeKeys,
    Operation::GetKey,
    Operation::UpdateKey,
    Operation::RotateKey,
    Operation::RevokeKey,
    Operation::ListEvents,
    Operation::GetUsage,
];

/// The routes, for keys of `auth`, with everything else at its default. See the
/// [module](crate::admin).
///
/// Changes are told to `auth` at once.
#[must_use]
pub fn router(issuer: KeyIssuer, auth: Authenticator) -> GuardedRoutes {
    Admin::new(issuer, auth).router()
}

/// Settings of the routes.
#[derive(Debug)]
#[must_use]
pub struct Admin {
    desk: Desk,
    auth: Authenticator,
    is_open: bool,
}

impl Admin {
    /// The routes, for keys of `auth`, with everything else at its default.
    pub fn new(issuer: KeyIssuer, auth: Authenticator) -> Self {
        let mut desk = Desk::new(issuer, &auth);
        desk.read = Scope::new("api-keys:read").ok();
        desk.write = Scope::new("api-keys:write").ok();
        desk.everywhere = Scope::new("api-keys:all-consumers").ok();
        Self { desk, auth, is_open: false }
    }

    /// The scopes to look at keys, to change them, and to do so with those of all consumers.
    /// Default: `api-keys:read`, `api-keys:write` and `api-keys:all-consumers`.
    ///
    /// # Errors
    ///
    /// When one of them is no scope.
    pub fn scopes(
        mut self,
        read: impl Into<String>,
        write: impl Into<String>,
        everywhere: impl Into<String>,
    ) -> Result<Self, InvalidScope> {
        self.desk.read = Some(Scope::new(read)?);
        self.desk.write = Some(Scope::new(write)?);
        self.desk.everywhere = Some(Scope::new(everywhere)?);
        Ok(self)
    }

    /// Where a request came from, for the audit. Default: the address of the peer, where the server
    /// tells it.
    ///
    /// # Security
    ///
    /// Whoever sends a request can write what they like into its headers. Take only one that your own
    /// proxy sets, and the part of it that the proxy added.
    pub fn origin(
        mut self,
        origin: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.desk.origin = Arc::new(origin);
        self
    }

    /// Whether `/openapi.json` and `/docs` are there for everybody. They tell what can be asked for,
    /// and nothing of any key. Default: false, and it takes a key, which browsers do not send.
    pub fn open_document(self, is_open: bool) -> Self {
        Self { is_open, ..self }
    }

    /// The routes.
    #[must_use]
    pub fn router(self) -> GuardedRoutes {
        let document =
            DocumentSettings { title: "API keys: administration", is_open: self.is_open };
        guard(self.desk, self.auth, OPERATIONS, document)
    }
}
