//! Batches that skip the keys that a database refuses.

use super::{KeyIssuer, ManageError};
use crate::{
    record::{KeyId, KeyRecord},
    store::port::KeyFilter,
    trace::warn,
};

/// The result of a batch.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) done: u64,
    /// Keys that the database refused to change, or whose rows cannot be read.
    pub(super) skipped: Vec<KeyId>,
}

impl KeyIssuer {
    /// Runs `work` for all `ids` together. If it fails because of a key, bisects the batch until
    /// that key is found and skipped.
    pub(super) async fn each<F>(
        ids: Vec<KeyId>,
        work: impl Fn(Vec<KeyId>) -> F,
    ) -> Result<Outcome, ManageError>
    where
        F: Future<Output = Result<u64, ManageError>>,
    {
        let mut outcome = Outcome::default();
        let mut parts = vec![ids];
        while let Some(mut ids) = parts.pop() {
            match work(ids.clone()).await {
                Ok(done) => outcome.done += done,
                Err(error) if error.is_of_a_key() => {
                    let half = ids.split_off(ids.len() / 2);
                    match (&ids[..], &half[..]) {
                        ([], [id]) => {
                            outcome.skipped.push(*id);
                            // The error never contains values of the row.
                            warn!(key_id = %id, ?error, "key skipped: refused by the database");
                        }
                        ([], _) => return Err(error),
                        _ => parts.extend([half, ids]),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(outcome)
    }

    /// The ids of up to `limit` of `keys` other than `except`, including keys whose rows cannot be
    /// read.
    pub(super) async fn select_some(
        &self,
        keys: &KeyFilter,
        except: &[KeyId],
        limit: usize,
    ) -> Result<Vec<KeyId>, ManageError> {
        let mut tx = self.begin().await?;
        Ok(tx.select_some(keys, except, limit).await?)
    }

    /// The index of the first of `records` that the database refuses. Commits nothing.
    pub(super) async fn first_refused(
        &self,
        records: &[KeyRecord],
    ) -> Result<Option<usize>, ManageError> {
        // Inserting the first `good` records succeeds, inserting the first `bad` fails.
        let (mut good, mut bad) = (0, records.len() + 1);
        while good + 1 < bad {
            let middle = good + (bad - good) / 2;
            let mut tx = self.begin().await?;
            match tx.insert(records.get(..middle).unwrap_or(records)).await {
                Ok(_) => good = middle,
                Err(error) => {
                    let error = ManageError::from(error);
                    if !error.is_of_a_key() {
                        return Err(error);
                    }
                    bad = middle;
                }
            }
        }
        Ok((bad <= records.len()).then_some(good))
    }
}
