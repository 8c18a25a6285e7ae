use std::{
    error::Error,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    clock::{Clock, SystemClock},
    key::{ApiKey, EntropySource, KeyFormat, RngError, SystemEntropy},
    rate_limit::RateLimits,
    record::{KeyId, KeyRecord, Metadata, Scopes},
    store::{Invalidate, ManageKeys, StoreError, StoreErrorKind},
};

/// Hashes of 254 bits do not collide; identifiers of 74 random bits hardly do. More conflicts than
/// this mean a generator that repeats itself.
const MAX_ATTEMPTS: usize = 3;

/// Makes keys and stores their hashes.
///
/// See the [module](crate::manage) for an example.
pub struct KeyIssuer<S> {
    store: S,
    format: KeyFormat,
    entropy: Box<dyn EntropySource>,
    clock: Box<dyn Clock>,
    caches: Vec<Arc<dyn Invalidate>>,
}

impl<S: ManageKeys> KeyIssuer<S> {
    /// Issues keys of `format` into `store`.
    pub fn new(store: S, format: KeyFormat) -> Self {
        Self {
            store,
            format,
            entropy: Box::new(SystemEntropy),
            clock: Box::new(SystemClock::new()),
            caches: Vec::new(),
        }
    }

    /// Tells `cache` of every new key, in case it has heard of it as unknown: usually the
    /// [`Authenticator`](crate::Authenticator) of this process.
    #[must_use]
    pub fn invalidates(mut self, cache: impl Invalidate + 'static) -> Self {
        self.caches.push(Arc::new(cache));
        self
    }

    /// Where randomness comes from. Default: [`SystemEntropy`].
    #[must_use]
    pub fn entropy(self, entropy: impl EntropySource) -> Self {
        Self { entropy: Box::new(entropy), ..self }
    }

    /// Where time comes from. Default: [`SystemClock`].
    #[must_use]
    pub fn clock(self, clock: impl Clock) -> Self {
        Self { clock: Box::new(clock), ..self }
    }

    /// Makes a key and stores its hash. The key itself is in the answer and nowhere else.
    ///
    /// # Errors
    ///
    /// When the random number generator or the store fails, or the key asked for makes no sense; no
    /// key exists then that anybody knows.
    pub async fn issue(&self, new: NewKey) -> Result<Issued, IssueError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let issued = self.make(&new)?;
            match self.store.insert(&issued.record).await {
                Ok(()) => {
                    self.caches.iter().for_each(|cache| cache.invalidate(&issued.record.key_hash));
                    return Ok(issued);
                }
                Err(error)
                    if error.kind() == StoreErrorKind::Conflict && attempts < MAX_ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn make(&self, new: &NewKey) -> Result<Issued, IssueError> {
        if new.consumer_id.is_empty() {
            return Err(IssueError(Cause::Invalid("a key stands for somebody: name a consumer")));
        }
        let key = self.format.generate_from(&*self.entropy)?;
        let now = self.clock.now();
        let id = KeyId::generate(now, &*self.entropy)?;
        let mut record = KeyRecord::new(id, key.hash(), new.consumer_id.clone(), now);
        record.key_prefix = self.format.prefix().to_owned();
        record.key_last4 = last4(key.expose_secret()).to_owned();
        record.name.clone_from(&new.name);
        record.scopes = new.scopes.clone();
        record.rate_limits.clone_from(&new.rate_limits);
        record.metadata = new.metadata.clone();
        record.created_by.clone_from(&new.created_by);
        record.not_before = new.not_before;
        record.expires_at = new.expiry.reckon(now)?;
        Ok(Issued { key, record })
    }
}

/// The end of the year 9999, beyond which databases and programs disagree on time.
fn latest() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

fn last4(key: &str) -> &str {
    key.get(key.len().saturating_sub(4)..).unwrap_or_default()
}

impl<S: fmt::Debug> fmt::Debug for KeyIssuer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyIssuer")
            .field("store", &self.store)
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

/// What a new key shall be.
#[derive(Clone, Debug)]
#[must_use]
pub struct NewKey {
    consumer_id: String,
    name: Option<String>,
    scopes: Scopes,
    rate_limits: Option<RateLimits>,
    metadata: Metadata,
    created_by: Option<String>,
    not_before: Option<SystemTime>,
    expiry: Expiry,
}

#[derive(Clone, Copy, Debug)]
enum Expiry {
    Never,
    At(SystemTime),
    In(Duration),
}

impl Expiry {
    fn reckon(self, now: SystemTime) -> Result<Option<SystemTime>, IssueError> {
        let end = match self {
            Self::Never => return Ok(None),
            Self::At(at) => Some(at),
            Self::In(lifetime) => now.checked_add(lifetime),
        };
        let beyond = "it would expire after the year 9999: leave the expiry out if it never shall";
        match end.filter(|&end| end <= latest()) {
            Some(end) => Ok(Some(end)),
            None => Err(IssueError(Cause::Invalid(beyond))),
        }
    }
}

impl NewKey {
    /// A key of `consumer_id`, without scopes, that works at once and never expires.
    pub fn new(consumer_id: impl Into<String>) -> Self {
        Self {
            consumer_id: consumer_id.into(),
            name: None,
            scopes: Scopes::default(),
            rate_limits: None,
            metadata: Metadata::default(),
            created_by: None,
            not_before: None,
            expiry: Expiry::Never,
        }
    }

    /// What its owner calls it.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// What it may do.
    pub fn scopes(self, scopes: Scopes) -> Self {
        Self { scopes, ..self }
    }

    /// How often it may be used. Without, the authenticator's default applies.
    pub fn rate_limits(self, limits: impl Into<RateLimits>) -> Self {
        Self { rate_limits: Some(limits.into()), ..self }
    }

    /// What the application wants to know of it.
    pub fn metadata(self, metadata: Metadata) -> Self {
        Self { metadata, ..self }
    }

    /// Who issues it.
    pub fn created_by(self, who: impl Into<String>) -> Self {
        Self { created_by: Some(who.into()), ..self }
    }

    /// When it begins to work.
    pub fn not_before(self, at: SystemTime) -> Self {
        Self { not_before: Some(at), ..self }
    }

    /// When it stops working.
    pub fn expires_at(self, at: SystemTime) -> Self {
        Self { expiry: Expiry::At(at), ..self }
    }

    /// How long it works, from when it is issued by the issuer's clock.
    pub fn expires_in(self, lifetime: Duration) -> Self {
        Self { expiry: Expiry::In(lifetime), ..self }
    }
}

/// A new key, and what the store knows of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Issued {
    /// The key, for its owner. This is the only copy.
    pub key: ApiKey,
    /// Its record.
    pub record: KeyRecord,
}

/// No key was issued.
#[derive(Debug)]
pub struct IssueError(Cause);

#[derive(Debug)]
enum Cause {
    Rng(RngError),
    Store(StoreError),
    Invalid(&'static str),
}

impl IssueError {
    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> IssueErrorKind {
        match self.0 {
            Cause::Rng(_) => IssueErrorKind::Rng,
            Cause::Store(_) => IssueErrorKind::Store,
            Cause::Invalid(_) => IssueErrorKind::Invalid,
        }
    }
}

impl From<RngError> for IssueError {
    fn from(error: RngError) -> Self {
        Self(Cause::Rng(error))
    }
}

impl From<StoreError> for IssueError {
    fn from(error: StoreError) -> Self {
        Self(Cause::Store(error))
    }
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Cause::Invalid(why) => write!(f, "no key was issued: {why}"),
            _ => f.write_str("no key was issued"),
        }
    }
}

impl Error for IssueError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Cause::Rng(error) => Some(error),
            Cause::Store(error) => Some(error),
            Cause::Invalid(_) => None,
        }
    }
}

/// Why no key was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IssueErrorKind {
    /// The random number generator failed.
    Rng,
    /// The store failed.
    Store,
    /// What was asked for makes no sense: no consumer, or an expiry beyond the year 9999.
    Invalid,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryKeyStore;

    async fn refusal(new: NewKey) -> IssueError {
        let store = MemoryKeyStore::new();
        let format = KeyFormat::new("sk_test_").unwrap();
        KeyIssuer::new(store, format).issue(new).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_lifetime_beyond_all_time_is_an_error_and_not_for_ever() {
        for new in [
            NewKey::new("acme").expires_in(Duration::MAX),
            NewKey::new("acme").expires_in(Duration::from_secs(400_000_000_000)),
            NewKey::new("acme").expires_at(latest() + Duration::from_secs(1)),
        ] {
            let error = refusal(new).await;
            assert_eq!(error.kind(), IssueErrorKind::Invalid);
            assert!(error.to_string().contains("year 9999"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_key_of_nobody_is_an_error() {
        assert_eq!(refusal(NewKey::new("")).await.kind(), IssueErrorKind::Invalid);
    }
}
