use crate::{record::KeyId, store::port::Change};

/// The content of a genuine announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message<'m> {
    Told(Change),
    /// A node checks whether notifications arrive.
    Hello(&'m str),
}

/// A message unknown to this version may announce anything, so it counts as a change of everything.
pub(super) fn parse(message: &str) -> Message<'_> {
    let known = || {
        let message = message.strip_prefix("v2:")?;
        let told = match message.split_once(':') {
            Some(("created", id)) => Change::Created(key_id(id)?),
            Some(("changed", id)) => Change::Changed(key_id(id)?),
            Some(("hello", _)) => return Some(Message::Hello(message)),
            _ => return None,
        };
        Some(Message::Told(told))
    };
    known().unwrap_or(Message::Told(Change::Everything))
}

/// Parses an id in PostgreSQL's spelling.
fn key_id(text: &str) -> Option<KeyId> {
    let id: KeyId = text.parse().ok()?;
    (id.to_string() == text).then_some(id)
}
