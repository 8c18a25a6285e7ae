//! No key passes a `MaskingWriter`, whatever text it is in and however that is written.
//!
//! The test makes 20,000 random cases. `MASKING_CASES=1000000 cargo test --all-features --test
//! masking` makes a million.

#![cfg(test)]

use std::{env, io::Write, sync::Mutex};

use tower_api_key::key::{
    AcceptedFormat, Alphabet, EntropySource, ImportedFormat, KeyFormat, KeyMask, MaskingWriter,
    RngError,
};

/// How many characters of a body may be shown, if a flush comes in the middle of it.
const MOST_SHOWN: usize = 16;

/// SplitMix64, so that a failed case can be repeated.
struct Random(Mutex<u64>);

impl Random {
    fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn of<'a>(&self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    fn text(&self, alphabet: &[u8], len: usize) -> String {
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

fn live() -> KeyFormat {
    KeyFormat::new("sk_live_").unwrap()
}

fn old() -> ImportedFormat {
    ImportedFormat::new("old-", Alphabet::Hex, 32).unwrap()
}

/// A format, and what a key of it is made of.
fn formats() -> [(AcceptedFormat, &'static str); 6] {
    [
        (live().into(), "sk_live_"),
        (KeyFormat::new("sk_").unwrap().into(), "sk_"),
        (old().into(), "old-"),
        ("sanctum".parse().unwrap(), "17|"),
        ("alnum:40,id=alnum:8:.".parse().unwrap(), "Ab3dEf9h."),
        (ImportedFormat::new("", Alphabet::Base62, 40).unwrap().into(), ""),
    ]
}

fn key(random: &Random, prefix: &str) -> String {
    match prefix {
        "old-" => format!("old-{}", random.text(b"0123456789abcdef", 32)),
        "17|" => {
            let secret = random.text(b"ABCXYZabcxyz012789", 40);
            format!("17|{secret}{:08x}", crc32fast::hash(secret.as_bytes()))
        }
        "Ab3dEf9h." => format!("Ab3dEf9h.{}", random.text(b"ABCXYZabcxyz012789", 40)),
        "" => random.text(b"ABCXYZabcxyz012789", 40),
        prefix => {
            let format = KeyFormat::new(prefix).unwrap();
            format.generate_from(random).unwrap().expose_secret().to_owned()
        }
    }
}

/// A text with `key` in it.
fn text(random: &Random, key: &str) -> String {
    let word = |most| random.text(b"abcdefXYZ019_-sklive./ ", random.below(most));
    let before = random.of(&[
        "", " ", "=", "/", "x", "sk_live_", "sk_", "sk_li", "old-", "1", "|", "é", "…", "\n",
    ]);
    let after = random.of(&["", " ", "&", "/", "x", "_", "0", "sk_live_", "é", "\n", "\u{1b}[0m"]);
    let (left, right) = (word(60), word(60));
    let near = format!("{before}{key}{after}");
    match random.below(6) {
        0 => format!("GET /{left}?key={near}&page={right} HTTP/1.1\n"),
        1 => format!(
            "{{\"host\": \"{left}\", \"authorization\": \"Bearer {near}\", \"x\": {right:?}}}\n"
        ),
        2 => format!("{{\"{left}\":\"{near}\",\"b\":[{right:?}]}}"),
        3 => format!("thread 'main' panicked at src/{left}.rs:7:9:\nno {near:?} in {right:?}\n"),
        4 => format!(
            "2026-01-01T00:00:00Z DEBUG hyper::proto: parsed header {left}: {near} {right}\n"
        ),
        _ => format!("{left}{near}{right}"),
    }
}

/// What passes of `text`, in several writes, some with a flush after them; and whether there was one.
fn written(random: &Random, mask: &KeyMask, text: &str) -> (String, bool) {
    let mut seen = Vec::new();
    let mut writer = MaskingWriter::new(&mut seen, mask.clone());
    let mut rest = text.as_bytes();
    let mut is_flushed = false;
    let most = [2, 20, text.len(), text.len() + 1][random.below(4)];
    let flushes = random.below(3) == 0;
    while !rest.is_empty() {
        let (now, later) = rest.split_at((1 + random.below(most)).min(rest.len()));
        writer.write_all(now).unwrap();
        if flushes && random.below(4) == 0 {
            writer.flush().unwrap();
            is_flushed = true;
        }
        rest = later;
    }
    drop(writer);
    (String::from_utf8(seen).unwrap(), is_flushed)
}

#[test]
fn no_key_passes_in_whatever_text_and_writes() {
    let cases = env::var("MASKING_CASES").map_or(20_000, |cases| cases.parse().unwrap());
    let seed = env::var("MASKING_SEED").map_or(1, |seed| seed.parse().unwrap());
    let random = Random(Mutex::new(seed));
    let formats = formats();
    let masks =
        [1, 2, 3, 4, 5, 6].map(|n| KeyMask::new(formats[..n].iter().map(|(it, _)| it.clone())));
    for case in 0..cases {
        let accepted = random.below(masks.len());
        let (mask, prefix) = (&masks[accepted], formats[random.below(accepted + 1)].1);
        let key = key(&random, prefix);
        let text = text(&random, &key);
        let (seen, is_flushed) = written(&random, mask, &text);
        let place = || format!("case {case} of seed {seed}: {text:?} became {seen:?}");
        assert!(!seen.contains(&key), "{}", place());
        let body = &key[prefix.len()..];
        let shown = (0..=body.len() - MOST_SHOWN - 1)
            .find(|at| seen.contains(&body[*at..=at + MOST_SHOWN]));
        // A prefix tells that a key is cut off; without one, the end of a run does.
        assert!(shown.is_none() || prefix.is_empty() && is_flushed, "{}", place());
        // Where keys overlap, as with a format without a prefix, what is shown of the checksum depends
        // on whether the second one has come already. What looks like half a key at the end is masked.
        if !is_flushed && accepted < 5 && text.ends_with('\n') {
            assert_eq!(seen, mask.mask(&text), "{}", place());
        }
    }
}

#[test]
fn the_separator_of_an_id_may_be_written_as_in_a_url() {
    let random = Random(Mutex::new(1));
    let sanctum: AcceptedFormat = "sanctum".parse().unwrap();
    let mask = KeyMask::from(sanctum);
    let key = key(&random, "17|");
    let (id, secret) = key.split_once('|').unwrap();
    let last4 = &secret[secret.len() - 4..];
    for separator in ["|", "%7C", "%7c"] {
        let line = format!("GET /?key={id}{separator}{secret}&page=2");
        assert_eq!(mask.mask(&line), format!("GET /?key=17{separator}…{last4}&page=2"));
    }
}

#[test]
fn what_has_no_prefix_passes_byte_for_byte() {
    let mask = KeyMask::from(live());
    let mut seen = Vec::new();
    let mut writer = MaskingWriter::new(&mut seen, mask);
    let bytes: Vec<_> = (0..=u8::MAX).cycle().take(10_000).collect();
    for chunk in bytes.chunks(7) {
        writer.write_all(chunk).unwrap();
    }
    drop(writer);
    assert_eq!(seen, bytes);
}

/// In a subscriber, as a service has it.
#[cfg(feature = "tracing")]
mod subscriber {
    use std::{io, panic, sync::Arc};

    use tower_api_key::{Authenticator, store::MemoryKeyStore};

    use super::*;

    /// Lines that can be read while they are written.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Lines {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_subscriber_masks_what_other_crates_log_and_what_panics_say() {
        let (auth, worker) =
            Authenticator::builder(MemoryKeyStore::new(), live()).accept(old()).build();
        drop(worker);
        let (lines, mask) = (Lines::default(), auth.key_mask());
        let writer = {
            let lines = lines.clone();
            move || MaskingWriter::new(lines.clone(), mask.clone())
        };
        let key = live().generate().unwrap();
        let key = key.expose_secret();
        let old = format!("old-{}", "0f".repeat(16));
        let subscriber = tracing_subscriber::fmt().with_writer(writer).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "hyper::proto", header = ?format!("x-api-key: {key}"), "parsed {old}");
            let hook = panic::take_hook();
            panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
            let panicked = panic::catch_unwind(|| panic!("no such key: {key}"));
            panic::set_hook(hook);
            assert!(panicked.is_err());
        });
        let text = lines.text();
        assert!(!text.contains(key) && !text.contains(&old), "{text}");
        let masked = format!("sk_live_…{}", &key[key.len() - 4..]);
        assert!(
            text.contains(&format!("x-api-key: {masked}")) && text.contains("parsed old-…"),
            "{text}"
        );
        assert!(text.contains(&format!("no such key: {masked}")), "{text}");
        assert_eq!(text.lines().count(), 2 + text.matches("panicked at").count(), "{text}");
    }
}
