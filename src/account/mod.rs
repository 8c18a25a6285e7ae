//! A router for consumers to manage their own keys and read their remaining quota.
//!
//! ```
//! use axum::Router;
//! use tower_api_key::{Authenticator, account, key::KeyFormat};
//! # use tower_api_key::store::MemoryKeyStore;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let store = MemoryKeyStore::new();
//! let format = KeyFormat::new("sk_live_")?;
//! let (auth, worker) = Authenticator::builder(store.clone(), format).build();
//! # drop(worker);
//! let issuer = auth.issuer(store);
//! let app: Router = Router::new().nest_service("/account", account::router(issuer, auth));
//! # Ok(())
//! # }
//! ```
//!
//! | | |
//! |---|---|
//! | `GET /api-keys`, `GET /api-keys/{id}` | lists or shows keys of the caller's consumer |
//! | `POST /api-keys` | issues a key; `consumer_id` can be left out |
//! | `PATCH /api-keys/{id}` | changes a key |
//! | `POST /api-keys/{id}/rotate` | issues a key to replace another |
//! | `POST /api-keys/{id}/revoke` | revokes a key permanently |
//! | `GET /api-keys/{id}/events` | lists the audit of a key |
//! | `GET /api-keys/{id}/usage` | shows when and how often a key was used |
//! | `GET /usage` | shows how often all keys of the caller's consumer were used |
//! | `GET /whoami` | shows what the caller is: consumer, scopes, expiry, plan and quotas of the calling key, or the grant of the member |
//! | `GET /rate-limit` | shows the remaining quota of the calling key; free, even with none left |
//! | `GET /openapi.json` | describes the routes, with the feature `openapi` |
//!
//! # Behind API keys
//!
//! The [rules](crate::admin) of the admin router apply, except for the scopes: none is needed
//! unless you [require one](Account::required_scope). A key can read all keys of its consumer. It
//! can change, rotate and revoke itself and the other keys of its rotation chain; a new key inherits
//! its metadata. To issue keys, to change metadata, and for the other keys of the consumer it needs
//! a [scope](Account::other_keys_scope), `api-keys:write` by default. It never gives more than it
//! holds.
//!
//! # Behind the application's own login
//!
//! An application with logins mounts "my API keys" behind them: its [`SignIn`] says which
//! [member](crate::manage::Member) sends a request, whose keys it manages, and what it may
//! [give](crate::manage::Grant).
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, response::IntoResponse};
//! use http::{StatusCode, request::Parts};
//! use tower_api_key::{
//!     account::Account,
//!     manage::{Grant, KeyIssuer, Member},
//!     record::Scopes,
//! };
//!
//! # #[derive(Clone)]
//! # struct Session { user: String }
//! fn settings(issuer: KeyIssuer, scopes: Scopes) -> Router {
//!     let account = Account::signed_in_by(issuer, move |parts: &mut Parts| {
//!         // Left by the application's session layer.
//!         let session = parts.extensions.get::<Session>().cloned();
//!         let grant = Grant::new(Duration::from_secs(90 * 86_400)).scopes(scopes.clone());
//!         async move {
//!             let user = session.ok_or_else(|| StatusCode::UNAUTHORIZED.into_response())?.user;
//!             Ok(Member::new(user.clone(), user).grant(grant))
//!         }
//!     });
//!     Router::new().nest_service("/settings", account.router())
//! }
//! # let _ = settings;
//! ```
//!
//! `examples/signed_in.rs` does so with a signed cookie, `examples/axum_login.rs` with the crate
//! `axum-login`.
//!
//! 1. The sign-in is asked for each request, before anything else, and again before a change, once
//!    its body has arrived.
//! 2. A member manages the keys of its consumers. A key of another consumer gets the same answer as
//!    one that does not exist. The audit names the member: `member:` and its name.
//! 3. A browser sends cookies with requests of other sites, too. So a request that changes something
//!    is refused with 403 `cross_site_request` if `Sec-Fetch-Site` or, without it, `Origin` says
//!    that a page of another origin sent it, unless that origin is
//!    [trusted](Account::trusted_origin). A body must be JSON and say so, which a form of another
//!    site cannot. Proxies must pass `Host`, `Origin` and `Sec-Fetch-Site` on unchanged. Give the
//!    cookie `SameSite=Lax` or `Strict` all the same.
//!
//! The router cannot be made without a guard. This does not compile:
//!
//! ```compile_fail,E0061
//! # fn open(issuer: tower_api_key::manage::KeyIssuer, sign_in: impl tower_api_key::account::SignIn) {
//! let routes = tower_api_key::account::Account::signed_in_by(issuer);
//! # }
//! ```
//!
//! This does:
//!
//! ```
//! # fn open(issuer: tower_api_key::manage::KeyIssuer, sign_in: impl tower_api_key::account::SignIn) {
//! let routes = tower_api_key::account::Account::signed_in_by(issuer, sign_in);
//! # }
//! ```
//!
//! # Security
//!
//! Mount this router behind keys only if you need it. A thief can rotate a stolen key with it: the
//! thief then holds a key that its owner does not know, and the owner's key ends after the grace
//! period. The owner sees both in the list, and can revoke them while the old one works. To make
//! that harder, require a [scope](Account::required_scope) that only well-protected keys have.

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
    Operation::GetKey,
    Operation::UpdateKey,
    Operation::RotateKey,
    Operation::RevokeKey,
    Operation::ListEvents,
    Operation::GetUsage,
    Operation::GetTotalUsage,
    Operation::WhoAmI,
    Operation::GetRateLimit,
];

/// A member has no quota.
const OPERATIONS_OF_MEMBERS: &[Operation] = &[
    Operation::IssueKey,
    Operation::ListKeys,
    Operation::GetKey,
    Operation::UpdateKey,
    Operation::RotateKey,
    Operation::RevokeKey,
    Operation::ListEvents,
    Operation::GetUsage,
    Operation::GetTotalUsage,
    Operation::WhoAmI,
];

/// The routes with default settings, for keys of `auth`. See the [module](crate::account).
#[must_use]
pub fn router(issuer: KeyIssuer, auth: Authenticator) -> GuardedRoutes {
    Account::new(issuer, auth).router()
}

/// Settings of the routes, behind API keys or behind the application's own [login](SignedIn).
#[derive(Debug)]
#[must_use]
pub struct Account<G = Authenticator> {
    state: AdminState,
    guard: G,
    is_open: bool,
}

impl Account {
    /// Default settings, for keys of `auth`.
    pub fn new(issuer: KeyIssuer, auth: Authenticator) -> Self {
        let mut state = AdminState::new(issuer, &auth);
        state.others = Scope::new(default_scopes::WRITE).ok();
        state.is_own_account = true;
        Self { state, guard: auth, is_open: false }
    }

    /// The scope to read and change keys. `GET /whoami` and `GET /rate-limit` never need one.
    /// Default: none.
    ///
    /// # Errors
    ///
    /// When it is not a valid scope.
    pub fn required_scope(mut self, scope: impl Into<String>) -> Result<Self, InvalidScope> {
        let scope = Scope::new(scope)?;
        self.state.read = Some(scope.clone());
        self.state.write = Some(scope);
        Ok(self)
    }

    /// The scope to issue keys, to change metadata, and to change, rotate and revoke keys of the
    /// consumer outside the rotation chain of the calling key. Default: `api-keys:write`.
    ///
    /// # Security
    ///
    /// A key with this scope can revoke any key of its consumer. By rotation it can obtain the
    /// metadata of any key that holds no more scopes, limits and time than itself.
    ///
    /// # Errors
    ///
    /// When it is not a valid scope.
    pub fn other_keys_scope(mut self, scope: impl Into<String>) -> Result<Self, InvalidScope> {
        self.state.others = Some(Scope::new(scope)?);
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

impl Account<SignedIn> {
    /// The routes for members of the application: those that `sign_in` lets in. Take the issuer of
    /// the [authenticator](Authenticator::issuer), so that it applies changes at once. See
    /// [above](crate::account#behind-the-applications-own-login).
    pub fn signed_in_by(issuer: KeyIssuer, sign_in: impl SignIn) -> Self {
        let mut state = AdminState::of_members(issuer);
        state.is_own_account = true;
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
        guard_signed_in(self.state, &self.guard, OPERATIONS_OF_MEMBERS, document)
    }
}

impl<G> Account<G> {
    /// As for the [admin router](crate::admin::Admin::origin).
    pub fn origin(
        mut self,
        origin: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.state.origin = Arc::new(origin);
        self
    }

    /// As for the [admin router](crate::admin::Admin::open_document).
    pub fn open_document(self, is_open: bool) -> Self {
        Self { is_open, ..self }
    }

    const fn document(&self, is_of_members: bool) -> DocumentSettings {
        DocumentSettings {
            title: "API keys: your account",
            is_of_members,
            is_own_account: true,
            is_open: self.is_open,
        }
    }
}
