//! How many keys those who act by a key may make.

use std::time::{Duration, SystemTime};

use super::{ManageError, change::Change, text};
use crate::{
    record::{KeyId, KeyRecord},
    store::KeyCountQuery,
};

const HOUR: Duration = Duration::from_secs(3600);
/// How long to wait where keys made in the past hour leave it one by one.
const A_WHILE: Duration = Duration::from_secs(60);

impl Change {
    /// Refuses a caller that has made a new key too many for its consumer. Asked after the key was
    /// inserted and after everything else is locked.
    pub(super) async fn check_new_key(&mut self, new: &KeyRecord) -> Result<(), ManageError> {
        let Some(bounds) = self.bounds() else { return Ok(()) };
        self.check_keys(new, bounds.keys_per_consumer).await
    }

    /// Refuses a caller that rotates too often. Asked after the new key was inserted and the old one
    /// was changed.
    pub(super) async fn check_rotation(&mut self, new: &KeyRecord) -> Result<(), ManageError> {
        let Some(bounds) = self.bounds() else { return Ok(()) };
        // That of the new key is the newest.
        let most = bounds.rotations_per_hour;
        let earlier = self.tx.nth_rotation(new.root_id, most.saturating_add(1)).await?;
        if let Some(earlier) = earlier {
            let end = earlier.checked_add(HOUR).unwrap_or(earlier);
            if let Ok(wait) = end.duration_since(new.created_at)
                && !wait.is_zero()
            {
                let detail = format!(
                    "a key is rotated at most {most} times an hour, its successors included"
                );
                return Err(ManageError::too_many_changes(detail, wait));
            }
        }
        // Each of the keys that there may be can be replaced, and work on beside the new one.
        self.check_keys(new, bounds.keys_per_consumer.saturating_mul(2)).await
    }

    async fn check_keys(&mut self, new: &KeyRecord, most: usize) -> Result<(), ManageError> {
        let an_hour_ago = new.created_at.checked_sub(HOUR).unwrap_or(SystemTime::UNIX_EPOCH);
        let query = KeyCountQuery::new(
            new.consumer_id.clone(),
            KeyId::first_of(an_hour_ago),
            most.saturating_add(1),
        );
        let counts = self.tx.count_keys(&query).await?;
        if counts.live > most {
            let detail = format!(
                "the consumer would have more than {most} keys that are neither revoked nor expired: \
                revoke some"
            );
            return Err(ManageError::too_many_keys(detail));
        }
        if counts.recent > most {
            let detail = format!("more than {most} keys of the consumer would be made in an hour");
            return Err(ManageError::too_many_changes(detail, A_WHILE));
        }
        Ok(())
    }

    /// Refuses keys that have more quotas than the layer lets in. What a plan means is known once they
    /// are stored.
    pub(super) async fn check_quotas(&mut self, new: &[KeyRecord]) -> Result<(), ManageError> {
        let has_both = |record: &&KeyRecord| record.plan.is_some() && record.rate_limits.is_some();
        let ids: Vec<_> = new.iter().filter(has_both).map(|record| record.id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        for stored in self.tx.lock(&ids).await? {
            let at = new.iter().position(|record| record.id == stored.id).unwrap_or_default();
            text::check_quotas_with_plan(&stored).map_err(|error| error.at(at))?;
        }
        Ok(())
    }
}
