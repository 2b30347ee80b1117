//! What a job wrote comes out whole, byte for byte, with both streams apart; and what was left out is said.

use std::io::Read;

use ampoule_client::types::{EndingKind, Event, Job, JobRequest, LimitsRequest, Output, Stream};
use ampoule_tests::service::{command, kind, shell, stderr, stdout};
use ampoule_tests::{Service, events};
use base64::Engine;
use sha2::{Digest, Sha256};

const MIB: u64 = 1024 * 1024;

/// What `inside pattern` writes.
fn pattern(length: u64) -> Vec<u8> {
    (0..length).map(|position| (position.wrapping_mul(167).wrapping_add(position / 251)) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn kept(output: &Output) -> Vec<u8> {
    match (&output.text, &output.base64) {
        (Some(text), None) => text.clone().into_bytes(),
        (None, Some(base64)) => base64::engine::general_purpose::STANDARD.decode(base64).expect("it is base64"),
        both => panic!("one of the two: {both:?}"),
    }
}

fn output(job: &Job) -> &Output {
    job.stdout.as_ref().expect("an ended job has output")
}

#[test]
fn every_byte_value_comes_out_as_it_was_written() {
    let service = Service::start();
    let job = service.run(&command(&["inside", "pattern", "70000"]));
    let expected = pattern(70_000);
    assert_eq!(kept(output(&job)), expected);
    assert_eq!((output(&job).bytes, output(&job).sha256.as_str()), (70_000, sha256(&expected).as_str()));
    assert_eq!(service.get(&format!("/v1/jobs/{}/logs?stream=stdout", job.id)).body, expected);
}

#[test]
fn both_streams_are_kept_apart_and_in_order() {
    let service = Service::start();
    let job = service.run(&command(&["inside", "interleave", "2000"]));
    let numbers = |parity: u32| (0..2000).filter(|n| n % 2 == parity).map(|n| format!("{n}\n")).collect::<String>();
    assert_eq!(stdout(&job), numbers(0));
    assert_eq!(stderr(&job), numbers(1));
}

#[test]
fn standard_input_arrives_byte_for_byte_and_ends() {
    let service = Service::start();
    let bytes = pattern(300_000);
    let request = JobRequest {
        stdin_base64: Some(base64::engine::general_purpose::STANDARD.encode(&bytes)),
        ..command(&["cat"])
    };
    assert_eq!(kept(output(&service.run(&request))), bytes);
    assert_eq!(stdout(&service.run(&command(&["cat"]))), "");
}

#[test]
fn too_much_output_keeps_head_and_tail_and_says_what_is_missing() {
    let service = Service::start();
    let limits = LimitsRequest { output_bytes: Some(1000), ..LimitsRequest::default() };
    let job = service.run(&JobRequest { limits, ..command(&["inside", "pattern", "100000"]) });
    let (expected, output) = (pattern(100_000), output(&job));
    assert_eq!(kind(&job), EndingKind::Exited);
    assert_eq!((output.bytes, output.sha256.as_str()), (100_000, sha256(&expected).as_str()));
    let gap = output.gap.expect("something is missing");
    let (offset, missing) = (gap.offset as usize, gap.bytes as usize);
    let kept = kept(output);
    assert!(kept.len() <= 1000 && kept.len() + missing == 100_000, "{} kept, {gap:?}", kept.len());
    assert_eq!(kept[..offset], expected[..offset]);
    assert_eq!(kept[offset..], expected[offset + missing..]);
}

#[test]
fn output_that_is_just_as_long_as_it_may_be_has_no_gap() {
    let service = Service::start();
    for length in [999, 1000, 1001] {
        let limits = LimitsRequest { output_bytes: Some(1000), ..LimitsRequest::default() };
        let job = service.run(&JobRequest { limits, ..command(&["inside", "pattern", &length.to_string()]) });
        assert_eq!(output(&job).gap.is_some(), length > 1000, "{length}: {:?}", output(&job));
    }
}

#[test]
fn the_last_bytes_are_there_before_the_end_is_told() {
    let service = Service::start();
    for round in 0..20 {
        let job = service.submit(&command(&["inside", "pattern", "200000"]));
        let mut hash = Sha256::new();
        let mut ended = false;
        for event in events(&service, &job.id, None) {
            match event.data {
                Event::Log(chunk) => {
                    assert!(!ended, "output after the end");
                    assert_eq!(chunk.stream, Stream::Stdout);
                    hash.update(base64::engine::general_purpose::STANDARD.decode(chunk.base64).expect("it is base64"));
                }
                Event::Ended { .. } => ended = true,
                Event::State { .. } => {}
                Event::Gap { gap, .. } => panic!("round {round}: {gap:?}"),
            }
        }
        assert!(ended, "round {round}");
        assert_eq!(hash.finalize().as_slice(), Sha256::digest(pattern(200_000)).as_slice(), "round {round}");
    }
}

#[test]
fn a_hundred_megabytes_stream_through() {
    let service = Service::start();
    let limits =
        LimitsRequest { output_bytes: Some(64 * MIB), output_total_bytes: Some(200 * MIB), ..LimitsRequest::default() };
    let job = service.submit(&JobRequest { limits, ..command(&["inside", "pattern", "104857600"]) });
    let ended = service.wait(&job.id);
    assert_eq!(kind(&ended), EndingKind::Exited, "{:?}", ended.ending);
    let output = output(&ended);
    let expected = pattern(100 * MIB);
    assert_eq!((output.bytes, output.sha256.as_str()), (100 * MIB, sha256(&expected).as_str()));
    let gap = output.gap.expect("more than 64 MiB were written");
    let mut raw = Vec::new();
    let mut stream =
        service.connect().stream("GET", &format!("/v1/jobs/{}/logs?stream=stdout", job.id), &[]).expect("it answers");
    stream.read_to_end(&mut raw).expect("it comes whole");
    let (offset, missing) = (gap.offset as usize, gap.bytes as usize);
    assert!(raw[..offset] == expected[..offset] && raw[offset..] == expected[offset + missing..]);
}

#[test]
fn a_log_can_be_followed_while_the_job_writes() {
    let service = Service::start();
    let job = service.submit(&shell("echo first; read line </tmp/never 2>/dev/null; sleep 1; echo second"));
    let stream = service
        .connect()
        .stream("GET", &format!("/v1/jobs/{}/logs?stream=stdout&follow=true", job.id), &[])
        .expect("it answers");
    assert_eq!(stream.status, 200);
    let lines: Vec<String> = stream.lines().collect::<Result<_, _>>().expect("it comes whole");
    assert_eq!(lines, ["first", "second"]);
}

#[test]
fn a_job_that_closes_its_output_early_still_ends_by_itself() {
    let service = Service::start();
    let job = service.run(&shell("echo before; exec >&- 2>&-; sleep 0.2; exit 4"));
    assert_eq!((stdout(&job), job.ending.as_ref().and_then(|ending| ending.exit_code)), ("before\n", Some(4)));
}
