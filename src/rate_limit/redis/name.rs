use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::rate_limit::port::Subject;

/// Braces and colons have a meaning in names of Redis keys; the rest is left readable.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'@');
const MAX_PREFIX_LEN: usize = 64;

/// The name of a key's cell. Redis Cluster keeps keys with the same hash tag (the text in braces)
/// together: all cells of one consumer.
pub(super) fn of_key(prefix: &str, subject: &Subject<'_>) -> String {
    format!("{}:k:{:032x}{}", of_tag(prefix, subject), subject.root(), class(subject))
}

/// The name of the cell of a consumer, shared by its keys.
pub(super) fn of_consumer(prefix: &str, subject: &Subject<'_>) -> String {
    format!("{}:c{}", of_tag(prefix, subject), class(subject))
}

fn of_tag(prefix: &str, subject: &Subject<'_>) -> String {
    let consumer = escape(subject.consumer());
    // Empty braces are not a hash tag. A lone percent sign is never the result of escaping.
    let consumer = if consumer.is_empty() { "%" } else { &consumer };
    format!("{prefix}:{{{consumer}}}")
}

fn class(subject: &Subject<'_>) -> String {
    subject.class().map_or_else(String::new, |class| format!(":{}", escape(class)))
}

fn escape(name: &str) -> String {
    utf8_percent_encode(name, ESCAPED).to_string()
}

/// Braces are not allowed: they would be the hash tag of all keys.
pub(super) fn is_prefix(prefix: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    !prefix.is_empty() && prefix.len() <= MAX_PREFIX_LEN && prefix.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(consumer: &str) -> Subject<'_> {
        Subject::of_key(consumer, 0xab)
    }

    #[test]
    fn cells_of_one_consumer_have_one_hash_tag_and_names_of_their_own() {
        let root = "000000000000000000000000000000ab";
        assert_eq!(
            of_key("tower-api-key", &of("acme")),
            format!("tower-api-key:{{acme}}:k:{root}")
        );
        assert_eq!(of_consumer("shop", &of("acme")), "shop:{acme}:c");
        let class = of("acme").in_class("a search");
        assert_eq!(of_key("shop", &class), format!("shop:{{acme}}:k:{root}:a%20search"));
        assert_eq!(of_consumer("shop", &class), "shop:{acme}:c:a%20search");
    }

    #[test]
    fn no_consumer_can_take_the_place_of_another() {
        let consumers = ["a", "a}", "{a}", "a:c", "a b", "a\n", "a%7D", "ä", "A", "", "%", "\0"];
        let names: std::collections::BTreeSet<_> =
            consumers.iter().map(|consumer| of_consumer("p", &of(consumer))).collect();
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
