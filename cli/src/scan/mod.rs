//! `api-key scan`: finds keys in files and in the history of a repository.

mod database;
mod files;
mod git;
mod report;
mod utf16;

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use tower_api_key::key::{ImportedFormat, KeyFinder, KeyFormat};

use self::{database::Database, report::Report};
use super::{failure::Failure, global::Global, values};

/// Find keys in files, and say where
///
///   api-key scan .
///   api-key scan --git . --check
///   git diff --cached | api-key scan -
///
/// It prints `FILE:LINE: sk_live_…4x9A` for each key, with --git `COMMIT:FILE:LINE: …`, and with
/// --json one object on a line of its own. No key is shown. Keys are found whatever their prefix,
/// between any characters, and their checksums leave no false positives. No database is needed.
///
/// Files that git ignores are left out, and so is the folder .git; hidden and binary files are
/// searched, links are not followed. Keys in compressed, encrypted or base64 text are not found.
///
/// Exit code 1 means that a key was found, 0 that there is none. With --check, a key that the
/// database knows to be revoked or expired does not count. Exit code 2 means that not everything
/// could be searched, or that a key could not be checked or revoked.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Scan {
    /// Files and folders, or - for standard input
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Only keys with this prefix, such as sk_live_; may be repeated [default: any prefix]
    #[arg(long = "prefix", value_name = "PREFIX", value_parser = values::prefix)]
    prefixes: Vec<KeyFormat>,

    /// Also keys of another system, in a format with a prefix or a checksum, such as hex:64:old-,
    /// sanctum; may be repeated
    #[arg(long = "accept", value_name = "FORMAT")]
    imported: Vec<ImportedFormat>,

    /// Search files that git ignores as well
    #[arg(long)]
    no_ignore: bool,

    /// Search the history of the repository at PATH instead of its files
    ///
    /// All commits that a branch, a tag or the stash reaches, with their messages. It runs git. A
    /// key is reported with the first commit that has it.
    #[arg(long, conflicts_with = "no_ignore")]
    git: bool,

    /// Look the keys up in the database, and print their status
    #[arg(long)]
    check: bool,

    /// Revoke those that have not ended
    #[arg(long)]
    revoke: bool,

    /// Revoke without asking
    #[arg(long, short, requires = "revoke")]
    yes: bool,
}

pub(crate) fn run(scan: &Scan, global: Global) -> Result<ExitCode, Failure> {
    scan.run(global).map_err(Failure::inconclusive)
}

impl Scan {
    /// Whether it needs the database.
    pub(crate) fn checks(&self) -> bool {
        self.check || self.revoke
    }

    fn run(&self, global: Global) -> Result<ExitCode, Failure> {
        let mut finder = self.finder()?;
        let is_json = global.json;
        let database = if self.checks() { Some(Database::open(global)?) } else { None };
        let mut report = Report::new(is_json, database);
        if self.git {
            let [repository] = self.paths.as_slice() else {
                return Err(Failure::usage("--git: give one PATH, that of the repository"));
            };
            git::scan(repository, &mut finder, &mut report)?;
        } else {
            files::scan(&self.paths, self.no_ignore, &mut finder, &mut report)?;
        }
        report.finish(self.revoke, self.yes)
    }

    fn finder(&self) -> Result<KeyFinder, Failure> {
        let issued = self.prefixes.iter().cloned().map(Into::into);
        let imported = self.imported.iter().cloned().map(Into::into);
        let finder = KeyFinder::new(issued.chain(imported))
            .map_err(|error| Failure::usage(format!("--accept: {error}")))?;
        Ok(if self.prefixes.is_empty() { finder.or_any_prefix() } else { finder })
    }
}
