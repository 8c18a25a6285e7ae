//! Rules for the texts of a key: consumer ids, names, reasons, prefixes.

/// What a text may contain, and how long it may be: consumer ids, names, reasons, actors.
///
/// ```
/// use tower_api_key::record::TextRule;
///
/// assert_eq!(TextRule::STORED.check("ann@build-7"), Ok(()));
/// assert!(TextRule::STORED.check("two\nlines").is_err());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TextRule {
    max: usize,
    length: fn(&str) -> usize,
    /// Error text for a longer text.
    too_long: &'static str,
    allows_reordering: bool,
}

impl TextRule {
    /// A text stored with a key or in the audit: at most 1,024 bytes, so that a page of them stays
    /// small. No control characters, such as line breaks, which would garble a log or a terminal,
    /// and none that change the direction of text, which can make a name look like another. May be
    /// empty.
    pub const STORED: Self = Self {
        max: 1024,
        length: str::len,
        too_long: "must not be longer than 1,024 bytes",
        allows_reordering: false,
    };

    /// A text in the body of a request: 256 characters, the unit of JSON Schema. At 4 bytes each,
    /// they stay within [`STORED`](Self::STORED).
    #[cfg(feature = "admin")]
    pub(crate) const SENT: Self = Self {
        max: 256,
        length: characters,
        too_long: "must not be longer than 256 characters",
        allows_reordering: false,
    };

    /// A text to search for: up to 1,024 characters, so that every stored text can be found. Rows
    /// that other programs wrote may contain marks that change the direction of text.
    #[cfg(feature = "admin")]
    pub(crate) const SEARCHED: Self = Self {
        max: 1024,
        length: characters,
        too_long: "must not be longer than 1,024 characters",
        allows_reordering: true,
    };

    /// The maximum length, in the unit of the rule.
    pub(crate) const fn max(self) -> usize {
        self.max
    }

    /// Checks the text.
    ///
    /// # Errors
    ///
    /// When it breaks the rule: what is wrong with it, to be put after the name of the field.
    pub fn check(self, text: &str) -> Result<(), &'static str> {
        if self.is_too_long(text) {
            return Err(self.too_long);
        }
        let is_fine = if self.allows_reordering {
            !text.chars().any(char::is_control)
        } else {
            is_plain(text)
        };
        if !is_fine {
            return Err("must not contain control characters, such as line breaks, or characters \
                that change the direction of text");
        }
        Ok(())
    }

    /// Whether the text is longer than allowed, whatever it contains.
    pub(crate) fn is_too_long(self, text: &str) -> bool {
        (self.length)(text) > self.max
    }
}

/// Whether the text has no control characters and none that change the direction of text.
pub(crate) fn is_plain(text: &str) -> bool {
    !text.chars().any(|character| character.is_control() || reorders(character))
}

#[cfg(feature = "admin")]
fn characters(text: &str) -> usize {
    text.chars().count()
}

/// Bidirectional marks and overrides, which can make a name look like another (Unicode TR 36), and
/// line and paragraph separators, which are not control characters.
fn reorders(character: char) -> bool {
    matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(all(test, feature = "admin"))]
mod tests {
    use super::*;

    #[test]
    fn each_rule_has_its_length_and_its_characters() {
        let of = |length: usize, character: &str| character.repeat(length);
        for (rule, max, bytes) in
            [(TextRule::STORED, 1024, 1), (TextRule::SENT, 256, 4), (TextRule::SEARCHED, 1024, 4)]
        {
            assert_eq!(rule.max(), max);
            let character = if bytes == 4 { "\u{1f511}" } else { "x" };
            assert_eq!(rule.check(&of(max, character)), Ok(()), "{rule:?}");
            assert!(rule.check(&of(max + 1, character)).is_err(), "{rule:?}");
            assert_eq!(rule.check(""), Ok(()), "{rule:?}");
            for control in ["a\r\nb", "\u{1b}[31m", "a\0", "\u{85}"] {
                assert!(rule.check(control).is_err(), "{rule:?} {control:?}");
                assert!(!is_plain(control), "{control:?}");
            }
        }
        assert!(TextRule::STORED.check(&of(257, "\u{1f511}")).is_err());
        for reordering in ["\u{202e}b", "\u{200f}", "\u{2028}", "\u{2069}"] {
            assert!(!is_plain(reordering), "{reordering:?}");
            assert!(TextRule::STORED.check(reordering).is_err(), "{reordering:?}");
            assert!(TextRule::SENT.check(reordering).is_err(), "{reordering:?}");
            assert_eq!(TextRule::SEARCHED.check(reordering), Ok(()), "{reordering:?}");
        }
    }

    /// Of all characters there are: control characters, and those of the property `Bidi_Control` with
    /// the separators of lines and paragraphs (Unicode Standard Annex 44).
    #[test]
    fn these_characters_are_refused_and_no_other() {
        let is_refused =
            |character: &char| TextRule::STORED.check(character.encode_utf8(&mut [0; 4])).is_err();
        let refused: Vec<char> = ('\0'..=char::MAX).filter(is_refused).collect();
        let controls = [0..=0x1f, 0x7f..=0x9f];
        let reordering = [0x61c..=0x61c, 0x200e..=0x200f, 0x2028..=0x202e, 0x2066..=0x2069];
        let expected = controls.into_iter().chain(reordering).flatten();
        assert_eq!(refused, expected.map(|code| char::from_u32(code).unwrap()).collect::<Vec<_>>());
    }

    #[test]
    fn a_sent_text_can_be_stored() {
        let longest = "\u{1f511}".repeat(TextRule::SENT.max());
        assert_eq!(TextRule::SENT.check(&longest), Ok(()));
        assert_eq!(TextRule::STORED.check(&longest), Ok(()));
    }
}
