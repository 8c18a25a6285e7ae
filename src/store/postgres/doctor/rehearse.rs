use std::time::SystemTime;

use sqlx::raw_sql;

use crate::{
    key::KeyHash,
    rate_limit::RateLimits,
    record::{KeyId, KeyRecord},
    store::{
        EventPage, EventQuery, KeyPage, KeyQuery, StoreError,
        port::{Changes, LogPosition, UsageBatch},
        postgres::{
            PgTransaction, batch, change_log::changes_since, error::failed, get, last_used_at,
            list, plans, usage,
        },
        trial::Rehearse,
    },
};

/// Performs look-ups and changes in one transaction.
impl Rehearse for PgTransaction {
    async fn find(&mut self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let (connection, statements) = self.parts()?;
        // Also runs the statement for several keys. No key has the second hash.
        let other = KeyHash::from_bytes([0; 32]);
        batch::find_on(connection, &statements, &[*hash, other]).await?;
        let mut found = batch::find_on(connection, &statements, &[*hash]).await?;
        found.remove(hash).unwrap_or(Ok(None))
    }

    async fn get(&mut self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        get(self.parts()?.0, id).await
    }

    async fn list(&mut self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let page = list::keys(self.parts()?.0, query).await?;
        // The cursor of a list otherwise ends with its transaction.
        raw_sql("close all").execute(self.parts()?.0).await.map_err(failed)?;
        Ok(page)
    }

    async fn events(&mut self, query: &EventQuery) -> Result<EventPage, StoreError> {
        list::events(self.parts()?.0, query).await
    }

    async fn flush_usage(&mut self, batch: &UsageBatch) -> Result<(), StoreError> {
        usage::record_on(self.parts()?.0, batch).await
    }

    async fn last_used_at(&mut self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        last_used_at(self.parts()?.0, id).await
    }

    async fn plans(&mut self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        plans::all(self.parts()?.0).await
    }

    async fn changes_since(&mut self, horizon: Option<LogPosition>) -> Result<Changes, StoreError> {
        let (connection, statements) = self.parts()?;
        changes_since(connection, &statements, horizon).await
    }

    async fn settle(&mut self) -> Result<(), StoreError> {
        let settle = raw_sql("set constraints all immediate");
        settle.execute(self.parts()?.0).await.map_err(failed)?;
        Ok(())
    }
}
