//! An import in progress, batch by batch.

use tower_api_key::manage::{Imported, KeyImport, KeyIssuer, ManageError};

use super::{
    super::{failure::Failure, output, progress::Progress},
    key::Settings,
    report::{Problem, Report},
    source::Source,
};

/// Keys per transaction, which takes a fraction of a second.
const BATCH: usize = 1000;

pub(super) struct Run {
    pub(super) issuer: KeyIssuer,
    pub(super) settings: Settings,
    pub(super) skip_invalid: bool,
    pub(super) report: Report,
}

/// Keys to import together, each with its line number.
type Batch = Vec<(u64, KeyImport)>;

impl Run {
    pub(super) async fn all(mut self, mut source: Source) -> Result<Report, Failure> {
        let progress = Progress::begin(source.input().len(), "read");
        let mut batch = Batch::with_capacity(BATCH);
        while let Some(row) = source.next()? {
            match row.and_then(|row| self.settings.key(row)) {
                Ok(key) => batch.push((source.line(), key)),
                Err(problem) => {
                    if !self.skip_invalid {
                        self.store(std::mem::take(&mut batch)).await?;
                    }
                    self.invalid(source.line(), problem)?;
                }
            }
            if batch.len() == BATCH {
                self.store(std::mem::replace(&mut batch, Batch::with_capacity(BATCH))).await?;
                progress.set(self.report.imported + self.report.known, source.input().consumed());
            }
        }
        self.store(batch).await?;
        progress.end();
        Ok(self.report)
    }

    /// Stores a batch. The issuer reports invalid keys one at a time.
    async fn store(&mut self, mut batch: Batch) -> Result<(), Failure> {
        while !batch.is_empty() {
            let keys = batch.iter().map(|(_, key)| key.clone()).collect();
            let error = match self.import(keys).await {
                Ok(imported) => {
                    self.report.imported += imported.keys.len() as u64;
                    self.report.known += imported.known;
                    return Ok(());
                }
                Err(error) => error,
            };
            let Some(at) = error.index().filter(|at| *at < batch.len()) else {
                return Err(self.interrupted(error.into()));
            };
            let mut after = batch.split_off(at);
            let (line, _) = after.remove(0);
            if self.skip_invalid {
                self.invalid(line, Problem::from(&error))?;
                batch.extend(after);
            } else {
                // The keys before it passed validation.
                Box::pin(self.store(batch)).await?;
                return self.invalid(line, Problem::from(&error));
            }
        }
        Ok(())
    }

    async fn import(&self, keys: Vec<KeyImport>) -> Result<Imported, ManageError> {
        if self.report.is_trial {
            self.issuer.try_import(keys).await
        } else {
            self.issuer.import(keys).await
        }
    }

    fn invalid(&mut self, line: u64, problem: Problem) -> Result<(), Failure> {
        let text = format!("line {line}: {}", problem.text());
        if !self.skip_invalid {
            return Err(self.interrupted(Failure::usage(text)));
        }
        if self.report.add(line, problem) {
            output::warn(&text);
        }
        Ok(())
    }

    fn interrupted(&self, failure: Failure) -> Failure {
        let Report { imported, known, is_trial, .. } = self.report;
        if is_trial {
            return failure;
        }
        failure.advise(&format!(
            "Everything before it is stored ({imported} imported, {known} known). Fix it and run \
            the import again, which skips known keys; --skip-invalid reports invalid lines and \
            continues, --dry-run reports them and stores nothing"
        ))
    }
}
