//! A second masker, which knows the whole text and tries each place in it.

use std::cmp::Reverse;

use crate::forms::Form;

/// A key, or several that overlap.
struct Found<'f> {
    start: usize,
    end: usize,
    form: &'f Form,
    shows_checksum: bool,
}

/// What becomes of `text`.
pub(crate) fn masked(forms: &[Form], text: &[u8]) -> Vec<u8> {
    masked_until(forms, text, text.len())
}

/// What passes of `text` before anything follows it.
pub(crate) fn passed(forms: &[Form], text: &[u8]) -> Vec<u8> {
    masked_until(forms, text, open(forms, text))
}

/// Whether keys in `text` overlap.
pub(crate) fn overlap(forms: &[Form], text: &[u8]) -> bool {
    joined(forms, text).len() < forms.iter().map(|form| keys(form, text).len()).sum()
}

/// What becomes of `text` up to `until`, or up to the end of a key that began before.
fn masked_until(forms: &[Form], text: &[u8], until: usize) -> Vec<u8> {
    let (mut masked, mut at) = (Vec::new(), 0);
    for key in joined(forms, text).into_iter().filter(|key| key.start < until) {
        masked.extend(&text[at..key.start]);
        masked.extend(key.form.prefix.as_bytes());
        masked.extend("…".as_bytes());
        if key.shows_checksum {
            masked.extend(&text[key.end - 4..key.end]);
        }
        at = key.end;
    }
    masked.extend(&text[at.min(until)..until]);
    masked
}

/// The keys in `text`, those that overlap as one.
fn joined<'f>(forms: &'f [Form], text: &[u8]) -> Vec<Found<'f>> {
    let mut all: Vec<_> = forms.iter().flat_map(|form| keys(form, text)).collect();
    all.sort_by_key(|key| (key.start, Reverse(key.end)));
    let mut joined: Vec<Found<'f>> = Vec::new();
    for key in all {
        match joined.last_mut() {
            Some(last) if key.start < last.end => {
                last.shows_checksum &= key.end <= last.end;
                last.end = last.end.max(key.end);
            }
            _ => joined.push(key),
        }
    }
    joined
}

fn keys<'f>(form: &'f Form, text: &[u8]) -> Vec<Found<'f>> {
    let (mut keys, mut start) = (Vec::new(), 0);
    while start + form.len <= text.len() {
        let mut end = start + form.len;
        if !form.is_key(&text[start..end]) {
            start += 1;
            continue;
        }
        let shows_checksum = form.checked.is_some();
        if !shows_checksum {
            end += text[end..].iter().take_while(|byte| (form.is_symbol)(byte)).count();
        }
        keys.push(Found { start, end, form, shows_checksum });
        start = end;
    }
    keys
}

/// Where the earliest key may begin that is complete only with what follows `text`.
fn open(forms: &[Form], text: &[u8]) -> usize {
    let open = |form| {
        let from = keys(form, text).last().map_or(0, |key| key.end);
        (from..text.len()).find(|at| form.may_begin(&text[*at..]))
    };
    forms.iter().filter_map(open).min().unwrap_or(text.len())
}
