//! Any bytes as a tar: the reader ends, in bounded memory, and never panics.
#![no_main]

use ampoule_engine::image::archive::{Limits, Reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new(bytes, Limits { bytes_max: 1 << 24, ..Limits::default() });
    let mut piece = [0; 4096];
    while let Ok(Some(mut entry)) = reader.next_entry() {
        let _ = entry.head().components();
        while let Ok(Some(_)) = entry.read_piece(&mut piece) {}
    }
});
