use std::{fmt, net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, FromRequestParts, OriginalUri},
    response::IntoResponse,
};
use http::request::Parts;

use super::refusal::Refusal;
use crate::{
    auth::Authenticator,
    layer::ConsumerRejection,
    manage::{Actor, KeyIssuer, ManageError, ManageErrorKind},
    rate_limit::RateLimits,
    record::{Consumer, KeyId, Scope},
    trace,
};

/// Where a request came from, for the audit.
type Origin = Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

/// The state of the routes. Only the extractors [`Reader`] and [`Writer`] use it.
#[derive(Clone)]
pub(crate) struct Desk {
    issuer: KeyIssuer,
    default_limits: RateLimits,
    pub(crate) read: Option<Scope>,
    pub(crate) write: Option<Scope>,
    /// To change keys outside the caller's rotation chain. `None`: `write` is enough.
    pub(crate) others: Option<Scope>,
    pub(crate) everywhere: Option<Scope>,
    pub(crate) origin: Origin,
    errors: Arc<trace::ErrorLog>,
}

impl Desk {
    /// A state without scopes: each key can read the keys of its own consumer and change those of
    /// its own rotation chain.
    pub(crate) fn new(issuer: KeyIssuer, auth: &Authenticator) -> Self {
        let default_limits = auth.default_rate_limits().clone();
        let issuer = issuer.invalidates(auth.clone());
        let (read, write, others, everywhere) = (None, None, None, None);
        let (origin, errors) = (Arc::new(peer), Arc::default());
        Self { issuer, default_limits, read, write, others, everywhere, origin, errors }
    }

    fn actor(&self, consumer: &Consumer, parts: &Parts) -> Actor {
        let mut actor = Actor::caller(consumer).default_rate_limits(self.default_limits.clone());
        if let Some(scope) = &self.everywhere {
            actor = actor.everywhere_with(scope.clone());
        }
        if let Some(scope) = &self.others {
            actor = actor.other_keys_scope(scope.clone());
        }
        match (self.origin)(parts) {
            Some(origin) => actor.from(printable(&origin)),
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

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk")
            .field("issuer", &self.issuer)
            .field("read", &self.read)
            .field("write", &self.write)
            .field("others", &self.others)
            .field("everywhere", &self.everywhere)
            .finish_non_exhaustive()
    }
}

/// A caller with the read scope.
pub(super) struct Reader(Caller);

/// A caller that requests a change. The service checks the write scope, and writes a denial to the
/// audit.
pub(super) struct Writer(Caller);

struct Caller {
    issuer: KeyIssuer,
    key_id: KeyId,
    /// The path prefix under which the routes are nested.
    mount: String,
    errors: Arc<trace::ErrorLog>,
}

impl Reader {
    pub(super) fn issuer(&self) -> &KeyIssuer {
        &self.0.issuer
    }

    pub(super) fn refuse(&self, error: &ManageError) -> Refusal {
        self.0.refuse(error)
    }
}

impl Writer {
    pub(super) fn issuer(&self) -> &KeyIssuer {
        &self.0.issuer
    }

    pub(super) fn refuse(&self, error: &ManageError) -> Refusal {
        self.0.refuse(error)
    }

    /// The path of the key with this id.
    pub(super) fn locate(&self, id: KeyId) -> String {
        self.0.locate(id)
    }
}

impl Caller {
    fn refuse(&self, error: &ManageError) -> Refusal {
        let kinds = [ManageErrorKind::Rng, ManageErrorKind::Store, ManageErrorKind::Overloaded];
        if kinds.contains(&error.kind()) {
            self.errors.warn("key management failed", error, self.issuer.monotonic());
        }
        Refusal::of(error, self.key_id, |id| self.locate(id))
    }

    fn locate(&self, id: KeyId) -> String {
        format!("{}/api-keys/{id}", self.mount)
    }
}

impl FromRequestParts<Desk> for Reader {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, desk: &Desk) -> Result<Self, Denied> {
        let consumer = consumer(parts, desk).await?;
        if let Some(scope) = &desk.read
            && !consumer.has_scope(scope.as_str())
        {
            return Err(Refusal::lacks_scope(consumer.key_id(), scope.clone()).into());
        }
        Ok(Self(Caller::new(desk, desk.actor(&consumer, parts), &consumer, parts)))
    }
}

impl FromRequestParts<Desk> for Writer {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, desk: &Desk) -> Result<Self, Denied> {
        let consumer = consumer(parts, desk).await?;
        let actor = desk.actor(&consumer, parts);
        let actor = match &desk.write {
            Some(scope) => actor.requires(scope.clone()),
            None => actor,
        };
        Ok(Self(Caller::new(desk, actor, &consumer, parts)))
    }
}

async fn consumer(parts: &mut Parts, desk: &Desk) -> Result<Consumer, Denied> {
    <Consumer as FromRequestParts<Desk>>::from_request_parts(parts, desk)
        .await
        .map_err(Denied::Unguarded)
}

impl Caller {
    fn new(desk: &Desk, actor: Actor, consumer: &Consumer, parts: &Parts) -> Self {
        let path = parts.uri.path();
        let original = parts.extensions.get::<OriginalUri>();
        let mount = original.and_then(|OriginalUri(uri)| uri.path().strip_suffix(path));
        Self {
            issuer: desk.issuer.by(actor),
            key_id: consumer.key_id(),
            mount: mount.unwrap_or_default().to_owned(),
            errors: Arc::clone(&desk.errors),
        }
    }
}

/// Why an extractor failed.
#[derive(Debug)]
pub(super) enum Denied {
    /// No `ApiKeyLayer` authenticated the request.
    Unguarded(ConsumerRejection),
    Refused(Refusal),
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> axum::response::Response {
        match self {
            Self::Unguarded(rejection) => rejection.into_response(),
            Self::Refused(refusal) => refusal.into_response(),
        }
    }
}
