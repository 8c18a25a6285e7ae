//! What is printed of the keys, and the exit code.

use std::{
    fmt::{self, Display},
    process::ExitCode,
};

use serde_json::{Value, json};
use tower_api_key::{
    key::{FoundKey, KeyHash},
    record::KeyStatus,
};

use super::database::Database;
use crate::{
    failure::{Failure, USAGE},
    output,
};

/// Keys that are looked up at once. A store sends them in few queries.
const BATCH: usize = 512;

/// A file, or a file in a commit.
pub(super) struct Spot<'n> {
    pub(super) commit: Option<&'n str>,
    pub(super) file: &'n str,
}

impl<'n> Spot<'n> {
    pub(super) fn in_file(file: &'n str) -> Self {
        Self { commit: None, file }
    }
}

/// A key that was found.
struct Finding {
    place: Place,
    masked: String,
    hash: KeyHash,
}

/// Where a key was found.
#[derive(Clone)]
pub(super) struct Place {
    commit: Option<String>,
    file: String,
    line: u64,
    column: u64,
}

pub(super) struct Report {
    is_json: bool,
    database: Option<Database>,
    /// Those that wait for a look-up.
    waiting: Vec<Finding>,
    found: u64,
    /// Those that the database does not know to have ended.
    counted: u64,
    /// What could not be searched.
    unread: u64,
}

impl Report {
    /// Keys are looked up if there is a database.
    pub(super) fn new(is_json: bool, database: Option<Database>) -> Self {
        Self { is_json, database, waiting: Vec::new(), found: 0, counted: 0, unread: 0 }
    }

    /// Adds a key that was found.
    pub(super) fn add(&mut self, spot: &Spot<'_>, found: &FoundKey) -> Result<(), Failure> {
        self.found += 1;
        self.waiting.push(Finding {
            place: Place {
                commit: spot.commit.map(str::to_owned),
                file: output::printable(spot.file),
                line: found.line(),
                column: found.column(),
            },
            masked: found.masked().to_owned(),
            hash: found.hash(),
        });
        if self.database.is_none() || self.waiting.len() >= BATCH { self.print() } else { Ok(()) }
    }

    /// Warns of something that could not be searched.
    pub(super) fn unread(&mut self, problem: &str) {
        self.unread += 1;
        output::warn(&format!("not searched: {}", output::printable(problem)));
    }

    /// Prints the keys that wait.
    fn print(&mut self) -> Result<(), Failure> {
        let waiting = std::mem::take(&mut self.waiting);
        let Some(database) = &mut self.database else {
            self.counted += waiting.len() as u64;
            return waiting.iter().try_for_each(|finding| {
                output::line(&if self.is_json {
                    finding.json().to_string()
                } else {
                    finding.line()
                })
            });
        };
        let records = database.look_up(waiting.iter().map(|finding| finding.hash))?;
        for finding in &waiting {
            let record = records.get(&finding.hash);
            let status = record.map(|record| record.status(record.read_at));
            let has_ended = matches!(status, Some(KeyStatus::Revoked | KeyStatus::Expired));
            if !has_ended {
                self.counted += 1;
                if let Some(record) = record {
                    database.note_live(record.id, &finding.place);
                }
            }
            let status = status.map_or("unknown", KeyStatus::as_str);
            let id = record.map(|record| record.id.to_string());
            output::line(&if self.is_json {
                let mut value = finding.json();
                output::set(&mut value, "status", json!(status));
                output::set(&mut value, "key_id", json!(id));
                value.to_string()
            } else {
                let id = id.map_or_else(String::new, |id| format!(" {id}"));
                format!("{} {status}{id}", finding.line())
            })?;
        }
        Ok(())
    }

    /// Prints the rest, revokes if asked to, and tells the exit code.
    pub(super) fn finish(mut self, revoke: bool, yes: bool) -> Result<ExitCode, Failure> {
        self.print()?;
        if self.found > 0 {
            output::note(&format!("found {}", counted(self.found, "key")));
        }
        if let Some(database) = self.database.filter(|_| revoke) {
            database.revoke(yes)?;
        }
        Ok(match (self.counted, self.unread) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(USAGE),
            _ => ExitCode::FAILURE,
        })
    }
}

pub(super) fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

impl Finding {
    fn line(&self) -> String {
        format!("{}: {}", self.place, self.masked)
    }

    fn json(&self) -> Value {
        let Place { commit, file, line, column } = &self.place;
        let mut value = json!({ "file": file, "line": line, "column": column, "key": self.masked });
        if let Some(commit) = commit {
            output::set(&mut value, "commit", json!(commit));
        }
        value
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(commit) = &self.commit {
            write!(f, "{commit}:")?;
        }
        write!(f, "{}:{}", self.file, self.line)
    }
}
