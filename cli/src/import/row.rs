//! The fields of one key, whatever the format of the file.

use std::fmt::Display;

use secrecy::zeroize::{Zeroize as _, Zeroizing};
use serde_json::{Map, Value};

use super::report::Problem;

/// The fields of one key, by our names. Texts are wiped when it is dropped: one of them may be a
/// key.
#[derive(Default)]
pub(super) struct Row(Map<String, Value>);

impl Row {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.0.remove(field)
    }

    /// Sets a field that must not be there yet.
    pub(super) fn put(&mut self, field: &'static str, value: Value) -> Result<(), Problem> {
        match self.0.insert(field.to_owned(), value) {
            None | Some(Value::Null) => Ok(()),
            Some(_) => Err(Problem::new(field, "there are two of this field: see --map")),
        }
    }

    /// Adds data of the application.
    pub(super) fn put_metadata(&mut self, name: &str, value: Value) -> Result<(), Problem> {
        let metadata = self.0.entry("metadata").or_insert(Value::Null);
        if metadata.is_null() {
            *metadata = Value::Object(Map::new());
        }
        let metadata = metadata.as_object_mut();
        let metadata = metadata.ok_or_else(|| Problem::new("metadata", "must be an object"))?;
        if metadata.insert(name.to_owned(), value).is_some() {
            return Err(Problem::new("metadata", format!("has `{name}` already")));
        }
        Ok(())
    }

    /// A value other than null, which counts as left out.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, field: &'static str) -> Result<Option<&str>, Problem> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let text = value.as_str().map(Some);
        text.ok_or_else(|| Problem::new(field, "must be a string, in quotes"))
    }

    /// A text that other systems have as a whole number, too.
    pub(super) fn name_or_number(&self, field: &'static str) -> Result<Option<String>, Problem> {
        match self.get(field) {
            Some(Value::Number(number)) if number.is_i64() || number.is_u64() => {
                Ok(Some(number.to_string()))
            }
            _ => Ok(self.text(field)?.map(str::to_owned)),
        }
    }

    pub(super) fn truth(&self, field: &'static str) -> Result<Option<bool>, Problem> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            // As MySQL and SQLite have it.
            Some(Value::Number(number)) if number.as_u64() == Some(1) => Ok(Some(true)),
            Some(Value::Number(number)) if number.as_u64() == Some(0) => Ok(Some(false)),
            Some(_) => Err(Problem::new(field, "must be true or false")),
        }
    }

    /// A list of texts.
    pub(super) fn list<T, E: Display>(
        &self,
        field: &'static str,
        example: &str,
        parse: impl FnOnce(Vec<String>) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let texts =
            value.as_array().map(|list| list.iter().map(|text| text.as_str().map(str::to_owned)));
        let texts = texts.and_then(Iterator::collect::<Option<Vec<_>>>);
        let texts = texts.ok_or_else(|| {
            Problem::new(field, format!("must be a list, such as [\"{example}\"]"))
        })?;
        parse(texts).map(Some).map_err(|error| Problem::new(field, error))
    }

    /// A secret, which is no longer in the row.
    pub(super) fn secret(
        &mut self,
        field: &'static str,
    ) -> Result<Option<Zeroizing<String>>, Problem> {
        match self.take(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(Zeroizing::new(text))),
            Some(_) => Err(Problem::new(field, "must be a string, in quotes")),
        }
    }
}

impl From<Map<String, Value>> for Row {
    fn from(fields: Map<String, Value>) -> Self {
        Self(fields)
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        for value in self.0.values_mut() {
            if let Value::String(text) = value {
                text.zeroize();
            }
        }
    }
}
