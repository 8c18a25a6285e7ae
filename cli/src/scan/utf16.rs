//! Text in UTF-16 with a byte order mark, as PowerShell writes it.

use std::io::{self, Read};

/// A source whose text in UTF-16 arrives with one byte per code unit: ASCII as it is, and others,
/// which no key has, as `0xff`. Everything else is passed on as it is.
pub(super) struct Narrowed<R> {
    source: R,
    encoding: Encoding,
}

#[derive(Clone, Copy)]
enum Encoding {
    /// Nothing was read yet.
    Unknown,
    Bytes,
    Utf16 {
        is_big_endian: bool,
        /// The first byte of a code unit whose second has not come.
        half: Option<u8>,
    },
}

impl<R> Narrowed<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, encoding: Encoding::Unknown }
    }
}

impl<R: Read> Read for Narrowed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let len = self.source.read(buffer)?;
            let text = buffer.get_mut(..len).unwrap_or_default();
            if len > 0 && matches!(self.encoding, Encoding::Unknown) {
                self.encoding = Encoding::of(text);
            }
            let Encoding::Utf16 { is_big_endian, half } = &mut self.encoding else {
                return Ok(len);
            };
            let narrow = narrow(text, *is_big_endian, half);
            // None would mean the end.
            if narrow > 0 || len == 0 {
                return Ok(narrow);
            }
        }
    }
}

impl Encoding {
    fn of(text: &[u8]) -> Self {
        match text {
            [0xff, 0xfe, ..] => Self::Utf16 { is_big_endian: false, half: None },
            [0xfe, 0xff, ..] => Self::Utf16 { is_big_endian: true, half: None },
            _ => Self::Bytes,
        }
    }
}

/// Replaces `text` by one byte per code unit, and returns how many.
fn narrow(text: &mut [u8], is_big_endian: bool, half: &mut Option<u8>) -> usize {
    let mut narrow = 0;
    for at in 0..text.len() {
        let byte = text.get(at).copied().unwrap_or_default();
        let Some(first) = half.take() else {
            *half = Some(byte);
            continue;
        };
        let (high, low) = if is_big_endian { (first, byte) } else { (byte, first) };
        if let Some(target) = text.get_mut(narrow) {
            *target = if high == 0 { low } else { 0xff };
        }
        narrow += 1;
    }
    narrow
}
