//! A quota as JSON.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{CountedPer, InvalidQuota, Pace, Quota};

/// A quota as the stores keep it: the settings, without derived values.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    name: String,
    limit: u32,
    window_ms: u64,
    /// Defaults to the limit.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    burst: Option<u32>,
    #[serde(default, skip_serializing_if = "is_default")]
    strict: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    sliding: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    counted_per: CountedPer,
}

/// Rejects `null`: a member may be omitted, but not null.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Serialize for Quota {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Stored::from(self.clone()).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Quota {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::try_from(Stored::deserialize(from)?).map_err(D::Error::custom)
    }
}

impl From<Quota> for Stored {
    fn from(quota: Quota) -> Self {
        let (burst, strict) = match quota.pace {
            Pace::Gcra { burst, strict, .. } => (Some(burst.get()), strict),
            Pace::Sliding => (None, false),
        };
        Self {
            limit: quota.limit.get(),
            window_ms: u64::try_from(quota.window.as_millis()).unwrap_or(u64::MAX),
            burst,
            strict,
            sliding: quota.pace == Pace::Sliding,
            counted_per: quota.counted_per,
            name: quota.name.into_owned(),
        }
    }
}

impl TryFrom<Stored> for Quota {
    type Error = InvalidQuota;

    fn try_from(stored: Stored) -> Result<Self, InvalidQuota> {
        let window = Duration::from_millis(stored.window_ms);
        let burst = stored.burst.unwrap_or(stored.limit);
        let quota = if stored.sliding {
            Self::sliding(stored.limit, window)?.burst(burst)?
        } else {
            Self::per(stored.limit, window)?.paced(burst, stored.strict)?
        };
        Self { counted_per: stored.counted_per, ..quota }.named(stored.name)
    }
}
