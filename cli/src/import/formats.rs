use tower_api_key::key::{AcceptedFormat, KeyHash};

use super::line;

/// The formats of the keys to import, as the service accepts them; none if any will do.
#[derive(Clone, Debug)]
pub(super) struct Formats(pub(super) Vec<AcceptedFormat>);

impl Formats {
    /// The hash to store for a key whose digest is `hash`, and which shows `prefix` and `last4`.
    pub(super) fn stored_hash(
        &self,
        hash: &str,
        prefix: &str,
        last4: &str,
    ) -> Result<KeyHash, String> {
        if self.0.is_empty() {
            return line::hash(hash).map_err(|problem| format!("hash: {problem}"));
        }
        let possible = self.0.iter().filter(|format| format.may_show(prefix, last4));
        let possible: Vec<_> = possible.collect();
        if possible.is_empty() {
            return Err("prefix, last4: no key of a format that --accept names has these: the \
                service would refuse the key"
                .to_owned());
        }
        let mut digests = Vec::new();
        let mut problem = String::new();
        for format in possible {
            match format.digest().stored_hash_of_text(hash) {
                Ok(hash) if digests.contains(&hash) => {}
                Ok(hash) => digests.push(hash),
                Err(error) => problem = format!("hash: {error}"),
            }
        }
        match *digests {
            [hash] => Ok(hash),
            [] => Err(problem),
            _ => Err("hash: it may be of several formats with different digests: import the keys \
                of each format by themselves, with one --accept"
                .to_owned()),
        }
    }
}
