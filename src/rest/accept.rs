//! Whether a client prefers CSV to JSON (RFC 9110 §12.5.1).

use http::{HeaderMap, header::ACCEPT};

/// Whether `Accept` gives CSV more weight than JSON. JSON is the answer otherwise, also to a client
/// that accepts neither.
pub(super) fn prefers_csv(headers: &HeaderMap) -> bool {
    let ranges = || {
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(','))
    };
    weight(ranges(), "text", "csv") > weight(ranges(), "application", "json")
}

/// The weight, in thousandths, that the most specific range has for a media type.
fn weight<'a>(ranges: impl Iterator<Item = &'a str>, kind: &str, subtype: &str) -> u16 {
    let of_range = |range: &'a str| {
        let mut parts = range.split(';').map(str::trim);
        let (range_kind, range_subtype) = parts.next()?.split_once('/')?;
        let is = |given: &str, wanted: &str| given.eq_ignore_ascii_case(wanted);
        let precision = match (range_kind, range_subtype) {
            ("*", "*") => 1,
            (given, "*") if is(given, kind) => 2,
            (given, of) if is(given, kind) && is(of, subtype) => 3,
            _ => return None,
        };
        Some((precision, parts.find_map(quality).unwrap_or(1000)))
    };
    ranges.filter_map(of_range).max().map_or(0, |(_, weight)| weight)
}

/// The value of a parameter `q`, in thousandths; 0 if it is not a weight.
fn quality(parameter: &str) -> Option<u16> {
    let (name, value) = parameter.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    let value = value.trim();
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let thousandths = format!("{fraction:0<3}").parse::<u16>().ok().filter(|_| fraction.len() <= 3);
    Some(match (whole, thousandths) {
        ("0", Some(thousandths)) => thousandths,
        ("1", Some(0)) => 1000,
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn prefers(values: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT, HeaderValue::from_static(value));
        }
        prefers_csv(&headers)
    }

    #[test]
    fn csv_is_sent_to_who_prefers_it() {
        for values in [
            &["text/csv"][..],
            &["Text/CSV; header=present"],
            &["application/json;q=0.5, text/csv"],
            &["application/json;q=0.5", "text/csv;q=0.6"],
            &["text/*"],
            &["text/csv, */*;q=0.1"],
            &["application/json;q=0, */*"],
        ] {
            assert!(prefers(values), "{values:?}");
        }
    }

    #[test]
    fn json_is_sent_otherwise() {
        for values in [
            &[][..],
            &["*/*"],
            &["application/json"],
            &["text/csv, application/json"],
            &["text/html,application/xhtml+xml,*/*;q=0.8"],
            &["text/csv;q=0.1, */*"],
            &["text/csv;q=0"],
            &["text/csv;q=nonsense"],
            &["text/csv;q=7"],
            &["image/png"],
            &["text/csv;q=0, text/*"],
            &["text", "/", ";q=1", ""],
        ] {
            assert!(!prefers(values), "{values:?}");
        }
    }
}
