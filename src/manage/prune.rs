use std::time::SystemTime;

use super::{KeyIssuer, ManageError};
use crate::{record::KeyAction, store::Selection};

/// What was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// Keys that had ended.
    pub keys: u64,
    /// Idempotency keys, and uses of keys that are gone.
    pub leftovers: u64,
}

impl Pruned {
    /// Whether there was nothing left to delete.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys == 0 && self.leftovers == 0
    }
}

impl KeyIssuer {
    /// Deletes at most `at_most` keys that were revoked or expired before `ended_before`, and as
    /// many leftovers: idempotency keys of that age, and uses of keys that are gone. The audit stays.
    ///
    /// One call is one short transaction, so that nobody waits long for it: call it until what it
    /// returns [is empty](Pruned::is_empty). 500 is a good batch.
    ///
    /// A key that was pruned is unknown. If its hash is imported again it works again, revoked or
    /// not, so keep keys for as long as an old list of them may be imported.
    ///
    /// # Errors
    ///
    /// [`Denied`](super::ManageErrorKind::Denied) to a [caller](super::Actor::caller), or when the
    /// store fails.
    pub async fn prune(
        &self,
        ended_before: SystemTime,
        at_most: usize,
    ) -> Result<Pruned, ManageError> {
        self.detached(self.clone().prune_now(ended_before, at_most)).await
    }

    async fn prune_now(self, before: SystemTime, at_most: usize) -> Result<Pruned, ManageError> {
        let by_a_key = self.actor.caller.is_some();
        self.change(Vec::new(), async move |change, _| {
            if by_a_key {
                return Err(ManageError::operators_only());
            }
            let ended = change.tx.lock_some(&Selection::EndedBefore(before), at_most).await?;
            let ids: Vec<_> = ended.iter().map(|record| record.id).collect();
            change.tx.delete(&ids).await?;
            for record in &ended {
                change.note(KeyAction::Pruned, Some(record), record, None);
            }
            let leftovers = change.tx.sweep(before, at_most).await?;
            Ok(Pruned { keys: ids.len() as u64, leftovers: leftovers as u64 })
        })
        .await
    }
}
