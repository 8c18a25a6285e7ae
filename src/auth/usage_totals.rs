use super::authenticator::Authenticator;
use crate::store::{BucketWidth, UsageBucket};

impl Authenticator {
    /// What this process has counted since the hour began, of all keys together, without asking the
    /// store. For a page or a log line that shows what a node does.
    ///
    /// It has what the [worker](super::Worker) has collected for the
    /// [ledger](crate::manual::usage), so it lags behind by up to one
    /// [interval](super::Builder::usage_interval), and is zero without a worker and after a
    /// restart. Requests in progress may be corrected later. [`KeyIssuer::usage`] has the sum of
    /// all nodes.
    ///
    /// [`KeyIssuer::usage`]: crate::manage::KeyIssuer::usage
    #[must_use]
    pub fn usage_totals(&self) -> UsageBucket {
        let core = self.core();
        core.hour_total.of(BucketWidth::Hour.start(core.clock.now()))
    }
}
