use std::{fmt, net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, FromRequestParts, OriginalUri},
    response::IntoResponse,
};
use http::request::Parts;

use super::{error::ApiError, sign_in::Admitted};
use crate::{
    auth::{Authenticator, Rejection, RejectionKind},
    layer::{ClientAddress, ConsumerRejection},
    manage::{Actor, KeyIssuer, ManageError, ManageErrorKind, Member},
    rate_limit::RateLimits,
    record::{Consumer, KeyId, Scope},
    trace,
};

/// Where a request came from, for the audit.
pub(crate) type Origin = Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

/// The state of the routes. Only the extractors of this file use it.
#[derive(Clone)]
pub(crate) struct AdminState {
    issuer: KeyIssuer,
    callers: Callers,
    pub(crate) read: Option<Scope>,
    pub(crate) write: Option<Scope>,
    /// To change keys outside the caller's rotation chain. `None`: `write` is enough.
    pub(crate) others: Option<Scope>,
    pub(crate) everywhere: Option<Scope>,
    /// Whether a new key is for the caller's consumer unless the request says otherwise.
    pub(crate) is_own_account: bool,
    pub(crate) origin: Origin,
    /// For keys that work only from some networks.
    pub(crate) client_address: Option<ClientAddress>,
    errors: Arc<trace::ErrorLog>,
}

/// Who the guard in front of the routes lets in.
#[derive(Clone)]
enum Callers {
    /// Keys; with the default limits of their authenticator.
    Keys(RateLimits),
    Members,
}

/// Who sends a request.
pub(super) enum Caller {
    Key(Consumer),
    Member(Box<Member>),
}

impl Caller {
    fn key_id(&self) -> Option<KeyId> {
        match self {
            Self::Key(consumer) => Some(consumer.key_id()),
            Self::Member(_) => None,
        }
    }

    /// The consumer that it acts for, if there is only one.
    fn consumer_id(&self) -> Option<&str> {
        match self {
            Self::Key(consumer) => Some(consumer.id()),
            Self::Member(member) => member.consumers().only(),
        }
    }
}

impl AdminState {
    /// A state without scopes: each key can read the keys of its own consumer and change those of
    /// its own rotation chain.
    pub(crate) fn new(issuer: KeyIssuer, auth: &Authenticator) -> Self {
        let callers = Callers::Keys(auth.default_rate_limits().clone());
        Self::of(issuer.invalidates(auth.clone()), callers)
    }

    /// A state for members.
    pub(crate) fn of_members(issuer: KeyIssuer) -> Self {
        Self::of(issuer, Callers::Members)
    }

    fn of(issuer: KeyIssuer, callers: Callers) -> Self {
        let (read, write, others, everywhere) = (None, None, None, None);
        let (origin, errors) = (Arc::new(peer), Arc::default());
        let is_own_account = false;
        Self {
            issuer,
            callers,
            read,
            write,
            others,
            everywhere,
            is_own_account,
            origin,
            client_address: None,
            errors,
        }
    }

    fn actor(&self, caller: &Caller, parts: &Parts) -> Actor {
        let mut actor = match caller {
            Caller::Key(consumer) => Actor::key(consumer),
            Caller::Member(member) => Actor::member(Member::clone(member)),
        };
        if let Callers::Keys(default_limits) = &self.callers {
            actor = actor.default_rate_limits(default_limits.clone());
        }
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
pub(crate) fn peer(parts: &Parts) -> Option<String> {
    let ConnectInfo(address) = parts.extensions.get::<ConnectInfo<SocketAddr>>()?;
    Some(address.ip().to_canonical().to_string())
}

/// The origin as printable ASCII of bounded length, safe to show in a terminal or a log.
pub(crate) fn printable(origin: &str) -> String {
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

/// A caller that asks about itself, for which it needs no scope.
pub(super) struct OwnAccess(CallerContext);

/// A caller with the read scope.
pub(super) struct ReadAccess(CallerContext);

/// A caller that requests a change. The service checks the write scope, and writes a denial to the
/// audit.
pub(super) struct WriteAccess(CallerContext);

struct CallerContext {
    issuer: KeyIssuer,
    caller: Caller,
    is_own_account: bool,
    /// The path prefix under which the routes are nested.
    mount: String,
    errors: Arc<trace::ErrorLog>,
}

impl OwnAccess {
    pub(super) fn issuer(&self) -> &KeyIssuer {
        &self.0.issuer
    }

    pub(super) fn caller(&self) -> &Caller {
        &self.0.caller
    }

    pub(super) fn error_of(&self, error: &ManageError) -> ApiError {
        self.0.error_of(error)
    }
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

    /// The consumer of a new key for which the request names none.
    pub(super) fn own_consumer(&self) -> Option<&str> {
        self.0.caller.consumer_id().filter(|_| self.0.is_own_account)
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
        ApiError::of(error, self.caller.key_id(), |id| Some(self.locate(id)))
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
        let caller = caller(parts, state).await?;
        if let (Some(scope), Caller::Key(consumer)) = (&state.read, &caller)
            && !consumer.has_scope(scope.as_str())
        {
            return Err(ApiError::lacks_scope(caller.key_id(), scope.clone()).into());
        }
        Ok(Self(CallerContext::new(state, state.actor(&caller, parts), caller, parts)))
    }
}

impl FromRequestParts<AdminState> for WriteAccess {
    type Rejection = AccessDenied;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &AdminState,
    ) -> Result<Self, AccessDenied> {
        let caller = caller(parts, state).await?;
        let actor = state.actor(&caller, parts);
        let actor = match &state.write {
            Some(scope) => actor.required_scope(scope.clone()),
            None => actor,
        };
        Ok(Self(CallerContext::new(state, actor, caller, parts)))
    }
}

impl FromRequestParts<AdminState> for OwnAccess {
    type Rejection = AccessDenied;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &AdminState,
    ) -> Result<Self, AccessDenied> {
        let caller = caller(parts, state).await?;
        Ok(Self(CallerContext::new(state, state.actor(&caller, parts), caller, parts)))
    }
}

/// Whom the guard of these routes let in. What another layer let in does not count.
async fn caller(parts: &mut Parts, state: &AdminState) -> Result<Caller, AccessDenied> {
    match state.callers {
        Callers::Keys(_) => {
            <Consumer as FromRequestParts<AdminState>>::from_request_parts(parts, state)
                .await
                .map(Caller::Key)
                .map_err(AccessDenied::Unguarded)
        }
        Callers::Members => {
            let admitted = parts.extensions.get::<Admitted>();
            let unguarded = || ApiError::Rejected(Rejection::new(RejectionKind::LayerMissing));
            let member =
                admitted.map(|admitted| Caller::Member(Box::new(admitted.member().clone())));
            Ok(member.ok_or_else(unguarded)?)
        }
    }
}

impl CallerContext {
    fn new(state: &AdminState, actor: Actor, caller: Caller, parts: &Parts) -> Self {
        let path = parts.uri.path();
        let original = parts.extensions.get::<OriginalUri>();
        let mount = original.and_then(|OriginalUri(uri)| uri.path().strip_suffix(path));
        Self {
            issuer: state.issuer.by(actor),
            caller,
            is_own_account: state.is_own_account,
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
