use sqlx::{PgConnection, query, query_as};

use super::{PgKeyStore, error::failed};
use crate::{
    rate_limit::RateLimits,
    store::{
        ManagePlans, StoreError,
        plans::check_name,
        row::{self, Plan, json},
    },
};

// What changes nothing is told to nobody.
const SET: &str = "
insert into api_key_plans as stored (name, rate_limits) values ($1, $2::jsonb)
on conflict (name) do update
set rate_limits = excluded.rate_limits, updated_at = clock_timestamp()
where stored.rate_limits <> excluded.rate_limits";

const REMOVE: &str = "delete from api_key_plans where name = $1";

const ALL: &str = r#"select name, rate_limits::text from api_key_plans order by name collate "C""#;

impl ManagePlans for PgKeyStore {
    async fn set_plan(&self, name: &str, limits: &RateLimits) -> Result<(), StoreError> {
        check_name(name)?;
        let mut lease = self.lease().await?;
        set(&mut lease, name, limits).await?;
        lease.release();
        Ok(())
    }

    async fn remove_plan(&self, name: &str) -> Result<bool, StoreError> {
        let mut lease = self.lease().await?;
        let removed = remove(&mut lease, name).await?;
        lease.release();
        Ok(removed)
    }

    async fn plans(&self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        let mut lease = self.lease().await?;
        let plans = all(&mut lease).await?;
        lease.release();
        Ok(plans)
    }
}

pub(super) async fn set(
    connection: &mut PgConnection,
    name: &str,
    limits: &RateLimits,
) -> Result<(), StoreError> {
    let set = query(SET).bind(name).bind(json(limits)?);
    set.execute(connection).await.map_err(failed)?;
    Ok(())
}

pub(super) async fn remove(connection: &mut PgConnection, name: &str) -> Result<bool, StoreError> {
    let removed = query(REMOVE).bind(name).execute(connection).await.map_err(failed)?;
    Ok(removed.rows_affected() > 0)
}

pub(super) async fn all(
    connection: &mut PgConnection,
) -> Result<Vec<(String, RateLimits)>, StoreError> {
    let rows: Vec<Plan> = query_as(ALL).fetch_all(connection).await.map_err(failed)?;
    row::plans(rows)
}
