#![cfg(test)]
//! Every promise of the manual names a test, and the test exists.

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

/// The tables of `page`: rows of cells.
fn tables(page: &str) -> impl Iterator<Item = Vec<Vec<&str>>> {
    page.split("\n\n").map(str::trim).filter(|table| table.starts_with('|')).map(rows)
}

fn rows(table: &str) -> Vec<Vec<&str>> {
    let rows = table.lines().filter_map(|row| row.strip_prefix('|')?.strip_suffix('|'));
    rows.map(|row| row.split('|').map(str::trim).collect()).collect()
}

/// The last column of those tables of `page` where it is `test`.
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
    let mut binaries = BTreeMap::new();
    let pages = [
        ("bounds.md", 25),
        ("deployment.md", 15),
        ("freshness.md", 20),
        ("keys.md", 2),
        ("limits.md", 10),
    ];
    for (page, least) in pages {
        let text = fs::read_to_string(root().join("src/manual").join(page)).unwrap();
        let bounds = tests_named(&text);
        assert!(bounds.len() >= least, "the tables of {page} were not found");
        for tests in bounds {
            assert!(!tests.is_empty(), "no test holds a bound of {page}");
            for test in tests.split_whitespace() {
                let path = test.strip_prefix('`').and_then(|test| test.strip_suffix('`'));
                let (binary, name) = path.and_then(|path| path.split_once("::")).expect(test);
                let tests = binaries
                    .entry(binary.to_owned())
                    .or_insert_with(|| Tests::of(&source_of(binary)).names);
                assert!(tests.contains(name), "{page}: there is no test {test}");
            }
        }
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
    let found: Vec<PathBuf> = [folder, root().join("cli/tests/cli")]
        .into_iter()
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
