//! The history of a repository, read by `git`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, BufReader, Read as _},
    ops::ControlFlow,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use tower_api_key::key::{FoundKey, KeyFinder};

use super::{
    report::{Report, Spot},
    utf16::Narrowed,
};
use crate::{failure::Failure, output};

/// The name of a commit's or a tag's message in reports.
const MESSAGE: &str = "<message>";

/// A key in an object.
struct InObject {
    object: String,
    is_blob: bool,
    key: FoundKey,
}

/// Searches every object that a reference reaches, once, and reports keys with their commits.
pub(super) fn scan(
    path: &Path,
    finder: &mut KeyFinder,
    report: &mut Report,
) -> Result<(), Failure> {
    let repository = Repository(path);
    let is_shallow = repository.answer(&["rev-parse", "--is-shallow-repository"])?;
    if is_shallow.trim() == "true" {
        report.unread(
            "the history before this clone's first commits: it is shallow, and \
            `git fetch --unshallow` completes it",
        );
    }
    let found = repository.search(finder, report)?;
    if found.is_empty() {
        return Ok(());
    }
    let origins = repository.origins(&found)?;
    for InObject { object, is_blob, key } in &found {
        let (commit, file) = match origins.get(object.as_str()) {
            Some((commit, file)) => (commit.as_str(), file.as_str()),
            // A tag may name a file without a commit.
            None if *is_blob => (object.as_str(), "<blob>"),
            None => (object.as_str(), MESSAGE),
        };
        report.add(&Spot { commit: Some(commit), file }, key)?;
    }
    Ok(())
}

struct Repository<'p>(&'p Path);

impl Repository<'_> {
    fn git(&self) -> Command {
        let mut git = Command::new("git");
        // A hook's environment names the repository that it runs in, and not this one.
        for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
            git.env_remove(variable);
        }
        // An object that a partial clone lacks would be fetched by a program of the repository's choice.
        git.env("GIT_NO_LAZY_FETCH", "1");
        git.arg("-C").arg(self.0).stdin(Stdio::null());
        git
    }

    /// The output of a short command.
    fn answer(&self, arguments: &[&str]) -> Result<String, Failure> {
        let run = self.git().args(arguments).output().map_err(|error| missing(&error))?;
        if !run.status.success() {
            let said = String::from_utf8_lossy(&run.stderr);
            let repository = output::printable_path(self.0);
            return Err(Failure::usage(format!("--git {repository}: {}", said.trim())));
        }
        Ok(String::from_utf8_lossy(&run.stdout).into_owned())
    }

    /// The keys in all objects that a reference reaches.
    fn search(
        &self,
        finder: &mut KeyFinder,
        report: &mut Report,
    ) -> Result<Vec<InObject>, Failure> {
        let (mut list, names) =
            start(self.git().args(["rev-list", "--all", "--objects", "--no-object-names"]))?;
        let mut read = self.git();
        let (mut read, objects) =
            start(read.args(["cat-file", "--batch", "--buffer"]).stdin(Stdio::from(names)))?;
        let mut objects = BufReader::with_capacity(128 * 1024, objects);
        let found = search(&mut objects, finder, report)
            .map_err(|error| Failure::new("reading the history").because(&error))?;
        let ended = [list.wait(), read.wait()];
        if !ended.iter().all(|end| end.as_ref().is_ok_and(|status| status.success())) {
            report.unread("a part of the history: git failed");
        }
        Ok(found)
    }

    /// The first commit of each blob with a key, and the path that it has there.
    fn origins(&self, found: &[InObject]) -> Result<BTreeMap<String, (String, String)>, Failure> {
        let wanted: BTreeSet<_> = found.iter().map(|it| it.object.as_str()).collect();
        let (mut log, lines) = start(self.git().args([
            "-c",
            "core.quotePath=false",
            "log",
            "--all",
            "--topo-order",
            "--root",
            "--raw",
            "-c",
            "--no-abbrev",
            "--no-renames",
            "--no-ext-diff",
            "--no-show-signature",
            "--format=%H",
        ]))?;
        let unreadable = |error: &io::Error| Failure::new("reading the history").because(error);
        let (mut commit, mut origins) =
            (String::new(), BTreeMap::<String, (String, String)>::new());
        for line in BufReader::new(lines).split(b'\n') {
            let line = line.map_err(|error| unreadable(&error))?;
            let line = String::from_utf8_lossy(&line);
            let Some(change) = line.strip_prefix(':') else {
                if !line.is_empty() {
                    commit = line.into_owned();
                }
                continue;
            };
            // Modes, object names and a status, and a path: the last object is the new one.
            let Some((of, file)) = change.split_once('\t') else { continue };
            let object = of.rsplit(' ').nth(1).unwrap_or_default();
            if !wanted.contains(object) {
                continue;
            }
            // The log goes back in time, so the first commit comes last.
            let origin = origins.entry(object.to_owned()).or_default();
            if origin.0 != commit {
                *origin = (commit.clone(), file.to_owned());
            }
        }
        log.wait().map_err(|error| unreadable(&error))?;
        Ok(origins)
    }
}

/// Reads what `git cat-file --batch` writes: for each object a line `NAME TYPE SIZE`, its contents
/// and a line feed; `NAME missing` for one that is not there.
fn search(
    objects: &mut impl BufRead,
    finder: &mut KeyFinder,
    report: &mut Report,
) -> io::Result<Vec<InObject>> {
    let (mut found, mut missing) = (Vec::new(), 0_u64);
    let mut head = String::new();
    while objects.read_line(&mut head)? > 0 {
        let mut words = head.split_whitespace();
        let object = words.next().unwrap_or_default().to_owned();
        let kind = words.next().unwrap_or_default().to_owned();
        match words.next().and_then(|size| size.parse::<u64>().ok()) {
            None => missing += 1,
            Some(size) => {
                let mut contents = objects.by_ref().take(size);
                // A tree has names and no text.
                if kind != "tree" {
                    let is_blob = kind == "blob";
                    finder.scan(Narrowed::new(&mut contents), |key| {
                        found.push(InObject { object: object.clone(), is_blob, key });
                        ControlFlow::Continue(())
                    })?;
                }
                io::copy(&mut contents, &mut io::sink())?;
                objects.read_exact(&mut [0])?;
            }
        }
        head.clear();
    }
    if missing > 0 {
        report.unread(&format!("{missing} objects of the history: they are missing"));
    }
    Ok(found)
}

fn start(command: &mut Command) -> Result<(Child, ChildStdout), Failure> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| missing(&error))?;
    let output = child.stdout.take().ok_or_else(|| Failure::new("git has no output"))?;
    Ok((child, output))
}

fn missing(error: &io::Error) -> Failure {
    Failure::new("git could not be run").because(error).advise("--git needs git 2.22 or later")
}
