#![cfg(test)]
//! Every promise of the manual has a test: a comment in the page names it, and it exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

#[path = "../examples/limits.rs"]
#[allow(dead_code, reason = "it is run as an example, too")]
mod limits;

/// What a page states, and the tests of it: a row of a table, an item of a list, or a paragraph.
struct Statement<'a> {
    text: String,
    tests: Vec<&'a str>,
}

/// The statements of those blocks of `page` that a comment with tests follows. For each row, item or
/// paragraph in turn, the comment has its first words and, indented, the names of its tests:
///
/// ```text
/// <!-- tests
/// scopes
///   bounds::a_key_has_at_most_128_scopes
/// -->
/// ```
fn statements(page: &str) -> Result<Vec<Statement<'_>>, String> {
    let mut all = Vec::new();
    let mut before = Vec::new();
    for block in page.split("\n\n").map(|block| block.trim_matches('\n')) {
        if !block.contains("<!--") && !block.contains("-->") {
            before = texts(block);
            continue;
        }
        let lines = block.strip_prefix("<!-- tests\n").and_then(|rest| rest.strip_suffix("\n-->"));
        let lines = lines.ok_or_else(|| format!("not a comment with tests: {block}"))?;
        all.extend(matched(std::mem::take(&mut before), lines)?);
    }
    Ok(all)
}

fn matched(texts: Vec<String>, comment: &str) -> Result<Vec<Statement<'_>>, String> {
    let mut entries: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in comment.lines() {
        match (line.strip_prefix("  "), entries.last_mut()) {
            (Some(test), Some((_, tests))) => tests.push(test),
            (Some(test), None) => return Err(format!("{test} belongs to no statement")),
            (None, _) => entries.push((line, Vec::new())),
        }
    }
    if texts.len() != entries.len() {
        return Err(format!(
            "{} statements, and tests of {}: {comment}",
            texts.len(),
            entries.len()
        ));
    }
    let pairs = texts.into_iter().zip(entries);
    pairs
        .map(|(text, (beginning, tests))| {
            if !text.starts_with(beginning) {
                Err(format!("the comment has {beginning:?} in the place of {text:?}"))
            } else if tests.is_empty() {
                Err(format!("no test holds {text:?}"))
            } else {
                Ok(Statement { text, tests })
            }
        })
        .collect()
}

/// The rows of a table without its head, the items of a list, or a paragraph, each on one line.
fn texts(block: &str) -> Vec<String> {
    let is_item = |line: &str| line.starts_with("- ");
    if block.starts_with('|') {
        let rows = block.lines().skip(2).map(|row| row.trim_matches('|').trim().to_owned());
        return rows.collect();
    }
    let mut texts: Vec<String> = Vec::new();
    let is_list = block.lines().next().is_some_and(is_item);
    for line in block.lines() {
        match texts.last_mut() {
            Some(text) if !(is_list && is_item(line)) => {
                text.push(' ');
                text.push_str(line.trim());
            }
            _ => texts.push(line.strip_prefix("- ").unwrap_or(line).to_owned()),
        }
    }
    texts
}

/// How many statements of `page` have tests, all of which are there.
fn check(page: &str, has_test: &mut dyn FnMut(&str, &str) -> bool) -> Result<usize, String> {
    let statements = statements(page)?;
    for Statement { text, tests } in &statements {
        for test in tests {
            let (file, name) = test
                .split_once("::")
                .ok_or_else(|| format!("{test:?}, of {text:?}, is not FILE::TEST"))?;
            if !has_test(file, name) {
                return Err(format!("there is no test {test}, of {text:?}"));
            }
        }
    }
    Ok(statements.len())
}

#[test]
fn each_bound_names_a_test_that_is_there() {
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let pages = [
        ("attacks.md", 11),
        ("bounds.md", 32),
        ("browsers.md", 28),
        ("deployment.md", 21),
        ("freshness.md", 52),
        ("grpc.md", 26),
        ("keys.md", 16),
        ("leaks.md", 23),
        ("legacy_hashes.md", 16),
        ("limits.md", 34),
        ("moving_in.md", 38),
        ("observability.md", 15),
        ("scanning.md", 17),
        ("shadow.md", 15),
        ("testing.md", 19),
        ("usage.md", 17),
        ("usage_counts.md", 24),
        ("webhooks.md", 24),
        ("your_tables.md", 17),
    ];
    for (page, least) in pages {
        let text = fs::read_to_string(root().join("src/manual").join(page)).unwrap();
        let stated = check(&text, &mut |file, name| {
            let tests =
                files.entry(file.to_owned()).or_insert_with(|| Tests::of(&source_of(file)).names);
            tests.contains(name)
        });
        let stated = stated.unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(stated >= least, "only {stated} statements of {page} name tests");
    }
}

#[test]
fn a_statement_has_the_tests_of_the_comment_behind_it() {
    let page = "\
A paragraph
of two lines.

<!-- tests
A paragraph of
  one::of_a_paragraph
-->

| what | at most |
|---|---|
| a row | 1 |
| a row | [2](crate::two) |

<!-- tests
a row
  one::of_a_row
  two::of_a_row
a row | [2]
  one::of_another
-->

A list without tests:

- one
- two

- An item
  of two lines
- Another - with a dash

<!-- tests
An item of two
  one::of_an_item
Another
  one::of_another_item
-->
";
    let statements = statements(page).unwrap();
    let found: Vec<_> =
        statements.iter().map(|it| (it.text.as_str(), it.tests.as_slice())).collect();
    let expected: &[(&str, &[&str])] = &[
        ("A paragraph of two lines.", &["one::of_a_paragraph"]),
        ("a row | 1", &["one::of_a_row", "two::of_a_row"]),
        ("a row | [2](crate::two)", &["one::of_another"]),
        ("An item of two lines", &["one::of_an_item"]),
        ("Another - with a dash", &["one::of_another_item"]),
    ];
    assert_eq!(found, expected);

    let mut asked = Vec::new();
    let stated = check(page, &mut |file, name| {
        asked.push(format!("{file}::{name}"));
        true
    });
    assert_eq!(stated, Ok(5));
    assert!(asked.iter().eq(expected.iter().flat_map(|(_, tests)| *tests)), "{asked:?}");
}

#[test]
fn a_statement_without_a_test_or_with_one_that_is_missing_is_an_error() {
    let table = "| what |\n|---|\n| first |\n| second |\n\n";
    let error_of = |comment: &str| {
        let page = format!("{table}{comment}\n");
        check(&page, &mut |file, name| file == "there" && name == "is").err()
    };
    let good = "<!-- tests\nfirst\n  there::is\nsecond\n  there::is\n-->";
    assert_eq!(error_of(good), None);
    for (comment, expected) in [
        // A test that is missing, in a file that is there or not, and a name that is none.
        (good.replacen("there::is", "there::was", 1), "there is no test there::was, of \"first\""),
        (good.replacen("there::is", "here::is", 1), "there is no test here::is, of \"first\""),
        (good.replacen("there::is", "is", 1), "\"is\", of \"first\", is not FILE::TEST"),
        // A row without a test.
        (good.replacen("  there::is\n", "", 1), "no test holds \"first\""),
        ("<!-- tests\nfirst\n  there::is\nsecond\n-->".to_owned(), "no test holds \"second\""),
        // A row that the comment lacks, or has in another place; a test without a row.
        ("<!-- tests\nfirst\n  there::is\n-->".to_owned(), "2 statements, and tests of 1"),
        (good.replacen("first", "third", 1), "the comment has \"third\" in the place of \"first\""),
        (good.replacen("first\n", "", 1), "there::is belongs to no statement"),
        (good.replacen("first", "", 1), "not a comment with tests"),
        // A comment of another kind, one that does not end, and two for one table.
        (good.replacen("tests", "test", 1), "not a comment with tests"),
        (good.replacen("-->", "", 1), "not a comment with tests"),
        (good.replacen("\nsecond", "\n\nsecond", 1), "not a comment with tests"),
        (format!("{good}\n\n{good}"), "0 statements, and tests of 2"),
    ] {
        let error = error_of(&comment).unwrap_or_else(|| panic!("no error: {comment}"));
        assert!(error.starts_with(expected), "{error}\nrather than\n{expected}");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The source of a file of tests: `tests/NAME.rs`, or one of a folder of `tests` or of the command
/// line's.
fn source_of(name: &str) -> String {
    let folder = root().join("tests");
    let file = format!("{name}.rs");
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let folders = entries.filter(|path| path.join("main.rs").exists() && !path.ends_with("soak"));
    let outside = ["cli/tests/cli", "cli/tests/moving_in", "examples/adopting-service/tests"]
        .map(|it| root().join(it));
    let found: Vec<PathBuf> = std::iter::once(folder)
        .chain(outside)
        .chain(folders)
        .map(|it| it.join(&file))
        .filter(|it| it.exists())
        .collect();
    let [path] = found.as_slice() else { panic!("files of tests named {file}: {found:?}") };
    fs::read_to_string(path).unwrap()
}

/// The tests of a test binary with all features on this machine, anywhere in the file: functions
/// with `#[test]` or `#[tokio::test]`, by themselves, in `proptest!`, or made by a macro of the
/// file. Ignored or disabled tests do not count.
#[derive(Default)]
struct Tests {
    names: BTreeSet<String>,
    makers: BTreeMap<String, Maker>,
}

/// The tests that a macro of the file makes at each call.
#[derive(Default)]
struct Maker {
    names: BTreeSet<String>,
    /// Whether it makes a test for each name in the call.
    names_from_call: bool,
}

impl Tests {
    fn of(source: &str) -> Self {
        let mut this = Self::default();
        this.read(source.parse().expect("the source of a test binary"));
        this
    }

    fn read(&mut self, tokens: TokenStream) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut attributes = Vec::new();
        let mut at = 0;
        while let Some(rest) = tokens.get(at..).filter(|rest| !rest.is_empty()) {
            at += 1;
            match rest {
                // An inner attribute.
                [TokenTree::Punct(hash), TokenTree::Punct(not), TokenTree::Group(group), ..]
                    if hash.as_char() == '#' && not.as_char() == '!' =>
                {
                    at += 2;
                    if !is_there(&[text(&group.stream())]) {
                        return;
                    }
                }
                [TokenTree::Punct(hash), TokenTree::Group(group), ..] if hash.as_char() == '#' => {
                    at += 1;
                    attributes.push(text(&group.stream()));
                }
                [TokenTree::Ident(keyword), TokenTree::Ident(name), ..] if keyword == "fn" => {
                    at += 1;
                    if attributes.iter().any(|it| is_test(it)) && is_there(&attributes) {
                        self.names.insert(name.to_string());
                    }
                }
                [TokenTree::Ident(keyword), _, TokenTree::Group(group), ..] if keyword == "mod" => {
                    at += 2;
                    if is_there(&attributes) {
                        self.read(group.stream());
                    }
                    attributes.clear();
                }
                [
                    TokenTree::Ident(keyword),
                    _,
                    TokenTree::Ident(name),
                    TokenTree::Group(body),
                    ..,
                ] if keyword == "macro_rules" => {
                    at += 3;
                    let mut maker = Maker::default();
                    maker.read(body.stream());
                    self.makers.insert(name.to_string(), maker);
                    attributes.clear();
                }
                [TokenTree::Ident(name), TokenTree::Punct(not), TokenTree::Group(group), ..]
                    if not.as_char() == '!' =>
                {
                    at += 2;
                    if is_there(&attributes) {
                        self.call(&name.to_string(), group.stream());
                    }
                    attributes.clear();
                }
                // The end of an item.
                [TokenTree::Group(group), ..] if group.delimiter() == Delimiter::Brace => {
                    attributes.clear();
                }
                [TokenTree::Punct(end), ..] if end.as_char() == ';' => attributes.clear(),
                _ => {}
            }
        }
    }

    fn call(&mut self, name: &str, tokens: TokenStream) {
        if name == "proptest" {
            self.read(tokens);
        } else if let Some(maker) = self.makers.get(name) {
            self.names.extend(maker.names.iter().cloned());
            if maker.names_from_call {
                let idents = tokens.into_iter().filter(|it| matches!(it, TokenTree::Ident(_)));
                self.names.extend(idents.map(|ident| ident.to_string()));
            }
        }
    }
}

impl Maker {
    fn read(&mut self, tokens: TokenStream) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut is_named = false;
        for (at, token) in tokens.iter().enumerate() {
            match (token, tokens.get(at + 1), tokens.get(at + 2)) {
                (TokenTree::Punct(hash), Some(TokenTree::Group(group)), _)
                    if hash.as_char() == '#' =>
                {
                    is_named |= is_test(&text(&group.stream()));
                }
                (TokenTree::Ident(keyword), Some(name), variable)
                    if is_named && keyword == "fn" =>
                {
                    is_named = false;
                    match (name, variable) {
                        (TokenTree::Punct(_), Some(TokenTree::Ident(_))) => {
                            self.names_from_call = true;
                        }
                        _ => drop(self.names.insert(name.to_string())),
                    }
                }
                (TokenTree::Group(group), ..) => self.read(group.stream()),
                _ => {}
            }
        }
    }
}

/// The tokens as text, without spaces.
fn text(tokens: &TokenStream) -> String {
    tokens.to_string().split_whitespace().collect()
}

fn is_test(attribute: &str) -> bool {
    let path = attribute.split('(').next();
    matches!(path, Some("test" | "tokio::test"))
}

/// Whether an item with these attributes is compiled with all features, and run.
fn is_there(attributes: &[String]) -> bool {
    attributes.iter().all(|attribute| match attribute.split_once('(') {
        Some(("cfg", condition)) => holds(condition.strip_suffix(')').unwrap()),
        _ => !attribute.starts_with("ignore"),
    })
}

fn holds(condition: &str) -> bool {
    match condition.split_once('(') {
        Some(("all", rest)) => parts(rest).into_iter().all(holds),
        Some(("any", rest)) => parts(rest).into_iter().any(holds),
        Some(("not", rest)) => !parts(rest).into_iter().all(holds),
        _ => match condition.split_once('=') {
            Some(("feature", _)) => true,
            Some(("target_os", name)) => name.trim_matches('"') == std::env::consts::OS,
            _ => match condition {
                "test" => true,
                "unix" => cfg!(unix),
                "debug_assertions" => cfg!(debug_assertions),
                _ => panic!("the test does not know whether {condition} holds"),
            },
        },
    }
}

/// The parts of a list, split at commas outside parentheses.
fn parts(list: &str) -> Vec<&str> {
    let list = list.strip_suffix(')').unwrap();
    let mut depth = 0;
    let parts = list.split(|it| {
        match it {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        it == ',' && depth == 0
    });
    parts.filter(|part| !part.is_empty()).collect()
}

#[test]
fn a_test_is_a_function_that_is_compiled_and_executed_as_one() {
    let source = r##"
        #![cfg(feature = "postgres")]
        // #[test]
        // fn commented_out() {}
        const TEXT: &str = "#[test] fn in_a_text() {}";
        #[test]
        const NOTHING: () = ();
        fn helper() {}
        #[test]
        fn plain() { fn inner() {} }
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn with_a_runtime() {}
        #[test]
        #[ignore]
        fn ignored() {}
        #[test]
        #[ignore = "slow"]
        fn ignored_for_a_reason() {}
        #[cfg(not(feature = "postgres"))]
        #[test]
        fn without_a_feature() {}
        #[cfg(all(test, any(not(test), feature = "sqlite")))]
        mod inside {
            #[test]
            fn of_a_module() {}
        }
        #[cfg(not(test))]
        mod outside {
            #[test]
            fn of_a_module_that_is_none() {}
        }
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(4))]
            #[test]
            fn of_a_property(number in 0..1) {}
            fn helper_of_a_property() {}
        }
        macro_rules! on_both {
            ($($rule:ident)*) => { mod one { $( #[test] fn $rule() { super::$rule() } )* } };
        }
        on_both! { one_rule another_rule }
        fn one_rule() {}
        fn a_rule_that_is_not_called() {}
        macro_rules! contract {
            ($name:ident) => { mod $name { #[test] fn of_a_macro() {} } };
        }
        contract!(one);
        macro_rules! never_called { () => { #[test] fn of_no_call() {} }; }
        macro_rules! makes_none { ($name:ident) => { fn $name() {} }; }
        makes_none!(made);
        #[cfg(not(test))]
        contract!(two);
    "##;
    let expected = [
        "another_rule",
        "of_a_macro",
        "of_a_module",
        "of_a_property",
        "one_rule",
        "plain",
        "with_a_runtime",
    ];
    assert!(Tests::of(source).names.iter().eq(&expected));
    assert!(Tests::of("#![cfg(not(test))] #[test] fn none() {}").names.is_empty());
}

/// The ids of the headings of `page`, as rustdoc and code hosts make them.
fn headings(page: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut headings = BTreeSet::new();
    for line in page.lines() {
        is_code ^= line.starts_with("```");
        if let Some((_, heading)) = line.split_once("# ")
            && line.starts_with('#')
            && !is_code
        {
            let id = heading.to_lowercase().replace(' ', "-");
            headings.insert(id.replace(|it: char| !it.is_alphanumeric() && it != '-', ""));
        }
    }
    headings
}

/// The links in `text` to a heading: a page of the manual, or `None` for this page, and an id.
fn links_to_headings(text: &str) -> Vec<(Option<&str>, &str)> {
    let is_id = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-';
    let mut links = Vec::new();
    for (at, _) in text.match_indices('#') {
        let (before, after) = (&text[..at], &text[at + 1..]);
        let id = &after[..after.find(|it: char| !is_id(it)).unwrap_or(after.len())];
        if id.is_empty() {
            continue;
        }
        let before = before.strip_suffix(".md").unwrap_or(before);
        let page = before.rsplit(|it: char| !it.is_ascii_lowercase() && it != '_').next();
        let page = page.unwrap_or_default();
        let path = &before[..before.len() - page.len()];
        if path.ends_with("manual::") || path.ends_with("manual/") {
            links.push((Some(page), id));
        } else if path.ends_with("](") && page.is_empty() {
            links.push((None, id));
        }
    }
    links
}

fn sources_in(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources_in(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs" || it == "md") {
            found.push(path);
        }
    }
}

#[test]
fn each_link_to_a_heading_leads_to_one() {
    let manual = root().join("src/manual");
    let page = |name: &str| fs::read_to_string(manual.join(format!("{name}.md")));
    let mut sources: Vec<_> = ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"]
        .map(|name| root().join(name))
        .into();
    sources_in(&root().join("src"), &mut sources);
    let mut links = 0;
    for source in sources {
        let text = fs::read_to_string(&source).unwrap();
        for (name, id) in links_to_headings(&text) {
            let is_there = match name {
                Some(name) => page(name).is_ok_and(|page| headings(&page).contains(id)),
                None => headings(&text).contains(id),
            };
            assert!(is_there, "{}: no heading {name:?}#{id}", source.display());
            links += 1;
        }
    }
    assert!(links >= 40, "only {links} links to headings were found");
}

#[test]
fn a_link_to_a_heading_has_a_page_and_an_id() {
    let text = "[a](#in-this-page) [b](crate::manual::keys#who-may-do-what), [c](src/manual/\
                which_quota.md#a) #[must_use] [d](https://example.com/b#c) # Not a link";
    let expected =
        [(None, "in-this-page"), (Some("keys"), "who-may-do-what"), (Some("which_quota"), "a")];
    assert_eq!(links_to_headings(text), expected);

    let page = "# One: a `b`, c\n## Two-three\n```rust\n# hidden\n```\nnot # one\n";
    assert!(headings(page).iter().eq(["one-a-b-c", "two-three"]));
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
