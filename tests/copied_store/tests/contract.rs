//! The suites find the bugs of a store that another crate wrote, and nothing without them.

use copied_store::{Bugs, CopiedStore};
use tower_api_key::{
    key_store_contract, manage_keys_contract,
    rate_limit::LocalRateLimiter,
    rate_limiter_contract,
    test_util::contract::{self, Violations},
};

key_store_contract!(looks_up, async || (CopiedStore::default(), ()));
manage_keys_contract!(manages, async || (CopiedStore::default(), ()));
rate_limiter_contract!(limits, async || (LocalRateLimiter::new(), ()));

async fn found(bugs: Bugs) -> Violations {
    let checked = contract::manage_keys(async || (CopiedStore::with(bugs), ())).await;
    checked.expect_err("a store with a planted bug passed")
}

fn rules(violations: &Violations) -> Vec<&'static str> {
    violations.iter().map(|(rule, _)| rule).collect()
}

const LISTING: [&str; 2] =
    ["pages_have_each_key_once", "pages_have_each_key_once_while_keys_are_added"];

#[tokio::test]
async fn a_revoked_key_that_works_again_after_an_update_is_found() {
    let violations = found(Bugs { stale_snapshot: true, ..Bugs::default() }).await;
    assert!(rules(&violations).contains(&"a_revocation_survives_a_concurrent_update"));
    assert!(!rules(&violations).contains(&LISTING[0]), "{violations}");
    let text = violations.to_string();
    assert!(text.contains("an update must fail as a conflict if the key was revoked"), "{text}");
}

#[tokio::test]
async fn a_key_that_a_page_leaves_out_is_found() {
    let violations = found(Bugs { cursor_skips: true, ..Bugs::default() }).await;
    assert_eq!(rules(&violations), LISTING, "{violations}");
    let text = violations.to_string();
    assert!(text.contains("the pages must have each key exactly once"), "{text}");
}

#[tokio::test]
async fn both_are_found_in_one_run() {
    let violations = found(Bugs { stale_snapshot: true, cursor_skips: true }).await;
    let rules = rules(&violations);
    assert!(rules.contains(&"a_revocation_survives_a_concurrent_update"), "{violations}");
    assert!(LISTING.iter().all(|rule| rules.contains(rule)), "{violations}");
}
