use super::*;
use crate::key::CharacterSet;

fn plain(prefix: &str, alphabet: Alphabet, len: usize) -> ImportedFormat {
    ImportedFormat::new(prefix, alphabet, len).unwrap()
}

fn accepts(format: &ImportedFormat, key: &str) -> bool {
    format.parse(key.as_bytes()).is_ok()
}

/// Every string that differs from `key` in one character, by a character that is missing or doubled.
fn variants(key: &str) -> impl Iterator<Item = String> + '_ {
    (0..key.len()).flat_map(move |at| {
        let (left, right) = (&key[..at], &key[at + 1..]);
        let other = if &key[at..=at] == "\u{1}" { "\u{2}" } else { "\u{1}" };
        [format!("{left}{other}{right}"), format!("{left}{right}")]
    })
}

#[test]
fn formats_below_128_bits_are_refused() {
    for (alphabet, enough) in [
        (Alphabet::Hex, 32),
        (Alphabet::HexUpper, 32),
        (Alphabet::HexAnyCase, 32),
        (Alphabet::Base32, 26),
        (Alphabet::Base58, 22),
        (Alphabet::Base62, 22),
        (Alphabet::Base64, 22),
        (Alphabet::Base64Url, 22),
        (Alphabet::Custom(CharacterSet::new("01").unwrap()), 128),
    ] {
        assert!(ImportedFormat::new("", alphabet, enough).is_ok(), "{alphabet:?}");
        let weak = ImportedFormat::new("", alphabet, enough - 1);
        assert_eq!(weak, Err(InvalidFormat::TooWeak), "{alphabet:?}");
    }
    let one = Alphabet::Custom(CharacterSet::new("x").unwrap());
    assert_eq!(ImportedFormat::new("", one, 256), Err(InvalidFormat::TooWeak));
}

#[test]
fn a_prefix_is_of_the_characters_of_a_key() {
    let new = |prefix: &str| ImportedFormat::new(prefix, Alphabet::Hex, 32);
    assert!(new("Az09-._~+/|:!").is_ok());
    for prefix in ["a b", "a,", "a;", "a=", "\"", "'", "`", "\\", "\u{7f}", "ä"] {
        assert_eq!(new(prefix), Err(InvalidFormat::Characters), "{prefix:?}");
    }
}

#[test]
fn a_key_has_at_most_256_characters_with_its_id() {
    for len in [usize::MAX, 257] {
        let long = ImportedFormat::new("", Alphabet::Hex, len);
        assert_eq!(long, Err(InvalidFormat::TooLong));
    }
    let digits = || IdPart::digits('|').unwrap();
    assert!(plain("", Alphabet::Hex, 235).with_id(digits()).is_ok());
    let long = plain("", Alphabet::Hex, 236).with_id(digits());
    assert_eq!(long, Err(InvalidFormat::TooLong));
    let endless = IdPart::fixed(Alphabet::Hex, usize::MAX, '.').unwrap();
    assert_eq!(plain("", Alphabet::Hex, 32).with_id(endless), Err(InvalidFormat::TooLong));
    assert_eq!(plain("", Alphabet::Hex, 250).with_checksum(), Err(InvalidFormat::TooLong));
    assert_eq!(plain("x", Alphabet::Base64, 255).padded(), Err(InvalidFormat::TooLong));
}

#[test]
fn only_the_exact_shape_is_recognised() {
    let format = plain("old-", Alphabet::Hex, 32);
    let key = format!("old-{}", "0123456789abcdef".repeat(2));
    assert!(accepts(&format, &key));
    for junk in [
        key.replace("old-", "new-"),
        key.to_uppercase(),
        format!("{key}0"),
        key[..key.len() - 1].to_owned(),
        String::new(),
    ] {
        assert_eq!(format.parse(junk.as_bytes()).unwrap_err(), MalformedKey, "{junk}");
    }
}

#[test]
fn padding_is_required_where_base64_has_it() {
    for (len, padding) in [(43, "="), (22, "=="), (44, "")] {
        let format = plain("", Alphabet::Base64, len).padded().unwrap();
        let key = "a+/Z".repeat(11)[..len].to_owned();
        assert!(accepts(&format, &format!("{key}{padding}")), "{len}");
        for wrong in [format!("{key}{padding}="), format!("{key}="), format!("={key}"), key] {
            let is_right = wrong.len() == len + padding.len() && !wrong.starts_with('=');
            assert_eq!(accepts(&format, &wrong), is_right, "{wrong}");
        }
    }
    assert_eq!(plain("", Alphabet::Base64Url, 45).padded(), Err(InvalidFormat::Padding));
    assert_eq!(plain("", Alphabet::Hex, 43).padded(), Err(InvalidFormat::Padding));
    assert_eq!(ImportedFormat::uuid("").unwrap().padded(), Err(InvalidFormat::Padding));
}

#[test]
fn a_uuid_is_of_version_4_in_either_case() {
    let format = ImportedFormat::uuid("").unwrap();
    let key = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
    assert!(accepts(&format, key) && accepts(&format, &key.to_uppercase()));
    for variant in variants(key) {
        assert!(!accepts(&format, &variant), "{variant}");
    }
    for other in [
        // Versions 1 and 7 are made of a time.
        "f47ac10b-58cc-1372-a567-0e02b2c3d479",
        "f47ac10b-58cc-7372-a567-0e02b2c3d479",
        // Another variant.
        "f47ac10b-58cc-4372-c567-0e02b2c3d479",
        "f47ac10b58cc4372a5670e02b2c3d479",
        "{f47ac10b-58cc-4372-a567-0e02b2c3d479}",
    ] {
        assert!(!accepts(&format, other), "{other}");
    }
    let prefixed = ImportedFormat::uuid("acme_").unwrap();
    assert!(accepts(&prefixed, &format!("acme_{key}")) && !accepts(&prefixed, key));
}

/// A token as Sanctum makes it; the last eight digits are the CRC-32 of the 40 characters before them,
/// by zlib.
fn sanctum(id: &str, prefix: &str) -> String {
    format!("{id}|{prefix}AbCdEfGhIjKlMnOpQrStUvWxYz0123456789abcdf8c8ab1e")
}

#[test]
fn a_sanctum_token_is_hashed_without_its_id() {
    let format = ImportedFormat::sanctum("").unwrap();
    let key = sanctum("17", "");
    let secret = key.strip_prefix("17|").unwrap();
    let hash = crate::key::KeyHash::of(secret.as_bytes());
    for id in ["1", "17", "18446744073709551615"] {
        let key = sanctum(id, "");
        assert_eq!(format.parse(key.as_bytes()).unwrap().hash(), hash, "{id}");
    }
    for id in ["", "a", "-1", "1a", "184467440737095516150", "1|1"] {
        assert!(!accepts(&format, &sanctum(id, "")), "{id}");
    }
    for variant in variants(&key).skip(4) {
        assert!(!accepts(&format, &variant), "{variant}");
    }
    let prefixed = ImportedFormat::sanctum("acme_").unwrap();
    assert!(accepts(&prefixed, &sanctum("17", "acme_")) && !accepts(&prefixed, &key));
}

#[test]
fn an_id_of_a_fixed_length_is_part_of_the_hashed_key() {
    let id = IdPart::fixed(Alphabet::Base62, 8, '.').unwrap();
    let format = plain("", Alphabet::Base62, 32).with_id(id).unwrap();
    let key = format!("Ab3dEf9h.{}", "s".repeat(32));
    let hash = format.parse(key.as_bytes()).unwrap().hash();
    assert_eq!(hash, crate::key::KeyHash::of(key.as_bytes()));
    for variant in variants(&key) {
        assert!(!accepts(&format, &variant), "{variant}");
    }
}

#[test]
fn an_id_may_have_a_prefix_and_its_separator_in_its_alphabet() {
    let id = IdPart::fixed(Alphabet::Base64Url, 8, '_').unwrap().with_prefix("acme_").unwrap();
    let format = plain("", Alphabet::Base58, 24).with_id(id).unwrap().hashes_secret_only();
    let key = format!("acme_BR__KF_L_{}", "5".repeat(24));
    assert!(accepts(&format, &key));
    for variant in variants(&key) {
        assert!(!accepts(&format, &variant), "{variant}");
    }
}

#[test]
fn an_id_without_characters_or_a_separator_that_cannot_be_is_refused() {
    assert_eq!(IdPart::digits('7'), Err(InvalidFormat::Id));
    assert_eq!(IdPart::fixed(Alphabet::Hex, 0, '.'), Err(InvalidFormat::Id));
    for separator in [' ', ',', '=', '"', 'é'] {
        assert_eq!(IdPart::digits(separator), Err(InvalidFormat::Characters), "{separator}");
    }
    let digits = || IdPart::digits('|').unwrap();
    assert_eq!(digits().with_prefix("v2"), Err(InvalidFormat::Id));
    assert_eq!(digits().with_prefix("a b"), Err(InvalidFormat::Characters));
}

#[test]
fn what_keys_may_show_follows_their_format() {
    let old = plain("old-", Alphabet::Hex, 32);
    let padded = plain("", Alphabet::Base64, 43).padded().unwrap();
    let uuid = ImportedFormat::uuid("").unwrap();
    let sanctum = ImportedFormat::sanctum("acme_").unwrap();
    for (format, first, last, may) in [
        (&old, "", "", true),
        (&old, "old", "", true),
        (&old, "old-0f", "9c0f", true),
        (&old, "old_", "", false),
        (&old, "0f", "", false),
        (&old, "old-G", "", false),
        (&old, "", "9C0F", false),
        (&old, "", &"f".repeat(33), false),
        (&padded, "", "abc=", true),
        (&padded, "", "abcd", false),
        (&uuid, "f47ac10b-58cc-4", "d479", true),
        (&uuid, "f47ac10b-58cc-1", "", false),
        (&sanctum, "17", "", true),
        (&sanctum, "17|acme_Ab", "09af", true),
        (&sanctum, "|acme_", "", false),
        (&sanctum, "17|other_", "", false),
        (&sanctum, "17", "09aF", false),
    ] {
        assert_eq!(format.may_show(first, last), may, "{first} {last}");
    }
}
