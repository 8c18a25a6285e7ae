use std::io::{self, Write};

use super::*;
use crate::key::{Alphabet, ApiKey};

fn live() -> KeyFormat {
    KeyFormat::new("sk_live_").unwrap()
}

fn key() -> ApiKey {
    live().generate().unwrap()
}

fn last4(key: &str) -> &str {
    &key[key.len() - 4..]
}

fn imported(prefix: &str, alphabet: Alphabet, len: usize) -> AcceptedFormat {
    ImportedFormat::new(prefix, alphabet, len).unwrap().into()
}

/// What arrives of `parts`, each of which is one write. An empty one is a flush.
fn written(mask: &KeyMask, parts: &[&str]) -> String {
    let mut written = Vec::new();
    let mut writer = MaskingWriter::new(&mut written, mask.clone());
    for part in parts {
        match part.len() {
            0 => writer.flush().unwrap(),
            _ => writer.write_all(part.as_bytes()).unwrap(),
        }
    }
    drop(writer);
    String::from_utf8(written).unwrap()
}

#[test]
fn a_key_is_masked_wherever_it_stands_and_nothing_else_is() {
    let (key, other) = (key(), key());
    let (key, other) = (key.expose_secret(), other.expose_secret());
    let masked = format!("sk_live_…{}", last4(key));
    for (before, after) in
        [("", ""), ("x", "y"), ("{\"key\":\"", "\"}"), ("sk_live_", "_"), ("é", "é"), ("sk_", "=")]
    {
        let text = format!("{before}{key}{after}");
        assert_eq!(live().mask(&text), format!("{before}{masked}{after}"));
    }
    let both = format!("{key}{other}, {key}");
    let expected = format!("{masked}sk_live_…{}, {masked}", last4(other));
    assert_eq!(live().mask(&both), expected);

    let typo = key.replace(&key[20..21], if &key[20..21] == "A" { "B" } else { "A" });
    for text in ["", "sk_live_", "é sk_live_…", &key[1..], &key[..56], &typo] {
        assert!(matches!(live().mask(text), Cow::Borrowed(same) if same == text), "{text}");
    }
}

#[test]
fn of_an_imported_key_no_character_is_shown() {
    let hex = "0123456789abcdef".repeat(2);
    let mask = KeyMask::new([imported("old-", Alphabet::Hex, 32)]);
    assert_eq!(mask.mask(&format!("xold-{hex}z")), "xold-…z");
    assert_eq!(mask.mask(&format!("old-old-{hex}{hex}, old-{hex}")), "old-old-…, old-…");
    assert_eq!(mask.mask(&hex), hex);
    let mask = KeyMask::new([imported("", Alphabet::Hex, 32)]);
    assert_eq!(
        mask.mask(&format!("z{hex}{hex}7 {} {hex}", &hex[1..])),
        format!("z… {} …", &hex[1..])
    );
}

#[test]
fn overlapping_keys_of_several_formats_are_masked_together() {
    let key = key();
    let key = key.expose_secret();
    let hex = "0123456789abcdef".repeat(2);
    let mask = KeyMask::new([
        live().into(),
        imported("", Alphabet::Base64Url, 22),
        imported("old-", Alphabet::Hex, 32),
    ]);
    assert_eq!(mask.mask(&format!("{hex}{key}{hex} old-{hex}{key}.")), "… ….");
    let mask = KeyMask::new([live().into(), imported("old-", Alphabet::Hex, 32)]);
    let text = format!("old-{hex}{key}");
    assert_eq!(mask.mask(&text), format!("old-…sk_live_…{}", last4(key)));
}

#[test]
fn a_key_in_two_writes_or_many_is_masked() {
    let key = key();
    let key = key.expose_secret();
    let mask = KeyMask::from(live());
    let text = format!("a {key} b");
    let expected = format!("a sk_live_…{} b", last4(key));
    for at in 1..text.len() {
        assert_eq!(written(&mask, &[&text[..at], &text[at..]]), expected);
    }
    let bytes: Vec<_> = (0..text.len()).map(|at| &text[at..=at]).collect();
    assert_eq!(written(&mask, &bytes), expected);
}

#[test]
fn half_a_key_is_held_back_until_a_flush_and_then_no_more_than_16_characters_are_shown() {
    let key = key();
    let key = key.expose_secret();
    let mask = KeyMask::from(live());
    for at in 1..key.len() {
        let mut seen = Vec::new();
        let mut writer = MaskingWriter::new(&mut seen, mask.clone());
        writer.write_all(&key.as_bytes()[..at]).unwrap();
        assert!(writer.get_ref().is_empty(), "{at}");
        writer.flush().unwrap();
        let shown = if at <= 24 { key[..at].to_owned() } else { "sk_live_…".to_owned() };
        assert_eq!(*writer.get_ref(), shown.as_bytes());
        writer.write_all(&key.as_bytes()[at..]).unwrap();
        writer.write_all(b"!").unwrap();
        drop(writer);
        let rest = if at <= 24 { format!("…{}!", last4(key)) } else { "!".to_owned() };
        assert_eq!(String::from_utf8(seen).unwrap(), shown + &rest, "{at}");
    }
    assert_eq!(written(&mask, &["sk_live_", "", "is a prefix"]), "sk_live_is a prefix");
    assert_eq!(written(&mask, &[&key[..40]]), "sk_live_…");
    assert_eq!(
        written(&mask, &[&key[..20], "", &key[20..40], "", &key[40..], "."]).len(),
        20 + 3 + 1
    );
}

#[test]
fn an_imported_key_goes_on_in_the_next_write() {
    let hex = "0123456789abcdef".repeat(2);
    let mask = KeyMask::new([imported("old-", Alphabet::Hex, 32)]);
    assert_eq!(written(&mask, &["old-", &hex, &hex, "", "ab z"]), "old-… z");
    assert_eq!(written(&mask, &["old-", &hex, " ab"]), "old-… ab");
    for (at, shown) in [(4, "0123"), (5, ""), (31, "")] {
        let parts = ["old-", &hex[..at], "", &hex[at..], "."];
        assert_eq!(written(&mask, &parts), format!("old-{shown}…."));
    }
    let mask = KeyMask::new([imported("", Alphabet::Hex, 32)]);
    for (at, shown) in [(16, "0123456789abcdef"), (17, ""), (31, "")] {
        let parts = [&hex[..at], "", &hex[at..], "."];
        assert_eq!(written(&mask, &parts), format!("{shown}…."));
    }
}

/// Takes at most `most` bytes at once, and fails every other time.
struct Reluctant {
    most: usize,
    taken: Vec<u8>,
    fails: bool,
}

impl Write for Reluctant {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.fails = !self.fails;
        if self.fails {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.most.min(text.len());
        self.taken.extend_from_slice(&text[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn nothing_is_lost_or_doubled_if_the_inner_writer_fails_or_takes_little() {
    let key = key();
    let text = format!("one two {} three four", key.expose_secret());
    let inner = Reluctant { most: 3, taken: Vec::new(), fails: false };
    let mut writer = MaskingWriter::new(inner, live());
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let next = rest.len().min(9);
        if let Ok(count) = writer.write(&rest[..next]) {
            rest = &rest[count..];
        }
    }
    while writer.flush().is_err() {}
    assert_eq!(writer.get_ref().taken, live().mask(&text).as_bytes());
}

/// Formats with an id, a checksum, padding or a fixed shape; a key of each, and what it becomes.
fn structured() -> [(AcceptedFormat, String, String); 6] {
    let format = |text: &str| text.parse::<AcceptedFormat>().unwrap();
    let (alnum, hex) = ("Ab3dEf9hZ0".repeat(4), "0123456789abcdef".repeat(2));
    let sum = format!("{:08x}", crc32fast::hash(alnum.as_bytes()));
    let last4 = &sum[4..];
    [
        (format("sanctum"), format!("17|{alnum}{sum}"), format!("17|…{last4}")),
        (format("sanctum:acme_"), format!("17|acme_{alnum}{sum}"), format!("17|acme_…{last4}")),
        (format("alnum:40,id=digits:|:acme_"), format!("acme_9|{alnum}"), "acme_9|…".to_owned()),
        (format("alnum:40,id=alnum:8:."), format!("Ab3dEf9h.{alnum}"), "Ab3dEf9h.…".to_owned()),
        (format("base64url:43=:old_"), format!("old_{alnum}-_a="), "old_…".to_owned()),
        (format("hex:32,id=hex:4:_:x_"), format!("x_0af9_{hex}"), "x_0af9_…".to_owned()),
    ]
}

#[test]
fn of_a_key_with_an_id_the_id_is_shown() {
    for (format, key, masked) in structured() {
        let mask = KeyMask::from(format);
        for (before, after) in [("", ""), (" ", " "), ("?key=", "&b"), ("\"", "\""), ("é", "é")] {
            let text = format!("{before}{key}{after}");
            assert_eq!(mask.mask(&text), format!("{before}{masked}{after}"));
        }
        let (first, second) = (&key[..key.len() / 2], &key[key.len() / 2..]);
        for text in [first, second, &key.replace(['|', '.'], "_").replace("old_", "older")] {
            let is_same = text == key || mask.mask(text) == text;
            assert!(is_same, "{text}");
        }
        for at in 1..key.len() {
            assert_eq!(
                written(&mask, &[&key[..at], &key[at..], "!"]),
                format!("{masked}!"),
                "{at}"
            );
        }
        let bytes: Vec<_> = (0..key.len()).map(|at| &key[at..=at]).collect();
        assert_eq!(written(&mask, &bytes), masked);
        // Two keys without a character between them.
        let twice = mask.mask(&key.repeat(2)).into_owned();
        assert!(!twice.contains(&key[key.len() - 20..key.len() - 4]), "{twice}");
    }
}

#[test]
fn a_uuid_and_padded_base64_are_masked_without_a_prefix() {
    let uuid = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
    let mask = KeyMask::from("uuid".parse::<AcceptedFormat>().unwrap());
    // The digits before it may belong to a key that begins earlier; those after it are masked.
    assert_eq!(mask.mask(&format!("id {uuid}, ab-{uuid}-cd.")), "id …, ab-….");
    for same in [&uuid[1..], &uuid.replace("-4", "-7")] {
        assert_eq!(mask.mask(same), same);
    }
    assert_eq!(written(&mask, &[&uuid[..10], &uuid[10..], " "]), "… ");

    let key = format!("{}-_a=", "Ab3dEf9hZ0".repeat(4));
    let mask = KeyMask::from("base64url:43=".parse::<AcceptedFormat>().unwrap());
    assert_eq!(mask.mask(&format!("?key={key}&b=c")), "?key=…&b=c");
    assert_eq!(mask.mask(&key[1..]), key[1..]);
}

#[test]
fn the_separator_of_an_id_may_be_percent_encoded() {
    let [(format, key, _), ..] = structured();
    let mask = KeyMask::from(format);
    let last4 = &key[key.len() - 4..];
    for separator in ["%7C", "%7c"] {
        let text = format!("/?key={}&page=2", key.replace('|', separator));
        assert_eq!(mask.mask(&text), format!("/?key=17{separator}…{last4}&page=2"));
    }
}

#[test]
fn an_id_has_at_most_20_digits() {
    let [(format, key, masked), ..] = structured();
    let mask = KeyMask::from(format);
    let digits = "0123456789".repeat(3);
    let long = key.replace("17|", &format!("{digits}|"));
    let shown = masked.replace("17|", &format!("{digits}|"));
    assert_eq!(mask.mask(&long), shown);
    assert_eq!(mask.mask(key.strip_prefix("17").unwrap()), key.strip_prefix("17").unwrap());
}

#[test]
fn an_id_that_a_key_before_it_swallowed_is_still_one() {
    let mask = KeyMask::from("alnum:40,id=digits:|".parse::<AcceptedFormat>().unwrap());
    let (first, second) = ("A".repeat(40), "B".repeat(40));
    let text = format!("1|{first}2|{second}.");
    assert_eq!(mask.mask(&text), "1|….");
    for at in 1..text.len() {
        assert_eq!(written(&mask, &[&text[..at], &text[at..]]), "1|….", "{at}");
    }
}
