//! Shared by the SQL stores: a record as columns, and error details that are safe to show.

use std::{
    error::Error,
    fmt,
    time::{Duration, SystemTime},
};

use super::{
    EventPage, IdempotencyRecord, InvalidRow, KeyCounts, StoreError, StoreErrorKind,
    page::{Filling, event_bytes},
    poll::{ChangedKey, Changes, LogPosition},
};
use crate::{
    key::KeyHash,
    rate_limit::{InvalidPlanName, InvalidQuota, PlanName, Quota, RateLimits},
    record::{AuditEntry, KeyEvent, KeyId, KeyRecord, Metadata, Scopes, TextRule, rfc3339},
};

const NANOS_PER_MICRO: u128 = 1000;

/// A [`KeyRecord`] in portable types: times are microseconds since 1970, JSON is text.
pub(super) struct Row {
    pub(super) id: [u8; 16],
    pub(super) key_hash: Vec<u8>,
    pub(super) key_prefix: String,
    pub(super) key_last4: String,
    pub(super) consumer_id: String,
    pub(super) name: Option<String>,
    pub(super) scopes: Vec<String>,
    pub(super) rate_limits: Option<String>,
    pub(super) plan: Option<String>,
    /// Read from the plan; never written with a key.
    pub(super) plan_limits: Option<String>,
    pub(super) metadata: String,
    pub(super) is_active: bool,
    pub(super) created_at: i64,
    pub(super) created_by: Option<String>,
    pub(super) not_before: Option<i64>,
    pub(super) expires_at: Option<i64>,
    pub(super) revoked_at: Option<i64>,
    pub(super) revoked_reason: Option<String>,
    pub(super) rotated_from: Option<[u8; 16]>,
    pub(super) rotated_at: Option<i64>,
    pub(super) root_id: [u8; 16],
    pub(super) version: i64,
    pub(super) read_at: i64,
}

impl Row {
    /// The columns of `record`. Times are truncated to microseconds.
    pub(super) fn of(record: &KeyRecord) -> Result<Self, StoreError> {
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
    pub(super) fn into_record(self) -> Result<KeyRecord, StoreError> {
        let id = KeyId::from_bytes(self.id);
        self.parse().map_err(|Misfit { column, problem }| {
            corrupt(&format_args!("column `{column}` of key {id}: {problem}"))
        })
    }

    fn parse(self) -> Result<KeyRecord, Misfit> {
        let id = KeyId::from_bytes(self.id);
        let at = |column, micros| time(micros).ok_or(Misfit { column, problem: "not a time" });
        let maybe_at = |column, micros: Option<i64>| micros.map(|it| at(column, it)).transpose();
        let limits = |column, json: Option<String>| {
            json.map(|json| limits(&json).map_err(|problem| Misfit { column, problem })).transpose()
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
                return Err(Misfit { column, problem: "longer than 1,024 bytes" });
            }
        }
        if let Some(plan) = self.plan.as_deref() {
            let misfit = |_| Misfit { column: "plan", problem: InvalidPlanName::RULE };
            PlanName::new(plan).map_err(misfit)?;
        }
        let scopes = Scopes::parse(self.scopes).map_err(|_| Misfit {
            column: "scopes",
            problem: "more than 128 scopes, or an invalid scope",
        })?;
        let metadata = Metadata::from_json(&self.metadata)
            .map_err(|error| Misfit { column: "metadata", problem: error.bound() })?;
        let key_hash = KeyHash::try_from(&*self.key_hash)
            .map_err(|_| Misfit { column: "key_hash", problem: "not 32 bytes" })?;
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
                .map_err(|_| Misfit { column: "version", problem: "negative" })?,
            read_at: at("read_at", self.read_at)?,
        })
    }

    /// The row as text, without the hash, for listing rows that cannot be parsed.
    pub(super) fn as_text(&self, error: &StoreError) -> InvalidRow {
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

/// The key columns that are text in every database.
pub(super) const TEXTS: [&str; 10] = [
    "consumer_id",
    "name",
    "key_prefix",
    "key_last4",
    "scopes",
    "rate_limits",
    "plan",
    "metadata",
    "created_by",
    "revoked_reason",
];

/// An invalid column and the reason, without its value.
struct Misfit {
    column: &'static str,
    problem: &'static str,
}

fn limits(json: &str) -> Result<RateLimits, &'static str> {
    let quotas = serde_json::from_str::<Vec<Quota>>(json).map_err(|_| "not a list of quotas")?;
    RateLimits::new(quotas).map_err(|error| match error {
        InvalidQuota::TooMany => "more than 8 quotas",
        _ => "two quotas of one name",
    })
}

/// Checks that the record has the requested hash, so that a mixed-up connection cannot admit a key
/// under another key's record.
pub(super) fn answering(
    hash: &KeyHash,
    record: Option<KeyRecord>,
) -> Result<Option<KeyRecord>, StoreError> {
    match record {
        Some(record) if record.key_hash != *hash => Err(corrupt("answer to a different look-up")),
        answer => Ok(answer),
    }
}

/// A row of a poll: the fields of a [`LogPosition`], then those of a [`ChangedKey`], if any.
pub(super) type Polled = (i64, i64, Option<Uuid>, Option<i64>, Option<i64>);

/// The result of a poll, which has at least one row.
pub(super) fn changes(rows: &[Polled]) -> Result<Changes, StoreError> {
    let number = |number| u64::try_from(number).map_err(|_| corrupt("table `api_key_changes`"));
    let &(from, server, ..) = rows.first().ok_or_else(|| corrupt("empty answer to a poll"))?;
    let mut changes = Changes::new(LogPosition::new(number(from)?, server));
    for &(.., id, created_in, changed_in) in rows {
        if let (Some(id), Some(created), Some(changed)) = (id, created_in, changed_in) {
            changes.keys.push(ChangedKey::new(key_id(id), number(created)?, number(changed)?));
        }
    }
    Ok(changes)
}

/// The horizon as a query parameter.
pub(super) fn from(horizon: Option<LogPosition>) -> Result<Option<i64>, StoreError> {
    horizon.map(|horizon| i64::try_from(horizon.from).map_err(unstorable)).transpose()
}

/// The limit as a query parameter.
pub(super) fn bounded(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The record of an earlier request with the same idempotency key.
pub(super) fn claimed(
    request: [u8; 32],
    fingerprint: &[u8],
    key_id: Uuid,
) -> Result<IdempotencyRecord, StoreError> {
    let fingerprint = <[u8; 32]>::try_from(fingerprint);
    let fingerprint = fingerprint.map_err(|_| corrupt("column `fingerprint`"))?;
    Ok(IdempotencyRecord::new(request, fingerprint, self::key_id(key_id)))
}

/// Counts of live and of recent keys.
pub(super) fn counts((live, recent): (i64, i64), limit: usize) -> KeyCounts {
    let count = |count| usize::try_from(count).unwrap_or(usize::MAX).min(limit);
    KeyCounts::new(count(live), count(recent))
}

/// A [`KeyId`] as a parameter and a column of both databases.
///
/// sqlx's feature `uuid` also names its SQLite driver, which puts `libsqlite3-sys` into the lock file
/// of every service, and Cargo allows one version of that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uuid([u8; 16]);

impl Uuid {
    pub(super) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    pub(super) fn into_bytes(self) -> [u8; 16] {
        self.0
    }
}

pub(super) fn key_id(id: Uuid) -> KeyId {
    KeyId::from_bytes(id.into_bytes())
}

/// A row of `api_key_plans`.
pub(super) type Plan = (String, String);

/// Parses the rows of `api_key_plans`.
pub(super) fn plans(rows: Vec<Plan>) -> Result<Vec<(String, RateLimits)>, StoreError> {
    let plan = |(name, limits): Plan| match self::limits(&limits) {
        Ok(limits) => Ok((name, limits)),
        Err(problem) => {
            Err(corrupt(&format_args!("column `rate_limits` of plan {name:?}: {problem}")))
        }
    };
    rows.into_iter().map(plan).collect()
}

/// A [`KeyEvent`] in portable types, like [`Row`].
pub(super) struct Event {
    pub(super) id: i64,
    pub(super) at: i64,
    pub(super) action: String,
    pub(super) key_id: Option<Uuid>,
    pub(super) consumer_id: Option<String>,
    pub(super) actor: String,
    pub(super) origin: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) changes: Option<String>,
}

impl Event {
    /// The event, or the row as text if this version cannot parse it.
    fn into_event(self) -> Result<KeyEvent, InvalidRow> {
        let bad = |column: &str, problem: &str| {
            corrupt(&format_args!("column `{column}` of event {}: {problem}", self.id))
        };
        let parsed = u64::try_from(self.id)
            .map_err(|_| bad("id", "negative"))
            .and_then(|id| Ok((id, time(self.at).ok_or_else(|| bad("at", "not a time"))?)))
            .and_then(|(id, at)| {
                let action = self.action.parse();
                Ok((id, at, action.map_err(|_| bad("action", "unknown to this version"))?))
            });
        let (id, at, action) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return Err(self.into_text(&error)),
        };
        let entry = AuditEntry {
            key_id: self.key_id.map(key_id),
            consumer_id: self.consumer_id,
            origin: self.origin,
            reason: self.reason,
            changes: self.changes,
            ..AuditEntry::new(action, self.actor)
        };
        Ok(KeyEvent::new(id, at, entry))
    }

    fn into_text(self, error: &StoreError) -> InvalidRow {
        let texts = [
            ("at", Some(time(self.at).map_or_else(|| self.at.to_string(), rfc3339))),
            ("action", Some(self.action)),
            ("key_id", self.key_id.map(|id| key_id(id).to_string())),
            ("consumer_id", self.consumer_id),
            ("actor", Some(self.actor)),
            ("origin", self.origin),
            ("reason", self.reason),
            ("changes", self.changes),
        ];
        InvalidRow::new(self.id, error, texts)
    }
}

/// Collects the events of a page.
pub(super) struct EventRows {
    filling: Filling,
    page: EventPage,
    last: Option<i64>,
}

impl EventRows {
    pub(super) fn new(limit: usize) -> Self {
        Self { filling: Filling::new(limit), page: EventPage::default(), last: None }
    }

    /// Adds rows. Returns the cursor for the next ones; `None` if the page is full.
    pub(super) fn add(&mut self, events: Vec<Event>) -> Option<i64> {
        for event in events {
            let id = event.id;
            let event = event.into_event();
            let bytes = event.as_ref().map_or_else(InvalidRow::bytes, event_bytes);
            if !self.filling.takes(bytes) {
                return None;
            }
            self.last = Some(id);
            match event {
                Ok(event) => self.page.events.push(event),
                Err(row) => self.page.invalid.push(row),
            }
        }
        self.last
    }

    pub(super) fn finish(mut self) -> EventPage {
        if self.filling.is_full() {
            self.page.next = self.last.and_then(|last| u64::try_from(last).ok());
        }
        self.page
    }
}

/// The transaction is unusable because an earlier statement failed or was cancelled.
pub(super) fn ended() -> StoreError {
    StoreError::new(StoreErrorKind::Other).because("the transaction already failed")
}

/// Microseconds since 1970, rounded down.
pub(super) fn micros(time: SystemTime) -> Result<i64, StoreError> {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).map_err(unstorable),
        Err(before) => {
            let micros = before.duration().as_nanos().div_ceil(NANOS_PER_MICRO);
            i64::try_from(micros).map(|micros| -micros).map_err(unstorable)
        }
    }
}

/// Microseconds since 1970, rounded up: comparing stored times, which were [rounded down](micros),
/// with `<` then gives the same result as comparing with `time`.
pub(super) fn micros_up(time: SystemTime) -> Result<i64, StoreError> {
    let down = micros(time)?;
    let is_whole = self::time(down) == Some(time);
    Ok(if is_whole { down } else { down.saturating_add(1) })
}

/// The time this many microseconds after 1970, if representable.
pub(super) fn time(micros: i64) -> Option<SystemTime> {
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    }
}

/// `value` as JSON text.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(unstorable)
}

/// An error that names an invalid place without its value.
pub(super) fn corrupt(place: &(impl fmt::Display + ?Sized)) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt).because(place.to_string())
}

fn unstorable(error: impl Error + Send + Sync + 'static) -> StoreError {
    StoreError::new(StoreErrorKind::Other).because(error)
}

/// The code and message of a database error.
///
/// The driver's own error also carries, and prints, the values of the row.
#[derive(Debug)]
pub(super) struct DatabaseRefusal {
    pub(super) code: String,
    pub(super) message: String,
    /// How to fix it.
    pub(super) advice: Option<&'static str>,
}

impl fmt::Display for DatabaseRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)?;
        self.advice.map_or(Ok(()), |advice| write!(f, ": {advice}"))
    }
}

impl Error for DatabaseRefusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_down_to_microseconds_on_both_sides_of_1970() {
        let nanos = Duration::from_nanos;
        let epoch = SystemTime::UNIX_EPOCH;
        for (at, expected) in [
            (epoch, 0),
            (epoch + nanos(1_999), 1),
            (epoch - nanos(1), -1),
            (epoch - nanos(1_000), -1),
            (epoch - nanos(1_001), -2),
        ] {
            assert_eq!(micros(at).unwrap(), expected);
        }
        for at in [0, 1, -1, 1_767_225_600_123_456, -i64::MAX, i64::MAX] {
            assert_eq!(time(at).map(|at| micros(at).unwrap()), Some(at));
        }
    }

    #[test]
    fn times_beyond_the_end_are_errors() {
        let end = time(i64::MAX).unwrap();
        assert_eq!(
            micros(end + Duration::from_micros(1)).unwrap_err().kind(),
            StoreErrorKind::Other
        );
    }

    #[test]
    fn a_column_that_makes_no_sense_is_named_without_its_value() {
        let record = KeyRecord::new(
            KeyId::from_bytes([7; 16]),
            KeyHash::from_bytes([8; 32]),
            "acme",
            SystemTime::UNIX_EPOCH,
        );
        type Spoil = fn(&mut Row);
        let broken: [(&str, Spoil); 10] = [
            ("key_hash", |row| row.key_hash = b"leak".into()),
            ("scopes", |row| row.scopes = vec!["leak leak".into()]),
            ("rate_limits", |row| row.rate_limits = Some("null".into())),
            ("rate_limits", |row| row.rate_limits = Some(r#"[{"leak":1}]"#.into())),
            ("plan", |row| row.plan = Some("leak leak".into())),
            ("plan_limits", |row| row.plan_limits = Some("leak".into())),
            ("plan_limits", |row| row.plan_limits = Some(r#"[{"leak":1}]"#.into())),
            ("metadata", |row| row.metadata = r#"["leak"]"#.into()),
            ("metadata", |row| row.metadata = "leak".into()),
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
