//! Files, folders and standard input.

use std::{
    fs::{self, File},
    io::{self, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use ignore::WalkBuilder;
use tower_api_key::key::KeyFinder;

use super::{
    report::{Report, Spot},
    utf16::Narrowed,
};
use crate::failure::Failure;

/// The name of standard input in reports.
const STDIN: &str = "<stdin>";

pub(super) fn scan(
    paths: &[PathBuf],
    no_ignore: bool,
    finder: &mut KeyFinder,
    report: &mut Report,
) -> Result<(), Failure> {
    for path in paths {
        if path.as_os_str() == "-" {
            read(io::stdin().lock(), STDIN, finder, report)?;
            continue;
        }
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => folder(path, no_ignore, finder, report)?,
            Ok(_) => file(path, finder, report)?,
            Err(error) => report.unread(&format!("{}: {error}", path.display())),
        }
    }
    Ok(())
}

/// Searches a folder in the order of names, which does not depend on the file system.
fn folder(
    path: &Path,
    no_ignore: bool,
    finder: &mut KeyFinder,
    report: &mut Report,
) -> Result<(), Failure> {
    let walk = WalkBuilder::new(path)
        .standard_filters(!no_ignore)
        .hidden(false)
        .sort_by_file_name(|one, other| one.cmp(other))
        .filter_entry(|entry| entry.depth() == 0 || entry.file_name() != ".git")
        .build();
    for entry in walk {
        match entry {
            // Pipes and devices may have no end.
            Ok(entry) if entry.file_type().is_some_and(|kind| kind.is_file()) => {
                file(entry.path(), finder, report)?;
            }
            Ok(_) => {}
            Err(error) => report.unread(&error.to_string()),
        }
    }
    Ok(())
}

fn file(path: &Path, finder: &mut KeyFinder, report: &mut Report) -> Result<(), Failure> {
    match File::open(path) {
        Ok(file) => read(file, &path.display().to_string(), finder, report),
        Err(error) => {
            report.unread(&format!("{}: {error}", path.display()));
            Ok(())
        }
    }
}

fn read(
    source: impl Read,
    name: &str,
    finder: &mut KeyFinder,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut failed = None;
    let outcome = finder.scan(Narrowed::new(source), |found| {
        let added = report.add(&Spot::in_file(name), &found);
        added.map_or_else(
            |failure| {
                failed = Some(failure);
                ControlFlow::Break(())
            },
            ControlFlow::Continue,
        )
    });
    if let Err(error) = outcome {
        report.unread(&format!("{name}: {error}"));
    }
    failed.map_or(Ok(()), Err)
}
