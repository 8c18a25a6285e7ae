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
//! | `POST /api-keys/{id}/rotate` | issues a key to replace the calling key |
//! | `POST /api-keys/{id}/revoke` | revokes the calling key permanently |
//! | `GET /api-keys/{id}/usage` | shows when a key was last used |
//! | `GET /rate-limit` | shows the remaining quota of the calling key; free, even with none left |
//! | `GET /openapi.json` | describes the routes, with the feature `openapi` |
//!
//! The [rules](crate::admin) of the admin router apply, except for the scopes: none is needed
//! unless you [require one](Account::required_scope). A key can read all keys of its consumer. It
//! can rotate and revoke itself and the other keys of its rotation chain; a new key inherits its
//! metadata. Other keys of the consumer need a [scope](Account::other_keys_scope), `api-keys:write`
//! by default.
//!
//! # Security
//!
//! Mount this router only if you need it. A thief can rotate a stolen key with it: the thief then
//! holds a key that its owner does not know, and the owner's key ends after the grace period. The
//! owner sees both in the list, and can revoke them while the old one works. To make that harder,
//! require a [scope](Account::required_scope) that only well-protected keys have.

pub use crate::rest::GuardedRoutes;
use crate::{
    auth::Authenticator,
    layer::ClientAddress,
    manage::KeyIssuer,
    record::{InvalidScope, Scope},
    rest::{AdminState, DocumentSettings, Operation, default_scopes, guard},
};

const OPERATIONS: &[Operation] = &[
    Operation::ListKeys,
    Operation::GetKey,
    Operation::RotateKey,
    Operation::RevokeKey,
    Operation::GetUsage,
    Operation::GetRateLimit,
];

/// The routes with default settings, for keys of `auth`. See the [module](crate::account).
#[must_use]
pub fn router(issuer: KeyIssuer, auth: Authenticator) -> GuardedRoutes {
    Account::new(issuer, auth).router()
}

/// Settings of the routes.
#[derive(Debug)]
#[must_use]
pub struct Account {
    state: AdminState,
    auth: Authenticator,
    is_open: bool,
}

impl Account {
    /// Default settings, for keys of `auth`.
    pub fn new(issuer: KeyIssuer, auth: Authenticator) -> Self {
        let mut state = AdminState::new(issuer, &auth);
        state.others = Scope::new(default_scopes::WRITE).ok();
        Self { state, auth, is_open: false }
    }

    /// The scope to read and change keys. `GET /rate-limit` never needs one. Default: none.
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

    /// The scope to rotate and revoke keys of the consumer outside the rotation chain of the
    /// calling key. Default: `api-keys:write`.
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

    /// As for the [admin router](crate::admin::Admin::open_document).
    pub fn open_document(self, is_open: bool) -> Self {
        Self { is_open, ..self }
    }

    /// The routes.
    #[must_use]
    pub fn router(self) -> GuardedRoutes {
        let document = DocumentSettings { title: "API keys: your account", is_open: self.is_open };
        guard(self.state, self.auth, OPERATIONS, document)
    }
}
