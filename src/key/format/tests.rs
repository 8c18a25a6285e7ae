use std::sync::atomic::{AtomicU8, Ordering};

use proptest::prelude::*;

use super::*;

fn format() -> KeyFormat {
    KeyFormat::new("sk_live_").unwrap()
}

/// Fills with an incrementing byte, so that each draw differs.
struct Counting(AtomicU8);

impl EntropySource for Counting {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError> {
        buffer.fill(self.0.fetch_add(1, Ordering::Relaxed));
        Ok(())
    }
}

struct Constant(u8);

impl EntropySource for Constant {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError> {
        buffer.fill(self.0);
        Ok(())
    }
}

struct Failing;

impl EntropySource for Failing {
    fn fill(&self, _: &mut [u8]) -> Result<(), RngError> {
        Err(RngError::new("no entropy"))
    }
}

#[test]
fn a_key_is_prefix_body_and_the_checksum_of_both() {
    let key = format().generate_from(&Constant(1)).unwrap();
    let body = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";
    // zlib: crc32("sk_live_" + body) = 0x418a04aa
    assert_eq!(key.expose_secret(), format!("sk_live_{body}QYoEqg"));
}

#[test]
fn generated_keys_parse_match_the_regex_and_hold_no_hyphen() {
    let format = format();
    let regex = regex::Regex::new(&format.regex()).unwrap();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..2_000 {
        let key = format.generate().unwrap();
        let key = key.expose_secret();
        assert!(format.parse(key.as_bytes()).is_ok());
        assert!(!key.contains('-'));
        let found = format!("API_KEY=\"{key}\";");
        assert_eq!(regex.find(&found).map(|found| found.as_str()), Some(key));
        assert!(seen.insert(key.to_owned()), "a key came twice");
    }
}

#[test]
fn a_draw_with_a_hyphen_is_drawn_again() {
    let source = Counting(AtomicU8::new(0xf8));
    let key = format().generate_from(&source).unwrap();
    assert!(!key.expose_secret().contains('-'));
    assert!(source.0.load(Ordering::Relaxed) > 0xf9, "0xf8f8f8 encodes to a hyphen");
}

#[test]
fn a_generator_that_fails_or_is_stuck_makes_no_key() {
    assert!(format().generate_from(&Failing).is_err());
    assert!(format().generate_from(&Constant(0)).is_err());
    assert!(format().generate_from(&Constant(0xfb)).is_err(), "0xfbfbfb is all hyphens");
}

#[test]
fn every_mutation_of_one_character_is_refused() {
    let format = format();
    let key = format.generate().unwrap();
    let key = key.expose_secret().as_bytes();
    for at in 0..key.len() {
        for byte in 0..=u8::MAX {
            let mut mutated = key.to_vec();
            mutated[at] = byte;
            assert_eq!(format.parse(&mutated).is_ok(), byte == key[at], "{at}: {byte}");
        }
    }
}

#[test]
fn a_right_checksum_does_not_make_a_key_of_other_characters() {
    let format = format();
    for byte in 0..=u8::MAX {
        let mut key = b"sk_live_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE".to_vec();
        key[20] = byte;
        let checksum = URL_SAFE_NO_PAD.encode(crc32fast::hash(&key).to_be_bytes());
        // A checksum with a hyphen is refused, too: `generate` draws again instead.
        let expected = (byte.is_ascii_alphanumeric() || byte == b'_') && !checksum.contains('-');
        key.extend(checksum.as_bytes());
        assert_eq!(format.parse(&key).is_ok(), expected, "{byte}");
    }
}

#[test]
fn another_environments_key_is_refused() {
    let key = KeyFormat::new("sk_test_").unwrap().generate().unwrap();
    assert!(format().parse(key.expose_secret().as_bytes()).is_err());
    let swapped = key.expose_secret().replace("sk_test_", "sk_live_");
    assert!(format().parse(swapped.as_bytes()).is_err(), "the checksum covers the prefix");
}

#[test]
fn prefixes_are_segments_of_letters_and_digits() {
    for prefix in ["sk_", "sk_live_", "acme_sk_test_", "A1_b2_"] {
        assert_eq!(KeyFormat::new(prefix).unwrap().prefix(), prefix);
    }
    for prefix in
        ["", "_", "sk", "sk__", "_sk_", "sk__live_", "sk-live_", "sk live_", "schlüssel_", "sk_\n_"]
    {
        assert_eq!(KeyFormat::new(prefix), Err(InvalidFormat::Prefix), "{prefix}");
    }
    assert_eq!(KeyFormat::new(&format!("{}_", "a".repeat(64))), Err(InvalidFormat::TooLong));
}

proptest! {
    #[test]
    fn junk_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(format().parse(&bytes).is_err());
    }

    #[test]
    fn junk_of_the_right_shape_is_refused(body in "[A-Za-z0-9_]{49}") {
        // One in four billion has a valid checksum by chance.
        let junk = format!("sk_live_{body}");
        prop_assert!(format().parse(junk.as_bytes()).is_err());
    }
}
