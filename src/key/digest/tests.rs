use super::*;

const KEY: &[u8] = b"abababababababababababababababab";

fn stored(hex: &str) -> KeyHash {
    hex.parse().unwrap()
}

/// What Python's `hashlib` makes of the key: the old digest, and the hash to store.
const SHA256: &str = "d2f9fa9d99bb30b2b67fc6b0ea2694f345c0961596e0fd82561010b4f7570c2d";
const SALTED: &str = "1a62325da682e8d55864d95cee478e0c8ebd5085055911288df38ac461fd1de7";
const DOUBLE: &str = "713f6f95db36ae61cccd52451d64852b0cbf66dc3da066777db9545224f08894";
const SHA512: &str = "d7d8803c6855e2cada884cc64bb4ebb00e056755c6d2237cd78e8cb62cc37d98\
                      89aa9d45f6f639ab642b9c02d5eeb27ca29042c80f152100410072226e61fef2";
const OF_SHA512: &str = "6cad538a9665c7fc06dc83deb021bd5c3227b6155078fd761b53a420f0a0b72c";

/// A request with the key finds what the import made of the old digest, and it is `hash`.
#[track_caller]
fn assert_moves(digest: &Digest, old: &str, hash: &str) {
    assert_eq!(digest.stored_hash_of_text(old), Ok(stored(hash)), "{digest:?}");
    assert_eq!(digest.hash(KEY), stored(hash), "{digest:?}");
}

#[test]
fn keys_are_found_by_what_was_made_of_their_old_digest() {
    assert_moves(&Digest::sha256(), SHA256, SHA256);
    assert_moves(&Digest::salted_sha256(b"salt:", b":end"), SALTED, SALTED);
    assert_moves(&Digest::double_sha256(), DOUBLE, DOUBLE);
    assert_moves(&Digest::sha512(), SHA512, OF_SHA512);
    // SHA-256 of the two bytes ab and the key's first byte.
    let custom = Digest::custom(|key| vec![0xab, key[0]]);
    assert_eq!(custom.stored_hash(&[0xab, b'a']), Ok(KeyHash::of(&[0xab, b'a'])));
    assert_moves(&custom, "ab61", &text(custom.hash(KEY)));
}

#[cfg(feature = "legacy-hashes")]
#[test]
fn a_hmac_is_keyed_by_the_pepper() {
    // Python: hmac.new(b"pepper", KEY, hashlib.sha256)
    let old = "88976daa34efd8a616893aff978fedf7e45c0636b12623f086a897ef4393153a";
    let of_old = "973f7ff4477887c6a72beaec3124bcf85341332475970653761e830f6119ef59";
    assert_moves(&Digest::hmac_sha256(Pepper::new("pepper")), old, of_old);
    assert_ne!(Digest::hmac_sha256(Pepper::new("salt")).hash(KEY), stored(of_old));
    for pepper in [vec![], vec![7; 200]] {
        let digest = Digest::hmac_sha256(Pepper::new(pepper));
        assert_ne!(digest.hash(KEY), digest.hash(b"another key"));
    }
    let pepper = format!("{:?}", Pepper::new("pepper"));
    assert_eq!(pepper, "Pepper([REDACTED])");
}

fn text(hash: KeyHash) -> String {
    hash.as_bytes().iter().flat_map(|byte| hash::hex(*byte)).map(char::from).collect()
}

#[test]
fn an_old_digest_is_read_from_hex_and_base64_of_its_length() {
    let base64 = "0vn6nZm7MLK2f8aw6iaU80XAlhWW4P2CVhAQtPdXDC0";
    for old in [SHA256, &SHA256.to_uppercase(), base64, &format!("{base64}=")] {
        assert_eq!(Digest::sha256().stored_hash_of_text(old), Ok(stored(SHA256)), "{old}");
    }
    for (digest, wrong) in [
        (Digest::sha256(), SHA512),
        (Digest::sha512(), SHA256),
        (Digest::sha256(), ""),
        (Digest::sha256(), &SHA256[1..]),
        (Digest::sha512(), &"g".repeat(128)),
        (Digest::sha512(), &"ä".repeat(64)),
        (Digest::custom(<[u8]>::to_vec), ""),
        (Digest::custom(<[u8]>::to_vec), "%"),
    ] {
        assert!(digest.stored_hash_of_text(wrong).is_err(), "{digest:?} of {wrong}");
    }
    let error = Digest::sha512().stored_hash(&[0; 32]).unwrap_err();
    assert_eq!(error.to_string(), "the digest of a key must be 64 bytes, in hexadecimal or base64");
}

#[test]
fn digests_with_the_same_secret_are_equal_only_as_clones() {
    let salted = || Digest::salted_sha256(b"secret", b"");
    let custom = || Digest::custom(<[u8]>::to_vec);
    for digest in [Digest::sha256(), Digest::sha512(), Digest::double_sha256(), salted(), custom()]
    {
        assert_eq!(digest.clone(), digest);
        assert!(!format!("{digest:?}").contains("secret"));
    }
    assert_ne!(salted(), salted());
    assert_ne!(custom(), custom());
    assert_ne!(Digest::sha256(), Digest::sha512());
}
