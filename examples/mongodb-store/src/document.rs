//! A key as a document.
//!
//! Times are 64-bit counts of microseconds since 1970: BSON's own dates have milliseconds, and keys
//! end on the microsecond. Limits and metadata are JSON in a text, because a document would rename
//! fields such as `$ne` and forget the order of others.

use std::{
    error::Error,
    time::{Duration, SystemTime},
};

use mongodb::bson::{Binary, Bson, Document, doc, spec::BinarySubtype};
use tower_api_key::{
    key::KeyHash,
    record::{KeyId, KeyRecord, Metadata, Networks, Scope, Scopes, Tags, WebOrigins},
};

type Problem = Box<dyn Error + Send + Sync>;

pub(super) fn bytes(bytes: &[u8]) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() }
}

pub(super) fn id(id: KeyId) -> Binary {
    bytes(id.as_bytes())
}

/// Whole microseconds since 1970, negative before.
pub(super) fn micros(at: SystemTime) -> i64 {
    let whole = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => whole(after),
        Err(before) => -whole(before.duration()),
    }
}

pub(super) fn of(record: &KeyRecord) -> Result<Document, Problem> {
    let limits = record.rate_limits.as_ref().map(serde_json::to_string).transpose()?;
    Ok(doc! {
        "_id": id(record.id),
        "key_hash": bytes(record.key_hash.as_bytes()),
        "key_prefix": &record.key_prefix,
        "key_last4": &record.key_last4,
        "consumer_id": &record.consumer_id,
        "name": &record.name,
        "scopes": texts(record.scopes.iter().map(Scope::as_str)),
        "rate_limits": limits,
        "plan": &record.plan,
        "metadata": record.metadata.as_json(),
        "networks": texts(record.networks.iter()),
        "tags": texts(record.tags.iter()),
        "kind": record.kind.as_str(),
        "origins": texts(record.origins.iter()),
        "is_active": record.is_active,
        "created_at": micros(record.created_at),
        "created_by": &record.created_by,
        "not_before": record.not_before.map(micros),
        "expires_at": record.expires_at.map(micros),
        "revoked_at": record.revoked_at.map(micros),
        "revoked_reason": &record.revoked_reason,
        "rotated_from": record.rotated_from.map(id),
        "rotated_at": record.rotated_at.map(micros),
        "root_id": id(record.root_id),
        "version": i64::try_from(record.version)?,
    })
}

fn texts<T: ToString>(items: impl Iterator<Item = T>) -> Vec<String> {
    items.map(|item| item.to_string()).collect()
}

/// The record of a document that was read with `read_at`. A field that is missing or of another type
/// is an error: a key without its expiry would be another key.
pub(super) fn record(found: &Document) -> Result<KeyRecord, Problem> {
    let created_at = time(found, "created_at")?.ok_or("`created_at` is missing")?;
    let id = key_id(found, "_id")?.ok_or("`_id` is missing")?;
    let hash = KeyHash::from_bytes(found.get_binary_generic("key_hash")?.as_slice().try_into()?);
    let mut record = KeyRecord::new(id, hash, found.get_str("consumer_id")?, created_at);
    record.key_prefix = found.get_str("key_prefix")?.to_owned();
    record.key_last4 = found.get_str("key_last4")?.to_owned();
    record.name = text(found, "name")?;
    record.scopes = Scopes::parse(list(found, "scopes")?)?;
    let limits = text(found, "rate_limits")?;
    record.rate_limits = limits.map(|json| serde_json::from_str(&json)).transpose()?;
    record.plan = text(found, "plan")?;
    record.metadata = Metadata::from_json(found.get_str("metadata")?)?;
    record.networks = Networks::parse(list(found, "networks")?)?;
    record.tags = Tags::parse(list(found, "tags")?)?;
    record.kind = found.get_str("kind")?.parse()?;
    record.origins = WebOrigins::parse(list(found, "origins")?)?;
    record.is_active = found.get_bool("is_active")?;
    record.created_by = text(found, "created_by")?;
    record.not_before = time(found, "not_before")?;
    record.expires_at = time(found, "expires_at")?;
    record.revoked_at = time(found, "revoked_at")?;
    record.revoked_reason = text(found, "revoked_reason")?;
    record.rotated_from = key_id(found, "rotated_from")?;
    record.rotated_at = time(found, "rotated_at")?;
    record.root_id = key_id(found, "root_id")?.ok_or("`root_id` is missing")?;
    record.version = u64::try_from(found.get_i64("version")?)?;
    record.read_at = found.get_datetime("read_at")?.to_system_time();
    Ok(record)
}

/// `None` for null.
pub(super) fn time(found: &Document, field: &str) -> Result<Option<SystemTime>, Problem> {
    let micros = match found.get(field) {
        // The last use is missing until there is one; `created_at` and others are checked.
        None if field == "last_used_at" => return Ok(None),
        Some(Bson::Null) => return Ok(None),
        _ => found.get_i64(field)?,
    };
    let distance = Duration::from_micros(micros.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let at = if micros < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    at.map(Some).ok_or_else(|| format!("`{field}` is out of range").into())
}

fn text(found: &Document, field: &str) -> Result<Option<String>, Problem> {
    match found.get(field) {
        Some(Bson::Null) => Ok(None),
        _ => Ok(Some(found.get_str(field)?.to_owned())),
    }
}

fn key_id(found: &Document, field: &str) -> Result<Option<KeyId>, Problem> {
    match found.get(field) {
        Some(Bson::Null) => Ok(None),
        _ => {
            let bytes = found.get_binary_generic(field)?;
            Ok(Some(KeyId::from_bytes(bytes.as_slice().try_into()?)))
        }
    }
}

fn list(found: &Document, field: &str) -> Result<Vec<String>, Problem> {
    let items = found.get_array(field)?.iter();
    let text = |item: &Bson| item.as_str().map(str::to_owned);
    let texts = items.map(|item| text(item).ok_or("a list of texts has another item"));
    Ok(texts.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use tower_api_key::{key::KeyFormat, rate_limit::Quota, record::KeyKind};

    use super::*;

    fn at(micros: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
    }

    fn full_record() -> KeyRecord {
        let hash = KeyFormat::new("test_").unwrap().generate().unwrap().hash();
        let mut record = KeyRecord::new(KeyId::from_bytes([1; 16]), hash, "acme \0 {}", at(7));
        record.key_prefix = "sk_live_".into();
        record.key_last4 = "Zq0Q".into();
        record.name = Some("nightly".into());
        record.scopes = Scopes::parse(["reports:write", "reports:read"]).unwrap();
        record.rate_limits = Some(Quota::per_second(10).unwrap().burst(20).unwrap().into());
        record.plan = Some("pro".into());
        record.metadata = Metadata::from_json(r#"{"$ne":1,"a":[2.5,null]}"#).unwrap();
        record.networks = Networks::parse(["10.0.0.0/8", "2001:db8::/32"]).unwrap();
        record.tags = Tags::parse(["mobile"]).unwrap();
        record.kind = KeyKind::Publishable;
        record.origins = WebOrigins::parse(["https://shop.example"]).unwrap();
        record.is_active = false;
        record.created_by = Some("alice".into());
        record.not_before = Some(SystemTime::UNIX_EPOCH - Duration::from_micros(1));
        record.expires_at = Some(at(1_767_225_600_123_456));
        record.revoked_at = Some(at(0));
        record.revoked_reason = Some(String::new());
        record.rotated_from = Some(KeyId::from_bytes([2; 16]));
        record.rotated_at = Some(at(3));
        record.root_id = KeyId::from_bytes([4; 16]);
        record.version = 9;
        record.read_at = at(1_000);
        record
    }

    /// As the server returns it, which adds the time of the read.
    fn read(record: &KeyRecord) -> Document {
        let mut document = of(record).unwrap();
        let now = mongodb::bson::DateTime::from_system_time(record.read_at);
        document.insert("read_at", now);
        document
    }

    #[test]
    fn a_record_comes_back_from_its_document() {
        let empty = KeyRecord::new(KeyId::from_bytes([0; 16]), full_record().key_hash, "", at(0));
        for mut record in [full_record(), empty] {
            record.read_at = at(1_000);
            let bytes = read(&record).to_vec().unwrap();
            let document = Document::from_reader(&*bytes).unwrap();
            assert_eq!(self::record(&document).unwrap(), record);
        }
    }

    #[test]
    fn a_document_without_one_of_its_fields_is_no_key() {
        let whole = read(&full_record());
        for field in whole.keys() {
            let mut document = whole.clone();
            document.remove(field);
            assert!(record(&document).is_err(), "{field}");
            document.insert(field, 1.5);
            assert!(record(&document).is_err(), "{field}");
        }
    }
}
