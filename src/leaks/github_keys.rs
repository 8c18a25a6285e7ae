use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::HeaderValue;
use tokio::sync::Mutex as AsyncMutex;

use super::{
    PublicKey, PublicKeySet, PublicKeys, PublicKeysError, PublicKeysErrorKind, fetch::Source,
};
use crate::{
    clock::{Clock, SystemClock},
    tls::Client as Tls,
};

const GITHUB: &str = "https://api.github.com/meta/public_keys/secret_scanning";
/// How long the keys are used without being fetched again, so that one that was withdrawn ends.
const FRESH: Duration = Duration::from_secs(86_400);
/// How often they are fetched at most: anyone can send an identifier that is not among them.
const PAUSE: Duration = Duration::from_secs(60);

/// The public keys that GitHub publishes, fetched over HTTPS when they are first needed.
///
/// They are fetched again after a day, and when a delivery names a key that is not among them, at most
/// once a minute. If that fails, the keys that are known go on being used. The request has 8 seconds,
/// follows no redirects and uses no proxy.
///
/// ```
/// use tower_api_key::leaks::GitHubPublicKeys;
///
/// let keys = GitHubPublicKeys::new();
/// // More requests an hour from an address that it shares with others: a token without any scopes.
/// let token = std::env::var("GITHUB_TOKEN").ok();
/// let keys = match &token {
///     Some(token) => keys.bearer_token(token)?,
///     None => keys,
/// };
/// # let _ = keys;
/// # Ok::<(), tower_api_key::leaks::PublicKeysError>(())
/// ```
pub struct GitHubPublicKeys {
    source: Source,
    clock: Arc<dyn Clock>,
    cache: Arc<Cache>,
}

#[derive(Default)]
struct Cache {
    state: Mutex<State>,
    /// Held while the keys are fetched.
    turn: AsyncMutex<()>,
}

#[derive(Clone, Default)]
struct State {
    keys: Option<PublicKeySet>,
    fetched_at: Duration,
    /// When they were last asked for, in monotonic time.
    tried_at: Option<Duration>,
    has_failed: bool,
}

impl State {
    fn is_fresh(&self, now: Duration) -> bool {
        self.keys.is_some() && now.saturating_sub(self.fetched_at) < FRESH
    }

    fn may_fetch(&self, now: Duration) -> bool {
        self.tried_at.is_none_or(|at| now.saturating_sub(at) >= PAUSE)
    }

    fn get(&self, identifier: &str) -> Option<PublicKey> {
        self.keys.as_ref()?.get(identifier).cloned()
    }
}

impl Cache {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GitHubPublicKeys {
    /// The keys of github.com.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Source::at(GITHUB).unwrap_or_default())
    }

    /// The keys at another `https` URL, in the form of GitHub's: of a server of your own that mirrors
    /// them, for instance.
    ///
    /// # Errors
    ///
    /// [`Invalid`](PublicKeysErrorKind::Invalid) when it is not such a URL.
    pub fn at(url: &str) -> Result<Self, PublicKeysError> {
        let invalid = PublicKeysError::new(PublicKeysErrorKind::Invalid);
        let problem = "the URL of public keys must begin with https:// and have no user";
        Source::at(url).map(Self::of).ok_or_else(|| invalid.because(problem))
    }

    fn of(source: Source) -> Self {
        Self { source, clock: Arc::new(SystemClock::new()), cache: Arc::default() }
    }

    /// Sends this token with the request, as `Authorization: Bearer`. Default: none, with which GitHub
    /// answers 60 requests an hour for each address.
    ///
    /// # Errors
    ///
    /// [`Invalid`](PublicKeysErrorKind::Invalid) when it has characters that a header cannot have.
    pub fn bearer_token(mut self, token: &str) -> Result<Self, PublicKeysError> {
        let header = HeaderValue::try_from(format!("Bearer {token}"));
        let mut header = header.map_err(|_| {
            let invalid = PublicKeysError::new(PublicKeysErrorKind::Invalid);
            invalid.because("the token must have no line breaks or other control characters")
        })?;
        header.set_sensitive(true);
        self.source.authorization = Some(header);
        Ok(self)
    }

    /// Also trusts the certificates in this PEM text, of the server or of who signed its certificate.
    /// Default: the authorities that browsers trust.
    ///
    /// # Errors
    ///
    /// [`Invalid`](PublicKeysErrorKind::Invalid) when there is no certificate, or a malformed one.
    pub fn trust(mut self, pem: &[u8]) -> Result<Self, PublicKeysError> {
        let certificates = Tls::certificates(pem).ok_or_else(|| {
            let invalid = PublicKeysError::new(PublicKeysErrorKind::Invalid);
            invalid.because("not certificates in PEM")
        })?;
        self.source.tls = Some(Tls::new(&certificates));
        Ok(self)
    }

    /// The time source. Default: [`SystemClock`].
    #[must_use]
    pub fn clock(self, clock: impl Clock) -> Self {
        Self { clock: Arc::new(clock), ..self }
    }
}

impl Default for GitHubPublicKeys {
    fn default() -> Self {
        Self::new()
    }
}

impl PublicKeys for GitHubPublicKeys {
    async fn find(&self, identifier: &str) -> Result<Option<PublicKey>, PublicKeysError> {
        let now = self.clock.monotonic();
        let known = self.cache.state().clone();
        let found = known.get(identifier);
        if found.is_some() && known.is_fresh(now) {
            return Ok(found);
        }
        if known.may_fetch(now) {
            let (source, cache) = (self.source.clone(), Arc::clone(&self.cache));
            // In a task of its own: a client that hangs up must not keep the keys from being fetched.
            let refreshed = tokio::spawn(refresh(source, cache, now)).await;
            refreshed.map_err(|error| unavailable().because(error))??;
        } else {
            // It may be under way.
            drop(self.cache.turn.lock().await);
        }
        let state = self.cache.state();
        match state.get(identifier) {
            None if state.has_failed || state.keys.is_none() => {
                Err(unavailable()
                    .because("the last attempt failed, and was less than a minute ago"))
            }
            found => Ok(found),
        }
    }
}

/// Fetches the keys, unless another request has just done so. An error only if there are none.
async fn refresh(source: Source, cache: Arc<Cache>, now: Duration) -> Result<(), PublicKeysError> {
    let _turn = cache.turn.lock().await;
    {
        let mut state = cache.state();
        if !state.may_fetch(now) {
            return Ok(());
        }
        state.tried_at = Some(now);
    }
    let fetched = source.fetch().await.and_then(|json| PublicKeySet::from_json(&json));
    let mut state = cache.state();
    state.has_failed = fetched.is_err();
    match fetched {
        Ok(keys) => {
            state.keys = Some(keys);
            state.fetched_at = now;
            Ok(())
        }
        Err(_) if state.keys.is_some() => Ok(()),
        Err(error) => Err(error),
    }
}

fn unavailable() -> PublicKeysError {
    PublicKeysError::new(PublicKeysErrorKind::Unavailable)
}

impl fmt::Debug for GitHubPublicKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitHubPublicKeys").field("source", &self.source).finish_non_exhaustive()
    }
}
