//! Connections reserved for look-ups, and what it means when none is free.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{ConnectOptions as _, Connection as _, PgPool, postgres::PgConnectOptions};
use tokio::{select, time::timeout};

use super::{error::failed, lease::Lease};
use crate::store::{StoreError, StoreErrorKind};

/// Concurrent look-up queries: the server works on one while the other's answers are read.
pub(super) const MAX_QUERIES: u32 = 2;
/// For polls, and while a connection is being replaced.
const SPARE: u32 = 1;
/// How long to wait for a connection before probing whether the server is reachable.
const BUSY_AFTER: Duration = Duration::from_millis(250);
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// The pool for look-ups: the one supplied, or one created from the management pool.
pub(super) struct LookupPool {
    main: PgPool,
    given: Option<PgPool>,
    made: OnceLock<Made>,
    /// Number of queries that ended. While it grows, waiting callers will get a connection soon.
    ended: AtomicU64,
}

struct Made {
    pool: PgPool,
    /// The main pool's options when this pool was created or last updated.
    options: Mutex<Arc<PgConnectOptions>>,
}

impl LookupPool {
    pub(super) fn new(main: PgPool, given: Option<PgPool>) -> Self {
        Self { main, given, made: OnceLock::new(), ended: AtomicU64::new(0) }
    }

    pub(super) fn max_queries(&self) -> u32 {
        let pool = self.given.as_ref().unwrap_or(&self.main);
        pool.options().get_max_connections().clamp(1, MAX_QUERIES)
    }

    pub(super) fn acquire_timeout(&self) -> Duration {
        self.given.as_ref().unwrap_or(&self.main).options().get_acquire_timeout()
    }

    /// A connection for a look-up or a poll.
    pub(super) async fn lease(&self) -> Result<Lease, StoreError> {
        lease_of(self.pool()?, || self.ended.load(Ordering::Relaxed)).await
    }

    /// Counts a query that ended, successfully or not.
    pub(super) fn query_ended(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// Created at the first look-up, inside of a runtime.
    fn pool(&self) -> Result<&PgPool, StoreError> {
        if let Some(given) = &self.given {
            return Ok(given);
        }
        if self.main.is_closed() {
            return Err(failed(sqlx::Error::PoolClosed));
        }
        let options = self.main.connect_options();
        let made = self.made.get_or_init(|| self.make(Arc::clone(&options)));
        let mut last = made.options.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&last, &options) {
            made.pool.set_connect_options((*options).clone());
            *last = options;
        }
        Ok(&made.pool)
    }

    fn make(&self, options: Arc<PgConnectOptions>) -> Made {
        // Keeps the hooks of the main pool.
        let settings = self.main.options().clone().min_connections(0);
        let pool = settings
            .max_connections(self.max_queries() + SPARE)
            .connect_lazy_with((*options).clone());
        // Close this pool with the main one, so that no connections linger at the server.
        let (main_closed, made_closed, closing) =
            (self.main.close_event(), pool.close_event(), pool.clone());
        tokio::spawn(async move {
            select! {
                () = main_closed => {}
                () = made_closed => {}
            }
            closing.close().await;
        });
        Made { pool, options: Mutex::new(options) }
    }
}

impl Drop for LookupPool {
    fn drop(&mut self) {
        if let Some(made) = self.made.get() {
            // Marks the pool closed; the task above does the rest.
            drop(made.pool.close());
        }
    }
}

/// A connection of `pool`. If all are busy although the server is reachable, the error is
/// [`Overloaded`](StoreErrorKind::Overloaded), which is not an outage.
///
/// `ended` counts finished queries on the pool: while it grows, keep waiting.
pub(super) async fn lease_of(pool: &PgPool, ended: impl Fn() -> u64) -> Result<Lease, StoreError> {
    let mut acquire = pin!(pool.acquire());
    let acquired = loop {
        let before = ended();
        if let Ok(acquired) = timeout(BUSY_AFTER, &mut acquire).await {
            break acquired;
        }
        if ended() == before {
            // Keep waiting meanwhile: the pool may be connecting, which takes as long as the probe.
            break select! {
                biased;
                acquired = &mut acquire => acquired,
                true = is_busy(pool) => return Err(overloaded("all connections are busy")),
            };
        }
    };
    Ok(Lease::new(acquired.map_err(failed)?))
}

/// Whether all connections are in use, rather than being checked after an outage, and the server is
/// reachable.
async fn is_busy(pool: &PgPool) -> bool {
    let is_taken = || pool.num_idle() == 0 && pool.size() >= pool.options().get_max_connections();
    if !is_taken() {
        return false;
    }
    let options = pool.connect_options();
    match timeout(PROBE_DEADLINE, options.connect()).await {
        Ok(Ok(connection)) => {
            tokio::spawn(timeout(PROBE_DEADLINE, connection.close()));
            is_taken()
        }
        Ok(Err(_)) | Err(_) => false,
    }
}

pub(super) fn overloaded(problem: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Overloaded).because(problem)
}
