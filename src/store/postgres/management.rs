//! Management connections: limited in number and time, each in a transaction that sets the search
//! path.

use std::{sync::Arc, time::Duration};

use sqlx::{PgConnection, PgPool, SqlStr, raw_sql};
use tokio::{sync::Semaphore, time::timeout};

use super::{
    error::{failed, is_left_open},
    lease::Lease,
    lookup_pool::{lease_of, overloaded},
    schema::{SchemaCell, Statements},
};
use crate::store::{StoreError, StoreErrorKind};

/// Maximum concurrent operations on a pool supplied by the application.
const MAX_TURNS: usize = 8;
/// How long a management operation waits for a permit.
const WAIT: Duration = Duration::from_secs(1);

pub(super) struct Management {
    pool: PgPool,
    turns: Arc<Semaphore>,
    schema: Arc<SchemaCell>,
}

impl Management {
    /// Permits `turns` concurrent operations; by default one less than the pool's connections, at
    /// most 8.
    pub(super) fn new(pool: PgPool, turns: Option<usize>, schema: Arc<SchemaCell>) -> Self {
        let connections = usize::try_from(pool.options().get_max_connections()).unwrap_or(1);
        let turns = turns.unwrap_or_else(|| connections.saturating_sub(1).min(MAX_TURNS)).max(1);
        let turns = Arc::new(Semaphore::new(turns.min(Semaphore::MAX_PERMITS)));
        Self { pool, turns, schema }
    }

    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(super) fn schema(&self) -> &Arc<SchemaCell> {
        &self.schema
    }

    /// A connection outside of a transaction.
    pub(super) async fn lease(&self) -> Result<Lease, StoreError> {
        let turn = match Arc::clone(&self.turns).try_acquire_owned() {
            Ok(turn) => turn,
            Err(_) => {
                let turn = timeout(WAIT, Arc::clone(&self.turns).acquire_owned()).await;
                let busy = || overloaded("too many concurrent management operations");
                turn.map_err(|_| busy())?.map_err(|_| busy())?
            }
        };
        Ok(lease_of(&self.pool, || 0).await?.during(turn))
    }

    /// A connection in a transaction started by one of the statements.
    pub(super) async fn begin(
        &self,
        begin: impl Fn(&Statements) -> &SqlStr,
    ) -> Result<Lease, StoreError> {
        self.begin_bounded(true, begin).await
    }

    /// Like `begin`, without the limit on concurrent management.
    pub(super) async fn begin_unbounded(
        &self,
        begin: impl Fn(&Statements) -> &SqlStr,
    ) -> Result<Lease, StoreError> {
        self.begin_bounded(false, begin).await
    }

    async fn begin_bounded(
        &self,
        is_bounded: bool,
        begin: impl Fn(&Statements) -> &SqlStr,
    ) -> Result<Lease, StoreError> {
        // Closes connections that another user of the pool left in a transaction.
        for _ in 0..self.pool.options().get_max_connections() {
            let lease =
                if is_bounded { self.lease().await } else { lease_of(&self.pool, || 0).await };
            let mut lease = lease?;
            match self.try_begin(&mut lease, &begin).await? {
                Ok(()) => return Ok(lease),
                Err(error) if is_left_open(&error) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let problem = "every connection of the pool was left in a transaction: end the \
            transactions that your own code begins";
        Err(StoreError::new(StoreErrorKind::Other).because(problem))
    }

    /// Begins a transaction on a connection outside of one.
    pub(super) async fn begin_on(
        &self,
        connection: &mut PgConnection,
        begin: impl Fn(&Statements) -> &SqlStr,
    ) -> Result<(), StoreError> {
        self.try_begin(connection, &begin).await?.map_err(failed)
    }

    async fn try_begin(
        &self,
        connection: &mut PgConnection,
        begin: &impl Fn(&Statements) -> &SqlStr,
    ) -> Result<Result<(), sqlx::Error>, StoreError> {
        let statements = self.schema.statements(connection).await?;
        Ok(raw_sql(begin(&statements).clone()).execute(connection).await.map(drop))
    }

    /// Commits and releases the connection.
    pub(super) async fn commit(&self, mut lease: Lease) -> Result<(), StoreError> {
        raw_sql("commit").execute(&mut *lease).await.map_err(failed)?;
        lease.release();
        Ok(())
    }
}
