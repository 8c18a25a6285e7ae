use std::fmt;

use memchr::memmem::Finder;

use super::span::{Open, Scan, Span, Unended};
use crate::key::{AcceptedFormat, is_bearer_symbol};

/// How many characters of a body may be shown if the key is cut off. This leaves 160 bits unknown.
const MOST_SHOWN: usize = 16;
/// The same for imported keys, which may be shorter: at least 104 bits.
const MOST_SHOWN_WITHOUT_CHECKSUM: usize = 4;

/// How keys of one format are found.
pub(super) struct Pattern {
    format: AcceptedFormat,
    /// Finds the prefix; `None` if it is empty.
    finder: Option<Finder<'static>>,
}

/// How the search for the next key ended.
enum Next {
    /// A key begins here.
    Key(usize),
    /// A key may begin here, if the text goes on.
    Open(Open),
    None,
}

impl Pattern {
    pub(super) fn new(format: AcceptedFormat) -> Self {
        let prefix = format.prefix();
        let finder = (!prefix.is_empty()).then(|| Finder::new(prefix).into_owned());
        Self { format, finder }
    }

    pub(super) fn key_len(&self) -> usize {
        self.format.key_len()
    }

    pub(super) fn is_distinctive(&self) -> bool {
        self.finder.is_some()
    }

    /// Whether `text` contains a key.
    pub(super) fn is_in(&self, text: &[u8]) -> bool {
        // Most texts are headers that are shorter than a key.
        text.len() >= self.key_len() && matches!(self.next(text, 0), Next::Key(_))
    }

    /// Adds the keys in `text`, and where one may have begun at its end. `is_unended` if the text
    /// before this ended in a key that may go on here. `number` is that of this pattern.
    pub(super) fn scan(&self, number: usize, is_unended: bool, text: &[u8], scan: &mut Scan) {
        let (prefix, has_checksum) = (self.format.prefix().len(), self.format.has_checksum());
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
                Next::Key(start) => {
                    let end = self.end(text, start);
                    at = add(Span { start, end, prefix, has_checksum, is_rest: false });
                }
                Next::Open(open) => return scan.opened(open),
                Next::None => return,
            }
        }
    }

    /// The end of the key at `start`. Without a checksum, nothing tells where a key in a longer run
    /// of characters begins, so it ends with the run.
    fn end(&self, text: &[u8], start: usize) -> usize {
        let end = start + self.key_len();
        if self.format.has_checksum() {
            return end;
        }
        self.run(text, end)
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
            (false, false) => self.key_len() / 2,
        }
    }

    fn next(&self, text: &[u8], from: usize) -> Next {
        match &self.finder {
            Some(finder) => self.next_by_prefix(finder, text, from),
            None => self.next_run(text, from),
        }
    }

    fn next_by_prefix(&self, finder: &Finder<'_>, text: &[u8], from: usize) -> Next {
        let mut at = from;
        while let Some(offset) = finder.find(text.get(at..).unwrap_or_default()) {
            let start = at + offset;
            match text.get(start..start + self.key_len()) {
                Some(key) if self.format.parse(key).is_ok() => return Next::Key(start),
                Some(_) => {}
                None => {
                    let mut body = text.iter().skip(start + finder.needle().len());
                    if body.all(|&byte| self.format.is_symbol(byte)) {
                        let (prefix, most_shown) = (finder.needle().len(), self.most_shown());
                        return Next::Open(Open { start, prefix, most_shown });
                    }
                }
            }
            at = start + 1;
        }
        self.half_a_prefix(finder.needle(), text, from)
    }

    /// Whether `text` ends in the beginning of a prefix. Most lines end in a line break, which none
    /// has.
    fn half_a_prefix(&self, prefix: &[u8], text: &[u8], from: usize) -> Next {
        if !text.last().is_some_and(|&last| is_bearer_symbol(last)) {
            return Next::None;
        }
        let most = prefix.len().saturating_sub(1).min(text.len().saturating_sub(from));
        let ends = |len: &usize| prefix.get(..*len).is_some_and(|begin| text.ends_with(begin));
        match (1..=most).rev().find(ends) {
            Some(len) => {
                let start = text.len() - len;
                Next::Open(Open { start, prefix: 0, most_shown: prefix.len() })
            }
            None => Next::None,
        }
    }

    /// The next run of characters that is long enough. The last character of a window is looked at
    /// first, so that most of the text is skipped.
    fn next_run(&self, text: &[u8], from: usize) -> Next {
        let is_other = |&byte: &u8| !self.format.is_symbol(byte);
        let mut start = from;
        while let Some(window) = text.get(start..start + self.key_len()) {
            match window.iter().rposition(is_other) {
                None => return Next::Key(start),
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
