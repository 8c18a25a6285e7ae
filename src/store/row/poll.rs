//! The answer to a poll as columns.

use super::{
    error::{corrupt, unstorable},
    uuid::Uuid,
    value::key_id,
};
use crate::store::{
    StoreError,
    port::{ChangedKey, Changes, LogPosition},
};

/// A row of a poll: the fields of a [`LogPosition`], then those of a [`ChangedKey`], if any.
pub(in crate::store) type Polled = (i64, i64, Option<Uuid>, Option<i64>, Option<i64>);

/// The result of a poll, which has at least one row.
pub(in crate::store) fn changes(rows: &[Polled]) -> Result<Changes, StoreError> {
    let number = |number| u64::try_from(number).map_err(|_| corrupt("table `api_key_changes`"));
    let &(from, server, ..) = rows.first().ok_or_else(|| corrupt("empty answer to a poll"))?;
    let mut changes = Changes::new(LogPosition::new(number(from)?, server));
    for &(.., id, created_in, changed_in) in rows {
        if let (Some(id), Some(created), Some(changed)) = (id, created_in, changed_in) {
            changes.keys.push(ChangedKey::new(key_id(id), number(created)?, number(changed)?));
        }
    }
    Ok(changes)
}

/// The horizon as a query parameter.
pub(in crate::store) fn from(horizon: Option<LogPosition>) -> Result<Option<i64>, StoreError> {
    horizon.map(|horizon| i64::try_from(horizon.from).map_err(unstorable)).transpose()
}
