//! Any text is expanded to something bounded, or refused at a place in it.
#![no_main]

use ampoule_engine::builder::expand::{Rules, VALUE_BYTES_MAX, expand};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str, [bool; 5])| {
    let (text, value, [keep_quotes, keep_escapes, ignore_quotes, keep_unset, is_windows]) = input;
    let rules = Rules { keep_quotes, keep_escapes, ignore_quotes, keep_unset };
    let escape = if is_windows { '`' } else { '\\' };
    let lookup = |name: &str| (!name.starts_with('u')).then_some(value);
    match expand(text, escape, rules, &lookup) {
        Ok(expanded) => assert!(expanded.text.len() <= VALUE_BYTES_MAX),
        Err(error) => assert!(text.is_char_boundary(error.offset)),
    }
});
