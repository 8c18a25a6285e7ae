mod formats;
mod line;
mod reader;

use clap::Args;
use serde_json::json;
use tower_api_key::{
    key::AcceptedFormat,
    manage::{Expiry, KeyImport, KeyIssuer},
};

use self::{formats::Formats, reader::Source};
use super::{
    failure::Failure, issue::Description, output, policy::Policy, progress::Progress,
    session::Session, values,
};

/// Keys per transaction, which takes a fraction of a second.
const BATCH: usize = 1000;

/// Import keys that were issued elsewhere, by their hashes
///
/// Their owners can keep using them unchanged. The file has one JSON object per line:
///
///   {"hash": "9f86d0…", "consumer_id": "acme", "expires": "90d", "scopes": ["orders:read"]}
///
///   hash         SHA-256 of the whole key, in hex or base64; with --accept, the digest of the
///                format, of the part of the key that the format hashes
///   consumer_id  the consumer that the key belongs to
///   expires      "never", "2026-12-31", "90d"
///   name, scopes, rate_limits, plan, metadata, networks, tags, kind, origins, not_before,
///   created_by, prefix, last4, is_active, created_at, last_used_at: optional; null counts as left out. rate_limits is a list such as
///   ["600/min"], or as printed by `show --json`. A key whose is_active is false is rejected until
///   it is activated. Keys get new ids: keep the old ones in metadata.
///
/// The file is read as a stream and stored in batches of 1,000 keys, one transaction each. Known
/// keys are counted and left unchanged: run an interrupted import again from the start.
///
/// Services must accept the format of such keys: see Builder::accept of the library. Name it with
/// --accept, and a key that they would refuse is not imported.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Import {
    /// The file, or - for standard input
    #[arg(required_unless_present = "hash", conflicts_with_all = ["hash", "description"])]
    file: Option<String>,

    /// Report invalid lines and go on [default: stop at the first one]
    #[arg(long, conflicts_with = "hash")]
    skip_invalid: bool,

    /// Import one key: its SHA-256, in hex or base64
    #[arg(long, value_name = "SHA256", requires = "consumer", requires = "expires")]
    hash: Option<String>,

    /// A format that the service accepts, as of `verify --accept`, or a prefix of issued keys; may
    /// be repeated. A key whose prefix and last4 no such key has is refused
    #[arg(long = "accept", value_name = "FORMAT")]
    accept: Vec<AcceptedFormat>,

    /// The consumer of the one key
    #[arg(long, value_name = "ID", requires = "hash")]
    consumer: Option<String>,

    /// When the one key stops working: 30d, 2026-12-31, "never"
    #[arg(long, value_name = "WHEN", value_parser = values::new_expiry, requires = "hash")]
    expires: Option<Expiry>,

    /// The prefix of the one key, for display
    #[arg(long, requires = "hash", default_value = "", hide_default_value = true)]
    prefix: String,

    /// The last four characters of the one key, for display
    #[arg(long, requires = "hash", default_value = "", hide_default_value = true)]
    last4: String,

    #[command(flatten)]
    what: Description,

    /// The reason, for the audit
    #[arg(long)]
    reason: Option<String>,

    #[command(flatten)]
    policy: Policy,
}

pub(crate) async fn run(import: Import, session: &Session) -> Result<(), Failure> {
    let issuer = import.policy.apply(session.issuer()?)?;
    let formats = Formats(import.accept);
    let report = match (&import.file, import.hash, import.consumer, import.expires) {
        (None, Some(hash), Some(consumer), Some(expiry)) => {
            let hash = formats.stored_hash(&hash, &import.prefix, &import.last4);
            let hash = hash.map_err(|problem| Failure::usage(format!("--{problem}")))?;
            let new = import.what.into_key(consumer, expiry, import.reason)?;
            let key = KeyImport::new(hash, new).hint(import.prefix, import.last4);
            let imported = issuer.import(vec![key]).await?;
            Report { imported: imported.keys.len() as u64, known: imported.known, invalid: 0 }
        }
        (Some(file), ..) => {
            let source = Source::open(file)?;
            let skip_invalid = import.skip_invalid;
            let (reason, report) = (import.reason, Report::default());
            let run = Run { issuer, formats, reason, skip_invalid, report };
            run.all(source).await?
        }
        // clap rejects all other combinations.
        _ => return Err(Failure::usage("name a file, or give --hash, --consumer and --expires")),
    };
    if session.global.json {
        return output::line(&report.json().to_string());
    }
    output::note(&report.text());
    Ok(())
}

#[derive(Clone, Copy, Default)]
struct Report {
    imported: u64,
    known: u64,
    invalid: u64,
}

impl Report {
    fn json(self) -> serde_json::Value {
        json!({ "imported": self.imported, "known": self.known, "invalid": self.invalid })
    }

    fn text(self) -> String {
        let Self { imported, known, invalid } = self;
        format!(
            "imported {imported} keys, skipped {known} already known and {invalid} invalid lines"
        )
    }
}

/// An import in progress.
struct Run {
    issuer: KeyIssuer,
    formats: Formats,
    reason: Option<String>,
    skip_invalid: bool,
    report: Report,
}

/// Keys to import together, each with its line number.
type Batch = Vec<(u64, KeyImport)>;

impl Run {
    async fn all(mut self, mut source: Source) -> Result<Report, Failure> {
        let progress = Progress::begin(source.len(), "read");
        let mut batch = Batch::with_capacity(BATCH);
        while let Some(line) = source.next()? {
            let key =
                line.and_then(|text| line::parse(text, &self.formats, self.reason.as_deref()));
            match key {
                Ok(Some(key)) => batch.push((source.line(), key)),
                Ok(None) => {}
                Err(problem) => {
                    if !self.skip_invalid {
                        self.store(std::mem::take(&mut batch)).await?;
                    }
                    self.invalid(source.line(), &problem)?;
                }
            }
            if batch.len() == BATCH {
                self.store(std::mem::replace(&mut batch, Batch::with_capacity(BATCH))).await?;
                progress.set(self.report.imported + self.report.known, source.offset());
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
            let error = match self.issuer.import(keys).await {
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
                self.invalid(line, &error.to_string())?;
                batch.extend(after);
            } else {
                // The keys before it passed validation.
                Box::pin(self.store(batch)).await?;
                return self.invalid(line, &error.to_string());
            }
        }
        Ok(())
    }

    fn invalid(&mut self, line: u64, problem: &str) -> Result<(), Failure> {
        if self.skip_invalid {
            self.report.invalid += 1;
            output::warn(&format!("line {line}: {problem}"));
            return Ok(());
        }
        Err(self.interrupted(Failure::usage(format!("line {line}: {problem}"))))
    }

    fn interrupted(&self, failure: Failure) -> Failure {
        let Report { imported, known, .. } = self.report;
        failure.advise(&format!(
            "Everything before it is stored ({imported} imported, {known} known). Fix it and run \
            the import again, which skips known keys; --skip-invalid reports invalid lines and \
            continues"
        ))
    }
}
