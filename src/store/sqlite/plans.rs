use sqlx::{SqliteConnection, query, query_as};

use super::{SqliteKeyStore, error::failed, record::now};
use crate::{
    rate_limit::RateLimits,
    store::{
        ManagePlans, StoreError,
        plans::check_name,
        row::{self, Plan, json},
    },
};

// What changes nothing is told to nobody.
const SET: &str = concat!(
    "insert into api_key_plans as stored (name, rate_limits) values (?1, ?2)
    on conflict (name) do update
    set rate_limits = excluded.rate_limits, updated_at = ",
    now!(),
    " where stored.rate_limits <> excluded.rate_limits"
);

const REMOVE: &str = "delete from api_key_plans where name = ?1";

const ALL: &str = "select name, rate_limits from api_key_plans order by name";

impl ManagePlans for SqliteKeyStore {
    async fn set_plan(&self, name: &str, limits: &RateLimits) -> Result<(), StoreError> {
        check_name(name)?;
        set(&mut *self.connection().await?, name, limits).await
    }

    async fn remove_plan(&self, name: &str) -> Result<bool, StoreError> {
        remove(&mut *self.connection().await?, name).await
    }

    async fn plans(&self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        all(&mut *self.connection().await?).await
    }
}

pub(super) async fn set(
    connection: &mut SqliteConnection,
    name: &str,
    limits: &RateLimits,
) -> Result<(), StoreError> {
    let set = query(SET).bind(name.to_owned()).bind(json(limits)?);
    set.execute(connection).await.map_err(failed)?;
    Ok(())
}

pub(super) async fn remove(
    connection: &mut SqliteConnection,
    name: &str,
) -> Result<bool, StoreError> {
    let remove = query(REMOVE).bind(name.to_owned());
    Ok(remove.execute(connection).await.map_err(failed)?.rows_affected() > 0)
}

pub(super) async fn all(
    connection: &mut SqliteConnection,
) -> Result<Vec<(String, RateLimits)>, StoreError> {
    let rows: Vec<Plan> = query_as(ALL).fetch_all(connection).await.map_err(failed)?;
    row::plans(rows)
}
