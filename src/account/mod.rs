//! A router with which consumers look after their own keys, and see what they have left.
//!
//! ```
//! use axum::Router;
//! use tower_api_key::{Authenticator, account, key::KeyFormat, manage::KeyIssuer};
//! # use tower_api_key::store::MemoryKeyStore;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let store = MemoryKeyStore::new();
//! let format = KeyFormat::new("sk_live_")?;
//! let (auth, worker) = Authenticator::builder(store.clone(), format.clone()).build();
//! # drop(worker);
//! let issuer = KeyIssuer::new(store, format);
//! let app: Router = Router::new().nest_service("/account", account::router(issuer, auth));
//! # Ok(())
//! # }
//! ```
//!
//! | | |
//! |---|---|
//! | `GET /api-keys`, `GET /api-keys/{id}` | the keys of the caller's consumer |
//! | `POST /api-keys/{id}/rotate` | issues a key to replace the calling key |
//! | `POST /api-keys/{id}/revoke` | ends the calling key for good |
//! | `GET /api-keys/{id}/usage` | when one of them was last used |
//! | `GET /rate-limit` | what the calling key has left; asking spends nothing, and works when there is nothing left |
//! | `GET /openapi.json`, `GET /docs` | all of this in detail, with the feature `openapi` |
//!
//! The [rules](crate::admin) are those of the admin router, but for the scopes: none is needed,
//! unless you [say so](Account::required_scope). A key looks at all keys of its consumer. It rotates and
//! revokes itself, and the keys that it was rotated to as long as it works; a new key has its metadata.
//! Other keys of the consumer take a [scope](Account::other_keys_scope), `api-keys:write` by default.
//!
//! # Security
//!
//! Mount it only if you want it. Whoever has found a key can rotate it with this router: they then
//! hold a key that its owner does not know, and the owner's ends after the grace period. The owner
//! sees both in the list, and can revoke them as long as the old one works. A
//! [scope](Account::required_scope) that only keys in good hands have makes that harder.

pub use crate::rest::GuardedRoutes;
use crate::{
    auth::Authenticator,
    manage::KeyIssuer,
    record::{InvalidScope, Scope},
    rest::{Desk, DocumentSettings, Operation, guard},
};

const OPERATIONS: &[Operation] = &[
    Operation::ListKeys,
    Operation::GetKey,
    Operation::RotateKey,
    Operation::RevokeKey,
    Operation::GetUsage,
    Operation::GetRateLimit,
];

/// The routes, for keys of `auth`, with everything else at its default. See the
/// [module](crate::account).
#[must_use]
pub fn router(issuer: KeyIssuer, auth: Authenticator) -> GuardedRoutes {
    Account::new(issuer, auth).router()
}

/// Settings of the routes.
#[derive(Debug)]
#[must_use]
pub struct Account {
    desk: Desk,
    auth: Authenticator,
    is_open: bool,
}

impl Account {
    /// The routes, for keys of `auth`, with everything else at its default.
    pub fn new(issuer: KeyIssuer, auth: Authenticator) -> Self {
        let mut desk = Desk::new(issuer, &auth);
        desk.others = Scope::new("api-keys:write").ok();
        Self { desk, auth, is_open: false }
    }

    /// The scope to look at keys and to change them. What is left is told to every key. Default:
    /// none is needed.
    ///
    /// # Errors
    ///
    /// When it is no scope.
    pub fn required_scope(mut self, scope: impl Into<String>) -> Result<Self, InvalidScope> {
        let scope = Scope::new(scope)?;
        self.desk.read = Some(scope.clone());
        self.desk.write = Some(scope);
        Ok(self)
    }

    /// The scope to rotate and revoke keys of the consumer other than the calling key and those that it
    /// was rotated to. Default: `api-keys:write`.
    ///
    /// # Security
    ///
    /// A key with this scope can end any key of its consumer, and get one with the metadata of any that
    /// holds no more scopes, limits and time than itself.
    ///
    /// # Errors
    ///
    /// When it is no scope.
    pub fn other_keys_scope(mut self, scope: impl Into<String>) -> Result<Self, InvalidScope> {
        self.desk.others = Some(Scope::new(scope)?);
        Ok(self)
    }

    /// As of the [admin router](crate::admin::Admin::open_document).
    pub fn open_document(self, is_open: bool) -> Self {
        Self { is_open, ..self }
    }

    /// The routes.
    #[must_use]
    pub fn router(self) -> GuardedRoutes {
        let document = DocumentSettings { title: "API keys: your account", is_open: self.is_open };
        guard(self.desk, self.auth, OPERATIONS, document)
    }
}
