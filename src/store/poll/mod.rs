//! The change feed that polls a change log.

mod position;
mod progress;

use std::{fmt, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use self::{
    position::{Position, lost},
    progress::Progress,
};
use super::{
    StoreError, StoreErrorKind,
    port::{Change, ChangeFeed, ChangeLog, Changes, LogPosition, Staleness},
};

const INTERVAL: Duration = Duration::from_secs(1);
const MIN_INTERVAL: Duration = Duration::from_millis(10);
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// Deadline of one poll. Without it, a network that drops packets would block the poll for a
/// quarter of an hour.
const DEADLINE: Duration = Duration::from_secs(5);
/// Deadline for asking the primary for its position. Changes already read wait for it.
const PRIMARY_DEADLINE: Duration = Duration::from_secs(1);
const MAX_LAG: Duration = Duration::from_secs(5);
const MIN_MAX_LAG: Duration = Duration::from_millis(100);
const MAX_MAX_LAG: Duration = Duration::from_secs(300);

/// Polls a store for changes: for PostgreSQL behind PgBouncer in transaction mode, for standbys,
/// and for SQLite files shared by several processes.
///
/// A poll is one statement that reads one index range: everything changed since the oldest
/// transaction that was running at the previous poll. Transactions may commit in any order, and no
/// change is reported twice. A transaction that writes for hours, in any database of the server,
/// makes the range grow with every change made meanwhile.
///
/// In PostgreSQL it needs the right to read `api_key_changes`.
///
/// A new key is reported as [`Changed`](Change::Changed), then as [`Created`](Change::Created): the
/// log does not distinguish a new key from one with a new hash.
///
/// All polls must reach the same server: [`next`](ChangeFeed::next) fails when another server
/// answers, or the same one after a restart or crash.
///
/// # Standbys
///
/// A standby reports changes once it has applied them. Poll it only where keys are looked up on it
/// as well. Each poll asks how far it is behind. Beyond [`max_lag`](Self::max_lag), the feed counts
/// as [behind](crate::auth::FeedHealth::Behind), and answers of the standby no longer confirm
/// cached keys. It is behind
///
/// 1. when it has received changes that it has not applied: its replay is paused, delayed, slow, or
///    waiting for a query;
/// 2. when it is disconnected from its source. PostgreSQL notices a dead connection after
///    `wal_receiver_timeout` (60 s by default), or never if that is 0;
/// 3. when it knows that its source has more than it has received. Only members of
///    `pg_read_all_stats` can see that;
/// 4. when its [`primary`](Self::primary) has written something that it has not applied. This
///    covers all of the above, and is the only way to detect a standby of a standby that is cut
///    off.
///
/// A SQLite file that was replaced or deleted counts as a replica without a source: processes that
/// have it open keep reading it until they are restarted.
///
/// A standby whose primary is idle has applied everything, and is not behind.
///
/// Polls use the look-up connections, which management cannot take.
///
/// A poll that returns more than 10,000 changes is reported as [`Everything`](Change::Everything).
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # fn example(store: tower_api_key::store::PgKeyStore) {
/// use std::time::Duration;
///
/// use tower_api_key::store::PollingChangeFeed;
///
/// let feed = PollingChangeFeed::new(store.clone());
/// let less_often = PollingChangeFeed::new(store).interval(Duration::from_secs(5));
/// # }
/// ```
pub struct PollingChangeFeed<L> {
    log: L,
    primary: Option<L>,
    interval: Duration,
    max_lag: Duration,
    position: Option<Position>,
    /// Kept while disconnected: a server that was behind still is.
    progress: Option<Progress>,
}

impl<L: ChangeLog> PollingChangeFeed<L> {
    /// A feed of the changes in `log`.
    #[must_use]
    pub fn new(log: L) -> Self {
        Self {
            log,
            primary: None,
            interval: INTERVAL,
            max_lag: MAX_LAG,
            position: None,
            progress: None,
        }
    }

    /// The pause between polls. Default: 1 s, so that a revocation takes effect within about a
    /// second, at the cost of one cheap statement per second and node. Clamped to at least 10 ms,
    /// to limit the load on the database, and at most 60 s, beyond which the cache would notice
    /// most changes by itself.
    #[must_use]
    pub fn interval(self, interval: Duration) -> Self {
        Self { interval: interval.clamp(MIN_INTERVAL, MAX_INTERVAL), ..self }
    }

    /// How far behind a standby may be. Default: 5 s, the time a standby waits before it reconnects
    /// to its primary, so a restart of the primary is not a gap. Clamped to 100 ms to 5 min.
    ///
    /// A change takes effect within this plus an [`interval`](Self::interval), or the cached record
    /// is no longer fresh. Beyond it, cached records are used as during an outage of the store, for
    /// [`stale_if_error`](crate::auth::CachePolicy::stale_if_error).
    #[must_use]
    pub fn max_lag(self, max_lag: Duration) -> Self {
        Self { max_lag: max_lag.clamp(MIN_MAX_LAG, MAX_MAX_LAG), ..self }
    }

    /// The source of the replica that is polled. Default: none; a standby is then asked what it
    /// knows about its source.
    ///
    /// Each poll then also asks the primary for its write position, which needs no rights and reads
    /// no table. While the primary does not answer, the standby counts as behind after
    /// [`max_lag`](Self::max_lag), because it may not be current.
    #[must_use]
    pub fn primary(self, primary: L) -> Self {
        Self { primary: Some(primary), ..self }
    }

    /// The changes, and the position that a replica should have reached.
    async fn read(
        &self,
        horizon: Option<LogPosition>,
    ) -> Result<(Changes, Option<u64>), StoreError> {
        let reading = timeout(DEADLINE, self.log.changes_since(horizon));
        let (changes, end) = tokio::join!(reading, self.end());
        let late = |late| StoreError::new(StoreErrorKind::Unavailable).because(late);
        let changes = changes.map_err(late)??;
        let known = changes.replica.and_then(|replica| replica.known);
        let end = if self.primary.is_some() { end } else { known };
        Ok((changes, end))
    }

    async fn end(&self) -> Option<u64> {
        timeout(PRIMARY_DEADLINE, self.primary.as_ref()?.end()).await.ok()?.ok()
    }

    fn observe(&mut self, asked: Instant, changes: &Changes, end: Option<u64>) {
        let server = changes.horizon.server;
        let before = self.progress.take().filter(|progress| progress.server == server);
        let progress = before.unwrap_or_else(|| Progress::begin(asked, changes, end));
        self.progress = Some(progress.go_on(asked, changes.replica, end, self.max_lag));
    }

    /// If a replica has not applied the position of an earlier poll, poll again before it exceeds
    /// the maximum lag. Lagging by a single poll is normal.
    fn pause(&self) -> Duration {
        match &self.progress {
            Some(progress) if progress.ahead.len() > 1 => self.interval.min(self.max_lag / 5),
            _ => self.interval,
        }
    }
}

impl<L: ChangeLog> ChangeFeed for PollingChangeFeed<L> {
    async fn connect(&mut self) -> Result<(), StoreError> {
        self.position = None;
        let asked = Instant::now();
        let (changes, end) = self.read(None).await?;
        self.observe(asked, &changes, end);
        self.position = Some(Position::after(changes));
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "nothing tells that there is something to read")]
    async fn next(&mut self) -> Result<Change, StoreError> {
        // Put back only on success: after an error, `connect` must be called first.
        let mut position = self.position.take().ok_or_else(|| lost("call `connect` first"))?;
        let waited = Instant::now();
        if position.untold.is_empty() {
            sleep(self.pause()).await;
            let asked = Instant::now();
            let (changes, end) = self.read(Some(position.horizon)).await?;
            self.observe(asked, &changes, end);
            position.advance(changes)?;
        }
        // A change made right after the last poll is seen only now, and on a replica even later.
        let stale = self.staleness().map_or(Duration::ZERO, |stale| stale.age);
        // A replica that has replayed nothing cannot tell its age, which counts as endless.
        let lag = waited.elapsed().saturating_add(stale);
        let change = position.untold.pop_front().unwrap_or(Change::Heartbeat { lag });
        self.position = Some(position);
        Ok(change)
    }

    fn staleness(&self) -> Option<Staleness> {
        let progress = self.progress.as_ref().filter(|progress| progress.is_replica)?;
        Some(Staleness::new(progress.current.age(), progress.is_too_late))
    }
}

impl<L> fmt::Debug for PollingChangeFeed<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollingChangeFeed")
            .field("interval", &self.interval)
            .field("max_lag", &self.max_lag)
            .field("connected", &self.position.is_some())
            .finish_non_exhaustive()
    }
}
