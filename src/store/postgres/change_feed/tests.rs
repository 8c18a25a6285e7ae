use std::collections::HashSet;

use proptest::prelude::*;

use super::{
    message::{Message, parse},
    signature::{Announcer, DIGEST_LEN},
    snapshot::Snapshot,
};
use crate::{key::digest, record::KeyId, store::port::Change};

const ID: &str = "0191e0a0-7c4b-7def-8123-456789abcdef";
const SECRET: &[u8] = b"a secret";
const SENDER: u32 = 42;

fn id() -> KeyId {
    ID.parse().unwrap()
}

/// Signs like `api_key_announce`.
fn signed(secret: &[u8], message: &str, transaction: u64) -> String {
    let signed = format!("v2:{message}:{transaction}");
    let digest = digest(&[secret, signed.as_bytes()]);
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{signed}:{}", &digits[..DIGEST_LEN])
}

/// All transactions before 100 had ended, except 90 and 95.
fn announcer() -> Announcer {
    Announcer::new(SECRET, Snapshot::parse("90:100:90,95").unwrap())
}

fn everything(transaction: u64) -> String {
    signed(SECRET, "everything", transaction)
}

#[test]
fn every_message_is_understood() {
    assert_eq!(parse(&format!("v2:created:{ID}")), Message::Told(Change::Created(id())));
    assert_eq!(parse(&format!("v2:changed:{ID}")), Message::Told(Change::Changed(id())));
    assert_eq!(parse("v2:everything"), Message::Told(Change::Everything));
    assert_eq!(parse("v2:hello:4711"), Message::Hello("hello:4711"));
}

#[test]
fn a_genuine_message_of_another_version_may_mean_anything() {
    let spellings = [ID.to_uppercase(), format!("{{{ID}}}"), ID.replace('-', ""), ID[1..].into()];
    let odd = spellings.iter().map(|spelling| format!("v2:changed:{spelling}"));
    let others = ["", ":", "v2", "v2:", "v2:created", "v3:everything", "v2:suspended:4711"];
    for message in odd.chain(others.map(Into::into)) {
        assert_eq!(parse(&message), Message::Told(Change::Everything), "{message:?}");
    }
}

#[test]
fn what_the_secret_has_not_signed_is_refused() {
    let mut announcer = announcer();
    let genuine = everything(100);
    let (text, signature) = genuine.rsplit_once(':').unwrap();
    for forged in [
        signed(b"another secret", "everything", 100),
        signed(b"", "everything", 100),
        text.to_owned(),
        format!("{text}:"),
        format!("{text}:{}", signature.to_uppercase()),
        format!("{text}:{}", &signature[1..]),
        format!("{text}:{signature}0"),
        format!("{text} :{signature}"),
        format!("v2:everything:101:{signature}"),
        format!("{text}:{}", "0".repeat(DIGEST_LEN)),
        "v2:everything".into(),
        "v1:everything".into(),
        String::new(),
        ":".repeat(8_000),
        "\u{1f600}".repeat(50),
    ] {
        assert_eq!(announcer.open(&forged, SENDER), None, "{forged:?}");
    }
    assert_eq!(announcer.open(&genuine, SENDER), Some("v2:everything"));
}

#[test]
fn a_transaction_is_taken_once_and_all_of_it() {
    let mut announcer = announcer();
    let [created, changed] = ["created", "changed"].map(|word| format!("{word}:{ID}"));
    for transaction in [100, 95, 102, 101] {
        for message in [&created, &changed, &changed] {
            let payload = signed(SECRET, message, transaction);
            assert!(announcer.open(&payload, SENDER).is_some(), "{payload}");
        }
        // Any other message ends the run of a transaction.
        assert_eq!(announcer.open("junk", SENDER), None);
        assert_eq!(announcer.open(&signed(SECRET, &created, transaction), SENDER), None);
    }
}

#[test]
fn what_was_overheard_is_worth_nothing() {
    let mut announcer = announcer();
    assert!(announcer.open(&everything(100), SENDER).is_some());
    assert_eq!(announcer.open(&everything(100), SENDER + 1), None, "by another process");
    assert_eq!(announcer.open(&everything(100), SENDER), None, "after it was copied");
    for ended in [1, 89, 91, 94, 96, 99] {
        assert_eq!(announcer.open(&everything(ended), SENDER), None, "from before: {ended}");
    }
    assert!(announcer.open(&everything(90), SENDER).is_some(), "it was running then");
}

#[test]
fn what_is_forgotten_is_not_taken_again() {
    let mut announcer = announcer();
    for transaction in [100, 101, 104, 90] {
        assert!(announcer.open(&everything(transaction), SENDER).is_some());
    }
    announcer.forget(Snapshot::parse("95:103:95,102").unwrap());
    assert_eq!(announcer.taken, HashSet::from([104]));
    for transaction in [90, 100, 101, 104] {
        assert_eq!(announcer.open(&everything(transaction), SENDER), None, "{transaction}");
    }
    for transaction in [95, 102, 103] {
        assert!(announcer.open(&everything(transaction), SENDER).is_some(), "{transaction}");
    }
}

#[test]
fn snapshots_are_read_as_they_are_written() {
    let ended = Snapshot::parse("7:7:").unwrap();
    assert!(ended.has_ended(6) && !ended.has_ended(7));
    for odd in ["", "7", "7:7", "7:x:", "7:8:9,x"] {
        assert!(Snapshot::parse(odd).is_none(), "{odd:?}");
    }
}

proptest! {
    #[test]
    fn no_payload_is_too_odd(payload in "\\PC*", message in "(v2:)?[a-z]*:\\PC*") {
        prop_assert_eq!(announcer().open(&payload, SENDER), None);
        parse(&message);
    }

    #[test]
    fn ids_are_read_as_they_are_written(bytes: [u8; 16]) {
        let id = KeyId::from_bytes(bytes);
        let told = |word| match parse(&format!("v2:{word}:{id}")) {
            Message::Told(change) => Some(change),
            Message::Hello(_) => None,
        };
        prop_assert_eq!(told("created"), Some(Change::Created(id)));
        prop_assert_eq!(told("changed"), Some(Change::Changed(id)));
    }
}
