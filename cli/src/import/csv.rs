use std::io::BufRead as _;

use csv_core::{ReadRecordResult, Reader};
use secrecy::zeroize::Zeroizing;
use serde_json::{Map, Value};

use super::{
    super::failure::Failure,
    fields::{self, Form, Mapping, Target},
    input::{Input, unreadable},
    report::Problem,
    row::Row,
    source::MAX_LINE,
};

/// More than any table of keys has.
const MAX_COLUMNS: usize = 256;

/// Records of CSV ([RFC 4180](https://www.rfc-editor.org/rfc/rfc4180)) under a header with names.
///
/// The buffers are ours, which the crate `csv` does not allow: they are bounded and wiped.
pub(super) struct Csv {
    input: Input,
    reader: Reader,
    text: Zeroizing<Vec<u8>>,
    /// The end of each field in `text`.
    ends: Vec<usize>,
    columns: Vec<Column>,
    /// The line on which the last record begins, starting at 1.
    line: u64,
    /// The line breaks read so far.
    breaks: u64,
}

struct Column {
    name: String,
    form: Form,
}

impl Csv {
    /// Reads the header.
    pub(super) fn new(input: Input, mapping: &Mapping) -> Result<Self, Failure> {
        let (text, ends) = (Zeroizing::new(vec![0; MAX_LINE]), vec![0; MAX_COLUMNS]);
        let (reader, columns) = (Reader::new(), Vec::new());
        let mut csv = Self { input, reader, text, ends, columns, line: 0, breaks: 0 };
        let refused = |text: &str| Failure::usage(format!("the header, line {}: {text}", 1));
        let columns = match csv.record()? {
            None => return Err(Failure::usage("no header: the first line names the columns")),
            Some(Err(problem)) => return Err(refused(problem.text())),
            Some(Ok(columns)) => columns,
        };
        let names = csv.fields(columns).map(str::to_owned).collect::<Vec<_>>();
        let mut problems = Vec::new();
        for name in names {
            match mapping.target(&name) {
                Ok(Target::Field(field)) => {
                    let form = fields::field(field).map_or(Form::Text, |(_, form)| form);
                    csv.columns.push(Column { name, form });
                }
                Ok(_) => csv.columns.push(Column { name, form: Form::Text }),
                Err(problem) => problems.push(problem),
            }
        }
        match problems.first() {
            Some(problem) => Err(refused(problem)),
            None => Ok(csv),
        }
    }

    /// The next record, or what is wrong with it; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Result<Row, Problem>>, Failure> {
        Ok(self.record()?.map(|record| record.and_then(|fields| self.row(fields))))
    }

    pub(super) fn line(&self) -> u64 {
        self.line
    }

    pub(super) fn input(&self) -> &Input {
        &self.input
    }

    /// Reads a record, and returns the number of its fields.
    fn record(&mut self) -> Result<Option<Result<usize, Problem>>, Failure> {
        self.skip_blank_lines()?;
        self.line = self.breaks + 1;
        let (mut written, mut ended) = (0, 0);
        let mut too_much = None;
        loop {
            let input = self.input.fill_buf().map_err(|error| unreadable(&error))?;
            let text = self.text.get_mut(written..).unwrap_or_default();
            let ends = self.ends.get_mut(ended..).unwrap_or_default();
            let (result, read, wrote, ends) = self.reader.read_record(input, text, ends);
            let breaks = input.iter().take(read).filter(|byte| **byte == b'\n').count();
            self.breaks += breaks as u64;
            self.input.consume(read);
            written += wrote;
            ended += ends;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => {
                    too_much = Some("longer than 256 KiB");
                    written = 0;
                }
                ReadRecordResult::OutputEndsFull => {
                    too_much = too_much.or(Some("more than 256 columns"));
                    ended = 0;
                }
                ReadRecordResult::Record => {
                    let problem = too_much.map(|problem| Problem::new("line", problem));
                    return Ok(Some(problem.map_or(Ok(ended), Err)));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// The parser skips them, too, but without counting them before the record.
    fn skip_blank_lines(&mut self) -> Result<(), Failure> {
        loop {
            let input = self.input.fill_buf().map_err(|error| unreadable(&error))?;
            let blank = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            if blank == 0 {
                return Ok(());
            }
            self.breaks += input.iter().take(blank).filter(|byte| **byte == b'\n').count() as u64;
            self.input.consume(blank);
        }
    }

    /// The first `count` fields of the record that was read.
    fn fields(&self, count: usize) -> impl Iterator<Item = &str> {
        let ends = self.ends.iter().take(count).copied();
        let begins = std::iter::once(0).chain(ends.clone());
        begins.zip(ends).map(|(begin, end)| {
            let bytes = self.text.get(begin..end).unwrap_or_default();
            // The whole record is checked before.
            std::str::from_utf8(bytes).unwrap_or_default()
        })
    }

    fn row(&self, count: usize) -> Result<Row, Problem> {
        let line = |text: String| Problem::new("line", text);
        if count != self.columns.len() {
            let columns = self.columns.len();
            return Err(line(format!("{count} columns instead of the {columns} of the header")));
        }
        let end = count.checked_sub(1).and_then(|last| self.ends.get(last)).copied();
        let text = self.text.get(..end.unwrap_or_default()).unwrap_or_default();
        if std::str::from_utf8(text).is_err() {
            return Err(line("not valid UTF-8".to_owned()));
        }
        let fields = self.columns.iter().zip(self.fields(count));
        let fields =
            fields.map(|(column, text)| Ok((column.name.clone(), value(column.form, text)?)));
        let fields = fields.collect::<Result<Map<_, _>, &str>>();
        fields.map(Row::from).map_err(|problem| line(problem.to_owned()))
    }
}

/// A field as the value that it has in JSON.
fn value(form: Form, text: &str) -> Result<Value, &'static str> {
    let text = text.trim();
    // As PostgreSQL and MySQL write what is not there.
    if matches!(text, "" | "NULL" | "\\N") {
        return Ok(Value::Null);
    }
    Ok(match form {
        Form::Truth => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "1" => true.into(),
            "false" | "f" | "no" | "n" | "0" => false.into(),
            // The reader of the field says what is wrong with it.
            _ => text.into(),
        },
        Form::Json if text.starts_with(['{', '[']) => {
            serde_json::from_str(text).map_err(|_| "a field that looks like JSON is not")?
        }
        Form::List => list(text),
        Form::Text | Form::Json => text.into(),
    })
}

/// A list in JSON, as an array of PostgreSQL, or separated by commas or spaces.
fn list(text: &str) -> Value {
    if let Ok(Value::Array(list)) = serde_json::from_str(text) {
        return Value::Array(list);
    }
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    let words = inner.split([',', ' ', ';']).map(|word| word.trim_matches('"'));
    words.filter(|word| !word.is_empty()).collect()
}
