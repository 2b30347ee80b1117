//! Any text is a reference that comes back whole from both of its written forms, or an error.
#![no_main]

use ampoule_engine::image::reference::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(Reference::parse(&reference.to_string()).as_ref(), Ok(&reference));
        assert_eq!(Reference::parse(&reference.canonical()).as_ref(), Ok(&reference));
    }
});
