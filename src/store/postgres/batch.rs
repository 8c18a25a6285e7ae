//! Batches concurrent look-ups into shared queries.

use std::{
    collections::{HashMap, VecDeque},
    iter::from_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sqlx::{PgConnection, Row as _, postgres::PgRow, query};
use tokio::{
    runtime::{Handle, Id},
    select,
    sync::oneshot,
    task::yield_now,
    time::timeout,
};

use super::{
    error::{failed, hidden},
    lease::Lease,
    lookup_pool::LookupPool,
    record::record_of,
    schema::{SchemaCell, Statements},
};
use crate::{
    key::KeyHash,
    record::KeyRecord,
    store::{
        StoreError, StoreErrorKind,
        row::{answering, corrupt},
    },
};

/// Maximum keys per query. In a larger batch, the first key would wait for the last.
const MAX_KEYS: usize = 64;
/// Consecutive queries on one connection, which saves two pings each, before releasing it.
const QUERIES_PER_LEASE: u32 = 16;

/// Looks keys up: at once while few queries are running; otherwise the look-up joins the batch that
/// the next free query takes, as in group commit. A look-up never waits for a batch to fill, and is
/// never answered by a query that was sent before it began.
///
/// Queries run in spawned tasks, so the caller that started one may be dropped; a query runs until
/// all its waiters are gone. Each runtime has its own queue, so a blocked runtime does not delay
/// the others.
pub(super) struct Batcher {
    pool: LookupPool,
    schema: Arc<SchemaCell>,
    queues: Mutex<HashMap<Id, Queue>>,
}

#[derive(Default)]
struct Queue {
    queries: u32,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    hash: KeyHash,
    answer: oneshot::Sender<Answer>,
}

type Answer = Result<Option<KeyRecord>, StoreError>;

impl Batcher {
    pub(super) fn new(pool: LookupPool, schema: Arc<SchemaCell>) -> Self {
        Self { pool, schema, queues: Mutex::default() }
    }

    /// The look-up connections, which management cannot take.
    pub(super) fn pool(&self) -> &LookupPool {
        &self.pool
    }

    /// Waits at most for the pool's acquire timeout.
    pub(super) async fn find(self: &Arc<Self>, hash: &KeyHash) -> Answer {
        let Ok(runtime) = Handle::try_current() else {
            return Err(StoreError::new(StoreErrorKind::Other).because("no tokio runtime"));
        };
        let (answer, answered) = oneshot::channel();
        self.begin(Waiting { hash: *hash, answer }, &runtime);
        let answer = timeout(self.pool.acquire_timeout(), async {
            match answered.await {
                Ok(answer) => answer,
                Err(_) => self.find_alone(hash).await,
            }
        });
        let late = |late| Err(StoreError::new(StoreErrorKind::Unavailable).because(late));
        answering(hash, answer.await.unwrap_or_else(late)?)
    }

    /// Used when a shared query ended without an answer.
    async fn find_alone(&self, hash: &KeyHash) -> Answer {
        let mut lease = None;
        let mut found = self.ask(&[*hash], &mut lease).await?;
        if let Some(lease) = lease {
            lease.release();
        }
        found.remove(hash).unwrap_or(Ok(None))
    }

    /// Starts a query, or queues if enough are running.
    fn begin(self: &Arc<Self>, waiting: Waiting, runtime: &Handle) {
        let mut queues = self.queues();
        let queue = queues.entry(runtime.id()).or_default();
        if queue.queries >= self.pool.max_queries() {
            queue.waiting.push_back(waiting);
            return;
        }
        queue.queries += 1;
        // A runtime that has shut down drops the task at once, and dropping `turn` takes the lock.
        drop(queues);
        let turn = Turn { batcher: Arc::clone(self), runtime: runtime.id(), is_over: false };
        runtime.spawn(turn.take(vec![waiting]));
    }

    async fn answer(&self, mut batch: Vec<Waiting>, lease: &mut Option<Lease>) {
        let hashes = batch.iter().map(|waiting| waiting.hash).collect::<Vec<_>>();
        let asked = async {
            match self.ask(&hashes, lease).await {
                // Retry once, so that one lost connection does not count as many failures.
                Err(error) if hashes.len() > 1 && error.kind() == StoreErrorKind::Unavailable => {
                    self.ask(&hashes, lease).await
                }
                found => found,
            }
        };
        let found = select! {
            biased;
            found = asked => found,
            () = deserted(&mut batch) => return,
        };
        // An error of the server or the driver may concern just one of the keys: each waiter
        // retries on its own.
        if batch.len() > 1
            && let Err(error) = &found
            && !matches!(error.kind(), StoreErrorKind::Unavailable | StoreErrorKind::Overloaded)
        {
            return;
        }
        for Waiting { hash, answer } in batch {
            let found = found.as_ref().map_err(Clone::clone);
            let _ =
                answer.send(found.and_then(|found| found.get(&hash).cloned().unwrap_or(Ok(None))));
        }
    }

    /// The result for each of these hashes.
    async fn ask(
        &self,
        hashes: &[KeyHash],
        kept: &mut Option<Lease>,
    ) -> Result<HashMap<KeyHash, Answer>, StoreError> {
        let mut lease = match kept.take() {
            Some(lease) => lease,
            None => self.pool.lease().await?,
        };
        let statements = self.schema.statements(&mut lease).await?;
        let found = find_on(&mut lease, &statements, hashes).await;
        self.pool.query_ended();
        let found = found?;
        self.schema.confirm(&statements);
        // Do not reuse a connection that returned an invalid row: it may be the cause.
        *kept = found.values().all(Result::is_ok).then_some(lease);
        Ok(found)
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<Id, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks up all hashes with one statement.
pub(super) async fn find_on(
    connection: &mut PgConnection,
    statements: &Statements,
    hashes: &[KeyHash],
) -> Result<HashMap<KeyHash, Answer>, StoreError> {
    let mut found: HashMap<_, Answer> = hashes.iter().map(|hash| (*hash, Ok(None))).collect();
    let find = match hashes {
        [hash] => query(statements.find.clone()).bind(*hash.as_bytes()),
        _ => {
            let hashes = found.keys().map(|hash| *hash.as_bytes()).collect::<Vec<_>>();
            query(statements.find_many.clone()).bind(hashes)
        }
    };
    let rows = find.fetch_all(connection).await.map_err(failed)?;
    let first = rows.first().ok_or_else(|| corrupt("empty answer to a look-up"))?;
    for row in &rows {
        let hash: Option<[u8; 32]> = row.try_get("key_hash").map_err(failed)?;
        let Some(hash) = hash.map(KeyHash::from_bytes) else { continue };
        // Fail rather than report the key as unknown: this row may have been meant for it.
        let other = || corrupt("answer to a different look-up");
        *found.get_mut(&hash).ok_or_else(other)? = found_in(row);
    }
    let role: Option<String> = first.try_get("keys_hidden_from").map_err(failed)?;
    if let Some(role) = role {
        let unknown = found.values_mut().filter(|found| matches!(found, Ok(None)));
        unknown.for_each(|found| *found = Err(hidden("api_keys", &role)));
    }
    Ok(found)
}

/// The key in a row, with its plan's limits.
fn found_in(row: &PgRow) -> Answer {
    let record = record_of(row)?;
    let role: Option<String> = row.try_get("plans_hidden_from").map_err(failed)?;
    match role {
        Some(role) if record.plan.is_some() && record.plan_limits.is_none() => {
            Err(hidden("api_key_plans", &role))
        }
        _ => Ok(Some(record)),
    }
}

/// Resolves when all waiters are gone.
async fn deserted(batch: &mut [Waiting]) {
    for waiting in batch {
        waiting.answer.closed().await;
    }
}

/// A permit for one of [`MAX_QUERIES`] concurrent queries.
struct Turn {
    batcher: Arc<Batcher>,
    runtime: Id,
    is_over: bool,
}

impl Turn {
    /// Answers these, then batches that queued up meanwhile, until the queue is empty.
    async fn take(mut self, first: Vec<Waiting>) {
        let mut lease = None;
        let mut batch = first;
        let mut queries = 0;
        while !batch.is_empty() {
            self.batcher.answer(batch, &mut lease).await;
            // Callers just answered may start further look-ups.
            yield_now().await;
            batch = self.next();
            queries += 1;
            if (batch.is_empty() || queries % QUERIES_PER_LEASE == 0)
                && let Some(lease) = lease.take()
            {
                lease.release();
            }
        }
    }

    /// The next batch. If it is empty, the permit is released, so the next look-up starts at once.
    fn next(&mut self) -> Vec<Waiting> {
        let mut queues = self.batcher.queues();
        let Some(Queue { waiting, .. }) = queues.get_mut(&self.runtime) else { return Vec::new() };
        let those_who_stay = |waiting: &Waiting| !waiting.answer.is_closed();
        let batch = from_fn(|| waiting.pop_front()).filter(those_who_stay).take(MAX_KEYS);
        let batch: Vec<_> = batch.collect();
        if batch.is_empty() {
            self.is_over = true;
            give_back(&mut queues, self.runtime);
        }
        batch
    }
}

impl Drop for Turn {
    /// Also runs when the driver panicked or the runtime shut down. Waiters left without a query
    /// retry on their own.
    fn drop(&mut self) {
        if !self.is_over {
            give_back(&mut self.batcher.queues(), self.runtime);
        }
    }
}

fn give_back(queues: &mut HashMap<Id, Queue>, runtime: Id) {
    if let Some(queue) = queues.get_mut(&runtime) {
        queue.queries -= 1;
        if queue.queries == 0 {
            queues.remove(&runtime);
        }
    }
}
