use std::fmt;

use memchr::memmem::Finder;
use smallvec::{SmallVec, smallvec};
use zeroize::Zeroizing;

use super::span::{Open, Scan, Span, Unended};
use crate::key::{AcceptedFormat, IdPart, KeyHash};

/// How many characters of a body may be shown if the key is cut off. This leaves 160 bits unknown,
/// and 142 of a Sanctum token.
const MOST_SHOWN: usize = 16;
/// The same for imported keys, which may be shorter: at least 104 bits.
const MOST_SHOWN_WITHOUT_CHECKSUM: usize = 4;

/// How keys of one format are found.
pub(in crate::key) struct Pattern {
    format: AcceptedFormat,
    /// How the end of an id is written; empty for keys without one.
    separator: SmallVec<[u8; 4]>,
    /// Finds the separator of the id, and the prefix; `None` if both are empty.
    finder: Option<Finder<'static>>,
}

/// How the search for the next key ended.
enum Next {
    Key(Found),
    /// A key may begin here, if the text goes on.
    Open(Open),
    None,
}

/// A key, without the characters after it that may belong to it.
struct Found {
    start: usize,
    end: usize,
    /// How many characters at its start are public.
    public: usize,
}

impl Pattern {
    /// The patterns of a format: one, and those of its keys in URLs if they are written otherwise
    /// there.
    pub(in crate::key) fn all(format: &AcceptedFormat) -> SmallVec<[Self; 3]> {
        let Some(separator) = format.id().map(IdPart::separator) else {
            return smallvec![Self::new(format.clone(), &[])];
        };
        let mut all = smallvec![Self::new(format.clone(), &[separator])];
        if !separator.is_ascii_alphanumeric() && !b"-_.!~*()".contains(&separator) {
            let (upper, lower) = (format!("%{separator:02X}"), format!("%{separator:02x}"));
            all.push(Self::new(format.clone(), upper.as_bytes()));
            if lower != upper {
                all.push(Self::new(format.clone(), lower.as_bytes()));
            }
        }
        all
    }

    fn new(format: AcceptedFormat, separator: &[u8]) -> Self {
        let anchor = [separator, format.prefix().as_bytes()].concat();
        let finder = (!anchor.is_empty()).then(|| Finder::new(&anchor).into_owned());
        Self { format, separator: separator.into(), finder }
    }

    pub(super) fn is_distinctive(&self) -> bool {
        self.format.is_distinctive()
    }

    /// Whether `text` contains a key.
    pub(super) fn is_in(&self, text: &[u8]) -> bool {
        // Most texts are headers that are shorter than a key.
        text.len() >= self.format.secret_len() && matches!(self.next(text, 0), Next::Key(_))
    }

    /// Adds the keys in `text`, and where one may have begun at its end. `is_unended` if the text
    /// before this ended in a key that may go on here. `number` is that of this pattern.
    pub(super) fn scan(&self, number: usize, is_unended: bool, text: &[u8], scan: &mut Scan) {
        let has_checksum = self.format.has_checksum();
        let mut at = 0;
        let mut add = |span: Span| {
            if span.end == text.len() && !has_checksum {
                let Span { start, is_rest, .. } = span;
                scan.unended.push(Unended { pattern: number, start, is_rest });
            }
            scan.spans.push(span);
            span.end
        };
        if is_unended {
            let end = self.run(text, 0);
            at = add(Span::rest(end));
        }
        loop {
            match self.next(text, at) {
                Next::Key(Found { start, end, public }) => {
                    // Without a checksum, nothing tells where a key in a longer run of characters
                    // begins, so it ends with the run.
                    let end = if has_checksum { end } else { self.run(text, end) };
                    at = add(Span { start, end, prefix: public, has_checksum, is_rest: false });
                }
                Next::Open(open) => return scan.opened(open),
                Next::None => return,
            }
        }
    }

    /// Calls `on_key` with each key in `text`, in order. Without a checksum, nothing tells a key in
    /// a longer run of characters from other text, so it is left out.
    pub(in crate::key) fn find(&self, text: &[u8], mut on_key: impl FnMut(Span, KeyHash)) {
        let has_checksum = self.format.has_checksum();
        let mut at = 0;
        while let Next::Key(Found { start, end, public }) = self.next(text, at) {
            at = if has_checksum { end } else { self.run(text, end) };
            let key = text.get(start..end).filter(|_| at == end);
            if let Some(hash) = key.and_then(|key| self.hash(key)) {
                on_key(Span { start, end, prefix: public, has_checksum, is_rest: false }, hash);
            }
        }
    }

    /// The hash of a key, whose separator may be percent-encoded.
    fn hash(&self, key: &[u8]) -> Option<KeyHash> {
        let Some(separator) = self.format.id().map(IdPart::separator) else {
            return self.format.parse(key).ok().map(|key| key.hash());
        };
        let (id, secret) =
            key.split_at_checked(key.len().checked_sub(self.format.secret_len())?)?;
        let id = id.strip_suffix(&*self.separator)?;
        let key = Zeroizing::new([id, &[separator], secret].concat());
        self.format.parse(&key).ok().map(|key| key.hash())
    }

    /// The end of the characters from `start` on that keys may have.
    fn run(&self, text: &[u8], start: usize) -> usize {
        let run = text.get(start..).unwrap_or_default().iter();
        start + run.take_while(|&&byte| self.format.is_symbol(byte)).count()
    }

    /// What may be shown of a body that is cut off.
    fn most_shown(&self) -> usize {
        match (self.format.has_checksum(), self.is_distinctive()) {
            (true, _) => MOST_SHOWN,
            (false, true) => MOST_SHOWN_WITHOUT_CHECKSUM,
            // Nothing but its length tells that it is a key.
            (false, false) if self.finder.is_none() => self.format.secret_len() / 2,
            // Many a name with a dot in it looks like the beginning of an id and a secret.
            (false, false) => MOST_SHOWN.min(self.format.secret_len() / 2),
        }
    }

    fn next(&self, text: &[u8], from: usize) -> Next {
        match &self.finder {
            Some(finder) => self.next_by_anchor(finder, text, from),
            None => self.next_run(text, from),
        }
    }

    fn next_by_anchor(&self, finder: &Finder<'_>, text: &[u8], from: usize) -> Next {
        let mut at = from;
        while let Some(offset) = finder.find(text.get(at..).unwrap_or_default()) {
            let anchor = at + offset;
            at = anchor + 1;
            let Some(start) = self.start(text, anchor) else { continue };
            let secret = anchor + self.separator.len();
            let public = anchor + finder.needle().len() - start;
            let end = secret + self.format.secret_len();
            match text.get(secret..end) {
                Some(key) if self.format.is_secret(key) => {
                    return Next::Key(Found { start, end, public });
                }
                Some(_) => {}
                None => {
                    let mut body = text.iter().skip(start + public);
                    if body.all(|&byte| self.format.is_symbol(byte)) {
                        let most_shown = self.most_shown();
                        return Next::Open(Open { start, prefix: public, most_shown });
                    }
                }
            }
        }
        self.half_an_anchor(finder.needle(), text, from)
    }

    /// Where the key begins whose separator, or prefix, is at `anchor`.
    fn start(&self, text: &[u8], anchor: usize) -> Option<usize> {
        match self.format.id() {
            None => Some(anchor),
            // The id may be in the key before, which ends with a run.
            Some(id) => id.start_before(text.get(..anchor)?),
        }
    }

    /// Whether `text` ends in the beginning of what comes before a body. Most lines end in a line
    /// break, which no key has.
    fn half_an_anchor(&self, anchor: &[u8], text: &[u8], from: usize) -> Next {
        if !text.last().is_some_and(u8::is_ascii_graphic) {
            return Next::None;
        }
        let most = anchor.len().saturating_sub(1).min(text.len().saturating_sub(from));
        let begun = (1..=most).rev().find_map(|len| {
            let start = text.len() - len;
            let ends = anchor.get(..len).is_some_and(|begin| text.ends_with(begin));
            if ends { self.start(text, start) } else { None }
        });
        let id = self.format.id().map(|id| id.unfinished_start(text));
        let start = begun.into_iter().chain(id).min().filter(|&start| start < text.len());
        match start {
            // Nothing of a body has come.
            Some(start) => Next::Open(Open { start, prefix: 0, most_shown: text.len() - start }),
            None => Next::None,
        }
    }

    /// The next run of characters that is long enough. The last character of a window is looked at
    /// first, so that most of the text is skipped.
    fn next_run(&self, text: &[u8], from: usize) -> Next {
        let is_other = |&byte: &u8| !self.format.is_symbol(byte);
        let mut start = from;
        while let Some(window) = text.get(start..start + self.format.secret_len()) {
            match window.iter().rposition(is_other) {
                None if self.format.is_secret(window) => {
                    return Next::Key(Found { start, end: start + window.len(), public: 0 });
                }
                None => start += 1,
                Some(at) => start += at + 1,
            }
        }
        let tail = text.get(start..).unwrap_or_default();
        start += tail.iter().rposition(is_other).map_or(0, |at| at + 1);
        if start == text.len() {
            return Next::None;
        }
        Next::Open(Open { start, prefix: 0, most_shown: self.most_shown() })
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.format, f)
    }
}
