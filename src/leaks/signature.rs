use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use p256::{
    ecdsa::{Signature, VerifyingKey, signature::Verifier as _},
    pkcs8::DecodePublicKey as _,
};

use super::error::{PublicKeysError, PublicKeysErrorKind};

/// Longer than any PEM text of a key of this curve.
const MAX_PEM: usize = 1024;
/// Longer than any signature: two integers of 33 bytes, as DER and base64.
const MAX_SIGNATURE: usize = 128;

/// A public key of the curve P-256, by which deliveries are signed.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// A key in PEM (RFC 7468 §13), as GitHub publishes it.
    ///
    /// # Errors
    ///
    /// [`Invalid`](PublicKeysErrorKind::Invalid) when it is not a public key of P-256.
    pub fn from_pem(pem: &str) -> Result<Self, PublicKeysError> {
        let invalid = || PublicKeysError::new(PublicKeysErrorKind::Invalid);
        if pem.len() > MAX_PEM {
            return Err(invalid().because("a PEM text of more than 1 KiB is not a key of P-256"));
        }
        let key = VerifyingKey::from_public_key_pem(pem);
        key.map(Self).map_err(|error| invalid().because(error))
    }

    /// Whether `signature`, base64 of DER, is one of exactly these bytes by this key: ECDSA with
    /// SHA-256.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        if signature.len() > MAX_SIGNATURE {
            return false;
        }
        let Ok(der) = STANDARD.decode(signature) else { return false };
        let Ok(signature) = Signature::from_der(&der) else { return false };
        self.0.verify(message, &signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublicKey").finish_non_exhaustive()
    }
}
