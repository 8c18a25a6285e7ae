use std::{borrow::Cow, error::Error, fmt};

/// A scheme of `Authorization` in which a layer reads keys.
///
/// Its name is matched without regard to case, and one or more spaces separate it from the key
/// ([RFC 9110 §11.1 and §11.4](https://www.rfc-editor.org/rfc/rfc9110#section-11.4)). The key is a
/// single token: `Token token="…"` is not read.
///
/// ```
/// use tower_api_key::{ApiKeyLayer, layer::Scheme};
/// # use tower_api_key::{Authenticator, key::KeyFormat, store::MemoryKeyStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (auth, worker) =
/// #     Authenticator::builder(MemoryKeyStore::new(), KeyFormat::new("sk_live_")?).build();
/// # drop(worker);
/// // `Authorization: Bearer …`, `Authorization: Api-Key …` and `curl --user …:`
/// let layer = ApiKeyLayer::new(auth)
///     .also_scheme(Scheme::new("Api-Key")?)
///     .also_scheme(Scheme::BASIC_USER_NAME);
/// # drop(layer);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Scheme(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// The name, before the key itself.
    Token(Cow<'static, str>),
    BasicUserName,
}

impl Scheme {
    /// `Bearer` ([RFC 6750](https://www.rfc-editor.org/rfc/rfc6750)), which a layer reads by default.
    pub const BEARER: Self = Self(Kind::Token(Cow::Borrowed("Bearer")));

    /// `Basic` ([RFC 7617](https://www.rfc-editor.org/rfc/rfc7617)) with the key as user name and an
    /// empty password, as `curl --user KEY:` sends it. A password gets 400: it could be a second
    /// credential, which is not checked.
    ///
    /// Browsers answer a challenge for `Basic` with a dialog that asks for user name and password.
    pub const BASIC_USER_NAME: Self = Self(Kind::BasicUserName);

    /// The scheme `name`, such as `Token` or `Api-Key`.
    ///
    /// # Errors
    ///
    /// When `name` is not a token
    /// ([RFC 9110 §5.6.2](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2)), or is `Basic` or
    /// `Digest`, whose credentials are not a key alone.
    pub fn new(name: &str) -> Result<Self, InvalidScheme> {
        let is_other = ["basic", "digest"].iter().any(|other| name.eq_ignore_ascii_case(other));
        if name.is_empty() || is_other || !name.bytes().all(is_token) {
            return Err(InvalidScheme);
        }
        Ok(Self(Kind::Token(name.to_owned().into())))
    }
}

impl Scheme {
    pub(in crate::layer) fn name(&self) -> &str {
        match &self.0 {
            Kind::Token(name) => name,
            Kind::BasicUserName => "Basic",
        }
    }

    pub(super) fn is_named(&self, name: &[u8]) -> bool {
        self.name().as_bytes().eq_ignore_ascii_case(name)
    }

    pub(super) fn is_bearer(&self) -> bool {
        self.is_named(b"Bearer")
    }

    pub(super) fn is_basic(&self) -> bool {
        matches!(self.0, Kind::BasicUserName)
    }
}

/// How a client writes the header.
impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Token(name) => write!(f, "Authorization: {name} <key>"),
            Kind::BasicUserName => f.write_str("Authorization: Basic <base64 of key and colon>"),
        }
    }
}

/// The schemes in which a layer reads keys; usually `Bearer` alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Schemes(Vec<Scheme>);

impl Schemes {
    pub(super) fn only(scheme: Scheme) -> Self {
        Self(vec![scheme])
    }

    pub(super) fn add(&mut self, scheme: Scheme) {
        if self.iter().any(|known| known.is_named(scheme.name().as_bytes())) {
            return;
        }
        // Errors are told by the first challenge; RFC 6750 defines those of `Bearer`.
        let at = if scheme.is_bearer() { 0 } else { self.0.len() };
        self.0.insert(at, scheme);
    }

    pub(in crate::layer) fn iter(&self) -> impl Iterator<Item = &Scheme> {
        self.0.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `Bearer` is read: then it comes first.
    pub(super) fn has_bearer(&self) -> bool {
        self.0.first().is_some_and(Scheme::is_bearer)
    }

    /// What follows one of the schemes, or `Bearer`, and spaces.
    pub(super) fn strip<'h>(&self, credentials: &'h [u8]) -> Option<&'h [u8]> {
        let end = credentials.iter().position(|&byte| byte == b' ')?;
        let (name, key) = credentials.split_at_checked(end)?;
        let is_ours = Scheme::BEARER.is_named(name) || self.iter().any(|it| it.is_named(name));
        is_ours.then(|| key.trim_ascii_start())
    }
}

/// `tchar` (RFC 9110 §5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The name cannot be that of a scheme with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidScheme;

impl fmt::Display for InvalidScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a scheme must be a token of RFC 9110, such as Token or Api-Key, and not Basic or \
             Digest: use Scheme::BASIC_USER_NAME for keys as user names",
        )
    }
}

impl Error for InvalidScheme {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_comes_first_and_each_scheme_once() {
        let mut all = Schemes::default();
        for name in ["Token", "bearer", "TOKEN", "Api-Key"] {
            all.add(Scheme::new(name).unwrap());
        }
        let names: Vec<_> = all.iter().map(Scheme::name).collect();
        assert_eq!(names, ["bearer", "Token", "Api-Key"]);
        assert!(all.has_bearer());
    }
}
