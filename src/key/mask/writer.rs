use std::{
    fmt,
    io::{self, ErrorKind, Write},
};

use smallvec::SmallVec;

use super::{
    KeyMask,
    span::{ELLIPSIS, Scan},
};

/// Masks each key that is written to it, also one that comes in several writes. For logs: a key in a
/// URL, a body, a panic or the log line of another crate never reaches the file.
///
/// Text that may be the beginning of a key is held back until the next write. [`flush`](Write::flush)
/// and dropping the writer pass it on. A key that is cut off there is masked as well if more than 16
/// characters follow its prefix, or 4 if the format has no checksum, or half of a secret, with an
/// id before it at most 16 characters, if it has no prefix either; otherwise the rest of it is masked when it comes.
///
/// Text that has no prefix in it goes to the inner writer as it is, without a copy. Errors are
/// reported as by [`BufWriter`](io::BufWriter): those of text that was held back come with the next
/// call, and dropping the writer ignores them.
///
/// A closure that makes one is a `MakeWriter` of `tracing_subscriber`:
///
/// ```
/// use std::io;
/// use tower_api_key::key::{KeyFormat, KeyMask, MaskingWriter};
///
/// # fn main() -> Result<(), tower_api_key::key::InvalidFormat> {
/// let mask = KeyMask::from(KeyFormat::new("sk_live_")?);
/// let subscriber = tracing_subscriber::fmt()
///     .with_writer(move || MaskingWriter::new(io::stderr(), mask.clone()))
///     .finish();
/// # drop(subscriber);
/// # Ok(())
/// # }
/// ```
///
/// [`Authenticator::key_mask`](crate::Authenticator::key_mask) has the formats of an authenticator.
pub struct MaskingWriter<W: Write> {
    inner: W,
    mask: KeyMask,
    /// The end of the text so far, as far as it matters for what follows.
    held: Vec<u8>,
    /// How much of `held` was passed on already, as it is or masked.
    passed: usize,
    /// Whether the last of these characters was masked.
    is_masked: bool,
    /// How many characters of `held` belong to a key that began before them.
    covered: usize,
    /// The patterns of keys that began before `held` and may go on in it.
    unended: SmallVec<[usize; 2]>,
    /// What the inner writer has not taken yet.
    unwritten: Vec<u8>,
}

impl<W: Write> MaskingWriter<W> {
    /// Writes to `inner` and masks the keys of `mask`: a [`KeyMask`] or a single format.
    pub fn new(inner: W, mask: impl Into<KeyMask>) -> Self {
        Self {
            inner,
            mask: mask.into(),
            held: Vec::new(),
            passed: 0,
            is_masked: false,
            covered: 0,
            unended: SmallVec::new(),
            unwritten: Vec::new(),
        }
    }

    /// The inner writer.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// Passes on what is held, up to what may be the beginning of a key; all of it if `is_end`.
    fn pass(&mut self, is_end: bool) {
        let scan = self.mask.scan(&self.held, self.covered, &self.unended);
        let open = scan.open.map_or(self.held.len(), |open| open.start);
        self.covered = scan.covered_after(open);
        self.unended = scan.unended_at(open);
        self.pass_until(&scan, open.max(self.passed));
        if is_end {
            self.pass_end(&scan);
        }
        self.held.drain(..open);
        self.passed -= open;
    }

    /// Passes on the text before `limit`, without its keys.
    fn pass_until(&mut self, scan: &Scan, limit: usize) {
        for span in &scan.spans {
            if span.end <= self.passed || span.start >= limit {
                continue;
            }
            if span.start >= self.passed {
                let before = self.held.get(self.passed..span.start).unwrap_or_default();
                self.unwritten.extend(before);
                if !span.is_rest {
                    span.write(&self.held, &mut self.unwritten);
                }
            } else if !self.is_masked {
                span.write_end(&self.held, &mut self.unwritten);
            }
            self.passed = span.end.min(limit);
            self.is_masked = true;
        }
        if let Some(rest) = self.held.get(self.passed..limit).filter(|rest| !rest.is_empty()) {
            self.unwritten.extend(rest);
            self.passed = limit;
            self.is_masked = false;
        }
    }

    /// Passes on what may be the beginning of a key, unless that is most of one.
    fn pass_end(&mut self, scan: &Scan) {
        let len = self.held.len();
        let Some(open) = scan.open.filter(|_| self.passed < len) else { return };
        let body = open.start + open.prefix;
        let from = self.passed.max(open.start + self.covered);
        if !self.unended.is_empty() {
            // It is inside of another key.
            self.is_masked = true;
        } else if len <= body + open.most_shown {
            self.unwritten.extend(self.held.get(from..).unwrap_or_default());
            self.is_masked = false;
        } else if self.passed == open.start || !self.is_masked {
            self.unwritten.extend(self.held.get(from..body).unwrap_or_default());
            self.unwritten.extend(ELLIPSIS);
            self.is_masked = true;
        }
        self.passed = len;
    }

    /// Writes what the inner writer has not taken yet.
    fn drain(&mut self) -> io::Result<()> {
        let mut written = 0;
        let outcome = loop {
            let Some(rest) = self.unwritten.get(written..).filter(|rest| !rest.is_empty()) else {
                break Ok(());
            };
            match self.inner.write(rest) {
                Ok(0) => break Err(ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.unwritten.drain(..written.min(self.unwritten.len()));
        outcome
    }
}

impl<W: Write> Write for MaskingWriter<W> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.drain()?;
        if self.held.is_empty() && self.mask.scan(text, 0, &self.unended).is_empty() {
            return self.inner.write(text);
        }
        self.held.extend_from_slice(text);
        self.pass(false);
        // The text is taken. An error comes again with the next call.
        let _ = self.drain();
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.held.is_empty() {
            self.pass(true);
        }
        self.drain()?;
        self.inner.flush()
    }
}

impl<W: Write> Drop for MaskingWriter<W> {
    fn drop(&mut self) {
        if !self.held.is_empty() {
            self.pass(true);
        }
        let _ = self.drain();
    }
}

/// Shows no text, which may hold half a key.
impl<W: Write> fmt::Debug for MaskingWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MaskingWriter").field("mask", &self.mask).finish_non_exhaustive()
    }
}
