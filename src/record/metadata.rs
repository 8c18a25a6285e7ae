use std::{error::Error, fmt};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

const MAX_LEN: usize = 16 * 1024;
const EMPTY: &str = "{}";

/// A JSON object of the application's own, carried along with a key: a plan, a region, a tenant.
///
/// It is handed to handlers as it was stored and means nothing to this crate. At most 16 KiB, as
/// it is cached with each key.
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
    /// Serialises `value`.
    ///
    /// # Errors
    ///
    /// When it does not make a JSON object, a larger one than 16 KiB, or one with the character
    /// U+0000, which not every database can store.
    pub fn new(value: &impl Serialize) -> Result<Self, InvalidMetadata> {
        let value = serde_json::to_value(value).map_err(InvalidMetadata::json)?;
        Self::from_value(&value)
    }

    /// Checks and compacts a JSON text. Numbers beyond 64 bits lose precision, as in most JSON.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn from_json(json: &str) -> Result<Self, InvalidMetadata> {
        let value = serde_json::from_str(json).map_err(InvalidMetadata::json)?;
        Self::from_value(&value)
    }

    fn from_value(value: &Value) -> Result<Self, InvalidMetadata> {
        let object = value.as_object().ok_or(InvalidMetadata { source: None })?;
        if object.is_empty() {
            return Ok(Self(None));
        }
        let json = value.to_string();
        if json.len() > MAX_LEN || has_nul(value) {
            return Err(InvalidMetadata { source: None });
        }
        Ok(Self(Some(json.into())))
    }

    /// The JSON text; `{}` where nothing was stored.
    #[must_use]
    pub fn as_json(&self) -> &str {
        self.0.as_deref().unwrap_or(EMPTY)
    }

    /// Reads it as a type of the application's.
    ///
    /// # Errors
    ///
    /// When it does not fit `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, InvalidMetadata> {
        serde_json::from_str(self.as_json()).map_err(InvalidMetadata::json)
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

/// Metadata that is no JSON object, too large, or not of the type asked for.
#[derive(Debug)]
pub struct InvalidMetadata {
    source: Option<serde_json::Error>,
}

impl InvalidMetadata {
    fn json(source: serde_json::Error) -> Self {
        Self { source: Some(source) }
    }
}

impl fmt::Display for InvalidMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.source {
            Some(_) => "the metadata is not the JSON that was expected",
            None => "metadata is a JSON object of at most 16 KiB, without the character U+0000",
        })
    }
}

impl Error for InvalidMetadata {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_of_a_sane_size_are_metadata() {
        let large = format!(r#"{{"a":"{}"}}"#, "a".repeat(MAX_LEN));
        for json in ["", "null", "[]", "1", "\"a\"", "{", "{} {}", large.as_str()] {
            assert!(Metadata::from_json(json).is_err(), "{:.20}", json);
        }
        assert_eq!(Metadata::from_json(" { } ").unwrap(), Metadata::default());
    }
}
