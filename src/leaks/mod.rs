//! A router that hears of leaked keys: from GitHub's secret scanning, and from other scanners.
//!
//! ```
//! use axum::Router;
//! use tower_api_key::{
//!     Authenticator,
//!     key::KeyFormat,
//!     leaks::{self, GitHubPublicKeys},
//!     manage::LeakPolicy,
//! };
//! # use tower_api_key::store::MemoryKeyStore;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let store = MemoryKeyStore::new();
//! let (auth, worker) =
//!     Authenticator::builder(store.clone(), KeyFormat::new("sk_live_")?).build();
//! # drop(worker);
//! let issuer = auth.issuer(store);
//! let routes = leaks::router(issuer, LeakPolicy::new(), GitHubPublicKeys::new());
//! let app: Router = Router::new().nest_service("/leaks", routes);
//! # Ok(())
//! # }
//! ```
//!
//! | | |
//! |---|---|
//! | `POST /` | a delivery of GitHub's [secret scanning partner program](https://docs.github.com/en/code-security/secret-scanning/secret-scanning-partnership-program/secret-scanning-partner-program) |
//! | `POST /report` | a report by a key with a scope, if [there are reporters](Leaks::reporters) |
//!
//! # Rules
//!
//! 1. A delivery counts only if its signature, ECDSA with P-256 and SHA-256, is that of the exact
//!    bytes of the body by one of the [public keys](PublicKeys). It is checked before anything is
//!    parsed. Any other delivery is answered with 403 `invalid_signature`, and with 503 if the public
//!    keys cannot be fetched.
//! 2. A delivery has at most [8 MiB](Leaks::max_body) and 10,000 tokens, which are looked up by one
//!    query. At most eight are handled at once, and each has to arrive within 20 seconds.
//! 3. What becomes of a leaked key is up to the [policy](crate::manage::LeakPolicy). Its audit has
//!    where it was found. The issuer's [authenticator](crate::Authenticator::issuer) refuses a revoked
//!    key at once, and the other nodes as soon as their change feeds tell them.
//! 4. The same delivery again changes nothing. See
//!    [`report_leaks`](crate::manage::KeyIssuer::report_leaks) for what is written how often.
//! 5. The answer to GitHub has the SHA-256 of each token, in base64, and whether it is a key of this
//!    service, also one that has ended: `true_positive` or `false_positive`. It never has a token.
//! 6. The answer to a report tells only whether the key worked until then, which the reporter could
//!    have learnt by using it. A canary key is answered like an unknown one.
//!
//! [The manual](crate::manual::leaks) has more: how to register, and where to plant canary keys.

mod delivery;
mod error;
mod fetch;
mod github_keys;
mod public_keys;
mod report;
mod signature;

use std::{fmt, sync::Arc};

use axum::{Router, routing::post};
use http::request::Parts;
use tokio::sync::Semaphore;

use self::{
    delivery::{Deliveries, deliver},
    public_keys::DynPublicKeys,
    report::{Reports, report},
};
pub use self::{
    error::{PublicKeysError, PublicKeysErrorKind},
    github_keys::GitHubPublicKeys,
    public_keys::{PublicKeySet, PublicKeys},
    signature::PublicKey,
};
pub use crate::rest::GuardedRoutes;
use crate::{
    auth::Authenticator,
    layer::{ClientAddress, RequireScope},
    manage::{KeyIssuer, LeakPolicy},
    record::{InvalidScope, Scope},
    rest::{Origin, default_scopes, guard_routes, open_routes, peer},
    trace,
};

/// The most bytes of a delivery. A token with its URL takes about 250.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// How many deliveries are handled at once, so that their bodies take at most 64 MiB.
const MAX_DELIVERIES: usize = 8;

/// The routes with default settings. See the [module](crate::leaks).
///
/// Take the issuer of the [authenticator](Authenticator::issuer), so that a revoked key is refused at
/// once, and keys of all accepted formats are found.
#[must_use]
pub fn router(
    issuer: KeyIssuer,
    policy: LeakPolicy,
    public_keys: impl PublicKeys,
) -> GuardedRoutes {
    Leaks::new(issuer, policy).github(public_keys).router()
}

/// Settings of the routes. Without [`github`](Self::github) and [`reporters`](Self::reporters) there
/// are none.
#[must_use]
pub struct Leaks {
    issuer: KeyIssuer,
    policy: LeakPolicy,
    public_keys: Option<Arc<dyn DynPublicKeys>>,
    reporters: Option<Authenticator>,
    report_scope: Option<Scope>,
    client_address: Option<ClientAddress>,
    max_body: usize,
    origin: Origin,
}

impl Leaks {
    /// Default settings.
    pub fn new(issuer: KeyIssuer, policy: LeakPolicy) -> Self {
        Self {
            issuer,
            policy,
            public_keys: None,
            reporters: None,
            report_scope: Scope::new(default_scopes::REPORT_LEAKS).ok(),
            client_address: None,
            max_body: MAX_BODY,
            origin: Arc::new(peer),
        }
    }

    /// Accepts deliveries that are signed by one of these keys, as `POST /`. The audit names their
    /// actor `leaks:github`.
    pub fn github(self, public_keys: impl PublicKeys) -> Self {
        Self { public_keys: Some(Arc::new(public_keys)), ..self }
    }

    /// Accepts reports by keys of `auth` that have the [scope](Self::report_scope), as
    /// `POST /report` with `{"token": "sk_live_…"}` and, if known, a `source` such as `wiki` and a
    /// `url`. Each report takes a unit of the quotas of the reporting key. The audit names the actor
    /// `leaks:key:` and the id of that key.
    pub fn reporters(self, auth: Authenticator) -> Self {
        Self { issuer: self.issuer.invalidates(auth.clone()), reporters: Some(auth), ..self }
    }

    /// The scope of keys that may report leaks, also those of other consumers. Default:
    /// `api-keys:report-leaks`.
    ///
    /// # Errors
    ///
    /// When it is not a valid scope.
    pub fn report_scope(self, scope: impl Into<String>) -> Result<Self, InvalidScope> {
        Ok(Self { report_scope: Some(Scope::new(scope)?), ..self })
    }

    /// Where requests come from, for reporting keys that work only from some networks: see
    /// [`ApiKeyLayer::client_address`](crate::ApiKeyLayer::client_address). Default: such keys are
    /// refused.
    pub fn client_address(self, address: ClientAddress) -> Self {
        Self { client_address: Some(address), ..self }
    }

    /// The most bytes that a delivery may have. Default: 8 MiB, about 30,000 tokens with their URLs.
    /// A longer one is answered with 413.
    pub fn max_body(self, bytes: usize) -> Self {
        Self { max_body: bytes, ..self }
    }

    /// As for the [admin router](crate::admin::Admin::origin).
    pub fn origin(self, origin: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        Self { origin: Arc::new(origin), ..self }
    }

    /// The routes.
    #[must_use]
    pub fn router(self) -> GuardedRoutes {
        let mut routes = Router::new();
        let Self { issuer, policy, max_body, origin, .. } = self;
        if let Some(public_keys) = self.public_keys {
            let deliveries = Deliveries {
                issuer: issuer.clone(),
                policy: policy.clone(),
                public_keys,
                max_body,
                turns: Arc::new(Semaphore::new(MAX_DELIVERIES)),
                origin: Arc::clone(&origin),
                errors: Arc::new(trace::ErrorLog::default()),
            };
            routes = routes.route("/", post(deliver).with_state(deliveries));
        }
        if let Some(auth) = self.reporters {
            let reports = Reports { issuer, policy, origin };
            let mut guarded = Router::new().route("/report", post(report).with_state(reports));
            if let Some(scope) = self.report_scope {
                guarded = guarded.layer(RequireScope::all([scope]));
            }
            routes = routes.merge(guard_routes(guarded, auth, self.client_address));
        }
        open_routes(routes)
    }
}

impl fmt::Debug for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaks")
            .field("issuer", &self.issuer)
            .field("policy", &self.policy)
            .field("report_scope", &self.report_scope)
            .field("max_body", &self.max_body)
            .finish_non_exhaustive()
    }
}
