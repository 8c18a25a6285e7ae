use std::cmp::Reverse;

use smallvec::SmallVec;

/// What a masked key becomes.
pub(super) const ELLIPSIS: &[u8] = "…".as_bytes();
/// How much of a checksum is shown.
const SHOWN: usize = 4;

/// A key in a text, or several that overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
    /// The length of the prefix.
    pub(super) prefix: usize,
    /// Whether the last characters belong to a checksum.
    pub(super) has_checksum: bool,
    /// Whether this is the rest of a key whose beginning was masked before.
    pub(super) is_rest: bool,
}

impl Span {
    /// Writes what the key becomes.
    pub(super) fn write(&self, text: &[u8], masked: &mut Vec<u8>) {
        masked.extend(text.get(self.start..self.start + self.prefix).unwrap_or_default());
        self.write_end(text, masked);
    }

    /// Writes what the key becomes if its beginning was already written as it is.
    pub(super) fn write_end(&self, text: &[u8], masked: &mut Vec<u8>) {
        masked.extend(ELLIPSIS);
        if self.has_checksum {
            masked.extend(text.get(self.end - SHOWN..self.end).unwrap_or_default());
        }
    }
}

/// What was found in a text.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) spans: SmallVec<[Span; 2]>,
    /// The keys that may have begun at the end of the text.
    pub(super) open: Option<Open>,
    /// The patterns whose last key goes on with the next character, if that is one of a key.
    pub(super) unended: SmallVec<[usize; 2]>,
}

/// The earliest beginning of a key that may be complete once more text follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) start: usize,
    /// Zero if the prefix is empty or incomplete.
    pub(super) prefix: usize,
}

impl Scan {
    pub(super) fn open_at(&mut self, start: usize, prefix: usize) {
        if self.open.is_none_or(|open| start < open.start) {
            self.open = Some(Open { start, prefix });
        }
    }

    /// Whether there is neither a key nor the beginning of one.
    pub(super) fn is_empty(&self) -> bool {
        self.spans.is_empty() && self.open.is_none()
    }

    /// Sorts the spans and joins those that overlap. Of joined ones, nothing but the first prefix is
    /// shown.
    pub(super) fn merge(&mut self) {
        self.spans.sort_unstable_by_key(|span| (span.start, !span.is_rest, Reverse(span.end)));
        let mut merged: SmallVec<[Span; 2]> = SmallVec::new();
        for span in self.spans.drain(..) {
            match merged.last_mut() {
                Some(last) if span.start < last.end => {
                    if span.end > last.end {
                        last.end = span.end;
                        last.has_checksum = false;
                    }
                }
                _ => merged.push(span),
            }
        }
        self.spans = merged;
    }
}
