//! The status of found keys, and their revocation.

use std::collections::{BTreeMap, HashMap};

use tokio::{runtime::Runtime, task::JoinSet};
use tower_api_key::{
    key::KeyHash,
    record::{KeyId, KeyRecord, TextRule},
    store::KeyStore as _,
};

use super::report::{Place, counted};
use crate::{failure::Failure, global::Global, output, revoke::confirm, session::Session};

/// A connected database, and the keys to revoke in it.
pub(super) struct Database {
    session: Session,
    runtime: Runtime,
    /// The keys that have not ended, and where each was first found.
    live: BTreeMap<KeyId, Place>,
}

impl Database {
    pub(super) fn open(global: Global) -> Result<Self, Failure> {
        let runtime = crate::runtime()?;
        let session = runtime.block_on(Session::begin(global, false))?;
        Ok(Self { session, runtime, live: BTreeMap::new() })
    }

    /// The records of the keys that it knows.
    pub(super) fn look_up(
        &self,
        hashes: impl Iterator<Item = KeyHash>,
    ) -> Result<HashMap<KeyHash, KeyRecord>, Failure> {
        let mut hashes: Vec<_> = hashes.collect();
        hashes.sort_unstable();
        hashes.dedup();
        self.runtime.block_on(async {
            // Look-ups that run at the same time share queries.
            let mut running = JoinSet::new();
            for hash in hashes {
                let store = self.session.store.clone();
                running.spawn(async move { (hash, store.find(&hash).await) });
            }
            let mut records = HashMap::new();
            while let Some(done) = running.join_next().await {
                let (hash, record) =
                    done.map_err(|error| Failure::new("a look-up ended early").because(&error))?;
                records.extend(record?.map(|record| (hash, record)));
            }
            Ok(records)
        })
    }

    /// Notes a key that has not ended.
    pub(super) fn note_live(&mut self, id: KeyId, place: &Place) {
        self.live.entry(id).or_insert_with(|| place.clone());
    }

    /// Revokes the keys that have not ended. If one fails, the others are revoked all the same.
    pub(super) fn revoke(self, yes: bool) -> Result<(), Failure> {
        if self.live.is_empty() {
            output::note("nothing to revoke");
            return Ok(());
        }
        confirm(&format!("the {} that were found", counted(self.live.len() as u64, "key")), yes)?;
        let issuer = self.session.issuer()?;
        let mut failed = None;
        for (id, place) in &self.live {
            match self.runtime.block_on(issuer.revoke(*id, Some(&reason(place)))) {
                Ok(_) => output::note(&format!("{id} revoked")),
                Err(error) => {
                    let failure = Failure::from(error);
                    output::warn(&format!("{id} is not revoked: {}", failure.message()));
                    failed = Some(failure);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// The reason of a revocation, for the audit. The end of a long path says more than its beginning.
fn reason(place: &Place) -> String {
    let place = place.to_string();
    let mut starts = place.char_indices().map(|(at, _)| at);
    let reason = starts.find_map(|at| {
        let ellipsis = if at == 0 { "" } else { "…" };
        let reason = format!("found by api-key scan in {ellipsis}{}", place.get(at..)?);
        TextRule::STORED.check(&reason).is_ok().then_some(reason)
    });
    reason.unwrap_or_else(|| "found by api-key scan".to_owned())
}
