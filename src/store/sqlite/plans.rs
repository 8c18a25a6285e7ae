use sqlx::{SqliteConnection, query, query_as, query_scalar};

use super::{READ, SqliteKeyStore, WRITE, error::failed, lease::Lease, record::now};
use crate::{
    rate_limit::{PlanName, RateLimits},
    store::{
        StoreError,
        port::ManagePlans,
        row::{self, Plan, json},
    },
};

// An update that changes nothing is not recorded as a change.
const SET: &str = concat!(
    "insert into api_key_plans as stored (name, rate_limits) values (?1, ?2)
    on conflict (name) do update
    set rate_limits = excluded.rate_limits, updated_at = ",
    now!(),
    " where stored.rate_limits <> excluded.rate_limits"
);

const GET: &str = "select rate_limits from api_key_plans where name = ?1";

const REMOVE: &str = "delete from api_key_plans where name = ?1 returning rate_limits";

const ALL: &str = "select name, rate_limits from api_key_plans order by name";

/// Sets a plan's limits and returns the previous ones.
///
/// Must run in a transaction, so that the returned limits are accurate.
pub(super) async fn set(
    connection: &mut SqliteConnection,
    name: &str,
    limits: &RateLimits,
) -> Result<Option<String>, StoreError> {
    let name = PlanName::new(name)?;
    let get = query_scalar(GET).bind(name.as_str().to_owned()).fetch_optional(&mut *connection);
    let before = get.await.map_err(failed)?;
    let set = query(SET).bind(name.as_str().to_owned()).bind(json(limits)?);
    set.execute(connection).await.map_err(failed)?;
    Ok(before)
}

pub(super) async fn remove(
    connection: &mut SqliteConnection,
    name: &str,
) -> Result<Option<String>, StoreError> {
    let remove = query_scalar(REMOVE).bind(name.to_owned());
    remove.fetch_optional(connection).await.map_err(failed)
}

pub(super) async fn all(
    connection: &mut SqliteConnection,
) -> Result<Vec<(String, RateLimits)>, StoreError> {
    let rows: Vec<Plan> = query_as(ALL).fetch_all(connection).await.map_err(failed)?;
    row::plans(rows)
}

impl ManagePlans for SqliteKeyStore {
    async fn set_plan(&self, name: &str, limits: &RateLimits) -> Result<(), StoreError> {
        let mut lease = Lease::begin(self.pool(), WRITE).await?;
        set(&mut lease, name, limits).await?;
        lease.commit().await
    }

    async fn remove_plan(&self, name: &str) -> Result<bool, StoreError> {
        let mut lease = Lease::begin(self.pool(), WRITE).await?;
        let removed = remove(&mut lease, name).await?;
        lease.commit().await?;
        Ok(removed.is_some())
    }

    async fn plans(&self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        let mut lease = Lease::begin(self.pool(), READ).await?;
        let plans = all(&mut lease).await?;
        lease.commit().await?;
        Ok(plans)
    }
}
