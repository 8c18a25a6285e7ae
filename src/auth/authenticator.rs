use std::{
    fmt,
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use super::{
    ClientNetwork, Event, Health, Rejection, RejectionKind, Standing, StoreHealth,
    cache::Peek,
    caught::{Panicked, catch_pending_panic, catch_request_panic},
    entry::Entry,
    load::Loader,
    usage::UsageRecorder,
};
use crate::{
    key::{AcceptedFormat, KeyHash},
    rate_limit::{Check, Decisions, RateLimits},
    record::{Consumer, KeyRecord, Origin},
    store::Invalidate,
    trace,
};

/// Decides who is let in. Cheap to clone; clones share one cache.
///
/// See the [module](crate::auth) for the rules and an example.
#[derive(Clone)]
pub struct Authenticator(Arc<Inner>);

pub(super) struct Inner {
    pub(super) formats: Box<[AcceptedFormat]>,
    pub(super) loader: Arc<Loader>,
    pub(super) usage: UsageRecorder,
}

/// Tells consumers of one authenticator from others'. It does not keep the authenticator alive.
#[derive(Clone)]
pub(crate) struct AuthenticatorId(Weak<Loader>);

impl AuthenticatorId {
    pub(crate) fn made(&self, consumer: &Consumer) -> bool {
        consumer.origin() == Some(Origin::of(&self.0))
    }
}

impl fmt::Debug for AuthenticatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuthenticatorId").field(&Origin::of(&self.0)).finish()
    }
}

/// What became of a key: decided at once, or to be looked up first.
#[derive(Debug)]
#[must_use]
#[expect(clippy::exhaustive_enums, reason = "these are all there can be")]
pub enum Attempt {
    /// Let in.
    Admit(Admission),
    /// Turned away.
    Reject(Rejection),
    /// Not known yet: ask this future.
    Lookup(Lookup),
}

/// What a request takes of each quota.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Charge {
    One,
    /// It is let in even where nothing is left.
    Nothing,
}

impl Charge {
    fn units(self) -> Option<NonZeroU32> {
        match self {
            Self::One => Some(NonZeroU32::MIN),
            Self::Nothing => None,
        }
    }
}

impl Authenticator {
    pub(super) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// Judges `key`, the bare key without a scheme, and without waiting as far as the cache allows.
    ///
    /// A key that is let in has been charged and counts as used. Unlike
    /// [`authenticate`](Self::authenticate) it tells no [`Observer`](super::Observer) of keys that
    /// are turned away.
    pub fn attempt(&self, key: &[u8]) -> Attempt {
        self.judge(key, Charge::One, || None)
    }

    /// As [`attempt`](Self::attempt), for a client in `network`, from which there may be [only so
    /// many unknown keys](super::Builder::failure_limit).
    pub fn attempt_from(&self, key: &[u8], network: ClientNetwork) -> Attempt {
        self.judge(key, Charge::One, || Some(network))
    }

    /// As [`attempt`](Self::attempt), but takes nothing from the key's quotas, and lets it in when
    /// they have nothing left: for a client that asks where it stands.
    pub fn peek(&self, key: &[u8]) -> Attempt {
        self.judge(key, Charge::Nothing, || None)
    }

    /// Asks for the client's network only if the cache has not let the key in.
    pub(crate) fn judge(
        &self,
        key: &[u8],
        charge: Charge,
        network: impl FnOnce() -> Option<ClientNetwork>,
    ) -> Attempt {
        catch_request_panic(|| self.judge_or_panic(key, charge, network))
            .unwrap_or_else(|Panicked| Attempt::Reject(Rejection::new(RejectionKind::Internal)))
    }

    fn judge_or_panic(
        &self,
        key: &[u8],
        charge: Charge,
        network: impl FnOnce() -> Option<ClientNetwork>,
    ) -> Attempt {
        let Some(hash) = self.0.hash(key) else {
            return Attempt::Reject(Rejection::new(RejectionKind::Malformed));
        };
        let now = self.0.loader.clock.monotonic();
        let judge = |entry: &Arc<Entry>| Inner::judge(&self.0, entry, charge, now);
        if let Some(attempt) = self.0.loader.cache.recent(&hash, now, judge) {
            return attempt;
        }
        match self.0.loader.peek(&hash, now) {
            Peek::Fresh(entry) => judge(&entry),
            Peek::Absent => Attempt::Reject(self.0.loader.strangers.guess(network(), now)),
            // It was no guess, even if the key is gone by now.
            Peek::Stale(_) => self.look_up(hash, charge, None),
            Peek::Miss => self.look_up(hash, charge, network()),
        }
    }

    fn look_up(&self, hash: KeyHash, charge: Charge, network: Option<ClientNetwork>) -> Attempt {
        let inner = Arc::clone(&self.0);
        Attempt::Lookup(Lookup::of(inner.look_up(hash, charge, network)))
    }

    /// Judges `key`, the bare key without a scheme, waiting for the store where it must. A key that
    /// is let in has been charged and counts as used.
    ///
    /// # Errors
    ///
    /// When the key is turned away.
    pub async fn authenticate(&self, key: &[u8]) -> Result<Admission, Rejection> {
        self.outcome(self.attempt(key)).await
    }

    /// As [`authenticate`](Self::authenticate), for a client in `network`, from which there may be
    /// [only so many unknown keys](super::Builder::failure_limit).
    ///
    /// # Errors
    ///
    /// When the key is turned away.
    pub async fn authenticate_from(
        &self,
        key: &[u8],
        network: ClientNetwork,
    ) -> Result<Admission, Rejection> {
        self.outcome(self.attempt_from(key, network)).await
    }

    /// Where `key` stands with its quotas: what is left, without taking any of it. It works when
    /// nothing is left, and counts as a use of the key.
    ///
    /// # Errors
    ///
    /// When the key is not one that may be used.
    pub async fn usage(&self, key: &[u8]) -> Result<Standing, Rejection> {
        self.outcome(self.peek(key)).await.map(|admission| admission.0)
    }

    async fn outcome(&self, attempt: Attempt) -> Result<Admission, Rejection> {
        let outcome = match attempt {
            Attempt::Admit(admission) => Ok(admission),
            Attempt::Reject(rejection) => Err(rejection),
            Attempt::Lookup(lookup) => lookup.await,
        };
        outcome.inspect_err(|rejection| self.rejected(rejection))
    }

    /// Forgets the key with this hash, that it is unknown included: the next request asks the
    /// store, and a query under way is not kept.
    pub fn invalidate(&self, hash: &KeyHash) {
        self.0.loader.invalidate(hash);
    }

    /// Forgets every key. Rate limits go on where they were.
    pub fn invalidate_all(&self) {
        self.0.loader.invalidate_all();
    }

    /// The limits of keys that have none of their own.
    #[must_use]
    pub fn default_rate_limits(&self) -> &RateLimits {
        &self.0.loader.terms.default
    }

    /// How it is doing, as far as that is known without asking anybody.
    #[must_use]
    pub fn health(&self) -> Health {
        let loader = &self.0.loader;
        let store = match loader.is_store_up() {
            None => StoreHealth::Unknown,
            Some(true) => StoreHealth::Up,
            Some(false) => StoreHealth::Down,
        };
        let feed = &loader.feed;
        Health { store, feed: feed.health(), ignored_messages: feed.ignored() }
    }

    pub(crate) fn id(&self) -> AuthenticatorId {
        AuthenticatorId(Arc::downgrade(&self.0.loader))
    }

    /// The wall clock of this authenticator.
    pub(crate) fn wall(&self) -> SystemTime {
        self.0.loader.clock.now()
    }

    /// Tells the observer of a request that was turned away.
    pub(crate) fn rejected(&self, rejection: &Rejection) {
        let (kind, key_id) = (rejection.kind(), rejection.key_id());
        trace::debug!(?kind, ?key_id, "a request was turned away");
        self.0.loader.observe(&Event::Rejected { kind, key_id });
    }
}

impl Invalidate for Authenticator {
    fn invalidate(&self, hash: &KeyHash) {
        Self::invalidate(self, hash);
    }

    fn revoked(&self, record: &KeyRecord) {
        self.0.loader.revoked(record);
    }

    fn invalidate_all(&self) {
        Self::invalidate_all(self);
    }
}

impl Inner {
    fn hash(&self, key: &[u8]) -> Option<KeyHash> {
        self.formats.iter().find_map(|format| format.parse(key).ok()).map(|key| key.hash())
    }

    fn judge(self: &Arc<Self>, entry: &Arc<Entry>, charge: Charge, now: Duration) -> Attempt {
        let status = self.loader.status(entry, now);
        if let Some(rejection) = Rejection::of_status(status, entry.key_id()) {
            return Attempt::Reject(rejection);
        }
        let check = entry.live.meter.ask(charge.units(), now);
        let decided = match check {
            None => self.conclude(entry, charge, Decisions::default(), now),
            Some(Check::Ready(decisions)) => self.conclude(entry, charge, decisions, now),
            Some(Check::Pending(decisions)) => {
                let (inner, entry) = (Arc::clone(self), Arc::clone(entry));
                return Attempt::Lookup(Lookup::of(async move {
                    inner.conclude(&entry, charge, decisions.await, now)
                }));
            }
        };
        match decided {
            Ok(admission) => Attempt::Admit(admission),
            Err(rejection) => Attempt::Reject(rejection),
        }
    }

    fn conclude(
        &self,
        entry: &Arc<Entry>,
        charge: Charge,
        decisions: Decisions,
        now: Duration,
    ) -> Result<Admission, Rejection> {
        let is_admitted = charge == Charge::Nothing || decisions.is_admitted();
        let standing = Standing::new(Consumer::of(entry), decisions);
        if !is_admitted {
            return Err(Rejection::rate_limited(standing));
        }
        self.usage.touch(entry, now, &self.loader);
        if standing.retirement().is_some() {
            self.loader.observe(&Event::RetiredKeyUsed { key_id: entry.key_id() });
        }
        Ok(Admission(standing))
    }

    async fn look_up(
        self: Arc<Self>,
        hash: KeyHash,
        charge: Charge,
        network: Option<ClientNetwork>,
    ) -> Result<Admission, Rejection> {
        let entry = Arc::clone(&self.loader).load(hash, network).await?;
        let entry = entry.ok_or(Rejection::new(RejectionKind::Unknown))?;
        let now = self.loader.clock.monotonic();
        match self.judge(&entry, charge, now) {
            Attempt::Admit(admission) => Ok(admission),
            Attempt::Reject(rejection) => Err(rejection),
            Attempt::Lookup(lookup) => lookup.await,
        }
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("formats", &self.0.formats).finish_non_exhaustive()
    }
}

/// A key that was let in.
#[derive(Clone, Debug)]
pub struct Admission(Standing);

impl Admission {
    /// Whom it stands for.
    #[must_use]
    pub fn consumer(&self) -> &Consumer {
        self.0.consumer()
    }

    /// Where it stands with its quotas.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.0
    }
}

/// The answer to an [`Attempt`] that takes a while. It may be dropped at any time.
pub struct Lookup(Pin<Box<dyn Future<Output = Result<Admission, Rejection>> + Send>>);

impl Lookup {
    fn of(work: impl Future<Output = Result<Admission, Rejection>> + Send + 'static) -> Self {
        Self(Box::pin(async {
            let panicked = |Panicked| Err(Rejection::new(RejectionKind::Internal));
            catch_pending_panic(work).await.unwrap_or_else(panicked)
        }))
    }
}

impl Future for Lookup {
    type Output = Result<Admission, Rejection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookup")
    }
}
