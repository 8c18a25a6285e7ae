/// Maximum bytes of a text stored with a key: consumer ids, names, reasons, prefixes.
pub(crate) const MAX_TEXT: usize = 1024;

/// Error text for an invalid plan name.
pub(crate) const PLAN_NAMES: &str = "a plan name must be 1 to 64 letters, digits, `-`, `_` or `.`";

const MAX_LEN: usize = 64;

/// The same rule as for the name of a [`Quota`](crate::rate_limit::Quota).
pub(crate) fn is_plan_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_LEN).contains(&name.len()) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::Quota;

    #[test]
    fn a_plan_can_be_called_whatever_a_quota_can() {
        let quota = Quota::per_second(1).unwrap();
        let (long, longer) = ("a".repeat(64), "a".repeat(65));
        for name in ["", "a", "pro", "Team-5_eu.v2", "a b", "a/b", "a\n", "\0", "é", &long, &longer]
        {
            assert_eq!(is_plan_name(name), quota.clone().named(name).is_ok(), "{name:?}");
        }
        assert!(is_plan_name(&long) && !is_plan_name(&longer));
    }
}
