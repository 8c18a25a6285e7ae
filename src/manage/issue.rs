use super::{Expiry, KeyIssuer, ManageError, NewKey, change::Change};
use crate::{
    key::{ApiKey, KeyHash},
    record::{KeyAction, KeyId, KeyRecord},
};

/// A new key and its record.
#[derive(Debug)]
#[non_exhaustive]
pub struct Issued {
    /// The key, for its owner. This is the only copy.
    pub key: ApiKey,
    /// Its record.
    pub record: KeyRecord,
}

impl KeyIssuer {
    /// Makes a key and stores its hash. Only the returned value contains the key itself.
    ///
    /// A [caller](super::Actor::key) can only grant what its own key holds: its scopes, no later
    /// expiry, no wider limits, no more networks and origins, its own plan and its own consumer. If
    /// there is a separate [scope](super::Actor::other_keys_scope) for other keys, it needs that
    /// one. A [member](super::Actor::member) can only grant what its [grant](super::Grant) allows.
    ///
    /// # Errors
    ///
    /// [`TooManyKeys`](super::ManageErrorKind::TooManyKeys) and
    /// [`TooManyChanges`](super::ManageErrorKind::TooManyChanges) to a caller beyond its
    /// [bounds](Self::max_keys_per_consumer),
    /// [`ExceedsPolicy`](super::ManageErrorKind::ExceedsPolicy) or `TooManyKeys` for a key that the
    /// [policy](Self::policy) does not allow, or when the request is invalid or denied, or the
    /// random number generator or the store fails. After an error, the new key is unknown to
    /// everyone.
    pub async fn issue(&self, new: NewKey) -> Result<Issued, ManageError> {
        self.detached(self.clone().issue_now(new)).await
    }

    async fn issue_now(self, new: NewKey) -> Result<Issued, ManageError> {
        let mut attempts = 1;
        loop {
            match self.attempt(&new).await {
                Err(error) if error.is_collision() && attempts < MAX_ATTEMPTS => attempts += 1,
                outcome => return outcome,
            }
        }
    }

    async fn attempt(&self, new: &NewKey) -> Result<Issued, ManageError> {
        let Issued { key, mut record } = self.make(&new.consumer_id)?;
        new.fill(&mut record, &self.actor.name, Expiry::resolve_at)?;
        let claim = self.claim(new.idempotency_key.as_deref(), new.fingerprint(), record.id)?;
        let reason = new.reason.clone();
        let change = self.clone().change("issue", Vec::new(), async move |change, _| {
            change.check_reach(&record.consumer_id)?;
            change.check_issue(&record)?;
            change.check_scopes(None, &record)?;
            change.check_grant(&record)?;
            change.check_policy(&record, reason.as_deref())?;
            change.claim(claim).await?;
            change.insert(&record).await?;
            change.check_quotas(std::slice::from_ref(&record)).await?;
            change.check_new_key(&record).await?;
            change.note(KeyAction::Issued, None, &record, reason.as_deref());
            Ok(record)
        });
        Ok(Issued { key, record: change.await? })
    }

    /// Generates a key of `consumer_id` without storing it.
    pub(super) fn make(&self, consumer_id: &str) -> Result<Issued, ManageError> {
        let key = self.format.generate_from(&*self.entropy)?;
        let mut record = self.make_record(key.hash(), consumer_id)?;
        record.key_prefix = self.format.prefix().to_owned();
        record.key_last4 = last4(key.expose_secret()).to_owned();
        Ok(Issued { key, record })
    }

    pub(super) fn make_record(
        &self,
        hash: KeyHash,
        consumer_id: &str,
    ) -> Result<KeyRecord, ManageError> {
        let now = self.now();
        let id = KeyId::generate(now, &*self.entropy)?;
        Ok(KeyRecord::new(id, hash, consumer_id, now))
    }
}

/// Hashes of 254 bits do not collide, and identifiers of 74 random bits hardly do. If this many
/// attempts collide, the random number generator repeats values.
const MAX_ATTEMPTS: usize = 3;

impl Change {
    /// Stores one new key.
    pub(super) async fn insert(&mut self, record: &KeyRecord) -> Result<(), ManageError> {
        let inserted = self.tx.insert(std::slice::from_ref(record)).await?;
        if inserted.is_empty() { Err(ManageError::collision()) } else { Ok(()) }
    }
}

pub(super) fn last4(key: &str) -> &str {
    key.get(key.len().saturating_sub(4)..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::{Duration, SystemTime},
    };

    use super::*;
    use crate::{
        key::{EntropySource, KeyFormat, RngError},
        manage::{Expiry, ManageErrorKind},
        store::MemoryKeyStore,
    };

    async fn refusal(new: NewKey) -> ManageError {
        let store = MemoryKeyStore::new();
        let format = KeyFormat::new("sk_test_").unwrap();
        KeyIssuer::new(store, format).issue(new).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_lifetime_beyond_all_time_is_an_error_and_not_for_ever() {
        let end_of_9999 = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        for expiry in [
            Expiry::In(Duration::MAX),
            Expiry::In(Duration::from_secs(400_000_000_000)),
            Expiry::At(end_of_9999 + Duration::from_secs(1)),
        ] {
            let error = refusal(NewKey::new("acme", expiry)).await;
            assert_eq!(error.kind(), ManageErrorKind::Invalid);
            assert_eq!(error.field(), Some("expires_at"));
            assert!(error.to_string().contains("year 9999"), "{error}");
        }
    }

    /// Always the same bytes.
    #[derive(Clone, Default)]
    struct Stuck(Arc<AtomicUsize>);

    impl EntropySource for Stuck {
        fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            buffer.fill(7);
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_random_number_generator_that_repeats_itself_is_asked_three_times() {
        let (entropy, format) = (Stuck::default(), KeyFormat::new("sk_test_").unwrap());
        let issuer = KeyIssuer::new(MemoryKeyStore::new(), format).entropy(entropy.clone());
        issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
        let for_one = entropy.0.swap(0, Ordering::Relaxed);
        let error = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap_err();
        assert!(error.is_collision(), "{error}");
        assert_eq!(entropy.0.load(Ordering::Relaxed), 3 * for_one);
    }

    #[tokio::test]
    async fn a_key_of_nobody_is_an_error() {
        let error = refusal(NewKey::new("", Expiry::Never)).await;
        assert_eq!((error.kind(), error.field()), (ManageErrorKind::Invalid, Some("consumer_id")));
    }

    #[tokio::test]
    async fn texts_that_would_spoil_a_log_or_a_terminal_are_refused() {
        let long = "x".repeat(1025);
        for text in ["a\r\nb", "\u{1b}[31m", "a\0", "\u{202e}b", &long] {
            for (new, field) in [
                (NewKey::new(text, Expiry::Never), "consumer_id"),
                (NewKey::new("acme", Expiry::Never).name(text), "name"),
                (NewKey::new("acme", Expiry::Never).reason(text), "reason"),
            ] {
                let error = refusal(new).await;
                assert_eq!(error.field(), Some(field), "{text:?}");
            }
        }
    }
}
