use std::io::{BufRead as _, Read as _};

use secrecy::zeroize::Zeroizing;
use serde_json::{Map, Value, value::RawValue};

use super::{
    super::failure::Failure,
    input::{Input, unreadable},
    report::Problem,
    row::Row,
    source::MAX_LINE,
};

/// One JSON object per line. Only one line is in memory at a time.
pub(super) struct JsonLines {
    input: Input,
    text: Zeroizing<Vec<u8>>,
    line: u64,
}

impl JsonLines {
    pub(super) fn new(input: Input) -> Self {
        // As long as a line can be: a buffer that grows leaves copies behind.
        let text = Zeroizing::new(Vec::with_capacity(MAX_LINE));
        Self { input, text, line: 0 }
    }

    /// The next object, or what is wrong with its line; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Result<Row, Problem>>, Failure> {
        loop {
            self.text.clear();
            let mut line = (&mut self.input).take(MAX_LINE as u64);
            let read = line.read_until(b'\n', &mut self.text).map_err(|e| unreadable(&e))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if read == MAX_LINE && !self.text.ends_with(b"\n") {
                self.input.skip_until(b'\n').map_err(|error| unreadable(&error))?;
                return Ok(Some(Err(Problem::new("line", "longer than 256 KiB"))));
            }
            let Ok(text) = std::str::from_utf8(&self.text) else {
                return Ok(Some(Err(Problem::new("line", "not valid UTF-8"))));
            };
            if !text.trim().is_empty() {
                return Ok(Some(parse(text.trim())));
            }
        }
    }

    /// The number of the last line that was read, starting at 1.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    pub(super) fn input(&self) -> &Input {
        &self.input
    }
}

fn parse(line: &str) -> Result<Row, Problem> {
    // Checked first, because fields of an object that breaks off would not be wiped.
    let checked = serde_json::from_str::<&RawValue>(line);
    let fields = checked.and_then(|_| serde_json::from_str::<Map<String, Value>>(line));
    fields.map(Row::from).map_err(|error| {
        let at = error.column();
        let text = format!(
            "not a JSON object on one line (column {at}), such as \
            {{\"hash\": \"9f86…\", \"consumer_id\": \"acme\", \"expires\": \"90d\"}}"
        );
        Problem::new("line", text)
    })
}
