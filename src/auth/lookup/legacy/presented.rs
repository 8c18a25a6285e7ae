use zeroize::Zeroizing;

use crate::key::AcceptedFormat;

/// A copy of a presented key, wiped when it is dropped.
pub(in crate::auth) struct Presented {
    /// What finds its legacy hash; `None` if its format has no hint.
    pub(super) hint: Option<Box<str>>,
    /// The part of it that the other system hashed.
    pub(super) hashed: Zeroizing<Box<[u8]>>,
}

impl Presented {
    /// `None` if no format for which legacy hashes exist accepts the key.
    pub(super) fn of(formats: &[AcceptedFormat], key: &[u8]) -> Option<Self> {
        // The format that was also used for the hash of the key.
        let format = formats.iter().find(|format| format.parse(key).is_ok())?;
        let parts = format.legacy_parts(key)?;
        let hint = parts.hint.map(|hint| str::from_utf8(hint).map(Into::into)).transpose().ok()?;
        Some(Self { hint, hashed: Zeroizing::new(parts.hashed.into()) })
    }
}
