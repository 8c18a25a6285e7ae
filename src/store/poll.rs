use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{Change, ChangeFeed, Staleness, StoreError, StoreErrorKind};
use crate::record::KeyId;

/// A change log that can be polled, for stores that cannot send notifications.
///
/// `PgKeyStore` and `SqliteKeyStore` implement it; [`PollingChangeFeed`] polls it.
pub trait ChangeLog: Send + Sync + 'static {
    /// Returns the keys changed since `horizon`, and the horizon for the next call.
    ///
    /// Every change committed after a horizon was read is returned by later calls with that
    /// horizon, as long as it is the last change of its key. Changes committed earlier may be
    /// returned as well; a call without a horizon returns only such changes.
    ///
    /// The future may be dropped at any time.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    fn changes_since(
        &self,
        horizon: Option<LogPosition>,
    ) -> impl Future<Output = Result<Changes, StoreError>> + Send;

    /// The log's current write position, if it is not a replica. Everything committed before is
    /// below it.
    ///
    /// The future may be dropped at any time.
    ///
    /// # Errors
    ///
    /// When the log has no positions, which is the default; when it cannot be read; or when it is a
    /// replica.
    fn end(&self) -> impl Future<Output = Result<u64, StoreError>> + Send {
        let problem = "this change log has no positions";
        async move { Err(StoreError::new(StoreErrorKind::Other).because(problem)) }
    }
}

/// The result of polling a [`ChangeLog`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// The horizon for the next poll.
    pub horizon: LogPosition,
    /// The last change of each changed key.
    pub keys: Vec<ChangedKey>,
    /// A replica's progress; `None` if the log was read directly.
    pub replica: Option<Replica>,
}

/// A replica's progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replica {
    /// The position up to which it has applied the log.
    pub applied: u64,
    /// The log's end as far as the replica knows; `None` while it is disconnected from its source.
    pub known: Option<u64>,
    /// Time since the last applied change was committed, measured by two clocks that may differ;
    /// `None` if unknown.
    pub age: Option<Duration>,
}

impl Replica {
    /// A replica that has applied the log up to `applied`, out of `known`.
    #[must_use]
    pub const fn new(applied: u64, known: Option<u64>, age: Option<Duration>) -> Self {
        Self { applied, known, age }
    }
}

impl Changes {
    /// No changes up to `horizon`.
    #[must_use]
    pub const fn new(horizon: LogPosition) -> Self {
        Self { horizon, keys: Vec::new(), replica: None }
    }
}

/// A read position in a [`ChangeLog`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogPosition {
    /// All transactions with lower numbers had ended. Never decreases.
    pub from: u64,
    /// Identifies a run of a server: differs between servers, and changes with a restart or crash,
    /// because transaction numbers of one run mean nothing to another. 0 if there is no server.
    pub server: i64,
}

impl LogPosition {
    /// All transactions of `server` below `from` have ended.
    #[must_use]
    pub const fn new(from: u64, server: i64) -> Self {
        Self { from, server }
    }
}

/// The last change of a key. No two changes of a key are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ChangedKey {
    /// The changed key. The all-zero id means every key.
    pub key_id: KeyId,
    /// The transaction that inserted the key or gave it a new hash; 0 if unknown.
    pub created_in: u64,
    /// The transaction that last changed or deleted the key.
    pub changed_in: u64,
}

impl ChangedKey {
    /// `key_id` was last changed in `changed_in`.
    #[must_use]
    pub const fn new(key_id: KeyId, created_in: u64, changed_in: u64) -> Self {
        Self { key_id, created_in, changed_in }
    }
}

const EVERY_KEY: KeyId = KeyId::from_bytes([0; 16]);

const INTERVAL: Duration = Duration::from_secs(1);
const MIN_INTERVAL: Duration = Duration::from_millis(10);
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// With more changes than this, confirming every key is cheaper than processing each one.
const MOST_UNTOLD: usize = 10_000;
/// Deadline of one poll. Without it, a network that drops packets would block the poll for a
/// quarter of an hour.
const DEADLINE: Duration = Duration::from_secs(5);
/// Deadline for asking the primary for its position. Changes already read wait for it.
const PRIMARY_DEADLINE: Duration = Duration::from_secs(1);
const MAX_LAG: Duration = Duration::from_secs(5);
const MIN_MAX_LAG: Duration = Duration::from_millis(100);
const MAX_MAX_LAG: Duration = Duration::from_secs(300);
/// Maximum number of positions remembered until a replica has applied them.
const MOST_MARKS: usize = 64;

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
        let lag = waited.elapsed() + self.staleness().map_or(Duration::ZERO, |stale| stale.age);
        let change = position.untold.pop_front().unwrap_or(Change::Heartbeat { lag });
        self.position = Some(position);
        Ok(change)
    }

    fn staleness(&self) -> Option<Staleness> {
        let progress = self.progress.as_ref().filter(|progress| progress.is_replica)?;
        Some(Staleness::new(progress.current.age(), progress.is_too_late))
    }
}

/// An instant that may be earlier than `Instant` can represent.
#[derive(Clone, Copy)]
struct Past {
    at: Instant,
    before: Duration,
}

impl Past {
    fn age(&self) -> Duration {
        self.at.elapsed().saturating_add(self.before)
    }
}

/// How far a replica is behind, by our own clock. Each end position of the log is stored with the
/// time it was read; once the replica has applied that position, its data is at least as new as
/// that time.
struct Progress {
    server: i64,
    is_replica: bool,
    /// Everything committed before this has been applied.
    current: Past,
    /// Later end positions that have not been applied yet. `None` if the position was unavailable.
    ahead: VecDeque<(Past, Option<u64>)>,
    /// Whether the first of these has been unapplied for too long.
    is_too_late: bool,
}

impl Progress {
    /// Before the first poll, the age is only known from the replica's clocks.
    fn begin(asked: Instant, changes: &Changes, end: Option<u64>) -> Self {
        let mut current = Past { at: asked, before: Duration::ZERO };
        let mut ahead = VecDeque::new();
        if let Some(replica) = changes.replica
            && end.is_none_or(|end| end > replica.applied)
        {
            current.before = replica.age.unwrap_or(Duration::MAX);
            ahead.push_back((current, end));
        }
        let server = changes.horizon.server;
        Self { server, is_replica: false, current, ahead, is_too_late: false }
    }

    fn go_on(
        mut self,
        asked: Instant,
        replica: Option<Replica>,
        end: Option<u64>,
        max_lag: Duration,
    ) -> Self {
        self.is_replica = replica.is_some();
        if self.ahead.len() >= MOST_MARKS {
            self.ahead.pop_back();
        }
        let now = Past { at: asked, before: Duration::ZERO };
        self.ahead.push_back((now, end));
        let is_applied = |(_, end): &(Past, Option<u64>)| match (replica, end) {
            (None, _) => true,
            (Some(replica), Some(end)) => *end <= replica.applied,
            (Some(_), None) => false,
        };
        if let Some(last) = self.ahead.iter().rposition(is_applied)
            && let Some((mark, _)) = self.ahead.drain(..=last).next_back()
        {
            self.current = mark;
        }
        self.is_too_late = self.ahead.front().is_some_and(|(mark, _)| mark.age() > max_lag);
        self
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

/// Read position in a log.
struct Position {
    horizon: LogPosition,
    /// The last changes already taken from beyond the horizon, which later polls return again.
    taken: HashMap<KeyId, ChangedKey>,
    untold: VecDeque<Change>,
}

impl Position {
    fn after(Changes { horizon, keys, .. }: Changes) -> Self {
        let taken = keys.into_iter().map(|key| (key.key_id, key)).collect();
        Self { horizon, taken, untold: VecDeque::new() }
    }

    fn advance(&mut self, Changes { horizon, keys, .. }: Changes) -> Result<(), StoreError> {
        if horizon.server != self.horizon.server {
            return Err(lost("answered by another server, or by the same one after a restart"));
        }
        if horizon.from < self.horizon.from {
            return Err(lost("the change log went backwards"));
        }
        for key in keys {
            let before = self.taken.insert(key.key_id, key);
            if before != Some(key) {
                self.take(key, before);
            }
        }
        self.taken.retain(|_, key| key.created_in.max(key.changed_in) >= horizon.from);
        if self.untold.len() > MOST_UNTOLD {
            self.untold = VecDeque::from([Change::Everything]);
        }
        self.horizon = horizon;
        Ok(())
    }

    fn take(&mut self, key: ChangedKey, before: Option<ChangedKey>) {
        if key.key_id == EVERY_KEY {
            return self.untold.push_back(Change::Everything);
        }
        self.untold.push_back(Change::Changed(key.key_id));
        let was_taken = before.is_some_and(|before| before.created_in == key.created_in);
        if key.created_in >= self.horizon.from && !was_taken {
            self.untold.push_back(Change::Created(key.key_id));
        }
    }
}

fn lost(problem: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable).because(problem)
}
