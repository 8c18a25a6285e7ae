//! Makes a key of a row. Errors never quote values: one of them may be a key.

use secrecy::zeroize::Zeroizing;
use serde_json::Value;
use tower_api_key::{
    key::{KeyHash, LegacyHash},
    manage::{Expiry, KeyImport, NewKey},
    record::{KeyId, KeyKind, Metadata, Networks, Scopes, Tags, WebOrigins},
};

use super::{
    super::timestamps,
    formats::Formats,
    limits::{self, Window},
    report::Problem,
    row::Row,
};

/// What holds for all rows.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) formats: Formats,
    /// Rows have the keys themselves instead of hashes.
    pub(super) plaintext: bool,
    /// Of keys without one.
    pub(super) expiry: Option<Expiry>,
    /// Of keys that begin with it.
    pub(super) prefix: String,
    /// Of limits that are only a number.
    pub(super) window: Option<Window>,
    pub(super) reason: Option<String>,
}

impl Settings {
    /// The key that a row describes.
    pub(super) fn key(&self, mut row: Row) -> Result<KeyImport, Problem> {
        let id = id(&mut row)?;
        let identity = self.identity(&mut row)?;
        let mut key = identity.with(self.new_key(&row)?, &self.formats)?;
        if let Some(id) = id {
            key = key.id(id);
        }
        if let Some(hint) = row.name_or_number("hint")? {
            key = key.legacy_hint(hint);
        }
        if let Some(is_active) = row.truth("is_active")? {
            key = key.is_active(is_active);
        }
        if let Some(at) = time(&row, "created_at")? {
            key = key.created_at(at);
        }
        if let Some(at) = time(&row, "last_used_at")? {
            key = key.last_used_at(at);
        }
        match (row.truth("revoked")?, time(&row, "revoked_at")?) {
            (Some(false), Some(_)) => {
                Err(Problem::new("revoked", "must not be false for a key with `revoked_at`"))
            }
            (_, Some(at)) => Ok(key.revoked(Some(at), None)),
            (Some(true), None) => Ok(key.revoked(None, None)),
            (_, None) => Ok(key),
        }
    }

    fn identity(&self, row: &mut Row) -> Result<Identity, Problem> {
        let prefix = row.text("prefix")?.map(str::to_owned);
        let last4 = row.text("last4")?.map(str::to_owned);
        if !self.plaintext {
            if row.get("key").is_some() {
                let advice = "give --plaintext to import keys themselves, which are hashed at once";
                return Err(Problem::new("key", advice));
            }
            let shown = (prefix.unwrap_or_else(|| self.prefix.clone()), last4.unwrap_or_default());
            if let Some(verifier) = row.secret("verifier")? {
                if row.get("hash").is_some() {
                    return Err(Problem::new("verifier", "a key has this or `hash`, not both"));
                }
                let verifier = verifier.parse().map_err(|e| Problem::new("verifier", e))?;
                let hint = row.name_or_number("hint")?.unwrap_or_default();
                self.formats.check(&shown.0, &shown.1)?;
                self.formats.check(&hint, "")?;
                return Ok(Identity::Verifier { verifier, shown });
            }
            let what = "the key's SHA-256, or `verifier` for one of bcrypt, Argon2, scrypt, PBKDF2";
            let hash = required(row.text("hash")?, "hash", what)?;
            let hash = self.formats.stored_hash(hash, &shown.0, &shown.1)?;
            return Ok(Identity::Hash { hash, shown });
        }
        for field in ["hash", "verifier"] {
            if row.get(field).is_some() {
                return Err(Problem::new(field, "--plaintext reads `key` instead"));
            }
        }
        if last4.is_some() {
            return Err(Problem::new("last4", "--plaintext takes it from the key"));
        }
        let key = required(row.secret("key")?, "key", "the key itself")?;
        let common = Some(&self.prefix).filter(|prefix| key.starts_with(prefix.as_str()));
        let prefix = prefix.or_else(|| common.cloned()).unwrap_or_default();
        Ok(Identity::Key { key, prefix })
    }

    fn new_key(&self, row: &Row) -> Result<NewKey, Problem> {
        let consumer = row.name_or_number("consumer_id")?;
        let consumer = required(consumer, "consumer_id", "the key's consumer")?;
        let mut new = NewKey::new(consumer, self.expiry(row)?);
        if let Some(name) = row.text("name")? {
            new = new.name(name);
        }
        if let Some(scopes) = row.get("scopes") {
            new = new.scopes(scopes_of(scopes)?);
        }
        if let Some(limits) = limits::of(row, self.window)? {
            new = new.rate_limits(limits);
        }
        if let Some(plan) = row.text("plan")? {
            new = new.plan(plan);
        }
        if let Some(metadata) = row.get("metadata") {
            let metadata = Metadata::new(metadata);
            new = new.metadata(metadata.map_err(|error| Problem::new("metadata", error))?);
        }
        if let Some(networks) = row.list("networks", "203.0.113.0/24", Networks::parse)? {
            new = new.networks(networks);
        }
        if let Some(tags) = row.list("tags", "mobile", Tags::parse)? {
            new = new.tags(tags);
        }
        let kind = row.text("kind")?.map(str::parse::<KeyKind>).transpose();
        let kind = kind.map_err(|error| Problem::new("kind", error))?;
        let origins = row.list("origins", "https://shop.example", WebOrigins::parse)?;
        match (kind.unwrap_or_default(), origins.unwrap_or_default()) {
            (KeyKind::Publishable, origins) => new = new.publishable(origins),
            (KeyKind::Canary, origins) if origins.is_empty() => new = new.canary(),
            (_, origins) if origins.is_empty() => {}
            _ => {
                let advice = "only a key of the kind \"publishable\" has origins";
                return Err(Problem::new("origins", advice));
            }
        }
        if let Some(at) = row.get("not_before") {
            let at = timestamps::future(at).map_err(|e| Problem::new("not_before", e))?;
            new = new.not_before(at);
        }
        if let Some(who) = row.name_or_number("created_by")? {
            new = new.created_by(who);
        }
        Ok(match &self.reason {
            Some(reason) => new.reason(reason),
            None => new,
        })
    }

    fn expiry(&self, row: &Row) -> Result<Expiry, Problem> {
        let Some(value) = row.get("expires") else {
            let what = "\"never\", \"2026-12-31\" or \"90d\", or for all lines --expires";
            return required(self.expiry, "expires", what);
        };
        timestamps::expiry(value).map_err(|problem| Problem::new("expires", problem))
    }
}

/// The prefix and the last characters.
type Shown = (String, String);

/// What a key is recognised by.
enum Identity {
    Hash {
        hash: KeyHash,
        shown: Shown,
    },
    /// A slow or salted hash.
    Verifier {
        verifier: LegacyHash,
        shown: Shown,
    },
    Key {
        key: Zeroizing<String>,
        prefix: String,
    },
}

impl Identity {
    fn with(self, new: NewKey, formats: &Formats) -> Result<KeyImport, Problem> {
        match self {
            Self::Hash { hash, shown: (prefix, last4) } => {
                Ok(KeyImport::new(hash, new).hint(prefix, last4))
            }
            Self::Verifier { verifier, shown: (prefix, last4) } => {
                Ok(KeyImport::of_legacy_hash(verifier, new).hint(prefix, last4))
            }
            Self::Key { key, prefix } => {
                let import = KeyImport::from_key(&key, &prefix, &formats.0, new);
                import.map_err(|error| Problem::from(&error))
            }
        }
    }
}

/// An id that is a UUID is kept as it is, another one in the metadata.
fn id(row: &mut Row) -> Result<Option<KeyId>, Problem> {
    let Some(text) = row.name_or_number("id")? else { return Ok(None) };
    if let Ok(id) = text.parse() {
        return Ok(Some(id));
    }
    let old = row.take("id").unwrap_or_default();
    row.put_metadata("old_id", old)?;
    Ok(None)
}

fn time(row: &Row, field: &'static str) -> Result<Option<std::time::SystemTime>, Problem> {
    let Some(value) = row.get(field) else { return Ok(None) };
    timestamps::past(value).map(Some).map_err(|problem| Problem::new(field, problem))
}

fn required<T>(value: Option<T>, field: &'static str, what: &str) -> Result<T, Problem> {
    value.ok_or_else(|| Problem::of(field, format!("`{field}` is missing: {what}")))
}

fn scopes_of(value: &Value) -> Result<Scopes, Problem> {
    let refused = |problem| Problem::new("scopes", problem);
    let scopes = serde_json::from_value::<Scopes>(value.clone());
    let advice = "must be a list of up to 128 scopes, such as [\"orders:read\"]";
    let scopes = scopes.map_err(|_| refused(advice))?;
    // `--scope` separates scopes by commas, so such a scope is a list by mistake.
    if scopes.iter().any(|scope| scope.as_str().contains(',')) {
        let advice = "must be separate strings, such as [\"orders:read\", \"orders:write\"]";
        return Err(refused(advice));
    }
    Ok(scopes)
}
