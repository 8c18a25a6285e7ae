//! Reports of leaked keys, and what becomes of the keys.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Value, json};

use super::{
    KeyIssuer, LeakPolicy, LeakResponse, ManageError,
    batch::Outcome,
    change::{Attempt, Change},
    new_key::whole_micros,
};
use crate::{
    key::{KeyHash, digest},
    record::{AuditEntry, KeyAction, KeyId, KeyKind, KeyRecord, KeyStatus, TextRule, is_plain},
    store::{StoreErrorKind, port::IdempotencyRecord},
    trace::warn,
};

/// Keys of a transaction, as for revocations.
const BATCH: usize = 500;
/// Audit entries about one key for one report of many. A key that leaked has often leaked in several
/// places, and the first few tell enough.
const MAX_PLACES: usize = 5;
/// Characters of a source or a type.
const MAX_WORD: usize = 64;
/// Characters of a URL: longer than most, and a few of them are still a short page.
const MAX_URL: usize = 512;

/// A text that was found where others can read it, and may be a key.
#[derive(Clone, Copy)]
#[must_use]
pub struct LeakReport<'a> {
    token: &'a [u8],
    source: Option<&'a str>,
    url: Option<&'a str>,
    token_type: Option<&'a str>,
}

impl<'a> LeakReport<'a> {
    /// `token` was found.
    pub const fn new(token: &'a [u8]) -> Self {
        Self { token, source: None, url: None, token_type: None }
    }

    /// What it was found in, such as `commit` or `npm`. The audit has the first 64 characters.
    pub const fn source(self, source: &'a str) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Where it was found. The audit has the first 512 characters, with keys masked.
    pub const fn url(self, url: &'a str) -> Self {
        Self { url: Some(url), ..self }
    }

    /// What the finder takes it for, such as `acme_api_key`. The audit has the first 64 characters.
    pub const fn token_type(self, name: &'a str) -> Self {
        Self { token_type: Some(name), ..self }
    }
}

/// Never prints the token.
impl fmt::Debug for LeakReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeakReport")
            .field("source", &self.source)
            .field("token_type", &self.token_type)
            .finish_non_exhaustive()
    }
}

/// What a [report](LeakReport) led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeakOutcome {
    /// The text is not a key of this service.
    Unknown,
    /// The key is revoked or has expired. Nothing is written.
    Ended,
    /// The key was revoked.
    Revoked,
    /// The key expires at the end of its grace, or earlier.
    Expires,
    /// The key keeps working, as the policy says.
    Recorded,
    /// The key is a [canary](KeyKind::Canary), which leaks on purpose. The audit has where it was
    /// found.
    Canary,
    /// The key was left as it is, which is logged: a rule of the database refuses its change, or its
    /// row cannot be read, in which case it is not accepted anyway.
    Skipped,
}

impl LeakOutcome {
    /// Whether the text is a key of this service, in whatever state.
    #[must_use]
    pub const fn is_key(self) -> bool {
        !matches!(self, Self::Unknown)
    }

    /// Whether the key worked until the report, so that it was worth something to a finder.
    #[must_use]
    pub const fn was_live(self) -> bool {
        !matches!(self, Self::Unknown | Self::Ended | Self::Canary)
    }
}

/// Where a key was found, as the audit has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    source: Option<String>,
    token_type: Option<String>,
    url: Option<String>,
}

impl Place {
    fn shown(&self) -> Value {
        let texts = [("source", &self.source), ("type", &self.token_type), ("url", &self.url)];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?)));
        Value::Object(texts.map(|(name, text)| (name.to_owned(), json!(text))).collect())
    }

    fn reason(&self) -> String {
        match &self.source {
            Some(source) => format!("leaked: found in {source}"),
            None => "leaked".to_owned(),
        }
    }
}

type Places = BTreeMap<KeyHash, Vec<Place>>;
type Outcomes = Arc<Mutex<HashMap<KeyId, LeakOutcome>>>;

impl KeyIssuer {
    /// Handles reports of leaked keys as `policy` says, and returns what each of them led to, in
    /// their order.
    ///
    /// The keys are found by one query, and changed in transactions of 500. The audit of each key has
    /// a [`Leaked`](KeyAction::Leaked) entry for each place where it was found, at most five for all
    /// of these reports, followed by what became of the key. A key that has ended gets none. A key
    /// that keeps working gets one entry for each place, and at most five of one actor, until they are
    /// [pruned](Self::prune) like idempotency keys, a day later at the earliest.
    ///
    /// Imported keys that still have a [legacy hash](crate::key::LegacyHash) are not found: their
    /// hashes cannot be looked up.
    ///
    /// # Errors
    ///
    /// [`Denied`](super::ManageErrorKind::Denied) to an actor that is not an operator, or when the
    /// store fails. Transactions that were committed before stay, and the reports can be repeated.
    pub async fn report_leaks(
        &self,
        reports: &[LeakReport<'_>],
        policy: &LeakPolicy,
    ) -> Result<Vec<LeakOutcome>, ManageError> {
        if !self.actor.is_operator() {
            let attempt = Attempt::to("report leaks");
            return Err(self.deny(ManageError::operators_only(), attempt).await?);
        }
        let hashes: Vec<_> = reports.iter().map(|report| self.hash(report.token)).collect();
        let mut places = Places::new();
        for (report, hash) in reports.iter().zip(&hashes) {
            let Some(hash) = hash else { continue };
            let place = self.place(report);
            let known = places.entry(*hash).or_default();
            if known.len() < MAX_PLACES && !known.contains(&place) {
                known.push(place);
            }
        }
        let handled = self.detached(self.clone().handle_leaks(places, policy.clone())).await?;
        let outcome = |hash: Option<KeyHash>| {
            hash.and_then(|hash| handled.get(&hash).copied()).unwrap_or(LeakOutcome::Unknown)
        };
        Ok(hashes.into_iter().map(outcome).collect())
    }

    fn hash(&self, token: &[u8]) -> Option<KeyHash> {
        self.formats.iter().find_map(|format| format.parse(token).ok()).map(|key| key.hash())
    }

    fn place(&self, report: &LeakReport<'_>) -> Place {
        // Masked before it is cut, or the rest of a key could be left.
        let url = report.url.map(|url| shown(&self.mask.mask(url), MAX_URL));
        let word = |text: Option<&str>| text.map(|text| shown(&self.mask.mask(text), MAX_WORD));
        Place { source: word(report.source), token_type: word(report.token_type), url }
    }

    async fn handle_leaks(
        self,
        places: Places,
        policy: LeakPolicy,
    ) -> Result<HashMap<KeyHash, LeakOutcome>, ManageError> {
        let hashes: Vec<_> = places.keys().copied().collect();
        let (found, unreadable) = self.find_each(&hashes).await?;
        let mut of_keys: HashMap<_, _> =
            unreadable.into_iter().map(|hash| (hash, LeakOutcome::Skipped)).collect();
        let found: HashMap<_, _> = found.iter().map(|key| (key.id, key.key_hash)).collect();
        let mut ids: Vec<_> = found.keys().copied().collect();
        ids.sort_unstable();
        let (places, policy, outcomes) = (Arc::new(places), Arc::new(policy), Outcomes::default());
        for ids in ids.chunks(BATCH) {
            let part = |ids| {
                let (issuer, outcomes) = (self.clone(), Arc::clone(&outcomes));
                issuer.handle_batch(ids, Arc::clone(&places), Arc::clone(&policy), outcomes)
            };
            let Outcome { skipped, .. } = Self::each(ids.to_vec(), part).await?;
            let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes.extend(skipped.into_iter().map(|id| (id, LeakOutcome::Skipped)));
        }
        let outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        of_keys.extend(found.iter().filter_map(|(id, hash)| Some((*hash, *outcomes.get(id)?))));
        Ok(of_keys)
    }

    /// The keys with these hashes, and the hashes of those whose rows cannot be read. One query,
    /// unless there are such rows.
    async fn find_each(
        &self,
        hashes: &[KeyHash],
    ) -> Result<(Vec<KeyRecord>, Vec<KeyHash>), ManageError> {
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        let mut parts = vec![hashes];
        while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
            match self.store.find_many(part).await {
                Ok(keys) => found.extend(keys),
                Err(error) if error.kind() != StoreErrorKind::Corrupt => return Err(error.into()),
                Err(error) => match part {
                    [hash] => {
                        warn!(?error, "leaked key skipped: its row cannot be read");
                        // Without the feature `tracing`, nothing is logged.
                        let _ = error;
                        unreadable.push(*hash);
                    }
                    _ => {
                        let (first, second) = part.split_at(part.len() / 2);
                        parts.extend([second, first]);
                    }
                },
            }
        }
        Ok((found, unreadable))
    }

    async fn handle_batch(
        self,
        ids: Vec<KeyId>,
        places: Arc<Places>,
        policy: Arc<LeakPolicy>,
        outcomes: Outcomes,
    ) -> Result<u64, ManageError> {
        let handled = self
            .change("report leaks", ids, async move |change, locked| {
                let mut handled = Vec::with_capacity(locked.len());
                let mut revoked = Vec::new();
                for key in locked {
                    let places = places.get(&key.key_hash).map_or(&[][..], Vec::as_slice);
                    let outcome = change.handle_leak(&key, places, &policy).await?;
                    handled.push((key.id, outcome));
                    if outcome == LeakOutcome::Revoked {
                        revoked.push((key, places));
                    }
                }
                change.revoke_leaked(&revoked).await?;
                Ok(handled)
            })
            .await?;
        let done = handled.len() as u64;
        outcomes.lock().unwrap_or_else(PoisonError::into_inner).extend(handled);
        Ok(done)
    }
}

impl Change {
    /// Handles the leak of a locked key, except for its revocation.
    async fn handle_leak(
        &mut self,
        key: &KeyRecord,
        places: &[Place],
        policy: &LeakPolicy,
    ) -> Result<LeakOutcome, ManageError> {
        if matches!(key.status(key.read_at), KeyStatus::Revoked | KeyStatus::Expired) {
            return Ok(LeakOutcome::Ended);
        }
        if key.kind == KeyKind::Canary {
            self.note_new_leaks(key, places).await?;
            return Ok(LeakOutcome::Canary);
        }
        match policy.response(key, &self.issuer.effective(&key.scopes)) {
            LeakResponse::Revoke => Ok(LeakOutcome::Revoked),
            LeakResponse::Record => {
                self.note_new_leaks(key, places).await?;
                Ok(LeakOutcome::Recorded)
            }
            LeakResponse::ExpireAfter(grace) => {
                self.note_new_leaks(key, places).await?;
                let end = key.read_at.checked_add(grace).map(whole_micros);
                let is_sooner = |end| key.expires_at.is_none_or(|expiry| end < expiry);
                // A second report must not extend the grace of the first.
                if let Some(end) = end.filter(|end| is_sooner(*end)) {
                    let changed = KeyRecord { expires_at: Some(end), ..key.clone() };
                    let after = self.tx.update(&changed).await?;
                    self.note(KeyAction::Updated, Some(key), &after, Some("leaked"));
                }
                Ok(LeakOutcome::Expires)
            }
        }
    }

    /// Writes the leaks of a key that goes on working: each place once, and a few places for each
    /// actor. Repeated reports, and reports with places that are made up, add nothing more to the
    /// audit. What was written is remembered as long as idempotency keys are.
    async fn note_new_leaks(
        &mut self,
        key: &KeyRecord,
        places: &[Place],
    ) -> Result<(), ManageError> {
        for place in places {
            let fingerprint = digest(&[place.shown().to_string().as_bytes()]);
            for slot in 0..MAX_PLACES {
                let actor = self.issuer.actor.name.as_bytes();
                let slot = slot.to_be_bytes();
                let request = digest(&[b"leak", key.id.as_bytes(), actor, &slot]);
                let claim = IdempotencyRecord { request, fingerprint, key_id: key.id };
                match self.tx.claim_idempotency_key(&claim).await? {
                    None => {
                        self.note_leak(key, place);
                        break;
                    }
                    Some(earlier) if earlier.fingerprint == fingerprint => break,
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    fn note_leak(&mut self, key: &KeyRecord, place: &Place) {
        let actor = &self.issuer.actor;
        let entry = AuditEntry {
            key_id: Some(key.id),
            consumer_id: Some(key.consumer_id.clone()),
            origin: actor.origin.clone(),
            reason: Some(place.reason()),
            changes: Some(place.shown().to_string()),
            ..AuditEntry::new(KeyAction::Leaked, actor.name.clone())
        };
        self.note_entry(entry);
    }

    /// Revokes locked keys together, and writes where they were found.
    async fn revoke_leaked(&mut self, keys: &[(KeyRecord, &[Place])]) -> Result<(), ManageError> {
        if keys.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = keys.iter().map(|(key, _)| key.id).collect();
        let after = self.tx.revoke(&ids, Some("leaked")).await?;
        for ((before, places), after) in keys.iter().zip(&after) {
            places.iter().for_each(|place| self.note_leak(before, place));
            self.note(KeyAction::Revoked, Some(before), after, Some("leaked"));
        }
        Ok(())
    }
}

/// At most `max` characters of what someone else wrote, without any that would garble a log or a
/// terminal.
fn shown(text: &str, max: usize) -> String {
    let plain = |character: char| {
        if is_plain(character.encode_utf8(&mut [0; 4])) { character } else { '\u{fffd}' }
    };
    let mut shown: String = text.chars().map(plain).take(max).collect();
    while TextRule::STORED.is_too_long(&shown) {
        shown.pop();
    }
    shown
}
