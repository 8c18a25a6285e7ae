#![cfg(test)]
//! What the manual promises, a test holds.

use std::{collections::BTreeMap, fs, path::Path};

/// The tables of `page`: their rows, cell by cell.
fn rows(page: &str) -> Vec<Vec<&str>> {
    page.lines()
        .filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'))
        .map(|row| row.split('|').map(str::trim).collect())
        .collect()
}

#[test]
fn each_bound_names_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("src/manual/freshness.md")).unwrap();
    let mut files = BTreeMap::new();
    let mut named = 0;
    let bounds = rows(&page).into_iter().filter(|row| {
        let last = row.last().copied().unwrap_or_default();
        last != "test" && !last.starts_with('-')
    });
    for row in bounds {
        let tests: Vec<_> = row[row.len() - 1].split_whitespace().collect();
        assert!(!tests.is_empty(), "no test holds {row:?}");
        for test in tests {
            let path = test.strip_prefix('`').and_then(|test| test.strip_suffix('`'));
            let (file, name) = path.and_then(|path| path.split_once("::")).expect(test);
            let text = files.entry(file.to_owned()).or_insert_with(|| {
                fs::read_to_string(root.join(format!("tests/{file}.rs"))).expect(file)
            });
            assert!(text.contains(&format!("fn {name}(")), "there is no test {test}");
            named += 1;
        }
    }
    assert!(named >= 20, "the tables of the manual were not found");
}
