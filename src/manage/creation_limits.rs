//! How many keys a calling key may make.

use std::time::{Duration, SystemTime};

use super::{ManageError, change::Change, policy_check::grants_all, text};
use crate::{
    record::{KeyId, KeyRecord},
    store::port::KeyCountQuery,
};

const HOUR: Duration = Duration::from_secs(3600);
/// `Retry-After` of the limit on new keys: they leave the past hour one by one, so the exact wait
/// is unknown.
const A_WHILE: Duration = Duration::from_secs(60);

impl Change {
    /// Refuses a new key that exceeds the bounds of its consumer. Call it last, after the key was
    /// inserted and everything else is locked.
    pub(super) async fn check_new_key(&mut self, new: &KeyRecord) -> Result<(), ManageError> {
        let most = self.bounds().map(|bounds| bounds.keys_per_consumer);
        self.check_keys(new, most, self.policy_live_keys(new)).await
    }

    /// Refuses a change that gives a consumer one more live key than the policy allows, or moves a
    /// key to a plan for which its consumer has too many. Call it after the key was changed.
    pub(super) async fn check_added_key(
        &mut self,
        before: &KeyRecord,
        after: &KeyRecord,
    ) -> Result<(), ManageError> {
        let has_ended = |key: &KeyRecord| key.expires_at.is_some_and(|end| end <= before.read_at);
        let is_revived = has_ended(before) && !has_ended(after);
        if !is_revived && !grants_all(before, after) {
            return Ok(());
        }
        self.check_keys(after, None, self.policy_live_keys(after)).await
    }

    /// Refuses a caller that rotates too often. Call it after the new key was inserted and the old
    /// one was changed.
    pub(super) async fn check_rotation(&mut self, new: &KeyRecord) -> Result<(), ManageError> {
        // Twice as many, so that every key can be replaced while the old one still works.
        let of_policy = self.policy_live_keys(new).map(|most| most.saturating_mul(2));
        let Some(bounds) = self.bounds() else {
            return self.check_keys(new, None, of_policy).await;
        };
        // One more, because the new key's rotation counts as the newest.
        let most = bounds.rotations_per_hour;
        let earlier = self.tx.nth_rotation(new.root_id, most.saturating_add(1)).await?;
        if let Some(earlier) = earlier {
            let end = earlier.checked_add(HOUR).unwrap_or(earlier);
            if let Ok(wait) = end.duration_since(new.created_at)
                && !wait.is_zero()
            {
                let detail = format!(
                    "a key can be rotated at most {most} times an hour, including its successors"
                );
                return Err(ManageError::too_many_changes(detail, wait));
            }
        }
        let of_caller = bounds.keys_per_consumer.saturating_mul(2);
        self.check_keys(new, Some(of_caller), of_policy).await
    }

    /// Counts the keys of the consumer of `new`, and refuses more than `most` for a caller, and more
    /// live ones than `of_policy`.
    async fn check_keys(
        &mut self,
        new: &KeyRecord,
        most: Option<usize>,
        of_policy: Option<usize>,
    ) -> Result<(), ManageError> {
        let Some(limit) = most.max(of_policy) else { return Ok(()) };
        let an_hour_ago = new.created_at.checked_sub(HOUR).unwrap_or(SystemTime::UNIX_EPOCH);
        let query = KeyCountQuery::new(
            new.consumer_id.clone(),
            KeyId::first_of(an_hour_ago),
            limit.saturating_add(1),
        );
        let counts = self.tx.count_keys(&query).await?;
        if let Some(most) = of_policy.filter(|most| counts.live > *most) {
            let detail = format!(
                "the issue policy allows a consumer at most {most} keys that are neither revoked \
                nor expired: revoke some"
            );
            self.exceeds(new, ManageError::too_many_keys(detail).of("consumer_id"))?;
        }
        let Some(most) = most else { return Ok(()) };
        if counts.live > most {
            let detail = format!(
                "a consumer cannot have more than {most} keys that are neither revoked nor \
                expired: revoke some"
            );
            return Err(ManageError::too_many_keys(detail));
        }
        if counts.recent > most {
            let detail = format!("a consumer cannot get more than {most} new keys in an hour");
            return Err(ManageError::too_many_changes(detail, A_WHILE));
        }
        Ok(())
    }

    /// Refuses keys with more quotas than the layer accepts. The limits of their plans are only
    /// known once they are stored.
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
