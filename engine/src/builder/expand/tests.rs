//! What variables come to: the table that BuildKit's own behaviour was read into, and what must hold for any text.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

/// Variables that are set in these cases.
fn lookup(name: &str) -> Option<&'static str> {
    let value = match name {
        "A" => "value",
        "EMPTY" => "",
        "PATHS" => "/usr/local/bin:/usr/bin",
        "F" => "archive.tar.gz",
        "W" => "two  words",
        "STAR" => "a*b",
        "Q" => "it's",
        _ => return None,
    };
    Some(value)
}

#[track_caller]
fn check(text: &str, expected: &str) {
    let expanded = expand(text, '\\', Rules::default(), &lookup);
    assert_eq!(expanded.as_ref().map(|expanded| expanded.text.as_str()), Ok(expected), "{text}");
}

#[track_caller]
fn check_words(text: &str, expected: &[&str]) {
    let expanded = expand(text, '\\', Rules::default(), &lookup).unwrap();
    assert_eq!(expanded.words, expected, "{text}");
}

#[track_caller]
fn check_error(text: &str, expected: &str) {
    let error = expand(text, '\\', Rules::default(), &lookup).unwrap_err();
    assert!(error.message.contains(expected), "{text}: {error}");
}

#[test]
fn plain_variables_and_braces_mean_the_same() {
    check("$A", "value");
    check("${A}", "value");
    check("x${A}y", "xvaluey");
    check("$A.x", "value.x");
    check("$AB", "");
    check("$NONE", "");
    check("$", "$");
    check("a$ b", "a$ b");
    check("$1x", "x");
    check("$$A", "A");
    check("${A}$A", "valuevalue");
}

#[test]
fn quotes_and_escapes_protect_what_they_should() {
    check("'$A'", "$A");
    check("\"$A\"", "value");
    check("\\$A", "$A");
    check("\"\\$A\"", "$A");
    check("\"a\\b\"", "a\\b");
    check("a\\b", "ab");
    check("'it''s'", "its");
    check("\"$Q\"", "it's");
    check("a\\", "a");
    let windows = expand("C:\\x`$A", '`', Rules::default(), &lookup).unwrap();
    assert_eq!(windows.text, "C:\\x$A");
}

#[test]
fn defaults_alternatives_and_demands() {
    check("${NONE:-d}", "d");
    check("${EMPTY:-d}", "d");
    check("${EMPTY-d}", "");
    check("${A:-d}", "value");
    check("${A:+alt}", "alt");
    check("${EMPTY:+alt}", "");
    check("${EMPTY+alt}", "alt");
    check("${NONE+alt}", "");
    check("${NONE:-${A}}", "value");
    check("${NONE:-${ALSO:-x}y}", "xy");
    check("${NONE:-\"a b\"}", "a b");
    check("${A:?must}", "value");
    check("${EMPTY?must}", "");
    check_error("${EMPTY:?must be given}", "EMPTY: must be given");
    check_error("${NONE?}", "NONE: must be set");
    check_error("${EMPTY:?}", "EMPTY: must not be empty");
}

#[test]
fn patterns_cut_and_replace() {
    check("${PATHS#*/}", "usr/local/bin:/usr/bin");
    check("${PATHS##*/}", "bin");
    check("${PATHS%/*}", "/usr/local/bin:/usr");
    check("${PATHS%%/*}", "");
    check("${F%.*}", "archive.tar");
    check("${F%%.*}", "archive");
    check("${F#a?c}", "hive.tar.gz");
    check("${F#x}", "archive.tar.gz");
    check("${F/r/R}", "aRchive.tar.gz");
    check("${F//r/R}", "aRchive.taR.gz");
    check("${F/tar*/zip}", "archive.zip");
    check("${F//./}", "archivetargz");
    check("${STAR#a\\*}", "b");
    check("${PATHS/\\//-}", "-usr/local/bin:/usr/bin");
    check("${NONE#x}", "");
    // What comes in by a variable is text, not a reference to a group of the pattern.
    check("${F/archive/$0}", ".tar.gz");
}

#[test]
fn words_are_split_at_blanks_that_nothing_protects() {
    check_words("a b", &["a", "b"]);
    check_words("$W", &["two", "words"]);
    check_words("\"$W\" x", &["two  words", "x"]);
    check_words("a\\ b", &["a b"]);
    check_words("x$W", &["xtwo", "words"]);
    check_words("a${NONE:-b} c", &["ab", "c"]);
    check_words("\"\" a", &["a"]);
    check_words("  ", &[]);
}

#[test]
fn what_is_unfinished_or_unknown_is_refused() {
    check_error("'x", "single quote");
    check_error("\"x", "double quote");
    check_error("${A", "`}` is missing");
    check_error("${", "`}` is missing");
    check_error("${}", "name must follow");
    check_error("${:x}", "name must follow");
    check_error("${A:#x}", "no modifier");
    check_error("${A@x}", "no modifier");
    check_error("${A:-x", "`}` is missing");
    check_error("${A/x}", "`/` is missing");
    check_error("${A#\\a}", "escapes nothing");
}

#[test]
fn what_was_not_found_is_told() {
    let expanded = expand("$A $B ${C:-d} '$D' \\$E", '\\', Rules::default(), &lookup).unwrap();
    assert_eq!(expanded.matched.into_iter().collect::<Vec<_>>(), ["A"]);
    assert_eq!(expanded.unmatched.into_iter().collect::<Vec<_>>(), ["B", "C"]);
}

#[test]
fn hostile_texts_are_refused_soon() {
    let start = Instant::now();
    check_error(&format!("{}x{}", "${A:-".repeat(5000), "}".repeat(5000)), "nested more than");
    let value = "x".repeat(VALUE_BYTES_MAX / 2);
    for text in
        ["$A".repeat(10_000), format!("\"{}\"", "$A".repeat(10_000)), "${A:+}".repeat(10_000), "${A#y}".repeat(10_000)]
    {
        assert!(expand(&text, '\\', Rules::default(), &|_| Some(&value)).is_err(), "{}", &text[..8]);
    }
    let value = "a".repeat(10_000);
    let stars = format!("${{F#{}b}}", "*a".repeat(1000));
    let _ = expand(&stars, '\\', Rules::default(), &|_| Some(&value));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_expanded_or_refused_at_a_place_in_it(
        text in "[$\\{}:\\-+?#%/'\"\\\\<A-C \\t*x`]{0,40}|\\PC{0,30}",
        escape in prop_oneof![Just('\\'), Just('`')],
        flags in any::<[bool; 4]>(),
    ) {
        let [keep_quotes, keep_escapes, ignore_quotes, keep_unset] = flags;
        let rules = Rules { keep_quotes, keep_escapes, ignore_quotes, keep_unset };
        match expand(&text, escape, rules, &lookup) {
            Ok(expanded) => prop_assert!(expanded.words.iter().all(|word| !word.is_empty())),
            Err(error) => prop_assert!(error.offset <= text.len() && text.is_char_boundary(error.offset)),
        }
    }

    #[test]
    fn a_text_without_signs_is_itself(text in "[a-z0-9_./:=,@%-]{0,60}") {
        let expanded = expand(&text, '\\', Rules::default(), &lookup).unwrap();
        prop_assert_eq!(expanded.text, text);
    }
}
