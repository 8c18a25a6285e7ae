use std::{
    collections::{HashMap, HashSet},
    time::SystemTime,
};

use super::{
    KeyIssuer, ManageError,
    change::Change,
    key_import::KeyImport,
    legacy_import::{self, Legacy},
};
use crate::{
    record::{KeyAction, KeyId, KeyRecord},
    store::port::Usage,
};

/// The result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// The ids of the keys that are new, in the order of the batch.
    pub keys: Vec<KeyId>,
    /// How many keys existed already. They are left unchanged.
    pub known: u64,
}

impl KeyIssuer {
    /// Imports a batch of keys: all of them, or none if one is invalid or denied. Known hashes are
    /// skipped, legacy hashes also after their keys have moved, so that an interrupted import can be
    /// restarted.
    ///
    /// A good batch has 1,000 keys: one transaction that takes a fraction of a second. The
    /// [issue policy](Self::policy) does not concern keys that were revoked or have expired.
    ///
    /// # Errors
    ///
    /// When a key is invalid or a rule of the database refuses it, with its
    /// [index](ManageError::index); [`Conflict`](super::ManageErrorKind::Conflict) with its index
    /// when another key has its [id](KeyImport::id); or as [`issue`](Self::issue).
    pub async fn import(&self, batch: Vec<KeyImport>) -> Result<Imported, ManageError> {
        self.detached(self.clone().import_now(batch)).await
    }

    /// What [`import`](Self::import) would do, and the error that it would return. Nothing is
    /// stored but a denial in the audit: the transaction is rolled back. Keys of earlier batches that were only tried count
    /// as unknown, and the ids of new keys are different in each call.
    ///
    /// # Errors
    ///
    /// As [`import`](Self::import).
    pub async fn try_import(&self, batch: Vec<KeyImport>) -> Result<Imported, ManageError> {
        self.detached(self.clone().try_import_now(batch)).await
    }

    async fn import_now(self, batch: Vec<KeyImport>) -> Result<Imported, ManageError> {
        let records = self.imported_records(&batch)?;
        let imported = self
            .clone()
            .change("import", Vec::new(), async |change, _| change.import(&records, &batch).await);
        match imported.await {
            Ok(imported) => {
                self.import_usage(&records, &batch, &imported.keys).await?;
                Ok(imported)
            }
            Err(error) => Err(self.blame_imported(error, &records).await?),
        }
    }

    async fn try_import_now(self, batch: Vec<KeyImport>) -> Result<Imported, ManageError> {
        let records = self.imported_records(&batch)?;
        let tried = self
            .clone()
            .rehearse("import", async |change, _| change.import(&records, &batch).await);
        match tried.await {
            Ok(imported) => Ok(imported),
            Err(error) => Err(self.blame_imported(error, &records).await?),
        }
    }

    fn imported_records(&self, batch: &[KeyImport]) -> Result<Vec<KeyRecord>, ManageError> {
        let mut hashes = HashMap::new();
        let mut records = Vec::with_capacity(batch.len());
        for (at, key) in batch.iter().enumerate() {
            let record = key.record(self).map_err(|error| error.at(at))?;
            // A store may insert the later of two keys with one id.
            if *hashes.entry(record.id).or_insert(record.key_hash) != record.key_hash {
                return Err(id_conflict(record.id).at(at));
            }
            records.push(record);
        }
        Ok(records)
    }

    /// The error of an import, with the index of the key that the database refuses.
    async fn blame_imported(
        &self,
        error: ManageError,
        records: &[KeyRecord],
    ) -> Result<ManageError, ManageError> {
        if !error.is_of_a_key() {
            return Ok(error);
        }
        match self.first_refused(records).await? {
            Some(at) => Ok(ManageError::refused(error).at(at)),
            None => Ok(error),
        }
    }

    /// Writes when the keys that are new were last used.
    async fn import_usage(
        &self,
        records: &[KeyRecord],
        batch: &[KeyImport],
        new: &[KeyId],
    ) -> Result<(), ManageError> {
        let mut new = new.iter().copied().peekable();
        let mut usage = Vec::new();
        for (record, key) in records.iter().zip(batch) {
            if new.next_if_eq(&record.id).is_some()
                && let Some(at) = key.last_used_at
            {
                usage.push(Usage::new(record.id, at.min(self.now())));
            }
        }
        if usage.is_empty() {
            return Ok(());
        }
        Ok(self.store.record_usage(&usage.into()).await?)
    }
}

impl Change {
    /// Inserts keys that were issued elsewhere.
    async fn import(
        &mut self,
        records: &[KeyRecord],
        batch: &[KeyImport],
    ) -> Result<Imported, ManageError> {
        let now = self.issuer.now();
        for (at, (record, key)) in records.iter().zip(batch).enumerate() {
            let reason = key.new.reason.as_deref();
            let granted = self
                .check_reach(&record.consumer_id)
                .and_then(|()| self.check_issue(record))
                .and_then(|()| self.check_scopes(None, record))
                .and_then(|()| self.check_grant(record))
                .and_then(|()| match has_ended(record, now) {
                    true => Ok(()),
                    false => self.check_policy_since(record, now, reason),
                });
            granted.map_err(|error| error.at(at))?;
        }
        let legacy: Vec<_> = batch.iter().map(KeyImport::legacy).collect();
        let keys = legacy_import::insert(self, records, &legacy).await?;
        self.check_quotas(records).await?;
        let mut inserted = keys.iter().copied().collect::<HashSet<_>>();
        let mut skipped = Vec::new();
        let mut imported = Imported::default();
        for (at, (record, key)) in records.iter().zip(batch).enumerate() {
            if inserted.remove(&record.id) {
                imported.keys.push(record.id);
                self.note(KeyAction::Imported, None, record, key.new.reason.as_deref());
            } else {
                imported.known += 1;
                skipped.extend(key.id.is_some().then_some(at));
            }
        }
        self.check_imported_ids(records, &legacy, &skipped).await?;
        Ok(imported)
    }

    /// Refuses a key that was skipped because of its id, not because of its hash.
    async fn check_imported_ids(
        &mut self,
        records: &[KeyRecord],
        legacy: &[Option<Legacy<'_>>],
        skipped: &[usize],
    ) -> Result<(), ManageError> {
        let skipped: Vec<_> = skipped
            .iter()
            .filter_map(|at| Some((*at, records.get(*at)?, legacy.get(*at)?.as_ref())))
            .collect();
        if skipped.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = skipped.iter().map(|(_, record, _)| record.id).collect();
        let stored = self.tx.lock(&ids).await?;
        let stored: HashMap<_, _> = stored.iter().map(|key| (key.id, key.key_hash)).collect();
        let is_other = |record: &KeyRecord| {
            stored.get(&record.id).is_some_and(|hash| *hash != record.key_hash)
        };
        for (at, record, legacy) in skipped.into_iter().filter(|(_, it, _)| is_other(it)) {
            // A key that has moved has another hash.
            if let Some(legacy) = legacy
                && !self.tx.known_legacy_hashes(&[legacy.hash.digest()]).await?.is_empty()
            {
                continue;
            }
            return Err(id_conflict(record.id).at(at));
        }
        Ok(())
    }
}

fn id_conflict(id: KeyId) -> ManageError {
    let detail =
        format!("another key has the id {id}: import the key without an id, and it gets a new one");
    ManageError::conflict(detail).of("id")
}

/// Whether requests with the key are refused for good, whatever its other properties.
fn has_ended(record: &KeyRecord, now: SystemTime) -> bool {
    record.revoked_at.is_some() || record.expires_at.is_some_and(|end| end <= now)
}
