use super::{KeyIssuer, ManageError, NewKey, text};
use crate::{
    key::KeyHash,
    record::{KeyAction, KeyId, KeyRecord},
};

/// A key that was issued elsewhere, by its hash. Its owner can keep using it unchanged.
///
/// The layer has to accept its format: see [`ImportedFormat`](crate::key::ImportedFormat).
#[derive(Clone, Debug)]
#[must_use]
pub struct KeyImport {
    hash: KeyHash,
    new: NewKey,
    key_prefix: String,
    key_last4: String,
    is_active: bool,
}

impl KeyImport {
    /// The key with the SHA-256 `hash`, with the properties of `new`.
    pub fn new(hash: KeyHash, new: NewKey) -> Self {
        Self { hash, new, key_prefix: String::new(), key_last4: String::new(), is_active: true }
    }

    /// The prefix and the last four characters of the key, by which its owner recognizes it.
    /// Default: none.
    pub fn hint(self, key_prefix: impl Into<String>, key_last4: impl Into<String>) -> Self {
        Self { key_prefix: key_prefix.into(), key_last4: key_last4.into(), ..self }
    }

    /// Whether the key is active: an inactive key is rejected until it is activated. Default: it is
    /// active.
    pub fn is_active(self, is_active: bool) -> Self {
        Self { is_active, ..self }
    }

    fn record(&self, issuer: &KeyIssuer) -> Result<KeyRecord, ManageError> {
        let mut record = issuer.make_record(self.hash, &self.new.consumer_id)?;
        self.new.fill(&mut record, &issuer.actor.name)?;
        text::check("key_prefix", &self.key_prefix)?;
        if self.key_last4.chars().count() > 4 {
            let detail = "must not be longer than the last four characters of the key";
            return Err(ManageError::invalid("key_last4", detail));
        }
        text::check("key_last4", &self.key_last4)?;
        record.key_prefix.clone_from(&self.key_prefix);
        record.key_last4.clone_from(&self.key_last4);
        record.is_active = self.is_active;
        Ok(record)
    }
}

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
    /// skipped, so that an interrupted import can be restarted.
    ///
    /// A good batch has 1,000 keys: one transaction that takes a fraction of a second.
    ///
    /// # Errors
    ///
    /// When a key is invalid or a rule of the database refuses it, with its
    /// [index](ManageError::index), or as [`issue`](Self::issue).
    pub async fn import(&self, batch: Vec<KeyImport>) -> Result<Imported, ManageError> {
        self.detached(self.clone().import_now(batch)).await
    }

    async fn import_now(self, batch: Vec<KeyImport>) -> Result<Imported, ManageError> {
        let record =
            |(at, key): (usize, &KeyImport)| key.record(&self).map_err(|error| error.at(at));
        let records = batch.iter().enumerate().map(record).collect::<Result<Vec<_>, _>>()?;
        let imported = self.clone().change("import", Vec::new(), async |change, _| {
            for (at, record) in records.iter().enumerate() {
                let granted = change
                    .check_reach(&record.consumer_id)
                    .and_then(|()| change.check_grant(record));
                granted.map_err(|error| error.at(at))?;
            }
            let keys = change.tx.insert(&records).await?;
            change.check_quotas(&records).await?;
            let mut inserted = keys.iter().copied().collect::<std::collections::HashSet<_>>();
            let mut imported = Imported::default();
            for (record, key) in records.iter().zip(&batch) {
                if inserted.remove(&record.id) {
                    imported.keys.push(record.id);
                    change.note(KeyAction::Imported, None, record, key.new.reason.as_deref());
                } else {
                    imported.known += 1;
                }
            }
            Ok(imported)
        });
        match imported.await {
            Err(error) if error.is_of_a_key() => match self.first_refused(&records).await? {
                Some(at) => Err(ManageError::refused(error).at(at)),
                None => Err(error),
            },
            outcome => outcome,
        }
    }
}
