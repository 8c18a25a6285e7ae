use std::time::SystemTime;

use super::{
    KeyIssuer, ManageError, NewKey,
    legacy_import::{self, Legacy},
    new_key::whole_micros,
    text,
};
use crate::{
    key::{KeyHash, LegacyHash, is_bearer_symbol},
    record::{KeyAction, KeyId, KeyRecord},
    store::port::Usage,
};

/// A key that was issued elsewhere, by its hash. Its owner can keep using it unchanged.
///
/// The layer has to accept its format: see [`ImportedFormat`](crate::key::ImportedFormat).
#[derive(Clone, Debug)]
#[must_use]
pub struct KeyImport {
    hash: KeyHash,
    legacy_hash: Option<LegacyHash>,
    legacy_hint: Option<String>,
    new: NewKey,
    key_prefix: String,
    key_last4: String,
    is_active: bool,
    created_at: Option<SystemTime>,
    last_used_at: Option<SystemTime>,
}

impl KeyImport {
    /// The key with the SHA-256 `hash`, with the properties of `new`.
    pub fn new(hash: KeyHash, new: NewKey) -> Self {
        Self {
            hash,
            legacy_hash: None,
            legacy_hint: None,
            new,
            key_prefix: String::new(),
            key_last4: String::new(),
            is_active: true,
            created_at: None,
            last_used_at: None,
        }
    }

    /// The key with a slow or salted hash, with the properties of `new`. Its owner can keep using it
    /// unchanged where [legacy hashes](crate::auth::Builder::legacy_hashes) are verified; at its first
    /// use, the hash is replaced by a [`KeyHash`].
    ///
    /// The store has to implement [`LegacyHashes`](crate::store::port::LegacyHashes).
    pub fn of_legacy_hash(hash: LegacyHash, new: NewKey) -> Self {
        let placeholder = hash.placeholder();
        Self { legacy_hash: Some(hash), ..Self::new(placeholder, new) }
    }

    /// The part of the key by which a request finds its legacy hash: the id, or the first characters,
    /// as the key's format tells. 1 to 64 visible ASCII characters. Default: none.
    ///
    /// At most [64 keys](crate::store::port::MAX_KEYS_PER_HINT) that have not been used yet may have
    /// the same hint, or none: a request that presents an unknown key is compared with all of them,
    /// which takes seconds.
    pub fn legacy_hint(self, hint: impl Into<String>) -> Self {
        Self { legacy_hint: Some(hint.into()), ..self }
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

    /// When the other system issued the key, not in the future. An expiry that is a duration still
    /// counts from the import. Default: the time of the import.
    pub fn created_at(self, at: SystemTime) -> Self {
        Self { created_at: Some(at), ..self }
    }

    /// When the key was last used, not in the future. It is written after the key, in a transaction
    /// of its own. Default: unknown.
    pub fn last_used_at(self, at: SystemTime) -> Self {
        Self { last_used_at: Some(at), ..self }
    }

    fn legacy(&self) -> Option<Legacy<'_>> {
        let hash = self.legacy_hash.as_ref()?;
        Some(Legacy { hash, hint: self.legacy_hint.as_deref() })
    }

    fn record(&self, issuer: &KeyIssuer) -> Result<KeyRecord, ManageError> {
        let mut record = issuer.make_record(self.hash, &self.new.consumer_id)?;
        self.new.fill(&mut record, &issuer.actor.name)?;
        let now = record.created_at;
        for (field, at) in [("created_at", self.created_at), ("last_used_at", self.last_used_at)] {
            if at.is_some_and(|at| at > now) {
                return Err(ManageError::invalid(field, "must not be in the future"));
            }
        }
        record.created_at = self.created_at.map_or(now, whole_micros);
        text::check("key_prefix", &self.key_prefix)?;
        if self.key_last4.chars().count() > 4 {
            let detail = "must not be longer than the last four characters of the key";
            return Err(ManageError::invalid("key_last4", detail));
        }
        text::check("key_last4", &self.key_last4)?;
        for (field, part) in [("key_prefix", &self.key_prefix), ("key_last4", &self.key_last4)] {
            if !part.bytes().all(is_bearer_symbol) {
                let detail = "must consist of the characters of a bearer token, letters, digits and \
                    -._~+/: no request can carry a key with others";
                return Err(ManageError::invalid(field, detail));
            }
        }
        if let Some(hint) = &self.legacy_hint {
            legacy_import::check_hint(hint, self.legacy_hash.as_ref())?;
        }
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
    /// skipped, legacy hashes also after their keys have moved, so that an interrupted import can be restarted.
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
        let imported_at = self.now();
        let imported = self.clone().change("import", Vec::new(), async |change, _| {
            for (at, (record, key)) in records.iter().zip(&batch).enumerate() {
                let granted = change
                    .check_reach(&record.consumer_id)
                    .and_then(|()| change.check_issue(record))
                    .and_then(|()| change.check_scopes(None, record))
                    .and_then(|()| change.check_grant(record))
                    .and_then(|()| {
                        change.check_policy_since(record, imported_at, key.new.reason.as_deref())
                    });
                granted.map_err(|error| error.at(at))?;
            }
            let legacy: Vec<_> = batch.iter().map(KeyImport::legacy).collect();
            let keys = legacy_import::insert(change, &records, &legacy).await?;
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
            Ok(imported) => {
                self.import_usage(&records, &batch, &imported.keys).await?;
                Ok(imported)
            }
            Err(error) if error.is_of_a_key() => match self.first_refused(&records).await? {
                Some(at) => Err(ManageError::refused(error).at(at)),
                None => Err(error),
            },
            Err(error) => Err(error),
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
                usage.push(Usage::new(record.id, at));
            }
        }
        if usage.is_empty() {
            return Ok(());
        }
        Ok(self.store.record_usage(&usage).await?)
    }
}
