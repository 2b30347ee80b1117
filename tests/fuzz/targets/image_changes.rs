//! Any bytes as what a worker tells of two trees: the reader ends, in bounded memory, and never panics.
#![no_main]

use ampoule_engine::image::tree::Changes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut changes = Changes::new(bytes);
    while let Ok(Some(_)) = changes.next_change() {}
});
