use sqlx::{query, query_as};

use super::{READ, SqliteKeyStore, WRITE, error::failed, lease::Lease, record::now};
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
        let set = query(SET).bind(name.to_owned()).bind(json(limits)?);
        let mut lease = Lease::begin(self.pool(), WRITE).await?;
        let set = set.execute(&mut *lease).await;
        let (_, lease) = lease.after(set)?;
        lease.commit().await
    }

    async fn remove_plan(&self, name: &str) -> Result<bool, StoreError> {
        let remove = query(REMOVE).bind(name.to_owned());
        let mut lease = Lease::begin(self.pool(), WRITE).await?;
        let removed = remove.execute(&mut *lease).await;
        let (removed, lease) = lease.after(removed)?;
        lease.commit().await?;
        Ok(removed.rows_affected() > 0)
    }

    async fn plans(&self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        let mut lease = Lease::begin(self.pool(), READ).await?;
        let rows: Vec<Plan> = query_as(ALL).fetch_all(&mut *lease).await.map_err(failed)?;
        lease.commit().await?;
        row::plans(rows)
    }
}
