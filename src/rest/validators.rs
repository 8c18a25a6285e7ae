//! Entity tags (RFC 9110 §8.8.3). The tag of a key is its version.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{IF_MATCH, IF_NONE_MATCH},
};

pub(super) fn etag(version: u64) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("\"{version}\"")).ok()
}

/// The versions in `If-Match`; `None` if any version may be changed. A weak tag never matches (RFC
/// 9110 §13.1.1).
pub(super) fn if_match(headers: &HeaderMap) -> Option<Vec<u64>> {
    let tags = tags(headers, &IF_MATCH)?;
    if tags.contains(&"*") {
        return None;
    }
    Some(tags.into_iter().filter_map(version).collect())
}

/// Whether `If-None-Match` has the current version. A weak tag matches too (RFC 9110 §13.1.2).
pub(super) fn is_known(headers: &HeaderMap, current: u64) -> bool {
    let known = |tag: &str| tag == "*" || version(tag.trim_start_matches("W/")) == Some(current);
    tags(headers, &IF_NONE_MATCH).is_some_and(|tags| tags.into_iter().any(known))
}

/// The tags of the header; `None` without the header. Our tags never contain commas, so splitting
/// on `,` is safe: foreign tags simply fail to match.
fn tags<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<Vec<&'h str>> {
    if !headers.contains_key(name) {
        return None;
    }
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    Some(values.flat_map(|value| value.split(',')).map(str::trim).collect())
}

fn version(tag: &str) -> Option<u64> {
    let version: u64 = tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()?;
    // Only the canonical form: `"07"` parses to 7, but is not our tag.
    (etag(version)? == tag).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn strong_tags_are_versions_to_match() {
        let read = |value| if_match(&headers(IF_MATCH, value));
        assert_eq!(if_match(&HeaderMap::new()), None);
        assert_eq!(read("*"), None);
        assert_eq!(read("\"7\""), Some(vec![7]));
        assert_eq!(read("\"7\", W/\"8\",\"x\" , \"9\""), Some(vec![7, 9]));
        for unmet in
            ["W/\"7\"", "\"a,b\"", "\"07\"", "\"+7\"", "\"\"", "\"x\"", "7", "\"7", "", ","]
        {
            assert_eq!(read(unmet), Some(vec![]), "{unmet}");
        }
    }

    #[test]
    fn any_of_several_tags_is_known() {
        let known = |value| is_known(&headers(IF_NONE_MATCH, value), 7);
        for value in ["\"7\"", "W/\"7\"", "\"6\", \"7\"", "*"] {
            assert!(known(value), "{value}");
        }
        for value in ["\"6\"", "W/\"6\"", "7", "", "\"7,\""] {
            assert!(!known(value), "{value}");
        }
        assert!(!is_known(&HeaderMap::new(), 7));
    }
}
