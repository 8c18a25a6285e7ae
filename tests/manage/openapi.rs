//! The served OpenAPI documents equal the committed ones, and are complete.

use std::future::ready;

use http::request::Parts;
use serde_json::Value;
use tower_api_key::{
    account::{self, Account},
    admin::{self, Admin},
    manage::Member,
};

use crate::admin_client::Desk;

/// If set, writes the documents instead of comparing them.
const UPDATE: &str = "UPDATE_OPENAPI";

#[tokio::test]
async fn the_documents_are_those_that_are_checked_in() {
    for (name, desk) in desks() {
        let served = format!("{:#}\n", desk.document().await);
        let file = format!("{}/tests/openapi/{name}.json", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&file, &served).unwrap();
        }
        let checked_in = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            checked_in == served,
            "{file} is not what is served. If the change is meant: {UPDATE}=1 cargo test \
             --features openapi,test-util --test openapi, look at the difference, and commit it"
        );
    }
}

#[tokio::test]
async fn they_are_valid_where_they_refer_to_themselves() {
    for (_, desk) in desks() {
        let document = desk.document().await;
        assert!(document["openapi"].as_str().unwrap() >= "3.1");
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(!references.is_empty());
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }
}

/// Every operation documents refusals, and every body is closed to unknown fields.
#[tokio::test]
async fn they_tell_of_refusals_and_leave_no_body_open() {
    for (_, desk) in desks() {
        let document = desk.document().await;
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let responses = operation["responses"].as_object().unwrap();
                for status in ["400", "401", "403", "503"] {
                    assert!(responses.contains_key(status), "{method} {path}: {status}");
                }
                for (status, response) in responses {
                    let is_problem = response["content"]["application/problem+json"].is_object();
                    assert_eq!(
                        is_problem,
                        status >= &"400".to_owned(),
                        "{method} {path}: {status}"
                    );
                }
            }
        }
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            let one_of =
                schema["oneOf"].as_array().cloned().unwrap_or_else(|| vec![schema.clone()]);
            for schema in one_of {
                assert_eq!(schema["additionalProperties"], Value::Bool(false), "{name}");
            }
        }
    }
}

/// A secret scanner would report an example that looks like a key.
#[tokio::test]
async fn nothing_in_them_looks_like_a_key() {
    let like_a_key = regex::Regex::new(r"\b[a-z]{2,}_[a-z]+_[A-Za-z0-9_-]{8,}").unwrap();
    assert!(like_a_key.is_match("sk_live_0123456789abcdef"));
    for (_, desk) in desks() {
        let document = desk.document().await.to_string();
        assert_eq!(like_a_key.find(&document), None);
    }
}

fn desks() -> [(&'static str, Desk); 4] {
    [
        ("admin", Desk::new("/admin", admin::router)),
        ("account", Desk::new("/account", account::router)),
        (
            "admin_signed_in",
            Desk::new("/admin", |issuer, _| {
                Admin::signed_in_by(issuer, |_: &mut Parts| ready(Ok(member()))).router()
            }),
        ),
        (
            "account_signed_in",
            Desk::new("/settings", |issuer, _| {
                Account::signed_in_by(issuer, |_: &mut Parts| ready(Ok(member()))).router()
            }),
        ),
    ]
}

fn member() -> Member {
    Member::new("ann", "acme")
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get("$ref") {
                references.push(reference.clone());
            }
            members.values().for_each(|value| collect(value, references));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}
