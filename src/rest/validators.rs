//! Entity tags: a key's is its version (RFC 9110 §8.8.3).

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{IF_MATCH, IF_NONE_MATCH},
};

use super::refusal::Refusal;

pub(super) fn etag(version: u64) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("\"{version}\"")).ok()
}

/// Versions count from 1.
const NO_VERSION: u64 = 0;

/// The version that a key must have to be changed, or one that none has. RFC 9110 §13.1.1: a weak
/// tag never matches.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = list(headers, &IF_MATCH)? else { return Ok(None) };
    match *tags(&value).ok_or_else(|| malformed("If-Match"))? {
        ["*"] => Ok(None),
        [tag] => Ok(version(tag).or(Some(NO_VERSION))),
        _ => Err(Refusal::header("If-Match", "Send one entity tag, or `*`.")),
    }
}

/// Whether the client has this version already. RFC 9110 §13.1.2: a weak tag matches too.
pub(super) fn is_known(headers: &HeaderMap, current: u64) -> Result<bool, Refusal> {
    let Some(value) = list(headers, &IF_NONE_MATCH)? else { return Ok(false) };
    let strong = |tag: &str| version(tag.strip_prefix("W/").unwrap_or(tag));
    let tags = tags(&value).ok_or_else(|| malformed("If-None-Match"))?;
    Ok(tags.iter().any(|tag| *tag == "*" || strong(tag) == Some(current)))
}

/// All values of a header, as one list.
fn list(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Refusal> {
    let values: Result<Vec<_>, _> = headers.get_all(name).iter().map(HeaderValue::to_str).collect();
    match values {
        Ok(values) if values.is_empty() => Ok(None),
        Ok(values) => Ok(Some(values.join(","))),
        Err(_) if *name == IF_MATCH => Err(malformed("If-Match")),
        Err(_) => Err(malformed("If-None-Match")),
    }
}

fn malformed(name: &'static str) -> Refusal {
    Refusal::header(name, "Send `*`, or an entity tag, which stands between quotes.")
}

/// `*`, or entity tags with commas between them.
fn tags(list: &str) -> Option<Box<[&str]>> {
    let mut rest = list.trim();
    if rest == "*" {
        return Some([rest].into());
    }
    let mut tags = Vec::new();
    loop {
        let opaque = rest.strip_prefix("W/").unwrap_or(rest).strip_prefix('"')?;
        let (text, after) = opaque.split_once('"')?;
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        tags.push(rest.get(..rest.len() - after.len())?);
        rest = after.trim_start();
        if rest.is_empty() {
            return Some(tags.into());
        }
        rest = rest.strip_prefix(',')?.trim_start();
    }
}

fn version(tag: &str) -> Option<u64> {
    let version: u64 = tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()?;
    // As it was given out, and no other way to write it.
    (etag(version)? == tag).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Option<Option<u64>> {
        let headers = HeaderMap::from_iter([(IF_MATCH, value.parse().unwrap())]);
        if_match(&headers).ok()
    }

    #[test]
    fn one_strong_tag_is_a_version() {
        assert_eq!(read("\"7\""), Some(Some(7)));
        assert_eq!(read("*"), Some(None));
        for unmet in ["W/\"7\"", "\"a,b\"", "\"07\"", "\"+7\"", "\"\"", "\"x\"", "\"-1\""] {
            assert_eq!(read(unmet), Some(Some(NO_VERSION)), "{unmet}");
        }
        for wrong in ["\"7\", \"8\"", ",", "", "7", "\"7", "\"7\",", "\"7\" \"8\"", "*, \"7\""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn any_of_several_tags_is_known() {
        let known = |value: &str| {
            let headers = HeaderMap::from_iter([(IF_NONE_MATCH, value.parse().unwrap())]);
            is_known(&headers, 7).unwrap()
        };
        for value in ["\"7\"", "W/\"7\"", "\"6\", \"7\"", "*"] {
            assert!(known(value), "{value}");
        }
        for value in ["\"6\"", "W/\"6\"", "\"7,\""] {
            assert!(!known(value), "{value}");
        }
    }
}
