//! The keys of a file, one row each.

use std::path::Path;

use clap::ValueEnum;

use super::{
    super::failure::Failure, csv::Csv, fields::Mapping, input::Input, json_lines::JsonLines,
    report::Problem, row::Row,
};

/// The longest line, or record. Metadata has at most 16 KiB.
pub(super) const MAX_LINE: usize = 256 * 1024;

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object per line
    Jsonl,
    /// A header with the names of the columns, and one key per record
    Csv,
}

impl Format {
    /// The format that the extension of a file tells.
    pub(super) fn of(file: &str) -> Self {
        let extension = Path::new(file).extension();
        let is_csv = extension.is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        if is_csv { Self::Csv } else { Self::Jsonl }
    }
}

/// The rows of a file or a stream. Only one is in memory at a time.
pub(super) struct Source {
    rows: Rows,
    mapping: Mapping,
}

enum Rows {
    Jsonl(JsonLines),
    Csv(Box<Csv>),
}

impl Source {
    pub(super) fn open(name: &str, format: Format, mapping: Mapping) -> Result<Self, Failure> {
        let input = Input::open(name)?;
        let rows = match format {
            Format::Jsonl => Rows::Jsonl(JsonLines::new(input)),
            Format::Csv => Rows::Csv(Box::new(Csv::new(input, &mapping)?)),
        };
        Ok(Self { rows, mapping })
    }

    /// The next row by our names, or what is wrong with it; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Result<Row, Problem>>, Failure> {
        let row = match &mut self.rows {
            Rows::Jsonl(lines) => lines.next()?,
            Rows::Csv(records) => records.next()?,
        };
        Ok(row.map(|row| row.and_then(|row| self.mapping.apply(row))))
    }

    /// The line on which the last row begins, starting at 1.
    pub(super) fn line(&self) -> u64 {
        match &self.rows {
            Rows::Jsonl(lines) => lines.line(),
            Rows::Csv(records) => records.line(),
        }
    }

    pub(super) fn input(&self) -> &Input {
        match &self.rows {
            Rows::Jsonl(lines) => lines.input(),
            Rows::Csv(records) => records.input(),
        }
    }
}
