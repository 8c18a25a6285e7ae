use std::io::{Cursor, Error};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::key::{Alphabet, ApiKey, ImportedFormat, KeyFormat};

fn key(prefix: &str) -> ApiKey {
    KeyFormat::new(prefix).unwrap().generate().unwrap()
}

fn any_prefix() -> KeyFinder {
    KeyFinder::new([]).unwrap().or_any_prefix()
}

fn of(formats: &[&str]) -> KeyFinder {
    KeyFinder::new(formats.iter().map(|format| format.parse().unwrap())).unwrap()
}

fn masked(finder: &KeyFinder, text: &str) -> Vec<String> {
    finder.find(text.as_bytes()).iter().map(|found| found.masked().to_owned()).collect()
}

fn shown(key: &ApiKey, prefix: &str) -> String {
    let key = key.expose_secret();
    format!("{prefix}…{}", &key[key.len() - 4..])
}

/// The keys in `text`, which arrives in reads of at most `most` bytes.
fn scanned(finder: &KeyFinder, text: &[u8], most: usize) -> Vec<FoundKey> {
    struct Reads<'t>(Cursor<&'t [u8]>, usize);
    impl Read for Reads<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let most = self.1.min(buffer.len());
            self.0.read(&mut buffer[..most])
        }
    }
    let mut all = Vec::new();
    finder
        .clone()
        .scan(Reads(Cursor::new(text), most), |found| {
            all.push(found);
            ControlFlow::Continue(())
        })
        .unwrap();
    all
}

#[test]
fn a_key_of_any_prefix_is_found_wherever_it_stands() {
    let longest = "a1_".repeat(21);
    for prefix in ["sk_live_", "a_", "acme_internal_test_", "7_", &longest] {
        let key = key(prefix);
        let expected = [shown(&key, prefix)];
        let key = key.expose_secret();
        for text in [
            key.to_owned(),
            format!("{{\"key\":\"{key}\"}}"),
            format!(r#""line\n{key}\nline""#),
            format!("https://api.example/?key%3D{key}&page=2"),
            format!("MY_{key}"),
            format!("__{key}__"),
            format!("{}{key}{}", "A".repeat(70), "B".repeat(70)),
            format!("{}{key}{}", "A_".repeat(70), "_B".repeat(70)),
            format!("é{key}é"),
        ] {
            assert_eq!(masked(&any_prefix(), &text), expected, "{text}");
            assert_eq!(masked(&of(&[prefix]), &text), expected, "{text}");
        }
    }
}

#[test]
fn a_text_that_differs_from_a_key_in_one_character_is_none() {
    let key = key("sk_live_");
    let key = key.expose_secret();
    let finders = [any_prefix(), of(&["sk_live_"])];
    for at in 0..key.len() {
        for other in ["A", "7", "_", "-", " "] {
            let mut text = key.to_owned();
            text.replace_range(at..=at, other);
            if text != key {
                assert!(finders.iter().all(|it| it.find(text.as_bytes()).is_empty()), "{text}");
            }
        }
    }
    for text in ["", "sk_live_", &key[1..], &key[..key.len() - 1], &key.replace("sk_", "sk__")] {
        assert!(finders.iter().all(|it| it.find(text.as_bytes()).is_empty()), "{text}");
    }
}

#[test]
fn keys_without_a_character_between_them_are_all_found() {
    let (first, second) = (key("sk_live_"), key("acme_"));
    let text = format!("{0}{1}{1}{0}", first.expose_secret(), second.expose_secret());
    let (first, second) = (shown(&first, "sk_live_"), shown(&second, "acme_"));
    assert_eq!(
        masked(&any_prefix(), &text),
        [&first, &second, &second, &first].map(String::as_str)
    );
    assert_eq!(masked(&of(&["acme_"]), &text), [&second, &second].map(String::as_str));
    let both = of(&["acme_", "sk_live_"]).or_any_prefix();
    assert_eq!(masked(&both, &text).len(), 4, "each is found once");
}

#[test]
fn a_key_has_the_hash_that_a_store_knows_it_by() {
    let key = key("sk_live_");
    let found = any_prefix().find(key.expose_secret().as_bytes());
    assert_eq!(found[0].hash(), key.hash());

    let alnum = "Ab3dEf9hZ0".repeat(4);
    let sum = format!("{:08x}", crc32fast::hash(alnum.as_bytes()));
    let format = ImportedFormat::sanctum("").unwrap();
    let token = format!("17|{alnum}{sum}");
    let expected = format.parse(token.as_bytes()).unwrap().hash();
    for text in [&token, &token.replace('|', "%7C"), &token.replace('|', "%7c")] {
        let found = of(&["sanctum"]).find(format!("?key={text}&page=2").as_bytes());
        assert_eq!(found.len(), 1, "{text}");
        assert_eq!((found[0].hash(), found[0].offset()), (expected, 5), "{text}");
    }
    let found =
        of(&["hex:32:old-,digest=sha512"]).find(format!("old-{}", "0f".repeat(16)).as_bytes());
    let format: ImportedFormat = "hex:32:old-,digest=sha512".parse().unwrap();
    let expected = format.parse(format!("old-{}", "0f".repeat(16)).as_bytes()).unwrap().hash();
    assert_eq!(found[0].hash(), expected);
}

#[test]
fn an_imported_key_without_a_checksum_ends_where_its_characters_end() {
    let hex = "0f".repeat(16);
    let finder = of(&["hex:32:old-"]);
    for text in [format!("old-{hex}"), format!("bold-{hex}z"), format!("old-{hex}, x")] {
        assert_eq!(masked(&finder, &text), ["old-…"], "{text}");
    }
    for text in [format!("old-{hex}0"), format!("old-{}", &hex[1..]), format!("new-{hex}")] {
        assert!(masked(&finder, &text).is_empty(), "{text}");
    }
    // Also if the next character comes with the next chunk.
    for before in CHUNK - 700..CHUNK - 2 {
        let text = format!("{}old-{hex}0", ".".repeat(before));
        assert!(scanned(&finder, text.as_bytes(), usize::MAX).is_empty(), "{before}");
    }
}

#[test]
fn a_format_that_looks_like_other_text_is_refused() {
    for format in ["hex:64", "uuid", "base64url:43", "alnum:32,id=alnum:8:."] {
        let refused = KeyFinder::new([format.parse().unwrap()]).unwrap_err();
        assert_eq!(refused, InvalidFormat::Indistinct, "{format}");
    }
    for format in ["hex:64:old-", "sanctum", "alnum:40,check=crc32b", "uuid:u-"] {
        assert!(KeyFinder::new([format.parse().unwrap()]).is_ok(), "{format}");
    }
    assert!(ImportedFormat::new("", Alphabet::Hex, 64).is_ok(), "it is accepted elsewhere");
}

#[test]
fn a_key_over_the_border_of_two_chunks_is_found_once() {
    let key = key("sk_live_");
    for before in (CHUNK - OVERLAP - 60..CHUNK - OVERLAP + 3).chain(CHUNK - 60..CHUNK + 3) {
        let mut text = vec![b'\n'; before];
        text.extend(key.expose_secret().as_bytes());
        text.extend(vec![b'.'; CHUNK]);
        for finder in [any_prefix(), of(&["sk_live_"])] {
            let found = scanned(&finder, &text, usize::MAX);
            let places: Vec<_> = found.iter().map(|it| (it.offset(), it.line())).collect();
            assert_eq!(places, [(before as u64, before as u64 + 1)]);
        }
    }
}

#[test]
fn a_long_line_has_columns() {
    let key = key("sk_live_");
    let text = format!("one\r\n{}{}", "x".repeat(3 * CHUNK), key.expose_secret());
    let found = scanned(&any_prefix(), text.as_bytes(), 1000);
    let place = (found[0].line(), found[0].column(), found[0].offset());
    assert_eq!(place, (2, 3 * CHUNK as u64 + 1, 3 * CHUNK as u64 + 5));
}

#[test]
fn a_search_ends_where_it_is_told_to_and_a_source_that_fails_says_so() {
    let key = key("sk_live_");
    let text = format!("{0} {0}", key.expose_secret());
    let mut count = 0;
    let mut stop = |_| {
        count += 1;
        ControlFlow::Break(())
    };
    any_prefix().scan(text.as_bytes(), &mut stop).unwrap();
    assert_eq!(count, 1);

    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(Error::other("the disk is broken"))
        }
    }
    // What comes before the failure counts.
    let mut found = 0;
    let text = format!("{text}{}", ".".repeat(2 * OVERLAP));
    let outcome = any_prefix().scan(text.as_bytes().chain(Failing), |_| {
        found += 1;
        ControlFlow::Continue(())
    });
    assert_eq!(outcome.unwrap_err().to_string(), "the disk is broken");
    assert_eq!(found, 2);
}

/// The table of ISO 3309, used backwards, agrees with the crate that makes checksums.
#[test]
fn every_prefix_length_is_told_by_the_checksum() {
    for len in 1..=63 {
        let prefix = format!("{}_", "x".repeat(len));
        let key = key(&prefix);
        let text = format!("yy{}", key.expose_secret());
        let found = any_prefix().find(text.as_bytes());
        assert_eq!(found[0].offset(), 2, "{prefix}");
        assert_eq!(found[0].masked(), shown(&key, &prefix));
    }
}

proptest! {
    #[test]
    fn a_key_planted_in_random_bytes_is_found_at_its_place(
        mut text in vec(any::<u8>(), 0..4000),
        copies in 1..80_usize,
        at in any::<Index>(),
        prefix in "[A-Za-z0-9]{1,8}(_[A-Za-z0-9]{1,8}){0,3}_",
        most in 1..100_000_usize,
    ) {
        text = text.repeat(copies);
        let key = key(&prefix);
        let at = at.index(text.len() + 1);
        text.splice(at..at, key.expose_secret().bytes());
        let line = text[..at].iter().filter(|&&byte| byte == b'\n').count() as u64 + 1;
        let start = text[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        for finder in [any_prefix(), of(&[&prefix])] {
            let found = scanned(&finder, &text, most.max(text.len() / 200));
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].offset(), at as u64);
            prop_assert_eq!(found[0].line(), line);
            prop_assert_eq!(found[0].column(), (at - start) as u64 + 1);
            prop_assert_eq!(found[0].hash(), key.hash());
            let in_memory = finder.find(&text);
            prop_assert_eq!(in_memory, found);
        }
    }

    #[test]
    fn what_is_no_key_is_not_found(text in "[A-Za-z0-9_]{0,400}") {
        prop_assert!(any_prefix().find(text.as_bytes()).is_empty());
    }
}
