//! `api-key rules`: what it prints is parsed, and run over keys and what only looks like them.

use std::{fs, process::Command};

use regex::Regex;
use saphyr_parser::{Event, Parser};
use serde_json::Value;
use tower_api_key::key::KeyFormat;

use crate::place::Place;

const PREFIXES: [&str; 2] = ["sk_live_", "Acme_Test2_"];

fn key(prefix: &str) -> String {
    KeyFormat::new(prefix).unwrap().generate().unwrap().expose_secret().to_owned()
}

fn rules(scanner: &str) -> String {
    let place = Place::sqlite();
    place.done(&format!("rules {scanner} --prefix sk_live_ --prefix Acme_Test2")).out
}

/// Each of the two expressions finds the keys of its prefix, whole, and nothing else.
fn find_keys(expressions: &[String]) {
    assert_eq!(expressions.len(), 2, "{expressions:?}");
    for (expression, prefix) in expressions.iter().zip(PREFIXES) {
        let expression = Regex::new(expression).unwrap();
        for _ in 0..200 {
            let key = key(prefix);
            for (before, after) in [("", ""), ("\"", "\""), ("key=", "\n"), ("https://x/?k=", "&y")]
            {
                let text = format!("{before}{key}{after}");
                let found: Vec<_> = expression.find_iter(&text).map(|it| it.as_str()).collect();
                assert_eq!(found, [&key], "{expression}");
            }
            for text in [&key[1..], &key[..key.len() - 1], &key.replacen('_', "-", 1)] {
                assert!(!expression.is_match(text), "{expression}: {text}");
            }
        }
        for prefix in PREFIXES.iter().filter(|other| **other != prefix) {
            assert!(!expression.is_match(&key(prefix)), "{expression}");
        }
    }
}

/// YAML as JSON; all scalars are text.
fn yaml(text: &str) -> Value {
    fn value<'t>(events: &mut impl Iterator<Item = Event<'t>>, event: Event<'t>) -> Value {
        match event {
            Event::Scalar(text, ..) => text.into_owned().into(),
            Event::SequenceStart(..) => {
                let mut all = Vec::new();
                loop {
                    match events.next().unwrap() {
                        Event::SequenceEnd => return all.into(),
                        event => all.push(value(events, event)),
                    }
                }
            }
            Event::MappingStart(..) => {
                let mut all = serde_json::Map::new();
                loop {
                    match events.next().unwrap() {
                        Event::MappingEnd => return all.into(),
                        event => {
                            let name = value(events, event).as_str().unwrap().to_owned();
                            let event = events.next().unwrap();
                            assert!(all.insert(name, value(events, event)).is_none());
                        }
                    }
                }
            }
            other => panic!("{other:?}"),
        }
    }
    let events = Parser::new_from_str(text).map(|event| event.unwrap().0);
    let mut events = events.filter(|event| {
        !matches!(event, Event::StreamStart | Event::DocumentStart(_) | Event::Nothing)
    });
    let first = events.next().unwrap();
    value(&mut events, first)
}

fn texts(value: &Value, list: &str, text: &str) -> Vec<String> {
    let list = value[list].as_array().unwrap_or_else(|| panic!("{value}"));
    list.iter().map(|it| it.pointer(text).unwrap().as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_rules_of_gitleaks_find_keys() {
    let rules: toml::Table = rules("gitleaks").parse().unwrap();
    let rules = serde_json::to_value(rules).unwrap();
    assert_eq!(rules["extend"]["useDefault"], true, "they add to its own");
    assert_eq!(texts(&rules, "rules", "/id"), ["sk-live-api-key", "acme-test2-api-key"]);
    // It compares keywords with text in lower case.
    assert_eq!(texts(&rules, "rules", "/keywords/0"), ["sk_live_", "acme_test2_"]);
    find_keys(&texts(&rules, "rules", "/regex"));
}

#[test]
fn the_rules_of_trufflehog_find_keys() {
    let rules = yaml(&rules("trufflehog"));
    assert_eq!(texts(&rules, "detectors", "/keywords/0"), PREFIXES);
    assert_eq!(texts(&rules, "detectors", "/name"), ["sk-live-api-key", "acme-test2-api-key"]);
    find_keys(&texts(&rules, "detectors", "/regex/key"));
}

#[test]
fn the_rules_of_semgrep_find_keys() {
    let rules = yaml(&rules("semgrep"));
    assert_eq!(texts(&rules, "rules", "/languages/0"), ["regex", "regex"]);
    assert_eq!(texts(&rules, "rules", "/severity"), ["ERROR", "ERROR"]);
    assert!(texts(&rules, "rules", "/message")[1].contains("Acme_Test2_"));
    find_keys(&texts(&rules, "rules", "/pattern-regex"));
}

#[test]
fn the_patterns_of_github_find_keys() {
    let patterns: Value = serde_json::from_str(&rules("github")).unwrap();
    let patterns = serde_json::json!({ "patterns": patterns });
    let part = |name: &str| texts(&patterns, "patterns", name);
    let whole = |secret: &String| {
        // Hyperscan calls the end of the text `\z`, as the crate does.
        format!("({}){secret}({})", part("/before_secret")[0], part("/after_secret")[0])
    };
    for (expression, prefix) in part("/secret_format").iter().map(whole).zip(PREFIXES) {
        let expression = Regex::new(&expression).unwrap();
        let key = key(prefix);
        for text in [key.clone(), format!("\"{key}\""), format!("k={key}\n")] {
            assert!(expression.is_match(&text), "{expression}");
        }
        for text in [format!("x{key}"), format!("{key}x"), key[..56].to_owned()] {
            assert!(!expression.is_match(&text), "{expression}: {text}");
        }
    }
}

#[test]
fn rules_need_a_prefix_and_a_scanner_that_is_known() {
    let place = Place::sqlite();
    assert_eq!(place.run("rules gitleaks").code, 2);
    assert_eq!(place.run("rules grep --prefix sk_live_").code, 2);
    assert_eq!(place.run("rules gitleaks --prefix sk-live").code, 2);
    let mut command = place.command(&["rules", "gitleaks"]);
    let output = command.env("API_KEY_PREFIX", "sk_env_").output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("sk_env_"));
}

#[test]
fn a_key_with_a_wrong_checksum_is_found_by_rules_alone() {
    let place = Place::sqlite();
    let key = key("sk_live_");
    let typo =
        format!("{}{}{}", &key[..20], if &key[20..21] == "A" { "B" } else { "A" }, &key[21..]);
    let rules: toml::Table = rules("gitleaks").parse().unwrap();
    let expression = Regex::new(rules["rules"][0]["regex"].as_str().unwrap()).unwrap();
    assert!(expression.is_match(&key) && expression.is_match(&typo));
    assert_eq!(place.fed("scan -", &key).code, 1);
    assert_eq!(place.fed("scan -", &typo).code, 0);
}

#[test]
fn gitleaks_itself_reads_its_rules_and_finds_keys() {
    let program = std::env::var("GITLEAKS").expect("tests/run installs gitleaks and names it");
    let place = Place::sqlite();
    let file = |name: &str| place.folder.path().join(name);
    fs::write(file("rules.toml"), rules("gitleaks")).unwrap();
    fs::create_dir(file("in")).unwrap();
    let [live, test] = PREFIXES.map(key);
    fs::write(file("in/config.json"), format!("{{\n\"key\": \"{live}\",\n\"b\": 1}}\n")).unwrap();
    fs::write(file("in/settings.yml"), format!("# one\n# two\nkey: {test}\n")).unwrap();
    fs::write(file("in/clean.txt"), format!("sk_live_{}\n", &live[9..])).unwrap();
    let output = Command::new(program)
        .args(["detect", "--no-git", "--no-banner", "--source", "in", "--config", "rules.toml"])
        .args(["--report-format", "json", "--report-path", "report.json", "--exit-code", "7"])
        .current_dir(place.folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let report: Value = serde_json::from_str(&place.read("report.json")).unwrap();
    let mut found: Vec<_> = report
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["RuleID"].as_str().unwrap().ends_with("-api-key"))
        .filter(|it| it["RuleID"] != "generic-api-key")
        .map(|it| (it["RuleID"].as_str().unwrap(), it["Secret"].as_str().unwrap()))
        .collect();
    found.sort_unstable();
    assert_eq!(found, [("acme-test2-api-key", &*test), ("sk-live-api-key", &*live)], "{report}");
}
