use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{Change, ChangeFeed, Staleness, StoreError, StoreErrorKind};
use crate::record::KeyId;

/// A log of changes that can be asked, for where nobody tells them.
///
/// `PgKeyStore` and `SqliteKeyStore` are one; [`PollingChangeFeed`] asks it.
pub trait ChangeLog: Send + Sync + 'static {
    /// Which keys were changed since the log said `horizon`, and what to ask it with the next time.
    ///
    /// Whatever is committed after a horizon was read is among the changes since that horizon, for
    /// as long as it is the last change of its key. What was committed before may be among them:
    /// that much is all it says without a horizon.
    ///
    /// The future may be dropped at any time.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    fn changes_since(
        &self,
        horizon: Option<Horizon>,
    ) -> impl Future<Output = Result<Changes, StoreError>> + Send;

    /// The position up to which the log has been written, of a log that is not a replica. What has
    /// been committed before is below it.
    ///
    /// The future may be dropped at any time.
    ///
    /// # Errors
    ///
    /// When the log has no positions, which is the default; when it cannot be read, or is a replica.
    fn end(&self) -> impl Future<Output = Result<u64, StoreError>> + Send {
        let problem = "this log has no positions";
        async move { Err(StoreError::new(StoreErrorKind::Other).because(problem)) }
    }
}

/// What a [`ChangeLog`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// What to ask with the next time.
    pub horizon: Horizon,
    /// The last change of each key that was changed.
    pub keys: Vec<ChangedKey>,
    /// How far a replica has come; `None` where the log itself was read.
    pub replica: Option<Replica>,
}

/// How far a replica of a log has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replica {
    /// The position up to which it has applied the log.
    pub applied: u64,
    /// The position that it knows the log to have; `None` while it is not connected to its source.
    pub known: Option<u64>,
    /// How long ago what it applied last was committed, by clocks that may differ; `None` where
    /// that is unknown.
    pub age: Option<Duration>,
}

impl Replica {
    /// A replica that has applied the log up to a position, of one that it knows of.
    #[must_use]
    pub const fn new(applied: u64, known: Option<u64>, age: Option<Duration>) -> Self {
        Self { applied, known, age }
    }
}

impl Changes {
    /// No changes until `horizon`.
    #[must_use]
    pub const fn new(horizon: Horizon) -> Self {
        Self { horizon, keys: Vec::new(), replica: None }
    }
}

/// How far a [`ChangeLog`] was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Horizon {
    /// Every transaction of a lower number had ended by then. It never decreases.
    pub from: u64,
    /// Differs between servers, and before and after a restart or a crash of one: numbers of the one
    /// mean nothing to the other. 0 where there is no server.
    pub server: i64,
}

impl Horizon {
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
    /// Which. The id of 16 zeros stands for every key.
    pub key_id: KeyId,
    /// The transaction that inserted it, or gave it a new hash; 0 where nobody knows any more.
    pub created_in: u64,
    /// The transaction that changed it, or deleted it.
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
/// Beyond this many changes, confirming every key is less work than going through them.
const MOST_UNTOLD: usize = 10_000;
/// How long one poll may take. A network that swallows everything would keep it for a quarter of an
/// hour.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long the primary may take to say how far it is. Changes that have been read wait for it.
const PRIMARY_DEADLINE: Duration = Duration::from_secs(1);
const MAX_LAG: Duration = Duration::from_secs(5);
const MIN_MAX_LAG: Duration = Duration::from_millis(100);
const MAX_MAX_LAG: Duration = Duration::from_secs(300);
/// Positions that are remembered until a replica has applied them.
const MOST_MARKS: usize = 64;

/// Asks a store for changes, again and again: for PostgreSQL behind PgBouncer in transaction mode,
/// for its standbys, and for SQLite files that several processes share.
///
/// A poll is one statement, and reads one range of an index: what was changed since the oldest
/// transaction that was running at the last poll. Transactions may commit in any order, and nothing
/// is told twice. One that writes for hours, in whichever database of the server, makes the range
/// grow with every change made meanwhile.
///
/// In PostgreSQL it takes the right to read `api_key_changes`.
///
/// A new key is told as [`Changed`](Change::Changed) and then as [`Created`](Change::Created): the
/// log does not tell a new key from one that has a new hash.
///
/// All polls have to reach one server: [`next`](ChangeFeed::next) fails when another one answers, or
/// the same one after a restart or a crash.
///
/// # Standbys
///
/// A standby tells changes once it has applied them, and is polled only by those who look keys up
/// there as well. Each poll asks how far it is behind. If that is longer than
/// [`max_lag`](Self::max_lag), the feed counts as [behind](crate::auth::FeedHealth::Behind), and
/// what the standby says of keys no longer confirms them. It is behind
///
/// 1. when it has received changes that it has not applied: its replay is paused, delayed, waits for
///    a query, or is slow;
/// 2. when it is not connected to its source. PostgreSQL notices a dead connection after
///    `wal_receiver_timeout` (60 s by default). With a setting of 0 it never does;
/// 3. when it knows that its source has more than it has received. Only members of
///    `pg_read_all_stats` see that;
/// 4. when its [`primary`](Self::primary) has written what it has not applied. This covers all of
///    the above, and a standby of a standby that is cut off: nothing else does.
///
/// A SQLite file that was replaced by another one, or deleted, is a replica without a source: processes
/// that have it open read it until they are restarted.
///
/// A standby whose primary is idle has applied all there is, and is not behind.
///
/// Polls use the connections of look-ups, which management cannot take.
///
/// A poll that brings more than 10,000 changes is told as [`Everything`](Change::Everything).
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
    /// Also kept while it is not connected: a server that was behind still is.
    progress: Option<Progress>,
}

impl<L: ChangeLog> PollingChangeFeed<L> {
    /// Changes of `log`.
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

    /// The pause between two polls. Default: 1 s, so that a revocation counts within about a
    /// second, for one cheap statement a second and node; at least 10 ms, which no database should
    /// be asked to go below, and at most 60 s, beyond which it tells little that a cache does not
    /// find out by itself.
    #[must_use]
    pub fn interval(self, interval: Duration) -> Self {
        Self { interval: interval.clamp(MIN_INTERVAL, MAX_INTERVAL), ..self }
    }

    /// How far behind a standby may be. Default: 5 s, as long as a standby waits before it connects
    /// to its primary again, so that a primary which restarts is no gap; at least 100 ms, and at most
    /// 5 min.
    ///
    /// A change counts within this and an [`interval`](Self::interval), or what was read of the key
    /// is no longer fresh. Beyond it, keys are let in by what is known of them as during an outage of
    /// the store, for [`stale_if_error`](crate::auth::CachePolicy::stale_if_error).
    #[must_use]
    pub fn max_lag(self, max_lag: Duration) -> Self {
        Self { max_lag: max_lag.clamp(MIN_MAX_LAG, MAX_MAX_LAG), ..self }
    }

    /// Where what is polled is replicated from. Default: none, and a standby is asked what it knows
    /// of its source.
    ///
    /// Each poll then asks the primary how far it has written, which takes no right and reads no
    /// table. While the primary does not say, nobody knows whether the standby is current, and it
    /// counts as behind after [`max_lag`](Self::max_lag).
    #[must_use]
    pub fn primary(self, primary: L) -> Self {
        Self { primary: Some(primary), ..self }
    }

    /// What has changed, and how far a replica should be.
    async fn read(&self, horizon: Option<Horizon>) -> Result<(Changes, Option<u64>), StoreError> {
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

    /// A replica that has not applied what was there at an earlier poll is asked again before it has
    /// been behind for too long. To be a moment behind is usual.
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
        // Put back when all went well: after an error, `connect` comes first.
        let mut position = self.position.take().ok_or_else(|| lost("`connect` comes first"))?;
        let waited = Instant::now();
        if position.untold.is_empty() {
            sleep(self.pause()).await;
            let asked = Instant::now();
            let (changes, end) = self.read(Some(position.horizon)).await?;
            self.observe(asked, &changes, end);
            position.advance(changes)?;
        }
        // What was changed right after the last poll is heard of now, by a replica even later.
        let lag = waited.elapsed() + self.staleness().map_or(Duration::ZERO, |stale| stale.age);
        let change = position.untold.pop_front().unwrap_or(Change::Nothing { lag });
        self.position = Some(position);
        Ok(change)
    }

    fn staleness(&self) -> Option<Staleness> {
        let progress = self.progress.as_ref().filter(|progress| progress.is_replica)?;
        Some(Staleness::new(progress.current.age(), progress.is_too_late))
    }
}

/// An instant that may lie before all that the clock can say.
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

/// How far a replica is behind, by the clock of who asks: the end of its log as it was at some time
/// is a mark, and what has applied up to there is as new as that time.
struct Progress {
    server: i64,
    is_replica: bool,
    /// All that was committed before has been applied.
    current: Past,
    /// Later ends that have not been applied. `None` is one that nobody could tell.
    ahead: VecDeque<(Past, Option<u64>)>,
    /// The first of these has been ahead for too long.
    is_too_late: bool,
}

impl Progress {
    /// Of what was before the first question, only clocks tell.
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

/// How far a log was read.
struct Position {
    horizon: Horizon,
    /// The last changes taken from beyond the horizon, where they will be found again.
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
            return Err(lost("another server answers, or the same one after a restart"));
        }
        if horizon.from < self.horizon.from {
            return Err(lost("the log went backwards"));
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
