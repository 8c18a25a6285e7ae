//! Trial of a store: performs a service's operations in transactions that are rolled back.
//!
//! Each operation runs the same functions as the service, so a trial cannot succeed where the
//! service would fail.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;

use super::{
    ChangeLog, Changes, EventPage, EventQuery, IdempotencyRecord, InvalidRow, KeyFilter, KeyPage,
    KeyQuery, KeyTransaction, LogPosition, ManageKeys, StoreError, StoreErrorKind, Usage,
};
use crate::{
    key::{KeyHash, SystemEntropy},
    rate_limit::{Quota, RateLimits},
    record::{AuditEntry, KeyAction, KeyId, KeyRecord, KeyStatus, Scope, Scopes},
};

/// A transaction for trials: it can also do what a service does outside of transactions.
pub(super) trait Rehearse: KeyTransaction {
    async fn find(&mut self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError>;

    async fn get(&mut self, id: KeyId) -> Result<Option<KeyRecord>, StoreError>;

    async fn list(&mut self, query: &KeyQuery) -> Result<KeyPage, StoreError>;

    async fn events(&mut self, query: &EventQuery) -> Result<EventPage, StoreError>;

    async fn flush_usage(&mut self, batch: &[Usage]) -> Result<(), StoreError>;

    async fn last_used_at(&mut self, id: KeyId) -> Result<Option<SystemTime>, StoreError>;

    async fn plans(&mut self) -> Result<Vec<(String, RateLimits)>, StoreError>;

    async fn changes_since(&mut self, horizon: Option<LogPosition>) -> Result<Changes, StoreError>;

    /// Checks deferred constraints now instead of at commit.
    async fn settle(&mut self) -> Result<(), StoreError>;
}

/// An operation of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    LookUp,
    Poll,
    Issue,
    Idempotency,
    Get,
    List,
    ListByScope,
    Audit,
    Update,
    Rotate,
    Revoke,
    Prune,
    Import,
    Usage,
    Plans,
}

/// What depends on an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Look-ups: without them every key is refused.
    LookUps,
    /// Polling: without it a polling service misses changes.
    Feed,
    /// Management: a service that only looks keys up does not need it.
    Management,
}

impl Operation {
    /// In the order of the trial.
    pub(super) const ALL: [Self; 15] = [
        Self::Issue,
        Self::LookUp,
        Self::Poll,
        Self::Idempotency,
        Self::Get,
        Self::List,
        Self::ListByScope,
        Self::Audit,
        Self::Update,
        Self::Rotate,
        Self::Revoke,
        Self::Prune,
        Self::Import,
        Self::Usage,
        Self::Plans,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::LookUp => "look-up",
            Self::Poll => "polling for changes",
            Self::Issue => "issue",
            Self::Idempotency => "idempotency keys",
            Self::Get => "get",
            Self::List => "list",
            Self::ListByScope => "list by scope",
            Self::Audit => "events",
            Self::Update => "update",
            Self::Rotate => "rotate",
            Self::Revoke => "revoke",
            Self::Prune => "prune",
            Self::Import => "import",
            Self::Usage => "usage flush",
            Self::Plans => "plans",
        }
    }

    pub(super) const fn need(self) -> Need {
        match self {
            Self::LookUp => Need::LookUps,
            Self::Poll => Need::Feed,
            _ => Need::Management,
        }
    }

    const fn only_reads(self) -> bool {
        matches!(self, Self::LookUp | Self::Poll | Self::Get | Self::List | Self::ListByScope)
    }
}

/// An operation that failed, and why.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) operation: Operation,
    pub(super) error: StoreError,
}

/// Performs every operation and returns those that fail. On a standby (`is_standby`), skips writes.
pub(super) async fn rehearse<S>(store: &S, is_standby: bool) -> Vec<Failure>
where
    S: ManageKeys + ChangeLog,
    S::Transaction: Rehearse,
{
    let sample = match Sample::new() {
        Ok(sample) => sample,
        Err(error) => return vec![Failure { operation: Operation::Issue, error }],
    };
    let mut failures = Vec::new();
    // Later operations use the issued key, if issuing worked.
    let mut begins = true;
    let mut with_key = false;
    for operation in Operation::ALL {
        if is_standby && !operation.only_reads() {
            continue;
        }
        let performed = async {
            let mut outcome = read(store, operation, &sample).await;
            if outcome.is_ok() && begins {
                let tried = attempt(store, operation, &sample, with_key).await;
                outcome = tried.map_err(|attempt| {
                    begins = attempt.begun;
                    attempt.error
                });
            }
            outcome
        };
        let Ok(outcome) = timeout(PATIENCE, performed).await else {
            // The remaining ones would time out as well.
            let late = format!("no answer within {PATIENCE:?}; later operations were not tried");
            let error = StoreError::new(StoreErrorKind::Unavailable).because(late);
            failures.push(Failure { operation, error });
            return failures;
        };
        match outcome {
            Ok(()) => with_key |= operation == Operation::Issue,
            Err(error) => failures.push(Failure { operation, error }),
        }
    }
    failures
}

/// Longer than a database's own lock timeouts.
const PATIENCE: Duration = Duration::from_secs(10);

/// An attempt that failed.
struct Attempt {
    error: StoreError,
    /// Whether the transaction could be started.
    begun: bool,
}

/// Performs `operation` in its own transaction, which is rolled back.
async fn attempt<S>(
    store: &S,
    operation: Operation,
    sample: &Sample,
    with_key: bool,
) -> Result<(), Attempt>
where
    S: ManageKeys,
    S::Transaction: Rehearse,
{
    let begun = store.begin().await;
    let mut tx = begun.map_err(|error| Attempt { error, begun: false })?;
    let performed = async {
        if with_key {
            tx.insert(std::slice::from_ref(&sample.key)).await?;
        }
        perform(&mut tx, operation, sample, with_key).await?;
        tx.settle().await
    };
    performed.await.map_err(|error| Attempt { error, begun: true })
}

/// Reads outside of a transaction, as the service does.
async fn read<S>(store: &S, operation: Operation, sample: &Sample) -> Result<(), StoreError>
where
    S: ManageKeys + ChangeLog,
{
    match operation {
        Operation::LookUp => store.find(&sample.key.key_hash).await.map(drop),
        Operation::Get => {
            store.get(sample.key.id).await?;
            store.last_used_at(sample.key.id).await.map(drop)
        }
        Operation::List => {
            for query in sample.queries() {
                readable(&store.list(&query).await?.invalid)?;
            }
            for status in KeyStatus::ALL {
                readable(&store.list(&KeyQuery::new().status(status)).await?.invalid)?;
            }
            readable(&store.list(&KeyQuery::new()).await?.invalid)
        }
        Operation::ListByScope => readable(&store.list(&sample.by_scope()).await?.invalid),
        Operation::Audit => {
            for query in sample.event_queries() {
                readable(&store.events(&query).await?.invalid)?;
            }
            readable(&store.events(&EventQuery::new()).await?.invalid)
        }
        Operation::Plans => store.plans().await.map(drop),
        Operation::Poll => {
            let changes = store.changes_since(None).await?;
            store.changes_since(Some(changes.horizon)).await.map(drop)
        }
        _ => Ok(()),
    }
}

/// Fails on the first row of a page that could not be parsed.
fn readable(invalid: &[InvalidRow]) -> Result<(), StoreError> {
    match invalid.first() {
        None => Ok(()),
        Some(row) => Err(StoreError::new(StoreErrorKind::Corrupt).because(row.problem.clone())),
    }
}

/// `with_key`: the sample key has been inserted. Without it, statements match nothing, but still
/// show whether the database permits them.
async fn perform<T: Rehearse>(
    tx: &mut T,
    operation: Operation,
    sample: &Sample,
    with_key: bool,
) -> Result<(), StoreError> {
    let key = &sample.key;
    match operation {
        Operation::LookUp => {
            let found = tx.find(&key.key_hash).await?;
            expect(!with_key || is(found.as_ref(), key), "a key is not read back as written")
        }
        Operation::Get => {
            let found = tx.get(key.id).await?;
            expect(!with_key || is(found.as_ref(), key), "a key is not read back as written")
        }
        Operation::Poll => {
            let changes = tx.changes_since(None).await?;
            tx.changes_since(Some(changes.horizon)).await.map(drop)
        }
        Operation::Issue => {
            let inserted = tx.insert(std::slice::from_ref(key)).await?;
            expect(inserted == [key.id], "a new key is not stored")?;
            tx.write_audit(&[sample.entry(KeyAction::Issued)]).await
        }
        Operation::Idempotency => {
            let first = tx.claim_idempotency_key(&sample.request).await?;
            let second = tx.claim_idempotency_key(&sample.request).await?;
            let is_kept = first.is_none() && second == Some(sample.request);
            expect(is_kept, "an idempotency key is not kept")
        }
        Operation::List => {
            for query in sample.queries() {
                let page = tx.list(&query).await?;
                expect(!with_key || has(&page, key), "a list lacks a key")?;
            }
            Ok(())
        }
        Operation::ListByScope => {
            let page = tx.list(&sample.by_scope()).await?;
            expect(!with_key || has(&page, key), "api_key_scopes lacks a key's scope")
        }
        Operation::Audit => {
            tx.write_audit(&[sample.entry(KeyAction::Updated)]).await?;
            for query in sample.event_queries() {
                let page = tx.events(&query).await?;
                expect(!page.events.is_empty(), "the audit lacks an event that was written")?;
            }
            Ok(())
        }
        Operation::Update => {
            let mut changed = key.clone();
            changed.name = None;
            changed.scopes = Scopes::default();
            changed.expires_at = None;
            update(tx, &changed, with_key).await?;
            tx.write_audit(&[sample.entry(KeyAction::Updated)]).await
        }
        Operation::Rotate => {
            tx.lock(&[key.id]).await?;
            let inserted = tx.insert(std::slice::from_ref(&sample.successor)).await?;
            expect(inserted == [sample.successor.id], "a new key is not stored")?;
            let retired = KeyRecord { rotated_at: Some(key.created_at), ..key.clone() };
            update(tx, &retired, with_key).await?;
            tx.write_audit(&[sample.entry(KeyAction::Rotated)]).await
        }
        Operation::Revoke => {
            tx.lock_some(&KeyFilter::Consumer(key.consumer_id.clone()), &[], 1).await?;
            tx.lock_some(&KeyFilter::Prefix(key.key_prefix.clone()), &[], 1).await?;
            let revoked = tx.revoke(&[key.id], Some("trial")).await?;
            let is_revoked = revoked.iter().any(|it| it.id == key.id && it.revoked_at.is_some());
            expect(!with_key || is_revoked, "a revocation is not stored")?;
            tx.write_audit(&[sample.entry(KeyAction::Revoked)]).await
        }
        Operation::Prune => {
            // Only the sample key is this old.
            let ended = tx.lock_some(&KeyFilter::EndedBefore(at(EXPIRY + 1)), &[], 1).await?;
            expect(!with_key || ended.iter().any(|it| it.id == key.id), "ended key not found")?;
            tx.delete(&[key.id]).await?;
            expect(tx.lock(&[key.id]).await?.is_empty(), "a deleted key is still there")?;
            tx.write_audit(&[sample.entry(KeyAction::Pruned)]).await?;
            tx.delete_expired(at(0), 1).await.map(drop)
        }
        Operation::Import => {
            // The second record has the hash of the first, which exists by then.
            let mut known = sample.imported.clone();
            known.id = sample.successor.id;
            let inserted = tx.insert(&[sample.imported.clone(), known]).await?;
            expect(inserted == [sample.imported.id], "a batch is not stored as written")?;
            tx.write_audit(&[sample.entry(KeyAction::Imported)]).await
        }
        Operation::Usage => {
            tx.flush_usage(&[Usage::new(key.id, at(EXPIRY))]).await?;
            tx.flush_usage(&[Usage::new(key.id, at(EXPIRY + 1))]).await?;
            let used = tx.last_used_at(key.id).await?;
            expect(!with_key || used == Some(at(EXPIRY + 1)), "the use of a key is not stored")
        }
        Operation::Plans => {
            tx.set_plan(&sample.word, &RateLimits::unlimited()).await?;
            tx.set_plan(&sample.word, &sample.limits).await?;
            let plans = tx.plans().await?;
            let is_set = plans.iter().any(|(name, _)| *name == sample.word);
            expect(is_set, "a plan is not stored")?;
            let found = tx.find(&key.key_hash).await?;
            let has_limits = found.is_some_and(|found| found.plan_limits.is_some());
            expect(!with_key || has_limits, "a key does not have the limits of its plan")?;
            expect(tx.remove_plan(&sample.word).await?.is_some(), "a plan is not removed")
        }
    }
}

async fn update<T: Rehearse>(
    tx: &mut T,
    changed: &KeyRecord,
    with_key: bool,
) -> Result<(), StoreError> {
    match tx.update(changed).await {
        // The key was not inserted.
        Err(error) if !with_key && error.kind() == StoreErrorKind::Conflict => Ok(()),
        Err(error) => Err(error),
        Ok(updated) => {
            let is_updated = updated.version == changed.version + 1
                && updated.scopes == changed.scopes
                && updated.rotated_at == changed.rotated_at;
            expect(is_updated, "a change is not stored")
        }
    }
}

/// Fails if a statement succeeded without effect, because a trigger, rule or policy changes it.
fn expect(holds: bool, otherwise: &'static str) -> Result<(), StoreError> {
    if holds {
        return Ok(());
    }
    Err(StoreError::new(StoreErrorKind::Other).because(otherwise))
}

fn is(found: Option<&KeyRecord>, key: &KeyRecord) -> bool {
    found.is_some_and(|found| {
        let read_at = key.read_at;
        KeyRecord { read_at, plan_limits: None, ..found.clone() } == *key
    })
}

fn has(page: &KeyPage, key: &KeyRecord) -> bool {
    page.keys.iter().any(|listed| is(Some(&listed.record), key))
}

/// When the sample key expired, in seconds since 1970: earlier than any real key.
const EXPIRY: u64 = 2;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Rows that no other trial writes.
struct Sample {
    key: KeyRecord,
    successor: KeyRecord,
    imported: KeyRecord,
    request: IdempotencyRecord,
    /// The key's consumer, prefix, scope and plan name.
    word: String,
    scope: Scope,
    limits: RateLimits,
}

impl Sample {
    fn new() -> Result<Self, StoreError> {
        let word = format!("doctor.{}", id()?);
        let scope = Scope::new(word.clone()).map_err(unfit)?;
        let limits = RateLimits::new([Quota::per_minute(60).map_err(unfit)?]).map_err(unfit)?;
        let mut key = record(&word)?;
        key.key_prefix.clone_from(&word);
        key.name = Some("trial".into());
        key.scopes = Scopes::parse([word.clone()]).map_err(unfit)?;
        key.rate_limits = Some(limits.clone());
        key.plan = Some(word.clone());
        key.created_by = Some("doctor".into());
        key.expires_at = Some(at(EXPIRY));
        let mut successor = record(&word)?;
        successor.rotated_from = Some(key.id);
        successor.root_id = key.root_id;
        let imported = record(&word)?;
        let hash = |record: &KeyRecord| *record.key_hash.as_bytes();
        let request = IdempotencyRecord::new(hash(&successor), hash(&imported), key.id);
        Ok(Self { key, successor, imported, request, word, scope, limits })
    }

    fn entry(&self, action: KeyAction) -> AuditEntry {
        AuditEntry {
            key_id: Some(self.key.id),
            consumer_id: Some(self.word.clone()),
            origin: Some("trial".into()),
            reason: Some("trial".into()),
            changes: Some(r#"{"name":{"from":null,"to":"trial"}}"#.into()),
            ..AuditEntry::new(action, "doctor")
        }
    }

    /// One query for each list filter, and for each index that only a filter reads.
    fn queries(&self) -> Vec<KeyQuery> {
        let of_consumer = || KeyQuery::new().consumer_id(self.word.clone());
        let of_prefix = || KeyQuery::new().key_prefix(self.word.clone());
        vec![
            of_consumer(),
            of_prefix(),
            of_consumer().status(KeyStatus::Expired),
            of_prefix().status(KeyStatus::Expired),
            of_consumer().unused_since(at(EXPIRY)),
            of_consumer().expires_before(at(EXPIRY + 1)),
        ]
    }

    fn by_scope(&self) -> KeyQuery {
        KeyQuery::new().scope(self.scope.clone())
    }

    fn event_queries(&self) -> [EventQuery; 2] {
        [
            EventQuery::new().key_id(self.key.id).limit(1),
            EventQuery::new().consumer_id(self.word.clone()).limit(1),
        ]
    }
}

fn id() -> Result<KeyId, StoreError> {
    KeyId::generate(at(0), &SystemEntropy).map_err(unfit)
}

fn record(consumer_id: &str) -> Result<KeyRecord, StoreError> {
    let id = id()?;
    let mut hash = [0; 32];
    let (left, right) = hash.split_at_mut(16);
    left.copy_from_slice(id.as_bytes());
    right.copy_from_slice(id.as_bytes());
    Ok(KeyRecord::new(id, KeyHash::from_bytes(hash), consumer_id, at(1)))
}

fn unfit(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::new(StoreErrorKind::Other).because(error)
}
