//! A router to manage keys: JSON over HTTP, for keys with the required scopes.
//!
//! ```
//! use axum::Router;
//! use tower_api_key::{Authenticator, admin, key::KeyFormat};
//! # use tower_api_key::store::MemoryKeyStore;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let store = MemoryKeyStore::new();
//! let format = KeyFormat::new("sk_live_")?;
//! let (auth, worker) = Authenticator::builder(store.clone(), format).build();
//! # drop(worker);
//! let issuer = auth.issuer(store);
//! let app: Router = Router::new().nest_service("/admin", admin::router(issuer, auth));
//! # Ok(())
//! # }
//! ```
//!
//! The router cannot be made without authentication. This does not compile:
//!
//! ```compile_fail,E0061
//! # fn open(issuer: tower_api_key::manage::KeyIssuer, auth: tower_api_key::Authenticator) {
//! let routes = tower_api_key::admin::router(issuer);
//! # }
//! ```
//!
//! This does:
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
//! | `GET /api-keys/{id}` | shows a key | `api-keys:read` |
//! | `PATCH /api-keys/{id}` | changes a key | `api-keys:write` |
//! | `POST /api-keys/{id}/rotate` | issues a key to replace another | `api-keys:write` |
//! | `POST /api-keys/{id}/revoke` | revokes a key permanently | `api-keys:write` |
//! | `POST /api-keys/revoke` | revokes all keys of a consumer or with a prefix | `api-keys:write` |
//! | `GET /api-keys/{id}/events` | lists the audit of a key | `api-keys:read` |
//! | `GET /api-keys/{id}/usage` | shows when and how often a key was used | `api-keys:read` |
//! | `GET /usage` | shows how often the keys of a consumer, or all keys, were used | `api-keys:read` |
//! | `GET /openapi.json` | describes the routes, with the feature `openapi` | any key |
//!
//! Behind the application's own login instead of API keys, for its staff:
//! [`Admin::signed_in_by`]. There, no scopes are needed; the [member](crate::manage::Member) says whose
//! keys it manages and what it may give.
//!
//! # Rules
//!
//! 1. All paths are behind an [`ApiKeyLayer`](crate::ApiKeyLayer), including those that do not
//!    exist. Only the document can be [opened](Admin::open_document).
//! 2. A key manages the keys of its own consumer; with `api-keys:all-consumers`, those of all
//!    consumers. A key outside its reach gets the same answer as one that does not exist.
//! 3. A key can grant no more than it holds: scopes, expiry, limits, its plan. The write scope is
//!    checked before the transaction of a change and again in it, where what the calling key holds
//!    is checked too. Denied attempts are in the audit under the calling key; beyond five entries a
//!    minute they are only counted.
//! 4. A new key is shown once, in the response to the request that made it. Responses never contain
//!    its hash.
//! 5. `expires` is required for a new key: `"never"`, a date and time (RFC 3339), or a duration: a
//!    number and one of `s`, `m`, `h`, `d`, `w`, such as `"30d"`. A day is 24 hours. A new key has a
//!    lifetime longer than zero. Scopes are separate strings, without commas. A text is not empty.
//!    `null` is the same as leaving a member out.
//! 6. An update is a merge patch ([RFC 7396](https://www.rfc-editor.org/rfc/rfc7396)): absent
//!    members stay the same; `null` removes name, limits, plan or metadata, and is refused for
//!    `scopes`, `networks` and `tags` (send `[]`), `origins`, `expires` (send `"never"`) and
//!    `is_active`. `kind` cannot be changed. Metadata is merged, other
//!    members are replaced.
//! 7. `ETag` is the key's version. It does not change with `last_used_at`, nor with a `status` that
//!    changes by time alone. `PATCH` supports `If-Match`, `GET` supports `If-None-Match`.
//! 8. The two requests that make keys accept an `Idempotency-Key`. A repeated request makes no
//!    second key, but gets 409 with the `key_id` of the first.
//! 9. Every error is `application/problem+json` with a stable `code`, and with the `field` that was
//!    wrong: a JSON pointer into the body, or the name of a parameter or header. 400 means a
//!    malformed request, 422 a well-formed request with an invalid value.
//! 10. Responses are sent with `Cache-Control: no-store`.
//! 11. The requests of a key are [bounded](crate::manual::bounds): 8 quotas with windows of at most
//!     400 days, 128 scopes, 64 networks, 32 tags, 32 origins, metadata of 16 KiB and 32 levels, 1,000 keys of a consumer (409
//!     `too_many_keys`) and as many new ones an hour, 10 rotations of a key an hour (429
//!     `too_many_changes` with `Retry-After`). A page ends at 1 MiB, with a `next`.
//! 12. [Use](crate::manual::usage) is counted by hour or by day: `by`, `from` and `to` are optional.
//!     `Accept: text/csv` gets CSV. For a key without `api-keys:all-consumers`, `GET /usage` is about
//!     its own consumer.
//! 13. The issuer's [policy](KeyIssuer::policy) holds for new and changed keys: what exceeds it gets
//!     422 `exceeds_policy` with the `field` and, in `detail`, the bound; one key too many gets 409
//!     `too_many_keys`.
//!
//! # Deployment caveats
//!
//! The audit records the address of the peer if the server provides it
//! (`into_make_service_with_connect_info`), never a header. Behind a proxy, that is the address of
//! the proxy: use [`origin`](Admin::origin) to read the header that your proxy sets.

use std::sync::Arc;

use http::request::Parts;

pub use crate::rest::{GuardedRoutes, InvalidOrigin, KeyView, SignIn, SignedIn};
use crate::{
    auth::Authenticator,
    layer::ClientAddress,
    manage::KeyIssuer,
    record::{InvalidScope, Scope},
    rest::{AdminState, DocumentSettings, Operation, default_scopes, guard, guard_signed_in},
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
    Operation::GetTotalUsage,
];

/// The routes with default settings, for keys of `auth`. See the [module](crate::admin).
///
/// Changed keys are invalidated in `auth` at once.
#[must_use]
pub fn router(issuer: KeyIssuer, auth: Authenticator) -> GuardedRoutes {
    Admin::new(issuer, auth).router()
}

/// Settings of the routes, behind API keys or behind the application's own [login](SignedIn).
#[derive(Debug)]
#[must_use]
pub struct Admin<G = Authenticator> {
    state: AdminState,
    guard: G,
    is_open: bool,
}

impl Admin {
    /// Default settings, for keys of `auth`.
    pub fn new(issuer: KeyIssuer, auth: Authenticator) -> Self {
        let mut state = AdminState::new(issuer, &auth);
        state.read = Scope::new(default_scopes::READ).ok();
        state.write = Scope::new(default_scopes::WRITE).ok();
        state.everywhere = Scope::new(default_scopes::ALL_CONSUMERS).ok();
        Self { state, guard: auth, is_open: false }
    }

    /// The scopes to read keys, to change keys, and to do so for all consumers. Default:
    /// `api-keys:read`, `api-keys:write` and `api-keys:all-consumers`.
    ///
    /// # Errors
    ///
    /// When one of them is not a valid scope.
    pub fn scopes(
        mut self,
        read: impl Into<String>,
        write: impl Into<String>,
        everywhere: impl Into<String>,
    ) -> Result<Self, InvalidScope> {
        self.state.read = Some(Scope::new(read)?);
        self.state.write = Some(Scope::new(write)?);
        self.state.everywhere = Some(Scope::new(everywhere)?);
        Ok(self)
    }

    /// Where requests come from, for calling keys that work only from some networks: see
    /// [`ApiKeyLayer::client_address`](crate::ApiKeyLayer::client_address). Default: such keys are
    /// refused.
    pub fn client_address(mut self, address: ClientAddress) -> Self {
        self.state.client_address = Some(address);
        self
    }

    /// The routes.
    #[must_use]
    pub fn router(self) -> GuardedRoutes {
        let document = self.document(false);
        guard(self.state, self.guard, OPERATIONS, document)
    }
}

impl Admin<SignedIn> {
    /// The routes for members of the application, such as its support staff: those that `sign_in`
    /// lets in. No scopes are needed; the [member](crate::manage::Member) says whose keys it
    /// manages, and its [grant](crate::manage::Grant) what it may give. Take the issuer of the
    /// [authenticator](Authenticator::issuer), so that it applies changes at once.
    ///
    /// Requests of other sites that change something get 403 `cross_site_request`: see
    /// [`account`](crate::account#behind-the-applications-own-login).
    pub fn signed_in_by(issuer: KeyIssuer, sign_in: impl SignIn) -> Self {
        let state = AdminState::of_members(issuer);
        Self { state, guard: SignedIn::by(sign_in), is_open: false }
    }

    /// Accepts changes from pages of another origin too, such as `https://app.example.com`.
    ///
    /// # Errors
    ///
    /// When it is not an origin.
    pub fn trusted_origin(self, origin: &str) -> Result<Self, InvalidOrigin> {
        Ok(Self { guard: self.guard.trust(origin)?, ..self })
    }

    /// The routes.
    #[must_use]
    pub fn router(self) -> GuardedRoutes {
        let document = self.document(true);
        guard_signed_in(self.state, &self.guard, OPERATIONS, document)
    }
}

impl<G> Admin<G> {
    /// Where a request came from, for the audit. Default: the address of the peer, if the server
    /// provides it.
    ///
    /// # Security
    ///
    /// Clients can send any headers. Use only a header that your own proxy sets, and only the part
    /// of it that the proxy added.
    pub fn origin(
        mut self,
        origin: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.state.origin = Arc::new(origin);
        self
    }

    /// Whether `/openapi.json` is served without the guard. It describes the routes and contains nothing
    /// about keys. Default: false.
    pub fn open_document(self, is_open: bool) -> Self {
        Self { is_open, ..self }
    }

    const fn document(&self, is_of_members: bool) -> DocumentSettings {
        DocumentSettings {
            title: "API keys: administration",
            is_of_members,
            is_own_account: false,
            is_open: self.is_open,
        }
    }
}
