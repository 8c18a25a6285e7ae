use sqlx::{PgConnection, query, query_as, query_scalar};

use super::{PgKeyStore, error::failed};
use crate::{
    rate_limit::{PlanName, RateLimits},
    store::{
        StoreError, StoreErrorKind,
        port::ManagePlans,
        row::{self, Plan, json},
    },
};

const CREATE: &str = "
insert into api_key_plans (name, rate_limits) values ($1, $2::jsonb)
on conflict do nothing
returning true";

const LOCK: &str = "select rate_limits::text from api_key_plans where name = $1 for update";

// An update that changes nothing is not announced.
const CHANGE: &str = "
update api_key_plans set rate_limits = $2::jsonb, updated_at = clock_timestamp()
where name = $1 and rate_limits <> $2::jsonb";

const REMOVE: &str = "delete from api_key_plans where name = $1 returning rate_limits::text";

const ALL: &str = r#"select name, rate_limits::text from api_key_plans order by name collate "C""#;

/// A conflicting plan may be removed before it is read. The limit ends the loop when a trigger of
/// the application never keeps plans.
const SET_ATTEMPTS: usize = 5;

/// Sets a plan's limits and returns the previous ones.
///
/// Must run in a transaction, so that the returned limits are accurate.
pub(super) async fn set(
    connection: &mut PgConnection,
    name: &str,
    limits: &RateLimits,
) -> Result<Option<String>, StoreError> {
    let name = PlanName::new(name)?;
    let limits = json(limits)?;
    for _ in 0..SET_ATTEMPTS {
        let create = query_scalar(CREATE).bind(name.as_str()).bind(&limits);
        let created: Option<bool> =
            create.fetch_optional(&mut *connection).await.map_err(failed)?;
        if created.is_some() {
            return Ok(None);
        }
        let lock = query_scalar(LOCK).bind(name.as_str()).fetch_optional(&mut *connection);
        // `None`: removed in between.
        if let Some(before) = lock.await.map_err(failed)? {
            let change = query(CHANGE).bind(name.as_str()).bind(&limits);
            change.execute(&mut *connection).await.map_err(failed)?;
            return Ok(Some(before));
        }
    }
    Err(StoreError::new(StoreErrorKind::Other).because("a plan is not kept"))
}

pub(super) async fn remove(
    connection: &mut PgConnection,
    name: &str,
) -> Result<Option<String>, StoreError> {
    query_scalar(REMOVE).bind(name).fetch_optional(connection).await.map_err(failed)
}

pub(super) async fn all(
    connection: &mut PgConnection,
) -> Result<Vec<(String, RateLimits)>, StoreError> {
    let rows: Vec<Plan> = query_as(ALL).fetch_all(connection).await.map_err(failed)?;
    row::plans(rows)
}

impl ManagePlans for PgKeyStore {
    async fn set_plan(&self, name: &str, limits: &RateLimits) -> Result<(), StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_unaudited).await?;
        set(&mut lease, name, limits).await?;
        self.management.commit(lease).await
    }

    async fn remove_plan(&self, name: &str) -> Result<bool, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_unaudited).await?;
        let removed = remove(&mut lease, name).await?;
        self.management.commit(lease).await?;
        Ok(removed.is_some())
    }

    async fn plans(&self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let plans = all(&mut lease).await?;
        self.management.commit(lease).await?;
        Ok(plans)
    }
}
