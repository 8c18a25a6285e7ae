//! Finds the paths, attributes and calls in source files, and those that break a rule.
//!
//! It reads tokens rather than a syntax tree, so that it sees into macros as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::{FLOORS, FORBIDDEN_CALLS, HOMES, STAIRCASE};

/// The `compile_fail` examples of a file: each must name its error, and differ in one line from the
/// next example, which compiles.
pub(super) fn twins(file: &str, text: &str) -> Vec<Result<(), String>> {
    let blocks = code_blocks(text);
    let mut found = Vec::new();
    for (at, (kind, failing)) in blocks.iter().enumerate() {
        let mut words = kind.split(',');
        if !words.any(|word| word == "compile_fail") {
            continue;
        }
        let names_error = words
            .any(|word| word.strip_prefix('E').is_some_and(|digits| digits.parse::<u16>().is_ok()));
        let twin = blocks.get(at + 1).filter(|(kind, _)| kind.is_empty());
        let differing = twin.filter(|(_, lines)| lines.len() == failing.len()).map(|(_, lines)| {
            lines.iter().zip(failing).filter(|(one, other)| one != other).count()
        });
        found.push(if names_error && differing == Some(1) {
            Ok(())
        } else {
            Err(format!("{file}: {kind}: {failing:?}"))
        });
    }
    found
}

/// The code blocks in the documentation of a file: the info string and the lines of each.
fn code_blocks(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut blocks: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut is_open = false;
    for line in text.lines() {
        let line = line.trim_start();
        let Some(line) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else {
            continue;
        };
        match (line.trim_start().strip_prefix("```"), blocks.last_mut()) {
            (Some(_), _) if is_open => is_open = false,
            (Some(kind), _) => {
                is_open = true;
                blocks.push((kind, Vec::new()));
            }
            (None, Some((_, lines))) if is_open => lines.push(line),
            _ => {}
        }
    }
    blocks
}

/// Relative path and text of every Rust file under `folder`.
pub(super) fn sources(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join(folder)];
    let mut files = Vec::<PathBuf>::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "no Rust files in {folder}");
    files.sort();
    let relative = |path: &Path| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    files.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

/// A path somewhere in a file: `a::b::C` in code, a leaf of a `use` tree, or, found the same way,
/// `.::method`, `#::attribute` and, for a module of tests in a file of its own, `mod::a::b`.
#[derive(Clone)]
pub(super) struct Mention {
    file: String,
    line: usize,
    /// The module that contains it.
    module: Vec<String>,
    path: Vec<String>,
    /// The exported name, if a `pub use` exports the path.
    exported: Option<String>,
    /// Whether it is in a `use`, where even a single word names a crate.
    imported: bool,
    test: bool,
}

impl Mention {
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    pub(super) fn last_two(&self) -> (&str, &str) {
        match self.path.as_slice() {
            [.., a, b] => (a, b),
            _ => ("", ""),
        }
    }
}

/// `src/key/hash.rs` is the module `key::hash`.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut module: Vec<_> = path.split('/').map(str::to_owned).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
        module.pop();
    }
    module
}

pub(super) fn scan(file: &str, text: &str) -> Vec<Mention> {
    let tokens = text.parse::<TokenStream>().unwrap_or_else(|error| panic!("{file}: {error}"));
    let mut scanner = Scanner { file, mentions: Vec::new() };
    scanner.block(tokens, &module_of(file), false);
    scanner.mentions
}

struct Scanner<'a> {
    file: &'a str,
    mentions: Vec<Mention>,
}

impl Scanner<'_> {
    fn block(&mut self, tokens: TokenStream, module: &[String], test: bool) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let word = |at: usize| match tokens.get(at) {
            Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
            _ => None,
        };
        let punct = |at: usize, sign: char| match tokens.get(at) {
            Some(TokenTree::Punct(punct)) => punct.as_char() == sign,
            _ => false,
        };
        // Whether the current item is marked `#[cfg(test)]`, and whether it is public.
        let mut marked = false;
        let mut public = false;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let line = token.span().start().line;
            let test_here = test || marked;
            let mut mention = Mention {
                file: self.file.to_owned(),
                line,
                module: module.to_vec(),
                path: Vec::new(),
                exported: None,
                imported: false,
                test: test_here,
            };
            at += 1;
            match token {
                TokenTree::Punct(sign) if sign.as_char() == '#' => {
                    at += usize::from(punct(at, '!'));
                    let Some(TokenTree::Group(attribute)) = tokens.get(at) else { continue };
                    marked |= is_cfg_test(&attribute.stream());
                    if let Some(TokenTree::Ident(name)) = attribute.stream().into_iter().next() {
                        mention.path = vec!["#".into(), name.to_string()];
                        self.mentions.push(mention);
                    }
                }
                TokenTree::Punct(sign) if sign.as_char() == ';' => {
                    (marked, public) = (false, false);
                }
                TokenTree::Group(group) => {
                    self.block(group.stream(), module, test_here);
                    if group.delimiter() == Delimiter::Brace {
                        (marked, public) = (false, false);
                    }
                }
                TokenTree::Ident(ident) if ident == "pub" => public = true,
                TokenTree::Ident(ident) if ident == "use" && !punct(at, '<') => {
                    let end = (at..tokens.len()).find(|at| punct(*at, ';')).unwrap_or(tokens.len());
                    mention.imported = true;
                    self.use_tree(&tokens[at..end], &mention, public);
                    at = end;
                }
                TokenTree::Ident(ident) if ident == "mod" => {
                    let Some(name) = word(at) else { continue };
                    let inner = [module, std::slice::from_ref(&name)].concat();
                    if let Some(TokenTree::Group(body)) = tokens.get(at + 1) {
                        self.block(body.stream(), &inner, test_here);
                        (marked, public) = (false, false);
                        at += 1;
                    } else if test_here {
                        // Test files are recognised by this mention.
                        mention.path = vec!["mod".into(), inner.join("::")];
                        self.mentions.push(mention);
                    }
                    at += 1;
                }
                TokenTree::Ident(ident) => {
                    if at >= 2 && punct(at - 2, '.') {
                        mention.path.push(".".into());
                    }
                    mention.path.push(ident.to_string());
                    while punct(at, ':') && punct(at + 1, ':') {
                        let Some(segment) = word(at + 2) else { break };
                        mention.path.push(segment);
                        at += 3;
                    }
                    if mention.path.len() > 1 {
                        self.mentions.push(mention);
                    }
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }

    /// `a::{b, c as d}` mentions `a::b` and `a::c`.
    fn use_tree(&mut self, tokens: &[TokenTree], prefix: &Mention, public: bool) {
        for tree in tokens.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ','))
        {
            let mut leaf = prefix.clone();
            let mut renamed = false;
            let mut group = None;
            for token in tree {
                match token {
                    TokenTree::Ident(ident) if ident == "as" => renamed = true,
                    TokenTree::Ident(ident) if renamed => leaf.exported = Some(ident.to_string()),
                    TokenTree::Ident(ident) if ident == "self" && !leaf.path.is_empty() => {}
                    TokenTree::Ident(ident) => leaf.path.push(ident.to_string()),
                    TokenTree::Punct(sign) if sign.as_char() == '*' => leaf.path.push("*".into()),
                    TokenTree::Group(inner) => group = Some(inner.stream()),
                    TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                }
            }
            if let Some(group) = group {
                self.use_tree(&group.into_iter().collect::<Vec<_>>(), &leaf, public);
            } else if let Some(first) = tree.first() {
                leaf.line = first.span().start().line;
                let name = leaf.exported.take().or_else(|| leaf.path.last().cloned());
                leaf.exported = name.filter(|_| public);
                self.mentions.push(leaf);
            }
        }
    }
}

/// `cfg(test)` and `cfg(all(test, ..))`, not `cfg(any(test, ..))`.
fn is_cfg_test(attribute: &TokenStream) -> bool {
    let text = attribute.to_string().replace(' ', "");
    text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

/// All files of `src`.
struct Crate {
    mentions: Vec<Mention>,
    /// The file that holds a module.
    modules: BTreeMap<Vec<String>, String>,
    /// The names that a module exports, and the paths they come from.
    exports: BTreeMap<(Vec<String>, String), Vec<String>>,
}

impl Crate {
    fn new(sources: &[(String, String)]) -> Self {
        let mut mentions: Vec<_> =
            sources.iter().flat_map(|(file, text)| scan(file, text)).collect();
        let of_tests = |m: &Mention| (m.last_two().0 == "mod").then(|| m.path[1].clone());
        let test_modules: Vec<_> = mentions.iter().filter_map(of_tests).collect();
        let mut modules: BTreeMap<_, _> =
            sources.iter().map(|(file, _)| (module_of(file), file.clone())).collect();
        for mention in &mut mentions {
            let module = mention.module.join("::");
            mention.test |= test_modules.iter().any(|test| within(&module, test));
            modules.entry(mention.module.clone()).or_insert_with(|| mention.file.clone());
        }
        let mut all = Self { mentions, modules, exports: BTreeMap::new() };
        all.exports = (all.mentions.iter())
            .filter_map(|mention| {
                let name = mention.exported.clone()?;
                Some(((mention.module.clone(), name), all.absolute(mention)?))
            })
            .collect();
        all
    }

    /// The path from the root of the crate, if it belongs to this crate.
    fn absolute(&self, mention: &Mention) -> Option<Vec<String>> {
        let mut module = mention.module.clone();
        let mut path = mention.path.as_slice();
        match path.first()?.as_str() {
            "crate" | "tower_api_key" => {
                module.clear();
                path = &path[1..];
            }
            "self" => path = &path[1..],
            "super" => {
                while path.first().is_some_and(|segment| segment == "super") {
                    module.pop();
                    path = &path[1..];
                }
            }
            child => {
                let child = [module.as_slice(), &[child.to_owned()]].concat();
                if !self.modules.contains_key(&child) {
                    return None;
                }
            }
        }
        module.extend_from_slice(path);
        Some(module)
    }

    /// The module that defines the item of an absolute path, through any re-exports.
    fn home(&self, path: &[String]) -> Vec<String> {
        let mut path = path.to_vec();
        // Chains of re-exports are short; the bound only keeps a cycle from hanging the test.
        for _ in 0..8 {
            let module = (0..=path.len()).rev().map(|end| &path[..end]);
            let module = module.into_iter().find(|module| self.modules.contains_key(*module));
            let module = module.unwrap_or_default().to_vec();
            let name = path.get(module.len()).cloned().unwrap_or_default();
            match self.exports.get(&(module.clone(), name)) {
                Some(target) => path = [target, &path[module.len() + 1..]].concat(),
                None => return module,
            }
        }
        path
    }
}

/// Whether a module is another one or inside it.
fn within(module: &str, outer: &str) -> bool {
    module.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

pub(super) fn breaches(sources: &[(String, String)]) -> Vec<String> {
    let all = Crate::new(sources);
    let mut breaches = BTreeSet::new();
    for (module, file) in &all.modules {
        if let Some(room) = module.first()
            && floor(room).is_none()
            && !STAIRCASE.contains(&room.as_str())
        {
            breaches.insert(format!("{file}: room `{room}` lies on no floor of FLOORS"));
        }
    }

    let mut edges = BTreeMap::<&str, BTreeMap<&str, String>>::new();
    for mention in &all.mentions {
        // The root of the crate only re-exports items of the rooms.
        let Some(room) = mention.module.first() else { continue };
        let Some(path) = all.absolute(mention) else {
            breaches.extend(homeless(mention).filter(|_| !mention.test));
            continue;
        };
        let home = all.home(&path);
        let Some(other) = home.first() else { continue };
        if room == other {
            let exports_own = path.starts_with(&mention.module) && mention.exported.is_some();
            let target = all.modules.get(&home).unwrap_or(&mention.file);
            if !mention.test && !exports_own && *target != mention.file {
                let edges = edges.entry(&mention.file).or_default();
                edges.entry(target).or_insert_with(|| mention.place());
            }
        } else if !STAIRCASE.contains(&other.as_str()) && floor(room) <= floor(other) {
            let place = mention.place();
            breaches.insert(format!(
                "{place}: room `{room}` must not use room `{other}`: it is not on a floor below"
            ));
        }
    }
    breaches.extend(circles(&edges));
    breaches.into_iter().collect()
}

/// A breach, if the path begins with a crate whose home is elsewhere.
fn homeless(mention: &Mention) -> impl Iterator<Item = String> {
    let module = mention.module.join("::");
    let first = mention.path.first().filter(|_| mention.imported || mention.path.len() > 1);
    let rule = HOMES.iter().find(|(crates, homes, _)| {
        first.is_some_and(|first| crates.contains(&first.as_str()))
            && !homes.iter().any(|home| within(&module, home))
    });
    rule.map(|(_, homes, why)| {
        let (place, name) = (mention.place(), &mention.path[0]);
        format!("{place}: `{module}` must not use `{name}`, at home in {}: {why}", homes.join(", "))
    })
    .into_iter()
}

/// Calls outside tests that [`FORBIDDEN_CALLS`] refuses.
pub(super) fn offences(sources: &[(String, String)]) -> Vec<String> {
    let all = Crate::new(sources);
    let offence = |mention: &&Mention| {
        let imported = |import: &&Mention| {
            import.imported
                && import.file == mention.file
                && import.path.last() == mention.path.first()
        };
        let import = all.mentions.iter().find(imported);
        let path = match import {
            Some(import) => [import.path.as_slice(), &mention.path[1..]].concat().join("::"),
            None => mention.path.join("::"),
        };
        let rule = FORBIDDEN_CALLS.iter().find(|(call, _)| *call == path);
        rule.map(|(_, why)| format!("{}: no {path}(): {why}", mention.place()).replace(".::", "."))
    };
    let judged = |mention: &&Mention| !mention.test && mention.module != ["clock"];
    all.mentions.iter().filter(judged).filter_map(|mention| offence(&mention)).collect()
}

/// For every file in a cycle, the shortest path back to it; each cycle once.
fn circles(edges: &BTreeMap<&str, BTreeMap<&str, String>>) -> Vec<String> {
    let mut found = BTreeMap::new();
    for start in edges.keys() {
        let mut ways = vec![vec![*start]];
        let mut seen = BTreeSet::new();
        while !ways.is_empty() {
            let mut longer = Vec::new();
            for way in ways {
                for next in edges.get(way[way.len() - 1]).into_iter().flat_map(BTreeMap::keys) {
                    if next == start {
                        let members: BTreeSet<_> = way.iter().copied().collect();
                        found.entry(members).or_insert_with(|| [way.as_slice(), &[next]].concat());
                    } else if seen.insert(*next) {
                        longer.push([way.as_slice(), &[next]].concat());
                    }
                }
            }
            ways = longer;
        }
    }
    let name = |circle: Vec<&str>| {
        let place = &edges[circle[0]][circle[1]];
        format!("{place}: files must not use each other in a circle: {}", circle.join(" -> "))
    };
    found.into_values().map(name).collect()
}

fn owned(files: &[(&str, &str)]) -> Vec<(String, String)> {
    files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect()
}

fn found(files: &[(&str, &str)]) -> Vec<String> {
    breaches(&owned(files))
}

#[test]
fn every_kind_of_breach_is_caught() {
    let layer = ("src/layer/mod.rs", "pub struct Layer;");
    let root = ("src/lib.rs", "pub use self::layer::{Layer as Renamed};");
    for text in [
        "use crate::layer::Layer;",
        "use crate::{\n    layer as l,\n};",
        "use super::layer::Layer;",
        "mod inner { use super::super::layer::Layer; }",
        "fn f() -> crate::layer::Layer { todo!() }",
        "fn f() { some_macro! { let a = crate::layer::Layer; } }",
        "#[cfg(test)] mod tests { use crate::layer::Layer; }",
        "use crate::Renamed;",
    ] {
        let breaches = found(&[root, layer, ("src/key.rs", text)]);
        assert_eq!(breaches.len(), 1, "{text}: {breaches:?}");
        assert!(breaches[0].starts_with("src/key.rs:"), "{breaches:?}");
        assert!(breaches[0].contains("room `key` must not use room `layer`"), "{breaches:?}");
    }

    for (file, text, breach) in [
        ("src/auth/mod.rs", "use crate::manage;", "`auth` must not use room `manage`"),
        ("src/auth/mod.rs", "\n\nuse http::Request;", "src/auth/mod.rs:3: `auth` must not"),
        ("src/auth/mod.rs", "use moka::sync::Cache;", "at home in auth::cache"),
        ("src/store/mod.rs", "fn f() -> sqlx::Result<()> {}", "`store` must not use `sqlx`"),
        ("src/store/mod.rs", "#[cfg(any(test, feature = \"x\"))] use sqlx;", "must not use `sqlx`"),
        ("src/layer/mod.rs", "#[derive(axum::X)] struct S;", "must not use `axum`"),
        ("src/attic.rs", "", "room `attic` lies on no floor"),
    ] {
        let breaches = found(&[(file, text), ("src/manage.rs", "")]);
        assert!(breaches.len() == 1 && breaches[0].contains(breach), "{text}: {breaches:?}");
    }
}

#[test]
fn circles_inside_a_room_are_caught() {
    let port = ("src/auth/mod.rs", "mod a; mod b; pub use self::{a::A, b::B};");
    let a = ("src/auth/a.rs", "use super::B; pub struct A;");
    let b = ("src/auth/b.rs", "use super::A; pub struct B;");
    let breaches = found(&[port, a, b]);
    let circle = "src/auth/a.rs:1: files must not use each other in a circle: \
        src/auth/a.rs -> src/auth/b.rs -> src/auth/a.rs";
    assert_eq!(breaches, [circle]);
    assert!(found(&[port, a]).is_empty());
}

#[test]
fn what_is_allowed_is_not_caught() {
    let files = [
        ("src/lib.rs", "pub use self::layer::Layer; pub use self::key::Key;"),
        ("src/trace.rs", ""),
        ("src/key/mod.rs", "mod hash; pub use self::hash::Hash; pub struct Key;"),
        ("src/key/hash.rs", "use sha2::Sha256; pub struct Hash; #[cfg(test)] mod tests;"),
        ("src/key/hash/tests.rs", "use super::Hash; use sqlx::PgPool;"),
        (
            "src/layer/mod.rs",
            "//! [`crate::admin`] and `crate::admin::Admin` may be spoken of.
             use crate::{Key, key::{self, Hash}, trace};
             fn f(http: u8) -> u8 { http }
             fn g<'a>() -> impl Sized + use<'a> { http::Request::new(()) }
             #[cfg(test)] use sqlx::{PgPool};
             #[cfg(test)] mod tests { use moka::sync::Cache; }",
        ),
    ];
    let breaches = found(&files);
    assert!(breaches.is_empty(), "{breaches:?}");
}

#[test]
fn panics_and_clocks_are_caught() {
    let files = [
        (
            "src/key.rs",
            "use std::time::{Instant, SystemTime};
             fn f() { g().unwrap(); }
             fn g() { vec![Instant::now()]; }
             fn h() { std::time::SystemTime::now(); }
             #[cfg(test)] mod tests { fn t() { g().expect(\"x\"); } }
             #[cfg(test)] mod more_tests;
             fn i() { g().expect(\"x\"); }",
        ),
        ("src/key/more_tests.rs", "fn t() { g().unwrap(); }"),
        ("src/auth.rs", "use tokio::time::Instant; fn f() { Instant::now(); }"),
        ("src/clock.rs", "use std::time::Instant; fn f() { Instant::now(); }"),
    ];
    assert_eq!(
        offences(&owned(&files)),
        [
            "src/key.rs:2: no .unwrap(): it panics",
            "src/key.rs:3: no std::time::Instant::now(): ask a `Clock`",
            "src/key.rs:4: no std::time::SystemTime::now(): ask a `Clock`",
            "src/key.rs:7: no .expect(): it panics",
        ]
    );
}

#[test]
fn ignored_tests_are_seen() {
    let text = "mod tests { #[test] #[ignore = \"slow\"] fn t() {} }";
    assert!(scan("src/key.rs", text).iter().any(|m| m.last_two() == ("#", "ignore")));
}

#[test]
fn examples_that_fail_for_any_reason_are_caught() {
    let twin = "/// ```\n/// # let a = 1;\n/// f(a);\n/// ```\n";
    let failing = |kind: &str, lines: &str| format!("/// ```{kind}\n{lines}/// ```\n");
    let lines = "/// # let a = 1;\n/// g(a);\n";
    for (text, is_fine) in [
        (failing("compile_fail,E0425", lines) + twin, true),
        (failing("compile_fail", lines) + twin, false),
        (failing("compile_fail,E0425", lines), false),
        (failing("compile_fail,E0425", "/// # let b = 1;\n/// g(a);\n") + twin, false),
        (failing("compile_fail,E0425", "/// # let a = 1;\n/// f(a);\n") + twin, false),
        (failing("compile_fail,E0425", lines) + &twin.replacen("```", "```ignore", 1), false),
    ] {
        let found = twins("src/key.rs", &text);
        assert_eq!((found.len(), found[0].is_ok()), (1, is_fine), "{text}");
    }
    assert_eq!(twins("src/key.rs", twin), []);
}
