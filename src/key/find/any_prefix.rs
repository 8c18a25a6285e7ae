//! Keys issued here whose prefix is not known.

use std::ops::Range;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use memchr::memchr_iter;

use crate::key::{
    KeyFormat, KeyHash,
    format::{BODY_LEN, CHECKSUM_LEN, MAX_PREFIX_LEN, is_word, is_word_character},
    mask::Span,
};

/// A prefix of one letter and `_`, a body and a checksum.
const SHORTEST: usize = 2 + BODY_LEN + CHECKSUM_LEN;

/// Calls `on_key` with each key in `text`, in order.
pub(super) fn find(text: &[u8], mut on_key: impl FnMut(Span, KeyHash)) {
    let mut from = 0;
    while let Some(run) = next_run(text, from) {
        from = run.end;
        let word = text.get(run.clone()).unwrap_or_default();
        let mut floor = 0;
        for underscore in memchr_iter(b'_', word) {
            let Some(key) = key_around(word, floor, underscore) else { continue };
            let secret = word.get(key.clone()).unwrap_or_default();
            let Some(hash) = hash_of(secret, underscore + 1 - key.start) else { continue };
            floor = key.end;
            let span = Span {
                start: run.start + key.start,
                end: run.start + key.end,
                prefix: underscore + 1 - key.start,
                has_checksum: true,
                is_rest: false,
            };
            on_key(span, hash);
        }
    }
}

/// The next run of letters, digits and `_` that is long enough for a key.
///
/// Such a run covers the first half of one of the blocks that follow each other, wherever they begin.
/// Only these halves are looked at, all characters at once.
fn next_run(text: &[u8], from: usize) -> Option<Range<usize>> {
    const BLOCK: usize = 32;
    const HALF: usize = BLOCK / 2;
    const _: () = assert!(SHORTEST >= BLOCK + HALF - 1);

    let is_other = |&byte: &u8| !is_word_character(byte);
    let mut at = from;
    loop {
        let mut blocks = text.get(at..)?.chunks(BLOCK);
        let is_covered = |block: &[u8]| block.first_chunk::<HALF>().is_some_and(|it| is_word(it));
        let covered = at + blocks.position(is_covered)? * BLOCK;
        let (before, after) = text.split_at_checked(covered)?;
        let start = before.iter().rposition(is_other).map_or(from, |last| from.max(last + 1));
        let end = covered + after.iter().position(is_other).unwrap_or(after.len());
        if end - start >= SHORTEST {
            return Some(start..end);
        }
        at = end;
    }
}

/// The key whose prefix ends in the `_` at `underscore` and begins at `floor` or later.
///
/// The checksum is computed backwards, from the value that the key has: where the computation
/// arrives at the value that each begins with, there the prefix begins.
fn key_around(word: &[u8], floor: usize, underscore: usize) -> Option<Range<usize>> {
    let body = underscore + 1..underscore + 1 + BODY_LEN;
    let end = body.end + CHECKSUM_LEN;
    // 32 bytes leave two bits of the last character unused, and they are zero.
    if !b"AEIMQUYcgkosw048".contains(word.get(body.end - 1)?) {
        return None;
    }
    let mut checksum = [0; CHECKSUM_LEN];
    URL_SAFE_NO_PAD.decode_slice(word.get(body.end..end)?, &mut checksum).ok()?;
    let mut crc = Crc::ending_in(u32::from_be_bytes(*checksum.first_chunk()?));
    for &byte in word.get(underscore..body.end)?.iter().rev() {
        crc.undo(byte);
    }
    let first = floor.max(underscore.saturating_sub(MAX_PREFIX_LEN - 1));
    let mut next = b'_';
    for (at, &byte) in (first..underscore).zip(word.get(first..underscore)?).rev() {
        // Every segment has a character.
        if byte == b'_' && next == b'_' {
            return None;
        }
        next = byte;
        crc.undo(byte);
        if byte != b'_' && crc.is_beginning() {
            return Some(at..end);
        }
    }
    None
}

fn hash_of(key: &[u8], prefix_len: usize) -> Option<KeyHash> {
    let prefix = std::str::from_utf8(key.get(..prefix_len)?).ok()?;
    let format = KeyFormat::new(prefix).ok()?;
    format.parse(key).ok().map(|key| key.hash())
}

/// The register of a CRC-32 (ISO 3309), which takes bytes back.
struct Crc(u32);

impl Crc {
    const BEGINNING: u32 = !0;

    fn ending_in(checksum: u32) -> Self {
        Self(!checksum)
    }

    fn is_beginning(&self) -> bool {
        self.0 == Self::BEGINNING
    }

    /// Takes back `byte`, the last one.
    fn undo(&mut self, byte: u8) {
        let [high, ..] = self.0.to_be_bytes();
        let undo = UNDO.get(usize::from(high)).copied().unwrap_or_default();
        self.0 = (self.0 << 8) ^ undo ^ u32::from(byte);
    }
}

/// By the high byte of a register, what its last step did to the others.
///
/// A step takes the entry of a table at `index`, which is the low byte of the register and the new
/// byte. The high bytes of all entries differ, so the register's tells which one it was.
#[expect(clippy::indexing_slicing, reason = "the compiler evaluates it")]
const UNDO: [u32; 256] = {
    let mut undo = [0; 256];
    let mut index = 0_u32;
    while index < 256 {
        let mut entry = index;
        let mut bit = 0;
        while bit < 8 {
            entry = if entry & 1 == 1 { (entry >> 1) ^ 0xedb8_8320 } else { entry >> 1 };
            bit += 1;
        }
        undo[(entry >> 24) as usize] = (entry << 8) ^ index;
        index += 1;
    }
    undo
};
