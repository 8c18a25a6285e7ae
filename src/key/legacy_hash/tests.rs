use super::{InvalidLegacyHash, LegacyHash};

fn problem(text: &str) -> String {
    let error: InvalidLegacyHash = text.parse::<LegacyHash>().unwrap_err();
    assert!(!error.to_string().contains(text), "{error}");
    error.problem.into_owned()
}

const BCRYPT: &str = "$2b$04$46MP.uN4Ew9Y4VPmFkReO.cYv19eDvuSTd1C266ard5AJZvoIHlXe";
const SALT_AND_HASH: &str = "$9wRuXnQkXBOhUzQwTK81ZA$vUopilZlFpnIwe01M7Xca6JZLbk7yfRERGqM7Rv7R+Q";

#[test]
fn costs_beyond_the_bounds_are_refused_with_the_bound() {
    for (text, expected) in [
        (BCRYPT.replace("$04$", "$03$"), "the cost must be 4 to 14, not 3"),
        (BCRYPT.replace("$04$", "$15$"), "the cost must be 4 to 14, not 15"),
        (
            format!("$argon2id$v=19$m=131073,t=1,p=1{SALT_AND_HASH}"),
            "the memory `m` of Argon2, in KiB, must be 8 to 131072, not 131073",
        ),
        (
            format!("$argon2id$v=19$m=15,t=1,p=2{SALT_AND_HASH}"),
            "the memory `m` of Argon2, in KiB, must be 16 to 131072, not 15",
        ),
        (
            format!("$argon2id$v=19$m=65536,t=17,p=1{SALT_AND_HASH}"),
            "the number of passes `t` of Argon2 with that memory must be 1 to 16, not 17",
        ),
        (
            format!("$argon2id$v=19$m=65536,t=1,p=17{SALT_AND_HASH}"),
            "the parallelism `p` of Argon2 must be 1 to 16, not 17",
        ),
        (
            format!("$scrypt$ln=18,r=8,p=1{SALT_AND_HASH}"),
            "scrypt may use at most 128 MiB (128 × r × 2^ln)",
        ),
        (
            format!("$scrypt$ln=17,r=8,p=3{SALT_AND_HASH}"),
            "scrypt may use at most 256 MiB in all (128 × r × 2^ln × p)",
        ),
        (
            format!("$pbkdf2-sha256$1500001{SALT_AND_HASH}"),
            "the number of iterations of PBKDF2 must be 1 to 1500000, not 1500001",
        ),
    ] {
        assert_eq!(problem(&text), expected, "{text}");
    }
    for text in [
        BCRYPT.replace("$04$", "$14$"),
        format!("$argon2id$v=19$m=131072,t=8,p=16{SALT_AND_HASH}"),
        format!("$scrypt$ln=17,r=8,p=2{SALT_AND_HASH}"),
        format!("$pbkdf2-sha256$1500000{SALT_AND_HASH}"),
        format!("$pbkdf2-sha256$i=1500000,l=32{SALT_AND_HASH}"),
        // The defaults of node-argon2, PHP and Django.
        format!("$argon2id$v=19$m=65536,t=3,p=4{SALT_AND_HASH}"),
        format!("$argon2id$v=19$m=65536,t=4,p=1{SALT_AND_HASH}"),
        format!("argon2$argon2id$v=19$m=102400,t=2,p=8{SALT_AND_HASH}"),
    ] {
        assert!(text.parse::<LegacyHash>().is_ok(), "{text}");
    }
}

#[test]
fn text_that_was_cut_or_is_of_another_kind_is_refused_with_the_reason() {
    let (cut, _) = BCRYPT.split_at(BCRYPT.len() - 1);
    for (text, expected) in [
        (cut, "53 characters"),
        (&BCRYPT.replace("$2b$", "$2x$"), "broken versions of bcrypt"),
        (&BCRYPT.replace("$04$", "$4$"), "two digits"),
        (&format!("{BCRYPT}$"), "it must begin with"),
        ("bcrypt_sha256$$2b$12$x", "bcrypt_sha256"),
        (&format!("$argon2id$v=18$m=64,t=2,p=1{SALT_AND_HASH}"), "16 or 19"),
        (&format!("$argon2id$v=19$m=64,p=1,t=2{SALT_AND_HASH}"), "m=…,t=…,p=…"),
        (&format!("$argon2id$v=19$m=64,t=2,p=1,keyid=x{SALT_AND_HASH}"), "m=…,t=…,p=…"),
        (&format!("$argon2id$v=19$m=+64,t=2,p=1{SALT_AND_HASH}"), "a number"),
        ("$argon2id$v=19$m=64,t=2,p=1$c2FsdA$dvQbFGPt2vQDMXWcBieIroPH46yJCYmqPFNrBdYF0wk", "8 to"),
        ("$argon2id$v=19$m=64,t=2,p=1$c2FsdHNhbHQ$dvQbFGPt", "16 to"),
        ("$argon2id$v=19$m=64,t=2,p=1$c2FsdHNhbHQ", "a salt and a hash"),
        (&format!("$scrypt$ln=32,r=8,p=1{SALT_AND_HASH}"), "1 to 20"),
        ("scrypt$16383$saltsalt$8$1$dvQbFGPt2vQDMXWcBieIrg==", "power of two"),
        (&format!("$pbkdf2-sha256$i=1000,l=33{SALT_AND_HASH}"), "the length of the hash"),
        ("pbkdf2_sha256$1000$salt$dvQbFGPt2vQDMXWcBieIrg==", "its salt"),
        (&"$".repeat(513), "512 bytes"),
        ("sha256$abc", "it must begin with"),
    ] {
        assert!(problem(text).contains(expected), "{text}: {}", problem(text));
    }
}

#[test]
fn neither_debug_nor_an_error_shows_the_hash() {
    let hash: LegacyHash = BCRYPT.parse().unwrap();
    assert_eq!(format!("{hash:?}"), "LegacyHash(bcrypt, [REDACTED])");
    assert_eq!(hash.expose_secret(), BCRYPT);
    assert_eq!(hash.algorithm(), "bcrypt");
}

#[test]
fn the_placeholder_and_the_digest_are_of_the_text() {
    use super::super::KeyHash;

    let hash: LegacyHash = BCRYPT.parse().unwrap();
    let of = |text: &str| KeyHash::of(text.as_bytes());
    assert_eq!(hash.placeholder(), of(&format!("tower-api-key legacy\0{BCRYPT}")));
    assert_eq!(KeyHash::from_bytes(hash.digest()), of(BCRYPT));
}

#[cfg(feature = "legacy-hashes")]
mod verification {
    use super::*;

    /// Of each text below.
    const KEY: &str = "3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a";

    #[test]
    fn hashes_made_by_other_libraries_are_verified() {
        for (origin, text) in [
            ("bcrypt 5.0.0 of PyPI", BCRYPT),
            (
                "bcrypt 5.0.0 of PyPI, prefix 2a",
                "$2a$10$n5ofOYTtfAyAnpZ3NE5jEOoYzIhoA/QZHp96TJ9AY34yfrKNKekt6",
            ),
            (
                "bcryptjs 3.0.3 of npm",
                "$2b$10$CJakfv9HLgnAKTBqxHIDkO34zf5o89fsgkpyR9tecGdv70oJdvnmG",
            ),
            ("bcrypt 6.0.0 of npm", "$2b$10$lO5JJXLoxjHub9iWelC0qempavI7lh/74/hmCguvrsD/g9ouuzD0y"),
            (
                "Django 5.2's BCryptPasswordHasher",
                "bcrypt$$2b$04$CPn7BBSe5cl3NMNlICM4JegSGC0zabz27Tuo7S5ob4yQqjdDPh1hO",
            ),
            (
                "argon2-cffi 25.1.0, Argon2id",
                "$argon2id$v=19$m=64,t=2,p=2$9wRuXnQkXBOhUzQwTK81ZA$vUopilZlFpnIwe01M7Xca6JZLbk7yfRERGqM7Rv7R+Q",
            ),
            (
                "argon2-cffi 25.1.0, Argon2i",
                "$argon2i$v=19$m=64,t=2,p=2$ABBTyTReCo/vTc3WIY90SQ$64HqcUyNUcFKrI/ZKH763EUGZUiNVWOYPnmPcwgxtEM",
            ),
            (
                "argon2-cffi 25.1.0, Argon2d",
                "$argon2d$v=19$m=64,t=2,p=2$t3rFu3StKvjqe4Ys1eknMA$WOa9Y9E+5GQw1CH/8mM7N/cNHdWDLyNWCWfWrNjy5Y0",
            ),
            (
                "argon2-cffi 25.1.0, version 16",
                "$argon2id$v=16$m=64,t=2,p=1$c2FsdHNhbHQ$dvQbFGPt2vQDMXWcBieIroPH46yJCYmqPFNrBdYF0wk",
            ),
            (
                "the same, as written before versions were",
                "$argon2id$m=64,t=2,p=1$c2FsdHNhbHQ$dvQbFGPt2vQDMXWcBieIroPH46yJCYmqPFNrBdYF0wk",
            ),
            (
                "argon2-cffi 25.1.0, its default",
                "$argon2id$v=19$m=65536,t=3,p=4$KMhQlZTQEdNYj1YlC7rcBw$95vUa3yVBcoU8KCch8/TRnx7X6D1auhAlZWK4bu3WD4",
            ),
            (
                "Django 5.2's Argon2PasswordHasher",
                "argon2$argon2id$v=19$m=102400,t=2,p=8$SFI4YW8yZmliYmtWY2ozOEpyMmVpMA$aRTg4oeandO6sZVYtmCdY+hsrFzqserw7K9wbpblIrs",
            ),
            (
                "passlib 1.7.4, scrypt",
                "$scrypt$ln=10,r=8,p=1$WGtNyVkr5bw3htC6t3YuBQ$KJkVklHEmYnvOYAyL+TtWhsMJOothOgLJZ/NZYUNBLo",
            ),
            (
                "Django 5.2's ScryptPasswordHasher",
                "scrypt$16384$I9xUgc0Ha8IT2yzlkDPsWF$8$5$fgXmFa01eU7sRUAwKWTj1uiqzYPOdGF3gdqhKYGu3qHdVDx607t5qMQK0/JxgPBl6rTR9EJVhgpPMOIeyNH/3A==",
            ),
            (
                "passlib 1.7.4, pbkdf2_sha256",
                "$pbkdf2-sha256$1000$de69tzaGMEZoTQlhzFnLWQ$bEW4.hN5tL20NPTGUMhx55khlgtvLTje0CvOhYVGOLI",
            ),
            (
                "Django 5.2's PBKDF2PasswordHasher",
                "pbkdf2_sha256$1000$OzHVAWeh8IAgfZRNreWE5N$ZOUZ3OmcXDkaQwdLzOkYNAtxom2TzvlVl0d9nZR/agE=",
            ),
        ] {
            let hash: LegacyHash = text.parse().unwrap();
            assert!(hash.verify(KEY.as_bytes()), "{origin}");
            assert!(!hash.verify(KEY.replacen('a', "b", 1).as_bytes()), "{origin}");
            assert!(!hash.verify(b""), "{origin}");
        }
    }

    #[test]
    fn bcrypt_never_matches_a_key_that_it_would_cut() {
        // bcrypt 5.0.0 of PyPI, of 72 times `k`. Its earlier releases cut longer keys, and so made
        // the same of 73.
        let text = "$2b$04$6oBaxMdHP4rReEK0FZxS2OzbUqhifnfJrJooVgDYagXhJZGzFr87.";
        let hash: LegacyHash = text.parse().unwrap();
        assert!(hash.verify(&[b'k'; 72]));
        assert!(!hash.verify(&[b'k'; 73]));
        assert!(!hash.verify(&[b'k'; 71]));
    }
}
