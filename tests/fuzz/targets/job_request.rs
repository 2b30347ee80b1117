//! Any bytes as a job: what is understood is written and understood the same again.
#![no_main]

use ampoule_client::types::JobRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<JobRequest>(bytes) {
        let text = serde_json::to_vec(&request).expect("it was JSON");
        let again: JobRequest = serde_json::from_slice(&text).expect("we wrote it");
        assert_eq!(request, again);
    }
});
