//! The fields of an import, and what other systems call them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{report::Problem, row::Row};

/// How a field is written in CSV, where everything is text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Truth,
    List,
    /// An object or a list in JSON, or another text.
    Json,
}

/// All fields, in the order in which errors list them.
pub(super) const FIELDS: [(&str, Form); 27] = [
    ("hash", Form::Text),
    ("verifier", Form::Text),
    ("hint", Form::Text),
    ("key", Form::Text),
    ("consumer_id", Form::Text),
    ("expires", Form::Text),
    ("id", Form::Text),
    ("name", Form::Text),
    ("scopes", Form::List),
    ("rate_limits", Form::Json),
    ("rate_limit_window", Form::Text),
    ("rate_limit_window_ms", Form::Text),
    ("plan", Form::Text),
    ("metadata", Form::Json),
    ("networks", Form::List),
    ("tags", Form::List),
    ("kind", Form::Text),
    ("origins", Form::List),
    ("not_before", Form::Text),
    ("created_by", Form::Text),
    ("prefix", Form::Text),
    ("last4", Form::Text),
    ("is_active", Form::Truth),
    ("created_at", Form::Text),
    ("last_used_at", Form::Text),
    ("revoked_at", Form::Text),
    ("revoked", Form::Truth),
];

/// The field of this name.
pub(super) fn field(name: &str) -> Option<(&'static str, Form)> {
    FIELDS.into_iter().find(|(field, _)| *field == name)
}

/// A field of the file, and what becomes of it: a value of `--map`.
#[derive(Clone, Debug)]
pub(crate) struct Renaming {
    from: String,
    to: Target,
}

/// What becomes of a field of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Field(&'static str),
    Metadata(String),
    LeftOut,
}

impl Renaming {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let advice = "write it as THEIRS=OURS: user_id=consumer_id, or plan_tier=metadata.tier to \
            keep it as data of the application, or email=- to leave it out";
        let (from, to) = text.split_once('=').ok_or(advice)?;
        let to = match (to, to.strip_prefix("metadata.")) {
            ("-", _) => Target::LeftOut,
            (_, Some(name)) if !name.is_empty() => Target::Metadata(name.to_owned()),
            _ => {
                let known =
                    field(to).ok_or_else(|| format!("no such field of ours; {}", list()))?;
                Target::Field(known.0)
            }
        };
        if from.is_empty() {
            return Err(advice.into());
        }
        Ok(Self { from: from.to_owned(), to })
    }
}

/// What becomes of the fields of a file.
pub(super) struct Mapping(BTreeMap<String, Target>);

impl Mapping {
    pub(super) fn new(renamings: Vec<Renaming>) -> Self {
        Self(renamings.into_iter().map(|Renaming { from, to }| (from, to)).collect())
    }

    /// What becomes of a field; an error for one that is unknown.
    pub(super) fn target(&self, name: &str) -> Result<Target, String> {
        if let Some(target) = self.0.get(name) {
            return Ok(target.clone());
        }
        match field(name) {
            Some((field, _)) => Ok(Target::Field(field)),
            None => Err(format!(
                "{} is unknown; --map {}=OURS says which it is, {}=metadata.NAME keeps it as data \
                 of the application, and {}=- leaves it out; {}",
                named(name),
                shown(name),
                shown(name),
                shown(name),
                list(),
            )),
        }
    }

    /// The fields of a line by our names.
    pub(super) fn apply(&self, mut theirs: Row) -> Result<Row, Problem> {
        let names: Vec<_> = theirs.names().map(str::to_owned).collect();
        let mut row = Row::default();
        let mut metadata = Vec::new();
        for name in names {
            let target = self.target(&name).map_err(|text| Problem::new("line", text))?;
            let Some(value) = theirs.take(&name) else { continue };
            match target {
                Target::Field(field) => row.put(field, value)?,
                Target::Metadata(name) => metadata.push((name, value)),
                Target::LeftOut => {}
            }
        }
        for (name, value) in metadata.into_iter().filter(|(_, value)| *value != Value::Null) {
            row.put_metadata(&name, value)?;
        }
        Ok(row)
    }
}

fn list() -> String {
    let names: Vec<_> = FIELDS.iter().map(|(name, _)| *name).collect();
    format!("known fields: {}", names.join(", "))
}

/// The name of a field, unless it may be a secret.
pub(super) fn named(field: &str) -> String {
    if is_name(field) { format!("the field `{field}`") } else { "one of its fields".to_owned() }
}

fn shown(field: &str) -> &str {
    if is_name(field) { field } else { "THEIRS" }
}

fn is_name(field: &str) -> bool {
    field.len() <= 24
        && field.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_' || byte == b'-')
}
