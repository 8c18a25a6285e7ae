use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::rate_limit::{CountedPer, Quota, Subject};

/// Braces and colons have a meaning in the names of Redis keys, and names are read by people.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'@');
const MAX_PREFIX_LEN: usize = 64;

/// The key that holds a bucket. Redis Cluster keeps keys together whose names have the same text in
/// braces: all buckets of one consumer.
pub(super) fn key(prefix: &str, subject: &Subject<'_>, quota: &Quota) -> String {
    let consumer = escape(subject.consumer());
    // Nothing in braces would be no tag; an escaped name is never a lone percent sign.
    let consumer = if consumer.is_empty() { "%" } else { &consumer };
    let class = if subject.class().is_some() { "class:" } else { "" };
    let policy = escape(&[class, quota.name()].concat());
    match quota.counted_per() {
        CountedPer::Key => format!("{prefix}:{{{consumer}}}:k:{:032x}:{policy}", subject.root()),
        CountedPer::Consumer => format!("{prefix}:{{{consumer}}}:c:{policy}"),
    }
}

fn escape(name: &str) -> String {
    utf8_percent_encode(name, ESCAPED).to_string()
}

/// A brace in the prefix would be the tag of all keys.
pub(super) fn is_prefix(prefix: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    !prefix.is_empty() && prefix.len() <= MAX_PREFIX_LEN && prefix.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_of_one_consumer_have_one_hash_tag_and_names_of_their_own() {
        let (minute, day) =
            (Quota::per_minute(1).unwrap(), Quota::per_hour(9).unwrap().per_consumer());
        let of_key = key("tower-api-key", &Subject::of_key("acme", 0xab), &minute);
        assert_eq!(of_key, "tower-api-key:{acme}:k:000000000000000000000000000000ab:minute");
        let of_consumer = key("shop", &Subject::of_key("acme", 0xab), &day);
        assert_eq!(of_consumer, "shop:{acme}:c:hour");
    }

    #[test]
    fn no_consumer_can_take_the_place_of_another() {
        let consumers = ["a", "a}", "{a}", "a:c", "a b", "a\n", "a%7D", "ä", "A", "", "%", "\0"];
        let day = Quota::per_hour(9).unwrap().per_consumer();
        let names: std::collections::BTreeSet<_> = consumers
            .iter()
            .map(|consumer| key("p", &Subject::of_key(consumer, 1), &day))
            .collect();
        assert_eq!(names.len(), consumers.len());
        for name in names {
            assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name}");
            assert_eq!(name.matches(['{', '}']).count(), 2, "{name}");
            assert!(!name.contains("{}"), "{name}");
        }
    }

    #[test]
    fn a_prefix_leaves_the_hash_tag_alone() {
        assert!(is_prefix("shop:limits"));
        for prefix in ["", "a{b}", "a b", "ä", &"a".repeat(65)] {
            assert!(!is_prefix(prefix), "{prefix}");
        }
    }
}
