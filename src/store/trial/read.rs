use super::{operation::Operation, sample::Sample};

use crate::{
    record::KeyStatus,
    store::{
        BucketWidth, EventQuery, InvalidRow, KeyQuery, ManageKeys, StoreError, StoreErrorKind,
        UsageQuery, port::ChangeLog,
    },
};

/// Reads outside of a transaction, as the service does.
pub(super) async fn read<S>(
    store: &S,
    operation: Operation,
    sample: &Sample,
) -> Result<(), StoreError>
where
    S: ManageKeys + ChangeLog,
{
    match operation {
        Operation::LookUp => store.find(&sample.key.key_hash).await.map(drop),
        Operation::Get => {
            store.get(sample.key.id).await?;
            store.last_used_at(sample.key.id).await.map(drop)
        }
        Operation::List => {
            for query in sample.queries() {
                readable(&store.list(&query).await?.invalid)?;
            }
            for status in KeyStatus::ALL {
                readable(&store.list(&KeyQuery::new().status(status)).await?.invalid)?;
            }
            readable(&store.list(&KeyQuery::new()).await?.invalid)
        }
        Operation::ListByScope => {
            readable(&store.list(&sample.by_scope()).await?.invalid)?;
            readable(&store.list(&sample.by_tag()).await?.invalid)
        }
        Operation::Audit => {
            for query in sample.event_queries() {
                readable(&store.events(&query).await?.invalid)?;
            }
            readable(&store.events(&EventQuery::new()).await?.invalid)
        }
        Operation::Usage => {
            for width in [BucketWidth::Hour, BucketWidth::Day] {
                let query = UsageQuery::until(sample.key.created_at, width);
                store.usage(&query.key_id(sample.key.id)).await?;
            }
            Ok(())
        }
        Operation::Plans => store.plans().await.map(drop),
        Operation::Poll => {
            let changes = store.changes_since(None).await?;
            store.changes_since(Some(changes.horizon)).await.map(drop)
        }
        _ => Ok(()),
    }
}

/// Fails on the first row of a page that could not be parsed.
fn readable(invalid: &[InvalidRow]) -> Result<(), StoreError> {
    match invalid.first() {
        None => Ok(()),
        Some(row) => Err(StoreError::new(StoreErrorKind::Corrupt).because(row.problem.clone())),
    }
}
