//! Formats as text, for options of commands and variables of the environment.

use std::str::FromStr;

use super::{
    AcceptedFormat, Alphabet, CharacterSet, Digest, IdPart, ImportedFormat, InvalidFormat,
    KeyFormat,
};

/// See [formats as text](ImportedFormat#formats-as-text).
impl FromStr for ImportedFormat {
    type Err = InvalidFormat;

    fn from_str(text: &str) -> Result<Self, InvalidFormat> {
        let (secret, mut options) = match text.split_once(',') {
            Some((secret, options)) => (secret, Some(options)),
            None => (text, None),
        };
        let mut format = self::secret(secret)?;
        while let Some(all) = options {
            let (option, rest) = match all.split_once(',') {
                Some((option, rest)) => (option, Some(rest)),
                None => (all, None),
            };
            format = with_option(format, option)?;
            options = rest;
        }
        Ok(format)
    }
}

/// The prefix of keys issued here, such as `sk_test_`, or an imported format [as
/// text](ImportedFormat#formats-as-text).
impl FromStr for AcceptedFormat {
    type Err = InvalidFormat;

    fn from_str(text: &str) -> Result<Self, InvalidFormat> {
        match KeyFormat::new(text) {
            Ok(format) => Ok(format.into()),
            Err(_) => text.parse().map(ImportedFormat::into),
        }
    }
}

fn secret(text: &str) -> Result<ImportedFormat, InvalidFormat> {
    let (name, prefix) = text.split_once(':').unwrap_or((text, ""));
    match name {
        "uuid" => return ImportedFormat::uuid(prefix),
        "sanctum" => return ImportedFormat::sanctum(prefix),
        _ => {}
    }
    let (alphabet, rest) = alphabet(text)?;
    let (len, prefix) = rest.split_once(':').unwrap_or((rest, ""));
    let unpadded = len.trim_end_matches('=');
    let format = ImportedFormat::new(prefix, alphabet, length(unpadded)?)?;
    if unpadded == len { Ok(format) } else { format.padded() }
}

fn with_option(format: ImportedFormat, option: &str) -> Result<ImportedFormat, InvalidFormat> {
    match option.split_once('=').ok_or(InvalidFormat::Option)? {
        ("id", id) => format.with_id(self::id(id)?),
        ("hash", "key") => Ok(format),
        ("hash", "secret") => Ok(format.hashes_secret_only()),
        ("digest", "sha256") => Ok(format.hashed_by(Digest::sha256())),
        ("digest", "double-sha256") => Ok(format.hashed_by(Digest::double_sha256())),
        ("digest", "sha512") => Ok(format.hashed_by(Digest::sha512())),
        ("check", "crc32b") => format.with_checksum(),
        _ => Err(InvalidFormat::Option),
    }
}

fn id(text: &str) -> Result<IdPart, InvalidFormat> {
    if let Some(rest) = text.strip_prefix("digits:") {
        let (separator, prefix) = separator(rest)?;
        return IdPart::digits(separator)?.with_prefix(prefix);
    }
    let (alphabet, rest) = alphabet(text)?;
    let (len, rest) = rest.split_once(':').ok_or(InvalidFormat::Id)?;
    let (separator, prefix) = separator(rest)?;
    IdPart::fixed(alphabet, length(len)?, separator)?.with_prefix(prefix)
}

/// A separator, which may be `:` itself, and the prefix after it.
fn separator(text: &str) -> Result<(char, &str), InvalidFormat> {
    let mut rest = text.chars();
    let separator = rest.next().ok_or(InvalidFormat::Id)?;
    match rest.as_str() {
        "" => Ok((separator, "")),
        rest => rest.strip_prefix(':').map(|prefix| (separator, prefix)).ok_or(InvalidFormat::Id),
    }
}

/// An alphabet, and what follows it and a colon.
fn alphabet(text: &str) -> Result<(Alphabet, &str), InvalidFormat> {
    if let Some(rest) = text.strip_prefix('[') {
        let (class, rest) = rest.split_once("]:").ok_or(InvalidFormat::Alphabet)?;
        return Ok((Alphabet::Custom(character_set(class)?), rest));
    }
    let (name, rest) = text.split_once(':').ok_or(InvalidFormat::Alphabet)?;
    let alphabet = match name {
        "hex" => Alphabet::Hex,
        "hex-upper" => Alphabet::HexUpper,
        "hex-any-case" => Alphabet::HexAnyCase,
        "base32" => Alphabet::Base32,
        "base58" => Alphabet::Base58,
        "base62" | "alnum" => Alphabet::Base62,
        "base64" => Alphabet::Base64,
        "base64url" => Alphabet::Base64Url,
        _ => return Err(InvalidFormat::Alphabet),
    };
    Ok((alphabet, rest))
}

/// Characters and ranges of them, as in `A-Za-z_`; a `-` at either end is itself.
fn character_set(class: &str) -> Result<CharacterSet, InvalidFormat> {
    let mut all = String::new();
    let mut rest = class.chars();
    while let Some(first) = rest.next() {
        let mut ahead = rest.clone();
        match (ahead.next(), ahead.next()) {
            (Some('-'), Some(last)) if first <= last && last.is_ascii() => {
                all.extend(first..=last);
                rest = ahead;
            }
            (Some('-'), Some(_)) => return Err(InvalidFormat::Alphabet),
            _ => all.push(first),
        }
    }
    CharacterSet::new(&all)
}

fn length(text: &str) -> Result<usize, InvalidFormat> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number).ok_or(InvalidFormat::Length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<ImportedFormat, InvalidFormat> {
        text.parse()
    }

    #[test]
    fn each_text_is_the_format_that_code_makes() {
        let new = |alphabet, len| ImportedFormat::new("", alphabet, len).unwrap();
        let custom = |set| Alphabet::Custom(CharacterSet::new(set).unwrap());
        let fixed = |alphabet, len, separator| IdPart::fixed(alphabet, len, separator).unwrap();
        for (text, format) in [
            ("hex:64", new(Alphabet::Hex, 64)),
            ("hex:64:old-", ImportedFormat::new("old-", Alphabet::Hex, 64).unwrap()),
            ("hex:64:a:b", ImportedFormat::new("a:b", Alphabet::Hex, 64).unwrap()),
            ("hex-upper:32", new(Alphabet::HexUpper, 32)),
            ("hex-any-case:32", new(Alphabet::HexAnyCase, 32)),
            ("base32:32", new(Alphabet::Base32, 32)),
            ("base58:24", new(Alphabet::Base58, 24)),
            ("base62:40", new(Alphabet::Base62, 40)),
            ("alnum:40", new(Alphabet::Base62, 40)),
            ("base64url:43", new(Alphabet::Base64Url, 43)),
            ("base64:43=", new(Alphabet::Base64, 43).padded().unwrap()),
            ("base64:22==", new(Alphabet::Base64, 22).padded().unwrap()),
            ("[A-Cx_-]:80", new(custom("ABCx_-"), 80)),
            ("[-!]:128", new(custom("-!"), 128)),
            ("uuid", ImportedFormat::uuid("").unwrap()),
            ("uuid:acme_", ImportedFormat::uuid("acme_").unwrap()),
            ("sanctum", ImportedFormat::sanctum("").unwrap()),
            ("sanctum:acme_", ImportedFormat::sanctum("acme_").unwrap()),
            ("alnum:40,id=digits:|,hash=secret,check=crc32b", ImportedFormat::sanctum("").unwrap()),
            (
                "alnum:32,id=alnum:8:.,digest=sha512",
                new(Alphabet::Base62, 32)
                    .with_id(fixed(Alphabet::Base62, 8, '.'))
                    .unwrap()
                    .hashed_by(Digest::sha512()),
            ),
            (
                "base58:24,id=base58:8:_:acme_,hash=key",
                new(Alphabet::Base58, 24)
                    .with_id(fixed(Alphabet::Base58, 8, '_').with_prefix("acme_").unwrap())
                    .unwrap(),
            ),
            (
                "hex:32,id=[0-9]:4::",
                new(Alphabet::Hex, 32).with_id(fixed(custom("0123456789"), 4, ':')).unwrap(),
            ),
            (
                "hex:32,digest=double-sha256",
                new(Alphabet::Hex, 32).hashed_by(Digest::double_sha256()),
            ),
            ("hex:32,digest=sha256", new(Alphabet::Hex, 32)),
        ] {
            assert_eq!(parsed(text), Ok(format), "{text}");
        }
    }

    #[test]
    fn an_error_says_which_part_is_wrong() {
        for (text, error) in [
            ("", InvalidFormat::Alphabet),
            ("hex", InvalidFormat::Alphabet),
            ("base63:40", InvalidFormat::Alphabet),
            ("[abc:40", InvalidFormat::Alphabet),
            ("[z-a]:40", InvalidFormat::Alphabet),
            ("[]:40", InvalidFormat::Characters),
            ("[a ]:40", InvalidFormat::Characters),
            ("[é]:40", InvalidFormat::Characters),
            ("hex:", InvalidFormat::Length),
            ("hex:+64", InvalidFormat::Length),
            ("hex:64x", InvalidFormat::Length),
            ("hex:99999999999999999999", InvalidFormat::Length),
            ("hex:31", InvalidFormat::TooWeak),
            ("hex:64=", InvalidFormat::Padding),
            ("hex:257", InvalidFormat::TooLong),
            ("hex:64:a b", InvalidFormat::Characters),
            ("hex:64,", InvalidFormat::Option),
            ("hex:64,digest", InvalidFormat::Option),
            ("hex:64,digest=md5", InvalidFormat::Option),
            ("hex:64,id=hex:8", InvalidFormat::Id),
            ("hex:64,id=hex:8:", InvalidFormat::Id),
            ("hex:64,id=hex:8:ab", InvalidFormat::Id),
            ("hex:64,id=digits:", InvalidFormat::Id),
            ("hex:64,id=hex:x:.", InvalidFormat::Length),
        ] {
            assert_eq!(parsed(text), Err(error), "{text}");
        }
    }

    #[test]
    fn the_prefix_of_issued_keys_is_an_accepted_format() {
        let parsed = |text: &str| text.parse::<AcceptedFormat>();
        assert_eq!(parsed("sk_test_"), Ok(KeyFormat::new("sk_test_").unwrap().into()));
        assert_eq!(parsed("uuid"), Ok(ImportedFormat::uuid("").unwrap().into()));
        assert_eq!(parsed("sk_test"), Err(InvalidFormat::Alphabet));
    }
}
