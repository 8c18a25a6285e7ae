//! The checks of `api-key doctor`.

mod missing_grants;
mod other_roles;
mod rehearse;
mod row_security;
mod search_path;
mod server;
mod structure;

use sqlx::ConnectOptions as _;
use tokio::time::timeout;

use self::{
    missing_grants::MissingGrants,
    other_roles::others,
    row_security::row_security,
    search_path::Place,
    server::{pooler, server, skew},
    structure::{history, structure},
};
pub(super) use self::{
    search_path::HISTORY,
    structure::{expected, parts},
};
use super::{PgKeyStore, encryption::encryption};
#[cfg(feature = "webhooks")]
use crate::store::port::WebhookStore as _;
use crate::{
    clock::Clock,
    store::{
        StoreError,
        doctor::{Finding, History, PATIENCE, Severity},
        port::{ChangeFeed as _, LegacyHashes as _},
        structure::Difference,
        trial::rehearse,
    },
};

impl PgKeyStore {
    /// Performs every operation of a service in transactions that are rolled back, and checks
    /// everything else that look-ups, changes and the feed depend on: the tables, their triggers
    /// and indexes, the rights of this role and of others, row-level security, the search path, the
    /// clocks, poolers, and unencrypted connections to other machines. It changes nothing and sends
    /// no notification; the sequence of `api_key_events` has a gap afterwards. A check that cannot
    /// be made is a finding, too.
    ///
    /// Without a [`Problem`](Severity::Problem), keys can be looked up and changes to them are
    /// noticed; without a [`Warning`](Severity::Warning) either, keys can be managed.
    ///
    /// `clock` is this machine's clock, to compare with the database's.
    pub async fn diagnose(&self, clock: &impl Clock) -> Vec<Finding> {
        let mut findings = Vec::new();
        match timeout(PATIENCE, self.examine(clock, &mut findings)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => findings.push(Finding::blocked("database", &error)),
            Err(_) => findings.push(Finding::late()),
        }
        findings
    }

    async fn examine(&self, clock: &impl Clock, findings: &mut Vec<Finding>) -> sqlx::Result<()> {
        let options = self.pool().connect_options();
        let connection = &mut options.connect().await?;
        findings.push(encryption(&options).await?);
        let is_standby = server(connection, findings).await?;
        findings.push(skew(connection, clock).await?);
        let pooler = pooler(connection, &options).await?;
        let mixes_statements = pooler.severity == Severity::Problem;
        findings.push(pooler);
        if mixes_statements {
            findings.push(self.listener().await);
            return Ok(());
        }

        let setting = self.management.schema().setting();
        let place = Place::find(connection, setting).await?;
        findings.extend(place.findings());
        let history = history(connection, &place, findings).await?;
        let Some(schema) = place.schema() else { return Ok(()) };
        if matches!(history, History::Missing | History::Broken) {
            return Ok(());
        }
        let differences = structure(connection, schema, history, findings).await?;
        findings.push(row_security(connection, schema).await?);
        let lacking = MissingGrants::find(connection, schema).await?;
        findings.push(others(connection, schema).await?);

        let listener = self.listener().await;
        let hears = listener.severity == Severity::Ok;
        findings.push(listener);
        // On tables that are not ours, every operation would fail.
        let is_unusable = differences.iter().any(Difference::is_of_a_table);
        if is_unusable {
            findings.extend(lacking.findings(true));
            return Ok(());
        }
        let failures = rehearse(self, is_standby).await;
        findings.extend(lacking.findings(!failures.is_empty() || !hears));
        let advise = |need, error: &StoreError| lacking.advise(need, error);
        findings.extend(Finding::of_trial(&failures, hears, advise));
        findings.push(Finding::of_legacy_keys(self.count_legacy_keys().await));
        #[cfg(feature = "webhooks")]
        findings.push(Finding::of_webhooks(self.webhooks().await));
        Ok(())
    }

    async fn listener(&self) -> Finding {
        match self.change_feed().connect().await {
            Ok(()) => Finding::ok("listener", "notifications arrive"),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let detail = cause.unwrap_or_else(|| error.to_string());
                let advice = "services that connect like this need a `PollingChangeFeed`, or a pool \
                    that connects directly to the primary for their `PgChangeFeed`";
                let detail = format!("notifications do not arrive: {detail}");
                Finding::warning("listener", detail, advice)
            }
        }
    }
}
