//! Keys in text: found by prefix, length and checksum, and replaced.

mod pattern;
mod span;
mod writer;

use std::{borrow::Cow, fmt, sync::Arc};

use self::span::Scan;
pub use self::writer::MaskingWriter;
pub(super) use self::{pattern::Pattern, span::Span};
use super::{AcceptedFormat, ImportedFormat, KeyFormat};

/// Finds keys of several formats in text and replaces them. Clones share the formats.
///
/// | a key | becomes |
/// |---|---|
/// | of a [`KeyFormat`], with a valid checksum | `sk_live_…4x9A`: the prefix, and four characters of the checksum |
/// | of an [`ImportedFormat`] with a prefix | `old-…`: nothing of a body without a checksum is shown |
/// | of an [`ImportedFormat`] without a prefix | `…` |
/// | of an [`ImportedFormat`] with an [id](ImportedFormat::with_id) | `17\|…`: the id, which is public, also with the separator percent-encoded as in URLs |
/// | of an [`ImportedFormat`] with a checksum | and the last four characters of the checksum |
///
/// A key is found wherever it stands, also between letters. A format without a checksum also
/// matches other text: with `ImportedFormat::new("", Alphabet::Hex, 64)`, every SHA-256 in
/// hexadecimal is masked. What follows such a key is masked up to the first character that no key
/// of that format has.
///
/// Text without the prefix costs one fast search, and no allocation.
///
/// ```
/// use tower_api_key::key::{Alphabet, ImportedFormat, KeyFormat, KeyMask};
///
/// let old = ImportedFormat::new("old-", Alphabet::Hex, 32)?;
/// let mask = KeyMask::new([KeyFormat::new("sk_live_")?.into(), old.into()]);
/// let line = format!("forwarded old-{} to billing", "0f".repeat(16));
/// assert_eq!(mask.mask(&line), "forwarded old-… to billing");
/// # Ok::<(), tower_api_key::key::InvalidFormat>(())
/// ```
#[derive(Clone)]
pub struct KeyMask(Arc<[Pattern]>);

impl KeyMask {
    /// Masks keys of `formats`.
    #[must_use]
    pub fn new(formats: impl IntoIterator<Item = AcceptedFormat>) -> Self {
        Self(formats.into_iter().flat_map(|format| Pattern::all(&format)).collect())
    }

    /// Replaces each key in `text`. Borrows `text` if it contains none.
    #[must_use]
    pub fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let scan = self.scan(text.as_bytes(), 0, &[]);
        if scan.spans.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut masked = Vec::with_capacity(text.len());
        let mut at = 0;
        for span in &scan.spans {
            masked.extend(text.as_bytes().get(at..span.start).unwrap_or_default());
            span.write(text.as_bytes(), &mut masked);
            at = span.end;
        }
        masked.extend(text.as_bytes().get(at..).unwrap_or_default());
        // Keys are ASCII, so no character was cut.
        Cow::Owned(String::from_utf8(masked).unwrap_or_default())
    }

    /// Whether `text` contains a key that could not be anything else: it has a prefix.
    pub(crate) fn finds_distinctive(&self, text: &[u8]) -> bool {
        self.0.iter().any(|pattern| pattern.is_distinctive() && pattern.is_in(text))
    }

    /// All keys in `text`, in order and without overlaps. Its first `covered` characters belong to a
    /// key in the text before it; `unended` are the patterns of keys there that may go on.
    fn scan(&self, text: &[u8], covered: usize, unended: &[usize]) -> Scan {
        let mut scan = Scan::default();
        if covered > 0 {
            scan.spans.push(Span::rest(covered));
        }
        for (number, pattern) in self.0.iter().enumerate() {
            pattern.scan(number, unended.contains(&number), text, &mut scan);
        }
        if scan.spans.len() > 1 {
            scan.merge();
        }
        scan
    }
}

impl KeyFormat {
    /// Replaces each key of this format in `text` by its prefix, `…` and its last four characters,
    /// which belong to the checksum: `sk_live_…4x9A`. For keys of several formats, and of other
    /// systems, there is [`KeyMask`].
    ///
    /// ```
    /// # use tower_api_key::key::KeyFormat;
    /// let format = KeyFormat::new("sk_live_")?;
    /// let key = format.generate()?;
    /// let line = format!("GET /orders?key={}&page=2", key.expose_secret());
    /// let last4 = &key.expose_secret()[53..];
    /// assert_eq!(format.mask(&line), format!("GET /orders?key=sk_live_…{last4}&page=2"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
        KeyMask::from(self.clone()).mask(text)
    }
}

impl From<AcceptedFormat> for KeyMask {
    fn from(format: AcceptedFormat) -> Self {
        Self::new([format])
    }
}

impl From<KeyFormat> for KeyMask {
    fn from(format: KeyFormat) -> Self {
        Self::new([format.into()])
    }
}

impl From<ImportedFormat> for KeyMask {
    fn from(format: ImportedFormat) -> Self {
        Self::new([format.into()])
    }
}

impl fmt::Debug for KeyMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyMask").field(&self.0).finish()
    }
}

#[cfg(test)]
mod tests;
