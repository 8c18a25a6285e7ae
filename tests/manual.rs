#![cfg(test)]
//! What the manual promises, a test holds.

use std::{collections::BTreeMap, fs, path::Path};

/// Of those tables of `page` whose last column names tests, that column.
fn tests_named(page: &str) -> Vec<&str> {
    let mut named = Vec::new();
    for table in page.split("\n\n").filter(|table| table.trim_start().starts_with('|')) {
        let mut last = table
            .trim()
            .lines()
            .filter_map(|row| Some(row.strip_suffix('|')?.rsplit('|').next()?.trim()));
        if last.next() == Some("test") {
            named.extend(last.skip(1));
        }
    }
    named
}

#[test]
fn each_bound_names_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = BTreeMap::new();
    for (page, least) in [("freshness.md", 20), ("limits.md", 10)] {
        let text = fs::read_to_string(root.join("src/manual").join(page)).unwrap();
        let bounds = tests_named(&text);
        assert!(bounds.len() >= least, "the tables of {page} were not found");
        for tests in bounds {
            assert!(!tests.is_empty(), "no test holds a bound of {page}");
            for test in tests.split_whitespace() {
                let path = test.strip_prefix('`').and_then(|test| test.strip_suffix('`'));
                let (file, name) = path.and_then(|path| path.split_once("::")).expect(test);
                let text = files.entry(file.to_owned()).or_insert_with(|| {
                    fs::read_to_string(root.join(format!("tests/{file}.rs"))).expect(file)
                });
                assert!(text.contains(&format!("fn {name}(")), "there is no test {test}");
            }
        }
    }
}
