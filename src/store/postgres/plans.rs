use sqlx::{query, query_as};

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
        let set = query(SET).bind(name).bind(json(limits)?);
        let mut lease = self.management.begin(|statements| &statements.begin).await?;
        set.execute(&mut *lease).await.map_err(failed)?;
        self.management.commit(lease).await
    }

    async fn remove_plan(&self, name: &str) -> Result<bool, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin).await?;
        let removed = query(REMOVE).bind(name).execute(&mut *lease).await.map_err(failed)?;
        self.management.commit(lease).await?;
        Ok(removed.rows_affected() > 0)
    }

    async fn plans(&self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let rows: Vec<Plan> = query_as(ALL).fetch_all(&mut *lease).await.map_err(failed)?;
        self.management.commit(lease).await?;
        row::plans(rows)
    }
}
