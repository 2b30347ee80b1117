//! Any text is the options of a mount with a target below the root, or is refused.
#![no_main]

use ampoule_engine::builder::dockerfile::mount::{Mount, from_of};
use ampoule_engine::builder::source::{Span, Word};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let word = Word::new(text.to_owned(), Span { start: 0, end: text.len() });
    let read = Mount::parse(&word, &|value| Ok(value.to_owned()));
    if let Ok(mount) = read {
        assert!(mount.target().is_none_or(|target| !target.is_empty()));
        assert_eq!(from_of(&word).map(|from| from.value), mount.from().map(str::to_owned));
    }
});
