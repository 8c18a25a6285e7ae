//! Reads a key from the value of `Authorization`.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use zeroize::Zeroizing;

use super::{
    mistake::Mistake,
    scheme::{Schemes, is_token},
};

/// The most bytes of `Basic` that are decoded: those of the longest key and a colon, and one more.
const MAX_DECODED: usize = 258;

/// What follows a scheme.
#[derive(Debug, PartialEq)]
pub(super) struct Credential<'h> {
    pub(super) text: &'h [u8],
    /// Whether it is the base64 of a user name and a password.
    pub(super) is_basic: bool,
}

/// The credential after one of `schemes` and spaces (RFC 9110 §11.4); `None` without one, or of another
/// scheme.
pub(super) fn credential<'h>(
    value: &'h HeaderValue,
    schemes: &Schemes,
) -> Result<Option<Credential<'h>>, Mistake> {
    // The common spelling, without a case-insensitive search.
    if let Some(text @ [first, .., last]) = value.as_bytes().strip_prefix(b"Bearer ")
        && first.is_ascii_graphic()
        && last.is_ascii_graphic()
        && schemes.has_bearer()
    {
        return Ok(Some(Credential { text, is_basic: false }));
    }
    let value = value.as_bytes().trim_ascii();
    let end = value.iter().position(|&byte| byte == b' ' || byte == b'\t').unwrap_or(value.len());
    let (name, rest) = value.split_at(end);
    if let Some(scheme) = schemes.iter().find(|scheme| scheme.is_named(name)) {
        let spaces = rest.iter().take_while(|&&byte| byte == b' ').count();
        let text = rest.get(spaces..).filter(|text| !text.is_empty());
        return Ok(text.map(|text| Credential { text, is_basic: scheme.is_basic() }));
    }
    if !name.iter().all(|&byte| is_token(byte)) {
        return Err(Mistake::Characters);
    }
    if hides_a_key(rest, schemes) { Err(Mistake::SeveralKeys) } else { Ok(None) }
}

/// Whether a proxy has appended credentials of one of `schemes` to those of another.
fn hides_a_key(credentials: &[u8], schemes: &Schemes) -> bool {
    credentials.split(|&byte| byte == b',').skip(1).any(|joined| {
        let joined = joined.trim_ascii();
        let is_alone = schemes.iter().any(|scheme| scheme.is_named(joined));
        is_alone || schemes.strip(joined).is_some()
    })
}

/// Whether a proxy has appended the credentials of any scheme to a token.
pub(super) fn has_further_scheme(credentials: &[u8]) -> bool {
    credentials.split(|&byte| byte == b',').skip(1).any(|joined| {
        let joined = joined.trim_ascii();
        let scheme = joined.split(|&byte| byte == b' ').next().unwrap_or_default();
        !scheme.is_empty() && scheme.len() < joined.len() && scheme.iter().all(|&b| is_token(b))
    })
}

/// The user name of `Basic` with an empty password (RFC 7617 §2). Its memory is wiped on drop.
pub(in crate::layer) struct UserName {
    decoded: Zeroizing<[u8; MAX_DECODED]>,
    len: usize,
}

impl UserName {
    /// `None` if `credential` is not base64, has no user name, no colon or a password, or is longer than a
    /// key.
    pub(in crate::layer) fn of(credential: &[u8]) -> Option<Self> {
        let mut decoded = Zeroizing::new([0; MAX_DECODED]);
        let len = STANDARD.decode_slice(credential, decoded.as_mut_slice()).ok()?;
        // The key may have a colon, if its format does: only the last one separates.
        let user = decoded.get(..len)?.strip_suffix(b":")?;
        let len = user.len();
        (len > 0).then_some(Self { decoded, len })
    }

    pub(in crate::layer) fn as_bytes(&self) -> &[u8] {
        self.decoded.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layer::request::scheme::Scheme;

    fn schemes(names: &[&str]) -> Schemes {
        let mut schemes = Schemes::default();
        for name in names {
            schemes.add(Scheme::new(name).unwrap());
        }
        schemes
    }

    fn read(schemes: &Schemes, value: &[u8]) -> Result<Option<Vec<u8>>, Mistake> {
        let value = HeaderValue::from_bytes(value).unwrap();
        credential(&value, schemes).map(|found| found.map(|found| found.text.to_vec()))
    }

    fn bearer() -> Schemes {
        schemes(&["Bearer"])
    }

    #[test]
    fn the_key_follows_the_scheme_and_spaces() {
        for value in ["Bearer k", "bearer k", "BEARER   k", " bEaReR k "] {
            assert_eq!(read(&bearer(), value.as_bytes()), Ok(Some(b"k".to_vec())), "{value:?}");
        }
        let schemes = schemes(&["Api-Key", "Token"]);
        for value in ["Api-Key k", "api-key   k", "token k", "TOKEN k"] {
            assert_eq!(read(&schemes, value.as_bytes()), Ok(Some(b"k".to_vec())), "{value:?}");
        }
        for value in ["Bearer k", "bearer k", "Bearer key", "Apikey k", "Api-Key", "Token  "] {
            assert_eq!(read(&schemes, value.as_bytes()), Ok(None), "{value:?}");
        }
    }

    #[test]
    fn nothing_and_other_schemes_are_no_credentials_of_ours() {
        for value in [
            "",
            "  ",
            "Basic dTpw",
            "Digest a=\"b\", c=d",
            "Token k",
            "Bearerk",
            "k",
            "Basic dTpw, Bearers k",
            "Basic dTpw, Digest k",
            "Bearer",
            "Bearer   ",
        ] {
            assert_eq!(read(&bearer(), value.as_bytes()), Ok(None), "{value:?}");
        }
    }

    #[test]
    fn a_scheme_that_is_not_a_token_is_a_mistake() {
        for value in ["Bearer,k", "Bearer=k", "\u{fffd} k", "\"Bearer\" k"] {
            assert_eq!(read(&bearer(), value.as_bytes()), Err(Mistake::Characters), "{value:?}");
        }
    }

    #[test]
    fn joined_credentials_of_a_scheme_are_a_mistake() {
        for value in ["Basic dTpw, Bearer k", "Basic dTpw,bearer k", "Basic dTpw, Bearer"] {
            assert_eq!(read(&bearer(), value.as_bytes()), Err(Mistake::SeveralKeys), "{value:?}");
        }
        let value = b"Basic dTpw, token k";
        assert_eq!(read(&schemes(&["Token"]), value), Err(Mistake::SeveralKeys));
        assert_eq!(read(&bearer(), value), Ok(None));
    }

    #[test]
    fn a_user_name_has_an_empty_password() {
        let user = |text: &str| {
            let user = UserName::of(STANDARD.encode(text).as_bytes());
            user.map(|user| String::from_utf8(user.as_bytes().to_vec()).unwrap())
        };
        let longest = "k".repeat(256);
        for name in ["key", "a:b", &longest] {
            assert_eq!(user(&format!("{name}:")).as_deref(), Some(name));
        }
        for wrong in ["", ":", "key", "key:password", ":key", &format!("{longest}kk:")] {
            assert_eq!(user(wrong), None, "{wrong}");
        }
        for wrong in ["a2V5Og", "%%%%", "a2V5Og== "] {
            assert!(UserName::of(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(value: Vec<u8>) {
            let _ = UserName::of(&value);
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let _ = credential(&value, &schemes(&["Bearer", "Token"]));
            }
        }
    }
}
