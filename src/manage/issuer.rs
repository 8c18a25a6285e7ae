use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Actor, ManageError,
    admission::{PerConsumer, Turn},
    audit,
    denials::Denials,
    erased::{ErasedKeys, ErasedTransaction},
    new_key::whole_micros,
};
use crate::{
    clock::{Clock, SystemClock},
    key::{EntropySource, KeyFormat, SystemEntropy},
    record::{KeyAction, KeyEvent, KeyId, KeyRecord},
    store::{EventPage, EventQuery, Invalidate, KeyPage, KeyQuery, ListedKey, ManageKeys},
};

/// What a key that makes keys may make of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) keys_per_consumer: usize,
    pub(super) rotations_per_hour: usize,
}

/// Enough for a customer who gives each of their own customers a key, and few enough to be listed,
/// cached and revoked in a second.
const KEYS_PER_CONSUMER: usize = 1_000;

/// Enough to try a rotation out, and more than any schedule takes.
const ROTATIONS_PER_HOUR: usize = 10;

impl Default for Bounds {
    fn default() -> Self {
        Self { keys_per_consumer: KEYS_PER_CONSUMER, rotations_per_hour: ROTATIONS_PER_HOUR }
    }
}

/// Issues keys and answers for them: lists, changes, rotates and revokes them.
///
/// Cheap to clone. See the [module](crate::manage) for the rules and an example.
#[derive(Clone)]
pub struct KeyIssuer {
    pub(super) store: Arc<dyn ErasedKeys>,
    pub(super) format: KeyFormat,
    pub(super) entropy: Arc<dyn EntropySource>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) actor: Actor,
    /// Shared by all clones: what one key tries counts together, whichever face it comes through.
    pub(super) denials: Arc<Denials>,
    pub(super) bounds: Bounds,
    caches: Vec<Arc<dyn Invalidate>>,
    /// What the consumers of calling keys have under way.
    admission: Arc<PerConsumer>,
    /// The pages that are read and rendered for them.
    #[cfg(feature = "admin")]
    pages: Arc<PerConsumer>,
}

/// What a consumer may have under way at once. Less than any store has connections for, so that one
/// consumer leaves some.
const MAX_PER_CONSUMER: usize = 2;
/// A page costs a thousand times what a look-up costs: reading, checking and writing up to 1 MiB.
#[cfg(feature = "admin")]
const MAX_PAGES_PER_CONSUMER: usize = 1;
const WAIT: Duration = Duration::from_secs(1);

impl KeyIssuer {
    /// Issues keys of `format` into `store`, for an operator called `application`.
    pub fn new(store: impl ManageKeys, format: KeyFormat) -> Self {
        Self {
            store: Arc::new(store),
            format,
            entropy: Arc::new(SystemEntropy),
            clock: Arc::new(SystemClock::new()),
            actor: Actor::operator("application"),
            denials: Arc::default(),
            bounds: Bounds::default(),
            caches: Vec::new(),
            admission: Arc::new(PerConsumer::new(MAX_PER_CONSUMER, WAIT)),
            #[cfg(feature = "admin")]
            pages: Arc::new(PerConsumer::new(MAX_PAGES_PER_CONSUMER, WAIT)),
        }
    }

    /// Tells `cache` of every change at once: usually the
    /// [`Authenticator`](crate::Authenticator) of this process.
    #[must_use]
    pub fn invalidates(mut self, cache: impl Invalidate + 'static) -> Self {
        self.caches.push(Arc::new(cache));
        self
    }

    /// Where randomness comes from. Default: [`SystemEntropy`].
    #[must_use]
    pub fn entropy(self, entropy: impl EntropySource) -> Self {
        Self { entropy: Arc::new(entropy), ..self }
    }

    /// Where time comes from. Default: [`SystemClock`].
    #[must_use]
    pub fn clock(self, clock: impl Clock) -> Self {
        Self { clock: Arc::new(clock), ..self }
    }

    /// The most keys of a consumer that are neither revoked nor expired, where a
    /// [key](Actor::caller) asks for another one, and the most that are made for a consumer in an hour,
    /// those that have ended included. Operators and imports are not bound. Default: 1,000, enough for a
    /// customer who gives each of their own customers a key, and few enough to be listed and revoked
    /// in a second.
    ///
    /// Rotations stop at twice as many, so that each of the keys can be replaced while it goes on
    /// working.
    #[must_use]
    pub fn max_keys_per_consumer(mut self, keys: usize) -> Self {
        self.bounds.keys_per_consumer = keys;
        self
    }

    /// How often a key can be rotated in an hour, its successors included, where a
    /// [key](Actor::caller) asks for it. Operators are not bound. Default: 10, more than any schedule
    /// takes.
    #[must_use]
    pub fn max_rotations_per_hour(mut self, rotations: usize) -> Self {
        self.bounds.rotations_per_hour = rotations;
        self
    }

    /// The same issuer at the service of `actor`.
    #[must_use]
    pub fn by(&self, actor: Actor) -> Self {
        Self { actor, ..self.clone() }
    }

    /// The format of the keys that it issues.
    #[must_use]
    pub const fn format(&self) -> &KeyFormat {
        &self.format
    }

    /// The key with this id, and when it was last used.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::ManageErrorKind::NotFound) when there is none that is the actor's
    /// business, or when the store does not answer.
    pub async fn get(&self, id: KeyId) -> Result<ListedKey, ManageError> {
        let _turn = self.turn().await?;
        self.get_now(id).await
    }

    async fn get_now(&self, id: KeyId) -> Result<ListedKey, ManageError> {
        let record = self.store.get(id).await?.filter(|record| self.sees(&record.consumer_id));
        let record = record.ok_or_else(ManageError::no_such_key)?;
        let last_used_at = self.store.last_used_at(id).await?;
        Ok(ListedKey::new(record, last_used_at))
    }

    /// A page of the keys that are the actor's business, the newest first.
    ///
    /// # Errors
    ///
    /// [`Invalid`](super::ManageErrorKind::Invalid) for a page of no keys or of more than 1,000, or
    /// when the store does not answer.
    pub async fn list(&self, query: &KeyQuery) -> Result<KeyPage, ManageError> {
        check_limit(query.limit)?;
        let _turn = self.turn().await?;
        match (self.actor.tenant(), &query.consumer_id) {
            (Some(own), Some(other)) if own != other => Ok(KeyPage::default()),
            (Some(own), None) => {
                let query = KeyQuery { consumer_id: Some(own.to_owned()), ..query.clone() };
                Ok(self.store.list(&query).await?)
            }
            _ => Ok(self.store.list(query).await?),
        }
    }

    /// A page of the audit of keys that are the actor's business, the newest first.
    ///
    /// To a [caller](super::Actor::caller) that sees one consumer, denied attempts show what they were
    /// aimed at only where that is a key of this consumer.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::ManageErrorKind::NotFound) when it is asked for one key, and there is
    /// none and never was; [`Invalid`](super::ManageErrorKind::Invalid) for a page of no events or
    /// of more than 1,000; or when the store does not answer.
    pub async fn events(&self, query: &EventQuery) -> Result<EventPage, ManageError> {
        check_limit(query.limit)?;
        let _turn = self.turn().await?;
        let own = self.actor.tenant().map(str::to_owned);
        let mut page = match (&own, &query.consumer_id) {
            (Some(own), Some(other)) if own != other => EventPage::default(),
            (Some(own), None) => {
                let query = EventQuery { consumer_id: Some(own.clone()), ..query.clone() };
                self.store.events(&query).await?
            }
            _ => self.store.events(query).await?,
        };
        if let Some(own) = own {
            let denied = |event: &&mut KeyEvent| event.entry.action == KeyAction::Denied;
            for event in page.events.iter_mut().filter(denied) {
                let changes = event.entry.changes.take();
                event.entry.changes = changes.and_then(|changes| audit::shown_to(&own, &changes));
            }
        }
        let is_empty = page.events.is_empty() && page.invalid.is_empty();
        if let Some(id) = query.key_id.filter(|_| is_empty && query.after.is_none()) {
            self.get_now(id).await?;
        }
        Ok(page)
    }

    fn sees(&self, consumer_id: &str) -> bool {
        self.actor.tenant().is_none_or(|own| own == consumer_id)
    }

    /// Runs a change in a task of its own: it is carried through, and caches are told, even when
    /// nobody waits for it any more.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, ManageError>> + Send + 'static,
    ) -> Result<T, ManageError> {
        let turn = self.turn().await?;
        let change = async move {
            // Until it is done, even if its caller no longer waits.
            let _turn = turn;
            change.await
        };
        match tokio::spawn(change).await {
            Ok(outcome) => outcome,
            Err(panicked) => Err(ManageError::failed(panicked)),
        }
    }

    /// `None` for an operator, who is not bounded.
    async fn turn(&self) -> Result<Option<Turn>, ManageError> {
        turn_of(&self.admission, &self.actor).await
    }

    /// To be held while a page is read and rendered. `None` for an operator, who is not bounded.
    #[cfg(feature = "admin")]
    pub(crate) async fn page_turn(&self) -> Result<Option<Turn>, ManageError> {
        turn_of(&self.pages, &self.actor).await
    }

    /// By the monotonic clock.
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

    /// Tells caches of keys that were changed for certain.
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

    pub(super) fn now(&self) -> SystemTime {
        whole_micros(self.clock.now())
    }
}

async fn turn_of(turns: &PerConsumer, actor: &Actor) -> Result<Option<Turn>, ManageError> {
    let Some(caller) = &actor.caller else { return Ok(None) };
    let turn = turns.take(caller.consumer_id()).await;
    turn.map(Some).ok_or_else(ManageError::too_many_at_once)
}

const MAX_LIMIT: usize = 1000;

fn check_limit(limit: usize) -> Result<(), ManageError> {
    if (1..=MAX_LIMIT).contains(&limit) {
        return Ok(());
    }
    Err(ManageError::invalid("limit", "a page has from 1 to 1,000 entries"))
}

impl fmt::Debug for KeyIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyIssuer")
            .field("format", &self.format)
            .field("actor", &self.actor)
            .finish_non_exhaustive()
    }
}
