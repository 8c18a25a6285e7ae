use super::ManageError;
use crate::{
    rate_limit::RateLimits,
    record::{KeyRecord, MAX_TEXT, Scopes},
};

/// Refuses text that would garble a log, a terminal or a table in which it is shown.
pub(super) fn check(field: &'static str, text: &str) -> Result<(), ManageError> {
    if text.len() > MAX_TEXT {
        return Err(ManageError::invalid(field, "must not be longer than 1,024 bytes"));
    }
    if !is_plain(text) {
        let detail = "must not contain control characters, such as line breaks, or characters that \
            change the direction of text";
        return Err(ManageError::invalid(field, detail));
    }
    Ok(())
}

/// Whether the text has no control characters and none that change the direction of text.
pub(crate) fn is_plain(text: &str) -> bool {
    !text.chars().any(|character| character.is_control() || reorders(character))
}

pub(super) fn check_some(field: &'static str, text: Option<&str>) -> Result<(), ManageError> {
    text.map_or(Ok(()), |text| check(field, text))
}

/// Refuses more scopes than the cache keeps for a key.
pub(super) fn check_scopes(scopes: &Scopes) -> Result<(), ManageError> {
    if scopes.is_within_bounds() {
        return Ok(());
    }
    Err(ManageError::invalid("scopes", "a key has at most 128 scopes"))
}

/// Refuses more quotas than the layer counts a request against.
pub(super) fn check_quotas(limits: Option<&RateLimits>) -> Result<(), ManageError> {
    if limits.is_none_or(RateLimits::is_within_bounds) {
        return Ok(());
    }
    Err(ManageError::invalid("rate_limits", "a key or a plan has at most 8 quotas"))
}

/// Refuses a key with more quotas than that including its plan, if the store defines the plan: the
/// layer would reject the key.
pub(super) fn check_quotas_with_plan(record: &KeyRecord) -> Result<(), ManageError> {
    let (Some(own), Some(plan)) = (&record.rate_limits, &record.plan_limits) else {
        return Ok(());
    };
    if own.and(plan).is_within_bounds() {
        return Ok(());
    }
    let detail = "a key has at most 8 quotas, including those of its plan: give it fewer, or \
        quotas that replace those of the plan by name";
    Err(ManageError::invalid("rate_limits", detail))
}

/// Bidirectional marks and overrides, which can make a name look like another (Unicode TR 36), and
/// line and paragraph separators, which are not control characters.
fn reorders(character: char) -> bool {
    matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}
