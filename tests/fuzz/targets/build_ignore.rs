//! Any text is an ignore file that says of any path whether it is left out, in one way or another, or is refused.
#![no_main]

use ampoule_engine::builder::ignore::{Ignore, Matched};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str)| {
    let (text, path) = input;
    let Ok(ignored) = Ignore::parse(text) else { return };
    ignored.excludes(path);
    ignored.excludes_below(path, &Matched::default());
    ignored.may_take_back_in(path);
});
