//! The text forms, and the bounds that one verification has.

use std::ops::RangeInclusive;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::error::InvalidLegacyHash;

/// Padding is optional, and so are the bits after the last byte: encoders differ.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const BCRYPT: GeneralPurpose = GeneralPurpose::new(&alphabet::BCRYPT, LENIENT);

const BCRYPT_COST: RangeInclusive<u32> = 4..=14;
/// Of Argon2, in KiB.
const MAX_MEMORY: u32 = 128 * 1024;
/// Of Argon2: KiB times passes, of which an ordinary core fills about 1 GiB a second.
const MAX_MEMORY_PASSES: u32 = 1024 * 1024;
const MAX_LANES: u32 = 16;
/// Of scrypt, in bytes.
const MAX_SCRYPT_MEMORY: u64 = 128 << 20;
const MAX_SCRYPT_WORK: u64 = 256 << 20;
const MAX_ITERATIONS: u32 = 1_500_000;
const SALT: RangeInclusive<usize> = 8..=64;
const HASH: RangeInclusive<usize> = 16..=64;

/// The parts of a hash.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Parsed {
    Bcrypt { cost: u32, salt: [u8; 16], hash: [u8; 23] },
    Argon2 { kind: Argon2Kind, version: u32, costs: Argon2Costs, salted: Salted },
    Scrypt { log_n: u8, r: u32, p: u32, salted: Salted },
    Pbkdf2 { iterations: u32, salted: Salted },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Argon2Kind {
    D,
    I,
    Id,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Argon2Costs {
    pub(super) memory: u32,
    pub(super) passes: u32,
    pub(super) lanes: u32,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Salted {
    pub(super) salt: Box<[u8]>,
    pub(super) hash: Box<[u8]>,
}

type Parsing<T> = Result<T, InvalidLegacyHash>;

impl Parsed {
    pub(super) fn of(text: &str) -> Parsing<Self> {
        let fields: Vec<_> = text.split('$').collect();
        match fields.as_slice() {
            // Django puts the name of its hasher before the first `$`.
            ["", rest @ ..] | ["bcrypt", "", rest @ ..] | ["argon2", rest @ ..] => modular(rest),
            ["pbkdf2_sha256", iterations, salt, hash] => django_pbkdf2(iterations, salt, hash),
            ["scrypt", n, salt, r, p, hash] => django_scrypt(n, salt, [r, p], hash),
            ["bcrypt_sha256", ..] => Err(invalid(
                "Django's `bcrypt_sha256` is not supported, which hashes a digest of the key",
            )),
            _ => Err(invalid(UNKNOWN)),
        }
    }

    pub(super) const fn algorithm(&self) -> &'static str {
        match self {
            Self::Bcrypt { .. } => "bcrypt",
            Self::Argon2 { .. } => "argon2",
            Self::Scrypt { .. } => "scrypt",
            Self::Pbkdf2 { .. } => "pbkdf2",
        }
    }
}

/// The forms that begin with `$` and the name of the algorithm.
fn modular(fields: &[&str]) -> Parsing<Parsed> {
    match fields {
        ["2a" | "2b" | "2y", cost, rest] => bcrypt(cost, rest),
        ["2" | "2x", ..] => Err(invalid(
            "`$2$` and `$2x$` are of broken versions of bcrypt; issue keys with such hashes again",
        )),
        ["argon2id", rest @ ..] => argon2(Argon2Kind::Id, rest),
        ["argon2i", rest @ ..] => argon2(Argon2Kind::I, rest),
        ["argon2d", rest @ ..] => argon2(Argon2Kind::D, rest),
        ["scrypt", parameters, salt, hash] => phc_scrypt(parameters, salt, hash),
        ["pbkdf2-sha256", parameters, salt, hash] => phc_pbkdf2(parameters, salt, hash),
        _ => Err(invalid(UNKNOWN)),
    }
}

const UNKNOWN: &str = "it must begin with $2a$, $2b$, $2y$, $argon2id$, $argon2i$, $argon2d$, \
    $scrypt$ or $pbkdf2-sha256$, or as Django's hashers name it";

fn bcrypt(cost: &str, rest: &str) -> Parsing<Parsed> {
    if cost.len() != 2 {
        return Err(invalid("the cost of bcrypt has two digits"));
    }
    let cost = within("the cost", number("the cost", cost)?, BCRYPT_COST)?;
    let (salt, hash) = rest.split_at_checked(22).ok_or_else(|| invalid(BCRYPT_LENGTH))?;
    let decode = |text: &str| BCRYPT.decode(text).map_err(|_| invalid(BCRYPT_LENGTH));
    let salt = decode(salt)?.try_into().map_err(|_| invalid(BCRYPT_LENGTH))?;
    let hash = decode(hash)?.try_into().map_err(|_| invalid(BCRYPT_LENGTH))?;
    Ok(Parsed::Bcrypt { cost, salt, hash })
}

const BCRYPT_LENGTH: &str =
    "after its cost, bcrypt has 53 characters of its base64 alphabet: the hash was cut or changed";

fn argon2(kind: Argon2Kind, fields: &[&str]) -> Parsing<Parsed> {
    let (version, fields) = match fields {
        [version, rest @ ..] if version.starts_with("v=") => (*version, rest),
        // The first version did not name itself.
        fields => ("v=16", fields),
    };
    let version = match version {
        "v=16" => 16,
        "v=19" => 19,
        _ => return Err(invalid("the version of Argon2 must be 16 or 19")),
    };
    let [parameters, salt, hash] = fields else {
        return Err(invalid("Argon2 has parameters, a salt and a hash"));
    };
    let [memory, passes, lanes] = parameters_of(parameters, ["m", "t", "p"])?;
    let lanes = within("the parallelism `p` of Argon2", lanes, 1..=MAX_LANES)?;
    let memory = within("the memory `m` of Argon2, in KiB,", memory, 8 * lanes..=MAX_MEMORY)?;
    let most = (MAX_MEMORY_PASSES / memory).max(1);
    let passes = within("the number of passes `t` of Argon2 with that memory", passes, 1..=most)?;
    let costs = Argon2Costs { memory, passes, lanes };
    Ok(Parsed::Argon2 { kind, version, costs, salted: salted(salt, hash)? })
}

fn phc_scrypt(parameters: &str, salt: &str, hash: &str) -> Parsing<Parsed> {
    let [log_n, r, p] = parameters_of(parameters, ["ln", "r", "p"])?;
    scrypt(log_n, r, p, salted(salt, hash)?)
}

fn django_scrypt(n: &str, salt: &str, [r, p]: [&str; 2], hash: &str) -> Parsing<Parsed> {
    let n = number("the work factor of scrypt", n)?;
    if !n.is_power_of_two() {
        return Err(invalid("the work factor of scrypt must be a power of two"));
    }
    let (r, p) = (number("the block size of scrypt", r)?, number("the parallelism of scrypt", p)?);
    scrypt(n.ilog2(), r, p, text_salted(salt, hash)?)
}

fn scrypt(log_n: u32, r: u32, p: u32, salted: Salted) -> Parsing<Parsed> {
    let log_n = within("the cost `ln` of scrypt", log_n, 1..=20)?;
    let r = within("the block size `r` of scrypt", r, 1..=64)?;
    let p = within("the parallelism `p` of scrypt", p, 1..=64)?;
    let memory = (128 * u64::from(r)) << log_n;
    if memory > MAX_SCRYPT_MEMORY {
        return Err(invalid("scrypt may use at most 128 MiB (128 × r × 2^ln)"));
    }
    if memory * u64::from(p) > MAX_SCRYPT_WORK {
        return Err(invalid("scrypt may use at most 256 MiB in all (128 × r × 2^ln × p)"));
    }
    let log_n = u8::try_from(log_n).map_err(|_| invalid("the cost of scrypt is too high"))?;
    Ok(Parsed::Scrypt { log_n, r, p, salted })
}

/// RustCrypto writes `i=600000` and perhaps the length, passlib the number alone.
fn phc_pbkdf2(parameters: &str, salt: &str, hash: &str) -> Parsing<Parsed> {
    let salted = salted(salt, hash)?;
    let (iterations, len) = match parameters.split_once(',') {
        Some((iterations, len)) => (iterations, Some(len)),
        None => (parameters, None),
    };
    if len.is_some_and(|len| len != format!("l={}", salted.hash.len())) {
        return Err(invalid("PBKDF2 has the parameters `i` and `l`, the length of the hash"));
    }
    let iterations = iterations.strip_prefix("i=").unwrap_or(iterations);
    pbkdf2(iterations, salted)
}

fn django_pbkdf2(iterations: &str, salt: &str, hash: &str) -> Parsing<Parsed> {
    pbkdf2(iterations, text_salted(salt, hash)?)
}

fn pbkdf2(iterations: &str, salted: Salted) -> Parsing<Parsed> {
    const NAME: &str = "the number of iterations of PBKDF2";
    let iterations = within(NAME, number(NAME, iterations)?, 1..=MAX_ITERATIONS)?;
    Ok(Parsed::Pbkdf2 { iterations, salted })
}

fn salted(salt: &str, hash: &str) -> Parsing<Salted> {
    Ok(Salted { salt: bytes("salt", salt, SALT)?, hash: bytes("hash", hash, HASH)? })
}

/// Django's salts are text, and used as they are.
fn text_salted(salt: &str, hash: &str) -> Parsing<Salted> {
    if !SALT.contains(&salt.len()) {
        return Err(invalid("its salt must have 8 to 64 bytes"));
    }
    Ok(Salted { salt: salt.as_bytes().into(), hash: bytes("hash", hash, HASH)? })
}

/// passlib's base64 has `.` for `+`.
fn bytes(name: &str, text: &str, len: RangeInclusive<usize>) -> Parsing<Box<[u8]>> {
    let standard = text.replace('.', "+");
    let bytes = STANDARD.decode(standard).map_err(|_| {
        InvalidLegacyHash::new(format!("its {name} is not base64: it was cut or changed"))
    })?;
    if !len.contains(&bytes.len()) {
        let (least, most) = len.into_inner();
        let problem = format!("its {name} must have {least} to {most} bytes, not {}", bytes.len());
        return Err(InvalidLegacyHash::new(problem));
    }
    Ok(bytes.into())
}

/// The values of exactly these parameters, in this order, as the PHC form has them.
fn parameters_of<const N: usize>(text: &str, names: [&str; N]) -> Parsing<[u32; N]> {
    let wrong = || {
        let names = names.map(|name| format!("{name}=…")).join(",");
        InvalidLegacyHash::new(format!("its parameters must be {names}"))
    };
    let mut fields = text.split(',');
    let mut values = [0; N];
    for (value, name) in values.iter_mut().zip(names) {
        let field = fields.next().and_then(|field| field.strip_prefix(name)?.strip_prefix('='));
        *value = number(name, field.ok_or_else(wrong)?)?;
    }
    if fields.next().is_some() { Err(wrong()) } else { Ok(values) }
}

fn number(name: &str, text: &str) -> Parsing<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if is_number { text.parse().ok() } else { None };
    number.ok_or_else(|| InvalidLegacyHash::new(format!("{name} must be a number below 2^32")))
}

fn within(name: &str, value: u32, range: RangeInclusive<u32>) -> Parsing<u32> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (least, most) = range.into_inner();
    Err(InvalidLegacyHash::new(format!("{name} must be {least} to {most}, not {value}")))
}

fn invalid(problem: &'static str) -> InvalidLegacyHash {
    InvalidLegacyHash::new(problem)
}
