//! The transactions of a flush, one after the other on one connection.

use sqlx::raw_sql;

use crate::store::{
    StoreError,
    postgres::{
        error::{failed, is_of_a_row},
        lease::Lease,
        management::Management,
    },
};

// The search is for rows that stay locked, not for those that another node releases soon.
const SEARCH: &str = "set local lock_timeout = '50ms'";

pub(super) async fn begin(
    management: &Management,
    kept: &mut Option<Lease>,
    is_search: bool,
) -> Result<Lease, StoreError> {
    let mut lease = match kept.take() {
        Some(mut lease) => {
            management.begin_on(&mut lease, |statements| &statements.begin_usage).await?;
            lease
        }
        // Not counted as management: a flush is one statement and must not wait for management.
        None => management.begin_unbounded(|statements| &statements.begin_usage).await?,
    };
    if is_search {
        raw_sql(SEARCH).execute(&mut *lease).await.map_err(failed)?;
    }
    Ok(lease)
}

/// Ends a transaction and keeps the connection. Returns the error of a row that its commit refused.
pub(super) async fn end_with(
    end: &'static str,
    mut lease: Lease,
    kept: &mut Option<Lease>,
) -> Result<Option<sqlx::Error>, StoreError> {
    let refused = match raw_sql(end).execute(&mut *lease).await {
        Ok(_) => None,
        // A deferred constraint failed at commit, which ended the transaction.
        Err(error) if is_of_a_row(&error) => Some(error),
        Err(error) => return Err(failed(error)),
    };
    *kept = Some(lease);
    Ok(refused)
}
