//! Follows the change feed, and tracks whether it is connected.

use std::{convert::Infallible, future::pending, pin::pin, time::Duration};

use tokio::{
    task::coop::consume_budget,
    time::{Instant, sleep_until, timeout},
};

use super::backoff::{Backoff, LONGEST as LONGEST_BACKOFF};
use crate::auth::{Event, catch_panic::caught, core::Core, lookup::BoxFuture};
use crate::{
    key::SystemEntropy,
    store::{
        StoreError, StoreErrorKind,
        port::{Change, ChangeFeed, Staleness},
    },
    trace,
};

/// The deadline for connecting.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// The feed may request confirmation of every cached record, for example on each change of a plan;
/// this limits how often that is done.
const CONFIRM_EVERYTHING_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// How often ignored messages are logged.
const WARN_AT_MOST_EVERY: Duration = Duration::from_secs(60);

/// Follows `feed` forever.
///
/// Any failure begins a gap. A new connection ends it: only *after* connecting is every cached
/// record invalidated for confirmation, and fresh for the usual time again.
pub(in crate::auth) async fn follow(core: &Core, feed: &mut dyn DynFeed) -> Infallible {
    let mut following = Following { core, trouble: None, is_live: false };
    let mut backoff = Backoff::default();
    loop {
        let error = match following.connect(feed).await {
            Ok(()) => {
                let begin = Instant::now();
                let error = following.take_up(feed).await;
                // A feed that connects and then fails at once backs off as if it had not connected.
                if begin.elapsed() >= LONGEST_BACKOFF {
                    backoff.reset();
                }
                error
            }
            Err(error) => error,
        };
        following.lost(&error);
        let wait = Instant::now() + backoff.wait(&SystemEntropy);
        sleep_until(wait).await;
    }
}

/// Begins a gap when dropped, however following ends.
struct Following<'a> {
    core: &'a Core,
    /// The problem last logged.
    trouble: Option<Trouble>,
    is_live: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Lost(StoreErrorKind),
    Behind,
}

impl Following<'_> {
    async fn connect(&mut self, feed: &mut dyn DynFeed) -> Result<(), StoreError> {
        let connected = timeout(CONNECT_DEADLINE, caught(async { feed.connect().await })).await;
        connected.map_err(|late| StoreError::new(StoreErrorKind::Unavailable).because(late))??;
        self.evaluate(feed.staleness());
        Ok(())
    }

    /// Applies changes from the feed until it fails.
    async fn take_up(&mut self, feed: &mut dyn DynFeed) -> StoreError {
        let mut confirmations = Confirmations::default();
        let mut ignored = Ignored::default();
        loop {
            let change = {
                let next = caught(async { feed.next().await });
                let mut next = pin!(next);
                loop {
                    tokio::select! {
                        biased;
                        () = confirmations.due() => {
                            confirmations.done();
                            self.core.expire_all();
                        }
                        change = &mut next => break change,
                    }
                }
            };
            // Must come first: look-ups caused by this change are as old as the store.
            if change.is_ok() {
                self.evaluate(feed.staleness());
            }
            match change {
                Ok(Change::Changed(id)) => self.core.invalidate_id(id),
                // The hash under which the new key was cached as absent is unknown.
                Ok(Change::Created(_)) => self.core.invalidate_absent(),
                Ok(Change::Everything) => confirmations.request(),
                Ok(Change::Heartbeat { lag }) if self.is_live => self.core.feed.set_lag(lag),
                Ok(Change::Heartbeat { .. }) => {}
                Ok(Change::Unrecognized) => ignored.count(self.core),
                Err(error) => return error,
            }
            // Yields, as a feed that always has a message would starve other tasks.
            consume_budget().await;
        }
    }

    /// Checks whether the data of the feed and the store is recent enough.
    fn evaluate(&mut self, staleness: Option<Staleness>) {
        match staleness.filter(|staleness| staleness.is_too_old) {
            Some(Staleness { age, .. }) => self.behind(age),
            None if !self.is_live => self.live(),
            None => {}
        }
    }

    fn live(&mut self) {
        self.is_live = true;
        self.trouble = None;
        // Must come before the store confirms records.
        self.core.feed.set_current();
        self.core.end_gap();
        self.core.feed.set_live();
        trace::info!("change feed connected");
        self.core.observe(&Event::FeedLive);
    }

    fn behind(&mut self, age: Duration) {
        self.is_live = false;
        self.core.feed.set_behind(age, self.core.clock.monotonic());
        let before = self.trouble.replace(Trouble::Behind);
        if before != Some(Trouble::Behind) {
            let problem = format!("the replica lags by {age:.1?}, more than the maximum");
            let error = StoreError::new(StoreErrorKind::Unavailable).because(problem);
            trace::warn!(?error, "replica too far behind; keys are checked against the cache");
            self.begin_gap(before, &error);
        }
    }

    fn lost(&mut self, error: &StoreError) {
        trace::debug!(?error, "change feed failed");
        self.is_live = false;
        self.core.feed.set_gap();
        let trouble = Trouble::Lost(error.kind());
        let before = self.trouble.replace(trouble);
        if before.is_none() {
            trace::warn!(?error, "change feed lost");
        } else if before != Some(trouble) {
            trace::warn!(?error, "change feed lost: cause changed");
        }
        self.begin_gap(before, error);
    }

    /// Called on each failure; acts once per gap.
    fn begin_gap(&self, before: Option<Trouble>, error: &StoreError) {
        if before.is_none() {
            self.core.begin_gap();
            self.core.observe(&Event::FeedLost { error });
        }
    }
}

/// Logs ignored messages, rate limited.
#[derive(Default)]
struct Ignored {
    warned: Option<Instant>,
}

impl Ignored {
    fn count(&mut self, core: &Core) {
        core.feed.ignore();
        let now = Instant::now();
        if self.warned.is_none_or(|warned| now - warned >= WARN_AT_MOST_EVERY) {
            self.warned = Some(now);
            trace::warn!(
                count = core.feed.ignored(),
                "change feed messages ignored: forged, replayed, or of another program"
            );
        }
        core.observe(&Event::FeedMessageUnrecognized);
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.core.feed.set_gap();
        self.core.begin_gap();
    }
}

/// Schedules confirmations of every cached record that the feed requests.
#[derive(Default)]
struct Confirmations {
    last: Option<Instant>,
    due: Option<Instant>,
}

impl Confirmations {
    fn request(&mut self) {
        let now = Instant::now();
        let earliest = self.last.map_or(now, |last| last + CONFIRM_EVERYTHING_AT_MOST_EVERY);
        let due = earliest.max(now);
        self.due = self.due.or(Some(due));
    }

    async fn due(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => pending().await,
        }
    }

    fn done(&mut self) {
        *self = Self { last: Some(Instant::now()), due: None };
    }
}

/// [`ChangeFeed`] as a trait object.
pub(in crate::auth) trait DynFeed: Send {
    fn connect(&mut self) -> BoxFuture<'_, Result<(), StoreError>>;

    fn next(&mut self) -> BoxFuture<'_, Result<Change, StoreError>>;

    fn staleness(&self) -> Option<Staleness>;
}

impl<F: ChangeFeed> DynFeed for F {
    fn connect(&mut self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(ChangeFeed::connect(self))
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Change, StoreError>> {
        Box::pin(ChangeFeed::next(self))
    }

    fn staleness(&self) -> Option<Staleness> {
        ChangeFeed::staleness(self)
    }
}
