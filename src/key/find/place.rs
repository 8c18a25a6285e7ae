use memchr::{memchr_iter, memrchr};

/// A position in a text that is read in parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    offset: u64,
    line: u64,
    line_start: u64,
}

impl Place {
    pub(super) const START: Self = Self { offset: 0, line: 1, line_start: 0 };

    /// Moves past `text`.
    pub(super) fn advance(&mut self, text: &[u8]) {
        if let Some(last) = memrchr(b'\n', text) {
            self.line += memchr_iter(b'\n', text).count() as u64;
            self.line_start = self.offset + last as u64 + 1;
        }
        self.offset += text.len() as u64;
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn line(&self) -> u64 {
        self.line
    }

    pub(super) fn column(&self) -> u64 {
        self.offset - self.line_start + 1
    }
}
