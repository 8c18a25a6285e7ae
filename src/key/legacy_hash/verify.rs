//! Verification, which takes as long as the other system wanted it to take.

use argon2::{Algorithm, Argon2, Params, Version};
use pbkdf2::{pbkdf2_hmac, sha2::Sha256};
use zeroize::Zeroizing;

use super::{
    LegacyHash,
    parse::{Argon2Costs, Argon2Kind, Parsed, Salted},
};

/// bcrypt reads no further.
const MAX_BCRYPT_KEY: usize = 72;

impl LegacyHash {
    /// Whether this is the hash of `key`: of the whole key, or of the part that its system hashed.
    ///
    /// It takes up to about a second and 128 MiB; call it where a thread may be blocked. Feature
    /// `legacy-hashes`.
    #[must_use]
    pub fn verify(&self, key: &[u8]) -> bool {
        // Comparing in variable time tells nothing: clients cannot choose what these hashes are.
        match &self.parsed {
            Parsed::Bcrypt { cost, salt, hash } => bcrypt(*cost, *salt, key) == Some(*hash),
            Parsed::Argon2 { kind, version, costs, salted } => salted.is(|salted, hash| {
                argon2(*kind, *version, *costs, key, &salted.salt, hash).is_some()
            }),
            Parsed::Scrypt { log_n, r, p, salted } => salted.is(|salted, hash| {
                let params = scrypt::Params::new(*log_n, *r, *p);
                params.is_ok_and(|params| scrypt::scrypt(key, &salted.salt, &params, hash).is_ok())
            }),
            Parsed::Pbkdf2 { iterations, salted } => salted.is(|salted, hash| {
                pbkdf2_hmac::<Sha256>(key, &salted.salt, *iterations, hash);
                true
            }),
        }
    }
}

impl Salted {
    /// Whether `compute` fills a buffer with this hash.
    fn is(&self, compute: impl FnOnce(&Self, &mut [u8]) -> bool) -> bool {
        let mut hash = vec![0; self.hash.len()];
        compute(self, &mut hash) && *hash == *self.hash
    }
}

/// `None` for a key that bcrypt would cut.
fn bcrypt(cost: u32, salt: [u8; 16], key: &[u8]) -> Option<[u8; 23]> {
    if key.len() > MAX_BCRYPT_KEY {
        return None;
    }
    // With the NUL at its end, as in C.
    let mut key = Zeroizing::new([key, b"\0"].concat());
    key.truncate(MAX_BCRYPT_KEY);
    // The last byte is not stored.
    bcrypt::bcrypt(cost, salt, &key).first_chunk().copied()
}

fn argon2(
    kind: Argon2Kind,
    version: u32,
    costs: Argon2Costs,
    key: &[u8],
    salt: &[u8],
    hash: &mut [u8],
) -> Option<()> {
    let algorithm = match kind {
        Argon2Kind::D => Algorithm::Argon2d,
        Argon2Kind::I => Algorithm::Argon2i,
        Argon2Kind::Id => Algorithm::Argon2id,
    };
    let version = if version == 16 { Version::V0x10 } else { Version::V0x13 };
    let params = Params::new(costs.memory, costs.passes, costs.lanes, Some(hash.len())).ok()?;
    Argon2::new(algorithm, version, params).hash_password_into(key, salt, hash).ok()
}
