use sqlx::{query_as, query_scalar};

use super::SqliteKeyStore;
use crate::store::{
    doctor::{Finding, INDEXES_GONE, Severity, TRIGGERS_GONE, made_by},
    migrate::{Applied, SQLITE},
};

impl SqliteKeyStore {
    /// Looks at everything that looking keys up, changing them and hearing of changes depends on,
    /// and changes nothing. What cannot be looked at is a finding, too.
    pub async fn diagnose(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Err(error) = self.examine(&mut findings).await {
            let advice = "is the file a database, and may this user read it? What was not looked \
                at may be wrong, too";
            findings.push(Finding::problem("database", error.to_string(), advice));
        }
        findings
    }

    async fn examine(&self, findings: &mut Vec<Finding>) -> sqlx::Result<()> {
        findings.push(self.soundness().await?);
        findings.push(self.journal().await?);
        let schema = self.schema().await?;
        let migrated = schema.severity == Severity::Ok;
        findings.push(schema);
        if !migrated {
            return Ok(());
        }
        let parts = "select name from sqlite_schema where type = ?1";
        let triggers: Vec<String> =
            query_scalar(parts).bind("trigger").fetch_all(self.pool()).await?;
        let expected = made_by(SQLITE, "trigger");
        findings.push(Finding::of_parts("triggers", &expected, &triggers, TRIGGERS_GONE));
        let indexes: Vec<String> = query_scalar(parts).bind("index").fetch_all(self.pool()).await?;
        let expected = made_by(SQLITE, "index");
        findings.push(Finding::of_parts("indexes", &expected, &indexes, INDEXES_GONE));
        findings.push(self.rights().await);
        Ok(())
    }

    async fn soundness(&self) -> sqlx::Result<Finding> {
        let said: String = query_scalar("pragma quick_check(1)").fetch_one(self.pool()).await?;
        if said == "ok" {
            return Ok(Finding::ok("file", "the file is sound"));
        }
        Ok(Finding::problem("file", said, "restore the file from a backup"))
    }

    async fn journal(&self) -> sqlx::Result<Finding> {
        let mode: String = query_scalar("pragma journal_mode").fetch_one(self.pool()).await?;
        if mode == "wal" {
            return Ok(Finding::ok(
                "journal",
                "a write-ahead log: look-ups do not wait for writers",
            ));
        }
        let detail = format!("the journal is `{mode}`: look-ups wait for writers");
        let advice = "`pragma journal_mode = wal`, which `SqliteKeyStore::connect` does by itself";
        Ok(Finding::warning("journal", detail, advice))
    }

    async fn schema(&self) -> sqlx::Result<Finding> {
        let begun = query_scalar(super::HAS_HISTORY).fetch_one(self.pool()).await?;
        let mut history: Vec<Applied> = Vec::new();
        if begun {
            let applied = query_as("select version, checksum from _api_key_migrations");
            history = applied.fetch_all(self.pool()).await?;
        }
        Ok(Finding::of_history(SQLITE, &history))
    }

    /// Whether the file can be written, without writing.
    async fn rights(&self) -> Finding {
        const CHECK: &str = "rights";
        let begun = self.pool().begin_with("begin immediate").await;
        let ended = match begun {
            Ok(transaction) => transaction.rollback().await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => Finding::ok(CHECK, "the file can be written"),
            Err(error) => {
                let advice = "may this user write the file and its folder? Does another program \
                    keep it locked?";
                let detail = format!("the file cannot be written: {error}");
                Finding::warning(CHECK, detail, advice)
            }
        }
    }
}
