use std::{fmt, sync::Arc};

use super::{dyn_store::DynStore, settled::Settled};
use crate::store::{StoreError, port::AuditLine};

/// The audit as it grows, in the order in which webhooks get it: no event is skipped, also if its
/// transaction commits late.
///
/// ```no_run
/// # async fn example(webhooks: tower_api_key::webhooks::Webhooks) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tail = webhooks.tail(0);
/// for line in tail.next(100).await? {
///     println!("{} {}", line.id, line.action);
/// }
/// # Ok(())
/// # }
/// ```
pub struct AuditTail {
    store: Arc<dyn DynStore>,
    settled: Settled,
    after: u64,
}

impl AuditTail {
    pub(super) fn new(store: Arc<dyn DynStore>, after: u64) -> Self {
        Self { store, settled: Settled::default(), after }
    }

    /// The last event of the audit so far.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    pub async fn end(&self) -> Result<u64, StoreError> {
        Ok(self.store.frontier().await?.last)
    }

    /// The next events, at most `limit`; none if there are none yet. Does not wait.
    ///
    /// # Errors
    ///
    /// When the store cannot answer. It may be called again.
    pub async fn next(&mut self, limit: usize) -> Result<Vec<AuditLine>, StoreError> {
        let until = self.settled.observe(self.store.frontier().await?);
        let lines = self.store.after(self.after, until, limit).await?;
        if let Some(last) = lines.last() {
            self.after = last.id;
        }
        Ok(lines)
    }
}

impl fmt::Debug for AuditTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditTail").field("after", &self.after).finish_non_exhaustive()
    }
}
