//! No key passes a `MaskingWriter`, whatever text it is in and however that is written.
//!
//! The test makes 20,000 random cases. `MASKING_CASES=1000000 cargo test --all-features --test
//! masking` makes a million.

use std::{
    env,
    io::{self, ErrorKind, Write},
    sync::Mutex,
};

use tower_api_key::key::{KeyFormat, KeyMask, MaskingWriter};

use crate::{
    forms::{Form, Random, forms},
    naive,
};

/// How many characters of a body may be shown, if a flush comes in the middle of it.
pub(crate) const MOST_SHOWN: usize = 16;

fn live() -> KeyFormat {
    KeyFormat::new("sk_live_").unwrap()
}

/// A text with `keys` in it.
pub(crate) fn text(random: &Random, keys: &str) -> String {
    let word = |most| random.text(b"abcdefXYZ019_-sklive./ ", random.below(most));
    let before =
        random.of(&["", " ", "=", "/", "x", "sk_live_", "sk_", "sk_li", "old-", "é", "…", "\n"]);
    let after = random.of(&["", " ", "&", "/", "x", "_", "0", "sk_live_", "é", "\n", "\u{1b}[0m"]);
    let (left, right) = (word(60), word(60));
    let near = format!("{before}{keys}{after}");
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

/// Takes a few bytes at once, and is interrupted in between.
struct Reluctant<'a> {
    random: &'a Random,
    taken: &'a mut Vec<u8>,
}

impl Write for Reluctant<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.random.below(4) == 0 {
            return Err(ErrorKind::Interrupted.into());
        }
        let count = text.len().min(1 + self.random.below(40));
        self.taken.extend(&text[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What passes of `text`, in several writes, some with a flush after them; and whether there was one.
/// Until then, what has passed of the beginning of `text` is what `passed` says.
pub(crate) fn written(
    random: &Random,
    mask: &KeyMask,
    text: &str,
    passed: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> (String, bool) {
    let mut seen = Vec::new();
    let mut writer = MaskingWriter::new(Reluctant { random, taken: &mut seen }, mask.clone());
    let mut end = 0;
    let mut is_flushed = false;
    let most = [2, 20, text.len(), text.len() + 1][random.below(4)];
    let flushes = random.below(3) == 0;
    while end < text.len() {
        let begin = end;
        end = text.len().min(begin + 1 + random.below(most));
        writer.write_all(&text.as_bytes()[begin..end]).unwrap();
        if flushes && random.below(4) == 0 {
            writer.flush().unwrap();
            is_flushed = true;
        }
        // Not after each write, as the naive masker is slow.
        if !is_flushed && random.below(8) == 0 {
            let (so_far, seen) = (&text.as_bytes()[..end], &*writer.get_ref().taken);
            assert!(
                passed(so_far).is_none_or(|passed| passed == *seen),
                "of {:?}: {:?}",
                String::from_utf8_lossy(so_far),
                String::from_utf8_lossy(seen)
            );
        }
    }
    drop(writer);
    (String::from_utf8(seen).unwrap(), is_flushed)
}

#[test]
fn no_key_passes_in_whatever_text_and_writes() {
    let cases = env::var("MASKING_CASES").map_or(20_000, |cases| cases.parse().unwrap());
    let seed = env::var("MASKING_SEED").map_or(1, |seed| seed.parse().unwrap());
    let random = Random(Mutex::new(seed));
    let forms = forms();
    let masks = [1, 2, 3, 4].map(|n| KeyMask::new(forms[..n].iter().map(|it| it.accepted.clone())));
    for case in 0..cases {
        let accepted = random.below(masks.len());
        let (mask, forms) = (&masks[accepted], &forms[..=accepted]);
        let keys: Vec<_> = (0..1 + random.below(2))
            .map(|_| {
                let form = &forms[random.below(forms.len())];
                (form, form.generate(&random))
            })
            .collect();
        let joined: Vec<_> = keys.iter().map(|(_, key)| &**key).collect();
        let text = text(&random, &joined.join(random.of(&["", "", ", ", "_", "é"])));
        let place = || format!("case {case} of seed {seed}: {text:?}");
        assert_eq!(
            mask.mask(&text).as_bytes(),
            naive::masked(forms, text.as_bytes()),
            "{}",
            place()
        );

        // Where keys overlap, as with a format without a prefix, what is shown of the checksum depends
        // on whether the second one has come already.
        let is_definite = !naive::overlap(forms, text.as_bytes());
        let passed = |text: &[u8]| is_definite.then(|| naive::passed(forms, text));
        let (seen, is_flushed) = written(&random, mask, &text, passed);
        let place = || format!("{} became {seen:?}", place());
        for (Form { prefix, .. }, key) in &keys {
            assert!(!seen.contains(key), "{}", place());
            let body = &key[prefix.len()..];
            let shown = (0..=body.len() - MOST_SHOWN - 1)
                .find(|at| seen.contains(&body[*at..=at + MOST_SHOWN]));
            // A prefix tells that a key is cut off; without one, the end of a run does.
            assert!(shown.is_none() || prefix.is_empty() && is_flushed, "{}", place());
        }
        // What looks like half a key at the end is masked.
        if !is_flushed && is_definite && text.ends_with('\n') {
            assert_eq!(seen, mask.mask(&text), "{}", place());
        }
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

    use tower_api_key::{
        Authenticator,
        key::{Alphabet, ImportedFormat},
        store::MemoryKeyStore,
    };

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
        let imported = ImportedFormat::new("old-", Alphabet::Hex, 32).unwrap();
        let (auth, worker) =
            Authenticator::builder(MemoryKeyStore::new(), live()).accept(imported).build();
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
