//! Look-ups that come while others are under way are asked together.

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

/// Keys in one query. Beyond, its first would wait for its last.
const MAX_KEYS: usize = 64;
/// Queries in a row on one connection, which spares it two pings each. Then others may have it.
const QUERIES_PER_LEASE: u32 = 16;

/// Looks keys up: at once while few queries are under way, else together with whoever else waits
/// for one of them to end, as databases commit in groups. Nobody waits for company, and nobody is
/// answered by a query that was sent before they asked.
///
/// Queries run in tasks, so that those who began them may go, and each goes on until all who wait
/// for it have gone. Runtimes have queues of their own: one that stands still holds up no other.
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

    /// Connections that management cannot take, for who authenticates.
    pub(super) fn pool(&self) -> &LookupPool {
        &self.pool
    }

    /// Waits no longer than the pool has patience for.
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

    /// After a query that others had a part in ended without an answer.
    async fn find_alone(&self, hash: &KeyHash) -> Answer {
        let mut lease = None;
        let mut found = self.ask(&[*hash], &mut lease).await?;
        if let Some(lease) = lease {
            lease.release();
        }
        found.remove(hash).unwrap_or(Ok(None))
    }

    /// Asks at once, or queues up.
    fn begin(self: &Arc<Self>, waiting: Waiting, runtime: &Handle) {
        let mut queues = self.queues();
        let queue = queues.entry(runtime.id()).or_default();
        if queue.queries >= self.pool.max_queries() {
            queue.waiting.push_back(waiting);
            return;
        }
        queue.queries += 1;
        // A runtime that has ended drops the task at once, and its turn takes the lock.
        drop(queues);
        let turn = Turn { batcher: Arc::clone(self), runtime: runtime.id(), is_over: false };
        runtime.spawn(turn.take(vec![waiting]));
    }

    async fn answer(&self, mut batch: Vec<Waiting>, lease: &mut Option<Lease>) {
        let hashes = batch.iter().map(|waiting| waiting.hash).collect::<Vec<_>>();
        let asked = async {
            match self.ask(&hashes, lease).await {
                // One connection was lost, which is not to look like so many failures.
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
        // What the server or the driver says of all may be about one of them: each asks for itself.
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

    /// What there is of each of these, and of nothing else.
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
        // A connection that has brought what makes no sense may be the reason.
        *kept = found.values().all(Result::is_ok).then_some(lease);
        Ok(found)
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<Id, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of each key, by one statement.
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
    let first = rows.first().ok_or_else(|| corrupt("the answer to a look-up"))?;
    for row in &rows {
        let hash: Option<[u8; 32]> = row.try_get("key_hash").map_err(failed)?;
        let Some(hash) = hash.map(KeyHash::from_bytes) else { continue };
        // A key that it should have been the record of is not to count as unknown.
        let other = || corrupt("the answer to another look-up");
        *found.get_mut(&hash).ok_or_else(other)? = found_in(row);
    }
    let role: Option<String> = first.try_get("keys_hidden_from").map_err(failed)?;
    if let Some(role) = role {
        let unknown = found.values_mut().filter(|found| matches!(found, Ok(None)));
        unknown.for_each(|found| *found = Err(hidden("api_keys", &role)));
    }
    Ok(found)
}

/// The key of a row, with the limits of its plan.
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

/// When nobody waits any more.
async fn deserted(batch: &mut [Waiting]) {
    for waiting in batch {
        waiting.answer.closed().await;
    }
}

/// One of [`MAX_QUERIES`], for as long as somebody waits.
struct Turn {
    batcher: Arc<Batcher>,
    runtime: Id,
    is_over: bool,
}

impl Turn {
    /// Asks for these, and then for those who have queued up meanwhile, until there are none.
    async fn take(mut self, first: Vec<Waiting>) {
        let mut lease = None;
        let mut batch = first;
        let mut queries = 0;
        while !batch.is_empty() {
            self.batcher.answer(batch, &mut lease).await;
            // Those who have been answered may have more to ask for.
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

    /// Where there are none, whoever comes next asks at once.
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
    /// Also when the driver panicked, or the runtime has ended. Those that no turn is left for ask
    /// for themselves.
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
