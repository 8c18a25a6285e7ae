//! Keys with an id before the secret are masked, too.

use std::sync::Mutex;

use tower_api_key::key::{AcceptedFormat, KeyFormat, KeyMask};

use crate::{
    forms::Random,
    masking::{MOST_SHOWN, text, written},
};

/// A format, and makes the id and the secret of a key.
struct Structured {
    accepted: AcceptedFormat,
    generate: fn(&Random) -> (String, String),
}

fn formats() -> [Structured; 3] {
    let of = |format: &str, generate| Structured { accepted: format.parse().unwrap(), generate };
    [
        of("sanctum", |random| {
            let secret = alphanumeric(random);
            let sum = format!("{:08x}", crc32fast::hash(secret.as_bytes()));
            (format!("{}|", 1 + random.below(1000)), secret + &sum)
        }),
        of("alnum:40,id=alnum:8:.", |random| {
            (format!("{}.", random.text(b"ABCXYZabcxyz012789", 8)), alphanumeric(random))
        }),
        of("alnum:40,id=digits:|:acme_", |random| {
            (format!("acme_{}|", random.below(100_000)), alphanumeric(random))
        }),
    ]
}

fn alphanumeric(random: &Random) -> String {
    random.text(b"ABCXYZabcxyz012789", 40)
}

#[test]
fn no_secret_passes_in_whatever_text_and_writes() {
    let random = Random(Mutex::new(1));
    let formats = formats();
    let issued: AcceptedFormat = KeyFormat::new("sk_live_").unwrap().into();
    for case in 0..10_000 {
        let Structured { accepted, generate } = &formats[random.below(formats.len())];
        let mask = KeyMask::new([issued.clone(), accepted.clone()]);
        let (id, secret) = generate(&random);
        let text = text(&random, &format!("{id}{secret}"));
        let (seen, is_flushed) = written(&random, &mask, &text, |_| None);
        let place = || format!("case {case}: {text:?} became {seen:?}");
        let shown = (0..=secret.len() - MOST_SHOWN - 1)
            .find(|at| seen.contains(&secret[*at..=at + MOST_SHOWN]));
        assert_eq!(shown, None, "{}", place());
        // What looks like half a key at the end is masked.
        if !is_flushed && text.ends_with('\n') {
            assert_eq!(seen, mask.mask(&text), "{}", place());
        }
    }
}

#[test]
fn the_separator_of_an_id_may_be_written_as_in_a_url() {
    let random = Random(Mutex::new(1));
    let [Structured { accepted, generate }, ..] = formats();
    let mask = KeyMask::from(accepted);
    let (id, secret) = generate(&random);
    let id = id.strip_suffix('|').unwrap();
    let last4 = &secret[secret.len() - 4..];
    for separator in ["|", "%7C", "%7c"] {
        let line = format!("GET /?key={id}{separator}{secret}&page=2");
        assert_eq!(mask.mask(&line), format!("GET /?key={id}{separator}…{last4}&page=2"));
    }
}
