use std::{
    borrow::Cow,
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Actor, IssuePolicy, ManageError, audit,
    consumer_semaphores::{ConsumerPermit, ConsumerSemaphores},
    creation_bounds::Bounds,
    denials::Denials,
    erased::{ErasedKeys, ErasedTransaction},
    new_key::whole_micros,
};
use crate::{
    auth::Authenticator,
    clock::{Clock, SystemClock},
    key::{AcceptedFormat, EntropySource, KeyFormat, KeyMask, SystemEntropy},
    rate_limit::RateLimits,
    record::{KeyAction, KeyEvent, KeyId, KeyRecord, ScopeCatalog},
    store::{EventPage, EventQuery, KeyPage, KeyQuery, ListedKey, ManageKeys, port::Invalidate},
};

/// The key management service: issues, lists, changes, rotates and revokes keys.
///
/// Cheap to clone. See the [module](crate::manage) for the rules and an example.
#[derive(Clone)]
pub struct KeyIssuer {
    pub(super) store: Arc<dyn ErasedKeys>,
    pub(super) format: KeyFormat,
    /// The formats of all keys that the authenticator accepts.
    pub(super) formats: Arc<[AcceptedFormat]>,
    pub(super) mask: KeyMask,
    pub(super) entropy: Arc<dyn EntropySource>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) actor: Actor,
    /// Shared by all clones, so that the denials of one key are counted together.
    pub(super) denials: Arc<Denials>,
    pub(super) bounds: Bounds,
    /// Of the authenticator, if there is one.
    pub(super) default_limits: Option<RateLimits>,
    pub(super) catalog: Option<ScopeCatalog>,
    policy: Arc<IssuePolicy>,
    policy_override: Option<Arc<str>>,
    caches: Vec<Arc<dyn Invalidate>>,
    /// Limits the concurrent changes and queries of each consumer.
    admission: Arc<ConsumerSemaphores>,
    /// Limits the pages that are read and rendered at once for each consumer.
    #[cfg(feature = "admin")]
    pages: Arc<ConsumerSemaphores>,
}

/// Concurrent changes and queries of a consumer. Fewer than any store has connections, so that one
/// consumer cannot use them all.
const MAX_PER_CONSUMER: usize = 2;
/// A page costs a thousand times as much as a look-up: up to 1 MiB is read, checked and serialized.
#[cfg(feature = "admin")]
const MAX_PAGES_PER_CONSUMER: usize = 1;
const WAIT: Duration = Duration::from_secs(1);

impl Authenticator {
    /// A key management service for `store` whose changes this authenticator applies at once: a key
    /// that it revokes is rejected by the next request of this process, without a [change
    /// feed](crate::auth::Builder::change_feed).
    ///
    /// It issues keys in the format passed to [`builder`](Self::builder), and uses the
    /// authenticator's [clock](crate::auth::Builder::clock) and
    /// [scopes](crate::auth::Builder::scopes). It keeps the authenticator alive.
    ///
    /// ```
    /// # use tower_api_key::{Authenticator, key::KeyFormat, store::MemoryKeyStore};
    /// use tower_api_key::manage::{Expiry, NewKey};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = MemoryKeyStore::new();
    /// # let (auth, _worker) =
    /// #     Authenticator::builder(store.clone(), KeyFormat::new("sk_live_")?).build();
    /// let issuer = auth.issuer(store);
    /// let issued = issuer.issue(NewKey::new("acme", Expiry::Never)).await?;
    /// assert!(auth.check(issued.key.expose_secret().as_bytes()).await.is_ok());
    ///
    /// issuer.revoke(issued.record.id, None).await?;
    /// assert!(auth.check(issued.key.expose_secret().as_bytes()).await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn issuer(&self, store: impl ManageKeys) -> KeyIssuer {
        let issuer = KeyIssuer::new(store, self.format().clone()).invalidates(self.clone());
        let default_limits = Some(self.default_rate_limits().clone());
        let (formats, mask) = (self.formats().into(), self.key_mask());
        let (clock, catalog) = (self.clock(), self.scopes().cloned());
        KeyIssuer { clock, default_limits, catalog, formats, mask, ..issuer }
    }
}

impl KeyIssuer {
    /// Issues keys of `format` into `store`, for an operator called `application`.
    ///
    /// It knows no authenticator: without a change feed, a key that it revokes keeps working for
    /// up to [`fresh`](crate::auth::CachePolicy::fresh). In a process that also authenticates, use
    /// [`Authenticator::issuer`].
    pub fn new(store: impl ManageKeys, format: KeyFormat) -> Self {
        Self {
            store: Arc::new(store),
            formats: [format.clone().into()].into(),
            mask: format.clone().into(),
            format,
            entropy: Arc::new(SystemEntropy),
            clock: Arc::new(SystemClock::new()),
            actor: Actor::operator("application"),
            denials: Arc::default(),
            bounds: Bounds::default(),
            default_limits: None,
            catalog: None,
            policy: Arc::default(),
            policy_override: None,
            caches: Vec::new(),
            admission: Arc::new(ConsumerSemaphores::new(MAX_PER_CONSUMER, WAIT)),
            #[cfg(feature = "admin")]
            pages: Arc::new(ConsumerSemaphores::new(MAX_PAGES_PER_CONSUMER, WAIT)),
        }
    }

    /// Invalidates changed keys in `cache` at once. It is usually the
    /// [`Authenticator`](crate::Authenticator) of this process.
    #[must_use]
    pub fn invalidates(mut self, cache: impl Invalidate + 'static) -> Self {
        self.caches.push(Arc::new(cache));
        self
    }

    /// The source of randomness. Default: [`SystemEntropy`].
    #[must_use]
    pub fn entropy(self, entropy: impl EntropySource) -> Self {
        Self { entropy: Arc::new(entropy), ..self }
    }

    /// The source of time. Default: [`SystemClock`].
    #[must_use]
    pub fn clock(self, clock: impl Clock) -> Self {
        Self { clock: Arc::new(clock), ..self }
    }

    /// How many keys that are neither revoked nor expired a consumer can have, and how many keys
    /// can be made for it in an hour, including those that have ended. It applies when a
    /// [key](Actor::key) issues a key; operators and imports are exempt. Default: 1,000, enough
    /// for a customer who gives each of their own customers a key, and few enough to list and
    /// revoke in a second.
    ///
    /// Rotations are refused at twice as many, so that each key can be replaced while it still
    /// works.
    #[must_use]
    pub fn max_keys_per_consumer(mut self, keys: usize) -> Self {
        self.bounds.keys_per_consumer = keys;
        self
    }

    /// How often a key can be rotated in an hour, including its successors. It applies when a
    /// [key](Actor::key) rotates a key; operators are exempt. Default: 10, more than any
    /// schedule needs.
    #[must_use]
    pub fn max_rotations_per_hour(mut self, rotations: usize) -> Self {
        self.bounds.rotations_per_hour = rotations;
        self
    }

    /// What keys may be issued, by operators and calling keys alike. Default: everything.
    #[must_use]
    pub fn policy(self, policy: impl Into<IssuePolicy>) -> Self {
        Self { policy: Arc::new(policy.into()), ..self }
    }

    /// What keys may be issued, for a form that offers choices.
    pub fn issue_policy(&self) -> &IssuePolicy {
        &self.policy
    }

    /// The same service, which issues and changes keys beyond the [policy](Self::policy) for
    /// `reason`. The audit of each key that exceeds it has the reason and the bounds, as
    /// `policy_override` in its changes.
    ///
    /// Only an operator overrides the policy: it has no effect on what a calling key does, and
    /// [`by`](Self::by) ends it.
    #[must_use]
    pub fn override_policy(self, reason: &str) -> Self {
        Self { policy_override: Some(reason.into()), ..self }
    }

    pub(super) fn policy_override_reason(&self) -> Option<&str> {
        self.policy_override.as_deref().filter(|_| self.actor.is_operator())
    }

    /// The same service, acting for `actor`.
    #[must_use]
    pub fn by(&self, actor: Actor) -> Self {
        Self { actor, policy_override: None, ..self.clone() }
    }

    /// The format of issued keys.
    #[must_use]
    pub const fn format(&self) -> &KeyFormat {
        &self.format
    }

    /// The key with this id, and when it was last used.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::ManageErrorKind::NotFound) when the key does not exist or the actor may
    /// not manage it, or when the store fails.
    pub async fn get(&self, id: KeyId) -> Result<ListedKey, ManageError> {
        let _turn = self.permit().await?;
        self.get_now(id).await
    }

    pub(super) async fn get_now(&self, id: KeyId) -> Result<ListedKey, ManageError> {
        let record = self.store.get(id).await?.filter(|record| self.sees(&record.consumer_id));
        let record = record.ok_or_else(ManageError::no_such_key)?;
        let last_used_at = self.store.last_used_at(id).await?;
        Ok(ListedKey::new(record, last_used_at))
    }

    /// A page of the keys that the actor may manage, newest first. For a
    /// [member](super::Actor::member) of several consumers, it reads a page of each.
    ///
    /// # Errors
    ///
    /// [`Invalid`](super::ManageErrorKind::Invalid) for a limit of zero or more than 1,000 keys, or
    /// when the store fails.
    pub async fn list(&self, query: &KeyQuery) -> Result<KeyPage, ManageError> {
        check_limit(query.limit)?;
        let _turn = self.permit().await?;
        match (self.tenants(), &query.consumer_id) {
            (Some(own), Some(asked)) if !own.contains(&**asked) => Ok(KeyPage::default()),
            (Some(own), None) => self.list_each(&own, query).await,
            _ => Ok(self.store.list(query).await?),
        }
    }

    /// A page of the audit of keys that the actor may manage, newest first.
    ///
    /// To an actor that does not see all consumers, denied attempts show their target only if it is
    /// a key of a consumer that it sees.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::ManageErrorKind::NotFound) when the query names one key that does not
    /// exist and never did; [`Invalid`](super::ManageErrorKind::Invalid) for a limit of zero or
    /// more than 1,000 events; or when the store fails.
    pub async fn events(&self, query: &EventQuery) -> Result<EventPage, ManageError> {
        check_limit(query.limit)?;
        let _turn = self.permit().await?;
        let own = self.tenants();
        let mut page = match (&own, &query.consumer_id) {
            (Some(own), Some(asked)) if !own.contains(&**asked) => EventPage::default(),
            (Some(own), None) => self.events_of_each(own, query).await?,
            _ => self.store.events(query).await?,
        };
        if let Some(own) = own {
            let denied = |event: &&mut KeyEvent| event.entry.action == KeyAction::Denied;
            for event in page.events.iter_mut().filter(denied) {
                let changes = event.entry.changes.take();
                let is_seen = |consumer_id: &str| own.contains(consumer_id);
                event.entry.changes =
                    changes.and_then(|changes| audit::shown_to(is_seen, &changes));
            }
        }
        let is_empty = page.events.is_empty() && page.invalid.is_empty();
        if let Some(id) = query.key_id.filter(|_| is_empty && query.after.is_none()) {
            self.get_now(id).await?;
        }
        Ok(page)
    }

    fn sees(&self, consumer_id: &str) -> bool {
        self.tenants().is_none_or(|own| own.contains(consumer_id))
    }

    /// Runs a change in a task of its own, so that it completes, and caches are invalidated, even
    /// if the caller's future is dropped.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, ManageError>> + Send + 'static,
    ) -> Result<T, ManageError> {
        let permit = self.permit().await?;
        let change = async move {
            // The permit is held until the change is done, even if the caller's future is dropped.
            let _turn = permit;
            change.await
        };
        match tokio::spawn(change).await {
            Ok(outcome) => outcome,
            Err(panicked) => Err(ManageError::failed(panicked)),
        }
    }

    /// A permit for a change or a query; `None` for an operator, who is exempt.
    pub(super) async fn permit(&self) -> Result<Option<ConsumerPermit>, ManageError> {
        turn_of(&self.admission, &self.actor).await
    }

    /// A permit to be held while a page is read and rendered; `None` for an operator, who is
    /// exempt.
    #[cfg(feature = "admin")]
    pub(crate) async fn page_turn(&self) -> Result<Option<ConsumerPermit>, ManageError> {
        turn_of(&self.pages, &self.actor).await
    }

    /// The monotonic time.
    #[cfg(feature = "admin")]
    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    pub(super) async fn begin(&self) -> Result<Box<dyn ErasedTransaction>, ManageError> {
        Ok(self.store.begin().await?)
    }

    pub(super) fn invalidate<'r>(&self, changed: impl IntoIterator<Item = &'r KeyRecord>) {
        for record in changed {
            self.caches.iter().for_each(|cache| cache.invalidate(&record.key_hash));
        }
    }

    /// Passes committed changes to the caches. A revocation can be applied as it is; other changes
    /// only invalidate.
    pub(super) fn tell<'r>(&self, changed: impl IntoIterator<Item = &'r KeyRecord>) {
        for record in changed {
            self.caches.iter().for_each(|cache| match record.revoked_at {
                Some(_) => cache.revoked(record),
                None => cache.invalidate(&record.key_hash),
            });
        }
    }

    pub(super) fn invalidate_all(&self) {
        self.caches.iter().for_each(|cache| cache.invalidate_all());
    }

    pub(crate) fn now(&self) -> SystemTime {
        whole_micros(self.clock.now())
    }
}

async fn turn_of(
    permits: &ConsumerSemaphores,
    actor: &Actor,
) -> Result<Option<ConsumerPermit>, ManageError> {
    let key = match (actor.as_member(), actor.consumer_id()) {
        (Some(member), _) => member.admission_key().into(),
        (None, Some(consumer_id)) => Cow::Borrowed(consumer_id),
        (None, None) => return Ok(None),
    };
    let permit = permits.take(&key).await;
    permit.map(Some).ok_or_else(ManageError::too_many_at_once)
}

/// Maximum keys or events of a page.
pub(crate) const MAX_PAGE_LIMIT: u16 = 1000;

/// Whether a page may have this limit: 1 to 1,000.
pub(crate) fn is_page_limit(limit: usize) -> bool {
    (1..=usize::from(MAX_PAGE_LIMIT)).contains(&limit)
}

pub(super) fn check_limit(limit: usize) -> Result<(), ManageError> {
    if is_page_limit(limit) {
        return Ok(());
    }
    Err(ManageError::invalid("limit", "must be from 1 to 1,000"))
}

impl fmt::Debug for KeyIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyIssuer")
            .field("format", &self.format)
            .field("actor", &self.actor)
            .finish_non_exhaustive()
    }
}
