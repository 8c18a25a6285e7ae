//! Wildcards among the scopes of a catalogue, such as `orders:*`.

/// What is before the `*` of a wildcard; `None` for another scope.
pub(super) const fn wildcard_stem(name: &str) -> Option<&str> {
    match name.as_bytes() {
        [_, .., b':' | b'.' | b'/', b'*'] => Some(name.split_at(name.len() - 1).0),
        _ => None,
    }
}

/// Whether `name` is a wildcard that covers `other`.
pub(super) const fn covers(name: &str, other: &str) -> bool {
    let Some(stem) = wildcard_stem(name) else { return false };
    let (mut stem, mut other_rest) = (stem.as_bytes(), other.as_bytes());
    while let ([first, rest @ ..], [same, others @ ..]) = (stem, other_rest) {
        if *first != *same {
            return false;
        }
        (stem, other_rest) = (rest, others);
    }
    stem.is_empty() && !matches!(other_rest, [] | [b'*'])
}

/// Whether `name` has a `*` elsewhere than at the end of a wildcard.
pub(super) const fn has_misplaced_star(name: &str) -> bool {
    let name = match wildcard_stem(name) {
        Some(stem) => stem,
        None => name,
    };
    let mut rest = name.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'*' {
            return true;
        }
        rest = after;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_ends_in_a_separator_and_a_star() {
        for (name, stem) in [("orders:*", "orders:"), ("a.b.*", "a.b."), ("a/*", "a/")] {
            assert_eq!(wildcard_stem(name), Some(stem));
            assert!(!has_misplaced_star(name));
        }
        for name in ["orders", "*", ":*", "orders*", "orders:*:read", "orders:**"] {
            assert_eq!(wildcard_stem(name), None, "{name}");
            assert_eq!(has_misplaced_star(name), name != "orders", "{name}");
        }
        assert!(has_misplaced_star("a:*:*"));
    }

    #[test]
    fn a_wildcard_covers_what_is_below_it_and_not_itself() {
        for other in ["orders:read", "orders:items:read", "orders:items:*"] {
            assert!(covers("orders:*", other), "{other}");
        }
        for other in ["orders:*", "orders:", "orders", "order:read", "orders.read", "books:read"] {
            assert!(!covers("orders:*", other), "{other}");
        }
        assert!(!covers("orders:read", "orders:read"));
    }
}
