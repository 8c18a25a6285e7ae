use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{Change, ChangeFeed, StoreError, StoreErrorKind};
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
}

/// What a [`ChangeLog`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// What to ask with the next time.
    pub horizon: Horizon,
    /// The last change of each key that was changed.
    pub keys: Vec<ChangedKey>,
}

impl Changes {
    /// No changes until `horizon`.
    #[must_use]
    pub const fn new(horizon: Horizon) -> Self {
        Self { horizon, keys: Vec::new() }
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
/// the same one after a restart or a crash. A standby tells changes once it has them, and is read
/// there only by those who read keys there as well.
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
    interval: Duration,
    position: Option<Position>,
}

impl<L: ChangeLog> PollingChangeFeed<L> {
    /// Changes of `log`.
    #[must_use]
    pub fn new(log: L) -> Self {
        Self { log, interval: INTERVAL, position: None }
    }

    /// The pause between two polls. Default: 1 s, so that a revocation counts within about a
    /// second, for one cheap statement a second and node; at least 10 ms, which no database should
    /// be asked to go below, and at most 60 s, beyond which it tells little that a cache does not
    /// find out by itself.
    #[must_use]
    pub fn interval(self, interval: Duration) -> Self {
        Self { interval: interval.clamp(MIN_INTERVAL, MAX_INTERVAL), ..self }
    }

    async fn read(&self, horizon: Option<Horizon>) -> Result<Changes, StoreError> {
        let reading = timeout(DEADLINE, self.log.changes_since(horizon)).await;
        reading.map_err(|late| StoreError::new(StoreErrorKind::Unavailable).because(late))?
    }
}

impl<L: ChangeLog> ChangeFeed for PollingChangeFeed<L> {
    async fn connect(&mut self) -> Result<(), StoreError> {
        self.position = None;
        self.position = Some(Position::after(self.read(None).await?));
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "nothing tells that there is something to read")]
    async fn next(&mut self) -> Result<Change, StoreError> {
        // Put back when all went well: after an error, `connect` comes first.
        let mut position = self.position.take().ok_or_else(|| lost("`connect` comes first"))?;
        let waited = Instant::now();
        if position.untold.is_empty() {
            sleep(self.interval).await;
            position.advance(self.read(Some(position.horizon)).await?)?;
        }
        // What was changed right after the last poll is heard of now.
        let lag = waited.elapsed();
        let change = position.untold.pop_front().unwrap_or(Change::Nothing { lag });
        self.position = Some(position);
        Ok(change)
    }
}

impl<L> fmt::Debug for PollingChangeFeed<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollingChangeFeed")
            .field("interval", &self.interval)
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
    fn after(Changes { horizon, keys }: Changes) -> Self {
        let taken = keys.into_iter().map(|key| (key.key_id, key)).collect();
        Self { horizon, taken, untold: VecDeque::new() }
    }

    fn advance(&mut self, Changes { horizon, keys }: Changes) -> Result<(), StoreError> {
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
