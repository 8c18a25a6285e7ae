use std::cmp::Reverse;

use smallvec::SmallVec;

/// What a masked key becomes.
pub(super) const ELLIPSIS: &[u8] = "…".as_bytes();
/// How much of a checksum is shown.
const SHOWN: usize = 4;

/// A key in a text, or several that overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::key) struct Span {
    pub(in crate::key) start: usize,
    pub(in crate::key) end: usize,
    /// The length of the prefix.
    pub(in crate::key) prefix: usize,
    /// Whether the last characters belong to a checksum.
    pub(in crate::key) has_checksum: bool,
    /// Whether this is the rest of a key whose beginning was masked before.
    pub(in crate::key) is_rest: bool,
}

impl Span {
    /// The rest of a key, up to `end`.
    pub(super) const fn rest(end: usize) -> Self {
        Self { start: 0, end, prefix: 0, has_checksum: false, is_rest: true }
    }

    /// Writes what the key becomes.
    pub(in crate::key) fn write(&self, text: &[u8], masked: &mut Vec<u8>) {
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
    /// Keys at the end that go on with the next character, if that is one of a key.
    pub(super) unended: SmallVec<[Unended; 2]>,
}

/// The earliest beginning of a key that may be complete once more text follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) start: usize,
    /// Zero if the prefix is empty or incomplete.
    pub(super) prefix: usize,
    /// How many characters after the prefix may be shown if the key is cut off here.
    pub(super) most_shown: usize,
}

/// A key without a checksum at the end of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unended {
    /// The number of its pattern.
    pub(super) pattern: usize,
    /// Zero if it began before the text.
    pub(super) start: usize,
    /// Whether it began before the text.
    pub(super) is_rest: bool,
}

impl Scan {
    /// The patterns of keys at the end that began before `position`.
    pub(super) fn unended_at(&self, position: usize) -> SmallVec<[usize; 2]> {
        let began = |key: &&Unended| key.is_rest || key.start < position;
        self.unended.iter().filter(began).map(|key| key.pattern).collect()
    }

    /// How many characters after `position` belong to a key that began before it.
    pub(super) fn covered_after(&self, position: usize) -> usize {
        let began = |span: &&Span| span.is_rest || span.start < position;
        let ends = self.spans.iter().filter(began).map(|span| span.end.saturating_sub(position));
        ends.max().unwrap_or_default()
    }

    pub(super) fn opened(&mut self, open: Open) {
        if self.open.is_none_or(|earliest| open.start < earliest.start) {
            self.open = Some(open);
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
