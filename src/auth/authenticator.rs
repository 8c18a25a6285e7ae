use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::timeout;

use super::{
    Admission, Attempt, Event, Health, PendingAttempt, RateLimitStatus, Rejection, RejectionKind,
    StoreHealth,
    attempt::Charge,
    authenticator_id::AuthenticatorId,
    cache::{Entry, Peek},
    canary::CanaryRecorder,
    catch_panic::{Panicked, catch_request_panic},
    client::{Client, ClientCopy},
    core::Core,
    lookup::{Known, Presented},
    use_reports::KeepsWorkerRunning,
};
use crate::{
    clock::Clock,
    key::{AcceptedFormat, KeyFormat, KeyHash, KeyMask, is_bearer_symbol},
    rate_limit::{
        RateLimits,
        port::{Check, Decisions},
    },
    record::{Consumer, KeyId, KeyRecord, KeyStatus, ScopeCatalog, UseRejection},
    store::{StoreError, StoreErrorKind, port::Invalidate},
    trace,
};

/// Decides which keys are let in. Cheap to clone; clones share one cache.
///
/// See the [module](crate::auth) for the rules and an example.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

pub(super) struct Inner {
    pub(super) format: KeyFormat,
    pub(super) formats: Box<[AcceptedFormat]>,
    /// The characters of keys that no bearer token has; usually none.
    pub(super) symbols_beyond_bearer: Box<[u8]>,
    pub(super) core: Arc<Core>,
    pub(super) mask: KeyMask,
    /// The worker ends with it.
    pub(super) _running: KeepsWorkerRunning,
    pub(super) canaries: CanaryRecorder,
}

impl Authenticator {
    pub(super) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// `client` is asked only if the cache has not let the key in, or if the key does not work from
    /// everywhere.
    pub(crate) fn evaluate(&self, key: &[u8], charge: Charge, client: &impl Client) -> Attempt {
        catch_request_panic(|| self.evaluate_or_panic(key, charge, client))
            .unwrap_or_else(|Panicked| Attempt::Reject(Rejection::new(RejectionKind::Internal)))
    }

    fn evaluate_or_panic(&self, key: &[u8], charge: Charge, client: &impl Client) -> Attempt {
        let Some(hash) = self.0.hash(key) else {
            return Attempt::Reject(Rejection::new(RejectionKind::Malformed));
        };
        let now = self.0.core.clock.monotonic();
        // A key that is not active takes the same path as an unknown one, so that timing cannot
        // distinguish them.
        let charge_active = |entry: &Arc<Entry>| {
            let is_active = self.0.core.status(entry, now) == KeyStatus::Active;
            is_active.then(|| self.0.charge(entry, charge, client, now))
        };
        if let Some(attempt) = self.0.core.cache.get_hot(&hash, now, charge_active) {
            self.0.core.metrics().hit();
            return attempt;
        }
        self.evaluate_beyond_hot(key, hash, charge, client, now)
    }

    fn evaluate_beyond_hot(
        &self,
        key: &[u8],
        hash: KeyHash,
        charge: Charge,
        client: &impl Client,
        now: Duration,
    ) -> Attempt {
        match self.0.core.peek(&hash, now) {
            Peek::Fresh(entry) => {
                self.0.core.metrics().hit();
                if self.0.core.status(&entry, now) != KeyStatus::Active {
                    self.0.core.lookup.unknown_keys.take_as_long_as_a_guess(client.network(), now);
                }
                self.0.evaluate(&entry, charge, client, now)
            }
            Peek::Absent(canary) => {
                self.0.core.metrics().hit();
                let rejection = self.0.core.lookup.unknown_keys.guess(client.network(), now);
                self.0.canaries.note(canary, client, now);
                Attempt::Reject(rejection)
            }
            // This was not a guess, even if the key is gone by now.
            Peek::Stale(_) => self.look_up(hash, charge, ClientCopy::of(client).uncounted(), None),
            Peek::Miss => {
                let legacy = self.0.core.legacy.as_ref();
                let presented = legacy.and_then(|legacy| legacy.presented(&self.0.formats, key));
                self.look_up(hash, charge, ClientCopy::of(client), presented)
            }
        }
    }

    fn look_up(
        &self,
        hash: KeyHash,
        charge: Charge,
        client: ClientCopy,
        presented: Option<Arc<Presented>>,
    ) -> Attempt {
        self.0.core.metrics().miss();
        let inner = Arc::clone(&self.0);
        Attempt::Pending(PendingAttempt::of(inner.look_up(hash, charge, client, presented)))
    }

    /// Removes the key with this hash from the cache, including a cached absence: the next request
    /// asks the store, and the result of a query in progress is not kept.
    pub fn invalidate(&self, hash: &KeyHash) {
        self.0.core.invalidate(hash);
    }

    /// Empties the cache. Rate limits keep their state.
    pub fn invalidate_all(&self) {
        self.0.core.invalidate_all();
    }

    /// The limits of keys that have neither limits of their own nor a plan.
    #[must_use]
    pub fn default_rate_limits(&self) -> &RateLimits {
        &self.0.core.limits.default
    }

    /// The [scopes of the service](super::Builder::scopes), if they are known.
    #[must_use]
    pub fn scopes(&self) -> Option<&ScopeCatalog> {
        self.0.core.lookup.catalog.as_ref()
    }

    /// The current health, from what is already known: no query is made.
    #[must_use]
    pub fn health(&self) -> Health {
        let core = &self.0.core;
        let store = match core.lookup.is_store_up() {
            None => StoreHealth::Unknown,
            Some(true) => StoreHealth::Up,
            Some(false) => StoreHealth::Down,
        };
        let feed = &core.feed;
        let limiter = core.limits.meters.limiter.health();
        Health { store, feed: feed.health(), limiter, ignored_messages: feed.ignored() }
    }

    /// Updates the metrics that are not events: the gauges, and the count of cache hits. The
    /// [`Worker`](super::Worker) does so every second; call this before the metrics are read, and
    /// they are exact. Feature `metrics`.
    #[cfg(feature = "metrics")]
    pub fn refresh_metrics(&self) {
        self.0.core.refresh_metrics();
    }

    /// Finds and masks keys of the formats that are accepted here, for a
    /// [`MaskingWriter`](crate::key::MaskingWriter).
    #[must_use]
    pub fn key_mask(&self) -> KeyMask {
        self.0.mask.clone()
    }

    pub(crate) fn mask(&self) -> &KeyMask {
        &self.0.mask
    }

    pub(crate) fn id(&self) -> AuthenticatorId {
        AuthenticatorId::of(&self.0.core)
    }

    pub(super) fn core(&self) -> &Core {
        &self.0.core
    }

    /// The format of keys issued here.
    pub(crate) fn format(&self) -> &KeyFormat {
        &self.0.format
    }

    /// The formats of the keys that are accepted here.
    pub(crate) fn formats(&self) -> &[AcceptedFormat] {
        &self.0.formats
    }

    /// Whether `text` is a well-formed key that could not be anything else: it has a prefix or a
    /// checksum.
    pub(crate) fn recognizes(&self, text: &[u8]) -> bool {
        self.0.formats.iter().any(|format| format.is_distinctive() && format.parse(text).is_ok())
    }

    /// Whether keys may have `byte`, other than as padding at their end.
    pub(crate) fn is_key_symbol(&self, byte: u8) -> bool {
        is_bearer_symbol(byte) || self.0.symbols_beyond_bearer.contains(&byte)
    }

    /// Whether `text` is a well-formed key, or begins like one.
    pub(crate) fn resembles(&self, text: &[u8]) -> bool {
        let mut formats = self.0.formats.iter();
        text.starts_with(self.0.format.prefix().as_bytes())
            || formats.any(|format| format.parse(text).is_ok())
    }

    /// Admits a consumer of this authenticator again, during the same request, without a charge.
    pub(crate) fn readmit(&self, consumer: Consumer) -> Attempt {
        let check = catch_request_panic(|| {
            let meter = consumer.meter()?;
            meter.ask(None, meter.now())
        });
        let admit = |decisions| Admission(RateLimitStatus::new(consumer, decisions));
        match check {
            Err(Panicked) => Attempt::Reject(Rejection::new(RejectionKind::Internal)),
            Ok(None) => Attempt::Admit(admit(Decisions::default())),
            Ok(Some(Check::Ready(decisions))) => Attempt::Admit(admit(decisions)),
            Ok(Some(Check::Pending(decisions))) => {
                let admit = async move { Ok(admit(decisions.await)) };
                Attempt::Pending(PendingAttempt::of(admit))
            }
        }
    }

    /// The time source.
    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.0.core.clock)
    }

    /// The wall clock of this authenticator.
    pub(crate) fn wall(&self) -> SystemTime {
        self.0.core.clock.now()
    }

    /// Reports a rejected request to the observer.
    pub(crate) fn rejected(&self, rejection: &Rejection) {
        let (kind, key_id) = (rejection.kind(), rejection.key_id());
        trace::debug!(?kind, ?key_id, "request rejected");
        if let (RejectionKind::Revoked | RejectionKind::Expired, Some(key_id)) = (kind, key_id) {
            self.0.core.ended_key_used(key_id, kind);
        }
        self.0.core.observe(&Event::Rejected { kind, key_id });
    }

    /// Reports what a layer in shadow mode decided about a request.
    pub(crate) fn shadowed(&self, would_reject: Option<RejectionKind>, key_id: Option<KeyId>) {
        if let Some(kind) = would_reject {
            self.0.core.request_would_be_rejected(key_id, kind);
        }
        self.0.core.observe(&Event::Shadowed { would_reject, key_id });
    }

    /// Waits for `attempt` no longer than for one look-up.
    pub(crate) fn within_load_deadline(&self, attempt: PendingAttempt) -> PendingAttempt {
        let longest = self.0.core.lookup.longest_load();
        PendingAttempt::of(async move {
            timeout(longest, attempt).await.unwrap_or_else(|_| {
                let late = format!("no decision within {longest:?}");
                let error = StoreError::new(StoreErrorKind::Unavailable).because(late);
                Err(Rejection::store_unavailable(error))
            })
        })
    }

    /// Reports an admitted request to the observer.
    pub(crate) fn admitted(&self, status: &RateLimitStatus) {
        let (consumer, decisions) = (status.consumer(), status.decisions());
        self.0.core.observe(&Event::Admitted { consumer, decisions });
    }
}

impl Invalidate for Authenticator {
    fn invalidate(&self, hash: &KeyHash) {
        Self::invalidate(self, hash);
    }

    fn revoked(&self, record: &KeyRecord) {
        self.0.core.revoked(record);
    }

    fn invalidate_all(&self) {
        Self::invalidate_all(self);
    }
}

impl Inner {
    fn hash(&self, key: &[u8]) -> Option<KeyHash> {
        self.formats.iter().find_map(|format| format.parse(key).ok()).map(|key| key.hash())
    }

    fn evaluate(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        charge: Charge,
        client: &impl Client,
        now: Duration,
    ) -> Attempt {
        let status = self.core.status(entry, now);
        if let Some(rejection) = Rejection::of_status(status, entry.key_id()) {
            self.core.count_rejection(entry, UseRejection::Refused);
            return Attempt::Reject(rejection);
        }
        self.charge(entry, charge, client, now)
    }

    /// Charges a key that is active, if it works for `client`.
    fn charge(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        charge: Charge,
        client: &impl Client,
        now: Duration,
    ) -> Attempt {
        if let Some(places) = &entry.ext.places
            && let Some(refusal) = places.refusal(entry.key_id(), client)
        {
            self.core.count_rejection(entry, UseRejection::Forbidden);
            return Attempt::Reject(self.core.refuse_place(refusal, now));
        }
        let check = entry.ext.meter.ask(charge.units(), now);
        let decided = match check {
            None => self.finish(entry, charge, Decisions::default(), now),
            Some(Check::Ready(decisions)) => self.finish(entry, charge, decisions, now),
            Some(Check::Pending(decisions)) => {
                let (inner, entry) = (Arc::clone(self), Arc::clone(entry));
                return Attempt::Pending(PendingAttempt::of(async move {
                    inner.finish(&entry, charge, decisions.await, now)
                }));
            }
        };
        match decided {
            Ok(admission) => Attempt::Admit(admission),
            Err(rejection) => Attempt::Reject(rejection),
        }
    }

    fn finish(
        &self,
        entry: &Arc<Entry>,
        charge: Charge,
        decisions: Decisions,
        now: Duration,
    ) -> Result<Admission, Rejection> {
        let is_admitted = charge == Charge::Nothing || decisions.is_admitted();
        let rate_limit_status = RateLimitStatus::new(Consumer::of(entry), decisions);
        let rate_limit_status = rate_limit_status.with(entry.notice(now));
        if !is_admitted {
            self.core.count_rejection(entry, UseRejection::Limited);
            return Err(Rejection::rate_limited(rate_limit_status));
        }
        self.core.count_admission(entry, charge, now);
        if rate_limit_status.retirement().is_some() {
            self.core.observe(&Event::RetiredKeyUsed { key_id: entry.key_id() });
        }
        Ok(Admission(rate_limit_status))
    }

    async fn look_up(
        self: Arc<Self>,
        hash: KeyHash,
        charge: Charge,
        client: ClientCopy,
        presented: Option<Arc<Presented>>,
    ) -> Result<Admission, Rejection> {
        let known = Arc::clone(&self.core).load(hash, client.network(), presented).await?;
        let now = self.core.clock.monotonic();
        let entry = match known {
            Known::Key(entry) => entry,
            Known::Absent(canary) => {
                self.canaries.note(canary, &client, now);
                return Err(Rejection::new(RejectionKind::Unknown));
            }
        };
        match self.evaluate(&entry, charge, &client, now) {
            Attempt::Admit(admission) => Ok(admission),
            Attempt::Reject(rejection) => Err(rejection),
            Attempt::Pending(lookup) => lookup.await,
        }
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("formats", &self.0.formats).finish_non_exhaustive()
    }
}
