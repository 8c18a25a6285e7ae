//! Formats of keys, as the tests know them, and random keys.

use std::sync::Mutex;

use tower_api_key::key::{
    AcceptedFormat, Alphabet, EntropySource, ImportedFormat, KeyFormat, RngError,
};

/// SplitMix64, so that a failed case can be repeated.
pub(crate) struct Random(pub(crate) Mutex<u64>);

impl Random {
    fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    pub(crate) fn of<'a>(&self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    pub(crate) fn text(&self, alphabet: &[u8], len: usize) -> String {
        (0..len).map(|_| char::from(alphabet[self.below(alphabet.len())])).collect()
    }
}

impl EntropySource for Random {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError> {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// A format, as the test knows it.
pub(crate) struct Form {
    pub(crate) accepted: AcceptedFormat,
    pub(crate) prefix: &'static str,
    /// The length of a key, with its prefix.
    pub(crate) len: usize,
    pub(crate) is_symbol: fn(&u8) -> bool,
    /// `None` without a checksum: what of its characters follows a key then belongs to it.
    pub(crate) checked: Option<KeyFormat>,
}

impl Form {
    pub(crate) fn of(prefix: &'static str) -> Self {
        let format = KeyFormat::new(prefix).unwrap();
        let is_symbol = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let (accepted, len) = (format.clone().into(), prefix.len() + 49);
        Self { accepted, prefix, len, is_symbol, checked: Some(format) }
    }

    pub(crate) fn imported(prefix: &'static str, alphabet: Alphabet, body: usize) -> Self {
        let accepted = ImportedFormat::new(prefix, alphabet, body).unwrap().into();
        let is_symbol: fn(&u8) -> bool = match alphabet {
            Alphabet::Hex => |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            _ => u8::is_ascii_alphanumeric,
        };
        Self { accepted, prefix, len: prefix.len() + body, is_symbol, checked: None }
    }

    pub(crate) fn generate(&self, random: &Random) -> String {
        if let Some(format) = &self.checked {
            return format.generate_from(random).unwrap().expose_secret().to_owned();
        }
        let symbols: Vec<_> = (0..=u8::MAX).filter(self.is_symbol).collect();
        format!("{}{}", self.prefix, random.text(&symbols, self.len - self.prefix.len()))
    }

    pub(crate) fn is_key(&self, text: &[u8]) -> bool {
        let Some(body) = text.strip_prefix(self.prefix.as_bytes()) else { return false };
        text.len() == self.len
            && self.checked.as_ref().map_or_else(
                || body.iter().all(self.is_symbol),
                |format| format.parse(text).is_ok(),
            )
    }

    /// Whether `end`, with which a text ends, may be the beginning of a key.
    pub(crate) fn may_begin(&self, end: &[u8]) -> bool {
        let prefix = self.prefix.as_bytes();
        match end.strip_prefix(prefix) {
            Some(body) => end.len() < self.len && body.iter().all(self.is_symbol),
            None => prefix.starts_with(end),
        }
    }
}

pub(crate) fn forms() -> [Form; 4] {
    [
        Form::of("sk_live_"),
        Form::of("sk_"),
        Form::imported("old-", Alphabet::Hex, 32),
        Form::imported("", Alphabet::Base62, 40),
    ]
}
