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
    store::{Change, ChangeFeed, StoreError, StoreErrorKind},
    trace,
};

/// How long one attempt to connect may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How often everything may be confirmed because the feed says so. Anybody who can connect to a
/// PostgreSQL database can say so.
const CONFIRM_EVERYTHING_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Takes up what `feed` tells, for ever.
///
/// Any failure is a gap. It ends with a new connection: *then* everything cached is to be confirmed,
/// and only then it is fresh for the usual time again.
pub(super) async fn follow(loader: &Loader, feed: &mut dyn ErasedFeed) -> Infallible {
    let mut following = Following { loader, lost: None };
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
    lost: Option<StoreErrorKind>,
}

impl Following<'_> {
    async fn connect(&mut self, feed: &mut dyn ErasedFeed) -> Result<(), StoreError> {
        let connected = timeout(CONNECT_DEADLINE, caught(async { feed.connect().await })).await;
        connected.map_err(|late| StoreError::new(StoreErrorKind::Unavailable).because(late))??;
        self.loader.end_gap();
        self.loader.feed.set_live();
        trace::info!("changes of keys made elsewhere are heard of at once");
        self.loader.observe(&Event::FeedLive);
        self.lost = None;
        Ok(())
    }

    /// Does what the feed tells until it fails.
    async fn take_up(&self, feed: &mut dyn ErasedFeed) -> StoreError {
        let mut confirmations = Confirmations::default();
        loop {
            let next = caught(async { feed.next().await });
            let mut next = pin!(next);
            let change = loop {
                tokio::select! {
                    biased;
                    () = confirmations.due() => {
                        confirmations.done();
                        self.loader.expire_all();
                    }
                    change = &mut next => break change,
                }
            };
            match change {
                Ok(Change::Changed(id)) => self.loader.invalidate_id(id),
                // Nobody knows by what hash it was asked for.
                Ok(Change::Created(_)) => self.loader.invalidate_absent(),
                Ok(Change::Everything) => confirmations.request(),
                Ok(Change::Nothing { lag }) => self.loader.feed.set_lag(lag),
                Ok(Change::Junk) => self.loader.observe(&Event::FeedJunk),
                Err(error) => return error,
            }
            // A feed that is never at a loss would keep everything else from its turn.
            consume_budget().await;
        }
    }

    fn lost(&mut self, error: &StoreError) {
        trace::debug!(?error, "the change feed failed");
        match self.lost.replace(error.kind()) {
            None => {
                self.gap();
                trace::warn!(?error, "changes of keys made elsewhere are not heard of");
                self.loader.observe(&Event::FeedLost { error });
            }
            Some(kind) if kind != error.kind() => {
                trace::warn!(?error, "changes of keys made elsewhere are still not heard of");
            }
            Some(_) => {}
        }
    }

    fn gap(&self) {
        self.loader.feed.set_gap();
        self.loader.begin_gap();
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.gap();
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
}

impl<F: ChangeFeed> ErasedFeed for F {
    fn connect(&mut self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(ChangeFeed::connect(self))
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Change, StoreError>> {
        Box::pin(ChangeFeed::next(self))
    }
}
