use tower_api_key::key::{AcceptedFormat, KeyHash};

use super::report::Problem;

/// The formats of the keys to import, as the service accepts them; none if any will do.
#[derive(Clone, Debug, Default)]
pub(super) struct Formats(pub(super) Vec<AcceptedFormat>);

impl Formats {
    /// The hash to store for a key whose digest is `hash`, and which shows `prefix` and `last4`.
    pub(super) fn stored_hash(
        &self,
        hash: &str,
        prefix: &str,
        last4: &str,
    ) -> Result<KeyHash, Problem> {
        if self.0.is_empty() {
            return hash.parse().map_err(|_| Problem::new("hash", NOT_SHA256));
        }
        let mut digests = Vec::new();
        let mut refused = String::new();
        for format in self.showing(prefix, last4)? {
            match format.digest().stored_hash_of_text(hash) {
                Ok(hash) if digests.contains(&hash) => {}
                Ok(hash) => digests.push(hash),
                Err(error) => refused = error.to_string(),
            }
        }
        match *digests {
            [hash] => Ok(hash),
            [] => Err(Problem::new("hash", refused)),
            _ => Err(Problem::new("hash", SEVERAL)),
        }
    }

    /// Refuses a key that no service would accept, by its beginning and its end.
    pub(super) fn check(&self, begin: &str, end: &str) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { self.showing(begin, end).map(|_| ()) }
    }

    /// The formats of keys that may show `prefix` and `last4`.
    fn showing(&self, prefix: &str, last4: &str) -> Result<Vec<&AcceptedFormat>, Problem> {
        let possible = self.0.iter().filter(|format| format.may_show(prefix, last4));
        let possible: Vec<_> = possible.collect();
        if possible.is_empty() {
            let problem = "prefix, last4: no key of a format that --accept names has these: the \
                service would refuse the key";
            return Err(Problem::of("prefix", problem));
        }
        Ok(possible)
    }
}

const NOT_SHA256: &str = "not a SHA-256: 64 hexadecimal digits, or 43 characters of base64. If it \
    is the key itself, hash it first: printf %s \"$KEY\" | sha256sum, or a whole file by --plaintext";

const SEVERAL: &str = "it may be of several formats with different digests: import the keys of each \
    format by themselves, with one --accept";
