use std::{error::Error, fmt};

use serde::{Serialize, Serializer, de::DeserializeOwned};
use serde_json::{Number, Value, value::RawValue};

const EMPTY: &str = "{}";

/// Application-defined JSON object stored with a key: a plan, a region, a tenant.
///
/// Handlers receive it as stored; this crate does not interpret it. Its [size](Self::MAX_LEN) and
/// [depth](Self::MAX_DEPTH) are limited because it is cached with each key and shown in lists and
/// the audit.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tower_api_key::record::Metadata;
///
/// #[derive(Serialize, Deserialize)]
/// struct Plan {
///     plan: String,
/// }
///
/// let metadata = Metadata::new(&Plan { plan: "pro".into() })?;
/// assert_eq!(metadata.as_json(), r#"{"plan":"pro"}"#);
/// assert_eq!(metadata.parse::<Plan>()?.plan, "pro");
/// # Ok::<(), tower_api_key::record::InvalidMetadata>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(Option<Box<str>>);

impl Metadata {
    /// Maximum size: 16 KiB as compact JSON. Numbers count as databases write them, without an
    /// exponent (`1e300` is 301 digits).
    pub const MAX_LEN: usize = 16 * 1024;

    /// Maximum nesting of objects and arrays, including the outermost: 32. Common JSON parsers
    /// refuse 64 to 128 levels, and metadata is embedded in other JSON.
    pub const MAX_DEPTH: usize = 32;

    /// Serialises `value`.
    ///
    /// # Errors
    ///
    /// When it does not serialise to a JSON object, exceeds [`MAX_LEN`](Self::MAX_LEN) or
    /// [`MAX_DEPTH`](Self::MAX_DEPTH), or contains U+0000, which not every database can store.
    pub fn new(value: &impl Serialize) -> Result<Self, InvalidMetadata> {
        let value = serde_json::to_value(value).map_err(InvalidMetadata::json)?;
        Self::from_value(&value)
    }

    /// Validates and compacts JSON text. Numbers beyond 64 bits lose precision, as in most JSON
    /// parsers.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn from_json(json: &str) -> Result<Self, InvalidMetadata> {
        let value = serde_json::from_str(json).map_err(InvalidMetadata::json)?;
        Self::from_value(&value)
    }

    fn from_value(value: &Value) -> Result<Self, InvalidMetadata> {
        let object = value.as_object().ok_or(InvalidMetadata(Problem::NoObject))?;
        if object.is_empty() {
            return Ok(Self(None));
        }
        // Check the depth first: the other checks and the serialiser recurse.
        if is_deeper_than(value, Self::MAX_DEPTH) {
            return Err(InvalidMetadata(Problem::TooDeep));
        }
        if has_nul(value) {
            return Err(InvalidMetadata(Problem::Nul));
        }
        let json = value.to_string();
        if json.len() > Self::MAX_LEN || json.len() + exponents(value) > Self::MAX_LEN {
            return Err(InvalidMetadata(Problem::TooLong));
        }
        Ok(Self(Some(json.into())))
    }

    /// The JSON text; `{}` if empty.
    #[must_use]
    pub fn as_json(&self) -> &str {
        self.0.as_deref().unwrap_or(EMPTY)
    }

    /// The JSON as a value, for responses and the audit. Text that cannot be parsed becomes a
    /// string.
    pub(crate) fn to_value(&self) -> Value {
        shown(self.as_json())
    }

    /// Deserialises it as `T`.
    ///
    /// # Errors
    ///
    /// When it does not fit `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, InvalidMetadata> {
        serde_json::from_str(self.as_json()).map_err(InvalidMetadata::json)
    }
}

/// Embeds the stored JSON without building a value. Text that is not JSON becomes a string.
impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<&RawValue>(self.as_json()) {
            Ok(json) => json.serialize(serializer),
            Err(_) => serializer.serialize_str(self.as_json()),
        }
    }
}

/// Maximum depth of embedded JSON: together with its envelope, every common parser can read it.
const MAX_SHOWN_DEPTH: usize = 48;

/// Stored JSON for embedding in other JSON. Invalid JSON, or JSON too deep for common parsers,
/// becomes a string.
pub(crate) fn shown(json: &str) -> Value {
    match serde_json::from_str(json) {
        Ok(value) if !is_deeper_than(&value, MAX_SHOWN_DEPTH) => value,
        _ => Value::String(json.to_owned()),
    }
}

/// Recurses no deeper than `depth`.
fn is_deeper_than(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(_) | Value::Object(_) if depth == 0 => true,
        Value::Array(values) => values.iter().any(|value| is_deeper_than(value, depth - 1)),
        Value::Object(members) => members.values().any(|value| is_deeper_than(value, depth - 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(members) => {
            members.iter().any(|(name, value)| name.contains('\0') || has_nul(value))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The extra digits that exponents expand to. PostgreSQL writes them out: `1e308` comes back as 309
/// digits, and `1e16` as an integer.
fn exponents(value: &Value) -> usize {
    match value {
        Value::Number(number) => digits_of_exponent(number),
        Value::Array(values) => values.iter().map(exponents).sum(),
        Value::Object(members) => members.values().map(exponents).sum(),
        Value::Null | Value::Bool(_) | Value::String(_) => 0,
    }
}

fn digits_of_exponent(number: &Number) -> usize {
    if !number.is_f64() {
        return 0;
    }
    let text = number.to_string();
    let exponent = text.split_once('e').and_then(|(_, exponent)| exponent.parse::<i32>().ok());
    exponent.map_or(0, |exponent| exponent.unsigned_abs() as usize)
}

/// The metadata is not a JSON object within the limits, or does not match the requested type.
#[derive(Debug)]
pub struct InvalidMetadata(Problem);

#[derive(Debug)]
enum Problem {
    NoObject,
    TooLong,
    TooDeep,
    Nul,
    Json(serde_json::Error),
}

impl InvalidMetadata {
    fn json(source: serde_json::Error) -> Self {
        Self(Problem::Json(source))
    }

    /// Describes the problem without revealing the content.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn bound(&self) -> &'static str {
        match self.0 {
            Problem::Json(_) => "not JSON, or nested deeper than 32 levels",
            Problem::NoObject => "not an object",
            Problem::TooLong => "longer than 16 KiB",
            Problem::TooDeep => "nested deeper than 32 levels",
            Problem::Nul => "contains U+0000",
        }
    }
}

impl fmt::Display for InvalidMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Problem::Json(_) => "metadata is not valid JSON or does not match the requested type",
            Problem::NoObject => "metadata must be a JSON object",
            Problem::TooLong => {
                "metadata must be at most 16 KiB as JSON, counting numbers without exponents"
            }
            Problem::TooDeep => "metadata must not be nested deeper than 32 levels",
            Problem::Nul => "metadata must not contain U+0000",
        })
    }
}

impl Error for InvalidMetadata {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Problem::Json(source) => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_of_a_sane_size_are_metadata() {
        let large = format!(r#"{{"a":"{}"}}"#, "a".repeat(Metadata::MAX_LEN));
        for json in ["", "null", "[]", "1", "\"a\"", "{", "{} {}", large.as_str()] {
            assert!(Metadata::from_json(json).is_err(), "{:.20}", json);
        }
        assert_eq!(Metadata::from_json(" { } ").unwrap(), Metadata::default());
    }

    /// An object with this many levels of objects or arrays.
    fn nested(levels: usize, open: &str, close: &str) -> String {
        let inside = levels - 1;
        format!("{{\"a\":{}1{}}}", open.repeat(inside), close.repeat(inside))
    }

    #[test]
    fn metadata_have_at_most_32_levels() {
        for (open, close) in [("{\"a\":", "}"), ("[", "]")] {
            assert!(Metadata::from_json(&nested(32, open, close)).is_ok());
            for levels in [33, 64, 126, 127] {
                let error = Metadata::from_json(&nested(levels, open, close)).unwrap_err();
                assert!(error.to_string().contains("32 levels"), "{levels}: {error}");
            }
            assert!(Metadata::from_json(&nested(100_000, open, close)).is_err());
        }
        // Brackets inside a string do not count as levels.
        let text = format!(r#"{{"a":"{}"}}"#, "[".repeat(100));
        assert!(Metadata::from_json(&text).is_ok());
    }

    #[test]
    fn numbers_count_with_the_digits_that_their_exponent_stands_for() {
        let metadata = |number: &str, count: usize| {
            Metadata::from_json(&format!(r#"{{"a":[{}]}}"#, vec![number; count].join(",")))
        };
        assert!(metadata("1e308", 50).is_ok());
        let error = metadata("1e308", 100).unwrap_err();
        assert!(error.to_string().contains("16 KiB"), "{error}");
        assert!(metadata("1e-300", 100).is_err());
        assert!(metadata("1e16", 2_000).is_err(), "it comes back as an integer of 17 digits");
        assert!(metadata("1.5", 4_000).is_ok());
    }

    #[test]
    fn json_that_others_could_not_parse_is_shown_as_text() {
        for json in ["", "{", "{\"a\":1e999}", &nested(49, "[", "]"), &nested(200, "[", "]")] {
            assert_eq!(shown(json), Value::String(json.to_owned()));
        }
        assert!(shown(&nested(48, "[", "]")).is_object());
        assert_eq!(shown("null"), Value::Null);
    }
}
