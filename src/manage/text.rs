use super::ManageError;
use crate::{
    rate_limit::RateLimits,
    record::{KeyRecord, MAX_TEXT, PLAN_NAMES, Scopes, is_plan_name},
};

/// Refuses what would spoil a log, a terminal or a table of whoever reads it later.
pub(super) fn check(field: &'static str, text: &str) -> Result<(), ManageError> {
    if text.len() > MAX_TEXT {
        return Err(ManageError::invalid(field, "that is longer than 1,024 bytes"));
    }
    if !is_plain(text) {
        let detail = "that has control characters, such as line ends, or characters that change \
            the direction of text";
        return Err(ManageError::invalid(field, detail));
    }
    Ok(())
}

/// Without control characters, and what changes the direction of text.
pub(crate) fn is_plain(text: &str) -> bool {
    !text.chars().any(|character| character.is_control() || reorders(character))
}

pub(super) fn check_some(field: &'static str, text: Option<&str>) -> Result<(), ManageError> {
    text.map_or(Ok(()), |text| check(field, text))
}

/// Refuses more scopes than are cached with a key.
pub(super) fn check_scopes(scopes: &Scopes) -> Result<(), ManageError> {
    if scopes.is_within_bounds() {
        return Ok(());
    }
    Err(ManageError::invalid("scopes", "a key has at most 128 scopes"))
}

/// Refuses more quotas than a request is to be counted against.
pub(super) fn check_quotas(limits: Option<&RateLimits>) -> Result<(), ManageError> {
    if limits.is_none_or(RateLimits::is_within_bounds) {
        return Ok(());
    }
    Err(ManageError::invalid("rate_limits", "a key or a plan has at most 8 quotas"))
}

/// Refuses a key that has more quotas than that together with its plan, as far as the store defines
/// it: it would not be let in.
pub(super) fn check_quotas_with_plan(record: &KeyRecord) -> Result<(), ManageError> {
    let (Some(own), Some(plan)) = (&record.rate_limits, &record.plan_limits) else {
        return Ok(());
    };
    if own.and(plan).is_within_bounds() {
        return Ok(());
    }
    let detail = "a key has at most 8 quotas, its own and those of its plan together: give it fewer, \
        or quotas named as those of the plan, which they replace";
    Err(ManageError::invalid("rate_limits", detail))
}

pub(super) fn check_plan(name: &str) -> Result<(), ManageError> {
    if is_plan_name(name) { Ok(()) } else { Err(ManageError::invalid("plan", PLAN_NAMES)) }
}

/// Marks and overrides of direction, with which a name can look like another (Unicode TR 36), and
/// the separators of lines that are no control characters.
fn reorders(character: char) -> bool {
    matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}
