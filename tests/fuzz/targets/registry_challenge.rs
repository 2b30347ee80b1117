//! Any header is read as challenges or refused, and what was read keeps its bounds.
#![no_main]

use ampoule_engine::image::registry::challenge;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(challenges) = challenge::parse(text) {
        for challenge in challenges {
            assert!(!challenge.scheme.is_empty());
            for (name, value) in &challenge.parameters {
                // A parameter that comes twice is refused, so each is found by its name.
                assert_eq!(challenge.parameter(name), Some(value.as_str()));
            }
        }
    }
});
