use sqlx::{PgExecutor, Row as _, raw_sql};

use crate::store::{
    StoreError, StoreErrorKind, migrate,
    postgres::{
        error::{UNDEFINED_TABLE, failed},
        schema::Statements,
    },
};

const HIDDEN: &str =
    "table `api_key_feed` has no row visible to this role: check row-level security";

/// What announcements depend on.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Guard {
    pub(super) channel: String,
    pub(super) secret: Vec<u8>,
}

impl Guard {
    /// Fails if changes are not announced.
    pub(super) async fn read<'c>(
        connection: impl PgExecutor<'c>,
        statements: &Statements,
    ) -> Result<Self, StoreError> {
        let row = raw_sql(statements.guard.clone())
            .fetch_optional(connection)
            .await
            .map_err(unreadable)?;
        let row = row.ok_or_else(|| StoreError::new(StoreErrorKind::Other).because(HIDDEN))?;
        if let Some(silent) = row.try_get::<Option<String>, _>("silent").map_err(failed)? {
            let problem = format!(
                "changes are not announced: these triggers are missing, disabled or replaced: \
                 {silent}. Run `migrate`, or enable them"
            );
            return Err(StoreError::new(StoreErrorKind::Migration).because(problem));
        }
        let channel = row.try_get("channel").map_err(failed)?;
        let secret = row.try_get("secret").map_err(failed)?;
        Ok(Self { channel, secret })
    }
}

fn unreadable(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(|error| error.code()) {
        Some(code) if code == UNDEFINED_TABLE => migrate::no_changes(),
        _ => failed(error),
    }
}
