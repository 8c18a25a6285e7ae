//! Trial of a store: performs a service's operations in transactions that are rolled back.
//!
//! Each operation runs the same functions as the service, so a trial cannot succeed where the
//! service would fail.

mod operation;
mod perform;
mod read;
mod rehearse;
mod sample;

use std::time::Duration;

use tokio::time::timeout;

pub(super) use self::{
    operation::{Need, Operation},
    rehearse::Rehearse,
};
use self::{perform::perform, read::read, sample::Sample};
use super::{
    ManageKeys, StoreError, StoreErrorKind,
    port::{ChangeLog, KeyTransaction as _},
};

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
