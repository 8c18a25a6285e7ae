//! Keys in files and streams: found by prefix, length and checksum, with their place.

mod any_prefix;
mod place;

use std::{
    fmt,
    io::{self, ErrorKind, Read},
    ops::ControlFlow,
    sync::Arc,
};

use zeroize::Zeroizing;

use self::place::Place;
use super::{
    AcceptedFormat, InvalidFormat, KeyHash,
    mask::{Pattern, Span},
};

/// How much of a stream is searched at once. It fits into a core's second-level cache.
const CHUNK: usize = 128 * 1024;
/// A key that begins before the last so many bytes of a chunk is complete, and so is the character
/// behind it. The longest keys have 256 characters, and four more in URLs.
const OVERLAP: usize = 512;

/// Finds keys in bytes of any kind: source code, logs, archives of mail, programs.
///
/// 1. A key of a [`KeyFormat`](super::KeyFormat) is found wherever it stands, also between letters,
///    as in `\nsk_live_…` of a JSON text. Its checksum tells it from other text: one look-alike in
///    four billion has a valid one.
/// 2. With [`or_any_prefix`](Self::or_any_prefix), the prefix does not have to be known: the
///    checksum covers it, so it also tells where the prefix begins.
/// 3. A key of an [`ImportedFormat`](super::ImportedFormat) with a checksum is found in the same
///    way. Without a checksum, it is found by its prefix, and only if no character follows that its
///    body could have.
/// 4. A format with neither is refused: its keys look like other text.
/// 5. Of keys that overlap, the one that begins first is found.
///
/// Keys are not found where their characters are not in the text as they are: compressed, encrypted,
/// in base64, or broken into lines.
///
/// ```
/// use std::ops::ControlFlow;
/// use tower_api_key::key::{KeyFinder, KeyFormat};
///
/// let key = KeyFormat::new("acme_live_")?.generate()?;
/// let file = format!("url: https://api.example\nkey: {}\n", key.expose_secret());
///
/// let mut finder = KeyFinder::new([])?.or_any_prefix();
/// finder.scan(file.as_bytes(), |found| {
///     assert_eq!((found.line(), found.column()), (2, 6));
///     assert!(found.masked().starts_with("acme_live_…"));
///     assert_eq!(found.hash(), key.hash());
///     ControlFlow::Continue(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct KeyFinder {
    patterns: Arc<[Pattern]>,
    any_prefix: bool,
    /// The part of a stream that is being searched. It may hold keys, so it is wiped.
    buffer: Zeroizing<Vec<u8>>,
}

/// A key in a text, without the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundKey {
    offset: u64,
    line: u64,
    column: u64,
    masked: Box<str>,
    hash: KeyHash,
}

impl KeyFinder {
    /// Finds keys of `formats`.
    ///
    /// # Errors
    ///
    /// When keys of a format have neither a prefix nor a checksum
    /// ([`InvalidFormat::Indistinct`]).
    pub fn new(formats: impl IntoIterator<Item = AcceptedFormat>) -> Result<Self, InvalidFormat> {
        let mut patterns = Vec::new();
        for format in formats {
            if !format.is_distinctive() {
                return Err(InvalidFormat::Indistinct);
            }
            patterns.extend(Pattern::all(&format));
        }
        Ok(Self { patterns: patterns.into(), any_prefix: false, buffer: Zeroizing::default() })
    }

    /// Finds keys of every [`KeyFormat`](super::KeyFormat) as well, whatever their prefix.
    #[must_use]
    pub fn or_any_prefix(self) -> Self {
        Self { any_prefix: true, ..self }
    }

    /// The keys in `text`, in order.
    #[must_use]
    pub fn find(&self, text: &[u8]) -> Vec<FoundKey> {
        let (mut place, mut at) = (Place::START, 0);
        let found = self.spans(text).into_iter().map(|(span, hash)| {
            place.advance(text.get(at..span.start).unwrap_or_default());
            at = span.start;
            FoundKey::new(&place, text, span, hash)
        });
        found.collect()
    }

    /// Reads `source` to its end and calls `on_key` with each key, in order, until that breaks.
    /// Memory stays below a megabyte, however long the source or its lines are.
    ///
    /// # Errors
    ///
    /// When the source fails. `on_key` was called with the keys before that.
    pub fn scan(
        &mut self,
        mut source: impl Read,
        mut on_key: impl FnMut(FoundKey) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(CHUNK, 0);
        let outcome = self.scan_by(&mut buffer, &mut source, &mut on_key);
        self.buffer = buffer;
        outcome
    }

    fn scan_by(
        &self,
        buffer: &mut [u8],
        source: &mut dyn Read,
        on_key: &mut dyn FnMut(FoundKey) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let (mut place, mut filled) = (Place::START, 0);
        loop {
            let read = match source.read(buffer.get_mut(filled..).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read?,
            };
            filled += read;
            let is_end = read == 0;
            let limit = if is_end { filled } else { filled.saturating_sub(OVERLAP) };
            if limit == 0 && !is_end {
                continue;
            }
            let text = buffer.get(..filled).unwrap_or_default();
            let mut at = 0;
            let mut done = limit;
            // The others are found again, with what follows them.
            for (span, hash) in self.spans(text).into_iter().take_while(|it| it.0.start < limit) {
                place.advance(text.get(at..span.start).unwrap_or_default());
                at = span.start;
                done = done.max(span.end);
                if on_key(FoundKey::new(&place, text, span, hash)).is_break() {
                    return Ok(());
                }
            }
            if is_end {
                return Ok(());
            }
            place.advance(text.get(at..done).unwrap_or_default());
            buffer.copy_within(done..filled, 0);
            filled -= done;
        }
    }

    /// The keys in `text` and their hashes, in order and without overlaps.
    fn spans(&self, text: &[u8]) -> Vec<(Span, KeyHash)> {
        let mut spans = Vec::new();
        for pattern in self.patterns.iter() {
            pattern.find(text, |span, hash| spans.push((span, hash)));
        }
        if self.any_prefix {
            any_prefix::find(text, |span, hash| spans.push((span, hash)));
        }
        spans.sort_unstable_by_key(|(span, _)| (span.start, span.end));
        let mut end = 0;
        spans.retain(|(span, _)| {
            let is_first = span.start >= end;
            end = end.max(span.end);
            is_first
        });
        spans
    }
}

impl FoundKey {
    fn new(place: &Place, text: &[u8], span: Span, hash: KeyHash) -> Self {
        let mut masked = Vec::new();
        span.write(text, &mut masked);
        // Keys are ASCII.
        let masked = String::from_utf8(masked).unwrap_or_default().into();
        Self { offset: place.offset(), line: place.line(), column: place.column(), masked, hash }
    }

    /// How many bytes come before it.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The number of its line, from 1: one more than the line feeds before it.
    #[must_use]
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Its position in the line in bytes, from 1.
    #[must_use]
    pub fn column(&self) -> u64 {
        self.column
    }

    /// What is shown of it, as by [`KeyMask`](super::KeyMask): `sk_live_…4x9A`.
    #[must_use]
    pub fn masked(&self) -> &str {
        &self.masked
    }

    /// The hash by which a store finds it.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        self.hash
    }
}

/// Shows no text, which may hold keys.
impl fmt::Debug for KeyFinder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFinder")
            .field("patterns", &self.patterns)
            .field("any_prefix", &self.any_prefix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
