use super::ManageError;
use crate::record::{PLAN_NAMES, is_plan_name};

const MAX_LEN: usize = 1024;

/// Refuses what would spoil a log, a terminal or a table of whoever reads it later.
pub(super) fn check(field: &'static str, text: &str) -> Result<(), ManageError> {
    if text.len() > MAX_LEN {
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
