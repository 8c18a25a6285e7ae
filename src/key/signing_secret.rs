use std::{error::Error, fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{EntropySource, RngError};

/// The secret that webhooks are signed with, after the
/// [Standard Webhooks](https://www.standardwebhooks.com) specification: 24 to 64 random bytes, as text
/// `whsec_` and their base64.
///
/// Unlike a key it is stored as it is: each signature needs it. Feature `webhooks`.
///
/// ```
/// use tower_api_key::key::SigningSecret;
///
/// let secret: SigningSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?;
/// let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
/// assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
/// # Ok::<(), tower_api_key::key::InvalidSigningSecret>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecret {
    bytes: Zeroizing<Vec<u8>>,
    text: Zeroizing<String>,
}

const PREFIX: &str = "whsec_";
/// As many bytes as the digest has.
const NEW_LEN: usize = 32;
const MIN_LEN: usize = 24;
const MAX_LEN: usize = 64;
const TEXT_LEN: usize = PREFIX.len() + 4 * MAX_LEN.div_ceil(3);

impl SigningSecret {
    /// A new secret of 32 bytes.
    ///
    /// # Errors
    ///
    /// When the source of randomness fails.
    pub fn generate(entropy: &(impl EntropySource + ?Sized)) -> Result<Self, RngError> {
        let mut bytes = Zeroizing::new(vec![0; NEW_LEN]);
        entropy.fill(&mut bytes)?;
        Ok(Self::of(bytes))
    }

    /// A secret as read by a store.
    ///
    /// # Errors
    ///
    /// When it has fewer than 24 or more than 64 bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, InvalidSigningSecret> {
        let bytes = Zeroizing::new(bytes);
        let is_valid = (MIN_LEN..=MAX_LEN).contains(&bytes.len());
        if is_valid { Ok(Self::of(bytes)) } else { Err(InvalidSigningSecret) }
    }

    fn of(bytes: Zeroizing<Vec<u8>>) -> Self {
        // Large enough, so that no copy of a part is left behind.
        let mut text = Zeroizing::new(String::with_capacity(TEXT_LEN));
        text.push_str(PREFIX);
        STANDARD.encode_string(&*bytes, &mut text);
        Self { bytes, text }
    }

    /// The bytes, for a store. Never log them.
    #[must_use]
    pub fn expose_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The text for the receiver: `whsec_` and base64. Never log it.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        &self.text
    }

    /// The signature of one message: `v1,` and the base64 of the HMAC-SHA-256 of `id.timestamp.body`.
    /// The timestamp is in seconds since 1970.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        // Never fails: HMAC takes a key of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.bytes) else { return String::new() };
        mac.update(id.as_bytes());
        mac.update(b".");
        mac.update(timestamp.to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        let mut text = String::from("v1,");
        STANDARD.encode_string(mac.finalize().into_bytes(), &mut text);
        text
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

impl FromStr for SigningSecret {
    type Err = InvalidSigningSecret;

    fn from_str(text: &str) -> Result<Self, InvalidSigningSecret> {
        let encoded = text.strip_prefix(PREFIX).ok_or(InvalidSigningSecret)?;
        // The error of base64 would quote a symbol of the secret.
        let bytes = STANDARD.decode(encoded).map_err(|_| InvalidSigningSecret)?;
        Self::from_bytes(bytes)
    }
}

/// The text or the bytes are not a [`SigningSecret`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidSigningSecret;

impl fmt::Display for InvalidSigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a signing secret must be `whsec_` and the base64 of 24 to 64 bytes")
    }
}

impl Error for InvalidSigningSecret {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SystemEntropy;

    #[test]
    fn a_new_secret_survives_its_text_and_is_not_printed() {
        let secret = SigningSecret::generate(&SystemEntropy).unwrap();
        let text = secret.expose_secret();
        assert_eq!(text.parse::<SigningSecret>().unwrap(), secret);
        assert_eq!(format!("{secret:?}"), "SigningSecret(…)");
    }

    #[test]
    fn a_secret_that_is_too_short_or_not_base64_is_refused() {
        let text = |len| format!("whsec_{}", STANDARD.encode(vec![7; len]));
        for len in [MIN_LEN, NEW_LEN, MAX_LEN] {
            assert!(text(len).parse::<SigningSecret>().is_ok(), "{len}");
        }
        for text in [text(23), text(65), "whsec_!".into(), STANDARD.encode([7; 32]), String::new()]
        {
            assert!(text.parse::<SigningSecret>().is_err(), "{text}");
        }
    }
}
