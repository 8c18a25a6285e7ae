//! The floors of the crate, checked by a test.
//!
//! Each module of `src` (a room) is on a floor. A room uses only the floors below it, never its own
//! floor or one above; the files of a room do not import each other in a cycle; a third-party crate
//! is named in one place, its home. Tests inside `src` may use any crate, but respect the floors
//! too.
//!
//! This file has the rules; `scanner.rs` finds what breaks them.

#![cfg(test)]

mod scanner;

use self::scanner::{breaches, offences, scan, sources, twins};

/// From the lowest floor up.
const FLOORS: &[&[&str]] = &[
    &["key", "clock", "tls"],
    &["circuit_breaker"],
    &["rate_limit"],
    &["record"],
    &["store"],
    &["auth"],
    &["manage"],
    &["layer"],
    &["rest", "webhooks"],
    &["admin", "account", "leaks"],
    &["api_keys"],
    &["test_util"],
];

/// Used by every room, or without code.
const STAIRCASE: &[&str] = &["trace", "manual"];

/// Third-party crates, the modules that may name them, and why no others may.
const HOMES: &[(&[&str], &[&str], &str)] = &[
    (
        &["sqlx"],
        &["store::postgres", "store::sqlite", "store::migrate"],
        "the rest of the crate works with every store",
    ),
    (&["moka"], &["auth::cache"], "its traps are settled in one place"),
    (&["governor"], &["rate_limit::local::gcra"], "a limiter can be replaced"),
    (&["redis"], &["rate_limit::redis"], "a limiter can be replaced"),
    (
        &["sha2"],
        &["key::hash", "key::digest", "key::signing_secret"],
        "one hash, those of other systems, and signatures",
    ),
    (
        &["hmac"],
        &["key::digest", "key::signing_secret"],
        "the digests of other systems are one idea, signatures another",
    ),
    (
        &["argon2", "bcrypt", "pbkdf2", "scrypt"],
        &["key::legacy_hash"],
        "no key is hashed with them, only verified",
    ),
    (&["p256"], &["leaks::signature"], "one signature of one sender"),
    (&["getrandom"], &["key"], "randomness is an argument elsewhere"),
    (
        &["rustls", "rustls_native_certs", "tokio_rustls", "webpki_roots"],
        &["tls"],
        "a process has one provider",
    ),
    (
        &["hyper", "hyper_util"],
        &["webhooks::client", "leaks::fetch"],
        "one place of each sends requests",
    ),
    (&["ipnet"], &["record::network"], "the type of a network is ours"),
    (&["nix"], &["clock"], "the one home of the system's time"),
    (&["tracing"], &["trace"], "no logic carries the feature's `cfg`"),
    (&["metrics"], &["auth::metrics", "webhooks::metrics"], "no logic carries the feature's `cfg`"),
    (&["memchr"], &["key::mask", "key::find"], "the search for keys is one idea"),
    (
        &["http", "http_body", "http_body_util", "tower_layer", "tower_service"],
        &[
            "layer",
            "rest",
            "admin",
            "account",
            "leaks",
            "test_util::key",
            "webhooks::client",
            "webhooks::delivery",
            "webhooks::message",
            "webhooks::target",
        ],
        "the core knows no HTTP",
    ),
    (&["tonic", "tonic_types"], &["layer::response::grpc"], "a status is one idea"),
    (&["tower_http"], &["rest::csrf"], "one protection against cross-site requests"),
    (
        &["axum", "axum_core"],
        &[
            "layer::request::extractor",
            "layer::request::granted",
            "layer::request::original_uri",
            "layer::request::peer",
            "layer::stream::websocket",
            "rest",
            "admin",
            "account",
            "leaks",
        ],
        "the layer serves every tower service",
    ),
];

/// Calls that are refused outside tests, and why: methods as `.::name`, functions by their path.
/// Only `clock` reads the system's time.
const FORBIDDEN_CALLS: &[(&str, &str)] = &[
    (".::unwrap", "it panics"),
    (".::expect", "it panics"),
    ("std::time::SystemTime::now", "ask a `Clock`"),
    ("std::time::Instant::now", "ask a `Clock`"),
];

#[test]
fn rooms_use_only_the_floors_below_them() {
    let breaches = breaches(&sources("src"));
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

#[test]
fn the_library_neither_panics_nor_reads_the_time_by_itself() {
    let offences = offences(&sources("src"));
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

/// The stable compiler does not check which error a `compile_fail` example fails with: a typo would
/// pass.
#[test]
fn an_example_that_must_not_compile_has_a_twin_that_does_but_for_one_line() {
    let sources = sources("src");
    let found: Vec<_> = sources.iter().flat_map(|(file, text)| twins(file, text)).collect();
    assert!(found.len() >= 2, "{found:?}");
    let faults: Vec<_> = found.into_iter().filter_map(Result::err).collect();
    assert_eq!(faults, [""; 0]);
}

/// Cargo may enable `test-util` in a build that is no test: then it must not change what that does.
#[test]
fn the_test_kit_only_adds() {
    let sources = sources("src");
    let lines = sources.iter().flat_map(|(file, text)| text.lines().map(move |line| (file, line)));
    let named: Vec<_> = lines
        .filter(|(_, line)| line.contains(r#"feature = "test-util""#) && !line.contains("//"))
        .collect();
    assert!(named.len() > 10, "{named:?}");
    let others: Vec<_> = named
        .iter()
        .filter(|(_, line)| line.trim() != r#"#[cfg(feature = "test-util")]"#)
        .collect();
    assert!(others.is_empty(), "neither `not`, nor `cfg!`, nor `cfg_attr`: {others:?}");
}

#[test]
fn no_test_is_ignored() {
    let ignored: Vec<_> = [sources("src"), sources("tests")]
        .iter()
        .flatten()
        .flat_map(|(file, text)| scan(file, text))
        .filter(|mention| mention.last_two() == ("#", "ignore"))
        .map(|mention| mention.place())
        .collect();
    assert!(ignored.is_empty(), "a test that does not run is no test: {ignored:?}");
}
