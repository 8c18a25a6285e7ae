use std::{fmt, net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, FromRequestParts, OriginalUri},
    response::IntoResponse,
};
use http::request::Parts;

use super::error::ApiError;
use crate::{
    auth::Authenticator,
    layer::{ClientAddress, ConsumerRejection},
    manage::{Actor, KeyIssuer, ManageError, ManageErrorKind},
    rate_limit::RateLimits,
    record::{Consumer, KeyId, Scope},
    trace,
};

/// Where a request came from, for the audit.
type Origin = Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

/// The state of the routes. Only the extractors [`ReadAccess`] and [`WriteAccess`] use it.
#[derive(Clone)]
pub(crate) struct AdminState {
    issuer: KeyIssuer,
    default_limits: RateLimits,
    pub(crate) read: Option<Scope>,
    pub(crate) write: Option<Scope>,
    /// To change keys outside the caller's rotation chain. `None`: `write` is enough.
    pub(crate) others: Option<Scope>,
    pub(crate) everywhere: Option<Scope>,
    pub(crate) origin: Origin,
    /// For keys that work only from some networks.
    pub(crate) client_address: Option<ClientAddress>,
    errors: Arc<trace::ErrorLog>,
}

impl AdminState {
    /// A state without scopes: each key can read the keys of its own consumer and change those of
    /// its own rotation chain.
    pub(crate) fn new(issuer: KeyIssuer, auth: &Authenticator) -> Self {
        let default_limits = auth.default_rate_limits().clone();
        let issuer = issuer.invalidates(auth.clone());
        let (read, write, others, everywhere) = (None, None, None, None);
        let (origin, errors) = (Arc::new(peer), Arc::default());
        Self {
            issuer,
            default_limits,
            read,
            write,
            others,
            everywhere,
            origin,
            client_address: None,
            errors,
        }
    }

    fn actor(&self, consumer: &Consumer, parts: &Parts) -> Actor {
        let mut actor = Actor::key(consumer).default_rate_limits(self.default_limits.clone());
        if let Some(scope) = &self.everywhere {
            actor = actor.all_consumers_scope(scope.clone());
        }
        if let Some(scope) = &self.others {
            actor = actor.other_keys_scope(scope.clone());
        }
        match (self.origin)(parts) {
            Some(origin) => actor.origin(printable(&origin)),
            None => actor,
        }
    }
}

/// The address of the peer, if the server provides it.
fn peer(parts: &Parts) -> Option<String> {
    let ConnectInfo(address) = parts.extensions.get::<ConnectInfo<SocketAddr>>()?;
    Some(address.ip().to_canonical().to_string())
}

/// The origin as printable ASCII of bounded length, safe to show in a terminal or a log.
fn printable(origin: &str) -> String {
    const MAX_LEN: usize = 256;
    origin.chars().filter(char::is_ascii_graphic).take(MAX_LEN).collect()
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState")
            .field("issuer", &self.issuer)
            .field("read", &self.read)
            .field("write", &self.write)
            .field("others", &self.others)
            .field("everywhere", &self.everywhere)
            .finish_non_exhaustive()
    }
}

/// A caller with the read scope.
pub(super) struct ReadAccess(CallerContext);

/// A caller that requests a change. The service checks the write scope, and writes a denial to the
/// audit.
pub(super) struct WriteAccess(CallerContext);

struct CallerContext {
    issuer: KeyIssuer,
    key_id: KeyId,
    /// The path prefix under which the routes are nested.
    mount: String,
    errors: Arc<trace::ErrorLog>,
}

impl ReadAccess {
    pub(super) fn issuer(&self) -> &KeyIssuer {
        &self.0.issuer
    }

    pub(super) fn error_of(&self, error: &ManageError) -> ApiError {
        self.0.error_of(error)
    }
}

impl WriteAccess {
    pub(super) fn issuer(&self) -> &KeyIssuer {
        &self.0.issuer
    }

    pub(super) fn error_of(&self, error: &ManageError) -> ApiError {
        self.0.error_of(error)
    }

    /// The path of the key with this id.
    pub(super) fn locate(&self, id: KeyId) -> String {
        self.0.locate(id)
    }
}

impl CallerContext {
    fn error_of(&self, error: &ManageError) -> ApiError {
        let kinds = [ManageErrorKind::Rng, ManageErrorKind::Store, ManageErrorKind::Overloaded];
        if kinds.contains(&error.kind()) {
            self.errors.warn("key management failed", error, self.issuer.monotonic());
        }
        ApiError::of(error, self.key_id, |id| self.locate(id))
    }

    fn locate(&self, id: KeyId) -> String {
        format!("{}/api-keys/{id}", self.mount)
    }
}

impl FromRequestParts<AdminState> for ReadAccess {
    type Rejection = AccessDenied;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &AdminState,
    ) -> Result<Self, AccessDenied> {
        let consumer = consumer(parts, state).await?;
        if let Some(scope) = &state.read
            && !consumer.has_scope(scope.as_str())
        {
            return Err(ApiError::lacks_scope(consumer.key_id(), scope.clone()).into());
        }
        Ok(Self(CallerContext::new(state, state.actor(&consumer, parts), &consumer, parts)))
    }
}

impl FromRequestParts<AdminState> for WriteAccess {
    type Rejection = AccessDenied;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &AdminState,
    ) -> Result<Self, AccessDenied> {
        let consumer = consumer(parts, state).await?;
        let actor = state.actor(&consumer, parts);
        let actor = match &state.write {
            Some(scope) => actor.required_scope(scope.clone()),
            None => actor,
        };
        Ok(Self(CallerContext::new(state, actor, &consumer, parts)))
    }
}

async fn consumer(parts: &mut Parts, state: &AdminState) -> Result<Consumer, AccessDenied> {
    <Consumer as FromRequestParts<AdminState>>::from_request_parts(parts, state)
        .await
        .map_err(AccessDenied::Unguarded)
}

impl CallerContext {
    fn new(state: &AdminState, actor: Actor, consumer: &Consumer, parts: &Parts) -> Self {
        let path = parts.uri.path();
        let original = parts.extensions.get::<OriginalUri>();
        let mount = original.and_then(|OriginalUri(uri)| uri.path().strip_suffix(path));
        Self {
            issuer: state.issuer.by(actor),
            key_id: consumer.key_id(),
            mount: mount.unwrap_or_default().to_owned(),
            errors: Arc::clone(&state.errors),
        }
    }
}

/// Why an extractor failed.
#[derive(Debug)]
pub(super) enum AccessDenied {
    /// No `ApiKeyLayer` authenticated the request.
    Unguarded(ConsumerRejection),
    Refused(ApiError),
}

impl From<ApiError> for AccessDenied {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

impl IntoResponse for AccessDenied {
    fn into_response(self) -> axum::response::Response {
        match self {
            Self::Unguarded(rejection) => rejection.into_response(),
            Self::Refused(error) => error.into_response(),
        }
    }
}
