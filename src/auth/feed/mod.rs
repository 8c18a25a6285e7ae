//! Hearing of changes made elsewhere, and of not hearing of them.

mod backoff;

use std::{convert::Infallible, future::pending, pin::pin, time::Duration};

use tokio::{
    task::coop::consume_budget,
    time::{Instant, sleep_until, timeout},
};

pub(super) use self::backoff::{Backoff, LONGEST as LONGEST_BACKOFF};
use super::{
    Event,
    caught::caught,
    load::{BoxFuture, Loader},
};
use crate::{
    key::SystemEntropy,
    store::{Change, ChangeFeed, Staleness, StoreError, StoreErrorKind},
    trace,
};

/// How long one attempt to connect may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How often everything may be confirmed because the feed says so. Each change of a plan says so.
const CONFIRM_EVERYTHING_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// How often it is logged that messages are ignored.
const WARN_AT_MOST_EVERY: Duration = Duration::from_secs(60);

/// Takes up what `feed` tells, for ever.
///
/// Any failure is a gap. It ends with a new connection: *then* everything cached is to be confirmed,
/// and only then it is fresh for the usual time again.
pub(super) async fn follow(loader: &Loader, feed: &mut dyn ErasedFeed) -> Infallible {
    let mut following = Following { loader, trouble: None, is_live: false };
    let mut backoff = Backoff::default();
    loop {
        let error = match following.connect(feed).await {
            Ok(()) => {
                let begin = Instant::now();
                let error = following.take_up(feed).await;
                // A feed that connects and fails at once is waited for as if it did not connect.
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

/// However following ends, nothing is heard of any more.
struct Following<'a> {
    loader: &'a Loader,
    /// What was said to be wrong.
    trouble: Option<Trouble>,
    is_live: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Lost(StoreErrorKind),
    Behind,
}

impl Following<'_> {
    async fn connect(&mut self, feed: &mut dyn ErasedFeed) -> Result<(), StoreError> {
        let connected = timeout(CONNECT_DEADLINE, caught(async { feed.connect().await })).await;
        connected.map_err(|late| StoreError::new(StoreErrorKind::Unavailable).because(late))??;
        self.judge(feed.staleness());
        Ok(())
    }

    /// Does what the feed tells until it fails.
    async fn take_up(&mut self, feed: &mut dyn ErasedFeed) -> StoreError {
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
                            self.loader.expire_all();
                        }
                        change = &mut next => break change,
                    }
                }
            };
            // First: what the change has looked up is as old as the store.
            if change.is_ok() {
                self.judge(feed.staleness());
            }
            match change {
                Ok(Change::Changed(id)) => self.loader.invalidate_id(id),
                // Nobody knows by what hash it was asked for.
                Ok(Change::Created(_)) => self.loader.invalidate_absent(),
                Ok(Change::Everything) => confirmations.request(),
                Ok(Change::Nothing { lag }) if self.is_live => self.loader.feed.set_lag(lag),
                Ok(Change::Nothing { .. }) => {}
                Ok(Change::Junk) => ignored.count(self.loader),
                Err(error) => return error,
            }
            // A feed that is never at a loss would keep everything else from its turn.
            consume_budget().await;
        }
    }

    /// Whether what the feed and the store say is new enough.
    fn judge(&mut self, staleness: Option<Staleness>) {
        match staleness.filter(|staleness| staleness.is_too_old) {
            Some(Staleness { age, .. }) => self.behind(age),
            None if !self.is_live => self.live(),
            None => {}
        }
    }

    fn live(&mut self) {
        self.is_live = true;
        self.trouble = None;
        // Before everything is confirmed by the store.
        self.loader.feed.set_current();
        self.loader.end_gap();
        self.loader.feed.set_live();
        trace::info!("changes of keys made elsewhere are heard of at once");
        self.loader.observe(&Event::FeedLive);
    }

    fn behind(&mut self, age: Duration) {
        self.is_live = false;
        self.loader.feed.set_behind(age, self.loader.clock.monotonic());
        let before = self.trouble.replace(Trouble::Behind);
        if before != Some(Trouble::Behind) {
            let problem = format!("what it reads is {age:.1?} old, which is too old");
            let error = StoreError::new(StoreErrorKind::Unavailable).because(problem);
            trace::warn!(?error, "replica behind: keys are judged by what is cached");
            self.begin_gap(before, &error);
        }
    }

    fn lost(&mut self, error: &StoreError) {
        trace::debug!(?error, "the change feed failed");
        self.is_live = false;
        self.loader.feed.set_gap();
        let trouble = Trouble::Lost(error.kind());
        let before = self.trouble.replace(trouble);
        if before.is_none() {
            trace::warn!(?error, "changes of keys made elsewhere are not heard of");
        } else if before != Some(trouble) {
            trace::warn!(?error, "changes of keys made elsewhere are still not heard of");
        }
        self.begin_gap(before, error);
    }

    /// Once a gap.
    fn begin_gap(&self, before: Option<Trouble>, error: &StoreError) {
        if before.is_none() {
            self.loader.begin_gap();
            self.loader.observe(&Event::FeedLost { error });
        }
    }
}

/// Messages that were ignored.
#[derive(Default)]
struct Ignored {
    warned: Option<Instant>,
}

impl Ignored {
    fn count(&mut self, loader: &Loader) {
        loader.feed.ignore();
        let now = Instant::now();
        if self.warned.is_none_or(|warned| now - warned >= WARN_AT_MOST_EVERY) {
            self.warned = Some(now);
            trace::warn!(
                count = loader.feed.ignored(),
                "change feed messages ignored: forged, sent before, or of another program"
            );
        }
        loader.observe(&Event::FeedJunk);
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.loader.feed.set_gap();
        self.loader.begin_gap();
    }
}

/// When everything is to be confirmed because the feed said so.
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
pub(super) trait ErasedFeed: Send {
    fn connect(&mut self) -> BoxFuture<'_, Result<(), StoreError>>;

    fn next(&mut self) -> BoxFuture<'_, Result<Change, StoreError>>;

    fn staleness(&self) -> Option<Staleness>;
}

impl<F: ChangeFeed> ErasedFeed for F {
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
