use std::time::{Duration, SystemTime};

use super::{
    KeyIssuer, ManageError,
    batch::Outcome,
    change::{Attempt, Change},
};
use crate::{
    record::{KeyAction, KeyId, KeyRecord},
    store::port::KeyFilter,
};

/// For how long the last batch of a node is kept, which is not to be counted again: far longer than
/// a node retries a batch that was written without its knowledge.
const WRITER_AGE: Duration = Duration::from_secs(7 * 86_400);

/// The result of a prune.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// How many keys were deleted.
    pub keys: u64,
    /// How many idempotency keys, and times of last use of deleted keys, were deleted.
    pub leftovers: u64,
    /// Keys that could not be deleted: a rule of the database refuses it, such as a foreign key of
    /// the application, or their rows cannot be read. Each is logged.
    pub skipped: Vec<KeyId>,
}

impl Pruned {
    /// Whether nothing was deleted.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys == 0 && self.leftovers == 0
    }
}

impl KeyIssuer {
    /// Deletes at most `at_most` keys that were revoked or expired before `ended_before`, and as
    /// many leftovers: idempotency keys of that age, and times of last use of deleted keys. The
    /// audit is kept.
    ///
    /// A call is one short transaction, to keep others waiting only briefly. Call it until its
    /// result [is empty](Pruned::is_empty). 500 is a good batch.
    ///
    /// Keys that cannot be deleted are skipped, and tried again by each call. If there are many,
    /// [`prune_past`](Self::prune_past) is faster.
    ///
    /// A pruned key is unknown. If its hash is imported again, the key works again even if it had
    /// been revoked, so keep keys for as long as an old list of them may be imported.
    ///
    /// # Errors
    ///
    /// [`Denied`](super::ManageErrorKind::Denied) to a [caller](super::Actor::key), or when the
    /// store fails.
    pub async fn prune(
        &self,
        ended_before: SystemTime,
        at_most: usize,
    ) -> Result<Pruned, ManageError> {
        let mut skipped = Vec::new();
        loop {
            let mut pruned = self.prune_past(ended_before, at_most, &skipped).await?;
            let is_last = pruned.skipped.is_empty();
            skipped.append(&mut pruned.skipped);
            if is_last || !pruned.is_empty() {
                return Ok(Pruned { skipped, ..pruned });
            }
        }
    }

    /// Like [`prune`](Self::prune), but does not try the keys in `except`, which earlier calls
    /// [skipped](Pruned::skipped). At most `at_most` keys are tried, so there may be more even if
    /// none of them could be deleted. Pruning is complete when nothing was deleted and nothing
    /// skipped.
    ///
    /// # Errors
    ///
    /// As [`prune`](Self::prune).
    pub async fn prune_past(
        &self,
        ended_before: SystemTime,
        at_most: usize,
        except: &[KeyId],
    ) -> Result<Pruned, ManageError> {
        self.detached(self.clone().prune_now(ended_before, at_most, except.to_vec())).await
    }

    /// Deletes at most `at_most` hourly [counts of uses](crate::manual::usage), of hours that began
    /// before `hours_before`, and returns how many rows were deleted. Daily counts are kept. Nodes that
    /// wrote nothing for 7 days are forgotten as well.
    ///
    /// A call is one short transaction. Call it until it returns 0. 5,000 is a good batch, and 35 days
    /// a good age: a chart of a month by the hour is then complete.
    ///
    /// # Errors
    ///
    /// [`Denied`](super::ManageErrorKind::Denied) to a [caller](super::Actor::key), or when the
    /// store fails.
    pub async fn prune_usage(
        &self,
        hours_before: SystemTime,
        at_most: usize,
    ) -> Result<u64, ManageError> {
        self.detached(self.clone().prune_usage_now(hours_before, at_most)).await
    }

    async fn prune_usage_now(self, before: SystemTime, at_most: usize) -> Result<u64, ManageError> {
        if !self.actor.is_operator() {
            let attempt = Attempt::to("prune");
            return Err(self.deny(ManageError::operators_only(), attempt).await?);
        }
        let writers_before = self.now().checked_sub(WRITER_AGE).unwrap_or(SystemTime::UNIX_EPOCH);
        let deleted = self.change("prune", Vec::new(), async move |change, _| {
            Ok(change.tx.delete_counted_uses(before, writers_before, at_most).await?)
        });
        Ok(deleted.await? as u64)
    }

    async fn prune_now(
        self,
        before: SystemTime,
        at_most: usize,
        except: Vec<KeyId>,
    ) -> Result<Pruned, ManageError> {
        if !self.actor.is_operator() {
            let attempt = Attempt::to("prune");
            return Err(self.deny(ManageError::operators_only(), attempt).await?);
        }
        let ended = KeyFilter::EndedBefore(before);
        let (selection, skip) = (ended.clone(), except.clone());
        let together = self.clone().change("prune", Vec::new(), async move |change, _| {
            let locked = change.tx.lock_some(&selection, &skip, at_most).await?;
            let keys = change.prune(&locked).await?;
            let leftovers = change.tx.delete_expired(before, at_most).await?;
            Ok(Pruned { keys, leftovers: leftovers as u64, skipped: Vec::new() })
        });
        match together.await {
            Err(error) if error.is_of_a_key() => {}
            outcome => return outcome,
        }
        let ids = self.select_some(&ended, &except, at_most).await?;
        let outcome = Self::each(ids, |ids| self.clone().prune_these(ids, before));
        let Outcome { done, skipped } = outcome.await?;
        let leftovers = self.change("prune", Vec::new(), async move |change, _| {
            Ok(change.tx.delete_expired(before, at_most).await?)
        });
        Ok(Pruned { keys: done, leftovers: leftovers.await? as u64, skipped })
    }

    async fn prune_these(self, ids: Vec<KeyId>, before: SystemTime) -> Result<u64, ManageError> {
        self.change("prune", ids, async move |change, mut locked| {
            locked.retain(|record| has_ended(record, before));
            change.prune(&locked).await
        })
        .await
    }
}

fn has_ended(record: &KeyRecord, before: SystemTime) -> bool {
    [record.revoked_at, record.expires_at].into_iter().flatten().any(|at| at < before)
}

impl Change {
    /// Deletes locked keys.
    async fn prune(&mut self, ended: &[KeyRecord]) -> Result<u64, ManageError> {
        let ids: Vec<_> = ended.iter().map(|record| record.id).collect();
        self.tx.delete(&ids).await?;
        for record in ended {
            self.note(KeyAction::Pruned, Some(record), record, None);
        }
        Ok(ids.len() as u64)
    }
}
