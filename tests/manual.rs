#![cfg(test)]
//! What the manual promises, a test holds.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

#[path = "../examples/limits.rs"]
#[allow(dead_code, reason = "it is run as an example, too")]
mod limits;

/// The tables of `page`: rows of cells.
fn tables(page: &str) -> impl Iterator<Item = Vec<Vec<&str>>> {
    page.split("\n\n").map(str::trim).filter(|table| table.starts_with('|')).map(rows)
}

fn rows(table: &str) -> Vec<Vec<&str>> {
    let rows = table.lines().filter_map(|row| row.strip_prefix('|')?.strip_suffix('|'));
    rows.map(|row| row.split('|').map(str::trim).collect()).collect()
}

/// Of those tables of `page` whose last column names tests, that column.
fn tests_named(page: &str) -> Vec<&str> {
    let mut named = Vec::new();
    for table in tables(page) {
        let mut last = table.iter().filter_map(|row| row.last().copied());
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
    for (page, least) in
        [("bounds.md", 25), ("deployment.md", 15), ("freshness.md", 20), ("limits.md", 10)]
    {
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

const FIGURE: &str = "docs/limits.svg";

#[test]
fn the_figure_of_limits_is_what_limits_do() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FIGURE);
    let checked_in = fs::read_to_string(file).unwrap();
    assert!(
        checked_in == limits::svg().unwrap(),
        "{FIGURE} is out of date: cargo run --example limits > {FIGURE}, and look at it"
    );
}

#[test]
fn the_numbers_of_the_section_on_quotas_are_what_limits_do() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual/which_quota.md");
    let page = fs::read_to_string(file).unwrap();
    let has = |row: &[String]| {
        let row = format!("| {} |", row.join(" | "));
        assert!(page.lines().any(|line| line == row), "{row}");
    };
    let seconds = |wait: Duration| format!("{:.1} s", wait.as_secs_f64());
    let minute = Duration::from_secs(60);
    let [always, bursts] = &limits::CLIENTS;
    for (name, quota) in limits::quotas().unwrap() {
        let name = format!("`{name}`");
        let greedy = limits::admitted(&quota, always);
        let within = |from: Duration, to: Duration| {
            greedy.iter().filter(|at| (from..to).contains(at)).count().to_string()
        };
        let in_any = |from: &Duration| {
            greedy.iter().filter(|at| *at >= from && **at <= *from + minute).count()
        };
        let most = greedy.iter().map(in_any).max().unwrap();
        has(&[
            name.clone(),
            within(Duration::ZERO, Duration::from_nanos(1)),
            within(Duration::ZERO, minute),
            within(2 * minute, 3 * minute),
            most.to_string(),
            seconds(greedy.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()),
        ]);

        let patient = limits::admitted(&quota, bursts);
        let through = |turn: u32| {
            let last = usize::try_from(limits::LIMIT * (turn + 1)).unwrap() - 1;
            patient
                .get(last)
                .map_or_else(|| "not yet".to_owned(), |at| seconds(*at - turn * minute))
        };
        has(&[name, through(0), through(1), through(2)]);
    }
}
