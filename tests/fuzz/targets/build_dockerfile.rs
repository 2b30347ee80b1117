//! Any text is a Dockerfile that is printed, read again and planned, or refused at a place in it.
#![no_main]

use ampoule_engine::builder::check::check;
use ampoule_engine::builder::dockerfile;
use ampoule_engine::builder::plan::{Options, plan};
use ampoule_engine::builder::source::Source;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let source = Source::new("Dockerfile", text);
    let options = Options { all_stages: true, ..Options::default() };
    let made = dockerfile::parse(&source).and_then(|file| {
        let printed = file.to_string();
        let again = dockerfile::parse(&Source::new("printed", printed.as_str()));
        assert_eq!(again.expect("what is printed can be read").to_string(), printed);
        let plan = plan(&source, &file, &options)?;
        check(&file, &options, &plan, None).render(&source);
        Ok(())
    });
    if let Err(complaint) = made {
        assert!(complaint.span.start <= complaint.span.end && complaint.span.end <= text.len());
        source.excerpt(complaint.span);
    }
});
