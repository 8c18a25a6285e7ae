//! Mistakes in scopes are compile errors, which say what is wrong.

#[test]
fn mistakes_do_not_compile_and_say_why() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/refused/*.rs");
    // With this, trybuild builds instead of checking: an empty list is an error only then.
    cases.pass("tests/accepted/*.rs");
}
