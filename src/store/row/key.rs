//! A key's record as columns.

use super::{
    error::{corrupt, unstorable},
    plan::limits,
    time::{micros, time},
    value::json,
};
use crate::{
    key::KeyHash,
    rate_limit::{InvalidPlanName, PlanName},
    record::{
        KeyId, KeyKind, KeyRecord, Metadata, Network, Networks, Scopes, Tags, TextRule, WebOrigins,
        rfc3339,
    },
    store::{InvalidRow, StoreError},
};

/// A [`KeyRecord`] in portable types: times are microseconds since 1970, JSON is text.
pub(in crate::store) struct Row {
    pub(in crate::store) id: [u8; 16],
    pub(in crate::store) key_hash: Vec<u8>,
    pub(in crate::store) key_prefix: String,
    pub(in crate::store) key_last4: String,
    pub(in crate::store) consumer_id: String,
    pub(in crate::store) name: Option<String>,
    pub(in crate::store) scopes: Vec<String>,
    pub(in crate::store) rate_limits: Option<String>,
    pub(in crate::store) plan: Option<String>,
    /// Read from the plan; never written with a key.
    pub(in crate::store) plan_limits: Option<String>,
    pub(in crate::store) metadata: String,
    pub(in crate::store) networks: Option<Vec<String>>,
    pub(in crate::store) tags: Option<Vec<String>>,
    pub(in crate::store) origins: Option<Vec<String>>,
    pub(in crate::store) kind: String,
    pub(in crate::store) is_active: bool,
    pub(in crate::store) created_at: i64,
    pub(in crate::store) created_by: Option<String>,
    pub(in crate::store) not_before: Option<i64>,
    pub(in crate::store) expires_at: Option<i64>,
    pub(in crate::store) revoked_at: Option<i64>,
    pub(in crate::store) revoked_reason: Option<String>,
    pub(in crate::store) rotated_from: Option<[u8; 16]>,
    pub(in crate::store) rotated_at: Option<i64>,
    pub(in crate::store) root_id: [u8; 16],
    pub(in crate::store) version: i64,
    pub(in crate::store) read_at: i64,
}

impl Row {
    /// The columns of `record`. Times are truncated to microseconds.
    pub(in crate::store) fn of(record: &KeyRecord) -> Result<Self, StoreError> {
        Ok(Self {
            id: *record.id.as_bytes(),
            key_hash: record.key_hash.as_bytes().to_vec(),
            key_prefix: record.key_prefix.clone(),
            key_last4: record.key_last4.clone(),
            consumer_id: record.consumer_id.clone(),
            name: record.name.clone(),
            scopes: record.scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
            rate_limits: record.rate_limits.as_ref().map(json).transpose()?,
            plan: record.plan.clone(),
            plan_limits: None,
            metadata: record.metadata.as_json().to_owned(),
            networks: words(record.networks.iter().map(Network::to_string)),
            tags: words(record.tags.iter().map(str::to_owned)),
            origins: words(record.origins.iter().map(str::to_owned)),
            kind: record.kind.as_str().to_owned(),
            is_active: record.is_active,
            created_at: micros(record.created_at)?,
            created_by: record.created_by.clone(),
            not_before: record.not_before.map(micros).transpose()?,
            expires_at: record.expires_at.map(micros).transpose()?,
            revoked_at: record.revoked_at.map(micros).transpose()?,
            revoked_reason: record.revoked_reason.clone(),
            rotated_from: record.rotated_from.map(|id| *id.as_bytes()),
            rotated_at: record.rotated_at.map(micros).transpose()?,
            root_id: *record.root_id.as_bytes(),
            version: i64::try_from(record.version).map_err(unstorable)?,
            read_at: micros(record.read_at)?,
        })
    }

    /// Parses the record, checking every column against its bounds.
    pub(in crate::store) fn into_record(self) -> Result<KeyRecord, StoreError> {
        let id = KeyId::from_bytes(self.id);
        self.parse().map_err(|InvalidColumn { column, problem }| {
            corrupt(&format_args!("column `{column}` of key {id}: {problem}"))
        })
    }

    fn parse(self) -> Result<KeyRecord, InvalidColumn> {
        let id = KeyId::from_bytes(self.id);
        let at =
            |column, micros| time(micros).ok_or(InvalidColumn { column, problem: "not a time" });
        let maybe_at = |column, micros: Option<i64>| micros.map(|it| at(column, it)).transpose();
        let limits = |column, json: Option<String>| {
            json.map(|json| limits(&json).map_err(|problem| InvalidColumn { column, problem }))
                .transpose()
        };
        for (column, text) in [
            ("consumer_id", Some(&self.consumer_id)),
            ("key_prefix", Some(&self.key_prefix)),
            ("key_last4", Some(&self.key_last4)),
            ("name", self.name.as_ref()),
            ("created_by", self.created_by.as_ref()),
            ("revoked_reason", self.revoked_reason.as_ref()),
        ] {
            if text.is_some_and(|text| TextRule::STORED.is_too_long(text)) {
                return Err(InvalidColumn { column, problem: "longer than 1,024 bytes" });
            }
        }
        if let Some(plan) = self.plan.as_deref() {
            let misfit = |_| InvalidColumn { column: "plan", problem: InvalidPlanName::RULE };
            PlanName::new(plan).map_err(misfit)?;
        }
        let scopes = Scopes::parse(self.scopes).map_err(|_| InvalidColumn {
            column: "scopes",
            problem: "more than 128 scopes, or an invalid scope",
        })?;
        let metadata = Metadata::from_json(&self.metadata)
            .map_err(|error| InvalidColumn { column: "metadata", problem: error.bound() })?;
        let networks = self.networks.map(Networks::parse).transpose();
        let networks = networks.map_err(|_| InvalidColumn {
            column: "networks",
            problem: "more than 64 networks, or an invalid network",
        })?;
        let tags = self.tags.map(Tags::parse).transpose().map_err(|_| InvalidColumn {
            column: "tags",
            problem: "more than 32 tags, or an invalid tag",
        })?;
        let kind: KeyKind = self
            .kind
            .parse()
            .map_err(|_| InvalidColumn { column: "kind", problem: "not a known kind" })?;
        let origins = self.origins.map(WebOrigins::parse).transpose();
        let origins = origins.map_err(|_| InvalidColumn {
            column: "origins",
            problem: "more than 32 origins, or an invalid origin",
        })?;
        let origins = origins.unwrap_or_default();
        if origins.is_empty() == (kind == KeyKind::Publishable) {
            return Err(InvalidColumn {
                column: "origins",
                problem: "does not fit the kind of the key: only a publishable one has origins",
            });
        }
        let key_hash = KeyHash::try_from(&*self.key_hash)
            .map_err(|_| InvalidColumn { column: "key_hash", problem: "not 32 bytes" })?;
        Ok(KeyRecord {
            id,
            key_hash,
            key_prefix: self.key_prefix,
            key_last4: self.key_last4,
            consumer_id: self.consumer_id,
            name: self.name,
            scopes,
            rate_limits: limits("rate_limits", self.rate_limits)?,
            plan: self.plan,
            plan_limits: limits("plan_limits", self.plan_limits)?,
            metadata,
            networks: networks.unwrap_or_default(),
            tags: tags.unwrap_or_default(),
            kind,
            origins,
            is_active: self.is_active,
            created_at: at("created_at", self.created_at)?,
            created_by: self.created_by,
            not_before: maybe_at("not_before", self.not_before)?,
            expires_at: maybe_at("expires_at", self.expires_at)?,
            revoked_at: maybe_at("revoked_at", self.revoked_at)?,
            revoked_reason: self.revoked_reason,
            rotated_from: self.rotated_from.map(KeyId::from_bytes),
            rotated_at: maybe_at("rotated_at", self.rotated_at)?,
            root_id: KeyId::from_bytes(self.root_id),
            version: u64::try_from(self.version)
                .map_err(|_| InvalidColumn { column: "version", problem: "negative" })?,
            read_at: at("read_at", self.read_at)?,
        })
    }

    /// The row as text, without the hash, for listing rows that cannot be parsed.
    pub(in crate::store) fn as_text(&self, error: &StoreError) -> InvalidRow {
        let at = |micros: i64| time(micros).map_or_else(|| micros.to_string(), rfc3339);
        let texts = [
            ("consumer_id", Some(self.consumer_id.clone())),
            ("name", self.name.clone()),
            ("key_prefix", Some(self.key_prefix.clone())),
            ("key_last4", Some(self.key_last4.clone())),
            ("scopes", serde_json::to_string(&self.scopes).ok()),
            ("rate_limits", self.rate_limits.clone()),
            ("plan", self.plan.clone()),
            ("metadata", Some(self.metadata.clone())),
            ("networks", self.networks.as_ref().and_then(|list| serde_json::to_string(list).ok())),
            ("tags", self.tags.as_ref().and_then(|list| serde_json::to_string(list).ok())),
            ("origins", self.origins.as_ref().and_then(|list| serde_json::to_string(list).ok())),
            ("kind", Some(self.kind.clone())),
            ("is_active", Some(self.is_active.to_string())),
            ("created_at", Some(at(self.created_at))),
            ("created_by", self.created_by.clone()),
            ("not_before", self.not_before.map(at)),
            ("expires_at", self.expires_at.map(at)),
            ("revoked_at", self.revoked_at.map(at)),
            ("revoked_reason", self.revoked_reason.clone()),
            ("version", Some(self.version.to_string())),
        ];
        InvalidRow::new(KeyId::from_bytes(self.id), error, texts)
    }
}

/// A column of texts: null if there are none.
fn words(words: impl ExactSizeIterator<Item = String>) -> Option<Vec<String>> {
    (words.len() > 0).then(|| words.collect())
}

/// The key columns that are text in every database.
pub(in crate::store) const TEXTS: [&str; 11] = [
    "consumer_id",
    "name",
    "key_prefix",
    "key_last4",
    "scopes",
    "rate_limits",
    "plan",
    "metadata",
    "kind",
    "created_by",
    "revoked_reason",
];

/// An invalid column and the reason, without its value.
struct InvalidColumn {
    column: &'static str,
    problem: &'static str,
}

/// Checks that the record has the requested hash, so that a mixed-up connection cannot admit a key
/// under another key's record.
pub(in crate::store) fn answering(
    hash: &KeyHash,
    record: Option<KeyRecord>,
) -> Result<Option<KeyRecord>, StoreError> {
    match record {
        Some(record) if record.key_hash != *hash => Err(corrupt("answer to a different look-up")),
        answer => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::store::StoreErrorKind;

    #[test]
    fn a_column_that_makes_no_sense_is_named_without_its_value() {
        let record = KeyRecord::new(
            KeyId::from_bytes([7; 16]),
            KeyHash::from_bytes([8; 32]),
            "acme",
            SystemTime::UNIX_EPOCH,
        );
        type Spoil = fn(&mut Row);
        let broken: [(&str, Spoil); 17] = [
            ("key_hash", |row| row.key_hash = b"leak".into()),
            ("scopes", |row| row.scopes = vec!["leak leak".into()]),
            ("rate_limits", |row| row.rate_limits = Some("null".into())),
            ("rate_limits", |row| row.rate_limits = Some(r#"[{"leak":1}]"#.into())),
            ("plan", |row| row.plan = Some("leak leak".into())),
            ("plan_limits", |row| row.plan_limits = Some("leak".into())),
            ("plan_limits", |row| row.plan_limits = Some(r#"[{"leak":1}]"#.into())),
            ("metadata", |row| row.metadata = r#"["leak"]"#.into()),
            ("metadata", |row| row.metadata = "leak".into()),
            ("networks", |row| row.networks = Some(vec!["leak".into()])),
            ("networks", |row| row.networks = Some(vec!["10.0.0.1/8".into()])),
            ("tags", |row| row.tags = Some(vec!["leak leak".into()])),
            ("kind", |row| row.kind = "leak".into()),
            ("origins", |row| row.kind = "publishable".into()),
            ("origins", |row| row.origins = Some(vec!["https://leak.example".into()])),
            ("origins", |row| row.origins = Some(vec!["leak".into()])),
            ("version", |row| row.version = -1),
        ];
        for (column, spoil) in broken {
            let mut row = Row::of(&record).unwrap();
            spoil(&mut row);
            let error = row.into_record().unwrap_err();
            let shown = format!("{error:?}");
            assert_eq!(error.kind(), StoreErrorKind::Corrupt);
            assert!(shown.contains(&format!("`{column}` of key 07070707-")), "{shown}");
            assert!(!shown.contains("leak"), "{shown}");
        }
        assert_eq!(Row::of(&record).unwrap().into_record().unwrap(), record);
    }

    #[test]
    fn the_answer_to_another_look_up_lets_nobody_in() {
        let [asked, other] = [1, 2].map(|byte| KeyHash::from_bytes([byte; 32]));
        let id = KeyId::from_bytes([7; 16]);
        let record = KeyRecord::new(id, other, "acme", SystemTime::UNIX_EPOCH);
        assert!(answering(&other, Some(record.clone())).unwrap().is_some());
        assert!(answering(&asked, None).unwrap().is_none());
        assert_eq!(answering(&asked, Some(record)).unwrap_err().kind(), StoreErrorKind::Corrupt);
    }
}
