use std::time::{Duration, SystemTime};

use super::{
    Expiry, KeyIssuer, ManageError, NewKey,
    issue::last4,
    legacy_import::{self, Legacy},
    new_key::whole_micros,
    text,
};
use crate::{
    key::{AcceptedFormat, KeyHash, LegacyHash, is_bearer_symbol},
    record::{KeyId, KeyRecord},
};

/// As few characters as 128 bits of letters and digits take.
const MIN_KEY_LEN: usize = 22;
const MAX_KEY_LEN: usize = 256;

/// How far the clock of the other system may be ahead.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);

/// A key that was issued elsewhere, by its hash. Its owner can keep using it unchanged.
///
/// The layer has to accept its format: see [`ImportedFormat`](crate::key::ImportedFormat).
#[derive(Clone, Debug)]
#[must_use]
pub struct KeyImport {
    hash: KeyHash,
    legacy_hash: Option<LegacyHash>,
    legacy_hint: Option<String>,
    pub(super) new: NewKey,
    pub(super) id: Option<KeyId>,
    key_prefix: String,
    key_last4: String,
    is_active: bool,
    created_at: Option<SystemTime>,
    pub(super) last_used_at: Option<SystemTime>,
    revoked: Option<Revoked>,
}

#[derive(Clone, Debug)]
struct Revoked {
    /// `None`: at the time of the import.
    at: Option<SystemTime>,
    reason: Option<String>,
}

impl KeyImport {
    /// The key with the SHA-256 `hash`, with the properties of `new`.
    ///
    /// Unlike a new key, it may have expired already: requests with it are then refused as those of
    /// an expired key instead of as those of an unknown one.
    pub fn new(hash: KeyHash, new: NewKey) -> Self {
        Self {
            hash,
            legacy_hash: None,
            legacy_hint: None,
            new,
            id: None,
            key_prefix: String::new(),
            key_last4: String::new(),
            is_active: true,
            created_at: None,
            last_used_at: None,
            revoked: None,
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

    /// The key itself, which is hashed at once and not kept: as the first of `formats` that it has,
    /// or by SHA-256 if there are none. `formats` are those that the service accepts. `key_prefix` is
    /// the beginning of the key, for display; it may be empty. The last four characters are kept as
    /// its [hint](Self::hint), as those of a new key.
    ///
    /// # Errors
    ///
    /// When the key has none of the formats, has characters that no request can carry, or does not
    /// begin with `key_prefix`; without formats, when it has fewer than 22 or more than 256
    /// characters. 22 letters and digits are 128 bits: shorter keys can be guessed (OWASP ASVS
    /// 7.2.3). The error does not quote the key.
    pub fn from_key(
        key: &str,
        key_prefix: &str,
        formats: &[AcceptedFormat],
        new: NewKey,
    ) -> Result<Self, ManageError> {
        let hash = hash_of(key, formats).map_err(|detail| ManageError::invalid("key", detail))?;
        if !key.starts_with(key_prefix) {
            return Err(ManageError::invalid("key", "must begin with its prefix"));
        }
        Ok(Self::new(hash, new).hint(key_prefix, last4(key)))
    }

    /// Its id, such as the one that it has in the other system. Lists of keys are in the order of
    /// ids, and only ids of version 7 are in the order of time. Default: a new id.
    pub fn id(self, id: KeyId) -> Self {
        Self { id: Some(id), ..self }
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

    /// When the other system issued the key, not in the future; up to five minutes ahead of this
    /// clock count as now, as clocks differ. An expiry that is a duration still counts from the
    /// import. Default: the time of the import.
    pub fn created_at(self, at: SystemTime) -> Self {
        Self { created_at: Some(at), ..self }
    }

    /// When the key was last used, not in the future but for five minutes, as
    /// [above](Self::created_at). It is written after the key, in a transaction of its own. Default:
    /// unknown.
    pub fn last_used_at(self, at: SystemTime) -> Self {
        Self { last_used_at: Some(at), ..self }
    }

    /// Makes the key revoked, as it is in the other system. `at` must not be in the future but
    /// for five minutes, as [above](Self::created_at); without it, the key is revoked at the time of
    /// the import. Default: it is not revoked.
    pub fn revoked(self, at: Option<SystemTime>, reason: Option<&str>) -> Self {
        let reason = reason.map(str::to_owned);
        Self { revoked: Some(Revoked { at, reason }), ..self }
    }

    pub(super) fn legacy(&self) -> Option<Legacy<'_>> {
        let hash = self.legacy_hash.as_ref()?;
        Some(Legacy { hash, hint: self.legacy_hint.as_deref() })
    }

    pub(super) fn record(&self, issuer: &KeyIssuer) -> Result<KeyRecord, ManageError> {
        let mut record = issuer.make_record(self.hash, &self.new.consumer_id)?;
        self.new.fill(&mut record, &issuer.actor.name, resolve_imported)?;
        let now = record.created_at;
        if let Some(id) = self.id {
            // The zero UUID stands for every key in the change log.
            if id.as_u128() == 0 {
                return Err(ManageError::invalid("id", "must not be the zero UUID"));
            }
            (record.id, record.root_id) = (id, id);
        }
        record.created_at = past("created_at", self.created_at, now)?.unwrap_or(now);
        past("last_used_at", self.last_used_at, now)?;
        text::check("key_prefix", &self.key_prefix)?;
        if self.key_last4.chars().count() > 4 {
            let detail = "must not be longer than the last four characters of the key";
            return Err(ManageError::invalid("key_last4", detail));
        }
        text::check("key_last4", &self.key_last4)?;
        for (field, part) in [("key_prefix", &self.key_prefix), ("key_last4", &self.key_last4)] {
            // Base64 ends in `=`.
            let is_symbol = |byte| is_bearer_symbol(byte) || (field == "key_last4" && byte == b'=');
            if !part.bytes().all(is_symbol) {
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
        if let Some(Revoked { at, reason }) = &self.revoked {
            text::check_some("revoked_reason", reason.as_deref())?;
            record.revoked_at = Some(past("revoked_at", *at, now)?.unwrap_or(now));
            record.revoked_reason.clone_from(reason);
        }
        Ok(record)
    }
}

/// The hash to store for a key.
fn hash_of(key: &str, formats: &[AcceptedFormat]) -> Result<KeyHash, &'static str> {
    if !formats.is_empty() {
        let presented = formats.iter().find_map(|format| format.parse(key.as_bytes()).ok());
        let presented = presented.map(|presented| presented.hash());
        return presented.ok_or("must be of a format that the service accepts");
    }
    if key.len() < MIN_KEY_LEN {
        return Err(
            "must have at least 22 characters: a shorter key can be guessed; issue a new one",
        );
    }
    if key.len() > MAX_KEY_LEN {
        return Err("must not have more than 256 characters");
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("must consist of visible ASCII characters: no request can carry others");
    }
    Ok(KeyHash::of(key.as_bytes()))
}

/// A time of the other system, or `now` if its clock is a little ahead.
fn past(
    field: &'static str,
    at: Option<SystemTime>,
    now: SystemTime,
) -> Result<Option<SystemTime>, ManageError> {
    let ahead = at.and_then(|at| at.duration_since(now).ok());
    if ahead.is_some_and(|ahead| ahead > CLOCK_TOLERANCE) {
        return Err(ManageError::invalid(field, "must not be in the future"));
    }
    Ok(at.map(|at| whole_micros(at.min(now))))
}

/// The expiry of an imported key, which may be in the past.
fn resolve_imported(expiry: Expiry, now: SystemTime) -> Result<Option<SystemTime>, ManageError> {
    match expiry {
        Expiry::At(at) if at < now => Ok(Some(whole_micros(at))),
        expiry => expiry.resolve_at(now),
    }
}
